"""What one model for search and recommendation gains over two, and whether its answers fit queries.

    ICEG         = E[m_joint − m_independent] / E[m_independent]      over contexts of both tasks
    coherence(q) = mean over the first k answers i of cos(enc(q), x_i)

m is a metric of one context, such as nDCG@10; contexts weigh as declared. ICEG has no value where
the independent models score nothing. `enc` should not be what the answers were retrieved with, and
coherence means little without that of as many random items, which is measured beside it.

Source:   the evaluation card's definitions; ICEG is the term of a survey, not found in UniCoRn's
          text (arXiv:2408.10394).
Differs:  none.
Cost:     2,000 resamples; coherence O(Q k D).
Shapes:   Q contexts or queries, K listed items, N items, D width of the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sidrec.errors import DataError
from sidrec.evaluation.significance import RESAMPLES, Figure, Values, resampled_means
from sidrec.types import PAD, Floats, Ints


def iceg(
    joint_Q: Values,
    independent_Q: Values,
    weights_Q: Values | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Figure:
    """The gain of joint over independent models, a share of the latter's mean, with its interval.

    Contexts are resampled, and the ratio is formed anew each time. DataError where it is undefined.

    >>> round(iceg(np.array([0.6, 0.6]), np.array([0.4, 0.6])).value, 6)
    0.2
    """
    if joint_Q.shape != independent_Q.shape or not len(joint_Q):
        raise DataError(
            f"ICEG needs the same contexts, at least one, of both models; got {joint_Q.shape} and "
            f"{independent_Q.shape}"
        )
    weights_Q = np.ones(len(joint_Q)) if weights_Q is None else weights_Q
    if weights_Q.shape != joint_Q.shape or (weights_Q < 0).any() or not weights_Q.any():
        raise DataError("ICEG needs one weight a context, none negative, not all 0")
    both_Q2 = np.stack([joint_Q, independent_Q], axis=1) * weights_Q[:, None]
    gained, base = both_Q2.mean(axis=0)
    if base == 0:
        raise DataError("ICEG is undefined: the independent models score 0 in every context")
    gained_R, base_R = resampled_means(both_Q2, resamples=resamples, seed=seed).T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios_R = gained_R / base_R - 1
    ratios_R = ratios_R[np.isfinite(ratios_R)]
    tail = (1 - level) / 2
    low, high = np.quantile(ratios_R, [tail, 1 - tail])
    return Figure(value=float(gained / base - 1), low=float(low), high=float(high), n=len(joint_Q))


@dataclass(frozen=True, eq=False)
class Encoded:
    """Queries and items in one space, by an encoder that retrieved neither."""

    queries_QD: Floats
    items_ND: Floats

    def __post_init__(self) -> None:
        if self.queries_QD.shape[1:] != self.items_ND.shape[1:]:
            raise DataError(
                f"queries and items must share a width, got {self.queries_QD.shape} and "
                f"{self.items_ND.shape}"
            )

    def coherence(self, rows_QK: Ints, k: int = 10) -> Values:
        """(Q,) mean cosine of each query with its first k items, −1 for none; NaN without items.

        A zero vector, of a text that the encoder does not know, has the cosine 0 with everything.
        """
        if len(rows_QK) != len(self.queries_QD):
            raise DataError(f"{len(rows_QK)} lists for {len(self.queries_QD)} encoded queries")
        rows_QK = rows_QK[:, :k]
        listed_QK = rows_QK != PAD
        items_QKD = unit(self.items_ND)[np.maximum(rows_QK, 0)]
        cosines_QK = np.einsum("qd,qkd->qk", unit(self.queries_QD), items_QKD, dtype=np.float64)
        counts_Q = listed_QK.sum(axis=1)
        means_Q = (cosines_QK * listed_QK).sum(axis=1) / np.maximum(counts_Q, 1)
        return np.where(counts_Q > 0, means_Q, np.nan)

    def coherence_of_random(self, rows_QK: Ints, k: int = 10, *, seed: int = 0) -> Values:
        """(Q,) the same with random items in the places of those listed."""
        drawn_QK = np.random.default_rng(seed).integers(0, len(self.items_ND), rows_QK.shape)
        return self.coherence(np.where(rows_QK == PAD, PAD, drawn_QK), k)


def unit(vectors: Floats) -> Floats:
    """Rows of length 1; zero rows stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
