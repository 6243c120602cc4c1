"""Power laws with a floor, fitted to a handful of losses, with intervals.

    L(x_1, …, x_K) = E + sum over k of A_k x_k^-alpha_k

K is 1 for a law in size, data or compute, 2 for size and data together. Fitted by

    minimise  sum over p of Huber_delta( log L_p − LSE( log E, log A_k − alpha_k log x_kp ) )

from a grid of starts, all descended at once: damped Gauss-Newton steps on reweighted squares, a
step kept where it lowers the objective.

Source:   Hoffmann et al. 2022 (arXiv:2203.15556), appendix D.3: the objective, delta = 1e-3, the
          grid of starts. Intervals: Efron & Tibshirani 1993, resampling points.
Differs:  Gauss-Newton in place of L-BFGS; alpha is kept in [.01, 4]; a resample that holds fewer
          than three values of a variable is drawn again, since it says nothing of three parameters.
Cost:     O(resamples · starts · points) a step; a second for 15 points and 500 resamples.
Shapes:   P points, K variables, R fits at once, Q = 1 + 2 K parameters (log E, log A_k, alpha_k).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sidrec.errors import DataError

Values = NDArray[np.float64]
DELTA = 1e-3
"""Relative error beyond which the objective grows linearly, not as a square."""
MAX_STEPS = 300
EXPONENTS = (0.01, 4.0)
"""Exponents are kept within."""
FLOOR_STARTS = (0.01, 0.4, 0.7, 0.85, 0.94, 0.98, 0.995)
"""Starts of E, as shares of the smallest loss."""
EXPONENT_STARTS = (0.1, 0.2, 0.4, 0.7, 1.0)


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """E + sum over k of A_k x_k^-alpha_k."""

    floor: float
    """E, what no size reaches."""
    scales: tuple[float, ...]
    """K values of A."""
    exponents: tuple[float, ...]
    """K values of alpha."""

    def __call__(self, *variables: ArrayLike) -> Values:
        """Losses, one for each entry of the K variables."""
        loss = np.asarray(self.floor, dtype=np.float64)
        for scale, exponent, values in zip(self.scales, self.exponents, variables, strict=True):
            loss = loss + scale * np.asarray(values, dtype=np.float64) ** -exponent
        return np.asarray(loss)

    def compute_optimal(self, flop: float) -> tuple[float, float]:
        """(N, D) that lose least for so many FLOP, C = 6 N D, by a law in (N, D)."""
        (a, b), (alpha, beta) = self.scales, self.exponents
        balance = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
        size = balance * (flop / 6) ** (beta / (alpha + beta))
        return size, flop / 6 / size


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A fitted number and the middle 95 % of it over resamples of the points."""

    value: float
    low: float
    high: float


def fit_power_law(variables: ArrayLike, losses: ArrayLike) -> PowerLaw:
    """The law of points: `variables` (P,) or (P, K), `losses` (P,), all above 0.

    Raises DataError with fewer than three values of a variable.
    """
    x_PK, losses_P = checked(variables, losses)
    return fit_many(x_PK, losses_P, np.ones((1, len(losses_P))))[0]


def resampled_laws(
    variables: ArrayLike, losses: ArrayLike, *, resamples: int = 500, seed: int = 0
) -> list[PowerLaw]:
    """Laws of `resamples` draws of the points with replacement."""
    x_PK, losses_P = checked(variables, losses)
    rng, num = np.random.default_rng(seed), len(losses_P)
    counts: list[Values] = []
    while len(counts) < resamples:
        drawn = rng.integers(0, num, num)
        if least_values(x_PK[drawn]) >= 3:
            counts.append(np.bincount(drawn, minlength=num).astype(np.float64))
    return fit_many(x_PK, losses_P, np.array(counts))


def interval(value: float, resampled: ArrayLike, level: float = 0.95) -> Interval:
    """The percentile interval of resampled values, widened to hold `value` itself."""
    low, high = np.quantile(np.asarray(resampled), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))


# The fit -----------------------------------------------------------------------------------------


def checked(variables: ArrayLike, losses: ArrayLike) -> tuple[Values, Values]:
    """Points as (P, K) and (P,). DataError where no law can be fitted to them."""
    x_PK, losses_P = (np.asarray(v, dtype=np.float64) for v in (variables, losses))
    x_PK = x_PK[:, None] if x_PK.ndim == 1 else x_PK
    if losses_P.shape != (len(x_PK),):
        raise DataError(f"a law needs one loss a point: {len(x_PK)} points, {losses_P.shape}")
    if not (np.isfinite(x_PK).all() and np.isfinite(losses_P).all()):
        raise DataError("points of a law must be finite; leave out the runs that diverged")
    if not ((x_PK > 0).all() and (losses_P > 0).all()):
        raise DataError("sizes and losses of a law must be above 0")
    if (found := least_values(x_PK)) < 3:
        raise DataError(
            f"a law with floor, scale and exponent needs at least 3 sizes, got {found}; measure "
            "more sizes (six or seven, a factor of 2 to 4 apart, say most)"
        )
    return x_PK, losses_P


def least_values(x_PK: Values) -> int:
    """The fewest distinct values that a variable takes."""
    return min(len(np.unique(column)) for column in x_PK.T)


def fit_many(x_PK: Values, losses_P: Values, weights_RP: Values) -> list[PowerLaw]:
    """One law for each row of weights; the best over the grid of starts."""
    centre_K = np.log(x_PK).mean(axis=0)
    logs_PK, y_P = np.log(x_PK) - centre_K, np.log(losses_P)
    starts_SQ = grid_of_starts(logs_PK, losses_P)
    if len(weights_RP) > 1:  # resamples start from the law of all points, and a coarser grid
        found_SQ, objective_S = descend(starts_SQ, logs_PK, y_P, np.ones((1, len(y_P))))
        best_1Q = found_SQ[objective_S.argmin()][None]
        starts_SQ = np.concatenate([best_1Q, starts_SQ[2 :: max(1, len(starts_SQ) // 5)]])
    num, starts = len(weights_RP), len(starts_SQ)
    theta, objective = descend(
        np.tile(starts_SQ, (num, 1)), logs_PK, y_P, np.repeat(weights_RP, starts, axis=0)
    )
    best_R = objective.reshape(num, starts).argmin(axis=1)
    theta_RQ = theta.reshape(num, starts, -1)[np.arange(num), best_R]
    num_variables = x_PK.shape[1]
    log_scales_RK, exponents_RK = np.split(theta_RQ[:, 1:], [num_variables], axis=1)
    scales_RK = np.exp(log_scales_RK + exponents_RK * centre_K)
    return [
        PowerLaw(
            floor=float(np.exp(row[0])),
            scales=tuple(map(float, scales)),
            exponents=tuple(map(float, exponents)),
        )
        for row, scales, exponents in zip(theta_RQ, scales_RK, exponents_RK, strict=True)
    ]


def grid_of_starts(logs_PK: Values, losses_P: Values) -> Values:
    """(S, Q) starts: every E with every exponent; A such that the median point is met."""
    num_variables = logs_PK.shape[1]
    starts = []
    for share, *alphas in itertools.product(
        FLOOR_STARTS, *(EXPONENT_STARTS for _ in range(num_variables))
    ):
        floor = share * losses_P.min()
        above_P = np.log(losses_P - floor) - np.log(num_variables)
        scales = [np.median(above_P + a * x_P) for a, x_P in zip(alphas, logs_PK.T, strict=True)]
        starts.append([np.log(floor), *scales, *alphas])
    return np.array(starts)


def descend(
    theta_RQ: Values, logs_PK: Values, y_P: Values, weights_RP: Values
) -> tuple[Values, Values]:
    """Parameters (R, Q) and objectives (R,) after damped Gauss-Newton from the given starts."""
    low_Q, high_Q = bounds(logs_PK, y_P)
    theta_RQ = np.clip(theta_RQ, low_Q, high_Q)
    weights_RP = np.broadcast_to(weights_RP, (len(theta_RQ), len(y_P)))
    objective_R = huber(y_P - predicted(theta_RQ, logs_PK)[0], weights_RP)
    damping_R = np.full(len(theta_RQ), 1e-2)
    eye_QQ = np.eye(theta_RQ.shape[1])
    live = np.arange(len(theta_RQ))
    for _ in range(MAX_STEPS):
        weights_XP, before_X = weights_RP[live], objective_R[live]  # X of the R still move
        predicted_XP, slopes_XPQ = predicted(theta_RQ[live], logs_PK)
        residuals_XP = y_P - predicted_XP
        reweighted_XP = weights_XP * np.minimum(1, DELTA / np.maximum(np.abs(residuals_XP), 1e-300))
        weighted_XQP = (slopes_XPQ * reweighted_XP[..., None]).swapaxes(1, 2)
        curvature_XQQ = weighted_XQP @ slopes_XPQ
        size_X = np.trace(curvature_XQQ, axis1=1, axis2=2) / len(eye_QQ) + 1e-12
        curvature_XQQ = curvature_XQQ + (damping_R[live] * size_X)[:, None, None] * eye_QQ
        step_XQ = np.linalg.solve(curvature_XQQ, weighted_XQP @ residuals_XP[..., None])[..., 0]
        tried_XQ = np.clip(theta_RQ[live] + step_XQ, low_Q, high_Q)
        tried_X = huber(y_P - predicted(tried_XQ, logs_PK)[0], weights_XP)
        better_X = tried_X < before_X
        theta_RQ[live[better_X]] = tried_XQ[better_X]
        objective_R[live[better_X]] = tried_X[better_X]
        factors_X = np.where(better_X, 0.25, 4.0)
        damping_R[live] = np.maximum(damping_R[live] * factors_X, 1e-10)
        crept_X = better_X & (before_X - tried_X < 1e-7 * before_X)
        live = live[~crept_X & (damping_R[live] < 1e6)]
        if not len(live):
            break
    return theta_RQ, objective_R


def bounds(logs_PK: Values, y_P: Values) -> tuple[Values, Values]:
    """Least and largest value of each parameter: E up to the largest loss, alpha in bounds."""
    num_variables = logs_PK.shape[1]
    low = [y_P.min() - 12, *[y_P.min() - 25] * num_variables, *[EXPONENTS[0]] * num_variables]
    high = [y_P.max(), *[y_P.max() + 5] * num_variables, *[EXPONENTS[1]] * num_variables]
    return np.array(low), np.array(high)


def predicted(theta_RQ: Values, logs_PK: Values) -> tuple[Values, Values]:
    """Logs of L (R, P) under the law, and its derivatives (R, P, Q)."""
    num_variables = logs_PK.shape[1]
    scales_RK, exponents_RK = np.split(theta_RQ[:, 1:], [num_variables], axis=1)
    terms_RPK = scales_RK[:, None] - exponents_RK[:, None] * logs_PK
    floors_RP1 = np.broadcast_to(theta_RQ[:, None, :1], (*terms_RPK.shape[:2], 1))
    terms = np.concatenate([floors_RP1, terms_RPK], axis=2)
    peak_RP = terms.max(axis=2)
    shares = np.exp(terms - peak_RP[..., None])
    sums_RP = shares.sum(axis=2)
    total_RP, shares = peak_RP + np.log(sums_RP), shares / sums_RP[..., None]
    return total_RP, np.concatenate([shares, -shares[..., 1:] * logs_PK], axis=2)


def huber(residuals_RP: Values, weights_RP: Values) -> Values:
    """(R,) weighted Huber loss of the residuals: a square up to DELTA, then a line."""
    size_RP = np.abs(residuals_RP)
    cost_RP = np.where(size_RP <= DELTA, 0.5 * size_RP**2, DELTA * (size_RP - 0.5 * DELTA))
    return (weights_RP * cost_RP).sum(axis=1)
