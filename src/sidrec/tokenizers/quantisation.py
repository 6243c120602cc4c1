"""Nearest centroids, k-means and residual quantisation: the arithmetic tokenizers share.

Every answer is independent of batch size, row order and thread count: faiss finds the two nearest
centroids, and where the race is too close for float32 the row is decided again in float64.

Source:  Lloyd 1982 (k-means); Arthur & Vassilvitskii 2007 (k-means++ seeding); Juang & Gray 1982
         (multi-stage quantisation).
Differs: a code that no point chose restarts at a worst-fit point.
Cost:    nearest O(N * V * D); lloyd that times the number of iterations.
Shapes:  N points, D width, L levels, V codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np
from scipy import sparse

from sidrec.types import Floats, Ints

BLOCK_ROWS = 65_536
"""Points handled at a time, so that residuals stay small and warm."""


def nearest(points_ND: Floats, codebook_VD: Floats) -> Ints:
    """Index (N,) of each point's closest centroid by Euclidean distance; ties go to the lower.

    Same as `((points[:, None] - codebook) ** 2).sum(-1).argmin(1)`, in blocks.
    """
    if not len(points_ND):
        return np.zeros(0, dtype=np.int64)
    points_ND = np.ascontiguousarray(points_ND, dtype=np.float32)
    codebook_VD = np.ascontiguousarray(codebook_VD, dtype=np.float32)
    if len(codebook_VD) == 1:
        return np.zeros(len(points_ND), dtype=np.int64)
    distances_N2, codes_N2 = faiss.knn(points_ND, codebook_VD, 2)  # squared L2
    codes_N = codes_N2[:, 0].copy()
    # |p-c|^2 = |p|^2 - 2 p.c + |c|^2 loses about D * eps of |p|^2 + |c|^2
    norms_N = np.einsum("nd,nd->n", points_ND, points_ND)
    largest = float(np.einsum("vd,vd->v", codebook_VD, codebook_VD).max())
    slack_N = 4e-6 * (norms_N + largest)
    close = np.flatnonzero(distances_N2[:, 1] - distances_N2[:, 0] <= slack_N)
    for start in range(0, len(close), 1024):
        rows = close[start : start + 1024]
        codes_N[rows] = squared_distances(points_ND[rows], codebook_VD).argmin(axis=1)
    return codes_N


def squared_distances(points_ND: Floats, codebook_VD: Floats) -> np.ndarray:
    """Exact squared distances (N, V) in float64; equal rows give equal numbers."""
    points, codebook = points_ND.astype(np.float64), codebook_VD.astype(np.float64)
    out_NV = np.empty((len(points), len(codebook)))
    for code, centroid in enumerate(codebook):
        out_NV[:, code] = np.square(points - centroid).sum(axis=1)
    return out_NV


def quantise(points_ND: Floats, codebooks: Sequence[Floats]) -> tuple[Ints, Floats]:
    """Codes (N, L), greedy level by level, and what they leave unexplained (N, D)."""
    codes_NL = np.empty((len(points_ND), len(codebooks)), dtype=np.int64)
    residuals_ND = np.array(points_ND, dtype=np.float32, order="C")
    for start in range(0, len(points_ND), BLOCK_ROWS):
        residuals = residuals_ND[start : start + BLOCK_ROWS]
        for level, codebook_VD in enumerate(codebooks):
            codes = nearest(residuals, codebook_VD)
            residuals -= codebook_VD[codes]
            codes_NL[start : start + BLOCK_ROWS, level] = codes
    return codes_NL, residuals_ND


def reconstruct(codes_NL: Ints, codebooks: Sequence[Floats]) -> Floats:
    """Sums (N, D) of the chosen centroids; fewer columns than codebooks give a coarser sum."""
    vectors_ND = np.zeros((len(codes_NL), codebooks[0].shape[1]), dtype=np.float32)
    for level in range(codes_NL.shape[1]):
        vectors_ND += codebooks[level][codes_NL[:, level]]
    return vectors_ND


def lloyd(
    points_ND: Floats,
    num_codes: int,
    num_iters: int,
    rng: np.random.Generator,
    start_VD: Floats | None = None,
) -> Floats:
    """Centroids (V, D) of k-means from `start_VD`, else from k-means++.

    A dead code restarts at a worst fit.
    """
    points_ND = np.ascontiguousarray(points_ND, dtype=np.float32)
    exact_ND = points_ND.astype(np.float64)  # sums in float32 drift
    codebook_VD = plus_plus(points_ND, num_codes, rng) if start_VD is None else start_VD
    codes_N = nearest(points_ND, codebook_VD)
    for _ in range(num_iters):
        counts_V = np.bincount(codes_N, minlength=num_codes)
        sums_VD = _sums_by_code(exact_ND, codes_N, num_codes)
        means_VD = (sums_VD / np.maximum(counts_V, 1)[:, None]).astype(np.float32)
        codebook_VD = np.where(counts_V[:, None] > 0, means_VD, codebook_VD)
        if (dead := np.flatnonzero(counts_V == 0)).size:
            errors_N = np.square(points_ND - codebook_VD[codes_N]).sum(axis=1)
            worst = np.argsort(-errors_N, kind="stable")[: dead.size]
            codebook_VD[dead] = points_ND[worst]
        previous_N, codes_N = codes_N, nearest(points_ND, codebook_VD)
        if np.array_equal(codes_N, previous_N):
            break
    return codebook_VD


def plus_plus(points_ND: Floats, num_codes: int, rng: np.random.Generator) -> Floats:
    """Starting centroids (V, D): points drawn with chance proportional to squared distance.

    Draws from at most 32 points a code; the rest of the points would change little.
    """
    if len(points_ND) > 32 * num_codes:
        points_ND = points_ND[np.sort(rng.choice(len(points_ND), 32 * num_codes, replace=False))]
    chosen = [int(rng.integers(len(points_ND)))]
    norms_N = np.square(points_ND).sum(axis=1)
    errors_N = np.square(points_ND - points_ND[chosen[0]]).sum(axis=1)
    for _ in range(num_codes - 1):
        cumulative_N = np.cumsum(errors_N, dtype=np.float64)
        point = int(np.searchsorted(cumulative_N, rng.random() * cumulative_N[-1], side="right"))
        chosen.append(min(point, len(points_ND) - 1))
        centre = points_ND[chosen[-1]]
        products_N = np.einsum("nd,d->n", points_ND, centre)  # BLAS would split by threads
        fresh_N = norms_N - 2 * products_N + norms_N[chosen[-1]]
        errors_N = np.minimum(errors_N, np.maximum(fresh_N, 0))
    return points_ND[chosen]


def progressive_start(points_ND: Floats, num_codes: int, rng: np.random.Generator) -> Floats:
    """Starting centroids (V, D): k-means from random points in 4 principal components, then 8, ….

    Early rounds see only what matters most, so in many dimensions `lloyd` ends lower from here
    than from `plus_plus`, which picks outliers there (as in `faiss.ProgressiveDimClustering`).
    """
    centred_ND = points_ND - points_ND.mean(axis=0, dtype=np.float64)
    _, directions_DD = np.linalg.eigh(centred_ND.T @ centred_ND)
    turned_ND = (centred_ND @ directions_DD[:, ::-1]).astype(np.float32)
    start_VD = turned_ND[rng.choice(len(points_ND), num_codes, replace=False)]
    codes_N, width = nearest(turned_ND, start_VD), 4
    while width < points_ND.shape[1]:
        start_VW = means_by_code(turned_ND[:, :width], codes_N, num_codes)
        codebook_VW = lloyd(turned_ND[:, :width], num_codes, 10, rng, start_VW)
        codes_N, width = nearest(turned_ND[:, :width], codebook_VW), 2 * width
    return means_by_code(points_ND, codes_N, num_codes)


def means_by_code(points_ND: Floats, codes_N: Ints, num_codes: int) -> Floats:
    """Mean (V, D) of the points of each code; zero for a code without points."""
    counts_V = np.bincount(codes_N, minlength=num_codes)
    sums_VD = _sums_by_code(points_ND.astype(np.float64), codes_N, num_codes)
    return (sums_VD / np.maximum(counts_V, 1)[:, None]).astype(np.float32)


def _sums_by_code(exact_ND: np.ndarray, codes_N: Ints, num_codes: int) -> np.ndarray:
    """Sum (V, D) of the points of each code, in row order."""
    order = np.argsort(codes_N, kind="stable")
    starts = np.searchsorted(codes_N[order], np.arange(num_codes))
    one_hot = sparse.csr_matrix(
        (np.ones(len(order)), order, np.append(starts, len(order))),
        shape=(num_codes, len(exact_ND)),
    )
    return one_hot @ exact_ND
