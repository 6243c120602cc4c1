"""Collaborative vectors: counts and information by hand, training events only."""

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from sidrec.embeddings.collaborative import (
    Collaborative,
    CollaborativeConfig,
    co_occurrence,
    positive_pmi,
)
from sidrec.errors import DataError
from sidrec.types import CatalogueContext, Histories, Items, as_ids


def context_of(sequences, num_items):
    items = Items(as_ids(f"i{row}" for row in range(num_items)), pl.DataFrame())
    return CatalogueContext(items, Histories.from_lists(sequences))


def naive_counts(sequences, num_items, window, decay):
    counts = np.zeros((num_items, num_items))
    for sequence in sequences:
        for i, first in enumerate(sequence):
            for distance in range(1, window + 1):
                if i + distance < len(sequence) and (second := sequence[i + distance]) != first:
                    counts[first, second] += decay ** (distance - 1)
                    counts[second, first] += decay ** (distance - 1)
    return counts


def test_counts_equal_the_plain_double_loop():
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 9, n).tolist() for n in (1, 2, 3, 12, 0, 7, 30)]
    for window, decay in ((1, 1.0), (3, 0.5), (40, 0.9)):
        found = co_occurrence(Histories.from_lists(sequences), 9, window=window, decay=decay)
        np.testing.assert_allclose(found.toarray(), naive_counts(sequences, 9, window, decay))


def test_information_of_three_items_by_hand():
    counts = np.array([[0, 4, 0], [4, 0, 1], [0, 1, 0]], dtype=float)
    found = positive_pmi(sparse.csr_matrix(counts)).toarray()
    # total 10; P(0, 1) = .4 against P(0) P(1) = .4 * .5; P(1, 2) = .1 against .5 * .1
    expected = np.array([[0, np.log(2), 0], [np.log(2), 0, np.log(2)], [0, np.log(2), 0]])
    np.testing.assert_allclose(found, expected)
    assert positive_pmi(sparse.csr_matrix(counts), shift=3.0).nnz == 0
    smooth = positive_pmi(sparse.csr_matrix(counts), smoothing=0.5).toarray()
    share = np.sqrt([4, 5, 1]) / np.sqrt([4, 5, 1]).sum()
    assert smooth[0, 1] == pytest.approx(np.log(0.4 / (0.4 * share[1])))


def test_with_every_direction_kept_vectors_factor_the_information():
    """Oracle: U S^(1/2) has the Gram matrix of |PPMI| = sqrt(PPMI PPMI^T), up to row lengths."""
    random = np.random.default_rng(1)
    context = context_of([random.integers(0, 8, 20).tolist() for _ in range(5)], 8)
    config = CollaborativeConfig(dim=8, smoothing=1.0, spectrum_power=0.5)
    vectors = Collaborative.fit(context, config).vectors_ND.astype(np.float64)
    counts = co_occurrence(context.train, 8, window=config.window, decay=config.decay)
    left, singular, _ = np.linalg.svd(positive_pmi(counts).toarray())
    expected = left * np.sqrt(singular)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-4)


def test_items_taken_together_lie_together_and_cold_ones_at_zero():
    random = np.random.default_rng(2)
    sequences = [(random.permutation(6) + 6 * (user % 2)).tolist() for user in range(40)]
    context = context_of([*sequences, [12]], 14)  # 12 is always alone, 13 never seen
    embedder = Collaborative.fit(context, CollaborativeConfig(dim=4))
    vectors = embedder.embed(context.items).vectors
    cosines = vectors @ vectors.T
    assert cosines[:6, :6].min() > cosines[:6, 6:12].max()
    assert embedder.num_cold == 2 and not vectors[12:].any()


def test_unseen_items_get_zero_and_rows_follow_ids():
    context = context_of([[0, 1, 2, 0, 1]] * 3, 3)
    embedder = Collaborative.fit(context, CollaborativeConfig(dim=2))
    mixed = Items(as_ids(["new", "i2", "i0"]), pl.DataFrame())
    vectors = embedder.embed(mixed).vectors
    assert not vectors[0].any()
    np.testing.assert_array_equal(vectors[1:], embedder.vectors_ND[[2, 0]])


def test_sequences_without_pairs_are_refused():
    with pytest.raises(DataError, match="use a text embedding"):
        Collaborative.fit(context_of([[0], [1], [2, 2]], 3), CollaborativeConfig())
