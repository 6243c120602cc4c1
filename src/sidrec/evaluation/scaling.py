"""How the loss falls with size, data or compute: the law, what it predicts, where it stops holding.

    size       L(N)   = E + A N^-alpha             N: non-embedding parameters
    data       L(D)   = E + B D^-beta              D: training events
    compute    L(C)   = E + A C^-gamma             C: FLOP until the best validation loss
    both       L(N,D) = E + A N^-alpha + B D^-beta
    log law    L(N)   = a − b log N                constant: L(N) = a

The loss is nats per item. The two largest sizes are held out, predicted by every form from the
others, and the errors stand in the report whether they are small or not:
error = |predicted − measured| / (measured − E). A size is beyond the law where its mean loss is
further from it than twice what the seeds explain; the loss has turned where a larger size is worse
than the best one by more than that.

Source:   arXiv:2311.11351 (size law of ID models; the largest sizes held out), arXiv:2203.15556
          (joint law, compute-optimal split), arXiv:2602.10016 (the log law).
Differs:  the log law and the constant are medians and least absolute errors, as the power law
          nearly is; the `last` form (the loss of the largest size that was not held out) beside
          them, since a constant is easy to beat. Exponents of other papers are not comparable.
Cost:     that of two bootstraps, see `power_law`.
Shapes:   P points: one a size, share of the data and seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import linprog

from sidrec.errors import DataError
from sidrec.evaluation.power_law import (
    EXPONENTS,
    Interval,
    PowerLaw,
    Values,
    checked,
    fit_power_law,
    interval,
    least_values,
    resampled_laws,
)

FORMS = ("power law", "log law", "constant", "last")
SPREADS = 2.0
"""A mean loss is off where it is further away than so many standard errors of the seeds."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What each form says of the largest sizes, fitted on the others."""

    sizes: tuple[float, ...]
    num_fitted: int
    """Sizes that the forms were fitted on."""
    measured: tuple[float, ...]
    """Mean loss over seeds, nats an item."""
    predicted: Mapping[str, tuple[float, ...]]
    """By form, nats an item."""
    intervals: tuple[Interval, ...]
    """Of the power law's predictions, over resampled points."""
    mean_error_nats: Mapping[str, float]
    """By form, mean of |predicted − measured|."""
    mean_error_share: Mapping[str, float] | None
    """The same as a share of what is above E, the floor of all points; None where a measured loss
    lies below that."""

    @property
    def best(self) -> str:
        """The form with the smallest error."""
        return min(self.mean_error_nats, key=lambda form: self.mean_error_nats[form])


@dataclass(frozen=True, kw_only=True)
class Residual:
    """Measured against the law at one size."""

    size: float
    num_seeds: int
    loss: float
    """Mean over seeds, nats an item."""
    above_law: float
    """Loss − law, nats an item."""
    explained: float | None
    """Standard error of the mean as the seeds have it, nats an item; None without seeds."""

    @property
    def is_off(self) -> bool:
        """Whether the law misses this size by more than the seeds explain."""
        return self.explained is not None and abs(self.above_law) > SPREADS * self.explained


@dataclass(frozen=True, kw_only=True)
class ScalingFit:
    """One law with all that is needed to judge it."""

    variable: str
    """What the law is in, e.g. "non-embedding parameters"."""
    law: PowerLaw
    floor: Interval
    scale: Interval
    exponent: Interval
    num_points: int
    num_resamples: int
    seed_spread: float | None
    """Relative standard deviation between seeds of one size, pooled; None without seeds."""
    residuals: tuple[Residual, ...]
    """By size, ascending."""
    turn: float | None
    """The best size, where larger ones are worse by more than the seeds explain."""
    law_until_turn: PowerLaw | None
    """Fitted on sizes up to the turn, where there are enough of them."""
    held_out: HeldOut | None
    words: tuple[str, ...]
    """The same for people."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class JointFit:
    """The law in size and data together."""

    law: PowerLaw
    floor: Interval
    size_exponent: Interval
    data_exponent: Interval
    num_points: int
    num_resamples: int
    words: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def fit_scaling(
    sizes: Sequence[float],
    losses: Sequence[float],
    *,
    variable: str = "non-embedding parameters",
    num_held_out: int = 2,
    resamples: int = 500,
    seed: int = 0,
) -> ScalingFit:
    """The law in one variable of points (size, loss), several seeds of a size as several points.

    Raises DataError with fewer than 4 sizes: floor, scale and exponent would meet any three.
    """
    x_PK, losses_P = checked(sizes, losses)
    sizes_P = x_PK[:, 0]
    if (num := least_values(x_PK)) < 4:
        raise DataError(
            f"a scaling law in {variable} needs at least 4 values, got {num}: floor, scale and "
            "exponent meet any three points; measure more"
        )
    law = fit_power_law(sizes_P, losses_P)
    laws = resampled_laws(sizes_P, losses_P, resamples=resamples, seed=seed)
    spread = seed_spread(sizes_P, losses_P)
    residuals = residuals_of(law, sizes_P, losses_P, spread)
    turn = turn_of(residuals)
    until = None
    if turn is not None and len(np.unique(sizes_P[sizes_P <= turn])) >= 4:
        until = fit_power_law(sizes_P[sizes_P <= turn], losses_P[sizes_P <= turn])
    held_out = None
    if num - num_held_out >= 3:
        held_out = hold_out(sizes_P, losses_P, law.floor, num_held_out, resamples, seed)
    fit = ScalingFit(
        variable=variable,
        law=law,
        floor=interval(law.floor, [each.floor for each in laws]),
        scale=interval(law.scales[0], [each.scales[0] for each in laws]),
        exponent=interval(law.exponents[0], [each.exponents[0] for each in laws]),
        num_points=len(losses_P),
        num_resamples=resamples,
        seed_spread=spread,
        residuals=residuals,
        turn=turn,
        law_until_turn=until,
        held_out=held_out,
        words=(),
    )
    return replace(fit, words=tuple(in_words(fit)))


def fit_joint(
    sizes: Sequence[float],
    events: Sequence[float],
    losses: Sequence[float],
    *,
    resamples: int = 500,
    seed: int = 0,
) -> JointFit:
    """The law in size and data of points (size, events, loss). DataError with under 6 points."""
    x_PK, losses_P = checked(np.column_stack([sizes, events]), losses)
    if (num := len(np.unique(x_PK, axis=0))) < 6:
        raise DataError(
            f"the joint law has five parameters and needs at least 6 pairs of size and data, got "
            f"{num}; measure more sizes or shares"
        )
    law = fit_power_law(x_PK, losses_P)
    laws = resampled_laws(x_PK, losses_P, resamples=resamples, seed=seed)
    floor = interval(law.floor, [each.floor for each in laws])
    alpha, beta = (
        interval(law.exponents[k], [each.exponents[k] for each in laws]) for k in range(2)
    )
    words = (
        f"loss = {law.floor:.3f} + {law.scales[0]:.3g} · N^-{law.exponents[0]:.3f} + "
        f"{law.scales[1]:.3g} · D^-{law.exponents[1]:.3f} nats an item, {len(losses_P)} points; "
        f"floor {shown(floor)}, exponents {shown(alpha)} and {shown(beta)}",
        *undetermined_words(floor, {"N": alpha, "D": beta}),
    )
    return JointFit(
        law=law,
        floor=floor,
        size_exponent=alpha,
        data_exponent=beta,
        num_points=len(losses_P),
        num_resamples=resamples,
        words=words,
    )


# Held out, left over -----------------------------------------------------------------------------


def hold_out(
    sizes_P: Values, losses_P: Values, floor: float, num_held_out: int, resamples: int, seed: int
) -> HeldOut:
    """Every form fitted without the largest sizes, against their mean losses."""
    held = np.unique(sizes_P)[-num_held_out:]
    kept_P = sizes_P < held[0]
    sizes, losses = sizes_P[kept_P], losses_P[kept_P]
    measured = np.array([losses_P[sizes_P == size].mean() for size in held])
    law = fit_power_law(sizes, losses)
    intercept, slope = log_law(sizes, losses)
    predicted = {
        "power law": law(held),
        "log law": intercept + slope * np.log(held),
        "constant": np.full(len(held), np.median(losses)),
        "last": np.full(len(held), losses[sizes == sizes.max()].mean()),
    }
    resampled = np.array(
        [each(held) for each in resampled_laws(sizes, losses, resamples=resamples, seed=seed)]
    )
    errors = {form: np.abs(values - measured) for form, values in predicted.items()}
    shares = None
    if (measured > floor).all():
        shares = {form: float((e / (measured - floor)).mean()) for form, e in errors.items()}
    return HeldOut(
        sizes=tuple(map(float, held)),
        num_fitted=len(np.unique(sizes)),
        measured=tuple(map(float, measured)),
        predicted={form: tuple(map(float, values)) for form, values in predicted.items()},
        intervals=tuple(
            interval(float(value), column)
            for value, column in zip(predicted["power law"], resampled.T, strict=True)
        ),
        mean_error_nats={form: float(e.mean()) for form, e in errors.items()},
        mean_error_share=shares,
    )


def log_law(sizes_P: Values, losses_P: Values) -> tuple[float, float]:
    """(a, −b) of a − b log N with the least sum of absolute errors."""
    design = np.column_stack([np.ones(len(sizes_P)), np.log(sizes_P)])
    eye = np.eye(len(sizes_P))
    found = linprog(
        np.concatenate([np.zeros(2), np.ones(2 * len(sizes_P))]),
        A_eq=np.column_stack([design, eye, -eye]),
        b_eq=losses_P,
        bounds=[(None, None)] * 2 + [(0, None)] * (2 * len(sizes_P)),
    )
    return float(found.x[0]), float(found.x[1])


def seed_spread(sizes_P: Values, losses_P: Values) -> float | None:
    """Standard deviation of log loss between seeds of one size, pooled over sizes."""
    squares, freedom = 0.0, 0
    for size in np.unique(sizes_P):
        logs = np.log(losses_P[sizes_P == size])
        squares += float(np.square(logs - logs.mean()).sum())
        freedom += len(logs) - 1
    return float(np.sqrt(squares / freedom)) if freedom else None


def residuals_of(
    law: PowerLaw, sizes_P: Values, losses_P: Values, spread: float | None
) -> tuple[Residual, ...]:
    """Measured − law at every size, beside what the seeds explain of it."""
    found = []
    for size in np.unique(sizes_P):
        losses = losses_P[sizes_P == size]
        mean = float(losses.mean())
        explained = None if spread is None else spread * mean / float(np.sqrt(len(losses)))
        found.append(
            Residual(
                size=float(size),
                num_seeds=len(losses),
                loss=mean,
                above_law=mean - float(law(size)),
                explained=explained,
            )
        )
    return tuple(found)


def turn_of(residuals: Sequence[Residual]) -> float | None:
    """The size with the smallest loss, where a larger one is worse by more than seeds explain."""
    best = min(residuals, key=lambda each: each.loss)
    for each in residuals:
        if each.size <= best.size or each.explained is None or best.explained is None:
            continue
        if each.loss - best.loss > SPREADS * float(np.hypot(each.explained, best.explained)):
            return best.size
    return None


# Words -------------------------------------------------------------------------------------------


def shown(of: Interval) -> str:
    """`0.31 [0.22, 0.40]`."""
    return f"{of.value:.3f} [{of.low:.3f}, {of.high:.3f}]"


def in_words(fit: ScalingFit) -> list[str]:
    """The law, its test on the largest sizes, and where it stops holding."""
    law = fit.law
    return [
        f"loss = {law.floor:.3f} + {law.scales[0]:.3g} · x^-{law.exponents[0]:.3f} nats an item, "
        f"x = {fit.variable}; exponent {shown(fit.exponent)}, floor {shown(fit.floor)} "
        f"({fit.num_resamples} resamples of {fit.num_points} points)",
        *undetermined_words(fit.floor, {fit.variable: fit.exponent}),
        held_out_words(fit.held_out),
        *break_words(fit),
    ]


def undetermined_words(floor: Interval, exponents: Mapping[str, Interval]) -> list[str]:
    """Which numbers mean nothing, since their interval reaches an edge of what is possible."""
    words = [
        f"the points do not determine the exponent in {variable}: its interval reaches the edge of "
        f"what the fit allows ({EXPONENTS[0]:g} to {EXPONENTS[1]:g}); do not quote it"
        for variable, exponent in exponents.items()
        if exponent.low <= 1.01 * EXPONENTS[0] or exponent.high >= 0.99 * EXPONENTS[1]
    ]
    if floor.low < 0.01 * floor.high:
        words.append(
            f"the points do not determine the floor: anything from 0 to {floor.high:.2f} fits; an "
            "exponent without a floor is too low"
        )
    return words


def held_out_words(held: HeldOut | None) -> str:
    """How well each form predicted the largest sizes."""
    if held is None:
        return "held out: nothing, since fewer than 3 values would be left to fit"
    pairs = "; ".join(
        f"{size:,.4g}: predicted {each.value:.3f} [{each.low:.3f}, {each.high:.3f}], measured "
        f"{loss:.3f}"
        for size, each, loss in zip(held.sizes, held.intervals, held.measured, strict=True)
    )
    errors = ", ".join(
        f"{form} {error:.3f}"
        + (f" ({held.mean_error_share[form]:.0%})" if held.mean_error_share else "")
        for form, error in held.mean_error_nats.items()
    )
    share = " (and as a share of what is above the floor)" if held.mean_error_share else ""
    exact = "; three sizes determine the law exactly" if held.num_fitted == 3 else ""
    return (
        f"held out, fitted on the {held.num_fitted} smaller{exact}: {pairs}. Mean error in nats"
        f"{share}: {errors}; best: {held.best}"
    )


def break_words(fit: ScalingFit) -> list[str]:
    """Where the law stops holding, or that it cannot be said."""
    if fit.seed_spread is None:
        best = min(fit.residuals, key=lambda each: each.loss)
        return [
            "one seed everywhere: what is noise and what is a break of the law cannot be told; the "
            f"smallest loss is at {best.size:,.4g}"
        ]
    words = []
    if off := [each for each in fit.residuals if each.is_off]:
        listed = "; ".join(
            f"{each.size:,.4g}: {each.above_law:+.3f} nats from it, seeds explain "
            f"{each.explained or 0:.3f}"
            for each in off
        )
        words.append(f"beyond what seeds explain the law misses {listed}")
    else:
        words.append("at every size the law is within what the seeds explain")
    if fit.turn is not None:
        text = (
            f"the loss turns at {fit.turn:,.4g}: larger is worse, the data no longer carry the "
            "size, and a law that only falls says nothing there"
        )
        if fit.law_until_turn is not None:
            law = fit.law_until_turn
            text += f"; up to it {law.floor:.3f} + {law.scales[0]:.3g} · x^-{law.exponents[0]:.3f}"
        words.append(text)
    return words
