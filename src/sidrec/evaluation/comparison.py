"""Reports side by side: paired differences, averaged seeds, overlap, one table.

Only reports under the same protocol are compared; anything else is an error that names the rule
that differs. Intervals are never compared by overlap: use the paired difference.

Source:   paired bootstrap and Holm as in `significance`; oracle union, EnsRec (arXiv:2512.17820).
Differs:  with averaged ties a user's hit is a share in [0, 1]; the union takes the larger share.
Cost:     milliseconds per pair.
Shapes:   Q examples, S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sidrec.errors import DataError
from sidrec.evaluation.report import Protocol, Report, figures_of
from sidrec.evaluation.significance import (
    RESAMPLES,
    Figure,
    PairedDifference,
    bootstrap,
    bootstrap_seeds,
    holm,
    paired,
)


def require_comparable(reports: Sequence[Report]) -> None:
    """DataError naming the first rule, or the users, in which two reports differ."""
    first = reports[0]
    for other in reports[1:]:
        for rule in Protocol.SHARED:
            mine, theirs = getattr(first.protocol, rule), getattr(other.protocol, rule)
            if mine != theirs:
                raise DataError(
                    f"reports {first.name!r} and {other.name!r} differ in {rule}: {mine!r} and "
                    f"{theirs!r}; evaluate both under one protocol"
                )
        same = np.array_equal(first.user_rows, other.user_rows) and np.array_equal(
            first.targets, other.targets
        )
        if not same:
            raise DataError(
                f"reports {first.name!r} and {other.name!r} are of other examples or another "
                "order; evaluate both on the same examples"
            )


def compare(
    first: Report, second: Report, metric: str, *, resamples: int = RESAMPLES, seed: int = 0
) -> PairedDifference:
    """First minus second on the same users, with interval and two-sided p."""
    require_comparable([first, second])
    for report in (first, second):
        if metric not in report.per_user:
            raise DataError(
                f"report {report.name!r} has no per-user {metric!r}; it has {list(report.per_user)}"
            )
    figure, p = paired(
        first.per_user[metric], second.per_user[metric], resamples=resamples, seed=seed
    )
    assert figure.low is not None and figure.high is not None
    return PairedDifference(
        metric=metric,
        first=first.name,
        second=second.name,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        p=p,
        n=figure.n,
    )


def compare_all(
    reports: Sequence[Report], reference: Report, metric: str, *, resamples: int = RESAMPLES
) -> list[PairedDifference]:
    """Every report minus the reference; p values are Holm-adjusted over the whole family."""
    rows = [compare(r, reference, metric, resamples=resamples) for r in reports]
    adjusted = holm([row.p for row in rows])
    return [replace(row, p=p) for row, p in zip(rows, adjusted, strict=True)]


def average_seeds(
    reports: Sequence[Report], *, name: str | None = None, resample_seeds: bool = False
) -> Report:
    """One report of several seeds: per-user values are averaged first, then users resampled.

    Intervals speak of these trained models; with `resample_seeds` seeds are resampled too, for a
    claim about the method (coarse below five seeds). Whole-run figures are plain means.
    """
    if not reports:
        raise DataError("average_seeds needs at least one report")
    require_comparable(reports)
    first = reports[0]
    accuracy = list(first.per_user)
    per_user = {k: np.mean([r.per_user[k] for r in reports], axis=0) for k in accuracy}
    figures = {
        metric: Figure(value=float(np.mean([r.value(metric) for r in reports])), n=figure.n)
        for metric, figure in first.figures.items()
        if all(metric in r.figures for r in reports)
    }
    if resample_seeds:
        figures |= {
            k: bootstrap_seeds(np.stack([r.per_user[k] for r in reports])) for k in accuracy
        }
    else:
        figures |= figures_of(per_user, accuracy)
    figures |= {k.replace("recall", "hit"): figures[k] for k in accuracy if k.startswith("recall")}
    strata = {
        stratum: {
            k: Figure(value=float(np.mean([r.strata[stratum][k].value for r in reports])), n=f.n)
            for k, f in members.items()
        }
        for stratum, members in first.strata.items()
    }
    return replace(
        first,
        name=name or first.name,
        figures=figures,
        strata=strata,
        per_user=per_user,
        seeds=tuple(s for r in reports for s in r.seeds),
        seed_means={k: tuple(r.value(k) for r in reports) for k in accuracy},
    )


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Hits of two systems at one cut, as shares of all users."""

    metric: str
    first: str
    second: str
    both: Figure
    only_first: Figure
    only_second: Figure
    union: Figure
    """The oracle: a user counts when either system hits. No fusion of the two lists can pass it
    at this cut by choosing between them."""


def overlap(first: Report, second: Report, metric: str = "recall@10") -> Overlap:
    """Oracle union and the hits unique to each member."""
    require_comparable([first, second])
    a, b = first.per_user[metric], second.per_user[metric]
    both, union = np.minimum(a, b), np.maximum(a, b)
    shares = bootstrap(np.stack([both, a - both, b - both, union], axis=1))
    return Overlap(
        metric=metric,
        first=first.name,
        second=second.name,
        both=shares[0],
        only_first=shares[1],
        only_second=shares[2],
        union=shares[3],
    )


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text, ready for a terminal or Markdown, with the protocol they hold under."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    protocol_line: str

    def to_markdown(self) -> str:
        """A Markdown table, the protocol line below it."""
        lines = [self.header, tuple("---" if i == 0 else "---:" for i in range(len(self.header)))]
        body = "\n".join("| " + " | ".join(cells) + " |" for cells in [*lines, *self.rows])
        return f"{body}\n\n{self.protocol_line}\n"


def table(
    reports: Sequence[Report],
    metrics: Sequence[str] = ("recall@5", "ndcg@5", "recall@10", "ndcg@10"),
    *,
    stratum: str | None = None,
) -> Table:
    """One row a report, value with its 95 % interval; the protocol line is always part of it."""
    if not reports:
        raise DataError("a table needs at least one report")
    require_comparable(reports)
    rows = []
    for report in reports:
        figures = report.figures if stratum is None else report.strata.get(stratum, {})
        cells = [format_figure(figures.get(metric)) for metric in metrics]
        rows.append((report.name, *cells, *_settings(report)))
    line = reports[0].protocol.line() + "; 95 % bootstrap intervals over users"
    return Table(
        header=("system", *metrics, "history", "beam", "seeds"),
        rows=tuple(rows),
        protocol_line=line if stratum is None else f"stratum {stratum}; {line}",
    )


def _settings(report: Report) -> tuple[str, str, str]:
    beam = report.protocol.beam
    seeds = str(max(len(report.seeds), 1))
    return str(report.protocol.max_length), "–" if beam is None else str(beam), seeds


def format_figure(figure: Figure | None) -> str:
    """`0.0851 [0.0815, 0.0888]`, without brackets where there is no interval, – where no figure."""
    if figure is None:
        return "–"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.4f}"
    return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"
