"""The four aspects of an item for a user, their levels, and the evidence that a judge returns.

Language models answer in the levels; the embedded back end uses the whole range between the lowest
and the highest.

Source:  S-GRec (arXiv:2602.10606), stage A of its judge, by secondary summaries.
Differs: levels and their wording are ours (those of a re-implementation for the first three); the
         paper names the aspects only. Context is dropped where nothing is known of it.
Shapes:  B contexts, G candidates of a context, A aspects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sidrec.errors import ConfigError, DataError
from sidrec.types import Bools, Floats


@dataclass(frozen=True, kw_only=True)
class Aspect:
    """One thing that speaks for or against an item."""

    name: str
    question: str
    """What is asked, as a prompt says it."""
    meanings: dict[float, str]
    """Level -> what it means, lowest first."""

    @property
    def levels(self) -> tuple[float, ...]:
        return tuple(self.meanings)

    @property
    def lowest(self) -> float:
        return min(self.meanings)

    @property
    def highest(self) -> float:
        return max(self.meanings)


ASPECTS: dict[str, Aspect] = {
    aspect.name: aspect
    for aspect in (
        Aspect(
            name="profile",
            question="How well does the item fit the lasting tastes that the whole history shows?",
            meanings={
                -1.0: "against them",
                -0.5: "rather against them",
                0.0: "neither",
                0.5: "rather fits",
                1.0: "fits clearly",
            },
        ),
        Aspect(
            name="future",
            question="How likely is the item among the next ones, as the latest events suggest?",
            meanings={0.0: "unlikely", 0.5: "possible", 1.0: "likely"},
        ),
        Aspect(
            name="novelty",
            question="How new is the item to this user, judged by the history alone?",
            meanings={
                0.0: "in the history already, or nearly the same",
                0.5: "new, of a known kind",
                1.0: "of a new kind",
            },
        ),
        Aspect(
            name="context",
            question="How well does the item fit the present situation: session, time, place?",
            meanings={0.0: "does not fit", 0.5: "neither", 1.0: "fits"},
        ),
    )
}
WITHOUT_CONTEXT = ("profile", "future", "novelty")


def require_aspects(names: Sequence[str], where: str) -> None:
    """ConfigError unless the names are different aspects, at least one."""
    if not names or len(set(names)) < len(names) or not set(names) <= set(ASPECTS):
        raise ConfigError(
            f"{where} must be different ones of {list(ASPECTS)}, at least one, got {list(names)}"
        )


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a judge says of G candidates in each of B contexts, aspect by aspect."""

    aspects: tuple[str, ...]
    """A names."""
    scores_BGA: Floats
    """Inside the range of each aspect's levels; all NaN where a candidate was not judged."""
    texts: tuple[tuple[tuple[str, ...], ...], ...] = ()
    """The reason of every score, B x G x A; () where no texts were asked for."""

    def __post_init__(self) -> None:
        require_aspects(self.aspects, "evidence.aspects")
        scores = self.scores_BGA
        if scores.ndim != 3 or scores.shape[2] != len(self.aspects):
            raise DataError(
                f"evidence must be (B, G, A) with A = {len(self.aspects)}, got {scores.shape}"
            )
        for place, name in enumerate(self.aspects):
            aspect, values = ASPECTS[name], scores[..., place]
            if ((values < aspect.lowest - 1e-6) | (values > aspect.highest + 1e-6)).any():
                raise DataError(
                    f"evidence of {name} must lie in [{aspect.lowest}, {aspect.highest}], got "
                    f"{np.nanmin(values):.3g} to {np.nanmax(values):.3g}"
                )
        shape = {(len(self.texts), len(row), len(cell)) for row in self.texts for cell in row}
        if shape - {scores.shape}:
            raise DataError(f"evidence texts must be {scores.shape}, got {sorted(shape)}")

    @property
    def judged_BG(self) -> Bools:
        """(B, G) whether every aspect has a score."""
        return np.isfinite(self.scores_BGA.sum(axis=2))
