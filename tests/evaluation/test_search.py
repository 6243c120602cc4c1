from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest

from sidrec.data.search import Judgements, Queries, SearchData
from sidrec.errors import ConfigError, DataError
from sidrec.evaluation.search import compare_search, per_query_values, search_report
from sidrec.types import Candidates, Items, as_ids

NUM_ITEMS = 30


def data(triples, num_queries, top_grade=3):
    items = Items(
        as_ids(range(NUM_ITEMS)), pl.DataFrame({"title": [str(n) for n in range(NUM_ITEMS)]})
    )
    queries = Queries(as_ids(range(num_queries)), tuple(f"query {n}" for n in range(num_queries)))
    columns = np.array(triples, dtype=np.int64).reshape(-1, 3).T
    found = Judgements.from_lists(*columns, num_queries=num_queries, top_grade=top_grade)
    return SearchData("d", items, queries, found)


def lists(rows):
    rows = np.array(rows, dtype=np.int64)
    scores = -np.arange(rows.shape[1], dtype=np.float32)[None].repeat(len(rows), 0)
    return Candidates(rows, np.where(rows < 0, -np.inf, scores).astype(np.float32))


def naive(listed, judged, top, k=10):
    """All metrics of one query in plain Python."""
    gains = [2 ** judged.get(item, 0) - 1 for item in listed[:k]]
    ideal = sorted((2**g - 1 for g in judged.values()), reverse=True)[:k]
    dcg, best = (sum(g / math.log2(r + 2) for r, g in enumerate(x)) for x in (gains, ideal))
    exact = [item for item, grade in judged.items() if grade >= top]
    places = [place for place, item in enumerate(listed, 1) if item in exact]
    return {
        f"ndcg@{k}": dcg / best if best else math.nan,
        f"recall@{k}": sum(i in exact for i in listed[:k]) / len(exact) if exact else math.nan,
        "mrr": (1 / places[0] if places else 0.0) if exact else math.nan,
        f"judged@{k}": sum(item in judged for item in listed[:k]) / min(k, len(listed)),
    }


@pytest.mark.parametrize("seed", range(5))
def test_every_metric_equals_its_plain_definition(seed):
    random = np.random.default_rng(seed)
    judged = [
        {int(i): int(random.integers(0, 4)) for i in random.choice(NUM_ITEMS, size, replace=False)}
        for size in (12, 5, 1, 0)
    ]
    listed = [random.permutation(NUM_ITEMS)[:15].tolist() for _ in judged]
    triples = [(q, i, g) for q, found in enumerate(judged) for i, g in found.items()]
    values = per_query_values(
        np.array(listed), data(triples, 4).judgements, ndcg_ks=(10,), recall_ks=(10,)
    )
    for query in range(4):
        for metric, value in naive(listed[query], judged[query], 3).items():
            np.testing.assert_allclose(values[metric][query], value, err_msg=metric)


def test_a_worked_query():
    """Listed: Substitute, Exact, unjudged; judged besides: an Exact item that was not found."""
    values = per_query_values(
        np.array([[1, 0, 9]]),
        data([(0, 0, 3), (0, 1, 2), (0, 2, 3)], 1).judgements,
        recall_ks=(1, 3),
    )
    ideal = 7 + 7 / math.log2(3) + 3 / 2
    assert values["ndcg@10"][0] == pytest.approx((3 + 7 / math.log2(3)) / ideal)
    assert (values["mrr"][0], values["recall@1"][0], values["recall@3"][0]) == (0.5, 0.0, 0.5)
    assert values["judged@10"][0] == pytest.approx(2 / 3)


def test_the_ideal_order_is_1_and_an_empty_list_0():
    found = data([(0, 4, 3), (0, 5, 1), (1, 4, 3)], 2)
    report = search_report(
        "s", lists([[4, 5, 7], [-1, -1, -1]]), found, ndcg_ks=(3,), recall_ks=(3,)
    )
    assert report.per_query["ndcg@3"].tolist() == [1.0, 0.0]
    assert report.per_query["mrr"].tolist() == [1.0, 0.0]
    assert report.value("empty") == 0.5 and report.figures["judged@3"].n == 1


def test_queries_without_a_relevant_item_are_left_out_and_counted():
    found = data([(0, 4, 3), (1, 4, 0), (2, 5, 1)], 4)
    report = search_report("s", lists([[4, 5]] * 4), found, ndcg_ks=(2,), recall_ks=(2,))
    assert report.figures["ndcg@2"].n == 2  # a Complement is worth something …
    assert report.figures["mrr"].n == report.figures["recall@2"].n == 1  # … but is not exact
    wider = search_report(
        "s", lists([[4, 5]] * 4), found, ndcg_ks=(2,), recall_ks=(2,), relevant_grade=1
    )
    assert wider.figures["mrr"].n == 2
    assert wider.value("mrr") == pytest.approx(0.75)


def test_the_worst_query_comes_first_and_one_without_a_value_last():
    found = data([(0, 4, 3), (1, 5, 3), (2, 4, 0)], 3)
    report = search_report("s", lists([[4, 9]] * 3), found, ndcg_ks=(2,), recall_ks=(2,))
    assert [row["query_id"] for row in report.worst("ndcg@2")] == ["1", "0", "2"]
    assert report.worst("ndcg@2", 1)[0]["query"] == "query 1"
    assert json.loads(report.to_json())["queries"][2]["ndcg@2"] is None
    with pytest.raises(DataError, match="no 'map'"):
        report.worst("map")


def test_a_paired_difference_is_that_of_the_means_and_wants_the_same_queries():
    found = data([(q, q, 3) for q in range(20)], 20)
    good = search_report(
        "good", lists([[q, 25] for q in range(20)]), found, ndcg_ks=(2,), recall_ks=()
    )
    bad = search_report(
        "bad", lists([[25, q] for q in range(20)]), found, ndcg_ks=(2,), recall_ks=()
    )
    difference = compare_search(good, bad, "ndcg@2")
    assert difference.value == pytest.approx(1 - 1 / math.log2(3))
    assert difference.low == pytest.approx(difference.value) and difference.p < 0.01
    other = search_report(
        "x", lists([[1, 2]]), found.take(np.array([3])), ndcg_ks=(2,), recall_ks=()
    )
    with pytest.raises(DataError, match="same queries"):
        compare_search(good, other)


def test_lists_shorter_than_the_cut_and_no_judgement_at_all_are_errors():
    found = data([(0, 4, 3)], 1)
    with pytest.raises(DataError, match="cannot be cut at 10"):
        search_report("s", lists([[4, 5]]), found, recall_ks=())
    with pytest.raises(DataError, match="nothing can be measured"):
        search_report("s", lists([[-1, -1]]), data([], 1), ndcg_ks=(2,), recall_ks=())
    with pytest.raises(ConfigError, match="relevant_grade"):
        search_report("s", lists([[4, 5]]), found, ndcg_ks=(2,), recall_ks=(), relevant_grade=4)
