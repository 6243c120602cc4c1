"""Rewards that follow a rule, against the values of the card, and their mixture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sidrec import methods
from sidrec.alignment.rewards.exact import Exact, ExactConfig
from sidrec.alignment.rewards.mixture import Mixture
from sidrec.alignment.rewards.prefix import Prefix, PrefixConfig
from sidrec.alignment.rewards.rank_aware import RankAware, RankAwareConfig
from sidrec.alignment.rewards.validity import Validity, ValidityConfig
from sidrec.alignment.values import Rollouts
from sidrec.errors import ConfigError, DataError
from sidrec.testing.rewards import tiny_alignment, tiny_rollouts
from sidrec.types import HistoryBatch


def rollouts_of(codes_BGL, target_codes_BL, invalid=()) -> Rollouts:
    """Rollouts given by their codes; the rows are made up."""
    codes, targets = torch.tensor(codes_BGL), torch.tensor(target_codes_BL)
    rows_BG = torch.arange(codes[..., 0].numel()).view(codes.shape[:2])
    for b, g in invalid:
        rows_BG[b, g] = -1
    B = len(targets)
    return Rollouts(
        batch=HistoryBatch(torch.zeros(B, 1, dtype=torch.long), torch.ones(B, dtype=torch.long)),
        targets_B=torch.zeros(B, dtype=torch.long),
        users_B=torch.full((B,), -1),
        codes_BGL=codes,
        rows_BG=rows_BG,
        log_probs_BGL=torch.zeros(codes.shape),
        lengths_BG=((codes >= 0).sum(-1) + 1).clamp_max(codes.shape[-1]),
        target_codes_BL=targets,
    )


def test_exact_is_one_for_the_id_of_the_truth_and_zero_for_its_prefix():
    rollouts = rollouts_of([[[1, 2, 3], [1, 2, 0], [3, 2, 1]]], [[1, 2, 3]])
    assert Exact.build(tiny_alignment(), ExactConfig())(rollouts).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [("sidreasoner", [1, 0.5, 0.25, 0, 0]), ("structural", [1, 0.1, 0.01, 0, 0])],
)
def test_prefix_counts_leading_codes_only(steps, expected):
    codes = [[[1, 2, 3], [1, 2, 0], [1, 0, 3], [0, 2, 3], [0, 0, 0]]]
    reward = Prefix.build(tiny_alignment(), PrefixConfig(steps=steps))
    torch.testing.assert_close(reward(rollouts_of(codes, [[1, 2, 3]])), torch.tensor([expected]))


def test_the_end_of_a_shorter_id_counts_as_one_code():
    codes = [[[1, -1, -1, -1], [1, 2, -1, -1], [1, 2, 3, 4], [1, 2, 3, -1], [2, -1, -1, -1]]]
    reward = Prefix.build(tiny_alignment(), PrefixConfig())
    short = reward(rollouts_of(codes, [[1, 2, -1, -1]]))  # three places: 1, 2, end
    torch.testing.assert_close(short, torch.tensor([[0.25, 1, 0.5, 0.5, 0]]))
    long = reward(rollouts_of(codes, [[1, 2, 3, 4]]))
    torch.testing.assert_close(long, torch.tensor([[0.125, 0.25, 1, 0.5, 0]]))


def test_rank_penalties_are_those_of_the_card():
    hit, miss = [1, 1], [0, 0]
    penalties = [-0.3904, -0.2463, -0.1952, -0.1681]
    reward = RankAware.build(tiny_alignment(), RankAwareConfig())
    for place in range(4):
        group = [miss] * place + [hit] + [miss] * (3 - place)
        expected = [*penalties[:place], 1.0, *penalties[place + 1 :]]
        found = reward(rollouts_of([group], [hit]))
        torch.testing.assert_close(found, torch.tensor([expected]), rtol=0, atol=5e-5)
    assert reward(rollouts_of([[miss] * 4], [hit])).tolist() == [[0, 0, 0, 0]]


def test_rank_penalties_add_up_to_one_over_the_rollouts_that_exist():
    rollouts = rollouts_of([[[0, 0], [0, 1], [1, 1], [-1, -1]]], [[1, 1]], invalid=[(0, 3)])
    rollouts = replace(rollouts, lengths_BG=torch.tensor([[2, 2, 2, 0]]))
    discounts = 1 / torch.log2(torch.tensor([2.0, 3.0, 4.0]))
    expected = -discounts / discounts.sum()
    found = RankAware.build(tiny_alignment(), RankAwareConfig())(rollouts)[0]
    torch.testing.assert_close(found[:3], torch.tensor([expected[0], expected[1], 1.0]))


def test_an_id_without_an_item_is_worth_the_largest_penalty_even_without_a_hit():
    codes = [[[0, 0], [0, 1], [1, 0], [1, 1]]]
    reward = RankAware.build(tiny_alignment(), RankAwareConfig())
    found = reward(rollouts_of(codes, [[3, 3]], invalid=[(0, 2)]))
    torch.testing.assert_close(found, torch.tensor([[0, 0, -0.3904, 0]]), rtol=0, atol=5e-5)


def test_rank_aware_refuses_samples():
    with pytest.raises(DataError, match=r"rollouts of a beam.*got samples"):
        RankAware(RankAwareConfig())(replace(tiny_rollouts(), ranked=False))


def test_validity_is_one_for_items_and_the_set_value_for_others():
    rollouts = rollouts_of([[[0], [1], [2]]], [[0]], invalid=[(0, 1)])
    for invalid in (-1.0, 0.0):
        reward = Validity.build(tiny_alignment(), ValidityConfig(invalid=invalid))
        assert reward(rollouts).tolist() == [[1, invalid, 1]]


def test_a_mixture_is_the_weighted_sum_and_keeps_its_parts():
    context, rollouts = tiny_alignment(), tiny_rollouts()
    configs = {"exact": ExactConfig(weight=2), "prefix": PrefixConfig(weight=0.5)}
    mixture = Mixture.build(context, configs)
    total, parts = mixture(rollouts)
    assert list(parts) == ["exact", "prefix"]
    torch.testing.assert_close(total, 2 * parts["exact"] + 0.5 * parts["prefix"])
    torch.testing.assert_close(parts["prefix"], Prefix.build(context, PrefixConfig())(rollouts))
    logged = mixture.summary(rollouts, total, parts)
    known = parts["exact"][rollouts.real_BG]
    torch.testing.assert_close(logged["exact_mean"], known.mean())
    torch.testing.assert_close(logged["exact_std"], known.std(correction=0))
    assert logged["nan_share"] == 0 and 0 <= logged["silent_share"] < 1


def test_a_mixture_counts_nan_and_leaves_it():
    rollouts = tiny_rollouts()
    gaps = torch.zeros(rollouts.rows_BG.shape)
    gaps[0, :2] = torch.nan
    exact = Exact()
    mixture = Mixture((("exact", exact, 1.0), ("judge", lambda _: gaps, 1.0)))
    total, parts = mixture(rollouts)
    assert torch.equal(total.isnan(), gaps.isnan())
    logged = mixture.summary(rollouts, total, parts)
    assert logged["nan_share"] == pytest.approx(2 / int(rollouts.real_BG.sum()))
    assert logged["judge_mean"] == 0 and logged["exact_mean"] > 0
    only_logged = Mixture((("exact", exact, 1.0), ("judge", lambda _: gaps, 0.0)))
    torch.testing.assert_close(only_logged(rollouts)[0], exact(rollouts))


def test_silent_groups_are_those_with_one_value():
    rollouts = rollouts_of([[[0], [1]], [[1], [2]], [[2], [3]]], [[0], [0], [0]])
    mixture = Mixture((("exact", Exact(), 1.0),))
    logged = mixture.summary(rollouts, *mixture(rollouts))
    assert logged["silent_share"] == pytest.approx(2 / 3)


def test_settings_that_cannot_work_say_so():
    with pytest.raises(ConfigError, match=r"prefix.steps must be one of"):
        PrefixConfig(steps="half")
    with pytest.raises(ConfigError, match=r"validity.invalid must be below 1"):
        ValidityConfig(invalid=2)
    with pytest.raises(ConfigError, match="different names"):
        Mixture((("exact", Exact(), 1.0), ("exact", Exact(), 1.0)))
    with pytest.raises(ConfigError, match="did you mean 'exact'"):
        methods.resolve("rewards", "exakt")
