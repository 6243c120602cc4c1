"""Tables of one model for search and recommendation against one a task."""

from __future__ import annotations

from collections.abc import Sequence

from cells import MISSING, Figures, accuracy_cell, markdown, signed, sources

TASKS = {
    "joint": ("recommend", "similar", "search"),
    "joint.generator": ("recommend", "search"),
    "joint.shopdial": ("recommend", "search"),
}
OTHERS = ("transition_graph", "vectors", "bm25", "random")


def tasks_table(figures: Figures, start: str) -> str:
    """Tasks × joint and separate models, their paired difference, and what needs no training."""
    rows, used = [], []
    for task in TASKS[start]:
        pair = [figures.get(f"{start}.{task}.{side}.ndcg@10") for side in ("joint", "separate")]
        apart = figures.get(f"{start}.{task}.joint_minus_separate.ndcg@10")
        if not (all(pair) and apart):
            continue
        others = {name: figures.get(f"{start}.{task}.{name}.ndcg@10") for name in OTHERS}
        known = {name: figure for name, figure in others.items() if figure}
        used += [apart, *(figure for figure in pair if figure), *known.values()]
        beside = ", ".join(f"`{n}` {accuracy_cell(f, None)}" for n, f in known.items())
        cells = [accuracy_cell(figure, None) for figure in pair]
        rows.append([task, *cells, signed(apart), beside or "–"])
    if not rows:
        return MISSING + "\n"
    header = ["task, nDCG@10", "joint", "separate", "joint − separate", "beside them"]
    text = markdown(header, rows)
    if gain := figures.get(f"{start}.iceg"):
        used.append(gain)
        text += f"\nICEG, tasks weighing alike: {signed(gain)}.\n"
    return text + sources(used)


def rows_table(figures: Figures, names: Sequence[str]) -> str:
    """Figures by name, those that there are."""
    used = [figures[name] for name in names if name in figures]
    rows = [[f"`{n}`", accuracy_cell(figures[n], None)] for n in names if n in figures]
    return markdown(["figure", "value"], rows) + sources(used) if rows else MISSING + "\n"


def ids_table(figures: Figures) -> str:
    """The joint generator under IDs made for search, for recommendation, and for both."""
    rows, used = [], []
    for name in ("ids_lsa", "ids_recommend", "ids_search", "ids_both"):
        found = [
            figures.get(f"joint.generator.{name}.{task}.ndcg@10")
            for task in ("recommend", "search")
        ]
        if all(found):
            used += [figure for figure in found if figure]
            rows.append([f"`{name}`", *(accuracy_cell(figure, None) for figure in found)])
    header = ["IDs", "recommend N@10", "search N@10"]
    return markdown(header, rows) + "\n" + sources(used) if rows else MISSING + "\n"


CHECKS = (
    "joint.similar.separate_no_names.ndcg@10",
    "joint.similar.names_minus_no_names.ndcg@10",
    "joint.swap.recommend.ndcg@10",
    "joint.swap.recommend.overlap@10",
    "joint.swap.search.ndcg@10",
    "joint.coherence.joint",
    "joint.coherence.separate",
    "joint.coherence.bm25",
    "joint.coherence.random",
)
