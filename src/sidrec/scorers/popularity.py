"""Popularity: the number of training events, the same list for everyone.

The first row of every table: what a system is worth that knows nothing of the user.

Cost:    one count; memory N numbers.
Shapes:  B requests, N items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sidrec.types import CatalogueContext, HistoryBatch, Ints


@dataclass(frozen=True, kw_only=True)
class PopularityConfig:
    """Nothing to set."""


@dataclass(frozen=True, eq=False)
class Popularity:
    """Scores items by training count; equal counts tie."""

    config_class: ClassVar[type] = PopularityConfig
    max_length: ClassVar[int] = 1

    counts_N: Ints

    @classmethod
    def build(cls, context: CatalogueContext, config: PopularityConfig) -> Self:
        """Counts of training events."""
        return cls(context.train_counts_N)

    def scores(self, batch: HistoryBatch) -> Tensor:
        """(B, N) float32 training counts, the same row for every request."""
        counts_N = torch.from_numpy(self.counts_N).to(batch.items_BT.device, torch.float32)
        return counts_N.expand(batch.num_requests, -1).clone()

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"counts": self.counts_N}

    def state(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_arrays(
        cls,
        config: PopularityConfig,
        arrays: Mapping[str, NDArray[Any]],
        state: Mapping[str, Any],
    ) -> Self:
        """What `arrays` and `state` gave."""
        return cls(np.asarray(arrays["counts"]))
