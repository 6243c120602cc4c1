"""An index that both towers agree on: routed by what the query tower makes of items.

Every item has two vectors: u = f_q(I), the query view, and v = f_i(I), the item view. A query
q = f_q(Q) is routed by cells (or a graph) made of one view, and whatever routing lets through is
scored by q · v. Routing may drop an item, but never changes its score.

| `view` | centroids from | an item lies in the cell of |
| --- | --- | --- |
| `item` | v | v: what an index of item vectors does |
| `query` | u | u |
| `mean` | (u + v) / |u + v| | the same |
| `union` | u | u, and v where that is another cell |

`exact` scores everything; `ivf` looks into the `probes` cells nearest to q; `hnsw` walks a graph
over the view (`union`: over both) with a beam of `probes`.

Source:   dual-view consistent indexing of SCI, arXiv:2512.13074 (published in words); IVF and HNSW
          of faiss, arXiv:2401.08281.
Differs:  the assignment rules and the four variants are ours.
Cost:     fit: spherical k-means, O(iterations · N · C · D); asking: C + scored items dot products.
          `union` holds up to 2 N postings: compare at equal items scored, not at equal probes.
Shapes:   N items, D width, C cells, A = 1 or 2 cells of an item, B queries, K returned items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self, get_args

import faiss
import numpy as np

from sidrec.embeddings.vectors import known_rows, unit_rows
from sidrec.errors import ConfigError, DataError
from sidrec.types import PAD, Bools, Floats, Ints

View = Literal["item", "query", "mean", "union"]
VIEWS: tuple[View, ...] = get_args(View)


@dataclass(frozen=True, kw_only=True)
class ViewIndexConfig:
    """Settings of `ViewIndex`."""

    kind: Literal["exact", "ivf", "hnsw"] = "exact"
    """`exact` up to some 100,000 items, `ivf` or `hnsw` above."""
    view: View = "union"
    """Which view of the items routes queries."""
    num_cells: int = 0
    """C, cells of `ivf`; 0 takes the square root of N."""
    probes: int = 8
    """Cells looked into, or the beam of `hnsw`."""
    links: int = 32
    """Neighbours of a node of `hnsw`."""
    iterations: int = 20
    """Rounds of k-means."""

    def __post_init__(self) -> None:
        for name, least in (("num_cells", 0), ("probes", 1), ("links", 2), ("iterations", 1)):
            if (value := getattr(self, name)) < least:
                raise ConfigError(f"index.{name} must be at least {least}, got {value}")


@dataclass(frozen=True, eq=False)
class ViewIndex:
    """A fitted index: scoring vectors, routing vectors, and cells where there are any."""

    config: ViewIndexConfig
    items_ND: Floats
    """v, unit rows; zero where nothing is known of the item, which is then never found."""
    queries_ND: Floats
    """u, likewise."""
    centroids_CD: Floats
    """(C, D) unit rows; (0, D) without cells."""
    cells_NA: Ints
    """(N, A) cells of each item, −1 where the second is the first or nothing is known."""

    @classmethod
    def fit(
        cls, queries_ND: Floats, items_ND: Floats, config: ViewIndexConfig, *, seed: int = 0
    ) -> Self:
        """The index of items with query views u and item views v; the seed is that of k-means."""
        if queries_ND.shape != items_ND.shape:
            raise DataError(f"views must match, got {queries_ND.shape} and {items_ND.shape}")
        u_ND, v_ND = unit_rows(queries_ND), unit_rows(items_ND)
        centroids_CD = np.zeros((0, v_ND.shape[1]), dtype=np.float32)
        if config.kind == "ivf":
            centroids_CD = _centroids(routing_view(u_ND, v_ND, config.view), config, seed)
        return cls(config, v_ND, u_ND, centroids_CD, _cells(u_ND, v_ND, centroids_CD, config))

    def extended(self, queries_ND: Floats, items_ND: Floats) -> Self:
        """The index of a catalogue whose first items are these; no centroid moves."""
        u_ND, v_ND = unit_rows(queries_ND), unit_rows(items_ND)
        cells_NA = _cells(u_ND, v_ND, self.centroids_CD, self.config)
        return type(self)(self.config, v_ND, u_ND, self.centroids_CD, cells_NA)

    def find(
        self, queries_BD: Floats, k: int, *, keep_N: Bools | None = None, probes: int | None = None
    ) -> tuple[Ints, Floats]:
        """(B, k) item rows and their scores, best first; −1 and −inf after the end."""
        keep_N = self.known_N if keep_N is None else self.known_N & keep_N
        k = min(k, len(self.items_ND))
        asking = np.ascontiguousarray(queries_BD, dtype=np.float32)
        selector = faiss.IDSelectorBitmap(np.packbits(keep_N, bitorder="little"))
        probes = self.config.probes if probes is None else probes
        if self.config.kind == "exact":
            scores, rows = self.built.search(asking, k, params=faiss.SearchParameters(sel=selector))
            return rows.astype(np.int64), np.where(rows < 0, -np.inf, scores)
        if self.config.kind == "ivf":
            params = faiss.SearchParametersIVF(sel=selector, nprobe=min(probes, self.num_cells))
            wanted = k * self.cells_NA.shape[1]  # an item of two cells may come twice
            scores, rows = self.built.search(asking, wanted, params=params)
            return _distinct(rows, scores, k)
        params = faiss.SearchParametersHNSW(efSearch=max(probes, k))
        _, nodes = self.built.search(asking, min(2 * max(probes, k), self.built.ntotal),
                                     params=params)  # fmt: skip
        rows = np.where(nodes < 0, PAD, nodes % len(self.items_ND))
        allowed = (rows >= 0) & keep_N[rows]
        scores = np.einsum("bd,bkd->bk", asking, self.items_ND[rows])
        order = np.argsort(-np.where(allowed, scores, -np.inf), axis=1, kind="stable")
        ranked = np.take_along_axis(np.where(allowed, rows, PAD), order, axis=1)
        return _distinct(ranked, np.take_along_axis(scores, order, axis=1), k)

    @property
    def num_cells(self) -> int:
        return len(self.centroids_CD)

    @cached_property
    def known_N(self) -> Bools:
        """Items with a vector."""
        return known_rows(self.items_ND)

    @property
    def num_postings(self) -> int:
        """Entries of all cells: N, or up to 2 N where items lie in two."""
        return int((self.cells_NA >= 0).sum()) if self.num_cells else int(self.known_N.sum())

    @cached_property
    def built(self) -> Any:
        """The faiss index."""
        width = self.items_ND.shape[1]
        if self.config.kind == "exact":
            flat = faiss.IndexFlatIP(width)
            flat.add(self.items_ND)
            return flat
        if self.config.kind == "hnsw":
            graph = faiss.IndexHNSWFlat(width, self.config.links, faiss.METRIC_INNER_PRODUCT)
            if self.config.view == "union":
                graph.add(self.queries_ND)
                graph.add(self.items_ND)
            else:
                graph.add(routing_view(self.queries_ND, self.items_ND, self.config.view))
            return graph
        quantizer = faiss.IndexFlatIP(width)
        quantizer.add(self.centroids_CD)
        inverted = faiss.IndexIVFFlat(quantizer, width, self.num_cells, faiss.METRIC_INNER_PRODUCT)
        inverted.is_trained = True
        rows, columns = np.nonzero(self.cells_NA >= 0)
        cells = np.ascontiguousarray(self.cells_NA[rows, columns])
        vectors, rows = np.ascontiguousarray(self.items_ND[rows]), rows.astype(np.int64)
        inverted.add_core(
            len(rows), faiss.swig_ptr(vectors), faiss.swig_ptr(rows), faiss.swig_ptr(cells)
        )
        return inverted

    def cell_order(self, queries_BD: Floats) -> Ints:
        """(B, C) cells by falling similarity to each query: the order of probing."""
        return np.argsort(-(queries_BD @ self.centroids_CD.T), axis=1, kind="stable")

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside the config."""
        return {
            "items": self.items_ND,
            "queries": self.queries_ND,
            "centroids": self.centroids_CD,
            "cells": self.cells_NA,
        }

    @classmethod
    def from_arrays(cls, config: ViewIndexConfig, arrays: Mapping[str, np.ndarray]) -> Self:
        """The index that `arrays` came from."""
        names = ("items", "queries", "centroids", "cells")
        return cls(config, *(arrays[name] for name in names))


def routing_view(u_ND: Floats, v_ND: Floats, view: View) -> Floats:
    """Unit rows (N, D) that centroids, or semantic IDs, are made of."""
    if view == "item":
        return v_ND
    return unit_rows(u_ND + v_ND) if view == "mean" else u_ND


def _centroids(view_ND: Floats, config: ViewIndexConfig, seed: int) -> Floats:
    known_MD = np.ascontiguousarray(view_ND[known_rows(view_ND)])
    num_cells = config.num_cells or max(1, round(len(known_MD) ** 0.5))
    if num_cells > len(known_MD):
        raise DataError(
            f"index.num_cells = {num_cells} is more than the {len(known_MD)} items with a vector; "
            "lower it"
        )
    kmeans = faiss.Kmeans(
        view_ND.shape[1], num_cells, niter=config.iterations, seed=seed + 1,
        spherical=True, min_points_per_centroid=1, max_points_per_centroid=256,
    )  # fmt: skip
    kmeans.train(known_MD)
    return unit_rows(np.asarray(kmeans.centroids))


def _cells(u_ND: Floats, v_ND: Floats, centroids_CD: Floats, config: ViewIndexConfig) -> Ints:
    """(N, A) cells by the rule of the view."""
    if not len(centroids_CD):
        return np.zeros((len(v_ND), 0), dtype=np.int64)
    views = (u_ND, v_ND) if config.view == "union" else (routing_view(u_ND, v_ND, config.view),)
    cells_NA = np.stack([nearest(view, centroids_CD, 1)[:, 0] for view in views], axis=1)
    if len(views) == 2:
        cells_NA[cells_NA[:, 0] == cells_NA[:, 1], 1] = PAD
    cells_NA[~known_rows(v_ND)] = PAD
    return cells_NA


def nearest(vectors_ND: Floats, among_MD: Floats, k: int) -> Ints:
    """(N, k) rows with the largest dot products, best first; k is at most M."""
    flat = faiss.IndexFlatIP(among_MD.shape[1])
    flat.add(np.ascontiguousarray(among_MD))
    found = flat.search(np.ascontiguousarray(vectors_ND), min(k, len(among_MD)))[1]
    return found.astype(np.int64)


def _distinct(rows_BP: np.ndarray, scores_BP: np.ndarray, k: int) -> tuple[Ints, Floats]:
    """The first k different rows of lists in falling order, −1 for none."""
    rows_BK = np.full((len(rows_BP), k), PAD, dtype=np.int64)
    scores_BK = np.full((len(rows_BP), k), -np.inf, dtype=np.float32)
    for row, (items, scores) in enumerate(zip(rows_BP, scores_BP, strict=True)):
        _, first = np.unique(items, return_index=True)
        places = np.sort(first[items[first] >= 0])[:k]
        rows_BK[row, : len(places)] = items[places]
        scores_BK[row, : len(places)] = scores[places]
    return rows_BK, scores_BK
