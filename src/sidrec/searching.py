"""Ask a bundle by words: `Recommender.search`, and the lists that evaluation asks for.

With a history, the pool that the search finds is also ranked by the recommender, and both orders
are fused by reciprocal ranks: the history moves answers, it never adds an item that is none. A
model of the bundle that answers queries itself (`joint_search`) reads the history with them.

Shapes:   B queries, N items, P items of the pool, K returned items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from sidrec.data.search.values import required_query
from sidrec.errors import ConfigError, DataError
from sidrec.joint_search import own_searchers
from sidrec.retrieval.fusion import RULES, fused_scores
from sidrec.retrieval.top_items import listed
from sidrec.search_part import SearchPart
from sidrec.types import PAD, Bools, Candidates, Histories, Ints

if TYPE_CHECKING:
    from sidrec.recommender import Recommender

PERSONAL_POOL = 100
"""Answers that a history may reorder, or k where that is more."""
BLOCK_QUERIES = 64
SCHEMA: dict[str, Any] = {
    "query": pl.String,
    "rank": pl.Int64,
    "item_id": pl.String,
    "title": pl.String,
    "score": pl.Float64,
    "semantic_id": pl.List(pl.Int64),
    "source": pl.String,
}
"""Columns of what `search` returns."""


def search(
    recommender: Recommender,
    queries: Sequence[str],
    *,
    history: Ints | None,
    k: int,
    system: str | None,
    keep_N: Bools | None,
) -> pl.DataFrame:
    """One row an answer, queries in their order; see `Recommender.search`."""
    if k < 1:
        raise ConfigError(f"search: k must be at least 1, got {k}")
    part = part_of(recommender)
    texts = [required_query(text) for text in queries]
    source = part.systems[0] if system is None else system
    reads_history = hasattr(part.value(source), "for_history")
    if history is not None and len(history) and reads_history:
        found = answers(part, texts, k, system=source, keep_N=keep_N, history=history)
        source = f"{source} + history"
    elif history is not None and len(history) and part.history_weight:
        found = personal(recommender, texts, history, k, system, keep_N)
        source = f"{source} + history"
    else:
        found = answers(part, texts, k, system=system, keep_N=keep_N)
    rows: list[dict[str, Any]] = []
    for text, items, scores in zip(texts, found.rows_BK, found.scores_BK.tolist(), strict=True):
        for rank, (item, score) in enumerate(
            zip(items[items != PAD].tolist(), scores, strict=False)
        ):
            codes = [code for code in recommender.ids.codes[item].tolist() if code >= 0]
            values = (text, rank + 1, str(recommender.items.item_ids[item]))
            values = (*values, recommender.titles[item], score, codes, source)
            rows.append(dict(zip(SCHEMA, values, strict=True)))
    return pl.DataFrame(rows, schema=SCHEMA)


def part_of(recommender: Recommender) -> SearchPart:
    """The search part, with the models of the bundle that answer queries as further systems.

    DataError where there is neither, saying how to add one.
    """
    own, part = own_searchers(recommender), recommender.search_part
    if part is not None:
        return replace(part, searchers={**part.searchers, **own})
    if own:
        return SearchPart(searchers=own, hybrid=None, history_weight=0.0)
    raise DataError(
        "this bundle has no search part; add one with `sidrec search-fit BUNDLE`, or with "
        "recommender.with_search(sidrec.search_part.fit_search(recommender.items, …))"
    )


def answers(
    part: SearchPart,
    texts: Sequence[str],
    k: int,
    *,
    system: str | None = None,
    keep_N: Bools | None = None,
    history: Ints | None = None,
) -> Candidates:
    """The k best items (B, k) of many queries, some at a time; a history only for a system that
    reads one itself.
    """
    if history is not None and system is not None:
        part = part.for_history(system, history)
    blocks = [
        part.find(texts[start : start + BLOCK_QUERIES], k, system=system, keep_N=keep_N)
        for start in range(0, len(texts), BLOCK_QUERIES)
    ]
    return Candidates(
        np.concatenate([block.rows_BK for block in blocks]),
        np.concatenate([block.scores_BK for block in blocks]),
    )


def personal(
    recommender: Recommender,
    texts: Sequence[str],
    history: Ints,
    k: int,
    system: str | None,
    keep_N: Bools | None,
) -> Candidates:
    """The k best of the search's pool when the recommender has a say in their order.

    score = (1 − w) / (60 + place by the search) + w / (60 + place by the recommender)
    """
    part = part_of(recommender)
    pool = answers(part, texts, max(k, PERSONAL_POOL), system=system, keep_N=keep_N)
    fused: list[Candidates] = []
    for rows_P, scores_P in zip(pool.rows_BK, pool.scores_BK, strict=True):
        rows_P, scores_P = rows_P[rows_P != PAD], scores_P[rows_P != PAD]
        if not len(rows_P):
            none = np.full((1, k), PAD, dtype=np.int64)
            fused.append(Candidates(none, np.full((1, k), -np.inf, dtype=np.float32)))
            continue
        among_N = np.zeros(len(recommender.items), dtype=np.bool_)
        among_N[rows_P] = True
        liked = recommender.candidates(Histories.from_lists([history]), len(rows_P), keep_N=among_N)
        place = {int(item): place for place, item in enumerate(liked.rows_BK[0]) if item != PAD}
        own_P = [-float(place[item]) if item in place else -np.inf for item in rows_P.tolist()]
        values = torch.stack([
            RULES["reciprocal_rank"](torch.tensor(values, dtype=torch.float64)[None])
            for values in (scores_P, own_P)
        ])  # fmt: skip
        weights = (1 - part.history_weight, part.history_weight)
        fused.append(listed(torch.from_numpy(rows_P)[None], fused_scores(values, weights), k))
    return Candidates(
        np.concatenate([found.rows_BK for found in fused]),
        np.concatenate([found.scores_BK for found in fused]),
    )
