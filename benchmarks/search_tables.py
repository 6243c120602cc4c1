"""Tables of search: systems on judged queries, what understanding adds, a million items."""

from __future__ import annotations

from typing import Any

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


VIEWS = ("item", "query", "mean", "union")
PROBES = (1, 2, 4, 8, 16)


def probes_table(figures: Figures, data: str) -> str:
    """Views of both towers × recall@100 at equal probes, and the share of items they score; then
    what swapping adds, by view and, where items have a popularity, by that of the target.
    """
    rows, used = [], []

    def row(title: str, key: str, cell: Any) -> None:
        found = [figures.get(f"{key}recall@100_at_{probes}_probes") for probes in PROBES]
        if not all(found):
            return
        used.extend(figure for figure in found if figure)
        scored = [figures.get(f"{key}scored_at_{probes}_probes") for probes in PROBES]
        shares = [f"; {figure['value']:.1%}" if figure else "" for figure in scored]
        cells = [cell(figure) + share for figure, share in zip(found, shares, strict=True)]
        rows.append([title, *cells])

    for system in ("dense", "dense_sci"):
        for view in VIEWS:
            row(
                f"`{system}`, {view}",
                f"{data}.{system}.{view}.",
                lambda figure: accuracy_cell(figure, None),
            )
    for view in VIEWS:
        row(f"swapping adds, {view}", f"{data}.dense_sci_minus_dense.{view}.", signed)
    key = f"{data}.dense_sci_minus_dense."
    row("`dense_sci`, query − `dense`, item", key, signed)
    for bucket in ("head", "torso", "tail"):
        row(f"the same, targets of the {bucket}", f"{key}{bucket}.", signed)
    if not rows:
        return MISSING + "\n"
    header = ["cells of", *(f"{n} probe{'s' if n > 1 else ''}" for n in PROBES)]
    return markdown(header, rows) + "\n" + same_codes(figures, data) + sources(used)


def same_codes(figures: Figures, data: str) -> str:
    """Share of items whose first codes both views agree on, in one line a system."""
    lines: list[str] = []
    for system in ("dense", "dense_sci"):
        keys = [f"{data}.{system}.view_ids_same_{codes}" for codes in (1, 2, 3)]
        if all(key in figures for key in keys):
            cells = ", ".join(accuracy_cell(figures[key], None) for key in keys)
            lines.append(
                f"Items of `{system}` whose first 1, 2, 3 codes both views give: {cells}.\n"
            )
    return "".join(lines)


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


GENERATIVE = {
    "generative_untaught": "before any lesson: cosines of text vectors, level by level",
    "generative_made": "+ 80 steps on made queries and item texts",
    "generative_made_longer": "+ 160 steps of the same",
    "generative_indexed": "the best of these three by validation",
    "generative": "+ judged queries, all their answers",
    "generative_sft": "+ as many steps of likelihood alone",
    "generative_dpo": "+ `dpo`",
    "generative_simpo": "+ `simpo`",
    "generative_s_dpo": "+ `s_dpo`",
    "generative_rad_dpo": "+ `rad_dpo`",
    "generative_rad_dpo_sessions": "+ `rad_dpo` on simulated pages",
    "generative_rad_dpo_no_tlgd": "`rad_dpo` without TLGD",
    "generative_rad_dpo_no_rdrw": "`rad_dpo` without RDRW",
    "generative_rad_dpo_no_mlgc": "`rad_dpo`, likelihood of one answer alone",
    "hybrid": "bm25 and dense_sci, fused: nothing generated",
    "hybrid_two": "bm25 and `generative`, fused",
    "hybrid_generative": "bm25, dense_sci and `generative`, fused",
    "cosine_minilm": "MiniLM vectors, cosine",
    "generative_minilm_untaught": "MiniLM vectors, decoder before any lesson",
    "generative_minilm": "MiniLM vectors, decoder after judged queries",
}
BUCKETS = ("head", "torso", "tail")
SEEDED = (
    ("dense_sci", "dense"),
    ("hybrid", "bm25"),
    ("generative", "bm25"),
    ("generative", "dense_sci"),
    ("generative_sft", "generative"),
    ("generative_rad_dpo", "generative"),
    ("generative_rad_dpo", "generative_sft"),
    ("generative_rad_dpo_sessions", "generative_sft"),
    ("hybrid_generative", "bm25"),
    ("hybrid_generative", "hybrid"),
)
TIMED = ("bm25", "dense", "dense_sci", "generative", "generative_rad_dpo", "hybrid", "hybrid_two",
         "hybrid_generative")  # fmt: skip


def seeds_table(figures: Figures, data: str) -> str:
    """Differences, paired by seed and query, with the mean of each seed."""
    rows, used = [], []
    for pair in SEEDED:
        key = f"{data}.{pair[0]}_minus_{pair[1]}."
        found = [figures.get(f"{key}{metric}") for metric in QUALITY]
        if not all(found):
            continue
        used += [figure for figure in found if figure]
        by_seed = (found[0] or {}).get("by_seed", [])
        seeds = ", ".join(f"{value:+.4f}".replace("0.", ".", 1) for value in by_seed)
        cells = [signed(figure) for figure in found if figure]
        rows.append([f"`{pair[0]}` − `{pair[1]}`", *cells, seeds or "–"])
    if not rows:
        return MISSING + "\n"
    return markdown(["pair", *QUALITY, "ndcg@10 of each seed"], rows) + "\n" + sources(used)


def latency_table(figures: Figures, data: str) -> str:
    """Systems × median processor time of a query."""
    found = {system: figures.get(f"{data}.{system}.p50") for system in TIMED}
    rows = [[f"`{s}`", quantity(figure), str(figure["n"])] for s, figure in found.items() if figure]
    if not rows:
        return MISSING + "\n"
    used = [figure for figure in found.values() if figure]
    return markdown(["system", "p50", "queries"], rows) + "\n" + sources(used)


def generative_table(figures: Figures, data: str) -> str:
    """Decoders × graded metrics, what a free beam invents, and the step from `generative`."""
    metrics = ("ndcg@10", "recall@10", "recall@100", "mrr", "listed_invalid_share", "invalid_share")
    rows, used = [], []
    for system, meaning in GENERATIVE.items():
        found = [figures.get(f"{data}.{system}.{metric}") for metric in metrics]
        if not any(found):
            continue
        used += [figure for figure in found if figure]
        moved = figures.get(f"{data}.{system}_minus_generative.ndcg@10")
        cells = [accuracy_cell(figure, None) if figure else "–" for figure in found]
        rows.append([f"`{system}`: {meaning}", *cells, signed(moved) if moved else "–"])
    if not rows:
        return MISSING + "\n"
    header = ["system", *metrics[:4], "no item, in the answers", "invented, free beam"]
    header += ["ndcg@10 − `generative`"]
    return markdown(header, rows) + "\n" + pairs_line(figures, data) + sources(used)


def pairs_line(figures: Figures, data: str) -> str:
    """How often a positive and a non-match share their first codes, and queries without answer."""
    one, two = (figures.get(f"{data}.pairs_sharing_{codes}") for codes in (1, 2))
    unanswered = figures.get(f"{data}.generative.unanswered_share")
    if not (one and two and unanswered):
        return ""
    return (
        f"Of {one['n']:,} pairs of a query's best answer and a judged non-match {one['value']:.1%} "
        f"share the first code, {two['value']:.1%} the first two. Queries without a known word, "
        f"which get no answer: {unanswered['value']:.1%}.\n"
    )


def search_ids_table(figures: Figures) -> str:
    """Kinds of IDs × length, collisions, recall by popularity, and what is invented."""
    rows, used = [], []
    for name in ("fixed_3", "acrq", "sarq", "sarq_unweighted"):
        key = f"search_ids.{name}"
        if f"{key}.recall@10" not in figures:
            continue
        names = [f"{key}.{bucket}.recall@10" for bucket in BUCKETS]
        names += [f"{key}_free.recall@10", f"{key}_free.invalid_share"]
        used += [figures[found] for found in names]
        plain = ["mean_length", "mean_length_by_events"]
        plain += [f"{bucket}.collisions" for bucket in BUCKETS]
        cells = [f"{figures[f'{key}.{found}']['value']:.3g}" for found in plain]
        cells += [accuracy_cell(figures[found], None) for found in names]
        cells += [f"{figures[f'{key}.tail.coverage@10']['value']:.3f}"]
        rows.append([f"`{name}`", *cells])
    for one, other in (("acrq", "fixed_3"), ("sarq", "fixed_3"), ("sarq", "sarq_unweighted")):
        key = f"search_ids.{one}_minus_{other}"
        names = [f"{bucket}.recall@10" for bucket in BUCKETS]
        names += ["free_recall@10", "free_invalid_share"]
        found = [figures.get(f"{key}.{name}") for name in names]
        if all(found):
            used += [figure for figure in found if figure]
            cells = ["–"] * 5 + [signed(figure) for figure in found if figure] + ["–"]
            rows.append([f"`{one}` − `{other}`", *cells])
    if not rows:
        return MISSING + "\n"
    header = ["IDs", "codes", "codes an event"]
    header += [f"shared IDs, {bucket}" for bucket in BUCKETS]
    header += [f"R@10, {bucket}" for bucket in BUCKETS]
    header += ["R@10, free decoder", "invented, free decoder", "tail coverage@10"]
    return markdown(header, rows) + "\n" + sources(used)
