"""Published counts on real sets, where SIDREC_DATA names their folder."""

import os

import pytest

from sidrec.data import audit, load_named, named_vectors, split

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif("SIDREC_DATA" not in os.environ, reason="SIDREC_DATA is not set"),
]

COUNTS = {  # users, items, events
    "amazon_beauty": (22_363, 12_101, 198_502),
    "amazon_sports": (35_598, 18_357, 296_337),
    "amazon_grocery": (14_681, 8_713, 121_892),
    "amazon_industrial": (3_285, 3_686, 22_743),
    "amazon_office": (3_231, 3_459, 22_447),
    "movielens_1m": (6_040, 3_883, 1_000_209),
    "movielens_100k": (943, 1_682, 100_000),
}


@pytest.mark.parametrize("name", COUNTS)
def test_named_sets_have_their_published_counts(name):
    dataset = load_named(name, download=False)
    events = dataset.interactions
    assert (len(events.user_ids), len(dataset.items), len(events)) == COUNTS[name]
    assert events.has_clock == (name in {"amazon_grocery", "movielens_100k"})


def test_leave_one_out_on_beauty_asks_everybody_and_keeps_every_event():
    dataset = load_named("amazon_beauty", download=False)
    cut = split(dataset)
    assert len(cut.valid) == len(cut.test) == 22_363
    assert len(cut.train.items_E) == 198_502 - 2 * 22_363
    assert len(cut.test.histories.items_E) == 198_502 - 22_363
    first = dataset.items.item_ids[cut.train[0]]
    assert first[:2].tolist() == ["B004756YJA", "B004ZT0SSG"]


def test_the_most_popular_items_of_beauty_reach_the_published_recall():
    # the protocol's own check: R@10 = .0114 with leave-one-out and full ranking
    cut = split(load_named("amazon_beauty", download=False))
    top = (-cut.train_counts_N).argsort(kind="stable")[:10]
    recall = sum(target in set(top) for target in cut.test.targets) / len(cut.test)
    assert recall == pytest.approx(0.0114, abs=0.001)


def test_global_time_on_grocery_asks_only_users_with_a_past():
    cut = split(load_named("amazon_grocery", download=False), "global_time")
    assert (len(cut.valid), len(cut.test)) == (3_390, 2_990)
    assert cut.valid.histories.lengths.min() >= 1


def test_ties_in_grocery_follow_the_ids_and_the_audit_says_so():
    found = audit(load_named("amazon_grocery", download=False))
    assert any(f.code == "A2" and "100.0%" in f.what for f in found)


def test_ready_made_vectors_belong_to_the_catalogue():
    vectors = named_vectors("amazon_beauty")
    dataset = load_named("amazon_beauty", download=False)
    assert vectors is not None and vectors.vectors.shape == (12_101, 384)
    assert (vectors.item_ids == dataset.items.item_ids).all()
    assert named_vectors("movielens_1m") is None
