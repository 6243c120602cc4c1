"""Collisions: what to do with items that share a semantic ID. Five policies, one signature.

`keep` leaves them, `counter` appends a level that counts them (TIGER's fourth token), `sinkhorn`
spreads them over the last codes of their prefix, `reassign` gives every item its own ID: within
each prefix, items and last codes are matched at least cost; `capacity` first limits how many items
a prefix may hold. `placement` holds the arithmetic.

Source:  counter: TIGER, arXiv:2305.05065, sec. 3.1; sinkhorn: LC-Rec, arXiv:2311.09049, and LETTER,
         arXiv:2405.07314; reassign: zero-collision reassignment by minimum-cost matching as in
         arXiv:2605.25330; Jonker-Volgenant via SciPy.
Differs: reassign: a prefix with more items than codes keeps those that fit best; the others move to
         the nearest prefix with room. sinkhorn works after training only, on one group of colliding
         items at a time, and offers no code that another item holds. capacity is ours.
         New items get free codes without moving old ones (`assign_new`). Order is by item id,
         never by row or split.
Cost:    reassign O(sum over crowded prefixes of n^2 * V), n items of a prefix; prefixes without
         a collision are not touched. sinkhorn O(num_rounds * num_iters * n * V), n colliding items.
Shapes:  N items, D width, L levels, V codes of the last level.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from sidrec.errors import ConfigError, DataError
from sidrec.tokenizers import variable_length
from sidrec.tokenizers.placement import (
    Prefix,
    Taken,
    distortion,
    in_id_order,
    limit_prefixes,
    match_last,
    spread_last,
)
from sidrec.types import Floats, Ids, Ints, ItemVectors, SemanticIds

Policy = TypeVar("Policy", bound=Callable[..., Any])


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
    num_rounds: int = 0
    """Rounds of transport that changed something."""
    largest_prefix_before: int = 0
    """Items under the fullest prefix whose capacity was limited; 0 where none was."""
    largest_prefix_after: int = 0
    num_lengthened: int = 0
    """Items whose ID ended early and now ends later."""


@dataclass(frozen=True, kw_only=True)
class SinkhornConfig:
    """Settings of `sinkhorn`."""

    epsilon: float = 0.003
    """Weight of the plan's entropy, as a share of half the range of distances."""
    num_iters: int = 50
    """Scalings of rows and columns a plan."""
    num_rounds: int = 20
    """Stop after this many rounds even where items still collide."""

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ConfigError(f"sinkhorn.epsilon must be above 0, got {self.epsilon}")
        for name in ("num_iters", "num_rounds"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"sinkhorn.{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class CapacityConfig:
    """Settings of `capacity`."""

    capacity: int | None = None
    """Most items under a prefix; None: as many as it has IDs."""
    depth: int | None = None
    """Codes of the prefixes that are limited; None: all but the last."""
    unique: bool = True
    """Then give every item its own ID, as `reassign` does, without leaving its limited prefix."""

    def __post_init__(self) -> None:
        for name in ("capacity", "depth"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"capacity.{name} must be at least 1, got {value}")


def takes(config_class: type) -> Callable[[Policy], Policy]:
    """Mark a policy with its config, where the `[collisions]` section of a recipe looks for it."""

    def mark(policy: Policy) -> Policy:
        vars(policy)["config_class"] = config_class
        return policy

    return mark


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
    """Give every item its own ID at least extra distance; only crowded prefixes change.

    IDs that end early grow until they part; see `variable_length`.
    """
    if (ids.codes < 0).any():
        after, figures = variable_length.resolve("reassign", ids, tokenizer, vectors)
        return after, _report("reassign", ids, after, **figures)
    return _place(ids, tokenizer, vectors, taken=Taken(ids.codes[:0]), policy="reassign")


@takes(SinkhornConfig)
def sinkhorn(
    ids: SemanticIds,
    tokenizer: ResidualTokenizer,
    vectors: ItemVectors,
    config: SinkhornConfig | None = None,
) -> tuple[SemanticIds, CollisionReport]:
    """Spread colliding items over the last codes of their prefix by uniform transport.

    All codes but the last stay. Identical vectors, and items beyond the codes of a prefix, go on
    colliding: `share_after` says how many.
    """
    return _spread(ids, tokenizer, vectors, config, taken=Taken(ids.codes[:0]))


@takes(CapacityConfig)
def capacity(
    ids: SemanticIds,
    tokenizer: ResidualTokenizer,
    vectors: ItemVectors,
    config: CapacityConfig | None = None,
) -> tuple[SemanticIds, CollisionReport]:
    """At most so many items under a prefix; those that fit worst go to the nearest with room."""
    none = SemanticIds(ids.item_ids[:0], ids.codes[:0], ids.num_codes)
    return _limit(ids, tokenizer, vectors, config, existing=none)


def assign_new(
    existing: SemanticIds,
    tokenizer: ResidualTokenizer,
    new: ItemVectors,
    policy: str = "reassign",
    config: Any = None,
) -> tuple[SemanticIds, CollisionReport]:
    """IDs for items that arrive later; no existing item moves.

    `keep`: as encoded. `counter`: the next free numbers. `sinkhorn`: free last codes of the same
    prefix while there are any. `reassign`: the nearest free IDs. `capacity`: what room is left.
    """
    known = set(existing.item_ids) & set(new.item_ids)
    if known:
        raise DataError(
            f"{len(known)} of the new items already have IDs, e.g. {sorted(known)[:3]}; leave them "
            "out, an ID stays as it is until the next fit"
        )
    if policy not in (have := ["keep", "counter", "sinkhorn", "reassign", "capacity"]):
        raise ConfigError(f"no collision policy {policy!r}: have {have}")
    ids = tokenizer.encode(new)
    if (existing.codes < 0).any() or (ids.codes < 0).any():
        after, figures = variable_length.resolve(policy, ids, tokenizer, new, existing)
        return after, _report(policy, ids, after, **figures)
    if policy == "keep":
        return ids, _report("keep", ids, ids)
    if policy == "counter":
        return _count_on(existing, ids)
    _require_full_length(existing, "assign_new")
    if policy == "capacity":
        return _limit(ids, tokenizer, new, config, existing=existing)
    taken = Taken(existing.codes)
    if policy == "sinkhorn":
        return _spread(ids, tokenizer, new, config, taken=taken)
    return _place(ids, tokenizer, new, taken=taken, policy="reassign")


def _count_on(existing: SemanticIds, ids: SemanticIds) -> tuple[SemanticIds, CollisionReport]:
    """Append the next free number of each ID, in the order of item ids."""
    used = Taken(existing.codes)
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
    taken: Taken,
    policy: str,
) -> tuple[SemanticIds, CollisionReport]:
    """Match items to last codes that are neither `taken` nor shared; `taken` grows."""
    points_ND, books = _space(policy, ids, tokenizer, vectors)
    room = _num_ids(ids.num_codes) - taken.num_items
    if room < len(ids):  # unless items share IDs
        room = _num_ids(ids.num_codes) - taken.num_ids()
    _require_room(policy, len(ids), room, f"IDs of levels {ids.num_codes}", "num_codes")
    order = in_id_order(ids.item_ids)
    codes_NL, num_left = match_last(points_ND, ids.codes, books, order, taken)
    return _moved(policy, ids, codes_NL, points_ND, books, num_moved_prefix=num_left)


def _spread(
    ids: SemanticIds,
    tokenizer: ResidualTokenizer,
    vectors: ItemVectors,
    config: SinkhornConfig | None,
    *,
    taken: Taken,
) -> tuple[SemanticIds, CollisionReport]:
    config = config or SinkhornConfig()
    points_ND, books = _space("sinkhorn", ids, tokenizer, vectors)
    codes_NL, num_rounds = spread_last(
        points_ND,
        ids.codes,
        books,
        in_id_order(ids.item_ids),
        taken,
        epsilon=config.epsilon,
        num_iters=config.num_iters,
        num_rounds=config.num_rounds,
    )
    return _moved("sinkhorn", ids, codes_NL, points_ND, books, num_rounds=num_rounds)


def _limit(
    ids: SemanticIds,
    tokenizer: ResidualTokenizer,
    vectors: ItemVectors,
    config: CapacityConfig | None,
    *,
    existing: SemanticIds,
) -> tuple[SemanticIds, CollisionReport]:
    config = config or CapacityConfig()
    points_ND, books = _space("capacity", ids, tokenizer, vectors)
    depth = max(ids.num_levels - 1, 1) if config.depth is None else config.depth
    if depth > ids.num_levels:
        raise ConfigError(
            f"capacity.depth = {depth} but IDs have {ids.num_levels} levels; lower it"
        )
    most = _num_ids(ids.num_codes[depth:])
    limit = most if config.capacity is None else config.capacity
    if config.unique and limit > most:
        raise ConfigError(
            f"capacity.capacity = {limit} but a prefix of {depth} codes has {most} IDs; lower it, "
            "or set unique = false"
        )
    counts = Counter(map(tuple, existing.codes[:, :depth].tolist()))
    room = limit * _num_ids(ids.num_codes[:depth]) - sum(min(n, limit) for n in counts.values())
    places = f"places, {limit} under each prefix of levels {ids.num_codes[:depth]}"
    _require_room("capacity", len(ids), room, places, "capacity")
    order = in_id_order(ids.item_ids)
    codes_NL = limit_prefixes(
        points_ND, ids.codes, books, order, counts, depth=depth, capacity=limit
    )
    if config.unique:
        taken = Taken(existing.codes)
        codes_NL, _ = match_last(points_ND, codes_NL, books, order, taken, depth=depth)
    return _moved(
        "capacity",
        ids,
        codes_NL,
        points_ND,
        books,
        num_moved_prefix=int((codes_NL != ids.codes)[:, :depth].any(axis=1).sum()),
        largest_prefix_before=_largest(ids.codes[:, :depth], existing.codes[:, :depth]),
        largest_prefix_after=max(counts.values(), default=0),
    )


def _space(
    policy: str, ids: SemanticIds, tokenizer: ResidualTokenizer, vectors: ItemVectors
) -> tuple[Floats, Sequence[Floats]]:
    """Points (N, D) and the codebooks that the IDs are made of."""
    books = tokenizer.codebooks
    _require_full_length(ids, policy)
    if ids.num_codes != tuple(len(book) for book in books):
        raise DataError(
            f"{policy}: IDs have levels {ids.num_codes} but the tokenizer has "
            f"{tuple(len(book) for book in books)}; pass the IDs that its encode gave"
        )
    return tokenizer.project(vectors), books


def _num_ids(sizes: Sequence[int]) -> int:
    return int(np.prod([float(size) for size in sizes]))


def _largest(*codes_NL: Ints) -> int:
    _, counts = np.unique(np.concatenate(codes_NL), axis=0, return_counts=True)
    return int(counts.max(initial=0))


def _require_room(policy: str, num_items: int, room: int, places: str, raised: str) -> None:
    if num_items > room:
        raise DataError(
            f"{policy}: {num_items} items do not fit into {room} free {places}; "
            f"raise {raised} or num_levels, and fit again"
        )


def _require_full_length(ids: SemanticIds, policy: str) -> None:
    if (ids.codes < 0).any():
        raise DataError(
            f"{policy} needs IDs of one length; some end early (code −1): use 'keep' or 'reassign'"
        )


def _moved(
    policy: str,
    ids: SemanticIds,
    codes_NL: Ints,
    points_ND: Floats,
    books: Sequence[Floats],
    **figures: float,
) -> tuple[SemanticIds, CollisionReport]:
    """The IDs with their new codes, and what the change cost."""
    after = SemanticIds(ids.item_ids, codes_NL, ids.num_codes)
    moved = (codes_NL != ids.codes).any(axis=1)
    before_error, growth = distortion(points_ND, ids.codes, books), 0.0
    if moved.any() and before_error > 0:
        change = distortion(points_ND[moved], codes_NL[moved], books) - distortion(
            points_ND[moved], ids.codes[moved], books
        )
        growth = change * float(moved.mean()) / before_error
    figures = {"num_moved": int(moved.sum()), "extra_distortion": growth, **figures}
    return after, _report(policy, ids, after, **figures)


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
