"""BM25: items that hold the words of the query, rare words first.

    score(q, j) = Σ_{w in q} idf(w) · tf / (tf + k1 (1 − b + b · length_j / mean length))
    idf(w)      = ln(1 + (N − df + 0.5) / (df + 0.5))                                 (lucene)

Every impact is computed when the index is built (`bm25s`); asking adds up one column a query word.
Words are runs of letters and digits without case; scripts written without spaces give one word a
character. An item without any word of the query is no answer.

Source:   Robertson and Zaragoza 2009; variants after Kamphuis et al., ECIR 2020; eager impacts of
          bm25s, arXiv:2407.03618. The stemmer `plural` is the s-stemmer of Harman 1991.
Differs:  no stop words (idf does their work).
Cost:     fit: a second for 20,000 short texts; asking: items that hold the words, plus one byte an
          item; `with_items` fits anew, for every idf may change.
Shapes:   B queries, N items, P items of a pool, W words, Z impacts above 0.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch

from sidrec.data.search.values import SearchData
from sidrec.errors import ConfigError, DataError, MissingExtra
from sidrec.retrieval.fusion import Opinion
from sidrec.types import PAD, Bools, Floats, Ints, Items

WORD = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]"  # one a character
    r"|[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]+"
)
SNOWBALL = ("english", "german", "french", "spanish", "italian", "portuguese", "dutch", "swedish",
            "danish", "norwegian", "finnish", "russian", "turkish", "arabic")  # fmt: skip
Stem = Callable[[str], str]


@dataclass(frozen=True, kw_only=True)
class Bm25Config:
    """Settings of `Bm25`."""

    k1: float = 1.5
    """How soon a repeated word stops to count: 0 counts it once."""
    b: float = 0.75
    """How much long items are held back, in [0, 1]."""
    method: Literal["lucene", "robertson", "atire"] = "lucene"
    """Formula of idf and term weight, as in `bm25s`."""
    stemmer: str = "plural"
    """`none`, `plural` (English plurals, no package needed), or a language for PyStemmer."""
    columns: tuple[str, ...] = ()
    """Columns of the catalogue to read; () reads title, brand, categories, … as `Items.texts`."""

    def __post_init__(self) -> None:
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise ConfigError(
                f"bm25.k1 must be at least 0 and bm25.b in [0, 1], got {self.k1} and {self.b}"
            )
        if self.stemmer not in (known := ("none", "plural", *SNOWBALL)):
            raise ConfigError(f"bm25.stemmer must be one of {known}, got {self.stemmer!r}")


@dataclass(frozen=True, eq=False)
class Bm25:
    """Impacts of words on items, column by column."""

    config_class: ClassVar[type] = Bm25Config
    config: Bm25Config
    words: tuple[str, ...]
    """W stems, sorted; column w of the impacts is `words[w]`."""
    impacts_Z: Floats
    items_Z: Ints
    """Item row of each impact, ascending inside a word."""
    offsets: Ints
    """(W + 1,) word w has the impacts `offsets[w]:offsets[w + 1]`."""
    num_items: int

    @classmethod
    def fit(cls, items: Items, config: Bm25Config, queries: SearchData | None = None) -> Self:
        """The index of the item texts; queries are not looked at."""
        try:
            bm25s = importlib.import_module("bm25s")
        except ImportError as cause:
            raise MissingExtra("bm25s", "search", "BM25 search") from cause
        stem = stemmer(config.stemmer)
        words_N = [words_of(text, stem) for text in texts_of(items, config.columns)]
        words = sorted({word for found in words_N for word in found})
        if not words:
            raise DataError(
                f"bm25: none of the {len(items)} items has text; add a title, description or "
                "categories, or name bm25.columns"
            )
        column_of = {word: column for column, word in enumerate(words)}
        index = bm25s.BM25(k1=config.k1, b=config.b, method=config.method)
        columns_N = [[column_of[word] for word in found] for found in words_N]
        index.index((columns_N, column_of), show_progress=False, create_empty_token=False)
        rows_Z = np.asarray(index.scores["indices"], dtype=np.int64)
        offsets = np.asarray(index.scores["indptr"], dtype=np.int64)
        order_Z = np.lexsort((rows_Z, np.repeat(np.arange(len(words)), np.diff(offsets))))
        impacts_Z = np.asarray(index.scores["data"], dtype=np.float32)
        return cls(config, tuple(words), impacts_Z[order_Z], rows_Z[order_Z], offsets, len(items))

    @cached_property
    def column_of(self) -> dict[str, int]:
        """Stem -> column."""
        return {word: column for column, word in enumerate(self.words)}

    @cached_property
    def stem(self) -> Stem:
        """The stemmer of the config."""
        return stemmer(self.config.stemmer)

    def columns_of(self, text: str) -> list[int]:
        """Columns of the known words of a text, in order; a repeated word counts again."""
        found = (self.column_of.get(word) for word in words_of(text, self.stem))
        return [column for column in found if column is not None]

    def scores(self, texts: Sequence[str]) -> torch.Tensor:
        """(B, N) scores; −inf for items without any word of the query."""
        return self._scores_of(
            [self.columns_of(text) for text in texts],
            torch.arange(self.num_items).expand(len(texts), -1),
        )

    def ask(self, texts: Sequence[str], pool: int, keep_N: Bools | None = None) -> Opinion:
        """The `pool` best allowed items, and the score of any item.

        The same as `opinion_of(self.scores(texts), pool, keep_N)`, without a score for the items
        that hold no word of the query.
        """
        columns_B = [self.columns_of(text) for text in texts]
        pool = min(pool, self.num_items)
        rows_BK = np.full((len(texts), pool), PAD, dtype=np.int64)
        total_N = np.zeros(self.num_items, dtype=np.float32)
        found_N = np.zeros(self.num_items, dtype=np.bool_)
        for row, columns in enumerate(columns_B):
            for column in columns:
                part = slice(self.offsets[column], self.offsets[column + 1])
                total_N[self.items_Z[part]] += self.impacts_Z[part]
                found_N[self.items_Z[part]] = True
            found = np.flatnonzero(found_N if keep_N is None else found_N & keep_N)
            listed = found[_first(total_N[found], pool)]
            rows_BK[row, : len(listed)] = listed
            total_N[found_N] = 0
            found_N[:] = False
        return Opinion(
            torch.from_numpy(rows_BK), lambda rows_BP: self._scores_of(columns_B, rows_BP).double()
        )

    def _scores_of(self, columns_B: Sequence[Sequence[int]], rows_BP: torch.Tensor) -> torch.Tensor:
        """(B, P) scores of given items, found by bisection in the items of each word."""
        scores_BP = np.full(rows_BP.shape, -np.inf, dtype=np.float32)
        for row, (columns, rows_P) in enumerate(zip(columns_B, rows_BP.numpy(), strict=True)):
            total_P = np.zeros(len(rows_P), dtype=np.float32)
            found_P = np.zeros(len(rows_P), dtype=np.bool_)
            for column in columns:
                start, end = self.offsets[column], self.offsets[column + 1]
                places_P = start + np.searchsorted(self.items_Z[start:end], rows_P)
                places_P = np.minimum(places_P, end - 1)
                hit_P = self.items_Z[places_P] == rows_P
                total_P[hit_P] += self.impacts_Z[places_P[hit_P]]
                found_P |= hit_P
            scores_BP[row, found_P] = total_P[found_P]
        return torch.from_numpy(scores_BP)

    def with_items(self, items: Items) -> Self:
        """The index of a catalogue whose first items are the present ones."""
        return type(self).fit(items, self.config)

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` to rebuild this index."""
        return {"impacts": self.impacts_Z, "items": self.items_Z, "offsets": self.offsets}

    def state(self) -> dict[str, Any]:
        """JSON-able rest: the words."""
        return {"words": list(self.words), "num_items": self.num_items}

    @classmethod
    def from_arrays(
        cls, config: Bm25Config, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
    ) -> Self:
        """The index that `arrays` and `state` came from."""
        return cls(
            config,
            tuple(state["words"]),
            arrays["impacts"],
            arrays["items"],
            arrays["offsets"],
            int(state["num_items"]),
        )


def _first(values: Floats, k: int) -> Ints:
    """Places of the k largest values, best first, ties by the earlier place."""
    places = np.arange(len(values))
    if len(values) > k:
        places = np.flatnonzero(values >= np.partition(values, len(values) - k)[len(values) - k])
    return places[np.argsort(-values[places], kind="stable")[:k]]


def texts_of(items: Items, columns: Sequence[str]) -> list[str]:
    """One text an item, of the chosen columns or of those that `Items.texts` reads."""
    if not columns:
        return items.texts()
    missing = [name for name in columns if name not in items.attributes.columns]
    if missing:
        raise DataError(
            f"bm25: the catalogue has no column {missing}, has {items.attributes.columns}; "
            "correct bm25.columns"
        )
    rows = items.attributes.select(columns).iter_rows()
    return [". ".join(_cell(value) for value in row if value is not None) for row in rows]


def words_of(text: str, stem: Stem) -> list[str]:
    """Stems of the words of a text, in order.

    >>> words_of("Women's SHOES, 靴下", stemmer("plural"))
    ['women', 's', 'shoe', '靴', '下']
    """
    return [stem(word) for word in WORD.findall(text.casefold())]


def stemmer(name: str) -> Stem:
    """The stemmer of this name. MissingExtra where PyStemmer is not installed."""
    if name == "none":
        return str
    if name == "plural":
        return without_plural
    try:
        module = importlib.import_module("Stemmer")
    except ImportError as cause:
        raise MissingExtra("PyStemmer", "search", f"the stemmer {name!r}") from cause
    return module.Stemmer(name).stemWord


def without_plural(word: str) -> str:
    """Harman's s-stemmer: -ies to -y, -es to -e, -s dropped, with their exceptions.

    >>> [without_plural(w) for w in ("batteries", "dishes", "heels", "glass", "bus", "shoes")]
    ['battery', 'dishe', 'heel', 'glass', 'bus', 'shoe']
    """
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    if word.endswith("s") and len(word) > 1 and not word.endswith(("us", "ss")):
        return word[:-1]
    return word


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(map(str, np.atleast_1d(value)))
