"""What joint vectors give search and recommendation: one row a weight, never one mean.

    python benchmarks/joint_ids.py --data amazon_beauty [--steps 2000] [--write]

Nearest neighbours by cosine among all items. Search: a held-out query made of an item's words, not
among the training queries of any item, should find that item. Recommendation: the last item of a
test user should find the next one; the last item itself is left out. Rows: a network at each
`search_weight`, the two single-task vectors side by side (twice as wide), and LSA untrained.
Figures: `<dataset>.joint_<percent>.{search,recommendation}.recall@10`, `joint_concatenated`, `lsa`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from figures import write

from sidrec.data import split
from sidrec.embeddings.joint import Joint, JointConfig, embed_texts, queries_of
from sidrec.embeddings.queries import made_queries
from sidrec.evaluation.metrics import recall
from sidrec.evaluation.significance import bootstrap
from sidrec.recipe import DataConfig, read_data
from sidrec.types import PAD, CatalogueContext, Floats, Ints

K = 10
HELD_OUT_SEED = 1_000_003
"""Added to the run's seed for the queries that are asked."""
BLOCK = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="amazon_beauty", help="a named set, or shop")
    parser.add_argument("--part", default="test", choices=("valid", "test"))
    parser.add_argument("--weights", type=float, nargs="*", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--steps", type=int, default=JointConfig().num_steps)
    parser.add_argument("--dim", type=int, default=JointConfig().dim)
    parser.add_argument("--queries", type=int, default=10_000, help="held-out queries at most")
    parser.add_argument("--users", type=int, default=10_000, help="users asked at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the figures")
    arguments = parser.parse_args()

    dataset = read_data(DataConfig(name=arguments.data))
    parts = split(dataset)
    context = CatalogueContext(dataset.items, parts.train)
    base = JointConfig(num_steps=arguments.steps, dim=arguments.dim, seed=arguments.seed)
    rng = np.random.default_rng(0)

    asked = made_queries(
        dataset.items,
        per_item=2,
        max_words=base.query_words,
        seed=arguments.seed + HELD_OUT_SEED,
    ).without(queries_of(dataset.items, base).texts)
    chosen = _at_most(np.arange(len(asked)), arguments.queries, rng)
    texts, answers_Q = [asked.texts[q] for q in chosen], asked.rows_P[chosen]
    examples = parts.test if arguments.part == "test" else parts.valid
    users = _at_most(np.flatnonzero(examples.histories.lengths > 0), arguments.users, rng)
    last_Q = examples.histories.items_E[examples.histories.offsets[users + 1] - 1]
    next_Q = examples.targets[users]

    plans = {f"joint_{round(100 * w)}": replace(base, search_weight=w) for w in arguments.weights}
    plans["joint_concatenated"] = replace(base, mode="concatenate")
    figures: dict[str, dict[str, Any]] = {}
    print(f"{len(texts)} held-out queries, {len(users)} users, {len(dataset.items)} items")
    print("| vectors | search recall@10 | recommendation recall@10 | fit seconds |")
    print("| --- | ---: | ---: | ---: |")

    def show(
        name: str, items_ND: Floats, encode: Callable[[list[str]], Floats], sec: float
    ) -> None:
        hits = {
            "search": found(encode(texts), items_ND, answers_Q, np.full(len(texts), PAD)),
            "recommendation": found(items_ND[last_Q], items_ND, next_Q, last_Q),
        }
        cells = []
        for task, hits_Q in hits.items():
            figure = bootstrap(hits_Q[:, None])[0]
            key = f"{arguments.data}.{name}.{task}.recall@{K}"
            figures[key] = {k: v if k == "n" else round(v, 5) for k, v in asdict(figure).items()}
            figures[key]["unit"] = "ratio"
            cells.append(f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]")
        print(f"| {name} | {' | '.join(cells)} | {sec:.0f} |", flush=True)

    for number, (name, config) in enumerate(plans.items()):
        started = time.perf_counter()
        fitted = Joint.fit(context, config)
        seconds = time.perf_counter() - started
        if number == 0:
            text = fitted.text
            show("lsa", text.embed(dataset.items).vectors, partial(embed_texts, text), 0.0)
        show(name, fitted.embed(dataset.items).vectors, fitted.encode_queries, seconds)

    if arguments.write:
        path = write(
            f"joint_ids_{arguments.data}",
            figures,
            seeds=[arguments.seed],
            command=" ".join(["python", *sys.argv]),
            notes=f"{parts.rule}; queries made of item words, none among the training queries",
        )
        print(f"wrote {path.name}")


def found(asked_QD: Floats, items_ND: Floats, answers_Q: Ints, left_out_Q: Ints) -> np.ndarray:
    """(Q,) Recall@K of each answer by cosine; ties share their places, zero vectors find nobody."""
    hits_Q = np.zeros(len(asked_QD))
    for begin in range(0, len(asked_QD), BLOCK):
        rows = slice(begin, begin + BLOCK)
        scores_BN = asked_QD[rows] @ items_ND.T
        asking = np.arange(len(scores_BN))
        own_B = scores_BN[asking, answers_Q[rows]][:, None]
        left_out_B = left_out_Q[rows]
        dropped = np.flatnonzero((left_out_B != PAD) & (left_out_B != answers_Q[rows]))
        scores_BN[dropped, left_out_B[dropped]] = -np.inf
        better_B = (scores_BN > own_B).sum(axis=1)
        tied_B = (scores_BN == own_B).sum(axis=1) - 1
        hits_Q[rows] = recall(better_B, tied_B, K)
    return hits_Q


def _at_most(rows: Ints, most: int, rng: np.random.Generator) -> Ints:
    return rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))


if __name__ == "__main__":
    main()
