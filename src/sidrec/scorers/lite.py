"""Lite-LLM4Rec's decoding-free head: item vectors in, one score of every item out, no search.

An item is its frozen vector (text, …) through a small adapter; a causal transformer reads the
adapted items of a history; one product of its last state with a head scores all N items:

    v_i = item encoder(text of i), once;  x_i = adapter(v_i);  h = transformer(x_1 … x_T)[last]
    logits = W h + b   ("free")   or   logits_i = h · x_i   ("tied")

Answering costs one pass over the history, whatever N is, where a generator searches level by level.
Adapted items are kept as a table while the weights stay as they are. With the tied head an item
that is added after training is scored by its vector; the free head has no row for it, nor a row
that learnt anything for an item without training events: those score −inf, never reached.

It stands between two scorers of this folder. Tied, with `adapter_hidden = 0`, it is `dense` without
its item embedding; an ID embedding added to both sides would make it `dense` as that is. Free, it
is an ID model on the output side: `sasrec` with W in place of the tied table and item vectors in
place of ID embeddings as its input, so compare it with that.

Source:   Lite-LLM4Rec, "Rethinking Large Language Model Architectures for Sequential
          Recommendations" (arXiv:2402.09543): item LLM, recommendation LLM, projection head.
Differs:  the item encoder is the run's frozen embedding, not a language model that is tuned; the
          recommendation LLM is our causal stack, trained from scratch; the adapter has one hidden
          layer; loss at every position, not the last alone; a learnt bias on items of the history
          (`RepeatBias`); −inf above for items that training never saw. The tied head has no bias.
Cost:     O(P N D + N (V H + H D)) a training step; a request O(T^2 D + N D).
Shapes:   B requests, T history length, D width, N items, P target positions, V width of the item
          vectors, H hidden width of the adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.errors import ConfigError, DataError
from sidrec.item_inputs import ItemInputs
from sidrec.linear import linear
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

Head = Literal["free", "tied"]


@dataclass(frozen=True, kw_only=True)
class LiteConfig:
    """Settings of `Lite`."""

    head: Head = "tied"
    """tied: items are scored by the representation that the history reads, so that added ones can
    be recommended; free: learnt weights and a bias for each item with training events."""
    adapter_hidden: int = 256
    """H, hidden width of the adapter from item vectors to D; 0 is one linear map."""
    width: int = 128
    """D, the width of adapted items and states."""
    num_layers: int = 1
    """Transformer blocks over the history."""
    num_heads: int = 2
    """Attention heads."""
    hidden_multiplier: int = 2
    """Width of the feed-forward layer, as a multiple of D."""
    dropout: float = 0.3
    """Inside the blocks, on attention and both branches."""
    input_dropout: float = 0.5
    """On the adapted items of the history."""
    max_length: int = 50
    """Longest history read; older events are cut."""
    seed: int = 0
    """Of the initial weights."""

    def __post_init__(self) -> None:
        if self.head not in get_args(Head):
            raise ConfigError(f"lite.head must be one of {list(get_args(Head))}, got {self.head!r}")
        if self.adapter_hidden < 0:
            raise ConfigError(
                f"lite.adapter_hidden must be at least 0, got {self.adapter_hidden}; 0 is one "
                "linear map"
            )
        if self.width % self.num_heads:
            raise ConfigError(
                f"lite.width must be a multiple of num_heads, got {self.width} and {self.num_heads}"
            )


class Lite(nn.Module):
    """Trainable scorer; `training.train` fits it through `loss`."""

    config_class: ClassVar[type] = LiteConfig
    known_N: Tensor
    """Free head only: items with training events, the ones it can answer with."""

    def __init__(self, context: CatalogueContext, config: LiteConfig) -> None:
        super().__init__()
        assert context.vectors is not None
        self.config = config
        self.max_length = config.max_length
        self.inputs = ItemInputs(context.vectors.vectors)
        self.adapter = adapter(context.vectors.vectors.shape[1], config)
        self.head = nn.Linear(config.width, context.num_items) if config.head == "free" else None
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
            known_N = torch.zeros(context.num_items, dtype=torch.bool)
            known_N[torch.from_numpy(context.train.items_E)] = True
            # A catalogue built for serving has no events: saved or grown weights bring theirs.
            self.register_buffer("known_N", known_N)
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
        self._cached_table: tuple[Any, Any] = (None, None)

    @classmethod
    def build(cls, context: CatalogueContext, config: LiteConfig) -> Self:
        """An untrained model over the vectors of `context`, initialised by `config.seed`."""
        if context.vectors is None:
            raise DataError("lite needs item vectors, got none; add an [embedding] section")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return cls(context, config)

    def item_table(self) -> Tensor:
        """(N, D) every item through the adapter."""
        return self.adapter(self.inputs.vectors_ND)

    def served_table(self) -> Tensor:
        """(N, D) float32 `item_table`, without gradients; kept until a weight changes."""
        sources = [*self.adapter.parameters(), self.inputs.vectors_ND]
        key = [(t.data_ptr(), t._version) for t in sources]
        if self._cached_table[0] != key:
            with torch.no_grad():
                self._cached_table = key, self.item_table().float()
        return self._cached_table[1]

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; forgets the kept table, since fused optimisers leave no trace."""
        self._cached_table = (None, None)
        return super().train(mode)

    def states(self, batch: HistoryBatch, table_ND: Tensor) -> Tensor:
        """(B, T, D) one state a position."""
        x_BTD = F.embedding(batch.items_BT.clamp_min(0), table_ND) * self.config.width**0.5
        return self.encoder(self.dropout(x_BTD))

    def loss(self, batch: HistoryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats per target over the whole catalogue."""
        batch = batch.last(self.max_length)
        assert batch.targets_BT is not None
        real = batch.targets_BT >= 0
        table_ND = self.item_table()
        states_PD = self.states(batch, table_ND)[real]
        if self.head is not None:  # b rides on an input of 1
            table_ND = torch.cat([self.head.weight, self.head.bias[:, None]], dim=1)
            states_PD = torch.cat([states_PD, torch.ones_like(states_PD[:, :1])], dim=1)
        loss = full_softmax_loss(
            states_PD,
            table_ND,
            batch.targets_BT[real],
            seen_so_far(batch)[real],
            self.repeat_bias(),
        )
        return loss, {"item_nats": loss.detach()}

    @torch.inference_mode()
    def scores(self, batch: HistoryBatch) -> Tensor:
        """(B, N) logits of the next item, from one pass over the history."""
        batch = batch.last(self.max_length)
        table_ND = self.served_table()
        states_BD = last_states(self.states(batch, table_ND), batch.lengths_B).float()
        if self.head is None:
            logits_BN = linear(states_BD, table_ND)
        else:
            logits_BN = linear(states_BD, self.head.weight.float(), self.head.bias.float())
            logits_BN = logits_BN.masked_fill(~self.known_N, -torch.inf)
        return self.repeat_bias.add(logits_BN, distinct(batch))


def adapter(vector_width: int, config: LiteConfig) -> nn.Module:
    """Item vectors (..., V) to (..., D), at the scale of a fresh embedding (deviation 0.05)."""
    hidden = config.adapter_hidden
    last = nn.Linear(hidden or vector_width, config.width, bias=False)
    nn.init.normal_(last.weight, std=0.05 * (hidden or vector_width) ** -0.5)
    if not hidden:
        return last
    first = nn.Linear(vector_width, hidden)
    nn.init.normal_(first.weight, std=vector_width**-0.5)
    nn.init.zeros_(first.bias)
    return nn.Sequential(first, nn.GELU(), last)
