"""Two lists against each other, on counts worked by hand."""

import numpy as np
import pytest

from sidrec.errors import DataError
from sidrec.evaluation.two_lists import Misses, overlap


def test_overlap_is_the_share_of_items_that_both_hold():
    first = np.array([[1, 2, 3, 4], [5, 6, -1, -1], [-1, -1, -1, -1]])
    second = np.array([[4, 3, 8, 9], [6, -1, -1, -1], [-1, -1, -1, -1]])
    assert overlap(first, second).tolist() == [2 / 6, 1 / 2, 0.0]


def test_the_gain_of_a_second_list_is_what_the_identity_says():
    found_a = np.array([1, 1, 0, 0, 0, 0, 1, 0], dtype=bool)
    found_b = np.array([0, 1, 1, 0, 0, 1, 0, 0], dtype=bool)
    misses = Misses.of(found_a, found_b)
    assert (misses.miss_a, misses.miss_b, misses.miss_both) == (5 / 8, 5 / 8, 3 / 8)
    assert misses.kappa == 3 / 5
    assert misses.gain == pytest.approx((1 - misses.kappa) * misses.miss_a)
    assert misses.gain == pytest.approx((found_a | found_b).mean() - found_a.mean())
    same = Misses.of(found_a, found_a)
    assert same.kappa == 1.0 and same.gain == 0.0
    assert Misses.of(~np.zeros(3, bool), np.zeros(3, bool)).gain == 0.0


def test_lists_of_different_questions_are_refused():
    with pytest.raises(DataError, match=r"same questions.*\(2,\) and \(3,\)"):
        Misses.of(np.zeros(2, bool), np.zeros(3, bool))
