"""Transition graph: what followed the user's last items in training, one to three steps away.

No learning: training sequences are a weighted graph, W[i, j] the share of the moves from i that
went to j. From the last items of a history, probability flows along up to `hops` edges:

    flow(j)  = sum_s start_decay^s sum_h hop_decay^(h-1) (W^h)[i_s, j] cos(x_{i_s}, x_j)_+^p
               + popularity_weight (1 + count(j)) / (1 + max count)
    score(j) = log flow(j)

with s = 0 the last item, s = 1 the one before, … p = 0 leaves features out: a pure Markov chain.
The logarithm changes no ranking; it makes the softmax of the scores the flow itself, normalised,
which is what a fusion of systems sums.

Source:   arXiv:2605.07125 (training-free transition graphs, three hops, feature cosine).
Differs:  sums over paths instead of taking the best one; moves may skip items (`window`); item
          counts break ties and answer where no edge leads on.
Cost:     one pass over training events; a request is a few sparse rows. No training step.
Shapes:   B requests, N items, D width of the vectors, E edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from sidrec.errors import ConfigError
from sidrec.types import CatalogueContext, Floats, Histories, HistoryBatch, Ints


@dataclass(frozen=True, kw_only=True)
class TransitionGraphConfig:
    """Which moves count, how far they are followed, and from where.

    The defaults had the best validation NDCG@10 on Amazon Beauty; longer paths gained nothing once
    `window` was wide.
    """

    window: int = 10
    """Longest gap of a move: 1 takes neighbours only, 3 also what came two and three later."""
    gap_decay: float = 0.85
    """Weight of a move of gap g is gap_decay^(g − 1)."""
    hops: int = 1
    """Longest path followed."""
    hop_decay: float = 0.1
    """Weight of paths of h edges is hop_decay^(h − 1)."""
    num_starts: int = 3
    """How many of the last items paths start from."""
    start_decay: float = 0.3
    """Weight of the s-th item from the end is start_decay^s."""
    feature_power: float = 1.0
    """p: how strongly the cosine between item vectors counts; 0 leaves vectors out."""
    popularity_weight: float = 1e-4
    """Weight of the item count: tiny, to break ties and to answer where the graph is silent."""

    def __post_init__(self) -> None:
        for name in ("window", "hops", "num_starts"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"transition_graph: {name} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("gap_decay", "hop_decay", "start_decay", "feature_power", "popularity_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"transition_graph: {name} must be at least 0, got {getattr(self, name)}"
                )


@dataclass(frozen=True, eq=False)
class TransitionGraph:
    """Scores items by the probability flow from the last items of a history."""

    config_class: ClassVar[type] = TransitionGraphConfig

    config: TransitionGraphConfig
    moves_NN: sparse.csr_array
    """Shares of the training moves from each item; rows sum to 1, or to 0 where nothing follows."""
    counts_N: Ints
    unit_vectors_ND: Floats | None

    @classmethod
    def build(cls, context: CatalogueContext, config: TransitionGraphConfig) -> Self:
        """The graph of `context.train`; needs vectors where `feature_power` is above 0."""
        vectors_ND = None
        if config.feature_power:
            if context.vectors is None:
                raise ConfigError(
                    "transition_graph: feature_power needs item vectors, and there are none; "
                    "configure an embedding or set feature_power = 0"
                )
            vectors_ND = context.vectors.vectors
            lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
            vectors_ND = vectors_ND / np.maximum(lengths_N1, 1e-12)
        moves_NN = moves(context.train, context.num_items, config.window, config.gap_decay)
        return cls(config, moves_NN, context.train_counts_N, vectors_ND)

    @property
    def max_length(self) -> int:
        return self.config.num_starts

    def scores(self, batch: HistoryBatch) -> Tensor:
        """(B, N) float32 log flow, −inf where there is none; an empty history gets popularity."""
        config, num_items = self.config, len(self.counts_N)
        items_BT, lengths_B = batch.items_BT.cpu().numpy(), batch.lengths_B.cpu().numpy()
        total_BN = np.zeros((len(items_BT), num_items), dtype=np.float32)
        flow_N = (1 + self.counts_N) / (1 + self.counts_N.max(initial=0))
        total_BN += (config.popularity_weight * flow_N).astype(np.float32)
        for s in range(config.num_starts):
            requests = np.flatnonzero(lengths_B > s)
            starts = items_BT[requests, lengths_B[requests] - 1 - s]
            known = starts < num_items  # items added after the fit lead nowhere
            requests, starts = requests[known], starts[known]
            flow = self.moves_NN[starts]
            weight = config.start_decay**s
            for hop in range(config.hops):
                if hop:
                    flow, weight = sparse.csr_array(flow @ self.moves_NN), weight * config.hop_decay
                rows = np.repeat(np.arange(len(starts)), np.diff(flow.indptr))
                values = weight * flow.data * self._likeness(starts[rows], flow.indices)
                total_BN[requests[rows], flow.indices] += values  # (row, item) pairs are distinct
        return torch.from_numpy(total_BN).to(batch.items_BT.device).log_()

    def _likeness(self, from_E: Ints, to_E: NDArray[Any]) -> NDArray[Any] | float:
        """(E,) cosine of the ends of each path, negative ones as 0, to the power p."""
        if self.unit_vectors_ND is None:
            return 1.0
        x_ND = self.unit_vectors_ND
        cosine_E = np.concatenate([
            np.einsum("ed,ed->e", x_ND[from_E[part]], x_ND[to_E[part]])
            for part in np.array_split(np.arange(len(from_E)), 1 + len(from_E) // 65536)
        ])  # fmt: skip
        return np.maximum(cosine_E, 0.0) ** self.config.feature_power

    def arrays(self) -> dict[str, NDArray[Any]]:
        graph = self.moves_NN
        found = {"indptr": graph.indptr, "indices": graph.indices, "shares": graph.data}
        if self.unit_vectors_ND is not None:
            found["unit_vectors"] = self.unit_vectors_ND
        return found | {"counts": self.counts_N}

    def state(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_arrays(
        cls,
        config: TransitionGraphConfig,
        arrays: Mapping[str, NDArray[Any]],
        state: Mapping[str, Any],
    ) -> Self:
        """What `arrays` and `state` gave."""
        counts_N = np.asarray(arrays["counts"])
        graph = sparse.csr_array(
            (arrays["shares"], arrays["indices"], arrays["indptr"]), shape=(len(counts_N),) * 2
        )
        return cls(config, graph, counts_N, arrays.get("unit_vectors"))


def moves(train: Histories, num_items: int, window: int, gap_decay: float) -> sparse.csr_array:
    """(N, N) share of the moves from i that went to j, over gaps 1 … `window` inside a sequence.

    The same as counting, for every sequence and every pair of places at most `window` apart,
    gap_decay^(gap − 1) at [earlier item, later item], then dividing each row by its sum.
    """
    sequence_E = np.repeat(np.arange(len(train)), train.lengths)
    earlier, later, weights = [], [], []
    for gap in range(1, window + 1):
        inside = sequence_E[:-gap] == sequence_E[gap:]
        earlier.append(train.items_E[:-gap][inside])
        later.append(train.items_E[gap:][inside])
        weights.append(np.full(int(inside.sum()), gap_decay ** (gap - 1), dtype=np.float32))
    graph = sparse.csr_array(
        (np.concatenate(weights), (np.concatenate(earlier), np.concatenate(later))),
        shape=(num_items, num_items),
    )
    graph.sum_duplicates()
    graph.eliminate_zeros()
    sums_N = np.asarray(graph.sum(axis=1)).ravel()
    graph.data /= np.repeat(sums_N, np.diff(graph.indptr))
    return graph
