from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sidrec.errors import ConfigError
from sidrec.recipe import DecodingConfig
from sidrec.retrieval.new_items import reserved, with_new_items
from sidrec.types import Candidates

NEW = np.arange(20) >= 10


def candidates(rows, scores=None):
    rows = np.atleast_2d(np.array(rows, dtype=np.int64))
    scores = -np.arange(rows.shape[1], dtype=np.float32) if scores is None else np.float32(scores)
    return Candidates(rows, np.where(rows < 0, -np.inf, np.broadcast_to(scores, rows.shape)))


def merged(listed, new, share):
    return with_new_items(candidates(listed), candidates(new), NEW, share).rows_BK[0].tolist()


def test_new_items_take_the_places_that_are_due_and_the_rest_moves_down():
    assert merged([0, 1, 2, 3, 4, 5], [10, 11], 1 / 3) == [0, 1, 10, 2, 3, 11]
    assert merged([0, 1, 2, 3], [10], 0.25) == [0, 1, 2, 10]
    assert merged([0, 1, 2], [12, 11, 10], 1.0) == [12, 11, 10]


def test_a_new_item_that_came_by_itself_counts_and_is_not_listed_twice():
    assert merged([0, 10, 1, 2], [10, 11], 0.25) == [0, 10, 1, 2]
    assert merged([0, 10, 1, 2], [10, 11], 0.5) == [0, 10, 1, 11]
    assert merged([0, 1, 2, 10], [10, 11], 0.5) == [0, 10, 1, 11]


def test_every_beginning_of_a_list_keeps_the_share_and_equals_the_shorter_list():
    random = np.random.default_rng(0)
    for share in (0.1, 0.3, 0.5):
        listed, new = random.permutation(20)[:12], 10 + random.permutation(10)
        whole = merged(listed, new, share)
        for k in range(1, 13):
            assert NEW[whole[:k]].sum() >= reserved(k, share)
            assert merged(listed[:k], new[: reserved(k, share)], share) == whole[:k]
        old = [item for item in listed if not NEW[item]]
        assert [item for item in whole if not NEW[item]] == old[: sum(not NEW[i] for i in whole)]


def test_too_few_new_items_leave_their_places_to_the_others():
    assert merged([0, 1, 2, 3], [-1, -1], 0.5) == [0, 1, 2, 3]
    assert merged([0, 1, 2, -1], [10, -1], 0.5) == [0, 10, 1, 2]


def test_scores_fall_and_only_the_moved_item_loses_its_own():
    found = with_new_items(candidates([0, 1, 2], [3.0, 2.0, 1.0]), candidates([10]), NEW, 0.5)
    assert found.rows_BK.tolist() == [[0, 10, 1]]
    assert found.scores_BK[0, 0] == 3 > found.scores_BK[0, 1] > found.scores_BK[0, 2] == 2


def test_a_share_outside_0_to_1_is_refused():
    with pytest.raises(ConfigError, match="new_item_share must be in"):
        DecodingConfig(new_item_share=1.5)


@pytest.mark.parametrize("system", ["hybrid", "causal", "dense"])
def test_a_recommender_gives_new_items_their_share_under_every_rule(tiny, system):
    recommender = tiny.run.recommender
    table = recommender.items.attributes.head(8).with_columns(
        item_id=np.array([f"new {i}" for i in range(8)], dtype=object)
    )
    larger = replace(recommender.add_items(table), new_item_share=0.2)
    history, k = tiny.run.example_history(), 10
    listed = larger.recommend(history, k=k, system=system)["item_id"].to_list()
    new = {str(i) for i in larger.items.item_ids[larger.train_counts_N == 0]}
    assert sum(item in new for item in listed) >= 2 and len(set(listed)) == k
    only = larger.recommend(history, k=k, system=system, exclude=sorted(new - {"new 3"}))
    assert "new 3" in only["item_id"].to_list()
    none = larger.recommend(history, k=k, system=system, exclude=sorted(new))
    assert not new & set(none["item_id"])


def test_a_scorer_that_cannot_know_new_items_keeps_its_list(tiny):
    recommender = tiny.run.recommender
    table = recommender.items.attributes.head(2).with_columns(
        item_id=np.array(["new 0", "new 1"], dtype=object)
    )
    larger = recommender.add_items(table)
    history = tiny.run.example_history()
    for system in ("transition_graph", "popularity"):
        before, after = (
            replace(larger, new_item_share=s).recommend(history, k=10, system=system)
            for s in (0.0, 0.3)
        )
        assert not {"new 0", "new 1"} & set(after["item_id"]), system
        assert before.height == after.height
