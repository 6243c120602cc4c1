"""Content k-NN: items that resemble the last items of a history. Nothing is learnt from events.

    score(j) = 1/temperature * sum_s decay^s cos(x_{i_s}, x_j) / sum_s decay^s  -  repeats

with s = 0 the last item, s = 1 the one before, …, and x the item vectors less their mean. It knows
an item from the moment it has a vector: the baseline for cold items, and a member of the hybrid
that treats new and old alike.

Source:  the Semantic-KNN baseline of TIGER (arXiv:2305.05065, sec. 4.3).
Differs: scores every item by its vector instead of listing the items under a shared prefix; older
         events weigh less; `temperature` makes the softmax of the scores fit for a fusion.
Cost:    O(N D) a request; the vectors once more in memory.
Shapes:  B requests, N items, T history length, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.errors import ConfigError
from sidrec.item_inputs import ItemInputs
from sidrec.transformer import distinct
from sidrec.types import CatalogueContext, Floats, HistoryBatch


@dataclass(frozen=True, kw_only=True)
class ContentKnnConfig:
    """Settings of `ContentKnn`."""

    max_length: int = 20
    """How many of the last items are compared with."""
    decay: float = 0.7
    """Weight of the s-th item from the end is decay^s; 1 counts all alike."""
    temperature: float = 0.05
    """Similarities are divided by this before a softmax is taken of them."""
    repeat_penalty: float = 2.0
    """Taken off the similarity of items that the history holds: 2 puts them last, 0 lets them
    come first."""

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ConfigError(f"content_knn.max_length must be at least 1, got {self.max_length}")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"content_knn.decay must be in (0, 1], got {self.decay}")
        if self.temperature <= 0 or self.repeat_penalty < 0:
            raise ConfigError(
                "content_knn.temperature must be above 0 and repeat_penalty at least 0, got "
                f"{self.temperature} and {self.repeat_penalty}"
            )


class ContentKnn(nn.Module):
    """Training-free; a module so that it grows with the catalogue."""

    config_class: ClassVar[type] = ContentKnnConfig

    def __init__(self, vectors_ND: Floats, config: ContentKnnConfig) -> None:
        super().__init__()
        self.config = config
        self.max_length = config.max_length
        self.inputs = ItemInputs(vectors_ND)

    @classmethod
    def build(cls, context: CatalogueContext, config: ContentKnnConfig) -> Self:
        """Ready to use over the vectors of `context`."""
        if context.vectors is None:
            raise ConfigError("content_knn needs item vectors, got none; add an embedding section")
        return cls(context.vectors.vectors, config)

    @torch.inference_mode()
    def scores(self, batch: HistoryBatch) -> Tensor:
        """(B, N) mean similarity to the history over the temperature; 0 for an empty one."""
        batch, config = batch.last(self.max_length), self.config
        unit_ND = F.normalize(self.inputs.vectors_ND, dim=1)
        places_T = torch.arange(batch.items_BT.shape[1], device=unit_ND.device)
        ages_BT = batch.lengths_B[:, None] - 1 - places_T
        weights_BT = (config.decay ** ages_BT.clamp_min(0).float()) * (ages_BT >= 0)
        weights_BT = weights_BT / weights_BT.sum(dim=1, keepdim=True).clamp_min(1e-9)
        rows_BTD = F.embedding(batch.items_BT.clamp_min(0), unit_ND)
        similar_BN = (weights_BT[:, None] @ rows_BTD)[:, 0] @ unit_ND.T
        seen_BT = distinct(batch)
        penalty_BT = (seen_BT >= 0).float() * -config.repeat_penalty
        similar_BN.scatter_add_(1, seen_BT.clamp_min(0), penalty_BT)
        return similar_BN / config.temperature
