"""The Bradley-Terry model recovers a known order, on its own and on the shop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from sidrec.alignment.preferences import from_histories
from sidrec.alignment.rewards.preference_model import PreferenceModel, PreferenceModelConfig
from sidrec.alignment.values import Preferences
from sidrec.errors import DataError
from sidrec.testing.rewards import tiny_alignment
from sidrec.testing.tiny_catalogue import NUM_ITEMS
from sidrec.types import Histories


def test_it_recovers_the_utilities_that_decided_the_pairs(every_item):
    random = np.random.default_rng(0)
    utilities_N = random.normal(0, 1.5, NUM_ITEMS)
    pairs_R2 = np.array([random.choice(NUM_ITEMS, 2, replace=False) for _ in range(4000)])
    margins_R = utilities_N[pairs_R2[:, 0]] - utilities_N[pairs_R2[:, 1]]
    swapped_R = random.random(4000) > 1 / (1 + np.exp(-margins_R))
    pairs_R2[swapped_R] = pairs_R2[swapped_R, ::-1]
    users_R = np.arange(4000) % 500
    ones = np.arange(4001)
    preferences = Preferences(
        histories=Histories(random.integers(NUM_ITEMS, size=4000), ones),
        positives=Histories(pairs_R2[:, 0].copy(), ones),
        negatives=Histories(pairs_R2[:, 1].copy(), ones),
        users_R=users_R,
    )
    context = replace(tiny_alignment(), preferences=preferences)
    model = PreferenceModel.build(context, PreferenceModelConfig(num_negatives=1, epochs=12))
    rollouts = every_item(Histories(np.arange(NUM_ITEMS), np.arange(NUM_ITEMS + 1)), [-1] * 24, 24)
    rewards_N = model(rollouts).numpy().mean(axis=0)
    assert spearmanr(rewards_N, utilities_N)[0] > 0.95
    assert np.polyfit(utilities_N, rewards_N, 1)[0] == pytest.approx(1, abs=0.3)  # same scale
    knowable = np.logaddexp(0, -abs(margins_R)).mean()
    assert knowable < model.report.log_loss < np.log(2) - 0.05


def test_pairs_of_unseen_users_of_the_shop_come_in_their_order(shop_world):
    config = PreferenceModelConfig(epochs=6)
    report = PreferenceModel.build(shop_world.context, config).report
    assert report.pair_accuracy > 0.62 and report.log_loss < np.log(2)


def test_it_needs_what_was_left():
    context = tiny_alignment()
    for preferences in (None, from_histories(context.train)):
        with pytest.raises(DataError, match="shown and left, got none"):
            PreferenceModel.build(
                replace(context, preferences=preferences), PreferenceModelConfig()
            )
