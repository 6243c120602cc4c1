"""IDs that end early: made unique by growing, kept as sets, and items that arrive later."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.errors import DataError
from sidrec.tokenizers import collisions
from sidrec.tokenizers.quantisation import quantise
from sidrec.tokenizers.variable_length import lengthened, lengths_of, truncated
from sidrec.types import ItemVectors, SemanticIds, as_ids


def tokenizer_of(lengths, *codebooks):
    """Residual codebooks, and a length for each item by its id."""
    books = tuple(np.asarray(book, dtype=np.float32) for book in codebooks)

    def full_paths(vectors):
        return quantise(vectors.vectors, books)[0]

    def encode(vectors):
        lengths_N = np.array([lengths.get(str(i), 1) for i in vectors.item_ids], dtype=np.int64)
        codes = truncated(full_paths(vectors), lengths_N.clip(max=len(books)))
        return SemanticIds(vectors.item_ids, codes, tuple(map(len, books)))

    return SimpleNamespace(
        codebooks=books, encode=encode, full_paths=full_paths, project=lambda v: v.vectors
    )


def line(points, names=None):
    """Items on a line."""
    vectors = np.asarray(points, dtype=np.float32)[:, None]
    return ItemVectors(as_ids(names or range(len(points))), vectors)


BOOKS = ([[0.0], [100.0]], [[0.0], [10.0]], [[0.0], [1.0], [2.0]])


def test_a_shared_id_grows_until_its_items_part_and_others_stay():
    tokenizer = tokenizer_of({"d": 2}, *BOOKS)
    vectors = line([0, 11, 12, 110], names="abcd")  # paths 000, 011, 012, 110
    ids = tokenizer.encode(vectors)
    np.testing.assert_array_equal(ids.codes, [[0, -1, -1]] * 3 + [[1, 1, -1]])
    after, report = collisions.reassign(ids, tokenizer, vectors)
    np.testing.assert_array_equal(after.codes, [[0, 0, -1], [0, 1, 1], [0, 1, 2], [1, 1, -1]])
    assert (report.num_moved, report.num_lengthened, report.num_moved_prefix) == (3, 3, 0)
    assert (report.share_before, report.share_after) == (0.75, 0)
    # squared errors: before 0, 121, 144, 0; after all 0
    assert report.extra_distortion == pytest.approx(-1)


def test_items_of_one_whole_path_are_matched_to_last_codes():
    tokenizer = tokenizer_of({}, *BOOKS)
    vectors = line([0.0, 0.1, 0.2, 50.1], names="abcd")
    after, report = collisions.reassign(tokenizer.encode(vectors), tokenizer, vectors)
    np.testing.assert_array_equal(after.codes[:3], [[0, 0, 0], [0, 0, 1], [0, 0, 2]])
    np.testing.assert_array_equal(after.codes[3], [1, -1, -1])
    assert report.num_lengthened == 3 and report.share_after == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10_000))
def test_no_collision_is_left_no_id_is_longer_than_it_must_be_and_order_does_not_matter(n, seed):
    random = np.random.default_rng(seed)
    books = [random.standard_normal((size, 2)) for size in (3, 3, 6)]
    names = list(map(str, random.permutation(n)))
    tokenizer = tokenizer_of({name: int(random.integers(1, 4)) for name in names}, *books)
    vectors = ItemVectors(as_ids(names), random.standard_normal((n, 2)).round(0).astype(np.float32))
    ids = tokenizer.encode(vectors)
    after, report = collisions.reassign(ids, tokenizer, vectors)
    assert after.collision_share() == report.share_after == 0
    before_N, now_N = lengths_of(ids.codes), lengths_of(after.codes)
    paths = tokenizer.full_paths(vectors)
    for row in range(n):
        if now_N[row] == 3:
            continue
        np.testing.assert_array_equal(after.codes[row], truncated(paths, now_N)[row])
        if now_N[row] > before_N[row]:  # one code less, and another item would have been met
            short = paths[row, : now_N[row] - 1]
            same = (paths[:, : len(short)] == short).all(axis=1)
            assert (same & (before_N <= len(short))).sum() > 1
    order = random.permutation(n)
    shuffled = ItemVectors(vectors.item_ids[order], vectors.vectors[order])
    again, _ = collisions.reassign(tokenizer.encode(shuffled), tokenizer, shuffled)
    np.testing.assert_array_equal(again.codes, after.codes[order])


def test_lengthening_stops_at_ids_that_are_held():
    paths, held = np.array([[0, 0, 0], [1, 0, 0]]), np.array([[0, -1, -1], [0, 0, -1]])
    assert lengthened(paths, np.array([1, 1]), held).tolist() == [3, 1]


@pytest.mark.parametrize("policy", ["keep", "reassign"])
def test_new_items_never_end_before_the_shortest_id_and_move_nobody(policy):
    tokenizer = tokenizer_of({"a": 2, "b": 3, "new 1": 1, "new 2": 1, "new 3": 3}, *BOOKS)
    vectors = line([0, 111], names="ab")
    existing, _ = getattr(collisions, policy)(tokenizer.encode(vectors), tokenizer, vectors)
    np.testing.assert_array_equal(existing.codes, [[0, 0, -1], [1, 1, 1]])
    new = line([0, 10, 111], names=["new 1", "new 2", "new 3"])
    added, report = collisions.assign_new(existing, tokenizer, new, policy)
    if policy == "keep":
        expected = [[0, 0, -1], [0, 1, -1], [1, 1, 1]]
    else:
        expected = [[0, 0, 0], [0, 1, -1], [1, 1, 0]]
    assert added.codes.tolist() == expected
    joined = np.concatenate([existing.codes, added.codes])
    assert (len(np.unique(joined, axis=0)) == 5) == (policy == "reassign")
    assert report.num_lengthened == 2 and report.num_items == 3


def test_new_items_are_whole_where_all_ids_are():
    tokenizer = tokenizer_of({"a": 3}, *BOOKS)
    existing = tokenizer.encode(line([0], names="a"))
    added, _ = collisions.assign_new(existing, tokenizer, line([100], names="n"), "keep")
    np.testing.assert_array_equal(added.codes, [[1, 0, 0]])


def test_what_cannot_be_done_with_ids_that_end_early_names_what_can():
    tokenizer, vectors = tokenizer_of({}, *BOOKS), line([0, 1])
    ids = tokenizer.encode(vectors)
    for policy in ("counter", "sinkhorn", "capacity"):
        with pytest.raises(DataError, match=r"one length.*'keep'.*'reassign'"):
            getattr(collisions, policy)(ids, tokenizer, vectors)
        with pytest.raises(DataError, match=r"one length.*'keep'.*'reassign'"):
            collisions.assign_new(ids, tokenizer, line([5], names="n"), policy)
    moved = SemanticIds(ids.item_ids, np.array([[1, -1, -1], [0, -1, -1]]), ids.num_codes)
    with pytest.raises(DataError, match="pass the IDs that its encode gave"):
        collisions.reassign(moved, tokenizer, vectors)
    crowd = line([0.0] * 13)
    with pytest.raises(DataError, match="13 items of 3 codes do not fit into 12 free"):
        collisions.reassign(tokenizer.encode(crowd), tokenizer, crowd)
    bare = SimpleNamespace(encode=tokenizer.encode, full_paths=tokenizer.full_paths)
    with pytest.raises(DataError, match="residual codebooks"):
        collisions.reassign(tokenizer.encode(crowd), bare, crowd)
