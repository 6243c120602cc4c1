# ruff: noqa: D103  (the name of a check is its sentence)
"""What it means to be a reward: run these checks on any class with `Reward`'s contract.

`for check in REWARD_CHECKS: check(MyReward, my_small_config)`. A reward that reads the place of a
rollout in its group says so by `needs_order = True`; one that learns by `learns = True`.

Shapes:   B contexts, G rollouts of a context, L levels, N items.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidrec.alignment.preferences import exposed
from sidrec.alignment.values import AlignmentContext, Rollouts
from sidrec.testing.tiny_catalogue import NUM_ITEMS, tiny_context
from sidrec.types import PAD, Histories, HistoryBatch

FREE_ID = (3, 2, 1)
"""The one ID of the tiny catalogue that no item holds."""


def tiny_alignment(seed: int = 0) -> AlignmentContext:
    """The tiny catalogue with 32 users, and every training event in a list of five."""
    context = tiny_context(seed)
    assert context.vectors is not None and context.semantic_ids is not None
    preferences = exposed(context.train, context.vectors, list_length=5, seed=seed)
    return AlignmentContext(
        context.items, context.vectors, context.semantic_ids, context.train, preferences, seed
    )


def tiny_rollouts(num_rollouts: int = 6, seed: int = 1) -> Rollouts:
    """The last training event of eight users against G random IDs, all different in a group.

    Even groups hold the truth. One rollout of groups 0, 1 and 3 is an ID without an item, and the
    last one of group 2 does not exist.
    """
    context, random = tiny_alignment(), np.random.default_rng(seed)
    users_B = np.arange(8)
    sequences = [context.train[user] for user in range(len(users_B))]
    targets_B = np.array([sequence[-1] for sequence in sequences])
    rows_BG = np.stack([random.permutation(NUM_ITEMS - 1)[:num_rollouts] for _ in users_B])
    for b in users_B[::2]:
        if targets_B[b] not in rows_BG[b]:
            rows_BG[b, 1] = targets_B[b]
    codes_BGL = context.ids.codes[rows_BG]
    for b in (0, 1, 3):
        rows_BG[b, 2], codes_BGL[b, 2] = PAD, FREE_ID
    lengths_BG = np.full(rows_BG.shape, codes_BGL.shape[-1])
    rows_BG[2, -1], codes_BGL[2, -1], lengths_BG[2, -1] = PAD, PAD, 0
    histories = Histories.from_lists([sequence[:-1] for sequence in sequences])
    return Rollouts(
        batch=HistoryBatch.from_histories(histories, max_length=6),
        targets_B=torch.from_numpy(targets_B),
        users_B=torch.from_numpy(users_B),
        codes_BGL=torch.from_numpy(codes_BGL),
        rows_BG=torch.from_numpy(rows_BG),
        log_probs_BGL=torch.full(codes_BGL.shape, -1.0),
        lengths_BG=torch.from_numpy(lengths_BG),
        target_codes_BL=torch.from_numpy(context.ids.codes[targets_B]),
    )


def reordered(rollouts: Rollouts, order_G: Tensor) -> Rollouts:
    """The same groups with their rollouts in another order."""
    return replace(
        rollouts,
        codes_BGL=rollouts.codes_BGL[:, order_G],
        rows_BG=rollouts.rows_BG[:, order_G],
        log_probs_BGL=rollouts.log_probs_BGL[:, order_G],
        lengths_BG=rollouts.lengths_BG[:, order_G],
    )


def built(reward_class: Any, config: Any) -> Any:
    """A reward for the tiny catalogue."""
    return reward_class.build(tiny_alignment(), config)


def scored(reward: Any, rollouts: Rollouts) -> Tensor:
    """(B, G) rewards, 0 where there is no rollout, where any value is right."""
    return reward(rollouts).where(rollouts.real_BG, torch.zeros(()))


def check_rewards_are_float32_and_not_nan(reward_class: Any, config: Any) -> None:
    rollouts = tiny_rollouts()
    rewards_BG = built(reward_class, config)(rollouts)
    assert rewards_BG.shape == rollouts.rows_BG.shape and rewards_BG.dtype == torch.float32
    assert rewards_BG[rollouts.real_BG].isfinite().all() and not rewards_BG.requires_grad


def check_the_config_has_a_weight_first(reward_class: Any, config: Any) -> None:
    assert fields(reward_class.config_class)[0].name == "weight" and config.weight == 1


def check_same_seed_gives_the_same_rewards(reward_class: Any, config: Any) -> None:
    found = []
    for outside_seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(outside_seed)
            reward = built(reward_class, config)
            found += [scored(reward, tiny_rollouts()), scored(reward, tiny_rollouts())]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


def check_permuting_rollouts_permutes_rewards(reward_class: Any, config: Any) -> None:
    if getattr(reward_class, "needs_order", False):
        return
    reward, rollouts = built(reward_class, config), tiny_rollouts()
    order_G = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = scored(reward, reordered(rollouts, order_G))
    torch.testing.assert_close(permuted, scored(reward, rollouts)[:, order_G], rtol=1e-5, atol=1e-6)


def check_a_context_alone_has_the_rewards_it_has_among_others(
    reward_class: Any, config: Any
) -> None:
    reward, rollouts = built(reward_class, config), tiny_rollouts()
    together = scored(reward, rollouts)
    for b in range(len(together)):
        alone = scored(reward, rollouts.take(torch.tensor([b])))
        torch.testing.assert_close(alone, together[b : b + 1], rtol=1e-5, atol=1e-6)


def check_an_id_without_an_item_is_worth_the_least(reward_class: Any, config: Any) -> None:
    rollouts = tiny_rollouts()
    rewards_BG = built(reward_class, config)(rollouts)
    least_B1 = rewards_BG.masked_fill(~rollouts.real_BG, torch.inf).amin(1, keepdim=True)
    invalid_BG = rollouts.real_BG & ~rollouts.valid_BG
    assert invalid_BG.sum() == 3
    assert (rewards_BG == least_B1)[invalid_BG].all()


def check_input_is_untouched(reward_class: Any, config: Any) -> None:
    context, rollouts = tiny_alignment(), tiny_rollouts()
    before = deepcopy((context, rollouts))
    reward_class.build(context, config)(rollouts)
    assert (context.vectors.vectors == before[0].vectors.vectors).all()
    assert (context.train.items_E == before[0].train.items_E).all()
    for field in fields(rollouts):
        value, old = (getattr(r, field.name) for r in (rollouts, before[1]))
        assert not isinstance(value, Tensor) or torch.equal(value, old)


def check_the_truth_is_worth_at_least_the_mean_rollout(reward_class: Any, config: Any) -> None:
    """For rewards that follow a rule; one that learns needs more than a few steps for it."""
    if getattr(reward_class, "learns", False):
        return
    reward, rollouts = built(reward_class, config), tiny_rollouts()
    truth_B1 = reward(rollouts.of_targets())
    assert truth_B1.shape == (8, 1)
    assert truth_B1.mean() >= reward(rollouts)[rollouts.real_BG].mean()


REWARD_CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
