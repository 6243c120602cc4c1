from __future__ import annotations

import numpy as np
import pytest

from sidrec.data.search import Judgements, Queries, Sessions, clean_query, required_query
from sidrec.errors import DataError
from sidrec.types import as_ids


def test_a_cleaned_query_holds_no_control_character_and_stays_itself():
    dirty = "red\x00shoe\u202e\r\n  42\ud800"
    assert clean_query(dirty) == "red shoe 42"
    for text in (dirty, "बच्चों के जूते", "ランニング シューズ", "cafe\u0301", "👩\u200d🎤 mic"):
        assert clean_query(clean_query(text)) == clean_query(text)
    assert clean_query("می\u200cخواهم") == "می\u200cخواهم"  # the joiner is part of the word
    assert clean_query("cafe\u0301") == "café"


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "empty"), (" \x00\t", "empty"), ("a" * 10_000, "10,000 characters"), (7, "a text")],
)
def test_what_is_no_query_is_refused_in_words(text, words):
    with pytest.raises(DataError, match=words):
        required_query(text)


def test_queries_hold_cleaned_texts_only():
    with pytest.raises(DataError, match="not cleaned"):
        Queries(as_ids("a"), ("two  spaces",))
    with pytest.raises(DataError, match="unique"):
        Queries(as_ids("aa"), ("one", "two"))


def judgements():
    """Query 0: items 4, 1; query 1: nothing; query 2: item 1."""
    triples = np.array([[2, 1, 3], [0, 4, 0], [0, 1, 2]])
    return Judgements.from_lists(*triples.T, num_queries=3, top_grade=3)


def test_judgements_keep_grade_with_item_and_query_whatever_the_order():
    found = judgements()
    assert [list(zip(*map(list, found.of(q)), strict=True)) for q in range(3)] == [
        [(1, 2), (4, 0)],
        [],
        [(1, 3)],
    ]
    assert found.pairs(2).tolist() == [[0, 1], [2, 1]]
    assert found.queries_J.tolist() == [0, 0, 2]


def test_taken_judgements_follow_their_queries():
    taken = judgements().take(np.array([2, 1, 0]))
    assert [taken.of(q)[1].tolist() for q in range(3)] == [[3], [], [2, 0]]


def test_an_item_judged_twice_or_off_the_scale_is_refused():
    twice = (np.array([0, 0]), np.array([1, 1]), np.array([0, 1]))
    with pytest.raises(DataError, match="there once"):
        Judgements.from_lists(*twice, num_queries=1, top_grade=1)
    with pytest.raises(DataError, match=r"\[0, 1\], got \[2\]"):
        Judgements.from_lists(
            np.array([0]), np.array([1]), np.array([2]), num_queries=1, top_grade=1
        )


def test_the_end_of_one_query_may_lie_after_the_start_of_the_next():
    Judgements(np.array([5, 2]), np.array([1, 1]), np.array([0, 1, 2]), 1)
    Judgements(np.array([5, 2]), np.array([1, 1]), np.array([0, 0, 1, 1, 2]), 1)
    with pytest.raises(DataError, match="ascend"):
        Judgements(np.array([5, 2]), np.array([1, 1]), np.array([0, 0, 2]), 1)


def sessions():
    """One query; shown 3, 1, 4 with 4 clicked; shown 1, 5 without a click; shown 1, 3, 5."""
    return Sessions(
        Queries(as_ids(["q"]), ("shoe",)),
        np.zeros(3, dtype=np.int64),
        np.array([3, 1, 4, 1, 5, 1, 3, 5]),
        np.array([0, 0, 1, 0, 0, 1, 0, 0], dtype=bool),
        np.array([0, 3, 5, 8]),
    )


def test_items_above_the_last_click_are_skipped_and_a_session_without_clicks_tells_nothing():
    found = sessions()
    assert [found.clicked(s).tolist() for s in range(3)] == [[4], [], [1]]
    assert [found.skipped(s).tolist() for s in range(3)] == [[3, 1], [], []]


def test_a_click_in_any_session_outweighs_being_skipped():
    items, grades = sessions().judgements().of(0)
    assert dict(zip(items.tolist(), grades.tolist(), strict=True)) == {1: 1, 3: 0, 4: 1}
