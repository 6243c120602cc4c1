"""What a query decoder learns from: queries with the items that answer them, by kind.

Three kinds teach side by side, each with its own share of every step: queries that people asked and
somebody judged, queries made of item words, and whole item texts, which each ask for their item
(so that every ID is written at least once, as an index).

Source:   whole texts as lessons of an index: DSI, arXiv:2202.06991.
Cost:     4 F bytes a query for its text vector.
Shapes:   Q queries, B queries of a step, F width of text vectors, A answers, E answers of all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from sidrec.data.search.made import made_search
from sidrec.data.search.values import Judgements
from sidrec.embeddings.vectors import known_rows
from sidrec.generators.query_decoder import LessonBatch, QueryBatch
from sidrec.retrieval.search.bm25 import stemmer, words_of
from sidrec.retrieval.search.dual_tower import embed_texts
from sidrec.types import Bools, Floats, Histories, HistoryBatch, Ints, Items

STEM = stemmer("plural")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The stems of a catalogue's texts, numbered in alphabetical order."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str], most: int) -> Vocabulary:
        """The `most` frequent stems; ties go to the first in the alphabet."""
        counts: dict[str, int] = {}
        for text in texts:
            for word in set(words_of(text, STEM)):
                counts[word] = counts.get(word, 0) + 1
        kept = sorted(counts, key=lambda word: (-counts[word], word))[:most]
        return cls(tuple(sorted(kept)))

    @cached_property
    def number_of(self) -> dict[str, int]:
        """Stem -> its number."""
        return {word: number for number, word in enumerate(self.words)}

    def numbers(self, texts: Sequence[str], most: int) -> Histories:
        """The first `most` known words of each text, in order."""
        known = self.number_of
        return Histories.from_lists(
            [[known[w] for w in words_of(text, STEM) if w in known][:most] for text in texts]
        )


@dataclass(frozen=True, eq=False)
class KnownQueries:
    """Q texts as a decoder reads them."""

    vectors_QF: Floats
    words: Histories
    """Q lists of word numbers."""

    @classmethod
    def of(cls, texts: Sequence[str], text: Any, vocabulary: Vocabulary, most: int) -> KnownQueries:
        """Texts through a fitted embedding and the vocabulary."""
        return cls(embed_texts(text, texts), vocabulary.numbers(texts, most))

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def known_Q(self) -> Bools:
        """(Q,) whether anything of the text is known."""
        return known_rows(self.vectors_QF) | (self.words.lengths > 0)

    def batch(self, rows: Ints | None = None) -> QueryBatch:
        """The chosen queries; all of them by default."""
        rows = np.arange(len(self)) if rows is None else rows
        most = max(int(self.words.lengths[rows].max(initial=0)), 1)
        words = HistoryBatch.from_histories(self.words, rows, max_length=most)
        return QueryBatch(torch.from_numpy(self.vectors_QF[rows]), words.items_BT)


@dataclass(frozen=True, eq=False)
class Lessons:
    """Queries of one kind, and what answers them; none without an answer."""

    queries: KnownQueries
    answers: Histories
    gains_E: Floats
    """Above 0."""

    @classmethod
    def judged(cls, queries: KnownQueries, judgements: Judgements, least_grade: int) -> Lessons:
        """Answers of at least this grade (0: the best), with gains 2^grade − 1.

        Queries without one, or of which nothing is known, are left out.
        """
        least = least_grade or judgements.top_grade
        found = judgements.grades_J >= least
        answered_Q = np.bincount(judgements.queries_J[found], minlength=len(queries)) > 0
        rows = np.flatnonzero(answered_Q & queries.known_Q)
        chosen = judgements.take(rows)
        kept = chosen.grades_J >= least
        counts_Q = np.bincount(chosen.queries_J[kept], minlength=len(rows))
        offsets = np.concatenate([[0], np.cumsum(counts_Q)]).astype(np.int64)
        gains_E = (2.0 ** chosen.grades_J[kept] - 1).astype(np.float32)
        words = queries.words.take(rows)
        return cls(
            KnownQueries(queries.vectors_QF[rows], words),
            Histories(chosen.items_J[kept], offsets),
            gains_E,
        )

    @classmethod
    def made(
        cls, items: Items, text: Any, vocabulary: Vocabulary, *, config: Any, most_words: int
    ) -> Lessons:
        """Runs of words of each item's texts; `config` says how many and how long."""
        made = made_search(
            items, per_item=config.made_per_item, max_words=config.made_words, seed=config.seed
        )
        queries = KnownQueries.of(made.queries.texts, text, vocabulary, most_words)
        return cls.judged(queries, made.judgements, 1)

    @classmethod
    def items(
        cls, items: Items, vectors_NF: Floats, vocabulary: Vocabulary, most_words: int
    ) -> Lessons:
        """Whole texts, each asking for its own item."""
        queries = KnownQueries(vectors_NF, vocabulary.numbers(items.texts(), most_words))
        rows = np.flatnonzero(queries.known_Q)
        own = KnownQueries(vectors_NF[rows], queries.words.take(rows))
        ones = np.ones(len(rows), dtype=np.float32)
        return cls(own, Histories(rows, np.arange(len(rows) + 1)), ones)

    def __len__(self) -> int:
        return len(self.queries)


@dataclass(frozen=True, eq=False)
class LessonBatches:
    """`num_steps` steps as one epoch; a step has `batch_size` queries of each kind.

    `training.train` takes it as its data.
    """

    kinds: tuple[Lessons, ...]
    num_steps: int
    batch_size: int
    most_answers: int = 64
    """Best answers of a query that are drawn from."""

    @cached_property
    def starts(self) -> Ints:
        """Number of the first query of each kind, and the end of the last."""
        return np.concatenate([[0], np.cumsum([len(kind) for kind in self.kinds])])

    @property
    def lengths_S(self) -> Ints:
        """Every query counts once."""
        return np.ones(int(self.starts[-1]), dtype=np.int64)

    @property
    def users_S(self) -> Ints:
        """Queries stand for users."""
        return np.arange(int(self.starts[-1]))

    @property
    def num_batches(self) -> int:
        return self.num_steps

    def epoch(self, seed: int, epoch: int) -> list[Ints]:
        """Each kind goes through its queries in a new order, again and again."""
        parts: list[list[Ints]] = []
        for number, kind in enumerate(self.kinds):
            random = np.random.default_rng([seed, epoch, number])
            size = min(self.batch_size, len(kind))
            passes = -(-self.num_steps * size // len(kind))
            order = np.concatenate([random.permutation(len(kind)) for _ in range(passes)])
            steps = order[: self.num_steps * size].reshape(self.num_steps, size)
            parts.append(list(steps + self.starts[number]))
        return [np.concatenate(step) for step in zip(*parts, strict=True)]

    def build(self, windows_B: Ints) -> LessonBatch:
        """The queries of a step, kind after kind."""
        batches = [
            self._of(
                kind, windows_B[(windows_B >= start) & (windows_B < start + len(kind))] - start
            )
            for kind, start in zip(self.kinds, self.starts.tolist(), strict=False)
        ]
        batches = [batch for batch in batches if len(batch.answers_BA)]
        return LessonBatch(
            QueryBatch(
                torch.cat([batch.queries.vectors_BF for batch in batches]),
                _stacked([batch.queries.words_BW for batch in batches], -1),
            ),
            _stacked([batch.answers_BA for batch in batches], -1),
            _stacked([batch.gains_BA for batch in batches], 0),
        )

    def _of(self, kind: Lessons, rows: Ints) -> LessonBatch:
        lengths_B = kind.answers.lengths[rows]
        columns_A = np.arange(max(int(lengths_B.max(initial=1)), 1))
        real_BA = columns_A < lengths_B[:, None]
        places_BA = np.where(real_BA, kind.answers.offsets[rows][:, None] + columns_A, 0)
        gains_BA = np.where(real_BA, kind.gains_E[places_BA], np.float32(0))
        best_BA = np.argsort(-gains_BA, axis=1, kind="stable")[:, : self.most_answers]
        answers_BA = np.where(real_BA, kind.answers.items_E[places_BA], -1)
        return LessonBatch(
            kind.queries.batch(rows),
            torch.from_numpy(np.take_along_axis(answers_BA, best_BA, axis=1)),
            torch.from_numpy(np.take_along_axis(gains_BA, best_BA, axis=1)),
        )

    def digest(self) -> str:
        """Hash of all queries and answers."""
        digest = hashlib.sha256()
        for kind in self.kinds:
            for part in (kind.queries.vectors_QF, kind.queries.words.items_E, kind.answers.items_E):
                digest.update(part.tobytes())
        return digest.hexdigest()


def _stacked(parts: list[torch.Tensor], empty: int) -> torch.Tensor:
    """Tables one below the other, filled up with `empty` to the widest."""
    widest = max(part.shape[1] for part in parts)
    return torch.cat(
        [torch.nn.functional.pad(part, (0, widest - part.shape[1]), value=empty) for part in parts]
    )
