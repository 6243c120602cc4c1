"""Tables of search: systems on judged queries, what understanding adds, a million items."""

from __future__ import annotations

from cells import MISSING, Figures, accuracy_cell, markdown, quantity, signed, sources

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


PARTS = ("spelling", "expansion", "category", "brand", "colour", "price", "phrase", "all")
TYPO_PARTS = ("typos.spelling", "typos.all")
QUALITY = ("ndcg@10", "recall@100")


def understanding_table(figures: Figures) -> str:
    """Parts of query understanding × gain of nDCG@10 and recall@100 over none, two systems."""
    rows, used = [], []
    names = [f"{name}{metric}_gain" for name in ("", "hybrid.") for metric in QUALITY]
    for part in (*PARTS, *TYPO_PARTS):
        found = [figures.get(f"query.{part}.{name}") for name in names]
        if any(found):
            used += [figure for figure in found if figure]
            cells = [signed(figure) if figure else "–" for figure in found]
            rows.append([part.replace("typos.", "with typos: "), *cells])
    for part in ("boost", "hard"):
        if figure := figures.get(f"query.price_asked.{part}.ndcg@10_gain"):
            used.append(figure)
            rows.append([f"with a price asked: {part}", signed(figure), "–", "–", "–"])
    if not rows:
        return MISSING + "\n"
    header = ["part", *(f"{s} {metric}" for s in ("bm25", "hybrid") for metric in QUALITY)]
    return markdown(header, rows) + "\n" + sources(used)


def reading_table(figures: Figures) -> str:
    """Spans, categories, spelling and seconds of the embedded defaults."""
    names = ("spans.f1", "spans.misspelt.f1", "spans.brand.f1", "spans.category.f1",
             "category.top1", "category.ece", "spelling.restored", "spelling.changed_clean",
             "latency.embedded.p50", "latency.embedded.p95", "latency.cached.p50",
             "latency.cached.p95", "latency.asked.p50", "latency.asked.p95")  # fmt: skip
    found = {name: figures.get(f"query.{name}") for name in names}
    rows = [[f"`query.{name}`", quantity(figure)] for name, figure in found.items() if figure]
    if not rows:
        return MISSING + "\n"
    return markdown(["figure", "measured"], rows) + "\n" + sources([f for f in found.values() if f])


def scale_table(figures: Figures) -> str:
    """Searchers over a million items × latency and index time."""
    metrics = ("p50", "p99", "cpu_p50", "cpu_p99", "index_seconds")
    rows, used = [], []
    for system in ("bm25", "ivf", "hnsw", "hybrid"):
        found = [figures.get(f"search.1m_items.{system}.{metric}") for metric in metrics]
        if any(found):
            used += [figure for figure in found if figure]
            rows.append([f"`{system}`", *map(quantity, found)])
    if not rows:
        return MISSING + "\n"
    memory = quantity(figures.get("search.1m_items.memory_gib"))
    return (
        markdown(["searcher", *metrics], rows)
        + f"\nPeak memory of the process: {memory}.\n"
        + sources(used)
    )
