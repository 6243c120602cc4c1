"""A dense head: states and items as unit vectors of one space, compared by their cosine.

    u = normalised W h                  of a state h
    g(x) = normalised MLP(x) + A x      of an item with frozen vector x, standardised
    logit(j) = cos(u, g(x_j)) / T + b [j in the history]
    L_dense = - log exp(logit(+)) / sum over j in M exp(logit(j))

M are the items that have training events (`trained`), or the targets of the batch (`batch`). Items
without events are nobody's negatives: they do not sink, and since g reads nothing but vectors, an
item can be found by its text alone before anyone has bought it.

Source:   the dense heads of LIGER (arXiv:2411.18814) and COBRA (arXiv:2503.02453).
Differs:  exact softmax over every trained item by default, where COBRA takes the items of the
          batch; a learnt bias b on items of the history (`RepeatBias`); a linear path A x beside
          the MLP.
Cost:     a step O(M V H + P M D): every item of M is encoded anew. Serving: the table once.
Shapes:   P states, D width of the space, N items, M negatives, V vector width, H hidden width,
          S seen items; … any shape.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.errors import ConfigError
from sidrec.kept import Kept
from sidrec.transformer import FastDropout, RepeatBias, full_softmax_loss
from sidrec.types import Ints

Negatives = Literal["trained", "batch"]
LEAST_TEMPERATURE = 0.01
"""A learnt temperature never falls below it."""


class DenseHead(nn.Module):
    """Projection of states, encoder of items, temperature, and their contrastive loss."""

    rows_M: Tensor

    def __init__(
        self,
        state_width: int,
        vector_width: int,
        num_items: int,
        *,
        width: int,
        hidden: int,
        dropout: float,
        temperature: float,
        learn_temperature: bool,
        negatives: Negatives,
    ) -> None:
        super().__init__()
        self.negatives: Negatives = negatives
        self.project = nn.Linear(state_width, width, bias=False)
        self.direct = nn.Linear(vector_width, width, bias=False)
        self.up = nn.Linear(vector_width, hidden)
        self.dropout = FastDropout(dropout)
        self.down = nn.Linear(hidden, width, bias=False)
        for linear in (self.project, self.direct, self.down):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        self.log_temperature = nn.Parameter(
            torch.tensor([math.log(temperature)]), requires_grad=learn_temperature
        )
        self.repeat_bias = RepeatBias()
        self.register_buffer("rows_M", torch.arange(num_items), persistent=False)
        self._kept: Kept[Tensor] = Kept()

    def contrast(self, train_counts_N: Ints) -> None:
        """Let the negatives be the items with training events; all items where none has any."""
        if train_counts_N.any():
            self.rows_M = torch.from_numpy(np.flatnonzero(train_counts_N)).to(self.rows_M.device)

    def temperature(self) -> Tensor:
        """(1,) T."""
        return self.log_temperature.clamp_min(math.log(LEAST_TEMPERATURE)).exp()

    def users(self, states: Tensor) -> Tensor:
        """(…, D) states (…, state width) as unit vectors."""
        return F.normalize(self.project(states).float(), dim=-1)

    def items(self, vectors: Tensor) -> Tensor:
        """(…, D) items with vectors (…, V) as unit vectors."""
        hidden = self.dropout(F.gelu(self.up(vectors)))
        return F.normalize((self.direct(vectors) + self.down(hidden)).float(), dim=-1)

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; forgets the kept table, since fused optimisers leave no trace."""
        self._kept.forget()
        return super().train(mode)

    def table(self, vectors_ND: Tensor) -> Tensor:
        """(N, D) `items` of the whole catalogue without gradient; kept until something changes."""
        return self._kept.of((vectors_ND, *self.parameters()), lambda: self.items(vectors_ND))

    def loss(
        self, states_PD: Tensor, vectors_ND: Tensor, targets_P: Tensor, seen_PS: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats a target, and the mean cosine of two different negatives: near 1 when item
        vectors have collapsed.
        """
        rows_M = targets_P if self.negatives == "batch" else torch.cat([self.rows_M, targets_P])
        rows_M = rows_M.unique()
        items_MD = self.items(vectors_ND[rows_M])
        nats = full_softmax_loss(
            self.users(states_PD) / self.temperature(),
            items_MD,
            torch.searchsorted(rows_M, targets_P),
            places_in(rows_M, seen_PS),
            self.repeat_bias(),
        )
        parts = {"dense_nats": nats.detach(), "mean_cosine": mean_cosine(items_MD.detach())}
        return nats, parts

    def logits(self, users_BD: Tensor, items_MD: Tensor, rows_M: Tensor, seen_BS: Tensor) -> Tensor:
        """(B, M) nats: every state against the same items `rows_M`, ascending catalogue rows."""
        logits_BM = users_BD @ items_MD.T / self.temperature()
        if not len(rows_M):
            return logits_BM
        return self.repeat_bias.add(logits_BM, places_in(rows_M, seen_BS))

    def logits_of(self, users: Tensor, items: Tensor, rows: Tensor, seen: Tensor) -> Tensor:
        """(…) nats: states (…, D) against their own items (…, D), catalogue rows (…)."""
        repeated = (rows[..., None] == seen).any(-1)
        return (users * items).sum(-1) / self.temperature() + repeated * self.repeat_bias()


def places_in(rows_M: Tensor, rows: Tensor) -> Tensor:
    """Place of each of `rows` in the ascending `rows_M`; −1 where it is not there."""
    if not len(rows_M):
        return torch.full_like(rows, -1)
    places = torch.searchsorted(rows_M, rows).clamp_max(len(rows_M) - 1)
    return places.masked_fill(rows_M[places] != rows, -1)


def mean_cosine(items_MD: Tensor) -> Tensor:
    """Mean cosine of all pairs of two different unit vectors; 0 for one."""
    num = len(items_MD)
    return (items_MD.sum(0).square().sum() - num) / max(num * (num - 1), 1)


def check_dense_settings(method: str, *, temperature: float, hidden: int) -> None:
    """ConfigError where a head of these settings cannot be built."""
    if not temperature >= LEAST_TEMPERATURE:
        raise ConfigError(
            f"{method}.temperature must be at least {LEAST_TEMPERATURE}, got {temperature}; "
            "cosines lie in [-1, 1]"
        )
    if hidden < 1:
        raise ConfigError(f"{method}.dense_hidden must be at least 1, got {hidden}")
