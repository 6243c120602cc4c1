"""The trace of a beam against the beam itself, and its masses against what they must sum to."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.decoding.beam import beam_search
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.rules import Rules
from sidrec.decoding.trace import NO_ITEM, Cause, read
from sidrec.testing.decoding import TableGenerator, history_batch
from sidrec.types import PAD, SemanticIds, as_ids

HISTORY = [1, 2, 3]
ONE = history_batch([HISTORY])


@st.composite
def catalogues(draw):
    """Codes (N, L) of fixed or variable length, with collisions, and their codebook sizes."""
    num_codes = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    variable = draw(st.booleans())
    rows = []
    for _ in range(draw(st.integers(1, 25))):
        codes = [draw(st.integers(0, v - 1)) for v in num_codes]
        length = draw(st.integers(1, len(codes))) if variable else len(codes)
        rows.append([*codes[:length], *[-1] * (len(codes) - length)])
    return np.array(rows, dtype=np.int64), num_codes


def index_of(codes_NL, num_codes):
    return PrefixIndex.build(SemanticIds(as_ids(range(len(codes_NL))), codes_NL, num_codes))


@settings(max_examples=80, deadline=None)
@given(catalogues(), st.booleans(), st.sampled_from([0.0, 0.7]), st.data())
def test_a_trace_changes_nothing_and_its_masses_leave_no_rest(
    catalogue, renormalise, length_penalty, data
):
    codes_NL, num_codes = catalogue
    index, rows = index_of(codes_NL, num_codes), range(len(codes_NL))
    generator = TableGenerator(index.widths, num_values=data.draw(st.integers(0, 3)))
    subset = st.sets(st.sampled_from(rows))
    kept = [np.isin(rows, list(data.draw(subset))) for _ in range(2)]
    gone = [np.array(sorted(data.draw(subset)), dtype=np.int64) for _ in range(2)]
    options = {
        "k": data.draw(st.integers(1, 4)), "beam_width": data.draw(st.integers(1, 6)),
        "rules": Rules(keep_N=kept[0] & kept[1], exclude=[np.concatenate(gone)]),
        "renormalise": renormalise, "length_penalty": length_penalty,
    }  # fmt: skip
    levels = []
    traced = beam_search(generator, ONE, index, trace=levels, **options)
    plain = beam_search(generator, ONE, index, **options)
    np.testing.assert_array_equal(traced.rows_BK, plain.rows_BK)
    np.testing.assert_array_equal(traced.scores_BK, plain.scores_BK)
    causes = [
        Cause(name="away", keep_N=kept[0]), Cause(name="filter", keep_N=kept[1]),
        Cause(name="seen", exclude=gone[0]), Cause(name="unwanted", exclude=gone[1]),
    ]  # fmt: skip
    story = read(levels, index, causes, renormalise=renormalise, shown=3)
    assert len(story) == len(num_codes)
    entering = 1.0
    for level in story:
        assert level.entering == pytest.approx(entering, abs=1e-6)
        parts = [level.kept, level.fallen, *level.lost.values()]
        assert sum(parts) == pytest.approx(level.entering, abs=1e-6) and min(parts) >= 0
        entering = sum(prefix.prob for prefix in level.survivors)
        probs = [prefix.prob for prefix in level.survivors]
        fallen = [prefix.prob for prefix in level.others if prefix.fate == "fallen"]
        if fallen and not length_penalty:
            assert max(fallen) <= min(probs) * (1 + 1e-5)
    allowed = np.flatnonzero(kept[0] & kept[1] & ~np.isin(rows, np.concatenate(gone)))
    for place, level in enumerate(story):
        for prefix in level.survivors:
            width = len(prefix.codes)
            below = (codes_NL[allowed][:, :width] == prefix.codes).all(axis=1)
            if width <= place:  # it has ended
                below &= (codes_NL[allowed][:, width:] < 0).all(axis=1)
            assert prefix.num_items == below.sum() > 0
    found = [tuple(c for c in codes_NL[row] if c >= 0) for row in plain.rows_BK[0] if row != PAD]
    assert set(found) <= {prefix.codes for prefix in story[-1].survivors}
    for above, level in itertools.pairwise(story):
        fathers = {above.survivors[prefix.parent].codes for prefix in level.survivors}
        assert fathers == {p.codes for p in above.survivors if p.fate == "lives"}


def test_each_code_is_lost_to_the_first_rule_that_empties_it():
    """Worked by hand: V = 5 at one level, q = (.1, .2, .3, .15, .25), no item has code 4."""

    class Fixed(TableGenerator):
        def logits(self, history, prefix):
            return np.log(np.array([0.1, 0.2, 0.3, 0.15, 0.25], dtype=np.float32))

    index = index_of(np.array([[0], [1], [1], [2], [3]]), (5,))
    keep_N = np.array([True, True, False, False, True])
    causes = [
        Cause(name="filter", keep_N=keep_N),
        Cause(name="seen", exclude=np.array([1, 3])),  # row 1 was the last of code 1
    ]
    levels = []
    rules = Rules(keep_N=keep_N, exclude=[np.array([1, 3])])
    beam_search(Fixed((5,)), ONE, index, k=1, beam_width=1, rules=rules, trace=levels)
    (level,) = read(levels, index, causes)
    assert level.lost == pytest.approx({NO_ITEM: 0.25, "filter": 0.3, "seen": 0.2})
    assert (level.kept, level.fallen) == pytest.approx((0.15, 0.1))
    assert [p.codes for p in level.survivors] == [(3,)]
    assert level.survivors[0].prob == pytest.approx(0.6)  # .15 of the .25 that are left
    others = {(p.codes, p.fate): p.prob for p in level.others}
    assert others == pytest.approx(
        {((4,), NO_ITEM): 0.25, ((2,), "filter"): 0.3, ((1,), "seen"): 0.2, ((0,), "fallen"): 0.4}
    )
