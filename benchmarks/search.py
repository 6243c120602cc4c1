"""Search on ESCI and, for the index alone, on queries made of Beauty's texts.

    python benchmarks/search.py --seeds 0 1 2 [--steps 150] [--write]

ESCI: five folds over the 100 queries, the same for every seed. Of the four folds that are not
asked, one chooses the fusion's rule and weights, three teach the towers; both towers and both
losses see the same pairs. `dense` is the plain towers over cells of item vectors, `dense_sci` the
swapped ones over cells of the query view; `hybrid` fuses bm25 and dense_sci. Beauty: towers learn
from made queries and are asked others, none among those learnt; head, torso and tail part their
targets by training events (80, 15, 5 %). Cells are compared at equal probes, with the share of the
catalogue that these score, and at equal shares. The index under a system's own name is that of its
own view. Figures:
`esci.{bm25,dense,dense_sci,hybrid}.{ndcg@10,recall@10,recall@100,mrr}`,
`{esci,amazon_beauty}.{dense,dense_sci}.[<view>.]centroid_agreement`, likewise
`recall@100_at_10_percent`, `recall@100_at_{1,2,4,8,16}_probes`, `scored_at_…_probes`,
`amazon_beauty.….{head,torso,tail}.recall@100_at_…_probes`, `amazon_beauty.….view_ids_same_{1,2,3}`
(share of items whose first codes are those of both views), and `dense_sci_minus_dense` of them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from figures import write
from search_figures import Columns, Figures, difference, figure_of, shown

from sidrec import methods
from sidrec.data import split
from sidrec.data.search import made_search, query_folds, read_search
from sidrec.embeddings.lsa import Lsa, LsaConfig
from sidrec.embeddings.vectors import known_rows
from sidrec.evaluation.search import per_query_values
from sidrec.recipe import DataConfig, read_data
from sidrec.retrieval.search.agreement import (
    centroid_agreement,
    recall_at_budget,
    recall_at_probes,
    view_gap,
)
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
from sidrec.retrieval.search.generative import default_tokenizer
from sidrec.retrieval.search.views import VIEWS, ViewIndex, ViewIndexConfig
from sidrec.types import CatalogueContext, Histories, ItemVectors, as_ids

SYSTEMS = {"dense": 0.0, "dense_sci": 1.0}
OWN_VIEW = {"dense": "item", "dense_sci": "query"}
METRICS = ("ndcg@10", "recall@10", "recall@100", "mrr", "judged@10")
BUDGET = 0.10
PROBES = (1, 2, 4, 8, 16)
BUCKETS = ("head", "torso", "tail")
NOBODY = Histories(np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--queries", type=int, default=2000, help="Beauty's queries at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--write", action="store_true", help="write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    started = time.process_time()
    columns: list[Columns] = [{} for _ in arguments.seeds]
    for seed, own in zip(arguments.seeds, columns, strict=True):
        base = DualTowerConfig(num_steps=arguments.steps, made_per_item=2, seed=seed)
        esci(base, own)
        beauty(base, arguments.queries, arguments.seeds, own)
        print(f"seed {seed}: {time.process_time() - started:.0f} s of processor", flush=True)
    figures = figures_of(columns)
    shown({key: figure for key, figure in figures.items() if "_at_" not in key})
    if arguments.write:
        path = write(
            "search",
            figures,
            seeds=arguments.seeds,
            command=" ".join(["python", *sys.argv]),
            notes="5 folds over 100 ESCI queries; intervals over queries and seeds, differences "
            "paired over both",
        )
        print(f"wrote {path.name}")


def esci(base: DualTowerConfig, columns: Columns) -> None:
    """All systems on every query, each asked of a model that never saw it."""
    data = read_search(Path(os.environ["SIDREC_DATA"]) / "esci_us_sample")
    text, items_NF = text_vectors(data.items)
    asked_QF = embed_texts(text, data.queries.texts)
    made = made_lessons(data.items, text, items_NF, base)
    bm25 = Bm25.fit(data.items, Bm25Config())
    folds = query_folds(data.queries, 5, seed=0)
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


def beauty(base: DualTowerConfig, most: int, seeds: list[int], columns: Columns) -> None:
    """The index alone: queries made of item words, none of them learnt from with any seed."""
    dataset = read_data(DataConfig(name="amazon_beauty"))
    items, bucket_N = dataset.items, buckets(split(dataset).train_counts_N)
    text, items_NF = text_vectors(items)
    base = replace(base, made_per_item=1)
    known: set[str] = set()
    for seed in seeds:
        learnt = made_search(items, per_item=1, max_words=base.made_words, seed=seed)
        known |= set(learnt.queries.texts)
    others = made_search(items, per_item=1, max_words=base.made_words, seed=1_000_003)
    fresh = np.array([q for q, words in enumerate(others.queries.texts) if words not in known])
    chosen = np.random.default_rng(0).permutation(fresh)[:most]
    part = others.take(np.sort(chosen))
    pairs_P2 = part.judgements.pairs(1)
    bucket_Q = np.full(len(part.queries), len(BUCKETS))
    np.minimum.at(bucket_Q, pairs_P2[:, 0], bucket_N[pairs_P2[:, 1]])
    lessons = made_lessons(items, text, items_NF, base)
    for name, weight in SYSTEMS.items():
        config = replace(base, swap_weight=weight)
        found = tower_of(config, text, items_NF, [lessons])
        asked_QD = found.encode(part.queries.texts)
        add_agreement(columns, "amazon_beauty", name, found, asked_QD, pairs_P2)
        for probes in PROBES:
            at = f"recall@100_at_{probes}_probes"
            recall_Q = np.array(columns[f"amazon_beauty.{name}.{at}"])
            for number, bucket in enumerate(BUCKETS):
                values = recall_Q[bucket_Q == number].tolist()
                columns[f"amazon_beauty.{name}.{bucket}.{at}"] = values


def buckets(counts_N: Any) -> Any:
    """(N,) 0 for the head, 1 the torso, 2 the tail: 80, 15 and 5 % of the training events."""
    order = np.argsort(-counts_N, kind="stable")
    before = np.cumsum(counts_N[order]) - counts_N[order]
    bucket_N = np.empty(len(counts_N), dtype=np.int64)
    bucket_N[order] = np.searchsorted([0.8, 0.95], before / counts_N.sum(), side="right")
    return bucket_N


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
        for probes in PROBES:
            recall_Q, scored_Q = recall_at_probes(index, asked_QD, pairs_P2, probes)
            values[f"recall@100_at_{probes}_probes"] = recall_Q
            values[f"scored_at_{probes}_probes"] = scored_Q
        for metric, values_Q in values.items():
            names = [f"{dataset}.{name}.{view}.{metric}"]
            names += [f"{dataset}.{name}.{metric}"] if view == OWN_VIEW[name] else []
            for key in names:
                columns.setdefault(key, []).extend(values_Q.tolist())
    if dataset == "amazon_beauty":
        for codes, same_N in same_codes(u_ND, v_ND).items():
            columns[f"{dataset}.{name}.view_ids_same_{codes}"] = same_N.tolist()
    gap = view_gap(found.index)
    print(f"{dataset} {name}: {gap}", flush=True)
    columns.setdefault(f"{dataset}.{name}.view_cosine", []).append(gap.mean_cosine)
    columns.setdefault(f"{dataset}.{name}.effective_rank", []).append(gap.effective_rank)


def same_codes(u_ND: Any, v_ND: Any) -> dict[int, Any]:
    """Number of codes -> (N,) whether that many first codes of both views of an item agree, by one
    residual k-means learnt on the query view; items without a vector are left out.
    """
    known_N = known_rows(v_ND)
    rows = as_ids(range(int(known_N.sum())))
    views = [ItemVectors(rows, view_ND[known_N]) for view_ND in (u_ND, v_ND)]
    chosen = default_tokenizer(len(rows))
    tokenizer = methods.resolve("tokenizers", chosen.name).fit(views[0], chosen.config)
    codes = [tokenizer.encode(view).codes for view in views]
    same_NL = np.cumprod(codes[0] == codes[1], axis=1)
    return {level + 1: same_NL[:, level].astype(np.float64) for level in range(same_NL.shape[1])}


def figures_of(columns: list[Columns]) -> Figures:
    """Every column, what swapping adds to each, and what the fusion adds."""
    figures: Figures = {}
    for key in columns[0]:
        unit = "directions" if key.endswith("rank") else "ratio"
        figures[key] = figure_of(columns, key, unit)
        swapped = key.replace(".dense.", ".dense_sci.")
        if swapped != key and "low" in figures[key] and ".scored_at_" not in key:
            delta = key.replace(".dense.", ".dense_sci_minus_dense.")
            figures[delta] = difference(columns, swapped, key)
    for one, other in (("hybrid", "bm25"), ("hybrid", "dense_sci")):
        for metric in ("ndcg@10", "recall@100"):
            pair = (f"esci.{name}.{metric}" for name in (one, other))
            figures[f"esci.{one}_minus_{other}.{metric}"] = difference(columns, *pair)
    return figures


if __name__ == "__main__":
    main()
