"""Tables of search: systems on judged queries, and what swapping and two views do."""

from __future__ import annotations

from cells import MISSING, Figures, accuracy_cell, markdown, sources

SYSTEMS = ("bm25", "lsa", "dense", "dense_sci", "hybrid")
METRICS = ("ndcg@10", "recall@10", "recall@100", "mrr", "centroid_agreement")


def search_table(figures: Figures, data: str) -> str:
    """Systems × graded metrics, and how often a query's cell holds its target."""
    rows, used = [], []
    for system in SYSTEMS:
        found = [figures.get(f"{data}.{system}.{metric}") for metric in METRICS]
        if not any(found):
            continue
        used += [figure for figure in found if figure]
        cells = [accuracy_cell(figure, None) if figure else "–" for figure in found]
        rows.append([f"`{system}`", *cells])
    if not rows:
        return MISSING + "\n"
    return markdown(["system", *METRICS], rows) + "\n" + sources(used)
