"""Residual k-means: name an item by its nearest centroids, coarse to fine.

Level 0 clusters the vectors; level l clusters what levels 0..l-1 left unexplained. Nothing is
learnt by gradient, so it is the baseline every neural tokenizer has to beat.

Where the context holds IDs of an earlier fit, k-means starts from them: a code begins at the mean
of the items that held it, in whatever space the new vectors lie, so codes keep their meaning.

With `beam`, `refinements` and `progressive` it is what faiss.ResidualQuantizer calls by these
names (beam search, codebook refinement, progressive dimension), with as low an error.

Source:  Juang & Gray 1982 (multi-stage VQ); as a tokenizer: GRID (arXiv:2507.22224).
Differs: k-means++ start, or an earlier fit; dead codes restart at worst-fit points; large
         catalogues are sampled.
Cost:    fit O(L * num_iters * S * V * D) time, S = min(N, max_points_per_code * V) sampled items;
         encode O(L * N * V * D).
Shapes:  N items, D width, L levels, V codes of a level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from sidrec.errors import ConfigError, DataError
from sidrec.tokenizers.beam_quantisation import beam_quantise, left_over, refined
from sidrec.tokenizers.quantisation import lloyd, progressive_start, reconstruct
from sidrec.types import CatalogueContext, Floats, Ids, Ints, ItemVectors, SemanticIds

Scale = Literal["none", "common", "column"]


@dataclass(frozen=True, kw_only=True)
class ResidualKMeansConfig:
    """Settings of `ResidualKMeans`."""

    num_codes: int | tuple[int, ...] = 256
    """V, the size of every level's codebook, or one size a level."""
    num_levels: int = 3
    """L, the length of a semantic ID."""
    num_iters: int = 25
    """Upper bound on k-means iterations a level; a level stops early once no item moves."""
    max_points_per_code: int = 256
    """A level is fitted on at most this many items a code, drawn at random."""
    progressive: bool = False
    """Start k-means in few principal components: fit takes three times as long, errors fall."""
    beam: int = 1
    """Prefixes kept an item while it is encoded; 1 takes the nearest centroid level by level."""
    refinements: int = 0
    """Rounds, after each level but the first, of encoding and fitting all codebooks together."""
    standardise: bool = False
    """Give every column mean 0 and deviation 1 first, so that all columns count alike."""
    seed: int = 0
    """Seed of sampling and starting centroids."""

    def __post_init__(self) -> None:
        for name in ("num_levels", "num_iters", "max_points_per_code", "beam"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"residual_kmeans.{name} must be at least 1, got {value}")
        if self.refinements < 0:
            raise ConfigError(
                f"residual_kmeans.refinements must not be negative, got {self.refinements}"
            )
        codes_per_level("residual_kmeans", self.num_codes, self.num_levels)


@dataclass(frozen=True, eq=False)
class ResidualKMeans:
    """Fitted codebooks."""

    config_class: ClassVar[type] = ResidualKMeansConfig
    config: ResidualKMeansConfig
    codebooks: tuple[Floats, ...]
    """L arrays (V_l, D), in the standardised space."""
    mean_D: Floats
    deviation_D: Floats

    @classmethod
    def fit(
        cls,
        vectors: ItemVectors,
        config: ResidualKMeansConfig,
        context: CatalogueContext | None = None,
    ) -> Self:
        """Learn one codebook a level. Same input, config and seed give the same codebooks."""
        sizes = codes_per_level("residual_kmeans", config.num_codes, config.num_levels)
        require_items("residual_kmeans", len(vectors), max(sizes))
        mean_D, deviation_D = moments(vectors.vectors, "column" if config.standardise else "none")
        rng = np.random.default_rng(config.seed)
        codebooks: list[Floats] = []
        earlier = None if context is None else context.earlier_ids
        for level, size in enumerate(sizes):
            wanted = config.max_points_per_code * size
            rows_S = np.arange(len(vectors))
            if len(rows_S) > wanted:
                rows_S = np.sort(rng.choice(len(rows_S), wanted, replace=False))
            points_SD = (vectors.vectors[rows_S] - mean_D) / deviation_D
            if config.refinements:  # they make the best path of what all paths were fitted to
                residuals_SD = left_over(points_SD, codebooks, config.beam)
            else:
                _, residuals_SD = beam_quantise(points_SD, codebooks, config.beam)
            start_VD = None
            if earlier is not None and level < earlier.num_levels:
                codes_S = codes_of(vectors.item_ids[rows_S], earlier, level)
                codes_S = np.repeat(codes_S, len(residuals_SD) // len(codes_S))
                start_VD = code_means(residuals_SD, codes_S, size, rng)
            elif config.progressive:
                start_VD = progressive_start(residuals_SD, size, rng)
            codebooks.append(lloyd(residuals_SD, size, config.num_iters, rng, start_VD))
            for _ in range(config.refinements if level else 0):
                codes_SL, _ = beam_quantise(points_SD, codebooks, config.beam)
                codebooks = refined(points_SD, codes_SL, codebooks)
        return cls(config, tuple(codebooks), mean_D, deviation_D)

    @property
    def num_codes(self) -> tuple[int, ...]:
        """L codebook sizes, coarse to fine."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def project(self, vectors: ItemVectors) -> Floats:
        """Points (N, D) in the space of the codebooks."""
        require_width("residual_kmeans", vectors, len(self.mean_D))
        if not self.config.standardise:
            return vectors.vectors
        return (vectors.vectors - self.mean_D) / self.deviation_D

    def encode(self, vectors: ItemVectors) -> SemanticIds:
        """Assign codes level by level. Items unseen in `fit` are welcome."""
        codes_NL, _ = beam_quantise(self.project(vectors), self.codebooks, self.config.beam)
        return SemanticIds(vectors.item_ids, codes_NL, self.num_codes)

    def decode(self, codes_NL: Ints) -> Floats:
        """Rebuild vectors (N, D); the first few columns of the codes give a coarser vector."""
        return reconstruct(codes_NL, self.codebooks) * self.deviation_D + self.mean_D

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` to rebuild this tokenizer."""
        books = {f"codebook.{level}": book for level, book in enumerate(self.codebooks)}
        return {**books, "mean": self.mean_D, "deviation": self.deviation_D}

    def state(self) -> dict[str, Any]:
        """Nothing beyond config and arrays."""
        return {}

    @classmethod
    def from_arrays(
        cls,
        config: ResidualKMeansConfig,
        arrays: Mapping[str, np.ndarray],
        state: Mapping[str, Any],
    ) -> Self:
        """The tokenizer that `arrays` and `state` came from."""
        books = tuple(arrays[f"codebook.{level}"] for level in range(config.num_levels))
        return cls(config, books, arrays["mean"], arrays["deviation"])


def codes_of(item_ids: Ids, ids: SemanticIds, level: int) -> Ints:
    """Code (S,) of each item at a level of other IDs; −1 where they lack the item or it ended."""
    codes_of_item = dict(zip(map(str, ids.item_ids), ids.codes[:, level].tolist(), strict=True))
    return np.array([codes_of_item.get(str(item), -1) for item in item_ids], dtype=np.int64)


def code_means(points_SD: Floats, codes_S: Ints, size: int, rng: np.random.Generator) -> Floats:
    """Mean point (V, D) of each code; a code without points gets a point drawn at random."""
    means_VD = points_SD[rng.choice(len(points_SD), size, replace=len(points_SD) < size)]
    for code in np.unique(codes_S[(codes_S >= 0) & (codes_S < size)]):
        means_VD[code] = points_SD[codes_S == code].mean(axis=0, dtype=np.float64)
    return means_VD


def codes_per_level(
    where: str, num_codes: int | tuple[int, ...], num_levels: int
) -> tuple[int, ...]:
    """One codebook size a level; ConfigError when the two settings do not fit together."""
    sizes = (num_codes,) * num_levels if isinstance(num_codes, int) else tuple(num_codes)
    if len(sizes) != num_levels:
        raise ConfigError(
            f"{where}.num_codes lists {len(sizes)} sizes for num_levels = {num_levels}; "
            "give one size, or one a level"
        )
    if min(sizes) < 1:
        raise ConfigError(f"{where}.num_codes must be at least 1, got {num_codes}")
    return sizes


def require_items(where: str, num_items: int, num_codes: int) -> None:
    """DataError when there are fewer items than codes."""
    if num_items < num_codes:
        raise DataError(
            f"{where} needs at least num_codes = {num_codes} items to fit, got {num_items}; "
            "lower num_codes"
        )


def require_width(where: str, vectors: ItemVectors, dim: int) -> None:
    """DataError when vectors have another width than those fitted on."""
    if vectors.vectors.shape[1] != dim:
        raise DataError(
            f"{where} was fitted on vectors of width {dim}, got {vectors.vectors.shape[1]}; "
            "embed items with the embedder it was fitted with"
        )


def moments(vectors_ND: Floats, scale: Scale) -> tuple[Floats, Floats]:
    """Mean and deviation (D,) to standardise with: per column, one common deviation, or (0, 1)."""
    dim = vectors_ND.shape[1]
    if scale == "none":
        return np.zeros(dim, np.float32), np.ones(dim, np.float32)
    mean_D = vectors_ND.mean(axis=0, dtype=np.float64)
    deviation_D = vectors_ND.std(axis=0, dtype=np.float64)
    if scale == "common":
        deviation_D = np.full(dim, np.sqrt(np.square(deviation_D).mean()))
    deviation_D[deviation_D < 1e-9] = 1
    return mean_D.astype(np.float32), deviation_D.astype(np.float32)
