"""The co-occurrence graph against brute force, and the spreading of vectors against NumPy."""

from dataclasses import replace

import numpy as np
import pytest

from sidrec.errors import ConfigError, DataError
from sidrec.tokenizers import cooccurrence as module
from sidrec.tokenizers.cooccurrence import cooccurrence, hop_weights, normalised, propagate
from sidrec.types import Histories

N = 12


def histories(seed=0, users=40):
    random = np.random.default_rng(seed)
    return Histories.from_lists(
        [random.integers(0, N - 1, random.integers(0, 9)) for _ in range(users)]
    )


def brute_force(train, window, seconds=0):
    counts = np.zeros((N, N))
    for user in range(len(train)):
        items = train[user].tolist()
        times = [0] * len(items)
        if seconds:
            times = train.times_E[train.offsets[user] : train.offsets[user + 1]].tolist()
        pairs = {
            (i, j)
            for a, i in enumerate(items)
            for b, j in enumerate(items)
            if i != j
            and (window == 0 or abs(a - b) <= window)
            and abs(times[a] - times[b]) <= seconds * 1_000_000
        }
        for pair in pairs:
            counts[pair] += 1
    return counts


@pytest.mark.parametrize("window", [0, 1, 3, 100])
@pytest.mark.parametrize("block_pairs", [1, 30, 10**6])
def test_pairs_count_users_whatever_the_blocks(window, block_pairs, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_PAIRS", block_pairs)
    graph = cooccurrence(histories(), N, window).toarray()
    np.testing.assert_array_equal(graph, brute_force(histories(), window))


def test_a_user_counts_once_a_pair_and_an_item_is_not_its_own_neighbour():
    graph = cooccurrence(Histories.from_lists([[0, 1, 0, 1, 1], [1, 0]]), 2, 0)
    np.testing.assert_array_equal(graph.toarray(), [[0, 2], [2, 0]])


def test_pairs_do_not_cross_from_one_user_to_the_next():
    assert cooccurrence(Histories.from_lists([[0], [1], [], [2]]), 3, 0).nnz == 0


def test_the_keys_of_a_large_catalogue_do_not_overflow():
    far = 2_000_000_000
    train = Histories.from_lists([[far, far - 1]] * 3)
    keys, counts = module._pairs_of(train, 0, 1, far + 1, 1)
    assert (keys // (far + 1), keys % (far + 1), counts) == (far - 1, far, 1)
    assert list(module._blocks(train, far + 1, 1)) == [(0, 1), (1, 2), (2, 3)]


def test_a_negative_window_is_refused():
    with pytest.raises(ConfigError, match=r"window must be 0 \(whole history\) or more"):
        cooccurrence(histories(), N, -1)


@pytest.mark.parametrize(("alpha", "hops"), [(0.1, 2), (0.5, 3), (1.0, 2), (0.0, 3)])
def test_spreading_agrees_with_dense_numpy(alpha, hops):
    dense = brute_force(histories(), 2)
    degrees = dense.sum(1)
    scale = np.array([1 / np.sqrt(d) if d else 0.0 for d in degrees])
    a_hat = np.diag(scale) @ dense @ np.diag(scale)
    x = np.random.default_rng(1).standard_normal((N, 5)).astype(np.float32)
    weights = np.array([(1 - alpha) ** k for k in range(hops + 1)])
    expected, h = weights[0] * x.astype(np.float64), x.astype(np.float64)
    for k in range(1, hops + 1):
        h = (1 - alpha) * a_hat @ h + alpha * x
        expected += weights[k] * h
    graph = normalised(cooccurrence(histories(), N, 2))
    np.testing.assert_allclose(graph.toarray(), a_hat, rtol=1e-6, atol=1e-7)
    spread = propagate(graph, x, alpha=alpha, hops=hops)
    np.testing.assert_allclose(spread, expected / weights.sum(), rtol=1e-5, atol=1e-6)


def test_the_weights_of_the_hops_sum_to_one_and_are_equal_without_an_anchor():
    for alpha in (0.0, 1e-9, 0.1, 0.5, 1.0):
        assert hop_weights(alpha, 4).sum() == pytest.approx(1)
    np.testing.assert_allclose(hop_weights(1e-9, 3), 0.25, atol=1e-8)
    np.testing.assert_allclose(hop_weights(0.5, 2), [4 / 7, 2 / 7, 1 / 7])
    np.testing.assert_array_equal(hop_weights(1.0, 2), [1, 0, 0])


def test_alpha_one_gives_the_vectors_back_and_items_alone_shrink():
    x = np.random.default_rng(1).standard_normal((N, 5)).astype(np.float32)
    graph = normalised(cooccurrence(histories(), N, 2))
    np.testing.assert_array_equal(propagate(graph, x, alpha=1.0, hops=3), x)
    alone = N - 1  # `histories` never draws it
    beta = hop_weights(0.3, 2)[0]
    shrunk = propagate(graph, x, alpha=0.3, hops=2)[alone]
    np.testing.assert_allclose(shrunk, (beta + 0.3 * (1 - beta)) * x[alone], rtol=1e-6)


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("block_pairs", [1, 10**6])
def test_a_window_may_be_of_time_too(window, block_pairs, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_PAIRS", block_pairs)
    train = histories()
    steps_E = np.random.default_rng(1).integers(0, 60_000_000, len(train.items_E))
    timed = replace(train, times_E=np.cumsum(steps_E))
    found = cooccurrence(timed, N, window, seconds=45).toarray()
    np.testing.assert_array_equal(found, brute_force(timed, window, 45))
    assert 0 < found.sum() < cooccurrence(timed, N, window).sum()
    with pytest.raises(DataError, match="needs histories with times"):
        cooccurrence(train, N, window, seconds=45)


def test_training_histories_of_a_split_know_their_times(tiny):
    train, events = tiny.run.split.train, tiny.run.dataset.interactions
    whole = events.histories
    for user in (0, len(train) - 1):
        kept = slice(whole.offsets[user], whole.offsets[user] + train.lengths[user])
        start = train.offsets[user]
        times = train.times_E[start : start + train.lengths[user]]
        np.testing.assert_array_equal(times, events.times_E[kept])
