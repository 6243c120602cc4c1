"""Which items the same users chose close together, and item vectors spread along that graph.

`cooccurrence` counts users a pair of items; `propagate` mixes every item's vector with those of its
neighbours, one sparse product a hop, nothing learnt.

Source:  S2GR, arXiv:2601.18664, eq. 3-5.
Differs: a window is of events, and where `seconds` is given of time as well.
Cost:    O(E * W) pairs sorted, a block of users at a time; a hop O(edges * D).
Shapes:  N items, D width, E events, W window, U users of a block, P pairs, K hops.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from sidrec.errors import ConfigError, DataError
from sidrec.types import Floats, Histories, Ints

BLOCK_PAIRS = 4_000_000
"""Pairs handled at a time."""


def cooccurrence(
    histories: Histories, num_items: int, window: int, seconds: float = 0
) -> sparse.csr_array:
    """Users (N, N), symmetric, in whose history i and j lie at most `window` events apart.

    A user counts once a pair, however often the pair comes; `window = 0` is the whole history;
    the diagonal is empty. With `seconds` above 0 they also lie at most so far apart in time.
    DataError where the histories have no times.

    >>> cooccurrence(Histories.from_lists([[0, 1, 0], [0, 1, 2]]), 3, window=1).toarray().tolist()
    [[0.0, 2.0, 0.0], [2.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    if window < 0:
        raise ConfigError(f"window must be 0 (whole history) or more events, got {window}")
    if seconds < 0:
        raise ConfigError(f"seconds must be 0 (no limit) or more, got {seconds}")
    if seconds and histories.times_E is None:
        raise DataError("a window in seconds needs histories with times; set it to 0")
    upper_NN = sparse.csr_array((num_items, num_items), dtype=np.float32)
    for first, last in _blocks(histories, num_items, window):
        keys_P, counts_P = _pairs_of(histories, first, last, num_items, window, seconds)
        places = (keys_P // num_items, keys_P % num_items)
        counts = counts_P.astype(np.float32)
        upper_NN += sparse.csr_array((counts, places), shape=upper_NN.shape)
    return sparse.csr_array(upper_NN + upper_NN.T)


def normalised(graph_NN: sparse.csr_array) -> sparse.csr_array:
    """Â = D^(−1/2) A D^(−1/2) in float32; items without neighbours keep an empty row."""
    degrees_N = np.asarray(graph_NN.sum(axis=1)).ravel()
    scale_N = np.divide(1, np.sqrt(degrees_N), where=degrees_N > 0, out=np.zeros(len(degrees_N)))
    scale = sparse.diags_array(scale_N)
    return sparse.csr_array(scale @ graph_NN @ scale, dtype=np.float32)


def hop_weights(alpha: float, hops: int) -> np.ndarray:
    """Beta (K + 1,) = (1 − alpha)^k, summing to 1: the share of each hop in the result."""
    beta_K = (1 - alpha) ** np.arange(hops + 1, dtype=np.float64)  # alpha / alpha cancels in eq. 5
    return beta_K / beta_K.sum()


def propagate(graph_NN: sparse.csr_array, vectors_ND: Floats, *, alpha: float, hops: int) -> Floats:
    """H (N, D) = sum_k beta_k H^(k), with H^(0) = X and H^(k) = (1 − alpha) Â H^(k−1) + alpha X.

    `graph_NN` is Â. alpha = 1 gives X itself; items without neighbours come out shorter,
    (beta_0 + alpha (1 − beta_0)) X.
    """
    beta_K = hop_weights(alpha, hops)
    hop_ND, mixed_ND = vectors_ND, beta_K[0] * vectors_ND.astype(np.float64)
    for k in range(1, hops + 1):
        hop_ND = (1 - alpha) * (graph_NN @ hop_ND) + alpha * vectors_ND  # eq. 4
        mixed_ND += beta_K[k] * hop_ND
    return mixed_ND.astype(np.float32)


def _blocks(histories: Histories, num_items: int, window: int) -> Iterator[tuple[int, int]]:
    """Ranges of users with about `BLOCK_PAIRS` pairs each, few enough for keys to fit 63 bits."""
    lengths_U = histories.lengths
    reach_U = lengths_U if window == 0 else np.minimum(lengths_U, window)
    ends_U = np.cumsum(lengths_U * reach_U)
    most = max(2**62 // num_items**2, 1)
    first = 0
    while first < len(histories):
        done = ends_U[first - 1] if first else 0
        last = int(np.searchsorted(ends_U, done + BLOCK_PAIRS))
        last = min(max(last, first + 1), first + most, len(histories))
        yield first, last
        first = last


def _pairs_of(
    histories: Histories, first: int, last: int, num_items: int, window: int, seconds: float = 0
) -> tuple[Ints, Ints]:
    """Pairs lower * N + higher (P,) of users first … last − 1, and the number of users of each."""
    start, stop = histories.offsets[first], histories.offsets[last]
    items_E = histories.items_E[start:stop]
    lengths_U = histories.lengths[first:last]
    users_E = np.repeat(np.arange(last - first), lengths_U)
    longest = int(lengths_U.max(initial=0)) - 1
    keys: list[Ints] = [np.zeros(0, dtype=np.int64)]
    for gap in range(1, (longest if window == 0 else min(window, longest)) + 1):
        left_E, right_E = items_E[:-gap], items_E[gap:]
        pair = (users_E[:-gap] == users_E[gap:]) & (left_E != right_E)
        if seconds and histories.times_E is not None:
            times_E = histories.times_E[start:stop]
            pair &= times_E[gap:] - times_E[:-gap] <= seconds * 1e6
        lower, higher = np.minimum(left_E, right_E)[pair], np.maximum(left_E, right_E)[pair]
        keys.append(np.unique((users_E[gap:][pair] * num_items + lower) * num_items + higher))
    once_P = np.unique(np.concatenate(keys)) % num_items**2
    return np.unique(once_P, return_counts=True)
