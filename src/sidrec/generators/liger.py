"""Liger: one history encoder with two heads, one that writes IDs and one that compares densely.

`causal` as it is, with a dense head (`dense_head`) on the same states:

    L = L_gen + w L_dense

The generator proposes, the dense head ranks: `retrieval.dense_ranking` unites the beam's items with
the items known to be new, which no generator finds, and sorts them by the cosine of state and item.

Source:   LIGER, Yang et al. 2024 (arXiv:2411.18814).
Differs:  `causal`'s backbone over items instead of a T5 over codes, with its item softmax
          (`item_loss_weight`) and ID embeddings in the input; the softmax of L_dense runs over all
          items with training events; the user vector is a linear projection of the state, not an
          MLP; a learnt bias on items of the history; the early stop looks at the generator's lists.
Cost:     as `causal`, and for every item of the catalogue a step, one pass of a small MLP.
Shapes:   B requests, T history length, N items, D width of the dense space, P targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from sidrec.dense_head import DenseHead, Negatives, check_dense_settings
from sidrec.errors import ConfigError
from sidrec.generators.causal import Causal, CausalConfig
from sidrec.mixture_of_experts import Routing
from sidrec.transformer import seen_so_far
from sidrec.types import CatalogueContext, Floats, HistoryBatch, SemanticIds


@dataclass(frozen=True, kw_only=True)
class LigerConfig(CausalConfig):
    """Settings of `Liger`: those of `causal`, and of the dense head."""

    dense_loss_weight: float = 1.0
    """w, the weight of the dense loss."""
    dense_width: int = 128
    """Width of the space in which states and items are compared."""
    dense_hidden: int = 256
    """Hidden width of the item encoder."""
    dense_dropout: float = 0.2
    """On that hidden layer."""
    temperature: float = 0.07
    """What cosines are divided by."""
    learn_temperature: bool = False
    """Train it, from that value on."""
    negatives: Negatives = "trained"
    """Items that a target is told apart from: trained, all that have training events; batch, the
    targets of the same step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dense_settings("liger", temperature=self.temperature, hidden=self.dense_hidden)
        if self.dense_loss_weight < 0:
            raise ConfigError(
                f"liger.dense_loss_weight must not be negative, got {self.dense_loss_weight}"
            )


class Liger(Causal):
    """A generator with a dense head; `dense_states` and `dense_items` are what is compared."""

    config_class: ClassVar[type] = LigerConfig
    config: LigerConfig

    def __init__(self, ids: SemanticIds, vectors_ND: Floats, config: LigerConfig) -> None:
        super().__init__(ids, vectors_ND, config)
        self.dense = DenseHead(
            config.width,
            vectors_ND.shape[1],
            len(ids),
            width=config.dense_width,
            hidden=config.dense_hidden,
            dropout=config.dense_dropout,
            temperature=config.temperature,
            learn_temperature=config.learn_temperature,
            negatives=config.negatives,
        )

    @classmethod
    def build(cls, context: CatalogueContext, config: Any) -> Self:
        """An untrained model, initialised by `config.seed`. Needs vectors and semantic IDs."""
        model = super().build(context, config)
        model.dense.contrast(context.train_counts_N)
        return model

    def loss(self, batch: HistoryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats per target: of its codes, of the item softmax, and of the dense head."""
        batch = batch.last(self.max_length)
        assert batch.targets_BT is not None
        real = batch.targets_BT >= 0
        routings: list[Routing] = []
        states_PD, targets_P = self.states(batch, routings)[real], batch.targets_BT[real]
        seen_PS = seen_so_far(batch)[real]
        generated, parts = self.loss_at(states_PD, targets_P, seen_PS)
        dense, dense_parts = self.dense.loss(states_PD, self.inputs.vectors_ND, targets_P, seen_PS)
        loss = generated + self.config.dense_loss_weight * dense
        return self.balanced(loss, parts | dense_parts, routings, real)

    def dense_states(self, batch: HistoryBatch) -> Tensor:
        """(B, D) one unit vector a history."""
        return self.dense.users(self.history_states(batch))

    def dense_items(self) -> Tensor:
        """(N, D) unit vectors of all items; kept until a weight changes."""
        return self.dense.table(self.inputs.vectors_ND)
