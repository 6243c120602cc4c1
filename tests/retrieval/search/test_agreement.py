from __future__ import annotations

import numpy as np
import pytest

from sidrec.embeddings.vectors import unit_rows
from sidrec.errors import ConfigError
from sidrec.retrieval.search.agreement import (
    centroid_agreement,
    curve,
    curves_of_views,
    recall_at_budget,
    recall_at_probes,
    view_gap,
)
from sidrec.retrieval.search.views import ViewIndex, ViewIndexConfig

N, D, Q, CELLS = 120, 8, 12, 10


@pytest.fixture(scope="module")
def world():
    """Item views that differ, queries near the items that answer them, pairs; query 3 has none."""
    random = np.random.default_rng(0)
    u = unit_rows(random.standard_normal((N, D)))
    v = unit_rows(u + 0.4 * random.standard_normal((N, D)))
    pairs = np.array([[q, q * 7 + n] for q in range(Q) if q != 3 for n in range(3)])
    queries = unit_rows(u[np.arange(Q) * 7] + 0.2 * random.standard_normal((Q, D)))
    return u, v, queries, pairs


def index_of(world, view="union", **settings):
    config = ViewIndexConfig(kind="ivf", view=view, num_cells=CELLS, **settings)
    return ViewIndex.fit(world[0], world[1], config)


@pytest.mark.parametrize("view", ["item", "union"])
def test_agreement_is_the_share_of_pairs_whose_item_lies_in_the_first_cell(world, view):
    _, _, queries, pairs = world
    index = index_of(world, view)
    expected = [[] for _ in range(Q)]
    for q, item in pairs:
        top = int((queries[q] @ index.centroids_CD.T).argmax())
        expected[q].append(top in index.cells_NA[item].tolist())
    found = centroid_agreement(index, queries, pairs)
    assert np.isnan(found[3])
    for q in set(range(Q)) - {3}:
        assert found[q] == pytest.approx(np.mean(expected[q]))


def test_agreement_is_recall_at_one_probe_when_everything_there_is_returned(world):
    _, _, queries, pairs = world
    index = index_of(world)
    recall_Q, _ = recall_at_probes(index, queries, pairs, 1, k=N)
    np.testing.assert_allclose(recall_Q, centroid_agreement(index, queries, pairs))


def test_recall_rises_with_probes_to_that_of_exact_search(world):
    _, v, queries, pairs = world
    every = curve(index_of(world), queries, pairs, range(1, CELLS + 1), k=N)
    for measure in ("recall", "scored"):
        assert (np.diff([row[measure] for row in every]) >= 0).all()
    assert every[-1]["recall"] == pytest.approx(1)
    rows = curve(index_of(world), queries, pairs, [CELLS], k=20)  # others may now come before
    exact = np.argsort(-(queries @ v.T), axis=1)[:, :20]
    hits = [np.mean([i in exact[q] for r, i in pairs if r == q]) for q in range(Q) if q != 3]
    assert rows[-1]["recall"] == pytest.approx(np.mean(hits))


def test_curves_of_views_are_those_of_cells_made_of_each_view(world):
    u, v, queries, pairs = world
    exact = ViewIndex.fit(u, v, ViewIndexConfig(view="mean", num_cells=CELLS))
    rows = curves_of_views(exact, queries, pairs, [1, 3], k=20)
    assert [(row["view"], row["probes"]) for row in rows[:3]] == [
        ("item", 1), ("item", 3), ("query", 1)
    ]  # fmt: skip
    for view in ("item", "query", "mean", "union"):
        expected = curve(index_of(world, view), queries, pairs, [1, 3], k=20)
        found = [row for row in rows if row["view"] == view]
        assert [{"view": view, **row} for row in expected] == found
        assert all(row["low"] - 1e-9 <= row["recall"] <= row["high"] + 1e-9 for row in found)


def test_scored_items_count_both_postings_of_an_item(world):
    _, _, queries, pairs = world
    index = index_of(world)
    _, scored_Q = recall_at_probes(index, queries, pairs, CELLS)
    np.testing.assert_allclose(scored_Q, index.num_postings / N)
    assert index.num_postings > N


def test_a_budget_bounds_what_is_scored_and_the_whole_of_it_is_exact(world):
    _, _, queries, pairs = world
    index = index_of(world)
    whole = recall_at_budget(index, queries, pairs, share=2.0, k=20)
    np.testing.assert_allclose(whole, recall_at_probes(index, queries, pairs, CELLS, k=20)[0])
    least = recall_at_budget(index, queries, pairs, share=0.0, k=20)
    np.testing.assert_allclose(least, recall_at_probes(index, queries, pairs, 1, k=20)[0])
    least, middle, whole = (
        recall_at_budget(index, queries, pairs, share=share, k=N) for share in (0.0, 0.4, 2.0)
    )
    assert np.nanmean(least) <= np.nanmean(middle) <= np.nanmean(whole)


def test_equal_views_have_no_gap_and_one_direction_has_rank_one(world):
    u, v, _, _ = world
    same = view_gap(ViewIndex.fit(v, v, ViewIndexConfig()))
    assert (same.mean_cosine, same.covariance_gap) == (pytest.approx(1), pytest.approx(0))
    apart = view_gap(ViewIndex.fit(u, v, ViewIndexConfig()))
    assert apart.mean_cosine == pytest.approx((u * v).sum(axis=1).mean(), abs=1e-6)
    assert apart.covariance_gap > 0 and 1 < apart.effective_rank <= D
    signs = np.where(np.arange(N) % 2, 1, -1)[:, None] * np.eye(1, D)
    flat = signs.astype(np.float32)
    assert view_gap(ViewIndex.fit(flat, flat, ViewIndexConfig())).effective_rank < 1.01


def test_an_index_without_cells_cannot_agree(world):
    _, v, queries, pairs = world
    with pytest.raises(ConfigError, match="needs an index with cells"):
        centroid_agreement(ViewIndex.fit(v, v, ViewIndexConfig()), queries, pairs)
