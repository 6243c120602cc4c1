"""Time `causal`, the default generator, against TIGER of cornac, the best pip-installable peer.

    python benchmarks/versus_cornac.py --cornac-python VENV/bin/python [--rounds 6] [--threads 2]

The peer runs in its own environment (`pip install torch cornac==3.0.1 transformers`) and process,
with its default (the paper's) sizes, batch 256, residual k-means on the same item vectors and its
constrained beam search. It stops after every training step and every user, so that the two take
turns; the first turn of each warms up and is dropped. Training: targets of whole optimiser steps a
second. Decoding: from a history to a score of the beam's items. The models differ, so no equal
results can be asked; each side must return a full beam of different items.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

BEAM = 20


# The peer's side: runs in its own environment, without sidrec --------------------------------


def peer(folder: Path, threads: int, batch_size: int) -> None:
    """Answer each line on stdin, `step` or `user`, with one line of JSON on stdout."""
    import torch
    from cornac.data import FeatureModality
    from cornac.eval_methods import NextItemEvaluation
    from cornac.models import TIGER
    from cornac.models.tiger import recom_tiger

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the library's own prints must not mix with the answers
    torch.set_num_threads(threads)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    stored = np.load(folder / "workload.npz")
    sessions = np.split(stored["train_items"], stored["train_offsets"][1:-1])
    features, num_items = stored["vectors"], len(stored["vectors"])
    events = [(u, int(i), t) for u, items in enumerate(sessions) for t, i in enumerate(items)]
    unseen = np.setdiff1d(np.arange(num_items), stored["train_items"])
    events += [(len(sessions) + n, int(item), 0) for n, item in enumerate(unseen)]  # no targets
    method = NextItemEvaluation.from_splits(
        train_data=events,
        test_data=events[:10],
        fmt="SIT",
        item_feature=FeatureModality(features=features, ids=list(range(num_items))),
    )
    plain_batches = recom_tiger.session_seq_iter

    def batches_in_turns(*arguments: Any, **settings: Any) -> Any:
        answer(ready=True)
        for batch in plain_batches(*arguments, **settings):
            if sys.stdin.readline().strip() != "step":
                return  # training is over
            start = time.perf_counter()
            yield batch  # the library makes its step before it asks for the next batch
            answer(seconds=time.perf_counter() - start, count=len(batch[1]))

    recom_tiger.session_seq_iter = batches_in_turns
    model = TIGER(
        tokenizer="rkmeans", n_epochs=1, batch_size=batch_size, n_beams=BEAM, device="cpu", seed=0
    )
    model.fit(method.train_set)
    row_of = method.global_iid_map
    histories = np.split(stored["test_items"], stored["test_offsets"][1:-1])
    users = iter([[row_of[int(item)] for item in items] for items in histories])
    answer(parameters=sum(p.numel() for p in model.model.parameters()))
    while sys.stdin.readline().strip() == "user":
        history = next(users)
        start = time.perf_counter()
        scores = model.score(0, history)
        answer(seconds=time.perf_counter() - start, count=int((scores > -1e9).sum()))


# Our side ------------------------------------------------------------------------------------


class Peer:
    """The other process; `ask` gives one turn to it."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """The next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the peer ended early; its message stands above")
        return json.loads(line)


class Enough(Exception):
    """Ends our training loop from inside its progress report."""


def train_in_turns(
    work: Any, other: Peer, rounds: int, peer_steps: int, our_steps: int
) -> tuple[list[float], list[float]]:
    """Targets a second of each round, ours and the peer's."""
    import torch

    from sidrec.generators.causal import Causal, CausalConfig
    from sidrec.recipe import TRAINING
    from sidrec.training import train

    model = Causal.build(work.context, CausalConfig())
    plain_loss = model.loss
    targets = steps = 0
    started = time.perf_counter()
    ours: list[float] = []
    theirs: list[float] = []

    def counted_loss(batch: Any) -> Any:
        nonlocal targets
        targets += int((batch.targets_BT >= 0).sum())
        return plain_loss(batch)

    def turn(_: Any) -> None:
        nonlocal targets, steps, started
        steps += 1
        if steps < our_steps:
            return
        ours.append(targets / (time.perf_counter() - started))
        asked = [other.ask("step") for _ in range(peer_steps)]
        theirs.append(sum(a["count"] for a in asked) / sum(a["seconds"] for a in asked))
        if len(ours) == rounds:
            raise Enough
        targets = steps = 0
        started = time.perf_counter()

    model.loss = counted_loss
    torch.manual_seed(0)
    try:
        train(model, work.context.train, TRAINING["causal"], validate=None, device="cpu",
              on_event=turn)  # fmt: skip
    except Enough:
        return ours[1:], theirs[1:]
    raise SystemExit("training ended before the last round; ask for fewer --rounds")


def decode_in_turns(work: Any, other: Peer, num_users: int) -> tuple[list[float], list[float]]:
    """Seconds of each user, ours and the peer's."""
    from decode import rows_of, seconds_of

    from sidrec.decoding.beam import beam_search
    from sidrec.decoding.prefix_index import PrefixIndex
    from sidrec.generators.causal import Causal, CausalConfig
    from sidrec.types import HistoryBatch

    model = Causal.build(work.context, CausalConfig()).eval()
    index = PrefixIndex.build(work.context.semantic_ids)

    def search(user: Any) -> Any:
        batch = HistoryBatch.from_histories(user, max_length=model.max_length)
        return beam_search(model, batch, index, k=BEAM, beam_width=BEAM)

    ours, theirs = [], []
    for number in range(num_users):
        user = rows_of(work.histories, number, number + 1)
        found = search(user).rows_BK[0]
        assert len(set(found.tolist()) - {-1}) == BEAM, "sidrec returned a short beam"
        ours.append(float(np.median([seconds_of(search, user) for _ in range(5)])))
        answer = other.ask("user")
        assert answer["count"] == BEAM, "cornac returned a short beam"
        theirs.append(answer["seconds"])
    return ours[2:], theirs[2:]


def ratio(name: str, unit: str, ours: list[float], theirs: list[float], faster: int) -> Any:
    """A figure of how many times faster we are; `faster` is 1 for speeds, −1 for times."""
    scale = 1.0 if faster > 0 else 1e3
    ratios = (np.array(ours) / np.array(theirs)) ** faster
    return {
        name: {
            "value": round(float((np.median(ours) / np.median(theirs)) ** faster), 1),
            "unit": "x",
            "low": round(float(ratios.min()), 1),
            "high": round(float(ratios.max()), 1),
            "n": len(ours),
            f"sidrec_{unit}": round(scale * float(np.median(ours)), 2),
            f"cornac_{unit}": round(scale * float(np.median(theirs)), 2),
        }
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cornac-python", help="python of an environment that holds cornac")
    parser.add_argument("--rounds", type=int, default=6, help="turns of training, one warms up")
    parser.add_argument("--peer-steps", type=int, default=1, help="the peer's steps a turn")
    parser.add_argument("--our-steps", type=int, default=40, help="our steps a turn")
    parser.add_argument("--users", type=int, default=22, help="users decoded, two warm up")
    parser.add_argument("--batch-size", type=int, default=256, help="the peer's targets a step")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dry", action="store_true", help="print, write no file")
    parser.add_argument("--peer-folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peer_folder:
        return peer(chosen.peer_folder, chosen.threads, chosen.batch_size)
    if not chosen.cornac_python:
        parser.error("--cornac-python is needed; see --help")
    import torch
    from decode import beauty, finish

    torch.set_num_threads(chosen.threads)
    work = beauty()
    train, test = work.context.train, work.histories.take(np.arange(chosen.users))
    needed = chosen.batch_size * (chosen.rounds * chosen.peer_steps + 2)
    order = np.random.default_rng(0).permutation(len(train))
    targets = np.cumsum(np.maximum(train.lengths[order] - 1, 0))
    some = train.take(order[: int(np.searchsorted(targets, needed)) + 1])
    with tempfile.TemporaryDirectory() as folder:
        np.savez(
            Path(folder) / "workload.npz",
            vectors=work.context.vectors.vectors,
            train_items=some.items_E,
            train_offsets=some.offsets,
            test_items=test.items_E,
            test_offsets=test.offsets,
        )
        script = str(Path(__file__).resolve())
        other = Peer(
            [chosen.cornac_python, script, "--peer-folder", folder, "--threads",
             str(chosen.threads), "--batch-size", str(chosen.batch_size)]
        )  # fmt: skip
        other.hear()  # it has read its data and made its IDs
        speeds = train_in_turns(work, other, chosen.rounds, chosen.peer_steps, chosen.our_steps)
        size = other.ask("no further step")["parameters"]
        times = decode_in_turns(work, other, chosen.users)
        other.process.communicate()
    figures = ratio(
        "versus.cornac.tiger.train_targets_per_second", "targets_per_second", *speeds, 1
    ) | ratio("versus.cornac.tiger.beam20_latency", "ms", *times, -1)
    notes = (
        f"{work.source}; sidrec causal with its default training against cornac 3.0.1 TIGER "
        f"({size:,} parameters, batch {chosen.batch_size}), in turns; medians, low and high over "
        "rounds and users: "
        + ", ".join(f"{k} {v}" for f in figures.values() for k, v in f.items() if "_" in k)
    )
    finish("versus_cornac", figures, notes, chosen.dry)


if __name__ == "__main__":
    main()
