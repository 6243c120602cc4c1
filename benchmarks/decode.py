"""Time beam search with the default generator, `causal`: one user at a time, and in batches.

    python benchmarks/decode.py [--bundle DIR] [--users 4096] [--threads 2]

One user: from the catalogue rows of a history to `Candidates`, the model in memory. Batches: the
same for many users in random order. With SIDREC_DATA the histories are Amazon Beauty's test ones
and the IDs residual k-means of its text vectors; otherwise random ones of that size. Weights are
those of a bundle, or random: they hardly change the time.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from figures import write

import sidrec
from sidrec import methods
from sidrec.data import load_named, split
from sidrec.data.named import named_vectors
from sidrec.decoding.beam import beam_search
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.generators.causal import Causal, CausalConfig
from sidrec.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from sidrec.types import (
    Candidates,
    CatalogueContext,
    Histories,
    HistoryBatch,
    Items,
    ItemVectors,
    as_ids,
)

BEAUTY_ITEMS, BEAUTY_USERS, MEAN_HISTORY = 12_101, 22_363, 8
K = 10


@dataclass(frozen=True)
class Workload:
    """What every decoding and training benchmark runs on."""

    context: CatalogueContext
    """Items, training sequences, vectors and semantic IDs, no two alike."""
    histories: Histories
    """Test histories, in random order."""
    source: str


def beauty(policy: str = "reassign", seed: int = 0) -> Workload:
    """Amazon Beauty where SIDREC_DATA holds it, else random data of its size.

    IDs have 3 codes of 256; collisions are reassigned, or get a fourth code (`counter`).
    """
    random = np.random.default_rng(seed)
    if os.environ.get("SIDREC_DATA"):
        dataset = load_named("amazon_beauty", download=False)
        parts, vectors = split(dataset), named_vectors("amazon_beauty")
        if vectors is None:
            raise SystemExit("SIDREC_DATA holds no item_vectors_minilm.npy of amazon_beauty")
        items, train, histories, source = dataset.items, parts.train, parts.test.histories, "Beauty"
        row_of = {str(item): row for row, item in enumerate(vectors.item_ids)}
        order = [row_of[str(item)] for item in items.item_ids]
        vectors = ItemVectors(items.item_ids, vectors.vectors[order])
    else:
        ids = as_ids(range(BEAUTY_ITEMS))
        items = Items(ids, pl.DataFrame({"title": [f"item {i}" for i in ids]}))
        lengths = 3 + random.geometric(1 / (MEAN_HISTORY - 2), BEAUTY_USERS)
        train = Histories.from_lists([random.integers(BEAUTY_ITEMS, size=n) for n in lengths])
        histories, source = train, "random data of Beauty's size"
        vectors = ItemVectors(ids, random.standard_normal((BEAUTY_ITEMS, 384), dtype=np.float32))
    tokenizer = ResidualKMeans.fit(vectors, ResidualKMeansConfig(num_iters=10))
    resolve = methods.resolve("collisions", policy)
    unique_ids, _ = resolve(tokenizer.encode(vectors), tokenizer, vectors)
    context = CatalogueContext(items, train, vectors, unique_ids)
    return Workload(context, histories.take(random.permutation(len(histories))), source)


def search(model: Any, index: PrefixIndex, histories: Histories, beam: int) -> Candidates:
    """The best `K` items of each user."""
    batch = HistoryBatch.from_histories(histories, max_length=model.max_length)
    return beam_search(model, batch, index, k=K, beam_width=beam)


def seconds_of(function: Callable[..., Any], *arguments: Any) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def rows_of(histories: Histories, start: int, stop: int) -> Histories:
    """Sequences start … stop − 1."""
    return histories.take(np.arange(start, min(stop, len(histories))))


def assert_batches_change_nothing(model: Any, index: PrefixIndex, users: Histories) -> None:
    """A user alone gets the scores it gets among others."""
    together = search(model, index, users, 20).scores_BK
    for user in range(len(users)):
        alone = search(model, index, rows_of(users, user, user + 1), 20).scores_BK
        np.testing.assert_allclose(alone[0], together[user], atol=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", help="bundle whose generator to time")
    parser.add_argument("--users", type=int, default=4096, help="users of a batch pass")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--single", type=int, default=500, help="users timed one at a time")
    parser.add_argument("--repeats", type=int, default=5, help="passes over the batch users")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dry", action="store_true", help="print, write no file")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    work = beauty()
    if chosen.bundle:
        recommender = sidrec.load(chosen.bundle)
        model, index = recommender.generator.value, recommender.index
    else:
        model = Causal.build(work.context, CausalConfig()).eval()
        index = PrefixIndex.build(work.context.semantic_ids)
    assert_batches_change_nothing(model, index, rows_of(work.histories, 0, 16))
    figures: dict[str, dict[str, Any]] = {}
    alone = [rows_of(work.histories, u, u + 1) for u in range(chosen.single + 20)]
    batches = [
        rows_of(work.histories, at, min(at + chosen.batch_size, chosen.users))
        for at in range(0, chosen.users, chosen.batch_size)
    ]
    num_users = sum(len(batch) for batch in batches)
    for beam in (20, 50):
        times = [seconds_of(search, model, index, u, beam) for u in alone][20:]
        name, milliseconds = f"decode.causal.beam{beam}", 1e3 * np.array(times)
        for quantile in (50, 99):
            value = round(float(np.percentile(milliseconds, quantile)), 3)
            figures[f"{name}.one_user.p{quantile}"] = {
                "value": value, "unit": "ms", "n": len(times),
            }  # fmt: skip
        passes = [
            num_users / sum(seconds_of(search, model, index, b, beam) for b in batches)
            for _ in range(chosen.repeats)
        ]
        figures[f"{name}.batch.users_per_second"] = {
            "value": round(float(np.median(passes)), 1),
            "unit": "users/s",
            "low": round(min(passes), 1),
            "high": round(max(passes), 1),
            "n": num_users,
            "batch_size": chosen.batch_size,
        }
    weights = "trained weights" if chosen.bundle else "random weights"
    notes = f"{work.source}, {weights}, top {K}; low and high are the slowest and fastest pass"
    finish("decode", figures, notes, chosen.dry)


def finish(what: str, figures: dict[str, dict[str, Any]], notes: str, dry: bool) -> None:
    """Print the figures with the load of the machine, and write them unless `dry`."""
    print(f"{notes}; load {os.getloadavg()[0]:.2f}, {torch.get_num_threads()} threads")
    for name, figure in figures.items():
        print(f"  {name} = {figure['value']} {figure['unit']}")
    if not dry:
        path = write(
            what, figures, seeds=[0], command=f"python benchmarks/{what}.py", folder="speed",
            notes=notes,
        )  # fmt: skip
        print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
