"""A causal generator whose history is a query: words in, semantic IDs out.

The input is the words of the query, in order, then the whole query: its text vector through the
projection that items pass too, plus the mean of its words' embeddings. The state of that last place
stands where `Causal` has the state of a history; code tables, node vectors, depth decoder, beam and
exact scores are those of `Causal`. Words start at zero and the projection at the identity, so that
an untrained decoder ranks by the cosine of text vectors, level by level:

    logit of an item = e^s cos(W q, W v)         s starts at log 20; means of it above the leaves

Learning is multi-positive: with the gains g of the items that answer a query,

    L(q) = sum over its answers y of  g_y / (sum of g) · −log π(y | q)

of which each step takes a few answers drawn in proportion to g: the same gradient in expectation.

Source:   queries to IDs, DSI (arXiv:2202.06991) and RAD-DPO's eq. 2 (arXiv:2602.23964); decoding as
          in `causal`.
Differs:  from DSI no language model: a bag of words, with blocks of attention where `num_layers` is
          above 0; eq. 2 weighs all answers alike. Items have unit length here.
Cost:     a step is one product of all N item vectors with the projection, and those of `Causal`.
Shapes:   B queries, F width of text vectors, W words of a query, D width, A answers of a query,
          P drawn targets, N items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.generators.causal import Causal, CausalConfig
from sidrec.transformer import last_states
from sidrec.types import Floats, SemanticIds

START_SHARPNESS = 20.0
"""Cosines are multiplied by this before any learning."""


@dataclass(frozen=True, eq=False)
class QueryBatch:
    """B queries, in the place of a `HistoryBatch`; nobody's history is read."""

    vectors_BF: Tensor
    """Text vectors; 0 where nothing is known."""
    words_BW: Tensor
    """Numbers of known words in order, −1 after the last."""

    @property
    def num_requests(self) -> int:
        return len(self.words_BW)

    @property
    def items_BT(self) -> Tensor:
        """(B, 0): no history."""
        return self.words_BW.new_empty(len(self.words_BW), 0)

    @property
    def lengths_B(self) -> Tensor:
        """(B,) words of each query."""
        return (self.words_BW >= 0).sum(1)

    def last(self, max_length: int) -> QueryBatch:
        """Itself: queries are cut when their words are numbered."""
        return self

    def to(self, device: torch.device | str) -> QueryBatch:
        """The same batch on another device."""
        return QueryBatch(self.vectors_BF.to(device), self.words_BW.to(device))

    def take(self, rows: Tensor) -> QueryBatch:
        """The chosen queries."""
        return QueryBatch(self.vectors_BF[rows], self.words_BW[rows])


@dataclass(frozen=True, eq=False)
class LessonBatch:
    """B queries with what answers them."""

    queries: QueryBatch
    answers_BA: Tensor
    """Catalogue rows, −1 after the last."""
    gains_BA: Tensor
    """What each answer is worth, 0 for none."""

    def to(self, device: torch.device | str) -> LessonBatch:
        """The same batch on another device."""
        return replace(
            self,
            queries=self.queries.to(device),
            answers_BA=self.answers_BA.to(device),
            gains_BA=self.gains_BA.to(device),
        )

    def drawn(self, num_targets: int, generator: torch.Generator) -> LessonBatch:
        """With `num_targets` answers a query, drawn with repeats in proportion to their gains; one
        where there is one.
        """
        places = self.gains_BA.multinomial(num_targets, replacement=True, generator=generator)
        answers = self.answers_BA.gather(1, places)
        answers[:, 1:].masked_fill_((self.gains_BA > 0).sum(1, keepdim=True) == 1, -1)
        return replace(self, answers_BA=answers, gains_BA=(answers >= 0).float())


class QueryDecoder(Causal):
    """Reads `QueryBatch`es; everything after the state is `Causal`."""

    def __init__(
        self, ids: SemanticIds, vectors_NF: Floats, config: CausalConfig, num_words: int
    ) -> None:
        super().__init__(ids, vectors_NF, config)
        self.words = nn.Embedding(max(num_words, 1), config.width)
        nn.init.zeros_(self.words.weight)
        self.query = nn.Linear(vectors_NF.shape[1], config.width, bias=False)
        self.start_projection(self.query.weight)
        self.sharpness = nn.Parameter(torch.full((1,), math.log(START_SHARPNESS)))
        self.num_targets = 2
        """Answers of each query that a step learns."""
        self._kept_items: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, ids: SemanticIds, vectors_NF: Floats, config: CausalConfig, num_words: int) -> Self:
        """An untrained model, initialised by `config.seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return cls(ids, vectors_NF, config, num_words)

    @staticmethod
    def start_projection(weight_DF: Tensor) -> None:
        """The identity, so far as it reaches."""
        nn.init.eye_(weight_DF)

    @staticmethod
    def num_positions(max_length: int) -> int:
        """The words, and the whole query."""
        return max_length + 1

    def no_weight_decay(self, name: str) -> bool:
        """Projections start at the identity: decay would shrink what is known."""
        return name in ("query.weight", "project.weight")

    def history_states(self, batch: Any) -> Tensor:
        """(B, D) one state a query, of length √D."""
        counts_B = batch.lengths_B
        real_BW1 = (batch.words_BW >= 0)[..., None]
        words_BWD = self.dropout(self.words(batch.words_BW.clamp_min(0)) * real_BW1)
        whole_BD = self.query(batch.vectors_BF) * self.config.width**0.5
        whole_BD = self.dropout(whole_BD) + words_BWD.sum(1) / counts_B.clamp_min(1)[:, None]
        if not len(self.encoder.blocks):
            return self.encoder.norm(whole_BD)
        x_BTD = F.pad(words_BWD, (0, 0, 0, 1))
        rows_B = torch.arange(len(x_BTD), device=x_BTD.device)
        x_BTD = x_BTD.index_put((rows_B, counts_B), whole_BD)
        return last_states(self.encoder(x_BTD), counts_B + 1)

    @contextmanager
    def items_frozen(self) -> Iterator[None]:
        """Inside, items stay as they are, and no step multiplies all of their vectors."""
        names = ("project.weight", "items.weight", "sharpness")
        tables = [table for name, table in self.named_parameters() if name in names]
        with torch.no_grad():
            self._kept_items = (self.item_table(),)
        for table in tables:
            table.requires_grad_(False)
        try:
            yield
        finally:
            self._kept_items = ()
            for table in tables:
                table.requires_grad_(True)

    def item_table(self) -> Tensor:
        """(N, D) rows of length e^s / √D; 0 for items without a vector or embedding."""
        if self._kept_items:
            return self._kept_items[0]
        table_ND = self.project(self.inputs.raw_ND)
        if self.items is not None:
            table_ND = table_ND + self.items.weight
        return F.normalize(table_ND, dim=-1) * (self.sharpness.exp() * self.config.width**-0.5)

    def augment(self, batch: LessonBatch, generator: torch.Generator) -> LessonBatch:
        """A few drawn answers in place of all."""
        return batch.drawn(self.num_targets, generator)

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats an answer, of its codes and of the item softmax."""
        states_BD = self.history_states(batch.queries)
        real_BA = batch.answers_BA >= 0
        asked_P = real_BA.nonzero()[:, 0]
        targets_P = batch.answers_BA[real_BA]
        return self.loss_at(states_BD[asked_P], targets_P, targets_P.new_empty(len(targets_P), 0))


class Asked(nn.Module):
    """A decoder over known queries, as a `contracts.Generator`: a history is the row of its query.

    Alignment, which knows histories alone, trains the decoder through it.
    """

    max_length = 1

    def __init__(self, decoder: QueryDecoder, queries: QueryBatch) -> None:
        super().__init__()
        self.decoder = decoder
        self.num_codes = decoder.num_codes
        self._queries = (queries,)  # a tuple hides it from copies to other devices

    def no_weight_decay(self, name: str) -> bool:
        """As the decoder has it."""
        return self.decoder.no_weight_decay(name.removeprefix("decoder."))

    def queries(self, batch: Any) -> QueryBatch:
        """The queries that a batch of rows means."""
        return self._queries[0].take(batch.items_BT[:, 0].cpu()).to(batch.items_BT.device)

    def along(self, batch: Any, symbols_BKL: Tensor) -> tuple[list[Tensor], Tensor]:
        """As `Causal.along`."""
        return self.decoder.along(self.queries(batch), symbols_BKL)  # type: ignore[arg-type]

    def log_probs(self, batch: Any, codes_BKL: Tensor) -> Tensor:
        """As `Causal.log_probs`."""
        return self.decoder.log_probs(self.queries(batch), codes_BKL)  # type: ignore[arg-type]

    def start(self, batch: Any) -> Any:
        """As `Causal.start`."""
        return self.decoder.start(self.queries(batch))  # type: ignore[arg-type]

    def step(self, state: Any, codes_BW: Tensor | None, parents_BW: Tensor | None) -> Any:
        """As `Causal.step`."""
        return self.decoder.step(state, codes_BW, parents_BW)
