"""A tiny pure world with one right answer: user group g buys only items of group g, in a cycle.

Every group has its own secret order of its items, and a user walks it from a random start. The
next item is therefore certain, from the last one alone. Vectors and texts hold a planted hierarchy
(group, then subgroup) but not the order, so a pipeline that is right reaches hit rate 1 in seconds.

Source:   the idea of a board with known best answers: implicit's recommender tests.
Shapes:   U users, N items, B histories, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from sidrec.data.shop.words import CATALOGUE
from sidrec.data.validation import content_hash
from sidrec.errors import ConfigError
from sidrec.types import Dataset, Interactions, Ints, Items, ItemVectors, as_ids


@dataclass(frozen=True, eq=False)
class Checkerboard:
    """The planted world."""

    dataset: Dataset
    vectors: ItemVectors
    """(N, D) sums of a group centre (norm about 4), a subgroup centre (2) and item noise (0.5)."""
    groups_N: Ints
    subgroups_N: Ints
    """Two subgroups a group: subgroup 2g and 2g + 1 belong to group g."""
    user_groups_U: Ints
    next_N: Ints
    """The item that always follows each item."""

    def best_next(self, last_rows_B: Ints) -> Ints:
        """The right answer (B,) after histories that end in the given items."""
        return self.next_N[last_rows_B]


def checkerboard(
    *,
    num_users: int = 96,
    num_items: int = 48,
    num_groups: int = 4,
    length: int = 12,
    width: int = 16,
    seed: int = 0,
) -> Checkerboard:
    """Draw the world: `num_users` histories of `length` events over `num_groups` equal groups."""
    for name, value, low in (
        ("num_users", num_users, num_groups),
        ("num_groups", num_groups, 1),
        ("num_items", num_items, 4 * num_groups),
        ("length", length, 1),
        ("width", width, 1),
    ):
        if value < low:
            raise ConfigError(f"checkerboard {name} must be at least {low}, got {value}")
    if num_items % (2 * num_groups) or num_groups > len(CATALOGUE):
        raise ConfigError(
            f"checkerboard needs at most {len(CATALOGUE)} groups and num_items a multiple of "
            f"2 x num_groups = {2 * num_groups}, got {num_groups} and {num_items}"
        )
    rng = np.random.default_rng(seed)
    per_group = num_items // num_groups
    rows_N = np.arange(num_items)
    groups_N, subgroups_N = rows_N // per_group, rows_N // (per_group // 2)
    cycles = [rng.permutation(per_group) + group * per_group for group in range(num_groups)]
    next_N = np.empty(num_items, dtype=np.int64)
    for cycle in cycles:
        next_N[cycle] = np.roll(cycle, -1)
    user_groups_U = np.arange(num_users) % num_groups
    starts_U = rng.integers(per_group, size=num_users)
    steps_UT = (starts_U[:, None] + np.arange(length)) % per_group
    items_UT = np.array(cycles)[user_groups_U[:, None], steps_UT]

    scale = 1 / np.sqrt(width)
    vectors = (
        4 * scale * rng.standard_normal((num_groups, width))[groups_N]
        + 2 * scale * rng.standard_normal((2 * num_groups, width))[subgroups_N]
        + 0.5 * scale * rng.standard_normal((num_items, width))
    ).astype(np.float32)
    item_ids = as_ids(
        f"g{g}/s{s}/{row}" for row, (g, s) in enumerate(zip(groups_N, subgroups_N, strict=True))
    )
    titles = []
    for row in rows_N:
        shared, leaves = list(CATALOGUE.values())[groups_N[row]]
        nouns, words = list(leaves.values())[subgroups_N[row] % 2]
        titles.append(f"{nouns} {words} {shared} number{row}")
    interactions = Interactions(
        user_ids=as_ids(f"user {row}" for row in range(num_users)),
        users_E=np.repeat(np.arange(num_users), length),
        items_E=items_UT.ravel(),
        times_E=np.tile(np.arange(length) * 3_600_000_000, num_users),
    )
    items = Items(item_ids, pl.DataFrame({"title": titles}))
    digest = content_hash(items, interactions)
    dataset = Dataset("checkerboard", items, interactions, (), digest)
    return Checkerboard(
        dataset, ItemVectors(item_ids, vectors), groups_N, subgroups_N, user_groups_U, next_N
    )
