"""The checkerboard world: one right answer, planted hierarchy."""

from __future__ import annotations

import numpy as np
import pytest

from sidrec.data.shop import checkerboard
from sidrec.errors import ConfigError


def test_the_next_item_is_always_the_known_one_and_stays_in_the_users_group() -> None:
    world = checkerboard()
    events = world.dataset.interactions
    same = np.diff(events.users_E) == 0
    after = events.items_E[1:][same]
    np.testing.assert_array_equal(world.best_next(events.items_E[:-1][same]), after)
    groups_E = world.user_groups_U[events.users_E]
    np.testing.assert_array_equal(world.groups_N[events.items_E], groups_E)


def test_every_group_is_one_cycle_through_all_its_items() -> None:
    world = checkerboard(num_items=24, num_groups=3)
    for start in (0, 8, 16):
        walked, row = [], start
        for _ in range(8):
            walked.append(row)
            row = int(world.next_N[row])
        assert row == start and sorted(walked) == list(range(start, start + 8))


def test_vectors_hold_groups_and_subgroups_but_not_the_order() -> None:
    world = checkerboard(num_items=96)
    distance_NN = np.linalg.norm(world.vectors.vectors[:, None] - world.vectors.vectors, axis=2)
    np.fill_diagonal(distance_NN, np.inf)
    near_N5 = np.argsort(distance_NN, axis=1)[:, :5]
    assert (world.subgroups_N[near_N5] == world.subgroups_N[:, None]).mean() > 0.95
    assert (world.subgroups_N // 2 == world.groups_N).all()
    followers = (near_N5[:, 0] == world.next_N).mean()
    assert followers < 0.25  # chance is 1 in 11


def test_worlds_repeat_by_seed_and_refuse_sizes_that_do_not_divide() -> None:
    first, again, other = checkerboard(), checkerboard(), checkerboard(seed=1)
    assert first.dataset.content_hash == again.dataset.content_hash != other.dataset.content_hash
    with pytest.raises(ConfigError, match="multiple of"):
        checkerboard(num_items=50)
    with pytest.raises(ConfigError, match="num_items must be at least 16"):
        checkerboard(num_items=8)
