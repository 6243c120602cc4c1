"""Collaborative vectors: items that people take together lie together.

Counts how often two items occur within `window` events of each other in a training sequence,
turns counts into positive pointwise mutual information, and factorises it. No gradient steps.

Source:  Levy & Goldberg 2014 (PPMI-SVD equals skip-gram); smoothing from Levy et al. 2015, eq. 5.
Differs: neighbours weigh `decay` ** (distance - 1); an item is not its own neighbour; rows have
         unit length. Items without training neighbours get the zero vector.
Cost:    O(E * window + nnz * dim) time and memory, E training events.
Shapes:  N items, D width, E training events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from sidrec.embeddings.vectors import known_rows, unit_rows
from sidrec.errors import ConfigError, DataError
from sidrec.types import (
    CatalogueContext,
    Floats,
    Histories,
    Ids,
    Items,
    ItemVectors,
    as_ids,
)


@dataclass(frozen=True, kw_only=True)
class CollaborativeConfig:
    """Settings of `Collaborative`."""

    dim: int = 128
    """D, the width asked for; a smaller catalogue gives fewer."""
    window: int = 5
    """Two events of one person are neighbours when at most this far apart."""
    decay: float = 0.7
    """Weight of a neighbour at distance d is decay ** (d - 1); 1 counts all alike."""
    smoothing: float = 0.75
    """Exponent on the popularity of the neighbour; below 1 it tempers rare neighbours."""
    shift: float = 1.0
    """Mutual information below ln(shift) counts as none; above 1 asks for stronger ties."""
    spectrum_power: float = 0.5
    """Exponent of the singular values; 0.5 splits them evenly between the two factors."""
    seed: int = 0
    """Seed of the randomised SVD."""

    def __post_init__(self) -> None:
        for name in ("dim", "window"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"collaborative.{name} must be at least 1, got {value}")
        for name in ("decay", "smoothing", "shift"):
            if (value := getattr(self, name)) <= 0:
                raise ConfigError(f"collaborative.{name} must be above 0, got {value}")


@dataclass(frozen=True, eq=False)
class Collaborative:
    """A fitted table of item vectors."""

    config_class: ClassVar[type] = CollaborativeConfig
    config: CollaborativeConfig
    item_ids: Ids
    vectors_ND: Floats

    @classmethod
    def fit(cls, context: CatalogueContext, config: CollaborativeConfig) -> Self:
        """Learn from `context.train` only."""
        counts_NN = co_occurrence(
            context.train, context.num_items, window=config.window, decay=config.decay
        )
        if not counts_NN.nnz:
            raise DataError(
                "collaborative: no training sequence holds two different items; "
                "longer histories are needed, or use a text embedding"
            )
        ppmi_NN = positive_pmi(counts_NN, smoothing=config.smoothing, shift=config.shift)
        dim = min(config.dim, context.num_items)
        left_ND, singular_D, _ = randomized_svd(ppmi_NN, dim, n_iter=5, random_state=config.seed)
        kept_D = singular_D > 1e-5 * max(float(singular_D[0]), 1e-30)
        left_ND = left_ND[:, kept_D] * singular_D[kept_D] ** config.spectrum_power
        left_ND[ppmi_NN.getnnz(axis=1) == 0] = 0  # the SVD leaves rounding noise there
        return cls(config, context.items.item_ids, unit_rows(left_ND))

    @property
    def num_cold(self) -> int:
        """Items of the fitted catalogue without training neighbours: their vector is zero."""
        return int((~known_rows(self.vectors_ND)).sum())

    def embed(self, items: Items) -> ItemVectors:
        """Unit vectors (N, D) of the fitted items; zero for any other."""
        row_of = {item_id: row for row, item_id in enumerate(self.item_ids)}
        rows = np.array([row_of.get(i, -1) for i in items.item_ids], dtype=np.int64)
        vectors_ND = np.where((rows >= 0)[:, None], self.vectors_ND[rows], np.float32(0))
        return ItemVectors(items.item_ids, vectors_ND)

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` to rebuild this embedder."""
        return {"vectors": self.vectors_ND}

    def state(self) -> dict[str, Any]:
        """JSON-able rest: the item ids of the rows."""
        return {"item_ids": [str(i) for i in self.item_ids]}

    @classmethod
    def from_arrays(
        cls,
        config: CollaborativeConfig,
        arrays: Mapping[str, np.ndarray],
        state: Mapping[str, Any],
    ) -> Self:
        """The embedder that `arrays` and `state` came from."""
        return cls(config, as_ids(state["item_ids"]), arrays["vectors"])


def co_occurrence(
    train: Histories, num_items: int, *, window: int, decay: float = 1.0
) -> sparse.csr_matrix:
    """Symmetric weights (N, N) of items seen within `window` events of each other.

    Same as: for every sequence s and i < j <= i + window, add decay ** (j - i - 1) to
    (s[i], s[j]) and to (s[j], s[i]); the diagonal is left empty.
    """
    sequence_E = np.repeat(np.arange(len(train)), train.lengths)
    total = sparse.csr_matrix((num_items, num_items), dtype=np.float64)
    for distance in range(1, window + 1):
        first, second = train.items_E[:-distance], train.items_E[distance:]
        pair = (sequence_E[:-distance] == sequence_E[distance:]) & (first != second)
        weights = np.full(int(pair.sum()), decay ** (distance - 1))
        total += sparse.csr_matrix(
            (weights, (first[pair], second[pair])), shape=(num_items, num_items)
        )
    return sparse.csr_matrix(total + total.T)


def positive_pmi(
    counts_NN: sparse.csr_matrix, *, smoothing: float = 1.0, shift: float = 1.0
) -> sparse.csr_matrix:
    """max(0, ln(P(a, b) / (P(a) P_s(b))) - ln shift), with P_s(b) proportional to count ** s."""
    pairs = counts_NN.tocoo()
    totals_N = np.asarray(counts_NN.sum(axis=1)).ravel()
    smooth_N = np.where(totals_N > 0, totals_N, 1.0) ** smoothing * (totals_N > 0)
    smooth_N /= smooth_N.sum()
    information = np.log(pairs.data / (totals_N[pairs.row] * smooth_N[pairs.col] * shift))
    positive = information > 0
    kept = (information[positive], (pairs.row[positive], pairs.col[positive]))
    return sparse.csr_matrix(kept, shape=counts_NN.shape)
