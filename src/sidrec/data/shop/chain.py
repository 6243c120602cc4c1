"""A world whose best possible loss is known: the next item is drawn given the last one alone.

    P(j | i) = softmax over j of sum over r of s_r u_ir v_jr,     s_r ∝ r^-decay

u and v are standard normal, and the logits have standard deviation `spread`. The ranks fade like a
power law, so a model of width D that meets the first D of them loses what the others hold: loss
falls with size towards the entropy of the source, which no model can beat. Events before the last
one say nothing, so it also shows what a model loses by reading them.

Source:   none; the bottleneck of a softmax of low rank is that of arXiv:1711.03953.
Cost:     O(events · N) to draw.
Shapes:   U users, T events a user, N items, Q questions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from sidrec.data.validation import content_hash
from sidrec.errors import ConfigError
from sidrec.types import Dataset, Examples, Floats, Interactions, Items, as_ids


@dataclass(frozen=True, eq=False)
class Chain:
    """The source and what it wrote."""

    dataset: Dataset
    probs_NN: Floats
    """(N, N) float64; row i is P(next | last = i)."""

    def nats(self, examples: Examples) -> float:
        """What the source itself scores on these questions: mean −log P(target | last item)."""
        return float(-np.log(self.probs_NN[last_items(examples), examples.targets]).mean())

    def entropy(self, examples: Examples) -> float:
        """Its expectation over targets: mean entropy of P(· | last item), nats."""
        rows = self.probs_NN[last_items(examples)]
        return float(-(rows * np.log(rows)).sum(axis=1).mean())


def last_items(examples: Examples) -> np.ndarray:
    """(Q,) the last item of each history."""
    return examples.histories.items_E[examples.histories.offsets[1:] - 1]


def chain(
    *,
    num_users: int = 4000,
    num_items: int = 100,
    length: int = 20,
    num_ranks: int = 64,
    decay: float = 0.5,
    spread: float = 2.0,
    seed: int = 0,
) -> Chain:
    """Draw the source and `num_users` histories of `length` events that begin anywhere."""
    for name, value, low in (
        ("num_users", num_users, 1),
        ("num_items", num_items, 2),
        ("length", length, 3),
        ("num_ranks", num_ranks, 1),
    ):
        if value < low:
            raise ConfigError(f"chain {name} must be at least {low}, got {value}")
    rng = np.random.default_rng(seed)
    strengths_R = np.arange(1, num_ranks + 1) ** -decay
    left_NR, right_NR = rng.standard_normal((2, num_items, num_ranks))
    logits_NN = (left_NR * strengths_R) @ right_NR.T
    logits_NN *= spread / np.sqrt(np.square(strengths_R).sum())
    probs_NN = np.exp(logits_NN - logits_NN.max(axis=1, keepdims=True))
    probs_NN /= probs_NN.sum(axis=1, keepdims=True)
    up_to_NN = probs_NN.cumsum(axis=1)
    items_UT = np.empty((num_users, length), dtype=np.int64)
    items_UT[:, 0] = rng.integers(num_items, size=num_users)
    for t in range(1, length):
        drawn_U1 = rng.random((num_users, 1))
        items_UT[:, t] = (up_to_NN[items_UT[:, t - 1]] < drawn_U1).sum(axis=1)
    np.minimum(items_UT, num_items - 1, out=items_UT)  # the last sum may fall short of 1
    items = Items(as_ids(f"item-{row}" for row in range(num_items)), pl.DataFrame())
    interactions = Interactions(
        as_ids(f"user-{row}" for row in range(num_users)),
        np.repeat(np.arange(num_users), length),
        items_UT.ravel(),
        np.tile(np.arange(length), num_users),
        has_clock=False,
    )
    note = f"simulated chain (seed {seed}): the next item depends on the last one alone"
    digest = content_hash(items, interactions)
    return Chain(Dataset("chain", items, interactions, (note,), digest), probs_NN)
