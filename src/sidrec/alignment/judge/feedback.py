"""Training contexts of a judge: a history, what came next, and what did not.

Source:  S-GRec learns from pairs that people or impressions order; arXiv:2602.10606.
Differs: where no impressions are at hand, the pair is an event of a training sequence and an item
         drawn at random: half uniformly, half in proportion to training events.
Shapes:  R contexts, M negatives, U users, N items, E events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sidrec.alignment.judge.histories import last_events
from sidrec.alignment.judge.statistics import ALL_FOLDS, Statistics
from sidrec.alignment.values import AlignmentContext, Preferences
from sidrec.errors import DataError
from sidrec.types import PAD, Histories, Ints


@dataclass(frozen=True, eq=False)
class Feedback:
    """R training contexts."""

    items_RT: Ints
    """Right-aligned history, −1 in front."""
    rows_RG: Ints
    """(R, 1 + M): the item taken, then those left; −1 where there are fewer."""
    folds_R: Ints
    """Fold of the user, to be left out of counts; −1 leaves nothing out."""
    histories: Histories
    """The same histories as sequences."""


def sampled_feedback(
    context: AlignmentContext,
    statistics: Statistics,
    *,
    num: int,
    num_negatives: int,
    max_history: int,
    horizon: int,
    seed: int,
) -> Feedback:
    """Up to `num` events of training sequences, each with random negatives.

    The item taken is one of the next `horizon` events, at random.
    """
    rng = np.random.default_rng(seed)
    train = context.train
    users_E = np.repeat(np.arange(len(train)), train.lengths)
    places_E = np.arange(len(users_E)) - train.offsets[users_E]
    cuts = np.flatnonzero(places_E > 0)
    if not len(cuts):
        raise DataError(
            "the judge needs training sequences of two events or more to learn what comes next, "
            "got none; bring longer histories"
        )
    cuts = np.sort(rng.permutation(cuts)[:num])
    users_R = users_E[cuts]
    ahead_R = rng.integers(np.minimum(train.offsets[users_R + 1] - cuts, horizon))
    histories = Histories.from_lists(
        [
            train.items_E[max(train.offsets[u], cut - max_history) : cut]
            for u, cut in zip(users_R, cuts, strict=True)
        ]
    )
    taken_R = train.items_E[cuts + ahead_R]
    num_items = len(context.items)
    uniform = rng.integers(num_items, size=(len(cuts), num_negatives))
    popular = rng.choice(train.items_E, size=uniform.shape)
    left = np.where(rng.random(uniform.shape) < 0.5, uniform, popular)
    left = np.where(left == taken_R[:, None], PAD, left)
    return Feedback(
        last_events(histories, max_history),
        np.concatenate([taken_R[:, None], left], axis=1),
        statistics.folds_U[users_R],
        histories,
    )


def shown_feedback(
    preferences: Preferences,
    statistics: Statistics,
    *,
    num: int,
    num_negatives: int,
    max_history: int,
    seed: int,
) -> Feedback | None:
    """Up to `num` contexts with what was shown and left; None where nothing was left."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(preferences.negatives.lengths > 0)
    if not len(rows):
        return None
    chosen = preferences.take(np.sort(rng.permutation(rows)[:num]))
    left = np.full((len(chosen), num_negatives), PAD)
    for row in range(len(chosen)):
        negatives = rng.permutation(chosen.negatives[row])[:num_negatives]
        left[row, : len(negatives)] = negatives
    taken_R = chosen.positives.items_E[chosen.positives.offsets[:-1]]
    left = np.where(left == taken_R[:, None], PAD, left)
    users_R = chosen.users_R
    known_R = (users_R >= 0) & (users_R < len(statistics.folds_U))
    folds_R = np.where(known_R, statistics.folds_U[np.where(known_R, users_R, 0)], ALL_FOLDS)
    return Feedback(
        last_events(chosen.histories, max_history),
        np.concatenate([taken_R[:, None], left], axis=1),
        folds_R,
        chosen.histories,
    )
