import numpy as np
import polars as pl
import pytest
import torch

from sidrec.errors import ConfigError
from sidrec.scorers.transition_graph import TransitionGraph, TransitionGraphConfig, moves
from sidrec.types import CatalogueContext, Histories, HistoryBatch, Items, ItemVectors, as_ids

NUM_ITEMS = 12


@pytest.fixture(scope="module")
def context():
    random = np.random.default_rng(0)
    train = Histories.from_lists(
        [random.integers(0, NUM_ITEMS - 1, size=n) for n in random.integers(0, 9, size=25)]
    )
    ids = as_ids(range(NUM_ITEMS))
    vectors = random.normal(size=(NUM_ITEMS, 4)).astype(np.float32)
    vectors[3] = 0  # an item without text
    return CatalogueContext(Items(ids, pl.DataFrame()), train, ItemVectors(ids, vectors))


def naive_moves(train, window, gap_decay):
    graph = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for sequence in (train[u] for u in range(len(train))):
        for i, a in enumerate(sequence):
            for gap, b in enumerate(sequence[i + 1 : i + 1 + window]):
                graph[a, b] += gap_decay**gap
    return graph / np.maximum(graph.sum(1, keepdims=True), 1e-30)


def naive_scores(context, history, config):
    graph = naive_moves(context.train, config.window, config.gap_decay)
    x = context.vectors.vectors.astype(np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    counts = context.train_counts_N
    scores = config.popularity_weight * (1 + counts) / (1 + counts.max())
    for s, start in enumerate(history[::-1][: config.num_starts]):
        likeness = np.maximum(x[start] @ x.T, 0) ** config.feature_power
        if not config.feature_power:
            likeness = np.ones(NUM_ITEMS)
        for hop in range(config.hops):
            reached = np.linalg.matrix_power(graph, hop + 1)[start]
            scores = scores + config.start_decay**s * config.hop_decay**hop * reached * likeness
    return scores


@pytest.mark.parametrize(
    "config",
    [
        TransitionGraphConfig(window=1, hops=1, num_starts=1, feature_power=0),
        TransitionGraphConfig(window=3, hops=3, num_starts=4, feature_power=0),
        TransitionGraphConfig(window=2, hops=2, num_starts=2, feature_power=0.7, hop_decay=0.6),
        TransitionGraphConfig(popularity_weight=0.3),
    ],
)
def test_scores_equal_the_dense_formula_item_by_item(context, config):
    scorer = TransitionGraph.build(context, config)
    histories = Histories.from_lists([[1, 2, 3, 4, 4], [5], [], [3, 3], [NUM_ITEMS - 1, 0]])
    batch = HistoryBatch.from_histories(histories, max_length=scorer.max_length)
    expected = [naive_scores(context, histories[row], config) for row in range(len(histories))]
    np.testing.assert_allclose(scorer.scores(batch).exp().numpy(), expected, atol=1e-6)


def test_edges_are_the_training_moves_and_nothing_else(context):
    graph = moves(context.train, NUM_ITEMS, window=2, gap_decay=0.5).toarray()
    np.testing.assert_allclose(graph, naive_moves(context.train, 2, 0.5), atol=1e-6)
    train = context.train
    allowed = {
        (train[u][i], b)
        for u in range(len(train))
        for i in range(len(train[u]))
        for b in train[u][i + 1 : i + 3]
    }
    assert set(zip(*np.nonzero(graph), strict=True)) == allowed  # none across two users


def test_an_item_added_after_the_fit_leads_nowhere(context):
    scorer = TransitionGraph.build(context, TransitionGraphConfig(start_decay=1.0))
    with_new, without = ([1, NUM_ITEMS], [2]), ([1], [2])
    new, old = (
        scorer.scores(HistoryBatch.from_histories(Histories.from_lists(h), max_length=3))
        for h in (with_new, without)
    )
    assert torch.equal(new, old)


def test_features_off_is_a_markov_chain_whose_rows_sum_to_one(context):
    config = TransitionGraphConfig(
        window=1, hops=1, num_starts=1, feature_power=0, popularity_weight=0
    )
    scorer = TransitionGraph.build(context, config)
    every = Histories.from_lists([[i] for i in range(NUM_ITEMS)])
    sums = scorer.scores(HistoryBatch.from_histories(every, max_length=1)).exp().sum(1)
    leads_on = scorer.moves_NN.sum(axis=1) > 0
    torch.testing.assert_close(sums, torch.from_numpy(leads_on).float())
    assert not leads_on[NUM_ITEMS - 1]


def test_where_no_edge_leads_on_popularity_answers(context):
    scorer = TransitionGraph.build(context, TransitionGraphConfig(feature_power=0))
    never_trained = Histories.from_lists([[NUM_ITEMS - 1], []])
    scores_BN = scorer.scores(HistoryBatch.from_histories(never_trained, max_length=3)).numpy()
    counts = 1 + context.train_counts_N
    for row in scores_BN:
        np.testing.assert_allclose(np.exp(row - row.max()), counts / counts.max(), rtol=1e-5)


def test_the_popularity_weight_never_outvotes_an_edge(context):
    scorer = TransitionGraph.build(
        context, TransitionGraphConfig(window=1, hops=1, num_starts=1, feature_power=0)
    )
    batch = HistoryBatch.from_histories(Histories.from_lists([[2]]), max_length=1)
    scores_N = scorer.scores(batch)[0].numpy()
    reached = scorer.moves_NN.toarray()[2] > 0
    assert scores_N[reached].min() > scores_N[~reached].max()


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_it_survives_saving(context, power):
    config = TransitionGraphConfig(feature_power=power, hops=2)
    scorer = TransitionGraph.build(context, config)
    again = TransitionGraph.from_arrays(config, scorer.arrays(), scorer.state())
    batch = HistoryBatch.from_histories(context.train, max_length=again.max_length)
    assert torch.equal(again.scores(batch), scorer.scores(batch))


def test_features_without_vectors_are_refused_in_words(context):
    bare = CatalogueContext(context.items, context.train)
    with pytest.raises(ConfigError, match=r"feature_power needs item vectors.*feature_power = 0"):
        TransitionGraph.build(bare, TransitionGraphConfig(feature_power=1.0))


@pytest.mark.parametrize("setting", [{"window": 0}, {"hops": 0}, {"hop_decay": -1.0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} must be at least"):
        TransitionGraphConfig(**setting)
