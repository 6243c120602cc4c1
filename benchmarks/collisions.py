"""What each collision policy does to the IDs of the default recipe, before and after.

    python benchmarks/collisions.py --data amazon_beauty

One fit of the default vectors and tokenizer; every policy starts from the same IDs.
Figures: `collisions.<policy>.{collision_share,largest_group,codes_moved,prefixes_moved,
quantisation_error,codes_an_item,seconds}`; `keep` is before. `capacity_half` halves the fullest
first code. Share of items that share an ID, size of the largest such group, shares of items whose
codes changed and whose prefix did, squared error of the vectors rebuilt from the tokenizer's levels
over their variance (a counted level says nothing about them), processor seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
from figures import write

from sidrec import config, methods
from sidrec.data import load_named, split
from sidrec.recipe import default_config
from sidrec.tokenizers.collisions import CapacityConfig, CollisionReport
from sidrec.tokenizers.placement import distortion
from sidrec.types import CatalogueContext, ItemVectors, SemanticIds

POLICIES = ("keep", "counter", "sinkhorn", "reassign", "capacity", "capacity_half")
UNITS = {"largest_group": "items", "codes_an_item": "codes", "seconds": "s"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="amazon_beauty")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    dataset = load_named(asked.data)
    train = split(dataset, "leave_one_out").train
    settings = default_config(dataset)
    embedder = methods.resolve("embeddings", settings.embedding.name).fit(
        CatalogueContext(dataset.items, train),
        config.with_seed(settings.embedding.config, asked.seed),
    )
    vectors = embedder.embed(dataset.items)
    tokenizer = methods.resolve("tokenizers", settings.tokenizer.name).fit(
        vectors,
        config.with_seed(settings.tokenizer.config, asked.seed),
        CatalogueContext(dataset.items, train, vectors),
    )
    figures = {
        f"collisions.{policy}.{name}": {"value": value, "unit": UNITS.get(name, "ratio")}
        for policy in POLICIES
        for name, value in outcome(policy, tokenizer, vectors).items()
    }
    path = write(
        f"collisions_{asked.data}",
        figures,
        seeds=[asked.seed],
        command=" ".join(["python", *sys.argv]),
        notes=f"{len(vectors):,} items, {settings.tokenizer.name} on {settings.embedding.name}",
    )
    print(f"wrote {path.name}")


def outcome(policy: str, tokenizer: Any, vectors: ItemVectors) -> dict[str, float]:
    """The figures of one policy on the IDs that the tokenizer gives these vectors."""
    ids = tokenizer.encode(vectors)
    started = time.process_time()
    after, report = applied(policy, ids, tokenizer, vectors)
    seconds = time.process_time() - started
    points_ND = tokenizer.project(vectors)
    own_NL = after.codes[:, : len(tokenizer.codebooks)]
    variance = float(np.square(points_ND - points_ND.mean(axis=0)).sum(axis=1).mean())
    error = distortion(points_ND, own_NL, tokenizer.codebooks) / variance
    return {
        "collision_share": round(report.share_after, 6),
        "largest_group": report.largest_after,
        "codes_moved": round(report.num_moved / report.num_items, 6),
        "prefixes_moved": round(report.num_moved_prefix / report.num_items, 6),
        "quantisation_error": round(error, 5),
        "codes_an_item": float((after.codes >= 0).sum(axis=1).mean()),
        "seconds": round(seconds, 2),
    }


def applied(
    policy: str, ids: SemanticIds, tokenizer: Any, vectors: ItemVectors
) -> tuple[SemanticIds, CollisionReport]:
    """The IDs after a policy of POLICIES, and its report."""
    if policy != "capacity_half":
        return methods.resolve("collisions", policy)(ids, tokenizer, vectors)
    fullest = int(np.bincount(ids.codes[:, 0]).max())
    half = CapacityConfig(depth=1, capacity=-(-fullest // 2))
    return methods.resolve("collisions", "capacity")(ids, tokenizer, vectors, half)


if __name__ == "__main__":
    main()
