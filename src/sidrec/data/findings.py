"""What a dataset looks like, and which known traps it holds.

`summary` counts; `audit` runs the checks that the data alone can decide and says what to do. Codes
of findings are those of pitfalls card A (A2 ties by id, A4 ids in order of use, A6 sorted
histories, A8 later crawled co-purchases, A11 equal texts), and D for plain data faults.

Cost: a few passes over events and one over texts; a second per million events.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from sidrec.types import Dataset, Ints

CO_PURCHASE = ("also_bought", "also_viewed", "bought_together", "buy_after_viewing")
MIN_SORTED_LENGTH = 4
"""Shorter histories are sorted by chance too often to tell anything."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One trap that the data hold, and what to do about it."""

    code: str
    """Row of the pitfalls card, or D1, … for plain data faults."""
    severity: str
    """'warning' (numbers may mislead) or 'note'."""
    what: str
    fix: str


def summary(dataset: Dataset) -> dict[str, Any]:
    """Counts and shares that describe a dataset; plain numbers, ready for JSON."""
    events, items = dataset.interactions, dataset.items
    lengths = events.histories.lengths
    texts = items.texts()
    sorted_share, by_chance = sorted_history_share(dataset)
    tied, tied_by_id, last_tied = _ties(dataset)
    seen = np.bincount(events.items_E, minlength=len(items)) > 0
    quantiles = np.quantile(lengths, (0, 0.25, 0.5, 0.75, 1))
    names = ("min", "25%", "median", "75%", "max")
    return {
        "name": dataset.name,
        "users": len(events.user_ids),
        "items": len(items),
        "events": len(events),
        "density": len(events) / (len(events.user_ids) * len(items)),
        "events_per_user": {n: float(q) for n, q in zip(names, quantiles, strict=True)},
        "items_without_events": int((~seen).sum()),
        "items_without_text": sum(not text for text in texts),
        "items_sharing_text": near_duplicate_texts(texts),
        "repeat_share": _repeat_share(events.users_E, events.items_E, len(items)),
        "sorted_history_share": sorted_share,
        "sorted_history_share_by_chance": by_chance,
        "consecutive_id_share": _consecutive_share(dataset),
        "has_clock": events.has_clock,
        "tied_event_share": tied,
        "ties_in_id_order_share": tied_by_id,
        "users_with_tied_last_event": last_tied,
        "content_hash": dataset.content_hash,
    }


def sorted_history_share(dataset: Dataset) -> tuple[float, float]:
    """Share of users whose history ascends by item id, and the share expected by chance.

    Both as text and, where all ids are whole numbers, as numbers; the larger counts. Users with
    fewer than `MIN_SORTED_LENGTH` events are not looked at. Chance: one order of n! for n items.
    """
    sequences = dataset.interactions.histories
    chosen = sequences.lengths >= MIN_SORTED_LENGTH
    if not chosen.any():
        return 0.0, 0.0
    starts = sequences.offsets[:-1]
    lengths = sequences.lengths[chosen].astype(np.float64)
    by_chance = np.exp(-np.cumsum(np.log(np.arange(1, lengths.max() + 1))))[lengths.astype(int) - 1]
    shares = []
    for rank_N in _id_ranks(dataset):
        falls = np.diff(rank_N[sequences.items_E], append=np.iinfo(np.int64).max) < 0
        falls[sequences.offsets[1:][sequences.lengths > 0] - 1] = False
        counted = np.concatenate([[0], np.cumsum(falls)])
        num_falls = counted[sequences.offsets[1:]] - counted[starts]
        shares.append(float((num_falls[chosen] == 0).mean()))
    return max(shares), float(by_chance.mean())


def near_duplicate_texts(texts: list[str]) -> int:
    """How many items have, but for case, digits and order, the words of another item."""
    keys = [" ".join(sorted(set(re.findall(r"[^\W\d_]+", text.lower())))) for text in texts]
    known = np.array([key for key in keys if key], dtype=object)
    if not len(known):
        return 0
    _, counts = np.unique(known, return_counts=True)
    return int(counts[counts > 1].sum())


def audit(dataset: Dataset) -> list[Finding]:
    """Known traps that these data hold, worst first; [] when none was found."""
    facts = summary(dataset)
    found: list[Finding] = []

    def add(code: str, severity: str, what: str, fix: str) -> None:
        found.append(Finding(code=code, severity=severity, what=what, fix=fix))

    share, chance = facts["sorted_history_share"], facts["sorted_history_share_by_chance"]
    if share > 0.5 > chance:
        add(
            "A6",
            "warning",
            f"{share:.1%} of histories ascend by item id ({chance:.1%} by chance)",
            "check that the file is in order of time; sorted histories make the next item trivial",
        )
    elif share > 2 * chance + 0.02 and not facts["has_clock"]:
        add(
            "A2",
            "warning",
            f"{share:.1%} of histories ascend by item id ({chance:.1%} by chance); where times "
            "tied, their order is probably that of the ids",
            "the order cannot be undone without times; say so beside the numbers",
        )
    if facts["consecutive_id_share"] > 0.05:
        add(
            "A4",
            "warning",
            f"{facts['consecutive_id_share']:.1%} of events follow an item whose id is one less",
            "ids were numbered in order of use; rename them at random before any "
            "model reads the digits of an id",
        )
    if facts["ties_in_id_order_share"] > 0.75:
        add(
            "A2",
            "warning",
            f"{facts['ties_in_id_order_share']:.1%} of events at one time ascend by "
            "item id (50% by chance)",
            "report a run with split(..., ties='shuffle') as well",
        )
    if facts["users_with_tied_last_event"] > 0.05:
        add(
            "A2",
            "note",
            f"the test item of {facts['users_with_tied_last_event']:.1%} of users shares "
            "its time with the event before",
            "times are coarse; the rule for ties decides",
        )
    crawled = [c for c in CO_PURCHASE if c in dataset.items.attributes.columns]
    if crawled:
        add(
            "A8",
            "warning",
            f"items carry {', '.join(crawled)}, crawled after the events",
            "do not use them as features; count co-occurrence on training events",
        )
    count = len(dataset.items)
    if facts["items_sharing_text"] > 0.01 * count:
        add(
            "A11",
            "warning",
            f"{facts['items_sharing_text']} of {count} items have the words of another item",
            "their semantic IDs will collide; add a brand, a size or collaborative vectors",
        )
    if facts["items_without_text"]:
        add(
            "D1",
            "warning" if facts["items_without_text"] == count else "note",
            f"{facts['items_without_text']} of {count} items have no text",
            "give a title, or use collaborative or precomputed vectors",
        )
    if facts["items_without_events"]:
        add(
            "D2",
            "note",
            f"{facts['items_without_events']} of {count} items have no event",
            "they can be recommended only through their text; see the cold stratum",
        )
    if facts["repeat_share"] > 0.02:
        add(
            "D3",
            "note",
            f"{facts['repeat_share']:.1%} of events are repeats of the user's own items",
            "leave the seen filter off, or repeats cannot be hit",
        )
    if not facts["has_clock"]:
        add(
            "D4",
            "note",
            "events have an order but no times",
            "only leave_one_out is possible, which lets the future of others leak into training",
        )
    return sorted(found, key=lambda finding: finding.severity != "warning")


def _id_ranks(dataset: Dataset) -> list[Ints]:
    """Rank (N,) of each item by its id as text and, where possible, as a number."""
    texts = dataset.items.item_ids.astype(str)
    ranks = [np.argsort(np.argsort(texts, kind="stable"), kind="stable")]
    numbers = _whole_numbers(dataset)
    return ranks if numbers is None else [*ranks, numbers]


def _whole_numbers(dataset: Dataset) -> Ints | None:
    ids = dataset.items.item_ids
    if all(i.isascii() and i.isdigit() and len(i) < 18 for i in ids):
        return np.array([int(i) for i in ids], dtype=np.int64)
    return None


def _consecutive_share(dataset: Dataset) -> float:
    numbers = _whole_numbers(dataset)
    events = dataset.interactions
    inside = np.diff(events.users_E) == 0
    if numbers is None or not inside.any():
        return 0.0
    return float((np.diff(numbers[events.items_E])[inside] == 1).mean())


def _repeat_share(users_E: Ints, items_E: Ints, num_items: int) -> float:
    distinct = np.unique(users_E * num_items + items_E).size
    return 1 - distinct / len(users_E)


def _ties(dataset: Dataset) -> tuple[float, float, float]:
    """Shares: events tied with the one before; of those, in id order; users whose last is tied."""
    events = dataset.interactions
    if not events.has_clock or len(events) < 2:
        return 0.0, 0.0, 0.0
    tied = (np.diff(events.users_E) == 0) & (np.diff(events.times_E) == 0)
    rises = np.zeros(len(tied), dtype=np.bool_)
    for rank_N in _id_ranks(dataset)[-1:]:
        rises |= np.diff(rank_N[events.items_E]) > 0
    ends = events.histories.offsets[1:] - 1
    last_tied = np.append(False, tied)[ends]
    in_order = float(rises[tied].mean()) if tied.sum() >= 20 else 0.0
    return float(tied.mean()), in_order, float(last_tied.mean())
