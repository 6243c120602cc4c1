"""Benchmarks measure anew what changed, keep what did not, and compare rows on the same users."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import kept_rows  # noqa: E402
import quality  # noqa: E402
import tokenizer_quality  # noqa: E402
from generator_rows import RUNS  # noqa: E402
from paired_rows import by_group, differences, strata_of  # noqa: E402

import generators  # noqa: E402
from sidrec import config  # noqa: E402
from sidrec.evaluation import EvaluationContext, Rankings, report_of  # noqa: E402
from sidrec.types import Examples, Histories  # noqa: E402

COUNTS = np.array([0, 3, 10, 30, *[1] * 46])
"""Training events of 50 items: the targets below are one of each stratum."""


def report(better, seed=0):
    """Four users, of a target without events, a tail, a mid and a head one."""
    examples = Examples(np.arange(4), Histories.from_lists([[9]] * 4), np.arange(4))
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
    context = EvaluationContext(train_counts_N=COUNTS, split_rule="", part="test")
    return report_of("causal", rankings, context=context, seed=seed)


@pytest.fixture
def settings(tiny):
    return tokenizer_quality.settings_for(tiny.run.dataset, "rqvae", 0, 5)


def test_a_row_is_found_by_its_settings_and_changed_settings_are_another_row(tmp_path, settings):
    own = kept_rows.folder_of(tmp_path, "rqvae", settings)
    assert not own.exists() and own.name.startswith("rqvae-")
    kept_rows.record(own, settings)
    assert kept_rows.folder_of(tmp_path, "rqvae", settings) == own
    generator = settings.generator
    longer = replace(
        settings, generator=replace(generator, train=replace(generator.train, epochs=9))
    )
    assert kept_rows.folder_of(tmp_path, "rqvae", longer) not in (own, tmp_path / "rqvae")
    assert kept_rows.folder_of(tmp_path, "rqvae", replace(settings, seed=1)) != own


def test_a_folder_of_an_older_version_counts_only_where_it_recorded_these_settings(
    tmp_path, settings
):
    old = tmp_path / "rqvae"
    old.mkdir()
    (old / "ids.json").write_text("{}")
    assert kept_rows.folder_of(tmp_path, "rqvae", settings) != old  # it says nothing
    plain = config.to_dict(settings)
    del plain["decoding"]["length_penalty"]  # an option that came later, at its default
    (old / "bundle").mkdir()
    (old / "bundle" / "manifest.json").write_text(json.dumps({"config": plain}))
    assert kept_rows.folder_of(tmp_path, "rqvae", settings) == old
    changed = replace(settings, decoding=replace(settings.decoding, length_penalty=1.0))
    assert kept_rows.folder_of(tmp_path, "rqvae", changed) != old
    (old / "bundle" / "manifest.json").write_text(json.dumps({"config": {**plain, "gone": 1}}))
    assert kept_rows.folder_of(tmp_path, "rqvae", settings) != old


def test_a_tokenizer_table_holds_the_rows_of_its_epochs_alone(tmp_path, tiny):
    dataset, parts = tiny.run.dataset, tiny.run.split
    for seed, epochs, found in ((0, 5, {"icr": 0.5}), (1, 5, {"icr": 0.7, "entropy_level_1": 2}),
                                (0, 8, {"icr": 0.9})):  # fmt: skip
        chosen = tokenizer_quality.settings_for(dataset, "rqvae", seed, epochs)
        kept = kept_rows.folder_of(tmp_path / f"{dataset.name}-seed{seed}", "rqvae", chosen)
        kept_rows.record(kept, chosen)
        (kept / "ids.json").write_text(json.dumps(found))
    figures, seeds = tokenizer_quality.collect(dataset, parts, tmp_path, 5, label="short")
    start = f"{dataset.name}.short.tokenizer.rqvae"
    assert figures[f"{start}.icr"]["value"] == pytest.approx(0.6) and seeds == [0, 1]
    assert figures[f"{start}.entropy_level_1"]["seeds"] == [1]  # the older seed lacks it
    assert figures[f"{start}.entropy_level_1"]["unit"] == "nats"
    figures, seeds = tokenizer_quality.collect(dataset, parts, tmp_path, 8)
    assert figures[f"{dataset.name}.tokenizer.rqvae.icr"]["by_seed"] == [0.9] and seeds == [0]


def test_a_generator_table_holds_the_rows_of_its_seconds_alone(tmp_path, tiny):
    dataset = tiny.run.dataset
    folder = tmp_path / f"{dataset.name}-seed0"
    chosen = generators.settings_for(dataset, RUNS["moe"], 0, 200)
    kept_rows.record(folder / "moe", chosen)
    (folder / "moe" / "rows.json").write_text("{}")
    assert generators.finished(dataset, folder, 200) == {"moe": folder / "moe"}
    assert generators.finished(dataset, folder, 300) == {}


def test_strata_have_intervals_and_differences_are_paired_on_common_seeds():
    first = {0: report([0, 0, 99, 0]), 1: report([0, 99, 0, 0], seed=1)}
    second = {0: report([99, 0, 99, 0])}
    groups = strata_of(first[0].targets, COUNTS, no_events="no_events")
    assert set(groups) == {"", "no_events.", "tail.", "mid.", "head."}
    found = by_group("d.r", first, groups)
    assert found["d.r.tail.recall@10"]["by_seed"] == [1.0, 0.0]
    assert found["d.r.no_events.recall@10"]["value"] == 1.0 and "low" in found["d.r.recall@10"]
    assert found["d.r.mid.recall@10"]["n"] == 1 and found["d.r.mid.recall@10"]["seeds"] == [0, 1]
    pair = differences("d.p", first, second, groups)
    assert pair["d.p.recall@10"]["value"] == pytest.approx(1 / 4)
    assert [pair[f"d.p.{s}.recall@10"]["value"] for s in ("no_events", "tail", "head")] == [1, 0, 0]
    assert pair["d.p.tail.recall@10"]["seeds"] == [0]
    assert differences("d.p", {0: report([0] * 4)}, {1: report([0] * 4)}, groups) == {}


def test_a_recipe_s_systems_have_strata_and_the_hybrid_is_paired_in_them():
    measured = {
        "hybrid": [report([0, 0, 99, 0]), report([0, 99, 0, 0], seed=1)],
        "dense": [report([99, 0, 99, 0]), report([99, 99, 99, 99], seed=1)],
    }
    found = quality.by_stratum("d", measured, COUNTS)
    assert found["d.hybrid.tail.recall@10"]["by_seed"] == [1.0, 0.0]
    assert found["d.hybrid_minus_dense.no_events.recall@10"]["value"] == 1
    assert found["d.hybrid_minus_dense.mid.recall@10"]["value"] == 0.5
    assert not any(name.startswith("d.dense_minus") or ".cold." in name for name in found)


@pytest.mark.parametrize(
    ("figure", "unit"),
    [("entropy_level_2", "nats"), ("fit_seconds", "s"), ("head.mean_length", "codes"),
     ("largest_group", "items"), ("head.collision_share", "ratio")],
)  # fmt: skip
def test_figures_of_ids_say_their_unit(figure, unit):
    assert tokenizer_quality.unit_of_ids(figure) == unit
