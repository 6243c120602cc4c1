from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.conftest import taught

from sidrec.errors import ConfigError
from sidrec.scorers.unicorn import TASKS, Unicorn, UnicornConfig, one_of, prefix_rows
from sidrec.testing.tiny_catalogue import (
    NUM_ITEMS,
    eight_sequences,
    small_config,
    tiny_batch,
    tiny_context,
)
from sidrec.types import Histories, HistoryBatch, SemanticIds

SMALL = small_config(UnicornConfig, pair_width=8, num_negatives=16, num_hard=4, prefix_rows=64)
CLUSTER = torch.arange(NUM_ITEMS) // 6


def built(**changes):
    return Unicorn.build(tiny_context(), replace(SMALL, **changes))


@pytest.fixture(scope="module")
def trained():
    return taught(built())


def test_one_set_of_weights_answers_all_three_tasks(trained):
    asked = trained.query_scores(["red wool", "steel kettle", "garden chair", "running shoe"])
    assert (CLUSTER[asked.topk(6).indices] == torch.arange(4)[:, None]).all()
    near = trained.similar_scores(torch.tensor([1, 7, 13, 19]))
    assert (CLUSTER[near.topk(4).indices] == torch.arange(4)[:, None]).float().mean() > 0.9
    history = torch.tensor([[0, 1], [6, 7], [12, 13], [18, 19]])
    next_ones = trained.scores(HistoryBatch(history, torch.full((4,), 2)))
    assert (CLUSTER[next_ones.topk(4).indices] == torch.arange(4)[:, None]).float().mean() > 0.9


def test_the_history_moves_the_answers_to_a_query_and_unknown_words_have_none(trained):
    history = HistoryBatch(torch.tensor([[0, 1]]), torch.tensor([2]))
    alone, known = trained.query_scores(["shoe"]), trained.query_scores(["shoe"], history)
    assert not torch.allclose(alone, known)
    nobody = HistoryBatch(torch.full((1, 1), -1), torch.tensor([0]))
    torch.testing.assert_close(trained.query_scores(["shoe"], nobody), alone)
    assert (trained.query_scores(["zzz", "kettle"]) == -torch.inf).all(1).tolist() == [True, False]


def test_the_task_flag_alone_changes_the_scores(trained):
    batch = tiny_batch()
    flagged = torch.stack([trained.scores(batch, task=task) for task in TASKS])
    assert not torch.allclose(flagged[0].argsort(1), flagged[2].argsort(1))
    assert trained.scores(batch).equal(flagged[0])


def test_similar_items_ask_with_the_name_of_their_source_unless_told_not_to(trained):
    rows = torch.tensor([2, 9])
    with torch.no_grad():
        before = trained.similar_scores(rows)
        trained.words.table.weight.mul_(-1)
        after = trained.similar_scores(rows)
        trained.words.table.weight.mul_(-1)
    assert not torch.allclose(before, after)
    plain = built(impute_names=False).eval()
    before = plain.similar_scores(rows)
    with torch.no_grad():
        plain.words.table.weight.mul_(-1)
    torch.testing.assert_close(plain.similar_scores(rows), before)


def test_rows_impute_what_a_task_lacks():
    model, batch = built(), eight_sequences()
    assert batch.targets_BT is not None
    num = int((batch.targets_BT >= 0).sum())
    rows = model.training_rows(batch, batch.targets_BT >= 0)
    by_task = [rows.tasks_R == task for task in range(3)]
    recommend, similar, search = by_task
    assert [int(own.sum()) for own in by_task] == [num] * 3
    assert (rows.users_R[recommend] >= 0).all() and (rows.users_R[search] >= 0).sum() * 2 == num
    assert (rows.sources_R[similar] >= 0).all() and (rows.sources_R[~similar] < 0).all()
    assert (rows.words_RW[recommend] < 0).all() and (rows.words_RW[~recommend] >= 0).any(1).all()
    last = batch.items_BT[batch.targets_BT >= 0]
    names = model.names_NW[last]
    torch.testing.assert_close(rows.words_RW[similar][:, : names.shape[1]], names)
    assert (rows.kept_R[similar] == (last != batch.targets_BT[batch.targets_BT >= 0])).all()
    asked = {w for w in rows.words_RW[search].flatten().tolist() if w >= 0}
    for items, words in zip(rows.targets_R[search], rows.words_RW[search], strict=True):
        own = model.names_NW[items].tolist()
        assert {int(w) for w in words if w >= 0} <= set(own)
    assert asked


@pytest.mark.parametrize("task", TASKS)
def test_a_task_of_weight_0_teaches_nothing(task):
    weights = {f"{name}_weight": float(name == task) for name in TASKS}
    model = built(**weights)
    loss, parts = model.loss(eight_sequences())
    assert {name.split("_")[0] for name in parts} == {task}
    loss.backward()
    taught = (model.tasks.weight.grad.abs().sum(1) > 0).tolist()
    assert taught == [name == task for name in TASKS]


def test_items_outside_the_pool_follow_in_their_order(trained):
    batch = tiny_batch()
    config = trained.config
    try:
        trained.config = replace(config, pool=5)
        pooled = trained.scores(batch)
        trained.config = replace(config, pair_weight=0.0)
        straight = trained.scores(batch)
    finally:
        trained.config = config
    best = straight.topk(5).indices
    inside = torch.zeros_like(straight, dtype=torch.bool).scatter(1, best, True)
    for row in range(len(straight)):
        assert pooled[row][inside[row]].min() >= pooled[row][~inside[row]].max()
        outside = ~inside[row]
        torch.testing.assert_close(pooled[row][outside].argsort(), straight[row][outside].argsort())


def test_prefixes_depend_on_codes_alone_and_share_rows_only_where_the_table_is_full():
    codes = np.array([[0, 1, 0], [0, 1, 1], [0, 2, -1], [3, 1, 0]])
    ids = SemanticIds(tiny_context().items.item_ids[:4], codes, (4, 3, 2))
    rows, sizes = prefix_rows(ids, 1000)
    assert [len(np.unique(rows[:, level])) for level in range(3)] == [2, 3, 4]
    assert (rows < sizes).all()
    few = SemanticIds(ids.item_ids[2:], codes[2:], (4, 3, 2))
    np.testing.assert_array_equal(prefix_rows(few, 1000)[0], rows[2:])
    hashed, sizes = prefix_rows(ids, 7)
    assert sizes == [5, 7, 7] and (hashed < sizes).all()


def test_one_of_draws_every_entry_that_there_is_and_no_other():
    rows = torch.tensor([[4, -1, 9, -1]]).expand(200, -1)
    drawn, counts = one_of(rows)
    assert set(drawn.tolist()) == {4, 9} and (counts == 2).all()
    assert one_of(torch.full((1, 3), -1))[0].tolist() == [-1]


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 15},
        {"pool": 0},
        {"pair_weight": -1.0},
        {"search_weight": -1.0},
        {"recommend_weight": 0.0, "similar_weight": 0.0, "search_weight": 0.0},
    ],
)
def test_settings_that_cannot_be_are_refused(changes):
    with pytest.raises(ConfigError, match="unicorn"):
        replace(UnicornConfig(), **changes)


def test_a_bundle_is_read_without_events_and_answers_as_before(trained):
    context = tiny_context()
    nobody = Histories(np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64))
    again = Unicorn.build(replace(context, train=nobody), SMALL)
    assert again.lessons is None
    again.load_state_dict(trained.state_dict())
    again.eval()
    for answer in (lambda m: m.query_scores(["red coat"]), lambda m: m.scores(tiny_batch())):
        torch.testing.assert_close(answer(again), answer(trained))
