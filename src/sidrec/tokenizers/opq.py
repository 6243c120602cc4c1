"""Optimised product quantisation: cut a rotated vector into blocks and name each by a centroid.

The codes of an ID say different things about an item; none refines another. So there is no
hierarchy, and all codes can be decoded at once. The rotation makes the blocks independent and
alike, so that no code carries much more than another. `codebooks` are as wide as the whole rotated
vector and zero outside their block: sums, residuals and `collisions.reassign` work as for a
residual quantiser, whose greedy codes are then exactly those of product quantisation.

    min over R'R = I, centroids, codes of   sum |xR − [c_1, …, c_L]|^2
    codes and centroids by k-means in each block;   R = UW'  where  X'[c_1, …, c_L] = U S W'

Source:  PQ: Jégou et al. 2011 (TPAMI 33); OPQ, start and alternation: Ge et al. 2013 (CVPR);
         as semantic IDs: RPG, arXiv:2506.05781.
Differs: each block ends with a full k-means, where dead codes restart at worst-fit points; PCA and
         rotation are of centred vectors; large catalogues are sampled; widths of blocks may differ
         by one. RPG has 16 to 64 codes an ID;
         the default is what can be decoded one code after another.
Cost:    fit O(num_rotations * (S * (V + P) * P + P^3)), S = min(N, max_points_per_code * V) sampled
         items; encode O(N * D * (P + V)).
Shapes:  N items, D width, P width after PCA, L blocks, V codes of a block, W width of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from sidrec.errors import ConfigError, DataError
from sidrec.tokenizers.quantisation import (
    BLOCK_ROWS,
    lloyd,
    means_by_code,
    nearest,
    plus_plus,
    reconstruct,
)
from sidrec.tokenizers.residual_kmeans import codes_per_level, require_items, require_width
from sidrec.types import CatalogueContext, Floats, Ints, ItemVectors, SemanticIds


@dataclass(frozen=True, kw_only=True)
class OpqConfig:
    """Settings of `Opq`."""

    num_codes: int | tuple[int, ...] = 256
    """V, the number of centroids of every block, or one number a block."""
    num_levels: int = 4
    """L, the number of blocks and of codes an ID (RPG: 16 to 64)."""
    rotate: bool = True
    """False: plain product quantisation of the columns as they stand."""
    pca: int = 0
    """P, how many principal components to keep first (RPG: 512); 0 keeps all columns."""
    num_rotations: int = 25
    """Rounds of the alternation between codes and rotation."""
    num_iters: int = 25
    """Upper bound on the k-means iterations that end the fit of a block."""
    max_points_per_code: int = 256
    """Rotation and centroids are fitted on at most this many items a code, drawn at random."""
    seed: int = 0
    """Seed of sampling and starting centroids."""

    def __post_init__(self) -> None:
        for name in ("num_levels", "num_iters", "max_points_per_code"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"opq.{name} must be at least 1, got {value}")
        for name in ("pca", "num_rotations"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"opq.{name} must not be negative, got {value}")
        codes_per_level("opq", self.num_codes, self.num_levels)


@dataclass(frozen=True, eq=False)
class Opq:
    """Fitted rotation and centroids."""

    config_class: ClassVar[type] = OpqConfig
    config: OpqConfig
    blocks: tuple[Floats, ...]
    """L arrays (V_l, W_l)."""
    mean_D: Floats
    rotation_DP: Floats
    """Orthonormal columns, PCA included."""

    @classmethod
    def fit(
        cls, vectors: ItemVectors, config: OpqConfig, context: CatalogueContext | None = None
    ) -> Self:
        """Learn it. Same input, config, seed and number of threads give the same codebooks."""
        sizes = codes_per_level("opq", config.num_codes, config.num_levels)
        require_items("opq", len(vectors), max(sizes))
        width = require_columns(config, vectors.vectors.shape[1])
        rng = np.random.default_rng(config.seed)
        rows_S, wanted = np.arange(len(vectors)), config.max_points_per_code * max(sizes)
        if len(rows_S) > wanted:
            rows_S = np.sort(rng.choice(len(rows_S), wanted, replace=False))
        points_SD = vectors.vectors[rows_S]
        mean_D = np.zeros(points_SD.shape[1], np.float32)
        rotation_DP, starts = np.eye(points_SD.shape[1]), [None] * len(sizes)
        if config.rotate or config.pca:
            mean_D = vectors.vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
            centred_SD = points_SD - mean_D
            values_P, rotation_DP = principal_directions(centred_SD, width)
            if config.rotate:
                rotation_DP = rotation_DP[:, shared_out(values_P, len(sizes))]
                rotation_DP, starts = learn_rotation(
                    centred_SD, rotation_DP, sizes, config.num_rotations, rng
                )
        rotation_DP = rotation_DP.astype(np.float32)
        points_SP = rotated(points_SD, mean_D, rotation_DP)
        blocks = tuple(
            lloyd(points_SP[:, columns], size, config.num_iters, rng, start_VW)
            for columns, size, start_VW in zip(
                block_columns(width, len(sizes)), sizes, starts, strict=True
            )
        )
        return cls(config, blocks, mean_D, rotation_DP)

    @property
    def num_codes(self) -> tuple[int, ...]:
        """L codebook sizes."""
        return tuple(len(block) for block in self.blocks)

    @cached_property
    def codebooks(self) -> tuple[Floats, ...]:
        """L arrays (V_l, P), zero outside the columns of their block."""
        return full_width(self.blocks)

    def project(self, vectors: ItemVectors) -> Floats:
        """Points (N, P) in the space of the codebooks."""
        require_width("opq", vectors, len(self.mean_D))
        if not (self.config.rotate or self.config.pca):
            return vectors.vectors
        return rotated(vectors.vectors, self.mean_D, self.rotation_DP)

    def encode(self, vectors: ItemVectors) -> SemanticIds:
        """The nearest centroid in each block. Items unseen in `fit` are welcome.

        Same codes as `quantise(self.project(vectors), self.codebooks)`.
        """
        points_NP = self.project(vectors)
        columns = block_columns(points_NP.shape[1], len(self.blocks))
        codes = [
            nearest(points_NP[:, c], block) for c, block in zip(columns, self.blocks, strict=True)
        ]
        return SemanticIds(vectors.item_ids, np.stack(codes, axis=1), self.num_codes)

    def decode(self, codes_NL: Ints) -> Floats:
        """Rebuild vectors (N, D); blocks without a code are taken at their mean."""
        return reconstruct(codes_NL, self.codebooks) @ self.rotation_DP.T + self.mean_D

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` to rebuild this tokenizer."""
        blocks = {f"codebook.{level}": block for level, block in enumerate(self.blocks)}
        return {**blocks, "mean": self.mean_D, "rotation": self.rotation_DP}

    def state(self) -> dict[str, Any]:
        """Nothing beyond config and arrays."""
        return {}

    @classmethod
    def from_arrays(
        cls, config: OpqConfig, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
    ) -> Self:
        """The tokenizer that `arrays` and `state` came from."""
        blocks = tuple(arrays[f"codebook.{level}"] for level in range(config.num_levels))
        return cls(config, blocks, arrays["mean"], arrays["rotation"])


def require_columns(config: OpqConfig, dim: int) -> int:
    """P, the width after PCA; DataError where the vectors have too few columns."""
    if config.pca > dim:
        raise DataError(f"opq.pca = {config.pca} is more than the vectors' width {dim}; lower it")
    width = config.pca or dim
    if config.num_levels > width:
        raise DataError(
            f"opq needs a column for each of its num_levels = {config.num_levels} codes, got "
            f"{width}; lower opq.num_levels"
        )
    return width


def block_columns(width: int, num_blocks: int) -> list[slice]:
    """The columns of each block; the first ones are one wider where the width does not divide."""
    ends = np.cumsum([width // num_blocks + (b < width % num_blocks) for b in range(num_blocks)])
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def full_width(blocks: Sequence[Floats]) -> tuple[Floats, ...]:
    """Each block's centroids (V, P) as vectors of the whole space."""
    width = sum(block.shape[1] for block in blocks)
    books = tuple(np.zeros((len(block), width), np.float32) for block in blocks)
    for book, columns, block in zip(books, block_columns(width, len(blocks)), blocks, strict=True):
        book[:, columns] = block
    return books


def rotated(vectors_ND: Floats, mean_D: Floats, rotation_DP: Floats) -> Floats:
    """(x − mean) R as float32 (N, P), computed in float64 so that no row depends on its batch."""
    out_NP = np.empty((len(vectors_ND), rotation_DP.shape[1]), np.float32)
    exact_DP = rotation_DP.astype(np.float64)
    for start in range(0, len(vectors_ND), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        out_NP[rows] = (vectors_ND[rows].astype(np.float64) - mean_D) @ exact_DP
    return out_NP


def principal_directions(centred_SD: Floats, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest variances (P,), descending, and their directions (D, P)."""
    exact_SD = centred_SD.astype(np.float64)
    values_D, directions_DD = np.linalg.eigh(exact_SD.T @ exact_SD / len(exact_SD))
    return values_D[::-1][:width], directions_DD[:, ::-1][:, :width]


def shared_out(variances_P: np.ndarray, num_blocks: int) -> Ints:
    """Order (P,) of components in which every block has about the same product of variances.

    From the largest down, each goes to the block with the smallest product that still has room
    (Ge et al. 2013, section 3.2.3).
    """
    logs_P = np.log(np.maximum(variances_P, 1e-12 * max(float(variances_P[0]), 1e-30)))
    logs_P -= logs_P.min()  # so that a product only grows
    rooms = [columns.stop - columns.start for columns in block_columns(len(logs_P), num_blocks)]
    members: list[list[int]] = [[] for _ in rooms]
    for component in range(len(logs_P)):
        open_blocks = [b for b, room in enumerate(rooms) if len(members[b]) < room]
        block = min(open_blocks, key=lambda b: (logs_P[members[b]].sum(), len(members[b]), b))
        members[block].append(component)
    return np.concatenate(members).astype(np.int64)


def learn_rotation(
    centred_SD: Floats,
    rotation_DP: np.ndarray,
    sizes: Sequence[int],
    num_rounds: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[Floats | None]]:
    """A better rotation (D, P) inside the span of the given one, and centroids (V, W) a block.

    No round makes the error larger.
    """
    reduced_SP = centred_SD.astype(np.float64) @ rotation_DP
    turn_PP = np.eye(reduced_SP.shape[1])
    blocks = block_columns(reduced_SP.shape[1], len(sizes))
    books: list[Floats | None] = [None] * len(sizes)
    for _ in range(num_rounds):
        points_SP = (reduced_SP @ turn_PP).astype(np.float32)
        rebuilt_SP = np.empty_like(reduced_SP)
        for level, (columns, size) in enumerate(zip(blocks, sizes, strict=True)):
            book_VW = books[level]
            if book_VW is None:
                book_VW = plus_plus(points_SP[:, columns], size, rng)
            codes_S = nearest(points_SP[:, columns], book_VW)
            books[level] = book_VW = means_by_code(points_SP[:, columns], codes_S, size)
            rebuilt_SP[:, columns] = book_VW[codes_S]
        left_PP, _, right_PP = np.linalg.svd(reduced_SP.T @ rebuilt_SP)
        turn_PP = left_PP @ right_PP
    return rotation_DP @ turn_PP, books
