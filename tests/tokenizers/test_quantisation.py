"""Nearest centroids and k-means against plain arithmetic and against faiss."""

import faiss
import numpy as np
import pytest

from sidrec.tokenizers.quantisation import lloyd, nearest, plus_plus, quantise, reconstruct


def naive_nearest(points, codebook):
    differences = points[:, None].astype(np.float64) - codebook[None].astype(np.float64)
    return np.square(differences).sum(-1).argmin(1)


def mixture(num, dim, clusters, seed):
    random = np.random.default_rng(seed)
    centres = 2 * random.standard_normal((clusters, dim))
    points = centres[random.integers(0, clusters, num)] + random.standard_normal((num, dim))
    return points.astype(np.float32)


def error(points, codebooks):
    return float(np.square(quantise(points, codebooks)[1]).sum(axis=1).mean())


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_nearest_agrees_with_brute_force_even_far_from_the_origin(offset):
    random = np.random.default_rng(0)
    points = (random.standard_normal((1500, 5)) + offset).astype(np.float32)
    codebook = (random.standard_normal((37, 5)) + offset).astype(np.float32)
    np.testing.assert_array_equal(nearest(points, codebook), naive_nearest(points, codebook))


def test_ties_go_to_the_lower_code():
    codebook = np.array([[9, 9], [1, 0], [-1, 0], [1, 0]], dtype=np.float32)
    points = np.array([[0, 5], [1, 0], [0, 0]], dtype=np.float32)
    np.testing.assert_array_equal(nearest(points, codebook), [1, 1, 1])


def test_the_code_of_a_point_depends_on_neither_batch_nor_threads():
    random = np.random.default_rng(1)
    codebook = random.standard_normal((64, 16)).astype(np.float32)
    codebook[32:] = codebook[:32] + 1e-6  # races that float32 cannot decide
    points = random.standard_normal((5000, 16)).astype(np.float32)
    whole = nearest(points, codebook)
    np.testing.assert_array_equal(whole, naive_nearest(points, codebook))
    before = faiss.omp_get_max_threads()
    try:
        for threads in (1, 3):
            faiss.omp_set_num_threads(threads)
            np.testing.assert_array_equal(nearest(points, codebook), whole)
    finally:
        faiss.omp_set_num_threads(before)
    parts = [nearest(points[i : i + 7], codebook) for i in range(0, 700, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[:700])


def test_one_code_and_no_points_are_fine():
    one = np.ones((1, 3), dtype=np.float32)
    np.testing.assert_array_equal(nearest(np.zeros((4, 3), dtype=np.float32), one), 0)
    assert nearest(np.zeros((0, 3), dtype=np.float32), one).shape == (0,)


def test_lloyd_finds_planted_clusters_whatever_the_order_of_the_points():
    random = np.random.default_rng(2)
    centres = 20 * random.standard_normal((12, 6))
    points = (centres[np.arange(600) % 12] + 0.1 * random.standard_normal((600, 6))).astype("f4")
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(600)
        codebook = lloyd(points[order], 12, 20, np.random.default_rng(seed))
        found = centres[naive_nearest(codebook, centres.astype("f4"))]
        assert len(np.unique(found, axis=0)) == 12
        assert np.abs(codebook - found).max() < 0.1


def test_centroids_are_the_means_of_their_points():
    points = mixture(800, 4, 5, seed=3)
    codebook = lloyd(points, 9, 200, np.random.default_rng(0))
    codes = naive_nearest(points, codebook)
    means = np.stack([points[codes == code].mean(axis=0, dtype=np.float64) for code in range(9)])
    np.testing.assert_allclose(codebook, means, atol=1e-5)


def test_no_code_stays_dead_while_distinct_points_remain(monkeypatch):
    """Start every centroid but one where no point is: all must be put to work."""
    points = mixture(300, 3, 20, seed=4)
    far = np.full((16, 3), 1e4, dtype=np.float32)
    far[0] = 0
    monkeypatch.setattr("sidrec.tokenizers.quantisation.plus_plus", lambda *_: far)
    codebook = lloyd(points, 16, 20, np.random.default_rng(0))
    assert len(np.unique(naive_nearest(points, codebook))) == 16


def test_equal_points_leave_dead_codes_but_no_error():
    points = np.tile(np.array([[1.0, 2.0]], dtype=np.float32), (20, 1))
    codebook = lloyd(points, 4, 5, np.random.default_rng(0))
    np.testing.assert_array_equal(nearest(points, codebook), 0)
    np.testing.assert_array_equal(codebook, np.tile([[1.0, 2.0]], (4, 1)))


def test_plus_plus_takes_every_far_cluster_once():
    points = np.repeat(np.eye(8, dtype=np.float32) * 100, [200, 1, 1, 1, 1, 1, 1, 1], axis=0)
    for seed in range(5):
        chosen = plus_plus(points, 8, np.random.default_rng(seed))
        assert len(np.unique(chosen, axis=0)) == 8


def test_residual_and_chosen_codes_add_up_to_the_point():
    points = mixture(500, 6, 9, seed=5)
    codebooks = [mixture(8, 6, 3, seed=6), 0.3 * mixture(5, 6, 3, seed=7)]
    codes, residuals = quantise(points, codebooks)
    np.testing.assert_allclose(reconstruct(codes, codebooks) + residuals, points, atol=1e-5)
    np.testing.assert_array_equal(reconstruct(codes[:, :1], codebooks), codebooks[0][codes[:, 0]])


def test_our_error_is_not_worse_than_faiss():
    """Oracle: `faiss.ResidualQuantizer` with beam 1 is the same model, trained by faiss."""
    points = mixture(4000, 16, 40, seed=8)
    oracle = faiss.ResidualQuantizer(16, 3, 4)  # 3 levels of 16 codes
    oracle.train_type = faiss.ResidualQuantizer.Train_default
    oracle.max_beam_size = 1
    oracle.train(points)
    theirs = np.square(points - oracle.decode(oracle.compute_codes(points))).sum(axis=1).mean()
    random, codebooks, residuals = np.random.default_rng(0), [], points
    for _ in range(3):
        codebooks.append(lloyd(residuals, 16, 25, random))
        _, residuals = quantise(points, codebooks)
    assert error(points, codebooks) <= 1.02 * theirs
