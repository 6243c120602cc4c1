"""The S²GR benchmark: rows are the ablations they say, and figures are kept by their settings."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import s2gr  # noqa: E402

from sidrec.evaluation import EvaluationContext, Rankings, report_of  # noqa: E402
from sidrec.types import Examples, Histories  # noqa: E402


def report(better, seed=0):
    """Four users whose targets come after so many items, of 50."""
    examples = Examples(np.arange(4), Histories.from_lists([[0]] * 4), np.arange(4))
    rankings = Rankings(
        examples=examples,
        better_Q=np.array(better),
        tied_Q=np.zeros(4, dtype=np.int64),
        rows_QK=np.tile(np.arange(10), (4, 1)),
        num_items=50,
        max_length=5,
        filter_seen=False,
        ties="expected",
        num_targets_filtered=0,
    )
    context = EvaluationContext(
        train_counts_N=np.ones(50, dtype=np.int64), split_rule="", part="test"
    )
    return report_of("s2gr", rankings, context=context, seed=seed)


GROUPS = {"": np.ones(4, dtype=bool), "min10.": np.array([True, True, False, False])}


def test_rows_differ_in_what_they_are_named_for_and_settings_reach_all(tiny):
    words = ["--set", "num_clusters=16", "train.learning_rate=0.01", "--max-seconds", "7"]
    asked = s2gr.parsed(words)
    dataset = tiny.run.dataset
    rows = {row: s2gr.settings_for(dataset, asked, row, seed=3) for row in asked.rows}
    own = {row: settings.generator.config for row, settings in rows.items()}
    assert [row for row in own if own[row].thoughts != "stepwise"] == [
        "s2gr_no_reason", "s2gr_all_first",
    ]  # fmt: skip
    assert [row for row in own if not own[row].supervision] == ["s2gr_no_supervision"]
    tokenizers = [settings.tokenizer.name for settings in rows.values()]
    assert tokenizers == ["coba_rqvae"] * 4 + ["rqvae"]
    for settings in rows.values():
        assert settings.seed == 3 and settings.generator.config.num_clusters == 16
        train = settings.generator.train
        assert (train.learning_rate, train.max_seconds, train.clock) == (0.01, 7, "processor")
    folders = {
        s2gr.folder_of(a, "s2gr", s2gr.settings_for(dataset, a, "s2gr", 0))
        for a in (asked, s2gr.parsed(words), s2gr.parsed([]))
    }
    assert len(folders) == 2
    with pytest.raises(SystemExit):
        s2gr.parsed(["--rows", "s2gr_no_thoughts"])


def test_figures_hold_both_protocols_levels_and_settings():
    reports = {0: report([0, 99, 0, 0]), 1: report([0, 0, 99, 99], seed=1)}
    levels = {
        seed: {"parameters": 9, "accuracy": [0.5, 1.0], "settings": {"name": "s2gr"}}
        for seed in (0, 1)
    }
    levels[1]["accuracy"] = [0.7, 1.0]
    found = s2gr.row_figures("d.s2gr", reports, levels, GROUPS)
    assert found["d.s2gr.recall@10"]["value"] == pytest.approx(5 / 8)
    assert found["d.s2gr.min10.recall@10"]["value"] == pytest.approx(3 / 4)
    assert found["d.s2gr.min10.recall@10"]["by_seed"] == [0.5, 1.0]
    assert found["d.s2gr.min10.recall@10"]["n"] == 2
    assert found["d.s2gr.level1_accuracy"]["value"] == pytest.approx(0.6)
    assert found["d.s2gr.parameters"]["settings"] == {"name": "s2gr"}
    assert not any("thought" in name for name in found)


def test_differences_are_paired_on_the_seeds_both_have():
    first = {0: report([0, 0, 99, 99]), 1: report([0, 0, 0, 0], seed=1)}
    second = {0: report([99, 0, 99, 99])}
    found = s2gr.differences("d.s2gr_minus_x", first, second, GROUPS)
    assert found["d.s2gr_minus_x.recall@10"]["value"] == pytest.approx(1 / 4)
    assert found["d.s2gr_minus_x.min10.recall@10"]["value"] == pytest.approx(1 / 2)
    assert found["d.s2gr_minus_x.recall@10"]["seeds"] == [0]
    assert s2gr.differences("x", {0: report([0] * 4)}, {1: report([0] * 4)}, GROUPS) == {}


def test_the_encoder_decoder_without_thoughts_is_tiger_on_coba_ids(tmp_path, tiny):
    asked = s2gr.parsed(["--generator", "s2gr_tiger", "--runs", str(tmp_path), "--epochs", "1"])
    dataset = tiny.run.dataset
    asked.data = dataset.name
    (tmp_path / f"{dataset.name}-seed0").mkdir()
    for row, better in (("s2gr_tiger", [0, 0, 99, 99]), ("s2gr_tiger_no_reason", [99, 0, 99, 99])):
        kept = s2gr.folder_of(asked, row, s2gr.settings_for(dataset, asked, row, 0))
        kept.mkdir()
        (kept / "test.json").write_text(report(better).to_json())
        levels = {"parameters": 9, "accuracy": [0.5], "settings": {}}
        (kept / "test_levels.json").write_text(json.dumps(levels))
    events = Examples(np.arange(4), Histories.from_lists([[0] * 9, [0], [0], [0]]), np.arange(4))
    figures, seeds = s2gr.collect(dataset, SimpleNamespace(test=events), asked)
    start = dataset.name
    assert seeds == [0] and figures[f"{start}.tiger_coba.recall@10"]["value"] == 0.25
    assert figures[f"{start}.tiger_coba.min10.recall@10"]["n"] == 1
    assert figures[f"{start}.s2gr_tiger_minus_tiger_coba.recall@10"]["value"] == 0.25
    assert not any("s2gr_tiger_no_reason" in name for name in figures)
