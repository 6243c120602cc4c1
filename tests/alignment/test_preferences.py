"""Preferences from histories, impressions, the shop, and imagined exposure."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sidrec.alignment.preferences import (
    exposed,
    from_histories,
    from_impressions,
    of_shop,
    split_by_user,
)
from sidrec.data import split
from sidrec.data.shop import Shop, ShopConfig, exposures, simulate
from sidrec.errors import ConfigError, DataError
from sidrec.types import Histories, Items, ItemVectors, as_ids

TRAIN = Histories.from_lists([[0, 1, 2], [], [3], [4, 5], [1, 1, 0, 2]])


@pytest.fixture(scope="module")
def shop() -> Shop:
    return simulate(ShopConfig(num_users=150, num_items=80, num_days=20, seed=3))


# Histories


def test_every_event_with_one_before_it_is_a_context():
    found = from_histories(TRAIN)
    contexts = [(u, list(h), list(p)) for u, h, p in rows_of(found)]
    assert contexts == [
        (0, [0], [1]),
        (0, [0, 1], [2]),
        (3, [4], [5]),
        (4, [1], [1]),
        (4, [1, 1], [0]),
        (4, [1, 1, 0], [2]),
    ]
    assert len(found.negatives) == 6 and found.negatives.lengths.sum() == 0


def test_a_cap_on_contexts_takes_some_of_them_by_the_seed():
    whole = {(u, tuple(h), tuple(p)) for u, h, p in rows_of(from_histories(TRAIN))}
    drawn = [
        [
            (u, tuple(h), tuple(p))
            for u, h, p in rows_of(from_histories(TRAIN, max_contexts=3, seed=s))
        ]
        for s in (0, 0, 1, 2)
    ]
    assert all(len(contexts) == 3 and set(contexts) <= whole for contexts in drawn)
    assert drawn[0] == drawn[1] and len({tuple(d) for d in drawn}) > 1


def test_long_histories_keep_their_last_events():
    found = from_histories(Histories.from_lists([list(range(9))]), max_length=3)
    assert list(found.histories[0]) == [0] and list(found.histories[7]) == [5, 6, 7]


# Impressions


CATALOGUE = Items(as_ids("abcdef"), pl.DataFrame())


def table(**columns) -> pl.DataFrame:
    rows = {
        "user_id": ["u", "v", "u", "w", "x"],
        "history": [["a", "zz"], ["b"], ["a", "b", "c"], [], None],
        "candidates": [["b", "c", "zz"], ["a", "d"], ["d", "e", "d", "f", "f", "f"], ["a"], ["b"]],
        "clicks": [[0, 1, 1], [0, 0], [0, 1, 1, 0, 0, 2], [1], [1]],
    }
    return pl.DataFrame(rows | columns)


def test_impressions_become_contexts_and_what_was_dropped_is_counted():
    found, notes = from_impressions(table(), CATALOGUE)
    assert [(list(h), list(p)) for _, h, p in rows_of(found)] == [
        ([0], [2]),
        ([0, 1, 2], [5, 4, 3]),  # best grade first, then by place; a click beats a non-click
    ]
    assert [list(found.negatives[r]) for r in range(2)] == [[1], []]
    assert found.grades_E is not None and found.grades_E.tolist() == [1, 2, 1, 1]
    assert found.users_R.tolist() == [0, 0] and found.propensities_E is None
    assert notes == (
        "1 of 6 history entries are not in the catalogue",
        "1 of 13 candidates are not in the catalogue",
        "3 candidates repeat an item of their list; the best grade wins",
        "2 of 5 rows have no history left",
        "1 rows with a history have no click left",
    )


def test_users_of_impressions_are_rows_of_the_given_ids():
    found, _ = from_impressions(table(), CATALOGUE, user_ids=as_ids("xvu"))
    assert found.users_R.tolist() == [2, 2]
    found, _ = from_impressions(table(), CATALOGUE, user_ids=as_ids("xv"))
    assert found.users_R.tolist() == [-1, -1]
    found, _ = from_impressions(table().drop("user_id"), CATALOGUE)
    assert found.users_R.tolist() == [-1, -1]


def test_propensities_follow_their_candidates():
    clicks = table()["clicks"].to_list()
    shares = [[(place + 1) / 10 for place in range(len(c))] for c in clicks]
    found, _ = from_impressions(table(propensities=shares), CATALOGUE)
    assert found.propensities_E is not None
    np.testing.assert_allclose(found.propensities_E, [0.2, 0.6, 0.2, 0.3])


def test_impressions_that_cannot_be_read_say_why():
    with pytest.raises(DataError, match="need a column 'clicks'"):
        from_impressions(table().drop("clicks"), CATALOGUE)
    with pytest.raises(DataError, match="row 1 has 2 candidates and 1 clicks"):
        from_impressions(table(clicks=[[0, 1, 1], [0], [0] * 6, [1], [1]]), CATALOGUE)
    with pytest.raises(DataError, match="must be a list column"):
        from_impressions(table(history=["a b", "b", "a", "", ""]), CATALOGUE)
    with pytest.raises(DataError, match=r"propensities must lie in \(0, 1\]"):
        shares = [[0.5] * len(c) for c in table()["clicks"].to_list()]
        from_impressions(table(propensities=[[0.0] * 3, *shares[1:]]), CATALOGUE)


def test_no_usable_row_gives_no_context():
    found, _ = from_impressions(table(), Items(as_ids(["other"]), pl.DataFrame()))
    assert len(found) == 0


@pytest.mark.data
@pytest.mark.skipif("SIDREC_DATA" not in os.environ, reason="SIDREC_DATA is not set")
def test_mind_impressions_are_readable_as_they_are():
    folder = Path(os.environ["SIDREC_DATA"]) / "mind_sample"
    rows = pl.read_parquet(folder / "impressions.parquet")
    ids = pl.concat([rows["history"].explode(), rows["candidates"].explode()])
    items = Items(as_ids(ids.drop_nulls().unique(maintain_order=True)), pl.DataFrame())
    found, notes = from_impressions(rows, items, max_length=1000)
    assert len(found) == (rows["history"].list.len() > 0).sum()
    kept = rows.filter(pl.col("history").list.len() > 0)
    assert found.positives.lengths.tolist() == kept["clicks"].list.sum().to_list()
    assert found.histories.lengths.tolist() == kept["history"].list.len().to_list()
    total = found.positives.lengths.sum() + found.negatives.lengths.sum()
    assert total == kept["candidates"].list.len().sum()
    assert all("no history left" in note for note in notes)
    known = Items(
        as_ids(
            pl.read_parquet(Path(os.environ["SIDREC_DATA"]) / "mind_sample/items.parquet")[
                "item_id"
            ]
        ),
        pl.DataFrame(),
    )
    few, notes = from_impressions(rows, known)
    assert 0 < len(few) < len(found) and len(notes) == 4


# The shop


def test_logged_lists_of_the_shop_with_a_click_and_a_past_become_contexts(shop):
    found, log = of_shop(shop), shop.impressions
    clicks_before = {}
    expected = []
    for r in range(len(log)):
        user, rows = int(log.users_R[r]), log.rows_RK[r]
        past = clicks_before.setdefault(user, [])
        clicked = [int(i) for i in rows[log.clicks_RK[r]]]
        if past and clicked:
            bought = [int(i) for i in rows[log.purchases_RK[r]]]
            best_first = bought + [i for i in clicked if i not in bought]
            left = [int(i) for i in rows[~log.clicks_RK[r]]]
            expected.append((user, past[-50:], best_first, left))
        past.extend(clicked)
    assert len(found) == len(expected) > 100
    for r, (user, past, best_first, left) in enumerate(expected):
        assert found.users_R[r] == user
        assert (list(found.histories[r]), list(found.positives[r])) == (past[-50:], best_first)
        assert list(found.negatives[r]) == left
    assert found.grades_E is not None and set(found.grades_E) == {1.0, 3.0}
    assert found.propensities_E is not None and (found.propensities_E <= 0.9 + 1e-6).all()


def test_lists_of_the_shop_can_be_kept_to_training_events(shop):
    parts = split(shop.dataset)
    found, whole = of_shop(shop, parts.train), of_shop(shop)
    assert 0 < len(found) < len(whole)
    for r in range(len(found)):
        events = list(parts.train[found.users_R[r]])
        past, taken = list(found.histories[r]), list(found.positives[r])
        assert any(
            events[t - len(past) : t] == past
            and sorted(events[t : t + len(taken)]) == sorted(taken)
            for t in range(len(past), len(events))
        )
    other = Histories(parts.train.items_E[::-1].copy(), parts.train.offsets)
    with pytest.raises(DataError, match="must be the first events"):
        of_shop(shop, other)


# Imagined exposure


def random_vectors(num_items: int) -> ItemVectors:
    vectors = np.random.default_rng(0).standard_normal((num_items, 6)).astype(np.float32)
    return ItemVectors(as_ids(range(num_items)), vectors)


def test_exposed_lists_hold_the_target_and_nothing_else_of_the_user():
    random = np.random.default_rng(1)
    train = Histories.from_lists([random.choice(60, 6, replace=False) for _ in range(50)])
    found, plain = exposed(train, random_vectors(60), list_length=5), from_histories(train)
    np.testing.assert_array_equal(found.positives.items_E, plain.positives.items_E)
    assert (found.negatives.lengths == 4).all()
    for r in range(len(found)):
        left = list(found.negatives[r])
        assert len(set(left)) == 4 and not set(left) & set(train[found.users_R[r]])
    again, other = (exposed(train, random_vectors(60), list_length=5, seed=s) for s in (0, 1))
    np.testing.assert_array_equal(found.negatives.items_E, again.negatives.items_E)
    assert (found.negatives.items_E != other.negatives.items_E).any()


def test_exposure_follows_popularity_and_likeness_to_the_last_item(monkeypatch):
    random = np.random.default_rng(1)
    draws = random.choice(60, (400, 3), p=np.arange(1, 61) ** 2 / (np.arange(1, 61) ** 2).sum())
    train, vectors = Histories.from_lists(list(draws)), random_vectors(60)
    pulls = {"popularity_pull": 1.0, "similarity_pull": 0.0, "exploration": 0.001}
    by_count = exposed(train, vectors, list_length=6, **pulls)
    counts_N = train.counts(60)
    assert counts_N[by_count.negatives.items_E].mean() > 1.3 * counts_N.mean()
    pulls = {"popularity_pull": 0.0, "similarity_pull": 6.0, "exploration": 0.001}
    by_likeness = exposed(train, vectors, list_length=6, **pulls)
    units = vectors.vectors / np.linalg.norm(vectors.vectors, axis=1, keepdims=True)

    def likeness(found):
        last_R = found.histories.items_E[found.histories.offsets[1:] - 1]
        return (units[np.repeat(last_R, 5)] * units[found.negatives.items_E]).sum(1).mean()

    assert likeness(by_likeness) > likeness(by_count) + 0.3
    last_R = by_likeness.histories.items_E[by_likeness.histories.offsets[1:] - 1]
    expected = exposures(np.exp(6.0 * units[last_R] @ units.T), 6, 0.001)
    found = by_likeness.propensities_E
    np.testing.assert_allclose(
        found, expected[np.arange(len(found)), by_likeness.positives.items_E], rtol=1e-4
    )
    monkeypatch.setattr("sidrec.alignment.preferences.BLOCK_CELLS", 60 * 7)
    blocks = exposed(train, vectors, list_length=6, **pulls)
    np.testing.assert_allclose(blocks.propensities_E, found, rtol=1e-5)


def test_lists_longer_than_the_catalogue_are_refused():
    with pytest.raises(ConfigError, match=r"list_length must be .* of the 8 items, got 9"):
        exposed(TRAIN, random_vectors(8), list_length=9)


# Users


def test_held_out_users_are_wholly_held_out(shop):
    found = of_shop(shop)
    learnt, held = split_by_user(found, 0.2, seed=1)
    users = set(learnt.users_R), set(held.users_R)
    assert len(learnt) + len(held) == len(found) and not users[0] & users[1]
    assert len(users[1]) == round(0.2 * len(set(found.users_R)))
    assert held.grades_E is not None and len(held.grades_E) == held.positives.lengths.sum()
    again = split_by_user(found, 0.2, seed=1)[1]
    np.testing.assert_array_equal(held.users_R, again.users_R)
    assert set(split_by_user(found, 0.2, seed=2)[1].users_R) != users[1]


def test_contexts_of_nobody_are_held_out_one_by_one():
    found, _ = from_impressions(table().drop("user_id"), CATALOGUE)
    learnt, held = split_by_user(found, 0.5)
    assert len(learnt) == len(held) == 1
    with pytest.raises(DataError, match="at least two of them, got 1"):
        split_by_user(found.take(np.array([0])), 0.5)
    with pytest.raises(ConfigError, match="between 0 and 1, got 1"):
        split_by_user(found, 1)


def rows_of(found):
    """User, history and positives of each context."""
    return [
        (int(found.users_R[r]), found.histories[r].tolist(), found.positives[r].tolist())
        for r in range(len(found))
    ]
