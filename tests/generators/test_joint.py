from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.conftest import taught

from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.search import search
from sidrec.errors import ConfigError
from sidrec.generators.causal import Causal
from sidrec.generators.joint import Joint, JointConfig
from sidrec.testing.tiny_catalogue import eight_sequences, small_config, tiny_batch, tiny_context
from sidrec.types import HistoryBatch

SMALL = small_config(JointConfig)


@pytest.fixture(scope="module")
def trained():
    return taught(Joint.build(tiny_context(), SMALL))


def found(model, batch, k=4):
    ids = tiny_context().semantic_ids
    assert ids is not None
    with torch.inference_mode():
        return search(model, batch, PrefixIndex.build(ids), k=k, beam_width=24).rows_BK


def test_one_generator_answers_a_query_a_history_and_both(trained):
    asked = found(trained, trained.asked(["red wool", "kettle", "garden", "running shoe"]))
    assert (asked // 6 == [[0], [1], [2], [3]]).all()
    history = HistoryBatch(torch.tensor([[0, 1], [12, 13]]), torch.tensor([2, 2]))
    assert (found(trained, history, 3) // 6 == [[0], [2]]).mean() > 0.8
    both = found(trained, trained.asked(["steel kettle"] * 2, history))
    assert not (both == found(trained, history)).all() and (both[1] != asked[1]).any()


def test_a_query_of_none_is_the_task_of_search_and_not_of_recommendation(trained):
    batch = tiny_batch()
    silent = trained.asked([""] * batch.num_requests, batch)
    with torch.no_grad():
        apart = trained.history_states(silent) - trained.history_states(batch)
    assert apart.abs().max() > 0.01


def test_a_target_of_recommendation_never_sees_a_query_and_search_rows_keep_theirs():
    model, batch = Joint.build(tiny_context(), SMALL), eight_sequences()
    torch.manual_seed(3)
    rows = model.search_rows(batch, 32)
    assert sum(len(targets) for _, targets, _ in rows) == 32
    states, targets, seen = rows[0]
    assert len(states) == 8 and batch.targets_BT is not None
    for row, target in enumerate(targets.tolist()):
        place = batch.targets_BT[row].tolist().index(target)
        before = {item for item in seen[row].tolist() if item >= 0}
        assert before == set(batch.items_BT[row, : place + 1].tolist())
    assert (rows[1][2] < 0).all()
    few = model.search_rows(batch, 5)
    assert sum(len(targets) for _, targets, _ in few) == 5


def test_rows_of_a_task_can_be_left_out():
    batch = eight_sequences()
    assert batch.targets_BT is not None
    num = int((batch.targets_BT >= 0).sum())
    counts = {}
    for rows in ((1.0, 0.0), (0.0, 1.0), (1.0, 0.5)):
        config = replace(SMALL, recommend_rows=rows[0], search_rows=rows[1])
        _, parts = Joint.build(tiny_context(), config).loss(batch)
        counts[rows] = float(parts["rows"])
    assert counts == {(1.0, 0.0): num, (0.0, 1.0): num, (1.0, 0.5): num + num // 2}


def test_recommendation_alone_costs_and_counts_what_causal_does():
    model = Joint.build(tiny_context(), replace(SMALL, search_rows=0.0))
    plain = Causal.build(tiny_context(), SMALL)
    names = {name for name, _ in plain.named_parameters()}
    extra = {name.split(".")[0] for name, _ in model.named_parameters()} - {
        name.split(".")[0] for name in names
    }
    assert extra == {"words", "norm_query", "straight", "tasks"}
    assert model.lessons is None


@pytest.mark.parametrize(
    "changes",
    [{"recommend_rows": 0.5}, {"search_rows": -1.0}, {"num_experts": 2},
     {"recommend_rows": 0.0, "search_rows": 0.0}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(changes):
    with pytest.raises(ConfigError, match="joint"):
        replace(JointConfig(), **changes)
