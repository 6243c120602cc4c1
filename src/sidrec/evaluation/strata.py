"""Groups of examples that are reported apart: by training count of the target, by history length.

Source:   strata of the evaluation card: training count {0, 1–5, 6–20, > 20}.
Shapes:   Q examples, N items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sidrec.types import Bools, Examples, Ints

COUNT_EDGES = (1, 6, 21)
COUNT_NAMES = ("cold", "tail", "mid", "head")
"""Training events of the target: 0, 1–5, 6–20, over 20."""
LENGTH_EDGES = (5, 10, 20)
LENGTH_NAMES = ("history_0_4", "history_5_9", "history_10_19", "history_20_up")
"""Events of the history the system could read (before any cut to `max_length`)."""


def bucket(values: Ints, edges: Sequence[int]) -> Ints:
    """Bucket number of each value: how many edges it reaches. `edges` ascend."""
    return np.searchsorted(np.asarray(edges), values, side="right").astype(np.int64)


def by_training_count(targets_Q: Ints, train_counts_N: Ints) -> dict[str, Bools]:
    """Name -> which examples: cold, tail, mid, head, by training events of the target."""
    bucket_Q = bucket(train_counts_N[targets_Q], COUNT_EDGES)
    return {name: bucket_Q == number for number, name in enumerate(COUNT_NAMES)}


def by_history_length(lengths_Q: Ints) -> dict[str, Bools]:
    """Name -> which examples, by events in the history."""
    bucket_Q = bucket(lengths_Q, LENGTH_EDGES)
    return {name: bucket_Q == number for number, name in enumerate(LENGTH_NAMES)}


def all_strata(examples: Examples, train_counts_N: Ints) -> dict[str, Bools]:
    """Both kinds; strata without examples are left out."""
    strata = by_training_count(examples.targets, train_counts_N)
    strata |= by_history_length(examples.histories.lengths)
    return {name: chosen for name, chosen in strata.items() if chosen.any()}
