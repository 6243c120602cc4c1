"""A naive evaluator: plain Python over one user at a time, to hold fast ones against.

Every function is the sentence of the evaluation card and nothing else: sort, look, count.
`check_evaluator` runs any function with the signature of `rank_all` against it.

Source:   formulas of the evaluation card.
Cost:     O(Q N log N); for small random inputs only.
Shapes:   Q examples, N items, K listed items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import torch

from sidrec.evaluation.protocol import ABSENT, Rankings, Ties, rank_all
from sidrec.types import Candidates, Examples, Histories, HistoryBatch


def naive_counts(
    scores_N: Sequence[float], target: int, seen: Sequence[int] = ()
) -> tuple[int, int]:
    """(better, tied) of one target among the items that are not seen and not scored −inf."""
    live = [i for i, s in enumerate(scores_N) if i not in set(seen) and s != -math.inf]
    if target not in live:
        return ABSENT, 0
    better = sum(scores_N[i] > scores_N[target] for i in live)
    tied = sum(scores_N[i] == scores_N[target] for i in live) - 1
    return better, tied


def naive_list(scores_N: Sequence[float], k: int, seen: Sequence[int] = ()) -> list[int]:
    """The k best live items, ties by lowest row, filled up with −1."""
    live = [i for i, s in enumerate(scores_N) if i not in set(seen) and s != -math.inf]
    best = sorted(live, key=lambda i: (-scores_N[i], i))[:k]
    return best + [-1] * (k - len(best))


def naive_metric(metric: str, better: int, tied: int, k: int, ties: Ties) -> float:
    """Recall, NDCG or MRR at k of one target, by visiting every position it may take."""

    def at(rank: int) -> float:
        if rank > k:
            return 0.0
        return {"recall": 1.0, "ndcg": 1 / math.log2(rank + 1), "mrr": 1 / rank}[metric]

    if better >= ABSENT:
        return 0.0
    positions = [better + 1 + place for place in range(tied + 1)]
    if ties == "pessimistic":
        return at(positions[-1])
    return sum(at(rank) for rank in positions) / len(positions)


def naive_set_metrics(listed: Sequence[int], relevant: Sequence[int], k: int) -> dict[str, float]:
    """All set metrics of one list, from their definitions."""
    top, wanted = [i for i in listed[:k] if i >= 0], set(relevant)
    hits = [i in wanted for i in top]
    found = sum(hits)
    dcg = sum(hit / math.log2(place + 2) for place, hit in enumerate(hits))
    ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted))))
    precisions = [sum(hits[: r + 1]) / (r + 1) for r, hit in enumerate(hits) if hit]
    return {
        "recall": found / len(wanted),
        "precision": found / k,
        "hit": float(found > 0),
        "mrr": 1 / (hits.index(True) + 1) if found else 0.0,
        "map": sum(precisions) / min(k, len(wanted)),
        "ndcg": dcg / ideal,
    }


def naive_diversity(vectors: Sequence[Sequence[float]]) -> float:
    """Mean over pairs of 1 − cosine."""
    parts = []
    for x, y in combinations(vectors, 2):
        dot = sum(a * b for a, b in zip(x, y, strict=True))
        norms = math.hypot(*x) * math.hypot(*y)
        parts.append(1 - dot / norms if norms else 1.0)
    return sum(parts) / len(parts)


def random_examples(rng: np.random.Generator, num_examples: int, num_items: int) -> Examples:
    """Histories of 0 to 8 items, targets anywhere, repeats allowed."""
    lengths = rng.integers(0, 9, num_examples)
    histories = Histories.from_lists([rng.integers(0, num_items, n) for n in lengths])
    return Examples(np.arange(num_examples), histories, rng.integers(0, num_items, num_examples))


def scorer_of(scores_QN: np.ndarray, examples: Examples) -> Callable[[HistoryBatch], torch.Tensor]:
    """A scorer that recognises each example by its history and returns its row of scores.

    Histories that repeat share the row of the first example that has them.
    """
    row_of: dict[tuple[int, ...], int] = {}
    for row in range(len(examples)):
        row_of.setdefault(tuple(examples.histories[row].tolist()), row)

    def scores(batch: HistoryBatch) -> torch.Tensor:
        items = batch.items_BT.tolist()
        keys = [tuple(row[:n]) for row, n in zip(items, batch.lengths_B.tolist(), strict=True)]
        return torch.from_numpy(scores_QN[[row_of[key] for key in keys]])

    return scores


def lists_of(
    scores: Callable[[HistoryBatch], torch.Tensor],
) -> Callable[[HistoryBatch, int, list[np.ndarray] | None], Candidates]:
    """A generator that lists the k best items of a scorer, as an exact decoder would."""

    def candidates(batch: HistoryBatch, k: int, exclude: list[np.ndarray] | None) -> Candidates:
        block = scores(batch).numpy().astype(np.float32)
        rows = []
        for row, scores_N in enumerate(block):
            seen = [] if exclude is None else exclude[row].tolist()
            rows.append(naive_list(scores_N.tolist(), k, seen))
        rows_BK = np.array(rows, dtype=np.int64).reshape(len(block), k)
        values_BK = np.take_along_axis(block, np.maximum(rows_BK, 0), axis=1)
        return Candidates(rows_BK, np.where(rows_BK < 0, -np.inf, values_BK).astype(np.float32))

    return candidates


def check_evaluator(
    rank: Callable[..., Rankings] = rank_all, *, seed: int = 0, num_items: int = 30
) -> None:
    """Raise AssertionError unless `rank` equals the naive evaluator on a random small world.

    Scores are small whole numbers (many ties) with some −inf; both seen rules are tried.
    """
    rng = np.random.default_rng(seed)
    examples = random_examples(rng, 40, num_items)
    scores_QN = rng.integers(0, 8, (len(examples), num_items)).astype(np.float32)
    scores_QN[rng.random(scores_QN.shape) < 0.05] = -np.inf
    score_all = scorer_of(scores_QN, examples)
    whole = HistoryBatch.from_histories(examples.histories, max_length=99)
    block_QN = score_all(whole).tolist()
    for filter_seen in (False, True):
        result = rank(
            examples,
            scores=score_all,
            k=5,
            num_items=num_items,
            max_length=99,
            batch_size=7,
            filter_seen=filter_seen,
        )
        for row, target in enumerate(examples.targets.tolist()):
            seen = examples.histories[row].tolist() if filter_seen else []
            expected = naive_counts(block_QN[row], target, seen)
            got = int(result.better_Q[row]), int(result.tied_Q[row])
            assert got == expected, f"example {row}: (better, tied) {got}, expected {expected}"
            wanted = naive_list(block_QN[row], 5, seen)
            assert result.rows_QK[row].tolist() == wanted, f"example {row}: another list"
