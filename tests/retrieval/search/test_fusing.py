from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch

from sidrec.data.search import Judgements, Queries, SearchData
from sidrec.errors import DataError
from sidrec.retrieval.fusion import Hybrid
from sidrec.retrieval.search.asking import best, opinion_of
from sidrec.retrieval.search.fusing import equal_shares, fuse_search, tune_search
from sidrec.types import Items, as_ids

N, Q = 30, 12


@dataclass
class Fixed:
    """A searcher that has learnt its scores (Q, N) by heart; the query is the row's number."""

    scores_QN: torch.Tensor

    def ask(self, texts: Sequence[str], pool, keep_N=None):
        return opinion_of(self.scores_QN[[int(text) for text in texts]], pool, keep_N)


@pytest.fixture
def world():
    """Searchers: one that knows the answers, one that guesses, one that knows nothing."""
    random = np.random.default_rng(0)
    grades = random.integers(0, 4, (Q, N))
    rows_Q, items_Q = np.indices((Q, N)).reshape(2, -1)
    judged = Judgements.from_lists(rows_Q, items_Q, grades.reshape(-1), num_queries=Q, top_grade=3)
    items = Items(as_ids(range(N)), pl.DataFrame({"title": list(map(str, range(N)))}))
    data = SearchData("d", items, Queries(as_ids(range(Q)), tuple(map(str, range(Q)))), judged)
    good = Fixed(torch.from_numpy(grades + 0.1 * random.random((Q, N))).float())
    noise = Fixed(torch.from_numpy(random.random((Q, N))).float())
    silent = Fixed(torch.full((Q, N), -torch.inf))
    return data, good, noise, silent


def naive_rrf(scores_M, weights):
    """Order of one query's items by the published formula, every searcher seeing the whole pool."""
    total = np.zeros(N)
    for scores, weight in zip(scores_M, weights, strict=True):
        places = np.argsort(np.argsort(-scores, kind="stable"), kind="stable") + 1
        total += weight / (60 + places)
    return np.argsort(-total, kind="stable")


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0)])
def test_reciprocal_ranks_are_summed_as_published(world, weights):
    data, good, noise, _ = world
    hybrid = Hybrid(members=("g", "n"), weights=weights, pool=N, rule="reciprocal_rank")
    found = fuse_search({"g": good, "n": noise}, hybrid, data.queries.texts, N)
    for q in range(Q):
        scores = [good.scores_QN[q].numpy(), noise.scores_QN[q].numpy()]
        np.testing.assert_array_equal(found.rows_BK[q], naive_rrf(scores, weights))


def test_a_searcher_alone_and_one_that_knows_nothing_change_no_order(world):
    data, good, _, silent = world
    alone = best(good.ask(data.queries.texts, 8), 8).rows_BK
    only = equal_shares(["g"], pool=N)
    both = equal_shares(["g", "s"], pool=N)
    texts = data.queries.texts
    np.testing.assert_array_equal(fuse_search({"g": good}, only, texts, 8).rows_BK, alone)
    found = fuse_search({"g": good, "s": silent}, both, texts, 8).rows_BK
    np.testing.assert_array_equal(found, alone)
    nothing = fuse_search({"s": silent}, equal_shares(["s"]), texts, 3)
    assert (nothing.rows_BK == -1).all()


def test_the_pool_holds_the_best_of_every_searcher_and_rules_hold_in_it(world):
    data, good, noise, _ = world
    keep_N = np.arange(N) % 2 == 0
    found = fuse_search(
        {"g": good, "n": noise}, equal_shares("gn", pool=3), data.queries.texts, 6, keep_N
    )
    assert (found.rows_BK % 2 == 0).all()
    for q in range(Q):
        first = [int((s.scores_QN[q] * torch.from_numpy(keep_N)).argmax()) for s in (good, noise)]
        assert set(first) <= set(found.rows_BK[q].tolist())


def test_tuning_finds_the_searcher_that_knows(world):
    data, good, noise, _ = world
    tuned = tune_search({"n": noise, "g": good}, data, pool=N)
    corners = {w: m for rule, w, m in tuned.table if rule == "z_scores"}
    assert tuned.metric >= max(corners[0.0, 1.0], corners[1.0, 0.0])
    assert tuned.hybrid.weights[1] > tuned.hybrid.weights[0]
    assert corners[0.0, 1.0] == pytest.approx(1.0, abs=0.02)


def test_equal_values_go_to_equal_shares_and_no_relevant_item_is_an_error(world):
    data, good, _, _ = world
    tuned = tune_search({"a": good, "b": good}, data, pool=N)
    assert tuned.hybrid.weights == (0.5, 0.5)
    nobody = Judgements(np.array([1]), np.array([0]), np.array([0, 1]), 3)
    silent = SearchData("none", data.items, data.queries.take(np.array([0])), nobody)
    with pytest.raises(DataError, match="has a relevant item"):
        tune_search({"a": good}, silent)
