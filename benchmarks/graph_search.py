"""Parallel codes: what the walk over the item graph loses against scoring the whole catalogue.

    python benchmarks/graph_search.py --bundle runs/generators/amazon_beauty-seed0/parallel/bundle

The bundle's generator answers the same test users exactly and by the graph, at several widths and
numbers of steps (`search_beam`, `search_steps`); users alone are answered by all in turn. A
catalogue as small as Beauty needs no graph: the default walks one above 200,000 items.
Figures: `parallel.exact.{recall@10,one_user.p50,one_user.p99}`, the same for
`parallel.graph_beam<W>_steps<S>` with `overlap@10` (of the exact lists), `minus_exact.recall@10`,
paired, and `latency_over_exact`, the median over users; `parallel.graph.made_seconds`.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import as_figure, write

import sidrec
from sidrec.data import load_named, split
from sidrec.evaluation.significance import bootstrap, paired
from sidrec.recommender import Recommender
from sidrec.types import Examples, Ints

K = 10
WALKS = ((32, 2), (64, 2), (32, 4), (64, 4), (128, 4))
"""Width and steps; 64 and 4 are the defaults."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--users", type=int, default=5000, help="asked for the recall")
    parser.add_argument("--single", type=int, default=200, help="timed one at a time")
    asked = parser.parse_args()
    recommender = sidrec.load(asked.bundle)
    data = str(recommender.provenance["data"])
    test = split(load_named(data), "leave_one_out").test
    users = test.take(np.sort(np.random.default_rng(0).permutation(len(test))[: asked.users]))
    searches = {"exact": recommender}
    for beam, steps in WALKS:
        name = f"graph_beam{beam}_steps{steps}"
        searches[name] = walking(asked.bundle, beam, steps)
    started = time.process_time()
    searches[name].generator.value.graph()
    made = round(time.process_time() - started, 2)
    rows = {name: listed(search, users) for name, search in searches.items()}
    figures = accuracy(rows, users) | latency(searches, users, asked.single)
    figures["parallel.graph.made_seconds"] = {"value": made, "unit": "s"}
    path = write(
        f"graph_search_{data}",
        figures,
        seeds=[0],
        command=" ".join(["python", *sys.argv]),
        notes=f"{len(recommender.items):,} items; {torch.get_num_threads()} threads",
    )
    for name, figure in sorted(figures.items()):
        print(f"{name:60} {figure['value']:.4f}")
    print(f"wrote {path.name}")


def walking(bundle: Path, beam: int, steps: int) -> Recommender:
    """The bundle with a generator that walks the graph however small the catalogue is."""
    recommender = sidrec.load(bundle)
    model = recommender.generator.value
    model.config = replace(model.config, exact_below=0, search_beam=beam, search_steps=steps)
    return replace(recommender, beam_width=min(recommender.beam_width, beam))


def listed(search: Recommender, users: Examples) -> Ints:
    """(Q, K) rows of the items each user gets."""
    system, blocks = search.generator.name, []
    for start in range(0, len(users), 256):
        histories = users.take(np.arange(start, min(start + 256, len(users)))).histories
        blocks.append(search.candidates(histories, K, system=system).rows_BK)
    return np.concatenate(blocks)


def accuracy(rows: dict[str, Ints], users: Examples) -> dict[str, dict[str, Any]]:
    """Recall of each search, its difference from the exact one, and what share of it it lists."""
    exact_QK = rows["exact"]
    hits = {name: (of == users.targets[:, None]).any(axis=1) * 1.0 for name, of in rows.items()}
    figures: dict[str, dict[str, Any]] = {}
    for name, rows_QK in rows.items():
        (recall,) = bootstrap(hits[name][:, None])
        figures[f"parallel.{name}.recall@{K}"] = as_figure(recall)
        if name == "exact":
            continue
        figure, p = paired(hits[name], hits["exact"])
        shown = {**as_figure(figure), "unit": "difference", "p": round(p, 5)}
        figures[f"parallel.{name}.minus_exact.recall@{K}"] = shown
        shared_Q = (rows_QK[:, :, None] == exact_QK[:, None, :]).any(axis=2).mean(axis=1)
        (overlap,) = bootstrap(shared_Q[:, None])
        figures[f"parallel.{name}.overlap@{K}"] = as_figure(overlap)
    return figures


def latency(
    searches: dict[str, Recommender], users: Examples, num_users: int
) -> dict[str, dict[str, Any]]:
    """Milliseconds of one user alone; the searches take turns, user by user."""
    names, milliseconds = list(searches), {name: [] for name in searches}
    for user in range(num_users + 10):  # the first ten warm up
        one = users.take(np.array([user])).histories
        for turn in range(len(names)):
            name = names[(user + turn) % len(names)]
            search, started = searches[name], time.perf_counter()
            search.candidates(one, K, system=search.generator.name)
            if user >= 10:
                milliseconds[name].append(1e3 * (time.perf_counter() - started))
    figures: dict[str, dict[str, Any]] = {}
    for name in names:
        for quantile in (50, 99):
            value = round(float(np.percentile(milliseconds[name], quantile)), 3)
            figure = {"value": value, "unit": "ms", "n": num_users}
            figures[f"parallel.{name}.one_user.p{quantile}"] = figure
        ratio = np.median(np.divide(milliseconds[name], milliseconds["exact"]))
        if name != "exact":
            figure = {"value": round(float(ratio), 3), "unit": "x", "n": num_users}
            figures[f"parallel.{name}.latency_over_exact"] = figure
    return figures


if __name__ == "__main__":
    main()
