"""Routed feed-forwards, held against a loop over positions and experts."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sidrec
from sidrec.errors import ConfigError
from sidrec.fitted import Fitted
from sidrec.generators.causal import Causal, CausalConfig
from sidrec.mixture_of_experts import (
    MixtureOfExperts,
    Routing,
    balance_loss,
    count_parameters,
)
from sidrec.recommender import serving_context
from sidrec.testing.generators import GENERATOR_CHECKS
from sidrec.testing.tiny_catalogue import (
    eight_sequences,
    padded,
    small_config,
    tiny_batch,
    tiny_context,
)
from sidrec.training import TrainConfig, train
from sidrec.transformer import CausalTransformer
from sidrec.types import HistoryBatch

ROUTED = small_config(CausalConfig, num_experts=4, experts_per_token=2)


def make_layer(num_experts=4, experts_per_token=2, hidden=12, width=6) -> MixtureOfExperts:
    torch.manual_seed(0)
    layer = MixtureOfExperts(width, hidden, num_experts, experts_per_token, nn.Dropout(0.0))
    for weight in layer.parameters():
        nn.init.normal_(weight, std=0.7)
    return layer.eval()


@pytest.mark.parametrize("num_experts", [2, 4, 7])
@pytest.mark.parametrize("experts_per_token", [1, 2])
def test_it_equals_a_loop_over_positions_and_experts(num_experts, experts_per_token):
    layer = make_layer(num_experts, experts_per_token)
    x = torch.randn(3, 5, 6)
    found, routing = layer(x)
    assert found.shape == x.shape and routing.chosen.shape == (3, 5, experts_per_token)
    for row in range(3):
        for place in range(5):
            state = x[row, place]
            probs = (layer.router.weight @ state).softmax(0)
            best = sorted(range(num_experts), key=lambda e: -probs[e].item())[:experts_per_token]
            total = probs[best].sum() if experts_per_token > 1 else 1.0
            expected = layer.bias.clone()
            for e in best:
                expert = layer.experts[e]
                hidden = F.gelu(expert.up.weight @ state + expert.up.bias)
                expected += probs[e] / total * (expert.down.weight @ hidden)
            torch.testing.assert_close(found[row, place], expected)
            assert routing.chosen[row, place].tolist() == best
            torch.testing.assert_close(routing.probs[row, place], probs)


def test_with_one_answer_from_every_expert_the_gates_sum_to_one():
    layer = make_layer(5, 2)
    with torch.no_grad():
        for expert in layer.experts:
            expert.up.weight.zero_()
            expert.up.bias.fill_(1.0)
            expert.down.weight.copy_(layer.experts[0].down.weight)
    alone = layer.experts[0](torch.zeros(6))
    found, _ = layer(torch.randn(40, 6))
    torch.testing.assert_close(found, (alone + layer.bias).expand(40, -1))


def test_identical_experts_that_all_run_are_one_expert():
    layer = make_layer(3, 3)
    for expert in layer.experts:
        expert.load_state_dict(layer.experts[0].state_dict())
    x = torch.randn(9, 6)
    torch.testing.assert_close(layer(x)[0], layer.experts[0](x) + layer.bias)


def test_an_answer_does_not_depend_on_place_or_company():
    layer, x = make_layer(), torch.randn(30, 6)
    order = torch.randperm(30)
    together = layer(x)[0]
    torch.testing.assert_close(layer(x[order])[0], together[order])
    for row in range(30):
        torch.testing.assert_close(layer(x[row : row + 1])[0][0], together[row])


def test_no_position_is_dropped_when_all_choose_the_same_experts():
    layer = make_layer(4, 2)
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[2, 0], layer.router.weight[0, 0] = 9.0, 8.0
    x = torch.randn(50, 6)
    x[:, 0] = 1.0
    found, routing = layer(x)
    assert (routing.chosen == torch.tensor([2, 0])).all()
    gate = torch.tensor([9.0, 8.0]).softmax(0)
    expected = gate[0] * layer.experts[2](x) + gate[1] * layer.experts[0](x) + layer.bias
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("experts_per_token", [1, 2])
def test_the_task_alone_teaches_the_router_and_the_chosen_experts(experts_per_token):
    layer = make_layer(4, experts_per_token)
    x = torch.randn(1, 6)
    found, routing = layer(x)
    found.square().sum().backward()
    assert layer.router.weight.grad.abs().max() > 1e-3
    chosen = set(routing.chosen[0].tolist())
    for e, expert in enumerate(layer.experts):
        assert (expert.up.weight.grad.abs().max() > 0) == (e in chosen)
        assert expert.down.weight.grad is not None  # 0 where idle, never missing


def test_gradients_equal_those_of_running_every_expert():
    layer, x = make_layer(), torch.randn(11, 6)
    weights = list(layer.parameters())
    found = torch.autograd.grad(layer(x)[0].pow(3).sum(), weights)
    probs = layer.router(x).softmax(-1)
    kept = torch.zeros_like(probs).scatter(1, probs.topk(2).indices, 1.0)
    gates = probs * kept / (probs * kept).sum(1, keepdim=True)
    every = torch.stack([expert(x) for expert in layer.experts], dim=1)
    dense = (gates[..., None] * every).sum(1) + layer.bias
    torch.testing.assert_close(found, torch.autograd.grad(dense.pow(3).sum(), weights))


def test_balance_is_one_when_uniform_and_grows_with_collapse():
    real = torch.ones(8, dtype=torch.bool)
    even = Routing(torch.full((8, 4), 0.25), torch.arange(8)[:, None] % 4)
    assert balance_loss([even], real)[0].item() == pytest.approx(1.0)
    sure = Routing(F.one_hot(torch.arange(8) % 4, 4).float(), torch.arange(8)[:, None] % 4)
    assert balance_loss([sure], real)[0].item() == pytest.approx(1.0)
    collapsed = Routing(torch.eye(4)[[1] * 8], torch.ones(8, 1, dtype=torch.int64))
    assert balance_loss([collapsed], real)[0].item() == pytest.approx(4.0)
    pair = torch.tensor([[0, 3]] * 8)
    two = Routing(torch.tensor([[0.5, 0, 0, 0.5]] * 8), pair)
    assert balance_loss([two], real)[0].item() == pytest.approx(2.0)  # E / k
    balance, parts = balance_loss([even, collapsed], real)
    assert balance.item() == pytest.approx(2.5)  # the mean over layers
    assert (parts["expert_share_max"], parts["expert_share_min"]) == (1.0, 0.0)


def test_balance_counts_real_positions_only():
    probs = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.0, 1.0], [0.0, 1.0]])
    chosen = torch.tensor([[0], [1], [1], [1]])
    real = torch.tensor([True, True, False, False])
    balance, parts = balance_loss([Routing(probs, chosen)], real)
    assert balance.item() == pytest.approx(1.0)
    assert parts["expert_share_max"].item() == parts["expert_share_min"].item() == 0.5


def test_the_balance_loss_moves_positions_away_from_a_busy_expert():
    layer, x = make_layer(4, 1), torch.randn(200, 6)
    x[:, 0] = 1.0
    with torch.no_grad():
        layer.router.weight.mul_(0.1)[2, 0] = 3.0
    real, optimizer = torch.ones(200, dtype=torch.bool), torch.optim.SGD(layer.parameters(), lr=1.0)
    before = balance_loss([layer(x)[1]], real)[1]
    for _ in range(100):
        optimizer.zero_grad()
        balance_loss([layer(x)[1]], real)[0].backward()
        optimizer.step()
    after = balance_loss([layer(x)[1]], real)[1]
    assert before["balance"] > 3 and before["expert_share_max"] > 0.9
    assert after["balance"] < 1.1 and after["expert_share_max"] < 0.5


def test_bf16_autocast_keeps_the_routes_and_nearly_the_answers():
    layer, x = make_layer(8, 2, hidden=64, width=32), torch.randn(64, 32)
    exact, routing = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, low_routing = layer(x)
    assert torch.equal(routing.chosen, low_routing.chosen)
    torch.testing.assert_close(routing.probs, low_routing.probs)
    assert (low.float() - exact).norm() < 0.02 * exact.norm()
    low.float().sum().backward()
    assert layer.router.weight.grad.isfinite().all()


def test_no_positions_give_no_answers():
    found, routing = make_layer()(torch.empty(0, 6))
    assert found.shape == (0, 6) and routing.chosen.shape == (0, 2)


# In the backbone ---------------------------------------------------------------------------------


def encoder(**options) -> CausalTransformer:
    torch.manual_seed(3)
    settings = {"width": 8, "num_layers": 2, "num_heads": 2, "hidden": 16, "dropout": 0.0}
    return CausalTransformer(**{**settings, "max_length": 6, **options})


def test_one_expert_is_the_plain_model_to_the_bit():
    plain, one = encoder(), encoder(num_experts=1, experts_per_token=5)
    assert list(plain.state_dict()) == list(one.state_dict())
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, one.state_dict()[name]), name
    block = {n.removeprefix("blocks.0.") for n in one.state_dict() if n.startswith("blocks.0.")}
    layers = ("norm_attention", "qkv", "out", "norm_hidden", "up", "down")
    assert block == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    x, routings = torch.randn(2, 4, 8), []
    assert torch.equal(plain(x), one(x, routings)) and not routings


def test_identical_experts_that_all_run_are_the_plain_block():
    plain, routed = encoder(num_layers=1, hidden=8), encoder(num_layers=1, num_experts=2)
    weights = plain.state_dict()
    for name in list(weights):
        _, _, part = name.rpartition("blocks.0.")
        if part.startswith(("up.", "down.weight")):
            value = weights.pop(name)
            weights |= {f"blocks.0.moe.experts.{e}.{part}": value for e in range(2)}
    weights["blocks.0.moe.bias"] = weights.pop("blocks.0.down.bias")
    weights["blocks.0.moe.router.weight"] = torch.randn(2, 8)
    routed.load_state_dict(weights)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(routed(x), plain(x))


def test_active_parameters_are_those_of_the_plain_layer_and_the_router():
    plain = count_parameters(encoder())
    assert plain.total == plain.active
    for num_experts, k in ((2, 1), (4, 2), (8, 4)):
        found = count_parameters(encoder(num_experts=num_experts, experts_per_token=k))
        assert found.active == plain.active + 2 * num_experts * 8  # two layers of width 8
        one = (8 + 1) * (16 // k) + (16 // k) * 8
        assert found.total == found.active + 2 * (num_experts - k) * one


def test_every_layer_reports_where_positions_went():
    model, routings = encoder(num_experts=4), []
    model(torch.randn(2, 5, 8), routings)
    assert [r.probs.shape for r in routings] == [(2, 5, 4)] * 2
    assert [r.chosen.shape for r in routings] == [(2, 5, 2)] * 2


@pytest.mark.parametrize("check", GENERATOR_CHECKS, ids=lambda check: check.__name__)
def test_a_routed_generator_keeps_the_contract(check):
    check(Causal, ROUTED)


def test_the_balance_enters_the_loss_with_its_weight_and_without_padding():
    batch, losses = eight_sequences(), []
    for weight in (0.0, 1.0):
        model = Causal.build(tiny_context(), replace(ROUTED, balance_weight=weight)).eval()
        loss, parts = model.loss(batch)
        losses.append(loss.item())
    assert losses[1] - losses[0] == pytest.approx(parts["balance"].item(), rel=1e-4)
    assert parts["expert_share_min"] <= 0.25 <= parts["expert_share_max"]
    more, more_parts = model.loss(padded(batch, 1))
    assert more.item() == pytest.approx(losses[1], rel=1e-5)
    assert more_parts["balance"].item() == pytest.approx(parts["balance"].item(), rel=1e-5)
    assert "balance" not in Causal.build(tiny_context(), small_config(CausalConfig)).loss(batch)[1]


def test_a_routed_generator_takes_added_items_and_comes_back_from_disk(tiny, tmp_path):
    recommender, history = tiny.run.recommender, tiny.run.example_history()
    context = serving_context(recommender.items, recommender.vectors, recommender.ids)
    value = Causal.build(context, ROUTED).eval()
    routed = Fitted(stage="generators", name="causal", config=ROUTED, value=value)
    recommender = replace(recommender, generator=routed)
    twin = recommender.items.attributes.head(1).with_columns(pl.Series("item_id", ["twin"]))
    larger = recommender.add_items(twin)
    batch = HistoryBatch.from_histories(tiny.run.split.test.histories, max_length=6)
    kept = larger.generator.value.history_states(batch)
    torch.testing.assert_close(kept, value.history_states(batch))
    listed = larger.recommend(history, k=999, system="causal")
    assert "twin" in listed["item_id"].to_list()
    larger.save(tmp_path / "larger")
    loaded = sidrec.load(tmp_path / "larger")
    assert loaded.recommend(history, k=999, system="causal").equals(listed)


def test_decoding_answers_alike_alone_and_in_a_batch():
    model, batch = Causal.build(tiny_context(), ROUTED).eval(), tiny_batch()
    together = model.history_states(batch)
    for row, length in enumerate(batch.lengths_B.tolist()):
        alone = HistoryBatch(batch.items_BT[row : row + 1, :length], batch.lengths_B[row : row + 1])
        torch.testing.assert_close(model.history_states(alone)[0], together[row])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_experts": 0}, "num_experts must be at least 1, got 0"),
        ({"num_experts": 2, "experts_per_token": 3}, "between 1 and num_experts = 2, got 3"),
        ({"num_experts": 2, "experts_per_token": 0}, "between 1 and num_experts = 2, got 0"),
        ({"num_experts": 4, "experts_per_token": 3}, "256 .* multiple of experts_per_token, got 3"),
        ({"num_experts": 4, "balance_weight": -1}, "balance_weight must be at least 0"),
    ],
)
def test_experts_that_cannot_be_taken_are_refused(values, message):
    with pytest.raises(ConfigError, match=rf"causal.*{message}"):
        CausalConfig(**values)


def test_more_experts_than_a_full_batch_can_fill_are_refused_before_training():
    context = tiny_context()
    model = Causal.build(context, replace(ROUTED, num_experts=16))
    with pytest.raises(ConfigError, match=r"num_experts = 16 .* 7 positions choose 2 each; raise"):
        train(model, context.train, TrainConfig(batch_positions=7), validate=None, device="cpu")
    short = TrainConfig(epochs=1, batch_positions=8, warmup_steps=0)  # last batches may be smaller
    assert train(model, context.train, short, validate=None, device="cpu").epochs_run == 1
