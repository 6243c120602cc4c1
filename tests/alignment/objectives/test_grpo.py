"""Advantages, GRPO, ECPO and GBPO: values, gradients where policy = sampled, and their bounds."""

from dataclasses import replace
from math import exp, log

import pytest
import torch

from sidrec.alignment.objectives.advantages import scored, silent, standardised
from sidrec.alignment.objectives.ecpo import Ecpo, EcpoConfig, early_clipped
from sidrec.alignment.objectives.gbpo import Gbpo, GbpoConfig, bounds_of
from sidrec.alignment.objectives.grpo import (
    Grpo,
    GrpoConfig,
    clipped_gains,
    k3,
    over_group,
    ratios,
)
from sidrec.errors import ConfigError, DataError
from sidrec.testing.objectives import gradients, groups_of, tiny_groups

ONE_HIT = torch.tensor([[1.0] + [0.0] * 15], dtype=torch.float64)
ALL_16 = torch.ones(1, 16, dtype=torch.bool)


def bare(objective_class=Grpo, **changes):
    config_class = objective_class.config_class
    base = {"nll_weight": 0.0} | ({"kl_weight": 0.0} if objective_class is Grpo else {})
    return objective_class(config_class(**(base | changes)))


def off_policy(seed=1):
    """Rollouts whose policy has moved since, and a reference elsewhere still."""
    example, random = tiny_groups(), torch.Generator().manual_seed(seed)
    codes = example.mask_BGL
    sampled = example.policy_BGL + 0.4 * torch.randn(codes.shape, generator=random).double() * codes
    reference = example.policy_BGL - torch.rand(codes.shape, generator=random).double() * codes
    return replace(example, sampled_BGL=sampled.detach(), reference_BGL=reference.detach())


@pytest.mark.parametrize(
    ("std", "hit", "miss"), [("population", 3.8714, -0.2581), ("sample", 3.7485, -0.2499)]
)
def test_one_hit_in_sixteen_has_the_advantages_of_its_std(std, hit, miss):
    found = standardised(ONE_HIT, ALL_16, std=std)[0]
    assert found[0].item() == pytest.approx(hit, abs=5e-5)
    assert found[1:].tolist() == pytest.approx([miss] * 15, abs=5e-5)
    assert found.sum().item() == pytest.approx(0, abs=1e-12)


def test_advantages_ignore_a_constant_and_a_scale_and_follow_a_permutation():
    random = torch.Generator().manual_seed(0)
    rewards = torch.randn(3, 8, generator=random, dtype=torch.float64)
    real = torch.ones(3, 8, dtype=torch.bool)
    found = standardised(rewards, real)
    torch.testing.assert_close(standardised(rewards + 7, real), found)
    torch.testing.assert_close(standardised(rewards * 50, real), found, rtol=1e-3, atol=1e-3)
    exact = standardised(rewards, real, floor=0.0)
    torch.testing.assert_close(standardised(rewards * 50, real, floor=0.0), exact)
    order = torch.randperm(8, generator=random)
    torch.testing.assert_close(standardised(rewards[:, order], real), found[:, order])


def test_groups_that_say_nothing_have_no_advantage_at_all():
    rewards = torch.tensor([[0.1] * 3, [0.1, 0.1, 9.0], [5.0, 9.0, 9.0], [1.0, 2.0, 3.0]])
    real = torch.tensor([[True] * 3, [True, True, False], [True, False, False], [False] * 3])
    assert silent(rewards, real).all()
    assert not standardised(rewards, real).any()  # exactly 0, though 0.1 is no binary fraction
    assert not silent(rewards, torch.ones_like(real))[1:].any()
    many = torch.linspace(-3, 3, 101)[:, None].expand(-1, 7)  # means of which round
    assert (many.mean(1) != many[:, 0]).any()
    assert not standardised(many, torch.ones_like(many, dtype=torch.bool)).any()


def test_a_rollout_without_a_reward_is_as_if_it_had_not_been_written():
    rewards = torch.tensor([[1.0, torch.nan, 0.0, torch.inf, 0.5]]).double()
    real = torch.ones_like(rewards, dtype=torch.bool)
    kept = scored(rewards, real)
    assert kept.tolist() == [[True, False, True, False, True]]
    found = standardised(rewards, kept)
    expected = standardised(rewards[:, [0, 2, 4]], real[:, :3])
    torch.testing.assert_close(found[:, [0, 2, 4]], expected)
    assert not found[:, [1, 3]].any()
    policy = -torch.rand(1, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    loss, found = gradients(bare(), groups_of(policy, rewards))
    fewer, other = gradients(bare(), groups_of(policy[:, [0, 2, 4]], rewards[:, [0, 2, 4]]))
    torch.testing.assert_close(loss, fewer)
    torch.testing.assert_close(found["policy_BGL"][:, [0, 2, 4]], other["policy_BGL"])
    assert not found["policy_BGL"][:, [1, 3]].any()
    _, parts = bare()(groups_of(policy, rewards))
    assert parts["missing_rewards"].item() == pytest.approx(2 / 5)
    assert parts["reward"].item() == pytest.approx(0.5)


def test_on_policy_the_loss_is_0_and_the_gradient_is_minus_the_advantage():
    example = tiny_groups()
    loss, found = gradients(bare(), example)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    real, num = example.real_BG, example.real_BG.sum(1)
    advantages = standardised(example.rewards_BG, real)
    expected = -(advantages / num[:, None])[..., None] * example.mask_BGL
    expected = expected / example.lengths_BG.clamp_min(1)[..., None] / 4
    torch.testing.assert_close(found["policy_BGL"], expected)


def test_grpo_ecpo_and_gbpo_have_one_gradient_on_policy_where_advantages_are_good():
    example = tiny_groups()
    _, grpo = gradients(bare(), example)
    _, ecpo = gradients(bare(Ecpo), example)
    torch.testing.assert_close(ecpo["policy_BGL"], grpo["policy_BGL"])
    _, gbpo = gradients(bare(Gbpo), example)
    good = standardised(example.rewards_BG, example.real_BG) >= 0
    torch.testing.assert_close(gbpo["policy_BGL"][good], grpo["policy_BGL"][good])
    assert (gbpo["policy_BGL"][~good] <= grpo["policy_BGL"][~good] + 1e-12).all()


def test_the_clip_acts_only_where_it_would_be_passed_for_gain():
    ratio = torch.tensor([[[0.5, 1.1, 1.5]]] * 1, dtype=torch.float64, requires_grad=True)
    for sign, gains, slopes in (
        (1.0, [0.5, 1.1, 1.2], [1.0, 1.0, 0.0]), (-1.0, [-0.8, -1.1, -1.5], [0.0, -1.0, -1.0]),
    ):  # fmt: skip
        found = clipped_gains(ratio, torch.tensor([[sign]]), 0.2)
        assert found[0, 0].tolist() == pytest.approx(gains)
        (slope,) = torch.autograd.grad(found.sum(), ratio)
        assert slope[0, 0].tolist() == pytest.approx(slopes)
        free = clipped_gains(ratio, torch.tensor([[sign]]), 0.0)
        assert free[0, 0].tolist() == pytest.approx([sign * x for x in (0.5, 1.1, 1.5)])


def test_the_share_of_clipped_codes_is_reported():
    policy = torch.tensor([[[0.5, 0.05], [0.5, -0.5]]]).double() - 3
    example = groups_of(policy, torch.tensor([[1.0, 0.0]]), sampled_BGL=torch.full_like(policy, -3))
    _, parts = bare(clip=0.2)(example)
    assert parts["clipped_share"].item() == pytest.approx(2 / 4)  # e^.5 up, e^−.5 down


def test_k3_is_0_with_zero_slope_at_the_reference_and_its_formula_elsewhere():
    policy = torch.tensor([[[-1.0, -2.0]]], dtype=torch.float64, requires_grad=True)
    at = k3(policy, policy.detach())
    (slope,) = torch.autograd.grad(at.sum(), policy)
    assert not at.any() and not slope.any()
    found = k3(policy, torch.tensor([[[-1.5, -0.5]]]).double())
    expected = [exp(-0.5) + 0.5 - 1, exp(1.5) - 1.5 - 1]
    assert found[0, 0].tolist() == pytest.approx(expected, abs=1e-12)


def test_the_kl_is_paid_also_by_groups_that_say_nothing():
    example = off_policy()
    flat = replace(example, rewards_BG=torch.ones_like(example.rewards_BG))
    loss, parts = Grpo(GrpoConfig(kl_weight=0.5))(flat)
    kl_B = over_group(
        k3(example.policy_BGL, example.reference_BGL), example.mask_BGL, example.real_BG
    )
    assert loss.item() == pytest.approx(0.5 * kl_B.mean().item(), abs=1e-12)
    assert parts["silent_share"] == 1 and parts["kl_per_code"] > 0


def test_tokens_then_rollouts_then_contexts_are_averaged():
    values = torch.tensor([[[1.0, 3.0], [5.0, 99.0]], [[7.0, 9.0], [99.0, 99.0]]])
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]])
    real = torch.tensor([[True, True], [True, False]])
    assert over_group(values, mask, real).tolist() == [3.5, 8.0]


def test_the_mixture_is_the_weighted_sum_of_its_terms():
    example = off_policy()
    group, nll = bare()(example)[0], example.target_nats_B.mean()
    found = bare(nll_weight=0.5, group_weight=2.0)(example)[0]
    torch.testing.assert_close(found, 0.5 * nll + 2 * group)
    assert torch.equal(bare(nll_weight=1.0, group_weight=0.0)(example)[0], nll)


def test_a_bad_rollout_has_its_ratio_and_gradient_bounded_by_early_clipping():
    policy = torch.tensor([[[-0.1, -2.0], [-0.1, -2.0]]], dtype=torch.float64)
    sampled = torch.full_like(policy, -3.0)  # the policy has moved up by a factor of 18 and 2.7
    example = groups_of(policy, torch.tensor([[1.0, 0.0]]), sampled_BGL=sampled)
    early = early_clipped(policy, sampled, torch.tensor([[1.0, -1.0]]), 0.3)
    ratio = ratios(policy, early)[0]
    assert ratio[0].tolist() == pytest.approx([exp(2.9), exp(1.0)])
    assert ratio[1].tolist() == pytest.approx([1.3, 1.3])
    _, found = gradients(bare(Ecpo), example)
    bad = found["policy_BGL"][0, 1]
    assert bad.tolist() == pytest.approx([1.3 / 4 / (1 + 2e-4)] * 2)
    _, ppo = gradients(bare(), example)
    assert ppo["policy_BGL"][0, 1, 0] > 4  # unbounded in rho
    near = early_clipped(policy, policy + 0.1, torch.tensor([[-1.0, -1.0]]), 0.3)
    torch.testing.assert_close(near, policy + 0.1)  # a policy that went down is left as it is


@pytest.mark.parametrize(("prob", "expected"), [(0.5, 1.0), (0.2, 0.25), (0.01, 0.0101)])
def test_gbpo_hardly_pushes_down_what_is_unlikely_already(prob, expected):
    log_prob = torch.full((1, 2, 1), log(prob), dtype=torch.float64)
    for advantage, ratio in ((1.0, 1.0), (-1.0, expected)):
        bounds = bounds_of(log_prob, log_prob, torch.full((1, 2), advantage))
        assert ratios(log_prob, bounds)[0, 0, 0].item() == pytest.approx(ratio, abs=5e-5)


def test_gbpo_divides_by_whichever_is_larger():
    policy = torch.tensor([[[0.6, 0.1]]]).double().log()
    sampled = torch.tensor([[[0.2, 0.95]]]).double().log()
    good = bounds_of(policy, sampled, torch.tensor([[0.0]])).exp()
    bad = bounds_of(policy, sampled, torch.tensor([[-1.0]])).exp()
    assert good[0, 0].tolist() == pytest.approx([0.6, 0.95])
    assert bad[0, 0].tolist() == pytest.approx([0.4, 0.95])


def test_gradients_agree_with_finite_differences():
    """Away from the kinks of the clip, and for what is not stopped on purpose."""
    example = off_policy()
    objective = Grpo(GrpoConfig(kl_weight=0.3, nll_weight=0.5, clip=0.2))

    def loss(policy, target):
        return objective(replace(example, policy_BGL=policy, target_BL=target))[0]

    assert torch.autograd.gradcheck(loss, (example.policy_BGL, example.target_BL))


def test_stopped_denominators_get_no_gradient():
    """ECPO and GBPO: the gradient of a code is minus A rho, as if Dn were a number."""
    example = off_policy()
    advantages = standardised(example.rewards_BG, example.real_BG)
    bounds = bounds_of(example.policy_BGL, example.sampled_BGL, advantages)
    ratio = ratios(example.policy_BGL.detach(), bounds)
    share = example.mask_BGL / example.lengths_BG.clamp_min(1)[..., None]
    share = share / example.real_BG.sum(1)[:, None, None] / 4
    _, found = gradients(bare(Gbpo), example)
    torch.testing.assert_close(found["policy_BGL"], -advantages[..., None] * ratio * share)


def test_a_missing_reference_says_what_to_do():
    with pytest.raises(DataError, match=r"kl_weight = 0\.001 needs .* fill reference_BGL or set"):
        Grpo(GrpoConfig())(replace(tiny_groups(), reference_BGL=None))
    assert Grpo(GrpoConfig()).needs_reference and not bare().needs_reference


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match=r"grpo: group_weight and nll_weight are all 0"):
        GrpoConfig(group_weight=0.0)
    with pytest.raises(ConfigError, match=r"grpo\.clip must not be negative, got -1"):
        GrpoConfig(clip=-1)
    with pytest.raises(ConfigError, match=r"ecpo\.clip must be above 0, got 0"):
        EcpoConfig(clip=0)
    with pytest.raises(ConfigError, match=r"gbpo\.nll_weight must not be negative, got -1"):
        GbpoConfig(nll_weight=-1)
