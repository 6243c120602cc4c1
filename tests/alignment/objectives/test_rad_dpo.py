"""RAD-DPO: what the method card says a faithful implementation must show."""

from dataclasses import replace
from math import log

import pytest
import torch

from sidrec.alignment.objectives.rad_dpo import (
    RadDpo,
    RadDpoConfig,
    detached_margins,
    list_nats,
    similarity_weights,
)
from sidrec.alignment.objectives.simpo import SimPo, SimPoConfig
from sidrec.errors import ConfigError, DataError
from sidrec.testing.objectives import gradients, leaf_codes, preferences_of, tiny_preferences

QUARTILES = torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64)


def bare(**changes):
    """The list term alone, without representations."""
    return RadDpo(RadDpoConfig(**({"sft_weight": 0.0, "rdrw": False} | changes)))


def random_lists(num_negatives=3, contexts=1, seed=0, **changes):
    random = torch.Generator().manual_seed(seed)
    full = torch.full((contexts, 1), 3), torch.full((contexts, num_negatives), 3)
    return preferences_of(*(leaf_codes(lengths, random) for lengths in full), **changes)


def test_equal_scores_count_the_negatives_in_the_power_of_beta():
    same = torch.full((2, 1, 3), -0.7, dtype=torch.float64)
    three = preferences_of(same, same.expand(2, 3, 3))
    one = preferences_of(same, same)
    assert bare()(three)[0].item() == pytest.approx(0.287682, abs=1e-6)
    for beta in (0.5, 1.0, 2.0, 5.0):
        assert bare(beta=beta)(three)[0].item() == pytest.approx(log(1 + 3**-beta), abs=1e-9)
        assert bare(beta=beta)(one)[0].item() == pytest.approx(0.6931471806, abs=1e-9)
        sdpo = bare(beta=beta, list_form="sdpo")
        assert sdpo(three)[0].item() == pytest.approx(1.3862943611, abs=1e-9)


def test_at_equal_scores_weights_have_no_effect():
    real = torch.ones(1, 3, dtype=torch.bool)
    for form in ("published", "sdpo"):
        weights = torch.tensor([[0.5, 0.7, 1.0]]).double()
        plain = list_nats(torch.zeros(1, 3).double(), real, 2.0, form)
        torch.testing.assert_close(list_nats(weights * 0.0, real, 2.0, form), plain)


def test_one_negative_of_weight_1_is_simpo_without_margin_in_both_forms():
    example = random_lists(num_negatives=1, contexts=4)
    expected, gradient = gradients(SimPo(SimPoConfig(beta=1.7, gamma=0.0)), example)
    for form in ("published", "sdpo"):
        loss, found = gradients(bare(beta=1.7, list_form=form), example)
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
        for name in found:
            torch.testing.assert_close(found[name], gradient[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("form", "expected"),
    [("published", (0.113, 0.836, 0.051)), ("sdpo", (0.298, 0.040, 0.662))],
)
def test_the_published_form_pushes_the_easiest_negative_and_the_other_the_hardest(form, expected):
    scores = torch.tensor([[-1.0, -3.0, -0.2]], dtype=torch.float64, requires_grad=True)
    nats = list_nats(0.0 - scores, torch.ones(1, 3, dtype=torch.bool), 1.0, form)
    nats.sum().backward()
    shares = scores.grad[0] / scores.grad[0].sum()
    torch.testing.assert_close(shares, torch.tensor(expected).double(), rtol=0, atol=1e-3)


def test_detachment_changes_no_value_and_takes_the_gradient_of_shared_codes():
    shared = torch.tensor([[1, 3, 0]])
    example = random_lists(shared_BM=shared, shared_any_BM=shared)
    loss, found = gradients(bare(), example)
    plain_loss, plain = gradients(bare(tlgd=False), example)
    assert torch.equal(loss, plain_loss)
    negative = found["negative_BML"][0]
    assert not negative[0, :1].any() and not negative[1].any()  # exactly 0
    assert torch.equal(negative[0, 1:], plain["negative_BML"][0, 0, 1:])
    assert torch.equal(negative[2], plain["negative_BML"][0, 2])
    assert torch.equal(found["positive_BPL"], plain["positive_BPL"])


def test_detachment_turns_a_cancelled_prefix_into_a_push_of_known_size():
    """One shared first code: the same number stands on both sides."""
    beta, tail = 2.0, torch.tensor([-0.5, -1.0]).double()
    found = {}
    for tlgd in (True, False):
        first = torch.tensor(-0.8, dtype=torch.float64, requires_grad=True)
        codes = [torch.stack([first, *(tail * scale)]) for scale in (1.0, 2.0)]
        shared = torch.tensor([[1]])
        example = preferences_of(codes[0][None, None], codes[1][None, None], shared_BM=shared)
        bare(tlgd=tlgd, beta=beta)(example)[0].backward()
        found[tlgd] = first.grad
    assert abs(found[False]) < 1e-15
    margin = -(tail.sum() / 3).item()  # r_w − r_l, the second tail being twice the first
    expected = beta * torch.sigmoid(torch.tensor(-beta * margin)).item() / 3
    assert -found[True].item() == pytest.approx(expected, abs=1e-7)


def test_any_positive_detaches_what_is_shared_with_another_positive():
    example = random_lists(shared_any_BM=torch.tensor([[2, 0, 0]]))
    _, first = gradients(bare(), example)
    _, other = gradients(bare(prefix="any_positive"), example)
    assert first["negative_BML"][0, 0].all()
    assert not other["negative_BML"][0, 0, :2].any() and other["negative_BML"][0, 0, 2] > 0


def test_weights_fall_from_1_to_a_half_with_jumps_at_the_outer_quartiles():
    at = torch.tensor(
        [-1.0, 0.3 - 1e-9, 0.3, 0.4, 0.5, 0.5 + 1e-9, 1.0], dtype=torch.float64
    )  # fmt: skip
    found = similarity_weights(at, QUARTILES, 12.0)
    expected = torch.tensor([1.0, 1.0, 0.8843, 0.75, 0.6157, 0.5, 0.5]).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)
    assert similarity_weights(QUARTILES[1:2], QUARTILES, 12.0).item() == 0.75
    many = similarity_weights(torch.linspace(-1, 1, 999).double(), QUARTILES, 12.0)
    assert many.min() >= 0.5 and many.max() <= 1 and (many.diff() <= 0).all()


def test_the_weight_multiplies_the_whole_margin():
    example = tiny_preferences(contexts=1)
    objective = RadDpo(RadDpoConfig(sft_weight=0.0, window=3, tlgd=False)).eval()
    objective.quartiles.copy_(torch.tensor([-0.1, 0.0, 0.1]))
    objective.num_seen.fill_(3)
    positive, negatives = example.positive_states_BPD[0, 0], example.negative_states_BMD[0]
    cosines = (negatives @ positive) / (negatives.norm(dim=1) * positive.norm())
    weights = similarity_weights(cosines, objective.quartiles, 12.0)
    assert len(set(weights.tolist())) > 1
    score = example.positive_BP[0, 0] / 3, example.negative_BM[0] / 3
    expected = torch.log1p((weights * (score[0] - score[1])).exp().sum() ** -1)
    assert objective(example)[0].item() == pytest.approx(expected.item(), abs=1e-7)


def states_with(similarities):
    """A positive and negatives whose representations have these cosines."""
    cosines = torch.tensor(similarities, dtype=torch.float64)
    negative = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=-1)
    return {
        "positive_states_BPD": torch.tensor([[[2.0, 0.0]]]).double(),
        "negative_states_BMD": negative[None],
    }


def test_all_weigh_1_until_the_window_is_full_and_quartiles_come_from_its_first_pairs():
    objective = RadDpo(RadDpoConfig(window=5, refresh_steps=2))
    first = random_lists(**states_with([0.1, 0.25, 0.3]))
    _, parts = objective(first)
    assert parts["weight_one"] == 1 and objective.num_seen == 3
    _, parts = objective(random_lists(**states_with([0.4, 0.5, 0.9])))  # 0.9 is the sixth
    assert parts["weight_one"] == 1
    torch.testing.assert_close(objective.quartiles, torch.tensor([0.25, 0.3, 0.4]))
    _, parts = objective(random_lists(**states_with([0.2, 0.3, 0.35])))
    assert parts["weight_one"].item() == pytest.approx(1 / 3)  # 0.2 < Q25 = 0.25
    assert parts["weight_half"] == 0


def test_quartiles_move_with_the_window_every_few_steps_unless_frozen():
    steps = [random_lists(**states_with([x, x + 0.01, x + 0.02])) for x in (0.1, 0.5, 0.7, 0.8)]
    for freeze in (False, True):
        objective = RadDpo(RadDpoConfig(window=3, refresh_steps=2, freeze=freeze))
        medians = []
        for step in steps:
            objective(step)
            medians.append(objective.quartiles[1].item())
        expected = [0.11, 0.11, 0.11, 0.11] if freeze else [0.11, 0.11, 0.71, 0.71]
        assert medians == pytest.approx(expected, abs=1e-6)


def test_evaluation_learns_nothing_and_a_checkpoint_carries_the_memory():
    objective = RadDpo(RadDpoConfig(window=3))
    objective.eval()
    example = random_lists(**states_with([0.1, 0.2, 0.3]))
    objective(example)
    assert objective.num_seen == 0
    objective.train()
    objective(example)
    other = RadDpo(RadDpoConfig(window=3))
    other.load_state_dict(objective.state_dict())
    later = random_lists(**states_with([0.05, 0.2, 0.9]), seed=3)
    assert torch.equal(other(later)[0], objective(later)[0])


def test_a_step_with_more_pairs_than_the_window_keeps_the_last_ones():
    objective = RadDpo(RadDpoConfig(window=2, refresh_steps=1))
    objective(random_lists(num_negatives=5, **states_with([0.1, 0.2, 0.3, 0.4, 0.5])))
    torch.testing.assert_close(objective.quartiles[1], torch.tensor(0.15))
    assert sorted(objective.recent_W.tolist()) == pytest.approx([0.4, 0.5])


def test_padded_negatives_are_not_remembered():
    example = tiny_preferences()  # 3 + 2 + 3 + 0 negatives
    objective = RadDpo(RadDpoConfig())
    objective(example)
    assert objective.num_seen == 8


def test_multi_label_learns_from_every_positive():
    example = tiny_preferences()
    _, every = gradients(RadDpo(RadDpoConfig()), example)
    _, first = gradients(RadDpo(RadDpoConfig(multi_label=False)), example)
    assert (every["positive_BPL"][0, 1] < 0).all()
    assert not first["positive_BPL"][0, 1].any()


def test_a_context_without_negatives_has_its_likelihood_alone():
    example = tiny_preferences()
    _, found = gradients(RadDpo(RadDpoConfig()), example)
    assert (found["positive_BPL"][3, 0] == -0.25).all()
    none = tiny_preferences(negatives=False)
    nats = (-none.positive_BP.sum(1) / none.has_positive_BP.sum(1)).mean()
    assert RadDpo(RadDpoConfig())(none)[0].item() == pytest.approx(nats.item(), abs=1e-12)


def test_shares_of_common_prefixes_and_preferred_similar_negatives_are_reported():
    example = tiny_preferences()  # shares 1 0 2 | 0 1 | 0 0 1 codes
    _, parts = RadDpo(RadDpoConfig())(example)
    assert parts["shared_1"].item() == pytest.approx(4 / 8)
    assert parts["shared_2"].item() == pytest.approx(1 / 8)
    objective = RadDpo(RadDpoConfig(window=3)).eval()
    objective.quartiles.copy_(torch.tensor([0.1, 0.2, 0.3]))
    objective.num_seen.fill_(3)
    codes = torch.tensor([[[-1.0]]]), torch.tensor([[[-0.5], [-2.0], [-3.0], [-0.1]]])
    _, parts = objective(preferences_of(*codes, **states_with([0.9, 0.8, 0.7, 0.0])))
    assert parts["similar_preferred"].item() == pytest.approx(1 / 3)


def test_no_gradient_goes_through_similarities_and_weights():
    objective = RadDpo(RadDpoConfig(window=3)).eval()
    objective.quartiles.copy_(torch.tensor([-0.9, 0.0, 0.9]))
    objective.num_seen.fill_(3)
    example = tiny_preferences(contexts=1)
    states = example.negative_states_BMD.requires_grad_()
    loss, parts = objective(example)
    loss.backward()
    assert 0.5 < parts["weight_mean"] < 1 and states.grad is None


def test_gradients_agree_with_finite_differences():
    example = tiny_preferences()
    for form in ("published", "sdpo"):
        objective = RadDpo(RadDpoConfig(list_form=form, beta=1.5, tlgd=False))

        def loss(positive, negative, objective=objective):
            return objective(replace(example, positive_BPL=positive, negative_BML=negative))[0]

        assert torch.autograd.gradcheck(loss, (example.positive_BPL, example.negative_BML))


def test_margins_are_lengths_aware():
    positive = torch.tensor([[[-3.0, -3.0, -3.0]]]).double()
    negative = torch.tensor([[[-1.0, -2.0, 0.0]]]).double()
    example = preferences_of(positive, negative, negative_lengths_BM=torch.tensor([[2]]))
    assert detached_margins(example, None).item() == pytest.approx(-3 + 1.5)


def test_missing_representations_say_what_to_do():
    with pytest.raises(DataError, match=r"representations of whole IDs, got none.*rdrw = false"):
        RadDpo(RadDpoConfig())(random_lists())
    assert RadDpo(RadDpoConfig()).needs_states and not bare().needs_states


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match=r"rad_dpo\.window must be at least 1, got 0"):
        RadDpoConfig(window=0)
    with pytest.raises(ConfigError, match=r"rad_dpo\.beta must be above 0, got -1"):
        RadDpoConfig(beta=-1)
