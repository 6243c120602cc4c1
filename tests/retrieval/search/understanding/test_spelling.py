from __future__ import annotations

import numpy as np
import pytest

from sidrec.retrieval.search.understanding.spelling import MAX_LETTERS, distances


def edits(a, b):
    """Restricted Damerau-Levenshtein distance, cell by cell."""
    table = {}
    for i in range(len(a) + 1):
        for j in range(len(b) + 1):
            if not i or not j:
                table[i, j] = i + j
                continue
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1,
                              table[i - 1, j - 1] + (a[i - 1] != b[j - 1]))  # fmt: skip
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                table[i, j] = min(table[i, j], table[i - 2, j - 2] + 1)
    return table[len(a), len(b)]


def test_distances_are_those_of_the_table():
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abc"), random.integers(1, 8))) for _ in range(60)]
    codes = np.zeros((len(words), MAX_LETTERS), dtype=np.uint32)
    for row, word in enumerate(words):
        codes[row, : len(word)] = [ord(letter) for letter in word]
    lengths = np.array([len(word) for word in words])
    for word in words[:20]:
        assert distances(word, codes, lengths).tolist() == [edits(word, w) for w in words]


def test_a_word_of_the_catalogue_is_never_changed(found):
    words = list(found.lexicon.words)
    assert found.speller.correct(words) == words
    assert found.parse("jura nike kettles").corrected == "jura nike kettles"  # also other numbers


@pytest.mark.parametrize(
    ("query", "corrected"),
    [
        ("runing shoes", "running shoes"),
        ("hedphones", "headphones"),
        ("haedphones", "headphones"),  # exchanged neighbours
        ("Micheal Kors ketle", "michael Kors kettle"),
        ("wirelesss headfones", "wireless headphones"),
        ("steelkettle", "steel kettle"),  # split
        ("head phones", "headphones"),  # joined
        ("2litre kettle", "2 litre kettle"),  # digits apart
        ("xyzzyq kettle", "xyzzyq kettle"),  # nothing is near
        ("b1ack", "b1ack"),  # digits inside: a model's name for all we know
        ("bas", "bas"),  # too short to be sure
        ("\u0447\u0430\u0439\u043d\u0438\u043a", "\u0447\u0430\u0439\u043d\u0438\u043a"),
    ],
)
def test_unknown_words_become_near_ones_of_the_catalogue(found, query, corrected):
    assert found.parse(query).corrected == corrected


def test_protected_words_stay(found):
    assert found.with_config(protected=("Runing",)).parse("runing shoes").corrections == ()


def test_words_beside_it_decide_between_equally_near_words(found):
    table = found.lexicon
    assert table.count_of["boil"] and found.speller.best("boill", ["kettle"]) == "boil"
    near = dict(found.speller.near("laces"))
    assert near["laces"] == 0
    one, other = found.speller.best("trainar", ["shoes"]), found.speller.best("whistel", ["kettle"])
    assert (one, other) == ("trainer", "whistle")
