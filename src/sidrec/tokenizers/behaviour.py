"""What training events say of the items whose vectors a tokenizer is fitted on.

Source:  see `embeddings.collaborative` and `tokenizers.cooccurrence`.
Differs: collaborative vectors are a factorised PPMI matrix, not taken from a trained recommender.
Cost:    that of `Collaborative.fit`.
Shapes:  N items.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from sidrec.embeddings.collaborative import Collaborative, CollaborativeConfig
from sidrec.embeddings.vectors import known_rows
from sidrec.errors import DataError
from sidrec.tokenizers.cooccurrence import cooccurrence
from sidrec.types import CatalogueContext, ItemVectors


def companions(
    where: str, vectors: ItemVectors, context: CatalogueContext | None, window: int
) -> sparse.csr_array:
    """Users (N, N) who took both items near each other in training; empty without a context."""
    if context is None:
        return sparse.csr_array((len(vectors), len(vectors)), dtype=np.float32)
    if not np.array_equal(context.items.item_ids, vectors.item_ids):
        raise DataError(
            f"{where}: rows of the vectors ({len(vectors)}) must be those of the context's items "
            f"({context.num_items}), in the same order"
        )
    return cooccurrence(context.train, len(vectors), window)


def collaborative_vectors(
    where: str,
    vectors: ItemVectors,
    context: CatalogueContext | None,
    config: CollaborativeConfig,
) -> Collaborative | None:
    """Unit vectors from training events; None where these tell nothing of any item."""
    if context is None or not companions(where, vectors, context, config.window).nnz:
        return None
    fitted = Collaborative.fit(context, config)
    return fitted if known_rows(fitted.vectors_ND).any() else None
