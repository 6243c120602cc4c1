"""Understand a query by its catalogue: spelling, phrases, labelled spans, category, more words.

Everything is learnt from the items alone, so it needs no log, no list of a language and no model;
a language model can be asked in addition (`asked`), and is believed only in what the catalogue
holds. What is understood is kept by query, under the version of the catalogue and the settings:
a catalogue that changed has another version, and nothing of the former is found.

Source:   the parts of Yelp's query understanding (engineering blog, February 2025; card
          `language_models`, section 8): spelling, spans, expansion, head queries from a cache.
Differs:  catalogue statistics where they ask language models; products, not places.
Cost:     fit: see the parts, a few seconds for 10,000 items; a new query some milliseconds, a
          known one none.
Shapes:   N items, C categories, B queries, P items of a pool.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from sidrec import config as configuration
from sidrec.data.search.values import MAX_QUERY_CHARS, required_query
from sidrec.errors import ConfigError
from sidrec.retrieval.search.bm25 import WORD
from sidrec.retrieval.search.understanding.asker_config import AskerConfig
from sidrec.retrieval.search.understanding.attributes import Attributes
from sidrec.retrieval.search.understanding.categories import CategoryModel, numbers
from sidrec.retrieval.search.understanding.expansion import expand
from sidrec.retrieval.search.understanding.lexicon import Lexicon, stems_of
from sidrec.retrieval.search.understanding.parsed import ParsedQuery
from sidrec.retrieval.search.understanding.spans import Span, label_spans, typed_filters
from sidrec.retrieval.search.understanding.spelling import Speller
from sidrec.types import Ints, Items

if TYPE_CHECKING:
    from sidrec.retrieval.search.understanding.asked import Asker

NUM_CATEGORIES = 5
INTENTS = {"brand": "brand", "category": "kind", "colour": "property", "size": "property",
           "quantity": "property", "price": "property", "excluded": "property"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class UnderstandingConfig:
    """Settings of `QueryUnderstanding`; a weight of 0 leaves a part out of retrieval."""

    spelling: bool = True
    """Search with the corrected words."""
    least_items: int = 2
    """A word is offered as a correction where so many items hold it."""
    protected: tuple[str, ...] = ()
    """Words that are never corrected, beside those of the catalogue."""
    expansion_weight: float = 0.0
    """Weight of an added word beside one of the query, for the searchers of `expanded`."""
    num_expansions: int = 5
    """Words added at most."""
    expanded: tuple[str, ...] = ("bm25",)
    """Searchers that read the added words; dense ones know related words already."""
    category_weight: float = 0.0
    """Boost of an item by the probability of its category; boosts are in standard deviations of
    the scores of the pool."""
    brand_weight: float = 0.0
    """Boost of items of a brand that the query names."""
    colour_weight: float = 0.0
    """Boost of items whose title holds the colour."""
    price_weight: float = 0.0
    """Boost of items inside the price that the query asks for; unknown prices count half."""
    phrase_weight: float = 0.0
    """Boost by the share of the query's phrases that stand so in the title."""
    hard: tuple[Literal["brand", "price"], ...] = ()
    """What is a filter, not a boost: other items, and those of unknown value, are left out."""
    category_depth: int = 3
    """Nodes of a category path that are told apart."""
    category_items: int = 5
    """Smaller categories are merged into their parent."""
    brand: str = "brand"
    """Column of brands, where there is one."""
    category: str = "categories"
    """Column of category paths."""
    colour: str = "color"
    """Column of colours."""
    price: str = "price"
    """Column of prices."""
    cached: int = 10_000
    """Understood queries that are kept."""
    asker: AskerConfig = field(default_factory=AskerConfig)
    """The language model to ask, if any."""
    seed: int = 0
    """Seed of the held-out items that calibrate the categories."""

    def __post_init__(self) -> None:
        for name in ("least_items", "category_depth", "category_items"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"understanding.{name} must be at least 1, got {value}")
        for name in ("num_expansions", "cached", *(f"{part}_weight" for part in WEIGHTED)):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"understanding.{name} must be at least 0, got {value}")
        if self.expansion_weight > 1:
            raise ConfigError(
                f"understanding.expansion_weight must be at most 1, got {self.expansion_weight}"
            )


WEIGHTED = ("expansion", "category", "brand", "colour", "price", "phrase")


@dataclass(frozen=True, eq=False)
class QueryUnderstanding:
    """Ready to parse queries about one catalogue."""

    config_class: ClassVar[type] = UnderstandingConfig
    config: UnderstandingConfig
    lexicon: Lexicon
    attributes: Attributes
    categories: CategoryModel
    categories_N: Ints
    """Category of each item, guessed from its title where the catalogue names none."""
    asker: Asker | None = None
    cache: OrderedDict[tuple[str, str], ParsedQuery] = field(default_factory=OrderedDict)
    lock: Any = field(default_factory=Lock)

    @classmethod
    def fit(cls, items: Items, config: UnderstandingConfig | None = None) -> Self:
        """Learn words, names and categories from the items."""
        config = config or UnderstandingConfig()
        lexicon = Lexicon.fit(items)
        fields = {role: getattr(config, role) for role in ("brand", "category", "colour", "price")}
        attributes = Attributes.fit(
            items, fields, depth=config.category_depth, least=config.category_items
        )
        categories = CategoryModel.fit(items, lexicon, attributes, config.seed)
        filled_N = categories.imputed(lexicon, attributes.categories_N)
        return cls(config, lexicon, attributes, categories, filled_N)._with_asker()

    def with_items(self, items: Items) -> Self:
        """The same settings over another catalogue: another version, an empty cache."""
        return type(self).fit(items, self.config)

    def with_config(self, **changes: Any) -> Self:
        """Other weights over the same statistics, with its own cache."""
        return replace(
            self, config=replace(self.config, **changes), cache=OrderedDict(), lock=Lock()
        )

    @cached_property
    def version(self) -> str:
        """SHA-256 of everything that an answer depends on: settings and what was learnt."""
        digest = hashlib.sha256(
            json.dumps([configuration.to_dict(self.config), self.state()], sort_keys=True).encode()
        )
        for name, array in sorted(self.arrays().items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @cached_property
    def speller(self) -> Speller:
        """Corrects by the words of this catalogue."""
        protected = frozenset(word.casefold() for word in self.config.protected)
        least = min(self.config.least_items, max(1, self.lexicon.num_items // 500))
        return Speller(self.lexicon, least, protected)

    def parse(self, query: str) -> ParsedQuery:
        """What the query asks for. DataError where it is empty or too long."""
        text = required_query(query)
        key = (self.version, text)
        with self.lock:
            if (known := self.cache.get(key)) is not None:
                self.cache.move_to_end(key)
                return known
        parsed = self.understood(text)
        if self.asker is not None:
            parsed = self.asker.improved(parsed, self)
        with self.lock:
            self.cache[key] = parsed
            while len(self.cache) > self.config.cached:
                self.cache.popitem(last=False)
        return parsed

    def understood(self, text: str, corrected: str | None = None) -> ParsedQuery:
        """The embedded parse of a cleaned text, without the cache; `corrected` skips spelling."""
        corrections: tuple[tuple[str, str], ...] = ()
        if corrected is None:
            corrected, corrections = self._corrected(text)
        stems = stems_of(corrected)
        spans = label_spans(corrected, self.lexicon, self.attributes)
        probs_C = self.categories.probs(numbers(corrected, self.lexicon))
        return ParsedQuery(
            query=text,
            corrected=corrected,
            corrections=corrections,
            segments=self._segments(corrected),
            spans=spans,
            expansions=expand(
                stems, self.lexicon, self.categories_N, probs_C, self.config.num_expansions
            ),
            filters=typed_filters(spans, self.attributes.fields),
            categories=self.likely(corrected),
            intent=intent_of(corrected, spans),
        )

    def _corrected(self, text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
        found = list(WORD.finditer(text))
        words = [word.group().casefold() for word in found]
        fixed = self.speller.correct(words)
        pieces, changes, end = [], [], 0
        for place, (match, word, new) in enumerate(zip(found, words, fixed, strict=True)):
            if new == "":  # joined to the word before
                end = match.end()
                continue
            pieces.append(text[end : match.start()])
            pieces.append(match.group() if new == word else new)
            if new != word:
                joined = place + 1 < len(fixed) and fixed[place + 1] == ""
                written = f"{word} {words[place + 1]}" if joined else word
                changes.append((written, new))
            end = match.end()
        corrected = "".join([*pieces, text[end:]])[:MAX_QUERY_CHARS]
        return corrected, tuple(changes)

    def _segments(self, text: str) -> tuple[str, ...]:
        """Words, neighbours joined where titles hold them as a phrase."""
        segments: list[str] = []
        last = ""
        for found in WORD.finditer(text):
            word = found.group()
            if last and self.lexicon.is_phrase(last.casefold(), word.casefold()):
                segments[-1] += f" {word}"
            else:
                segments.append(word)
            last = word
        return tuple(segments)

    def likely(
        self, text: str, most: int | None = NUM_CATEGORIES
    ) -> tuple[tuple[tuple[str, ...], float], ...]:
        """(path, probability) of the likeliest categories of a corrected query, best first."""
        probs_C = self.categories.probs(numbers(text, self.lexicon))
        best = np.argsort(-probs_C, kind="stable")[:most].tolist()
        return tuple((self.attributes.paths[c], float(probs_C[c])) for c in best)

    def _with_asker(self) -> Self:
        if self.config.asker.backend == "none":
            return self
        from sidrec.retrieval.search.understanding.asked import Asker

        return replace(self, asker=Asker.open(self.config.asker))

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` and the config."""
        groups = {
            "lexicon": self.lexicon.arrays(),
            "attributes": self.attributes.arrays(),
            "categories": self.categories.arrays(),
        }
        parts = {f"{g}.{name}": array for g, found in groups.items() for name, array in
                 found.items()}  # fmt: skip
        return {**parts, "filled": self.categories_N}

    def state(self) -> dict[str, Any]:
        """JSON-able rest."""
        return {
            "lexicon": self.lexicon.state(),
            "attributes": self.attributes.state(),
            "categories": self.categories.state(),
        }

    @classmethod
    def from_arrays(
        cls,
        config: UnderstandingConfig,
        arrays: Mapping[str, np.ndarray],
        state: Mapping[str, Any],
    ) -> Self:
        """What `arrays` and `state` came from; a language model is opened anew."""

        def under(group: str) -> dict[str, np.ndarray]:
            start = f"{group}."
            return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}

        return cls(
            config,
            Lexicon.from_arrays(under("lexicon"), state["lexicon"]),
            Attributes.from_arrays(under("attributes"), state["attributes"]),
            CategoryModel.from_arrays(under("categories"), state["categories"]),
            arrays["filled"],
        )._with_asker()


def intent_of(text: str, spans: Sequence[Span]) -> dict[str, float]:
    """Shares of words that name a brand, a kind of thing, a property, something else."""
    words = list(WORD.finditer(text))
    if not words:
        return {"other": 1.0}
    shares: dict[str, float] = {"brand": 0.0, "kind": 0.0, "property": 0.0, "other": 0.0}
    for word in words:
        inside = (s for s in spans if s.start <= word.start() and word.end() <= s.end)
        span = next(inside, None)
        shares[INTENTS[span.label] if span else "other"] += 1 / len(words)
    return shares
