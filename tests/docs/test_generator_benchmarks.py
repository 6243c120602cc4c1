"""Benchmarks of generators and of tuning pair what they say they pair."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import generator_ablations  # noqa: E402
import generator_cold  # noqa: E402
import tokenizer_tuning  # noqa: E402
from cold_start import draw  # noqa: E402
from counted_generator import PRIOR_MOVES, CountedGenerator, item_moves  # noqa: E402
from generator_tables import cold_rows_table  # noqa: E402
from paired_rows import METRICS  # noqa: E402
from tokenizer_tables import cold_table  # noqa: E402

from sidrec import config, recipe  # noqa: E402
from sidrec.recipe import GENERATOR, RETRIEVER, HybridConfig  # noqa: E402
from sidrec.types import Histories, HistoryBatch  # noqa: E402


@pytest.fixture
def small_runs(tiny, monkeypatch):
    """Runs of the cold table with the tiny recipe's sizes instead of the default ones."""

    def small(dataset, chosen, seed, seconds):
        sizes = {"width": 16}
        if chosen.generator == "liger":
            sizes |= {"depth_hidden": 16, "dense_width": 8, "dense_hidden": 16}
        train = {"epochs": 2, "batch_positions": 256, "max_seconds": seconds}
        return replace(
            recipe.load_config(tiny.recipe),
            seed=seed,
            generator=config.method(GENERATOR, chosen.generator, **sizes, train=train),
            scorers=(),
            retrievers=tuple(config.method(RETRIEVER, name) for name in chosen.retrievers),
            hybrid=HybridConfig(members=()),
        )

    monkeypatch.setattr(generator_cold, "settings_for", small)


def test_cold_rows_are_asked_for_items_that_left_and_came_back(tiny, small_runs, tmp_path):
    dataset = tiny.run.dataset
    cold_N = draw(len(dataset.items), 0.1, 0)
    generator_cold.answer(dataset, cold_N, "liger", tmp_path, 0, 60)
    figures = generator_cold.collect(dataset, cold_N, tmp_path, 0, 60)
    start = f"{dataset.name}.liger"
    targets_Q = tiny.run.split.test.targets
    assert figures[f"{start}.cold.recall@10"]["n"] == cold_N[targets_Q].sum() > 0
    assert figures[f"{start}.warm_beside_cold.recall@10"]["n"] == (~cold_N[targets_Q]).sum()
    assert figures[f"{start}.cold.recall@10"]["value"] > 0  # six new items and ten places
    assert figures[f"{start}.cold.invalid_share@10"]["value"] == 0
    assert figures[f"{dataset.name}.new_items"]["value"] >= cold_N.sum()
    own = figures[f"{start}_minus_liger_beam.cold.recall@10"]
    values = [
        figures[f"{dataset.name}.{r}.cold.recall@10"]["value"] for r in ("liger", "liger_beam")
    ]
    assert own["value"] == pytest.approx(values[0] - values[1], abs=2e-5)
    other = generator_cold.collect(dataset, cold_N, tmp_path, 0, 61)  # another budget: no rows
    assert not other


def test_a_cold_row_is_paired_with_the_default_and_with_its_own_beam():
    cold_Q = np.array([True, False, True, False])
    found = {
        name: {"recall@10": np.array(values, dtype=float)}
        for name, values in {
            "causal_same_budget": [0, 0, 1, 1], "cobra_beam": [0, 0, 0, 1], "cobra": [1, 0, 1, 0],
        }.items()
    }  # fmt: skip
    figures = generator_cold.differences("d", found, cold_Q)
    value = {name: figure["value"] for name, figure in figures.items()}
    assert value["d.cobra_minus_cobra_beam.cold.recall@10"] == 1
    assert value["d.cobra_minus_causal_same_budget.cold.recall@10"] == 0.5
    assert value["d.cobra_minus_causal_same_budget.warm_beside_cold.recall@10"] == -0.5
    assert value["d.cobra_beam_minus_causal_same_budget.all_with_cold.recall@10"] == -0.25
    assert len(value) == 9


def test_rows_of_the_small_budget_have_a_cold_table_of_their_own():
    figure = {"value": 0.1, "low": 0.0, "high": 0.2, "unit": "ratio", "file": "f", "date": "d",
              "hardware": "h"}  # fmt: skip
    names = ("causal", "liger", "liger_minus_liger_beam")
    figures = {f"d.{name}.{g}.recall@10": figure for name in names for g in generator_cold.GROUPS}
    assert "`causal`" in cold_table(figures, "d") and "liger" not in cold_table(figures, "d")
    lines = cold_rows_table(figures, "d").splitlines()
    assert sum(line.startswith("| `") for line in lines) == 1 and "`liger`" in lines[2]
    assert "+.1000 [+.0000, +.2000]" in lines[2]  # from its own beam


def test_a_changed_part_leaves_the_kept_run_as_it_was(tiny):
    whole, valid = tiny.run.recommender, tiny.run.split.valid
    whole = replace(whole, retrievers=(config.method(RETRIEVER, "mixture", weight=0.25),))
    changes = {"weight": None, "num_retrieved": 7}
    changed = generator_ablations.with_settings(whole, "mixture", changes, valid)
    assert changed.retrievers[0].config.weight is not None  # chosen on validation
    assert changed.retrievers[0].config.num_retrieved == 7
    assert whole.retrievers[0].config.weight == 0.25
    heads = generator_ablations.with_settings(whole, "causal", {"node_vectors": False}, valid)
    assert whole.generator.value.config.node_vectors
    assert not heads.generator.value.config.node_vectors


def test_the_counted_generator_backs_off_from_item_to_prefix_to_popularity():
    train = Histories.from_lists([[0, 2], [0, 2], [1, 3]])
    codes_NL = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]])
    assert item_moves(train, 5).toarray()[0].tolist() == [0, 0, 2, 0, 0]
    counted = CountedGenerator.of(codes_NL, train)
    batch = HistoryBatch.from_histories(Histories.from_lists([[0]]), max_length=3)
    chance_N = counted.scores(batch)[0].exp().numpy()
    assert chance_N.sum() == pytest.approx(1, abs=1e-6)
    events_N = np.array([3, 2, 3, 2, 1])
    expected_N = events_N / 11
    # depth 1: all three moves lead from node 0 to node 1, which holds items 2, 3 and 4
    below_N = np.array([0, 0, 3, 2, 1]) / 6
    expected_N = (3 * below_N + PRIOR_MOVES * expected_N) / (3 + PRIOR_MOVES)
    for _ in range(2):  # two codes name one item, and so does the item itself
        own_N = np.array([0, 0, 2.0, 0, 0])
        expected_N = (own_N + PRIOR_MOVES * expected_N) / (2 + PRIOR_MOVES)
    np.testing.assert_allclose(chance_N, expected_N, rtol=1e-5)


def test_trials_are_paired_with_the_default_of_their_method():
    values = {
        (method, trial): {m: np.array(of, dtype=float) for m in tokenizer_tuning.METRICS}
        for method, trial, of in (
            ("rqvae", "default", [0, 0, 1, 0]), ("rqvae", "beta_1", [1, 0, 1, 0]),
            ("sarq", "longer", [1, 1, 1, 1]),
        )
    }  # fmt: skip
    figures = tokenizer_tuning.all_figures("d.tuning.counted", values)
    assert figures["d.tuning.counted.rqvae.beta_1_minus_default.ndcg@10"]["value"] == 0.25
    assert figures["d.tuning.counted.sarq.longer.ndcg@10"]["value"] == 1
    assert not any("sarq.longer_minus" in name for name in figures)  # its default is not there


def test_parts_are_paired_with_the_report_of_the_run_on_the_users_asked(tmp_path):
    hits = {"channel_a": [1, 0, 0, 0], "channel_b": [1, 1, 0, 0]}
    for change, of in hits.items():
        values = {metric: np.array(of, dtype=float) for metric in METRICS}
        np.savez(tmp_path / f"barge-{change}-4.npz", **values)
    whole_Q = np.array([9, 1, 9, 1, 9, 0, 9, 0])  # users 1, 3, 5 and 7 are asked
    report = SimpleNamespace(per_user={metric: whole_Q.astype(float) for metric in METRICS})
    asked_Q = np.array([1, 3, 5, 7])
    figures = generator_ablations.figures_of_row("d.barge", tmp_path, "barge", report, asked_Q)
    value = {name: figure["value"] for name, figure in figures.items() if "recall@10" in name}
    assert value["d.barge_whole.recall@10"] == 0.5 and value["d.barge_channel_a.recall@10"] == 0.25
    assert value["d.barge_channel_a_minus_whole.recall@10"] == -0.25
    assert value["d.barge_channel_b_minus_whole.recall@10"] == 0
    assert value["d.barge_either_channel.recall@10"] == 0.5
    assert figures["d.barge.kappa@10"]["value"] == pytest.approx(2 / 3, abs=1e-4)
