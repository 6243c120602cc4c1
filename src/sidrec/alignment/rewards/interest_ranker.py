"""A small ranker with target attention, and its training: what the learnt rewards share.

    interest(c) = sum over history items h of a(h, c) · h,    a = MLP([h, c, h∘c]) + recency(h)
    logit(c)    = MLP([interest, c, interest∘c, log popularity, times in history, log length])

An item is its projected vector plus a learnt embedding. Attention weights are not normalised, so
that a strong interest stays strong. Popularity is how often an item was taken in the contexts that
are learnt from. While learning, users are dealt into folds, and a context counts over the other
folds alone: what was taken would else be known by its own count.

Source:   Deep Interest Network, Zhou et al. 2018 (arXiv:1706.06978), eq. 3; the combination of
          item vectors and embeddings as in `scorers.dense`.
Differs:  GELU for Dice; no user profile; recency, popularity and repeats as features; embeddings
          are regularised by dropout and weight decay.
Cost:     O(S X T H D) a step.
Shapes:   S slates, X candidates of a slate, T history length, D width, H hidden width, N items,
          P pairs of a context and an item, R contexts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.alignment.values import AlignmentContext, Preferences
from sidrec.errors import ConfigError
from sidrec.item_inputs import ItemInputs
from sidrec.processes import choose_device
from sidrec.transformer import FastDropout
from sidrec.types import PAD, Bools, Floats, Histories, HistoryBatch, Ints

NUM_FOLDS = 5
SLATE_WIDTH = 16  # shown lists longer than this are cut into several slates
LOGIT_RANGE = 10.0
"""Logits are kept within ± this; an ID without an item gets the lower end."""


@dataclass(frozen=True, kw_only=True)
class InterestConfig:
    """Settings of the network and its training."""

    weight: float = 1.0
    """Factor of this reward in a mixture."""
    width: int = 32
    """D, the width of item representations and hidden layers."""
    dropout: float = 0.3
    """On item representations."""
    max_length: int = 20
    """Last events of a history that are read."""
    epochs: int = 20
    """Most passes over the contexts; the one that is best on held-out users is kept."""
    patience: int = 3
    """Passes without a better one after which training stops."""
    max_seconds: float = 120.0
    """Most wall time for training; runs that reach it differ as their clocks do."""
    batch_slates: int = 128
    """S, slates of a step."""
    learning_rate: float = 5e-3
    """Of AdamW."""
    weight_decay: float = 0.1
    """Of AdamW."""
    held_out_share: float = 0.1
    """Share of users that are kept out to choose the epoch, to calibrate and to report."""
    num_negatives: int = 4
    """Negatives drawn for each positive, where they are drawn."""
    device: str = "cpu"
    """Where to train: cpu, cuda or auto. Scoring follows the rollouts."""

    def __post_init__(self) -> None:
        for name in ("width", "max_length", "epochs", "patience", "batch_slates", "num_negatives"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} of a learnt reward must be at least 1, got {value}")


class InterestRanker(nn.Module):
    """Logit of an item after a history."""

    popularity_FN: Tensor
    """(1 + NUM_FOLDS, N) log1p of how often each item was taken: by all, then outside each fold."""

    def __init__(self, vectors_ND: Floats, counts_FN: Floats, config: InterestConfig) -> None:
        super().__init__()
        self.config = config
        width, hidden = config.width, config.width // 2
        self.inputs = ItemInputs(vectors_ND)
        vector_width = vectors_ND.shape[1]
        self.project = nn.Linear(vector_width, width, bias=False)
        nn.init.normal_(self.project.weight, std=vector_width**-0.5)
        self.items = nn.Embedding(len(vectors_ND), width)
        nn.init.normal_(self.items.weight, std=0.02)
        self.register_buffer("popularity_FN", torch.from_numpy(np.log1p(counts_FN)))
        self.dropout = FastDropout(config.dropout)
        self.past = nn.Linear(width, hidden)
        self.candidate = nn.Linear(width, hidden, bias=False)
        self.product = nn.Linear(width, hidden, bias=False)
        self.attention = nn.Linear(hidden, 1)
        self.recency = nn.Parameter(torch.zeros(config.max_length))
        self.head = nn.Sequential(
            nn.Linear(3 * width + 3, 2 * width), nn.GELU(), nn.Linear(2 * width, 1)
        )

    def forward(
        self, batch: HistoryBatch, rows_SX: Tensor, folds_S: Tensor | None = None
    ) -> Tensor:
        """(S, X) logits, any value where a row is below 0; popularity by fold while learning."""
        batch, rows_SX = batch.last(self.config.max_length), rows_SX.clamp_min(0)
        past_ST, T = batch.items_BT, batch.items_BT.shape[1]
        past_STD, candidate_SXD = self.represent(past_ST), self.represent(rows_SX)
        product_SXTD = candidate_SXD[:, :, None] * past_STD[:, None]
        hidden_SXTD = self.past(past_STD)[:, None] + self.candidate(candidate_SXD)[:, :, None]
        scores_SXT = self.attention(F.gelu(hidden_SXTD + self.product(product_SXTD)))[..., 0]
        age_ST = batch.lengths_B[:, None] - 1 - torch.arange(T, device=past_ST.device)
        scores_SXT = scores_SXT + self.recency[age_ST.clamp_min(0)][:, None]
        real_S1T = (past_ST >= 0)[:, None]
        interest_SXD = (scores_SXT * real_S1T) @ past_STD / self.config.max_length**0.5
        folds_S1 = 0 if folds_S is None else folds_S[:, None]
        popular_SX = self.popularity_FN[folds_S1, rows_SX]
        times_SX = ((rows_SX[:, :, None] == past_ST[:, None]) & real_S1T).sum(2).float()
        length_SX = batch.lengths_B.float().log1p()[:, None].expand_as(times_SX)
        numbers_SX3 = torch.stack([popular_SX, times_SX, length_SX], dim=2)
        products_SXD = interest_SXD * candidate_SXD
        parts = [interest_SXD, candidate_SXD, products_SXD, numbers_SX3]
        return self.head(torch.cat(parts, dim=2))[..., 0]

    def represent(self, rows: Tensor) -> Tensor:
        """(..., D) items by row; a row below 0 is read as 0."""
        rows = rows.clamp_min(0)
        return self.dropout(self.project(self.inputs.vectors_ND[rows]) + self.items(rows))


@dataclass(frozen=True, eq=False)
class Slates:
    """Candidates of contexts, and which of them were taken."""

    contexts_S: Ints
    rows_SX: Ints
    """−1 fills a slate."""
    taken_SX: Bools


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits, taken, real), each (S, X), to a mean in nats."""


def pointwise(logits_SX: Tensor, taken_SX: Tensor, real_SX: Tensor) -> Tensor:
    """Mean −log P(taken or left) of every candidate, P(taken) = σ(logit)."""
    return F.binary_cross_entropy_with_logits(logits_SX[real_SX], taken_SX[real_SX].float())


def pairwise(logits_SX: Tensor, taken_SX: Tensor, real_SX: Tensor) -> Tensor:
    """Mean −log σ(logit of a taken − logit of a left one) over the pairs inside a slate."""
    pairs_SXX = taken_SX[:, :, None] & (real_SX & ~taken_SX)[:, None]
    return F.softplus(logits_SX[:, None] - logits_SX[:, :, None])[pairs_SXX].mean()


def shown_slates(contexts: Preferences, random: np.random.Generator) -> Slates:
    """Every positive and negative once, in random order, SLATE_WIDTH at most in a slate."""
    positives, negatives = contexts.positives, contexts.negatives
    R = np.arange(len(contexts))
    contexts_C = np.concatenate([np.repeat(R, positives.lengths), np.repeat(R, negatives.lengths)])
    rows_C = np.concatenate([positives.items_E, negatives.items_E])
    taken_C = np.arange(len(rows_C)) < len(positives.items_E)
    order = np.lexsort((random.random(len(rows_C)), contexts_C))
    contexts_C, rows_C, taken_C = contexts_C[order], rows_C[order], taken_C[order]
    places_C = np.arange(len(rows_C)) - np.searchsorted(contexts_C, contexts_C)
    columns_C = places_C % SLATE_WIDTH
    slates_C = np.cumsum(columns_C == 0) - 1
    shape = (int(slates_C[-1]) + 1 if len(rows_C) else 0, SLATE_WIDTH)
    rows_SX, taken_SX = np.full(shape, PAD), np.zeros(shape, dtype=bool)
    rows_SX[slates_C, columns_C], taken_SX[slates_C, columns_C] = rows_C, taken_C
    return Slates(contexts_C[columns_C == 0], rows_SX, taken_SX)


def paired_slates(contexts: Preferences, num: int, random: np.random.Generator) -> Slates:
    """Each positive that has negatives, first, and `num` of them drawn with replacement."""
    contexts_S = np.repeat(np.arange(len(contexts)), contexts.positives.lengths)
    has_S = contexts.negatives.lengths[contexts_S] > 0
    contexts_S, taken_S = contexts_S[has_S], contexts.positives.items_E[has_S]
    lengths_S1 = contexts.negatives.lengths[contexts_S][:, None]
    drawn_SM = (random.random((len(contexts_S), num)) * lengths_S1).astype(np.int64)
    starts_S1 = contexts.negatives.offsets[contexts_S][:, None]
    return _first_taken(contexts_S, taken_S, contexts.negatives.items_E[starts_S1 + drawn_SM])


def sampled_slates(
    contexts: Preferences,
    counts_N: Ints,
    num: int,
    popularity_share: float,
    random: np.random.Generator,
) -> Slates:
    """Each positive, first, and `num` items of the catalogue.

    Each of them is drawn by training count with `popularity_share`, else uniformly; one that is
    the positive itself is left out.
    """
    contexts_S = np.repeat(np.arange(len(contexts)), contexts.positives.lengths)
    taken_S = contexts.positives.items_E
    shape = (len(taken_S), num)
    by_count = random.choice(len(counts_N), shape, p=counts_N / counts_N.sum())
    drawn_SM = np.where(
        random.random(shape) < popularity_share,
        by_count,
        random.integers(len(counts_N), size=shape),
    )
    return _first_taken(contexts_S, taken_S, np.where(drawn_SM == taken_S[:, None], PAD, drawn_SM))


def _first_taken(contexts_S: Ints, taken_S: Ints, left_SM: Ints) -> Slates:
    rows_SX = np.concatenate([taken_S[:, None], left_SM], axis=1)
    taken_SX = np.zeros(rows_SX.shape, dtype=bool)
    taken_SX[:, 0] = True
    return Slates(contexts_S, rows_SX, taken_SX)


def folds_of(contexts: Preferences) -> Ints:
    """(R,) the fold of each context, from 1; one user's contexts are in one fold."""
    users_R, R = contexts.users_R, np.arange(len(contexts))
    return 1 + np.where(users_R < 0, R, users_R) % NUM_FOLDS


def new_network(
    context: AlignmentContext, learnt: Preferences, config: InterestConfig
) -> InterestRanker:
    """An untrained network, seeded by the context, that knows what was taken in `learnt`."""
    num_items = len(context.items)
    folds_E = np.repeat(folds_of(learnt), learnt.positives.lengths)
    counts_FN = np.zeros((1 + NUM_FOLDS, num_items), dtype=np.float32)
    np.add.at(counts_FN, (folds_E, learnt.positives.items_E), 1)
    counts_FN[0] = counts_FN.sum(axis=0)
    counts_FN[1:] = (counts_FN[0] - counts_FN[1:]) * (NUM_FOLDS / (NUM_FOLDS - 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        return InterestRanker(context.vectors.vectors, counts_FN, config)


@dataclass(frozen=True)
class Training:
    """How the training of a network went."""

    epochs: int
    """Passes done."""
    best_epoch: int
    """The pass, from 1, whose weights were kept."""
    held_out_nats: tuple[float, ...]
    """Mean loss on held-out users after each pass."""
    seconds: float


def fit(
    network: InterestRanker,
    learnt: Preferences,
    slates_of: Callable[[int], Slates],
    held: Preferences,
    held_slates: Slates,
    loss_of: Loss,
    seed: int,
) -> Training:
    """Train in place by AdamW; the network ends, in evaluation mode, with its best weights.

    `slates_of(epoch)` are the slates of a pass. Randomness depends on `seed` alone.
    """
    config, device = network.config, choose_device(network.config.device)
    network.to(device)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    folds_R = folds_of(learnt)
    started, losses = time.perf_counter(), []
    best: tuple[float, int, dict[str, Any]] = (np.inf, 0, deepcopy(network.state_dict()))
    epoch, late = 0, False
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        while epoch < config.epochs and not late and epoch - best[1] < config.patience:
            slates = slates_of(epoch)
            random = np.random.default_rng([seed, epoch])
            order = random.permutation(len(slates.contexts_S))
            network.train()
            for start in range(0, len(order), config.batch_slates):
                rows = order[start : start + config.batch_slates]
                loss = _loss(network, learnt.histories, folds_R, slates, rows, loss_of)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                late = time.perf_counter() - started > config.max_seconds
                if late:
                    break
            epoch += 1
            losses.append(_held_out(network, held.histories, held_slates, loss_of))
            if losses[-1] < best[0]:
                best = (losses[-1], epoch, deepcopy(network.state_dict()))
    network.load_state_dict(best[2])
    network.eval().requires_grad_(False)
    return Training(epoch, best[1], tuple(losses), time.perf_counter() - started)


@torch.no_grad()
def slate_logits(network: InterestRanker, histories: Histories, slates: Slates) -> Floats:
    """(S, X) logits in evaluation mode; any value at fillers."""
    network.eval()
    device, parts = next(network.parameters()).device, []
    for start in range(0, len(slates.contexts_S), network.config.batch_slates):
        rows = np.arange(start, min(start + network.config.batch_slates, len(slates.contexts_S)))
        batch, rows_SX = _inputs(network, histories, slates, rows, device)
        logits_SX = network(batch, rows_SX).cpu().numpy()
        parts.append(np.pad(logits_SX, ((0, 0), (0, slates.rows_SX.shape[1] - logits_SX.shape[1]))))
    return np.concatenate(parts) if parts else np.zeros(slates.rows_SX.shape, dtype=np.float32)


def _inputs(
    network: InterestRanker, histories: Histories, slates: Slates, rows: Ints, device: torch.device
) -> tuple[HistoryBatch, Tensor]:
    """Histories, and candidates without the columns that only fill."""
    contexts_S, length = slates.contexts_S[rows], network.config.max_length
    batch = HistoryBatch.from_histories(histories, contexts_S, max_length=length)
    rows_SX = slates.rows_SX[rows]
    used = rows_SX.shape[1] - int((rows_SX[:, ::-1] >= 0).any(axis=0).argmax())
    return batch.to(device), torch.from_numpy(rows_SX[:, :used].copy()).to(device)


def _loss(
    network: InterestRanker,
    histories: Histories,
    folds_R: Ints,
    slates: Slates,
    rows: Ints,
    loss_of: Loss,
) -> Tensor:
    device = next(network.parameters()).device
    batch, rows_SX = _inputs(network, histories, slates, rows, device)
    taken_SX = torch.from_numpy(slates.taken_SX[rows, : rows_SX.shape[1]]).to(device)
    folds_S = torch.from_numpy(folds_R[slates.contexts_S[rows]]).to(device)
    logits_SX = network(batch, rows_SX, folds_S)
    return loss_of(logits_SX, taken_SX, rows_SX >= 0)


@torch.no_grad()
def _held_out(network: InterestRanker, histories: Histories, held: Slates, loss_of: Loss) -> float:
    logits_SX = torch.from_numpy(slate_logits(network, histories, held))
    real_SX = torch.from_numpy(held.rows_SX >= 0)
    return float(loss_of(logits_SX, torch.from_numpy(held.taken_SX), real_SX))
