"""Kinds of IDs for generative retrieval, on queries made of Beauty's texts.

    python benchmarks/search_ids.py [--write]

One target a query, none of the queries learnt; items parted by training events into head, torso and
tail (80, 15, 5 % of events). `fixed_3` and `acrq` have three codes of 128, `sarq` three on average
and at most four; every decoder takes the same steps. A `free` decoder learns over the whole
codebook and does not read which IDs exist. Figures: `search_ids.<kind>[_free].[<bucket>.]…`,
`search_ids.<kind>_minus_<kind>.…`.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from figures import write
from search import BUCKETS, buckets, text_vectors
from search_figures import Columns, Figures, difference, figure_of, shown
from search_generative import listed, settings_of

from sidrec import config, methods
from sidrec.data import split
from sidrec.data.search import made_search
from sidrec.data.search.values import SearchData
from sidrec.evaluation.search import per_query_values
from sidrec.recipe import DataConfig, read_data
from sidrec.retrieval.search.generative import DECODER, TOKENIZER, Generative
from sidrec.retrieval.search.query_lessons import Lessons
from sidrec.types import CatalogueContext, ItemVectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    columns: Columns = {}
    figures = measured(arguments.steps, arguments.seed, columns)
    figures |= {key: figure_of([columns], key) for key in columns}
    shown(figures)
    print(f"{time.process_time() - began:.0f} s of processor", flush=True)
    if arguments.write:
        path = write(
            "search_ids",
            figures,
            seeds=[arguments.seed],
            command=" ".join(["python", *sys.argv]),
            notes="intervals over queries; one seed",
        )
        print(f"wrote {path.name}")


def measured(steps: int, seed: int, columns: Columns) -> Figures:
    """Fill the columns of every kind of IDs; their shapes and differences."""
    dataset = read_data(DataConfig(name="amazon_beauty"))
    items = dataset.items
    parts = split(dataset)
    counts_N = parts.train_counts_N
    bucket_N = buckets(counts_N)
    text, items_NF = text_vectors(items)
    settings = settings_of(seed, made_per_item=1, least_grade=0)
    learnt = made_search(items, per_item=1, max_words=settings.made_words, seed=seed)
    others = made_search(items, per_item=1, max_words=8, seed=seed + 1_000_003)
    part, bucket_Q = asked_queries(others, set(learnt.queries.texts), bucket_N, each=150)
    vectors = ItemVectors(items.item_ids, items_NF)
    context = CatalogueContext(items, parts.train, vectors)
    kinds = {
        "fixed_3": config.method(TOKENIZER, "residual_kmeans", num_codes=128, num_levels=3),
        "acrq": config.method(TOKENIZER, "acrq", num_codes=128, num_levels=3),
        "sarq": config.method(TOKENIZER, "sarq", num_codes=128, num_levels=4, mean_length=3.0),
        "sarq_unweighted": config.method(
            TOKENIZER, "sarq", num_codes=128, num_levels=4, mean_length=3.0, weighted=False
        ),
    }
    free = replace(DECODER, legal_softmax=False, node_vectors=False)
    figures: dict[str, dict[str, Any]] = {}
    lessons: list[Lessons] | None = None
    for name, chosen in kinds.items():
        tokenizer = methods.resolve("tokenizers", chosen.name)
        made = tokenizer.fit(vectors, config.with_seed(chosen.config, seed), context)
        made = made.encode(vectors)
        figures |= shapes(f"search_ids.{name}", made, counts_N, bucket_N)
        for kind, decoder in (("", DECODER), ("_free", free)):
            own = replace(settings, ids="bundle", decoder=decoder)
            start = Generative.untaught(items, own, text, items_NF, ids=made)
            lessons = lessons or start.lessons_of(items)
            num_steps = steps * (3 if kind else 2)
            found = start.trained(lessons, num_steps, own.learning_rate * (6 if kind else 2))
            key = f"search_ids.{name}{kind}"
            lists = listed(found, part)
            values = per_query_values(lists, part.judgements)
            invalid_Q = found.invalid_shares(part.queries.texts)
            for number, bucket in enumerate(BUCKETS):
                there = bucket_Q == number
                columns[f"{key}.{bucket}.recall@10"] = values["recall@10"][there].tolist()
                columns[f"{key}.{bucket}.invalid_share"] = invalid_Q[there].tolist()
                top = np.unique(lists[:, :10])
                covered = int((bucket_N[top[top >= 0]] == number).sum())
                figures[f"{key}.{bucket}.coverage@10"] = {
                    "value": covered / int((bucket_N == number).sum()), "unit": "ratio",
                }  # fmt: skip
            columns[f"{key}.recall@10"] = values["recall@10"].tolist()
            columns[f"{key}.recall@100"] = values["recall@100"].tolist()
            columns[f"{key}.invalid_share"] = invalid_Q.tolist()
            print(key, np.nanmean(values["recall@10"]), invalid_Q.mean(), flush=True)
    pairs = (("sarq", "fixed_3"), ("sarq", "sarq_unweighted"), ("acrq", "fixed_3"))
    metrics = [f"{bucket}.recall@10" for bucket in BUCKETS]
    metrics += ["recall@10", "free.recall@10", "free.invalid_share"]
    for one, other in pairs:
        for metric in metrics:
            name = f"_{metric}" if metric.startswith("free.") else f".{metric}"
            sides = (f"search_ids.{kind}{name}" for kind in (one, other))
            key = f"search_ids.{one}_minus_{other}.{metric.replace('free.', 'free_')}"
            figures[key] = difference([columns], *sides)
    return figures


def asked_queries(
    made: SearchData, known: set[str], bucket_N: Any, each: int
) -> tuple[SearchData, Any]:
    """Queries that were not learnt, with one answer, as many of each bucket."""
    one = made.judgements.counts_Q == 1
    fresh = np.array([text not in known for text in made.queries.texts]) & one
    rows = np.flatnonzero(fresh)
    bucket = bucket_N[made.judgements.items_J[made.judgements.offsets[rows]]]
    random = np.random.default_rng(0)
    chosen = np.concatenate(
        [random.permutation(rows[bucket == number])[:each] for number in range(len(BUCKETS))]
    )
    part = made.take(np.sort(chosen))
    return part, bucket_N[part.judgements.items_J]


def shapes(key: str, made: Any, counts_N: Any, bucket_N: Any) -> Figures:
    """Lengths and collisions of IDs."""
    lengths_N = (made.codes >= 0).sum(1)
    values = {
        "mean_length": (float(lengths_N.mean()), "codes"),
        "mean_length_by_events": (float(lengths_N @ counts_N / counts_N.sum()), "codes"),
        "collisions": (float((made.group_sizes_N > 1).mean()), "ratio"),
    }
    for number, bucket in enumerate(BUCKETS):
        shared_N = made.group_sizes_N[bucket_N == number] > 1
        values[f"{bucket}.collisions"] = (float(shared_N.mean()), "ratio")
    return {f"{key}.{n}": {"value": round(v, 5), "unit": u} for n, (v, u) in values.items()}


if __name__ == "__main__":
    main()
