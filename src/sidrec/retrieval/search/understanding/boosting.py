"""What understanding does to retrieval: the words asked for, boosts of the pool, hard filters.

    s'(j) = s(j) + σ · Σ_part weight_part · match_part(j, q)

σ is the standard deviation of the scores s of the pool, so that one weight suits every searcher
and every fusion. Matches are in [0, 1]: the probability of the item's category, whether its brand
is named, its title holds the colour, its price lies inside, the share of phrases in its title.

Source:   none beyond field boosting as search engines offer it; boosts are additive.
Cost:     the pool: some hundred items a query.
Shapes:   B queries, N items, P items of a pool, K returned items, C categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from sidrec.contracts import Searcher
from sidrec.retrieval.fusion import Opinion
from sidrec.retrieval.search.bm25 import without_plural
from sidrec.retrieval.search.understanding.lexicon import stems_of
from sidrec.retrieval.search.understanding.parsed import ParsedQuery
from sidrec.retrieval.search.understanding.understanding import QueryUnderstanding
from sidrec.types import PAD, Bools, Candidates, Floats, Ints

Matches = NDArray[np.float64]
POOL = 200
"""Items whose order boosts may change, or k where that is more."""
UNKNOWN_PRICE = 0.5


class Ask(Protocol):
    """One system: searchers by name, texts, how many, which items may be listed."""

    def __call__(
        self, searchers: Mapping[str, Searcher], texts: Sequence[str], k: int, keep_N: Bools | None
    ) -> Candidates:
        """The k best items of every text."""
        ...


@dataclass(frozen=True, eq=False)
class Rewritten:
    """A searcher that is asked other words than those of the query."""

    searcher: Any
    texts: Sequence[str]

    def ask(self, texts: Sequence[str], pool: int, keep_N: Bools | None = None) -> Opinion:
        """The opinion on the rewritten texts; `texts` are those they were made of."""
        return self.searcher.ask(self.texts, pool, keep_N)


def understood_search(
    understanding: QueryUnderstanding,
    searchers: Mapping[str, Searcher],
    ask: Ask,
    texts: Sequence[str],
    k: int,
    keep_N: Bools | None = None,
) -> Candidates:
    """The k best items (B, k) of a system that is asked what the queries were understood to mean.

    Queries with hard filters are asked one by one, the others together.
    """
    parsed_B = [understanding.parse(text) for text in texts]
    masks_B = [allowed(understanding, parsed) for parsed in parsed_B]
    plain = [row for row, mask in enumerate(masks_B) if mask is None]
    groups = [plain, *([row] for row, mask in enumerate(masks_B) if mask is not None)]
    rows_BK = np.full((len(texts), k), PAD, dtype=np.int64)
    scores_BK = np.full((len(texts), k), -np.inf, dtype=np.float32)
    for group in groups:
        if not group:
            continue
        mask_N = masks_B[group[0]]
        kept_N = keep_N if mask_N is None else mask_N if keep_N is None else mask_N & keep_N
        asked = {
            name: Rewritten(value, [asked_text(understanding, parsed_B[r], name) for r in group])
            for name, value in searchers.items()
        }
        pool = ask(cast("Mapping[str, Searcher]", asked), [texts[r] for r in group],
                   max(k, POOL), kept_N)  # fmt: skip
        for row, rows_P, scores_P in zip(group, pool.rows_BK, pool.scores_BK, strict=True):
            real_P = rows_P != PAD
            rows_P, scores_P = rows_P[real_P], scores_P[real_P].astype(np.float64)
            scores_P = boosted(understanding, parsed_B[row], rows_P, scores_P)
            order_K = np.argsort(-scores_P, kind="stable")[:k]
            rows_BK[row, : len(order_K)] = rows_P[order_K]
            scores_BK[row, : len(order_K)] = scores_P[order_K]
    return Candidates(rows_BK, scores_BK)


def asked_text(understanding: QueryUnderstanding, parsed: ParsedQuery, searcher: str) -> str:
    """What a searcher is asked: corrected words, repeated so that added ones weigh less.

    Words of a price are left out where the price is a boost or a filter: no title holds them.
    """
    settings = understanding.config
    text = parsed.corrected if settings.spelling else parsed.query
    if text == parsed.corrected and (settings.price_weight or "price" in settings.hard):
        text = without_prices(text, parsed) or text
    if searcher not in settings.expanded or not settings.expansion_weight or not parsed.expansions:
        return text
    repeated = [text] * max(1, round(1 / settings.expansion_weight))
    return " ".join([*repeated, *parsed.expansions])


def without_prices(text: str, parsed: ParsedQuery) -> str:
    """The corrected query without the words of its prices."""
    for span in reversed(parsed.spans):
        if span.label == "price":
            text = f"{text[: span.start]} {text[span.end :]}"
    return " ".join(text.split())


def boosted(
    understanding: QueryUnderstanding, parsed: ParsedQuery, rows_P: Ints, scores_P: Matches
) -> Matches:
    """(P,) scores of a pool of real items with what the query was understood to ask for."""
    if len(rows_P) < 2:
        return scores_P
    settings = understanding.config
    total_P = np.zeros(len(rows_P))
    for part, match in MATCHES.items():
        if weight := getattr(settings, f"{part}_weight"):
            total_P += weight * match(understanding, parsed, rows_P)
    return scores_P + scores_P.std() * total_P


def allowed(understanding: QueryUnderstanding, parsed: ParsedQuery) -> Bools | None:
    """(N,) items that the hard filters leave; None where there are none."""
    attributes = understanding.attributes
    kept_N: Bools | None = None
    for label, tree in parsed.filters:
        if label not in understanding.config.hard:
            continue
        if label == "brand":
            wanted = [attributes.brands.index(name) for name in tree["value"]]
            met_N = np.isin(attributes.brands_N, wanted)
        else:
            met_N = within(attributes.prices_N, tree)
        kept_N = met_N if kept_N is None else kept_N & met_N
    return kept_N


def category_match(found: QueryUnderstanding, parsed: ParsedQuery, rows_P: Ints) -> Matches:
    """Probability of each item's category over that of the likeliest."""
    probs_C = np.zeros(len(found.attributes.paths) + 1)  # the last one: no category
    for path, probability in parsed.categories:
        probs_C[found.attributes.number_of[path]] = probability
    return probs_C[found.categories_N[rows_P]] / max(probs_C.max(), 1e-12)


def brand_match(found: QueryUnderstanding, parsed: ParsedQuery, rows_P: Ints) -> Matches:
    """1 where the query names the item's brand."""
    named = set(parsed.values("brand"))
    wanted = [place for place, name in enumerate(found.attributes.brands) if name in named]
    return np.isin(found.attributes.brands_N[rows_P], wanted).astype(np.float64)


def colour_match(found: QueryUnderstanding, parsed: ParsedQuery, rows_P: Ints) -> Matches:
    """Share of the words of the query's colours that the title holds."""
    words = [stem for colour in parsed.values("colour") for stem in stems_of(colour)]
    colours = [found.lexicon.number_of.get(stem, -1) for stem in words]
    if not colours:
        return np.zeros(len(rows_P))
    titles = (found.lexicon.title(int(row)) for row in rows_P)
    return np.array([np.isin(colours, title).mean() for title in titles])


def price_match(found: QueryUnderstanding, parsed: ParsedQuery, rows_P: Ints) -> Matches:
    """1 inside the price asked for, 0 outside, in between where the price is unknown."""
    trees = [tree for label, tree in parsed.filters if label == "price"]
    if not trees:
        return np.zeros(len(rows_P))
    prices_P = found.attributes.prices_N[rows_P]
    inside_P = np.logical_and.reduce([within(prices_P, tree) for tree in trees])
    return np.where(np.isnan(prices_P), UNKNOWN_PRICE, inside_P)


def within(prices: Floats, tree: Mapping[str, Any]) -> Bools:
    """Which prices meet one bound; unknown ones meet none."""
    bound = np.float32(tree["value"])
    return prices <= bound if tree["op"] == "le" else prices >= bound


def phrase_match(found: QueryUnderstanding, parsed: ParsedQuery, rows_P: Ints) -> Matches:
    """Share of the neighbours inside phrases that are neighbours in the title."""
    pairs = []
    for segment in parsed.segments:
        stems = [found.lexicon.number_of.get(without_plural(w.casefold())) for w in segment.split()]
        pairs += [pair for pair in pairwise(stems) if None not in pair]
    if not pairs:
        return np.zeros(len(rows_P))
    matches = []
    for row in rows_P.tolist():
        title = found.lexicon.title(row).tolist()
        beside = set(pairwise(title))
        matches.append(sum(pair in beside for pair in pairs) / len(pairs))
    return np.array(matches)


MATCHES = {
    "category": category_match,
    "brand": brand_match,
    "colour": colour_match,
    "price": price_match,
    "phrase": phrase_match,
}
