"""Pairs of a search query and the item it asks for: read from a file, or made from item texts.

A made query is a short run of words of the item's title, one time in four of its categories. Each
item draws its own, so that neither the order nor the number of other items changes them.

Source:  none; arXiv:2508.10478 has a language model write 20 queries an item instead.
Differs: nothing to differ from.
Cost:    O(words of all texts); a second for 12,101 items.
Shapes:  P pairs, N items.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sidrec.errors import DataError
from sidrec.types import Ints, Items

NAME_COLUMNS = ("title", "name", "text", "keywords", "description")
KIND_COLUMNS = ("categories", "category", "genres")
KIND_SHARE = 0.25
"""Chance that a made query consists of category words, where the item has both."""
WORD = re.compile(r"\w+")


@dataclass(frozen=True, eq=False)
class QueryPairs:
    """P queries, each with the catalogue row of an item that answers it."""

    texts: tuple[str, ...]
    """P queries; one that several items answer stands once for each."""
    rows_P: Ints
    num_dropped: int = 0
    """Pairs of the file without words, or with an item that is not in the catalogue."""

    def __len__(self) -> int:
        return len(self.texts)

    def without(self, known: Sequence[str]) -> QueryPairs:
        """The pairs whose query is not among `known`."""
        seen = set(known)
        kept = [number for number, text in enumerate(self.texts) if text not in seen]
        return QueryPairs(
            tuple(self.texts[k] for k in kept), self.rows_P[kept], len(self) - len(kept)
        )


def made_queries(items: Items, *, per_item: int, max_words: int, seed: int) -> QueryPairs:
    """Up to `per_item` different runs of 1 to `max_words` words of each item's own texts."""
    names, kinds = _words(items, NAME_COLUMNS), _words(items, KIND_COLUMNS)
    texts: list[str] = []
    rows: list[int] = []
    for row, item_id in enumerate(items.item_ids):
        rng = np.random.default_rng([seed, zlib.crc32(str(item_id).encode())])
        sources = [words for words in (names[row], kinds[row]) if words]
        if not sources:
            continue
        made: set[str] = set()
        for _ in range(per_item):
            words = sources[int(rng.random() < KIND_SHARE) if len(sources) > 1 else 0]
            length = min(int(rng.integers(1, max_words + 1)), len(words))
            start = int(rng.integers(len(words) - length + 1))
            made.add(" ".join(words[start : start + length]))
        texts += sorted(made)
        rows += [row] * len(made)
    return QueryPairs(tuple(texts), np.array(rows, dtype=np.int64))


def read_queries(
    path: str | Path, items: Items, *, query_column: str, item_column: str
) -> QueryPairs:
    """Pairs of a Parquet, CSV or JSON-lines file; rows without a query or known item are counted.

    DataError where the file cannot be read or no pair is left.
    """
    import polars as pl

    path = Path(path)
    if not path.is_file():
        raise DataError(f"joint: no file {path}; check joint.queries")
    try:
        if path.suffix == ".parquet":
            table = pl.read_parquet(path)
        elif path.suffix == ".csv":
            table = pl.read_csv(path, infer_schema=False)
        elif path.suffix in (".jsonl", ".ndjson"):
            table = pl.read_ndjson(path)
        else:
            raise DataError(f"joint: {path.name} must end in .parquet, .csv or .jsonl")
    except pl.exceptions.PolarsError as cause:
        raise DataError(f"joint: {path.name} cannot be read as {path.suffix[1:]}") from cause
    for column, setting in ((query_column, "query_column"), (item_column, "item_column")):
        if column not in table.columns:
            raise DataError(
                f"joint: {path.name} has no column {column!r}, has {table.columns}; "
                f"set joint.{setting}"
            )
    pairs = [
        (text, items.row_of[str(item)])
        for query, item in table.select(query_column, item_column).iter_rows()
        if (text := " ".join(str(query or "").split())) and str(item) in items.row_of
    ]
    if not pairs:
        raise DataError(
            f"joint: none of the {table.height} rows of {path.name} holds a query and an item of "
            f"the catalogue; check the columns {query_column!r} and {item_column!r}"
        )
    texts, rows = zip(*pairs, strict=True)
    return QueryPairs(texts, np.array(rows, dtype=np.int64), table.height - len(pairs))


def _words(items: Items, columns: Sequence[str]) -> list[list[str]]:
    """Lower-case words of each item's first of these columns that is filled."""
    found: list[list[str]] = [[] for _ in range(len(items))]
    for name in columns:
        if name in items.attributes.columns:
            for row, value in enumerate(items.attributes[name].to_list()):
                found[row] = found[row] or WORD.findall(_joined(value).lower())
    return found


def _joined(value: Any) -> str:
    """One text of a cell that is a text, a list of texts, or empty."""
    if value is None:
        return ""
    return value if isinstance(value, str) else " ".join(str(part) for part in value)
