"""Collisions: what to do with items that share a semantic ID. Three policies, one signature.

`keep` leaves them, `counter` appends a level that counts them (TIGER's fourth token), `reassign`
gives every item its own ID: within each prefix, items and last codes are matched at least cost.

Source:  counter: TIGER, arXiv:2305.05065, sec. 3.1; reassign: zero-collision reassignment by
         minimum-cost matching as in arXiv:2605.25330; Jonker-Volgenant via SciPy.
Differs: a prefix with more items than codes keeps those that fit best; the others move to the
         nearest prefix with room. New items get free codes without moving old ones (`assign_new`).
         Order is by item id, never by row or split.
Cost:    reassign O(sum over crowded prefixes of n^2 * V), n items of a prefix; prefixes without
         a collision are not touched.
Shapes:  N items, D width, L levels, V codes of the last level.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.optimize import linear_sum_assignment

from sidrec.errors import ConfigError, DataError
from sidrec.tokenizers.quantisation import squared_distances
from sidrec.types import Floats, Ids, Ints, ItemVectors, SemanticIds

Prefix = tuple[int, ...]


class ResidualTokenizer(Protocol):
    """What `reassign` needs: the codebooks, and points in their space."""

    @property
    def codebooks(self) -> Sequence[Floats]: ...

    def project(self, vectors: ItemVectors) -> Floats: ...

    def encode(self, vectors: ItemVectors) -> SemanticIds: ...


@dataclass(frozen=True, kw_only=True)
class CollisionReport:
    """What a policy found and did."""

    policy: str
    num_items: int
    share_before: float
    """Share of items, in [0, 1], whose ID another item holds too."""
    share_after: float
    largest_before: int
    """Size of the largest group of items with one ID."""
    largest_after: int
    num_moved: int = 0
    """Items whose codes changed."""
    num_moved_prefix: int = 0
    """Of these, items whose prefix had no room left."""
    extra_distortion: float = 0.0
    """Growth of the mean squared distance between items and their codes, as a ratio of it."""


def keep(
    ids: SemanticIds, tokenizer: ResidualTokenizer, vectors: ItemVectors
) -> tuple[SemanticIds, CollisionReport]:
    """Leave the IDs as they are; several items may share one."""
    return ids, _report("keep", ids, ids)


def counter(
    ids: SemanticIds, tokenizer: ResidualTokenizer, vectors: ItemVectors
) -> tuple[SemanticIds, CollisionReport]:
    """Append a level that numbers the items of each ID 0, 1, … in the order of their item ids.

    The new level has twice as many codes as the largest group needs, so that new items fit.
    """
    _require_full_length(ids, "counter")
    order = np.lexsort((ids.item_ids.astype(str), *ids.codes.T[::-1]))
    ordered = ids.codes[order]
    first = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))
    starts = np.flatnonzero(first)
    numbers = np.empty(len(ids), dtype=np.int64)
    numbers[order] = np.arange(len(ids)) - np.repeat(starts, np.diff(np.append(starts, len(ids))))
    size = max(2 * (int(numbers.max()) + 1), 8)
    codes = np.column_stack([ids.codes, numbers])
    after = SemanticIds(ids.item_ids, codes, (*ids.num_codes, size))
    return after, _report("counter", ids, after)


def reassign(
    ids: SemanticIds, tokenizer: ResidualTokenizer, vectors: ItemVectors
) -> tuple[SemanticIds, CollisionReport]:
    """Give every item its own ID at least extra distance; only crowded prefixes change."""
    return _place(ids, tokenizer, vectors, taken=defaultdict(set), policy="reassign")


def assign_new(
    existing: SemanticIds, tokenizer: ResidualTokenizer, new: ItemVectors, policy: str = "reassign"
) -> tuple[SemanticIds, CollisionReport]:
    """IDs for items that arrive later; no existing item moves.

    `keep`: as encoded. `counter`: the next free numbers. `reassign`: the nearest free IDs.
    """
    known = set(existing.item_ids) & set(new.item_ids)
    if known:
        raise DataError(f"{len(known)} of the new items already have IDs, e.g. {sorted(known)[:3]}")
    ids = tokenizer.encode(new)
    if policy == "keep":
        return ids, _report("keep", ids, ids)
    if policy == "counter":
        return _count_on(existing, ids)
    if policy != "reassign":
        raise ConfigError(f"no collision policy {policy!r}: have ['keep', 'counter', 'reassign']")
    _require_full_length(existing, "assign_new")
    taken: defaultdict[Prefix, set[int]] = defaultdict(set)
    for codes in existing.codes.tolist():
        taken[tuple(codes[:-1])].add(codes[-1])
    return _place(ids, tokenizer, new, taken=taken, policy="reassign")


def _count_on(existing: SemanticIds, ids: SemanticIds) -> tuple[SemanticIds, CollisionReport]:
    """Append the next free number of each ID, in the order of item ids."""
    used: defaultdict[Prefix, set[int]] = defaultdict(set)
    for codes in existing.codes.tolist():
        used[tuple(codes[:-1])].add(codes[-1])
    size = existing.num_codes[-1]
    numbers = np.empty(len(ids), dtype=np.int64)
    for row in np.argsort(ids.item_ids.astype(str), kind="stable"):
        prefix = tuple(ids.codes[row].tolist())
        number = next((n for n in range(size) if n not in used[prefix]), None)
        if number is None:
            raise DataError(
                f"counter: the ID {prefix} already holds {size} items and its last level is full; "
                "fit the tokenizer again, or use the policy 'reassign'"
            )
        numbers[row] = number
        used[prefix].add(number)
    after = SemanticIds(ids.item_ids, np.column_stack([ids.codes, numbers]), existing.num_codes)
    return after, _report("counter", ids, after)


def _place(
    ids: SemanticIds,
    tokenizer: ResidualTokenizer,
    vectors: ItemVectors,
    *,
    taken: defaultdict[Prefix, set[int]],
    policy: str,
) -> tuple[SemanticIds, CollisionReport]:
    """Match items to last codes that are neither `taken` nor shared; `taken` grows."""
    books = tokenizer.codebooks
    _require_full_length(ids, policy)
    if ids.num_codes != tuple(len(book) for book in books):
        raise DataError(
            f"{policy}: IDs have levels {ids.num_codes} but the tokenizer has "
            f"{tuple(len(book) for book in books)}; pass the IDs that its encode gave"
        )
    room = int(np.prod([float(v) for v in ids.num_codes])) - sum(map(len, taken.values()))
    if len(ids) > room:
        raise DataError(
            f"{policy}: {len(ids)} items do not fit into {room} free IDs of levels "
            f"{ids.num_codes}; raise num_codes or num_levels"
        )
    points_ND = tokenizer.project(vectors)
    codes_NL = ids.codes.copy()
    groups: defaultdict[Prefix, list[int]] = defaultdict(list)
    for row in np.argsort(ids.item_ids.astype(str), kind="stable").tolist():
        groups[tuple(ids.codes[row, :-1].tolist())].append(row)
    homeless: list[int] = []
    for prefix, rows in groups.items():
        wanted = codes_NL[rows, -1]
        used = taken[prefix]
        if len(np.unique(wanted)) < len(rows) or not used.isdisjoint(wanted.tolist()):
            free = np.array([c for c in range(len(books[-1])) if c not in used], dtype=np.int64)
            costs = squared_distances(_residuals(points_ND[rows], prefix, books), books[-1])
            chosen, columns = linear_sum_assignment(costs[:, free])
            codes_NL[np.array(rows)[chosen], -1] = free[columns]
            homeless += [rows[i] for i in sorted(set(range(len(rows))) - set(chosen.tolist()))]
            rows = [rows[i] for i in chosen]
        used.update(codes_NL[rows, -1].tolist())
    homeless.sort(key=lambda row: str(ids.item_ids[row]))
    for row in homeless:
        codes_NL[row] = _nearest_free(points_ND[row], books, taken)
        taken[tuple(codes_NL[row, :-1].tolist())].add(int(codes_NL[row, -1]))
    after = SemanticIds(ids.item_ids, codes_NL, ids.num_codes)
    moved = (codes_NL != ids.codes).any(axis=1)
    before_error = _distortion(points_ND, ids.codes, books)
    after_error = before_error
    if moved.any():
        change = _distortion(points_ND[moved], codes_NL[moved], books) - _distortion(
            points_ND[moved], ids.codes[moved], books
        )
        after_error = before_error + change * float(moved.mean())
    report = _report(
        policy,
        ids,
        after,
        num_moved=int(moved.sum()),
        num_moved_prefix=len(homeless),
        extra_distortion=(after_error - before_error) / before_error if before_error > 0 else 0.0,
    )
    return after, report


def _nearest_free(
    point_D: Floats, books: Sequence[Floats], taken: defaultdict[Prefix, set[int]]
) -> list[int]:
    """The closest free ID found by a beam over prefixes that widens until one has room."""
    num_prefixes = int(np.prod([float(len(book)) for book in books[:-1]]))
    width = 64
    while True:
        beams = _near_prefixes(point_D, books[:-1], width)
        best: tuple[float, Prefix, int] | None = None
        for prefix in beams:
            used = taken.get(prefix, set())
            if len(used) < len(books[-1]):
                costs = squared_distances(_residuals(point_D[None], prefix, books), books[-1])[0]
                costs[list(used)] = np.inf
                found = (float(costs.min()), prefix, int(costs.argmin()))
                best = found if best is None else min(best, found)
        if best is not None:
            return [*best[1], best[2]]
        if width >= num_prefixes:  # every prefix was in the beam; `_place` checked there is room
            raise AssertionError("no free ID although items fit")
        width *= 8


def _near_prefixes(point_D: Floats, books: Sequence[Floats], width: int) -> list[Prefix]:
    """Up to `width` prefixes whose centroid sums lie closest to the point, by beam search."""
    beams: list[Prefix] = [()]
    residuals = point_D[None].astype(np.float32)
    for book in books:
        costs = squared_distances(residuals, book)
        order = np.argsort(costs, axis=None, kind="stable")[:width]
        parents, codes = np.unravel_index(order, costs.shape)
        beams = [(*beams[p], int(c)) for p, c in zip(parents, codes, strict=True)]
        residuals = residuals[parents] - book[codes]
    return beams


def _residuals(points_ND: Floats, prefix: Prefix, books: Sequence[Floats]) -> Floats:
    """What the codes of a prefix leave of each point (N, D)."""
    residuals_ND = points_ND.astype(np.float32)
    for code, book in zip(prefix, books, strict=False):
        residuals_ND = residuals_ND - book[code]
    return residuals_ND


def _distortion(points_ND: Floats, codes_NL: Ints, books: Sequence[Floats]) -> float:
    """Mean squared distance between points and the sums of their centroids."""
    residuals = points_ND.astype(np.float64)
    for level, book in enumerate(books):
        residuals = residuals - book[codes_NL[:, level]]
    return float(np.square(residuals).sum(axis=1).mean()) if len(residuals) else 0.0


def _require_full_length(ids: SemanticIds, policy: str) -> None:
    if (ids.codes < 0).any():
        raise DataError(f"{policy} needs IDs of one length; some end early (code −1)")


def _report(
    policy: str, before: SemanticIds, after: SemanticIds, **figures: float
) -> CollisionReport:
    return CollisionReport(
        policy=policy,
        num_items=len(before),
        share_before=before.collision_share(),
        share_after=after.collision_share(),
        largest_before=int(before.group_sizes_N.max(initial=0)),
        largest_after=int(after.group_sizes_N.max(initial=0)),
        **figures,  # pyright: ignore[reportArgumentType]
    )


def groups_of(ids: SemanticIds) -> list[Ids]:
    """Item ids of every group that shares one ID, largest group first."""
    held: defaultdict[Prefix, list[object]] = defaultdict(list)
    for codes, item_id in zip(ids.codes.tolist(), ids.item_ids, strict=True):
        held[tuple(codes)].append(item_id)
    shared = [np.array(sorted(map(str, g)), dtype=object) for g in held.values() if len(g) > 1]
    return sorted(shared, key=lambda group: (-len(group), group[0]))
