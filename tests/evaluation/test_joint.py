from __future__ import annotations

import numpy as np
import pytest

from sidrec.data.search import made_search
from sidrec.errors import DataError
from sidrec.evaluation.joint import Encoded, iceg
from sidrec.evaluation.search import search_report
from sidrec.testing.tiny_catalogue import tiny_context
from sidrec.types import PAD, Candidates

RANDOM = np.random.default_rng(0)
OLD, NEW = RANDOM.random(200), RANDOM.random(200)


def test_iceg_of_a_worked_example():
    joint, independent = np.array([0.5, 0.3, 1.0]), np.array([0.5, 0.0, 0.5])
    assert iceg(joint, independent).value == pytest.approx(0.8)
    weights = np.array([1.0, 0.0, 2.0])  # (0.5 + 2.0) / (0.5 + 1.0) - 1
    assert iceg(joint, independent, weights).value == pytest.approx(2 / 3)


def test_equal_models_gain_nothing_and_twice_the_metric_gains_all_of_it():
    same = iceg(OLD, OLD)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    double = iceg(2 * OLD, OLD)
    assert double.value == pytest.approx(1) and double.low == pytest.approx(1)


def test_iceg_knows_neither_the_unit_of_the_metric_nor_that_of_the_weights():
    plain = iceg(NEW, OLD)
    scaled = iceg(7 * NEW, 7 * OLD, np.full(200, 3.0))
    assert scaled.value == pytest.approx(plain.value)
    assert (scaled.low, scaled.high) == pytest.approx((plain.low, plain.high))
    assert plain.low < plain.value < plain.high


def test_a_weight_of_two_is_the_context_twice():
    weights = np.where(np.arange(200) < 50, 2.0, 1.0)
    twice = [np.concatenate([values, values[:50]]) for values in (NEW, OLD)]
    assert iceg(NEW, OLD, weights).value == pytest.approx(iceg(*twice).value)


@pytest.mark.parametrize(
    ("joint", "independent", "weights", "words"),
    [
        (OLD, np.zeros(200), None, "undefined"),
        (OLD, OLD[:-1], None, "same contexts"),
        (OLD[:0], OLD[:0], None, "at least one"),
        (OLD, NEW, -np.ones(200), "weight"),
        (OLD, NEW, np.zeros(200), "weight"),
    ],
)
def test_iceg_says_where_it_has_no_value(joint, independent, weights, words):
    with pytest.raises(DataError, match=words):
        iceg(joint, independent, weights)


def test_coherence_is_the_mean_cosine_of_the_items_that_are_listed():
    items = np.array([[2, 0], [0, 3], [1, 1], [0, 0]], dtype=np.float32)
    encoded = Encoded(np.array([[5, 0], [0, 1], [1, 0]], dtype=np.float32), items)
    rows = np.array([[0, 1, 2], [1, PAD, PAD], [PAD, PAD, PAD]])
    found = encoded.coherence(rows, k=3)
    assert found[:2] == pytest.approx([(1 + 0 + 2**-0.5) / 3, 1]) and np.isnan(found[2])
    assert encoded.coherence(rows, k=1)[0] == pytest.approx(1)
    assert encoded.coherence(np.array([[0, 3], [3, 3], [1, 0]]), k=2) == pytest.approx(
        [0.5, 0, 0.5]
    )


def test_random_items_stand_in_the_listed_places_only():
    items = RANDOM.standard_normal((50, 8)).astype(np.float32)
    encoded = Encoded(items[:20], items)
    rows = np.tile(np.arange(20)[:, None], 4)
    rows[3, 2:] = rows[5] = PAD
    random = encoded.coherence_of_random(rows, k=4)
    assert encoded.coherence(rows, k=4)[[0, 3]] == pytest.approx([1, 1])
    assert np.isnan(random[5]) and abs(np.nanmean(random)) < 0.3


def test_a_report_tells_the_coherence_of_lists_and_of_random_items():
    context = tiny_context()
    data = made_search(context.items)
    assert context.vectors is not None
    first = np.array([data.judgements.of(q)[0][0] for q in range(len(data.queries))])
    encoded = Encoded(context.vectors.vectors[first], context.vectors.vectors)
    rows = np.tile(first[:, None], 24)
    report = search_report(
        "own", Candidates(rows[:, :1], np.zeros((len(rows), 1), dtype=np.float32)), data,
        ndcg_ks=(1,), recall_ks=(1,), encoded=encoded,
    )  # fmt: skip
    assert report.value("coherence@1") == pytest.approx(1, abs=1e-5)
    assert report.value("coherence_random@1") < 0.9


def test_vectors_of_different_widths_are_refused():
    with pytest.raises(DataError, match="width"):
        Encoded(np.ones((2, 3), dtype=np.float32), np.ones((2, 4), dtype=np.float32))
