"""Time the decoding-free head, `lite`, against beam search of `causal` on an equal backbone.

    python benchmarks/lite_latency.py [--head tied] [--single 500] [--repeats 5] [--threads 2]

Both have one block of width 128 and read the same histories; the workload is that of decode.py. One
user: from the catalogue rows of a history to `Candidates`; for `lite` that is scores of the whole
catalogue and their top 10. All three (lite, beam 20, beam 50) answer a user before the next one
comes, in an order that rotates, so that none of them gets the quiet moments. Every user is answered
once a turn; the ratio `versus.self.lite.latency_over_beam<W>` is the median over turns of p50 by
p50, low and high are the least and the greatest of the turns. It is below 1 where `lite` is faster.
Weights are random: they hardly change the time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from decode import K, beauty, finish, rows_of, search, seconds_of

from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.generators.causal import Causal, CausalConfig
from sidrec.recommender import top_items
from sidrec.scorers.lite import Lite, LiteConfig
from sidrec.types import Candidates, Histories, HistoryBatch

BEAMS = (20, 50)
WARM_UP = 20  # users answered before any time counts

Systems = Mapping[str, Callable[[Histories], Candidates]]


def answer(model: Lite, histories: Histories) -> Candidates:
    """The best `K` items of each user, by a score of every item."""
    batch = HistoryBatch.from_histories(histories, max_length=model.max_length)
    return top_items(model.scores(batch), K)


def in_turns(systems: Systems, blocks: list[Histories]) -> dict[str, list[float]]:
    """Seconds of each block for each system, one block at a time, the first system rotating."""
    names, seconds = list(systems), {name: [] for name in systems}
    for place, block in enumerate(blocks):
        first = place % len(names)
        for name in (*names[first:], *names[:first]):
            seconds[name].append(seconds_of(systems[name], block))
    return seconds


def assert_batches_change_nothing(model: Lite, users: Histories) -> None:
    """A user alone gets the scores it gets among others."""
    together = answer(model, users).scores_BK
    for user in range(len(users)):
        alone = answer(model, rows_of(users, user, user + 1)).scores_BK
        np.testing.assert_allclose(alone[0], together[user], atol=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head", choices=["tied", "free"], default="tied")
    parser.add_argument("--users", type=int, default=4096, help="users of a batch pass")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--single", type=int, default=500, help="users timed one at a time")
    parser.add_argument("--repeats", type=int, default=5, help="turns of both kinds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dry", action="store_true", help="print, write no file")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    work = beauty()
    lite = Lite.build(work.context, LiteConfig(head=chosen.head)).eval()
    causal = Causal.build(work.context, CausalConfig()).eval()
    for field in ("width", "num_layers", "num_heads", "hidden_multiplier", "max_length"):
        assert getattr(lite.config, field) == getattr(causal.config, field), field
    index = PrefixIndex.build(work.context.semantic_ids)
    assert_batches_change_nothing(lite, rows_of(work.histories, 0, 16))
    systems: dict[str, Callable[[Histories], Candidates]] = {
        "lite": partial(answer, lite),
        **{
            f"decode.causal.beam{beam}": partial(search, causal, index, beam=beam) for beam in BEAMS
        },
    }
    alone = [rows_of(work.histories, u, u + 1) for u in range(chosen.single + WARM_UP)]
    batches = [
        rows_of(work.histories, at, min(at + chosen.batch_size, chosen.users))
        for at in range(0, chosen.users, chosen.batch_size)
    ]
    in_turns(systems, alone[:WARM_UP])
    single = [in_turns(systems, alone[WARM_UP:]) for _ in range(chosen.repeats)]
    together = [in_turns(systems, batches) for _ in range(chosen.repeats)]
    figures: dict[str, dict[str, Any]] = {}
    for name in systems:
        milliseconds = 1e3 * np.concatenate([turn[name] for turn in single])
        for quantile in (50, 99):
            figures[f"{name}.one_user.p{quantile}"] = {
                "value": round(float(np.percentile(milliseconds, quantile)), 3),
                "unit": "ms",
                "n": len(milliseconds),
            }
        num_users = sum(len(batch) for batch in batches)
        rates = [num_users / sum(turn[name]) for turn in together]
        figures[f"{name}.batch.users_per_second"] = {
            **middle(rates, 1), "unit": "users/s", "n": num_users,
            "batch_size": chosen.batch_size,
        }  # fmt: skip
    for beam in BEAMS:
        peer = f"decode.causal.beam{beam}"
        ratios = [float(np.median(turn["lite"]) / np.median(turn[peer])) for turn in single]
        figures[f"versus.self.lite.latency_over_beam{beam}"] = {
            **middle(ratios, 4), "unit": "x", "n": len(alone[WARM_UP:]) * chosen.repeats,
            "lite_ms": figures["lite.one_user.p50"]["value"],
            "beam_ms": figures[f"{peer}.one_user.p50"]["value"],
        }  # fmt: skip
    notes = (
        f"{work.source}, random weights, {chosen.head} head, top {K}; systems take turns, user by "
        "user; low and high are the least and the greatest turn"
    )
    finish("lite_latency", figures, notes, chosen.dry)


def middle(values: list[float], digits: int) -> dict[str, float]:
    """Median, least and greatest, as a figure holds them."""
    found = {"value": float(np.median(values)), "low": min(values), "high": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


if __name__ == "__main__":
    main()
