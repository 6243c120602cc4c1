"""Measure a search: graded judgements against lists of items, one value a query.

    nDCG@k   Σ_{r≤k} (2^grade − 1) / log2(r + 1), over that of the ideal order of judged items
    recall@k share of the relevant items among the first k; relevant: at least `relevant_grade`
    MRR      1 / place of the first relevant item in the list, 0 where it holds none
    judged@k share of the first k that anybody judged: the others count as grade 0, unjustly so
             where it is low
    coherence@k, coherence_random@k   see `joint`; where an encoder is given

A query without a relevant item has no nDCG, recall or MRR and is left out of their means; how many
are, the figure's `n` tells. Relevant means exact, the best grade, unless the caller says otherwise.

Source:   Järvelin and Kekäläinen 2002 (nDCG), with the gain of the ESCI benchmark; the evaluation
          card.
Differs:  none; ties inside a list stand in the order in which the system returned them.
Cost:     O(Q K) and 2,000 resamples.
Shapes:   Q queries, K listed items, N items.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidrec.data.search.values import Judgements, SearchData
from sidrec.errors import ConfigError, DataError
from sidrec.evaluation.joint import Encoded
from sidrec.evaluation.metrics import set_ndcg
from sidrec.evaluation.report import figures_of
from sidrec.evaluation.significance import RESAMPLES, Figure, PairedDifference, paired
from sidrec.types import PAD, Candidates, Ints

Values = NDArray[np.float64]
UNJUDGED = -1
"""Grade of a listed item that nobody judged for the query."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchReport:
    """Metric -> figure and per-query values of one system, with the lists they come from."""

    name: str
    data: str
    """Name of the search data."""
    num_queries: int
    relevant_grade: int
    figures: dict[str, Figure]
    per_query: dict[str, Values]
    """Metric -> (Q,) values, NaN where the query has no relevant item."""
    query_ids: tuple[str, ...]
    texts: tuple[str, ...]

    def value(self, metric: str) -> float:
        """The figure's value. DataError names the metrics there are."""
        if metric not in self.figures:
            raise DataError(f"report {self.name!r} has no {metric!r}; it has {list(self.figures)}")
        return self.figures[metric].value

    def worst(self, metric: str = "ndcg@10", most: int | None = None) -> list[dict[str, Any]]:
        """One row a query, the lowest value of `metric` first, queries without a value last."""
        self.value(metric)
        values_Q = self.per_query[metric]
        order = np.argsort(np.where(np.isnan(values_Q), np.inf, values_Q), kind="stable")[:most]
        return [
            {"query_id": self.query_ids[q], "query": self.texts[q]}
            | {name: _number(float(values[q])) for name, values in self.per_query.items()}
            for q in order.tolist()
        ]

    def to_json(self) -> str:
        """One JSON object; queries with the worst nDCG first."""
        return json.dumps(self.summary(), ensure_ascii=False, allow_nan=False)

    def summary(self) -> dict[str, Any]:
        """Plain values: figures, and one row a query."""
        return {
            "name": self.name,
            "data": self.data,
            "num_queries": self.num_queries,
            "relevant_grade": self.relevant_grade,
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
            "queries": self.worst(next(iter(self.figures))),
        }


def grades_of(rows_QK: Ints, judgements: Judgements) -> Ints:
    """(Q, K) grade of every listed item, `UNJUDGED` where nobody judged it."""
    grades_QK = np.full(rows_QK.shape, UNJUDGED, dtype=np.int64)
    for query, rows_K in enumerate(rows_QK):
        items, grades = judgements.of(query)
        if len(items):
            places_K = np.searchsorted(items, rows_K).clip(max=len(items) - 1)
            known_K = items[places_K] == rows_K
            grades_QK[query] = np.where(known_K, grades[places_K], UNJUDGED)
    return grades_QK


def per_query_values(
    rows_QK: Ints,
    judgements: Judgements,
    *,
    ndcg_ks: Sequence[int] = (10,),
    recall_ks: Sequence[int] = (10, 100),
    relevant_grade: int | None = None,
) -> dict[str, Values]:
    """Metric -> (Q,) values of lists of item rows, −1 after the end of a shorter one."""
    if not (ks := (*ndcg_ks, *recall_ks)) or min(ks) < 1:
        raise ConfigError(f"cuts must be at least 1, got {ks}")
    if len(rows_QK) != judgements.num_queries:
        raise DataError(f"{len(rows_QK)} lists for {judgements.num_queries} judged queries")
    least = judgements.top_grade if relevant_grade is None else relevant_grade
    if not 1 <= least <= judgements.top_grade:
        raise ConfigError(f"relevant_grade must be in [1, {judgements.top_grade}], got {least}")
    grades_QK = grades_of(rows_QK, judgements)
    gains = [judgements.of(query)[1] for query in range(len(rows_QK))]
    num_relevant_Q = np.array([(grades >= least).sum() for grades in gains], dtype=np.float64)
    num_relevant_Q[num_relevant_Q == 0] = np.nan
    relevant_QK = grades_QK >= least
    values = {
        f"ndcg@{k}": set_ndcg(grades_QK.clip(min=0), [list(g) for g in gains], k) for k in ndcg_ks
    }
    values |= {f"recall@{k}": relevant_QK[:, :k].sum(axis=1) / num_relevant_Q for k in recall_ks}
    first_Q = relevant_QK.argmax(axis=1) + 1
    found_Q = relevant_QK.any(axis=1)
    values["mrr"] = np.where(np.isnan(num_relevant_Q), np.nan, found_Q / first_Q)
    k = max(ndcg_ks, default=max(ks))
    listed_Q = (rows_QK[:, :k] != PAD).sum(axis=1)
    judged_Q = (grades_QK[:, :k] != UNJUDGED).sum(axis=1)
    values[f"judged@{k}"] = np.where(listed_Q > 0, judged_Q / np.maximum(listed_Q, 1), np.nan)
    return values


def search_report(
    name: str,
    candidates: Candidates,
    data: SearchData,
    *,
    ndcg_ks: Sequence[int] = (10,),
    recall_ks: Sequence[int] = (10, 100),
    relevant_grade: int | None = None,
    encoded: Encoded | None = None,
    resamples: int = RESAMPLES,
) -> SearchReport:
    """The report of the lists (Q, K) that a system gave for the queries of `data`, in their order.

    `encoded` adds how near answers are to their queries, by an encoder that found neither. Metrics
    that no query has a value of are left out. DataError where K is below a cut.
    """
    deepest = max((*ndcg_ks, *recall_ks), default=1)
    if candidates.rows_BK.shape[1] < min(deepest, len(data.items)):
        raise DataError(
            f"lists of {candidates.rows_BK.shape[1]} items cannot be cut at {deepest}; ask for more"
        )
    per_query = per_query_values(
        candidates.rows_BK,
        data.judgements,
        ndcg_ks=ndcg_ks,
        recall_ks=recall_ks,
        relevant_grade=relevant_grade,
    )
    if encoded is not None:
        rows_QK, k = candidates.rows_BK, max(ndcg_ks, default=deepest)
        per_query[f"coherence@{k}"] = encoded.coherence(rows_QK, k)
        per_query[f"coherence_random@{k}"] = encoded.coherence_of_random(rows_QK, k)
    figures: dict[str, Figure] = {}
    for metric, values_Q in per_query.items():
        if (known_Q := np.isfinite(values_Q)).any():
            figures |= figures_of(per_query, [metric], chosen=known_Q, resamples=resamples)
    if not figures:
        raise DataError(f"{data.name}: no query has a judged item; nothing can be measured")
    empty_Q = (candidates.rows_BK[:, :1] == PAD).all(axis=1)
    figures["empty"] = Figure(value=float(empty_Q.mean()), n=len(empty_Q))
    return SearchReport(
        name=name,
        data=data.name,
        num_queries=len(data.queries),
        relevant_grade=data.judgements.top_grade if relevant_grade is None else relevant_grade,
        figures=figures,
        per_query=per_query,
        query_ids=tuple(map(str, data.queries.query_ids)),
        texts=data.queries.texts,
    )


def compare_search(
    first: SearchReport, second: SearchReport, metric: str = "ndcg@10", *, seed: int = 0
) -> PairedDifference:
    """First minus second over the queries that have a value, paired. DataError on other queries."""
    if first.query_ids != second.query_ids or first.data != second.data:
        raise DataError(f"{first.name} and {second.name} were not asked the same queries")
    one_Q, other_Q = first.per_query[metric], second.per_query[metric]
    known_Q = np.isfinite(one_Q) & np.isfinite(other_Q)
    figure, p = paired(one_Q[known_Q], other_Q[known_Q], seed=seed)
    assert figure.low is not None and figure.high is not None
    return PairedDifference(
        metric=metric, first=first.name, second=second.name, value=figure.value,
        low=figure.low, high=figure.high, p=p, n=figure.n,
    )  # fmt: skip


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 6)
