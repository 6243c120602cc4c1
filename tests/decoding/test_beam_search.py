"""Beam search by hand-worked examples: scores, ties, dead ends, and what it refuses."""

import numpy as np
import pytest
import torch

from sidrec.decoding.beam import LevelTrace, beam_search, unconstrained_search
from sidrec.decoding.exact import exact_scores
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.rules import Rules
from sidrec.errors import ConfigError, DataError
from sidrec.testing.decoding import TableGenerator, brute_force_log_probs, history_batch
from sidrec.types import PAD, SemanticIds, as_ids


def index_of(codes, num_codes):
    table = np.array(codes, dtype=np.int64)
    return PrefixIndex.build(SemanticIds(as_ids(range(len(table))), table, num_codes))


class Fixed(TableGenerator):
    """Logits by prefix, the same for every history."""

    def __init__(self, table, width):
        super().__init__((width,) * 2)
        self.table = table

    def logits(self, history, prefix):
        return np.log(np.array(self.table[prefix], dtype=np.float32))


ONE = history_batch([[1]])
SPACE = np.stack(np.meshgrid(range(3), range(4), range(2), indexing="ij"), -1).reshape(-1, 3)


def test_masking_before_or_after_the_softmax_ranks_the_cards_example_differently():
    # A (.6) has the single child 0 of probability .1; B (.4) has the child 0 of .9
    generator = Fixed({(): [0.6, 0.4], (0,): [0.1, 0.9], (1,): [0.9, 0.1]}, 2)
    index = index_of([[0, 0], [1, 0]], (2, 2))
    after = beam_search(generator, ONE, index, k=2, beam_width=2, renormalise=False)
    assert after.rows_BK.tolist() == [[1, 0]]
    np.testing.assert_allclose(np.exp(after.scores_BK), [[0.36, 0.06]], rtol=1e-5)
    before = beam_search(generator, ONE, index, k=2, beam_width=2)
    assert before.rows_BK.tolist() == [[0, 1]]
    np.testing.assert_allclose(np.exp(before.scores_BK), [[0.6, 0.4]], rtol=1e-5)


def test_a_free_beam_equals_the_constrained_one_when_every_id_is_an_item():
    index, generator = index_of(SPACE, (3, 4, 2)), TableGenerator((3, 4, 2))
    batch = history_batch([[1, 2], [3]])
    free = unconstrained_search(generator, batch, index, beam_width=5)
    held = beam_search(generator, batch, index, k=5, beam_width=5, renormalise=False)
    assert free.valid_BK.all() and free.invalid_share(5) == 0
    np.testing.assert_array_equal(free.codes_BKL, index.codes(torch.from_numpy(held.rows_BK)))
    np.testing.assert_array_equal(free.scores_BK, held.scores_BK)
    renormalised = beam_search(generator, batch, index, k=5, beam_width=5)
    np.testing.assert_allclose(renormalised.scores_BK, held.scores_BK, rtol=1e-5)


def test_one_allowed_item_keeps_the_probability_the_model_gives_it():
    index, generator = index_of(SPACE, (3, 4, 2)), TableGenerator((3, 4, 2))
    keep_N = np.arange(len(SPACE)) == 13
    codes = {13: tuple(SPACE[13])}
    for renormalise in (True, False):
        found = beam_search(
            generator, ONE, index, k=2, beam_width=1, rules=Rules(keep_N=keep_N),
            renormalise=renormalise,
        )  # fmt: skip
        expected = brute_force_log_probs(generator, [1], codes, (3, 4, 2), renormalise=renormalise)[
            13
        ]
        assert found.rows_BK.tolist() == [[13, PAD]]
        np.testing.assert_allclose(found.scores_BK, [[expected, -np.inf]], atol=1e-5)


def test_the_invalid_share_counts_code_tuples_that_no_item_holds():
    table = {(): [0.7, 0.3], (0,): [0.9, 0.1], (1,): [0.8, 0.2]}
    index = index_of([[0, 1], [1, 0]], (2, 2))
    free = unconstrained_search(Fixed(table, 2), ONE, index, beam_width=4)
    assert free.codes_BKL.tolist() == [[[0, 0], [1, 0], [0, 1], [1, 1]]]
    assert free.valid_BK.tolist() == [[False, True, True, False]]
    assert free.invalid_share(1) == 1.0 and free.invalid_share(3) == pytest.approx(1 / 3)
    found = beam_search(
        Fixed(table, 2), ONE, index, k=2, beam_width=2, constrained=False, renormalise=False
    )
    assert found.rows_BK.tolist() == [[1, PAD]]  # the best pair of beams holds one item only
    np.testing.assert_allclose(np.exp(found.scores_BK[0, 0]), 0.24, rtol=1e-5)


def test_ties_go_to_lower_codes_then_to_lower_rows():
    codes = [[1, 1], [0, 1], [0, 0], [1, 1], [0, 0], [1, 0]]
    index, flat = index_of(codes, (2, 2)), TableGenerator((2, 2), num_values=1)
    found = beam_search(flat, history_batch([[1]] * 3), index, k=6, beam_width=6)
    assert found.rows_BK.tolist() == [[2, 4, 1, 5, 0, 3]] * 3
    narrow = beam_search(flat, ONE, index, k=1, beam_width=1)
    assert narrow.rows_BK.tolist() == [[2]]


def test_ties_among_many_codes_keep_the_lowest():
    codes = np.stack(np.meshgrid(range(64), range(64), indexing="ij"), -1).reshape(-1, 2)
    found = beam_search(
        TableGenerator((64, 64), num_values=1), ONE, index_of(codes, (64, 64)), k=20, beam_width=20
    )
    assert found.rows_BK.tolist() == [list(range(20))]


def test_colliding_items_come_back_together_with_one_score():
    index = index_of([[0, 0], [1, 1], [0, 0], [0, 0]], (2, 2))
    found = beam_search(
        TableGenerator((2, 2)), ONE, index, k=4, beam_width=4, rules=Rules(exclude=[[2]])
    )
    rows = found.rows_BK[0].tolist()
    assert sorted(rows) == [PAD, 0, 1, 3] and rows.index(3) == rows.index(0) + 1
    assert found.scores_BK[0, rows.index(0)] == found.scores_BK[0, rows.index(3)]


def test_excluding_everything_returns_nothing_and_other_requests_do_not_notice():
    index, generator = index_of(SPACE, (3, 4, 2)), TableGenerator((3, 4, 2))
    everything, batch = list(range(24)), history_batch([[1], [1]])
    found = beam_search(
        generator, batch, index, k=24, beam_width=24, rules=Rules(exclude=[everything, []])
    )
    assert (found.rows_BK[0] == PAD).all() and np.isneginf(found.scores_BK[0]).all()
    assert sorted(found.rows_BK[1].tolist()) == everything
    nothing = Rules(keep_N=np.zeros(24, dtype=bool))
    assert (
        beam_search(generator, batch, index, k=3, beam_width=3, rules=nothing).rows_BK < 0
    ).all()


def test_exclusions_may_repeat_items_and_name_unknown_ones():
    index, generator = index_of(SPACE, (3, 4, 2)), TableGenerator((3, 4, 2))
    search = [
        beam_search(generator, ONE, index, k=24, beam_width=24, rules=Rules(exclude=exclude))
        for exclude in ([[5, 5, 900, 5]], torch.tensor([[5, -1, -1]]), [np.array([5])])
    ]
    for found in search:
        assert set(found.rows_BK[0].tolist()) == set(range(24)) - {5} | {PAD}


def test_the_trace_tells_which_prefixes_lived():
    index, trace = index_of([[0, 0], [1, 0]], (3, 2)), []
    beam_search(TableGenerator((3, 2)), ONE, index, k=3, beam_width=3, trace=trace)
    assert [type(level) for level in trace] == [LevelTrace, LevelTrace]
    assert sorted(trace[0].codes_BW[trace[0].live_BW].tolist()) == [0, 1]
    assert trace[1].codes_BW[trace[1].live_BW].tolist() == [0, 0]


def test_half_precision_logits_are_scored_in_single_precision():
    class Half(TableGenerator):
        def step(self, *arguments):
            logits, state = super().step(*arguments)
            return logits.bfloat16(), state

    index = index_of(SPACE, (3, 4, 2))
    found = beam_search(Half((3, 4, 2)), ONE, index, k=24, beam_width=24)
    assert found.scores_BK.dtype == np.float32
    np.testing.assert_allclose(np.exp(found.scores_BK.astype(np.float64)).sum(), 1, atol=1e-5)


def test_a_search_after_an_insert_and_a_delete_finds_the_new_and_not_the_old():
    index = index_of(SPACE[:-1], (3, 4, 2))
    changed = index.insert(np.array([23]), SPACE[-1:]).delete(np.array([0]))
    scores_BN = exact_scores(TableGenerator((3, 4, 2)), ONE, changed)
    assert scores_BN.shape == (1, 24) and torch.isneginf(scores_BN).nonzero().tolist() == [[0, 0]]
    found = beam_search(TableGenerator((3, 4, 2)), ONE, changed, k=23, beam_width=23)
    assert sorted(found.rows_BK[0].tolist()) == list(range(1, 24))


def test_what_cannot_be_searched_is_refused_with_the_reason():
    index, nan = index_of(SPACE, (3, 4, 2)), TableGenerator((3, 4, 2))
    with pytest.raises(ConfigError, match="k must be at least 1"):
        beam_search(nan, ONE, index, k=0, beam_width=3)
    with pytest.raises(DataError, match=r"level 1 of the index has 4 symbols.* gives 5"):
        beam_search(TableGenerator((3, 5, 2)), ONE, index, k=1, beam_width=3)
    with pytest.raises(DataError, match="one list for each of 1 requests"):
        beam_search(nan, ONE, index, k=1, beam_width=3, rules=Rules(exclude=[[1], [2]]))
    nan.logits = lambda history, prefix: np.full(nan.num_codes[len(prefix)], np.nan, np.float32)
    with pytest.raises(DataError, match="NaN logits"):
        beam_search(nan, ONE, index, k=1, beam_width=3)
