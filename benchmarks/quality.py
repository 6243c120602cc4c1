"""Measure a recipe: every system, on the test part, with intervals, averaged over seeds.

    python benchmarks/quality.py recipes/beauty.toml --seeds 0 1 2

Each seed is one whole run (embed, tokenize, train, choose on validation) and then one reading of
the test part under each seen-item rule. Runs are kept, so an interrupted measurement goes on.
Figures: `<dataset>.<system>.<metric>`, `.seen_filtered.` and strata before the metric
(`no_events`: no training event; `cold` is what cold_start.py measures), paired
differences of the hybrid as `<dataset>.hybrid_minus_<system>.<metric>`, and, where the recipe is
the default one, `run.default.<dataset>.seconds`: the median of the runs that began afresh.
With `--best` the hybrid of a recipe that is not the default one is `best`, and `best_minus_…`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from figures import as_difference, as_figure, unit_of, write
from paired_rows import by_group, differences, strata_of

from sidrec.cli import output
from sidrec.evaluation import Report, average_seeds, compare
from sidrec.evaluation.comparison import table
from sidrec.pipeline import Run, evaluate_systems, metrics_of, run
from sidrec.recipe import RunConfig, default_config, load_config
from sidrec.types import Ints

STRATA = ("head", "mid", "tail", "cold")
BEYOND = ("coverage@10", "gini@10", "popularity_lift@10", "novelty@10", "diversity@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--systems", nargs="*", help="only these systems (default: all)")
    parser.add_argument(
        "--best", action="store_true", help="write the hybrid alone, as `best`, and its differences"
    )
    arguments = parser.parse_args()
    settings = load_config(arguments.recipe)
    measured: dict[bool, dict[str, list[Report]]] = {False: {}, True: {}}
    seconds: list[float] = []
    for seed in arguments.seeds:
        folder = arguments.runs / f"{settings.name}-seed{seed}"
        fresh = not (folder / "stages").exists()
        with output.progress() as show:
            fitted = run(replace(settings, seed=seed), run_dir=folder, on_event=show)
        seconds += [fitted.seconds] if fresh else []
        for seen in (False, True):
            reports = measure(fitted, settings, seed, seen, arguments.systems)
            for name, report in reports.items():
                measured[seen].setdefault(name, []).append(replace(report, seeds=(seed,)))
        dataset = fitted.dataset.name
    averaged = {
        seen: {name: average_seeds(reports) for name, reports in systems.items()}
        for seen, systems in measured.items()
    }
    figures = figures_of(dataset, averaged)
    figures |= by_stratum(dataset, measured[False], fitted.split.train_counts_N)
    default = default_config(fitted.dataset)
    if seconds and replace(settings, name=default.name, data=default.data) == default:
        figures[f"run.default.{dataset}.seconds"] = {
            "value": round(statistics.median(seconds), 1),
            "unit": "s",
            "n": len(seconds),
        }
    if arguments.best:
        figures = {
            name.replace(".hybrid", ".best", 1): figure
            for name, figure in figures.items()
            if name.startswith(f"{dataset}.hybrid")
        }
    shown = list(averaged[False].values())
    print(table(shown, metrics_of(averaged[False])).to_markdown())
    path = write(
        settings.name,
        figures,
        seeds=arguments.seeds,
        command=" ".join(["python", *sys.argv]),
        notes=shown[0].protocol.line(),
    )
    print(f"wrote {path.name}")


def measure(
    fitted: Run, settings: RunConfig, seed: int, seen: bool, systems: list[str] | None
) -> dict[str, Report]:
    """Every system on the test part under one seen-item rule."""
    if not seen and systems is None:
        return dict(fitted.reports)
    rules = replace(settings, seed=seed, evaluation=replace(settings.evaluation, exclude_seen=seen))
    return evaluate_systems(
        fitted.recommender, fitted.dataset, fitted.split, settings=rules, systems=systems
    )


def figures_of(
    dataset: str, averaged: Mapping[bool, Mapping[str, Report]]
) -> dict[str, dict[str, Any]]:
    """Figures by their stable names."""
    figures: dict[str, dict[str, Any]] = {}
    for seen, systems in averaged.items():
        rule = "seen_filtered." if seen else ""
        metrics = metrics_of(systems)
        for name, report in systems.items():
            for metric in (*metrics, *(() if seen else BEYOND)):
                if metric in report.figures:
                    figure = as_figure(report.figures[metric], unit_of(metric))
                    if metric in report.seed_means and len(report.seeds) > 1:
                        figure["by_seed"] = [round(v, 5) for v in report.seed_means[metric]]
                    figures[f"{dataset}.{name}.{rule}{metric}"] = figure
        if "hybrid" in systems:
            for name, report in systems.items():
                for metric in metrics if name != "hybrid" else ():
                    paired = compare(systems["hybrid"], report, metric)
                    figures[f"{dataset}.hybrid_minus_{name}.{rule}{metric}"] = as_difference(paired)
    return figures


def by_stratum(
    dataset: str, measured: Mapping[str, list[Report]], train_counts_N: Ints
) -> dict[str, dict[str, Any]]:
    """Every system by training events of the target, and the hybrid minus it, with intervals."""
    figures: dict[str, dict[str, Any]] = {}
    by_seed = {name: {r.seeds[0]: r for r in reports} for name, reports in measured.items()}
    for name, of in by_seed.items():
        groups = strata_of(measured[name][0].targets, train_counts_N, no_events="no_events")
        strata = {group: chosen_Q for group, chosen_Q in groups.items() if group}
        figures |= by_group(f"{dataset}.{name}", of, strata)
        if name != "hybrid" and "hybrid" in by_seed:
            start = f"{dataset}.hybrid_minus_{name}"
            figures |= differences(start, by_seed["hybrid"], of, strata)
    return figures


if __name__ == "__main__":
    main()
