"""A2PO: the judge amplifies and never flips; its controls; groups that were judged in part."""

from dataclasses import replace

import pytest
import torch

from sidrec.alignment.objectives.a2po import A2po, A2poConfig, agreement
from sidrec.alignment.objectives.advantages import standardised
from sidrec.alignment.objectives.grpo import Grpo, GrpoConfig
from sidrec.errors import ConfigError
from sidrec.testing.objectives import gradients, groups_of, tiny_groups


def fused(example, **changes):
    """(B, G) advantages, read off the gradient of an on-policy group of one-code rollouts."""
    config = A2poConfig(**({"kl_weight": 0.0} | changes))
    _, found = gradients(A2po(config), example)
    num_BG = example.real_BG.sum(1, keepdim=True) * len(example.rewards_BG)
    return -found["policy_BGL"][..., 0] * num_BG


def random_groups(seed=0, **changes):
    random = torch.Generator().manual_seed(seed)
    shape = (20, 8)
    return groups_of(
        -torch.rand(*shape, 1, generator=random).double(),
        torch.randn(shape, generator=random).double(),
        semantic_BG=torch.randn(shape, generator=random).double(),
        judged_BG=torch.ones(shape, dtype=torch.bool),
        **changes,
    )


def advantages(example):
    return tuple(
        standardised(rewards, example.real_BG)
        for rewards in (example.rewards_BG, example.semantic_BG)
    )


def test_lambda_is_the_ratio_of_sizes_where_signs_agree():
    business = torch.tensor([[1.0, 1.0, -2.0, 1.0, 0.0, 1e-9, 1.0, 1e-9]], dtype=torch.float64)
    semantic = torch.tensor([[0.5, 2.0, -2.0, -1.0, 1.0, 1.0, 0.0, 1e-9]], dtype=torch.float64)
    found = agreement(business, semantic)[0].tolist()
    assert found == pytest.approx([0.5, 0.5, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], abs=1e-7)


def test_a_smaller_semantic_advantage_adds_its_square_and_a_larger_one_doubles():
    example = random_groups()
    business, semantic = advantages(example)
    same = business.sign() == semantic.sign()
    smaller = semantic.abs() <= business.abs()
    expected = torch.where(smaller, semantic**2 / business, business)
    expected = business + torch.where(same, expected, torch.zeros_like(expected))
    torch.testing.assert_close(fused(example), expected, rtol=0, atol=1e-6)


def test_the_sign_is_that_of_business_and_the_size_up_to_twice_it():
    example = random_groups(1)
    business, _ = advantages(example)
    found = fused(example)
    assert (found.sign() == business.sign()).all()
    assert (found.abs() >= business.abs() - 1e-12).all()
    assert (found.abs() <= 2 * business.abs() + 1e-12).all()
    assert ((found - business).abs() > 1e-6).any()


def test_equal_rewards_double_the_advantage():
    example = random_groups(2)
    example = replace(example, semantic_BG=3 * example.rewards_BG + 1)
    business, _ = advantages(example)
    torch.testing.assert_close(fused(example), 2 * business, rtol=1e-3, atol=1e-3)


def test_a_constant_business_reward_keeps_the_judge_silent():
    example = random_groups(3)
    flat = replace(example, rewards_BG=torch.full_like(example.rewards_BG, 0.3))
    assert not fused(flat).any()
    assert fused(flat, fusion="advantage_sum").any()
    _, parts = A2po(A2poConfig(kl_weight=0.0))(flat)
    assert parts["silent_share"] == 1 and parts["gate_open_rate"] == 0


def test_scales_of_both_rewards_do_not_matter():
    example = random_groups(4)
    scaled = replace(
        example, rewards_BG=example.rewards_BG * 40 - 3, semantic_BG=example.semantic_BG * 0.2 + 9
    )
    torch.testing.assert_close(fused(scaled), fused(example), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("fusion", ["a2po", "advantage_sum", "reward_sum", "business"])
def test_where_nothing_was_judged_it_is_grpo_to_the_bit(fusion):
    example = tiny_groups()
    settings = {"nll_weight": 0.3, "kl_weight": 0.01}
    expected, gradient = gradients(Grpo(GrpoConfig(**settings)), example)
    unjudged = (
        replace(example, judged_BG=torch.zeros_like(example.judged_BG)),
        replace(example, semantic_BG=None, judged_BG=None),
        replace(example, semantic_BG=torch.full_like(example.rewards_BG, torch.nan)),
    )
    for bare in unjudged:
        loss, found = gradients(A2po(A2poConfig(fusion=fusion, **settings)), bare)
        assert torch.equal(loss, expected)
        for name in found:
            assert torch.equal(found[name], gradient[name])


def test_only_judged_groups_are_amplified():
    example = random_groups(5)
    judged = torch.zeros_like(example.judged_BG)
    judged[::2] = True
    whole, part = fused(example), fused(replace(example, judged_BG=judged))
    business, _ = advantages(example)
    torch.testing.assert_close(part[::2], whole[::2])
    torch.testing.assert_close(part[1::2], business[1::2])
    _, parts = A2po(A2poConfig(kl_weight=0.0))(replace(example, judged_BG=judged))
    assert parts["judged_share"].item() == pytest.approx(0.5)


def test_an_answer_that_could_not_be_read_is_not_judged():
    example = random_groups(6)
    unread = example.judged_BG.clone()
    unread[:, 3] = False
    by_mask = replace(example, judged_BG=unread)
    semantic = example.semantic_BG.clone()
    semantic[:, 3] = torch.nan
    by_nan = replace(example, semantic_BG=semantic)
    found = fused(by_mask)
    torch.testing.assert_close(fused(by_nan), found)
    business, _ = advantages(example)
    torch.testing.assert_close(found[:, 3], business[:, 3])
    among = standardised(example.semantic_BG, unread)
    expected = business + agreement(business, among) * among
    torch.testing.assert_close(found, expected)
    single = torch.zeros_like(unread)
    single[:, 0] = True  # one answer has nobody to be compared with
    torch.testing.assert_close(fused(replace(example, judged_BG=single)), business)


def test_the_controls_follow_their_formulas():
    example = random_groups(7)
    business, semantic = advantages(example)
    torch.testing.assert_close(fused(example, fusion="business"), business)
    torch.testing.assert_close(fused(example, fusion="advantage_sum"), business + semantic)
    summed = standardised(example.rewards_BG + example.semantic_BG, example.real_BG)
    torch.testing.assert_close(fused(example, fusion="reward_sum"), summed)


def test_an_unread_answer_counts_as_the_mean_in_the_sum_of_rewards():
    example = random_groups(8)
    judged = example.judged_BG.clone()
    judged[:, 0] = False
    semantic = example.semantic_BG.clone()
    semantic[:, 0] = semantic[:, 1:].mean(1)
    expected = standardised(example.rewards_BG + semantic, example.real_BG)
    found = fused(replace(example, judged_BG=judged), fusion="reward_sum")
    torch.testing.assert_close(found, expected)


def test_agreement_is_reported():
    rewards = torch.tensor([[1.0, 0.0, 1.0, 0.0]]).double()
    example = groups_of(
        -torch.ones(1, 4, 1).double(),
        rewards,
        semantic_BG=torch.tensor([[1.0, 0.0, 0.0, 1.0]]).double(),
        judged_BG=torch.ones(1, 4, dtype=torch.bool),
    )
    _, parts = A2po(A2poConfig(kl_weight=0.0))(example)
    assert parts["sign_agreement"].item() == pytest.approx(0.5)
    assert parts["gate_open_rate"].item() == pytest.approx(0.5)
    assert parts["mean_lambda"].item() == pytest.approx(0.5, abs=1e-6)
    assert parts["judged_share"] == 1


def test_it_needs_a_reference_only_for_a_kl():
    assert A2po(A2poConfig()).needs_reference
    assert not A2po(A2poConfig(kl_weight=0.0)).needs_reference
    with pytest.raises(ConfigError, match=r"a2po\.kl_weight must not be negative, got -1"):
        A2poConfig(kl_weight=-1)
