"""Brands, categories, colours and prices of a catalogue, and the words that name them.

A phrase names a brand where the catalogue has it and, for one word, where at least `BRAND_SHARE`
of the titles with that word are of the brand ("white" is no brand, though one is called so). A
phrase names a category where a node of a category path is called so, whole or between its commas
and ampersands. Accents and plural endings do not matter.

Cost:     one pass over four columns.
Shapes:   N items, C categories (the leading part of a path, `depth` nodes), P names.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import polars as pl

from sidrec.retrieval.search.understanding.lexicon import Lexicon, stems_of
from sidrec.types import Floats, Ints, Items

BRAND_SHARE = 0.2
COLOUR_ITEMS = 3
"""A name is a colour where so many items have it, alone or between commas and slashes."""
MAX_WORDS = 6
PARTS = re.compile(r"\s*[,&/|>]\s*|\s+and\s+")
Key = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Attributes:
    """Values of every item, −1 or NaN where it has none, and the names of the values."""

    brands: tuple[str, ...]
    """Brands as the catalogue writes them; spellings that differ in case stand apart."""
    brands_N: Ints
    paths: tuple[tuple[str, ...], ...]
    """C leading parts of category paths."""
    categories_N: Ints
    """Path of each item, −1 without one."""
    nodes: tuple[str, ...]
    """Names of all nodes of category paths."""
    colours: tuple[str, ...]
    """Names of colours, as stems with a space between."""
    prices_N: Floats
    fields: Mapping[str, str]
    """brand, category, colour and price -> the column that holds it, where there is one."""

    @classmethod
    def fit(cls, items: Items, fields: Mapping[str, str], *, depth: int, least: int) -> Self:
        """Read the columns that `fields` names; absent ones give no values.

        A path with fewer than `least` items is cut to its parent, and so on to its first node.
        """
        table, num = items.attributes, len(items)
        fields = {role: name for role, name in fields.items() if name in table.columns}
        named = _texts(table, fields, "brand", num)
        named = ["" if name.casefold() in ("", "unknown") else name for name in named]
        brands = tuple(sorted(set(named) - {""}))
        number = {name: place for place, name in enumerate(brands)}
        brands_N = np.array([number.get(name, -1) for name in named], dtype=np.int64)
        full = [_path(cell) for cell in _cells(table, fields, "category", num)]
        paths, categories_N = _merged([path[:depth] for path in full], least)
        nodes = tuple(sorted({node for path in full for node in path}))
        names = Counter(
            key
            for text in _texts(table, fields, "colour", num)
            for key in {key_of(part) for part in PARTS.split(text)}
        )
        frequent = sorted(key for key, n in names.items() if key and n >= COLOUR_ITEMS)
        colours = tuple(" ".join(key) for key in frequent if all(w.isalpha() for w in key))
        prices_N = np.full(num, np.nan, dtype=np.float32)
        if "price" in fields:
            prices = table[fields["price"]].cast(pl.Float64, strict=False)
            prices_N = prices.fill_null(np.nan).to_numpy().astype(np.float32)
        return cls(brands, brands_N, paths, categories_N, nodes, colours, prices_N, fields)

    @cached_property
    def colours_of(self) -> frozenset[Key]:
        """Stems of every colour."""
        return frozenset(tuple(name.split()) for name in self.colours)

    @cached_property
    def number_of(self) -> dict[Key, int]:
        """Path -> its number."""
        return {path: place for place, path in enumerate(self.paths)}

    @cached_property
    def brands_of(self) -> dict[Key, list[int]]:
        """Stems of a brand -> the brands so called."""
        found: dict[Key, list[int]] = defaultdict(list)
        for place, name in enumerate(self.brands):
            if key := key_of(name):
                found[key].append(place)
        return dict(found)

    @cached_property
    def nodes_of(self) -> dict[Key, list[str]]:
        """Stems of a category, or of a part of its name -> the nodes so called."""
        found: dict[Key, list[str]] = defaultdict(list)
        for node in self.nodes:
            for key in dict.fromkeys(key_of(part) for part in (node, *PARTS.split(node))):
                if key and len(key[0]) > 1:
                    found[key].append(node)
        return dict(found)

    def brands_named(self, key: Key, lexicon: Lexicon) -> list[int]:
        """Brands that a phrase of the query names; [] where it more often means something else."""
        brands = self.brands_of.get(key, [])
        if len(key) != 1 or not brands:
            return brands
        (word,) = key
        if word.isdigit() or len(word) < 2:
            return []
        own = int(np.isin(self.brands_N, brands).sum())
        return brands if own >= BRAND_SHARE * max(own, len(lexicon.holding(word))) else []

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state`."""
        return {"brands": self.brands_N, "categories": self.categories_N, "prices": self.prices_N}

    def state(self) -> dict[str, Any]:
        """JSON-able rest: the names."""
        return {
            "brands": list(self.brands),
            "paths": [list(path) for path in self.paths],
            "nodes": list(self.nodes),
            "colours": list(self.colours),
            "fields": dict(self.fields),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> Self:
        """The attributes that `arrays` and `state` came from."""
        return cls(
            tuple(state["brands"]),
            arrays["brands"],
            tuple(map(tuple, state["paths"])),
            arrays["categories"],
            tuple(state["nodes"]),
            tuple(state["colours"]),
            arrays["prices"],
            state["fields"],
        )


def key_of(text: str) -> Key:
    """Stems of a name without accents.

    >>> key_of("TRESemmé Shampoos")
    ('tresemme', 'shampoo')
    """
    plain = unicodedata.normalize("NFKD", text)
    return tuple(stems_of("".join(c for c in plain if not unicodedata.combining(c))))


def _cells(table: pl.DataFrame, fields: Mapping[str, str], role: str, num: int) -> list[Any]:
    return table[fields[role]].to_list() if role in fields else [None] * num


def _texts(table: pl.DataFrame, fields: Mapping[str, str], role: str, num: int) -> list[str]:
    return ["" if v is None else str(v).strip() for v in _cells(table, fields, role, num)]


def _path(cell: Any) -> tuple[str, ...]:
    """Nodes of a category cell, a list or one text with separators."""
    if cell is None:
        return ()
    nodes: Sequence[Any] = re.split(r"\s*[>|/]\s*", cell) if isinstance(cell, str) else list(cell)
    return tuple(str(node).strip() for node in nodes if node is not None and str(node).strip())


def _merged(paths_N: list[Key], least: int) -> tuple[tuple[Key, ...], Ints]:
    """Paths that are frequent enough, and the number of each item's."""
    paths_N = list(paths_N)
    longest = max(map(len, paths_N), default=0)
    for length in range(longest, 1, -1):
        counts = Counter(paths_N)
        paths_N = [
            path[:-1] if len(path) == length and counts[path] < least else path for path in paths_N
        ]
    paths = tuple(sorted(set(paths_N) - {()}))
    number = {path: place for place, path in enumerate(paths)}
    return paths, np.array([number.get(path, -1) for path in paths_N], dtype=np.int64)
