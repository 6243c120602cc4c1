"""Speed of the decoding index at one million items: build, insert, delete, mask + select.

    python benchmarks/index.py [--save]

A step is everything between the logits of one level and the next beam: mask, log-softmax, sum,
top-k, transition, for one request and 50 beams; the slowest level is the figure.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sidrec.decoding.beam import extend
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.types import SemanticIds, as_ids

NUM_ITEMS, NUM_CODES, BEAM_WIDTH, NUM_CHANGED, SEED = 1_000_000, (256, 256, 256), 50, 10_000, 0


def timed(act: Callable[[], object], repeats: int, warm_up: int) -> dict[str, float]:
    for _ in range(warm_up):
        act()
    gc.collect()
    spent = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        act()
        spent.append((time.perf_counter_ns() - start) / 1e6)
    median, p99, low = np.quantile(spent, [0.5, 0.99, 0.0])
    return {
        "value": float(median), "p99": float(p99), "best": float(low), "unit": "ms", "n": repeats,
        "load_1m": os.getloadavg()[0],
    }  # fmt: skip


def measure() -> dict[str, dict[str, object]]:
    random = np.random.default_rng(SEED)
    codes = random.integers(0, 256, (NUM_ITEMS, 3))
    ids = SemanticIds(as_ids(range(NUM_ITEMS)), codes, NUM_CODES)
    index = PrefixIndex.build(ids)
    new_rows = np.arange(NUM_ITEMS, NUM_ITEMS + NUM_CHANGED)
    new_codes = random.integers(0, 256, (NUM_CHANGED, 3))
    gone = random.choice(NUM_ITEMS, NUM_CHANGED, replace=False)
    figures: dict[str, dict[str, object]] = {
        "index.build_1m": {**timed(lambda: PrefixIndex.build(ids), 7, 2)},
        "index.insert_10k": {**timed(lambda: index.insert(new_rows, new_codes), 15, 2)},
        "index.insert_1": {**timed(lambda: index.insert(new_rows[:1], new_codes[:1]), 15, 2)},
        "index.delete_10k": {**timed(lambda: index.delete(gone), 15, 2)},
        "index.bytes_1m": {"value": index.nbytes / 1e6, "unit": "MB"},
    }
    with torch.inference_mode():
        changed = index.insert(new_rows, new_codes)
        for name, snapshot in (("step_1m_beam50", index), ("step_1m_beam50.after_insert", changed)):
            figures[f"index.{name}"] = max(steps(snapshot), key=lambda figure: figure["value"])
    return figures


def steps(index: PrefixIndex) -> list[dict[str, object]]:
    """One figure a level."""
    torch.manual_seed(SEED)
    nodes_BW, scores_BW, found = index.root(1), torch.zeros(1, 1), []
    for level in range(index.num_levels):
        logits_BWV = torch.randn(1, nodes_BW.shape[1], index.widths[level])
        step = (index, level, nodes_BW, logits_BWV, scores_BW, BEAM_WIDTH)
        figure = timed(lambda step=step: extend(*step), 5000, 200)
        found.append({**figure, "level": level})
        scores_BW, _, _, nodes_BW = extend(*step)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write benchmarks/speed/index_*.json")
    save = parser.parse_args().save
    torch.set_num_threads(1)
    figures = measure()
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    if save:
        sys.path.insert(0, str(Path(__file__).parent))
        from figures import write

        write("index", figures, seeds=[SEED], command="benchmarks/index.py --save", folder="speed")


if __name__ == "__main__":
    main()
