"""Words that belong to a query without being in it: those of the titles that answer it best.

The best titles are those with most of the query's words, rare ones counted higher; items of the
predicted categories come first. A word is worth how much of the best titles' weight holds it,
times its rarity, so that frequent words of every title are not taken.

    weight(j) = (Σ_{w in q ∩ title j} idf(w))² · (ε + p(category of j | q))
    worth(w)  = idf(w) · Σ_j weight(j) [w in title j] / Σ_j weight(j)

Source:   pseudo-relevance feedback, RM3 (Abdul-Jaleel et al. 2004).
Differs:  feedback from the titles of the catalogue, not from a first run of the searcher, so that
          the words depend on the query alone and can be cached.
Cost:     the titles that hold a word of the query.
Shapes:   J feedback items, S stems.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sidrec.retrieval.search.understanding.lexicon import Lexicon
from sidrec.types import Ints

NUM_FEEDBACK = 20
OTHER_CATEGORY = 0.05
MIN_ITEMS = 3
"""Feedback items that must hold a word."""
MIN_LETTERS = 3


def expand(
    stems: Sequence[str],
    lexicon: Lexicon,
    categories_N: Ints,
    probs_C: NDArray[np.float64],
    num_words: int,
) -> tuple[str, ...]:
    """The `num_words` best words, best first; fewer where fewer are held by enough titles."""
    asked = dict.fromkeys(stem for stem in stems if stem in lexicon.number_of)
    if not asked or num_words < 1:
        return ()
    frequencies_S = lexicon.frequencies_S
    idf_S = np.log1p((lexicon.num_items - frequencies_S + 0.5) / (frequencies_S + 0.5))
    weight_N = np.zeros(lexicon.num_items)
    for stem in asked:
        weight_N[lexicon.holding(stem)] += idf_S[lexicon.number_of[stem]]
    found = np.flatnonzero(weight_N)
    fit_J = np.full(len(found), 1.0)
    if len(probs_C):
        known_J = categories_N[found] >= 0
        fit_J = OTHER_CATEGORY + np.where(known_J, probs_C[categories_N[found]], 0)
    worth_J = weight_N[found] ** 2 * fit_J
    best_J = np.argsort(-worth_J, kind="stable")[:NUM_FEEDBACK]
    shares: dict[int, float] = defaultdict(float)
    holders: dict[int, int] = defaultdict(int)
    for item, share in zip(found[best_J], worth_J[best_J] / worth_J[best_J].sum(), strict=True):
        for stem in set(lexicon.title(int(item)).tolist()):
            shares[stem] += float(share)
            holders[stem] += 1
    worths = {
        stem: share * float(idf_S[stem])
        for stem, share in shares.items()
        if holders[stem] >= MIN_ITEMS
        and (text := lexicon.stems[stem]) not in asked
        and text.isalpha()
        and len(text) >= MIN_LETTERS
    }
    chosen = sorted(worths, key=lambda stem: (-worths[stem], stem))[:num_words]
    return tuple(lexicon.form_of.get(lexicon.stems[stem], lexicon.stems[stem]) for stem in chosen)
