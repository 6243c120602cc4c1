"""The catalogue to look through: by prefix of semantic IDs, and by words of titles.

Rows in the order of their IDs, so the items under a prefix lie side by side: a prefix is found by
binary search, whatever the size of the catalogue. Deleted items are on no shelf.

Source:   our choice; prefixes are named as in `tokenizers.tree`.
Differs:  names come from the titles of a prefix's `NAMED_ITEMS` most bought items alone, so that a
          look costs the same in any catalogue.
Cost:     O(N log N) once a catalogue; a prefix O(log N) plus its items; words O(N).
Shapes:   N items, M items that are not deleted, L levels.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from sidrec.recommender import Recommender
from sidrec.tokenizers.tree import ItemWords
from sidrec.types import Bools, Ints

NAMED_ITEMS = 20_000
"""Items whose titles name the branches of one prefix."""
KEPT_NAMES = 256
"""Prefixes whose branches' names are kept."""


class Shelves:
    """One state of a catalogue. Asking changes nothing but what is remembered."""

    def __init__(self, recommender: Recommender, available_N: Bools, deleted_N: Bools) -> None:
        self.recommender, self.available_N = recommender, available_N
        codes_NL = recommender.ids.codes
        order_N = np.lexsort(codes_NL.T[::-1])
        self.rows_M: Ints = order_N[~deleted_N[order_N]]
        self.columns_LM = np.ascontiguousarray(codes_NL[self.rows_M].T)
        self._names: OrderedDict[tuple[int, ...], dict[int, str]] = OrderedDict()
        self._lock = threading.Lock()

    def under(self, prefix: Sequence[int]) -> Ints:
        """Catalogue rows of the items whose ID starts with the prefix, by ID; () holds all."""
        low, high = self._range(prefix)
        return self.rows_M[low:high]

    def _range(self, prefix: Sequence[int]) -> tuple[int, int]:
        low, high = 0, len(self.rows_M)
        for column_M, code in zip(self.columns_LM, prefix, strict=False):
            low, high = low + np.searchsorted(column_M[low:high], [code, code + 1])
        return int(low), int(high)

    def by_use(self, rows: Ints, start: int, limit: int) -> list[dict[str, Any]]:
        """Some of the rows as people read them, most bought first."""
        order = np.argsort(-self.recommender.train_counts_N[rows], kind="stable")
        return [self.item(int(row)) for row in rows[order[start : start + limit]]]

    def item(self, row: int) -> dict[str, Any]:
        """One item as people read it."""
        recommender = self.recommender
        return {
            "item_id": str(recommender.items.item_ids[row]),
            "title": recommender.titles[row],
            "semantic_id": [code for code in recommender.ids.codes[row].tolist() if code >= 0],
            "events": int(recommender.train_counts_N[row]),
            "available": bool(self.available_N[row]),
        }

    def favourite(self, prefix: Sequence[int]) -> str | None:
        """Title of the most bought item under a prefix; None where there is none."""
        rows = self.under(prefix)
        if not len(rows):
            return None
        return self.recommender.titles[rows[self.recommender.train_counts_N[rows].argmax()]]

    def branches(self, prefix: tuple[int, ...]) -> list[dict[str, Any]]:
        """The codes that follow a prefix, by code: items, use, a name and the favourite item."""
        low, high = self._range(prefix)
        if len(prefix) >= len(self.columns_LM):
            return []
        codes_n, rows = self.columns_LM[len(prefix)][low:high], self.rows_M[low:high]
        codes_B, starts_B = np.unique(codes_n, return_index=True)
        counts_n = self.recommender.train_counts_N[rows]
        names, found = self.names(prefix), []
        for code, rows_b, counts_b in zip(
            codes_B.tolist(),
            np.split(rows, starts_B[1:]),
            np.split(counts_n, starts_B[1:]),
            strict=True,
        ):
            if code < 0:  # IDs that end with the prefix itself
                continue
            found.append(
                {
                    "code": code,
                    "num_items": len(rows_b),
                    "num_available": int(self.available_N[rows_b].sum()),
                    "events": int(counts_b.sum()),
                    "name": names.get(code, ""),
                    "favourite": self.recommender.titles[rows_b[counts_b.argmax()]],
                }
            )
        return found

    def names(self, prefix: tuple[int, ...]) -> dict[int, str]:
        """Code -> the words that set its items apart from those of the codes beside it."""
        with self._lock:
            if prefix in self._names:
                self._names.move_to_end(prefix)
                return self._names[prefix]
        rows = self.under(prefix)
        if len(prefix) >= len(self.columns_LM) or len(rows) < 2:
            return {}
        if len(rows) > NAMED_ITEMS:
            counts = self.recommender.train_counts_N[rows]
            rows = rows[np.argpartition(-counts, NAMED_ITEMS)[:NAMED_ITEMS]]
        titles = self.recommender.titles
        words = ItemWords.of([titles[row] for row in rows])
        groups = self.recommender.ids.codes[rows, len(prefix)]
        found = words.names(np.arange(len(rows)), groups)
        names = {code: ", ".join(said) for code, said in found.items()}
        with self._lock:
            self._names[prefix] = names
            while len(self._names) > KEPT_NAMES:
                self._names.popitem(last=False)
        return names

    # ---------------------------------------------------------------- by words

    @cached_property
    def lowered(self) -> pl.Series:
        """(M,) title and id of every item in lower case, in the order of `rows_M`."""
        titles, ids = self.recommender.titles, self.recommender.items.item_ids
        texts = [f"{titles[row]}\n{ids[row]}" for row in self.rows_M.tolist()]
        return pl.Series(texts, dtype=pl.String).str.to_lowercase()

    def find(self, query: str, limit: int) -> tuple[Ints, int]:
        """Rows of the items that hold every word, and how many they are: those first whose words
        begin with the query's, then the most bought. Without a word, the most bought items.
        """
        words, texts = query.lower().split(), self.lowered
        met_M = np.ones(len(texts), dtype=bool)
        begins_M = np.zeros(len(texts), dtype=np.int64)
        for word in words:
            met_M &= texts.str.contains(word, literal=True).to_numpy()
        places = np.flatnonzero(met_M)
        if words:
            chosen = pl.Series("", texts.gather(places))
            starts = chosen.str.starts_with(" ".join(words)).to_numpy().astype(np.int64)
            inside = chosen.str.contains(f" {words[0]}", literal=True).to_numpy()
            begins_M[places] = 2 * starts + inside
        counts_M = self.recommender.train_counts_N[self.rows_M]
        order = np.lexsort((self.rows_M[places], -counts_M[places], -begins_M[places]))
        return self.rows_M[places[order[:limit]]], len(places)
