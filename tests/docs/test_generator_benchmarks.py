"""Benchmarks of generators and of tuning pair what they say they pair."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import generator_cold  # noqa: E402
from cold_start import draw  # noqa: E402

from sidrec import config, recipe  # noqa: E402
from sidrec.recipe import GENERATOR, RETRIEVER, HybridConfig  # noqa: E402


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
