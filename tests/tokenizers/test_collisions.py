"""Collision policies: hand-made groups, matching against brute force, items that come later."""

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.errors import ConfigError, DataError
from sidrec.tokenizers import collisions
from sidrec.tokenizers.quantisation import quantise
from sidrec.types import ItemVectors, SemanticIds, as_ids


def tokenizer_of(*codebooks):
    books = tuple(np.asarray(book, dtype=np.float32) for book in codebooks)
    sizes = tuple(map(len, books))

    def encode(vectors):
        return SemanticIds(vectors.item_ids, quantise(vectors.vectors, books)[0], sizes)

    return SimpleNamespace(
        codebooks=books, num_codes=sizes, encode=encode, project=lambda vectors: vectors.vectors
    )


def line(points, names=None):
    """Items on a line."""
    vectors = np.asarray(points, dtype=np.float32)[:, None]
    return ItemVectors(as_ids(names or range(len(points))), vectors)


ON_A_LINE = tokenizer_of([[0.0], [100.0]], [[0.0], [1.0], [2.0]])


def test_keep_changes_nothing_and_reports_the_share():
    vectors = line([0.0, 0.1, 2.0])
    ids = ON_A_LINE.encode(vectors)
    kept, report = collisions.keep(ids, ON_A_LINE, vectors)
    assert kept is ids
    assert report.share_before == report.share_after == pytest.approx(2 / 3)
    assert report.largest_after == 2 and report.num_moved == 0


def test_reassign_moves_as_little_as_possible():
    vectors = line([0.0, 0.3, 102.0])  # the first two share (0, 0); 0.3 is nearer to code 1
    ids = ON_A_LINE.encode(vectors)
    np.testing.assert_array_equal(ids.codes, [[0, 0], [0, 0], [1, 2]])
    after, report = collisions.reassign(ids, ON_A_LINE, vectors)
    np.testing.assert_array_equal(after.codes, [[0, 0], [0, 1], [1, 2]])
    assert (report.num_moved, report.num_moved_prefix) == (1, 0)
    # squared errors: before 0, .09, 0; after 0, .49, 0
    assert report.extra_distortion == pytest.approx((0.49 - 0.09) / 0.09, rel=1e-4)


def test_a_full_prefix_keeps_its_best_and_sends_the_rest_to_the_nearest_room():
    vectors = line([0.0, 1.0, 2.0, 9.0, 110.0])  # four items want the three places near 0
    after, report = collisions.reassign(ON_A_LINE.encode(vectors), ON_A_LINE, vectors)
    np.testing.assert_array_equal(after.codes[:3], [[0, 0], [0, 1], [0, 2]])
    np.testing.assert_array_equal(after.codes[3], [1, 0])  # 100 is nearest to 9 among 100…102
    assert report.num_moved_prefix == 1 and report.share_after == 0


def test_order_of_rows_does_not_matter_only_item_ids_do():
    vectors = line([0.0] * 5, names=["e", "a", "d", "b", "c"])
    first, _ = collisions.reassign(ON_A_LINE.encode(vectors), ON_A_LINE, vectors)
    order = np.array([3, 0, 4, 1, 2])
    shuffled = ItemVectors(vectors.item_ids[order], vectors.vectors[order])
    second, _ = collisions.reassign(ON_A_LINE.encode(shuffled), ON_A_LINE, shuffled)
    np.testing.assert_array_equal(second.codes, first.codes[order])
    counted, _ = collisions.counter(ON_A_LINE.encode(vectors), ON_A_LINE, vectors)
    np.testing.assert_array_equal(counted.codes[:, -1], [4, 0, 3, 1, 2])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10_000))
def test_no_collision_is_left_and_items_alone_do_not_move(num_items, seed):
    random = np.random.default_rng(seed)
    tokenizer = tokenizer_of(
        random.standard_normal((3, 2)), random.standard_normal((4, 2)), random.random((4, 2))
    )
    vectors = ItemVectors(
        as_ids(random.permutation(num_items)),
        np.round(random.standard_normal((num_items, 2)), 0).astype(np.float32),
    )
    ids = tokenizer.encode(vectors)
    after, report = collisions.reassign(ids, tokenizer, vectors)
    assert after.collision_share() == report.share_after == 0
    crowded = {
        tuple(c[:-1]) for c, n in zip(ids.codes.tolist(), ids.group_sizes_N, strict=True) if n > 1
    }
    for before, now in zip(ids.codes.tolist(), after.codes.tolist(), strict=True):
        if tuple(before[:-1]) not in crowded:
            assert now == before
    assert report.num_moved == (ids.codes != after.codes).any(axis=1).sum()


def test_matching_equals_the_best_of_all_permutations():
    random = np.random.default_rng(3)
    tokenizer = tokenizer_of(np.zeros((1, 2)), random.standard_normal((5, 2)))
    vectors = ItemVectors(as_ids(range(5)), 0.1 * random.standard_normal((5, 2)).astype("f4"))
    after, _ = collisions.reassign(tokenizer.encode(vectors), tokenizer, vectors)
    costs = np.square(vectors.vectors[:, None] - tokenizer.codebooks[1][None]).sum(-1)
    best = min(sum(costs[i, c] for i, c in enumerate(p)) for p in permutations(range(5)))
    assert costs[np.arange(5), after.codes[:, 1]].sum() == pytest.approx(best, rel=1e-5)


def test_more_items_than_ids_are_refused():
    vectors = line(np.linspace(0, 100, 7))
    with pytest.raises(DataError, match="7 items do not fit into 6 free IDs"):
        collisions.reassign(ON_A_LINE.encode(vectors), ON_A_LINE, vectors)


def test_counter_makes_ids_unique_and_leaves_room():
    vectors = line([0.0, 0.1, 0.2, 2.0])
    after, report = collisions.counter(ON_A_LINE.encode(vectors), ON_A_LINE, vectors)
    np.testing.assert_array_equal(after.codes[:, -1], [0, 1, 2, 0])
    assert after.num_codes[:-1] == ON_A_LINE.num_codes and after.num_codes[-1] >= 6
    assert report.share_before == 0.75 and report.share_after == 0


@pytest.mark.parametrize("policy", ["counter", "reassign"])
def test_new_items_get_free_ids_and_old_ones_stay(policy):
    vectors = line([0.0, 0.1, 100.0])
    existing, _ = getattr(collisions, policy)(ON_A_LINE.encode(vectors), ON_A_LINE, vectors)
    new = line([0.0, 101.0], names=["new 1", "new 2"])
    added, _ = collisions.assign_new(existing, ON_A_LINE, new, policy)
    assert added.num_codes == existing.num_codes
    joined = np.concatenate([existing.codes, added.codes])
    assert len(np.unique(joined, axis=0)) == 5
    expected = {"counter": [[0, 0, 2], [1, 1, 0]], "reassign": [[0, 2], [1, 1]]}
    np.testing.assert_array_equal(added.codes, expected[policy])


def test_new_items_beyond_a_full_prefix_move_on_and_beyond_all_are_refused():
    existing = ON_A_LINE.encode(line([0.0, 1.0, 2.0]))
    added, report = collisions.assign_new(existing, ON_A_LINE, line([1.0], names=["x"]))
    np.testing.assert_array_equal(added.codes, [[1, 0]])
    assert report.num_moved_prefix == 1
    with pytest.raises(DataError, match="do not fit into 3 free IDs"):
        collisions.assign_new(existing, ON_A_LINE, line([0.0] * 4, names="wxyz"))


def test_a_full_counter_says_what_to_do():
    existing = SemanticIds(as_ids("ab"), np.array([[0, 0, 0], [0, 0, 1]]), (2, 3, 2))
    with pytest.raises(DataError, match="fit the tokenizer again"):
        collisions.assign_new(existing, ON_A_LINE, line([0.0], names=["c"]), "counter")


def test_wrong_calls_are_refused():
    vectors = line([0.0])
    ids = ON_A_LINE.encode(vectors)
    with pytest.raises(
        ConfigError, match="have \\['keep', 'counter', 'sinkhorn', 'reassign', 'capacity'\\]"
    ):
        collisions.assign_new(ids, ON_A_LINE, line([0.0], names=["n"]), "digit")
    with pytest.raises(DataError, match=r"already have IDs.*leave them out"):
        collisions.assign_new(ids, ON_A_LINE, vectors)
    short = SemanticIds(as_ids("a"), np.array([[0, -1]]), (2, 3))
    for policy in (collisions.counter, collisions.reassign):
        with pytest.raises(DataError, match="one length"):
            policy(short, ON_A_LINE, vectors)
    counted, _ = collisions.counter(ids, ON_A_LINE, vectors)
    with pytest.raises(DataError, match="pass the IDs that its encode gave"):
        collisions.reassign(counted, ON_A_LINE, vectors)


def test_groups_of_lists_the_items_that_share_an_id_largest_first():
    vectors = line([0, 0, 100, 100, 100, 2], names=["b", "a", "z", "y", "x", "alone"])
    groups = collisions.groups_of(ON_A_LINE.encode(vectors))
    assert [list(group) for group in groups] == [["x", "y", "z"], ["a", "b"]]
