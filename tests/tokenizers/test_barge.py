"""BARGE's dual codebooks: an orthogonal rotation, two halves, the loss of the card."""

import numpy as np
import pytest
import torch

from sidrec.errors import ConfigError, DataError
from sidrec.testing.tokenizers import tiny_vectors
from sidrec.tokenizers import collisions
from sidrec.tokenizers.autoencoder import residual_quantise
from sidrec.tokenizers.barge import (
    BargeTokenizer,
    BargeTokenizerConfig,
    HalvesObjective,
    Rotation,
    TurnedHalves,
)
from sidrec.tokenizers.quantisation import quantise
from sidrec.types import ItemVectors, SemanticIds, as_ids

SMALL = BargeTokenizerConfig(num_codes=(8, 4), num_levels=2, epochs=8, batch_size=128)


def skewed(num_items=600, dim=9, seed=0):
    """Correlated columns, most variance in the first few."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((dim, dim)) / (1 + np.arange(dim))[:, None]
    vectors = random.standard_normal((num_items, dim)) @ mix + 5
    return ItemVectors(as_ids(range(num_items)), vectors.astype(np.float32))


def error(tokenizer, vectors):
    rebuilt = tokenizer.decode(tokenizer.encode(vectors).codes)
    return float(np.square(vectors.vectors - rebuilt).sum(axis=1).mean())


def objective(beta=0.25):
    torch.manual_seed(0)
    config = BargeTokenizerConfig(num_codes=(5, 3), num_levels=2, beta=beta)
    model = TurnedHalves(Rotation(torch.randn(6, 6)), 6, (5, 3, 5, 3))
    for book in model.books:
        torch.nn.init.normal_(book)
    return HalvesObjective(model, torch.randn(40, 6), config)


def test_the_closed_form_is_the_product_of_the_reflections():
    vectors_KD = torch.randn(4, 5, dtype=torch.float64)
    product = torch.eye(5, dtype=torch.float64)
    for v in vectors_KD:
        product = product @ (torch.eye(5) - 2 * torch.outer(v, v) / (v @ v))
    torch.testing.assert_close(Rotation(vectors_KD).matrix(), product)


@pytest.mark.parametrize("learn", [True, False])
def test_the_rotation_is_orthogonal_and_moves_only_where_it_is_learnt(learn):
    vectors = skewed()
    config = BargeTokenizerConfig(num_codes=8, num_levels=2, epochs=8, learn_rotation=learn)
    tokenizer = BargeTokenizer.fit(vectors, config)
    rotation_DD = tokenizer.rotation_DD
    assert np.abs(rotation_DD.T @ rotation_DD - np.eye(9)).max() < 1e-6
    torch.manual_seed(config.seed)
    start = Rotation(torch.randn(9, 9)).matrix().detach().numpy()
    assert (np.abs(start - rotation_DD).max() > 0.05) == learn


def test_the_loss_is_that_of_the_card():
    loss_of = objective(beta=0.4)
    model, rows = loss_of.model, torch.arange(40)
    rotation_DD = model.encoder.matrix()
    points = loss_of.points_ND
    turned = points @ rotation_DD.T
    rebuilt, halves = [], 0.0
    for columns, books in model.halves():
        left, total = turned[:, columns], 0.0
        for book in books:
            codes = torch.cdist(left, book).argmin(1)
            left, total = left - book[codes], total + book[codes]
        rebuilt.append(total)
        halves = halves + 1.4 * (turned[:, columns] - total).square().sum(1).mean()
    back = torch.cat(rebuilt, 1) @ rotation_DD
    expected = (points - back).square().sum(1).mean() + halves
    torch.testing.assert_close(loss_of(rows), expected)
    assert not torch.isclose(loss_of(rows), objective(beta=0.5)(rows))


def test_rotation_and_codebooks_learn_from_a_term_each():
    loss_of, rows = objective(), torch.arange(40)
    loss_of(rows).backward()
    learnt = [w.grad.clone() for w in (loss_of.model.encoder.reflections_KD, *loss_of.model.books)]
    loss_of = objective(beta=0.0)
    loss_of(rows).backward()
    assert loss_of.model.encoder.reflections_KD.grad.abs().max() < 1e-5
    for book, before in zip(loss_of.model.books, learnt[1:], strict=True):
        torch.testing.assert_close(book.grad, before)
    assert learnt[0].abs().max() > 1e-3


def test_straight_through_the_reconstruction_pulls_at_no_rotation():
    model = objective().model
    points = torch.randn(20, 6)
    rotation_DD = model.encoder.matrix()
    turned = points @ rotation_DD.T
    out = [residual_quantise(turned[:, c], books).output_BZ for c, books in model.halves()]
    (points - torch.cat(out, 1) @ rotation_DD).square().sum().backward()
    assert model.encoder.reflections_KD.grad.abs().max() < 1e-4


def test_a_learnt_rotation_is_closer_to_the_vectors_than_a_random_one():
    vectors = skewed()
    learnt, random = (
        BargeTokenizer.fit(
            vectors, BargeTokenizerConfig(num_codes=8, num_levels=2, learn_rotation=learn)
        )
        for learn in (True, False)
    )
    assert error(learnt, vectors) < 0.9 * error(random, vectors)


def test_codes_are_greedy_in_each_half_and_on_the_full_width_codebooks():
    vectors = skewed()
    tokenizer = BargeTokenizer.fit(vectors, SMALL)
    ids = tokenizer.encode(vectors)
    assert ids.num_codes == (8, 4, 8, 4)
    points = tokenizer.project(vectors)
    np.testing.assert_array_equal(quantise(points, tokenizer.codebooks)[0], ids.codes)
    assert [c.stop - c.start for c in tokenizer.columns] == [5, 4]
    assert not any(tokenizer.codebooks[0][:, 5:].any(axis=1))
    assert not any(tokenizer.codebooks[3][:, :5].any(axis=1))
    np.testing.assert_allclose(
        points @ tokenizer.rotation_DD * tokenizer.deviation_D + tokenizer.mean_D,
        vectors.vectors, atol=1e-4,
    )  # fmt: skip


def test_halves_collide_more_than_the_whole_and_reassign_makes_the_whole_unique():
    vectors = skewed()
    config = BargeTokenizerConfig(num_codes=(16, 8), num_levels=2, epochs=8, batch_size=128)
    tokenizer = BargeTokenizer.fit(vectors, config)
    ids = tokenizer.encode(vectors)
    halves = [SemanticIds(ids.item_ids, c, (16, 8)) for c in np.hsplit(ids.codes, 2)]
    assert all(half.collision_share() > 0.9 for half in halves)
    assert ids.collision_share() < 0.4
    apart, report = collisions.reassign(ids, tokenizer, vectors)
    assert report.share_after == 0.0
    assert (apart.codes[:, :3] == ids.codes[:, :3]).mean() > 0.95


def test_codebook_sizes_are_the_published_ones_where_the_catalogue_fills_them():
    config = BargeTokenizerConfig()
    assert config.id_sizes(12_101) == 2 * (512, 256, 128, 64)
    assert config.id_sizes(1_000_000) == 2 * (512, 256, 128, 64)
    assert config.id_sizes(1_000) == 2 * (32, 16, 8, 4)
    assert BargeTokenizerConfig(num_codes=7, num_levels=2).id_sizes(50) == (7,) * 4


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match=r"barge\.num_codes lists 2 sizes for num_levels = 4"):
        BargeTokenizerConfig(num_codes=(8, 4))
    with pytest.raises(ConfigError, match=r"barge\.learning_rate must be above 0"):
        BargeTokenizerConfig(learning_rate=0.0)
    with pytest.raises(DataError, match="at least num_codes = 8 items to fit, got 5"):
        BargeTokenizer.fit(tiny_vectors(5), SMALL)
    with pytest.raises(DataError, match="at least 2 columns to halve, got 1"):
        BargeTokenizer.fit(tiny_vectors(20, dim=1), SMALL)
