"""The compiled search against PyTorch's, on a bundle: the same items, and how much sooner.

    python benchmarks/compiled.py runs/beauty/bundle [--users 4096] [--single 500] [--turns 5]

Both answer from catalogue rows of test histories to `Candidates`, top 10, the history excluded. For
times a batch is answered by both before the next one comes, each first every other time; the ratio
`compiled.times_faster.beam<W>.batch<B>.{wall,cpu}` is the median over turns of p50 by p50, low and
high are the least and the greatest of the turns. `cpu` is processor time of the asking thread, all
there is with `--threads 1`: on a busy machine it says more than the time on the wall. Lists are
compared for `--users` users in batches of 32, with and without a filter that leaves half of the
items:

    compiled.lists.<rule>.beam<W>.{same,reordered,other}
    compiled.lists.<rule>.beam<W>.{score_difference,tie_gap}

`reordered` lists hold the same items in another order, `other` lists other items; `tie_gap` is the
largest difference between PyTorch's scores of two items that stand in each other's place, 0 where
no list differs. `compiled.start` is what opening the compiled search adds to a start.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import write

import sidrec
from sidrec.data import load_named, split
from sidrec.recommender import Recommender
from sidrec.types import Candidates, Histories, Ints

K = 10
BEAMS, BATCHES = (20, 50), (1, 8)
COMPARED_BATCH = 32
WARM_UP = 20  # batches answered before any time counts

Figures = dict[str, dict[str, Any]]
Ask = Callable[[list[Ints]], Candidates]


def asked(recommender: Recommender, keep_N: Any = None) -> Ask:
    """The generator's answer to histories, which are excluded."""
    system = recommender.generator.name
    return lambda histories: recommender.candidates(
        Histories.from_lists(histories), K, system=system, exclude=histories, keep_N=keep_N
    )


def test_histories(recommender: Recommender, dataset: str) -> list[Ints]:
    """Histories of the test questions of a dataset, as rows of the recommender's catalogue."""
    loaded = load_named(dataset)
    examples = split(loaded, "leave_one_out").test
    rows_N = recommender.items.rows([str(item) for item in loaded.items.item_ids])
    return [rows_N[examples.histories[q]] for q in range(len(examples))]


def compared(eager: Ask, compiled: Ask, histories: list[Ints]) -> dict[str, dict[str, Any]]:
    """Shares of lists that are the same, reordered, other; how far scores and ties lie apart."""
    same = reordered = other = 0
    difference = gap = 0.0
    for start in range(0, len(histories), COMPARED_BATCH):
        block = histories[start : start + COMPARED_BATCH]
        wanted, found = eager(block), compiled(block)
        difference = max(difference, float(np.abs(wanted.scores_BK - found.scores_BK).max()))
        for rows, others, scores in zip(
            wanted.rows_BK, found.rows_BK, wanted.scores_BK, strict=True
        ):
            if (rows == others).all():
                same += 1
            elif set(rows) == set(others):
                reordered += 1
                score_of = dict(zip(rows.tolist(), scores.tolist(), strict=True))
                moved = np.array([score_of[row] for row in others.tolist()])
                gap = max(gap, float(np.abs(moved - scores).max()))
            else:
                other += 1
    n = len(histories)
    shares = {"same": same, "reordered": reordered, "other": other}
    return {
        **{
            name: {"value": c / n, "count": c, "unit": "share", "n": n}
            for name, c in shares.items()
        },
        "score_difference": {"value": difference, "unit": "nats, largest", "n": n},
        "tie_gap": {"value": gap, "unit": "nats, largest", "n": reordered},
    }


CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}


def in_turns(asks: dict[str, Ask], batches: list[list[Ints]]) -> dict[tuple[str, str], list[float]]:
    """Seconds of each batch by each way and clock, the first way alternating."""
    names = list(asks)
    seconds = {(name, clock): [] for name in names for clock in CLOCKS}
    for place, batch in enumerate(batches):
        for name in names if place % 2 else names[::-1]:
            started = {clock: now() for clock, now in CLOCKS.items()}
            asks[name](batch)
            for clock, now in CLOCKS.items():
                seconds[name, clock].append(now() - started[clock])
    return seconds


def timed(asks: dict[str, Ask], batches: list[list[Ints]], turns: int, name: str) -> Figures:
    """p50 and p99 of each way, and their ratio, by both clocks."""
    in_turns(asks, batches[:WARM_UP])
    found = [in_turns(asks, batches) for _ in range(turns)]
    figures: Figures = {}
    for clock in CLOCKS:
        for way in asks:
            milliseconds = 1e3 * np.concatenate([turn[way, clock] for turn in found])
            for quantile in (50, 99):
                figures[f"compiled.{way}.{name}.{clock}.p{quantile}"] = {
                    "value": round(float(np.percentile(milliseconds, quantile)), 3),
                    "unit": "ms",
                    "n": len(milliseconds),
                }
        ratios = [
            float(np.median(turn["eager", clock]) / np.median(turn["compiled", clock]))
            for turn in found
        ]
        figures[f"compiled.times_faster.{name}.{clock}"] = {
            "value": round(float(np.median(ratios)), 3),
            "low": round(min(ratios), 3),
            "high": round(max(ratios), 3),
            "unit": "x",
            "n": len(batches) * turns,
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--dataset", default="amazon_beauty")
    parser.add_argument("--users", type=int, default=4096, help="users whose lists are compared")
    parser.add_argument("--single", type=int, default=500, help="batches that are timed")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--dry", action="store_true", help="print, write no file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    eager = sidrec.load(options.bundle, device="cpu")
    histories = test_histories(eager, options.dataset)
    start = time.perf_counter()
    compiled = eager.with_compiled()
    seconds = time.perf_counter() - start
    figures: Figures = {"compiled.start": {"value": round(seconds, 3), "unit": "s"}}
    half_N = np.random.default_rng(0).random(len(eager.items)) < 0.5
    for beam in BEAMS:
        pair = {
            "eager": replace(eager, beam_width=beam),
            "compiled": replace(compiled, beam_width=beam),
        }
        for rule, keep_N in (("unseen", None), ("filtered", half_N)):
            ways = [asked(recommender, keep_N) for recommender in pair.values()]
            for name, figure in compared(*ways, histories[: options.users]).items():
                figures[f"compiled.lists.{rule}.beam{beam}.{name}"] = figure
        asks = {name: asked(recommender) for name, recommender in pair.items()}
        for size in BATCHES:
            batches = [
                histories[at * size : (at + 1) * size]
                for at in range(max(options.single // size, 1))
            ]
            figures |= timed(asks, batches, options.turns, f"beam{beam}.batch{size}")
    notes = (
        f"{options.dataset}, bundle {eager.content_hash[:12] if eager.content_hash else '?'}, "
        f"{len(eager.items)} items, top {K}, PyTorch on {options.threads} thread, ONNX Runtime on "
        "one; both ways take turns, batch by batch"
    )
    if options.dry:
        for name, figure in sorted(figures.items()):
            print(name, figure)
        return
    command = f"python benchmarks/compiled.py bundle --users {options.users}"
    command += f" --single {options.single} --turns {options.turns}"
    print(write("compiled", figures, seeds=[0], command=command, folder="speed", notes=notes))


if __name__ == "__main__":
    main()
