"""Brute-force decoders and a weightless generator: what every fast decoder must agree with.

`TableGenerator` draws the logits after any (history, prefix) from a hash, so a decoder is tested
without a model, with exact ties on demand. `brute_force_log_probs` scores items one by one over
a Python dictionary of prefixes, as one would on paper.

Shapes: B requests, W beams, N items, L levels, V symbols of a level, K items.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidrec.types import PAD, Candidates, Floats, HistoryBatch, Ints

Code = tuple[int, ...]
PRIMES = [np.uint64(p) for p in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)]


class TableGenerator:
    """A generator without weights: logits are a fixed function of history and prefix."""

    config_class = type(None)
    max_length = 8

    def __init__(self, widths: tuple[int, ...], *, seed: int = 0, num_values: int = 0) -> None:
        """`widths` counts the end symbol; `num_values` > 0 draws from that few, to make ties."""
        self.num_codes, self.seed, self.num_values = widths, seed, num_values
        self._known: dict[tuple[Code, Code], Floats] = {}

    def logits(self, history: Iterable[int], prefix: Code) -> Floats:
        """(V,) the next level's logits."""
        key = (tuple(int(i) for i in history), prefix)
        if key not in self._known:
            width = self.num_codes[len(prefix)]
            seed = np.uint64(hash((self.seed, key)) & (2**64 - 1))  # tuples of ints hash alike
            mixed = (np.arange(1, width + 1, dtype=np.uint64) * PRIMES[0]) ^ seed
            for prime in PRIMES:
                mixed = (mixed ^ (mixed >> np.uint64(29))) * prime
            values = (mixed >> np.uint64(40)).astype(np.float32) / 2**24
            values = np.floor(values * self.num_values) if self.num_values else values * 8
            self._known[key] = values.astype(np.float32)
        return self._known[key]

    def start(self, batch: HistoryBatch) -> list[list[tuple[tuple[int, ...], Code]]]:
        histories = [tuple(row[row != PAD].tolist()) for row in batch.items_BT]
        return [[(history, ())] for history in histories]

    def step(
        self, state: Any, codes_BW: Tensor | None, parents_BW: Tensor | None
    ) -> tuple[Tensor, Any]:
        if codes_BW is not None and parents_BW is not None:
            state = [
                [(beams[p][0], (*beams[p][1], c)) for c, p in zip(codes, parents, strict=True)]
                for beams, codes, parents in zip(
                    state, codes_BW.tolist(), parents_BW.tolist(), strict=True
                )
            ]
        rows = [[self.logits(*beam) for beam in beams] for beams in state]
        return torch.from_numpy(np.array(rows)), state


def history_batch(histories: list[list[int]]) -> HistoryBatch:
    """A batch of short histories, padded on the right."""
    lengths = torch.tensor([len(h) for h in histories])
    items_BT = torch.full((len(histories), max(1, int(lengths.max()))), PAD)
    for row, history in zip(items_BT, histories, strict=True):
        row[: len(history)] = torch.tensor(history, dtype=torch.int64)
    return HistoryBatch(items_BT, lengths)


def brute_force_log_probs(
    generator: TableGenerator,
    history: list[int],
    codes: dict[int, Code],
    num_codes: tuple[int, ...],
    *,
    allowed: Iterable[int] | None = None,
    renormalise: bool = True,
) -> dict[int, float]:
    """Log-probability of each allowed item: a dictionary trie, one item at a time, in float64.

    `codes` maps rows to code tuples with −1 after the end of a shorter ID.
    """
    rows = sorted(codes if allowed is None else allowed)
    symbols = {
        row: tuple(num_codes[le] if c < 0 else c for le, c in enumerate(codes[row])) for row in rows
    }
    legal: dict[Code, set[int]] = {}
    for path in symbols.values():
        for level, symbol in enumerate(path):
            legal.setdefault(path[:level], set()).add(symbol)
    scores = {}
    for row in rows:
        path, total = symbols[row], 0.0
        for level, symbol in enumerate(path):
            prefix = path[:level]
            over = sorted(legal[prefix]) if renormalise else range(generator.num_codes[level])
            if not renormalise and level and prefix[-1] == num_codes[level - 1]:
                continue  # the ID has ended; what is written after it is certain
            logits = generator.logits(history, prefix).astype(np.float64)
            total += logits[symbol] - np.logaddexp.reduce(logits[list(over)])
        scores[row] = total
    return scores


def check_is_top_k(candidates: Candidates, request: int, scores: dict[int, float], k: int) -> None:
    """One row of candidates holds the k best of `scores`; equal scores may come in any order."""
    rows: Ints = candidates.rows_BK[request]
    got = candidates.scores_BK[request]
    count = min(k, len(scores))
    assert (rows[:count] != PAD).all() and (rows[count:] == PAD).all()
    assert np.isneginf(got[count:]).all()
    best = sorted(scores.values(), reverse=True)[:count]
    np.testing.assert_allclose(got[:count], best, rtol=1e-4, atol=1e-4)
    own = [scores[int(row)] for row in rows[:count]]
    np.testing.assert_allclose(got[:count], own, rtol=1e-4, atol=1e-4)
