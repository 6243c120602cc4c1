"""Product quantisation: blocks on their own, a rotation that helps, codebooks that add up."""

from itertools import pairwise

import faiss
import numpy as np
import pytest

from sidrec.errors import ConfigError, DataError
from sidrec.testing.tokenizers import tiny_vectors
from sidrec.tokenizers import collisions
from sidrec.tokenizers.lifecycle import migration
from sidrec.tokenizers.opq import Opq, OpqConfig, block_columns, learn_rotation, shared_out
from sidrec.tokenizers.quantisation import quantise, reconstruct
from sidrec.types import ItemVectors, SemanticIds, as_ids


def item_vectors(array):
    return ItemVectors(as_ids(range(len(array))), np.asarray(array, dtype=np.float32))


def skewed(num_items=1500, dim=16, seed=0):
    """Correlated columns, most variance in the first few: plain PQ wastes its later codes."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((dim, dim)) / (1 + np.arange(dim))[:, None]
    return item_vectors(random.standard_normal((num_items, dim)) @ mix + 5)


def error(tokenizer, vectors):
    rebuilt = tokenizer.decode(tokenizer.encode(vectors).codes)
    return float(np.square(vectors.vectors - rebuilt).sum(axis=1).mean())


@pytest.mark.parametrize("config", [
    OpqConfig(num_codes=8, num_levels=4, rotate=False),
    OpqConfig(num_codes=(8, 5, 3), num_levels=3),
    OpqConfig(num_codes=8, num_levels=3, pca=7, rotate=False),
    OpqConfig(num_codes=8, num_levels=2, pca=5, num_rotations=3),
])  # fmt: skip
def test_greedy_codes_on_full_width_codebooks_are_those_of_product_quantisation(config):
    vectors = skewed()
    tokenizer = Opq.fit(vectors, config)
    points, ids = tokenizer.project(vectors), tokenizer.encode(vectors)
    by_hand = [
        np.square(points[:, columns][:, None].astype(np.float64) - block).sum(-1).argmin(1)
        for columns, block in zip(
            block_columns(points.shape[1], config.num_levels), tokenizer.blocks, strict=True
        )
    ]
    np.testing.assert_array_equal(ids.codes, np.stack(by_hand, axis=1))
    np.testing.assert_array_equal(quantise(points, tokenizer.codebooks)[0], ids.codes)
    rebuilt = reconstruct(ids.codes, tokenizer.codebooks)
    side_by_side = [b[c] for b, c in zip(tokenizer.blocks, ids.codes.T, strict=True)]
    np.testing.assert_array_equal(rebuilt, np.concatenate(side_by_side, axis=1))


def test_plain_product_quantisation_is_no_worse_than_faiss():
    vectors = skewed(4000)
    oracle = faiss.ProductQuantizer(16, 4, 4)
    oracle.train(vectors.vectors)
    theirs = oracle.decode(oracle.compute_codes(vectors.vectors))
    tokenizer = Opq.fit(vectors, OpqConfig(num_codes=16, rotate=False))
    theirs = float(np.square(vectors.vectors - theirs).sum(axis=1).mean())
    assert error(tokenizer, vectors) <= 1.02 * theirs


def test_the_rotation_turns_lowers_the_error_and_keeps_lengths():
    vectors = skewed()
    plain, optimised, start = (
        Opq.fit(vectors, OpqConfig(num_codes=16, rotate=rotate, num_rotations=rounds))
        for rotate, rounds in ((False, 0), (True, 25), (True, 0))
    )
    identity = optimised.rotation_DP.T @ optimised.rotation_DP
    np.testing.assert_allclose(identity, np.eye(16), atol=1e-6)
    assert error(optimised, vectors) < error(start, vectors) < 0.8 * error(plain, vectors)
    with_all_blocks = optimised.decode(optimised.encode(vectors).codes)
    in_its_space = reconstruct(optimised.encode(vectors).codes, optimised.codebooks)
    np.testing.assert_allclose(
        np.square(vectors.vectors - with_all_blocks).sum(),
        np.square(optimised.project(vectors) - in_its_space).sum(),
        rtol=1e-4,
    )


def test_no_round_of_the_alternation_makes_the_error_larger():
    points = skewed(400).vectors
    points = points - points.mean(axis=0)
    errors = []
    for rounds in range(1, 8):
        turned, books = learn_rotation(
            points, np.eye(16), (8, 8, 8, 8), rounds, np.random.default_rng(0)
        )
        blocks = [(points @ turned)[:, c].astype(np.float32) for c in block_columns(16, 4)]
        residuals = [quantise(b, [book])[1] for b, book in zip(blocks, books, strict=True)]
        errors.append(sum(float(np.square(r).sum()) for r in residuals))
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(errors))
    assert errors[-1] < 0.99 * errors[0]


def test_components_are_shared_out_evenly():
    order = shared_out(np.array([16.0, 8.0, 4.0, 2.0]), 2)
    assert sorted(map(sorted, (order[:2].tolist(), order[2:].tolist()))) == [[0, 3], [1, 2]]
    tiny = shared_out(np.array([1e-3, 1e-4, 1e-5, 0.0, 0.0]), 2)
    assert sorted(tiny) == list(range(5)) and {0, 1} - set(tiny[:3]) and {0, 1} & set(tiny[:3])


def test_pca_keeps_the_strong_directions_and_drops_the_rest():
    random = np.random.default_rng(1)
    strong = random.standard_normal((600, 3)) * 10
    vectors = item_vectors(np.column_stack([0.01 * random.standard_normal((600, 9)), strong]))
    tokenizer = Opq.fit(vectors, OpqConfig(num_codes=16, num_levels=3, pca=3))
    assert tokenizer.project(vectors).shape == (600, 3)
    assert np.abs(tokenizer.rotation_DP[:9]).max() < 0.01
    assert tokenizer.decode(tokenizer.encode(vectors).codes).shape == (600, 12)


def test_blocks_differ_in_width_by_one_at_most():
    widths = [c.stop - c.start for c in block_columns(11, 4)]
    assert widths == [3, 3, 3, 2] and block_columns(11, 4)[-1].stop == 11


def test_reassign_makes_ids_unique_by_moving_last_codes_only():
    vectors = tiny_vectors(120)
    tokenizer = Opq.fit(vectors, OpqConfig(num_codes=16, num_levels=2))
    ids = tokenizer.encode(vectors)
    unique, report = collisions.reassign(ids, tokenizer, vectors)
    assert report.share_before > 0 and unique.collision_share() == 0
    moved_prefix = (unique.codes[:, 0] != ids.codes[:, 0]).sum()
    assert moved_prefix == report.num_moved_prefix


def test_a_renaming_of_codes_renames_the_blocks():
    vectors = skewed(300)
    tokenizer = Opq.fit(vectors, OpqConfig(num_codes=6, num_levels=2, num_rotations=3))
    ids = tokenizer.encode(vectors)
    reversed_ids = SemanticIds(ids.item_ids, 5 - ids.codes, ids.num_codes)
    moved = migration(reversed_ids, ids).apply_to(tokenizer)
    np.testing.assert_array_equal(moved.encode(vectors).codes, 5 - ids.codes)


@pytest.mark.parametrize("config", [OpqConfig(num_codes=4), OpqConfig(num_codes=4, rotate=False)])
def test_equal_and_zero_vectors_are_no_error(config):
    for value in (0.0, 3.0):
        vectors = item_vectors(np.full((20, 8), value))
        tokenizer = Opq.fit(vectors, config)
        codes = tokenizer.encode(vectors).codes
        assert (codes == codes[0]).all()
        np.testing.assert_allclose(tokenizer.decode(codes), value, atol=1e-6)


def test_too_few_columns_items_or_components_are_refused_with_the_cure():
    vectors = tiny_vectors(50)
    with pytest.raises(DataError, match=r"num_levels = 9 codes, got 8; lower opq\.num_levels"):
        Opq.fit(vectors, OpqConfig(num_codes=4, num_levels=9))
    with pytest.raises(DataError, match=r"pca = 512 is more than the vectors' width 8"):
        Opq.fit(vectors, OpqConfig(num_codes=4, pca=512))
    with pytest.raises(DataError, match="got 50; lower num_codes"):
        Opq.fit(vectors, OpqConfig())


@pytest.mark.parametrize(
    "wrong", [{"num_levels": 0}, {"num_codes": (4, 4)}, {"pca": -1}, {"num_rotations": -1}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="opq"):
        OpqConfig(**wrong)
