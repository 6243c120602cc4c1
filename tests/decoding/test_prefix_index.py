"""The index itself: the paper's example, legality, snapshots, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.errors import DataError
from sidrec.types import SemanticIds, as_ids


def index_of(codes, num_codes, **options):
    table = np.array(codes, dtype=np.int64).reshape(-1, len(num_codes))
    return PrefixIndex.build(SemanticIds(as_ids(range(len(table))), table, num_codes), **options)


def legal(index, level, node):
    return index.children_mask(level, torch.tensor([[node]]))[0, 0].nonzero()[:, 0].tolist()


def test_the_example_of_the_static_paper_has_only_valid_continuations_at_every_node():
    # tokens 1..3 of the paper are codes 0..2: (1,2,1), (3,1,2), (3,1,3)
    index = index_of([[0, 1, 0], [2, 0, 1], [2, 0, 2]], (3, 3, 3))
    assert [legal(index, 0, 0)] == [[0, 2]]
    assert [legal(index, 1, node) for node in (0, 1)] == [[1], [0]]
    assert [legal(index, 2, node) for node in (0, 1)] == [[0], [1, 2]]
    assert [len(keys) for keys in index.tree.base.entry_first] == [3, 3, 4]
    second = index.child(0, torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2]))
    assert second.tolist() == [0, index.sinks[1], 1]
    assert index.tree.items_below(torch.tensor([2, 0]))[1].tolist() == [2, 0]


def test_a_dead_beam_goes_to_a_sink_that_has_no_children_and_never_returns():
    index = index_of([[0, 0], [1, 1]], (2, 2))
    sink = index.child(0, torch.tensor([[index.sinks[0]]]), torch.tensor([[0]]))
    assert sink.item() == index.sinks[1] != 0
    assert legal(index, 0, index.sinks[0]) == [] and legal(index, 1, index.sinks[1]) == []
    assert (index.child(1, sink, torch.tensor([[0]])) == index.sinks[2]).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 20), st.integers(0, 60), st.integers(0, 10**6))
def test_masks_and_children_equal_a_dictionary_trie(num_levels, width, num_items, seed):
    random = np.random.default_rng(seed)
    codes = random.integers(0, width, (num_items, num_levels))
    index = index_of(codes, (width,) * num_levels)
    known = {(): 0}
    for level in range(num_levels):
        following = {}
        for prefix, node in known.items():
            expected = sorted({row[level] for row in codes.tolist() if (*row[:level],) == prefix})
            assert legal(index, level, node) == expected
            children = index.child(level, torch.full((width,), node), torch.arange(width))
            assert (children != index.sinks[level + 1]).nonzero()[:, 0].tolist() == expected
            following |= {(*prefix, c): int(children[c]) for c in expected}
        assert len(set(following.values())) == len(following) == index.num_prefixes(level)
        known = following
    assert index.codes(torch.arange(num_items)).tolist() == codes.tolist()


def test_ids_too_long_for_one_integer_are_sorted_all_the_same():
    codes = np.random.default_rng(0).integers(0, 64, (300, 12))
    codes[150:] = codes[:150]
    codes[200:, 11] += codes[200:, 11] < 63
    index = index_of(codes, (64,) * 12)
    assert index.codes(torch.arange(300)).tolist() == codes.tolist()
    keys = index.tree.base.keys[11]
    assert (keys.diff()[: index.tree.num_nodes[11] - 1] > 0).all()


def test_short_ids_share_a_tree_with_the_longer_ids_they_begin():
    index = index_of([[1, -1, -1], [1, 0, -1], [1, 0, 1]], (2, 2, 2))
    assert index.widths == (2, 3, 3) and index.first_end == 1
    assert legal(index, 0, 0) == [1] and legal(index, 1, 0) == [0, 2]
    assert index.codes(torch.tensor([0, 1, 2])).tolist() == [[1, 2, 2], [1, 0, 2], [1, 0, 1]]
    assert index_of([[1, 0, 1]], (2, 2, 2)).widths == (2, 2, 2)


def test_snapshots_share_the_base_and_leave_the_older_one_as_it_was():
    codes = np.random.default_rng(0).integers(0, 8, (200, 3))
    first = index_of(codes, (8, 8, 8))
    before = [a.clone() for a in (*first.tree.arrays, *first.live, *first.bits)]
    second = first.insert(np.arange(200, 220), codes[:20]).delete(np.arange(0, 40))
    for array, other in zip((*first.tree.arrays, *first.live, *first.bits), before, strict=True):
        assert torch.equal(array, other)
    shared = zip(first.tree.base.arrays, second.tree.base.arrays, strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in shared)
    assert (first.version, second.version) == (0, 2)
    assert (first.num_items, second.num_items) == (200, 180)
    assert second.nbytes == sum(a.nbytes for a in (*second.tree.arrays, *second.live,
                                                   *second.bits, second.byte_bias))  # fmt: skip


def test_a_large_overlay_and_a_mostly_dead_base_are_merged():
    codes = np.random.default_rng(0).integers(0, 16, (4000, 3))
    index = index_of(codes[:2000], (16, 16, 16))
    grown = index.insert(np.arange(2000, 4000), codes[2000:])
    assert grown.tree.pristine and grown.num_items == 4000 and grown.version == 1
    shrunk = grown.delete(np.arange(0, 3000))
    assert shrunk.tree.pristine and shrunk.num_items == 1000
    for snapshot, rows in ((grown, np.arange(4000)), (shrunk, np.arange(3000, 4000))):
        assert snapshot.codes(torch.from_numpy(rows)).tolist() == codes[rows].tolist()


def test_predicates_are_worked_out_once_and_the_oldest_forgotten():
    index = index_of([[0, 0], [0, 1], [1, 0]], (2, 2))
    keep = torch.tensor([True, False, True])
    view = index.restrict(keep, b"one")
    assert view is index.restrict(keep, b"one") and view.num_items == 2
    assert legal(view, 1, 0) == [0] and legal(index, 1, 0) == [0, 1]
    for number in range(16):
        index.restrict(keep, bytes([number]))
    assert index.restrict(keep, b"one") is not view


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.insert(np.array([0]), np.array([[0, 0]])), "already in the index"),
        (lambda i: i.insert(np.array([3, 3]), np.zeros((2, 2))), "distinct"),
        (lambda i: i.insert(np.array([3]), np.array([[0, 2]])), "more symbols"),
        (lambda i: i.insert(np.array([3]), np.array([[0, -1]])), "ends early"),
        (lambda i: i.insert(np.array([3]), np.array([[-1, 1]])), "follows the end"),
        (lambda i: i.insert(np.array([3]), np.array([[0]])), r"\(d, L\) = \(1, 2\)"),
        (lambda i: i.delete(np.array([0, 7])), r"1 of 2 rows are not in the index, e.g. \[7\]"),
        (lambda i: i.codes(torch.tensor([5])), "insert them first"),
        (lambda i: i.restrict(torch.ones(2, dtype=torch.bool), b""), "cover the 3"),
    ],
)
def test_changes_that_make_no_sense_are_refused_with_the_reason(change, message):
    with pytest.raises(DataError, match=message):
        change(index_of([[0, 0], [0, 1], [1, 0]], (2, 2)))


def test_a_part_of_the_levels_is_an_index_of_those_codes_of_the_live_items():
    random = np.random.default_rng(6)
    codes = np.stack([random.integers(0, v, 40) for v in (3, 2, 4, 5)], axis=1)
    ids = SemanticIds(as_ids(range(40)), codes, (3, 2, 4, 5))
    index = PrefixIndex.build(ids).delete(np.array([7])).insert([50], [[2, 1, 3, 4]])
    rows = torch.tensor([*range(7), *range(8, 40), 50])
    expected = np.vstack([np.delete(codes, 7, axis=0), [2, 1, 3, 4]])
    for start, stop in ((0, 2), (2, 4), (1, 4)):
        part = index.part(start, stop)
        assert part.num_codes == index.num_codes[start:stop] and part.num_items == 40
        np.testing.assert_array_equal(part.codes(rows), expected[:, start:stop])
        assert part.paths(torch.tensor([7]))[-1] == part.sinks[-1]
        assert index.part(start, stop) is part
