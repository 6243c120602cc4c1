"""RAD-DPO and its neighbours on shown lists: news with real non-clicks, Beauty with imagined ones.

    python benchmarks/align_preferences.py --data mind --seconds 60
    python benchmarks/align_preferences.py --data beauty_logged --seconds 60

One supervised policy that writes freely (no legal softmax, no node vectors), aligned on contexts of
a history, what was clicked and what was shown beside it. `sft` trains on the positives alone for as
long. With `--warm-seconds` all rows start after likelihood on the positives: news that is clicked
is new, and histories alone teach little of it.

mind: 5,000 impressions, each a sequence of its history and first click; users parted at random into
70 % to train, 10 % to validate, 20 % to test (a user's history is training data in every part).
beauty_logged: Amazon Beauty, leave-one-out; the lists around each training event are drawn by a
logger that follows popularity and similarity, so its negatives are imagined; 5,000 test users.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from aligned import Bench, over_seeds, real_data
from figures import write

from sidrec import config
from sidrec.align_config import SHORT, AlignConfig
from sidrec.alignment.aligner import StepConfig
from sidrec.alignment.preferences import exposed, from_impressions
from sidrec.alignment.values import Preferences
from sidrec.cli import output
from sidrec.data import load_named, split
from sidrec.data.validation import content_hash
from sidrec.pipeline import Stages
from sidrec.recipe import (
    EMBEDDING,
    GENERATOR,
    TOKENIZER,
    DataConfig,
    DecodingConfig,
    HybridConfig,
    RunConfig,
)
from sidrec.types import Dataset, Examples, Histories, Interactions, Items, Split, as_ids

ROWS: dict[str, tuple[str, dict[str, object]]] = {
    "sft": ("sft", {}),
    "dpo": ("dpo", {"sft_weight": 0.0}),
    "simpo": ("simpo", {"sft_weight": 0.0}),
    "s_dpo": ("s_dpo", {"sft_weight": 0.0}),
    "rad_dpo": ("rad_dpo", {}),
    "rad_dpo_no_tlgd": ("rad_dpo", {"tlgd": False}),
    "rad_dpo_no_rdrw": ("rad_dpo", {"rdrw": False}),
    "rad_dpo_no_mlgc": ("rad_dpo", {"multi_label": False}),
    "rad_dpo_sdpo_form": ("rad_dpo", {"list_form": "sdpo"}),
    "s_dpo_sft": ("s_dpo", {"sft_weight": 1.0}),
}
TEST_USERS = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("mind", "beauty_logged"), default="mind")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training a row, processor")
    parser.add_argument("--sft-seconds", type=float, default=120.0, help="of the policy before")
    parser.add_argument(
        "--warm-seconds",
        type=float,
        default=0.0,
        help="of likelihood on positives, before all rows",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate")
    parser.add_argument("--beta", type=float, help="of every row that has one")
    parser.add_argument("--runs", type=Path, default=Path("runs/align"))
    parser.add_argument("--tag", default="", help="added to the name of the file")
    parser.add_argument("--part", choices=("test", "valid"), default="test")
    arguments = parser.parse_args()
    benches = [measured(arguments, seed) for seed in arguments.seeds]
    compared = ("sft", "rad_dpo")
    figures = over_seeds(benches, baselines=compared) if "sft" in arguments.rows else {}
    bench = benches[0]
    assert bench.preferences is not None
    pairs = shared_share(bench)
    for codes, share in pairs.items():
        figures[f"{arguments.data}.pairs_sharing_{codes}"] = {"value": share, "unit": "ratio"}
    print(pairs)
    if arguments.part == "test" and figures:
        path = write(
            "_".join(filter(None, ("align", arguments.data, arguments.tag))),
            figures,
            seeds=arguments.seeds,
            command=" ".join(["python", *sys.argv]),
            notes=f"{len(bench.preferences)} contexts, {len(bench.parts.test)} test questions; "
            "recall counts items over the whole catalogue; mrr of the first ten; free beam for "
            "invalid_share",
        )
        print(f"wrote {path.name}")


def measured(arguments: argparse.Namespace, seed: int) -> Bench:
    """All rows of one seed."""
    dataset, parts, preferences = mind() if arguments.data == "mind" else beauty(seed)
    if arguments.part == "valid":
        parts = replace(parts, test=parts.valid)
    settings = RunConfig(
        name=arguments.data,
        seed=seed,
        data=DataConfig(name=dataset.name),
        embedding=config.method(EMBEDDING, "collaborative" if arguments.data == "mind" else "lsa"),
        tokenizer=config.method(
            TOKENIZER, "residual_kmeans", num_codes=64 if arguments.data == "mind" else 256
        ),
        generator=config.method(
            GENERATOR,
            "causal",
            legal_softmax=False,
            node_vectors=False,  # they know which IDs exist
            train={"max_seconds": arguments.sft_seconds, "clock": "processor"},
        ),
        scorers=(),
        hybrid=HybridConfig(members=()),
        decoding=DecodingConfig(renormalise=False),
    )
    with output.progress() as show:
        folder = arguments.runs / f"{arguments.data}-seed{seed}"
        stages = Stages(dataset, settings, folder, show)
        stages.split = parts
        recommender = stages.recommender
    align = AlignConfig(
        seed=seed,
        rewards=(),
        renormalise=False,
        rollouts=replace(AlignConfig().rollouts, constrained=False),
        step=StepConfig(num_negatives=3, fill="uniform"),
        train=replace(
            SHORT,
            epochs=100,
            learning_rate=arguments.rate,
            max_seconds=arguments.seconds,
            clock="processor",
            validate_every_epochs=1.0,
        ),
        guard=False,
    )
    shared = {"data": arguments.data, "dataset": dataset, "parts": parts}
    if arguments.warm_seconds:
        longer = replace(align.train, learning_rate=1e-3, max_seconds=arguments.warm_seconds)
        warm = Bench(
            recommender=recommender,
            settings=replace(align, train=longer),
            preferences=preferences,
            **shared,
        )
        recommender = warm.row("start", "sft").recommender
    bench = Bench(recommender=recommender, settings=align, preferences=preferences, **shared)
    for name in arguments.rows:
        objective, options = ROWS[name]
        if arguments.beta is not None and name != "sft":
            options = {**options, "beta": arguments.beta}
        bench.row(name, objective, **options)
    return bench


def shared_share(bench: Bench) -> dict[str, float]:
    """Share of (first positive, shown negative) pairs that share at least 1, and 2, codes."""
    from sidrec.alignment.aligner import shared_codes
    from sidrec.alignment.contexts import padded

    preferences, codes_NL = bench.preferences, torch.from_numpy(bench.recommender.ids.codes)
    assert preferences is not None
    rows = np.arange(min(len(preferences), 5000), dtype=np.int64)
    positive_B1 = padded(preferences.positives, rows, 1)
    negative_BM = padded(preferences.negatives, rows, 32)
    shared_BM = shared_codes(codes_NL[negative_BM.clamp_min(0)], codes_NL[positive_B1])[..., 0]
    shared = shared_BM[negative_BM >= 0]
    return {str(n): round(float((shared >= n).float().mean()), 4) for n in (1, 2)}


def beauty(seed: int) -> tuple[Dataset, Split, Preferences]:
    """Beauty with shown lists drawn around 20,000 training events."""
    dataset = load_named("amazon_beauty")
    parts = split(dataset)
    rows = np.random.default_rng(1).choice(len(parts.test), TEST_USERS, replace=False)
    parts = replace(parts, test=parts.test.take(np.sort(rows).astype(np.int64)))
    with output.progress() as show:
        stages = Stages(dataset, RunConfig(name="beauty", seed=seed), None, show)
        vectors = stages.vectors
    return dataset, parts, exposed(parts.train, vectors, max_contexts=20_000, seed=seed)


def mind() -> tuple[Dataset, Split, Preferences]:
    """The impressions as sequences, parted by user."""
    folder = real_data("mind_sample")
    table = pl.read_parquet(folder / "impressions.parquet")
    table = table.filter(pl.col("history").list.len() > 0)
    shown = set(table["candidates"].explode().unique().to_list())
    counts = table["history"].explode().value_counts()
    often = set(counts.filter(pl.col("count") >= 3)["history"].to_list())
    item_ids = as_ids(sorted(shown | often))
    titles = pl.read_parquet(folder / "items.parquet").select("item_id", "title")
    attributes = pl.DataFrame({"item_id": item_ids.tolist()}).join(titles, on="item_id", how="left")
    items = Items(item_ids, attributes)
    known = set(item_ids.tolist())
    people = sorted(table["user_id"].unique().to_list())
    order = np.random.default_rng(0).permutation(len(people))
    part_of = {people[p]: place / len(people) for place, p in enumerate(order)}
    whole, train, ask, questions = [], [], [], []
    for row in table.iter_rows(named=True):
        past = [items.row_of[i] for i in row["history"] if i in known][-50:]
        clicked = [c for c, n in zip(row["candidates"], row["clicks"], strict=True) if n]
        if not past or not clicked:
            continue
        target, place = items.row_of[clicked[0]], part_of[row["user_id"]]
        whole.append([*past, target])
        train.append([*past, target] if place < 0.7 else past)
        ask.append(0 if place < 0.7 else 1 if place < 0.8 else 2)
        questions.append((past, target, row["impression_id"]))
    sequences = Histories.from_lists(whole)
    users_E = np.repeat(np.arange(len(whole)), sequences.lengths)
    interactions = Interactions(
        user_ids=as_ids(range(len(whole))),
        users_E=users_E,
        items_E=sequences.items_E,
        times_E=np.arange(len(users_E)) - sequences.offsets[users_E],
        has_clock=False,
    )
    dataset = Dataset("mind", items, interactions, (), content_hash(items, interactions))

    def examples(part: int) -> Examples:
        rows = [i for i, asked in enumerate(ask) if asked == part]
        return Examples(
            np.array(rows, dtype=np.int64),
            Histories.from_lists([questions[i][0] for i in rows]),
            np.array([questions[i][1] for i in rows], dtype=np.int64),
        )

    parts = Split(
        train=Histories.from_lists(train), valid=examples(1), test=examples(2),
        num_items=len(items), rule="users parted at random: 70 % train, 10 % valid, 20 % test",
    )  # fmt: skip
    learnt = {question[2] for question, asked in zip(questions, ask, strict=True) if not asked}
    chosen = table.filter(pl.col("impression_id").is_in(list(learnt))).drop("user_id")
    preferences, notes = from_impressions(chosen, items)
    print("; ".join(notes))
    return dataset, parts, preferences


if __name__ == "__main__":
    main()
