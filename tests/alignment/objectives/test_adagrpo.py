"""AdaGRPO: its two identities to the bit, both gates, and the controls."""

from dataclasses import replace

import pytest
import torch

from sidrec.alignment.objectives.adagrpo import (
    AdaGrpo,
    AdaGrpoConfig,
    auc,
    correlation,
    entropies,
    policy_ranks,
)
from sidrec.alignment.objectives.grpo import Grpo, GrpoConfig
from sidrec.errors import ConfigError, DataError
from sidrec.testing.objectives import gradients, groups_of, tiny_groups


def gated(**changes):
    return AdaGrpo(AdaGrpoConfig(**changes))


def plain(group_weight, nll_weight=1.0):
    return Grpo(GrpoConfig(kl_weight=0.0, nll_weight=nll_weight, group_weight=group_weight))


def require_same_bits(objective, other, example):
    loss, found = gradients(objective, example)
    other_loss, other_found = gradients(other, example)
    assert torch.equal(loss, other_loss)
    for name in found:
        assert torch.equal(found[name], other_found[name]), name


def split():
    """Four contexts that pass both gates, the first alone, the second alone, and neither."""
    rollouts = torch.tensor([-1.0, -2.0]).double()[None, :, None].expand(4, 2, 3)
    target = torch.tensor([-5.0, -5.0, -0.5, -0.5]).double()[:, None].repeat(1, 3)
    rewards = torch.tensor([[0.1, 0.2]] * 4).double()
    return groups_of(
        rollouts.clone().requires_grad_(),
        rewards,
        target_BL=target.requires_grad_(),
        target_rewards_B=torch.tensor([1.0, 0.0, 1.0, 0.0]).double(),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_open_gate_is_the_fixed_mixture_to_the_bit(dtype):
    for example in (tiny_groups(), split()):
        typed = {
            name: value.detach().to(dtype)
            for name, value in vars(example).items()
            if isinstance(value, torch.Tensor) and value.is_floating_point()
        }
        example = replace(example, **typed)
        require_same_bits(gated(gate="open", group_weight=0.37), plain(0.37), example)
    require_same_bits(gated(group_weight=0.37), plain(0.37), tiny_groups())  # both gates open


def test_a_closed_gate_or_a_weight_of_0_is_the_likelihood_to_the_bit():
    for objective in (gated(gate="closed"), gated(group_weight=0.0), gated(k_pi=99)):
        require_same_bits(objective, plain(0.0), tiny_groups())


def test_what_is_not_admitted_does_not_even_enter():
    example = tiny_groups()
    broken = replace(example, sampled_BGL=torch.full_like(example.policy_BGL, torch.nan))
    loss, found = gradients(gated(gate="closed"), broken)
    assert loss.isfinite() and not found["policy_BGL"].any()
    gated(gate="closed")(example)[0].backward()
    assert example.policy_BGL.grad is None and example.target_BL.grad is not None


def test_only_contexts_that_pass_both_gates_learn_from_rollouts():
    admitted = {
        "both": [True, False, False, False],
        "difficulty": [True, True, False, False],
        "discriminability": [True, False, True, False],
        "open": [True] * 4,
        "closed": [False] * 4,
    }
    for gate, expected in admitted.items():
        _, found = gradients(gated(gate=gate), split())
        assert found["policy_BGL"].abs().sum((1, 2)).gt(0).tolist() == expected, gate
        assert (found["target_BL"] == -0.25).all()
        _, parts = gated(gate=gate)(split())
        assert parts["admission_rate"].item() == sum(expected) / 4
        assert parts["difficult_rate"] == 0.5 and parts["discriminable_rate"] == 0.5
        assert parts["gate_correlation"] == 0


def test_the_mean_is_over_all_contexts_not_over_the_admitted():
    _, found = gradients(gated(), split())
    _, everyone = gradients(gated(gate="open"), split())
    torch.testing.assert_close(found["policy_BGL"][0], everyone["policy_BGL"][0], rtol=0, atol=0)


def test_the_rank_of_the_truth_counts_likelier_rollouts_that_are_not_it():
    policy = torch.tensor([[-1.0, -2.0, -3.0, -0.1, -4.0]]).double()[..., None]
    example = groups_of(
        policy,
        torch.zeros(1, 5),
        lengths_BG=torch.tensor([[1, 1, 1, 1, 0]]),
        hits_BG=torch.tensor([[False, False, False, True, False]]),
        target_BL=torch.tensor([[-2.5]]).double(),
        target_lengths_B=torch.tensor([1]),
    )
    assert policy_ranks(example).tolist() == [3]
    assert policy_ranks(replace(example, target_BL=torch.tensor([[-1.0]]))).tolist() == [1]
    for k_pi, rate in ((2, 1.0), (3, 0.0)):
        _, parts = gated(gate="difficulty", k_pi=k_pi)(example)
        assert parts["difficult_rate"] == rate
    _, parts = gated(gate="difficulty", difficulty="absent")(example)
    assert parts["difficult_rate"] == 0
    missed = replace(example, hits_BG=torch.zeros_like(example.hits_BG))
    _, parts = gated(gate="difficulty", difficulty="absent")(missed)
    assert parts["difficult_rate"] == 1


def test_auc_counts_wins_and_half_of_ties_among_others():
    rewards = torch.tensor([[0.1, 0.5, 0.9, 0.5], [0.1, 0.2, 0.3, 0.4]])
    others = torch.tensor([[True, True, True, False], [False] * 4])
    found = auc(torch.tensor([0.5, 9.0]), rewards, others)
    assert found.tolist() == pytest.approx([0.5, 0.0])


def test_auc_does_not_see_an_increasing_transform_of_rewards():
    random = torch.Generator().manual_seed(0)
    rewards, target = (torch.randn(s, generator=random).double() for s in ((50, 8), (50,)))
    others = torch.ones(50, 8, dtype=torch.bool)
    found = auc(target, rewards, others)
    torch.testing.assert_close(auc(target.exp() * 3, rewards.exp() * 3, others), found)


def test_a_perfect_judge_opens_the_second_gate_a_constant_shuts_it_a_random_one_opens_few():
    random = torch.Generator().manual_seed(0)
    policy = -torch.rand(400, 16, 1, generator=random).double() - 1
    example = groups_of(
        policy,
        torch.rand(400, 16, generator=random).double(),
        target_lengths_B=torch.ones(400),
        target_BL=-torch.ones(400, 1).double(),
    )
    rates = []
    for rewards, target in (
        (example.rewards_BG, torch.full((400,), 2.0)),
        (torch.full((400, 16), 0.3), torch.full((400,), 0.3)),
        (example.rewards_BG, torch.rand(400, generator=random)),
    ):
        judged = replace(example, rewards_BG=rewards, target_rewards_B=target)
        rates.append(gated()(judged)[1]["discriminable_rate"].item())
    assert rates[:2] == [1.0, 0.0]
    assert 0.1 < rates[2] < 0.3  # P(AUC >= .8) of a random judge is about .2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"discriminability": "margin", "margin": 0.2}, [True, False, True, False]),
        ({"discriminability": "margin", "margin": 0.7}, [True, False, False, False]),
        ({"discriminability": "rank", "k_r": 1}, [True, True, True, False]),
        ({"discriminability": "rank", "k_r": 2}, [True, True, True, False]),
        ({"discriminability": "auc", "theta": 1.0}, [True, False, True, False]),
        ({"discriminability": "auc", "theta": 0.5}, [True, True, True, False]),
    ],
)
def test_the_other_ways_to_tell_follow_their_formulas(settings, expected):
    example = replace(
        split(),
        rewards_BG=torch.tensor([[0.1, 0.2], [0.5, 0.5], [0.4, 0.0], [0.6, 0.7]]).double(),
        target_rewards_B=torch.tensor([1.0, 0.5, 0.9, 0.1]).double(),
    )
    _, found = gradients(gated(gate="discriminability", **settings), example)
    learns = found["policy_BGL"].abs().sum((1, 2)).gt(0)
    silent = torch.tensor([False, True, False, False])
    torch.testing.assert_close(learns, torch.tensor(expected) & ~silent)
    _, parts = gated(gate="discriminability", **settings)(example)
    assert parts["discriminable_rate"].item() == sum(expected) / 4


def test_rollouts_that_are_the_truth_are_not_compared_with_it():
    example = replace(split(), rewards_BG=torch.tensor([[0.1, 1.0]] * 4).double())
    _, parts = gated(theta=1.0)(example)
    assert parts["discriminable_rate"] == 0
    hits = torch.tensor([[False, True]] * 4)
    _, parts = gated(theta=1.0)(replace(example, hits_BG=hits))
    assert parts["discriminable_rate"] == 0.5
    _, parts = gated(theta=0.0)(replace(example, hits_BG=torch.ones_like(hits)))
    assert parts["discriminable_rate"] == 0  # nothing left to compare with


def test_a_truth_without_a_reward_is_not_discriminable():
    example = replace(split(), target_rewards_B=torch.full((4,), torch.nan))
    for discriminability in ("auc", "margin", "rank"):
        _, parts = gated(theta=0.0, discriminability=discriminability)(example)
        assert parts["discriminable_rate"] == 0


def test_the_gates_have_no_gradient_and_see_the_policy_of_now():
    """A context becomes easy when its truth becomes likely, and its rollouts fall silent."""
    example = split()
    easy = replace(example, target_BL=torch.full_like(example.target_BL, -0.1))
    _, found = gradients(gated(gate="difficulty"), easy)
    assert not found["policy_BGL"].any()


def test_quantiles_are_fixed_on_the_first_contexts_which_see_likelihood_alone():
    objective = gated(gate="difficulty", difficulty="nll_quantile", quantile=0.5, warmup_contexts=6)
    example = split()  # nats 15, 15, 1.5, 1.5
    for _ in range(2):
        _, found = gradients(objective, example)
        assert not found["policy_BGL"].any()
    assert objective.unsure.num_seen == 6
    assert objective.unsure.threshold.item() == pytest.approx(15.0)
    lower = replace(example, target_BL=example.target_BL - 1)
    _, found = gradients(objective, lower)
    assert found["policy_BGL"].abs().sum((1, 2)).gt(0).tolist() == [True, True, False, False]
    gradients(objective, replace(example, target_BL=example.target_BL * 100))
    assert objective.unsure.threshold.item() == pytest.approx(15.0)  # fixed
    other = gated(gate="difficulty", difficulty="nll_quantile", warmup_contexts=6)
    other.load_state_dict(objective.state_dict())
    require_same_bits(other, objective, lower)


def test_evaluation_does_not_warm_up():
    objective = gated(gate="difficulty", difficulty="entropy_quantile", warmup_contexts=3).eval()
    objective(tiny_groups())
    assert objective.unsure.num_seen == 0
    objective.train()(tiny_groups())
    assert objective.unsure.num_seen == 3


def test_the_lead_of_the_truth_is_compared_with_its_quantile_where_it_can_be():
    objective = gated(
        gate="discriminability", discriminability="margin_quantile", margin_quantile=0.5,
        warmup_contexts=3,
    )  # fmt: skip
    rewards = torch.tensor([[0.125, 0.25]] * 4).double()
    leads = torch.tensor([0.5, 0.125, 1.0, 0.25]).double()
    example = replace(split(), rewards_BG=rewards, target_rewards_B=0.25 + leads)
    unknown = replace(example, target_rewards_B=torch.full((4,), torch.nan))
    assert objective(unknown)[1]["discriminable_rate"] == 0
    assert objective.lead.num_seen == 0
    _, found = gradients(objective, example)
    assert not found["policy_BGL"].any() and objective.lead.known
    assert objective.lead.threshold.item() == pytest.approx(0.5)  # of .5, .125 and 1
    _, found = gradients(objective, example)
    learns = found["policy_BGL"].abs().sum((1, 2)).gt(0)
    assert learns.tolist() == [True, False, True, False]
    with pytest.raises(ConfigError, match="take 'rank' and 'auc' to diagnose"):
        gated(discriminability="margin_quantile").diagnosed(example)


def test_gates_look_at_the_policy_without_dropout_where_it_is_given():
    example = split()
    still = replace(
        example,
        still_BG=torch.tensor([[-1.0, -2.0]] * 4).double(),
        still_target_B=torch.tensor([-0.5, -5.0, -0.5, -5.0]).double(),
    )
    _, found = gradients(gated(gate="difficulty"), still)
    assert found["policy_BGL"].abs().sum((1, 2)).gt(0).tolist() == [False, True, False, True]
    shares = torch.tensor([-1.0, -2.0]).double().softmax(0)
    torch.testing.assert_close(entropies(still), -(shares * shares.log()).sum().expand(4))


def test_entropy_is_that_of_the_policy_over_its_rollouts():
    policy = torch.tensor([[[-2.0], [-2.0], [-2.0], [-2.0]], [[-1.0], [-30.0], [-1.0], [0.0]]])
    lengths = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    found = entropies(groups_of(policy.double(), torch.zeros(2, 4), lengths_BG=lengths))
    expected = torch.tensor([4.0, 2.0]).double().log()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_the_random_gate_admits_its_rate_and_repeats_itself():
    policy = -torch.ones(2000, 2, 1).double()
    example = groups_of(policy, torch.tensor([[1.0, 0.0]] * 2000))
    objective, same = (gated(gate="random", random_rate=0.3, seed=4) for _ in range(2))
    first, second = (objective(example)[1]["admission_rate"].item() for _ in range(2))
    assert first == pytest.approx(0.3, abs=0.04) and first != second
    assert [same(example)[1]["admission_rate"].item() for _ in range(2)] == [first, second]
    resumed = gated(gate="random", random_rate=0.3, seed=4)
    resumed.load_state_dict(objective.state_dict())
    _, found = gradients(objective, example)
    _, other = gradients(resumed, example)
    assert torch.equal(found["policy_BGL"], other["policy_BGL"])
    for rate in (0.0, 1.0):
        _, parts = gated(gate="random", random_rate=rate)(example)
        assert parts["admission_rate"].item() == rate


def test_correlation_of_gates_is_phi():
    a = torch.tensor([True, True, False, False])
    assert correlation(a, a).item() == pytest.approx(1)
    assert correlation(a, ~a).item() == pytest.approx(-1)
    assert correlation(a, torch.ones_like(a)).item() == 0


def test_a_missing_reward_of_the_truth_says_what_to_do():
    bare = replace(tiny_groups(), target_rewards_B=None)
    with pytest.raises(DataError, match=r"gate = 'both' needs the reward of the truth, got none"):
        gated()(bare)
    assert gated(gate="difficulty")(bare)[0].isfinite()


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match=r"adagrpo\.theta must be in \[0, 1\], got 1\.5"):
        AdaGrpoConfig(theta=1.5)
    with pytest.raises(ConfigError, match=r"adagrpo\.k_pi must be at least 1, got 0"):
        AdaGrpoConfig(k_pi=0)
    with pytest.raises(ConfigError, match=r"adagrpo\.margin_quantile must be in \[0, 1\], got 2"):
        AdaGrpoConfig(margin_quantile=2)
