"""Cut a dataset into training histories and validation and test questions, by one written rule.

Source:   evaluation card 1; leave-one-out as in SASRec (arXiv:1808.09781) and TIGER
          (arXiv:2305.05065); global time as argued for in arXiv:2010.11060.
Differs:  global_time asks one question a user and window: the user's first event in it. Asking
          every event would let the history of a question hold earlier answers of its own window.
Shapes:   U users, E events, Q questions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sidrec.errors import ConfigError, DataError
from sidrec.types import Dataset, Examples, Histories, Ints, Split

RULES = ("leave_one_out", "global_time")


def split(
    dataset: Dataset,
    rule: str = "leave_one_out",
    *,
    ties: str = "file",
    seed: int = 0,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    min_history: int = 1,
) -> Split:
    """Training histories (U) and validation and test questions; `Split.rule` says the cut.

    leave_one_out: a user's last event is the test target, the one before it the validation target.
    global_time: two moments cut all events, so that nothing later is known to anything earlier.
    `ties="shuffle"` reorders events of one user at one time at random, to see what the order of
    the file is worth. A question needs at least `min_history` events before its target.
    """
    _check(dataset, rule, ties, valid_share, test_share, min_history)
    sequences = dataset.interactions.histories
    tie_rule = "ties of one user keep file order"
    if ties == "shuffle":
        sequences = _shuffled_ties(dataset, seed)
        tie_rule = f"ties of one user shuffled (seed {seed})"
    if rule == "leave_one_out":
        cut = _leave_one_out(sequences, min_history)
    else:
        cut = _global_time(dataset, valid_share, test_share, min_history)
    _require_questions(dataset, rule, cut, min_history)
    valid = np.flatnonzero(cut.valid_U >= 0)
    test = np.flatnonzero(cut.test_U >= 0)
    return Split(
        train=_prefixes(sequences, np.arange(len(sequences)), cut.train_U),
        valid=_questions(sequences, valid, cut.valid_U[valid]),
        test=_questions(sequences, test, cut.test_U[test]),
        num_items=len(dataset.items),
        rule=f"{rule}: {cut.words}; {tie_rule}",
    )


@dataclass(frozen=True)
class _Cut:
    """Where each user's sequence is cut; −1 where the user is not asked."""

    train_U: Ints
    """Number of training events."""
    valid_U: Ints
    """Place of the validation target in the sequence; all events before it are its history."""
    test_U: Ints
    words: str


def _leave_one_out(sequences: Histories, min_history: int) -> _Cut:
    lengths = sequences.lengths
    need = max(min_history, 1) + 2
    asked = lengths >= need
    words = (
        "last event of a user = test, the one before = validation, the rest = train; "
        f"the test history holds the validation event; {int(asked.sum())} users asked, "
        f"{int((~asked & (lengths > 0)).sum())} users with fewer than {need} events only in train"
    )
    return _Cut(
        np.where(asked, lengths - 2, lengths),
        np.where(asked, lengths - 2, -1),
        np.where(asked, lengths - 1, -1),
        words,
    )


def _global_time(dataset: Dataset, valid_share: float, test_share: float, min_history: int) -> _Cut:
    events = dataset.interactions
    times = np.sort(events.times_E)
    t1, t2 = (
        int(times[min(int(len(times) * share), len(times) - 1)])
        for share in (1 - valid_share - test_share, 1 - test_share)
    )
    starts, ends = events.histories.offsets[:-1], events.histories.offsets[1:]

    def events_before(moment: int) -> Ints:  # times of one user ascend, so these come first
        earlier = np.concatenate([[0], np.cumsum(events.times_E < moment)])
        return earlier[ends] - earlier[starts]

    before_1, before_2, total = events_before(t1), events_before(t2), ends - starts
    in_valid, in_test = before_2 > before_1, total > before_2
    enough_1, enough_2 = before_1 >= max(min_history, 1), before_2 >= max(min_history, 1)
    left_out = int((in_valid & ~enough_1).sum()), int((in_test & ~enough_2).sum())
    words = (
        f"train before {_moment(t1)}, validation until {_moment(t2)}, test from then on; one "
        "question a user and window: the first event in it, after all the user's earlier events; "
        f"{int((in_valid & enough_1).sum())} users asked in validation, "
        f"{int((in_test & enough_2).sum())} in test, {left_out[0]} and {left_out[1]} left out with "
        f"fewer than {max(min_history, 1)} events before"
    )
    return _Cut(
        before_1,
        np.where(in_valid & enough_1, before_1, -1),
        np.where(in_test & enough_2, before_2, -1),
        words,
    )


def _moment(micros: int) -> str:
    return str(np.datetime64(micros, "us")).removesuffix(".000000") + "Z"


def _shuffled_ties(dataset: Dataset, seed: int) -> Histories:
    """Sequences with events of one user at one time in random order."""
    events = dataset.interactions
    random_E = np.random.default_rng(seed).random(len(events))
    order = np.lexsort((random_E, events.times_E, events.users_E))
    return Histories(events.items_E[order], events.histories.offsets, events.times_E[order])


def _prefixes(sequences: Histories, users: Ints, lengths: Ints) -> Histories:
    """The first `lengths` events of the chosen users' sequences."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    shift = np.repeat(sequences.offsets[users] - offsets[:-1], lengths)
    places = shift + np.arange(offsets[-1])
    times_E = None if sequences.times_E is None else sequences.times_E[places]
    return Histories(sequences.items_E[places], offsets, times_E)


def _questions(sequences: Histories, users: Ints, places: Ints) -> Examples:
    targets = sequences.items_E[sequences.offsets[users] + places]
    return Examples(users, _prefixes(sequences, users, places), targets)


def _check(
    dataset: Dataset, rule: str, ties: str, valid_share: float, test_share: float, min_history: int
) -> None:
    if rule not in RULES:
        raise ConfigError(f"no split rule {rule!r}: have {list(RULES)}")
    if ties not in ("file", "shuffle"):
        raise ConfigError(f"ties must be 'file' or 'shuffle', got {ties!r}")
    if min_history < 1:
        raise ConfigError(f"min_history must be at least 1, got {min_history}")
    if not (valid_share > 0 and test_share > 0 and valid_share + test_share < 1):
        raise ConfigError(
            "valid_share and test_share must be above 0 and add up to less than 1, "
            f"got {valid_share} and {test_share}"
        )
    needs_clock = "global_time" if rule == "global_time" else "ties='shuffle'"
    if (rule == "global_time" or ties == "shuffle") and not dataset.interactions.has_clock:
        raise DataError(
            f"{dataset.name}: {needs_clock} needs event times, but this data has only an order; "
            "add a time column or use leave_one_out with ties='file'"
        )


def _require_questions(dataset: Dataset, rule: str, cut: _Cut, min_history: int) -> None:
    counts = {
        "training events": int(cut.train_U.sum()),
        "validation questions": int((cut.valid_U >= 0).sum()),
        "test questions": int((cut.test_U >= 0).sum()),
    }
    if min(counts.values()) > 0:
        return
    got = ", ".join(f"{count} {what}" for what, count in counts.items())
    longest = int(dataset.interactions.histories.lengths.max(initial=0))
    fix = (
        f"leave_one_out needs users with {min_history + 2} events (longest history: {longest})"
        if rule == "leave_one_out"
        else "global_time needs users active before and after its cuts; change the shares"
    )
    raise DataError(f"{dataset.name}: the split leaves {got}; expected some of each; {fix}")
