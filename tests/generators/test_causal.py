"""The default generator, held against plain readings of its formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sidrec.errors import ConfigError, DataError
from sidrec.generators.causal import (
    Causal,
    CausalConfig,
    code_centroids,
    dot_products,
    symbols_of,
)
from sidrec.generators.code_tree import CodeTree
from sidrec.transformer import last_states
from sidrec.types import (
    CatalogueContext,
    Histories,
    HistoryBatch,
    Items,
    ItemVectors,
    SemanticIds,
    as_ids,
)

SMALL = CausalConfig(
    width=8, num_heads=2, depth_hidden=16, max_length=6,
    dropout=0.0, input_dropout=0.0, depth_dropout=0.0,
)  # fmt: skip
CODES = np.array([[0, 1, 0], [0, 1, 2], [0, 0, 1], [2, 3, 0], [2, 3, 1], [1, 0, 0]])
NUM_CODES = (3, 4, 3)


def make_context(codes=CODES, dim=5):
    import polars as pl

    ids = as_ids(range(len(codes)))
    vectors = np.random.default_rng(0).standard_normal((len(codes), dim)).astype(np.float32)
    return CatalogueContext(
        Items(ids, pl.DataFrame()),
        Histories.from_lists([[0, 1, 2], [3, 4, 5]]),
        ItemVectors(ids, vectors),
        SemanticIds(ids, codes, NUM_CODES),
    )


def make_batch():
    items = torch.tensor([[0, 3, 1, 4], [5, 2, -1, -1]])
    targets = torch.tensor([[3, 1, 4, 2], [2, 0, -1, -1]])
    return HistoryBatch(items, torch.tensor([4, 2]), targets)


def make_model(config=SMALL, context=None):
    model = Causal.build(context or make_context(), config)
    with torch.no_grad():
        torch.manual_seed(1)
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model.eval()


def test_the_loss_is_the_mean_nats_of_the_targets_codes():
    config = replace(SMALL, item_loss_weight=0.0, legal_softmax=False)
    model, batch = make_model(config), make_batch()
    loss, parts = model.loss(batch)
    total, count = 0.0, 0
    for row, length in enumerate(batch.lengths_B.tolist()):
        for place in range(length):
            prefix = HistoryBatch(
                batch.items_BT[row : row + 1, : place + 1], torch.tensor([place + 1])
            )
            target = int(batch.targets_BT[row, place])
            codes_11L = torch.from_numpy(CODES[target])[None, None]
            total -= model.log_probs(prefix, codes_11L).item()
            count += 1
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    assert sum(v.item() for k, v in parts.items() if k.startswith("level")) == pytest.approx(
        loss.item(), rel=1e-5
    )


def test_the_item_softmax_enters_the_loss_with_its_weight():
    batch = make_batch()
    losses = []
    for weight in (0.0, 1.0, 2.0):
        config = replace(SMALL, item_loss_weight=weight)
        loss, parts = make_model(config).loss(batch)
        losses.append(loss.item())
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4)
    assert losses[1] - losses[0] == pytest.approx(parts["item_nats"].item(), rel=1e-4)


def test_legal_softmax_trains_over_the_codes_that_continue_some_id():
    model, batch = (
        make_model(replace(SMALL, legal_softmax=True, item_loss_weight=0.0)),
        make_batch(),
    )
    batch = HistoryBatch(batch.items_BT[:1, :1], torch.tensor([1]), torch.tensor([[5]]))
    _, parts = model.loss(batch)  # item 5 is alone under code 1: its later codes are certain
    assert parts["level0_nats"] > 0.1
    assert parts["level1_nats"].item() == pytest.approx(0.0, abs=1e-6)
    assert parts["level2_nats"].item() == pytest.approx(0.0, abs=1e-6)


def test_a_shorter_id_ends_with_a_symbol_of_its_own_and_costs_nothing_after():
    codes = CODES.copy()
    codes[5] = [1, -1, -1]
    codes[3] = [2, 3, -1]
    model = make_model(context=make_context(codes))
    assert model.widths == (3, 5, 4)
    batch = HistoryBatch(torch.tensor([[0]]), torch.tensor([1]))
    state = model.start(batch)
    logits0, state = model.step(state, None, None)
    logits1, _ = model.step(state, torch.tensor([[1]]), torch.tensor([[0]]))
    expected = logits0.log_softmax(-1)[0, 0, 1] + logits1.log_softmax(-1)[0, 0, 4]
    given = model.log_probs(batch, torch.tensor([[[1, -1, -1]]]))
    assert given.item() == pytest.approx(expected.item(), rel=1e-5)


def test_code_tables_start_at_the_residual_means_of_their_items():
    vectors = np.array([[1.0, 0], [3, 0], [0, 4], [0, 6]], dtype=np.float32)
    first, second = code_centroids(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), (2, 2), vectors)
    np.testing.assert_allclose(first, [[2, 0], [0, 5]])
    np.testing.assert_allclose(second, [[-0.5, -0.5], [0.5, 0.5]])


def test_the_tree_holds_the_prefixes_of_the_catalogue_and_nothing_else():
    tree = CodeTree(CODES, NUM_CODES)
    assert [len(tree.counts(level)) - 1 for level in range(3)] == [3, 4, 6]
    root = torch.tensor([0])
    first = tree.child(0, root, torch.tensor([0]))  # items 0, 1 and 2
    assert tree.counts(0)[first].item() == 3
    assert tree.legal(1, first).tolist() == [[True, True, False, False]]
    unknown = tree.child(1, first, torch.tensor([3]))
    assert unknown.item() == 4 and not tree.legal(2, unknown).any()
    np.testing.assert_array_equal(tree.of("nodes", 2), [1, 2, 0, 4, 5, 3])


def test_node_vectors_are_means_of_the_items_below():
    tree, table_ND = CodeTree(CODES, NUM_CODES), torch.randn(6, 4)
    means = tree.means(table_ND)
    torch.testing.assert_close(means[0][0], table_ND[[0, 1, 2]].mean(0))
    torch.testing.assert_close(means[1][1], table_ND[[0, 1]].mean(0))
    torch.testing.assert_close(means[2][tree.of("nodes", 2)], table_ND)
    assert not means[0][-1].any()


def test_served_tables_follow_the_weights():
    model = make_model()
    before = model.served_tables()[0].clone()
    assert model.served_tables()[0] is model.served_tables()[0]
    with torch.no_grad():
        model.items.weight.add_(1.0)
    assert (model.served_tables()[0] - before).abs().max() > 0.5
    assert model.train().eval().served_tables()[0] is not before


@torch.no_grad()
def test_what_is_read_from_kept_tables_follows_every_weight_that_made_them():
    model, batch = make_model(), HistoryBatch(torch.tensor([[0, 4, 2]]), torch.tensor([3]))
    weights = [model.project.weight, model.items.weight, *model.codes, model.inputs.vectors_ND]
    for weight in weights:
        model.history_states(batch)
        weight.mul_(1.5)
        fresh = model.inputs_of(batch.items_BT)
        torch.testing.assert_close(model.tokens(batch), fresh, rtol=0, atol=0)
        expected = last_states(model.encoder(fresh), batch.lengths_B)
        torch.testing.assert_close(model.history_states(batch), expected)


@pytest.mark.parametrize("bias", [-2.0, 0.0, 1.5])
def test_a_seen_item_counts_in_its_nodes_with_its_repeat_weight(bias):
    model = make_model(replace(SMALL, legal_softmax=False))
    with torch.no_grad():
        model.repeat_bias.weight.fill_(bias / model.repeat_bias.RATE)
    batch = HistoryBatch(torch.tensor([[0, 4]]), torch.tensor([2]))
    state = model.history_states(batch)[0]
    table = model.item_table()
    logits, carried = model.step(model.start(batch), None, None)
    depth = model.levels[0]
    base = F.linear(
        depth(state[None], torch.empty(1, 0, dtype=torch.int64)), model.codes[0], depth.bias
    )
    weights = torch.ones(6)
    weights[[0, 4]] = np.exp(bias)
    for code in range(3):
        rows = torch.from_numpy(np.flatnonzero(CODES[:, 0] == code))
        mean = (weights[rows, None] * table[rows]).sum(0) / weights[rows].sum()
        expected = base[0, code] + state @ mean + weights[rows].sum().log()
        assert logits[0, 0, code].item() == pytest.approx(expected.item(), abs=1e-4)
    later, _ = model.step(carried, torch.tensor([[2]]), torch.tensor([[0]]))
    assert later.isfinite().all()


def test_at_a_leaf_the_repeat_bias_is_added_as_it_is():
    batch, codes = HistoryBatch(torch.tensor([[0, 4]]), torch.tensor([2])), torch.from_numpy(CODES)
    gaps = []
    for bias in (0.0, -3.0):
        model = make_model(replace(SMALL, legal_softmax=False))
        with torch.no_grad():
            model.repeat_bias.weight.fill_(bias / model.repeat_bias.RATE)
            _, state = model.step(model.start(batch), None, None)
            _, state = model.step(state, torch.tensor([[0]]), torch.tensor([[0]]))
            logits, _ = model.step(state, torch.tensor([[1]]), torch.tensor([[0]]))
        gaps.append((logits[0, 0, codes[0, 2]] - logits[0, 0, codes[1, 2]]).item())
    assert gaps[1] - gaps[0] == pytest.approx(-3.0, abs=1e-4)


@pytest.mark.parametrize("num_rows", [3, 5000])
def test_dot_products_are_the_same_both_ways(num_rows):
    table_MD, states_BD = torch.randn(num_rows, 4), torch.randn(2, 4)
    rows_BWV = torch.randint(num_rows, (2, 3, 5))
    expected = (table_MD[rows_BWV] * states_BD[:, None, None]).sum(-1)
    torch.testing.assert_close(dot_products(states_BD[:, None], table_MD, rows_BWV), expected)
    torch.testing.assert_close(dot_products(states_BD, table_MD, rows_BWV[:, 0]), expected[:, 0])


def test_a_sibling_is_chosen_by_what_it_holds():
    model = make_model()  # items 0 and 1 differ in their last code only
    batch = HistoryBatch(torch.tensor([[3]]), torch.tensor([1]))
    codes_12L = torch.from_numpy(CODES[[0, 1]])[None]
    with torch.no_grad():
        plain = model.log_probs(batch, codes_12L)[0]
        direction = model.history_states(batch)[0]
        model.items.weight[1] += direction
        moved = model.log_probs(batch, codes_12L)[0]
    assert moved[1] - moved[0] > plain[1] - plain[0] + 0.5


def test_symbols_leave_fixed_length_ids_as_they_are():
    ids = make_context().semantic_ids
    symbols, widths = symbols_of(ids)
    assert widths == NUM_CODES
    np.testing.assert_array_equal(symbols, CODES)


def test_without_ids_it_says_what_to_do():
    bare = replace(make_context(), semantic_ids=None)
    with pytest.raises(DataError, match="embed and tokenize"):
        Causal.build(bare, SMALL)
    with pytest.raises(ConfigError, match="multiple of num_heads, got 10 and 3"):
        CausalConfig(width=10, num_heads=3)


def test_item_scores_rank_by_the_item_softmax():
    model, batch = make_model(), make_batch()
    states = model.history_states(batch)
    with torch.no_grad():
        model.repeat_bias.weight.fill_(0.2)
    logits = states @ model.item_table().T
    logits[0, [0, 3, 1, 4]] += 2.0
    logits[1, [5, 2]] += 2.0
    expected = F.log_softmax(logits, -1)
    torch.testing.assert_close(F.log_softmax(model.item_scores(batch), -1), expected)
