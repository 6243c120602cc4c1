import numpy as np
import pytest

from sidrec.errors import DataError
from sidrec.evaluation import significance as s


def test_grouped_draws_have_the_distribution_of_drawing_users_one_by_one():
    rng = np.random.default_rng(0)
    few = rng.choice([0.0, 0.5, 1.0], 400, p=[0.7, 0.2, 0.1])  # multinomial over three values
    many = few + rng.normal(scale=1e-9, size=400)  # every user distinct: drawn one by one
    for values in (few, many):
        means = s.resampled_means(values[:, None], resamples=4000, seed=1)[:, 0]
        assert means.mean() == pytest.approx(values.mean(), abs=0.002)
        assert means.std() == pytest.approx(values.std() / 20, rel=0.05)


def test_columns_share_their_draws():
    values = np.random.default_rng(0).random((50, 1))
    means = s.resampled_means(np.hstack([values, 2 * values]), resamples=20, seed=0)
    np.testing.assert_allclose(means[:, 1], 2 * means[:, 0])


def test_a_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(0).random((50, 1))
    first, again, other = (s.bootstrap(values, seed=seed)[0] for seed in (3, 3, 4))
    assert first == again and first != other
    assert first.low is not None and first.high is not None
    assert first.low < first.value < first.high


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.08, 0.5])
def test_95_percent_intervals_cover_the_truth_93_to_97_times_in_a_hundred(rate):
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(2000):
        hits = (rng.random((1500, 1)) < rate).astype(float)
        (figure,) = s.bootstrap(hits, resamples=1000, seed=trial)
        covered += figure.low <= rate <= figure.high
    assert 0.93 <= covered / 2000 <= 0.97


@pytest.mark.slow
def test_under_no_difference_five_percent_of_paired_tests_reject():
    rng = np.random.default_rng(8)
    rejected = np.zeros(2)
    for trial in range(1000):
        a, b = (rng.random((2, 500)) < 0.2).astype(float)
        rejected += [
            s.paired(a, b, resamples=1000, seed=trial)[1] < 0.05,
            s.permutation(a, b, resamples=1000, seed=trial) < 0.05,
        ]
    assert (np.abs(rejected / 1000 - 0.05) < 0.025).all()


def test_a_clear_difference_has_the_smallest_p_there_is_and_no_difference_has_one():
    rng = np.random.default_rng(1)
    a = (rng.random(2000) < 0.3).astype(float)
    b = np.where(rng.random(2000) < 0.4, 0.0, a)
    figure, p = s.paired(a, b, resamples=999)
    assert p == 1 / 1000 and figure.low > 0
    assert figure.value == pytest.approx(a.mean() - b.mean())
    assert s.permutation(a, b, resamples=999) == 1 / 1000
    assert s.paired(a, a)[1] == 1 and s.permutation(a, a) == 1


def test_pairing_finds_what_two_separate_intervals_hide():
    rng = np.random.default_rng(2)
    a = (rng.random(3000) < 0.1).astype(float)
    b = a.copy()
    b[np.flatnonzero(a)[:20]] = 0  # b loses twenty users and wins none
    apart = s.bootstrap(np.stack([a, b], axis=1))
    assert apart[0].low < apart[1].high  # the intervals overlap
    assert s.paired(a, b)[0].low > 0


def test_permutation_equals_the_exact_distribution_of_sign_flips():
    a, b = np.array([1.0, 1, 1, 1, 0]), np.zeros(5)
    # four flips of size 1: |sum| ≥ 4 in 2 of 16 cases
    assert s.permutation(a, b, resamples=20_000) == pytest.approx(2 / 16, abs=0.01)


def test_seed_level_resampling_widens_the_interval_when_seeds_disagree():
    rng = np.random.default_rng(3)
    base = (rng.random(3000) < 0.1).astype(float)
    agree = np.stack([base, base, base])
    disagree = np.stack([base, np.roll(base, 1) * 0.5, np.minimum(base * 1.5, 1.5)])
    users = s.bootstrap(disagree.mean(axis=0)[:, None])[0]
    both = s.bootstrap_seeds(disagree)
    assert both.value == pytest.approx(users.value)
    assert both.high - both.low > 1.5 * (users.high - users.low)
    same = s.bootstrap_seeds(agree)
    assert same.high - same.low == pytest.approx(2 * 1.96 * base.std() / np.sqrt(3000), rel=0.1)


def test_paired_seeds_share_users_between_systems():
    rng = np.random.default_rng(4)
    a = (rng.random((3, 2000)) < 0.2).astype(float)
    figure, p = s.paired_seeds(a, a[::-1])
    assert figure.value == pytest.approx(0) and p > 0.5
    figure, p = s.paired_seeds(a + 0.5, a)
    assert figure.value == pytest.approx(0.5) and figure.low > 0.4 and p < 0.01


def test_shared_seeds_cancel_what_a_start_gives_to_both_systems():
    rng = np.random.default_rng(5)
    starts_S1 = np.array([[0.0], [5.0], [9.0]])  # far apart, the same for both systems
    base_SQ = starts_S1 + rng.random((3, 500))
    figure, p = s.paired_seeds(base_SQ + 0.1, base_SQ, shared=True)
    assert (figure.low, figure.high) == pytest.approx((0.1, 0.1)) and p < 0.01
    apart, _ = s.paired_seeds(base_SQ + 0.1, base_SQ)
    assert apart.high - apart.low > 1
    gains_S1 = np.array([[0.0], [0.1], [0.2]])  # seeds differ: the interval holds their spread
    figure, _ = s.paired_seeds(base_SQ + gains_S1, base_SQ, shared=True)
    assert figure.low < 0.04 and figure.high > 0.16
    with pytest.raises(DataError, match="as many on both sides"):
        s.paired_seeds(base_SQ, base_SQ[:2], shared=True)


def test_holm_equals_the_worked_example():
    # sorted .005 .01 .03 .04, times 4 3 2 1 = .02 .03 .06 .04, made monotone: .02 .03 .06 .06
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([0.6, 0.7]) == pytest.approx([1, 1])
    assert s.holm([]) == []


def test_no_users_and_unequal_users_are_refused():
    with pytest.raises(DataError, match="at least one user"):
        s.bootstrap(np.zeros((0, 1)))
    with pytest.raises(DataError, match="must match"):
        s.paired(np.zeros(3), np.zeros(4))
