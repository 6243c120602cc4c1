"""Splits against a plain-Python reading of the rule, and against hand-worked users."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.data import read, split
from sidrec.errors import ConfigError, DataError

EVENTS = [  # user, item, day
    ("a", "p", 1), ("a", "q", 2), ("a", "r", 3), ("a", "s", 4),
    ("b", "q", 1), ("b", "p", 9),
    ("c", "r", 2), ("c", "s", 8), ("c", "q", 8), ("c", "p", 10),
    ("d", "s", 10),
]  # fmt: skip


def dataset_of(events, clock=True):
    names = ["user", "item", "time" if clock else "position"]
    return read(pl.DataFrame(events, schema=names, orient="row"))


def words(dataset, rows):
    return "".join(dataset.items.item_ids[rows])


def questions(dataset, examples):
    """user id -> (history, target), as text."""
    return {
        str(dataset.interactions.user_ids[user]): (
            words(dataset, examples.histories[i]),
            words(dataset, examples.targets[i : i + 1]),
        )
        for i, user in enumerate(examples.user_rows)
    }


def test_leave_one_out_by_hand():
    dataset = dataset_of(EVENTS)
    cut = split(dataset)
    assert [words(dataset, cut.train[u]) for u in range(4)] == ["pq", "qp", "rs", "s"]
    assert questions(dataset, cut.valid) == {"a": ("pq", "r"), "c": ("rs", "q")}
    assert questions(dataset, cut.test) == {"a": ("pqr", "s"), "c": ("rsq", "p")}
    assert cut.num_items == 4
    assert "2 users asked, 2 users with fewer than 3 events only in train" in cut.rule
    assert "test history holds the validation event" in cut.rule
    assert "keep file order" in cut.rule


def test_min_history_asks_only_longer_users():
    dataset = dataset_of([*EVENTS, ("a", "p", 5)])
    cut = split(dataset, min_history=3)
    assert questions(dataset, cut.valid) == {"a": ("pqr", "s")}
    assert words(dataset, cut.train[2]) == "rsqp"  # c has four events, so all of them train


def test_global_time_by_hand():
    # times in order: 1 1 2 2 3 4 8 8 9 10 10; cuts after 7 and 9 of 11 events: t1 = 8, t2 = 10
    dataset = dataset_of(EVENTS)
    cut = split(dataset, "global_time", valid_share=0.2, test_share=0.15)
    assert [words(dataset, cut.train[u]) for u in range(4)] == ["pqrs", "q", "r", ""]
    assert questions(dataset, cut.valid) == {"b": ("q", "p"), "c": ("r", "s")}
    assert questions(dataset, cut.test) == {"c": ("rsq", "p")}
    assert "0 and 1 left out" in cut.rule  # d appears for the first time in the test window
    assert "train before 1970-01-01T00:00:08Z" in cut.rule


events_of_users = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from("pqrst"), st.integers(0, 12)),
    min_size=8, max_size=60,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(events_of_users, st.integers(1, 3))
def test_global_time_agrees_with_the_rule_spelt_out(events, min_history):
    try:
        dataset = dataset_of(events)
        cut = split(dataset, "global_time", min_history=min_history)
    except DataError:
        return  # one user, one item, or nobody to ask: covered elsewhere
    times = sorted(t for _, _, t in events)
    t1, t2 = times[int(len(times) * 0.8)], times[int(len(times) * 0.9)]
    sorted_events = sorted(events, key=lambda e: e[2])  # stable: ties keep file order
    for examples, low, high in ((cut.valid, t1, t2), (cut.test, t2, 99)):
        expected = {}
        for user in {u for u, _, _ in events}:
            own = [(i, t) for u, i, t in sorted_events if u == user]
            history = "".join(i for i, t in own if t < low)
            later = [i for i, t in own if low <= t < high]
            if later and len(history) >= min_history:
                expected[user] = (history, later[0])
        assert questions(dataset, examples) == expected
    train = "".join(words(dataset, cut.train[u]) for u in range(len(cut.train)))
    assert sorted(train) == sorted(i for _, i, t in events if t < t1)


@settings(max_examples=60, deadline=None)
@given(events_of_users)
def test_leave_one_out_loses_and_repeats_nothing(events):
    try:
        dataset = dataset_of(events, clock=False)
        cut = split(dataset)
    except DataError:
        return
    for user, name in enumerate(dataset.interactions.user_ids):
        own = [i for u, i, t in sorted(events, key=lambda e: e[2]) if u == name]
        rebuilt = words(dataset, cut.train[user])
        if len(own) >= 3:
            rebuilt += (
                questions(dataset, cut.valid)[name][1] + questions(dataset, cut.test)[name][1]
            )
        assert rebuilt == "".join(own)


def test_ties_keep_file_order_and_never_the_order_of_ids():
    events = [("a", i, 5) for i in "zyx"] + [("b", i, 5) for i in "xzy"]
    cut = split(dataset := dataset_of(events))
    assert questions(dataset, cut.test) == {"a": ("zy", "x"), "b": ("xz", "y")}


def test_shuffled_ties_move_only_tied_events_and_follow_the_seed():
    events = [
        (f"u{u}", i, t) for u in range(200) for i, t in (("p", 1), ("q", 2), ("r", 2), ("s", 2))
    ]
    dataset = dataset_of(events)
    cut = split(dataset, ties="shuffle", seed=3)
    assert all(words(dataset, cut.train[u])[0] == "p" for u in range(200))
    targets = words(dataset, cut.test.targets)
    assert all(40 < targets.count(item) < 95 for item in "qrs")  # a third each, 200 draws
    assert words(dataset, split(dataset, ties="shuffle", seed=3).test.targets) == targets
    assert words(dataset, split(dataset, ties="shuffle", seed=4).test.targets) != targets
    assert "shuffled (seed 3)" in cut.rule


def test_splits_that_cannot_be_made_say_why():
    ordered, timed = dataset_of(EVENTS, clock=False), dataset_of(EVENTS)
    with pytest.raises(DataError, match=r"global_time needs event times.*only an order"):
        split(ordered, "global_time")
    with pytest.raises(DataError, match=r"ties='shuffle' needs event times"):
        split(ordered, ties="shuffle")
    with pytest.raises(DataError, match=r"0 validation questions.*needs users with 3 events"):
        split(dataset_of([("a", "p", 1), ("b", "q", 2)]))
    with pytest.raises(DataError, match=r"0 training events.*change the shares"):
        split(dataset_of([(u, i, 5) for u in "ab" for i in "pq"]), "global_time")
    with pytest.raises(ConfigError, match="no split rule 'random'"):
        split(timed, "random")
    with pytest.raises(ConfigError, match="add up to less than 1"):
        split(timed, "global_time", valid_share=0.5, test_share=0.5)


def test_no_training_event_is_as_late_as_the_first_validation_event():
    rng = np.random.default_rng(0)
    events = [(f"u{u}", f"i{i}", int(t)) for u, i, t in rng.integers(0, [40, 30, 500], (900, 3))]
    dataset = dataset_of(events)
    cut = split(dataset, "global_time")
    late = np.sort(dataset.interactions.times_E)[int(900 * 0.8)]
    assert len(cut.train.items_E) == (dataset.interactions.times_E < late).sum()
    assert 0 < len(cut.valid) <= 40 and 0 < len(cut.test) <= 40
