"""A share of every list for new items: those that no training event names.

Systems that learn from events give an item without any a low score, whatever it is; ranked against
the rest it never shows, so it never gets events. Here place p of a list goes to the best new item
wherever the places so far hold fewer than floor(p * share) new ones. Among themselves new items
are ranked by the same system, searched over them alone. Known is only that they are new.

Source:  TIGER (arXiv:2305.05065, sec. 4.3): a share epsilon of a list for unseen items; LIGER
         (arXiv:2411.18814): known new items join the candidates.
Differs: TIGER's epsilon is the most that unseen items may take; here it is the least. A list of
         k is the beginning of a longer one.
Cost:    a second search, over the new items only.
Shapes:  B requests, N items, K listed items, M new items at hand for a list.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from sidrec.types import PAD, Bools, Candidates

Pairs = Iterator[tuple[int, float]]
"""Items and scores, best first."""


def reserved(k: int, share: float) -> int:
    """New items that a list of k holds at least, where there are that many."""
    return int(k * share + 1e-9)


def with_new_items(listed: Candidates, new: Candidates, new_N: Bools, share: float) -> Candidates:
    """Lists (B, K) of which every beginning of p items holds floor(p * share) new ones.

    A new item that is moved up takes the score of the item above it, less the least step there is.
    """
    rows_BK = np.full_like(listed.rows_BK, PAD)
    scores_BK = np.full_like(listed.scores_BK, -np.inf)
    for row in range(len(rows_BK)):
        places = merged(pairs(listed, row), pairs(new, row), new_N, share)
        found = list(itertools.islice(places, rows_BK.shape[1]))
        rows_BK[row, : len(found)] = [item for item, _ in found]
        scores_BK[row, : len(found)] = [score for _, score in found]
    return Candidates(rows_BK, scores_BK)


def merged(listed: Pairs, new: Pairs, new_N: Bools, share: float) -> Pairs:
    """`listed` in its order, and the next item of `new` wherever one is due."""
    taken: set[int] = set()
    num_new, above = 0, float("inf")

    def first_of(pairs: Pairs) -> tuple[int, float] | None:
        return next((pair for pair in pairs if pair[0] not in taken), None)

    while True:
        due = num_new < reserved(len(taken) + 1, share)
        moved_up = first_of(new) if due else None
        if (found := moved_up or first_of(listed)) is None:
            return
        item, score = found
        if moved_up and taken:
            score = float(np.nextafter(np.float32(above), np.float32(-np.inf)))
        above = min(score, above)
        taken.add(item)
        num_new += bool(new_N[item])
        yield item, above


def pairs(candidates: Candidates, row: int) -> Pairs:
    """Items and scores of one list."""
    items, scores = candidates.rows_BK[row].tolist(), candidates.scores_BK[row].tolist()
    return ((i, s) for i, s in zip(items, scores, strict=True) if i != PAD)
