"""Search over a million made items: index time, memory, and seconds of one query at a time.

    taskset -c 0 python benchmarks/search_scale.py [--items 1000000] [--write]

Items have a title of a brand, words of one of 2,000 kinds, and common words (frequencies fall as
1 / rank); queries are two to four words of some item's title, so that words which hold a tenth of
the catalogue occur. The towers are fitted on the first `--learn` items, the others are added, as
`add_items` does. `hybrid` is bm25 and the towers over IVF cells, reciprocal ranks. One thread;
p50 and p99 are wall time, `cpu_p50` and `cpu_p99` the processor's, which other work on the core
does not lengthen.
Figures: `search.1m_items.{p50,p99,cpu_p50,cpu_p99,index_seconds,memory_gib}` (hybrid) and
`search.1m_items.<system>.{p50,p99,cpu_p50,cpu_p99,index_seconds}`.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from dataclasses import replace
from typing import Any

import faiss
import numpy as np
import polars as pl
import torch
from figures import write

from sidrec import config
from sidrec.config import Stage
from sidrec.retrieval.search.asking import best
from sidrec.retrieval.search.bm25 import Bm25, Bm25Config
from sidrec.retrieval.search.dual_tower import DualTower, DualTowerConfig
from sidrec.retrieval.search.fusing import equal_shares, fuse_search
from sidrec.retrieval.search.views import ViewIndex, ViewIndexConfig
from sidrec.types import Items, as_ids

NUM_BRANDS, NUM_KINDS, WORDS_OF_KIND, NUM_COMMON = 5_000, 2_000, 30, 40_000
K = 10
LIMIT_GIB = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--learn", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the figures")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_GIB * 2**30 + 2**31, resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    items, queries = made(arguments.items, arguments.queries, arguments.seed)
    print(f"catalogue: {memory_gib():.2f} GiB; e.g. {queries[:3]}", flush=True)
    figures: dict[str, dict[str, Any]] = {}

    bm25, bm25_seconds = timed(lambda: Bm25.fit(items, Bm25Config()))
    report(figures, "bm25", bm25_seconds, lambda text: best(bm25.ask([text], K), K), queries)
    towers, tower_seconds = timed(lambda: fitted_towers(items, arguments))
    _ = towers.index.built
    report(figures, "ivf", tower_seconds, lambda text: best(towers.ask([text], K), K), queries)
    hybrid = equal_shares(["bm25", "dual_tower"])
    members = {"bm25": bm25, "dual_tower": towers}
    both = bm25_seconds + tower_seconds
    report(figures, "hybrid", both, lambda t: fuse_search(members, hybrid, [t], K), queries)
    peak = memory_gib()
    figures["search.1m_items.memory_gib"] = {"value": round(peak, 2), "unit": "GiB", "n": 1}
    for name in ("p50", "p99", "cpu_p50", "cpu_p99", "index_seconds"):
        figures[f"search.1m_items.{name}"] = figures[f"search.1m_items.hybrid.{name}"]

    shape = replace(towers.config.index, kind="hnsw", view="item", probes=64, links=16)
    views = (towers.index.queries_ND, towers.index.items_ND)
    graph, graph_seconds = timed(lambda: built(ViewIndex.fit(*views, shape)))
    walked = DualTower(towers.config, towers.text, towers.towers, graph)
    report(figures, "hnsw", graph_seconds, lambda t: best(walked.ask([t], K), K), queries)
    print(f"peak {memory_gib():.2f} GiB, {peak:.2f} GiB before the graph", flush=True)
    if arguments.write and arguments.items == 1_000_000:
        path = write(
            "search_scale",
            figures,
            seeds=[arguments.seed],
            command="python " + " ".join(sys.argv),
            folder="speed",
            notes=f"towers of {arguments.dim} dimensions, learnt on {arguments.learn} items",
        )
        print(f"wrote {path.name}")


def made(num_items: int, num_queries: int, seed: int) -> tuple[Items, list[str]]:
    """The catalogue and queries made of its titles."""
    random = np.random.default_rng(seed)
    brands_N = random.zipf(1.3, num_items) % NUM_BRANDS
    kinds_N = random.zipf(1.2, num_items) % NUM_KINDS
    own_N3 = np.minimum(random.zipf(1.5, (num_items, 3)), WORDS_OF_KIND) - 1
    common_N6 = (NUM_COMMON ** random.random((num_items, 6))).astype(np.int64)  # share ~ 1 / rank
    counts_N = random.integers(2, 7, num_items)
    titles = [
        " ".join([f"brand{b}", *(f"kind{c}x{w}" for w in w3), *(f"w{w}" for w in w6[:n])])
        for b, c, w3, w6, n in zip(
            brands_N.tolist(), kinds_N.tolist(), own_N3.tolist(), common_N6.tolist(),
            counts_N.tolist(), strict=True,
        )
    ]  # fmt: skip
    items = Items(as_ids(range(num_items)), pl.DataFrame({"title": titles}))
    queries = []
    for row in random.choice(num_items, num_queries, replace=False).tolist():
        words = titles[row].split()
        size = int(random.integers(2, 5))
        queries.append(" ".join(random.choice(words, size, replace=False).tolist()))
    return items, queries


def fitted_towers(items: Items, arguments: argparse.Namespace) -> DualTower:
    """Towers of the first items over cells, and all items added."""
    settings = DualTowerConfig(
        text=config.method(Stage("embeddings"), "lsa", dim=arguments.dim),
        dim=arguments.dim,
        hidden=(128,),
        made_per_item=1,
        num_steps=100,
        index=ViewIndexConfig(kind="ivf", view="item", num_cells=1024, probes=16),
        seed=arguments.seed,
    )
    learnt = min(arguments.learn, len(items))
    first = Items(items.item_ids[:learnt], items.attributes[:learnt])
    return DualTower.fit(first, settings).with_items(items)


def built(index: ViewIndex) -> ViewIndex:
    _ = index.built
    return index


def timed(make: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    value = make()
    return value, time.perf_counter() - started


def report(
    figures: dict[str, dict[str, Any]], name: str, seconds: float, ask: Any, queries: list[str]
) -> None:
    """Milliseconds of single queries, after a tenth of them have warmed the caches."""
    for text in queries[: max(1, len(queries) // 10)]:
        ask(text)
    took: dict[str, list[float]] = {"": [], "cpu_": []}
    for text in queries:
        wall, processor = time.perf_counter(), time.thread_time()
        ask(text)
        took["cpu_"].append(1000 * (time.thread_time() - processor))
        took[""].append(1000 * (time.perf_counter() - wall))
    values = {
        f"{clock}p{share}": (float(np.percentile(found, share)), "ms")
        for clock, found in took.items()
        for share in (50, 99)
    }
    values["index_seconds"] = (seconds, "s")
    for metric, (value, unit) in values.items():
        n = len(queries) if unit == "ms" else 1
        figures[f"search.1m_items.{name}.{metric}"] = {
            "value": round(value, 3), "unit": unit, "n": n,
        }  # fmt: skip
    said = ", ".join(f"{metric} {value:.1f} {unit}" for metric, (value, unit) in values.items())
    print(f"{name}: {said}; {memory_gib():.2f} GiB", flush=True)


def memory_gib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
