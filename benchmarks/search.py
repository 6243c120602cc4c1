"""Search on ESCI and, for the index alone, on queries made of Beauty's texts.

    taskset -c 0 nice -n 5 python benchmarks/search.py [--steps 150] [--write]

ESCI: five folds over the 100 queries. Of the four folds that are not asked, one chooses the
fusion's rule and weights, three teach the towers; both towers and both losses see the same pairs.
`dense` is the plain towers over cells of item vectors, `dense_sci` the swapped ones over cells of
the query view; `hybrid` fuses bm25 and dense_sci. Beauty: towers learn from made queries and are
asked others, none among those learnt. Cells are compared at equal shares of the catalogue scored.
Figures: `esci.{bm25,dense,dense_sci,hybrid}.{ndcg@10,recall@10,recall@100,mrr}`,
`{esci,amazon_beauty}.{dense,dense_sci}.<view>.{centroid_agreement,recall@100_at_10_percent}`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from figures import write

from sidrec.data.search import made_search, query_folds, read_search
from sidrec.embeddings.lsa import Lsa, LsaConfig
from sidrec.evaluation.search import per_query_values
from sidrec.evaluation.significance import bootstrap, paired
from sidrec.recipe import DataConfig, read_data
from sidrec.retrieval.search.agreement import centroid_agreement, recall_at_budget, view_gap
from sidrec.retrieval.search.asking import best
from sidrec.retrieval.search.bm25 import Bm25, Bm25Config
from sidrec.retrieval.search.dual_tower import (
    DualTower,
    DualTowerConfig,
    Lessons,
    embed_texts,
    train,
)
from sidrec.retrieval.search.fusing import fuse_search, tune_search
from sidrec.retrieval.search.views import ViewIndex, ViewIndexConfig
from sidrec.types import CatalogueContext, Histories

VIEWS = ("item", "query", "mean", "union")
SYSTEMS = {"dense": 0.0, "dense_sci": 1.0}
OWN_VIEW = {"dense": "item", "dense_sci": "query"}
METRICS = ("ndcg@10", "recall@10", "recall@100", "mrr", "judged@10")
BUDGET = 0.10
NOBODY = Histories(np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64))
Columns = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--queries", type=int, default=2000, help="Beauty's queries at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the figures")
    arguments = parser.parse_args()
    base = DualTowerConfig(num_steps=arguments.steps, made_per_item=2, seed=arguments.seed)
    started = time.perf_counter()
    columns: Columns = {}
    esci(base, columns)
    print(f"ESCI took {time.perf_counter() - started:.0f} s", flush=True)
    beauty(base, arguments.queries, columns)
    figures = figures_of(columns)
    for pair in (("dense_sci", "dense"), ("hybrid", "bm25"), ("hybrid", "dense_sci")):
        one, other = (np.array(columns[f"esci.{name}.ndcg@10"]) for name in pair)
        figure, p = paired(one, other)
        print(f"{pair[0]} − {pair[1]}: {figure.value:+.4f} [{figure.low:+.4f}, {figure.high:+.4f}]")
        figures[f"esci.{pair[0]}_minus_{pair[1]}.ndcg@10"] = entry(figure) | {"p": p}
    print(f"{time.perf_counter() - started:.0f} s in all")
    if arguments.write:
        path = write(
            "search",
            figures,
            seeds=[arguments.seed],
            command=" ".join(["python", *sys.argv]),
            notes="5 folds over 100 ESCI queries, intervals over queries; one seed",
        )
        print(f"wrote {path.name}")


def esci(base: DualTowerConfig, columns: Columns) -> None:
    """All systems on every query, each asked of a model that never saw it."""
    data = read_search(Path(os.environ["SIDREC_DATA"]) / "esci_us_sample")
    text, items_NF = text_vectors(data.items)
    asked_QF = embed_texts(text, data.queries.texts)
    made = made_lessons(data.items, text, items_NF, base)
    bm25 = Bm25.fit(data.items, Bm25Config())
    folds = query_folds(data.queries, 5, seed=base.seed)
    for number, test in enumerate(folds):
        valid = folds[(number + 1) % 5]
        rows = np.setdiff1d(np.arange(len(data.queries)), np.concatenate([test, valid]))
        lessons = [Lessons.of(asked_QF[rows], items_NF, data.judgements.take(rows), 0), made]
        part = data.take(test)
        pairs_P2 = part.judgements.pairs(data.judgements.top_grade)
        add_quality(columns, "bm25", best(bm25.ask(part.queries.texts, 100), 100).rows_BK, part)
        found: Any = None
        for name, weight in SYSTEMS.items():
            config = replace(base, swap_weight=weight)
            found = tower_of(config, text, items_NF, lessons)
            lists = best(found.ask(part.queries.texts, 100), 100).rows_BK
            add_quality(columns, name, lists, part)
            add_agreement(columns, "esci", name, found, found.encode(part.queries.texts), pairs_P2)
        members = {"bm25": bm25, "dual_tower": found}
        hybrid = tune_search(members, data.take(valid)).hybrid
        print(f"fold {number}: {hybrid.rule} {hybrid.weights}", flush=True)
        lists = fuse_search(members, hybrid, part.queries.texts, 100).rows_BK
        add_quality(columns, "hybrid", lists, part)


def beauty(base: DualTowerConfig, most: int, columns: Columns) -> None:
    """The index alone: queries made of item words, none of them learnt from."""
    items = read_data(DataConfig(name="amazon_beauty")).items
    text, items_NF = text_vectors(items)
    base = replace(base, made_per_item=1)
    learnt = made_search(items, per_item=1, max_words=base.made_words, seed=base.seed)
    others = made_search(items, per_item=1, max_words=base.made_words, seed=base.seed + 1_000_003)
    known = set(learnt.queries.texts)
    fresh = np.array([q for q, words in enumerate(others.queries.texts) if words not in known])
    chosen = np.random.default_rng(0).permutation(fresh)[:most]
    part = others.take(np.sort(chosen))
    lessons = made_lessons(items, text, items_NF, base)
    for name, weight in SYSTEMS.items():
        config = replace(base, swap_weight=weight)
        found = tower_of(config, text, items_NF, [lessons])
        asked_QD, pairs_P2 = found.encode(part.queries.texts), part.judgements.pairs(1)
        add_agreement(columns, "amazon_beauty", name, found, asked_QD, pairs_P2)


def text_vectors(items: Any) -> tuple[Lsa, Any]:
    text = Lsa.fit(CatalogueContext(items, NOBODY), LsaConfig())
    return text, text.embed(items).vectors


def made_lessons(items: Any, text: Lsa, items_NF: Any, config: DualTowerConfig) -> Lessons:
    made = made_search(
        items, per_item=config.made_per_item, max_words=config.made_words, seed=config.seed
    )
    return Lessons.of(embed_texts(text, made.queries.texts), items_NF, made.judgements, 1)


def tower_of(config: DualTowerConfig, text: Lsa, items_NF: Any, lessons: Any) -> DualTower:
    towers = train(items_NF, lessons, config)
    views = (towers.embed("query", items_NF), towers.embed("item", items_NF))
    return DualTower(config, text, towers, ViewIndex.fit(*views, config.index))


def add_quality(columns: Columns, name: str, rows_QK: Any, part: Any) -> None:
    values = per_query_values(rows_QK, part.judgements)
    for metric in METRICS:
        columns.setdefault(f"esci.{name}.{metric}", []).extend(values[metric].tolist())


def add_agreement(
    columns: Columns, dataset: str, name: str, found: DualTower, asked_QD: Any, pairs_P2: Any
) -> None:
    """Every view of one pair of towers, and under the system's own name its own view."""
    u_ND, v_ND = found.index.queries_ND, found.index.items_ND
    for view in VIEWS:
        config = ViewIndexConfig(kind="ivf", view=view)
        index = ViewIndex.fit(u_ND, v_ND, config)
        values = {
            "centroid_agreement": centroid_agreement(index, asked_QD, pairs_P2),
            "recall@100_at_10_percent": recall_at_budget(index, asked_QD, pairs_P2, BUDGET),
        }
        for metric, values_Q in values.items():
            names = [f"{dataset}.{name}.{view}.{metric}"]
            names += [f"{dataset}.{name}.{metric}"] if view == OWN_VIEW[name] else []
            for key in names:
                columns.setdefault(key, []).extend(values_Q.tolist())
    gap = view_gap(found.index)
    print(f"{dataset} {name}: {gap}", flush=True)
    columns.setdefault(f"{dataset}.{name}.view_cosine", []).append(gap.mean_cosine)
    columns.setdefault(f"{dataset}.{name}.effective_rank", []).append(gap.effective_rank)


def figures_of(columns: Columns) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {}
    for key, values in columns.items():
        known = np.array(values)[np.isfinite(values)]
        if len(known) >= 20:
            figures[key] = entry(bootstrap(known[:, None])[0])
        else:  # one value a model: no interval over queries
            figures[key] = {"value": round(float(known.mean()), 5), "n": len(known)}
        figures[key]["unit"] = "directions" if key.endswith("rank") else "ratio"
        if "@10_" not in key and "low" in figures[key]:
            figure = figures[key]
            print(f"{key}: {figure['value']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]")
    return figures


def entry(figure: Any) -> dict[str, Any]:
    kept = {k: v if k == "n" else round(v, 5) for k, v in asdict(figure).items()}
    return {**kept, "unit": "ratio"}


if __name__ == "__main__":
    main()
