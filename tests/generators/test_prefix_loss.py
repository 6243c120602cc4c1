"""The prefix-weighted loss (APAO): by hand, and in the default generator."""

import math
from dataclasses import replace

import pytest
import torch

from sidrec.errors import ConfigError
from sidrec.generators.causal import Causal, CausalConfig
from sidrec.generators.prefix_loss import pairwise_nats, pointwise_nats, weighted
from sidrec.testing.tiny_catalogue import NUM_ITEMS, eight_sequences, small_config, tiny_context

CODES = replace(small_config(CausalConfig), item_loss_weight=0.0)


def built(**changes):
    model = Causal.build(tiny_context(), replace(CODES, **changes))
    with torch.no_grad():
        torch.manual_seed(5)
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def test_pointwise_is_the_mean_nats_a_code_of_each_prefix():
    nats = torch.tensor([[1.0, 3.0], [2.0, 4.0]], dtype=torch.float64)
    assert pointwise_nats(nats).tolist() == [1.5, 2.5]  # (1 + 2) / 2, ((1 + 3) + (2 + 4)) / 2 / 2
    assert pointwise_nats(nats, 2.0).tolist() == [0.75, 1.25]


def test_prefixes_are_weighted_by_their_own_loss_even_at_focus_0():
    nats = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)
    total = weighted(nats)
    assert total.item() == pytest.approx(1 * 0.25 + 3 * 0.75)  # not the mean, 2
    total.backward()
    assert nats.grad is not None and nats.grad.tolist() == pytest.approx([0.25, 0.75])
    odds = [1 * math.exp(0.5), 3 * math.exp(1.5)]
    focused = (odds[0] * 1 + odds[1] * 3) / sum(odds)
    assert weighted(nats, 0.5).item() == pytest.approx(focused)
    assert weighted(torch.zeros(2)).item() == 0.0


def test_pairwise_sets_a_prefix_against_those_of_drawn_items():
    nats = torch.tensor([[0.5, 0.25]], dtype=torch.float64)
    drawn = torch.tensor([[[0.5, 2.0], [1.0, 0.5], [2.0, 0.0]]], dtype=torch.float64)
    same = torch.tensor([[[True, False], [False, False], [False, False]]])
    first = math.exp(-0.5) / (math.exp(-0.5) + 4 / 2 * (math.exp(-1) + math.exp(-2)))
    rest = math.exp(-2.5) + math.exp(-1.5) + math.exp(-2)
    second = math.exp(-0.75) / (math.exp(-0.75) + 9 / 3 * rest)
    found = pairwise_nats(nats, drawn, same, torch.tensor([5, 10]))
    assert found.tolist() == pytest.approx([-math.log(first), -math.log(second) / 2], abs=1e-12)
    colder = pairwise_nats(nats / 3, drawn / 3, same, torch.tensor([5, 10]))
    assert pairwise_nats(nats, drawn, same, torch.tensor([5, 10]), 3.0).tolist() == pytest.approx(
        colder.tolist()
    )


def test_at_a_uniform_model_both_forms_are_logarithms_of_what_competes():
    num_codes, levels = 8, 3
    nats = torch.full((5, levels), math.log(num_codes), dtype=torch.float64)
    pointwise = pointwise_nats(nats)
    assert pointwise.tolist() == pytest.approx([math.log(8)] * levels)
    assert weighted(pointwise, 0.7).item() == pytest.approx(math.log(8))
    drawn = torch.full((5, 6, levels), math.log(num_codes), dtype=torch.float64)
    same = torch.zeros(5, 6, levels, dtype=torch.bool)
    same[:, 0, 0] = True  # a masked item leaves the scale right
    found = pairwise_nats(nats, drawn, same, torch.tensor([8, 40, 100]))
    expected = [math.log(8), math.log(40) / 2, math.log(100) / 3]
    assert found.tolist() == pytest.approx(expected)


def test_a_target_without_competitors_costs_nothing_and_pulls_nowhere():
    nats = torch.ones(1, 2, requires_grad=True)
    drawn = torch.ones(1, 3, 2, requires_grad=True)
    same = torch.ones(1, 3, 2, dtype=torch.bool)
    found = pairwise_nats(nats, drawn, same, torch.tensor([1, 4]))
    found.sum().backward()
    assert found.tolist() == [0.0, 0.0]
    assert nats.grad is not None and not nats.grad.any()
    assert drawn.grad is not None and not drawn.grad.any()


def test_pairwise_raises_the_target_and_lowers_what_competes():
    nats = torch.ones(1, 2, requires_grad=True)
    drawn = torch.ones(1, 3, 2, requires_grad=True)
    same = torch.tensor([[[True, False]] * 2 + [[False, False]]])
    pairwise_nats(nats, drawn, same, torch.tensor([5, 9])).sum().backward()
    assert nats.grad is not None and (nats.grad > 0).all()  # nats of the target go down
    assert drawn.grad is not None and (drawn.grad <= 0).all()
    assert (drawn.grad[0, :2] < 0).all(), "a shared first code still competes by its second"


@pytest.mark.parametrize("form", ["pointwise", "pairwise"])
def test_weight_0_is_the_plain_loss_and_the_term_is_added_times_the_levels(form):
    batch = eight_sequences()
    plain, _ = built().loss(batch)
    zero, _ = built(prefix_loss=form, prefix_weight=0.0).loss(batch)
    torch.testing.assert_close(zero, plain, rtol=0, atol=0)
    loss, parts = built(prefix_loss=form, prefix_weight=0.5).loss(batch)
    torch.testing.assert_close(loss, plain + 0.5 * parts["prefix_nats"])


def test_the_pointwise_term_of_the_model_is_that_of_its_codes():
    batch = eight_sequences()
    _, parts = built(prefix_loss="pointwise", prefix_focus=0.3).loss(batch)
    mean_L = torch.stack([parts[f"level{level}_nats"] for level in range(3)])
    expected = 3 * weighted(mean_L.cumsum(0) / torch.arange(1, 4), 0.3)
    torch.testing.assert_close(parts["prefix_nats"], expected)


def test_drawn_items_get_the_nats_that_they_would_have_as_targets(monkeypatch):
    model = built(prefix_loss="pairwise", prefix_negatives=NUM_ITEMS)
    every = torch.arange(NUM_ITEMS)
    monkeypatch.setattr(torch, "randint", lambda high, size, device: every.expand(size))
    batch = eight_sequences()
    seen = {}
    plain = model.trained_nats

    def kept(states, symbols, *rest):
        seen[states.ndim] = (states, symbols, *rest), plain(states, symbols, *rest)
        return seen[states.ndim][1]

    monkeypatch.setattr(model, "trained_nats", kept)
    model.loss(batch)
    (states_PD, _, _, nodes_L, met), _ = seen[2]
    _, drawn_PML = seen[3]
    for item in (0, 7, NUM_ITEMS - 1):
        rows_P = torch.full((len(states_PD),), item)
        parents_L = [model.tree.parents_of(level, rows_P) for level in range(3)]
        alone_PL = plain(states_PD, model.symbols_NL[rows_P], parents_L, nodes_L, met)
        torch.testing.assert_close(drawn_PML[:, item], alone_PL, rtol=1e-4, atol=1e-4)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match=r"causal\.prefix_weight must not be negative, got -1"):
        CausalConfig(prefix_weight=-1.0)
    with pytest.raises(ConfigError, match=r"causal\.prefix_negatives must be above 0, got 0"):
        CausalConfig(prefix_negatives=0)
