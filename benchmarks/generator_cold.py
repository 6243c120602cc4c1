"""Cold start of every generator at the small budget: items that no training saw, added, asked for.

    python benchmarks/generator_cold.py --data amazon_beauty --seconds 200 --only liger cobra

The protocol of `cold_start.py` (5 % of the items leave everything, the models are trained on the
rest, the items come back with `add_items`), with the runs, IDs and seconds of `generators.py`. No
place of a list is kept for new items: what a row finds, it finds by itself. Finished runs are kept
under `--runs` by their settings; every call writes all rows of these seconds.
Figures: those of `cold_start.py` by row, `<data>.<row>.{cold,warm_beside_cold,all_with_cold}.*`,
paired differences `<data>.<row>_minus_<other>.<group>.recall@10` from the default generator and
from the row's own beam, and `<data>.new_items`, among how many a row had to find the right one.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import kept_rows
import numpy as np
from cold_start import GROUPS, Values, all_figures, draw, grown, measured
from figures import as_figure, write
from generator_rows import BASELINE, OWN_BEAM, ROWS, RUNS

from generators import settings_for
from sidrec.data import load_named, split
from sidrec.evaluation.significance import paired
from sidrec.types import Bools, Dataset

causal = RUNS["causal"]
COLD_RUNS = {
    "causal": replace(
        causal,
        scorers=("dense",),
        retrievers={"mixture": {}},
        rows={BASELINE: "causal", "dense_same_budget": "dense", "rag_mixture": "mixture"},
    ),
    "lite": replace(
        causal,
        scorers=("lite",),
        retrievers={"feedback": {}},
        rows={"lite": "lite", "feedback": "feedback"},
    ),
    **{name: RUNS[name] for name in ("parallel", "liger", "cobra", "barge")},
}
"""Run -> what is fitted; that of the default generator in two parts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="amazon_beauty")
    parser.add_argument("--only", nargs="*", default=list(COLD_RUNS), choices=list(COLD_RUNS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=200, help="of training, processor time")
    parser.add_argument("--share", type=float, default=0.05, help="of the items, removed")
    parser.add_argument("--draw", type=int, default=0, help="seed of which items are removed")
    parser.add_argument("--runs", type=Path, default=Path("runs/generator_cold"))
    arguments = parser.parse_args()
    dataset = load_named(arguments.data)
    cold_N = draw(len(dataset.items), arguments.share, arguments.draw)
    runs = arguments.runs / (
        f"{arguments.data}-{arguments.share:g}-draw{arguments.draw}-seed{arguments.seed}"
    )
    for name in arguments.only:
        answer(dataset, cold_N, name, runs, arguments.seed, arguments.seconds)
    path = write(
        f"generators_{arguments.data}_cold_start",
        collect(dataset, cold_N, runs, arguments.seed, arguments.seconds),
        seeds=[arguments.seed],
        command=" ".join(["python", *sys.argv]),
        notes=f"{int(cold_N.sum())} of {len(cold_N)} items removed, then added; "
        f"{arguments.seconds:.0f} s of processor time to train each model",
    )
    print(f"wrote {path.name}")


def folder_of(dataset: Dataset, name: str, runs: Path, seed: int, seconds: float) -> Path:
    """Where a run of these settings is kept, whether or not it is there yet."""
    settings = settings_for(dataset, COLD_RUNS[name], seed, seconds)
    return kept_rows.folder_of(runs, name, settings)


def answer(
    dataset: Dataset, cold_N: Bools, name: str, runs: Path, seed: int, seconds: float
) -> None:
    """Fit one run without the items, add them, and keep what its rows answer."""
    chosen, folder = COLD_RUNS[name], folder_of(dataset, name, runs, seed, seconds)
    if all((folder / f"{row}.npz").exists() for row in chosen.rows):
        return
    settings = settings_for(dataset, chosen, seed, seconds)
    larger, parts = grown(dataset, cold_N, settings, runs)
    kept_rows.record(folder, settings)
    for row, system in chosen.rows.items():
        values = measured(larger, parts, 0.0, systems=[system])[system]
        np.savez_compressed(folder / f"{row}.npz", new_items=(larger.train_counts_N == 0).sum(),
                            **values)  # fmt: skip
        print(row, f"recall@10 {values['recall@10'].mean():.4f}", flush=True)


def collect(
    dataset: Dataset, cold_N: Bools, runs: Path, seed: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Figures of every row finished with these settings, and their paired differences."""
    targets_Q = split(dataset, "leave_one_out").test.targets
    found: dict[str, Values] = {}
    figures: dict[str, dict[str, Any]] = {}
    for name, chosen in COLD_RUNS.items():
        folder = folder_of(dataset, name, runs, seed, seconds)
        for row in chosen.rows:
            if not (path := folder / f"{row}.npz").exists():
                continue
            with np.load(path) as kept:
                found[row] = {metric: kept[metric] for metric in kept.files}
            num_new = int(found[row].pop("new_items"))
            figures[f"{dataset.name}.new_items"] = {"value": num_new, "unit": "items"}
    figures |= all_figures(
        dataset.name, {row: [found[row]] for row in ROWS if row in found}, cold_N[targets_Q]
    )
    return figures | differences(dataset.name, found, cold_N[targets_Q])


def differences(data: str, found: dict[str, Values], cold_Q: Bools) -> dict[str, dict[str, Any]]:
    """Recall@10 of every row minus that of the default generator, and of its own beam, by group."""
    groups = dict(zip(GROUPS, (cold_Q, ~cold_Q, cold_Q | True), strict=True))
    figures = {}
    for row in found:
        for other in {BASELINE, OWN_BEAM.get(row, BASELINE)} - {row}:
            if other not in found:
                continue
            for group, chosen_Q in groups.items():
                mine, theirs = (found[name]["recall@10"][chosen_Q] for name in (row, other))
                figure, p = paired(mine, theirs)
                figures[f"{data}.{row}_minus_{other}.{group}.recall@10"] = {
                    **as_figure(figure),
                    "unit": "difference",
                    "p": round(p, 5),
                }
    return figures


if __name__ == "__main__":
    main()
