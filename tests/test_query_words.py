from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from sidrec.embeddings.queries import QueryPairs
from sidrec.errors import DataError
from sidrec.query_words import AskedBatch, Lessons, QueryWords
from sidrec.types import Items, as_ids


def catalogue(*titles: str) -> Items:
    return Items(as_ids(range(len(titles))), pl.DataFrame({"title": list(titles)}))


ITEMS = catalogue("red shoe", "blue shoe", "kettle")
VECTORS = torch.tensor([[2.0, 0.0], [0.0, 4.0], [-6.0, 0.0]])


@pytest.fixture
def words():
    made = QueryWords(ITEMS, 2)
    made.start_from(VECTORS)
    return made


def test_a_word_starts_as_the_mean_of_the_items_that_hold_it(words):
    found = words(words.rows(["red", "Shoe", "KETTLE"]))
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.0], [1.0, 2.0], [-6.0, 0.0]]))


def test_a_query_is_the_sum_of_its_known_words_over_the_root_of_their_number(words):
    found = words(words.rows(["red shoe", "red zzz shoe", "zzz"]))
    expected = torch.tensor([3.0, 2.0]) / 2**0.5
    torch.testing.assert_close(found, torch.stack([expected, expected, torch.zeros(2)]))
    assert words.known(words.rows(["red zzz", "zzz", ""])).tolist() == [True, False, False]


def test_items_added_later_move_no_word_and_their_new_words_are_unknown(words):
    larger = QueryWords(catalogue("red shoe", "blue shoe", "kettle", "green kettle"), 2)
    texts = ["red shoe", "kettle"]
    assert torch.equal(larger.rows(texts), words.rows(texts))
    with torch.no_grad():
        larger.table.weight[: len(words.table.weight)] = words.table.weight
    torch.testing.assert_close(larger(larger.rows(texts)), words(words.rows(texts)))
    assert larger.known(larger.rows(["green", "green kettle"])).tolist() == [False, True]


def test_lessons_draw_queries_of_the_asked_items_only(words):
    pairs = QueryPairs(("kettle", "red", "shoe", "zzz"), np.array([2, 0, 0, 1]))
    lessons = Lessons.of(pairs, words)
    assert len(lessons) == 3
    torch.manual_seed(0)
    asked = lessons.draw_for(torch.tensor([2, 1] + [0] * 40))
    kettle, red, shoe = (int(words.rows([word])) for word in ("kettle", "red", "shoe"))
    assert asked[0].tolist() == [kettle] and asked[1].tolist() == [-1]
    assert set(asked[2:].flatten().tolist()) == {red, shoe}
    items, drawn = lessons.draw(60)
    assert {(int(i), int(w)) for i, w in zip(items, drawn, strict=True)} == {
        (2, kettle), (0, red), (0, shoe)
    }  # fmt: skip


def test_queries_without_a_known_word_teach_nothing(words):
    with pytest.raises(DataError, match="bring queries"):
        Lessons.of(QueryPairs(("zzz",), np.array([0])), words)


def test_a_batch_keeps_its_queries_when_histories_are_cut():
    items = torch.tensor([[1, 2, 3], [4, -1, -1]])
    batch = AskedBatch(items, torch.tensor([3, 1]), None, torch.tensor([[7], [8]]))
    cut = batch.last(2).to("cpu")
    assert cut.items_BT.tolist() == [[2, 3], [4, -1]] and cut.words_BW is not None
    assert cut.words_BW.tolist() == [[7], [8]]
