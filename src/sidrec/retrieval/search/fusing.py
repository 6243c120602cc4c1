"""Fuse searchers: their best items pooled, each scores the pool, weights chosen on judged queries.

`reciprocal_rank` with equal weights needs no judgements; where there are some, the rule (reciprocal
ranks or standardised scores) and the weights are those with the best nDCG@10 on them. Scores of
different searchers share no unit, so that sums of plain scores are not offered.

Source:   reciprocal rank fusion, Cormack et al. 2009; `retrieval.fusion` does the summing.
Differs:  weights from a grid on validation queries, ties to the most equal weights.
Cost:     one pass of the searchers, then the grid over the pools: milliseconds a query.
Shapes:   B queries, Q validation queries, M searchers, P items of the pool, K returned items.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidrec.contracts import Searcher
from sidrec.data.search.values import SearchData
from sidrec.errors import DataError
from sidrec.evaluation.metrics import set_ndcg
from sidrec.evaluation.search import grades_of
from sidrec.retrieval.fusion import RULES, Hybrid, Rule, fused_scores, union
from sidrec.retrieval.top_items import listed
from sidrec.types import PAD, Bools, Candidates

RULES_OF_SEARCH: tuple[Rule, ...] = ("reciprocal_rank", "z_scores")


@dataclass(frozen=True, kw_only=True)
class TunedSearch:
    """What the search over rules and weights found."""

    hybrid: Hybrid
    metric: float
    """nDCG@10 of the chosen rule and weights on the queries they were chosen on."""
    table: tuple[tuple[Rule, tuple[float, ...], float], ...]
    """(rule, weights, nDCG@10) of the whole grid; its corners are the searchers alone."""


def equal_shares(names: Sequence[str], pool: int = 200) -> Hybrid:
    """Reciprocal rank fusion as it is published."""
    return Hybrid(
        members=tuple(names), weights=(1.0,) * len(names), pool=pool, rule="reciprocal_rank"
    )


def pools(
    searchers: Sequence[Searcher], texts: Sequence[str], pool: int, keep_N: Bools | None = None
) -> tuple[Tensor, Tensor]:
    """Items (B, P) that any searcher lists, ascending, −1 after the end, and their scores
    (M, B, P) by each, −inf where an item is no answer to it.
    """
    opinions = [searcher.ask(texts, pool, keep_N) for searcher in searchers]
    rows_BP = union([opinion.rows_BK for opinion in opinions])
    scores_MBP = torch.stack([opinion.log_probs(rows_BP.clamp_min(0)) for opinion in opinions])
    return rows_BP, scores_MBP.masked_fill(rows_BP == PAD, -torch.inf)


def fuse_search(
    searchers: Mapping[str, Searcher],
    hybrid: Hybrid,
    texts: Sequence[str],
    k: int,
    keep_N: Bools | None = None,
) -> Candidates:
    """The k best items of the pool, ties by lowest row."""
    members = [searchers[name] for name in hybrid.members]
    rows_BP, scores_MBP = pools(members, texts, max(hybrid.pool, k), keep_N)
    return listed(rows_BP, summed(scores_MBP, hybrid.rule, hybrid.weights), k)


def summed(scores_MBP: Tensor, rule: Rule, weights: Sequence[float]) -> Tensor:
    """(B, P) weighted sum of what the rule makes of each searcher's scores."""
    return fused_scores(torch.stack([RULES[rule](scores) for scores in scores_MBP]), weights)


def tune_search(
    searchers: Mapping[str, Searcher],
    queries: SearchData,
    *,
    pool: int = 200,
    k: int = 10,
    steps: int | None = None,
) -> TunedSearch:
    """The rule and weights with the best mean nDCG@k on judged queries."""
    names = tuple(searchers)
    rows_QP, scores_MQP = pools(list(searchers.values()), queries.queries.texts, max(pool, k))
    ideal = [list(queries.judgements.of(q)[1]) for q in range(len(queries.queries))]
    steps = steps or {1: 1, 2: 20, 3: 10}.get(len(names), 5)
    table: list[tuple[Rule, tuple[float, ...], float]] = []
    for rule, shares in itertools.product(RULES_OF_SEARCH, _shares(len(names), steps)):
        found = listed(rows_QP, summed(scores_MQP, rule, shares), k)
        gains_QK = grades_of(found.rows_BK, queries.judgements).clip(min=0)
        values_Q = set_ndcg(gains_QK, ideal, k)
        if np.isnan(values_Q).all():
            raise DataError(f"{queries.name}: no query has a relevant item; weights need some")
        table.append((rule, shares, float(np.nanmean(values_Q))))
    rule, weights, metric = max(
        table, key=lambda row: (row[2], -sum(share * share for share in row[1]))
    )
    hybrid = Hybrid(members=names, weights=weights, pool=pool, rule=rule)
    return TunedSearch(hybrid=hybrid, metric=metric, table=tuple(table))


def _shares(parts: int, steps: int) -> list[tuple[float, ...]]:
    """Every tuple of `parts` multiples of 1 / `steps` that sums to 1."""
    counts: Any = itertools.product(range(steps + 1), repeat=parts)
    return [tuple(n / steps for n in found) for found in counts if sum(found) == steps]
