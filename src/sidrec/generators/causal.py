"""Causal: a transformer over items whose state writes the next semantic ID, code by code.

The input of an item is its ID embedding + its projected vector + the embeddings of its codes. A
causal transformer turns a history into one state a position; a small depth decoder writes the L
codes of the next item from that state and the codes so far. All positions of a history train in
one packed pass, and a history is encoded once however wide the beam is. At level l, with state h
and prefix c_1..c_{l-1}, the depth decoder computes

    y        = h + MLP_l(norm(h + sum over j of table_lj[c_j]))
    logit(c) = y · E_l[c] + bias_l[c]  +  h · n[c_1..c] + log m[c_1..c]

`E_l` are the code embeddings that the input reads too (tied), started as projections of the mean
residual vectors of the codes. The second part exists for prefixes of the catalogue: `n` is the
mean representation of the m items under a prefix. It tells siblings apart by what they hold, so an
item that is added after training, with a vector, can be written. Items that the history
already holds count in `n` and `m` with weight e^b, b learnt (`RepeatBias`): where nobody takes an
item twice, they leave the tree.

Source:   the task of TIGER (arXiv:2305.05065); temporal then depth as in RQ-Transformer
          (arXiv:2203.01941); node vectors as in hierarchical softmax (Morin & Bengio 2005), here
          tied to the items below.
Differs:  positions are items, not codes: L times shorter. A softmax over items trained beside it
          (`item_loss_weight`) shapes state and item representations; generation does not run it.
Cost:     a step O(T^2 D + P (L D^2 + N D)). Decoding a level costs O(W V D), or one product of the
          state with all M nodes where that is cheaper; 4 M V bytes a level for the tree.
Shapes:   B requests, T history length, D width, L levels, V symbols of a level, W beams,
          P targets, N items, M nodes of a level, K given IDs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.decoding.children import Children
from sidrec.errors import ConfigError, DataError
from sidrec.generators.code_tree import CodeTree
from sidrec.generators.depth_decoder import DepthLevel, code_centroids, code_table, symbols_of
from sidrec.generators.prefix_loss import pairwise_nats, pointwise_nats, weighted
from sidrec.item_inputs import ItemInputs
from sidrec.kept import Kept
from sidrec.mixture_of_experts import Routing, balance_loss, require_experts, require_positions
from sidrec.transformer import (
    CausalTransformer,
    FastDropout,
    RepeatBias,
    distinct,
    full_softmax_loss,
    last_states,
    seen_so_far,
)
from sidrec.types import CatalogueContext, Floats, HistoryBatch, SemanticIds

READ, FETCH = 7, 32
"""What it costs to read a row of a table in sequence, and to fetch one, in products with a row that
is at hand; measured on one core."""


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
    num_experts: int = 1
    """E, feed-forwards that a router chooses from (`mixture_of_experts`); 1 is the plain layer."""
    experts_per_token: int = 2
    """k, experts that each position takes; each has 1/k of the feed-forward's hidden width."""
    balance_weight: float = 0.01
    """Weight of the loss that spreads positions over the experts."""
    dropout: float = 0.3
    """Inside the blocks, on attention and both branches."""
    input_dropout: float = 0.5
    """On the item representations of the history."""
    depth_hidden: int = 256
    """Hidden width of the depth decoder."""
    depth_dropout: float = 0.5
    """On that hidden layer."""
    item_embedding: bool = True
    """Add a learnt embedding per item to its vector and codes."""
    item_loss_weight: float = 1.0
    """Weight of the item softmax that shapes the state; 0 trains on codes alone."""
    node_vectors: bool = True
    """Compare the state with the mean item under each continuation, beside the code tables."""
    legal_softmax: bool = True
    """Train each level over the codes that continue some ID of the catalogue, as decoding does;
    false trains over the whole codebook, so that the model learns which IDs exist."""
    prefix_loss: Literal["none", "pointwise", "pairwise"] = "none"
    """Also train the prefixes that a beam has to keep (APAO): each by itself, or against prefixes
    of drawn items; see `prefix_loss`."""
    prefix_weight: float = 0.3
    """beta, weight of that loss."""
    prefix_focus: float = 0.0
    """eta, how much more the worst prefix length counts than by its own loss."""
    prefix_temperature: float = 1.0
    """tau, divides the log-probabilities that are compared."""
    prefix_negatives: int = 100
    """Items drawn for each target in the pairwise form; the cost of a step grows with it."""
    max_length: int = 50
    """Longest history read; older events are cut."""
    seed: int = 0
    """Of the initial weights."""

    def __post_init__(self) -> None:
        method = type(self).__name__.removesuffix("Config").lower()
        if self.width % self.num_heads:
            raise ConfigError(
                f"{method}.width must be a multiple of num_heads, got {self.width} and "
                f"{self.num_heads}"
            )
        for name in ("prefix_weight", "prefix_focus"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"{method}.{name} must not be negative, got {value}")
        for name in ("prefix_temperature", "prefix_negatives"):
            if (value := getattr(self, name)) <= 0:
                raise ConfigError(f"{method}.{name} must be above 0, got {value}")
        require_experts(
            method,
            self.num_experts,
            self.experts_per_token,
            self.hidden_multiplier * self.width,
            self.balance_weight,
        )


class Seen(NamedTuple):
    """Distinct items of each history, and how they meet its state."""

    rows: Tensor
    """(B, S) catalogue rows, −1 for none."""
    products: Tensor
    """(B, S) state · item."""


class State(NamedTuple):
    """What a beam needs: the encoded histories, and the symbols and node of each beam so far."""

    states_B1D: Tensor
    seen: Seen
    symbols_BWl: Tensor | None
    nodes_BW: Tensor
    means_L: list[Tensor]
    """Mean item of each node; see `CodeTree.means`."""


class Tables(NamedTuple):
    """Of the whole catalogue, computed once for many answers."""

    items_ND: Tensor
    """Items as targets."""
    inputs_ND: Tensor
    """Items as the encoder reads them."""
    nodes_L: list[Tensor]
    """(M + 1, D) mean target of the items below each node."""


class Causal(nn.Module):
    """The default generator; `training.train` fits it through `loss`."""

    config_class: ClassVar[type] = CausalConfig
    tokens_per_item: ClassVar[int] = 1
    """Places that an item takes in the encoder; its state is at the last of them."""
    symbols_NL: Tensor

    def __init__(self, ids: SemanticIds, vectors_ND: Floats, config: CausalConfig) -> None:
        super().__init__()
        self.config = config
        self.num_codes = ids.num_codes
        self.max_length = config.max_length
        width, num_levels = config.width, ids.num_levels
        symbols_NL, self.widths = symbols_of(ids)
        self.register_buffer("symbols_NL", torch.from_numpy(symbols_NL), persistent=False)
        self.inputs = ItemInputs(vectors_ND)
        self.project = nn.Linear(vectors_ND.shape[1], width, bias=False)
        self.start_projection(self.project.weight)
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
            max_length=self.num_positions(config.max_length),
            num_experts=config.num_experts,
            experts_per_token=config.experts_per_token,
        )
        self.starts = self.part_starts(config, num_levels)
        parts = [
            range(start, end)
            for start, end in zip(self.starts, (*self.starts[1:], num_levels), strict=True)
        ]
        vectors_ND = self.inputs.vectors_ND.numpy()
        centroids = [
            centroids_VD
            for part in parts
            for centroids_VD in code_centroids(
                symbols_NL[:, part], tuple(self.widths[level] for level in part), vectors_ND
            )
        ]
        self.codes = nn.ParameterList(
            nn.Parameter(code_table(c, self.project.weight.detach())) for c in centroids
        )
        self.levels = nn.ModuleList(
            DepthLevel(level, self.widths, config, part.start) for part in parts for level in part
        )
        self.tree = CodeTree(symbols_NL, self.widths, self.starts)
        self.repeat_bias = RepeatBias()
        self._tables: Kept[Tables] = Kept()

    @classmethod
    def build(cls, context: CatalogueContext, config: CausalConfig) -> Self:
        """An untrained model, initialised by `config.seed`. Needs vectors and semantic IDs."""
        if context.vectors is None or context.semantic_ids is None:
            raise DataError(
                f"{cls.__name__.lower()} needs item vectors and semantic IDs, got a catalogue "
                "without them; embed and tokenize the items first"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return cls(context.semantic_ids, context.vectors.vectors, config)

    @staticmethod
    def start_projection(weight_DF: Tensor) -> None:
        """Fill what vectors are projected by; code tables start from it."""
        nn.init.normal_(weight_DF, std=weight_DF.shape[1] ** -0.5)

    @classmethod
    def part_starts(cls, config: Any, num_levels: int) -> tuple[int, ...]:
        """First level of each part of an ID; a part is decoded from the history alone."""
        return (0,)

    # ------------------------------------------------------------------ history

    @staticmethod
    def num_positions(max_length: int) -> int:
        """Places that the longest history takes in the encoder."""
        return max_length

    def tokens(self, batch: HistoryBatch) -> Tensor:
        """(B, T * tokens_per_item, D) what the encoder reads."""
        rows_BT = batch.items_BT.clamp_min(0)
        if not self.training and not torch.is_grad_enabled():
            return F.embedding(rows_BT, self.served_tables().inputs_ND)
        return self.inputs_of(rows_BT)

    def inputs_of(self, rows: Tensor) -> Tensor:
        """(…, D) items as the encoder reads them."""
        learnt = sum(
            F.embedding(self.symbols_NL[rows, level], table)
            for level, table in enumerate(self.codes)
        )
        if self.items is not None:
            learnt = learnt + self.items(rows)
        return self.project(self.inputs.vectors_ND[rows]) + learnt * self.config.width**0.5

    def states(self, batch: HistoryBatch, routings: list[Routing] | None = None) -> Tensor:
        """(B, T, D) one state an item; T is at most `max_length`. See `CausalTransformer`."""
        states_BSD = self.encoder(self.dropout(self.tokens(batch)), routings)
        return states_BSD[:, self.tokens_per_item - 1 :: self.tokens_per_item]

    def history_states(self, batch: HistoryBatch) -> Tensor:
        """(B, D) one state a history."""
        batch = batch.last(self.max_length)
        if self.training:
            return last_states(self.states(batch), batch.lengths_B)
        return self.encoder.last(self.tokens(batch), self.tokens_per_item * batch.lengths_B)

    def item_table(self) -> Tensor:
        """(N, D) items as targets of the item softmax."""
        table_ND = self.project(self.inputs.vectors_ND) * self.config.width**-0.5
        return table_ND if self.items is None else table_ND + self.items.weight

    # ------------------------------------------------------------------ training

    def loss(self, batch: HistoryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats per target: of its codes, plus the weighted item softmax and balance."""
        batch = batch.last(self.max_length)
        assert batch.targets_BT is not None
        real = batch.targets_BT >= 0
        routings: list[Routing] = []
        states_PD = self.states(batch, routings)[real]
        losses = self.loss_at(states_PD, batch.targets_BT[real], seen_so_far(batch)[real])
        return self.balanced(*losses, routings, real)

    def balanced(
        self,
        loss: Tensor,
        parts: dict[str, Tensor],
        routings: list[Routing],
        real: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss with that of the experts' balance over the `real` places, where experts are."""
        if not routings:
            return loss, parts
        balance, shares = balance_loss(routings, real)
        return loss + self.config.balance_weight * balance, parts | shares

    def loss_at(
        self, states_PD: Tensor, targets_P: Tensor, seen_PS: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss` from the states before the targets, and the items seen until then, −1 for none."""
        table_ND = self.item_table()
        symbols_PL = self.symbols_NL[targets_P]
        parents_L = [self.tree.parents_of(level, targets_P) for level in range(len(self.codes))]
        nodes_L = self.tree.means(table_ND) if self.config.node_vectors else []
        seen = seen_of(states_PD, seen_PS, table_ND)
        nats_PL = self.trained_nats(states_PD, symbols_PL, parents_L, nodes_L, seen)
        nats_L = nats_PL.mean(0)
        parts = {f"level{level}_nats": nats.detach() for level, nats in enumerate(nats_L)}
        loss = nats_L.sum()
        if self.config.prefix_loss != "none":
            prefix_nats = self.prefix_nats(nats_PL, states_PD, targets_P, nodes_L, seen)
            parts["prefix_nats"] = prefix_nats.detach()
            loss = loss + self.config.prefix_weight * prefix_nats
        if self.config.item_loss_weight:
            item_nats = full_softmax_loss(
                states_PD, table_ND, targets_P, seen.rows, self.repeat_bias()
            )
            parts["item_nats"] = item_nats.detach()
            loss = loss + self.config.item_loss_weight * item_nats
        return loss, parts

    def trained_nats(
        self,
        states: Tensor,
        symbols: Tensor,
        parents_L: list[Tensor],
        nodes_L: list[Tensor],
        seen: Seen,
    ) -> Tensor:
        """(…, L) nats of each code of given IDs, over legal codes where training is."""
        logits_L = self.path_logits(states, symbols, parents_L, nodes_L, seen)
        if self.config.legal_softmax:
            logits_L = [
                x.masked_fill(~self.tree.legal(level, parents), -torch.inf)
                for level, (x, parents) in enumerate(zip(logits_L, parents_L, strict=True))
            ]
        return self.nats(logits_L, symbols)

    def prefix_nats(
        self,
        nats_PL: Tensor,
        states_PD: Tensor,
        targets_P: Tensor,
        nodes_L: list[Tensor],
        seen: Seen,
    ) -> Tensor:
        """The prefix-weighted loss of each part of an ID, times its levels, summed."""
        config, ends = self.config, (*self.starts[1:], len(self.codes))
        parts = [slice(start, end) for start, end in zip(self.starts, ends, strict=True)]
        if config.prefix_loss == "pointwise":
            losses = [pointwise_nats(nats_PL[:, p], config.prefix_temperature) for p in parts]
        else:
            drawn_PM = torch.randint(
                len(self.symbols_NL),
                (len(targets_P), config.prefix_negatives),
                device=targets_P.device,
            )
            parents_L = [  # (P, 1) where a part begins: its first level is computed once
                self.tree.parents_of(level, drawn_PM[:, :1] if level in self.starts else drawn_PM)
                for level in range(len(self.codes))
            ]
            drawn_PML = self.trained_nats(
                states_PD[:, None], self.symbols_NL[drawn_PM], parents_L, nodes_L, seen
            )
            same_PML = self.tree.share_prefix(targets_P[:, None], drawn_PM)
            counts_L = self.tree.num_prefixes().to(nats_PL.device)
            losses = [
                pairwise_nats(
                    nats_PL[:, p],
                    drawn_PML[..., p],
                    same_PML[..., p],
                    counts_L[p],
                    config.prefix_temperature,
                )
                for p in parts
            ]
        return torch.stack([len(x) * weighted(x, config.prefix_focus) for x in losses]).sum()

    def check_batches(self, num_positions: int) -> None:
        """ConfigError where batches of so many positions are too small for the experts."""
        require_positions(
            type(self).__name__.lower(),
            self.config.num_experts,
            self.config.experts_per_token,
            num_positions,
        )

    @torch.inference_mode()
    def item_scores(self, batch: HistoryBatch) -> Tensor:
        """(B, N) logits of the item softmax; for comparison, generation does not use them."""
        logits_BN = self.history_states(batch).float() @ self.item_table().float().T
        return self.repeat_bias.add(logits_BN, distinct(batch.last(self.max_length)))

    def path_logits(
        self,
        states_PD: Tensor,
        symbols_PL: Tensor,
        parents_L: list[Tensor],
        nodes_L: list[Tensor],
        seen: Seen,
    ) -> list[Tensor]:
        """L float32 tensors (P, V): logits of each level along the path of given IDs."""
        return [
            self.logits(level, states_PD, symbols_PL[..., :level], parents_L[level], nodes_L, seen)
            for level in range(len(self.codes))
        ]

    def nats(self, logits_L: list[Tensor], symbols_PL: Tensor) -> Tensor:
        """(P, L) nats of each code of given IDs; 0 after the end of a shorter ID."""
        nats: list[Tensor] = []
        ended_P = torch.zeros_like(symbols_PL[..., 0], dtype=torch.bool)
        for level, logits_PV in enumerate(logits_L):
            whole_PV = logits_PV.expand(*symbols_PL.shape[:-1], -1)
            picked_P = whole_PV.gather(-1, symbols_PL[..., level, None])[..., 0]
            nats.append((logits_PV.logsumexp(-1) - picked_P).masked_fill(ended_P, 0.0))
            if self.widths[level] > self.num_codes[level]:
                ended_P = ended_P | (symbols_PL[..., level] == self.num_codes[level])
        return torch.stack(nats, dim=-1)

    # ------------------------------------------------------------------ generation

    def logits(
        self,
        level: int,
        states: Tensor,
        symbols: Tensor,
        parents: Tensor,
        nodes_L: list[Tensor],
        seen: Seen,
        added: Tensor | None = None,
    ) -> Tensor:
        """(…, V) float32 logits of one level: states (…, D), symbols so far (…, level), and the
        node (…) of that prefix, −1 where the catalogue has none. `added`: see `DepthLevel`.
        """
        depth: DepthLevel = self.levels[level]  # type: ignore[assignment]
        logits = F.linear(depth(states, symbols, added), self.codes[level], depth.bias).float()
        logits = logits.expand(*parents.shape, -1)  # where a part begins, all beams share a row
        if not nodes_L:
            return logits
        nodes = self.tree.below(level, parents)
        met = dot_products(states, nodes_L[level], nodes)
        seen_below = self.seen_below(level, parents, seen, logits.shape[-1])
        return self.with_nodes(level, logits, nodes, met, seen_below)

    def seen_below(self, level: int, parents: Tensor, seen: Seen, num_symbols: int) -> Tensor:
        """(2, …, V) below each continuation, the number of seen items, and the sum of their
        products with the state.
        """
        rows, products = seen.rows.clamp_min(0), seen.products
        below, real = self.tree.parents_of(level, rows), seen.rows >= 0
        symbols_S = self.symbols_NL[rows, level]
        if parents.ndim == 2:  # (B, W) beams share the (B, S) items of their history
            below, real, products = below[:, None], real[:, None], products[:, None]
            symbols_S = symbols_S[:, None].expand(-1, parents.shape[1], -1)
        here = ((below == parents[..., None]) & real).float()
        both = torch.stack([here, here * products])
        zeros = products.new_zeros(*both.shape[:-1], num_symbols)
        return zeros.scatter_add(-1, symbols_S.expand_as(both), both)

    def with_nodes(
        self, level: int, logits: Tensor, nodes: Tensor, met: Tensor, seen_below: Tensor
    ) -> Tensor:
        """Logits of continuations plus what their nodes say: state · mean item, and their number.

        `met` are the products with the means over all items, `seen_below` (2, …) is to be left out.
        """
        counts, (num_seen, products) = self.tree.counts(level)[nodes], seen_below
        lost = -torch.expm1(self.repeat_bias())  # of a seen item: 1 - e^b
        rest = counts - lost * num_seen
        moved = (counts * met - lost * products) / rest.clamp_min(1e-3)
        met = torch.where(num_seen < counts, moved, met)  # all below seen: the mean stays
        return logits + met + rest.clamp_min(1e-6).log()

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; forgets the kept tables, since fused optimisers leave no trace."""
        self._tables.forget()
        return super().train(mode)

    def served_tables(self) -> Tables:
        """What answers are made from; kept until a weight changes."""

        def made() -> Tables:
            table_ND = self.item_table().float()
            nodes_L = self.tree.means(table_ND) if self.config.node_vectors else []
            rows_N = torch.arange(len(table_ND), device=table_ND.device)
            return Tables(table_ND, self.inputs_of(rows_N), nodes_L)

        learnt = () if self.items is None else (self.items.weight,)
        read = (self.inputs.vectors_ND, self.project.weight, *self.codes, *learnt)
        return self._tables.of(read, made)

    def log_probs(self, batch: HistoryBatch, codes_BKL: Tensor) -> Tensor:
        """(B, K) natural log-probability of whole IDs, softmax over the whole codebook."""
        ends_L = torch.tensor(self.num_codes, device=codes_BKL.device)
        symbols_BKL = torch.where(codes_BKL < 0, ends_L, codes_BKL)
        return -self.nats(self.along(batch, symbols_BKL)[0], symbols_BKL).sum(-1)

    def along(self, batch: HistoryBatch, symbols_BKL: Tensor) -> tuple[list[Tensor], Tensor]:
        """Logits and states along given IDs; see `contracts.Generator`.

        A state is that of the history plus the tables of the codes so far, as inputs read them.
        """
        parents_BK = torch.zeros_like(symbols_BKL[..., 0])
        parents_L = []
        for level in range(len(self.codes)):
            parents_L.append(parents_BK)
            parents_BK = self.tree.child(level, parents_BK, symbols_BKL[..., level])
        states_BD = self.history_states(batch)
        table_ND = self.item_table()
        nodes_L = self.tree.means(table_ND) if self.config.node_vectors else []
        seen = seen_of(states_BD, distinct(batch.last(self.max_length)), table_ND)
        logits_L = self.path_logits(states_BD[:, None], symbols_BKL, parents_L, nodes_L, seen)
        passed = [states_BD[:, None].expand(-1, symbols_BKL.shape[1], -1)]
        for level, table in enumerate(self.codes):
            scale = self.config.width**0.5
            passed.append(passed[-1] + scale * F.embedding(symbols_BKL[..., level], table))
        return logits_L, torch.stack(passed, dim=2)

    def start(self, batch: HistoryBatch) -> State:
        """Encode each history once."""
        states_BD = self.history_states(batch)
        tables = self.served_tables()
        seen = seen_of(states_BD, distinct(batch.last(self.max_length)), tables.items_ND)
        root_B1 = batch.lengths_B.new_zeros(len(states_BD), 1)
        return State(states_BD[:, None], seen, None, root_B1, tables.nodes_L)

    def step(
        self, state: State, codes_BW: Tensor | None, parents_BW: Tensor | None
    ) -> tuple[Tensor, State]:
        """Logits (B, W, V) of the next level; see `contracts.Generator.step`."""
        state, symbols_BWl = self.extended(state, codes_BW, parents_BW)
        logits_BWV = self.logits(
            symbols_BWl.shape[-1], state.states_B1D, symbols_BWl, state.nodes_BW,
            state.means_L, state.seen,
        )  # fmt: skip
        return logits_BWV, state

    def step_children(
        self, state: State, codes_BW: Tensor | None, parents_BW: Tensor | None, children: Children
    ) -> tuple[Tensor, State]:
        """Logits (B, P) of the beams' children alone; see `contracts.Generator`."""
        state, symbols_BWl = self.extended(state, codes_BW, parents_BW)
        return self.children_logits(state, symbols_BWl, children), state

    def children_logits(
        self,
        state: State,
        symbols_BWl: Tensor,
        children: Children,
        added: Tensor | None = None,
    ) -> Tensor:
        """(B, P) what `logits` gives for the children of beams, without looking at the rest."""
        level, states_B1D = symbols_BWl.shape[-1], state.states_B1D
        depth: DepthLevel = self.levels[level]  # type: ignore[assignment]
        moved_BWD = depth(states_B1D, symbols_BWl, added)
        logits_BWV = F.linear(moved_BWD, self.codes[level], depth.bias).float()
        logits_BWV = logits_BWV.expand(*state.nodes_BW.shape, -1)
        owners_BP, symbols_BP = children.owners_BP, children.symbols_BP
        places_BP = torch.add(symbols_BP, owners_BP, alpha=logits_BWV.shape[2])
        logits_BP = logits_BWV.flatten(1).gather(1, places_BP)
        if not state.means_L:
            return logits_BP
        nodes_BP = self.tree.child_of(level, state.nodes_BW.gather(1, owners_BP), symbols_BP)
        met_BP = dot_products(states_B1D, state.means_L[level], nodes_BP[:, None])[:, 0]
        seen_2BWV = self.seen_below(level, state.nodes_BW, state.seen, logits_BWV.shape[2])
        seen_2BP = seen_2BWV.flatten(2).gather(2, places_BP.expand(2, -1, -1))
        return self.with_nodes(level, logits_BP, nodes_BP, met_BP, seen_2BP)

    def extended(
        self, state: State, codes_BW: Tensor | None, parents_BW: Tensor | None
    ) -> tuple[State, Tensor]:
        """The state of the beams with these codes added, and all their symbols (B, W, level)."""
        if codes_BW is None or parents_BW is None:
            symbols_BWl, nodes_BW = state.symbols_BWl, state.nodes_BW
            if symbols_BWl is None:
                symbols_BWl = self.symbols_NL.new_empty(len(state.states_B1D), 1, 0)
        else:
            symbols_BWl = codes_BW[..., None]
            level = 0
            if state.symbols_BWl is not None:
                level = state.symbols_BWl.shape[-1]
                places = parents_BW[..., None].expand(-1, -1, level)
                symbols_BWl = torch.cat([state.symbols_BWl.gather(1, places), symbols_BWl], dim=-1)
            nodes_BW = self.tree.child(level, state.nodes_BW.gather(1, parents_BW), codes_BW)
        known = symbols_BWl if symbols_BWl.shape[-1] else None
        return state._replace(symbols_BWl=known, nodes_BW=nodes_BW), symbols_BWl


def seen_of(states_PD: Tensor, rows_PS: Tensor, table_ND: Tensor) -> Seen:
    """Seen items (P, S), −1 for none, and their products with the states."""
    items_PSD = F.embedding(rows_PS.clamp_min(0), table_ND)
    return Seen(rows_PS, (items_PSD @ states_PD[..., None])[..., 0].float())


def dot_products(states: Tensor, table_MD: Tensor, rows: Tensor) -> Tensor:
    """float32 `(table_MD[rows] * states[..., None, :]).sum(-1)`, by the cheaper of two ways.

    States (P, D) with rows (P, C), as in training, or (B, 1, D) with rows (B, W, C), as in search.
    Either the products with all M rows are made and the asked ones picked, or the rows come first.
    """
    per_state = rows.numel() // max(len(rows), 1)
    every = len(table_MD) * (READ + len(rows)) < FETCH * rows.numel()
    if states.ndim == 2 or (states.shape[1] == 1 and every):
        products = F.linear(states.reshape(len(rows), -1), table_MD)
        return products.gather(1, rows.reshape(len(rows), per_state)).view(rows.shape).float()
    return (F.embedding(rows, table_MD) @ states[..., None])[..., 0].float()
