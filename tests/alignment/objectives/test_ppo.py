"""PPO: generalised advantages, the reward with KL, both clips, and what reaches the value head."""

from dataclasses import replace

import pytest
import torch

from sidrec.alignment.objectives.grpo import Grpo, GrpoConfig, group_loss
from sidrec.alignment.objectives.ppo import Ppo, PpoConfig, gae, value_errors, whitened
from sidrec.errors import ConfigError, DataError
from sidrec.testing.objectives import gradients, tiny_groups


def bare(**changes):
    return Ppo(PpoConfig(**({"kl_weight": 0.0, "whiten": False} | changes)))


def with_values(seed=0):
    """Values, a past and a reference that differ from each other."""
    example, random = tiny_groups(), torch.Generator().manual_seed(seed)
    codes = example.mask_BGL

    def noise(size):
        return size * torch.randn(codes.shape, generator=random, dtype=torch.float64) * codes

    values = noise(1.0)
    return replace(
        example,
        values_BGL=values.requires_grad_(),
        sampled_values_BGL=(values + noise(0.3)).detach(),
        sampled_BGL=(example.policy_BGL + noise(0.3)).detach(),
        reference_BGL=(example.policy_BGL + noise(0.5)).detach(),
    )


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_advantages_are_the_discounted_sum_of_surprises(lam):
    example = with_values()
    random = torch.Generator().manual_seed(3)
    rewards = torch.randn(4, 4, 3, generator=random).double() * example.mask_BGL
    values = example.sampled_values_BGL
    found = gae(rewards, values, example.mask_BGL, lam)
    for b in range(4):
        for g in range(4):
            length = int(example.lengths_BG[b, g])
            after = [*values[b, g, 1:length].tolist(), 0.0][:length]
            surprises = [rewards[b, g, t] + after[t] - values[b, g, t] for t in range(length)]
            for t in range(length):
                expected = sum(lam ** (k - t) * surprises[k] for k in range(t, length))
                assert found[b, g, t].item() == pytest.approx(float(expected), abs=1e-12)
            assert not found[b, g, length:].any()


def test_at_lambda_1_advantages_are_returns_less_values_and_at_0_one_step_ahead():
    values = torch.tensor([[[0.5, 0.2, 0.1]]]).double()
    rewards = torch.tensor([[[0.0, 0.0, 1.0]]]).double()
    codes = torch.ones_like(values)
    assert gae(rewards, values, codes, 1.0)[0, 0].tolist() == pytest.approx([0.5, 0.8, 0.9])
    assert gae(rewards, values, codes, 0.0)[0, 0].tolist() == pytest.approx([-0.3, -0.1, 0.9])


def test_without_values_and_kl_the_gradient_on_policy_is_that_of_a_group_with_these_advantages():
    example = tiny_groups()
    _, found = gradients(bare(lam=1.0), example)
    policy = example.policy_BGL.detach().requires_grad_()
    scored = example.real_BG
    rewards = torch.where(scored, example.rewards_BG, torch.zeros_like(example.rewards_BG))
    loss_B, _ = group_loss(replace(example, policy_BGL=policy), rewards, scored, clip=0.2)
    loss_B.mean().backward()
    torch.testing.assert_close(found["policy_BGL"], policy.grad)


def test_ppo_and_grpo_agree_on_policy_when_values_are_the_mean_of_the_group():
    """Two full groups of unit spread, lambda 1: r − mean is the advantage of both."""
    example = tiny_groups(contexts=2)
    rewards = torch.tensor([[1.0, -1.0, 1.0, -1.0]] * 2).double() + 3
    means = torch.full_like(example.policy_BGL, 3.0) * example.mask_BGL
    example = replace(example, rewards_BG=rewards, values_BGL=means, sampled_values_BGL=means)
    _, ppo = gradients(bare(lam=1.0), example)
    _, grpo = gradients(Grpo(GrpoConfig(kl_weight=0.0)), example)
    torch.testing.assert_close(ppo["policy_BGL"], grpo["policy_BGL"], rtol=2e-4, atol=0)


def test_the_reward_comes_at_the_last_code_less_the_kl_of_every_code():
    example = with_values()
    objective = Ppo(PpoConfig(kl_weight=0.1))
    rewards, parts = objective._rewards(example, example.real_BG, example.mask_BGL)
    kl = (example.sampled_BGL - example.reference_BGL) * example.mask_BGL
    for b, g in ((0, 1), (1, 1), (2, 2)):
        length = int(example.lengths_BG[b, g])
        expected = -0.1 * kl[b, g]
        expected[length - 1] += example.rewards_BG[b, g]
        torch.testing.assert_close(rewards[b, g], expected)
    assert not rewards[3, 2:].any()  # a reward of 7 where there is no rollout
    mean = kl.sum() / example.mask_BGL.sum()
    assert parts["kl_per_code"].item() == pytest.approx(mean.item())


def test_likelier_than_the_reference_costs_reward():
    example = tiny_groups()
    flat = replace(example, rewards_BG=torch.zeros_like(example.rewards_BG))
    moved = replace(flat, reference_BGL=(flat.policy_BGL - 1).detach() * flat.mask_BGL)
    _, found = gradients(bare(kl_weight=0.1), moved)
    assert (found["policy_BGL"][flat.mask_BGL > 0] > 0).all()
    _, found = gradients(bare(kl_weight=0.1), flat)
    assert not found["policy_BGL"].any()


def test_whitened_advantages_have_mean_0_and_spread_1_over_the_codes():
    example = with_values()
    advantages = gae(example.mask_BGL * 2, example.sampled_values_BGL, example.mask_BGL, 0.9)
    found = whitened(advantages, example.mask_BGL)[example.mask_BGL > 0]
    assert found.mean().item() == pytest.approx(0, abs=1e-12)
    assert found.std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_the_value_loss_pays_for_the_worse_of_value_and_clipped_value():
    values = torch.tensor([[[1.5, 0.9, 0.0]]], dtype=torch.float64, requires_grad=True)
    sampled, returns = torch.full_like(values, 1.0), torch.tensor([[[2.0, 1.0, 0.5]]]).double()
    found = value_errors(values, sampled, returns, 0.2)
    expected = [0.8**2 / 2, 0.1**2 / 2, 0.5**2 / 2]
    assert found[0, 0].tolist() == pytest.approx(expected)
    (slope,) = torch.autograd.grad(found.sum(), values)
    assert slope[0, 0].tolist() == pytest.approx([0.0, -0.1, -0.5])  # moved past the clip: 0
    free = value_errors(values, sampled, returns, 0.0)
    assert free[0, 0].tolist() == pytest.approx([0.125, 0.005, 0.125])


def test_policy_and_value_head_learn_apart():
    example = with_values()
    _, low = gradients(bare(value_weight=0.1, value_clip=0.0), example)
    _, high = gradients(bare(value_weight=0.3, value_clip=0.0), example)
    assert torch.equal(low["policy_BGL"], high["policy_BGL"])
    torch.testing.assert_close(high["values_BGL"], 3 * low["values_BGL"])
    at = gae(
        *bare()._rewards(example, example.real_BG, example.mask_BGL)[:1],
        example.sampled_values_BGL, example.mask_BGL, 0.95,
    )  # fmt: skip
    errors = example.values_BGL.detach() - (at + example.sampled_values_BGL)
    share = example.mask_BGL / example.lengths_BG.clamp_min(1)[..., None]
    share = share / example.real_BG.sum(1)[:, None, None] / 4
    torch.testing.assert_close(low["values_BGL"], 0.1 * errors * share)


def test_values_of_the_past_default_to_those_of_now_without_a_gradient():
    example = with_values()
    loss, found = gradients(bare(), replace(example, sampled_values_BGL=None))
    same, other = gradients(bare(), replace(example, sampled_values_BGL=example.values_BGL))
    assert torch.equal(loss, same)
    assert torch.equal(found["values_BGL"], other["values_BGL"])


def test_gradients_agree_with_finite_differences():
    example = with_values()
    objective = Ppo(PpoConfig(kl_weight=0.1, nll_weight=0.5, value_weight=0.3))

    def loss(policy, values, target):
        return objective(replace(example, policy_BGL=policy, values_BGL=values, target_BL=target))[
            0
        ]

    leaves = (example.policy_BGL, example.values_BGL, example.target_BL)
    assert torch.autograd.gradcheck(loss, leaves)


def test_a_rollout_without_a_reward_teaches_neither_policy_nor_values():
    example = with_values()
    rewards = example.rewards_BG.clone()
    rewards[0, 1] = torch.nan
    _, found = gradients(Ppo(PpoConfig()), replace(example, rewards_BG=rewards))
    assert not found["policy_BGL"][0, 1].any() and not found["values_BGL"][0, 1].any()
    lengths = example.lengths_BG.clone()
    lengths[0, 1] = 0
    _, without = gradients(Ppo(PpoConfig()), replace(example, lengths_BG=lengths))
    assert torch.equal(found["policy_BGL"], without["policy_BGL"])  # nor whitens the others
    rewards[0, 1] = 100.0
    _, other = gradients(Ppo(PpoConfig()), replace(example, rewards_BG=rewards))
    assert other["policy_BGL"][0, 1].any()


def test_missing_inputs_say_what_to_fill():
    with pytest.raises(DataError, match=r"estimates of a value head, got none; fill values_BGL"):
        bare()(replace(tiny_groups(), values_BGL=None))
    with pytest.raises(DataError, match=r"ppo\.kl_weight = 0\.05 needs .* or set kl_weight = 0"):
        Ppo(PpoConfig())(replace(tiny_groups(), reference_BGL=None))
    assert bare().needs_values and not bare().needs_reference


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match=r"ppo\.lam must be in \[0, 1\], got 2"):
        PpoConfig(lam=2)
    with pytest.raises(ConfigError, match=r"ppo\.value_weight must be above 0, got 0"):
        PpoConfig(value_weight=0)
