"""Preferences from what was logged: histories, impressions, the shop, and imagined exposure.

A context is a history, what was taken next (positives, the best first) and what was shown beside it
and left (negatives). Only real logs know the latter. For histories alone, `exposed` imagines the
list that a popularity-driven logging policy would have shown around each taken item.

    weight of item i = (1 + training count)^popularity_pull · e^(similarity_pull · cos(i, last))

A policy that follows popularity less than users do leaves a trace: with a pull of 0.4 (the shop's
own) the count alone tells what was taken on Beauty (AUC .68), with 1 hardly (.56; likeness .61).

Source:   the logging policy of `sidrec.data.shop` (docs/shop.md), with cosines of item vectors in
          place of its tree.
Cost:     O(E T) for histories; `exposed` O(R N) time in blocks of BLOCK_CELLS cells,
          a minute for 80,000 contexts of 12,101 items on one core.
Shapes:   R contexts, E events, T history length, N items, K places of a list, C candidates of all
          impressions, B contexts of a block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sidrec.alignment.values import Preferences
from sidrec.data.shop.logger import CAP, draw_lists, exposures
from sidrec.data.shop.shop import CLICK_WEIGHT, PURCHASE_WEIGHT
from sidrec.errors import ConfigError, DataError
from sidrec.types import Bools, Floats, Histories, Ids, Ints, Items, ItemVectors

if TYPE_CHECKING:
    from sidrec.data.shop import Shop

BLOCK_CELLS = 4_000_000  # contexts x items weighed at one time in `exposed`
MAX_HISTORY = 50
"""Events kept before each context, unless asked otherwise."""


def from_histories(
    train: Histories,
    *,
    max_contexts: int | None = None,
    max_length: int = MAX_HISTORY,
    seed: int = 0,
) -> Preferences:
    """Every training event with one before it in its sequence; no negatives.

    `max_contexts` keeps a uniform random subset, in the order of the events. Histories hold their
    last `max_length` events. Sequences are users: `users_R` is the row of the sequence.
    """
    users_R, ends_R = _targets(train, max_contexts, seed)
    return Preferences(
        histories=_cut(train.items_E, train.offsets[users_R], ends_R, max_length),
        positives=_lists(np.arange(len(ends_R)), train.items_E[ends_R], len(ends_R)),
        negatives=_lists(np.zeros(0, np.int64), np.zeros(0, np.int64), len(ends_R)),
        users_R=users_R,
    )


def exposed(
    train: Histories,
    vectors: ItemVectors,
    *,
    list_length: int = 10,
    popularity_pull: float = 1.0,
    similarity_pull: float = 4.0,
    exploration: float = 0.2,
    max_contexts: int | None = None,
    max_length: int = MAX_HISTORY,
    seed: int = 0,
) -> Preferences:
    """The contexts of `from_histories`, each in a drawn list of K places; the others are negatives.

    The list holds what was taken and K − 1 others, drawn by their exposures; no item that the same
    user takes elsewhere in `train` is among them. `propensities_E` is the exposure of what was
    taken in a list of K places. The negatives are imagined: they say what a policy would have
    shown, nothing of what anyone disliked.
    """
    plain = from_histories(train, max_contexts=max_contexts, max_length=max_length, seed=seed)
    num_items = len(vectors)
    if not 2 <= list_length <= CAP * num_items:
        raise ConfigError(
            f"exposed: list_length must be at least 2 and at most {CAP:.0%} of the {num_items} "
            f"items, got {list_length}"
        )
    pull_N = ((1 + train.counts(num_items)) ** popularity_pull).astype(np.float32)
    norms_N1 = np.linalg.norm(vectors.vectors, axis=1, keepdims=True)
    units_ND = vectors.vectors / np.maximum(norms_N1, 1e-12)
    last_R = plain.histories.items_E[plain.histories.offsets[1:] - 1]
    targets_R = plain.positives.items_E
    random = np.random.default_rng([seed, 1])
    step = max(1, BLOCK_CELLS // num_items)
    negatives, propensities = [], []
    for start in range(0, len(plain), step):
        block = slice(start, start + step)
        targets_B, B = targets_R[block], np.arange(len(targets_R[block]))
        weights_BN = units_ND[last_R[block]] @ units_ND.T
        weights_BN *= similarity_pull
        np.exp(weights_BN, out=weights_BN)
        weights_BN *= pull_N
        propensities.append(exposures(weights_BN.copy(), list_length, exploration)[B, targets_B])
        own = train.take(plain.users_R[block])
        weights_BN[np.repeat(B, own.lengths), own.items_E] = 0
        others_BN = exposures(weights_BN, list_length - 1, exploration)
        negatives.append(draw_lists(others_BN, list_length - 1, random))
    rows_RK = np.concatenate(negatives) if negatives else np.zeros((0, list_length - 1), np.int64)
    return Preferences(
        histories=plain.histories,
        positives=plain.positives,
        negatives=Histories(rows_RK.ravel(), np.arange(len(plain) + 1) * (list_length - 1)),
        users_R=plain.users_R,
        propensities_E=np.concatenate(propensities) if propensities else None,
    )


def of_shop(
    shop: Shop, train: Histories | None = None, *, max_length: int = MAX_HISTORY
) -> Preferences:
    """The shop's logged lists that hold a click and follow one of the same user.

    Several clicks of one list are several positives: purchases first, then by place. Grades are the
    shop's weights of events (purchase 3, click 1), propensities its exact ones. The history is the
    user's clicks before the list.

    `train` keeps lists whose clicks are all training events, as it must be where a split of
    `shop.dataset` is to be judged later: its sequences are the first events of each user.
    """
    log, events = shop.impressions, shop.dataset.interactions
    firsts_R = np.searchsorted(shop.event_lists_E, np.arange(len(log)))
    starts_R = events.histories.offsets[log.users_R]
    num_clicks_R = log.clicks_RK.sum(axis=1)
    keep_R = (num_clicks_R > 0) & (firsts_R > starts_R)
    if train is not None:
        _require_first_events(train, events.histories)
        keep_R &= firsts_R - starts_R + num_clicks_R <= train.lengths[log.users_R]
    rows = np.flatnonzero(keep_R)
    grades_RK = np.where(log.purchases_RK[rows], PURCHASE_WEIGHT, CLICK_WEIGHT).astype(np.float32)
    grades_RK *= log.clicks_RK[rows]
    return _by_grade(
        histories=_cut(events.items_E, starts_R[rows], firsts_R[rows], max_length),
        users_R=log.users_R[rows],
        contexts_C=np.repeat(np.arange(len(rows)), log.rows_RK.shape[1]),
        rows_C=log.rows_RK[rows].ravel(),
        grades_C=grades_RK.ravel(),
        propensities_C=log.propensities_RK[rows].ravel(),
    )


def from_impressions(
    table: pl.DataFrame,
    items: Items,
    *,
    user_ids: Ids | None = None,
    max_length: int = MAX_HISTORY,
) -> tuple[Preferences, tuple[str, ...]]:
    """One context a row of logged lists, and notes, in words, of what was left out.

    Columns: `history` and `candidates`, lists of item ids; `clicks`, for each candidate 0 or the
    grade of the click; optional `propensities`, for each candidate; optional `user_id` or `user`.
    User rows are those of `user_ids`, −1 for others; without it, users are numbered as they come,
    −1 where the table names none.

    Left out and counted: items outside the catalogue, repeats inside a list (the best grade wins,
    so a click beats a non-click), then rows without a history or without a click. DataError for a
    missing column, lists of different lengths, or a propensity outside (0, 1].
    """
    for name in ("history", "candidates", "clicks"):
        if name not in table.columns:
            raise DataError(f"impressions need a column {name!r}, got {table.columns}; rename it")
    past_H, past_lengths_R = _flat(table["history"])
    shown_C, lengths_R = _flat(table["candidates"])
    grades_C = _parallel(table, "clicks", lengths_R)
    propensities_C = None
    if "propensities" in table.columns:
        propensities_C = _parallel(table, "propensities", lengths_R)
        if not ((propensities_C > 0) & (propensities_C <= 1)).all():
            raise DataError("impressions: propensities must lie in (0, 1]; drop the other rows")
    R = np.arange(table.height)
    past_rows_H, past_contexts_H = _rows_of(past_H, items), np.repeat(R, past_lengths_R)
    rows_C, contexts_C = _rows_of(shown_C, items), np.repeat(R, lengths_R)
    known_H, known_C = past_rows_H >= 0, rows_C >= 0
    first_C = _first_of_best_grade(contexts_C, rows_C, grades_C)
    has_history_R = np.bincount(past_contexts_H[known_H], minlength=len(R)) > 0
    clicked_C = known_C & (grades_C > 0)
    has_click_R = np.bincount(contexts_C[clicked_C], minlength=len(R)) > 0
    keep_R = has_history_R & has_click_R
    new_row_R = np.cumsum(keep_R) - 1
    chosen_C = first_C & known_C & keep_R[contexts_C]
    chosen_H = known_H & keep_R[past_contexts_H]
    past = _lists(new_row_R[past_contexts_H[chosen_H]], past_rows_H[chosen_H], int(keep_R.sum()))
    preferences = _by_grade(
        histories=_cut(past.items_E, past.offsets[:-1], past.offsets[1:], max_length),
        users_R=_user_rows(table, user_ids)[keep_R],
        contexts_C=new_row_R[contexts_C[chosen_C]],
        rows_C=rows_C[chosen_C],
        grades_C=grades_C[chosen_C],
        propensities_C=None if propensities_C is None else propensities_C[chosen_C],
    )
    counts = {
        f"of {len(past_H)} history entries are not in the catalogue": (~known_H).sum(),
        f"of {len(shown_C)} candidates are not in the catalogue": (~known_C).sum(),
        "candidates repeat an item of their list; the best grade wins": (known_C & ~first_C).sum(),
        f"of {len(R)} rows have no history left": (~has_history_R).sum(),
        "rows with a history have no click left": (has_history_R & ~has_click_R).sum(),
    }
    return preferences, tuple(f"{count} {what}" for what, count in counts.items() if count)


def split_by_user(
    preferences: Preferences, share: float = 0.1, seed: int = 0
) -> tuple[Preferences, Preferences]:
    """Contexts to learn from, and those of a random `share` of the users, held out.

    A context without a user is a user of its own. At least one user is on either side.
    """
    held_R = held_out(preferences.users_R, share, seed)
    return preferences.take(np.flatnonzero(~held_R)), preferences.take(np.flatnonzero(held_R))


def held_out(users_R: Ints, share: float, seed: int) -> Bools:
    """(R,) whether each context belongs to the held-out `share` of users; −1 is nobody's."""
    if not 0 < share < 1:
        raise ConfigError(f"the share of held-out users must be between 0 and 1, got {share}")
    unknown_R = users_R < 0
    own_R = np.where(unknown_R, users_R.max(initial=0) + 1 + np.arange(len(users_R)), users_R)
    users, rows_R = np.unique(own_R, return_inverse=True)
    if len(users) < 2:
        raise DataError(f"holding out users needs at least two of them, got {len(users)}")
    num_held = min(max(round(share * len(users)), 1), len(users) - 1)
    held = np.random.default_rng([seed, 2]).permutation(len(users)) < num_held
    return held[rows_R]


def _targets(train: Histories, max_contexts: int | None, seed: int) -> tuple[Ints, Ints]:
    """Sequence (R,) and event (R,) of what is taken after at least one other."""
    users_E = np.repeat(np.arange(len(train)), train.lengths)
    events_R = np.flatnonzero(np.arange(len(users_E)) > train.offsets[users_E])
    if max_contexts is not None and max_contexts < len(events_R):
        random = np.random.default_rng(seed)
        events_R = np.sort(random.choice(events_R, max_contexts, replace=False))
    return users_E[events_R], events_R


def _cut(items_E: Ints, starts_R: Ints, ends_R: Ints, max_length: int) -> Histories:
    """The last `max_length` events of `items_E[starts_R[r]:ends_R[r]]`."""
    if max_length < 1:
        raise ConfigError(f"max_length of histories must be at least 1, got {max_length}")
    lengths_R = np.minimum(ends_R - starts_R, max_length)
    offsets = np.concatenate([[0], np.cumsum(lengths_R)]).astype(np.int64)
    shift = np.repeat(ends_R - lengths_R - offsets[:-1], lengths_R)
    return Histories(items_E[shift + np.arange(offsets[-1])], offsets)


def _lists(contexts_C: Ints, rows_C: Ints, num: int) -> Histories:
    """Entries, ascending by context, as `num` lists."""
    counts = np.bincount(contexts_C, minlength=num)
    return Histories(rows_C, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def _by_grade(
    *,
    histories: Histories,
    users_R: Ints,
    contexts_C: Ints,
    rows_C: Ints,
    grades_C: Floats,
    propensities_C: Floats | None,
) -> Preferences:
    """Candidates above grade 0 as positives, the best first and then by place; others negatives."""
    order = np.lexsort((np.arange(len(rows_C)), -grades_C, contexts_C))
    taken = order[grades_C[order] > 0]
    left = np.flatnonzero(grades_C <= 0)
    return Preferences(
        histories=histories,
        positives=_lists(contexts_C[taken], rows_C[taken], len(users_R)),
        negatives=_lists(contexts_C[left], rows_C[left], len(users_R)),
        users_R=users_R,
        grades_E=grades_C[taken],
        propensities_E=None if propensities_C is None else propensities_C[taken],
    )


def _first_of_best_grade(contexts_C: Ints, rows_C: Ints, grades_C: Floats) -> Bools:
    """(C,) whether a candidate is the one to keep of its repeats inside a list."""
    order = np.lexsort((-grades_C, rows_C, contexts_C))  # stable: equal grades keep their places
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(contexts_C[order]) != 0) | (np.diff(rows_C[order]) != 0)
    first_C = np.zeros(len(order), dtype=bool)
    first_C[order[new]] = True
    return first_C


def _flat(lists: pl.Series) -> tuple[pl.Series, Ints]:
    """All entries one after another, and the length (R,) of each list; null is an empty list."""
    if not isinstance(lists.dtype, pl.List):
        raise DataError(
            f"impressions: {lists.name} must be a list column, got {lists.dtype}; split the text"
        )
    lengths_R = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    return lists.filter(pl.Series(lengths_R > 0)).explode(), lengths_R


def _parallel(table: pl.DataFrame, name: str, lengths_R: Ints) -> Floats:
    """(C,) numbers of a column whose lists match the candidates; null is 0."""
    values, own_lengths_R = _flat(table[name])
    if (own_lengths_R != lengths_R).any():
        row = int(np.flatnonzero(own_lengths_R != lengths_R)[0])
        raise DataError(
            f"impressions: row {row} has {lengths_R[row]} candidates and {own_lengths_R[row]} "
            f"{name}; give one for each candidate"
        )
    return values.cast(pl.Float32).fill_null(0).to_numpy()


def _rows_of(ids: pl.Series, items: Items) -> Ints:
    """Catalogue row of each id, −1 where unknown."""
    return _look_up(ids.cast(pl.String), {str(i): row for i, row in items.row_of.items()})


def _user_rows(table: pl.DataFrame, user_ids: Ids | None) -> Ints:
    name: Any = next((name for name in ("user_id", "user") if name in table.columns), None)
    if name is None:
        return np.full(table.height, -1, dtype=np.int64)
    users = table[name].cast(pl.String)
    known = users.unique(maintain_order=True).drop_nulls() if user_ids is None else user_ids
    return _look_up(users, {str(user): row for row, user in enumerate(known)})


def _look_up(ids: pl.Series, row_of: dict[str, int]) -> Ints:
    distinct = ids.unique(maintain_order=True)
    rows = pl.Series([row_of.get(i, -1) for i in distinct.to_list()], dtype=pl.Int64)
    return ids.replace_strict(distinct, rows, return_dtype=pl.Int64).to_numpy()


def _require_first_events(train: Histories, whole: Histories) -> None:
    if len(train) != len(whole) or (train.lengths > whole.lengths).any():
        raise DataError("of_shop: train must be a split of the same shop's dataset")
    users_E = np.repeat(np.arange(len(train)), train.lengths)
    places_E = np.arange(len(users_E)) - train.offsets[users_E]
    if (whole.items_E[whole.offsets[users_E] + places_E] != train.items_E).any():
        raise DataError(
            "of_shop: training sequences must be the first events of each user; split the shop "
            "with ties='file'"
        )
