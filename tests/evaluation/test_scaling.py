from dataclasses import replace

import numpy as np
import pytest

from sidrec.errors import DataError, MissingExtra
from sidrec.evaluation.scaling import fit_joint, fit_scaling, log_law
from sidrec.evaluation.scaling_plot import draw
from sidrec.evaluation.scaling_report import Point, ScalingReport, report_of

SIZES = np.repeat(np.geomspace(5e3, 5e5, 6), [3, 3, 3, 1, 1, 1])


def noisy(losses, spread=0.003, seed=0):
    return losses * np.exp(spread * np.random.default_rng(seed).standard_normal(len(losses)))


# A source of known entropy, and a learner that needs no training --------------------------------

SOURCE = np.random.default_rng(7).dirichlet(np.full(40, 0.5))
ENTROPY = float(-(SOURCE * np.log(SOURCE)).sum())


def loss_after(num_events, seed):
    """Exact loss of counting so many draws: the entropy, and about 39 / (2 D) above it."""
    counts = np.random.default_rng(seed).multinomial(num_events, SOURCE)
    guess = (counts + 0.5) / (num_events + 20)
    return float(-(SOURCE * np.log(guess)).sum())


def test_the_floor_over_data_holds_the_entropy_of_the_source():
    events = np.repeat([100, 200, 400, 800, 1600, 3200], 3)
    losses = [loss_after(n, seed) for seed, n in enumerate(events)]
    fit = fit_scaling(events, losses, variable="events", resamples=200)
    assert fit.floor.low <= ENTROPY <= fit.floor.high
    assert fit.floor.high - fit.floor.low < 0.1
    assert fit.exponent.low <= 1.0 <= fit.exponent.high + 0.1


def test_the_floor_over_size_holds_the_entropy_of_the_source():
    """A learner with N places keeps the N commonest of Zipf's contexts and guesses in the others:
    what it loses is a power law in N, exponent 0.5, above the entropy.
    """
    contexts = np.arange(1, 2_000_001) ** -1.5
    left_over = 1 - np.cumsum(contexts) / contexts.sum()
    sizes = np.repeat([50, 100, 200, 400, 800, 1600], [3, 3, 3, 1, 1, 1])
    losses = ENTROPY + (np.log(40) - ENTROPY) * left_over[sizes - 1]
    fit = fit_scaling(sizes, noisy(losses, 0.001), resamples=200)
    assert fit.floor.low <= ENTROPY <= fit.floor.high
    assert fit.exponent.low <= 0.5 <= fit.exponent.high


# Held out ----------------------------------------------------------------------------------------


def test_held_out_sizes_are_predicted_from_the_others_only():
    losses = 5 + 300 * SIZES**-0.5
    fit = fit_scaling(SIZES, losses, resamples=20)
    assert fit.held_out.sizes == tuple(np.unique(SIZES)[-2:])
    np.testing.assert_allclose(
        fit.held_out.predicted["power law"], fit.held_out.measured, rtol=1e-6
    )
    assert fit.held_out.best == "power law"
    moved = np.where(SIZES.max() == SIZES, 2 * losses, losses)
    again = fit_scaling(SIZES, moved, resamples=20).held_out
    np.testing.assert_allclose(again.predicted["power law"], fit.held_out.predicted["power law"])


def test_errors_of_every_form_are_said_whether_good_or_bad():
    losses = 5 + 300 * SIZES**-0.5
    bad = np.where(np.isin(SIZES, np.unique(SIZES)[-2:]), losses + 0.5, losses)
    for measured in (losses, bad):
        fit = fit_scaling(SIZES, measured, resamples=20)
        (said,) = [line for line in fit.words if line.startswith("held out")]
        for form, error in fit.held_out.mean_error_nats.items():
            assert f"{form} {error:.3f}" in said
        assert f"best: {fit.held_out.best}" in said
    assert fit.held_out.mean_error_nats["power law"] == pytest.approx(0.5, rel=0.01)


def test_error_shares_are_of_what_is_above_the_floor():
    losses = 5 + 300 * SIZES**-0.5
    held = fit_scaling(SIZES, losses, resamples=20).held_out
    above = np.array(held.measured) - 5
    off = np.abs(np.array(held.predicted["last"]) - np.array(held.measured))
    assert held.mean_error_share["last"] == pytest.approx((off / above).mean(), rel=1e-3)


def test_a_loss_that_falls_by_the_logarithm_is_best_told_by_the_log_law():
    fit = fit_scaling(SIZES, 9 - 0.3 * np.log(SIZES), resamples=20)
    assert fit.held_out.best == "log law"
    assert fit.held_out.mean_error_nats["log law"] < 1e-6


def test_the_log_law_is_one_of_least_absolute_errors():
    sizes = np.exp(np.arange(5.0))
    intercept, slope = log_law(sizes, np.array([5.0, 4.0, 3.0, 2.0, 9.0]))
    assert (intercept, slope) == pytest.approx((5.0, -1.0))


# Where it stops holding --------------------------------------------------------------------------


def test_a_law_that_holds_is_said_to_hold():
    fit = fit_scaling(SIZES, noisy(5 + 300 * SIZES**-0.5), resamples=20)
    assert fit.turn is None and not any(each.is_off for each in fit.residuals)
    assert any("within what the seeds explain" in line for line in fit.words)
    assert fit.seed_spread == pytest.approx(0.003, rel=0.6)


def test_over_fitting_of_the_largest_sizes_is_named():
    order = np.unique(SIZES)
    losses = noisy(5 + 300 * SIZES**-0.5)
    losses = np.where(order[-1] == SIZES, losses + 0.4, losses)
    fit = fit_scaling(SIZES, losses, resamples=20)
    assert fit.turn == order[-2]
    assert fit.residuals[-1].is_off and fit.residuals[-1].above_law > 0.2
    assert fit.law_until_turn is not None
    assert fit.law_until_turn(order[-1]) < 5.6
    text = " ".join(fit.words)
    assert f"the loss turns at {order[-2]:,.4g}" in text and f"{order[-1]:,.4g}" in text


def test_with_one_seed_nothing_is_called_a_break():
    sizes = np.unique(SIZES)
    losses = 5 + 300 * sizes**-0.5
    losses[-1] += 0.4
    fit = fit_scaling(sizes, losses, resamples=20)
    assert fit.seed_spread is None and fit.turn is None
    assert any("one seed everywhere" in line for line in fit.words)


def test_numbers_that_the_points_do_not_determine_are_said_not_to_be_quoted():
    fit = fit_scaling(SIZES, noisy(np.full(len(SIZES), 5.0)), resamples=100)
    assert any("do not determine the exponent" in line for line in fit.words)


def test_too_few_sizes_are_refused_with_the_reason():
    with pytest.raises(DataError, match=r"at least 4 values, got 3.*meet any three points"):
        fit_scaling([1, 2, 3], [3.0, 2.0, 1.5])
    with pytest.raises(DataError, match="at least 6 pairs"):
        fit_joint([1, 2, 3, 3, 3], [9, 9, 9, 5, 2], [3.0, 2.0, 1.5, 1.7, 2.0])


# The report --------------------------------------------------------------------------------------


def point(parameters, events, loss, *, share=1.0, seed=0, **changes):
    values = {
        "system": "causal", "width": int(parameters**0.5), "num_layers": 1, "share": share,
        "seed": seed, "learning_rate": 1e-3, "parameters": parameters, "embedding_parameters": 7,
        "events": events, "tokens": 3 * events, "epochs": 3.0, "best_epoch": 3.0,
        "flop": 6.0 * parameters * events, "table_flop": 1.0, "seconds": 1.0, "device": "cpu",
        "peak_memory_bytes": 1, "stopped_because": "epochs", "train_loss": loss - 0.1,
        "loss": loss, "recall": 0.2, "ndcg": 1 / loss,
    }  # fmt: skip
    return Point(**{**values, **changes})


def points_of_a_joint_law():
    def loss(n, d):
        return 3 + 50 * n**-0.4 + 200 * d**-0.5

    sizes = [10_000, 20_000, 40_000, 80_000, 160_000]
    full = [point(n, 100_000, loss(n, 1e5)) for n in sizes]
    shares = [0.1, 0.2, 0.4, 0.7]
    return full + [point(40_000, int(1e5 * s), loss(4e4, int(1e5 * s)), share=s) for s in shares]


def test_a_report_fits_size_data_compute_and_both():
    report = report_of(points_of_a_joint_law(), resamples=20, true_floor=2.5)
    assert set(report.fits) == {"size", "data", "compute", "joint"}
    assert report.fits["joint"].law.floor == pytest.approx(3.0, rel=1e-3)
    assert report.fits["size"].exponent.value == pytest.approx(0.4, rel=1e-3)
    assert report.fits["size"].law.floor == pytest.approx(3 + 200 * 1e5**-0.5, rel=1e-3)
    assert report.fits["data"].exponent.value == pytest.approx(0.5, rel=1e-3)
    assert report.fits["compute"].exponent.value == pytest.approx(0.4, rel=1e-3)
    assert any("does not hold the true 2.500 nats" in line for line in report.words["joint"])
    assert not any("the true" in line for line in report.words["size"])
    assert "a factor of 16" in report.words["points"][0]
    assert "-1.00" in report.words["points"][-1]


def test_a_report_says_what_it_could_not_fit_and_what_the_clock_ended():
    points = points_of_a_joint_law()[:3]
    points[1] = replace(points[1], stopped_because="max_seconds", best_epoch=1.0)
    report = report_of(points, resamples=20)
    assert report.fits == {}
    assert "at least 4 values, got 3" in report.words["size"][0]
    assert "every point has the whole data" in report.words["data"][0]
    text = " ".join(report.words["points"])
    assert "1 runs were ended by the clock" in text and "over-fitting" in text


def test_the_plot_shows_every_system_or_names_the_extra(tmp_path):
    report = ScalingReport(
        dataset="d", data="", split="", loss="", learning_rates={},
        systems={"causal": report_of(points_of_a_joint_law(), resamples=5)},
    )  # fmt: skip
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match=r"sidrec\[report\]"):
            draw(report, tmp_path)
        return
    paths = draw(report, tmp_path)
    assert [path.name for path in paths] == ["scaling.png", "scaling.svg"]
    assert all(path.stat().st_size > 1000 for path in paths)
