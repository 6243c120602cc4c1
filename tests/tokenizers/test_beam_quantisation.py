"""Beams against brute force over all codes, and least squares against the normal solution."""

import itertools

import numpy as np
import pytest

from sidrec.errors import ConfigError
from sidrec.testing import tokenizers as checks
from sidrec.tokenizers.beam_quantisation import beam_quantise, left_over, refined
from sidrec.tokenizers.quantisation import lloyd, progressive_start, quantise, reconstruct
from sidrec.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from sidrec.types import ItemVectors, as_ids


def points_and_codebooks(num=300, dim=5, sizes=(6, 5, 4), seed=0):
    random = np.random.default_rng(seed)
    points = random.standard_normal((num, dim)).astype(np.float32)
    return points, [random.standard_normal((v, dim)).astype(np.float32) for v in sizes]


def errors(points, codes, codebooks):
    rebuilt = sum(
        book[column].astype(np.float64) for book, column in zip(codebooks, codes.T, strict=True)
    )
    return np.square(points - rebuilt).sum(axis=1)


def test_a_beam_as_wide_as_all_prefixes_finds_the_best_code():
    points, codebooks = points_and_codebooks()
    codes, left = beam_quantise(points, codebooks, 30)
    every = np.array(list(itertools.product(range(6), range(5), range(4))))
    rebuilt = reconstruct(every, codebooks).astype(np.float64)
    best = np.square(points[:, None] - rebuilt[None]).sum(-1).min(axis=1)
    np.testing.assert_allclose(errors(points, codes, codebooks), best, rtol=1e-5)
    np.testing.assert_allclose(points - reconstruct(codes, codebooks), left, atol=1e-5)


def test_wider_beams_rebuild_better_and_a_beam_of_one_is_greedy():
    points, codebooks = points_and_codebooks()
    found = [errors(points, beam_quantise(points, codebooks, w)[0], codebooks) for w in (1, 3, 30)]
    assert found[0].mean() > found[1].mean() > found[2].mean()
    greedy = quantise(points, codebooks)[0]
    np.testing.assert_array_equal(beam_quantise(points, codebooks, 1)[0], greedy)


def test_equally_good_codes_go_to_the_lower_one():
    codebooks = [np.array([[2.0], [0.0], [2.0]], np.float32), np.array([[0.0], [2.0]], np.float32)]
    codes, _ = beam_quantise(np.array([[2.0]] * 3, np.float32), codebooks, 6)
    np.testing.assert_array_equal(codes, [[0, 0]] * 3)


def test_what_is_left_over_covers_every_path_of_the_beam():
    points, codebooks = points_and_codebooks(40)
    left = left_over(points, codebooks[:1], 6).reshape(40, 6, 5)
    every = points[:, None] - codebooks[0][None]
    np.testing.assert_allclose(np.sort(left, axis=1), np.sort(every, axis=1), atol=1e-6)
    assert left_over(points, [], 6).shape == (40, 5)


def test_refined_codebooks_are_the_least_squares_solution_and_unused_codes_stay():
    points, codebooks = points_and_codebooks(500)
    codes = beam_quantise(points, codebooks, 3)[0]
    codes[:, 1] = np.minimum(codes[:, 1], 3)  # nobody holds the last code of the second level
    better = refined(points, codes, codebooks)
    np.testing.assert_array_equal(better[1][4], codebooks[1][4])
    one_hot = np.concatenate([np.eye(len(b))[c] for b, c in zip(better, codes.T, strict=True)], 1)
    best = np.linalg.lstsq(one_hot, points.astype(np.float64), rcond=None)[0]
    expected = np.square(points - one_hot @ best).sum()
    assert errors(points, codes, better).sum() == pytest.approx(expected, rel=1e-5)
    assert expected < 0.9 * errors(points, codes, codebooks).sum()


def test_a_progressive_start_ends_lower_in_many_dimensions():
    random = np.random.default_rng(1)
    centres = random.standard_normal((60, 96)) / np.sqrt(1 + np.arange(96))
    points = centres[random.integers(0, 60, 1500)] + 0.3 * random.standard_normal((1500, 96)) / (
        np.sqrt(1 + np.arange(96))
    )
    points = points.astype(np.float32)
    found = []
    for start in (None, progressive_start(points, 32, np.random.default_rng(0))):
        codebook = lloyd(points, 32, 25, np.random.default_rng(0), start)
        found.append(np.square(quantise(points, [codebook])[1]).sum())
    assert found[1] < found[0]


@pytest.mark.parametrize("check", checks.TOKENIZER_CHECKS, ids=lambda check: check.__name__)
def test_contract_with_every_option(check):
    config = ResidualKMeansConfig(
        num_codes=4, num_levels=2, num_iters=5, beam=3, refinements=2, progressive=True
    )
    check(ResidualKMeans, config)


def test_every_option_lowers_the_error_of_residual_kmeans():
    random = np.random.default_rng(2)
    array = random.standard_normal((1500, 32)) / np.sqrt(1 + np.arange(32))
    vectors = ItemVectors(as_ids(range(1500)), array.astype(np.float32))

    def error(**options):
        tokenizer = ResidualKMeans.fit(vectors, ResidualKMeansConfig(num_codes=16, **options))
        rebuilt = tokenizer.decode(tokenizer.encode(vectors).codes)
        return float(np.square(vectors.vectors - rebuilt).sum())

    assert error(beam=4, refinements=3) < error(refinements=3) < error()


@pytest.mark.parametrize("wrong", [{"beam": 0}, {"refinements": -1}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ResidualKMeansConfig(**wrong)
