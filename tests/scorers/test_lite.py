"""The decoding-free head against plain readings of its formulas, and what new items get."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

import sidrec
from sidrec.errors import ConfigError, DataError
from sidrec.fitted import Fitted, grow, nearest_items
from sidrec.recommender import serving_context
from sidrec.scorers.dense import Dense, DenseConfig
from sidrec.scorers.lite import Lite, LiteConfig
from sidrec.testing.tiny_catalogue import (
    NUM_ITEMS,
    eight_sequences,
    small_config,
    tiny_batch,
    tiny_context,
)
from sidrec.types import CatalogueContext, Histories, Items, ItemVectors, SemanticIds, as_ids

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def config(**changes) -> LiteConfig:
    return small_config(LiteConfig, **{"adapter_hidden": 12, **changes})


def make_lite(context=None, **changes) -> Lite:
    model = Lite.build(context or tiny_context(), config(**changes))
    with torch.no_grad():
        torch.manual_seed(1)
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model.eval()


def test_tied_with_a_linear_adapter_is_dense_without_its_item_embedding():
    lite = make_lite(head="tied", adapter_hidden=0)
    settings = small_config(DenseConfig, item_embedding=False)
    dense = Dense.build(tiny_context(), settings).eval()
    weights = {n.replace("adapter.", "project."): w for n, w in lite.state_dict().items()}
    dense.load_state_dict(weights)
    torch.testing.assert_close(lite.scores(tiny_batch()), dense.scores(tiny_batch()), **CLOSE)
    batch = eight_sequences()
    torch.testing.assert_close(lite.loss(batch)[0], dense.loss(batch)[0])


@pytest.mark.parametrize("head", ["free", "tied"])
def test_the_loss_is_cross_entropy_over_the_whole_catalogue(head):
    model, batch = make_lite(head=head), eight_sequences()
    table = model.item_table()
    states = model.states(batch, table)
    if head == "free":
        logits = states @ model.head.weight.T + model.head.bias
    else:
        logits = states @ table.T
    total, count = 0.0, 0
    for row, length in enumerate(batch.lengths_B.tolist()):
        for place in range(length):
            seen = batch.items_BT[row, : place + 1].unique()
            here = logits[row, place].index_add(0, seen, model.repeat_bias().expand(len(seen)))
            total += F.cross_entropy(here, batch.targets_BT[row, place])
            count += 1
    loss, parts = model.loss(batch)
    torch.testing.assert_close(loss, total / count)
    assert parts["item_nats"].item() == loss.item()
    weights = list(model.parameters())
    found = torch.autograd.grad(loss, weights)
    torch.testing.assert_close(found, torch.autograd.grad(total / count, weights))


@pytest.mark.parametrize("head", ["free", "tied"])
def test_scores_are_the_logits_of_the_last_state(head):
    model, batch = make_lite(head=head), tiny_batch()
    table = model.item_table()
    states = model.states(batch, table)
    for row, length in enumerate(batch.lengths_B.tolist()):
        state = states[row, length - 1]
        logits = table @ state
        if head == "free":
            logits = model.head.weight @ state + model.head.bias
        seen = batch.items_BT[row, :length].unique()
        logits = logits.index_add(0, seen, model.repeat_bias().expand(len(seen)))
        torch.testing.assert_close(model.scores(batch)[row], logits, **CLOSE)


@pytest.mark.parametrize("head", ["free", "tied"])
def test_a_request_is_one_pass_over_the_history_and_none_over_the_catalogue(head, monkeypatch):
    model, batch = make_lite(head=head), tiny_batch()
    passes, adapted = [], []
    encode, adapt = model.encoder.forward, model.adapter.forward
    monkeypatch.setattr(model.encoder, "forward", lambda x: passes.append(x.shape) or encode(x))
    monkeypatch.setattr(model.adapter, "forward", lambda x: adapted.append(len(x)) or adapt(x))
    for _ in range(3):
        model.scores(batch)
    assert passes == [(*batch.items_BT.shape, model.config.width)] * 3
    assert adapted == [NUM_ITEMS]  # once, for all three


def test_kept_item_vectors_equal_items_encoded_anew_one_by_one():
    model = make_lite()
    model.scores(tiny_batch())
    kept = model.served_table()
    assert kept is model.served_table()
    for row in range(NUM_ITEMS):
        torch.testing.assert_close(
            model.adapter(model.inputs.vectors_ND[row]), kept[row], rtol=0, atol=1e-5
        )


def test_kept_item_vectors_follow_the_weights():
    model = make_lite()
    for change in (
        lambda: model.adapter[0].bias.add_(0.5),
        lambda: model.adapter[2].weight.mul_(2.0),
        lambda: model.load_state_dict(make_lite(seed=7).state_dict()),
        lambda: model.inputs.load_state_dict(
            {"centre_D": model.inputs.centre_D + 1, "scale": model.inputs.scale}
        ),
    ):
        before = model.served_table().clone()
        with torch.no_grad():
            change()
        assert (model.served_table() - before).abs().max() > 1e-2
        torch.testing.assert_close(model.served_table(), model.item_table(), **CLOSE)


def test_kept_item_vectors_follow_a_fused_optimiser():
    model = make_lite()
    before = model.served_table().clone()
    model.train().loss(eight_sequences())[0].backward()
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()
    torch.testing.assert_close(model.eval().served_table(), model.item_table(), **CLOSE)
    assert (model.served_table() - before).abs().max() > 1e-2


# Cold items --------------------------------------------------------------------------------------


def with_twins(context: CatalogueContext, num: int = 3) -> CatalogueContext:
    """The catalogue as it is served after `num` items were added, alike to items 0, 1, …"""
    assert context.vectors is not None and context.semantic_ids is not None
    names = as_ids([*context.items.item_ids, *(f"twin {i}" for i in range(num))])
    vectors, ids = context.vectors.vectors, context.semantic_ids
    return serving_context(
        Items(names, pl.DataFrame()),
        ItemVectors(names, np.concatenate([vectors, vectors[:num]])),
        SemanticIds(names, np.concatenate([ids.codes, ids.codes[:num]]), ids.num_codes),
    )


@pytest.mark.parametrize("head", ["free", "tied"])
def test_added_items_are_reached_by_the_tied_head_and_never_by_the_free_one(head):
    context, batch = tiny_context(), tiny_batch()
    model = make_lite(context, head=head)
    larger = Lite.build(with_twins(context), model.config)
    vectors = context.vectors.vectors
    grow(model, larger, NUM_ITEMS, nearest_items(vectors[:3], vectors))
    before, after = model.scores(batch), larger.scores(batch)
    torch.testing.assert_close(after[:, :NUM_ITEMS], before, **CLOSE)
    if head == "free":
        assert (after[:, NUM_ITEMS:] == -torch.inf).all()
        return
    for row, length in enumerate(batch.lengths_B.tolist()):
        seen = set(batch.items_BT[row, :length].tolist())
        for twin in range(3):
            gap = after[row, NUM_ITEMS + twin] - after[row, twin]
            repeat = model.repeat_bias().item() if twin in seen else 0.0
            assert gap.item() == pytest.approx(-repeat, abs=1e-4)


def test_items_without_training_events_are_out_of_reach_of_the_free_head_only():
    context = tiny_context()
    without = [h[h != 4] for h in (context.train[i] for i in range(len(context.train)))]
    context = replace(context, train=Histories.from_lists(without))
    free, tied = make_lite(context, head="free"), make_lite(context, head="tied")
    reached = free.scores(tiny_batch()).isfinite()
    assert not reached[:, 4].any() and reached.sum() == 5 * (NUM_ITEMS - 1)
    assert tied.scores(tiny_batch()).isfinite().all()


@pytest.mark.parametrize("head", ["free", "tied"])
def test_a_recommender_takes_added_items_and_comes_back_from_disk(head, tiny, tmp_path):
    recommender, history = tiny.run.recommender, tiny.run.example_history()
    counts = recommender.train_counts_N
    rows = np.repeat(np.arange(len(counts)), counts)  # who bought is of no matter here
    context = serving_context(recommender.items, recommender.vectors, recommender.ids)
    context = replace(context, train=Histories.from_lists([rows]))
    lite = Fitted(stage="scorers", name="lite", config=config(head=head),
                  value=make_lite(context, head=head))  # fmt: skip
    recommender = replace(recommender, scorers={**recommender.scorers, "lite": lite})
    first = recommender.recommend(history, k=1, system="lite")["item_id"][0]
    row = recommender.items.row_of[first]
    table = recommender.items.attributes[row].with_columns(pl.Series("item_id", ["twin"]))
    larger = recommender.add_items(table)
    listed = larger.recommend(history, k=999, system="lite")["item_id"].to_list()
    assert ("twin" in listed[:3]) if head == "tied" else ("twin" not in listed)
    assert listed[0] == first or listed[:2] == ["twin", first]
    assert larger.recommend(["twin"], k=5, system="lite").height == 5
    larger.save(tmp_path / "larger")
    loaded = sidrec.load(tmp_path / "larger")
    assert loaded.recommend(history, k=999, system="lite").equals(
        larger.recommend(history, k=999, system="lite")
    )


def test_bad_settings_and_missing_vectors_say_what_to_do():
    with pytest.raises(ConfigError, match=r"one of \['free', 'tied'\], got 'loose'"):
        LiteConfig(head="loose")
    with pytest.raises(ConfigError, match="adapter_hidden must be at least 0, got -1"):
        LiteConfig(adapter_hidden=-1)
    with pytest.raises(ConfigError, match="multiple of num_heads, got 10 and 4"):
        LiteConfig(width=10, num_heads=4)
    with pytest.raises(DataError, match="needs item vectors"):
        Lite.build(replace(tiny_context(), vectors=None), config())
