"""Label the words of a query: brand, category, colour, price, size, quantity, excluded.

Numbers with their units, and what follows "without", are found by patterns, names by the longest
match among those of the catalogue; each word has one label at most. Words of the patterns are
English. A price needs a currency, or a word of price before a number without another unit.

Source:   the labels of Yelp's query understanding (engineering blog, February 2025), for products.
Differs:  patterns and names of the catalogue, no language model (that is `asked`).
Shapes:   none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sidrec.retrieval.search.bm25 import WORD
from sidrec.retrieval.search.understanding.attributes import MAX_WORDS, Attributes, key_of
from sidrec.retrieval.search.understanding.lexicon import Lexicon, runs

NUMBER = r"(?:\d+\s*/\s*\d+|\d+(?:[.,]\d+)?)"
MONEY = r"(?:dollars?|bucks|usd|eur|euros?|gbp|pounds? sterling)"
LENGTH = r"inch(?:es)?|in|ft|feet|foot|yards?|cm|mm|meters?|metres?|m|\""
VOLUME = r"oz|ounces?|fl oz|ml|l|lit(?:er|re)s?|gal(?:lons?)?|pints?|quarts?|cups?"
REST = r"lbs?|pounds?|kg|g|grams?|mg|mcg|watts?|w|volts?|v|mah|gb|tb|mp|hz|k"
UNIT = rf"(?:{LENGTH}|{VOLUME}|{REST})"
PRICE_BELOW = r"(?:under|below|less than|cheaper than|up to|at most|max(?:imum)?|no more than)"
PRICE_ABOVE = r"(?:over|above|more than|at least|min(?:imum)?)"
AMOUNT = rf"(?:[$€£]\s*(?:\d+(?:\.\d+)?)|\d+(?:\.\d+)?\s*(?:{MONEY}\b|[$€£]))"
BARE = rf"(?:\d+(?:\.\d+)?)(?!\s*-?\s*{UNIT}\b)(?!\s*[/\d.])"
SIZES = r"(?:x{1,4}l|xs|small|medium|large|twin|queen|king|full size|plus size|petite)"
PATTERNS = (
    ("price", rf"(?:between\s+)?{AMOUNT}\s*(?:-|to|and)\s*(?:{AMOUNT}|{BARE})"),
    ("price", rf"between\s+{BARE}\s+and\s+(?:{AMOUNT}|{BARE})"),
    ("price", rf"\b(?:{PRICE_BELOW}|{PRICE_ABOVE})\s+(?:{AMOUNT}|{BARE})"),
    ("price", AMOUNT),
    ("quantity", rf"\b(?:set|pack|box|case)\s+of\s+{NUMBER}"),
    ("quantity", rf"\b{NUMBER}\s*-?\s*(?:packs?|pcs|pieces?|count|ct|pairs?|sets?|rolls?)\b"),
    ("size", rf"(?<![\w/.]){NUMBER}\s*-?\s*{UNIT}(?!\w)(?:\s*x\s*{NUMBER}\s*-?\s*{UNIT}?(?!\w))*"),
    ("size", rf"(?<![\w/.]){NUMBER}(?:\s*x\s*{NUMBER})+\b"),
    ("size", rf"\bsize\s+(?:{NUMBER}|{SIZES})\b"),
    ("size", rf"\b{SIZES}\b"),
    ("excluded", r"\b(?:without|with no)\s+\w+(?:\s+\w+)?"),
)
COMPILED = tuple((label, re.compile(pattern, re.IGNORECASE)) for label, pattern in PATTERNS)
FIGURE = re.compile(r"\d+(?:\.\d+)?")
LABELS = ("brand", "category", "colour", "price", "size", "quantity", "excluded")


@dataclass(frozen=True)
class Span:
    """A labelled part of the corrected query."""

    start: int
    end: int
    """Characters `start` to `end` of the corrected query."""
    label: str
    text: str
    values: tuple[str, ...] = ()
    """Brands, categories or the colour of the catalogue that it names."""


def label_spans(text: str, lexicon: Lexicon, attributes: Attributes) -> tuple[Span, ...]:
    """The spans of a corrected query, from the left; they do not overlap."""
    spans: list[Span] = []

    def free(start: int, end: int) -> bool:
        return all(end <= span.start or start >= span.end for span in spans)

    for label, pattern in COMPILED:
        for found in pattern.finditer(text):
            start, end = found.span()
            if label == "excluded":
                start += len(found.group()) - len(re.sub(r"^\S+\s+(?:no\s+)?", "", found.group()))
            if free(start, end):
                spans.append(Span(start, end, label, text[start:end]))
    words = [(found.start(), found.end()) for found in WORD.finditer(text)]
    stems = [(key_of(text[start:end]) or ("",))[0] for start, end in words]
    for first, last in runs(stems, MAX_WORDS):
        start, end = words[first][0], words[last - 1][1]
        if free(start, end) and (named := _named(tuple(stems[first:last]), lexicon, attributes)):
            spans.append(Span(start, end, named[0], text[start:end], named[1]))
    return joined(text, sorted(spans, key=lambda span: span.start), lexicon)


def joined(text: str, spans: list[Span], lexicon: Lexicon) -> tuple[Span, ...]:
    """Neighbouring categories that titles hold as one phrase become one ("desk chair"), which has
    the values of its last word.
    """
    found: list[Span] = []
    for span in spans:
        last = found[-1] if found else None
        if last and last.label == span.label == "category" and text[last.end : span.start] == " ":
            pair = (last.text.split()[-1].casefold(), span.text.split()[0].casefold())
            if lexicon.is_phrase(*pair):
                whole = text[last.start : span.end]
                found[-1] = Span(last.start, span.end, "category", whole, span.values)
                continue
        found.append(span)
    return tuple(found)


def _named(
    key: tuple[str, ...], lexicon: Lexicon, attributes: Attributes
) -> tuple[str, tuple[str, ...]] | None:
    """Label and catalogue values of a phrase."""
    if brands := attributes.brands_named(key, lexicon):
        return "brand", tuple(attributes.brands[place] for place in brands)
    if key in attributes.colours_of and max(map(len, key)) > 2:
        return "colour", (" ".join(key),)
    if nodes := attributes.nodes_of.get(key):
        return "category", tuple(nodes)
    return None


def price_bounds(spans: tuple[Span, ...]) -> tuple[float | None, float | None]:
    """(least, most) price that the spans ask for; None where they leave it open."""
    least = most = None
    for span in spans:
        if span.label != "price":
            continue
        figures = sorted(float(figure) for figure in FIGURE.findall(span.text))
        if len(figures) > 1:
            least, most = figures[0], figures[-1]
        elif re.match(PRICE_ABOVE, span.text, re.IGNORECASE):
            least = figures[0]
        else:
            most = figures[0]
    return least, most


def typed_filters(
    spans: tuple[Span, ...], fields: Mapping[str, str]
) -> tuple[tuple[str, dict[str, Any]], ...]:
    """(label, tree of `sidrec.filters`) of what the spans ask for of columns that exist."""
    found: list[tuple[str, dict[str, Any]]] = []
    brands = sorted({value for span in spans if span.label == "brand" for value in span.values})
    if brands:
        found.append(("brand", {"field": fields["brand"], "op": "in", "value": brands}))
    least, most = price_bounds(spans)
    if "price" in fields:
        for op, bound in (("ge", least), ("le", most)):
            if bound is not None:
                found.append(("price", {"field": fields["price"], "op": op, "value": bound}))
    return tuple(found)
