"""Residual quantisation by beam search, and codebooks fitted together for the codes it finds.

Greedy codes take the nearest centroid level by level. A beam keeps the few best prefixes of every
item instead and returns the best whole code; given codes, all codebooks at once are a least-squares
problem. Alternating the two lowers the error further than either.

Source:  Babenko & Lempitsky 2014 (CVPR), additive quantisation; Liu et al. 2015, improved residual
         vector quantisation (beam search for residual codes); faiss.ResidualQuantizer does both.
Differs: least squares is pulled towards the codebooks it starts from, so that unused codes stay
         where they are.
Cost:    beam about W times the greedy cost; refinement O((L V)^3 + N * L * D).
Shapes:  N points, D width, L levels, V codes of a level, W beam width,
         U = W * min(W, V) candidates, C codes of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np
from scipy import sparse

from sidrec.tokenizers.quantisation import quantise
from sidrec.types import Floats, Ints

BLOCK_ROWS = 16_384
"""Beams handled at a time."""
PULL = 1e-3
"""Weight of staying at the present codebooks, in items."""


def beam_quantise(points_ND: Floats, codebooks: Sequence[Floats], beam: int) -> tuple[Ints, Floats]:
    """Codes (N, L) of the best of `beam` paths, and what they leave unexplained (N, D).

    `beam = 1` is `quantise`. The last choice is made in float64, ties to the lower code; prefixes
    leave the beam by float32 distances, so equally good ones may do so in any order.
    """
    if beam == 1:
        return quantise(points_ND, codebooks)
    points_ND = np.ascontiguousarray(points_ND, dtype=np.float32)
    codes_NL = np.empty((len(points_ND), len(codebooks)), dtype=np.int64)
    residuals_ND = np.empty_like(points_ND)
    step = max(BLOCK_ROWS // beam, 1)
    for start in range(0, len(points_ND), step):
        rows = slice(start, start + step)
        paths_NWL, residuals_NWD = best_paths(points_ND[rows], codebooks, beam)
        errors_NW = np.square(residuals_NWD, dtype=np.float64).sum(axis=2)
        first_N = np.lexsort((*np.moveaxis(paths_NWL, 2, 0)[::-1], errors_NW), axis=1)[:, 0]
        every_N = np.arange(len(first_N))
        codes_NL[rows] = paths_NWL[every_N, first_N]
        residuals_ND[rows] = residuals_NWD[every_N, first_N]
    return codes_NL, residuals_ND


def left_over(points_ND: Floats, codebooks: Sequence[Floats], beam: int) -> Floats:
    """What all paths of the beams leave (N * W, D), for the next level to be fitted to."""
    if beam == 1:
        return quantise(points_ND, codebooks)[1]
    step, dim = max(BLOCK_ROWS // beam, 1), points_ND.shape[1]
    starts = range(0, len(points_ND), step)
    parts = [best_paths(points_ND[s : s + step], codebooks, beam)[1] for s in starts]
    return np.concatenate([part.reshape(-1, dim) for part in parts])


def best_paths(points_ND: Floats, codebooks: Sequence[Floats], beam: int) -> tuple[Ints, Floats]:
    """The best codes (N, W, L) of each point, W at most `beam`, and what they leave (N, W, D)."""
    num_points, dim = points_ND.shape
    every_N1 = np.arange(num_points)[:, None]
    paths_NWL = np.empty((num_points, 1, 0), dtype=np.int64)
    residuals_NWD = np.ascontiguousarray(points_ND, dtype=np.float32)[:, None]
    for codebook_VD in codebooks:
        codebook_VD = np.ascontiguousarray(codebook_VD, dtype=np.float32)
        wanted = min(beam, len(codebook_VD))
        distances, codes = faiss.knn(residuals_NWD.reshape(-1, dim), codebook_VD, wanted)
        best_NU = np.argsort(distances.reshape(num_points, -1), axis=1, kind="stable")
        chosen_NW = best_NU[:, :beam]
        codes_NW = codes.reshape(num_points, -1)[every_N1, chosen_NW]
        paths_NWL = paths_NWL[every_N1, chosen_NW // wanted]
        paths_NWL = np.concatenate([paths_NWL, codes_NW[..., None]], axis=2)
        residuals_NWD = residuals_NWD[every_N1, chosen_NW // wanted] - codebook_VD[codes_NW]
    return paths_NWL, residuals_NWD


def refined(points_ND: Floats, codes_NL: Ints, codebooks: Sequence[Floats]) -> list[Floats]:
    """The codebooks, all levels at once, that rebuild these points best from these codes."""
    sizes = [len(codebook) for codebook in codebooks]
    first_L = np.cumsum([0, *sizes[:-1]])
    num_points, num_levels = codes_NL.shape
    chosen_NC = sparse.csr_matrix(
        (
            np.ones(codes_NL.size),
            (codes_NL + first_L).ravel(),
            np.arange(0, codes_NL.size + 1, num_levels),
        ),
        shape=(num_points, sum(sizes)),
    )
    all_CD = np.concatenate(codebooks).astype(np.float64)
    left_ND = points_ND - chosen_NC @ all_CD
    normal_CC = (chosen_NC.T @ chosen_NC).toarray() + PULL * np.eye(len(all_CD))
    all_CD += np.linalg.solve(normal_CC, chosen_NC.T @ left_ND)
    return np.split(all_CD.astype(np.float32), first_L[1:])
