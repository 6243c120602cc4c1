"""Implicit feedback: looked up by user or context, and unbiased once divided by exposure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sidrec.alignment.preferences import of_shop
from sidrec.alignment.rewards.feedback import Feedback, FeedbackConfig
from sidrec.alignment.values import AlignmentContext, Preferences
from sidrec.errors import ConfigError, DataError
from sidrec.testing.rewards import tiny_alignment
from sidrec.types import Histories, HistoryBatch

LOG = Preferences(
    histories=Histories.from_lists([[5, 6], [5, 6, 0], [7]]),
    positives=Histories.from_lists([[0, 1], [2], [3]]),
    negatives=Histories.from_lists([[2, 4], [4], [8]]),
    users_R=np.array([0, 0, -1]),
    grades_E=np.array([3, 1, 1, 2], dtype=np.float32),
    propensities_E=np.array([0.5, 0.01, 0.25, 1], dtype=np.float32),
)


def context(**changes) -> AlignmentContext:
    return replace(tiny_alignment(), preferences=LOG, **changes)


def rewards_of(every_item, users, histories, world=None, **settings):
    """Rewards of the first nine items."""
    reward = Feedback.build(world or context(), FeedbackConfig(**settings))
    found = reward(every_item(Histories.from_lists(histories), users, 24))
    return found[:, :9].numpy().round(4).tolist()


def test_by_user_everything_the_user_did_counts_and_a_click_beats_a_non_click(every_item):
    found = rewards_of(every_item, [0, 1, -1], [[9], [5, 6], [7]], left=-0.5)
    assert found[0] == [3, 1, 1, 0, -0.5, 0, 0, 0, 0]
    assert found[1] == found[2] == [0] * 9  # another user, and nobody in particular


def test_by_context_the_last_events_must_agree_as_well(every_item):
    users, histories = [0, 0, 0, -1, 1], [[5, 6], [5, 6, 0], [6], [7], [5, 6]]
    found = rewards_of(every_item, users, histories, left=-0.5, scope="context")
    assert found == [
        [3, 1, -0.5, 0, -0.5, 0, 0, 0, 0],
        [0, 0, 1, 0, -0.5, 0, 0, 0, 0],
        [0] * 9,
        [0, 0, 0, 2, 0, 0, 0, 0, -0.5],
        [0] * 9,
    ]


def test_grades_are_divided_by_clipped_propensities(every_item):
    found = rewards_of(every_item, [0], [[9]], propensity=True, clip=0.1)
    assert found[0] == [6, 10, 4, 0, -0.5, 0, 0, 0, 0]


def test_items_that_share_an_id_are_one(every_item):
    ids = tiny_alignment().ids
    codes = ids.codes.copy()
    codes[7] = codes[0]
    found = rewards_of(every_item, [0], [[9]], context(ids=replace(ids, codes=codes)))
    assert found[0] == [3, 1, 1, 0, -0.5, 0, 0, 3, 0]


def test_an_id_without_an_item_is_worth_as_little_as_one_that_was_left(every_item):
    reward = Feedback.build(context(), FeedbackConfig(left=-0.2))
    rollouts = every_item(Histories.from_lists([[9]]), [0], 24)
    nothing = replace(rollouts, rows_BG=torch.full_like(rollouts.rows_BG, -1))
    torch.testing.assert_close(reward(nothing), torch.full((1, 24), -0.2))


def test_padding_and_old_events_do_not_change_a_context(every_item):
    reward = Feedback.build(context(), FeedbackConfig(scope="context"))
    rollouts = every_item(Histories.from_lists([[5, 6]]), [0], 24)
    padded = HistoryBatch(torch.tensor([[5, 6, -1, -1, -1, -1, -1]]), torch.tensor([2]))
    assert torch.equal(reward(replace(rollouts, batch=padded)), reward(rollouts))
    assert reward(rollouts)[0, 0] == 3


def test_over_propensities_clicks_estimate_true_click_probabilities(shop_world, every_item):
    """Mean over all lists of the summed reward of the catalogue = mean of true probabilities."""
    shop = shop_world.shop
    log = replace(of_shop(shop), grades_E=None)
    world = replace(shop_world.context, preferences=log)
    ends_R = np.searchsorted(shop.event_lists_E, np.arange(len(shop.impressions)))
    starts_R = shop.dataset.interactions.histories.offsets[shop.impressions.users_R]
    asked = np.flatnonzero(ends_R > starts_R)  # lists after a first click, clicked or not
    truth_R = shop.click_probs(shop.logged_visits(asked)).sum(axis=1)
    estimates = {}
    for propensity in (True, False):
        config = FeedbackConfig(scope="context", left=0, propensity=propensity, clip=1e-6)
        rewards_R = Feedback.build(world, config)(every_item(log.histories, log.users_R)).numpy()
        whole_R = np.zeros(len(asked))  # a list without a click earns nothing
        whole_R[: len(log)] = rewards_R.sum(axis=1)
        estimates[propensity] = whole_R.mean(), whole_R.std() / np.sqrt(len(whole_R))
    assert abs(estimates[True][0] - truth_R.mean()) < 3 * estimates[True][1]
    assert estimates[False][0] < 0.5 * truth_R.mean()  # what was not shown is not clicked


def test_what_it_needs_is_said(every_item):
    for changes, message in (
        ({"scope": "item"}, "feedback.scope must be one of"),
        ({"left": 1.0}, "feedback.left must be at most 0"),
        ({"clip": 0.0}, "feedback.clip must be above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            FeedbackConfig(**changes)
    for log, settings, message in (
        (None, {}, "feedback needs preferences, got none"),
        (replace(LOG, propensities_E=None), {"propensity": True}, "preferences with propensities"),
        (LOG.take(np.array([2])), {}, "no context of a known user"),
    ):
        with pytest.raises(DataError, match=message):
            Feedback.build(replace(context(), preferences=log), FeedbackConfig(**settings))
