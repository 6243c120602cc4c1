"""Beam, exact scoring and rules against a dictionary trie, on random catalogues."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.decoding.beam import beam_search
from sidrec.decoding.exact import exact_scores, item_log_probs
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.rules import Rules
from sidrec.testing.decoding import (
    TableGenerator,
    brute_force_log_probs,
    check_is_top_k,
    history_batch,
)
from sidrec.types import PAD, SemanticIds, as_ids

HISTORIES = [[1, 2, 3], [4], [2, 7]]


@st.composite
def catalogues(draw):
    """A dictionary row -> codes and its codebook sizes: fixed or variable length, collisions."""
    num_codes = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    variable = draw(st.booleans())
    rows = []
    for _ in range(draw(st.integers(1, 25))):
        codes = [draw(st.integers(0, v - 1)) for v in num_codes]
        length = draw(st.integers(1, len(codes))) if variable else len(codes)
        rows.append([*codes[:length], *[-1] * (len(codes) - length)])
    return num_codes, dict(enumerate(map(tuple, rows)))


def semantic_ids(codes, num_codes):
    table = np.array([codes[row] for row in sorted(codes)], dtype=np.int64)
    return SemanticIds(as_ids(range(len(table))), table.reshape(-1, len(num_codes)), num_codes)


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.booleans(), st.integers(0, 3), st.data())
def test_a_beam_as_wide_as_the_catalogue_ranks_as_brute_force_with_any_rules(
    catalogue, renormalise, num_values, data
):
    num_codes, codes = catalogue
    index = PrefixIndex.build(semantic_ids(codes, num_codes))
    generator = TableGenerator(index.widths, num_values=num_values)
    subsets = st.sets(st.sampled_from(sorted(codes)))
    kept = data.draw(st.none() | subsets)
    excluded = data.draw(st.none() | st.tuples(subsets, subsets, subsets))
    keep_N = None if kept is None else np.isin(np.arange(len(codes)), list(kept))
    rules = Rules(keep_N=keep_N, exclude=None if excluded is None else [*map(list, excluded)])
    k = data.draw(st.integers(1, len(codes) + 2))
    found = beam_search(
        generator, history_batch(HISTORIES), index, k=k, beam_width=len(codes),
        rules=rules, renormalise=renormalise,
    )  # fmt: skip
    for request, history in enumerate(HISTORIES):
        in_tree = set(codes) if kept is None else kept
        allowed = in_tree - (excluded[request] if excluded else set())
        # an exclusion closes what it empties, so it renormalises as a predicate would
        scores = brute_force_log_probs(
            generator, history, codes, num_codes, allowed=allowed, renormalise=renormalise
        )
        check_is_top_k(found, request, scores, k)


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.data())
def test_k_items_come_back_when_k_exist_however_narrow_the_beam(catalogue, data):
    num_codes, codes = catalogue
    index = PrefixIndex.build(semantic_ids(codes, num_codes))
    excluded = data.draw(st.sets(st.sampled_from(sorted(codes))))
    k = data.draw(st.integers(1, 5))
    found = beam_search(
        TableGenerator(index.widths), history_batch(HISTORIES), index, k=k, beam_width=1,
        rules=Rules(exclude=[list(excluded)] * 3),
    )  # fmt: skip
    for rows in found.rows_BK:
        returned = set(rows[rows != PAD].tolist())
        assert len(returned) == min(k, len(codes) - len(excluded))
        assert not returned & excluded


@settings(max_examples=40, deadline=None)
@given(catalogues(), st.booleans(), st.integers(1, 5))
def test_exact_scores_and_item_log_probs_equal_brute_force_in_any_block(
    catalogue, renormalise, block
):
    num_codes, codes = catalogue
    index = PrefixIndex.build(semantic_ids(codes, num_codes))
    generator, batch = TableGenerator(index.widths), history_batch(HISTORIES)
    scores = exact_scores(generator, batch, index, renormalise=renormalise, block=block)
    rows_BK = torch.arange(len(codes)).expand(3, -1).contiguous()
    chosen = item_log_probs(generator, batch, index, rows_BK, renormalise=renormalise)
    for request, history in enumerate(HISTORIES):
        expected = brute_force_log_probs(
            generator, history, codes, num_codes, renormalise=renormalise
        )
        expected = [expected[row] for row in sorted(codes)]
        np.testing.assert_allclose(scores[request], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(chosen[request], expected, rtol=1e-4, atol=1e-4)
    if renormalise:  # every item holds its ID's probability, so count each distinct ID once
        _, first = np.unique(list(codes.values()), axis=0, return_index=True)
        np.testing.assert_allclose(scores[:, first].exp().sum(1), 1, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.data())
def test_any_sequence_of_inserts_and_deletes_equals_a_rebuild(catalogue, data):
    num_codes, codes = catalogue
    held = dict(list(codes.items())[: max(1, len(codes) // 2)])
    index = PrefixIndex.build(semantic_ids(held, num_codes), first_end=min(1, len(num_codes) - 1))
    index_before, held_before = index, dict(held)
    for _ in range(data.draw(st.integers(1, 5))):
        if held and data.draw(st.booleans()):
            rows = data.draw(st.sets(st.sampled_from(sorted(held))))
            index = index.delete(np.array(sorted(rows), dtype=np.int64))
            held = {row: c for row, c in held.items() if row not in rows}
        else:
            free = sorted(set(range(40)) - set(held))
            rows = data.draw(st.lists(st.sampled_from(free), unique=True, max_size=6))
            new = {row: data.draw(st.sampled_from(sorted(codes.values()))) for row in rows}
            table = np.array([new[row] for row in rows], dtype=np.int64)
            index = index.insert(np.array(rows), table.reshape(-1, len(num_codes)))
            held |= new
    batch = history_batch(HISTORIES)
    generator = TableGenerator(index.widths)
    excluded = data.draw(st.sets(st.integers(0, 39)))
    for snapshot, items in ((index, held), (index_before, held_before)):
        assert snapshot.num_items == len(items)
        assert snapshot.tree.items()[0].tolist() == sorted(items)
        rebuilt = snapshot.merged()
        for rules in (Rules(), Rules(exclude=[list(excluded)] * 3)):
            found = [
                beam_search(generator, batch, i, k=6, beam_width=4, rules=rules)
                for i in (snapshot, rebuilt)
            ]
            np.testing.assert_array_equal(found[0].rows_BK, found[1].rows_BK)
            np.testing.assert_allclose(found[0].scores_BK, found[1].scores_BK, rtol=1e-5)
        found = beam_search(generator, batch, snapshot, k=41, beam_width=41)
        for request, history in enumerate(HISTORIES):
            scores = brute_force_log_probs(generator, history, items, num_codes)
            check_is_top_k(found, request, scores, 41)


@pytest.mark.parametrize("renormalise", [True, False])
def test_exclusions_close_only_what_they_empty(renormalise):
    ids = SemanticIds(as_ids("abc"), np.array([[0, 0], [0, 1], [1, 0]]), (2, 2))
    index = PrefixIndex.build(ids)
    generator, batch = TableGenerator((2, 2)), history_batch([[1], [1]])
    rules = Rules(exclude=[[0, 1], []])
    found = beam_search(
        generator, batch, index, k=3, beam_width=3, rules=rules, renormalise=renormalise
    )
    assert found.rows_BK[0].tolist() == [2, PAD, PAD]
    assert sorted(found.rows_BK[1].tolist()) == [0, 1, 2]


def test_item_log_probs_carry_gradients_to_the_logits_along_the_path_only():
    class Learnt(TableGenerator):
        weights = torch.zeros(2, 3, requires_grad=True)

        def start(self, batch):
            return 0, batch.num_requests

        def step(self, state, codes_BW, parents_BW):
            level, num_requests = state
            beams = 1 if codes_BW is None else codes_BW.shape[1]
            return self.weights[level].expand(num_requests, beams, 3), (level + 1, num_requests)

    ids = SemanticIds(as_ids("abc"), np.array([[0, 0], [0, 2], [1, 1]]), (3, 3))
    generator = Learnt((3, 3))
    row = torch.tensor([[1]])
    item_log_probs(generator, history_batch([[1]]), PrefixIndex.build(ids), row).sum().backward()
    gradient = generator.weights.grad
    assert gradient is not None
    np.testing.assert_allclose(gradient, [[0.5, -0.5, 0], [-0.5, 0, 0.5]], atol=1e-6)
