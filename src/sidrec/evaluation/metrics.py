"""Every metric as a pure function: one value an example, or one value of a whole run.

Three families. One target (leave-one-out, next item): from `better` and `tied` of the protocol,
with the tie rule in closed form. Several targets: from lists and relevant sets. Beyond accuracy:
from lists, training counts, vectors and codes.

Source:   formulas of the evaluation card; ties after arXiv:2605.25330.
Differs:  novelty counts one extra event an item, so that a cold item has a finite value.
Cost:     O(Q) for one target; O(Q K D) for diversity, in blocks of users.
Shapes:   Q examples, N items, K listed items, D width, L levels, G generated IDs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sidrec.evaluation.protocol import Ties
from sidrec.types import PAD, Bools, Floats, Histories, Ints

Values = NDArray[np.float64]
BLOCK_EXAMPLES = 2048  # diversity gathers this many lists of vectors at once


# One target ------------------------------------------------------------------------------------


def expected_gain(better_Q: Ints, tied_Q: Ints, gains_k: Values, ties: Ties) -> Values:
    """(Q,) gain of the target's position, where position r = 1..k earns `gains_k[r - 1]`.

    expected:    1/(t+1) · Σ_{r=b+1..b+t+1} gain(r)     pessimistic:  gain(b + t + 1)
    with b better and t tied items; the sum is a difference of two cumulative sums.
    """
    k = len(gains_k)
    last_Q = better_Q + tied_Q + 1
    if ties == "pessimistic":
        padded = np.append(gains_k, 0.0)
        return padded[np.minimum(last_Q - 1, k)]
    total = np.concatenate([[0.0], np.cumsum(gains_k)])
    return (total[np.minimum(last_Q, k)] - total[np.minimum(better_Q, k)]) / (tied_Q + 1)


def recall(better_Q: Ints, tied_Q: Ints, k: int, ties: Ties = "expected") -> Values:
    """(Q,) Recall@k = 1[rank ≤ k]; with one target it is also the hit rate."""
    return expected_gain(better_Q, tied_Q, np.ones(k), ties)


def ndcg(better_Q: Ints, tied_Q: Ints, k: int, ties: Ties = "expected") -> Values:
    """(Q,) NDCG@k = 1[rank ≤ k] / log2(rank + 1); the ideal DCG of one target is 1."""
    return expected_gain(better_Q, tied_Q, discounts(k), ties)


def mrr(better_Q: Ints, tied_Q: Ints, k: int, ties: Ties = "expected") -> Values:
    """(Q,) reciprocal rank, 1[rank ≤ k] / rank."""
    return expected_gain(better_Q, tied_Q, 1.0 / np.arange(1, k + 1), ties)


def discounts(k: int) -> Values:
    """(k,) 1 / log2(r + 1) of positions r = 1..k."""
    return 1.0 / np.log2(np.arange(2, k + 2))


ONE_TARGET = {"recall": recall, "ndcg": ndcg, "mrr": mrr}


# Several targets -------------------------------------------------------------------------------


def relevance(rows_QK: Ints, relevant: Histories) -> Bools:
    """(Q, K) whether each listed item is among the relevant items of its example."""
    hits_QK = np.zeros(rows_QK.shape, dtype=bool)
    for row in range(len(relevant)):
        hits_QK[row] = np.isin(rows_QK[row], relevant[row]) & (rows_QK[row] != PAD)
    return hits_QK


def set_recall(hits_QK: Bools, num_relevant_Q: Ints, k: int, *, capped: bool = False) -> Values:
    """(Q,) |R[:k] ∩ T| / |T|; `capped` divides by min(k, |T|) as the VAE line of work does.

    Examples with an empty T are undefined and give NaN: leave them out and print their count.
    """
    size_Q = np.minimum(num_relevant_Q, k) if capped else num_relevant_Q
    return _ratio(hits_QK[:, :k].sum(axis=1), size_Q)


def set_precision(hits_QK: Bools, k: int) -> Values:
    """(Q,) |R[:k] ∩ T| / k; missing places are misses."""
    return np.asarray(hits_QK[:, :k].sum(axis=1) / k)


def set_hit(hits_QK: Bools, k: int) -> Values:
    """(Q,) 1 if any of the first k items is relevant."""
    return np.asarray(hits_QK[:, :k].any(axis=1).astype(np.float64))


def set_mrr(hits_QK: Bools, k: int) -> Values:
    """(Q,) 1 / rank of the first relevant item within k, else 0."""
    first_Q = hits_QK[:, :k].argmax(axis=1)
    return np.where(hits_QK[:, :k].any(axis=1), 1.0 / (first_Q + 1), 0.0)


def average_precision(hits_QK: Bools, num_relevant_Q: Ints, k: int) -> Values:
    """(Q,) AP@k = 1/min(k, |T|) · Σ_{r≤k} 1[r relevant] · |R[:r] ∩ T| / r; NaN for empty T."""
    hits = hits_QK[:, :k]
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    return _ratio((hits * precision).sum(axis=1), np.minimum(num_relevant_Q, k))


def set_ndcg(gains_QK: NDArray, ideal_gains: list[list[float]] | list[Values], k: int) -> Values:
    """(Q,) DCG@k / DCG@k of the ideal order, DCG = Σ_{r≤k} (2^gain − 1) / log2(r + 1).

    `gains_QK` are the gains of the listed items (0/1 or graded); `ideal_gains` those of all
    relevant items of each example, in any order. NaN where no gain is positive.
    """
    weight, num_places = discounts(k), gains_QK.shape[1]
    dcg_Q = np.asarray(((2.0 ** gains_QK[:, :k] - 1) * weight[:num_places]).sum(axis=1))
    ideal_Q = np.zeros(len(dcg_Q))
    for row, gains in enumerate(ideal_gains):
        best = np.sort(np.asarray(gains, dtype=np.float64))[::-1][:k]
        ideal_Q[row] = ((2.0**best - 1) * weight[: len(best)]).sum()
    return _ratio(dcg_Q, ideal_Q)


def _ratio(part: NDArray, whole: NDArray) -> Values:
    """Part / whole, NaN where whole is 0."""
    out = np.full(len(part), np.nan)
    return np.divide(part, whole, out=out, where=whole > 0)


# Beyond accuracy -------------------------------------------------------------------------------


def exposure(rows_QK: Ints, num_items: int) -> Ints:
    """(N,) how often each item was recommended, zeros included."""
    return np.bincount(rows_QK[rows_QK != PAD], minlength=num_items).astype(np.int64)


def coverage(rows_QK: Ints, num_items: int) -> float:
    """Share of the catalogue, in [0, 1], that was recommended to anybody."""
    return float((exposure(rows_QK, num_items) > 0).mean())


def gini(exposure_N: Ints) -> float:
    """(2 Σ_k k x_(k)) / (n Σ x) − (n + 1)/n, x ascending: 0 equal exposure, → 1 one item takes all.

    >>> gini(np.array([2, 2, 2])), round(gini(np.array([0, 0, 6])), 4)
    (0.0, 0.6667)
    """
    x, n = np.sort(exposure_N).astype(np.float64), len(exposure_N)
    if not x.sum():
        return 0.0
    return float(2 * (np.arange(1, n + 1) * x).sum() / (n * x.sum()) - (n + 1) / n)


def exposure_entropy(exposure_N: Ints) -> float:
    """− Σ p log2 p of exposure shares, in bits."""
    p = exposure_N[exposure_N > 0] / max(exposure_N.sum(), 1)
    return float(-(p * np.log2(p)).sum())


def mean_of_listed(rows_QK: Ints, values_N: NDArray) -> Values:
    """(Q,) mean of an item quantity over each list; NaN for an empty list."""
    real = rows_QK != PAD
    return _ratio(np.where(real, values_N[rows_QK], 0.0).sum(axis=1), real.sum(axis=1))


def popularity(rows_QK: Ints, train_counts_N: Ints) -> Values:
    """(Q,) average recommendation popularity: mean training count of the listed items."""
    return mean_of_listed(rows_QK, train_counts_N)


def history_popularity(histories: Histories, train_counts_N: Ints) -> Values:
    """(Q,) mean training count of the items of each history; NaN for an empty one."""
    sums = np.concatenate([[0], np.cumsum(train_counts_N[histories.items_E])])
    return _ratio(sums[histories.offsets[1:]] - sums[histories.offsets[:-1]], histories.lengths)


def popularity_lift(rows_QK: Ints, histories: Histories, train_counts_N: Ints) -> float:
    """Mean popularity of the lists / mean popularity of the histories − 1; 0 = as users are."""
    lists = float(np.nanmean(popularity(rows_QK, train_counts_N)))
    past = float(np.nanmean(history_popularity(histories, train_counts_N)))
    return lists / past - 1 if past else math.nan


def novelty(rows_QK: Ints, train_counts_N: Ints) -> Values:
    """(Q,) mean −log2((count + 1) / Σ(count + 1)) over each list, in bits."""
    counts = train_counts_N + 1.0
    return mean_of_listed(rows_QK, -np.log2(counts / counts.sum()))


def diversity(rows_QK: Ints, vectors_ND: Floats) -> Values:
    """(Q,) intra-list diversity: mean over pairs of 1 − cos; NaN below two items.

    With unit vectors x, Σ_{i≠j} cos = |Σ x|² − Σ |x|², so no pair is formed. A zero vector has
    cosine 0 with everything.
    """
    norms = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND = vectors_ND / np.where(norms > 0, norms, 1.0)
    out = np.empty(len(rows_QK))
    for start in range(0, len(rows_QK), BLOCK_EXAMPLES):
        rows = rows_QK[start : start + BLOCK_EXAMPLES]
        real = rows != PAD
        listed = unit_ND[rows] * real[:, :, None]
        cosines = (listed.sum(axis=1) ** 2).sum(axis=1) - (listed**2).sum(axis=(1, 2))
        pairs = real.sum(axis=1) * (real.sum(axis=1) - 1)
        out[start : start + len(rows)] = 1 - _ratio(cosines, pairs)
    return out


def prefix_diversity(rows_QK: Ints, codes_NL: Ints) -> Values:
    """(Q,) distinct first codes among the listed items / listed items; NaN for an empty list."""
    real = rows_QK != PAD
    first = np.sort(np.where(real, codes_NL[rows_QK, 0], -1), axis=1)
    new = np.diff(first, axis=1, prepend=-1) != 0
    return _ratio(new.sum(axis=1), real.sum(axis=1))


# Generation health -----------------------------------------------------------------------------


def sid_recall(rows_QK: Ints, targets_Q: Ints, groups_N: Ints, k: int) -> Values:
    """(Q,) 1 if one of the first k items holds the target's semantic ID. A diagnostic only:
    with collisions it is above the item-level figure, and never a result.
    """
    rows = rows_QK[:, :k]
    same = (groups_N[rows] == groups_N[targets_Q][:, None]) & (rows != PAD)
    return same.any(axis=1).astype(np.float64)


def invalid_shares(generated_QGL: Ints, codes_NL: Ints) -> Values:
    """(Q,) share of the generated IDs that no item of the catalogue holds, in [0, 1]."""
    flat = generated_QGL.reshape(-1, generated_QGL.shape[-1])
    known = {tuple(row) for row in codes_NL.tolist()}
    valid = np.array([tuple(row) in known for row in flat.tolist()], dtype=bool)
    return 1.0 - valid.reshape(generated_QGL.shape[:2]).mean(axis=1)
