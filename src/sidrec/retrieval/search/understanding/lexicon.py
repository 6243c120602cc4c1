"""What a catalogue knows about words: how many items hold each, and the words of every title.

Words are those of `bm25.words_of`; a stem is a word without its plural ending. Nothing but the
catalogue is read: no list of a language, no query.

Cost:     one pass over the texts; some 2 s for 100,000 short texts.
Shapes:   N items, W words, S stems, E stems of all titles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from sidrec.retrieval.search.bm25 import WORD, without_plural
from sidrec.types import Ints, Items

PHRASE_COUNT, PHRASE_LIFT = 3, 20.0
"""Neighbours are one phrase where titles hold them so often, and so much more often than chance."""


@dataclass(frozen=True, eq=False)
class Lexicon:
    """Words of the texts, stems of the titles."""

    words: tuple[str, ...]
    """W words as they are written, without case, sorted."""
    counts_W: Ints
    """Items whose texts hold the word."""
    stems: tuple[str, ...]
    """S stems of the titles, sorted."""
    titles_E: Ints
    """Stem of every word of every title, in order."""
    offsets: Ints
    """(N + 1,) item n has the title `titles_E[offsets[n]:offsets[n + 1]]`."""

    @classmethod
    def fit(cls, items: Items) -> Self:
        """Count the words of the items' texts and read their titles."""
        counts: Counter[str] = Counter()
        for text in items.texts():
            counts.update(set(WORD.findall(text.casefold())))
        titles = [stems_of(title) for title in items.titles()]
        stems = sorted({stem for title in titles for stem in title})
        number = {stem: place for place, stem in enumerate(stems)}
        words = sorted(counts)
        offsets = np.cumsum([0, *map(len, titles)]).astype(np.int64)
        flat = [number[stem] for title in titles for stem in title]
        counts_W = np.array([counts[word] for word in words], dtype=np.int64)
        return cls(tuple(words), counts_W, tuple(stems), np.array(flat, dtype=np.int64), offsets)

    @property
    def num_items(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def count_of(self) -> dict[str, int]:
        """Word -> items that hold it."""
        return dict(zip(self.words, self.counts_W.tolist(), strict=True))

    @cached_property
    def form_of(self) -> dict[str, str]:
        """Stem -> its most frequent word."""
        best: dict[str, str] = {}
        for word, count in self.count_of.items():
            stem = without_plural(word)
            if stem not in best or count > self.count_of[best[stem]]:
                best[stem] = word
        return best

    @cached_property
    def number_of(self) -> dict[str, int]:
        """Stem of a title -> its number."""
        return {stem: place for place, stem in enumerate(self.stems)}

    @cached_property
    def _postings(self) -> tuple[Ints, Ints]:
        """Items by stem, repeats included, and where each stem begins."""
        order_E = np.argsort(self.titles_E, kind="stable")
        items_E = np.repeat(np.arange(self.num_items), np.diff(self.offsets))[order_E]
        starts = np.searchsorted(self.titles_E[order_E], np.arange(len(self.stems) + 1))
        return items_E, starts.astype(np.int64)

    def title(self, item: int) -> Ints:
        """Stems of one title, in order."""
        return self.titles_E[self.offsets[item] : self.offsets[item + 1]]

    def holding(self, stem: str) -> Ints:
        """Items whose title holds the stem, ascending, each once."""
        number = self.number_of.get(stem)
        if number is None:
            return np.zeros(0, dtype=np.int64)
        items_E, starts = self._postings
        return np.unique(items_E[starts[number] : starts[number + 1]])

    def known(self, word: str) -> bool:
        """Whether the catalogue holds the word, or another number of it."""
        return word in self.count_of or without_plural(word) in self.form_of

    @cached_property
    def _pairs(self) -> tuple[Ints, Ints]:
        """Neighbouring stems of titles as numbers first · S + second, ascending; how often."""
        last_E = np.zeros(len(self.titles_E), dtype=np.bool_)
        last_E[self.offsets[1:][np.diff(self.offsets) > 0] - 1] = True
        first_E = np.flatnonzero(~last_E)
        keys = self.titles_E[first_E] * len(self.stems) + self.titles_E[first_E + 1]
        return np.unique(keys, return_counts=True)

    def neighbours(self, first: str, second: str) -> int:
        """How often two words stand side by side in titles."""
        numbers = [self.number_of.get(without_plural(word), -1) for word in (first, second)]
        if min(numbers) < 0:
            return 0
        keys, counts = self._pairs
        key = numbers[0] * len(self.stems) + numbers[1]
        place = int(np.searchsorted(keys, key))
        return int(counts[place]) if place < len(keys) and keys[place] == key else 0

    def lift(self, first: str, second: str) -> float:
        """How much more often two words are neighbours than their frequencies make likely."""
        together = self.neighbours(first, second)
        if not together:
            return 0.0
        alone = [
            int(self.frequencies_S[self.number_of[without_plural(w)]]) for w in (first, second)
        ]
        return together * len(self.titles_E) / (alone[0] * alone[1])

    def is_phrase(self, first: str, second: str) -> bool:
        """Whether titles hold the two words side by side, often and not by chance."""
        often = self.neighbours(first, second) >= PHRASE_COUNT
        return often and self.lift(first, second) >= PHRASE_LIFT

    @cached_property
    def frequencies_S(self) -> Ints:
        """(S,) items whose title holds each stem."""
        items_E = np.repeat(np.arange(self.num_items), np.diff(self.offsets))
        once = np.unique(self.titles_E * np.int64(self.num_items) + items_E)
        return np.bincount(once // max(self.num_items, 1), minlength=len(self.stems))

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state`."""
        return {"counts": self.counts_W, "titles": self.titles_E, "offsets": self.offsets}

    def state(self) -> dict[str, Any]:
        """JSON-able rest: the words and stems."""
        return {"words": list(self.words), "stems": list(self.stems)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> Self:
        """The lexicon that `arrays` and `state` came from."""
        words, stems = tuple(state["words"]), tuple(state["stems"])
        return cls(words, arrays["counts"], stems, arrays["titles"], arrays["offsets"])


def stems_of(text: str) -> list[str]:
    """Words of a text without case and plural endings, in order.

    >>> stems_of("Men's SHOES")
    ['men', 's', 'shoe']
    """
    return [without_plural(word) for word in WORD.findall(text.casefold())]


def runs(stems: Sequence[str], most: int) -> list[tuple[int, int]]:
    """(start, end) of every run of up to `most` stems, longest first, then from the left."""
    found = [(a, b) for a in range(len(stems)) for b in range(a + 1, min(a + most, len(stems)) + 1)]
    return sorted(found, key=lambda run: (run[0] - run[1], run[0]))
