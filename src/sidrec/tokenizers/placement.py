"""Where items go among the codes that residual codebooks offer: matching, transport, capacities.

Three ways to move items, for the policies of `collisions`: `match_last` gives each item of a
crowded prefix its own last code at least cost, `spread_last` chooses last codes by a transport plan
with uniform marginals, `limit_prefixes` empties overfull prefixes. What is `taken` never moves.

Source:  transport: Sinkhorn 1967, Cuturi 2013 (arXiv:1306.0895), in the log domain; over the last
         level as in LC-Rec (arXiv:2311.09049) and LETTER (arXiv:2405.07314).
Differs: the plan of few items over many codes is flat, and its largest entry arbitrary; an item
         takes the nearest of the codes whose mass is mostly its own. Codes held by items that stay
         are not offered.
Cost:    matching O(n^2 * V) a crowded prefix, n its items; transport O(num_iters * n * V) a group;
         an item that leaves its prefix costs a beam search of 64 prefixes, more where all are full.
Shapes:  N items, n items of a group, D width, L levels, V codes of a level, F codes on offer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from sidrec.tokenizers.quantisation import quantise, squared_distances
from sidrec.types import Floats, Ids, Ints

Prefix = tuple[int, ...]


class Taken(dict[Prefix, set[int]]):
    """Prefix of L - 1 codes -> last codes that are not to be given away.

    At first those that items (N, L) hold, read off when their prefix is first asked for: a few new
    items ask for few.
    """

    def __init__(self, codes_NL: Ints) -> None:
        super().__init__()
        self.num_items = len(codes_NL)
        self._codes_NL = codes_NL[np.argsort(codes_NL[:, 0], kind="stable")]

    def __missing__(self, prefix: Prefix) -> set[int]:
        codes_NL = self._codes_NL
        if prefix and len(codes_NL):
            start, end = (np.searchsorted(codes_NL[:, 0], prefix[0], s) for s in ("left", "right"))
            codes_NL = codes_NL[start:end]
            codes_NL = codes_NL[(codes_NL[:, :-1] == np.array(prefix)).all(axis=1)]
        self[prefix] = set(codes_NL[:, -1].tolist())
        return self[prefix]

    def num_ids(self) -> int:
        """IDs that items held at first."""
        return len(np.unique(self._codes_NL, axis=0))


def in_id_order(item_ids: Ids) -> list[int]:
    """Rows in the order of their item ids, so that no outcome depends on the order of rows."""
    return np.argsort(item_ids.astype(str), kind="stable").tolist()


def match_last(
    points_ND: Floats,
    codes_NL: Ints,
    books: Sequence[Floats],
    order: Sequence[int],
    taken: Taken,
    *,
    depth: int = 0,
) -> tuple[Ints, int]:
    """Codes (N, L) without collisions, and how many items had to leave their prefix.

    Within each crowded prefix the sum of squared distances is least; items beyond its room go to
    the nearest free ID under their first `depth` codes. `taken` grows by what is given.
    """
    codes_NL = codes_NL.copy()
    homeless: list[int] = []
    for prefix, rows in _groups(codes_NL[:, :-1], order).items():
        wanted = codes_NL[rows, -1]
        used = taken[prefix]
        if len(np.unique(wanted)) < len(rows) or not used.isdisjoint(wanted.tolist()):
            free = _others(used, len(books[-1]))
            costs = squared_distances(_residuals(points_ND[rows], prefix, books), books[-1])
            chosen, columns = linear_sum_assignment(costs[:, free])
            codes_NL[np.array(rows)[chosen], -1] = free[columns]
            homeless += [rows[i] for i in sorted(set(range(len(rows))) - set(chosen.tolist()))]
            rows = [rows[i] for i in chosen]
        used.update(codes_NL[rows, -1].tolist())
    place = {row: number for number, row in enumerate(order)}
    for row in sorted(homeless, key=place.__getitem__):
        start = tuple(codes_NL[row, : min(depth, len(books) - 1)].tolist())
        codes_NL[row] = _nearest_free(points_ND[row], books, taken, start)
        taken[tuple(codes_NL[row, :-1].tolist())].add(int(codes_NL[row, -1]))
    return codes_NL, len(homeless)


def spread_last(
    points_ND: Floats,
    codes_NL: Ints,
    books: Sequence[Floats],
    order: Sequence[int],
    taken: Taken,
    *,
    epsilon: float,
    num_iters: int,
    num_rounds: int,
) -> tuple[Ints, int]:
    """Codes (N, L) with colliding items spread over last codes, and the rounds that took.

    Prefixes never change. Each round takes every group of items that share an ID, or whose ID is
    taken, to codes of their prefix that nobody else holds. Identical vectors, and items beyond
    the codes of a prefix, go on colliding.
    """
    codes_NL, rounds = codes_NL.copy(), 0
    for _ in range(num_rounds):
        before_NL = codes_NL.copy()
        for prefix, members in sorted(_groups(codes_NL[:, :-1], order).items()):
            rows_P = np.array(members)
            wanted_P = codes_NL[rows_P, -1]
            for code, size in sorted(Counter(wanted_P.tolist()).items()):
                if size == 1 and code not in taken[prefix]:
                    continue
                rows, others = rows_P[wanted_P == code], rows_P[wanted_P != code]
                held = taken[prefix] | set(codes_NL[others, -1].tolist())
                free = _others(held, len(books[-1]))
                if len(free):
                    costs = squared_distances(_residuals(points_ND[rows], prefix, books), books[-1])
                    codes_NL[rows, -1] = free[spread(costs[:, free], epsilon, num_iters)]
        if np.array_equal(codes_NL, before_NL):
            break
        rounds += 1
    return codes_NL, rounds


def spread(costs_NF: np.ndarray, epsilon: float, num_iters: int) -> Ints:
    """Column (N,) for each row: the cheapest of the columns whose mass is mostly that row's.

    Where rows outnumber columns, the column of its largest entry. A row that has most of no column
    (the duplicate of another row) takes its cheapest one.
    """
    plan_NF = transport_plan(costs_NF, epsilon, num_iters)
    if len(plan_NF) > plan_NF.shape[1]:
        return plan_NF.argmax(axis=1)
    mine_NF = plan_NF.argmax(axis=0) == np.arange(len(plan_NF))[:, None]
    nearest_N = np.where(mine_NF, costs_NF, np.inf).argmin(axis=1)
    return np.where(mine_NF.any(axis=1), nearest_N, costs_NF.argmin(axis=1))


def transport_plan(costs_NF: np.ndarray, epsilon: float, num_iters: int) -> np.ndarray:
    """Plan (N, F) of least cost less `epsilon` times entropy: rows sum to 1/N, columns to 1/F.

    Costs are first scaled to [-1, 1], so `epsilon` is a share of half their range. Rows are exact;
    columns approach 1/F with iterations, the faster the larger `epsilon`.
    """
    num_rows, num_columns = costs_NF.shape
    middle = (costs_NF.max() + costs_NF.min()) / 2
    reach = max(float(costs_NF.max() - middle), 1e-12)
    log_plan = -(costs_NF - middle) / reach / epsilon
    for _ in range(num_iters):
        log_plan = log_plan - _log_sum(log_plan, axis=0) - np.log(num_columns)
        log_plan = log_plan - _log_sum(log_plan, axis=1) - np.log(num_rows)
    return np.exp(log_plan)


def _log_sum(logs: np.ndarray, axis: int) -> np.ndarray:
    """Logarithm of the sum of exp along an axis, which stays."""
    most = logs.max(axis=axis, keepdims=True)
    return most + np.log(np.exp(logs - most).sum(axis=axis, keepdims=True))


def limit_prefixes(
    points_ND: Floats,
    codes_NL: Ints,
    books: Sequence[Floats],
    order: Sequence[int],
    counts: Counter[Prefix],
    *,
    depth: int,
    capacity: int,
) -> Ints:
    """Codes (N, L) with at most `capacity` items under each prefix of `depth` codes.

    `counts` says how many items are there already, and grows. The best-fitting items of a prefix
    stay; the others, in the order of their ids, go to the nearest prefix with room and are
    quantised anew from there.
    """
    codes_NL = codes_NL.copy()
    leaving: list[int] = []
    for prefix, rows in _groups(codes_NL[:, :depth], order).items():
        room = max(capacity - counts[prefix], 0)
        if len(rows) > room:
            errors = np.square(_residuals(points_ND[rows], prefix, books)).sum(axis=1)
            leaving += [rows[i] for i in np.argsort(errors, kind="stable")[room:]]
        counts[prefix] += min(len(rows), room)
    place = {row: number for number, row in enumerate(order)}
    for row in sorted(leaving, key=place.__getitem__):
        point_1D = points_ND[[row]]
        prefix = next(
            near
            for prefixes in _widening(point_1D[0], books[:depth])
            for near in prefixes
            if counts[near] < capacity
        )
        counts[prefix] += 1
        codes_NL[row, :depth] = prefix
        codes_NL[row, depth:] = quantise(_residuals(point_1D, prefix, books), books[depth:])[0]
    return codes_NL


def distortion(points_ND: Floats, codes_NL: Ints, books: Sequence[Floats]) -> float:
    """Mean squared distance between points and the sums of their centroids."""
    residuals = points_ND.astype(np.float64)
    for level, book in enumerate(books):
        residuals = residuals - book[codes_NL[:, level]]
    return float(np.square(residuals).sum(axis=1).mean()) if len(residuals) else 0.0


def _groups(prefixes: Ints, order: Sequence[int]) -> dict[Prefix, list[int]]:
    """Rows of each prefix, in the given order."""
    groups: defaultdict[Prefix, list[int]] = defaultdict(list)
    keys = list(map(tuple, prefixes.tolist()))
    for row in order:
        groups[keys[row]].append(row)
    return groups


def _others(used: set[int], size: int) -> Ints:
    """Codes below `size` that are not used, ascending."""
    return np.array([code for code in range(size) if code not in used], dtype=np.int64)


def _nearest_free(
    point_D: Floats, books: Sequence[Floats], taken: Taken, start: Prefix
) -> list[int]:
    """The closest free ID that begins with `start`, found by a beam that widens until there is."""
    for prefixes in _widening(point_D, books[:-1], start):
        best: tuple[float, Prefix, int] | None = None
        for prefix in prefixes:
            used = taken[prefix]
            if len(used) < len(books[-1]):
                costs = squared_distances(_residuals(point_D[None], prefix, books), books[-1])[0]
                costs[list(used)] = np.inf
                found = (float(costs.min()), prefix, int(costs.argmin()))
                best = found if best is None else min(best, found)
        if best is not None:
            return [*best[1], best[2]]
    raise AssertionError("no free ID although items fit")


def _widening(
    point_D: Floats, books: Sequence[Floats], start: Prefix = ()
) -> Iterator[list[Prefix]]:
    """The nearest prefixes that begin with `start`, nearest first: 64 of them, then 512, … all."""
    most = int(np.prod([float(len(book)) for book in books[len(start) :]]))
    width = 64
    while True:
        yield _near_prefixes(point_D, books, start, width)
        if width >= most:
            return
        width *= 8


def _near_prefixes(
    point_D: Floats, books: Sequence[Floats], start: Prefix, width: int
) -> list[Prefix]:
    """Up to `width` prefixes whose centroid sums lie closest to the point, by beam search."""
    beams: list[Prefix] = [start]
    residuals = _residuals(point_D[None], start, books)
    for book in books[len(start) :]:
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
