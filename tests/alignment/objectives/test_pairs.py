"""SFT, DPO, S-DPO, SimPO and ORPO: the values and gradients that the papers' formulas give."""

from dataclasses import replace
from math import exp, log, log1p

import pytest
import torch

from sidrec.alignment.objectives.dpo import Dpo, DpoConfig, pair_nats
from sidrec.alignment.objectives.orpo import Orpo, OrpoConfig, log_odds
from sidrec.alignment.objectives.pairs import log_sum_exp_of_real, mean_of_real
from sidrec.alignment.objectives.s_dpo import SDpo, SDpoConfig, softmax_nats
from sidrec.alignment.objectives.sft import Sft, SftConfig
from sidrec.alignment.objectives.simpo import SimPo, SimPoConfig
from sidrec.errors import ConfigError, DataError
from sidrec.testing.objectives import gradients, leaf_codes, preferences_of, tiny_preferences


def random_pair(num_negatives=1, contexts=2, seed=0):
    random = torch.Generator().manual_seed(seed)
    full = torch.full((contexts, 1), 3), torch.full((contexts, num_negatives), 3)
    return preferences_of(*(leaf_codes(lengths, random) for lengths in full))


def moved(example, seed=5):
    """The same with a reference that is not the policy."""
    random = torch.Generator().manual_seed(seed)
    return replace(
        example,
        reference_positive_BP=-4 * torch.rand(example.positive_BP.shape, generator=random).double(),
        reference_negative_BM=-4 * torch.rand(example.negative_BM.shape, generator=random).double(),
    )


def value(objective, example):
    return objective(example)[0].item()


def test_sft_of_a_uniform_policy_is_levels_times_log_codes():
    uniform = torch.full((2, 1, 3), -log(256.0), dtype=torch.float64)
    example = preferences_of(uniform, uniform)
    assert value(Sft(SftConfig()), example) == pytest.approx(3 * log(256), abs=1e-9)


def test_sft_is_the_mean_over_the_positives_that_a_context_has():
    example = tiny_preferences()
    nats = -example.positive_BP.detach()
    expected = ((nats[0].mean() + nats[1, 0] + nats[2].mean() + nats[3, 0]) / 4).item()
    assert value(Sft(SftConfig()), example) == pytest.approx(expected, abs=1e-12)
    first = value(Sft(SftConfig(first_only=True)), example)
    assert first == pytest.approx(nats[:, 0].mean().item(), abs=1e-12)
    _, found = gradients(Sft(SftConfig()), example)
    assert found["positive_BPL"][0, 1, 0] == pytest.approx(-1 / 8)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_dpo_at_policy_equal_to_reference_is_log_2_with_gradients_of_half_beta(beta):
    loss, found = gradients(Dpo(DpoConfig(beta=beta)), random_pair(contexts=1))
    assert loss.item() == pytest.approx(0.6931471805599453, abs=1e-12)
    torch.testing.assert_close(
        found["positive_BPL"],
        torch.full((1, 1, 3), -beta / 2, dtype=torch.float64),
        atol=1e-12,
        rtol=0,
    )
    torch.testing.assert_close(
        found["negative_BML"],
        torch.full((1, 1, 3), beta / 2, dtype=torch.float64),
        atol=1e-12,
        rtol=0,
    )


def test_dpo_follows_its_formula_away_from_the_reference():
    example = moved(random_pair(num_negatives=3))
    D_w = example.positive_BP - example.reference_positive_BP
    D_l = example.negative_BM - example.reference_negative_BM
    expected = (1 + (-0.3 * (D_w - D_l)).exp()).log().mean()
    assert value(Dpo(DpoConfig(beta=0.3)), example) == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize(
    ("num_negatives", "expected"), [(1, 0.693147), (3, 1.386294), (15, 2.772589)]
)
def test_s_dpo_at_policy_equal_to_reference_counts_its_negatives(num_negatives, expected):
    example = random_pair(num_negatives)
    assert value(SDpo(SDpoConfig(beta=0.7)), example) == pytest.approx(expected, abs=1e-6)


def test_s_dpo_with_one_negative_is_dpo_in_value_and_gradient():
    example = moved(random_pair(contexts=3))
    loss, found = gradients(Dpo(DpoConfig(beta=0.4)), example)
    other_loss, other = gradients(SDpo(SDpoConfig(beta=0.4)), example)
    torch.testing.assert_close(other_loss, loss, rtol=0, atol=1e-12)
    for name in found:
        torch.testing.assert_close(other[name], found[name], rtol=0, atol=1e-12)


def test_s_dpo_shares_its_gradient_out_hardest_first():
    example = moved(random_pair(num_negatives=4, contexts=1))
    _, found = gradients(SDpo(SDpoConfig(beta=2.0)), example)
    shares = found["negative_BML"][0, :, 0] / found["negative_BML"][0, :, 0].sum()
    D_l = (example.negative_BM - example.reference_negative_BM).detach()[0]
    torch.testing.assert_close(shares, (2.0 * D_l).softmax(0))


def test_simpo_at_equal_scores_is_softplus_of_its_margin():
    same = torch.full((2, 1, 3), -1.3, dtype=torch.float64)
    for gamma, expected in ((0.0, 0.693147), (1.0, 1.313262)):
        found = value(SimPo(SimPoConfig(beta=2.0, gamma=gamma)), preferences_of(same, same))
        assert found == pytest.approx(expected, abs=1e-6)


def test_simpo_divides_each_side_by_its_own_length():
    positive = torch.tensor([[[-1.0, -2.0, -3.0]]]).double()
    negative = torch.tensor([[[-1.0, -2.0, 0.0]]]).double()
    example = preferences_of(positive, negative, negative_lengths_BM=torch.tensor([[2]]))
    margin = 2.5 * (-6 / 3 - -3 / 2) - 0.5
    found = value(SimPo(SimPoConfig(beta=2.5, gamma=0.5)), example)
    assert found == pytest.approx(log1p(exp(-margin)), abs=1e-12)


def test_orpo_at_equal_p_is_likelihood_plus_lam_log_2():
    same = torch.full((2, 1, 3), -1.3, dtype=torch.float64)
    found = value(Orpo(OrpoConfig(odds_weight=0.25)), preferences_of(same, same))
    assert found == pytest.approx(1.3 + 0.25 * 0.6931471806, abs=1e-9)


def test_orpo_follows_its_formula_on_the_odds_of_mean_probabilities():
    example = random_pair(contexts=1)
    p_w, p_l = (x.sum().div(3).exp().item() for x in (example.positive_BPL, example.negative_BML))
    ratio = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
    expected = -log(p_w) + 0.1 * log(1 + 1 / ratio)
    assert value(Orpo(OrpoConfig()), example) == pytest.approx(expected, abs=1e-12)


def test_log_odds_are_exact_in_the_middle_and_finite_at_both_ends():
    middle = torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
    torch.testing.assert_close(log_odds(middle.log()), (middle / (1 - middle)).log())
    ends = torch.tensor([0.0, -1e-30, -1e4], requires_grad=True)
    log_odds(ends).sum().backward()
    assert log_odds(ends).isfinite().all() and ends.grad.isfinite().all()


def test_sft_weight_adds_the_likelihood_of_the_first_positive():
    example = tiny_preferences()
    nats = -example.positive_BP[:, 0].mean().item()
    for objective_class, config_class in (
        (Dpo, DpoConfig), (SDpo, SDpoConfig), (SimPo, SimPoConfig),
    ):  # fmt: skip
        without = value(objective_class(config_class()), example)
        found = value(objective_class(config_class(sft_weight=0.3)), example)
        assert found == pytest.approx(without + 0.3 * nats, abs=1e-12)


def test_rpo_at_policy_equal_to_reference_is_log_2_plus_eta_nats():
    example = random_pair(contexts=1)
    found = value(Dpo(DpoConfig(sft_weight=0.5)), example)
    assert found == pytest.approx(0.6931471806 - 0.5 * example.positive_BP.item(), abs=1e-9)


def test_a_context_without_negatives_weighs_nothing_and_is_counted():
    example = tiny_preferences()  # the last of four has none
    loss, parts = Dpo(DpoConfig())(example)
    assert loss.item() == pytest.approx(0.75 * 0.6931471806, abs=1e-9)
    assert parts["contrast"].item() == pytest.approx(0.6931471806, abs=1e-9)
    assert parts["no_negatives"].item() == pytest.approx(0.25)
    _, found = gradients(Dpo(DpoConfig()), example)
    assert not found["positive_BPL"][3].any()
    _, found = gradients(Orpo(OrpoConfig()), example)
    assert (found["positive_BPL"][3, 0] == -1 / 12).all()


def test_padded_negatives_weigh_nothing():
    example = tiny_preferences()
    short = replace(
        example,
        negative_BML=example.negative_BML.detach()[1:2, :2],
        positive_BPL=example.positive_BPL.detach()[1:2],
        positive_lengths_BP=example.positive_lengths_BP[1:2],
        negative_lengths_BM=example.negative_lengths_BM[1:2, :2],
        reference_positive_BP=example.reference_positive_BP[1:2] - 1,
        reference_negative_BM=example.reference_negative_BM[1:2, :2],
    )
    long = replace(
        short,
        negative_BML=example.negative_BML.detach()[1:2],
        negative_lengths_BM=example.negative_lengths_BM[1:2],
        reference_negative_BM=example.reference_negative_BM[1:2],
    )
    for objective in (Dpo(DpoConfig()), SDpo(SDpoConfig()), SimPo(SimPoConfig())):
        assert value(objective, long) == pytest.approx(value(objective, short), abs=1e-12)


def test_gradients_agree_with_finite_differences():
    example = moved(tiny_preferences())
    objectives = (
        Sft(SftConfig()), Dpo(DpoConfig(sft_weight=0.2)), SDpo(SDpoConfig(beta=0.5)),
        SimPo(SimPoConfig()), Orpo(OrpoConfig(odds_weight=0.5)),
    )  # fmt: skip

    def loss(objective):
        return lambda positive, negative: objective(
            replace(example, positive_BPL=positive, negative_BML=negative)
        )[0]

    for objective in objectives:
        leaves = (example.positive_BPL, example.negative_BML)
        assert torch.autograd.gradcheck(loss(objective), leaves)


def test_pure_functions_take_a_context_apart():
    margins = torch.tensor([[1.0, -2.0], [0.5, 9.0]]).double()
    real = torch.tensor([[True, True], [True, False]])
    torch.testing.assert_close(pair_nats(margins, 0.5), (1 + (-0.5 * margins).exp()).log())
    expected = torch.tensor([log(1 + exp(-1) + exp(2)), log(1 + exp(-0.5))]).double()
    torch.testing.assert_close(softmax_nats(margins, real, 1.0), expected)
    torch.testing.assert_close(mean_of_real(margins, real), torch.tensor([-0.5, 0.5]).double())
    none = torch.zeros_like(real)
    assert (log_sum_exp_of_real(margins, none) < -1e29).all()
    assert not softmax_nats(margins, none, 1.0).any() and not mean_of_real(margins, none).any()


def test_a_missing_reference_says_what_to_fill():
    bare = replace(random_pair(), reference_negative_BM=None)
    for objective in (Dpo(DpoConfig()), SDpo(SDpoConfig())):
        with pytest.raises(DataError, match=r"under the reference, got none; fill reference_posi"):
            objective(bare)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match=r"dpo\.beta must be above 0, got 0"):
        DpoConfig(beta=0)
    with pytest.raises(ConfigError, match=r"s_dpo\.sft_weight must not be negative, got -1"):
        SDpoConfig(sft_weight=-1)
    with pytest.raises(ConfigError, match=r"simpo\.gamma must not be negative, got -1"):
        SimPoConfig(gamma=-1)
    with pytest.raises(ConfigError, match=r"orpo\.odds_weight must not be negative, got -1"):
        OrpoConfig(odds_weight=-1)
