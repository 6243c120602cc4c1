import numpy as np
import pytest

from sidrec.errors import DataError
from sidrec.evaluation.power_law import (
    DELTA,
    PowerLaw,
    fit_power_law,
    huber,
    interval,
    predicted,
    resampled_laws,
)

SIZES = np.geomspace(5e3, 5e5, 7)


@pytest.mark.parametrize(
    ("floor", "scale", "exponent"),
    [(2.522, 2055.1, 0.456), (4.0, 10.0, 0.1), (0.5, 1e4, 1.0), (1.0, 5.0, 0.05)],
)
def test_points_without_noise_give_the_law_back_to_one_percent(floor, scale, exponent):
    law = fit_power_law(SIZES, floor + scale * SIZES**-exponent)
    found = (law.floor, law.scales[0], law.exponents[0])
    np.testing.assert_allclose(found, (floor, scale, exponent), rtol=0.01)


def test_the_joint_law_is_given_back_from_a_cross_of_sizes_and_shares():
    truth = PowerLaw(floor=3.0, scales=(50.0, 200.0), exponents=(0.3, 0.4))
    events = np.geomspace(1e4, 1e5, 5)
    points = np.array([(n, 2e5) for n in SIZES] + [(SIZES[3], d) for d in events])
    law = fit_power_law(points, truth(*points.T))
    np.testing.assert_allclose(law.scales, truth.scales, rtol=0.01)
    np.testing.assert_allclose(law.exponents, truth.exponents, rtol=0.01)
    assert law.floor == pytest.approx(3.0, rel=0.01)


def test_one_diverged_run_hardly_moves_the_law():
    losses = 4 + 60 * SIZES**-0.4
    losses[2] *= 1.5
    law = fit_power_law(SIZES, losses)
    assert law.exponents[0] == pytest.approx(0.4, rel=0.05)
    assert law.floor == pytest.approx(4.0, rel=0.01)


def test_the_objective_is_a_square_up_to_delta_and_a_line_after_it():
    cost = huber(np.array([[DELTA / 2, 3 * DELTA]]), np.array([[1.0, 2.0]]))
    assert cost[0] == pytest.approx(DELTA**2 / 8 + 2 * DELTA * 2.5 * DELTA)


def test_the_derivatives_are_those_of_differences():
    rng = np.random.default_rng(0)
    theta, logs = rng.normal(size=(1, 5)), rng.normal(size=(4, 2))
    value, slopes = predicted(theta, logs)
    for place in range(5):
        moved = theta.copy()
        moved[0, place] += 1e-6
        change = (predicted(moved, logs)[0] - value) / 1e-6
        np.testing.assert_allclose(slopes[..., place], change, atol=1e-5)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Three seeds at the small half, 0.5 % of noise: 95 % intervals over 25 drawn studies."""
    sizes = np.repeat(np.geomspace(5e3, 5e5, 6), [3, 3, 3, 1, 1, 1])
    hits = np.zeros(2)
    for study in range(25):
        noise = np.random.default_rng(study).standard_normal(len(sizes))
        losses = (5 + 40 * sizes**-0.4) * np.exp(0.005 * noise)
        law = fit_power_law(sizes, losses)
        laws = resampled_laws(sizes, losses, resamples=40, seed=study)
        floor = interval(law.floor, [each.floor for each in laws])
        exponent = interval(law.exponents[0], [each.exponents[0] for each in laws])
        hits += [floor.low <= 5 <= floor.high, exponent.low <= 0.4 <= exponent.high]
    assert (hits / 25 >= 0.84).all()


def test_the_compute_optimal_split_is_where_no_other_split_loses_less():
    law = PowerLaw(floor=1.7, scales=(406.4, 410.7), exponents=(0.34, 0.28))
    size, events = law.compute_optimal(6e15)
    assert 6 * size * events == pytest.approx(6e15)
    others = size * np.geomspace(0.5, 2, 101)
    assert law(size, events) <= law(others, 1e15 / others).min() + 1e-12


@pytest.mark.parametrize(
    ("sizes", "losses", "message"),
    [
        ([1, 2], [2.0, 1.0], "at least 3 sizes, got 2"),
        ([1, 1, 2, 2], [2.0, 2.0, 1.0, 1.0], "got 2"),
        ([1, 2, 3], [2.0, np.nan, 1.0], "diverged"),
        ([0, 2, 3], [3.0, 2.0, 1.0], "above 0"),
        ([1, 2, 3], [3.0, 2.0], "one loss a point"),
    ],
)
def test_points_that_no_law_can_be_fitted_to_are_refused(sizes, losses, message):
    with pytest.raises(DataError, match=message):
        fit_power_law(sizes, losses)
