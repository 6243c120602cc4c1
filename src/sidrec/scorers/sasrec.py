"""SASRec with the softmax over the whole catalogue: the bar every generator has to clear.

A causal transformer over item-ID embeddings; the score of item j is the state at the last event
times the (tied) embedding of j. Loss at every position, exact cross-entropy over all items.

Source:   Kang & McAuley 2018 (arXiv:1808.09781); full softmax and settings as in the re-runs of
          arXiv:2508.06450 (eSASRec) and arXiv:2508.14910 (SASRec++).
Differs:  a learnt bias on items of the history (`RepeatBias`); learnt bias per distance instead of
          absolute positions; pre-norm; GELU; no loss with one negative (the weak published row).
Cost:     O(P N D) a step for P target positions.
Shapes:   B requests, T history length, D width, N items, P target positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from sidrec.errors import ConfigError
from sidrec.transformer import (
    CausalTransformer,
    FastDropout,
    RepeatBias,
    distinct,
    full_softmax_loss,
    last_states,
    seen_so_far,
)
from sidrec.types import CatalogueContext, HistoryBatch


@dataclass(frozen=True, kw_only=True)
class SASRecConfig:
    """Settings of `SASRec`."""

    width: int = 128
    """D, the width of item embeddings and states."""
    num_layers: int = 1
    """Transformer blocks over the history."""
    num_heads: int = 2
    """Attention heads."""
    hidden_multiplier: int = 2
    """Width of the feed-forward layer, as a multiple of D."""
    dropout: float = 0.3
    """Inside the blocks, on attention and both branches."""
    input_dropout: float = 0.5
    """On the item embeddings of the history."""
    max_length: int = 50
    """Longest history read; older events are cut."""
    seed: int = 0
    """Of the initial weights."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ConfigError(
                f"sasrec.width must be a multiple of num_heads, got {self.width} and "
                f"{self.num_heads}"
            )


class SASRec(nn.Module):
    """Trainable scorer; `training.train` fits it through `loss`."""

    config_class: ClassVar[type] = SASRecConfig

    def __init__(self, num_items: int, config: SASRecConfig) -> None:
        super().__init__()
        self.config = config
        self.max_length = config.max_length
        self.items = nn.Embedding(num_items, config.width)
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

    @classmethod
    def build(cls, context: CatalogueContext, config: SASRecConfig) -> Self:
        """An untrained model for the catalogue of `context`, initialised by `config.seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return cls(context.num_items, config)

    def states(self, batch: HistoryBatch) -> Tensor:
        """(B, T, D) one state a position."""
        x_BTD = self.items(batch.items_BT.clamp_min(0)) * self.config.width**0.5
        return self.encoder(self.dropout(x_BTD))

    def loss(self, batch: HistoryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats per target over the whole catalogue."""
        batch = batch.last(self.max_length)
        assert batch.targets_BT is not None
        real = batch.targets_BT >= 0
        loss = full_softmax_loss(
            self.states(batch)[real],
            self.items.weight,
            batch.targets_BT[real],
            seen_so_far(batch)[real],
            self.repeat_bias(),
        )
        return loss, {"item_nats": loss.detach()}

    @torch.inference_mode()
    def scores(self, batch: HistoryBatch) -> Tensor:
        """(B, N) logits of the next item."""
        batch = batch.last(self.max_length)
        states_BD = last_states(self.states(batch), batch.lengths_B)
        return self.repeat_bias.add(states_BD.float() @ self.items.weight.T, distinct(batch))
