"""A ladder of trained models as one report: its points, the laws fitted to them, and the words.

Every system gets four fits: loss over non-embedding parameters (whole data), over training events
(one size), over FLOP until the best validation loss, and over size and events together. What
cannot be fitted says why.

Source:   the scaling card: arXiv:2311.11351, arXiv:2203.15556; loss and ranking may part
          (arXiv:2412.00430), so NDCG@10 stands beside the loss everywhere.
Differs:  C is counted up to the epoch of the best validation loss, not to the end of the run. The
          floor of a law in one variable holds what the other lacks; only the joint one is compared
          with the entropy of a known source.
Cost:     the bootstraps of the fits: seconds.
Shapes:   P points.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from sidrec.errors import DataError
from sidrec.evaluation.scaling import JointFit, ScalingFit, fit_joint, fit_scaling

SIZE, DATA, COMPUTE = "non-embedding parameters", "training events", "FLOP"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One trained model of a ladder and what it reached on the validation part."""

    system: str
    width: int
    num_layers: int
    share: float
    """Share of the users whose events were trained on."""
    seed: int
    learning_rate: float
    parameters: int
    """N: what every position passes through; tables with one row an item or code not counted."""
    embedding_parameters: int
    """The others."""
    events: int
    """D: training events."""
    tokens: int
    """Codes of all training targets, for a model of semantic IDs; targets, for one of items."""
    epochs: float
    """Passes made."""
    best_epoch: float
    """Passes until the best validation loss; everything below is of those weights."""
    flop: float
    """6 N plus attention, times the targets seen until then."""
    table_flop: float
    """Products with item and code tables, which 6 N leaves out, over the same targets."""
    seconds: float
    device: str
    peak_memory_bytes: int
    """Of the GPU in this run, else of the process so far; 0: not known."""
    stopped_because: str
    """epochs, max_seconds or patience."""
    train_loss: float
    """Nats an item, without dropout, on the last training event of users."""
    loss: float
    """Nats an item on the validation targets; the least over the run."""
    recall: float
    """Recall@10 on the same questions."""
    ndcg: float
    """NDCG@10."""
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    """By training events of the target: loss, recall, ndcg, n."""

    @property
    def name(self) -> str:
        """`causal-64x1-share1-seed0`."""
        return f"{self.system}-{self.width}x{self.num_layers}-share{self.share:g}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class SystemReport:
    """The laws of one system."""

    points: tuple[Point, ...]
    fits: Mapping[str, ScalingFit | JointFit]
    """By size, data, compute and joint, where they could be fitted."""
    words: Mapping[str, tuple[str, ...]]
    """The same names, and `points`, in words; reasons where nothing could be fitted."""


@dataclass(frozen=True, kw_only=True)
class ScalingReport:
    """What `scaling.json` holds."""

    dataset: str
    data: str
    split: str
    loss: str
    """How the loss an item is measured, in words."""
    learning_rates: Mapping[str, Mapping[str, float]]
    """By system and size."""
    systems: Mapping[str, SystemReport]
    true_floor: float | None = None
    """Nats an item that no model can beat, where the data come from a known source."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "machine": platform.machine(), "python": platform.python_version()}


def report_of(
    points: Sequence[Point], *, resamples: int = 500, true_floor: float | None = None
) -> SystemReport:
    """All four fits of one system's points."""
    full = [p for p in points if p.share == 1.0]
    sizes = {(p.width, p.num_layers) for p in points if p.share != 1.0}
    same = [p for p in points if (p.width, p.num_layers) in sizes]
    flops: dict[int, list[float]] = {}
    for p in full:
        flops.setdefault(p.parameters, []).append(p.flop)
    losses = [p.loss for p in full]
    attempts: dict[str, Callable[[], ScalingFit | JointFit]] = {
        "size": lambda: fit_scaling(
            [p.parameters for p in full], losses, variable=SIZE, resamples=resamples
        ),
        "data": lambda: fit_scaling(
            [p.events for p in same], [p.loss for p in same], variable=DATA, resamples=resamples
        ),
        "compute": lambda: fit_scaling(
            [float(np.mean(flops[p.parameters])) for p in full],
            losses,
            variable=COMPUTE,
            resamples=resamples,
        ),
        "joint": lambda: fit_joint(
            [p.parameters for p in points],
            [p.events for p in points],
            [p.loss for p in points],
            resamples=resamples,
        ),
    }
    fits: dict[str, ScalingFit | JointFit] = {}
    words: dict[str, tuple[str, ...]] = {"points": tuple(point_words(points))}
    for name, attempt in attempts.items():
        if name == "data" and not same:
            words[name] = ("not fitted: every point has the whole data; give several shares",)
            continue
        try:
            fits[name] = attempt()
        except DataError as reason:
            words[name] = (f"not fitted: {reason}",)
            continue
        words[name] = fits[name].words
        if true_floor is not None and name == "joint":  # the other floors hold what is missing
            floor = fits[name].floor
            holds = "holds" if floor.low <= true_floor <= floor.high else "does not hold"
            words[name] += (
                f"the interval of the floor {holds} the true {true_floor:.3f} nats of the source",
            )
    return SystemReport(points=tuple(points), fits=fits, words=words)


def point_words(points: Sequence[Point]) -> list[str]:
    """What to know of the runs themselves: span, clock, over-fitting, loss against ranking."""
    sizes = sorted({p.parameters for p in points})
    words = [
        f"{len(points)} runs, {len(sizes)} sizes from {sizes[0]:,} to {sizes[-1]:,} non-embedding "
        f"parameters (a factor of {sizes[-1] / sizes[0]:.0f})"
    ]
    if late := [p for p in points if p.stopped_because == "max_seconds"]:
        words.append(
            f"{len(late)} runs were ended by the clock ({', '.join(p.name for p in late[:4])}"
            f"{', …' if len(late) > 4 else ''}): their loss is that of the time, not of the size"
        )
    early = [p for p in points if p.best_epoch < p.epochs]
    if early:
        words.append(
            f"{len(early)} runs were best before their end, over-fitting after it, e.g. "
            f"{early[-1].name} at epoch {early[-1].best_epoch:.1f} of {early[-1].epochs:.1f}; the "
            "loss is that of the best epoch"
        )
    if len({p.loss for p in points}) > 2 and len({p.ndcg for p in points}) > 1:
        rank, _ = spearmanr([p.loss for p in points], [p.ndcg for p in points])
        words.append(
            f"NDCG@10 against loss: rank correlation {rank:+.2f} over the runs (−1: the ranking "
            "follows the loss)"
        )
    return words


def rows_of(points: Sequence[Point]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Header and rows of the table of points."""
    header = (
        "system", "size", "share", "seed", "N", "events", "epochs", "best", "FLOP", "s",
        "train nats", "nats", "N@10", "R@10",
    )  # fmt: skip
    rows = [
        (
            p.system, f"{p.width}x{p.num_layers}", f"{p.share:g}", p.seed, p.parameters, p.events,
            f"{p.epochs:.1f}", f"{p.best_epoch:.1f}", f"{p.flop:.2g}", f"{p.seconds:.1f}",
            p.train_loss, p.loss, p.ndcg, p.recall,
        )
        for p in points
    ]  # fmt: skip
    return header, rows
