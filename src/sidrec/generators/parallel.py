"""Parallel: all codes of the next semantic ID at once, each by a head of its own.

A causal transformer over items gives one state s a position. Given s the L codes are independent:
head j turns s into the vector that the codes of book j meet, and an item scores by their sum:

    g_j(s)    = s + silu(W_j s + b_j)
    log p_j   = log softmax over codes c of book j of  e_jc · g_j(s)
    score(i)  = sum over j of log p_j(c_ij)  +  r if the history holds i
    loss      = −v log softmax over i of score(i) [target]  −  w sum over j of log p_j [its code]

So codes have no order, IDs may be long (16 to 64 codes of a product quantiser, tokenizer `opq`),
and nothing is decoded step by step: `search` sums L numbers for every item of the catalogue or,
above `exact_below` items, walks a graph of similar items (`decoding.parallel`).

Source:   RPG, arXiv:2506.05781: sections 3.1 (loss over all codes), 3.2 (score), 3.3 (graph).
Differs:  the paper trains the codes alone (v = 0, w = 1): each head is then right about its own
          code, but most code tuples are no item's. Ours trains the items there are
          (`item_loss_weight`) and keeps little of the other. The paper's logits are divided by
          tau = .03, so e and g must be of length 1 (`temperature`); ours are plain products. Its
          item input is the mean of its code embeddings; ours adds the projected vector and a learnt
          embedding (`input_vectors`, `item_embedding`). r, a learnt number for items of the history
          (`RepeatBias`), relative positions, dropouts, code embeddings started at projected mean
          vectors, and scoring every item where that takes milliseconds are ours. Residual heads
          are how we read "projection".
Cost:     a step O(T^2 D + P L (D^2 + V D)), and O(P N L) for the item softmax, with one block of
          (N, 32) scores alive. Search: see `decoding.parallel`.
Shapes:   B requests, T history length, D width, L levels, V symbols of the widest level, N items,
          P targets, K given IDs, W beams, S = L V + 1 columns of a table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.decoding.item_graph import item_graph
from sidrec.decoding.parallel import (
    Columns,
    ItemGraph,
    Question,
    Sharing,
    columns_of,
    exact_scores,
    exact_search,
    graph_search,
)
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.rules import Rules
from sidrec.errors import ConfigError, DataError
from sidrec.generators.causal import code_centroids, code_table, symbols_of
from sidrec.generators.item_softmax import item_softmax_loss
from sidrec.item_inputs import ItemInputs
from sidrec.transformer import (
    CausalTransformer,
    FastDropout,
    RepeatBias,
    distinct,
    last_states,
    seen_so_far,
)
from sidrec.types import Candidates, CatalogueContext, Floats, HistoryBatch, SemanticIds

REPEAT_TARGETS = 64
"""Targets a step that teach `RepeatBias` where nothing else asks for the item softmax."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Settings of `Parallel`."""

    width: int = 128
    """D, the width of item representations, states and code embeddings."""
    num_layers: int = 1
    """Transformer blocks over the history (RPG: 2)."""
    num_heads: int = 2
    """Attention heads."""
    hidden_multiplier: int = 2
    """Width of the feed-forward layer, as a multiple of D."""
    dropout: float = 0.3
    """Inside the blocks, on attention and both branches."""
    input_dropout: float = 0.5
    """On the item representations of the history."""
    head_dropout: float = 0.0
    """On what the heads add to the state."""
    temperature: float | None = None
    """tau: logits are cosines divided by it (RPG: 0.03). None: plain products of learnt scale."""
    input_vectors: bool = True
    """Add the projected item vector to the mean of its code embeddings; false as in the paper."""
    item_embedding: bool = True
    """Add a learnt embedding per item to that; false as in the paper."""
    code_loss_weight: float = 0.1
    """Weight of the loss over codes (RPG: 1, and nothing else); 0 trains on whole items alone."""
    item_loss_weight: float = 1.0
    """Weight of the softmax over the items of the catalogue; 0 as in the paper."""
    item_targets: int | None = None
    """Targets a step that the item softmax is worked out for, drawn at random; None: all."""
    exact_below: int = 200_000
    """Catalogues, or what a rule leaves of them, up to this many items are scored whole."""
    num_neighbours: int = 64
    """Edges of an item in the graph that larger ones are searched by."""
    search_steps: int = 4
    """Steps of that search."""
    search_beam: int = 64
    """Items whose neighbours a step looks at; never fewer than are asked for."""
    max_length: int = 50
    """Longest history read; older events are cut."""
    seed: int = 0
    """Of the initial weights, and of the items that a graph search starts from."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ConfigError(
                f"parallel.width must be a multiple of num_heads, got {self.width} and "
                f"{self.num_heads}"
            )
        for name in ("num_neighbours", "search_beam"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"parallel.{name} must be at least 1, got {value}")
        for name in ("exact_below", "search_steps", "code_loss_weight", "item_loss_weight"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"parallel.{name} must not be negative, got {value}")
        if self.temperature is not None and not self.temperature > 0:
            raise ConfigError(
                f"parallel.temperature must be above 0, got {self.temperature}; leave it out for "
                "plain products"
            )
        if self.item_targets is not None and self.item_targets < 1:
            raise ConfigError(
                f"parallel.item_targets must be at least 1, got {self.item_targets}; leave it out "
                "for all"
            )
        if not (self.code_loss_weight or self.item_loss_weight):
            raise ConfigError(
                "parallel needs code_loss_weight or item_loss_weight above 0, got both 0"
            )


class State(NamedTuple):
    """What a beam needs: the logits of all levels, and the level to come."""

    logits_BLV: Tensor
    level: int


class Parallel(nn.Module):
    """The generator without an order of codes; `training.train` fits it through `loss`."""

    config_class: ClassVar[type] = ParallelConfig
    independent_codes: ClassVar[bool] = True
    places_NL: Tensor
    """(N, L) int32 columns of each item's codes in a table (B, S)."""
    column_items_E: Tensor
    column_starts_S: Tensor
    absent_LV: Tensor
    """(L, V) bool: symbols beyond those of a level narrower than the widest."""

    def __init__(self, ids: SemanticIds, vectors_ND: Floats, config: ParallelConfig) -> None:
        super().__init__()
        self.config = config
        self.num_codes, self.max_length = ids.num_codes, config.max_length
        width = config.width
        symbols_NL, self.widths = symbols_of(ids)
        self.level_width = max(self.widths)
        """V, symbols of the widest level; every level has as many columns."""
        ends = [v if w > v else -1 for v, w in zip(ids.num_codes, self.widths, strict=True)]
        self.register_buffer("ends_L", torch.tensor(ends), persistent=False)
        symbols_V = torch.arange(self.level_width)
        absent_LV = symbols_V >= torch.tensor(self.widths)[:, None]
        self.register_buffer("absent_LV", absent_LV, persistent=False)
        places_NL = self.places(torch.from_numpy(ids.codes)).int()
        self.register_buffer("places_NL", places_NL, persistent=False)
        columns = columns_of(places_NL, len(self.widths) * self.level_width + 1)
        self.register_buffer("column_items_E", columns.items_E, persistent=False)
        self.register_buffer("column_starts_S", columns.starts_S, persistent=False)
        self.inputs = ItemInputs(vectors_ND)
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
        centroids = code_centroids(symbols_NL, self.widths, self.inputs.vectors_ND.numpy())
        self.codes = nn.ParameterList(
            nn.Parameter(code_table(c, self.project.weight.detach())) for c in centroids
        )
        self.head_weight = nn.Parameter(torch.randn(ids.num_levels, width, width) * 0.02)
        self.head_bias = nn.Parameter(torch.zeros(ids.num_levels, 1, width))
        self.head_dropout = FastDropout(config.head_dropout)
        self.repeat_bias = RepeatBias()
        self._kept: tuple[Any, ItemGraph | None] = (None, None)
        self._groups_N: Tensor | None = None

    @classmethod
    def build(cls, context: CatalogueContext, config: ParallelConfig) -> Self:
        """An untrained model, initialised by `config.seed`. Needs vectors and semantic IDs."""
        if context.vectors is None or context.semantic_ids is None:
            raise DataError(
                "parallel needs item vectors and semantic IDs, got a catalogue without them; "
                "embed and tokenize the items first"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return cls(context.semantic_ids, context.vectors.vectors, config)

    def places(self, codes: Tensor) -> Tensor:
        """(…, L) column of each code in a table; where an ID has ended, that of the zeros."""
        levels_L = torch.arange(len(self.widths), device=codes.device) * self.level_width
        over = F.pad(codes[..., :-1], (1, 0)) < 0  # the end itself is a symbol of its level
        symbols = torch.where(codes < 0, self.ends_L, codes)
        return (symbols + levels_L).masked_fill(over, len(self.widths) * self.level_width)

    # ------------------------------------------------------------------ history to codes

    def code_table(self) -> Tensor:
        """(L, V, D) code embeddings, of length 1 with a temperature; zeros where a level ends."""
        tables = [F.pad(t, (0, 0, 0, self.level_width - len(t))) for t in self.codes]
        codes_LVD = torch.stack(tables)
        return codes_LVD if self.config.temperature is None else F.normalize(codes_LVD, dim=-1)

    def states(self, batch: HistoryBatch, codes_LVD: Tensor) -> Tensor:
        """(B, T, D) one state a position; T is at most `max_length`."""
        rows_BT = batch.items_BT.clamp_min(0)
        table_SD = F.pad(codes_LVD.flatten(0, 1), (0, 0, 0, 1))
        places = self.places_NL[rows_BT].flatten(0, 1)
        mean = F.embedding_bag(places, table_SD, mode="sum") / len(self.widths) ** 0.5
        x_BTD = mean.unflatten(0, rows_BT.shape)
        if self.items is not None:
            x_BTD = x_BTD + self.items(rows_BT)
        x_BTD = x_BTD * self.config.width**0.5
        if self.config.input_vectors:
            x_BTD = x_BTD + self.project(self.inputs.vectors_ND[rows_BT])
        return self.encoder(self.dropout(x_BTD))

    def logits(self, states_PD: Tensor, codes_LVD: Tensor) -> Tensor:
        """(L, P, V) float32 logits of every code of every level; −inf beyond a narrow level."""
        added_LPD = torch.matmul(states_PD, self.head_weight.transpose(1, 2)) + self.head_bias
        heads_LPD = states_PD + self.head_dropout(F.silu(added_LPD))
        if (temperature := self.config.temperature) is not None:
            heads_LPD = F.normalize(heads_LPD.float(), dim=-1) / temperature
        with torch.autocast(states_PD.device.type, enabled=False):
            logits_LPV = torch.bmm(heads_LPD.float(), codes_LVD.float().transpose(1, 2))
        return logits_LPV.masked_fill(self.absent_LV[:, None], -torch.inf)

    def log_prob_table(self, batch: HistoryBatch) -> Tensor:
        """(B, S) float32 log-probability of every code after each history; 0 in the last column."""
        batch, codes_LVD = batch.last(self.max_length), self.code_table()
        states_BD = last_states(self.states(batch, codes_LVD), batch.lengths_B)
        log_probs_LBV = self.logits(states_BD, codes_LVD).log_softmax(-1)
        return F.pad(log_probs_LBV.transpose(0, 1).flatten(1), (0, 1))

    # ------------------------------------------------------------------ training

    def loss(self, batch: HistoryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats per target: summed over its codes, plus the weighted item softmax."""
        batch = batch.last(self.max_length)
        assert batch.targets_BT is not None
        real = batch.targets_BT >= 0
        codes_LVD = self.code_table()
        states_PD, targets_P = self.states(batch, codes_LVD)[real], batch.targets_BT[real]
        logits_LPV = self.logits(states_PD, codes_LVD)
        nats_L = self.code_nats(logits_LPV, targets_P)
        parts = {"code_nats": nats_L.detach().sum(), "worst_code_nats": nats_L.detach().max()}
        loss = self.config.code_loss_weight * nats_L.sum()
        chosen, weight = self.item_targets_of(targets_P), self.config.item_loss_weight
        logits_LPV = logits_LPV if chosen is None else logits_LPV[:, chosen]
        seen_PT = seen_so_far(batch)[real]
        item_nats = item_softmax_loss(
            logits_LPV if weight else logits_LPV.detach(),
            targets_P if chosen is None else targets_P[chosen],
            seen_PT if chosen is None else seen_PT[chosen],
            self.repeat_bias(),
            self.places_NL,
            Columns(self.column_items_E, self.column_starts_S),
        )
        parts["item_nats"] = item_nats.detach()
        return loss + (weight or 1.0) * item_nats, parts

    def item_targets_of(self, targets_P: Tensor) -> Tensor | None:
        """Which targets the item softmax is worked out for; None for all."""
        most = self.config.item_targets if self.config.item_loss_weight else REPEAT_TARGETS
        if most is None or not self.training or most >= len(targets_P):
            return None
        return torch.randperm(len(targets_P), device=targets_P.device)[:most]

    def code_nats(self, logits_LPV: Tensor, targets_P: Tensor) -> Tensor:
        """(L,) mean nats of the targets' codes; 0 after the end of a shorter ID."""
        places_PL = self.places_NL[targets_P].long()
        over_PL = places_PL == len(self.widths) * self.level_width
        symbols_PL = (places_PL % self.level_width).masked_fill(over_PL, -1)
        nats_PL = F.cross_entropy(
            logits_LPV.flatten(0, 1), symbols_PL.T.flatten(), ignore_index=-1, reduction="none"
        )
        return nats_PL.view(len(self.widths), -1).mean(1)

    # ------------------------------------------------------------------ generation

    def log_probs(self, batch: HistoryBatch, codes_BKL: Tensor) -> Tensor:
        """(B, K) natural log-probability of whole IDs, whether or not some item holds them."""
        table_BS = self.log_prob_table(batch)
        return table_BS.gather(1, self.places(codes_BKL).flatten(1)).view(codes_BKL.shape).sum(-1)

    def start(self, batch: HistoryBatch) -> State:
        """Encode each history once; there is nothing else to do."""
        table_BS = self.log_prob_table(batch)
        return State(table_BS[:, :-1].unflatten(1, (len(self.widths), -1)), 0)

    def step(
        self, state: State, codes_BW: Tensor | None, parents_BW: Tensor | None
    ) -> tuple[Tensor, State]:
        """Logits (B, W, V) of the next level, the same after whatever codes."""
        logits_B1V = state.logits_BLV[:, state.level, None, : self.widths[state.level]]
        num_beams = 1 if codes_BW is None else codes_BW.shape[1]
        return logits_B1V.expand(-1, num_beams, -1), State(state.logits_BLV, state.level + 1)

    @torch.inference_mode()
    def item_scores(self, batch: HistoryBatch) -> Tensor:
        """(B, N) score of every item of the catalogue; `search` takes its log-softmax."""
        return exact_scores(self.question(batch), self.places_NL)

    @torch.inference_mode()
    def search(
        self,
        batch: HistoryBatch,
        index: PrefixIndex,
        *,
        k: int,
        beam_width: int,
        rules: Rules | None = None,
        weights_N: Tensor | None = None,
    ) -> Candidates:
        """The k best items of each request with their log-probabilities, best first.

        All items are scored, or those of the graph where more than `exact_below` may be returned;
        `beam_width` is the least width of that walk. `index` says which items there are. The
        probabilities of the items that the rules leave sum to 1.
        """
        if k < 1:
            raise ConfigError(f"search: k must be at least 1, got {k}")
        question = self.question(batch, index, rules, weights_N)
        allowed_N, num_allowed = question.allowed_N, len(self.places_NL)
        if allowed_N is not None and num_allowed > self.config.exact_below:
            num_allowed = int(allowed_N.sum())
        if num_allowed > self.config.exact_below:
            return graph_search(
                question, self.places_NL, self.graph(), k,
                beam_width=max(beam_width, self.config.search_beam),
                num_steps=self.config.search_steps,
            )  # fmt: skip
        return exact_search(question, self.places_NL, k)

    def question(
        self,
        batch: HistoryBatch,
        index: PrefixIndex | None = None,
        rules: Rules | None = None,
        weights_N: Tensor | None = None,
    ) -> Question:
        """What the batch asks, in the form that `decoding.parallel` answers."""
        table_BS, device = self.log_prob_table(batch), self.places_NL.device
        seen_BT = distinct(batch.last(self.max_length))
        question = Question(table_BS, seen_BT, self.repeat_bias())
        if index is None:
            return question
        num_items = len(self.places_NL)
        if index.num_codes != self.num_codes or index.num_rows > num_items:
            raise DataError(
                f"search: parallel was built for {num_items} items with codes {self.num_codes}, "
                f"the index has rows up to {index.num_rows} and codes {index.num_codes}; build "
                "both from the same semantic IDs"
            )
        allowed_N = index.live_mask(num_items)
        excluded_BX = None
        if rules is not None:
            excluded_BX = rules.excluded_rows(batch.num_requests, device)
            if rules.keep_N is not None:
                keep_N = one_a_row(rules.keep_N, index, num_items, "keep_N", False).to(device)
                allowed_N = keep_N if allowed_N is None else keep_N & allowed_N
        sharing = None
        if weights_N is not None:
            given_N = one_a_row(weights_N, index, num_items, "weights_N", 1.0)
            sharing = Sharing(self.groups(), given_N.to(device))
        return replace(question, allowed_N=allowed_N, excluded_BX=excluded_BX, sharing=sharing)

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; forgets the graph, since fused optimisers leave no trace."""
        self._kept = (None, None)
        return super().train(mode)

    def graph(self) -> ItemGraph:
        """Items with similar codes, by the cosines of code embeddings; kept until these change."""
        key = [(w.data_ptr(), w._version) for w in self.codes]
        if self._kept[0] != key or self._kept[1] is None:
            codes_LVD = F.normalize(self.code_table(), dim=-1)
            graph = item_graph(
                codes_LVD @ codes_LVD.transpose(1, 2),
                self.places_NL,
                num_neighbours=self.config.num_neighbours,
                num_starts=self.config.search_beam,
                seed=self.config.seed,
            )
            self._kept = key, graph
            return graph
        return self._kept[1]

    def groups(self) -> Tensor:
        """(N,) number of the ID of each item; made once."""
        if self._groups_N is None or self._groups_N.device != self.places_NL.device:
            self._groups_N = torch.unique(self.places_NL, dim=0, return_inverse=True)[1]
        return self._groups_N


def one_a_row(
    values_N: Any, index: PrefixIndex, num_items: int, name: str, rest: float | bool
) -> Tensor:
    """One value a catalogue row, `rest` for rows the index does not reach."""
    values = torch.as_tensor(values_N)
    if len(values) < index.num_rows:
        raise DataError(
            f"search: {name} must cover the {index.num_rows} catalogue rows of the index, got "
            f"{len(values)}; give one value a row"
        )
    return F.pad(values[:num_items], (0, max(num_items - len(values), 0)), value=rest)
