"""Intervals and tests over users: bootstrap, paired differences, permutation, seeds, Holm.

The bootstrap resamples users. Per-user metrics of one target take few distinct values (one a
rank), so users are grouped by value and a resample is one multinomial draw over the groups: the
same distribution as drawing users one by one, a thousand times cheaper.

Source:   Efron & Tibshirani 1993 (percentile bootstrap); Holm 1979.
Differs:  users are the unit; several examples of one user count as several (leave-one-out has one).
Cost:     O(resamples · distinct values) time; resamples in blocks.
Shapes:   Q examples, S seeds, M metrics, R resamples, C distinct rows of values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidrec.errors import DataError

Values = NDArray[np.float64]
RESAMPLES = 2000
BLOCK_CELLS = 1_000_000  # resamples are drawn in blocks of at most this many counts


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number with its interval; `low` and `high` are None where it has none."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """First minus second on the same users."""

    metric: str
    first: str
    second: str
    value: float
    low: float
    high: float
    p: float
    """Two-sided bootstrap p, never below 1 / (resamples + 1)."""
    n: int


def resampled_means(values_QM: Values, *, resamples: int, seed: int) -> Values:
    """(R, M) column means over users drawn with replacement; columns share the draws."""
    num = len(values_QM)
    if not num:
        raise DataError("a bootstrap needs at least one user")
    rng = np.random.default_rng(seed)
    cells_CM, counts_C = np.unique(values_QM, axis=0, return_counts=True)
    block = max(1, BLOCK_CELLS // max(len(cells_CM), 1))
    means = [
        _draw(rng, counts_C, min(block, resamples - start)) @ cells_CM / num
        for start in range(0, resamples, block)
    ]
    return np.concatenate(means)


def _draw(rng: np.random.Generator, counts_C: NDArray, resamples: int) -> Values:
    """(R, C) how often each distinct value is drawn when its `counts_C` users are resampled."""
    num, cells = int(counts_C.sum()), len(counts_C)
    if cells * 4 < num:
        return rng.multinomial(num, counts_C / num, size=resamples).astype(np.float64)
    cell_of = np.repeat(np.arange(cells), counts_C)
    drawn = cell_of[rng.integers(0, num, size=(resamples, num))]
    drawn += cells * np.arange(resamples)[:, None]
    flat = np.bincount(drawn.ravel(), minlength=resamples * cells)
    return flat.reshape(resamples, cells).astype(np.float64)


def bootstrap(
    values_QM: Values, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> list[Figure]:
    """Mean and percentile interval of each column."""
    means_RM = resampled_means(values_QM, resamples=resamples, seed=seed)
    low_M, high_M = _percentiles(means_RM, level)
    return [
        Figure(value=float(v), low=float(lo), high=float(hi), n=len(values_QM))
        for v, lo, hi in zip(values_QM.mean(axis=0), low_M, high_M, strict=True)
    ]


def bootstrap_seeds(
    values_SQ: Values, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Figure:
    """Two-level interval: seeds and users are both resampled. For claims about a method.

    With three seeds or fewer the seed level is coarse; print the seed standard deviation beside.
    """
    by_seed_RS = resampled_means(values_SQ.T, resamples=resamples, seed=seed)
    means_R = _over_seeds(by_seed_RS, np.random.default_rng(seed + 1))
    low, high = _percentiles(means_R[:, None], level)
    mean = float(values_SQ.mean())
    return Figure(value=mean, low=float(low[0]), high=float(high[0]), n=values_SQ.shape[1])


def _over_seeds(by_seed_RS: Values, rng: np.random.Generator) -> Values:
    """(R,) mean over seeds drawn with replacement, anew for each resample."""
    resamples, num = by_seed_RS.shape
    weights_RS = rng.multinomial(num, np.full(num, 1 / num), size=resamples)
    return (by_seed_RS * weights_RS).sum(axis=1) / num


def paired(
    first_Q: Values,
    second_Q: Values,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Figure, float]:
    """Mean difference first − second with its interval, and the two-sided bootstrap p.

    p = 2 min(share(d* ≤ 0), share(d* ≥ 0)), between 1 / (R + 1) and 1.
    """
    if first_Q.shape != second_Q.shape:
        raise DataError(f"paired values must match, got {first_Q.shape} and {second_Q.shape}")
    difference_Q = first_Q - second_Q
    return _tested(
        float(difference_Q.mean()),
        resampled_means(difference_Q[:, None], resamples=resamples, seed=seed)[:, 0],
        level,
        len(difference_Q),
    )


def paired_seeds(
    first_SQ: Values,
    second_SQ: Values,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    shared: bool = False,
) -> tuple[Figure, float]:
    """As `paired`, with the seeds of each system resampled too, independently of each other.

    `shared`: row s of both grew from one start (the same weights, aligned in two ways), so that
    their difference is what a seed gives; then the same seeds are drawn for both.
    """
    if first_SQ.shape[1] != second_SQ.shape[1]:
        raise DataError("paired values must be of the same users")
    if shared:
        if first_SQ.shape != second_SQ.shape:
            raise DataError(
                f"shared seeds must be as many on both sides, got {len(first_SQ)} and "
                f"{len(second_SQ)}"
            )
        by_seed_RS = resampled_means((first_SQ - second_SQ).T, resamples=resamples, seed=seed)
        draws_R = _over_seeds(by_seed_RS, np.random.default_rng(seed + 1))
        return _tested(float((first_SQ - second_SQ).mean()), draws_R, level, first_SQ.shape[1])
    rng = np.random.default_rng(seed + 1)
    both_SQ = np.concatenate([first_SQ, second_SQ])  # one draw of users serves both systems
    by_seed_RS = resampled_means(both_SQ.T, resamples=resamples, seed=seed)
    first_RS, second_RS = np.split(by_seed_RS, [len(first_SQ)], axis=1)
    draws_R = _over_seeds(first_RS, rng) - _over_seeds(second_RS, rng)
    mean = float(first_SQ.mean() - second_SQ.mean())
    return _tested(mean, draws_R, level, first_SQ.shape[1])


def _tested(mean: float, draws_R: Values, level: float, n: int) -> tuple[Figure, float]:
    low, high = _percentiles(draws_R[:, None], level)
    p = 2 * min(float((draws_R <= 0).mean()), float((draws_R >= 0).mean()))
    figure = Figure(value=mean, low=float(low[0]), high=float(high[0]), n=n)
    return figure, min(1.0, max(p, 1 / (len(draws_R) + 1)))


def permutation(
    first_Q: Values, second_Q: Values, *, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """Two-sided p of the mean difference under random sign flips per user, at least 1 / (R + 1).

    Users with equal absolute difference are flipped together as one binomial draw.
    """
    difference_Q = first_Q - second_Q
    sizes_C, counts_C = np.unique(np.abs(difference_Q), return_counts=True)
    rng = np.random.default_rng(seed)
    positive_RC = rng.binomial(counts_C, 0.5, size=(resamples, len(counts_C)))
    flipped_R = (2 * positive_RC - counts_C) @ sizes_C
    observed = abs(difference_Q.sum())
    return float((1 + (np.abs(flipped_R) >= observed - 1e-12).sum()) / (resamples + 1))


def holm(p_values: list[float]) -> list[float]:
    """Holm-adjusted p: max over j ≤ k of min(1, (m − j + 1) p_(j)), in the order given.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    p, m = np.asarray(p_values, dtype=np.float64), len(p_values)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, (m - np.arange(m)) * p[order])
    adjusted = np.empty(m)
    adjusted[order] = np.maximum.accumulate(stepped) if m else stepped
    return adjusted.tolist()


def _percentiles(draws_RM: Values, level: float) -> tuple[Values, Values]:
    tail = (1 - level) / 2
    low, high = np.quantile(draws_RM, [tail, 1 - tail], axis=0)
    return low, high
