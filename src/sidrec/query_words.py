"""Queries as vectors of a model's own width: a bag of words, in a table that the model trains.

    q = (sum over known words w of E[w]) / sqrt(number of known words)

A word starts as the mean of the items whose texts hold it, as the model first sees these items, so
a query starts near what it names: frequent words near the centre, rare ones near their items. The
vocabulary is every word of the catalogue in the order of its first item, so that items added later
only append to it; their new words stay unknown until the next training.

Source:  the bag of words of fastText, arXiv:1607.01759; the start from item means is ours.
Cost:    one pass over all texts when a model is built; 4 V D bytes.
Shapes:  B texts, W words of the longest, V words of the vocabulary, D width, N items, M pairs of a
         query and an item, P asked items.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from sidrec.embeddings.queries import WORD, QueryPairs, made_queries, read_queries
from sidrec.errors import DataError
from sidrec.types import PAD, HistoryBatch, Ints, Items

MAX_WORDS = 32
"""Words of a text that are read."""


@dataclass(frozen=True, kw_only=True)
class QuerySource:
    """Where a model that learns from queries has them from."""

    queries: str = ""
    """File of (query, item) pairs to learn from: .parquet, .csv or .jsonl; empty makes queries."""
    query_column: str = "query"
    """Column of the query in that file."""
    item_column: str = "item_id"
    """Column of the item's id in that file."""
    queries_per_item: int = 8
    """Queries made of each item's texts where no file is given."""
    query_words: int = 4
    """Longest made query, in words."""

    def pairs(self, items: Items, seed: int) -> QueryPairs:
        """The pairs of query and item that training learns from."""
        if self.queries:
            columns = {"query_column": self.query_column, "item_column": self.item_column}
            return read_queries(self.queries, items, **columns)
        return made_queries(
            items, per_item=self.queries_per_item, max_words=self.query_words, seed=seed
        )


@dataclass(frozen=True, eq=False)
class AskedBatch(HistoryBatch):
    """Histories, possibly empty, with the query that each person asks."""

    words_BW: torch.Tensor | None = None
    """Rows of known words, −1 after the last; None where nobody asks."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        moved = super().to(device)
        words_BW = None if self.words_BW is None else self.words_BW.to(device)
        return type(self)(moved.items_BT, moved.lengths_B, moved.targets_BT, words_BW)

    def last(self, max_length: int) -> Self:
        """The last `max_length` events of each row, with its query."""
        cut = super().last(max_length)
        return type(self)(cut.items_BT, cut.lengths_B, cut.targets_BT, self.words_BW)


class QueryWords(nn.Module):
    """The vocabulary of a catalogue and one learnt row a word."""

    def __init__(self, items: Items, width: int) -> None:
        super().__init__()
        self.row_of: dict[str, int] = {}
        places: list[tuple[int, int]] = []
        for item, text in enumerate(items.texts()):
            for word in dict.fromkeys(words_of(text)):
                places.append((self.row_of.setdefault(word, len(self.row_of)), item))
        self.places_E2 = np.array(places, dtype=np.int64).reshape(-1, 2)
        self.num_items = len(items)
        self.table = nn.Embedding(max(len(self.row_of), 1), width)
        nn.init.zeros_(self.table.weight)

    @torch.no_grad()
    def start_from(self, items_ND: Tensor) -> None:
        """Let every word be the mean of the items that hold it."""
        words_E, items_E = self.places_E2.T
        ones_E = np.ones(len(words_E), dtype=np.float32)
        shape = (self.table.num_embeddings, self.num_items)
        held_VN = csr_array((ones_E, (words_E, items_E)), shape=shape)
        counts_V1 = np.maximum(held_VN.sum(axis=1), 1)[:, None]
        self.table.weight.copy_(torch.from_numpy(held_VN @ items_ND.numpy() / counts_V1))

    def rows(self, texts: Sequence[str]) -> Tensor:
        """(B, W) rows of the known words of each text, −1 after the last; W is at least 1."""
        found = [
            [self.row_of[w] for w in words_of(text) if w in self.row_of][:MAX_WORDS]
            for text in texts
        ]
        return torch.from_numpy(padded(found)).to(self.table.weight.device)

    def forward(self, words_BW: Tensor) -> Tensor:
        """(B, D) vectors of texts; 0 where no word is known."""
        real_BW = words_BW >= 0
        summed_BD = (self.table(words_BW.clamp_min(0)) * real_BW[..., None]).sum(1)
        return summed_BD * real_BW.sum(1, keepdim=True).clamp_min(1).rsqrt()

    def known(self, words_BW: Tensor) -> Tensor:
        """(B,) bool: whether training has told anything about any word of each text."""
        told_BW = self.table(words_BW.clamp_min(0)).ne(0).any(-1)
        return (told_BW & (words_BW >= 0)).any(1)


class Lessons(nn.Module):
    """Queries with the items that answer them, as word rows, to draw from while training."""

    words_MW: Tensor
    items_M: Tensor
    starts_N: Tensor
    counts_N: Tensor

    def __init__(self, words_MW: Tensor, items_M: Ints, num_items: int) -> None:
        super().__init__()
        order = np.argsort(items_M, kind="stable")
        counts_N = np.bincount(items_M, minlength=num_items)
        arrays = {
            "words_MW": words_MW[torch.from_numpy(order)],
            "items_M": torch.from_numpy(items_M[order]),
            "starts_N": torch.from_numpy(np.cumsum(counts_N) - counts_N),
            "counts_N": torch.from_numpy(counts_N),
        }
        for name, array in arrays.items():
            self.register_buffer(name, array, persistent=False)

    @classmethod
    def of(cls, pairs: QueryPairs, words: QueryWords) -> Self:
        """The pairs of which at least one word is known. DataError where there is none."""
        words_MW = words.rows(pairs.texts).cpu()
        kept_M = (words_MW >= 0).any(1).numpy()
        if not kept_M.any():
            raise DataError(
                f"none of the {len(pairs)} queries shares a word with the catalogue, so there is "
                "no search to learn; bring queries, or set the weight of search to 0"
            )
        return cls(words_MW[torch.from_numpy(kept_M)], pairs.rows_P[kept_M], words.num_items)

    def __len__(self) -> int:
        return len(self.items_M)

    def draw(self, num: int) -> tuple[Tensor, Tensor]:
        """Items (num,) and words (num, W) of pairs drawn alike."""
        pairs = torch.randint(len(self.items_M), (num,), device=self.items_M.device)
        return self.items_M[pairs], self.words_MW[pairs]

    def draw_for(self, items_P: Tensor) -> Tensor:
        """(P, W) words of one query that asks for each item; −1 throughout where there is none."""
        counts_P = self.counts_N[items_P]
        drawn_P = (torch.rand(len(items_P), device=items_P.device) * counts_P).long()
        places_P = (self.starts_N[items_P] + drawn_P).clamp_max(len(self.items_M) - 1)
        return self.words_MW[places_P].masked_fill((counts_P == 0)[:, None], PAD)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return WORD.findall(text.lower())


def padded(lists: Iterable[Sequence[int]]) -> Ints:
    """(B, W) the lists as rows, −1 after their ends; W is at least 1."""
    lists = list(lists)
    rows_BW = np.full((len(lists), max((len(x) for x in lists), default=0) or 1), PAD)
    lengths = [len(x) for x in lists]
    places = np.arange(rows_BW.shape[1]) < np.array(lengths, dtype=np.int64)[:, None]
    rows_BW[places] = list(itertools.chain.from_iterable(lists))
    return rows_BW.astype(np.int64)
