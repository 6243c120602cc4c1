"""Balanced residual k-means: every code of a level is held by equally many items, give or take one.

The codes of a level take turns: each takes its share of the items nearest to its centroid among
those that no earlier code took, then all centroids move to the means of what they hold, and again.
The next level does the same with what is left of every item, over all items at once.

An item that was fitted keeps the code of its turn, which need not be the nearest: `encode` finds it
by item id. An item with another id, or with the id of a fitted item but another vector (off by more
than `MAX_CHANGE` of the variance of the fitted items), takes the nearest centroids.

Source:  OneRec, arXiv:2502.18965, Algorithm 1.
Differs: k-means++ start; the best round counts, since a round can be worse than the one before;
         rounds run on a sample of large catalogues, one more on all items; where codes do not
         divide the items, the first take one more. Balance is over items, not over their traffic.
Cost:    fit O(L * num_iters * S * V * D), S = min(N, max_points_per_code * V) sampled items;
         encode O(L * N * V * D) for unseen items, a look-up for fitted ones. A fitted item costs 40
         bytes and 1 or 2 a level.
Shapes:  N items, M fitted items, D width, L levels, V codes of a level, F numbers of a fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from sidrec.errors import ConfigError
from sidrec.tokenizers.quantisation import means_by_code, plus_plus, quantise, reconstruct
from sidrec.tokenizers.residual_kmeans import codes_per_level, require_items, require_width
from sidrec.types import CatalogueContext, Floats, Ids, Ints, ItemVectors, SemanticIds

MAX_CHANGE = 0.01
"""A fitted item is known again while its squared change is under this share of the variance."""
CODES_A_TURN = 32
"""Codes whose distances are computed together."""


@dataclass(frozen=True, kw_only=True)
class BalancedKMeansConfig:
    """Settings of `BalancedKMeans`."""

    num_codes: int | tuple[int, ...] = 256
    """V, the size of every level's codebook, or one size a level."""
    num_levels: int = 3
    """L, the length of a semantic ID."""
    num_iters: int = 25
    """Upper bound on rounds a level; a level stops early once no item moves."""
    max_points_per_code: int = 256
    """Rounds but the last use at most this many items a code, drawn at random."""
    seed: int = 0
    """Seed of sampling and starting centroids."""

    def __post_init__(self) -> None:
        for name in ("num_levels", "num_iters", "max_points_per_code"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"balanced_kmeans.{name} must be at least 1, got {value}")
        codes_per_level("balanced_kmeans", self.num_codes, self.num_levels)


@dataclass(frozen=True, eq=False)
class FittedItems:
    """The codes of fitted items, found by id and checked by a fingerprint of the vector."""

    keys_M: Ints
    """64-bit hashes of the item ids, ascending."""
    codes_ML: np.ndarray
    """Unsigned, as narrow as the codebooks allow."""
    fingerprints_MF: Floats

    @classmethod
    def of(cls, vectors: ItemVectors, codes_NL: Ints) -> Self:
        """Remember these items."""
        keys_N = hashes(vectors.item_ids)
        order = np.argsort(keys_N, kind="stable")
        narrow = np.min_scalar_type(int(codes_NL.max()))
        prints_NF = fingerprints(vectors.vectors)
        return cls(keys_N[order], codes_NL[order].astype(narrow), prints_NF[order])

    def rows(self, vectors: ItemVectors) -> Ints:
        """Row (N,) of each item here; −1 where its id is unknown or its vector is another one."""
        keys_N = hashes(vectors.item_ids)
        rows_N = np.searchsorted(self.keys_M, keys_N).clip(max=len(self.keys_M) - 1)
        prints_NF = fingerprints(vectors.vectors)
        change_N = np.square(prints_NF - self.fingerprints_MF[rows_N]).sum(axis=1)
        variance = self.fingerprints_MF.var(axis=0, dtype=np.float64).sum()
        rounding_N = 1e-10 * np.square(prints_NF).sum(axis=1)
        same_N = change_N <= MAX_CHANGE * variance + rounding_N
        return np.where((self.keys_M[rows_N] == keys_N) & same_N, rows_N, -1)


@dataclass(frozen=True, eq=False)
class BalancedKMeans:
    """Fitted codebooks, and the codes that the fitted items hold."""

    config_class: ClassVar[type] = BalancedKMeansConfig
    config: BalancedKMeansConfig
    codebooks: tuple[Floats, ...]
    """L arrays (V_l, D)."""
    fitted: FittedItems

    @classmethod
    def fit(
        cls,
        vectors: ItemVectors,
        config: BalancedKMeansConfig,
        context: CatalogueContext | None = None,
    ) -> Self:
        """Learn one codebook a level. Same input, config and seed give the same codes."""
        sizes = codes_per_level("balanced_kmeans", config.num_codes, config.num_levels)
        require_items("balanced_kmeans", len(vectors), max(sizes))
        rng = np.random.default_rng(config.seed)
        residuals_ND = vectors.vectors.copy()
        codebooks: list[Floats] = []
        codes_NL = np.empty((len(vectors), len(sizes)), dtype=np.int64)
        for level, size in enumerate(sizes):
            codebook_VD, codes_NL[:, level] = balanced_kmeans(residuals_ND, size, config, rng)
            residuals_ND -= codebook_VD[codes_NL[:, level]]
            codebooks.append(codebook_VD)
        return cls(config, tuple(codebooks), FittedItems.of(vectors, codes_NL))

    @property
    def num_codes(self) -> tuple[int, ...]:
        """L codebook sizes, coarse to fine."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def project(self, vectors: ItemVectors) -> Floats:
        """Points (N, D) in the space of the codebooks."""
        require_width("balanced_kmeans", vectors, self.codebooks[0].shape[1])
        return vectors.vectors

    def encode(self, vectors: ItemVectors) -> SemanticIds:
        """The balanced codes of fitted items; the nearest centroids, level by level, of others."""
        points_ND = self.project(vectors)
        rows_N = self.fitted.rows(vectors)
        codes_NL = self.fitted.codes_ML[rows_N].astype(np.int64)
        codes_NL[rows_N < 0], _ = quantise(points_ND[rows_N < 0], self.codebooks)
        return SemanticIds(vectors.item_ids, codes_NL, self.num_codes)

    def decode(self, codes_NL: Ints) -> Floats:
        """Rebuild vectors (N, D); the first few columns of the codes give a coarser vector."""
        return reconstruct(codes_NL, self.codebooks)

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` to rebuild this tokenizer."""
        books = {f"codebook.{level}": book for level, book in enumerate(self.codebooks)}
        items = self.fitted
        kept = {"keys": items.keys_M, "fingerprints": items.fingerprints_MF}
        return {**books, **kept, "codes": items.codes_ML}

    def state(self) -> dict[str, Any]:
        """Nothing beyond config and arrays."""
        return {}

    @classmethod
    def from_arrays(
        cls,
        config: BalancedKMeansConfig,
        arrays: Mapping[str, np.ndarray],
        state: Mapping[str, Any],
    ) -> Self:
        """The tokenizer that `arrays` and `state` came from."""
        books = tuple(arrays[f"codebook.{level}"] for level in range(config.num_levels))
        return cls(
            config, books, FittedItems(arrays["keys"], arrays["codes"], arrays["fingerprints"])
        )


def balanced_kmeans(
    points_ND: Floats, num_codes: int, config: BalancedKMeansConfig, rng: np.random.Generator
) -> tuple[Floats, Ints]:
    """Centroids (V, D) and codes (N,), each code held by N // V or N // V + 1 points."""
    rows_S, wanted = np.arange(len(points_ND)), config.max_points_per_code * num_codes
    if len(rows_S) > wanted:
        rows_S = np.sort(rng.choice(len(rows_S), wanted, replace=False))
    points_SD = points_ND[rows_S]
    codebook_VD = best_VD = plus_plus(points_SD, num_codes, rng)
    codes_S = best_S = np.full(len(rows_S), -1)
    best_error = np.inf
    for _ in range(config.num_iters):
        before_S, codes_S = codes_S, take_turns(points_SD, codebook_VD)
        if np.array_equal(codes_S, before_S):
            break
        codebook_VD = means_by_code(points_SD, codes_S, num_codes)
        error = np.square(points_SD - codebook_VD[codes_S]).sum(dtype=np.float64)
        if error < best_error:
            best_VD, best_S, best_error = codebook_VD, codes_S, error
    if len(rows_S) == len(points_ND):
        return best_VD, best_S
    codes_N = take_turns(points_ND, best_VD)
    return means_by_code(points_ND, codes_N, num_codes), codes_N


def take_turns(points_ND: Floats, codebook_VD: Floats) -> Ints:
    """Codes (N,): each code in turn takes its share of the nearest points that are left.

    Of points equally near the first rows go first.
    """
    num_points, num_codes = len(points_ND), len(codebook_VD)
    shares_V = num_points // num_codes + (np.arange(num_codes) < num_points % num_codes)
    codes_N = np.empty(num_points, dtype=np.int64)
    left = np.arange(num_points)
    for first in range(0, num_codes, CODES_A_TURN):
        distances_CU = distances(points_ND, left, codebook_VD[first : first + CODES_A_TURN])
        free = np.arange(len(left))
        for code, distances_U in enumerate(distances_CU, first):
            taken_U = nearest_few(distances_U[free], int(shares_V[code]))
            codes_N[left[free[taken_U]]] = code
            free = free[~taken_U]
        left = left[free]
    return codes_N


def nearest_few(distances_U: Floats, share: int) -> np.ndarray:
    """Mask (U,) of the `share` smallest; of equal ones the first."""
    if share >= len(distances_U):
        return np.ones(len(distances_U), dtype=bool)
    furthest = np.partition(distances_U, share - 1)[share - 1]
    taken_U = distances_U < furthest
    equal = np.flatnonzero(distances_U == furthest)
    taken_U[equal[: share - np.count_nonzero(taken_U)]] = True
    return taken_U


def distances(points_ND: Floats, rows_U: Ints, centroids_CD: Floats) -> Floats:
    """Half the squared distances (C, U) of some points to some centroids.

    Summed in float64 and rounded to float32, so that equal points are equally near at any number
    of threads.
    """
    out_CU = np.empty((len(centroids_CD), len(rows_U)), dtype=np.float32)
    centroids = centroids_CD.astype(np.float64)
    norms_C1 = 0.5 * np.square(centroids).sum(axis=1, keepdims=True)
    for start in range(0, len(rows_U), 8192):
        points = points_ND[rows_U[start : start + 8192]].astype(np.float64)
        norms_U = 0.5 * np.einsum("ud,ud->u", points, points)
        out_CU[:, start : start + 8192] = norms_U + norms_C1 - centroids @ points.T
    return out_CU


def hashes(item_ids: Ids) -> Ints:
    """64-bit hash (N,) of each item id."""
    digests = (hashlib.blake2b(str(item).encode(), digest_size=8).digest() for item in item_ids)
    return np.fromiter((int.from_bytes(d, "little", signed=True) for d in digests), np.int64)


def fingerprints(points_ND: Floats, size: int = 8) -> Floats:
    """Projections (N, F) on fixed random directions: squared distances survive, on average."""
    random = np.random.default_rng(0)
    directions_DF = random.standard_normal((points_ND.shape[1], size)) / np.sqrt(size)
    return (points_ND.astype(np.float64) @ directions_DF).astype(np.float32)
