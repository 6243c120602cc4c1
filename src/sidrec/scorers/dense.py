"""Dense: next-item retrieval from item vectors, with or without an ID embedding beside them.

An item is its projected vector (text, collaborative, …) plus, by default, a learnt ID embedding;
the same representation is read in the history and scored as a target. Items added after training
start at the mean embedding of their neighbours. Items that stand in the catalogue without events
are only ever negatives of the softmax and sink: recall on them is 0 on Beauty.

Source:   UniSRec (arXiv:2206.05941) and the text tower of EnsRec (arXiv:2512.17820); the dense
          head of LIGER (arXiv:2411.18814). Exact softmax over the catalogue at every position.
Differs:  a learnt bias on items of the history (`RepeatBias`); one linear projection of frozen
          vectors instead of a mixture-of-experts adaptor.
Cost:     O(P N D + N V D) a step for P target positions and vectors of width V. Answering: the
          table once, then O(T D^2 + N D) a request.
Shapes:   B requests, T history length, D width, N items, P target positions, V vector width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.errors import ConfigError, DataError
from sidrec.item_inputs import ItemInputs
from sidrec.kept import Kept
from sidrec.transformer import (
    CausalTransformer,
    FastDropout,
    RepeatBias,
    distinct,
    full_softmax_loss,
    last_states,
    seen_so_far,
)
from sidrec.types import CatalogueContext, Floats, HistoryBatch


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """Settings of `Dense`."""

    width: int = 128
    """D, the width of item representations and states."""
    num_layers: int = 1
    """Transformer blocks over the history."""
    num_heads: int = 2
    """Attention heads."""
    hidden_multiplier: int = 2
    """Width of the feed-forward layer, as a multiple of D."""
    dropout: float = 0.3
    """Inside the blocks, on attention and both branches."""
    input_dropout: float = 0.5
    """On the item representations of the history."""
    item_embedding: bool = True
    """Add a learnt embedding per item to its projected vector; off is the text-only model."""
    max_length: int = 50
    """Longest history read; older events are cut."""
    seed: int = 0
    """Of the initial weights."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ConfigError(
                f"dense.width must be a multiple of num_heads, got {self.width} and "
                f"{self.num_heads}"
            )


class Dense(nn.Module):
    """Trainable scorer; `training.train` fits it through `loss`."""

    config_class: ClassVar[type] = DenseConfig

    def __init__(self, vectors_ND: Floats, config: DenseConfig) -> None:
        super().__init__()
        self.config = config
        self.max_length = config.max_length
        self.inputs = ItemInputs(vectors_ND)
        num_items, vector_width = vectors_ND.shape
        self.project = nn.Linear(vector_width, config.width, bias=False)
        nn.init.normal_(self.project.weight, std=0.05 * vector_width**-0.5)
        self.items = nn.Embedding(num_items, config.width) if config.item_embedding else None
        if self.items is not None:
            nn.init.normal_(self.items.weight, std=0.02)
        self.repeat_bias = RepeatBias()
        self.dropout = FastDropout(config.input_dropout)
        self.encoder = CausalTransformer(
            width=config.width,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            hidden=config.hidden_multiplier * config.width,
            dropout=config.dropout,
            max_length=config.max_length,
        )
        self._kept: Kept[Tensor] = Kept()

    @classmethod
    def build(cls, context: CatalogueContext, config: DenseConfig) -> Self:
        """An untrained model over the vectors of `context`, initialised by `config.seed`."""
        if context.vectors is None:
            raise DataError("dense needs item vectors, got none; add an [embeddings] section")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return cls(context.vectors.vectors, config)

    def item_table(self) -> Tensor:
        """(N, D) representation of every item."""
        table_ND = self.project(self.inputs.vectors_ND)
        return table_ND if self.items is None else table_ND + self.items.weight

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; forgets the kept table, since fused optimisers leave no trace."""
        self._kept.forget()
        return super().train(mode)

    def served_table(self) -> Tensor:
        """(N, D) float32 `item_table`; kept until a weight changes."""
        learnt = () if self.items is None else (self.items.weight,)
        read = (self.inputs.vectors_ND, self.project.weight, *learnt)
        return self._kept.of(read, lambda: self.item_table().float())

    def inputs_of(self, batch: HistoryBatch, table_ND: Tensor) -> Tensor:
        """(B, T, D) what the encoder reads."""
        return F.embedding(batch.items_BT.clamp_min(0), table_ND) * self.config.width**0.5

    def states(self, batch: HistoryBatch, table_ND: Tensor) -> Tensor:
        """(B, T, D) one state a position."""
        return self.encoder(self.dropout(self.inputs_of(batch, table_ND)))

    def loss(self, batch: HistoryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats per target over the whole catalogue."""
        batch = batch.last(self.max_length)
        assert batch.targets_BT is not None
        table_ND = self.item_table()
        real = batch.targets_BT >= 0
        loss = full_softmax_loss(
            self.states(batch, table_ND)[real],
            table_ND,
            batch.targets_BT[real],
            seen_so_far(batch)[real],
            self.repeat_bias(),
        )
        return loss, {"item_nats": loss.detach()}

    @torch.inference_mode()
    def scores(self, batch: HistoryBatch) -> Tensor:
        """(B, N) logits of the next item."""
        batch = batch.last(self.max_length)
        if self.training:
            table_ND = self.item_table().float()
            states_BD = last_states(self.states(batch, table_ND), batch.lengths_B)
        else:
            table_ND = self.served_table()
            states_BD = self.encoder.last(self.inputs_of(batch, table_ND), batch.lengths_B)
        return self.repeat_bias.add(states_BD.float() @ table_ND.T, distinct(batch))
