"""The generator with a dense head: its parts, and what each of them reads."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sidrec.errors import ConfigError, DataError
from sidrec.generators.causal import Causal, CausalConfig
from sidrec.generators.liger import Liger, LigerConfig
from sidrec.testing.generators import all_log_probs
from sidrec.testing.tiny_catalogue import (
    NUM_ITEMS,
    eight_sequences,
    small_config,
    tiny_batch,
    tiny_context,
)
from sidrec.transformer import distinct

SMALL = small_config(LigerConfig)


def test_the_loss_is_that_of_causal_plus_the_weighted_dense_loss():
    batch = eight_sequences()
    causal = Causal.build(tiny_context(), small_config(CausalConfig)).eval()
    alone, _ = causal.loss(batch)
    losses = []
    for weight in (0.0, 1.0, 2.0):
        model = Liger.build(tiny_context(), replace(SMALL, dense_loss_weight=weight)).eval()
        loss, parts = model.loss(batch)
        losses.append(loss.item())
    assert losses[0] == pytest.approx(alone.item(), rel=1e-6)
    assert losses[1] - losses[0] == pytest.approx(parts["dense_nats"].item(), rel=1e-5)
    assert losses[2] - losses[0] == pytest.approx(2 * parts["dense_nats"].item(), rel=1e-5)
    assert parts["item_nats"].item() > 0 and -1 <= parts["mean_cosine"].item() <= 1


def test_the_head_leaves_the_generator_as_it_was():
    causal = Causal.build(tiny_context(), small_config(CausalConfig)).eval()
    model = Liger.build(tiny_context(), SMALL).eval()
    assert torch.equal(all_log_probs(model, tiny_batch()), all_log_probs(causal, tiny_batch()))


def test_both_losses_shape_the_encoder_and_the_dense_one_alone_the_head():
    for weight, shaped in ((0.0, False), (1.0, True)):
        model = Liger.build(tiny_context(), replace(SMALL, dense_loss_weight=weight))
        model.loss(eight_sequences())[0].backward()
        encoder = model.encoder.blocks[0].up.weight.grad
        assert encoder is not None and encoder.abs().sum() > 0
        head = model.dense.project.weight.grad
        assert head is not None and (head.abs().sum() > 0) == shaped


def test_items_are_compared_by_their_vectors_alone():
    model = Liger.build(tiny_context(), SMALL).eval()
    before = model.dense_items().clone()
    with torch.no_grad():
        assert model.items is not None
        model.items.weight.add_(1.0)
        for table in model.codes:
            table.add_(1.0)
    torch.testing.assert_close(model.dense_items(), before, rtol=0, atol=0)
    assert before.shape == (NUM_ITEMS, 8)
    torch.testing.assert_close(before.norm(dim=1), torch.ones(NUM_ITEMS))
    users_BD = model.dense_states(tiny_batch())
    torch.testing.assert_close(users_BD.norm(dim=1), torch.ones(5))


def test_negatives_are_the_items_with_training_events():
    context = tiny_context()
    trained = np.flatnonzero(context.train_counts_N)
    model = Liger.build(context, SMALL)
    assert model.dense.rows_M.tolist() == trained.tolist()
    assert "dense.rows_M" not in model.state_dict()


def test_a_few_steps_put_the_target_first_for_the_dense_head():
    batch = eight_sequences()
    assert batch.targets_BT is not None
    model = Liger.build(tiny_context(), SMALL)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimiser.zero_grad()
        model.train().loss(batch)[0].backward()
        optimiser.step()
    users_BD, items_ND = model.eval().dense_states(batch), model.dense_items()
    found_B = model.dense.logits(
        users_BD, items_ND, torch.arange(NUM_ITEMS), distinct(batch)
    ).argmax(1)
    assert torch.equal(found_B, batch.targets_BT[:, -1])


def test_bad_settings_say_what_is_wrong():
    with pytest.raises(ConfigError, match=r"liger\.temperature must be at least 0\.01, got 0"):
        LigerConfig(temperature=0.0)
    with pytest.raises(ConfigError, match=r"liger\.dense_hidden must be at least 1, got 0"):
        LigerConfig(dense_hidden=0)
    with pytest.raises(ConfigError, match=r"liger\.dense_loss_weight must not be negative"):
        LigerConfig(dense_loss_weight=-1.0)
    with pytest.raises(ConfigError, match=r"liger\.width must be a multiple of num_heads"):
        LigerConfig(width=9)
    with pytest.raises(DataError, match=r"liger needs item vectors and semantic IDs"):
        Liger.build(replace(tiny_context(), vectors=None), SMALL)
