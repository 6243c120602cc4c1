"""CoBa RQ-VAE: an RQ-VAE of vectors that lean towards what the same users chose, with even codes.

Three things on top of `rqvae`, each with a setting that turns it off: item vectors are spread along
the co-occurrence graph (alpha = 1: off), codebook rows that lie close repel each other
(uniformity = 0), and rarely chosen codes look nearer in training than they are (delta_max = 0).

Source:  S2GR, arXiv:2601.18664, eq. 3-14.
Differs: H is divided by its mean length relative to X, and items without neighbours, unseen ones
         too, keep their vectors; by eq. 4 they would shrink to `own` of their length.
         delta and mu are in units of the mean squared distance between the rows of a codebook,
         taken anew every step without gradient. Activations are decayed counts, one a level.
         The commitment term weighs `beta`, as in `rqvae`; in eq. 9 it weighs 1.
         Final codes are plainly nearest unless `balanced_assignment`. Weights, window and hops
         are not published: see the defaults.
Cost:    that of `rqvae`, plus O(L * V^2 * Z) a step; the graph takes seconds. A fitted one keeps
         two bytes an item and column.
Shapes:  N items, M items with neighbours, D input width, Z latent width, L levels, V codes of a
         level, B batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from sidrec.errors import ConfigError, DataError
from sidrec.tokenizers.autoencoder import (
    Autoencoder,
    Objective,
    Quantised,
    fit_autoencoder,
    nearest_codes,
)
from sidrec.tokenizers.cooccurrence import cooccurrence, hop_weights, normalised, propagate
from sidrec.tokenizers.quantisation import BLOCK_ROWS, squared_distances
from sidrec.tokenizers.residual_kmeans import (
    codes_per_level,
    moments,
    require_items,
    require_width,
)
from sidrec.tokenizers.rqvae import RqVae, RqVaeConfig
from sidrec.types import CatalogueContext, Floats, Ids, Ints, ItemVectors, SemanticIds, as_ids

EPS = 1e-6
"""In eq. 13: an untouched level has no busy codes."""


@dataclass(frozen=True, kw_only=True)
class CobaRqVaeConfig(RqVaeConfig):
    """Settings of `CobaRqVae`; with alpha = 1, uniformity = 0, delta_max = 0 it is an `RqVae`."""

    method_name: ClassVar[str] = "coba_rqvae"

    alpha: float = 0.5
    """Share of an item's own vector in every hop; 1 leaves the graph out."""
    hops: int = 2
    """K, how far vectors spread."""
    window: int = 5
    """Two items co-occur when at most this many events apart in a history; 0: anywhere in it."""
    window_seconds: float = 0.0
    """And at most this long apart; 0: however long."""
    uniformity: float = 1.0
    """Weight of the term that pushes close codebook rows apart; 0 leaves it out."""
    delta: float = 0.5
    """Rows closer than this are pushed; 1 is the mean squared distance of a codebook's rows."""
    mu: float = 2.0
    """How fast the push fades with distance, in the same unit."""
    delta_max: float = 0.5
    """Most that use can change a distance, as a share of it, below 1; 0 leaves use out."""
    count_decay: float = 0.99
    """What is left, a step later, of the count of activations."""
    balanced_assignment: bool = False
    """Choose final codes by the balanced distance too, with the counts at the end of training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = self.method_name
        if not 0 <= self.delta_max < 1:
            raise ConfigError(
                f"{name}.delta_max must be in [0, 1), got {self.delta_max}; at 1 a code never "
                "chosen is at distance 0 from everything and takes all items"
            )
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"{name}.alpha must be in [0, 1], got {self.alpha}")
        if not 0 <= self.count_decay < 1:
            raise ConfigError(f"{name}.count_decay must be in [0, 1), got {self.count_decay}")
        if self.hops < 1:
            raise ConfigError(f"{name}.hops must be at least 1, got {self.hops}")
        for setting in ("window", "window_seconds", "uniformity", "delta", "mu"):
            if (value := getattr(self, setting)) < 0:
                raise ConfigError(f"{name}.{setting} must not be negative, got {value}")


@dataclass(frozen=True, eq=False)
class Neighbours:
    """What the graph adds to each item's own vector: H = own * x + neighbour part."""

    own: float
    """Share of x in H: by eq. 4, 5 the length that an item without neighbours would shrink to."""
    item_ids: Ids
    """(M,) items with neighbours."""
    parts_MD: np.ndarray
    """float16, to be multiplied by `scale`."""
    scale: float = 1.0
    num_isolated: int = 0
    """Items of `fit` without neighbours."""
    norm_ratio: float = 1.0
    """Mean of |H| / |x| over items with neighbours, before H is divided by it."""

    @classmethod
    def of(
        cls, vectors: ItemVectors, config: CobaRqVaeConfig, context: CatalogueContext | None
    ) -> Self:
        """From the training histories of the context; without any, every item is isolated."""
        if config.alpha == 1 or context is None:
            empty = np.zeros((0, vectors.vectors.shape[1]), np.float16)
            return cls(1.0, as_ids([]), empty, num_isolated=len(vectors))
        if not np.array_equal(context.items.item_ids, vectors.item_ids):
            raise DataError(
                f"{config.method_name}: rows of the vectors ({len(vectors)}) must be those of the "
                f"context's items ({context.num_items}), in the same order"
            )
        graph_NN = cooccurrence(context.train, len(vectors), config.window, config.window_seconds)
        mixed_ND = propagate(
            normalised(graph_NN), vectors.vectors, alpha=config.alpha, hops=config.hops
        )
        first = float(hop_weights(config.alpha, config.hops)[0])
        own = first + config.alpha * (1 - first)
        rows_M = np.flatnonzero(np.diff(graph_NN.indptr))
        own_MD, mixed_MD = vectors.vectors[rows_M], mixed_ND[rows_M]
        parts_MD = mixed_MD - own * own_MD
        scale = float(np.abs(parts_MD).max(initial=0)) or 1.0
        lengths_M = np.linalg.norm(own_MD, axis=1)
        ratio_M = np.linalg.norm(mixed_MD, axis=1)[lengths_M > 0] / lengths_M[lengths_M > 0]
        return cls(
            own,
            vectors.item_ids[rows_M],
            (parts_MD / scale).astype(np.float16),
            scale,
            len(vectors) - len(rows_M),
            float(ratio_M.mean()) if len(ratio_M) else 1.0,
        )

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Item id -> row of `parts_MD`."""
        return {str(item): row for row, item in enumerate(self.item_ids)}

    def align(self, vectors: ItemVectors) -> Floats:
        """H / norm_ratio (N, D): as long as the vectors on average; x without neighbours."""
        rows_N = np.array([self.row_of.get(str(i), -1) for i in vectors.item_ids], dtype=np.int64)
        aligned_ND, known = vectors.vectors.copy(), np.flatnonzero(rows_N >= 0)
        for start in range(0, len(known), BLOCK_ROWS):
            block = known[start : start + BLOCK_ROWS]
            parts_BD = self.parts_MD[rows_N[block]].astype(np.float64)
            mixed_BD = self.own * vectors.vectors[block] + self.scale * parts_BD
            aligned_ND[block] = mixed_BD / self.norm_ratio
        return aligned_ND


@dataclass(frozen=True, eq=False)
class CobaRqVae(RqVae):
    """Fitted encoder, codebooks and decoder; what it rebuilds are the spread vectors."""

    config_class: ClassVar[type] = CobaRqVaeConfig
    config: CobaRqVaeConfig
    neighbours: Neighbours = Neighbours(1.0, as_ids([]), np.zeros((0, 0), np.float16))
    activations: tuple[Floats, ...] = ()
    """L arrays (V_l,): decayed counts at the end of training."""

    @classmethod
    def fit(  # type: ignore[override]
        cls, vectors: ItemVectors, config: CobaRqVaeConfig, context: CatalogueContext | None = None
    ) -> Self:
        """Train on all items; the graph needs the context's training histories.

        `neighbours.num_isolated` counts the items that the graph says nothing about: all of them
        without a context.
        """
        sizes = codes_per_level(config.method_name, config.num_codes, config.num_levels)
        require_items(config.method_name, len(vectors), max(sizes))
        neighbours = Neighbours.of(vectors, config, context)
        aligned_ND = neighbours.align(vectors)
        mean_D, deviation_D = moments(aligned_ND, config.standardise)
        trained: list[CobaObjective] = []

        def objective(model: Autoencoder, points_ND: Tensor, config: CobaRqVaeConfig) -> Objective:
            trained.append(CobaObjective(model, points_ND, config))
            return trained[0]

        points_ND = torch.from_numpy((aligned_ND - mean_D) / deviation_D)
        model = fit_autoencoder(points_ND, sizes, config, objective, cls.build)
        activations = tuple(counts_V.cpu().numpy() for counts_V in trained[0].activations)
        plain = cls.of(model, config, mean_D, deviation_D)
        return replace(plain, neighbours=neighbours, activations=activations)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the fit had to do without."""
        alone = self.neighbours.num_isolated
        if not alone or self.config.alpha == 1:
            return ()
        return (f"{alone:,} items are bought with no other: their IDs come from content alone",)

    def project(self, vectors: ItemVectors) -> Floats:
        """Latents (N, Z) of the spread vectors."""
        require_width(self.config.method_name, vectors, len(self.mean_D))
        return super().project(replace(vectors, vectors=self.neighbours.align(vectors)))

    def encode(self, vectors: ItemVectors) -> SemanticIds:
        """Assign codes greedily, level by level; an item unseen in `fit` has no neighbours."""
        if not self.config.balanced_assignment:
            return super().encode(vectors)
        residuals_NZ, codes = self.project(vectors), []
        for book_VZ, counts_V in zip(self.codebooks, self.activations, strict=True):
            factor_V = 1 - balance(torch.from_numpy(counts_V), self.config.delta_max).numpy()
            codes.append(nearest_weighted(residuals_NZ, book_VZ, factor_V))
            residuals_NZ = residuals_NZ - book_VZ[codes[-1]]
        return SemanticIds(vectors.item_ids, np.stack(codes, axis=1), self.num_codes)

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` to rebuild this tokenizer."""
        counts = {f"activations.{level}": c for level, c in enumerate(self.activations)}
        return {**super().arrays(), **counts, "neighbours": self.neighbours.parts_MD}

    def state(self) -> dict[str, Any]:
        """Which items have neighbours, and numbers."""
        near = self.neighbours
        return {
            "item_ids": list(near.item_ids),
            "own": near.own,
            "scale": near.scale,
            "num_isolated": near.num_isolated,
            "norm_ratio": near.norm_ratio,
        }

    @classmethod
    def from_arrays(
        cls, config: RqVaeConfig, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
    ) -> Self:
        """The tokenizer that `arrays` and `state` came from."""
        numbers = {name: value for name, value in state.items() if name != "item_ids"}
        return replace(
            super().from_arrays(config, arrays, state),
            neighbours=Neighbours(
                item_ids=as_ids(state["item_ids"]), parts_MD=arrays["neighbours"], **numbers
            ),
            activations=tuple(arrays[f"activations.{n}"] for n in range(config.num_levels)),
        )


class CobaObjective(Objective):
    """The loss of RQ-VAE + uniformity * L_uniform; codes are chosen by the balanced distance."""

    config: CobaRqVaeConfig

    def __init__(self, model: Autoencoder, points_ND: Tensor, config: CobaRqVaeConfig) -> None:
        super().__init__(model, points_ND, config)
        self.activations = [torch.zeros(len(b), device=points_ND.device) for b in model.books]

    def choose(self, residual_BZ: Tensor, book_VZ: Tensor, level: int) -> Tensor:
        """Codes (B,) at least d * (1 − f), then counted."""
        counts_V = self.activations[level]
        if self.config.delta_max == 0:
            codes_B = nearest_codes(residual_BZ, book_VZ, level)
        else:
            factor_V = 1 - balance(counts_V, self.config.delta_max)
            codes_B = (_squared(residual_BZ, book_VZ) * factor_V).argmin(dim=1)  # eq. 14
        counts_V.mul_(self.config.count_decay).add_(codes_B.bincount(minlength=len(counts_V)))
        return codes_B

    def extra(self, rows_B: Tensor, latents_BZ: Tensor, quantised: Quantised) -> Tensor | float:
        """The uniformity of all levels, weighted."""
        config = self.config
        if config.uniformity == 0:
            return 0.0
        terms = []
        for book_VZ in self.model.books:
            spread = 2 * book_VZ.detach().var(dim=0, correction=0).sum().clamp_min(1e-12)
            terms.append(uniformity(book_VZ, config.delta * spread, config.mu / spread))
        return config.uniformity * torch.stack(terms).sum()


def balance(counts_V: Tensor, delta_max: float) -> Tensor:
    """Eq. 13: f (V,) in [−delta_max, delta_max], above 0 for codes chosen less than the mean."""
    mean = counts_V.mean()
    return ((mean - counts_V) / (mean + EPS)).clamp(-delta_max, delta_max)


def uniformity(book_VZ: Tensor, delta: Tensor | float, mu: Tensor | float) -> Tensor:
    """Eq. 12: log(1 + sum of exp(−mu D) over ordered pairs of rows with squared distance <= delta).

    0 when no two rows are so close, log(1 + V (V − 1)) when all coincide.
    """
    centred_VZ = book_VZ - book_VZ.detach().mean(dim=0)
    distances_VV = _squared(centred_VZ, centred_VZ)
    close_VV = (distances_VV <= delta).fill_diagonal_(False)
    return (-mu * distances_VV[close_VV]).exp().sum().log1p()


def nearest_weighted(points_NZ: Floats, book_VZ: Floats, factor_V: np.ndarray) -> Ints:
    """Index (N,) of the least factor * squared distance; ties go to the lower.

    Same as `(factor * squared_distances(points, book)).argmin(1)`, and decided so where a matrix
    product in float64 leaves doubt.
    """
    codes_N = np.zeros(len(points_NZ), dtype=np.int64)
    book = book_VZ.astype(np.float64)
    norms_V = np.square(book).sum(axis=1)
    for start in range(0, len(points_NZ) if len(book) > 1 else 0, 8192):
        points = points_NZ[start : start + 8192].astype(np.float64)
        norms_B = np.square(points).sum(axis=1)
        scores_BV = factor_V * (norms_B[:, None] - 2 * points @ book.T + norms_V)
        codes_B = scores_BV.argmin(axis=1)
        two_B2 = np.partition(scores_BV, 1, axis=1)[:, :2]
        slack_B = 1e-12 * (norms_B + norms_V.max())
        close = np.flatnonzero(two_B2[:, 1] - two_B2[:, 0] <= slack_B)
        exact = squared_distances(points_NZ[start + close], book_VZ)
        codes_B[close] = (factor_V * exact).argmin(axis=1)
        codes_N[start : start + len(codes_B)] = codes_B
    return codes_N


def _squared(points_BZ: Tensor, book_VZ: Tensor) -> Tensor:
    """Squared distances (B, V)."""
    products_BV = points_BZ @ book_VZ.T
    norms_B1 = points_BZ.square().sum(dim=1, keepdim=True)
    return (norms_B1 - 2 * products_BV + book_VZ.square().sum(dim=1)).clamp_min(0)
