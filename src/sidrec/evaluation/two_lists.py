"""What two lists add to each other: how much they overlap, and how often one finds what one misses.

    P(miss A) − P(miss both) = (1 − kappa) P(miss A),   kappa = P(miss B | miss A)

kappa is 1 where B never finds what A misses, so that the second list is worth nothing, and
P(miss B) where the two miss independently.

Source:   overlap and the identity as in BARGE (arXiv:2607.21028).
Shapes:   B requests, K items of a list, Q questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from sidrec.errors import DataError
from sidrec.types import PAD, Bools, Floats, Ints


def overlap(rows_BK: Ints, other_BK: Ints) -> Floats:
    """(B,) Jaccard overlap of the items of two lists, −1 for no item; 0 where both are empty."""
    both_B = ((rows_BK[:, :, None] == other_BK[:, None]) & (rows_BK != PAD)[:, :, None]).sum((1, 2))
    either_B = (rows_BK != PAD).sum(1) + (other_BK != PAD).sum(1) - both_B
    return both_B / np.maximum(either_B, 1)


@dataclass(frozen=True, kw_only=True)
class Misses:
    """Shares of questions, in [0, 1], whose answer list A, list B, or both lack."""

    miss_a: float
    miss_b: float
    miss_both: float

    @classmethod
    def of(cls, found_a_Q: Bools, found_b_Q: Bools) -> Self:
        """From whether each list holds the answer."""
        if found_a_Q.shape != found_b_Q.shape or not len(found_a_Q):
            raise DataError(
                f"misses need the same questions, at least one, of both lists; got "
                f"{found_a_Q.shape} and {found_b_Q.shape}"
            )
        missed = (~found_a_Q, ~found_b_Q, ~found_a_Q & ~found_b_Q)
        miss_a, miss_b, miss_both = (float(m.mean()) for m in missed)
        return cls(miss_a=miss_a, miss_b=miss_b, miss_both=miss_both)

    @property
    def kappa(self) -> float:
        """Share of A's misses that B misses too; 1 where A misses nothing."""
        return self.miss_both / self.miss_a if self.miss_a else 1.0

    @property
    def gain(self) -> float:
        """What the union of the lists finds beyond A: (1 − kappa) P(miss A)."""
        return self.miss_a - self.miss_both
