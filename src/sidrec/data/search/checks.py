"""Tables of queries, judgements and shown items to checked values; nothing about them is believed.

With `on_error="raise"` the first fault raises DataError; with "skip" faulty rows are dropped and
counted in the notes. Never faults, always noted: control characters (made spaces), queries with the
same words (merged under the first id), repeated equal judgements, queries without a judgement.

Faults: an empty query, one that is too long, a query id twice with different texts, an unknown
item or query, a grade that is no whole number of the scale, two grades for one query and item.

Cost:     a few passes in plain Python; a second per 200,000 judgements.
Shapes:   Q queries, J judgements, S sessions, E shown items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from sidrec.data.search.values import (
    MAX_QUERY_CHARS,
    Judgements,
    Queries,
    SearchData,
    Sessions,
    clean_query,
)
from sidrec.data.tables import OnError
from sidrec.errors import DataError
from sidrec.types import Items, as_ids


class Sieve:
    """Counts what is dropped, or raises at the first of it."""

    def __init__(self, name: str, on_error: OnError) -> None:
        self.name, self.on_error = name, on_error
        self.notes: list[str] = []

    def note(self, what: str, found: Iterable[object]) -> None:
        """Say that something was found, unless nothing was."""
        if listed := list(found):
            examples = ", ".join(repr(value) for value in listed[:3])
            self.notes.append(f"{self.name}: {len(listed)} {what}, e.g. {examples}")

    def drop(self, what: str, found: Iterable[object], fix: str) -> None:
        """A fault: raise, or note that it was dropped."""
        if (listed := list(found)) and self.on_error == "raise":
            examples = ", ".join(repr(value) for value in listed[:3])
            raise DataError(
                f"{self.name}: {len(listed)} {what}, e.g. {examples}; {fix}, or read with "
                "on_error='skip' to drop and count them"
            )
        self.note(f"{what}, dropped", listed)


def same_query(text: str) -> str:
    """What two spellings of one query share: words without case."""
    return " ".join(text.casefold().split())


def read_queries(
    table: pl.DataFrame, sieve: Sieve, id_column: str, text_column: str
) -> tuple[Queries, dict[str, int]]:
    """The queries, and every outside id (merged ones too) -> row."""
    raw = [
        (str(query_id), "" if text is None else str(text))
        for query_id, text in table.select(id_column, text_column).iter_rows()
    ]
    cleaned = [(query_id, clean_query(text[: 2 * MAX_QUERY_CHARS])) for query_id, text in raw]
    long = {i for i, (_, text) in enumerate(raw) if len(text) > MAX_QUERY_CHARS}
    empty = {i for i, (_, text) in enumerate(cleaned) if not text} - long
    changed = [
        raw[i][1] for i, (_, text) in enumerate(cleaned) if text != " ".join(raw[i][1].split())
    ]
    sieve.drop("empty queries", (raw[i][0] for i in sorted(empty)), "fill or remove them")
    sieve.drop(
        f"queries of more than {MAX_QUERY_CHARS} characters",
        (raw[i][0] for i in sorted(long)),
        "shorten them",
    )
    sieve.note("queries with control characters, made spaces", changed)
    ids: list[str] = []
    texts: list[str] = []
    row_of: dict[str, int] = {}
    row_of_text: dict[str, int] = {}
    twice: list[str] = []
    merged: list[str] = []
    for i, (query_id, text) in enumerate(cleaned):
        if i in empty or i in long:
            continue
        key = same_query(text)
        if query_id in row_of:
            if row_of_text.get(key) != row_of[query_id]:
                twice.append(query_id)
        elif key in row_of_text:
            row_of[query_id] = row_of_text[key]
            merged.append(text)
        else:
            row_of[query_id] = row_of_text[key] = len(ids)
            ids.append(query_id)
            texts.append(text)
    sieve.drop("query ids with a second text", twice, "give every text its own id")
    sieve.note("queries repeat another's words, merged with it", merged)
    if not ids:
        raise DataError(f"{sieve.name}: no query is left; expected at least one with words")
    return Queries(as_ids(ids), tuple(texts)), row_of


def build_search(
    name: str,
    items: Items,
    queries: pl.DataFrame,
    judgements: pl.DataFrame,
    *,
    grade_of: Callable[[Any], int | None],
    top_grade: int,
    query_columns: tuple[str, str],
    judgement_columns: tuple[str, str, str],
    on_error: OnError,
) -> SearchData:
    """Checked search data; `grade_of` gives None for what is no grade."""
    sieve = Sieve(name, on_error)
    asked, row_of = read_queries(queries, sieve, *query_columns)
    grades, notes = _grades(judgements, judgement_columns, sieve, row_of, items.row_of, grade_of)
    rows = np.array([(*pair, grade) for pair, grade in grades.items()], dtype=np.int64)
    queries_J, items_J, grades_J = rows.reshape(-1, 3).T
    found = Judgements.from_lists(
        queries_J, items_J, grades_J, num_queries=len(asked), top_grade=top_grade
    )
    sieve.note("queries without a judgement", asked.query_ids[found.counts_Q == 0])
    if not len(found.items_J):
        raise DataError(
            f"{name}: no judgement is left of {judgements.height}; check that item and query ids "
            "are those of the catalogue and of the queries"
        )
    return SearchData(name, items, asked, found, (*sieve.notes, *notes))


def _grades(
    table: pl.DataFrame,
    columns: tuple[str, str, str],
    sieve: Sieve,
    query_of: Mapping[str, int],
    item_of: Mapping[str, int],
    grade_of: Callable[[Any], int | None],
) -> tuple[dict[tuple[int, int], int], list[str]]:
    """(query row, item row) -> grade, and notes."""
    grades: dict[tuple[int, int], int] = {}
    conflicts: dict[tuple[int, int], tuple[str, str]] = {}
    faults: dict[str, list[tuple[Any, ...]]] = {"query": [], "item": [], "grade": []}
    repeated = 0
    for query_id, item_id, value in table.select(columns).iter_rows():
        named = (str(query_id), str(item_id))
        query, item, grade = query_of.get(named[0]), item_of.get(named[1]), grade_of(value)
        if query is None:
            faults["query"].append(named)
        elif item is None:
            faults["item"].append(named)
        elif grade is None:
            faults["grade"].append((*named, value))
        elif grades.setdefault((query, item), grade) != grade:
            conflicts[query, item] = named
        else:
            repeated += 1
    repeated -= len(grades)
    sieve.drop("judgements of unknown queries", faults["query"], "add the queries")
    sieve.drop("judgements of unknown items", faults["item"], "add the items to the catalogue")
    sieve.drop("judgements without a grade of the scale", faults["grade"], "correct the grades")
    sieve.drop(
        "pairs of query and item with different grades",
        conflicts.values(),
        "keep one grade of each (equal words are one query)",
    )
    kept = {pair: grade for pair, grade in grades.items() if pair not in conflicts}
    notes = [f"{sieve.name}: {repeated} repeated judgements, merged"] if repeated > 0 else []
    return kept, notes


def build_sessions(
    table: pl.DataFrame,
    items: Items,
    *,
    name: str,
    columns: Mapping[str, str],
    on_error: OnError,
) -> Sessions:
    """Checked sessions of a table with one row a shown item; `columns` maps
    session, query, item, clicked and position.
    """
    sieve = Sieve(name, on_error)
    chosen = table.select([columns[r] for r in ("session", "query", "item", "clicked", "position")])
    chosen.columns = ["session", "query", "item", "clicked", "position"]
    clicked = chosen["clicked"].cast(pl.Float64, strict=False)
    wrong = ~clicked.is_in([0.0, 1.0]).fill_null(False)
    sieve.drop("rows whose click is not 0 or 1", chosen.filter(wrong)["clicked"], "correct them")
    chosen = chosen.with_columns(clicked.alias("clicked")).filter(~wrong)
    sessions = chosen.group_by("session", maintain_order=True).agg(pl.col("query").unique())
    mixed = sessions.filter(pl.col("query").list.len() > 1)["session"]
    sieve.drop("sessions with more than one query", mixed, "give every query its own session")
    chosen = chosen.filter(~pl.col("session").is_in(mixed.implode()))
    texts = chosen.select("query").unique(maintain_order=True)
    queries, row_of = read_queries(texts.with_columns(id=pl.col("query")), sieve, "id", "query")
    row_in = items.row_of
    known = pl.Series([str(item) in row_in for item in chosen["item"]], dtype=pl.Boolean)
    sieve.drop("shown items that are unknown", chosen.filter(~known)["item"], "add the items")
    asked = pl.Series([str(text) in row_of for text in chosen["query"]], dtype=pl.Boolean)
    chosen = chosen.filter(known & asked).sort("position", maintain_order=True)
    parts = chosen.partition_by("session", maintain_order=True)
    if not parts:
        raise DataError(f"{name}: no session is left; expected rows with a query and known items")
    shown: list[int] = []
    clicks: list[bool] = []
    offsets, rows = [0], []
    for part in parts:
        best: dict[int, bool] = {}
        for item, click in part.select("item", "clicked").iter_rows():
            row = row_in[str(item)]
            best[row] = best.get(row, False) or bool(click)
        shown += best
        clicks += best.values()
        offsets.append(len(shown))
        rows.append(row_of[str(part["query"][0])])
    return Sessions(
        queries,
        np.array(rows, dtype=np.int64),
        np.array(shown, dtype=np.int64),
        np.array(clicks, dtype=np.bool_),
        np.array(offsets, dtype=np.int64),
        tuple(sieve.notes),
    )
