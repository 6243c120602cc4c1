"""Is the best fusion better than the default one? Hybrids of two recipes on the same users.

    python benchmarks/best.py recipes/beauty_best.toml recipes/beauty.toml --seeds 0 1 2

Runs are those of quality.py (`<runs>/<recipe>-seed<n>`): a hybrid whose report is kept there is not
measured again, one that is not is fitted, as far as its stages are not there, and read once.
Figures: `<data>.best.<stratum>.<metric>` and `<data>.best_minus_hybrid.[<stratum>.]<metric>`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from figures import write
from paired_rows import by_group, differences, strata_of

from sidrec import artifact
from sidrec.cli import output
from sidrec.data import load_named, split
from sidrec.evaluation import Report
from sidrec.pipeline import evaluate_systems, fit
from sidrec.recipe import RunConfig, load_config
from sidrec.types import Dataset, Split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("best", type=Path, help="recipe whose hybrid is `best`")
    parser.add_argument("default", type=Path, help="recipe whose hybrid is `hybrid`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/best"))
    asked = parser.parse_args()
    recipes = [load_config(path) for path in (asked.best, asked.default)]
    dataset = load_named(str(recipes[0].data.name))
    parts = split(dataset, recipes[0].split.rule)
    best, default = (
        {seed: hybrid(dataset, parts, replace(s, seed=seed), asked.runs) for seed in asked.seeds}
        for s in recipes
    )
    report = best[asked.seeds[0]]
    groups = strata_of(report.targets, parts.train_counts_N, no_events="no_events")
    strata = {group: chosen_Q for group, chosen_Q in groups.items() if group}
    figures = by_group(f"{dataset.name}.best", best, strata)
    figures |= differences(f"{dataset.name}.best_minus_hybrid", best, default, groups)
    path = write(
        f"{recipes[0].name}_paired",
        figures,
        seeds=asked.seeds,
        command=" ".join(["python", *sys.argv]),
        notes=f"{report.protocol.line()}; the hybrid of {recipes[0].name} minus that of "
        f"{recipes[1].name}",
    )
    print(f"wrote {path.name}")


def hybrid(dataset: Dataset, parts: Split, settings: RunConfig, runs: Path) -> Report:
    """The hybrid's report on the test part, from its run folder where it is kept there."""
    folder = runs / f"{settings.name}-seed{settings.seed}"
    kept = folder / "reports" / "hybrid.json"
    if not kept.is_file():
        with output.progress() as show:
            recommender = fit(dataset, settings, run_dir=folder, on_event=show)
            report = evaluate_systems(
                recommender, dataset, parts, settings=settings, systems=["hybrid"], on_event=show
            )["hybrid"]
        artifact.write_text(kept, report.to_json() + "\n")
    return replace(Report.from_json(kept.read_text()), seeds=(settings.seed,))


if __name__ == "__main__":
    main()
