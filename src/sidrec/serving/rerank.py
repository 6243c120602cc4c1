"""Re-ranking of what was found: boosts, then diversity.

A boost by a factor f adds log f to the score of an item, which for log-probabilities makes it f
times as probable; counts of popularity are logged first. Diversity lambda picks, one after the
other, the item with the highest

    (1 − lambda) relevance − lambda max over chosen of cosine

where relevance is the score scaled to [0, 1] within the pool (maximal marginal relevance).

Source:   MMR: Carbonell & Goldstein 1998.
Differs:  relevance is scaled within the pool; the pool is `POOL_FACTOR` k items.
Cost:     O(k P D) a request with diversity.
Shapes:   P pool, K returned items, D width, N items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sidrec.types import Bools, Floats, Ints

POOL_FACTOR = 4
MIN_POOL = 50
MAX_POOL = 1000


def pool_of(k: int) -> int:
    """Items to find where k are picked from them."""
    return max(k, min(max(POOL_FACTOR * k, MIN_POOL), MAX_POOL))


def boosted(
    rows_P: Ints, scores_P: Floats, boosts: Sequence[tuple[Bools, float]], *, counts: bool
) -> tuple[Ints, Floats]:
    """The items in the order of their boosted scores, ties by the earlier place."""
    scores_P = np.log1p(scores_P) if counts else scores_P
    for mask_N, factor in boosts:
        scores_P = scores_P + np.float32(np.log(factor)) * mask_N[rows_P]
    order_P = np.argsort(-scores_P, kind="stable")
    return rows_P[order_P], scores_P[order_P]


def diversified(
    rows_P: Ints, scores_P: Floats, unit_ND: Floats, k: int, diversity: float
) -> tuple[Ints, Floats]:
    """The k items that maximal marginal relevance picks, in its order, with their own scores."""
    low, high = float(scores_P.min(initial=0.0)), float(scores_P.max(initial=0.0))
    if len(scores_P):
        low, high = float(scores_P.min()), float(scores_P.max())
    relevance_P = (scores_P - low) / (high - low) if high > low else np.ones_like(scores_P)
    unit_PD = unit_ND[rows_P]
    nearest_P = np.full(len(rows_P), -1.0, dtype=np.float32)
    left_P = np.ones(len(rows_P), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < min(k, len(rows_P)):
        worth_P = (1 - diversity) * relevance_P - (diversity * nearest_P if chosen else 0.0)
        best = int(np.argmax(np.where(left_P, worth_P, -np.inf)))
        chosen.append(best)
        left_P[best] = False
        nearest_P = np.maximum(nearest_P, unit_PD @ unit_PD[best])
    return rows_P[chosen], scores_P[chosen]
