"""Spelling by the catalogue's own words: a word that it knows is never changed.

An unknown word becomes the candidate with the highest

    ln(1 + items that hold it) + context · ln(1 + items that also hold another word of the query)
    − penalty · edits − first · [the first letter differs]

among words within one edit (4 or 5 letters) or two (6 and more), and splits into two neighbours of
titles ("bandsaw" where titles say "band saw"). Two query words that only stand together in the
catalogue are joined. Words with digits, words of less than 4 letters and brand names are left
alone; digits that run into letters are set apart ("2gallon").

Source:   the noisy channel of Kernighan, Church and Gale 1990; distance of Damerau 1964 in its
          restricted form (a letter is moved by at most one exchange); lengths as in Lucene's AUTO.
Differs:  a constant price an edit instead of a table of confusions; context by titles.
Cost:     a pass over letter sets of the vocabulary, then distances to the few that are left:
          about a millisecond an unknown word at 50,000 words; none for known words.
Shapes:   C candidate words, M letters of a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sidrec.retrieval.search.bm25 import without_plural
from sidrec.retrieval.search.understanding.lexicon import Lexicon
from sidrec.types import Ints

MIN_LETTERS, TWO_EDITS_FROM, MAX_LETTERS = 4, 6, 24
PENALTY, FIRST, CONTEXT = 3.5, 2.0, 1.0
NUM_IN_CONTEXT = 8
"""Candidates that are looked up in titles."""


@dataclass(frozen=True, eq=False)
class Speller:
    """Corrects the words of a query."""

    lexicon: Lexicon
    least_items: int
    """A word is offered as a correction only where so many items hold it."""
    protected: frozenset[str]
    """Words that are never changed, beside those of the catalogue."""

    def correct(self, words: Sequence[str]) -> list[str]:
        """The words with unknown ones corrected, joined or split; a split is one entry with a
        space, and the second of two joined words is ''.
        """
        found = list(words)
        for place, word in enumerate(words):
            if found[place] == "" or self.is_right(word):
                continue
            nearby = words[place + 1] if place + 1 < len(words) else ""
            if nearby and self.lexicon.count_of.get(word + nearby, 0) >= self.least_items:
                found[place : place + 2] = [word + nearby, ""]
                continue
            known = [w for other, w in enumerate(words) if other != place and self.lexicon.known(w)]
            found[place] = self.best(word, known)
        return found

    def is_right(self, word: str) -> bool:
        """Whether a word is left alone."""
        return self.lexicon.known(word) or word in self.protected

    def best(self, word: str, context: Sequence[str] = ()) -> str:
        """The correction of one unknown word; the word itself where nothing is near."""
        if not word.isalpha():
            return _digits_apart(word, self.lexicon)
        if not MIN_LETTERS <= len(word) <= MAX_LETTERS:
            return word
        priced = [(self.worth(near) - PENALTY * edits - FIRST * (near[0] != word[0]), near)
                  for near, edits in self.near(word)]  # fmt: skip
        priced += [(self.split_worth(*halves) - PENALTY, " ".join(halves))
                   for halves in self.splits(word)]  # fmt: skip
        if not priced:
            return word
        priced = sorted(priced, reverse=True)[:NUM_IN_CONTEXT]
        around = [self.lexicon.holding(without_plural(other)) for other in context]
        if around and (beside := np.unique(np.concatenate(around))).size:
            priced = [(price + CONTEXT * self.shared(text, beside), text) for price, text in priced]
        return max(priced)[1]

    def near(self, word: str) -> list[tuple[str, int]]:
        """Words of the catalogue within the allowed edits, with their number."""
        most = 1 if len(word) < TWO_EDITS_FROM else 2
        words, lengths_C, letters_C, codes_CM = self._table
        close_C = np.abs(lengths_C - len(word)) <= most
        close_C &= np.bitwise_count(letters_C ^ _letters(word)) <= 2 * most
        chosen = np.flatnonzero(close_C)
        edits = distances(word, codes_CM[chosen], lengths_C[chosen])
        return [(words[c], int(d)) for c, d in zip(chosen, edits, strict=True) if d <= most]

    def splits(self, word: str) -> list[tuple[str, str]]:
        """Pairs of words whose letters these are and that stand side by side in titles."""
        halves = [(word[:cut], word[cut:]) for cut in range(2, len(word) - 1)]
        return [pair for pair in halves if self.lexicon.neighbours(*pair) >= self.least_items]

    def worth(self, word: str) -> float:
        """How much the catalogue speaks for a word."""
        return float(np.log1p(self.lexicon.count_of.get(word, 0)))

    def split_worth(self, first: str, second: str) -> float:
        """The same for two words side by side."""
        return float(np.log1p(self.lexicon.neighbours(first, second)))

    def shared(self, text: str, beside: Ints) -> float:
        """How often titles that hold a word of the query hold these words too."""
        holding = [self.lexicon.holding(without_plural(word)) for word in text.split()]
        both = min((np.isin(found, beside).sum() for found in holding), default=0)
        return float(np.log1p(both))

    @cached_property
    def _table(self) -> tuple[list[str], Ints, NDArray[np.uint64], NDArray[np.uint32]]:
        """Candidates: words, lengths, sets of letters as bits, letters (C, MAX_LETTERS)."""
        words = [
            word
            for word, count in self.lexicon.count_of.items()
            if count >= self.least_items and 2 < len(word) <= MAX_LETTERS and word.isalpha()
        ]
        codes_CM = np.zeros((len(words), MAX_LETTERS), dtype=np.uint32)
        for row, word in enumerate(words):
            codes_CM[row, : len(word)] = [ord(letter) for letter in word]
        lengths_C = np.array([len(word) for word in words], dtype=np.int64)
        letters_C = np.array([_letters(word) for word in words], dtype=np.uint64)
        return words, lengths_C, letters_C, codes_CM


def distances(word: str, codes_CM: NDArray[np.uint32], lengths_C: Ints) -> Ints:
    """(C,) edits between a word and each candidate: letters put in, left out, changed, or two
    neighbours exchanged.
    """
    width = codes_CM.shape[1]
    rows = [np.tile(np.arange(width + 1), (len(codes_CM), 1))]
    for i, letter in enumerate(map(ord, word), start=1):
        now = np.empty_like(rows[-1])
        now[:, 0] = i
        differs_CM = codes_CM != letter
        for j in range(1, width + 1):
            best = np.minimum(now[:, j - 1], rows[-1][:, j]) + 1
            best = np.minimum(best, rows[-1][:, j - 1] + differs_CM[:, j - 1])
            if i > 1 and j > 1:
                swapped = ~differs_CM[:, j - 2] & (codes_CM[:, j - 1] == ord(word[i - 2]))
                best = np.where(swapped, np.minimum(best, rows[-2][:, j - 2] + 1), best)
            now[:, j] = best
        rows.append(now)
    return rows[-1][np.arange(len(codes_CM)), lengths_C].astype(np.int64)


def _letters(word: str) -> np.uint64:
    bits = 0
    for letter in word:
        bits |= 1 << (ord(letter) % 64)
    return np.uint64(bits)


def _digits_apart(word: str, lexicon: Lexicon) -> str:
    """`2gallon` as `2 gallon` where the catalogue knows the word behind the digits."""
    letters = word.lstrip("0123456789")
    digits = word[: len(word) - len(letters)]
    apart = bool(digits) and letters.isalpha() and len(letters) > 1 and lexicon.known(letters)
    return f"{digits} {letters}" if apart else word
