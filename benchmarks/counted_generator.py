"""A generator of IDs that is counted instead of trained: what IDs are worth, in seconds.

A move of a training history goes from an item i to a later item j; the farther, the less it counts.
Moves are counted between the nodes of the ID tree, and the chance of j after i follows from coarse
to fine, each depth d with the one above as its prior of m moves:

    p_0(j)     = share of all training events
    p_d(j | i) = (c[n_d(i), n_d(j)] s_d(j) + m p_(d-1)(j | i)) / (c[n_d(i)] + m)

n_d(i) is the node of the first d codes of i, s_d(j) the share of j in the events of its node, and
the last depth is the item itself, the same for all IDs. So IDs help as far as items of one prefix
are followed by items of one prefix, which is what a trained generator has to learn from them.

Source:   hierarchical back-off of n-grams (MacKay & Peto 1995), here over a tree of codes.
Differs:  the last items of a history count with `start_decay`, as in `scorers.transition_graph`;
          all items are ranked, so beams play no part, and no vectors are read.
Cost:     O(Q N L) for Q histories.
Shapes:   B histories, N items, L levels, M nodes of a depth, E moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from scipy import sparse

from sidrec.scorers.transition_graph import TransitionGraphConfig
from sidrec.types import Floats, Histories, HistoryBatch, Ints

PRIOR_MOVES = 5.0
"""m."""
GRAPH = TransitionGraphConfig()
"""How far moves reach, and how many items of a history are read."""


@dataclass(frozen=True, eq=False)
class CountedGenerator:
    """Moves between the nodes of every depth; `scores` is what `rank_all` asks."""

    nodes: list[Ints]
    """(N,) node of every item at depths 1 … L and at the item itself."""
    moves: list[sparse.csr_array]
    """(M, M) moves between the nodes of each depth."""
    shares: list[Floats]
    """(N,) share of each item in the events of its node."""
    popularity_N: Floats

    @classmethod
    def of(cls, codes_NL: Ints, train: Histories) -> Self:
        """Count the moves of training histories over a catalogue with these codes."""
        num_items = len(codes_NL)
        events_N = train.counts(num_items) + 1.0
        items_NN = item_moves(train, num_items)
        nodes, moves, shares = nodes_of(codes_NL), [], []
        for nodes_N in nodes:
            num_nodes = int(nodes_N.max()) + 1
            one = np.ones(num_items, dtype=np.float32)
            belongs_NM = sparse.csr_array(
                (one, (np.arange(num_items), nodes_N)), shape=(num_items, num_nodes)
            )
            moves.append(sparse.csr_array(belongs_NM.T @ items_NN @ belongs_NM))
            events_M = np.bincount(nodes_N, weights=events_N)
            shares.append((events_N / events_M[nodes_N]).astype(np.float32))
        return cls(nodes, moves, shares, (events_N / events_N.sum()).astype(np.float32))

    def scores(self, batch: HistoryBatch) -> torch.Tensor:
        """(B, N) log of the chance of every item, from the last items of each history."""
        items_BT, lengths_B = batch.items_BT.numpy(), batch.lengths_B.numpy()
        total_BN = np.zeros((len(items_BT), len(self.popularity_N)), dtype=np.float32)
        for s in range(GRAPH.num_starts):
            asked = np.flatnonzero(lengths_B > s)
            last_B = items_BT[asked, lengths_B[asked] - 1 - s]
            total_BN[asked] += GRAPH.start_decay**s * self.after(last_B)
        return torch.from_numpy(total_BN).log_()

    def after(self, items_B: Ints) -> Floats:
        """(B, N) chance of every item after each of these."""
        chance_BN = np.tile(self.popularity_N, (len(items_B), 1))
        for nodes_N, moves_MM, shares_N in zip(self.nodes, self.moves, self.shares, strict=True):
            found_BM = moves_MM[nodes_N[items_B]].toarray()
            sums_B1 = found_BM.sum(axis=1, keepdims=True)
            chance_BN *= PRIOR_MOVES
            chance_BN += found_BM[:, nodes_N] * shares_N
            chance_BN /= sums_B1 + PRIOR_MOVES
        return chance_BN


def nodes_of(codes_NL: Ints) -> list[Ints]:
    """Node (N,) of every item at each depth: 1 … L codes, then the item itself."""
    depths = range(1, codes_NL.shape[1] + 1)
    nodes = [np.unique(codes_NL[:, :d], axis=0, return_inverse=True)[1].ravel() for d in depths]
    return [*nodes, np.arange(len(codes_NL))]


def item_moves(train: Histories, num_items: int) -> sparse.csr_array:
    """(N, N) moves from each item to each later one of the same history."""
    user_E = np.repeat(np.arange(len(train)), train.lengths)
    total = sparse.csr_array((num_items, num_items), dtype=np.float32)
    for gap in range(1, GRAPH.window + 1):
        inside = user_E[:-gap] == user_E[gap:]
        ends = train.items_E[:-gap][inside], train.items_E[gap:][inside]
        weight = np.full(int(inside.sum()), GRAPH.gap_decay ** (gap - 1), dtype=np.float32)
        total = total + sparse.csr_array((weight, ends), shape=(num_items, num_items))
    return total
