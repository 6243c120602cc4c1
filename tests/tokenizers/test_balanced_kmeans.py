"""Balanced residual k-means: even codes, kept for fitted items, nearest for the others."""

from collections import Counter

import faiss
import numpy as np
import pytest

from sidrec.errors import ConfigError, DataError
from sidrec.testing.tokenizers import tiny_vectors
from sidrec.tokenizers.balanced_kmeans import BalancedKMeans, BalancedKMeansConfig, take_turns
from sidrec.tokenizers.lifecycle import migration
from sidrec.tokenizers.quantisation import quantise
from sidrec.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from sidrec.types import ItemVectors, SemanticIds, as_ids

CONFIG = BalancedKMeansConfig(num_codes=(12, 7), num_levels=2, num_iters=10)


def item_vectors(array, prefix=""):
    ids = as_ids(f"{prefix}{row}" for row in range(len(array)))
    return ItemVectors(ids, np.asarray(array, dtype=np.float32))


def crowded(num_items=500, dim=6, seed=0):
    """Half of the items lie almost on one spot: plain k-means gives them few codes."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((num_items, dim))
    vectors[::2] = 3 + 0.05 * vectors[::2]
    return item_vectors(vectors)


def greedy(tokenizer, vectors):
    return quantise(tokenizer.project(vectors), tokenizer.codebooks)[0]


@pytest.mark.parametrize("max_points_per_code", [256, 8])
def test_codes_of_a_level_are_held_by_equally_many_items_or_one_more(max_points_per_code):
    vectors = crowded()
    config = BalancedKMeansConfig(
        num_codes=(12, 7), num_levels=2, max_points_per_code=max_points_per_code
    )
    codes = BalancedKMeans.fit(vectors, config).encode(vectors).codes
    for level, size in enumerate((12, 7)):
        counts = np.bincount(codes[:, level], minlength=size)
        assert counts.max() - counts.min() == 1 and counts.sum() == 500
    plain = ResidualKMeans.fit(vectors, ResidualKMeansConfig(num_codes=(12, 7), num_levels=2))
    assert np.ptp(np.bincount(plain.encode(vectors).codes[:, 0])) > 50, "the items are not crowded"


def test_equal_far_clusters_get_the_codes_of_plain_kmeans():
    vectors = tiny_vectors(200)
    labels = np.arange(200) % 4
    config = BalancedKMeansConfig(num_codes=4, num_levels=1)
    tokenizer = BalancedKMeans.fit(vectors, config)
    plain = ResidualKMeans.fit(vectors, ResidualKMeansConfig(num_codes=4, num_levels=1))
    pairs = Counter(zip(tokenizer.encode(vectors).codes[:, 0], labels, strict=True))
    assert len(pairs) == 4 and set(pairs.values()) == {50}
    ours, theirs = (t.codebooks[0][np.argsort(t.codebooks[0][:, 0])] for t in (tokenizer, plain))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_turns_equal_the_algorithm_written_out():
    random = np.random.default_rng(3)
    points = random.standard_normal((103, 4)).astype(np.float32)
    points[50:60] = points[40:50]  # equally near: the first row goes first
    centroids = random.standard_normal((37, 4)).astype(np.float32)
    left, expected = list(range(103)), np.empty(103, dtype=int)
    for code, centroid in enumerate(centroids):
        far = {r: np.float32(np.square(points[r].astype(float) - centroid).sum()) for r in left}
        taken = sorted(left, key=lambda row: (far[row], row))[: 3 if code < 103 - 2 * 37 else 2]
        expected[taken] = code
        left = [row for row in left if row not in taken]
    assert left == []
    np.testing.assert_array_equal(take_turns(points, centroids), expected)


def test_centroids_are_the_means_of_the_items_that_hold_them_at_every_level():
    vectors = crowded()
    tokenizer = BalancedKMeans.fit(vectors, CONFIG)
    codes, residuals = tokenizer.encode(vectors).codes, vectors.vectors.astype(np.float64)
    for level, codebook in enumerate(tokenizer.codebooks):
        means = [residuals[codes[:, level] == code].mean(axis=0) for code in range(len(codebook))]
        np.testing.assert_allclose(codebook, means, atol=1e-5)
        residuals = residuals - codebook[codes[:, level]]


def test_fitted_items_keep_codes_that_are_not_the_nearest_and_others_take_the_nearest():
    vectors = crowded()
    tokenizer = BalancedKMeans.fit(vectors, CONFIG)
    nearest_codes = greedy(tokenizer, vectors)
    kept = tokenizer.encode(vectors).codes
    assert (kept != nearest_codes).any(axis=1).mean() > 0.2
    unseen = item_vectors(vectors.vectors, prefix="new ")
    np.testing.assert_array_equal(tokenizer.encode(unseen).codes, nearest_codes)
    half = ItemVectors(
        np.concatenate([unseen.item_ids[:250], vectors.item_ids[250:]]), vectors.vectors
    )
    mixed = tokenizer.encode(half).codes
    np.testing.assert_array_equal(mixed, np.concatenate([nearest_codes[:250], kept[250:]]))


def test_the_id_of_a_fitted_item_with_another_vector_does_not_get_its_codes():
    vectors = crowded()
    tokenizer = BalancedKMeans.fit(vectors, CONFIG)
    swapped = ItemVectors(vectors.item_ids, np.roll(vectors.vectors, 1, axis=0))
    np.testing.assert_array_equal(tokenizer.encode(swapped).codes, greedy(tokenizer, swapped))


def test_a_fitted_item_embedded_again_with_rounding_errors_keeps_its_codes():
    vectors = item_vectors(crowded().vectors + 100)  # far from the origin
    tokenizer = BalancedKMeans.fit(vectors, CONFIG)
    again = ItemVectors(vectors.item_ids, vectors.vectors * np.float32(1 + 1e-6))
    np.testing.assert_array_equal(tokenizer.encode(again).codes, tokenizer.encode(vectors).codes)


def test_codes_of_fitted_items_follow_a_renaming_of_the_codebooks():
    vectors = crowded()
    tokenizer = BalancedKMeans.fit(vectors, CONFIG)
    ids = tokenizer.encode(vectors)
    swapped = np.stack([11 - ids.codes[:, 0], 6 - ids.codes[:, 1]], axis=1)
    moved = migration(SemanticIds(ids.item_ids, swapped, ids.num_codes), ids).apply_to(tokenizer)
    np.testing.assert_array_equal(moved.encode(vectors).codes, swapped)
    np.testing.assert_array_equal(moved.decode(swapped), tokenizer.decode(ids.codes))


def test_the_number_of_threads_changes_nothing():
    from threadpoolctl import threadpool_limits

    random = np.random.default_rng(5)
    vectors = item_vectors(random.standard_normal((3000, 24)))
    config, found = BalancedKMeansConfig(num_codes=16, num_iters=4), []
    before = faiss.omp_get_max_threads()
    try:
        for threads in (1, 3):
            faiss.omp_set_num_threads(threads)
            with threadpool_limits(threads):
                found.append(BalancedKMeans.fit(vectors, config).encode(vectors).codes)
    finally:
        faiss.omp_set_num_threads(before)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_equal_vectors_are_still_spread_evenly(value):
    vectors = item_vectors(np.full((60, 5), value))
    tokenizer = BalancedKMeans.fit(vectors, CONFIG)
    codes = tokenizer.encode(vectors).codes
    assert set(np.bincount(codes[:, 0])) == {5} and set(np.bincount(codes[:, 1])) == {8, 9}
    np.testing.assert_array_equal(tokenizer.decode(codes), vectors.vectors)


def test_as_many_items_as_codes_give_every_item_its_own_code():
    vectors = tiny_vectors(12)
    config = BalancedKMeansConfig(num_codes=12, num_levels=1)
    tokenizer = BalancedKMeans.fit(vectors, config)
    codes = tokenizer.encode(vectors).codes
    assert sorted(codes[:, 0]) == list(range(12))
    np.testing.assert_allclose(tokenizer.decode(codes), vectors.vectors)


def test_fewer_items_than_codes_are_refused_with_the_cure():
    with pytest.raises(DataError, match="num_codes = 64 items to fit, got 50; lower num_codes"):
        BalancedKMeans.fit(tiny_vectors(50), BalancedKMeansConfig(num_codes=64))


@pytest.mark.parametrize(
    "wrong", [{"num_codes": 0}, {"num_levels": 0}, {"num_iters": 0}, {"max_points_per_code": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="balanced_kmeans"):
        BalancedKMeansConfig(**wrong)
