"""IDs of several lengths in the search: the end, length-normalised scores, sets of items."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.decoding.beam import beam_search
from sidrec.decoding.exact import exact_scores
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.rules import Rules
from sidrec.errors import ConfigError, DataError
from sidrec.testing.decoding import (
    TableGenerator,
    brute_force_log_probs,
    check_is_top_k,
    history_batch,
)
from sidrec.types import PAD, SemanticIds, as_ids

HISTORIES = [[1, 2, 3], [4]]


@st.composite
def catalogues(draw):
    """A dictionary row -> codes, of any lengths and with collisions, and its codebook sizes."""
    num_codes = tuple(draw(st.lists(st.integers(1, 6), min_size=2, max_size=4)))
    rows = []
    for _ in range(draw(st.integers(1, 25))):
        length = draw(st.integers(1, len(num_codes)))
        codes = [draw(st.integers(0, v - 1)) for v in num_codes[:length]]
        rows.append((*codes, *[-1] * (len(num_codes) - length)))
    return num_codes, dict(enumerate(rows))


def index_of(codes, num_codes):
    table = np.array(list(codes.values()), dtype=np.int64).reshape(-1, len(num_codes))
    return PrefixIndex.build(SemanticIds(as_ids(range(len(table))), table, num_codes))


def symbols(codes):
    """How many symbols an ID takes, its end included where it stops early."""
    return min(sum(c >= 0 for c in codes) + 1, len(codes))


class Fixed(TableGenerator):
    """Probabilities by prefix, the same for every history."""

    def __init__(self, table):
        super().__init__((2, 3))
        self.table = table

    def logits(self, history, prefix):
        return np.log(np.array(self.table[prefix], dtype=np.float32))


# row 0: code 0 and the end; row 1: codes 0, 0; row 2: codes 1, 1 (its end has no item)
SHORT_AND_LONG = index_of({0: (0, -1), 1: (0, 0), 2: (1, 1)}, (2, 2))
ONE = history_batch([[1]])
TABLE = {(): [0.6, 0.4], (0,): [0.2, 0.1, 0.7], (1,): [0.1, 0.8, 0.1]}


def test_the_end_is_scored_like_any_code_and_all_ids_sum_to_one():
    found = beam_search(Fixed(TABLE), ONE, SHORT_AND_LONG, k=3, beam_width=3)
    assert found.rows_BK.tolist() == [[0, 2, 1]]
    expected = [0.6 * 0.7 / 0.9, 0.4, 0.6 * 0.2 / 0.9]
    np.testing.assert_allclose(np.exp(found.scores_BK[0]), expected, rtol=1e-5)
    assert np.exp(found.scores_BK).sum() == pytest.approx(1)
    free = beam_search(Fixed(TABLE), ONE, SHORT_AND_LONG, k=3, beam_width=3, renormalise=False)
    np.testing.assert_allclose(np.exp(free.scores_BK[0]), [0.42, 0.32, 0.12], rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.booleans(), st.sampled_from([0.5, 1.0, 2.0]), st.data())
def test_normalised_scores_are_log_probabilities_over_symbols_to_the_penalty(
    catalogue, renormalise, penalty, data
):
    num_codes, codes = catalogue
    index = index_of(codes, num_codes)
    generator = TableGenerator(index.widths, num_values=data.draw(st.integers(0, 3)))
    excluded = data.draw(st.sets(st.sampled_from(sorted(codes))))
    k = data.draw(st.integers(1, len(codes) + 1))
    found = beam_search(
        generator, history_batch(HISTORIES), index, k=k, beam_width=len(codes),
        rules=Rules(exclude=[list(excluded)] * 2), renormalise=renormalise, length_penalty=penalty,
    )  # fmt: skip
    most = len(num_codes) if index.first_end is None else None
    for request, history in enumerate(HISTORIES):
        scores = brute_force_log_probs(
            generator, history, codes, num_codes,
            allowed=set(codes) - excluded, renormalise=renormalise,
        )  # fmt: skip
        scores = {r: s / (most or symbols(codes[r])) ** penalty for r, s in scores.items()}
        check_is_top_k(found, request, scores, k)


def test_normalised_scores_prefer_the_longer_of_two_equally_likely_ids():
    index = index_of({0: (0, -1, -1), 1: (1, 0, 0)}, (2, 2, 2))
    flat = TableGenerator(index.widths, num_values=1)
    raw = beam_search(flat, ONE, index, k=2, beam_width=2, renormalise=False)
    normalised = beam_search(
        flat, ONE, index, k=2, beam_width=2, renormalise=False, length_penalty=1.0
    )
    # two symbols of 1/2 and 1/3 against three of 1/2, 1/3 and 1/3
    assert raw.rows_BK.tolist() == [[0, 1]]
    np.testing.assert_allclose(raw.scores_BK[0], -np.log([6, 18]), rtol=1e-5)
    np.testing.assert_allclose(normalised.scores_BK[0], -np.log([6, 18]) / [2, 3], rtol=1e-5)


def test_among_ids_of_as_many_symbols_a_penalty_only_scales_the_scores():
    for codes in ({0: (0, -1), 1: (1, 0)}, {0: (0, 0), 1: (1, 1)}):  # both two symbols long
        index = index_of(codes, (2, 2))
        generator = TableGenerator(index.widths)
        raw, normalised = (
            beam_search(generator, ONE, index, k=2, beam_width=2, length_penalty=penalty)
            for penalty in (0.0, 1.0)
        )
        np.testing.assert_array_equal(raw.rows_BK, normalised.rows_BK)
        np.testing.assert_allclose(normalised.scores_BK, raw.scores_BK / 2, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.booleans(), st.data())
def test_items_of_a_shared_id_divide_its_probability_by_their_weights(catalogue, renormalise, data):
    num_codes, codes = catalogue
    index, weights = index_of(codes, num_codes), {}
    for row in codes:
        weights[row] = data.draw(st.integers(1, 9))
    weights_N = torch.tensor([float(weights[row]) for row in codes])
    excluded = data.draw(st.sets(st.sampled_from(sorted(codes))))
    k = data.draw(st.integers(1, len(codes) + 1))
    generator = TableGenerator(index.widths)
    found = beam_search(
        generator, history_batch(HISTORIES), index, k=k, beam_width=len(codes),
        rules=Rules(exclude=[list(excluded)] * 2), renormalise=renormalise, weights_N=weights_N,
    )  # fmt: skip

    def shared(scores):
        return {
            row: score
            + np.log(weights[row] / sum(weights[o] for o in scores if codes[o] == codes[row]))
            for row, score in scores.items()
        }

    for request, history in enumerate(HISTORIES):
        scores = brute_force_log_probs(
            generator, history, codes, num_codes,
            allowed=set(codes) - excluded, renormalise=renormalise,
        )  # fmt: skip
        check_is_top_k(found, request, shared(scores), k)
    exact = exact_scores(
        generator, history_batch(HISTORIES), index, renormalise=renormalise, weights_N=weights_N
    )
    for request, history in enumerate(HISTORIES):
        expected = shared(
            brute_force_log_probs(generator, history, codes, num_codes, renormalise=renormalise)
        )
        np.testing.assert_allclose(
            exact[request], [expected[row] for row in codes], rtol=1e-4, atol=1e-4
        )
    if renormalise:  # every item counts now, not only one an ID
        np.testing.assert_allclose(exact.exp().sum(1), 1, rtol=1e-4)


def test_weights_and_inserted_items_and_predicates_agree():
    index = index_of({0: (0, -1), 1: (1, 1)}, (2, 2)).insert(
        np.array([2, 3]), np.array([[0, -1], [0, -1]])
    )
    weights_N = torch.tensor([1.0, 1.0, 2.0, 5.0])
    rules = Rules(keep_N=np.array([True, True, True, False]))
    found = beam_search(
        TableGenerator((2, 3)), ONE, index, k=4, beam_width=4, rules=rules, weights_N=weights_N
    )
    rows, scores = found.rows_BK[0].tolist(), np.exp(found.scores_BK[0])
    assert set(rows) == {0, 1, 2, PAD} and rows.index(2) < rows.index(0)
    assert scores[rows.index(2)] == pytest.approx(2 * scores[rows.index(0)])
    assert scores.sum() == pytest.approx(1)


def test_penalties_and_weights_that_make_no_sense_are_refused():
    search = {"generator": Fixed(TABLE), "batch": ONE, "index": SHORT_AND_LONG, "k": 1}
    for penalty in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="length_penalty must be at least 0"):
            beam_search(**search, beam_width=1, length_penalty=penalty)
    with pytest.raises(DataError, match="cover the 3 catalogue rows of the index, got 2"):
        beam_search(**search, beam_width=1, weights_N=torch.ones(2))
