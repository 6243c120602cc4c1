"""Joint: one generator for search and recommendation, `causal` behind a token of task and query.

    input    e_task + norm(bag of the query's words),  item 1,  item 2,  …
    output   the semantic ID of the next item, or of the item that answers the query

Without a query the task is recommendation, with one it is search; the history may be empty in
either, so one model answers a history, a query, or both. The query also reaches the state on a
straight way. Each step holds, for every training target, `recommend_rows` rows of its history and
`search_rows` search rows: for each sequence one target with its history and a query that asks for
it, the rest pairs of a query and an item without a history.

Source:   task tokens and joint training as in arXiv:2508.10478 and SynerGen (arXiv:2509.21777); the
          generator is `causal`.
Differs:  a query is one place of the sequence, a bag of words, instead of a token a word.
Cost:     a training step that of `causal`, times `recommend_rows` + `search_rows`.
Shapes:   B requests, T history length, W words, P targets, D width, S seen items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.errors import ConfigError, DataError
from sidrec.generators.causal import Causal, CausalConfig
from sidrec.mixture_of_experts import Routing
from sidrec.query_words import AskedBatch, Lessons, QuerySource, QueryWords
from sidrec.transformer import distinct, seen_so_far
from sidrec.types import PAD, CatalogueContext, HistoryBatch

RECOMMEND, SEARCH = 0, 1


@dataclass(frozen=True, kw_only=True)
class JointConfig(CausalConfig, QuerySource):
    """Settings of `Joint`: those of `Causal`, and what it learns search from."""

    recommend_rows: float = 1.0
    """Recommendation rows a training target: 1, or 0 for a generator that searches alone."""
    search_rows: float = 1.0
    """Search rows a training target; 0 leaves search out."""

    def __post_init__(self) -> None:
        CausalConfig.__post_init__(self)
        if self.recommend_rows not in (0, 1) or self.search_rows < 0:
            raise ConfigError(
                "joint.recommend_rows must be 0 or 1 and search_rows at least 0, got "
                f"{self.recommend_rows} and {self.search_rows}"
            )
        if not self.recommend_rows + self.search_rows:
            raise ConfigError("joint needs rows of search or of recommendation, got neither")
        if self.num_experts > 1:
            raise ConfigError("joint has no experts yet; set num_experts = 1")


class Joint(Causal):
    """Trainable generator of two tasks; `training.train` fits it through `loss`."""

    config_class: ClassVar[type] = JointConfig
    config: JointConfig

    def __init__(self, context: CatalogueContext, config: JointConfig) -> None:
        assert context.semantic_ids is not None and context.vectors is not None
        super().__init__(context.semantic_ids, context.vectors.vectors, config)
        self.words = QueryWords(context.items, config.width)
        self.norm_query = nn.LayerNorm(config.width)
        self.straight = nn.Linear(config.width, config.width, bias=False)
        self.tasks = nn.Embedding(2, config.width)
        self.lessons: Lessons | None = None

    @classmethod
    def build(cls, context: CatalogueContext, config: Any) -> Self:
        """An untrained model. Where the context has events, with queries to learn from; without
        any, as a bundle is read, words wait for their saved rows.
        """
        if context.vectors is None or context.semantic_ids is None:
            raise DataError(
                "joint needs item vectors and semantic IDs, got a catalogue without them; embed "
                "and tokenize the items first"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = cls(context, config)
        if len(context.train.items_E):
            with torch.no_grad():
                model.words.start_from(model.project(model.inputs.vectors_ND))
            if config.search_rows:
                model.lessons = Lessons.of(config.pairs(context.items, config.seed), model.words)
        return model

    @staticmethod
    def num_positions(max_length: int) -> int:
        """Places that the longest history takes in the encoder: the first is task and query."""
        return max_length + 1

    # ------------------------------------------------------------------ history and query

    def states(self, batch: HistoryBatch, routings: list[Routing] | None = None) -> Tensor:
        """(B, T, D) one state a position."""
        return self.all_states(batch)[:, 1:]

    def history_states(self, batch: HistoryBatch) -> Tensor:
        """(B, D) the state after the history, or after task and query where it is empty."""
        batch = batch.last(self.max_length)
        rows = torch.arange(batch.num_requests, device=batch.lengths_B.device)
        return self.all_states(batch)[rows, batch.lengths_B]

    def all_states(self, batch: HistoryBatch) -> Tensor:
        """(B, T + 1, D) the state after task and query, then one a position."""
        words_BW = batch.words_BW if isinstance(batch, AskedBatch) else None
        task = RECOMMEND if words_BW is None else SEARCH
        first_BD = self.tasks.weight[task].expand(batch.num_requests, -1)
        items_BTD = self.dropout(self.tokens(batch))
        if words_BW is None:
            return self.encoder(torch.cat([first_BD[:, None], items_BTD], dim=1))
        query_BD = self.norm_query(self.words(words_BW))
        places = [(first_BD + query_BD)[:, None], items_BTD]
        return self.encoder(torch.cat(places, dim=1)) + self.straight(query_BD)[:, None]

    def asked(self, texts: Sequence[str], batch: HistoryBatch | None = None) -> AskedBatch:
        """What `decoding.search` takes for these queries, of people with these histories."""
        words_BW = self.words.rows(texts)
        if batch is None:
            none_B1 = words_BW.new_full((len(texts), 1), PAD)
            batch = HistoryBatch(none_B1, words_BW.new_zeros(len(texts)))
        return AskedBatch(batch.items_BT, batch.lengths_B, None, words_BW)

    # ------------------------------------------------------------------ training

    def loss(self, batch: HistoryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats a row of both tasks; parts tell how many rows each has."""
        batch = batch.last(self.max_length)
        assert batch.targets_BT is not None
        real_BT, rows = batch.targets_BT >= 0, []
        if self.config.recommend_rows:
            states_PD = self.states(batch)[real_BT]
            rows.append((states_PD, batch.targets_BT[real_BT], seen_so_far(batch)[real_BT]))
        num = round(int(real_BT.sum()) * self.config.search_rows)
        if num and self.lessons is not None:
            rows += self.search_rows(batch, num)
        most = max(seen.shape[1] for *_, seen in rows)
        wide = [(s, t, F.pad(seen, (0, most - seen.shape[1]), value=PAD)) for s, t, seen in rows]
        states_PD, targets_P, seen_PS = (torch.cat(x) for x in zip(*wide, strict=True))
        loss, parts = self.loss_at(states_PD, targets_P, seen_PS)
        return loss, {**parts, "rows": loss.new_tensor(float(len(targets_P)))}

    def search_rows(self, batch: HistoryBatch, num: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """States, targets and seen items of at most `num` rows with a history, and of the rest."""
        assert batch.targets_BT is not None and self.lessons is not None
        shown = batch.num_requests if batch.num_requests <= num else num
        lengths_b = batch.lengths_B[:shown]
        length_b = 1 + (torch.rand(shown, device=lengths_b.device) * lengths_b).long()
        length_b = torch.minimum(length_b, lengths_b)
        at_b1 = (length_b - 1).clamp_min(0)[:, None]
        targets_b = batch.targets_BT[:shown].gather(1, at_b1)[:, 0]
        items_bT = batch.items_BT[:shown]
        later_bT = torch.arange(items_bT.shape[1], device=items_bT.device) >= length_b[:, None]
        words_bW = self.lessons.draw_for(targets_b.clamp_min(0))
        own = AskedBatch(items_bT.masked_fill(later_bT, PAD), length_b, None, words_bW)
        kept_b = (words_bW >= 0).any(1) & (targets_b >= 0)
        rows: list[Any] = []
        if kept_b.any():
            states_bD, seen_bT = self.history_states(own), distinct(own)
            rows.append((states_bD[kept_b], targets_b[kept_b], seen_bT[kept_b]))
        if (rest := num - int(kept_b.sum())) > 0:
            targets_r, words_rW = self.lessons.draw(rest)
            none_r1 = targets_r.new_full((rest, 1), PAD)
            other = AskedBatch(none_r1, targets_r.new_zeros(rest), None, words_rW)
            rows.append((self.history_states(other), targets_r, none_r1))
        return rows
