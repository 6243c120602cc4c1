"""Splits of queries: no query, and no reordering of its words, on both sides.

Shapes:   Q queries, F folds.
"""

from __future__ import annotations

import re

import numpy as np

from sidrec.data.search.values import Queries
from sidrec.errors import ConfigError, DataError
from sidrec.types import Ints

WORD = re.compile(r"\w+")


def query_folds(queries: Queries, num_folds: int = 5, *, seed: int = 0) -> list[Ints]:
    """Rows of `num_folds` disjoint parts that hold every query once, of sizes as equal as groups of
    queries with the same set of words allow.
    """
    if num_folds < 2:
        raise ConfigError(f"query_folds needs at least 2 folds, got {num_folds}")
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, text in enumerate(queries.texts):
        words = tuple(sorted(set(WORD.findall(text.casefold())))) or (text,)
        groups.setdefault(words, []).append(row)
    if len(groups) < num_folds:
        raise DataError(
            f"{len(groups)} different queries cannot make {num_folds} folds; lower the folds"
        )
    order = np.random.default_rng(seed).permutation(len(groups))
    members = list(groups.values())
    folds: list[list[int]] = [[] for _ in range(num_folds)]
    for group in order:
        min(folds, key=len).extend(members[group])
    return [np.sort(np.array(fold, dtype=np.int64)) for fold in folds]
