"""Scaling study of the default generator and an ID model: losses by size and data, laws, hold-out.

    python benchmarks/scaling.py --data amazon_beauty --systems causal sasrec --epochs 3

The ladder is that of `sidrec bench scaling` (`sidrec.ladder`); seconds are processor time. Finished
points are kept under `--runs`: an interrupted measurement goes on, and one of more systems, sizes
or shares adds to it. Figures, of the validation part: `scaling.<data>.<system>.<law>.{exponent,
floor}` with intervals, `.held_out_error.<form>` in nats, and for every size and share
`scaling.<data>.<system>.<width>x<layers>-share<share>.{loss_nats,ndcg@10,recall@10}`, means over
seeds. `scaling.exponent` is that of size, causal, Amazon Beauty.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from figures import write

from sidrec.cli import output
from sidrec.cli.bench_scaling import show, source
from sidrec.evaluation.power_law import Interval
from sidrec.evaluation.scaling import ScalingFit
from sidrec.evaluation.scaling_report import Point, ScalingReport, SystemReport
from sidrec.ladder import LadderConfig, Rung, study


def main() -> None:
    default = LadderConfig()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="amazon_beauty", help="a named set, shop or chain")
    parser.add_argument("--systems", nargs="+", default=["causal"])
    parser.add_argument("--sizes", nargs="+", default=list(map(str, default.sizes)))
    parser.add_argument("--shares", nargs="*", type=float, default=list(default.shares))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(default.seeds))
    parser.add_argument("--large-seeds", type=int, default=default.large_seeds)
    parser.add_argument("--share-seeds", type=int, default=default.share_seeds)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-seconds", type=float, help="processor seconds a point")
    parser.add_argument("--tune", nargs="*", type=float, default=[], help="multiples of the rate")
    parser.add_argument("--runs", type=Path, default=Path("runs/scaling"))
    arguments = parser.parse_args()
    settings, dataset, true_floor = source(None, arguments.data)
    ladder = LadderConfig(
        systems=tuple(arguments.systems),
        sizes=tuple(map(Rung.parse, arguments.sizes)),
        shares=tuple(arguments.shares),
        seeds=tuple(arguments.seeds),
        large_seeds=arguments.large_seeds,
        share_seeds=arguments.share_seeds,
        epochs=arguments.epochs,
        max_seconds=arguments.max_seconds,
        tune=tuple(arguments.tune),
        clock="processor",
    )
    folder = arguments.runs / arguments.data
    with output.progress() as on_event:
        report = study(
            settings, ladder, folder=folder, data=dataset, true_floor=true_floor, on_event=on_event
        )
    show(report, folder, json=False)
    path = write(
        f"scaling_{arguments.data}",
        figures_of(report),
        seeds=arguments.seeds,
        command=" ".join(["python", *sys.argv]),
        notes=f"{report.loss}; {report.split}; seconds of a processor, {arguments.epochs} epochs "
        "at most, early stop on the validation loss",
    )
    print(f"wrote {path.name}")


def figures_of(report: ScalingReport) -> dict[str, dict[str, Any]]:
    """All figures of a study."""
    figures: dict[str, dict[str, Any]] = {}
    for name, system in report.systems.items():
        start = f"scaling.{report.dataset}.{name}"
        figures |= law_figures(start, system)
        places = {(p.width, p.num_layers, p.share): [] for p in system.points}
        for point in system.points:
            places[point.width, point.num_layers, point.share].append(point)
        for (width, layers, share), points in places.items():
            figures |= point_figures(f"{start}.{width}x{layers}-share{share:g}", points)
    if report.true_floor is not None:
        entry = {"value": round(report.true_floor, 5), "unit": "nats"}
        figures[f"scaling.{report.dataset}.true_floor"] = entry
    alias = figures.get("scaling.amazon_beauty.causal.size.exponent")
    return figures | ({"scaling.exponent": alias} if alias else {})


def law_figures(start: str, system: SystemReport) -> dict[str, dict[str, Any]]:
    """Exponents, floors and held-out errors of one system; the words beside the exponent."""
    figures: dict[str, dict[str, Any]] = {}
    for law, fit in system.fits.items():
        words = {"words": list(system.words[law])}
        figures[f"{start}.{law}.floor"] = entry_of(fit.floor, "nats", fit.num_points)
        if not isinstance(fit, ScalingFit):
            for part in ("size", "data"):
                exponent = getattr(fit, f"{part}_exponent")
                figures[f"{start}.{law}.{part}_exponent"] = {
                    **entry_of(exponent, "exponent", fit.num_points), **words,
                }  # fmt: skip
            continue
        figures[f"{start}.{law}.exponent"] = {
            **entry_of(fit.exponent, "exponent", fit.num_points), **words,
        }  # fmt: skip
        if fit.held_out is not None:
            for form, error in fit.held_out.mean_error_nats.items():
                figures[f"{start}.{law}.held_out_error.{form.replace(' ', '_')}"] = {
                    "value": round(error, 5),
                    "unit": "nats",
                }
    points = {"words": list(system.words["points"])}
    return figures | {f"{start}.runs": {"value": len(system.points), "unit": "runs", **points}}


def point_figures(start: str, points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """Means over the seeds of one size and share; what was trained beside the loss."""

    def mean(name: str) -> float:
        return float(np.mean([getattr(point, name) for point in points]))

    figures = {}
    for measure, name, unit in (
        ("loss_nats", "loss", "nats"),
        ("ndcg@10", "ndcg", "ratio"),
        ("recall@10", "recall", "ratio"),
    ):
        values = [round(getattr(point, name), 5) for point in points]
        figures[f"{start}.{measure}"] = {
            "value": round(float(np.mean(values)), 5),
            "unit": unit,
            "by_seed": values,
            "seeds": [point.seed for point in points],
        }
    first = points[0]
    figures[f"{start}.loss_nats"] |= {
        "parameters": first.parameters,
        "embedding_parameters": first.embedding_parameters,
        "events": first.events,
        "tokens": first.tokens,
        "learning_rate": round(first.learning_rate, 6),
        "epochs": round(mean("epochs"), 2),
        "best_epoch": round(mean("best_epoch"), 2),
        "flop": float(f"{mean('flop'):.3g}"),
        "table_flop": float(f"{mean('table_flop'):.3g}"),
        "seconds": round(mean("seconds"), 1),
        "peak_memory_bytes": max(point.peak_memory_bytes for point in points),
        "device": first.device,
        "train_loss": round(mean("train_loss"), 5),
        "groups": {
            group: {name: round(value, 5) for name, value in measured.items()}
            for group, measured in first.groups.items()
        },
    }
    return figures


def entry_of(interval: Interval, unit: str, num: int) -> dict[str, Any]:
    """A fitted number with its interval over resampled points."""
    numbers = {name: round(getattr(interval, name), 5) for name in ("value", "low", "high")}
    return {**numbers, "unit": unit, "n": num}


if __name__ == "__main__":
    main()
