"""Each known trap, put into a small dataset, is found; a clean dataset has none."""

import numpy as np
import polars as pl
import pytest

from sidrec.data import audit, read, summary
from sidrec.data.findings import near_duplicate_texts, sorted_history_share

ADJECTIVES = ["red", "blue", "soft", "loud", "tiny", "grand", "plain", "quick", "dark", "mild"]
NOUNS = ["cup", "hat", "lamp", "boat", "drum", "coat"]


def shop_dataset(order="random", ids=None, clock=True, **columns):
    """60 users with 8 of 60 items each, in random, id or first-use order."""
    rng = np.random.default_rng(0)
    ids = [f"item{n:02d}" for n in range(60)] if ids is None else ids
    rows = []
    for user in range(60):
        chosen = rng.permutation(60)[:8]
        chosen = np.sort(chosen) if order == "sorted" else chosen
        rows += [(f"u{user}", ids[i], 1_600_000_000 + t * 7) for t, i in enumerate(chosen)]
    events = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    items = pl.DataFrame({"item": ids, "title": [f"{a} {n}" for a in ADJECTIVES for n in NOUNS]})
    events = events if clock else events.drop("time")
    return read(events, items.with_columns(**columns))


def codes(dataset):
    return {finding.code for finding in audit(dataset)}


def test_a_clean_dataset_has_no_findings():
    assert audit(shop_dataset()) == []


def test_histories_sorted_by_id_are_found_as_text_and_as_numbers():
    assert codes(shop_dataset("sorted")) == {"A6"}
    numbers = [str(7 * n) for n in range(60)]  # '7' < '14' only as numbers
    dataset = shop_dataset("sorted", ids=numbers)
    assert sorted_history_share(dataset)[0] == 1.0
    assert "A6" in codes(dataset)


def test_the_chance_of_a_sorted_history_is_one_order_of_n_factorial():
    rows = [(f"u{u}", f"i{i}") for u, n in (("a", 4), ("b", 5), ("c", 3)) for i in range(n)]
    share, chance = sorted_history_share(
        read(pl.DataFrame(rows, schema=["user", "item"], orient="row"))
    )
    assert share == 1.0  # c is too short to count
    assert chance == pytest.approx((1 / 24 + 1 / 120) / 2)


def test_ids_numbered_in_order_of_use_are_found():
    rows, fresh = [], 0
    rng = np.random.default_rng(0)
    for user in range(40):
        for _ in range(6):
            old = fresh > 0 and rng.random() < 0.5
            rows.append((f"u{user}", str(rng.integers(fresh) if old else fresh)))
            fresh += not old
    dataset = read(pl.DataFrame(rows, schema=["user", "item"], orient="row"))
    assert "A4" in codes(dataset)


def test_ties_broken_by_id_are_found_and_random_ties_are_not():
    rng = np.random.default_rng(0)
    found = {}
    for tied_order in ("sorted", "random"):
        rows = []
        for user in range(80):
            chosen = [f"i{i:02d}" for i in rng.permutation(30)[:6]]
            for day in (0, 1, 2):
                pair = chosen[2 * day : 2 * day + 2]
                pair = sorted(pair) if tied_order == "sorted" else pair
                rows += [(f"u{user}", item, 1_600_000_000 + 86_400 * day) for item in pair]
        dataset = read(pl.DataFrame(rows, schema=["user", "item", "time"], orient="row"))
        found[tied_order] = [f.severity for f in audit(dataset) if f.code == "A2"]
        assert summary(dataset)["tied_event_share"] == pytest.approx(240 / 479, abs=0.01)
        assert summary(dataset)["users_with_tied_last_event"] == 1.0
    assert found == {"sorted": ["warning", "note"], "random": ["note"]}


def test_crawled_columns_equal_texts_and_missing_texts_are_found():
    assert codes(shop_dataset(also_bought=pl.lit("item01"))) == {"A8"}
    assert codes(shop_dataset(title=pl.lit("Same Thing"))) == {"A11"}
    assert codes(shop_dataset(title=pl.lit(None, pl.String))) == {"D1"}
    assert codes(shop_dataset(clock=False)) == {"D4"}


def test_repeats_and_items_without_events_are_counted():
    rows = [("a", "x"), ("a", "x"), ("b", "y"), ("b", "x")]
    items = pl.DataFrame({"item": ["x", "y", "z"], "title": ["one", "two", "three"]})
    facts = summary(read(pl.DataFrame(rows, schema=["user", "item"], orient="row"), items))
    assert (facts["users"], facts["items"], facts["events"]) == (2, 3, 4)
    assert facts["density"] == 4 / 6
    assert facts["repeat_share"] == 0.25
    assert facts["items_without_events"] == 1
    assert facts["events_per_user"] == {"min": 2, "25%": 2, "median": 2, "75%": 2, "max": 2}


def test_near_duplicates_differ_only_in_case_digits_and_order():
    texts = ["Red Hat, 12 oz", "hat RED (24 oz)", "Red hats 12 oz", "", "", "123"]
    assert near_duplicate_texts(texts) == 2
