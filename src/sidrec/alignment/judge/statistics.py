"""What training events and vectors say of a candidate after a history: similarity, counts, kinds.

Events are spread over folds by user. A context that a model is trained on is looked at with its
user's fold left out of every count, so that no count holds the event it is to predict.

Source:  none; the usual features of item-based recommendation.
Cost:    O(E · window) pairs in memory; O(B T G D) for B contexts.
Shapes:  B contexts, G candidates, T history length, N items, D width, C kinds, F features,
         E events or pairs, K folds (place K, the last one, leaves nothing out).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from sidrec.embeddings.vectors import unit_rows
from sidrec.types import PAD, Floats, Histories, Ints, Items

NUM_FOLDS = 4
WINDOW = 5
"""Events at most this far apart count as a transition."""
GAP_DECAY = 0.6
RECENCY = 0.7
"""Weight of the s-th event from the end is RECENCY^s."""
BLOCK_CELLS = 2_000_000
"""Numbers of gathered vectors that exist at one time."""
KIND_COLUMNS = ("categories", "category", "category_id", "genres", "brand")
FEATURES = (
    "last_similarity",
    "recent_similarity",
    "long_similarity",
    "best_similarity",
    "popularity",
    "transition",
    "co_occurrence",
    "repeat",
    "repeat_recency",
)
"""Kinds follow: one feature a column, the recency-weighted share of the history of that kind."""
ALL_FOLDS = -1


@dataclass(frozen=True, eq=False)
class PairCounts:
    """How often item j came at most `WINDOW` events after item i, nearer ones counting more."""

    keys_E: Ints
    """i · N + j, ascending."""
    counts_EK: Floats
    """(E, K + 1) with one fold left out; the last column leaves nothing out."""
    totals_NK: Floats
    """(N, K + 1) sum over j."""

    @classmethod
    def of(cls, train: Histories, num_items: int, folds_U: Ints) -> Self:
        """Counted over all training sequences."""
        users_E = np.repeat(np.arange(len(train)), train.lengths)
        keys, folds, weights = [], [], []
        for gap in range(1, WINDOW + 1):
            same_E = users_E[gap:] == users_E[:-gap]
            left_E, right_E = train.items_E[:-gap][same_E], train.items_E[gap:][same_E]
            keys.append(left_E * num_items + right_E)
            folds.append(folds_U[users_E[gap:][same_E]])
            weights.append(np.full(len(left_E), GAP_DECAY ** (gap - 1)))
        keys_E, place = np.unique(np.concatenate(keys), return_inverse=True)
        cells = place.ravel() * NUM_FOLDS + np.concatenate(folds)
        by_fold = np.bincount(cells, np.concatenate(weights), len(keys_E) * NUM_FOLDS)
        counts_EK = _leave_one_out(by_fold.reshape(-1, NUM_FOLDS))
        totals_NK = np.stack(
            [np.bincount(keys_E // num_items, column, num_items) for column in counts_EK.T], axis=1
        )
        return cls(keys_E, counts_EK, totals_NK.astype(np.float32))

    def __call__(self, left: Ints, right: Ints, folds: Ints) -> Floats:
        """Counts of (broadcast) pairs; 0 for those never seen."""
        if not len(self.keys_E):
            return np.zeros(np.broadcast_shapes(left.shape, right.shape), dtype=np.float32)
        keys = left * len(self.totals_NK) + right
        place = np.searchsorted(self.keys_E, keys).clip(max=len(self.keys_E) - 1)
        return self.counts_EK[place, folds] * (self.keys_E[place] == keys)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Counts and similarities of a catalogue."""

    unit_ND: Floats
    """Vectors less their mean, of length 1; zero where nothing is known."""
    popularity_KN: Floats
    """(K + 1, N) log(1 + training events), one fold left out."""
    ranks_KN: Floats
    """The share of items with fewer events, in [0, 1]."""
    pairs: PairCounts
    kinds_NC: Ints
    """Code of the item's value in each kind column; −1 where it has none."""
    folds_U: Ints
    """Fold of each training user."""

    @classmethod
    def of(cls, items: Items, vectors_ND: Floats, train: Histories, seed: int) -> Self:
        """Counted from training events alone."""
        num_items = len(items)
        folds_U = np.random.default_rng(seed).integers(NUM_FOLDS, size=len(train))
        users_E = np.repeat(np.arange(len(train)), train.lengths)
        cells = train.items_E * NUM_FOLDS + folds_U[users_E]
        by_fold_NK = np.bincount(cells, minlength=num_items * NUM_FOLDS).reshape(-1, NUM_FOLDS)
        counts_KN = _leave_one_out(by_fold_NK).T
        ranks = [np.searchsorted(np.sort(row), row) / num_items for row in counts_KN]
        known_N1 = (vectors_ND != 0).any(axis=1, keepdims=True)
        centre_D = vectors_ND.sum(axis=0) / max(int(known_N1.sum()), 1)
        return cls(
            unit_rows((vectors_ND - centre_D) * known_N1),
            np.log1p(counts_KN).astype(np.float32),
            np.array(ranks, dtype=np.float32),
            PairCounts.of(train, num_items, folds_U),
            kinds_of(items),
            folds_U,
        )

    @property
    def num_features(self) -> int:
        return len(FEATURES) + self.kinds_NC.shape[1]

    def features(
        self, items_BT: Ints, rows_BG: Ints, folds_B: Ints | None = None, *, session_length: int = 0
    ) -> tuple[Floats, Floats]:
        """(B, G, F) in the order of `FEATURES`, and (B, G) mean similarity to the last events.

        `folds_B` are left out of all counts. Histories are right-aligned, −1 in front; candidates
        of −1 get numbers without meaning.
        """
        step = max(1, BLOCK_CELLS // (items_BT.shape[1] * self.unit_ND.shape[1]))
        folds_B = np.full(len(items_BT), ALL_FOLDS) if folds_B is None else folds_B
        blocks = [
            self._block(items_BT[i : i + step], rows_BG[i : i + step], folds_B[i : i + step],
                        session_length)
            for i in range(0, len(items_BT), step)
        ]  # fmt: skip
        if not blocks:
            shape = rows_BG.shape
            return np.zeros((*shape, self.num_features), np.float32), np.zeros(shape, np.float32)
        features, sessions = zip(*blocks, strict=True)
        return np.concatenate(features), np.concatenate(sessions)

    def similarities(self, items_BT: Ints, rows_BG: Ints) -> Floats:
        """(B, T, G) cosines of history events and candidates; 0 at places without an event."""
        sims_BTG = self.unit_ND[items_BT] @ self.unit_ND[rows_BG].swapaxes(1, 2)
        return sims_BTG * (items_BT >= 0)[:, :, None]

    def _block(
        self, items_BT: Ints, rows_BG: Ints, folds_B: Ints, session_length: int
    ) -> tuple[Floats, Floats]:
        real_BT = items_BT >= 0
        num_B1 = np.maximum(real_BT.sum(axis=1), 1)[:, None]
        ages_T = np.arange(items_BT.shape[1])[::-1]
        recency_BT = RECENCY**ages_T * real_BT
        recency_BT = recency_BT / np.maximum(recency_BT.sum(axis=1, keepdims=True), 1e-9)
        sims_BTG = self.similarities(items_BT, rows_BG)
        best_BG = np.where(real_BT[:, :, None], sims_BTG, -1).max(axis=1)
        same_BTG = (items_BT[:, :, None] == rows_BG[:, None]) & real_BT[:, :, None]
        folds_B1, folds_B11 = folds_B[:, None], folds_B[:, None, None]
        old_BT1, new_B1G = items_BT[:, :, None], rows_BG[:, None]
        totals_BT1 = self.pairs.totals_NK[items_BT, folds_B1][:, :, None]
        totals_B1G = self.pairs.totals_NK[rows_BG, folds_B1][:, None]
        after_BTG = self.pairs(old_BT1, new_B1G, folds_B11) * real_BT[:, :, None]
        before_BTG = self.pairs(new_B1G, old_BT1, folds_B11) * real_BT[:, :, None]
        steps_T = np.where(ages_T < WINDOW, GAP_DECAY**ages_T, 0)[:, None]
        transition_BG = (steps_T * after_BTG / (totals_BT1 + 1)).sum(axis=1)
        both_BTG = (after_BTG + before_BTG) / np.sqrt((totals_BT1 + 1) * (totals_B1G + 1))
        parts = [
            sims_BTG[:, -1],
            (recency_BT[:, :, None] * sims_BTG).sum(axis=1),
            sims_BTG.sum(axis=1) / num_B1,
            best_BG,
            self.popularity_KN[folds_B1, rows_BG],
            np.log(transition_BG + 1e-3),
            np.log(both_BTG.sum(axis=1) + 1e-3),
            same_BTG.any(axis=1),
            (same_BTG * RECENCY ** ages_T[:, None]).max(axis=1),
        ]
        for kinds_N in self.kinds_NC.T:
            kind_BTG = kinds_N[old_BT1] == kinds_N[new_B1G]
            kind_BTG = kind_BTG & (kinds_N[new_B1G] >= 0)
            parts.append((recency_BT[:, :, None] * kind_BTG).sum(axis=1))
        latest_T1 = (ages_T < session_length)[:, None]
        num_latest_B1 = np.minimum(num_B1, max(session_length, 1))
        session_BG = (sims_BTG * latest_T1).sum(axis=1) / num_latest_B1
        return np.stack(parts, axis=-1).astype(np.float32), session_BG.astype(np.float32)


def kinds_of(items: Items) -> Ints:
    """Codes (N, C) of each column that says of what kind an item is; −1 where it is empty.

    A list, coarse to fine, counts as its first and its last entry: two columns.
    """
    columns: list[Ints] = []
    for name in KIND_COLUMNS:
        if name not in items.attributes.columns:
            continue
        values = [_entries(value) for value in items.attributes[name].to_list()]
        columns.append(_codes(entries[-1] if entries else None for entries in values))
        if any(len(entries) > 1 for entries in values):
            columns.append(_codes(entries[0] if entries else None for entries in values))
    kept = [column for column in columns if len(np.unique(column[column >= 0])) > 1]
    return np.stack(kept, axis=1) if kept else np.zeros((len(items), 0), dtype=np.int64)


def _entries(value: Any) -> list[str]:
    if value is None:
        return []
    parts = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    return [text for part in parts if (text := str(part).strip().lower()) not in ("", "unknown")]


def _codes(values: Iterable[str | None]) -> Ints:
    known: dict[str, int] = {}
    codes = [PAD if value is None else known.setdefault(value, len(known)) for value in values]
    return np.array(codes, dtype=np.int64)


def _leave_one_out(by_fold: np.ndarray) -> Floats:
    """(·, K + 1) sums without each fold, and of all."""
    total = by_fold.sum(axis=1, keepdims=True)
    return np.concatenate([total - by_fold, total], axis=1).astype(np.float32)
