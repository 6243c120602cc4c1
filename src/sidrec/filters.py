"""Typed filters over item attributes: a small tree of conditions becomes one mask of items.

A condition is {"field": "price", "op": "lt", "value": 50}; conditions combine with {"and": […]},
{"or": […]} and {"not": …}. Ops: eq, ne, lt, le, gt, ge, in, contains (a word in a text, ignoring
case, or an entry of a list), exists. A missing attribute satisfies no condition, also not `ne`.
The mask becomes a rule inside the search, so k items come back when k exist. Nothing is evaluated.

Cost:     one pass over each named column.
Shapes:   N items.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl

from sidrec.errors import ConfigError
from sidrec.types import Bools

MAX_DEPTH = 8
MAX_CONDITIONS = 64

_OPS: dict[str, Callable[[pl.Series, Any], pl.Series]] = {
    "eq": lambda column, value: column == value,
    "ne": lambda column, value: column != value,
    "lt": lambda column, value: column < value,
    "le": lambda column, value: column <= value,
    "gt": lambda column, value: column > value,
    "ge": lambda column, value: column >= value,
    "in": lambda column, value: column.is_in(value),
    "contains": lambda column, value: _contains(column, value),
    "exists": lambda column, value: column.is_not_null() == bool(value),
}


def mask(tree: Mapping[str, Any], attributes: pl.DataFrame) -> Bools:
    """(N,) True where the item meets the tree. ConfigError names an unknown field or op."""
    remaining = [MAX_CONDITIONS]
    return _mask(tree, attributes, 1, remaining)


def _mask(tree: Any, attributes: pl.DataFrame, depth: int, remaining: list[int]) -> Bools:
    remaining[0] -= 1
    if depth > MAX_DEPTH or remaining[0] < 0:
        raise ConfigError(
            f"a filter may hold {MAX_CONDITIONS} conditions, {MAX_DEPTH} deep; simplify it"
        )
    if not isinstance(tree, Mapping):
        raise ConfigError(f"a filter must be an object, got {tree!r}")
    if len(tree) == 1:
        ((word, parts),) = tree.items()
        if word == "not":
            return ~_mask(parts, attributes, depth + 1, remaining)
        if word in ("and", "or") and isinstance(parts, list) and parts:
            masks = [_mask(part, attributes, depth + 1, remaining) for part in parts]
            return (np.logical_and if word == "and" else np.logical_or).reduce(masks)
    if not set(tree) <= {"field", "op", "value"} or not {"field", "op"} <= set(tree):
        raise ConfigError(
            f'a filter is {{"field", "op", "value"}} or {{"and" | "or": […]}} or {{"not": …}}, '
            f"got keys {sorted(map(str, tree))}"
        )
    return _condition(tree["field"], tree["op"], tree.get("value", True), attributes)


def _condition(name: Any, op: Any, value: Any, attributes: pl.DataFrame) -> Bools:
    if name not in attributes.columns:
        near = difflib.get_close_matches(str(name), attributes.columns, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"have {attributes.columns}"
        raise ConfigError(f"filter: items have no attribute {name!r}; {hint}")
    if not isinstance(op, str) or op not in _OPS:
        raise ConfigError(f"filter: no op {op!r}; have {list(_OPS)}")
    if op == "in" and not isinstance(value, list):
        raise ConfigError(f"filter on {name}: op 'in' needs a list of values, got {value!r}")
    column = attributes[name]
    try:
        met = _OPS[op](column, value)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise ConfigError(
            f"filter on {name}: cannot compare {column.dtype} with {value!r} by {op!r}"
        ) from error
    return met.fill_null(False).to_numpy().astype(bool)


def _contains(column: pl.Series, value: Any) -> pl.Series:
    if isinstance(column.dtype, (pl.List, pl.Array)):
        return column.list.contains(value)
    return column.str.to_lowercase().str.contains(str(value).lower(), literal=True)
