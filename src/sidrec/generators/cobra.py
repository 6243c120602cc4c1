"""Cobra: write the coarse ID of the next item, then a vector that says which item of that ID.

The sequence alternates, e_1 v_1 e_2 v_2 … e_t v_t: the sum of the code embeddings of an item's ID,
then its unit vector v, made from its frozen vector by a small encoder that trains along. The state
at v_t writes the next ID, with `causal`'s depth decoder; the state at e_{t+1}, the ID given,
predicts the next vector (`dense_head`):

    P(id, v | S) = P(id | S) P(v | id, S)
    L = L_sparse + w L_dense

IDs are meant to be coarse: few codes a level, several items an ID (`collisions = "keep"`). The
model is a generator by its IDs; `retrieval.beam_fusion` compares the items below each ID of the
beam with the vector predicted for that ID.

Source:   COBRA, Yang et al. 2025 (arXiv:2503.02453).
Differs:  v reads frozen vectors through an MLP, not texts through a transformer; L_dense tells the
          target from all items with training events, not from those of the batch, and its
          temperature is learnt; the ID is written by `causal`'s depth decoder with node vectors,
          one code after another; relative positions; a learnt bias on items of the history.
Cost:     twice the places of `causal` in the encoder, and for every item of the catalogue a step,
          one pass of a small MLP. A beam's ID costs one place more, not another pass.
Shapes:   B requests, T history length, N items, D width, L levels, W IDs of a beam, P targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.dense_head import DenseHead, Negatives, check_dense_settings
from sidrec.errors import ConfigError
from sidrec.generators.causal import Causal, CausalConfig
from sidrec.mixture_of_experts import Routing
from sidrec.transformer import seen_so_far
from sidrec.types import CatalogueContext, Floats, HistoryBatch, SemanticIds


@dataclass(frozen=True, kw_only=True)
class CobraConfig(CausalConfig):
    """Settings of `Cobra`: those of `causal`, and of the dense half."""

    num_layers: int = 2
    """Transformer blocks over the history."""
    item_embedding: bool = False
    """Add a learnt embedding per item to the items of the node vectors; the paper has none."""
    item_loss_weight: float = 0.0
    """Weight of `causal`'s item softmax, which the paper does not have."""
    conditioned: bool = True
    """Let the dense half see which ID was written; without it the vector is predicted from the
    history alone, which, compared with the whole catalogue, is the paper's model without IDs."""
    dense_loss_weight: float = 1.0
    """w, the weight of the dense loss."""
    dense_hidden: int = 256
    """Hidden width of the item encoder."""
    dense_dropout: float = 0.2
    """On that hidden layer."""
    temperature: float = 0.07
    """What cosines are divided by."""
    learn_temperature: bool = True
    """Train it, from that value on."""
    negatives: Negatives = "trained"
    """Items that a target is told apart from: trained, all that have training events; batch, the
    targets of the same step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dense_settings("cobra", temperature=self.temperature, hidden=self.dense_hidden)
        if self.dense_loss_weight < 0:
            raise ConfigError(
                f"cobra.dense_loss_weight must not be negative, got {self.dense_loss_weight}"
            )


class Cobra(Causal):
    """A generator of coarse IDs whose dense half tells apart the items of one."""

    tokens_per_item: ClassVar[int] = 2
    config_class: ClassVar[type] = CobraConfig
    config: CobraConfig

    def __init__(self, ids: SemanticIds, vectors_ND: Floats, config: CobraConfig) -> None:
        super().__init__(ids, vectors_ND, config)
        self.dense = DenseHead(
            config.width,
            vectors_ND.shape[1],
            len(ids),
            width=config.width,
            hidden=config.dense_hidden,
            dropout=config.dense_dropout,
            temperature=config.temperature,
            learn_temperature=config.learn_temperature,
            negatives=config.negatives,
        )
        self.id_mark = nn.Parameter(0.02 * torch.randn(config.width))
        """Part of every e: what tells an ID from a vector."""

    @classmethod
    def build(cls, context: CatalogueContext, config: Any) -> Self:
        """An untrained model, initialised by `config.seed`. Needs vectors and semantic IDs."""
        model = super().build(context, config)
        model.dense.contrast(context.train_counts_N)
        return model

    # ------------------------------------------------------------------ sequence

    @staticmethod
    def num_positions(max_length: int) -> int:
        """Two an item, and one for the ID that comes next."""
        return 2 * max_length + 1

    def id_tokens(self, symbols: Tensor) -> Tensor:
        """(…, D) the tokens e of whole IDs (…, L)."""
        mark = self.id_mark * self.config.width**0.5
        if not self.config.conditioned:
            return mark.expand(*symbols.shape[:-1], -1)
        codes = sum(F.embedding(symbols[..., le], table) for le, table in enumerate(self.codes))
        return mark + codes * self.config.width**0.5

    def tokens(self, batch: HistoryBatch) -> Tensor:
        """(B, 2 T, D) e and v of every item in turn; the state at v writes the next ID."""
        rows_BT = batch.items_BT.clamp_min(0)
        v_BTD = self.dense.items(self.inputs.vectors_ND[rows_BT]) * self.config.width**0.5
        e_BTD = self.id_tokens(self.symbols_NL[rows_BT])
        return torch.stack([e_BTD, v_BTD], dim=2).flatten(1, 2)

    def both_states(
        self, batch: HistoryBatch, next_BT: Tensor, routings: list[Routing] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T, D) the state at each v, and at the e that follows it, that of the item `next_BT`.

        What follows a place inside a history is its next item, whatever `next_BT` says.
        """
        last_B1 = (batch.lengths_B - 1).clamp_min(0)[:, None]
        rows_B1 = next_BT.gather(1, last_B1).clamp_min(0)
        tokens_BSD = self.tokens(batch)
        last_B1D = self.id_tokens(self.symbols_NL[rows_B1])
        tokens_BSD = torch.cat([tokens_BSD, torch.zeros_like(last_B1D)], dim=1)
        places_B1D = (2 * batch.lengths_B)[:, None, None].expand_as(last_B1D)
        tokens_BSD = tokens_BSD.scatter(1, places_B1D, last_B1D.to(tokens_BSD.dtype))
        states_BSD = self.encoder(self.dropout(tokens_BSD), routings)
        return states_BSD[:, 1::2], states_BSD[:, 2::2]

    # ------------------------------------------------------------------ training

    def loss(self, batch: HistoryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats per target: of its codes, and of its vector given them."""
        batch = batch.last(self.max_length)
        assert batch.targets_BT is not None
        real = batch.targets_BT >= 0
        routings: list[Routing] = []
        written_BTD, given_BTD = self.both_states(batch, batch.targets_BT, routings)
        targets_P, seen_PS = batch.targets_BT[real], seen_so_far(batch)[real]
        sparse, parts = self.loss_at(written_BTD[real], targets_P, seen_PS)
        vectors_ND = self.inputs.vectors_ND
        dense, dense_parts = self.dense.loss(given_BTD[real], vectors_ND, targets_P, seen_PS)
        loss = sparse + self.config.dense_loss_weight * dense
        places_S = torch.arange(2 * batch.items_BT.shape[1] + 1, device=real.device)
        real_BS = places_S <= 2 * batch.lengths_B[:, None]
        return self.balanced(loss, parts | dense_parts, routings, real_BS)

    # ------------------------------------------------------------------ comparison

    def dense_states(self, batch: HistoryBatch, symbols_BWL: Tensor) -> Tensor:
        """(B, W, D) the unit vector predicted after each history for each of W given IDs."""
        batch = batch.last(self.max_length)
        memory = self.encoder.remember(self.dropout(self.tokens(batch)))
        e_BWD = self.id_tokens(symbols_BWL)
        return self.dense.users(self.encoder.extend(e_BWD, memory, 2 * batch.lengths_B))

    def dense_items(self) -> Tensor:
        """(N, D) unit vectors of all items; kept until a weight changes."""
        return self.dense.table(self.inputs.vectors_ND)
