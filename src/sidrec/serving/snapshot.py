"""One bundle with one state of its catalogue: what an answer is made from, from start to end.

A snapshot never changes. Items that are deleted or not available are a mask of the search, as are
a request's own rules, so k items come back when k exist.

Shapes:   N items, K returned items, P pool of a re-ranking, D width, L levels.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import orjson
import polars as pl

from sidrec import filters
from sidrec.errors import ConfigError, DataError
from sidrec.recommender import Recommender
from sidrec.serving.problems import Problem
from sidrec.serving.shelves import Shelves
from sidrec.types import Bools, Floats, Ints, Items

MAX_MASKS = 64
"""Filters whose masks are kept."""
MAX_SKIPPED = 20
"""Unknown items that an answer names."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Snapshot:
    """What one answer is made from."""

    recommender: Recommender
    name: str
    """Of the bundle's folder."""
    version: str
    """First 12 characters of the bundle's hash."""
    catalogue_version: int
    available_N: Bools
    """Items that may be in an answer."""
    deleted_N: Bools
    """Items that nobody may see any more; never available."""
    _masks: OrderedDict[bytes, Bools] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, recommender: Recommender, *, name: str, catalogue_version: int) -> Self:
        """A bundle as it was saved: everything available."""
        num_items = len(recommender.items)
        return cls(
            recommender=recommender,
            name=name,
            version=str(recommender.content_hash)[:12],
            catalogue_version=catalogue_version,
            available_N=np.ones(num_items, dtype=bool),
            deleted_N=np.zeros(num_items, dtype=bool),
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What every answer says of where it comes from."""
        return {
            "model": self.name,
            "model_version": self.version,
            "catalogue_version": self.catalogue_version,
        }

    @cached_property
    def all_available(self) -> bool:
        return bool(self.available_N.all())

    @cached_property
    def popular_N(self) -> Ints:
        """Catalogue rows by training events, most first, ties by row."""
        return np.argsort(-self.recommender.train_counts_N, kind="stable")

    @cached_property
    def unit_vectors_ND(self) -> Floats:
        """Item vectors of length 1; zero where an item has none."""
        vectors = self.recommender.vectors.vectors
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    @cached_property
    def shelves(self) -> Shelves:
        """The catalogue to look through."""
        return Shelves(self.recommender, self.available_N, self.deleted_N)

    # ---------------------------------------------------------------- from outside ids

    def rows_known(self, item_ids: Sequence[str]) -> tuple[Ints, list[str]]:
        """Catalogue rows of the items there are, and the first ids of those there are not."""
        row_of = self.recommender.items.row_of
        rows = [row for row in map(row_of.get, item_ids) if row is not None]
        if len(rows) == len(item_ids):
            return np.array(rows, dtype=np.int64), []
        skipped = list(dict.fromkeys(item for item in item_ids if item not in row_of))
        return np.array(rows, dtype=np.int64), skipped[:MAX_SKIPPED]

    def row(self, item_id: str) -> int:
        """Catalogue row of an item that is not deleted. Problem `unknown_item`."""
        row = self.recommender.items.row_of.get(item_id)
        if row is None or self.deleted_N[row]:
            raise Problem("unknown_item", f"the catalogue has no item {item_id!r}")
        return row

    def system(self, name: str | None) -> str:
        """The system that a caller's word means."""
        try:
            return self.recommender.system_named(name)
        except ConfigError as error:
            raise Problem("invalid_request", f"system: {error}") from error

    def has_system(self, name: str | None) -> bool:
        """Whether the model has the system that a caller's word means."""
        try:
            self.recommender.system_named(name)
        except ConfigError:
            return False
        return True

    def mask(self, tree: Mapping[str, Any]) -> Bools:
        """(N,) items that meet a filter. Problem `unknown_field` or `invalid_request`."""
        try:
            key = orjson.dumps(tree, option=orjson.OPT_SORT_KEYS)
        except (orjson.JSONEncodeError, RecursionError) as error:
            raise Problem("invalid_request", f"filter: {error}") from error
        with self._lock:
            if (found := self._masks.get(key)) is not None:
                self._masks.move_to_end(key)
                return found
        try:
            found = filters.mask(tree, self.recommender.items.attributes)
        except ConfigError as error:
            code = "unknown_field" if "no attribute" in str(error) else "invalid_request"
            raise Problem(code, str(error), hint="filters take attributes of the items") from error
        with self._lock:
            self._masks[key] = found
            while len(self._masks) > MAX_MASKS:
                self._masks.popitem(last=False)
        return found

    def require_fields(self, names: Sequence[str]) -> None:
        """Problem `unknown_field` for attributes that items do not have."""
        have = self.recommender.items.attributes.columns
        if unknown := [name for name in names if name not in have]:
            raise Problem(
                "unknown_field",
                f"items have no attribute {unknown[0]!r}; have {have}",
                errors=[{"field": "include_fields", "message": f"no attribute {unknown[0]!r}"}],
            )

    # ---------------------------------------------------------------- to outside ids

    def codes(self, row: int) -> list[int]:
        """The semantic ID of a row, without what follows its end."""
        return [code for code in self.recommender.ids.codes[row].tolist() if code >= 0]

    def attributes(self, rows: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
        """Chosen attributes of the rows, as JSON values."""
        chosen = self.recommender.items.attributes[list(rows), :].select(names)
        return [{k: plain(v) for k, v in row.items()} for row in chosen.to_dicts()]

    def states(self, item_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Items as they are served."""
        rows = [self.row(item_id) for item_id in item_ids]
        names = [c for c in self.recommender.items.attributes.columns if c != "item_id"]
        return [
            {
                "item_id": item_id,
                "semantic_id": self.codes(row),
                "available": bool(self.available_N[row]),
                "attributes": attributes,
            }
            for item_id, row, attributes in zip(
                item_ids, rows, self.attributes(rows, names), strict=True
            )
        ]

    def like(self, rows: Ints) -> Bools:
        """(N,) items whose semantic ID begins with the same code as that of one of the rows."""
        first_N = self.recommender.ids.codes[:, 0]
        return np.isin(first_N, first_N[rows])

    def popular(
        self, k: int, keep_N: Bools | None, exclude: Ints, segment_N: Bools | None = None
    ) -> tuple[Ints, Floats]:
        """The k most popular items that the rules leave, those of the segment first; their scores.

        A score is the item's training events; in the segment, plus those of any item and one.
        """
        order, counts_N = self.popular_N, self.recommender.train_counts_N
        allowed_N = self.available_N if keep_N is None else self.available_N & keep_N
        if len(exclude):
            allowed_N = allowed_N.copy()
            allowed_N[exclude] = False
        if segment_N is None:
            rows = order[allowed_N[order]][:k]
            return rows, counts_N[rows].astype(np.float32)
        first, second = (order[mask_N[order]] for mask_N in (segment_N, ~segment_N))
        rows = np.concatenate([first, second])
        rows = rows[allowed_N[rows]][:k]
        lead = int(counts_N.max(initial=0)) + 1
        return rows, (counts_N[rows] + lead * segment_N[rows]).astype(np.float32)

    # ---------------------------------------------------------------- the next snapshot

    def with_items(self, new: Sequence[Mapping[str, Any]]) -> Snapshot:
        """A snapshot with items added or changed; each has item_id, attributes and available (None
        leaves it as it is), and may say that it is `known`: then it must be, and not be deleted.

        A known item keeps its semantic ID and vector whatever its attributes become, until the
        next fit. Problem `unknown_field` or `invalid_request` where attributes do not fit.
        """
        recommender = self.recommender
        row_of = recommender.items.row_of
        known = [entry for entry in new if entry["item_id"] in row_of]
        fresh = [entry for entry in new if entry["item_id"] not in row_of]
        for entry in new:
            if entry.get("known"):
                self.row(entry["item_id"])
        schema = recommender.items.attributes.schema
        fields = [name for name in schema if name != "item_id"]
        for entry in new:
            if unknown := [name for name in entry["attributes"] if name not in fields]:
                raise Problem(
                    "unknown_field",
                    f"item {entry['item_id']!r}: the catalogue has no attribute {unknown[0]!r}; "
                    f"have {fields}",
                    hint="attributes are those of the table that the model was fitted with",
                )
        available_N, deleted_N = self.available_N, self.deleted_N
        if known:
            rows = [row_of[entry["item_id"]] for entry in known]
            changed = [i for i, entry in enumerate(known) if entry["attributes"]]
            if changed:
                table = with_attributes(
                    recommender.items.attributes,
                    [rows[i] for i in changed],
                    [known[i] for i in changed],
                )
                items = Items(recommender.items.item_ids, table)
                recommender = replace(recommender, items=items)
            available_N, deleted_N = available_N.copy(), deleted_N.copy()
            for row, entry in zip(rows, known, strict=True):
                if entry["available"] is not None:
                    available_N[row] = entry["available"]
            deleted_N[rows] = False
        if fresh:
            table = attribute_table(schema, fresh)
            try:
                recommender = recommender.add_items(table)
            except DataError as error:
                raise Problem("invalid_request", str(error)) from error
            available = np.array([entry["available"] for entry in fresh], dtype=bool)
            available_N = np.concatenate([available_N, available])
            deleted_N = np.concatenate([deleted_N, np.zeros(len(fresh), dtype=bool)])
        _ = recommender.compiled_search  # made now, so that no request waits for it
        return replace(
            self,
            recommender=recommender,
            catalogue_version=self.catalogue_version + 1,
            available_N=available_N,
            deleted_N=deleted_N,
            _masks=OrderedDict(),
            _lock=threading.Lock(),
        )

    def without(self, item_ids: Sequence[str]) -> Snapshot:
        """A snapshot in which these items are deleted. Problem `unknown_item`."""
        rows = [self.row(item_id) for item_id in item_ids]
        available_N, deleted_N = self.available_N.copy(), self.deleted_N.copy()
        available_N[rows], deleted_N[rows] = False, True
        return replace(
            self,
            catalogue_version=self.catalogue_version + 1,
            available_N=available_N,
            deleted_N=deleted_N,
        )


def attribute_table(schema: Mapping[str, Any], new: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Attributes of new items in the catalogue's own columns and types."""
    columns = {}
    for name, dtype in schema.items():
        if name == "item_id":
            continue
        values = [entry["attributes"].get(name) for entry in new]
        columns[name] = _series(name, values, dtype)
    ids = pl.Series("item_id", [entry["item_id"] for entry in new], dtype=pl.String)
    return pl.DataFrame([*columns.values(), ids])


def with_attributes(
    table: pl.DataFrame, rows: Sequence[int], changed: Sequence[Mapping[str, Any]]
) -> pl.DataFrame:
    """The table with the named attributes of the rows replaced; other attributes stay."""
    named = list(dict.fromkeys(name for entry in changed for name in entry["attributes"]))
    for name in named:
        where = [(r, e) for r, e in zip(rows, changed, strict=True) if name in e["attributes"]]
        values = _series(name, [e["attributes"][name] for _, e in where], table.schema[name])
        # by gathering, since scatter takes no lists
        places = np.arange(table.height)
        places[[r for r, _ in where]] = table.height + np.arange(len(where))
        table = table.with_columns(pl.concat([table[name], values]).gather(places))
    return table


def _series(name: str, values: list[Any], dtype: Any) -> pl.Series:
    try:
        return pl.Series(name, values, dtype=dtype, strict=True)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        raise Problem(
            "invalid_request",
            f"attribute {name!r} must be {dtype}, got {str(values[:3])[:200]}",
            errors=[{"field": f"attributes.{name}", "message": f"must be {dtype}"}],
        ) from error


def plain(value: Any) -> Any:
    """A JSON value for an attribute: numbers that JSON lacks become None, times become texts."""
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, list):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
