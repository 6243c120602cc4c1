"""What the search benchmarks count, on values small enough to check by hand."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
pytest.importorskip("bm25s")
import search
import search_figures
import search_generative

from sidrec.data.search.values import Judgements, Queries, SearchData
from sidrec.testing.tiny_catalogue import tiny_context
from sidrec.types import as_ids


def test_a_figure_is_over_the_seeds_and_queries_that_have_it():
    many = [float(n % 2) for n in range(40)]
    columns = [
        {"one": [*many, np.nan], "two": [0.0] * 41, "first": [1.0] * 41},
        {"one": [*(v + 1 for v in many), 5.0], "two": [0.5] * 41},
    ]
    figure = search_figures.figure_of(columns, "one")
    assert (figure["value"], figure["n"], figure["by_seed"]) == (1.0, 40, [0.5, 1.5])
    assert "by_seed" not in search_figures.figure_of(columns, "first")
    delta = search_figures.difference(columns, "one", "two")
    assert (delta["value"], delta["by_seed"]) == (0.75, [0.5, 1.0])
    assert search_figures.difference(columns, "one", "first")["value"] == -0.5


def test_faults_of_an_answer_are_places_without_a_live_item():
    searcher: Any = SimpleNamespace(ids=range(4), known_N=np.array([True, True, True, False]))
    rows = np.array([[0, 1, 2, 1], [0, 3, 4, -1], [-1, -1, -1, -1]])
    found = search_generative.listed_invalid(rows, searcher)
    np.testing.assert_array_equal(found, [0, 0.75, np.nan])


def test_simulated_pages_click_what_answers_exactly():
    queries = Queries(as_ids(["a", "b"]), ("red", "blue"))
    rows = [(0, item, 3 if item < 3 else item % 3) for item in range(15)] + [(1, 20, 1)]
    lists = Judgements.from_lists(*np.array(rows).T, num_queries=2, top_grade=3)
    data = SearchData("judged", tiny_context().items, queries, lists)
    sessions = search_generative.simulated_sessions(data, 0)
    assert len(sessions) == 10 and sessions.queries_S.tolist() == [0] * 5 + [1] * 5
    assert set(np.diff(sessions.offsets[:6])) == {10} and set(np.diff(sessions.offsets[5:])) == {1}
    np.testing.assert_array_equal(sessions.clicked_E, sessions.items_E < 3)
    assert len({tuple(sessions.items_E[10 * s : 10 * s + 10]) for s in range(5)}) == 5


def test_head_torso_and_tail_hold_their_shares_of_events():
    buckets = search.buckets(np.array([5, 80, 10, 0, 5]))
    assert buckets.tolist() == [1, 0, 1, 2, 2]


def test_equal_views_give_equal_codes_and_others_may_not():
    random = np.random.default_rng(0)
    v = random.standard_normal((60, 4)).astype(np.float32)
    v[3] = 0
    same = search.same_codes(v, v)
    assert all(len(values) == 59 and values.all() for values in same.values())
    means = [values.mean() for values in search.same_codes(-v, v).values()]
    assert means[0] < 1 and means == sorted(means, reverse=True)
