"""FSQ: grids that count all codes once, rounding that is the nearest row, digits that add up."""

import itertools
import math

import numpy as np
import pytest
import torch

from sidrec.errors import ConfigError, DataError
from sidrec.testing.tokenizers import tiny_vectors
from sidrec.tokenizers import fsq
from sidrec.tokenizers.autoencoder import residual_quantise
from sidrec.tokenizers.collisions import reassign
from sidrec.tokenizers.fsq import Fsq, FsqConfig, codebooks, digits, grid, number
from sidrec.tokenizers.health import error_ratio
from sidrec.tokenizers.quantisation import quantise, reconstruct
from sidrec.types import ItemVectors, as_ids

SMALL = {"hidden": (32,), "epochs": 60, "batch_size": 50, "device": "cpu"}


@pytest.fixture(scope="module")
def fitted():
    return Fsq.fit(tiny_vectors(400), FsqConfig(levels=(5, 4), num_levels=2, **SMALL))


def rounded(points_NZ, config):
    """Codes (N, L) by rounding alone: the cell of each number, then the cell inside that cell."""
    levels, columns = np.array(config.levels), len(config.levels)
    codes, rest = [], points_NZ.astype(np.float64)
    for level in range(config.num_levels):
        mine = rest[:, level * columns :][:, :columns] if config.parallel else rest
        cells = np.clip(np.floor((mine + 1) / 2 * levels), 0, levels - 1).astype(np.int64)
        codes.append(number(cells, config.levels))
        if not config.parallel:
            rest = (rest - (2 * cells + 1 - levels) / levels) * levels
    return np.stack(codes, axis=1)


@pytest.mark.parametrize("levels", [(8, 6, 5), (2,) * 8, (7, 5, 5, 5, 5), (3,)])
def test_codes_and_cells_are_a_bijection(levels):
    codes = np.arange(math.prod(levels))
    cells = digits(codes, levels)
    np.testing.assert_array_equal(number(cells, levels), codes)
    assert set(map(tuple, cells.tolist())) == set(itertools.product(*map(range, levels)))
    assert len(np.unique(grid(levels), axis=0)) == len(codes)


@pytest.mark.parametrize("levels", [(8, 6, 5), (4, 3)])
def test_grids_are_symmetric_for_odd_and_even_numbers_of_cells(levels):
    points = grid(levels)
    np.testing.assert_allclose(points, -points[::-1], atol=1e-7)
    for column, size in enumerate(levels):
        np.testing.assert_allclose(
            np.unique(points[:, column]), np.linspace(-1 + 1 / size, 1 - 1 / size, size), atol=1e-6
        )


@pytest.mark.parametrize("parallel", [False, True])
def test_the_nearest_rows_are_the_rounded_numbers(parallel):
    config = FsqConfig(levels=(8, 6, 5), parallel=parallel)
    points = np.random.default_rng(0).uniform(-1, 1, (5000, 9 if parallel else 3))
    points = points.astype(np.float32)
    codes, _ = quantise(points, codebooks(config))
    np.testing.assert_array_equal(codes, rounded(points, config))


def test_what_all_levels_leave_is_at_most_half_the_last_cell():
    config = FsqConfig(levels=(5, 4), num_levels=3)
    points = np.random.default_rng(1).uniform(-1, 1, (2000, 2)).astype(np.float32)
    codes, rest = quantise(points, codebooks(config))
    assert (np.abs(rest) <= 1 / np.array([5, 4]) ** 3 + 1e-6).all()
    assert np.abs(rest).max(axis=0) == pytest.approx(1 / np.array([5, 4]) ** 3, rel=0.05)
    assert all(len(np.unique(codes[:, level])) == 20 for level in range(3))


def test_quantising_is_idempotent():
    for parallel in (False, True):
        books = codebooks(FsqConfig(levels=(8, 6, 5), parallel=parallel))
        random = np.random.default_rng(2)
        codes = np.stack([random.integers(0, 240, 500) for _ in books], axis=1)
        again, rest = quantise(reconstruct(codes, books), books)
        np.testing.assert_array_equal(again, codes)
        assert np.abs(rest).max() < 1e-6


def test_the_gradient_of_rounding_is_one():
    latents = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents.requires_grad_()
    books = [torch.from_numpy(book) for book in codebooks(FsqConfig(levels=(8, 6, 5)))]
    weights = torch.arange(18.0).reshape(6, 3)
    (residual_quantise(latents, books).output_BZ * weights).sum().backward()
    torch.testing.assert_close(latents.grad, weights)


def test_training_explains_the_vectors_and_keeps_the_grids(fitted):
    vectors = tiny_vectors(400)
    codes = fitted.encode(vectors).codes
    assert error_ratio(vectors.vectors, fitted.decode(codes)) < 0.05
    for book, expected in zip(fitted.codebooks, codebooks(fitted.config), strict=True):
        np.testing.assert_array_equal(book, expected)


def test_latents_stay_inside_and_use_the_range(fitted):
    latents = fitted.project(tiny_vectors(400))
    assert np.abs(latents).max() <= 1 and (latents.std(axis=0) > 0.2).all()
    codes = fitted.encode(tiny_vectors(400)).codes
    np.testing.assert_array_equal(codes, rounded(latents, fitted.config))


def test_numbers_before_tanh_are_spread_alike_in_training_and_after_it():
    spread = fsq.Spread(3)
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        numbers = 1e3 * torch.randn(200, 3, generator=random) + 50
        out = spread.train()(numbers)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(0), torch.full((3,), fsq.SPREAD))
    torch.testing.assert_close(spread.eval()(numbers), out, atol=0.2, rtol=0.1)
    assert torch.isfinite(spread.train()(numbers[:1])).all(), "a batch of one item has no deviation"


def test_levels_of_parallel_codes_do_not_depend_on_each_other():
    vectors = tiny_vectors(100)
    config = FsqConfig(levels=(3, 3), num_levels=2, parallel=True, **SMALL | {"epochs": 3})
    fitted = Fsq.fit(vectors, config)
    backwards, _ = quantise(fitted.project(vectors), fitted.codebooks[::-1])
    np.testing.assert_array_equal(backwards[:, ::-1], fitted.encode(vectors).codes)


def test_reassigned_ids_are_unique(fitted):
    vectors = tiny_vectors(300)
    ids, report = reassign(fitted.encode(vectors), fitted, vectors)
    assert report.share_before > 0 and report.share_after == 0 and ids.num_codes == (20, 20)


def test_fewer_items_than_codes_and_equal_vectors_fit():
    vectors = ItemVectors(as_ids(range(3)), np.zeros((3, 8), np.float32))
    ids = Fsq.fit(vectors, FsqConfig(**SMALL | {"epochs": 2})).encode(vectors)
    assert len(np.unique(ids.codes, axis=0)) == 1 and ids.num_codes == (243,) * 3


def test_what_it_cannot_do_is_refused():
    with pytest.raises(DataError, match="fsq needs at least 2 items to fit, got 1"):
        Fsq.fit(tiny_vectors(1), FsqConfig())
    for wrong in ({"levels": ()}, {"levels": (8, 1)}, {"levels": (512, 512)}, {"epochs": 0}):
        with pytest.raises(ConfigError, match=rf"fsq\.{next(iter(wrong))}"):
            FsqConfig(**wrong)


@pytest.mark.parametrize("levels", [(8, 6, 5), (5, 3)])
def test_rounding_agrees_with_vector_quantize_pytorch(levels):
    """The same bounded number goes to the same cell; theirs never reaches beyond ±(L - 1) / 2."""
    theirs = pytest.importorskip("vector_quantize_pytorch").FSQ(list(levels))
    sizes = torch.tensor(levels, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    ours = torch.rand(2000, len(levels), generator=generator, dtype=torch.float64) * 2 - 1
    ours = ours * (sizes - 1) / sizes * 0.999
    half = (sizes - 1) * 1.001 / 2
    offset = torch.where(sizes % 2 == 0, 0.5, 0.0)
    before = torch.atanh(ours * sizes / 2 / half) - torch.atanh(offset / half)
    _, codes = theirs(before[None].float())
    expected, _ = quantise(ours.float().numpy(), [grid(levels)])
    agree = codes[0].numpy() == expected[:, 0]
    assert agree.mean() > 0.999, "only numbers on the edge of a cell may differ"
