"""Row operations that several embedders share.

Shapes: N items, D width.
"""

from __future__ import annotations

import numpy as np

from sidrec.types import Bools, Floats


def unit_rows(vectors_ND: np.ndarray) -> Floats:
    """Rows (N, D) scaled to length 1, float32; zero rows stay zero."""
    vectors = np.asarray(vectors_ND, dtype=np.float32)
    lengths_N1 = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths_N1 > 0, lengths_N1, 1), dtype=np.float32)


def known_rows(vectors_ND: np.ndarray) -> Bools:
    """Mask (N,) of rows that hold anything: the zero vector means "nothing is known"."""
    return np.asarray((vectors_ND != 0).any(axis=1))
