"""Do query and item meet in the index? Centroid agreement, recall against probes, gap of the views.

    centroid agreement = P(the cell nearest to f_q(Q) holds I+)
    recall at probes   = share of the relevant items among the k best of the probed cells
    recall at a budget = the same with as many probes as score at most a share of the catalogue

Compare indexes at equal budgets: one that lists items in two cells scores more at equal probes.

Source:   the SCI card; SCI, arXiv:2512.13074, motivates the first.
Cost:     O(Q · N) an index: for reports, not for serving.
Shapes:   Q queries, P pairs of query and item, N items, C cells, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidrec.errors import ConfigError
from sidrec.evaluation.significance import bootstrap
from sidrec.retrieval.search.views import VIEWS, ViewIndex
from sidrec.types import Floats, Ints

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ViewGap:
    """How far the two views of the items are apart, and whether they still span anything."""

    mean_cosine: float
    """Of u and v, the two views of an item: 1 where the towers agree."""
    covariance_gap: float
    """Frobenius norm of the difference of the covariances of u and v, over that of v."""
    effective_rank: float
    """exp of the entropy of the spectrum of v: 1 is a collapse onto one direction."""


def view_gap(index: ViewIndex) -> ViewGap:
    """The gap over the items that have a vector."""
    u_ND, v_ND = index.queries_ND[index.known_N], index.items_ND[index.known_N]
    cov_u, cov_v = np.cov(u_ND.T), np.cov(v_ND.T)
    spectrum = np.linalg.eigvalsh(cov_v).clip(min=1e-12)
    shares = spectrum / spectrum.sum()
    return ViewGap(
        mean_cosine=float((u_ND * v_ND).sum(axis=1).mean()),
        covariance_gap=float(np.linalg.norm(cov_u - cov_v) / max(np.linalg.norm(cov_v), 1e-12)),
        effective_rank=float(np.exp(-(shares * np.log(shares)).sum())),
    )


def centroid_agreement(index: ViewIndex, queries_QD: Floats, pairs_P2: Ints) -> Values:
    """(Q,) share of a query's relevant items in the cell nearest to it; NaN without pairs."""
    _need_cells(index)
    top_Q = index.cell_order(queries_QD)[:, 0]
    queries_P, items_P = pairs_P2.T
    met_P = (index.cells_NA[items_P] == top_Q[queries_P][:, None]).any(axis=1)
    return _means(met_P, queries_P, len(queries_QD))


def recall_at_probes(
    index: ViewIndex, queries_QD: Floats, pairs_P2: Ints, probes: int, k: int = 100
) -> tuple[Values, Values]:
    """(Q,) recall of the relevant items in the k best of the probed cells, and (Q,) items scored,
    as a share of the catalogue.
    """
    _need_cells(index)
    found_QK, _ = index.find(queries_QD, k, probes=probes)
    sizes_C = np.bincount(index.cells_NA[index.cells_NA >= 0], minlength=index.num_cells)
    scored_Q = sizes_C[index.cell_order(queries_QD)[:, :probes]].sum(axis=1)
    return _recall(found_QK, pairs_P2), scored_Q / len(index.items_ND)


def recall_at_budget(
    index: ViewIndex, queries_QD: Floats, pairs_P2: Ints, share: float, k: int = 100
) -> Values:
    """(Q,) recall when every query probes as many cells as hold at most this share of the items;
    at least one.
    """
    _need_cells(index)
    sizes_C = np.bincount(index.cells_NA[index.cells_NA >= 0], minlength=index.num_cells)
    scored_QC = sizes_C[index.cell_order(queries_QD)].cumsum(axis=1)
    probes_Q = (scored_QC <= share * len(index.items_ND)).sum(axis=1).clip(min=1)
    found_QK = np.empty((len(queries_QD), min(k, len(index.items_ND))), dtype=np.int64)
    for probes in np.unique(probes_Q):
        rows = np.flatnonzero(probes_Q == probes)
        found_QK[rows], _ = index.find(queries_QD[rows], k, probes=int(probes))
    return _recall(found_QK, pairs_P2)


def curve(
    index: ViewIndex, queries_QD: Floats, pairs_P2: Ints, probes: Sequence[int], k: int = 100
) -> list[dict[str, float]]:
    """Rows of mean recall, its interval over queries, and items scored, one a number of probes."""
    rows = []
    for number in probes:
        recall_Q, scored_Q = recall_at_probes(index, queries_QD, pairs_P2, number, k)
        figure = bootstrap(recall_Q[np.isfinite(recall_Q)][:, None])[0]
        assert figure.low is not None and figure.high is not None
        row = {"recall": figure.value, "low": figure.low, "high": figure.high}
        rows.append({"probes": float(number), **row, "scored": float(scored_Q.mean())})
    return rows


def curves_of_views(
    index: ViewIndex, queries_QD: Floats, pairs_P2: Ints, probes: Sequence[int], k: int = 100
) -> list[dict[str, Any]]:
    """`curve` of cells made of each view, with the settings of `index`, of any kind, otherwise."""
    rows: list[dict[str, Any]] = []
    for view in VIEWS:
        config = replace(index.config, kind="ivf", view=view)
        cells = ViewIndex.fit(index.queries_ND, index.items_ND, config)
        rows += [{"view": view, **row} for row in curve(cells, queries_QD, pairs_P2, probes, k)]
    return rows


def _recall(found_QK: Ints, pairs_P2: Ints) -> Values:
    queries_P, items_P = pairs_P2.T
    return _means((found_QK[queries_P] == items_P[:, None]).any(axis=1), queries_P, len(found_QK))


def _means(values_P: NDArray[np.bool_], queries_P: Ints, num: int) -> Values:
    counts_Q = np.bincount(queries_P, minlength=num).astype(np.float64)
    sums_Q = np.bincount(queries_P, weights=values_P, minlength=num)
    return np.divide(sums_Q, counts_Q, out=np.full(num, np.nan), where=counts_Q > 0)


def _need_cells(index: ViewIndex) -> None:
    if not index.num_cells:
        raise ConfigError(f"agreement needs an index with cells, kind = 'ivf', got {index.config}")
