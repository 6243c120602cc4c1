"""The trained ranker: against the truth of the shop, calibrated, reproducible, honest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from sidrec.alignment.preferences import from_histories, split_by_user
from sidrec.alignment.rewards.calibration import (
    Calibration,
    expected_calibration_error,
    log_loss,
)
from sidrec.alignment.rewards.interest_ranker import (
    LOGIT_RANGE,
    SLATE_WIDTH,
    paired_slates,
    pairwise,
    sampled_slates,
    shown_slates,
)
from sidrec.alignment.rewards.ranker import (
    Ranker,
    RankerConfig,
    auc,
    auc_in_context,
    noise,
    sigmoid,
)
from sidrec.errors import ConfigError, DataError
from sidrec.testing.rewards import tiny_alignment, tiny_rollouts
from sidrec.testing.tiny_catalogue import small_config


@pytest.fixture(scope="module")
def ranker(shop_world):
    return Ranker.build(shop_world.context, RankerConfig(epochs=8))


def expected_auc(scores_BN, probs_BN) -> float:
    """Mean AUC of clicks that are drawn with the given probabilities, each item once."""
    each = []
    for scores, probs in zip(scores_BN, probs_BN, strict=True):
        labels = np.repeat([1, 0], len(probs))
        weights = np.concatenate([probs, 1 - probs])
        each.append(roc_auc_score(labels, np.tile(scores, 2), sample_weight=weights))
    return float(np.mean(each))


def test_it_knows_the_true_click_probabilities_better_than_popularity(
    shop_world, ranker, every_item
):
    shop, users = shop_world.shop, shop_world.users
    truth_BN = shop.click_probs(users)
    histories = shop.dataset.interactions.histories.take(users)
    found = expected_auc(ranker(every_item(histories, users)).numpy(), truth_BN)
    counts_N = shop_world.context.train_counts_N
    popular = expected_auc(np.tile(counts_N, (len(users), 1)), truth_BN)
    best = expected_auc(truth_BN, truth_BN)
    assert popular + 0.03 < found < best
    assert ranker.report.auc_in_context > 0.62  # chance: 0.5


def test_items_against_drawn_ones_are_learnt_where_nothing_was_shown(shop_world):
    context = replace(shop_world.context, preferences=None)
    found = Ranker.build(context, RankerConfig(epochs=7, max_length=8))
    assert found.report.learnt_from == "drawn"
    assert found.report.auc_in_context > 0.65  # chance: 0.5
    assert found.report.taken_share == pytest.approx(1 / 5, abs=0.02)


def test_the_report_is_about_users_that_were_not_learnt_from(shop_world, ranker):
    context = shop_world.context
    learnt, held = split_by_user(context.preferences, 0.1, context.seed)
    assert (ranker.report.num_contexts, ranker.report.num_held_out) == (len(learnt), len(held))
    counts_N = learnt.positives.counts(100)
    popularity_N = ranker.network.popularity_FN[0]
    torch.testing.assert_close(popularity_N, torch.from_numpy(np.log1p(counts_N)).float())
    assert ranker.report.learnt_from == "shown"


def test_an_item_is_not_known_by_its_own_taking(shop_world, ranker):
    """Counts a context sees while learning hold nothing of its user."""
    context = shop_world.context
    learnt, _ = split_by_user(context.preferences, 0.1, context.seed)
    users_E = np.repeat(learnt.users_R, learnt.positives.lengths)
    for fold in (1, 5):
        others = learnt.positives.items_E[1 + users_E % 5 != fold]
        expected = np.log1p(np.bincount(others, minlength=100) * 5 / 4)
        found = ranker.network.popularity_FN[fold].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_logits_are_the_log_odds_of_probabilities(shop_world, ranker, every_item):
    histories = shop_world.context.train.take(shop_world.users[:5])
    rollouts = every_item(histories, shop_world.users[:5])
    probs = ranker(rollouts)
    as_logits = replace(ranker, config=replace(ranker.config, output="logit"))
    torch.testing.assert_close(as_logits(rollouts).sigmoid(), probs)
    nothing = replace(rollouts, rows_BG=torch.full_like(rollouts.rows_BG, -1))
    assert (ranker(nothing) == 0).all() and (as_logits(nothing) == -LOGIT_RANGE).all()


def test_another_seed_gives_another_ranker():
    config = small_config(RankerConfig)
    rewards = [Ranker.build(tiny_alignment(seed), config)(tiny_rollouts()) for seed in (0, 0, 1)]
    assert torch.equal(rewards[0], rewards[1]) and not torch.equal(rewards[0], rewards[2])


# Noise


def test_noise_is_standard_normal_and_fixed_by_user_item_and_seed():
    users, rows = np.arange(300)[:, None], np.arange(200)[None]
    found = noise(users, rows, 0)
    assert abs(found.mean()) < 4 / np.sqrt(found.size)
    assert found.var() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(found[0], found[1])[0, 1]) < 0.3
    np.testing.assert_array_equal(noise(users[7:8], rows[:, 3:5], 0), found[7:8, 3:5])
    assert not np.isclose(noise(users, rows, 1), found).any()


def test_noise_moves_the_log_odds_and_nothing_else(shop_world, ranker, every_item):
    histories = shop_world.context.train.take(shop_world.users[:50])
    rollouts = every_item(histories, shop_world.users[:50])
    noisy = replace(ranker, config=replace(ranker.config, noise=0.7))
    moved = (noisy.logits(rollouts) - ranker.logits(rollouts)).numpy()
    assert moved.std() == pytest.approx(0.7, rel=0.05)
    torch.testing.assert_close(noisy(rollouts), noisy(rollouts), rtol=0, atol=0)
    unknown = replace(rollouts, users_B=torch.full((50,), -1))
    by_history = (noisy.logits(unknown) - ranker.logits(unknown)).numpy()
    assert by_history.std() == pytest.approx(0.7, rel=0.05)


# Calibration


@pytest.fixture(scope="module")
def overconfident():
    """Log-odds three times too sure and shifted, with what happened: learnt and fresh pairs."""
    random = np.random.default_rng(0)
    true_logits = random.normal(-1.5, 1, 20_000)
    return 3 * true_logits + 1, random.random(20_000) < sigmoid(true_logits)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_calibration_lowers_the_calibration_error(overconfident, kind):
    logits, taken = overconfident
    learnt, fresh = slice(10_000), slice(10_000, None)
    calibration = Calibration.fit(kind, logits[learnt], taken[learnt])
    before, after = sigmoid(logits[fresh]), sigmoid(calibration.logits(logits[fresh]))
    errors = [expected_calibration_error(probs, taken[fresh]) for probs in (before, after)]
    assert errors[0] > 0.05 and errors[1] < 0.02
    assert log_loss(after, taken[fresh]) < log_loss(before, taken[fresh])
    ordered = calibration.logits(np.sort(logits))
    assert (ordered[1:] >= ordered[:-1]).all()


def test_platt_finds_the_line(overconfident):
    found = Calibration.fit("platt", *overconfident)
    assert found.slope == pytest.approx(1 / 3, abs=0.02)
    assert found.offset == pytest.approx(-1 / 3, abs=0.05)


def test_no_calibration_is_the_plain_sigmoid(overconfident):
    logits, taken = overconfident
    np.testing.assert_array_equal(Calibration.fit("none", logits, taken).logits(logits), logits)


def test_calibration_error_by_hand():
    probs, taken = np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, True, True, True])
    # two bins: means .15 against .5, and .85 against 1
    assert expected_calibration_error(probs, taken, 2) == pytest.approx((0.35 + 0.15) / 2)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_each_half_of_the_report_is_judged_by_the_other(shop_world, kind):
    """Calibrating cannot make a report perfect: isotonic on its own pairs would say exactly 0."""
    config = RankerConfig(epochs=1, calibration=kind)
    report = Ranker.build(shop_world.context, config).report
    assert 0.001 < report.calibration_error_calibrated < 0.04


# Slates and losses


def test_shown_slates_hold_every_pair_once(shop_world):
    contexts = shop_world.context.preferences.take(np.arange(40))
    slates = shown_slates(contexts, np.random.default_rng(0))
    assert slates.rows_SX.shape == (40, SLATE_WIDTH)
    for s, r in enumerate(slates.contexts_S):
        real = slates.rows_SX[s] >= 0
        rows, taken = slates.rows_SX[s][real], slates.taken_SX[s][real]
        assert sorted(rows[taken]) == sorted(contexts.positives[r])
        assert sorted(rows[~taken]) == sorted(contexts.negatives[r])


def test_long_lists_are_cut_into_slates(shop_world):
    contexts = shop_world.context.preferences.take(np.arange(3))
    negatives = type(contexts.negatives).from_lists([range(40), [], range(16)])
    slates = shown_slates(replace(contexts, negatives=negatives), np.random.default_rng(0))
    sizes = contexts.positives.lengths + np.array([40, 0, 16])
    expected = np.repeat(np.arange(3), -(-sizes // SLATE_WIDTH))
    np.testing.assert_array_equal(slates.contexts_S, expected)
    found = np.bincount(slates.contexts_S, (slates.rows_SX >= 0).sum(1))
    np.testing.assert_array_equal(found, sizes)


def test_pairs_and_drawn_items_have_the_taken_one_first(shop_world):
    contexts = shop_world.context.preferences.take(np.arange(40))
    random = np.random.default_rng(0)
    paired = paired_slates(contexts, 3, random)
    counts_N = shop_world.context.train_counts_N
    drawn = sampled_slates(contexts, counts_N, 3, 1.0, random)
    for slates in (paired, drawn):
        np.testing.assert_array_equal(slates.rows_SX[:, 0], contexts.positives.items_E)
        assert slates.taken_SX[:, 0].all() and not slates.taken_SX[:, 1:].any()
    for s, r in enumerate(paired.contexts_S):
        assert set(paired.rows_SX[s, 1:]) <= set(contexts.negatives[r])
    assert (counts_N[drawn.rows_SX[drawn.rows_SX >= 0]] > 0).all()
    assert (drawn.rows_SX[:, 1:] != drawn.rows_SX[:, :1]).all()


def test_pairwise_loss_by_hand():
    logits = torch.tensor([[1.0, 0.0, 3.0, 9.0]])
    taken = torch.tensor([[True, False, True, False]])
    real = torch.tensor([[True, True, True, False]])
    expected = (np.log1p(np.exp(-1)) + np.log1p(np.exp(-3))) / 2
    assert pairwise(logits, taken, real).item() == pytest.approx(expected)


def test_auc_agrees_with_scikit_learn():
    random = np.random.default_rng(0)
    scores, taken = random.integers(0, 9, 300).astype(float), random.random(300) < 0.3
    assert auc(scores, taken) == pytest.approx(roc_auc_score(taken, scores))
    contexts = random.integers(0, 40, 300)
    each = [
        roc_auc_score(taken[contexts == c], scores[contexts == c])
        for c in range(40)
        if 0 < taken[contexts == c].sum() < (contexts == c).sum()
    ]
    assert auc_in_context(scores, taken, contexts) == pytest.approx(np.mean(each))


# What cannot work


def test_settings_that_cannot_work_say_so():
    for changes, message in (
        ({"output": "odds"}, r"ranker.output must be one of"),
        ({"calibration": "beta"}, r"ranker.calibration must be one of"),
        ({"learn_from": "clicks"}, r"ranker.learn_from must be one of"),
        ({"noise": -1.0}, r"ranker.noise must be between 0"),
        ({"epochs": 0}, r"epochs of a learnt reward must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            RankerConfig(**changes)


def test_learning_from_what_was_shown_needs_what_was_left():
    context = tiny_alignment()
    plain = replace(context, preferences=from_histories(context.train))
    with pytest.raises(DataError, match="needs preferences with items that were shown and left"):
        Ranker.build(plain, RankerConfig(learn_from="shown"))
    with pytest.raises(DataError, match="calibration needs clicks and non-clicks, got 2 clicks"):
        Calibration.fit("platt", np.zeros(2), np.ones(2, dtype=bool))
