"""Queries for a catalogue that has none: runs of words of its own items, each asking for its items.

See `embeddings.queries` for how they are made. They favour what reads item texts: a figure on made
queries compares methods, and promises nothing about people.

Shapes:   Q queries, P pairs of query and item.
"""

from __future__ import annotations

import numpy as np

from sidrec.data.search.checks import same_query
from sidrec.data.search.values import MAX_QUERY_CHARS, Judgements, Queries, SearchData
from sidrec.embeddings.queries import made_queries
from sidrec.errors import DataError
from sidrec.types import Items, as_ids


def made_search(
    items: Items, *, per_item: int = 4, max_words: int = 4, seed: int = 0
) -> SearchData:
    """Made queries, equal ones merged; every item whose words made one answers it exactly."""
    pairs = made_queries(items, per_item=per_item, max_words=max_words, seed=seed)
    texts = [same_query(text)[:MAX_QUERY_CHARS].strip() for text in pairs.texts]
    if not texts:
        raise DataError(
            f"none of the {len(items)} items has a title, keywords, description or categories to "
            "make queries of; bring queries"
        )
    names, numbers_P = np.unique(np.array(texts, dtype=str), return_inverse=True)
    pairs_P2 = np.unique(np.stack([numbers_P, pairs.rows_P], axis=1), axis=0)
    queries = Queries(as_ids(range(len(names))), tuple(map(str, names)))
    judgements = Judgements.from_lists(
        pairs_P2[:, 0],
        pairs_P2[:, 1],
        np.ones(len(pairs_P2), dtype=np.int64),
        num_queries=len(names),
        top_grade=1,
    )
    notes = (f"{len(names)} queries made of the words of {len(items)} items",)
    return SearchData("made", items, queries, judgements, notes)
