"""What search data are: queries, graded judgements of items, and sessions of shown items.

Each value checks itself once, at construction. Outside ids appear in `Queries` and `Items` only.

Shapes:   Q queries, J judgements, S sessions, E shown items of all sessions, N items.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sidrec.errors import DataError
from sidrec.types import Bools, Ids, Ints, Items, require_unique

MAX_QUERY_CHARS = 1000
"""Longer texts are no queries: they are refused, not cut."""
JOINERS = "\u200c\u200d"
"""Invisible characters that change how letters join; they belong to words."""
INVISIBLE = {"Cc", "Cf", "Cs"}


def clean_query(text: str) -> str:
    r"""The text with control and formatting characters made spaces, and runs of spaces made one.

    >>> clean_query("  red\\tshoe\\x00s ")
    'red shoe s'
    """
    shown = (
        " " if unicodedata.category(c) in INVISIBLE and c not in JOINERS else c
        for c in unicodedata.normalize("NFC", text)
    )
    return " ".join("".join(shown).split())


def required_query(text: str, where: str = "search") -> str:
    """The cleaned text. DataError where nothing is left, or more than `MAX_QUERY_CHARS`."""
    if not isinstance(text, str):
        raise DataError(f"{where}: a query must be a text, got {type(text).__name__}")
    if len(text) > MAX_QUERY_CHARS:
        raise DataError(
            f"{where}: the query has {len(text):,} characters, at most {MAX_QUERY_CHARS:,} are "
            "read; ask with fewer words"
        )
    if not (cleaned := clean_query(text)):
        raise DataError(f"{where}: the query is empty; give at least one word")
    return cleaned


@dataclass(frozen=True, eq=False)
class Queries:
    """Q texts that people ask with; row q belongs to `query_ids[q]`."""

    query_ids: Ids
    """(Q,) the caller's own identifiers, unique."""
    texts: tuple[str, ...]
    """Q cleaned texts, none empty."""

    def __post_init__(self) -> None:
        require_unique(self.query_ids, "query ids")
        if len(self.texts) != len(self.query_ids):
            raise DataError(f"{len(self.query_ids)} query ids need as many texts")
        for query_id, text in zip(self.query_ids, self.texts, strict=True):
            if required_query(text, f"query {query_id}") != text:
                raise DataError(f"query {query_id}: {text!r} is not cleaned; use clean_query")

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Outside id -> row."""
        return {query_id: row for row, query_id in enumerate(self.query_ids)}

    def take(self, rows: Ints) -> Queries:
        """The chosen queries, in the given order."""
        return Queries(self.query_ids[rows], tuple(self.texts[row] for row in rows))


@dataclass(frozen=True, eq=False)
class Judgements:
    """How well items answer queries; items that are not judged for a query are unknown."""

    items_J: Ints
    """Catalogue rows, ascending inside a query, none twice."""
    grades_J: Ints
    """At least 0, which answers nothing, and at most `top_grade`, which answers exactly."""
    offsets: Ints
    """(Q + 1,) query q has the judgements `offsets[q]:offsets[q + 1]`."""
    top_grade: int
    """The best grade of the scale, whether or not an item has it."""

    def __post_init__(self) -> None:
        if self.top_grade < 1:
            raise DataError(f"the best grade must be at least 1, got {self.top_grade}")
        if len(self.items_J) != len(self.grades_J) or self.offsets[-1] != len(self.items_J):
            raise DataError("judgements need one item and one grade each")
        if self.offsets[0] != 0 or (np.diff(self.offsets) < 0).any():
            raise DataError("offsets of judgements must start at 0 and not decrease")
        outside = (self.grades_J < 0) | (self.grades_J > self.top_grade)
        if outside.any():
            found = self.grades_J[outside][:3].tolist()
            raise DataError(f"grades must be in [0, {self.top_grade}], got {found}")
        rises = np.diff(self.items_J) > 0
        starts = self.offsets[1:-1] - 1
        rises[starts[(starts >= 0) & (starts < len(rises))]] = True
        if not rises.all():
            raise DataError("items judged for one query must ascend and be there once")

    @classmethod
    def from_lists(
        cls, queries_J: Ints, items_J: Ints, grades_J: Ints, *, num_queries: int, top_grade: int
    ) -> Judgements:
        """Judgements in any order."""
        order = np.lexsort((items_J, queries_J))
        counts = np.bincount(queries_J, minlength=num_queries)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(items_J[order], grades_J[order], offsets, top_grade)

    @property
    def num_queries(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts_Q(self) -> Ints:
        """(Q,) judged items of each query."""
        return np.diff(self.offsets)

    @property
    def queries_J(self) -> Ints:
        """Query row of each judgement, ascending."""
        return np.repeat(np.arange(self.num_queries), self.counts_Q)

    def of(self, query: int) -> tuple[Ints, Ints]:
        """Items and grades of one query."""
        part = slice(self.offsets[query], self.offsets[query + 1])
        return self.items_J[part], self.grades_J[part]

    def pairs(self, least: int) -> Ints:
        """(P, 2) query and item rows of the judgements with at least this grade."""
        kept = self.grades_J >= least
        return np.stack([self.queries_J[kept], self.items_J[kept]], axis=1)

    def take(self, rows: Ints) -> Judgements:
        """Those of the chosen queries, in the given order."""
        ends = self.offsets.tolist()
        parts = [np.arange(ends[row], ends[row + 1]) for row in rows.tolist()]
        kept = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
        lengths = [0, *map(len, parts)]
        offsets = np.cumsum(lengths).astype(np.int64)
        return Judgements(self.items_J[kept], self.grades_J[kept], offsets, self.top_grade)


@dataclass(frozen=True, eq=False)
class Sessions:
    """What people saw for a query, top first, and what they clicked."""

    queries: Queries
    queries_S: Ints
    """Query row of each session."""
    items_E: Ints
    """Catalogue rows shown, session after session, in the order of the page."""
    clicked_E: Bools
    offsets: Ints
    """(S + 1,) session s showed `offsets[s]:offsets[s + 1]`."""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.items_E) != len(self.clicked_E) or self.offsets[-1] != len(self.items_E):
            raise DataError("sessions need one item and one click or none for each place")
        if self.offsets[0] != 0 or (np.diff(self.offsets) < 1).any():
            raise DataError("every session must show at least one item")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def clicked(self, session: int) -> Ints:
        """Items clicked, in the order of the page."""
        part = slice(self.offsets[session], self.offsets[session + 1])
        return self.items_E[part][self.clicked_E[part]]

    def skipped(self, session: int) -> Ints:
        """Items not clicked above the last click: seen and passed by, as far as clicks can tell.

        A session without a click says nothing about what was seen, so it gives none.
        """
        part = slice(self.offsets[session], self.offsets[session + 1])
        items, clicked = self.items_E[part], self.clicked_E[part]
        if not clicked.any():
            return items[:0]
        last = int(np.flatnonzero(clicked)[-1])
        return items[:last][~clicked[:last]]

    def judgements(self) -> Judgements:
        """Items clicked in any session of a query as grade 1, items only ever skipped as 0."""
        votes: dict[tuple[int, int], int] = {}
        for session, query in enumerate(self.queries_S.tolist()):
            for item in self.skipped(session).tolist():
                votes.setdefault((query, item), 0)
            for item in self.clicked(session).tolist():
                votes[query, item] = 1
        rows = np.array([(*pair, grade) for pair, grade in votes.items()], dtype=np.int64)
        queries_J, items_J, grades_J = rows.reshape(-1, 3).T
        return Judgements.from_lists(
            queries_J, items_J, grades_J, num_queries=len(self.queries), top_grade=1
        )


@dataclass(frozen=True, eq=False)
class SearchData:
    """A catalogue, queries over it, and how well items answer them."""

    name: str
    items: Items
    queries: Queries
    judgements: Judgements
    notes: tuple[str, ...] = ()
    """What reading did, in words: merged, cleaned and dropped rows with counts."""

    def __post_init__(self) -> None:
        if self.judgements.num_queries != len(self.queries):
            raise DataError(
                f"{len(self.queries)} queries need as many lists of judgements, got "
                f"{self.judgements.num_queries}"
            )
        if (self.judgements.items_J >= len(self.items)).any():
            raise DataError("judgements name items beyond the catalogue")

    def take(self, rows: Ints) -> SearchData:
        """The chosen queries with their judgements, over the same catalogue."""
        queries, judgements = self.queries.take(rows), self.judgements.take(rows)
        return SearchData(self.name, self.items, queries, judgements, self.notes)
