import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidrec.evaluation import metrics as m
from sidrec.evaluation.protocol import group_of
from sidrec.testing import evaluation as naive
from sidrec.types import Histories

L2 = math.log2


def test_one_target_metrics_equal_hand_worked_users():
    # ranks 1, 3, 6 and absent, cut at 5
    better, tied = np.array([0, 2, 5, naive.ABSENT]), np.zeros(4, dtype=np.int64)
    np.testing.assert_allclose(m.recall(better, tied, 5), [1, 1, 0, 0])
    np.testing.assert_allclose(m.ndcg(better, tied, 5), [1, 1 / L2(4), 0, 0])
    np.testing.assert_allclose(m.mrr(better, tied, 5), [1, 1 / 3, 0, 0])


def test_tied_targets_are_averaged_or_put_last_by_hand():
    # two items tie with a target that two items beat: it may stand at 3, 4 or 5
    better, tied = np.array([2]), np.array([2])
    np.testing.assert_allclose(m.recall(better, tied, 4), [2 / 3])
    np.testing.assert_allclose(m.mrr(better, tied, 4), [(1 / 3 + 1 / 4) / 3])
    np.testing.assert_allclose(m.ndcg(better, tied, 4), [(1 / L2(4) + 1 / L2(5)) / 3])
    np.testing.assert_allclose(m.recall(better, tied, 4, "pessimistic"), [0])
    np.testing.assert_allclose(m.mrr(better, tied, 5, "pessimistic"), [1 / 5])


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=8),
    st.integers(1, 12),
    st.sampled_from(["expected", "pessimistic"]),
    st.sampled_from(["recall", "ndcg", "mrr"]),
)
def test_closed_form_of_ties_equals_visiting_every_position(pairs, k, ties, metric):
    better, tied = np.array(pairs).T
    expected = [naive.naive_metric(metric, b, t, k, ties) for b, t in pairs]
    np.testing.assert_allclose(m.ONE_TARGET[metric](better, tied, k, ties), expected, atol=1e-12)


def test_set_metrics_equal_a_hand_worked_user():
    # list 7 3 9 1, relevant {3, 1, 5}: hits at 2 and 4
    rows = np.array([[7, 3, 9, 1]])
    hits = m.relevance(rows, Histories.from_lists([[3, 1, 5]]))
    assert hits.tolist() == [[False, True, False, True]]
    size = np.array([3])
    assert m.set_recall(hits, size, 4) == pytest.approx([2 / 3])
    assert m.set_recall(hits, size, 2, capped=True) == pytest.approx([1 / 2])
    assert m.set_precision(hits, 4) == pytest.approx([1 / 2])
    assert m.set_hit(hits, 1) == pytest.approx([0])
    assert m.set_mrr(hits, 4) == pytest.approx([1 / 2])
    assert m.average_precision(hits, size, 4) == pytest.approx([(1 / 2 + 2 / 4) / 3])
    dcg, ideal = 1 / L2(3) + 1 / L2(5), 1 + 1 / L2(3) + 1 / L2(4)
    assert m.set_ndcg(hits.astype(int), [[1, 1, 1]], 4) == pytest.approx([dcg / ideal])
    graded = m.set_ndcg(
        np.array([[0, 2, 0, 1]]), [[1, 2, 3]], 4
    )  # gains 2^g − 1 = 3, 1; ideal 7 3 1
    assert graded == pytest.approx([(3 / L2(3) + 1 / L2(5)) / (7 + 3 / L2(3) + 1 / L2(4))])


def test_set_metrics_equal_the_naive_ones_on_random_lists():
    rng = np.random.default_rng(0)
    rows = np.array([rng.permutation(20)[:8] for _ in range(50)])
    rows[rng.random(50) < 0.3, 5:] = -1  # lists shorter than the cut: missing places are misses
    relevant = [rng.permutation(20)[: rng.integers(1, 6)] for _ in range(50)]
    hits = m.relevance(rows, Histories.from_lists(relevant))
    size = np.array([len(r) for r in relevant])
    fast = {
        "recall": m.set_recall(hits, size, 7),
        "precision": m.set_precision(hits, 7),
        "hit": m.set_hit(hits, 7),
        "mrr": m.set_mrr(hits, 7),
        "map": m.average_precision(hits, size, 7),
        "ndcg": m.set_ndcg(hits.astype(int), [[1.0] * n for n in size], 7),
    }
    for row in range(50):
        expected = naive.naive_set_metrics(rows[row].tolist(), relevant[row].tolist(), 7)
        assert {k: v[row] for k, v in fast.items()} == pytest.approx(expected)


def test_an_empty_relevant_set_is_undefined_not_zero():
    assert np.isnan(m.set_recall(np.array([[False]]), np.array([0]), 1)).all()


def test_set_metrics_equal_ranx():
    ranx = pytest.importorskip("ranx")
    rng = np.random.default_rng(1)
    rows = np.array([rng.permutation(30)[:10] for _ in range(40)])
    relevant = [rng.permutation(30)[: rng.integers(1, 5)] for _ in range(40)]
    qrels = ranx.Qrels({f"q{u}": {f"d{i}": 1 for i in r} for u, r in enumerate(relevant)})
    run = ranx.Run(
        {f"q{u}": {f"d{i}": 1.0 - p / 20 for p, i in enumerate(r)} for u, r in enumerate(rows)}
    )
    theirs = ranx.evaluate(qrels, run, ["recall@10", "ndcg@10", "mrr@10", "precision@10"])
    hits = m.relevance(rows, Histories.from_lists(relevant))
    size = np.array([len(r) for r in relevant])
    ours = {
        "recall@10": m.set_recall(hits, size, 10).mean(),
        "ndcg@10": m.set_ndcg(hits.astype(int), [[1.0] * n for n in size], 10).mean(),
        "mrr@10": m.set_mrr(hits, 10).mean(),
        "precision@10": m.set_precision(hits, 10).mean(),
    }
    assert ours == pytest.approx(dict(theirs), abs=1e-9)


def test_coverage_and_gini_equal_hand_worked_exposure():
    rows = np.array([[0, 1], [0, -1]])  # exposure 2, 1, 0, 0 of four items
    assert m.coverage(rows, 4) == 0.5
    shown = m.exposure(rows, 4)
    assert shown.tolist() == [2, 1, 0, 0]
    # mean absolute difference / (2 mean): pairs |x_i − x_j| sum to 2·(1+2+2+1+1+0) = 14 over 16
    assert m.gini(shown) == pytest.approx(14 / 16 / (2 * 0.75))
    assert m.gini(np.array([3, 3, 3])) == pytest.approx(0)
    assert m.exposure_entropy(np.array([1, 1, 1, 1, 0])) == pytest.approx(2)


def test_popularity_lift_compares_lists_with_histories():
    counts = np.array([8, 4, 0])
    rows = np.array([[0, 1], [0, -1]])  # means 6 and 8
    past = Histories.from_lists([[1], [1, 2]])  # means 4 and 2
    assert m.popularity(rows, counts).tolist() == [6, 8]
    assert m.popularity_lift(rows, past, counts) == pytest.approx(7 / 3 - 1)


def test_novelty_of_a_cold_item_is_finite_and_largest():
    counts = np.array([6, 0])  # with one more each: 7/8 and 1/8
    assert m.novelty(np.array([[1]]), counts) == pytest.approx([3])
    assert m.novelty(np.array([[0, 1]]), counts) == pytest.approx([(3 - L2(7 / 8)) / 2])


def test_diversity_equals_the_mean_over_pairs():
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(12, 4)).astype(np.float32)
    vectors[3] = 0
    rows = np.array([rng.permutation(12)[:5] for _ in range(9)] + [[3, 1, 4, -1, -1]])
    expected = [naive.naive_diversity(vectors[r[r >= 0]].tolist()) for r in rows]
    np.testing.assert_allclose(m.diversity(rows, vectors), expected, atol=1e-6)
    assert np.isnan(m.diversity(np.array([[1, -1]]), vectors)).all()


def test_prefix_diversity_counts_distinct_first_codes_of_the_list():
    codes = np.array([[0, 1], [0, 2], [5, 1]])
    values = m.prefix_diversity(np.array([[0, 1, 2], [0, 1, -1], [2, -1, -1]]), codes)
    assert values == pytest.approx([2 / 3, 1 / 2, 1])


def test_sid_recall_counts_an_item_of_the_same_id_and_invalid_ids_are_those_nobody_holds():
    codes = np.array([[0, 0], [0, 0], [1, 1]])
    groups = group_of(codes)
    assert m.sid_recall(np.array([[1], [2]]), np.array([0, 0]), groups, 1).tolist() == [1, 0]
    generated = np.array([[[0, 0], [0, 1]], [[1, 1], [1, 1]]])
    assert m.invalid_shares(generated, codes).tolist() == [0.5, 0]
