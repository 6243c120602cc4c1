"""The plot of a scaling study: loss above the floor, raw loss, and the ranking beside it.

A row a system. Left: L − E over N on logarithmic axes with the law. Middle: L over N, and NDCG@10
on the right axis, since loss and ranking may part. Right: L over training events.

Source:   none.
Differs:  nothing to differ from.
Cost:     a second; needs matplotlib (`pip install 'sidrec[report]'`).
Shapes:   none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sidrec.errors import MissingExtra
from sidrec.evaluation.scaling import ScalingFit
from sidrec.evaluation.scaling_report import Point, ScalingReport, SystemReport

FORMATS = ("png", "svg")


def draw(report: ScalingReport, folder: Path) -> list[Path]:
    """Write scaling.png and scaling.svg. MissingExtra where matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as cause:
        raise MissingExtra("matplotlib", "report", "the plot of a scaling study") from cause
    with matplotlib.rc_context({"font.size": 8, "svg.hashsalt": "sidrec"}):
        rows = len(report.systems)
        figure = Figure(figsize=(11, 3.2 * rows), layout="constrained")
        axes = figure.subplots(rows, 3, squeeze=False)
        for (name, system), (left, middle, right) in zip(report.systems.items(), axes, strict=True):
            full = [p for p in system.points if p.share == 1.0]
            above_floor(left, full, system)
            raw(middle, full, system)
            over_events(right, system)
            left.set_title(f"{report.dataset}, {name}", loc="left")
        paths = [folder / f"scaling.{form}" for form in FORMATS]
        for path in paths:
            figure.savefig(path, dpi=150)
    return paths


def above_floor(axes: Any, points: Sequence[Point], system: SystemReport) -> None:
    """L − E over N in log-log, where there is a law."""
    axes.set(xscale="log", xlabel="non-embedding parameters", ylabel="L − E, nats an item")
    fit = system.fits.get("size")
    if not isinstance(fit, ScalingFit):
        axes.text(0.5, 0.5, "no law fitted", ha="center", transform=axes.transAxes)
        return
    above = [(p.parameters, p.loss - fit.law.floor) for p in points if p.loss > fit.law.floor]
    axes.set_yscale("log")
    axes.plot(*zip(*above, strict=True), "o", ms=4)
    x = line_of(points)
    axes.plot(x, fit.law(x) - fit.law.floor, lw=1, label=f"N^-{fit.law.exponents[0]:.2f}")
    axes.legend()


def raw(axes: Any, points: Sequence[Point], system: SystemReport) -> None:
    """L over N, and NDCG@10 on the other axis."""
    axes.set(xscale="log", xlabel="non-embedding parameters", ylabel="L, nats an item")
    axes.plot([p.parameters for p in points], [p.loss for p in points], "o", ms=4, label="loss")
    fit = system.fits.get("size")
    if isinstance(fit, ScalingFit):
        x = line_of(points)
        axes.plot(x, fit.law(x), lw=1)
        if fit.law.floor > 0.5 * min(p.loss for p in points):  # else it flattens everything
            axes.axhline(fit.law.floor, lw=0.5, ls=":")
    other = axes.twinx()
    other.plot([p.parameters for p in points], [p.ndcg for p in points], "^", ms=4, color="C3")
    other.set_ylabel("NDCG@10 (triangles)", color="C3")


def over_events(axes: Any, system: SystemReport) -> None:
    """L over training events, of the size that has several shares."""
    axes.set(xscale="log", xlabel="training events", ylabel="L, nats an item")
    sizes = {(p.width, p.num_layers) for p in system.points if p.share != 1.0}
    points = [p for p in system.points if (p.width, p.num_layers) in sizes]
    axes.plot([p.events for p in points], [p.loss for p in points], "o", ms=4)
    fit = system.fits.get("data")
    if isinstance(fit, ScalingFit):
        events = [p.events for p in points]
        x = np.geomspace(min(events), max(events), 100)
        axes.plot(x, fit.law(x), lw=1, label=f"D^-{fit.law.exponents[0]:.2f}")
        axes.legend()


def line_of(points: Sequence[Point]) -> np.ndarray:
    """Sizes to draw a law at."""
    sizes = [p.parameters for p in points]
    return np.geomspace(min(sizes), max(sizes), 100)
