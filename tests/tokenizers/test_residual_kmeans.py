"""Residual k-means: planted hierarchies, golden codes, and what it refuses."""

from itertools import pairwise
from pathlib import Path

import faiss
import numpy as np
import pytest

from sidrec.errors import ConfigError, DataError
from sidrec.testing.tokenizers import tiny_vectors
from sidrec.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from sidrec.types import ItemVectors, as_ids

GOLDEN = Path(__file__).parents[1] / "golden" / "residual_kmeans_codes.txt"


def item_vectors(array):
    return ItemVectors(as_ids(range(len(array))), np.asarray(array, dtype=np.float32))


def planted_hierarchy(seed=0):
    """5 far groups, in each the same 4 near places, in each 10 items almost on the spot."""
    random = np.random.default_rng(seed)
    coarse, fine = 50 * random.standard_normal((5, 8)), random.standard_normal((4, 8))
    labels = np.array([(g, p) for g in range(5) for p in range(4) for _ in range(10)])
    vectors = coarse[labels[:, 0]] + fine[labels[:, 1]]
    return labels, item_vectors(vectors + 0.01 * random.standard_normal(vectors.shape))


def same_partition(codes, labels):
    pairs = {(tuple(np.atleast_1d(c)), label) for c, label in zip(codes, labels, strict=True)}
    return len(pairs) == len({c for c, _ in pairs}) == len({label for _, label in pairs})


def test_a_planted_hierarchy_is_recovered_level_by_level():
    labels, vectors = planted_hierarchy()
    config = ResidualKMeansConfig(num_codes=(5, 4), num_levels=2)
    codes = ResidualKMeans.fit(vectors, config).encode(vectors).codes
    assert same_partition(codes[:, 0], labels[:, 0].tolist())
    assert same_partition(codes[:, 1], labels[:, 1].tolist())


def test_codes_equal_the_golden_file():
    random = np.random.default_rng(7)
    vectors = random.standard_normal((40, 6)).astype(np.float32)
    ids = ResidualKMeans.fit(
        item_vectors(vectors), ResidualKMeansConfig(num_codes=(8, 6, 4), num_iters=10)
    ).encode(item_vectors(vectors))
    text = "\n".join(" ".join(map(str, codes)) for codes in ids.codes.tolist()) + "\n"
    assert text == GOLDEN.read_text(), (
        "codes changed: say why in the changelog, then renew the file"
    )


def test_the_number_of_threads_changes_nothing():
    random = np.random.default_rng(5)
    vectors = item_vectors(random.standard_normal((6000, 24)))
    before, books = faiss.omp_get_max_threads(), []
    try:
        for threads in (1, 3):
            faiss.omp_set_num_threads(threads)
            config = ResidualKMeansConfig(num_codes=32, num_iters=5)
            books.append(np.stack(ResidualKMeans.fit(vectors, config).codebooks))
    finally:
        faiss.omp_set_num_threads(before)
    np.testing.assert_array_equal(books[0], books[1])


def test_each_level_is_nearest_to_what_the_levels_before_left():
    vectors = tiny_vectors(300, seed=2)
    tokenizer = ResidualKMeans.fit(vectors, ResidualKMeansConfig(num_codes=12))
    codes, residuals = tokenizer.encode(vectors).codes, vectors.vectors.astype(np.float64)
    for level, codebook in enumerate(tokenizer.codebooks):
        distances = np.square(residuals[:, None] - codebook[None]).sum(-1)
        chosen = distances[np.arange(300), codes[:, level]]
        np.testing.assert_allclose(chosen, distances.min(axis=1), rtol=1e-4, atol=1e-6)
        residuals = residuals - codebook[codes[:, level]]


def test_more_levels_rebuild_better():
    vectors = tiny_vectors(400, seed=1)
    tokenizer = ResidualKMeans.fit(vectors, ResidualKMeansConfig(num_codes=16, num_levels=4))
    codes = tokenizer.encode(vectors).codes
    errors = [
        np.square(vectors.vectors - tokenizer.decode(codes[:, :depth])).sum()
        for depth in range(1, 5)
    ]
    assert all(after < before for before, after in pairwise(errors))


def test_a_rebuilt_vector_of_one_level_keeps_its_code():
    vectors = tiny_vectors(300)
    tokenizer = ResidualKMeans.fit(vectors, ResidualKMeansConfig(num_codes=24, num_levels=1))
    codes = tokenizer.encode(vectors).codes
    again = tokenizer.encode(ItemVectors(vectors.item_ids, tokenizer.decode(codes))).codes
    np.testing.assert_array_equal(again, codes)


def test_standardised_columns_count_alike():
    random = np.random.default_rng(0)
    loud = 1000 * random.standard_normal(200)
    quiet = np.where(np.arange(200) % 2, 1.0, -1.0) + 0.01 * random.standard_normal(200)
    quiet_columns = np.column_stack([quiet] * 8)
    vectors = item_vectors(np.column_stack([loud, quiet_columns]))
    config = ResidualKMeansConfig(num_codes=2, num_levels=1, standardise=True)
    codes = ResidualKMeans.fit(vectors, config).encode(vectors).codes[:, 0]
    assert same_partition(codes, (np.arange(200) % 2).tolist())
    tokenizer = ResidualKMeans.fit(vectors, config)
    rebuilt = tokenizer.decode(tokenizer.encode(vectors).codes)
    np.testing.assert_allclose(rebuilt[:, 1:], np.sign(quiet_columns), atol=0.1)


def test_large_catalogues_are_sampled_and_still_fit_well():
    vectors = tiny_vectors(4000, seed=5)
    few = ResidualKMeansConfig(num_codes=8, num_levels=2, max_points_per_code=32)
    all_of_them = ResidualKMeansConfig(num_codes=8, num_levels=2, max_points_per_code=1000)

    def error(config):
        tokenizer = ResidualKMeans.fit(vectors, config)
        rebuilt = tokenizer.decode(tokenizer.encode(vectors).codes)
        return np.square(vectors.vectors - rebuilt).sum()

    assert error(all_of_them) <= error(few) <= 1.1 * error(all_of_them)


def test_fewer_items_than_codes_are_refused_with_the_cure():
    with pytest.raises(DataError, match="num_codes = 64 items to fit, got 50; lower num_codes"):
        ResidualKMeans.fit(tiny_vectors(50), ResidualKMeansConfig(num_codes=(8, 64), num_levels=2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_codes": (4, 4), "num_levels": 3},
        {"num_codes": 0},
        {"num_levels": 0},
        {"num_iters": 0},
        {"max_points_per_code": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"residual_kmeans\.num|residual_kmeans\.max"):
        ResidualKMeansConfig(**wrong)
