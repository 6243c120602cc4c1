"""The alternation of IDs and vectors, held against plain readings: who sees what, and the loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sidrec.errors import ConfigError
from sidrec.generators.cobra import Cobra, CobraConfig
from sidrec.testing.generators import built
from sidrec.testing.tiny_catalogue import (
    NUM_ITEMS,
    eight_sequences,
    small_config,
    tiny_batch,
    tiny_context,
)
from sidrec.types import HistoryBatch, SemanticIds

SMALL = small_config(CobraConfig)


def make_model(**changes):
    return built(Cobra, replace(SMALL, **changes))


def test_ids_and_vectors_alternate():
    model, batch = make_model(), tiny_batch()
    tokens_BSD = model.tokens(batch)
    assert tokens_BSD.shape == (5, 8, 16)
    row = int(batch.items_BT[0, 2])
    codes = sum(table[s] for table, s in zip(model.codes, model.symbols_NL[row], strict=True))
    torch.testing.assert_close(tokens_BSD[0, 4], (model.id_mark + codes) * 4.0)
    torch.testing.assert_close(tokens_BSD[0, 5], model.dense_items()[row] * 4.0)


def test_the_state_that_writes_an_id_does_not_see_it_and_the_next_one_does():
    model, batch = make_model(), eight_sequences()
    writing, given = [], []
    for code in (0, 20):
        next_BT = torch.full_like(batch.items_BT, code)
        written_BTD, given_BTD = model.both_states(batch, next_BT)
        writing.append(written_BTD)
        given.append(given_BTD)
    torch.testing.assert_close(writing[0], writing[1])
    torch.testing.assert_close(writing[0], model.states(batch))
    torch.testing.assert_close(given[0][:, :-1], given[1][:, :-1])  # what follows there is known
    assert (given[0][:, -1] - given[1][:, -1]).abs().max() > 1e-2


def test_the_state_that_predicts_a_vector_sees_its_id_but_never_the_vector():
    model = make_model()
    batch = HistoryBatch(torch.tensor([[0, 7, 13]]), torch.tensor([3]), torch.tensor([[7, 13, 20]]))
    assert batch.targets_BT is not None
    before = model.both_states(batch, batch.targets_BT)[1]
    for place, target in enumerate((7, 13, 20)):
        kept = model.inputs.vectors_ND[target].clone()
        with torch.no_grad():
            model.inputs.vectors_ND[target] += 5.0
        after = model.both_states(batch, batch.targets_BT)[1]
        model.inputs.vectors_ND[target] = kept
        torch.testing.assert_close(after[:, : place + 1], before[:, : place + 1])
        if place < 2:
            assert (after[:, place + 1 :] - before[:, place + 1 :]).abs().max() > 1e-3


def test_the_vector_given_many_ids_is_that_of_each_sequence_run_whole():
    model, batch = make_model(num_layers=2), tiny_batch()
    symbols_BWL = model.symbols_NL[[0, 5, 13, 23]].expand(5, -1, -1)
    at_once_BWD = model.dense_states(batch, symbols_BWL)
    each_B = torch.arange(5)
    for way, row in enumerate((0, 5, 13, 23)):
        given_BTD = model.both_states(batch, torch.full_like(batch.items_BT, row))[1]
        expected_BD = model.dense.users(given_BTD[each_B, batch.lengths_B - 1])
        torch.testing.assert_close(at_once_BWD[:, way], expected_BD, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_nats_of_the_ids_plus_those_of_the_vectors_given_them():
    model, batch = make_model(legal_softmax=False), eight_sequences()
    assert batch.targets_BT is not None
    loss, parts = model.loss(batch)
    sparse, dense, count = 0.0, 0.0, 0
    trained = set(np.flatnonzero(tiny_context().train_counts_N).tolist())
    rows_M = torch.tensor(sorted(trained | set(batch.targets_BT.flatten().tolist())))
    items_MD = model.dense_items()[rows_M]
    for row in range(8):
        for place in range(4):
            prefix = HistoryBatch(
                batch.items_BT[row : row + 1, : place + 1], torch.tensor([place + 1])
            )
            target = int(batch.targets_BT[row, place])
            symbols_11L = model.symbols_NL[target][None, None]
            sparse -= model.log_probs(prefix, symbols_11L).item()
            user_1D = model.dense_states(prefix, symbols_11L)[:, 0]
            logits_1M = model.dense.logits(
                user_1D, items_MD, rows_M, seen_BS=prefix.items_BT.unique()[None]
            )
            place_of_target = (rows_M == target).nonzero()[0]
            dense += F.cross_entropy(logits_1M, place_of_target).item()
            count += 1
    assert parts["dense_nats"].item() == pytest.approx(dense / count, rel=1e-4)
    assert loss.item() == pytest.approx((sparse + dense) / count, rel=1e-4)


def test_without_condition_the_vector_is_the_same_for_every_id():
    batch = tiny_batch()
    for conditioned in (True, False):
        model = make_model(conditioned=conditioned)
        users_BWD = model.dense_states(batch, model.symbols_NL[[0, 13]].expand(5, -1, -1))
        same = torch.allclose(users_BWD[:, 0], users_BWD[:, 1], atol=1e-6)
        assert same != conditioned


def test_a_longer_history_is_cut_to_the_last_events():
    model, batch = make_model(), tiny_batch(length=9, max_length=20)
    symbols_BWL = model.symbols_NL[[3]].expand(5, -1, -1)
    torch.testing.assert_close(
        model.dense_states(batch, symbols_BWL), model.dense_states(batch.last(6), symbols_BWL)
    )
    assert model.encoder.distance_bias.shape[-1] == 13


def test_one_code_for_every_item_leaves_a_dense_model():
    context = tiny_context()
    assert context.semantic_ids is not None
    names = context.semantic_ids.item_ids
    one = SemanticIds(names, np.zeros((NUM_ITEMS, 1), dtype=np.int64), (1,))
    model = Cobra.build(replace(context, semantic_ids=one), SMALL).eval()
    _, parts = model.loss(eight_sequences())
    assert parts["level0_nats"].item() == pytest.approx(0.0, abs=1e-6)
    assert parts["dense_nats"].item() > 0.1


def test_bad_settings_say_what_is_wrong():
    with pytest.raises(ConfigError, match=r"cobra\.temperature must be at least 0\.01"):
        CobraConfig(temperature=-1.0)
    with pytest.raises(ConfigError, match=r"cobra\.dense_loss_weight must not be negative"):
        CobraConfig(dense_loss_weight=-1.0)
    with pytest.raises(ConfigError, match=r"cobra\.width must be a multiple"):
        CobraConfig(width=9)
