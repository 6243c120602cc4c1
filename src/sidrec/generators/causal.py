"""Causal: a transformer over items whose state writes the next semantic ID, code by code.

The input of an item is its ID embedding + its projected vector + the embeddings of its codes. A
causal transformer turns a history into one state a position; a small depth decoder writes the L
codes of the next item from that state and the codes so far. All positions of a history train in
one packed pass, and a history is encoded once however wide the beam is. At level l, with state h
and prefix c_1..c_{l-1}, the depth decoder computes

    (shift, gate) = sum over j of table_lj[c_j] + hashed_l[c_1..c_{l-1}]
    y      = h * (1 + gate) + MLP_l(norm(h + shift))
    logits = y · E_lᵀ + bias_l

where `E_l` are the code embeddings that the input reads too (tied), started as projections of the
mean residual vectors of the codes. The gate lets a prefix ask its own question of the state: with
two items under it, any linear function of h can tell them apart.

Source:   the task of TIGER (arXiv:2305.05065); temporal then depth as in RQ-Transformer
          (arXiv:2203.01941); gating as FiLM (arXiv:1709.07871); hierarchical softmax over the
          tree of IDs (Morin & Bengio 2005) where `legal_softmax`.
Differs:  positions are items, not codes: L times shorter. A softmax over items trained beside it
          (`item_loss_weight`) shapes the state; generation does not use it.
Cost:     O(T^2 D + P (L D^2 + N D)) a step; a beam keeps only its codes.
Shapes:   B requests, T history length, D width, L levels, V symbols of a level, W beams,
          P targets, N items, K given IDs, H depth hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.errors import ConfigError, DataError
from sidrec.transformer import (
    BLOCK_ROWS,
    CausalTransformer,
    FastDropout,
    full_softmax_loss,
    last_states,
)
from sidrec.types import CatalogueContext, Floats, HistoryBatch, Ints, SemanticIds

PREFIX_SCALE = 8.0
"""Prefix tables move this much faster than their learning rate says; they start near zero."""
HASH_FACTOR = 1_000_003


@dataclass(frozen=True, kw_only=True)
class CausalConfig:
    """Settings of `Causal`."""

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
    """On the item representations of the history."""
    depth_hidden: int = 256
    """Hidden width of the depth decoder."""
    depth_dropout: float = 0.2
    """On that hidden layer."""
    num_prefix_buckets: int = 8192
    """Rows of the hashed table of whole prefixes, from the third level on; 0 for none."""
    item_embedding: bool = True
    """Add a learnt embedding per item to its vector and codes."""
    item_loss_weight: float = 1.0
    """Weight of the item softmax that shapes the state; 0 trains on codes alone."""
    distil_weight: float = 0.5
    """Share of the code loss whose target is what the item softmax believes, summed over the items
    under each code, instead of the one item that came next; 0 turns it off."""
    legal_softmax: bool = False
    """Train each level over the codes that continue some ID of the catalogue, as decoding does;
    false trains over the whole codebook, so that the model learns which IDs exist."""
    max_length: int = 50
    """Longest history read; older events are cut."""
    seed: int = 0
    """Of the initial weights."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ConfigError(
                f"causal.width must be a multiple of num_heads, got {self.width} and "
                f"{self.num_heads}"
            )


class State(NamedTuple):
    """What a beam needs: the encoded histories, and the symbols of each beam so far."""

    states_B1D: Tensor
    symbols_BWl: Tensor | None


class Causal(nn.Module):
    """The default generator; `training.train` fits it through `loss`."""

    config_class: ClassVar[type] = CausalConfig
    symbols_NL: Tensor
    vectors_ND: Tensor

    def __init__(self, ids: SemanticIds, vectors_ND: Floats, config: CausalConfig) -> None:
        super().__init__()
        self.config = config
        self.num_codes = ids.num_codes
        self.max_length = config.max_length
        width, num_levels = config.width, ids.num_levels
        symbols_NL, self.widths = symbols_of(ids)
        self.register_buffer("symbols_NL", torch.from_numpy(symbols_NL), persistent=False)
        centred_ND = torch.from_numpy(vectors_ND - vectors_ND.mean(0))
        centred_ND = centred_ND / centred_ND.std().clamp_min(1e-6)
        self.register_buffer("vectors_ND", centred_ND, persistent=False)
        self.project = nn.Linear(vectors_ND.shape[1], width, bias=False)
        nn.init.normal_(self.project.weight, std=vectors_ND.shape[1] ** -0.5)
        self.items = nn.Embedding(len(ids), width) if config.item_embedding else None
        if self.items is not None:
            nn.init.normal_(self.items.weight, std=0.02)
        self.dropout = FastDropout(config.input_dropout)
        self.encoder = CausalTransformer(
            width=width,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            hidden=config.hidden_multiplier * width,
            dropout=config.dropout,
            max_length=config.max_length,
        )
        centroids = code_centroids(symbols_NL, self.widths, centred_ND.numpy())
        self.codes = nn.ParameterList(
            nn.Parameter(code_table(c, self.project.weight.detach())) for c in centroids
        )
        self.levels = nn.ModuleList(
            DepthLevel(level, self.widths, config) for level in range(num_levels)
        )
        for level in range(num_levels):
            prefix_N, legal_MV, below_MS = prefixes(symbols_NL, level, self.widths[level])
            self.register_buffer(f"prefix{level}_N", prefix_N, persistent=False)
            if config.legal_softmax:
                self.register_buffer(f"legal{level}_MV", legal_MV, persistent=False)
            if config.distil_weight and level:
                self.register_buffer(f"below{level}_MS", below_MS, persistent=False)

    @classmethod
    def build(cls, context: CatalogueContext, config: CausalConfig) -> Self:
        """An untrained model, initialised by `config.seed`. Needs vectors and semantic IDs."""
        if context.vectors is None or context.semantic_ids is None:
            raise DataError(
                "causal needs item vectors and semantic IDs, got a catalogue without them; "
                "embed and tokenize the items first"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return cls(context.semantic_ids, context.vectors.vectors, config)

    # ------------------------------------------------------------------ history

    def states(self, batch: HistoryBatch) -> Tensor:
        """(B, T, D) one state a position; T is at most `max_length`."""
        rows_BT = batch.items_BT.clamp_min(0)
        x_BTD = self.project(self.vectors_ND[rows_BT])
        learnt_BTD = sum(
            F.embedding(self.symbols_NL[rows_BT, level], table)
            for level, table in enumerate(self.codes)
        )
        if self.items is not None:
            learnt_BTD = learnt_BTD + self.items(rows_BT)
        return self.encoder(self.dropout(x_BTD + learnt_BTD * self.config.width**0.5))

    def history_states(self, batch: HistoryBatch) -> Tensor:
        """(B, D) one state a history."""
        batch = batch.last(self.max_length)
        return last_states(self.states(batch), batch.lengths_B)

    def item_table(self) -> Tensor:
        """(N, D) items as targets of the item softmax."""
        table_ND = self.project(self.vectors_ND) * self.config.width**-0.5
        return table_ND if self.items is None else table_ND + self.items.weight

    # ------------------------------------------------------------------ training

    def loss(self, batch: HistoryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats per target: of its codes, plus the weighted item softmax."""
        batch = batch.last(self.max_length)
        assert batch.targets_BT is not None
        real = batch.targets_BT >= 0
        states_PD, targets_P = self.states(batch)[real], batch.targets_BT[real]
        logits_L = self.path_logits(states_PD, self.symbols_NL[targets_P], targets_P)
        nats_L = self.nats(logits_L, self.symbols_NL[targets_P]).mean(0)
        parts = {f"level{level}_nats": nats.detach() for level, nats in enumerate(nats_L)}
        loss = nats_L.sum()
        if self.config.item_loss_weight:
            table_ND = self.item_table()
            item_nats = full_softmax_loss(states_PD, table_ND, targets_P)
            if self.config.distil_weight:
                beliefs_L = self.beliefs(states_PD.detach(), table_ND.detach(), targets_P)
                soft = sum(F.cross_entropy(x, q) for x, q in zip(logits_L, beliefs_L, strict=True))
                loss = loss + self.config.distil_weight * (soft - loss)
            parts["item_nats"] = item_nats.detach()
            loss = loss + self.config.item_loss_weight * item_nats
        return loss, parts

    @torch.inference_mode()
    def item_scores(self, batch: HistoryBatch) -> Tensor:
        """(B, N) logits of the item softmax; for comparison, generation does not use them."""
        return self.history_states(batch).float() @ self.item_table().float().T

    def path_logits(
        self, states_PD: Tensor, symbols_PL: Tensor, targets_P: Tensor | None = None
    ) -> list[Tensor]:
        """L float32 tensors (P, V): logits of each level along the path of given IDs.

        With the items themselves, `targets_P`, and `legal_softmax`: illegal codes are far below.
        """
        logits_L: list[Tensor] = []
        for level in range(len(self.codes)):
            logits_PV = self.logits(level, states_PD, symbols_PL[..., :level]).float()
            if targets_P is not None and self.config.legal_softmax:
                prefix_P = getattr(self, f"prefix{level}_N")[targets_P]
                logits_PV = logits_PV + getattr(self, f"legal{level}_MV")[prefix_P]
            logits_L.append(logits_PV)
        return logits_L

    def nats(self, logits_L: list[Tensor], symbols_PL: Tensor) -> Tensor:
        """(P, L) nats of each code of given IDs; 0 after the end of a shorter ID."""
        nats: list[Tensor] = []
        ended_P = torch.zeros_like(symbols_PL[..., 0], dtype=torch.bool)
        for level, logits_PV in enumerate(logits_L):
            picked_P = logits_PV.gather(-1, symbols_PL[..., level, None])[..., 0]
            nats.append((logits_PV.logsumexp(-1) - picked_P).masked_fill(ended_P, 0.0))
            if self.widths[level] > self.num_codes[level]:
                ended_P = ended_P | (symbols_PL[..., level] == self.num_codes[level])
        return torch.stack(nats, dim=-1)

    @torch.no_grad()
    def beliefs(self, states_PD: Tensor, table_ND: Tensor, targets_P: Tensor) -> list[Tensor]:
        """L tensors (P, V): what the item softmax believes of each code, given the target's prefix.

        The probability of a code is the sum over the items under it.
        """
        low = torch.is_autocast_enabled(states_PD.device.type)
        dtype = torch.get_autocast_dtype(states_PD.device.type) if low else torch.float32
        states_PD, table_ND = states_PD.to(dtype), table_ND.to(dtype)
        first_NV = F.one_hot(self.symbols_NL[:, 0], self.widths[0]).to(dtype)
        beliefs_L = [
            states_PD.new_zeros(len(targets_P), v, dtype=torch.float32) for v in self.widths
        ]
        for start in range(0, len(targets_P), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            logits_PN = states_PD[block] @ table_ND.T
            odds_PN = logits_PN.sub_(logits_PN.amax(1, keepdim=True)).exp_()
            beliefs_L[0][block] = (odds_PN @ first_NV).float()
            for level in range(1, len(self.widths)):
                prefix_P = getattr(self, f"prefix{level}_N")[targets_P[block]]
                rows_PS = getattr(self, f"below{level}_MS")[prefix_P]
                odds_PS = odds_PN.gather(1, rows_PS.clamp_min(0)).float().add_(1e-9)
                odds_PS.masked_fill_(rows_PS < 0, 0.0)
                symbols_PS = self.symbols_NL[:, level][rows_PS.clamp_min(0)]
                beliefs_L[level][block].scatter_add_(1, symbols_PS, odds_PS)
        return [q.div_(q.sum(1, keepdim=True)) for q in beliefs_L]

    # ------------------------------------------------------------------ generation

    def logits(self, level: int, states: Tensor, symbols: Tensor) -> Tensor:
        """(…, V) logits of one level for states (…, D) and symbols so far (…, level)."""
        depth: DepthLevel = self.levels[level]  # type: ignore[assignment]
        return F.linear(depth(states, symbols), self.codes[level], depth.bias)

    def log_probs(self, batch: HistoryBatch, codes_BKL: Tensor) -> Tensor:
        """(B, K) natural log-probability of whole IDs, softmax over the whole codebook."""
        ends_L = torch.tensor(self.num_codes, device=codes_BKL.device)
        symbols_BKL = torch.where(codes_BKL < 0, ends_L, codes_BKL)
        states_BD = self.history_states(batch)
        states_BKD = states_BD[:, None].expand(-1, codes_BKL.shape[1], -1)
        return -self.nats(self.path_logits(states_BKD, symbols_BKL), symbols_BKL).sum(-1)

    def start(self, batch: HistoryBatch) -> State:
        """Encode each history once."""
        return State(self.history_states(batch)[:, None], None)

    def step(
        self, state: State, codes_BW: Tensor | None, parents_BW: Tensor | None
    ) -> tuple[Tensor, State]:
        """Logits (B, W, V) of the next level; see `contracts.Generator.step`."""
        if codes_BW is None or parents_BW is None:
            nothing = self.symbols_NL.new_empty(len(state.states_B1D), 1, 0)
            return self.logits(0, state.states_B1D, nothing), state
        symbols_BWl = codes_BW[..., None]
        if state.symbols_BWl is not None:
            places = parents_BW[..., None].expand(-1, -1, state.symbols_BWl.shape[-1])
            symbols_BWl = torch.cat([state.symbols_BWl.gather(1, places), symbols_BWl], dim=-1)
        logits_BWV = self.logits(symbols_BWl.shape[-1], state.states_B1D, symbols_BWl)
        return logits_BWV, State(state.states_B1D, symbols_BWl)


class DepthLevel(nn.Module):
    """The depth decoder of one level: (state, prefix) -> the vector that meets the code table."""

    def __init__(self, level: int, widths: tuple[int, ...], config: CausalConfig) -> None:
        super().__init__()
        width = config.width
        self.prefix = nn.ModuleList(nn.Embedding(widths[j], 2 * width) for j in range(level))
        self.num_buckets = config.num_prefix_buckets if level >= 2 else 0
        self.hashed = nn.Embedding(self.num_buckets, 2 * width) if self.num_buckets else None
        for table in self.prefix:
            nn.init.normal_(table.weight, std=0.02)
        if self.hashed is not None:
            nn.init.zeros_(self.hashed.weight)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, config.depth_hidden)
        self.dropout = FastDropout(config.depth_dropout)
        self.down = nn.Linear(config.depth_hidden, width)
        nn.init.normal_(self.down.weight, std=0.01)
        nn.init.zeros_(self.down.bias)
        self.bias = nn.Parameter(torch.zeros(widths[level]))

    def forward(self, states: Tensor, symbols: Tensor) -> Tensor:
        """(…, D) for states (…, D) that broadcast against symbols (…, l) of the prefix."""
        if not len(self.prefix):
            return states + self.down(self.dropout(F.gelu(self.up(self.norm(states)))))
        moved = torch.stack([t(symbols[..., j]) for j, t in enumerate(self.prefix)]).sum(0)
        if self.hashed is not None:
            key = symbols[..., 0]
            for j in range(1, len(self.prefix)):
                key = key * HASH_FACTOR + symbols[..., j]
            moved = moved + self.hashed(key % self.num_buckets)
        shift, gate = (moved * PREFIX_SCALE).chunk(2, dim=-1)
        hidden = self.dropout(F.gelu(self.up(self.norm(states + shift))))
        return torch.addcmul(states, states, gate) + self.down(hidden)


def symbols_of(ids: SemanticIds) -> tuple[Ints, tuple[int, ...]]:
    """Codes with −1 replaced by an end symbol, and the symbols of each level.

    A level where an ID may have ended has one symbol more than codes, `num_codes[l]`.
    """
    ended_L = [bool((ids.codes[:, level] < 0).any()) for level in range(ids.num_levels)]
    widths = tuple(v + ended for v, ended in zip(ids.num_codes, ended_L, strict=True))
    return np.where(ids.codes < 0, np.array(ids.num_codes), ids.codes), widths


def code_centroids(symbols_NL: Ints, widths: tuple[int, ...], vectors_ND: Floats) -> list[Floats]:
    """L arrays (V, D): mean vector of the items with each code, less the means of levels before."""
    residuals_ND, centroids = vectors_ND, []
    for level, size in enumerate(widths):
        sums_VD = np.zeros((size, vectors_ND.shape[1]), dtype=np.float32)
        np.add.at(sums_VD, symbols_NL[:, level], residuals_ND)
        counts_V = np.bincount(symbols_NL[:, level], minlength=size)
        means_VD = sums_VD / np.maximum(counts_V, 1)[:, None].astype(np.float32)
        residuals_ND = residuals_ND - means_VD[symbols_NL[:, level]]
        centroids.append(means_VD)
    return centroids


def code_table(centroids_VD: Floats, projection: Tensor) -> Tensor:
    """Centroids in the width of the model, with the spread of a fresh embedding."""
    table = torch.from_numpy(centroids_VD) @ projection.T
    return table * (0.02 / table.std().clamp_min(1e-6))


def prefixes(symbols_NL: Ints, level: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The M distinct prefixes of `level` codes: (prefix row of each item, legal codes, items).

    Row (N,) of each item's prefix; per prefix (M, V) 0 for legal symbols and −1e4 for others; per
    prefix (M, S) the rows of its items, −1 after the last.
    """
    num_items = len(symbols_NL)
    prefix_N = np.zeros(num_items, dtype=np.int64)
    if level:
        prefix_N = np.unique(symbols_NL[:, :level], axis=0, return_inverse=True)[1].reshape(-1)
    counts_M = np.bincount(prefix_N)
    legal_MV = torch.full((len(counts_M), width), -1e4, dtype=torch.bfloat16)
    legal_MV[torch.from_numpy(prefix_N), torch.from_numpy(symbols_NL[:, level])] = 0.0
    order_N = np.argsort(prefix_N, kind="stable")
    places_N = np.arange(num_items) - np.repeat(np.cumsum(counts_M) - counts_M, counts_M)
    below_MS = np.full((len(counts_M), int(counts_M.max()) if level else 0), -1, dtype=np.int64)
    if level:
        below_MS[prefix_N[order_N], places_N] = order_N
    return torch.from_numpy(prefix_N), legal_MV, torch.from_numpy(below_MS)
