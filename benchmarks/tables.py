"""Render the tables of README.md and docs/*.md from the newest benchmark figures.

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`; nothing between them is typed
by hand. `python benchmarks/tables.py` rewrites them, `--check` only says which are stale (exit 1).
Tables: the keys of TABLES.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align_tables import (
    FUSION_ROWS,
    NOISY_ROWS,
    PREFERENCE_ROWS,
    SHOP_ROWS,
    alignment_table,
    cells_table,
    judge_table,
    judge_users_table,
    rlhf_table,
    tastes_table,
)
from cells import COLUMNS, MISSING, Figures, accuracy_cell, markdown, quantity, sources
from compiled_tables import compiled_table
from figures import read_figures
from generator_tables import (
    ablation_table,
    best_table,
    cold_rows_table,
    generator_table,
    graph_table,
    s2gr_table,
)
from joint_tables import CHECKS, ids_table, rows_table, tasks_table
from scaling_tables import scaling_table
from search_tables import (
    generative_table,
    latency_table,
    probes_table,
    reading_table,
    scale_table,
    search_ids_table,
    search_table,
    seeds_table,
    understanding_table,
)
from tokenizer_tables import (
    cold_table,
    frozen_head_table,
    id_table,
    joint_table,
    lengths_table,
    pair_table,
    policy_table,
    quantiser_table,
    stability_table,
    tokenizer_table,
    tuning_table,
)

REPOSITORY = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(<!-- table:([\w-]+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)

SYSTEMS = ("popularity", "transition_graph", "sasrec", "dense", "causal", "tiger", "hybrid")
PUBLISHED = {
    "amazon_beauty": (
        ("TIGER (arXiv:2305.05065)", ".0454", ".0321", ".0648", ".0384"),
        ("SASRec, sampled softmax (arXiv:2508.06450)", "–", "–", ".0921", ".0531"),
        ("EnsRec (arXiv:2512.17820)", "–", "–", ".0980", ".0565"),
    ),
    "amazon_sports": (
        ("TIGER (arXiv:2305.05065)", ".0264", ".0181", ".0400", ".0225"),
        ("EnsRec (arXiv:2512.17820)", "–", "–", ".0613", ".0343"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """One figure with the floor it must reach and the aim beyond it."""

    figure: str
    floor: float | None = None
    aim: float | None = None
    lower_is_better: bool = False
    band: tuple[float, float] | None = None
    """Value and tolerance: the figure must lie within, neither above nor below."""
    above_zero: bool = False
    """The lower end of the interval must be above 0."""
    gpu: bool | None = False
    """False: measured on CPU; None: wherever it was measured last."""


def _accuracy(system: str, floor: tuple[float, float], aim: tuple[float, float]) -> list[Target]:
    names = ("recall@10", "ndcg@10")
    return [
        Target(figure=f"amazon_beauty.{system}.{name}", floor=f, aim=a, gpu=None)
        for name, f, a in zip(names, floor, aim, strict=True)
    ]


def _cost(figure: str, floor: float, aim: float) -> Target:
    return Target(figure=figure, floor=floor, aim=aim, lower_is_better=True)


TARGETS = (
    Target(figure="amazon_beauty.popularity.recall@10", band=(0.0114, 0.001), gpu=None),
    Target(figure="amazon_beauty.transition_graph.recall@10", floor=0.060, gpu=None),
    *_accuracy("sasrec", (0.085, 0.047), (0.092, 0.053)),
    *_accuracy("causal", (0.075, 0.042), (0.092, 0.053)),
    Target(figure="amazon_beauty.tiger.recall@10", floor=0.055, aim=0.0648, gpu=None),
    Target(figure="amazon_beauty.tiger.ndcg@10", aim=0.0384, gpu=None),
    Target(figure="amazon_beauty.hybrid.recall@10", aim=0.098, gpu=None),
    Target(figure="amazon_beauty.hybrid.ndcg@10", aim=0.0565, gpu=None),
    Target(figure="amazon_beauty.hybrid_minus_causal.recall@10", above_zero=True, gpu=None),
    Target(figure="amazon_beauty.hybrid_minus_dense.recall@10", above_zero=True, gpu=None),
    Target(figure="amazon_beauty.hybrid_minus_sasrec.recall@10", above_zero=True, gpu=None),
    Target(
        figure="amazon_beauty.hybrid_minus_transition_graph.recall@10", above_zero=True, gpu=None
    ),
    Target(figure="amazon_sports.hybrid.recall@10", floor=0.050, aim=0.0613, gpu=None),
    Target(figure="amazon_sports.hybrid.ndcg@10", aim=0.0343, gpu=None),
    _cost("run.default.amazon_beauty.seconds", 1800, 600),
    _cost("decode.causal.beam20.one_user.p50", 8, 2),
    Target(figure="decode.causal.beam20.batch.users_per_second", floor=1000, aim=3000),
    Target(figure="versus.cornac.tiger.train_targets_per_second", floor=50, aim=300),
    Target(figure="versus.cornac.tiger.beam20_latency", floor=5, aim=20),
    Target(figure="versus.hf_generate.tiger.beam20_latency", floor=3, aim=10),
    _cost("index.step_1m_beam50", 0.2, 0.02),
    _cost("index.build_1m", 2000, 300),
    _cost("index.insert_10k", 500, 50),
    _cost("tokenize.residual_kmeans.1m_x_128.seconds", 60, 15),
    *(
        _cost(f"tokenize.{method}.encode_1m_x_128.seconds", 10, 10)
        for method in ("residual_kmeans", "balanced_kmeans", "opq")
    ),
    Target(figure="amazon_beauty.hybrid.cold.recall@10", above_zero=True, gpu=None),
    _cost("import.sidrec.seconds", 0.5, 0.5),
    Target(figure="serve.open_loop.requests_per_second", floor=150),
    Target(figure="serve.open_loop.within_20_ms.requests_per_second", aim=500),
    Target(figure="serve.open_loop.awake.requests_per_second", floor=150),
    Target(figure="serve.open_loop.awake.within_20_ms.requests_per_second", aim=500),
    Target(figure="serve.open_loop.awake.compiled.within_20_ms.requests_per_second", aim=500),
    *(
        _cost(f"serve.idle.{cores}{part}", floor, aim)
        for cores in ("", "awake.", "awake.compiled.")
        for part, floor, aim in (("p50", 12, 4), ("p99", 30, 8))
    ),
    Target(figure="serve.events.per_second", floor=10_000, aim=30_000),
    Target(figure="serve.kill9.cycles", floor=50, aim=200),
    *(
        _cost(f"serve.{figure}", 0, 0)
        for figure in ("kill9.lost", "kill9.doubled", "hot_swap.failed", "bundle_fuzz.accepted_bad")
    ),
    _cost("serve.new_item.p99", 1000, 100),
    _cost("serve.overload.accepted.p99", 50, 20),
    Target(figure="serve.bundle_fuzz.mutations", floor=1000),
)


def accuracy_table(figures: Figures, dataset: str) -> str:
    """Systems × metrics of one data set with intervals; the best of each column is bold."""
    best = {
        metric: max(
            (figures[f"{dataset}.{s}.{metric}"]["value"] for s in SYSTEMS
             if f"{dataset}.{s}.{metric}" in figures),
            default=None,
        )
        for _, metric in COLUMNS
    }  # fmt: skip
    rows, used = [], []
    for system in SYSTEMS:
        cells = [f"`{system}`"]
        found = [figures.get(f"{dataset}.{system}.{metric}") for _, metric in COLUMNS]
        for (_, metric), figure in zip(COLUMNS, found, strict=True):
            cells.append(accuracy_cell(figure, best[metric]))
        measured = [figure for figure in found if figure is not None]
        used += measured
        cells.append(str(max((len(figure["seeds"]) for figure in measured), default="–")))
        rows.append(cells)
    rows += [[f"*{name}*, published", *cells, "–", "–"] for name, *cells in PUBLISHED[dataset]]
    users = max((figure.get("n", 0) for figure in used), default=0)
    over = f" over {users:,} users" if users else ""
    return (
        markdown(["system", *(title for title, _ in COLUMNS), "seeds"], rows)
        + "\nLeave-one-out, full ranking over all items, the validation item in the test history, "
        f"no seen filter except in the last column; in brackets 95 % bootstrap intervals{over}. "
        "Published rows come from other code and settings: gaps under about 15 % prove nothing.\n"
        + sources(used)
    )


def speed_table(figures: Figures) -> str:
    """Every figure of benchmarks/speed that is not a ratio to other software, or of the compiled
    search, which has a table of its own.

    `versus.self.` are ratios between systems of sidrec: those belong here.
    """
    wanted = {t.figure for t in TARGETS} | {n for n, f in figures.items() if "/speed/" in f["file"]}
    other = re.compile(r"versus\.(?!self\.)|amazon_|movielens_|compiled\.")
    names = sorted(n for n in wanted if not other.match(n))
    rows, used = by_machine(names, lambda name: [f"`{name}`"])
    return markdown(["figure", "CPU", "GPU"], rows) + "\n" + sources(used)


def versus_table(figures: Figures) -> str:
    """Ratios to other software, measured in the same run on the same machine."""

    def words(name: str) -> list[str]:
        _, peer, *system, measure = name.split(".")
        return [f"`{peer}`", " ".join(f"`{s}`" for s in system), measure.replace("_", " ")]

    wanted = {t.figure for t in TARGETS} | set(figures)
    names = sorted(n for n in wanted if re.match(r"versus\.(?!self\.)", n))
    rows, used = by_machine(names, words)
    note = "\nHow many times faster sidrec is; both sides in the same run on the same machine.\n"
    header = ["other software", "its system", "measure", "ratio, CPU", "ratio, GPU"]
    return markdown(header, rows) + note + sources(used)


def by_machine(
    names: list[str], words: Callable[[str], list[str]]
) -> tuple[list[list[str]], list[Mapping[str, Any]]]:
    """Rows of (words, newest CPU figure, newest GPU figure), and the figures used."""
    machines = [read_figures(gpu=False), read_figures(gpu=True)]
    rows = [[*words(n), quantity(machines[0].get(n)), quantity(machines[1].get(n))] for n in names]
    return rows, [m[n] for n in names for m in machines if n in m]


def targets_table(figures: Figures) -> str:
    """Every figure that has a floor or an aim, and whether it is reached."""
    on_cpu, rows, used = read_figures(gpu=False), [], []
    for target in TARGETS:
        figure = (on_cpu if target.gpu is False else figures).get(target.figure)
        used += [figure] if figure else []
        sign = "≤" if target.lower_is_better else "≥"
        if target.band:
            floor = f"{target.band[0]:g} ± {target.band[1]:g}"
        elif target.above_zero:
            floor = "interval above 0"
        else:
            floor = "–" if target.floor is None else f"{sign} {target.floor:g}"
        aim = "–" if target.aim is None else f"{sign} {target.aim:g}"
        rows.append([f"`{target.figure}`", quantity(figure), floor, aim, verdict(target, figure)])
    return markdown(["figure", "measured", "floor", "aim", "reached"], rows) + "\n" + sources(used)


def verdict(target: Target, figure: Mapping[str, Any] | None) -> str:
    """`aim met`, `floor met`, `met`, or by how much the floor (or aim) is missed."""
    if figure is None:
        return MISSING
    value = figure["value"]
    if target.band:
        return "met" if abs(value - target.band[0]) <= target.band[1] else "**missed**"
    if target.above_zero:
        return "met" if figure.get("low", 0) > 0 else "**missed**"

    def reaches(bound: float | None) -> bool:
        if bound is None:
            return False
        return value <= bound if target.lower_is_better else value >= bound

    if reaches(target.aim):
        return "aim met"
    if target.floor is None:
        assert target.aim is not None
        return f"aim missed by {abs(value / target.aim - 1):.0%}"
    if reaches(target.floor):
        return "met" if target.aim is None else "floor met"
    return f"**floor missed by {abs(value / target.floor - 1):.0%}**"


TABLES: dict[str, Callable[[Figures], str]] = {
    "beauty": lambda figures: accuracy_table(figures, "amazon_beauty"),
    "sports": lambda figures: accuracy_table(figures, "amazon_sports"),
    "tokenizers_beauty": lambda figures: tokenizer_table(figures, "amazon_beauty"),
    "tokenizers_sports": lambda figures: tokenizer_table(figures, "amazon_sports"),
    "tokenizers_beauty_ids": lambda figures: id_table(figures, "amazon_beauty"),
    "tokenizers_sports_ids": lambda figures: id_table(figures, "amazon_sports"),
    "tokenizers_beauty_ablations": lambda figures: id_table(
        figures, "amazon_beauty", variants=True
    ),
    "tokenizers_beauty_short": lambda figures: id_table(figures, "amazon_beauty.epochs5"),
    "tokenizers_beauty_lengths": lambda figures: id_table(
        figures, "amazon_beauty.epochs5", variants=True
    ),
    "tokenizers_beauty_pairs": lambda figures: pair_table(figures, "amazon_beauty.epochs5"),
    "tokenizers_tuning": lambda figures: tuning_table(figures, "amazon_beauty"),
    "tokenizers_sports_pairs": lambda figures: pair_table(figures, "amazon_sports"),
    "cold": lambda figures: cold_table(figures, "amazon_beauty"),
    "stability": lambda figures: stability_table(figures, "amazon_beauty"),
    "joint": lambda figures: joint_table(figures, "amazon_beauty"),
    "generators_beauty": lambda figures: generator_table(figures, "amazon_beauty"),
    "align_shop": lambda figures: alignment_table(
        figures,
        "shop",
        SHOP_ROWS,
        ("recall@10", "true_reward", "invalid_share"),
        "sft",
        compared=("recall@10", "true_reward"),
    ),
    "align_cells": cells_table,
    "align_industrial": lambda figures: alignment_table(
        figures, "amazon_industrial", FUSION_ROWS, ("recall@10", "ndcg@10"), "grpo_business"
    ),
    "align_industrial_ranker": lambda figures: alignment_table(
        figures,
        "amazon_industrial.ranker_reward",
        FUSION_ROWS,
        ("recall@10", "ndcg@10"),
        "grpo_business",
    ),
    "align_shop_noise": lambda figures: alignment_table(
        figures,
        "shop_noise2",
        [row for row in SHOP_ROWS if row in NOISY_ROWS],
        ("recall@10", "true_reward", "invalid_share"),
        "sft",
        compared=("recall@10", "true_reward"),
    ),
    "align_office": lambda figures: alignment_table(
        figures, "amazon_office", FUSION_ROWS, ("recall@10", "ndcg@10"), "grpo_business"
    ),
    "align_mind": lambda figures: alignment_table(
        figures, "mind", PREFERENCE_ROWS, ("recall@10", "mrr", "invalid_share"), "sft"
    ),
    "align_beauty_logged": lambda figures: alignment_table(
        figures, "beauty_logged", PREFERENCE_ROWS, ("recall@10", "mrr", "invalid_share"), "sft"
    ),
    "align_rlhf": rlhf_table,
    "judge": judge_table,
    "judge_tastes": tastes_table,
    "judge_users": judge_users_table,
    "joint_model": lambda figures: tasks_table(figures, "joint"),
    "joint_checks": lambda figures: rows_table(figures, CHECKS),
    "joint_generator": lambda figures: tasks_table(figures, "joint.generator"),
    "joint_model_ids": ids_table,
    "joint_shopdial": lambda figures: tasks_table(figures, "joint.shopdial"),
    "search_esci": lambda figures: search_table(figures, "esci"),
    "query_understanding": understanding_table,
    "query_reading": reading_table,
    "search_scale": scale_table,
    "search_probes_esci": lambda figures: probes_table(figures, "esci"),
    "search_probes_beauty": lambda figures: probes_table(figures, "amazon_beauty"),
    "search_seeds": lambda figures: seeds_table(figures, "esci"),
    "search_latency": lambda figures: latency_table(figures, "esci"),
    "search_generative": lambda figures: generative_table(figures, "esci"),
    "search_ids": search_ids_table,
    "generators_sports": lambda figures: generator_table(figures, "amazon_sports"),
    "generators_cold": lambda figures: cold_rows_table(figures, "amazon_beauty"),
    "generators_parts": lambda figures: ablation_table(figures, "amazon_beauty"),
    "s2gr": lambda figures: s2gr_table(figures, "amazon_beauty"),
    "s2gr_tiger": lambda figures: s2gr_table(figures, "amazon_beauty", "s2gr_tiger"),
    "best": lambda figures: best_table(figures, "amazon_beauty"),
    "graph_search": graph_table,
    "collisions": policy_table,
    "sarq_lengths": lambda figures: lengths_table(figures, "amazon_beauty"),
    "acrq": lambda figures: frozen_head_table(figures, "amazon_beauty"),
    "quantisers": quantiser_table,
    "scaling_beauty": lambda figures: scaling_table(figures, "amazon_beauty"),
    "scaling_sports": lambda figures: scaling_table(figures, "amazon_sports"),
    "scaling_chain": lambda figures: scaling_table(figures, "chain"),
    "speed": speed_table,
    "versus": versus_table,
    "compiled": compiled_table,
    "targets": targets_table,
}


def rendered(text: str, figures: Figures) -> str:
    """The page with every marked table drawn anew. KeyError names an unknown table."""

    def draw(found: re.Match[str]) -> str:
        opening, name, _, closing = found.groups()
        if name not in TABLES:
            raise KeyError(f"no table {name!r}: have {list(TABLES)}")
        return f"{opening}{TABLES[name](figures)}{closing}"

    return MARKED.sub(draw, text)


def pages(repository: Path = REPOSITORY) -> list[Path]:
    """README.md and every page of docs/."""
    found = [repository / "README.md", *sorted((repository / "docs").glob("*.md"))]
    return [page for page in found if page.exists()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when stale")
    check = parser.parse_args(arguments).check
    figures, stale = read_figures(), []
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = rendered(old, figures)
        if new != old:
            stale.append(page.relative_to(REPOSITORY).as_posix())
            if not check:
                page.write_text(new, encoding="utf-8")
    if stale:
        print(("stale: " if check else "rewrote: ") + ", ".join(stale))
    if stale and check:
        print("run: make bench-table")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
