from __future__ import annotations

import numpy as np
import pytest

from sidrec.embeddings.vectors import unit_rows
from sidrec.errors import ConfigError, DataError
from sidrec.retrieval.search.views import ViewIndex, ViewIndexConfig

N, D, B, K = 200, 12, 9, 15
VIEWS = ("item", "query", "mean", "union")


@pytest.fixture(scope="module")
def views():
    """Query and item views that agree roughly, and queries."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((10, D))
    base = centres[random.integers(0, 10, N)] + 0.5 * random.standard_normal((N, D))
    u, v = (unit_rows(base + 0.5 * random.standard_normal((N, D))) for _ in range(2))
    return u, v, unit_rows(random.standard_normal((B, D)))


def brute(q, v, allowed=None):
    """(B, K) best rows and scores of all items."""
    scores = q @ v.T
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "exact"},
        {"kind": "ivf", "num_cells": 1, "probes": 1},
        {"kind": "ivf", "num_cells": 14, "probes": 14},
        {"kind": "hnsw", "probes": N},
    ],
)
def test_looking_everywhere_is_exact_search_whatever_the_view(views, view, settings):
    u, v, q = views
    rows, scores = ViewIndex.fit(u, v, ViewIndexConfig(view=view, **settings)).find(q, K)
    expected_rows, expected = brute(q, v)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("probes", [1, 3])
def test_probed_cells_are_searched_and_nothing_else(views, view, probes):
    """Oracle: an item is seen where one of its cells is among the nearest to the query."""
    u, v, q = views
    config = ViewIndexConfig(kind="ivf", view=view, num_cells=14, probes=probes)
    index = ViewIndex.fit(u, v, config)
    probed = np.argsort(-(q @ index.centroids_CD.T), axis=1)[:, :probes]
    seen = (index.cells_NA[None, :, :, None] == probed[:, None, None, :]).any(axis=(2, 3))
    expected_rows, expected = brute(q, v, seen)
    rows, scores = index.find(q, K)
    np.testing.assert_array_equal(rows, np.where(np.isfinite(expected), expected_rows, -1))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_each_view_assigns_by_its_own_rule(views):
    u, v, _ = views
    mean = unit_rows(u + v)
    found = {
        view: ViewIndex.fit(u, v, ViewIndexConfig(kind="ivf", view=view, num_cells=14))
        for view in VIEWS
    }
    for view, vectors in (("item", v), ("query", u), ("mean", mean)):
        nearest = (vectors @ found[view].centroids_CD.T).argmax(axis=1)
        np.testing.assert_array_equal(found[view].cells_NA[:, 0], nearest)
    both, query = found["union"], found["query"]
    np.testing.assert_array_equal(both.centroids_CD, query.centroids_CD)
    np.testing.assert_array_equal(both.cells_NA[:, 0], query.cells_NA[:, 0])
    second = (v @ both.centroids_CD.T).argmax(axis=1)
    other = second != both.cells_NA[:, 0]
    np.testing.assert_array_equal(both.cells_NA[:, 1], np.where(other, second, -1))
    assert both.num_postings == N + other.sum() > N == query.num_postings


def test_equal_views_make_equal_indexes(views):
    _, v, q = views
    first, *rest = (
        ViewIndex.fit(v, v, ViewIndexConfig(kind="ivf", view=view, num_cells=14, probes=2)).find(
            q, K
        )
        for view in VIEWS
    )
    for rows, scores in rest:
        np.testing.assert_array_equal(rows, first[0])
        np.testing.assert_allclose(scores, first[1])


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_rules_and_items_without_a_vector_hold_in_every_kind(views, kind):
    u, v, q = (array.copy() for array in views)
    u[5] = v[5] = 0
    keep_N = np.ones(N, dtype=bool)
    keep_N[brute(q, v)[0][:, 0]] = False
    config = ViewIndexConfig(kind=kind, num_cells=14, probes=N)
    rows, scores = ViewIndex.fit(u, v, config).find(q, N, keep_N=keep_N)
    for found in rows:
        allowed, listed = set(np.flatnonzero(keep_N)) - {5}, set(found[found >= 0])
        assert listed == allowed or (kind == "hnsw" and listed < allowed)
        assert len(listed) > 0.95 * len(allowed)  # a graph may leave a node out of reach
    real = np.isfinite(scores)
    assert (scores[:, 1:] <= scores[:, :-1])[real[:, 1:]].all()


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_a_saved_index_answers_alike_and_an_extended_one_keeps_its_cells(views, kind):
    u, v, q = views
    config = ViewIndexConfig(kind=kind, num_cells=14, probes=4)
    index = ViewIndex.fit(u[:150], v[:150], config)
    again = ViewIndex.from_arrays(config, {k: a.copy() for k, a in index.arrays().items()})
    for one, other in zip(index.find(q, K), again.find(q, K), strict=True):
        np.testing.assert_array_equal(one, other)
    grown = index.extended(u, v)
    np.testing.assert_array_equal(grown.centroids_CD, index.centroids_CD)
    np.testing.assert_array_equal(grown.cells_NA[:150], index.cells_NA)
    assert (grown.find(q, N, probes=N)[0] >= 150).any()


def test_impossible_settings_are_refused(views):
    u, v, _ = views
    with pytest.raises(DataError, match="num_cells = 500"):
        ViewIndex.fit(u, v, ViewIndexConfig(kind="ivf", num_cells=500))
    with pytest.raises(ConfigError, match="probes"):
        ViewIndexConfig(probes=0)
    with pytest.raises(DataError, match="views must match"):
        ViewIndex.fit(u[:5], v, ViewIndexConfig())
