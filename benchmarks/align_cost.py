"""What a step of alignment costs: packing against separate passes, objectives, and the reference.

    python benchmarks/align_cost.py

On an untrained default generator over the catalogue of Beauty (costs do not depend on weights).
`align.packing.speedup`: forward and backward of 17 IDs a context one by one, over all in one pass;
medians of interleaved rounds. `align.<objective>.{contexts,steps}_per_second`: whole steps of 64
contexts. `align.memory.{without,with}_reference`: bytes of parameters held, with optimiser, and
what a reference adds. `align.memory.peak.<objective>[_with_reference]`: what three steps take at
their peak above what was held before the aligner was made, each in a process of its own; SimPO and
RAD-DPO need no reference and are given one to compare. Intervals are least and greatest of rounds.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from figures import write

from sidrec import config, methods
from sidrec.align_config import OBJECTIVE, REWARD
from sidrec.alignment.aligner import Aligner, StepConfig
from sidrec.alignment.contexts import ContextBatches
from sidrec.alignment.log_probs import packed_log_probs
from sidrec.alignment.preferences import exposed
from sidrec.alignment.rewards.mixture import Mixture
from sidrec.alignment.rollouts import RolloutConfig
from sidrec.alignment.values import AlignmentContext
from sidrec.data import load_named
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.pipeline import Stages
from sidrec.recipe import DataConfig, RunConfig

CANDIDATES, CONTEXTS = 17, 64
WHAT = ("cost", "memory")
PEAKS = (
    ("simpo", False), ("simpo", True), ("rad_dpo", False), ("rad_dpo", True), ("dpo", True),
    ("grpo", True), ("a2po", True), ("adagrpo", False),
)  # fmt: skip
"""Objectives, and whether a reference is held."""
OBJECTIVES = ("sft", "dpo", "s_dpo", "simpo", "rad_dpo", "grpo", "adagrpo", "a2po", "ppo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="amazon_beauty")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    arguments = parser.parse_args()
    settings = RunConfig(name="cost", data=DataConfig(name=arguments.data))
    stages = Stages(load_named(arguments.data), settings, None, lambda event: None)
    model = methods.resolve("generators", "causal").build(stages.context, config.with_seed(
        settings.generator.config, 0))  # fmt: skip
    index = PrefixIndex.build(stages.ids)
    preferences = exposed(stages.split.train, stages.vectors, max_contexts=1024)
    batches = ContextBatches(preferences, model.max_length, CONTEXTS)
    context = AlignmentContext(
        stages.dataset.items, stages.vectors, stages.ids, stages.split.train, preferences
    )
    rewards = Mixture.build(
        context, {name: config.method(REWARD, name).config for name in ("prefix", "rank_aware")}
    )

    def aligner_of(name: str, step: StepConfig) -> Aligner:
        objective = methods.resolve("objectives", name)(config.method(OBJECTIVE, name).config)
        return Aligner(
            copy.deepcopy(model), objective, index=index,
            counts_N=torch.from_numpy(stages.split.train_counts_N), config=step,
            rollouts=RolloutConfig(), rewards=rewards,
        )  # fmt: skip

    for what in arguments.what:
        if what == "cost":
            figures = costs(aligner_of, batches, arguments.rounds)
            figures["align.packing.speedup"] = packing(model, index, batches, arguments.rounds)
        else:
            figures = memory(aligner_of, batches)
        path = write(
            f"align_{what}", figures, seeds=[0], command=" ".join(["python", *sys.argv]),
            folder="speed",
            notes="peaks are of resident memory; memory without peak: parameters, gradients and "
            "two moments, and the reference's parameters",
        )  # fmt: skip
        print(f"wrote {path.name}")


def costs(
    aligner_of: Callable[[str, StepConfig], Aligner], batches: ContextBatches, rounds: int
) -> dict[str, dict[str, object]]:
    """Steps a second of each objective."""
    figures: dict[str, dict[str, object]] = {}
    for name in OBJECTIVES:
        seconds = sorted(steps(aligner_of(name, StepConfig(track_kl=False)), batches, rounds))
        rates = [1 / statistics.median(seconds), 1 / seconds[-1], 1 / seconds[0]]
        for unit, factor in (("contexts", CONTEXTS), ("steps", 1)):
            value, low, high = (float(f"{factor * rate:.4g}") for rate in rates)
            figures[f"align.{name}.{unit}_per_second"] = {
                "value": value, "low": low, "high": high, "unit": f"{unit}/s", "n": rounds,
            }  # fmt: skip
        print(name, figures[f"align.{name}.contexts_per_second"]["value"], flush=True)
    return figures


def memory(
    aligner_of: Callable[[str, StepConfig], Aligner], batches: ContextBatches
) -> dict[str, dict[str, object]]:
    """What is held, and what three steps take, with and without a reference."""
    policy = aligner_of("simpo", StepConfig(track_kl=False)).policy
    held = sum(p.numel() * p.element_size() for p in policy.parameters())
    figures: dict[str, dict[str, object]] = {
        f"align.memory.{name}_reference": {"value": round(n * held / 2**20, 1), "unit": "MiB"}
        for name, n in (("without", 4), ("with", 5))
    }
    for name, reference in PEAKS:

        def run(name: str = name, reference: bool = reference) -> None:
            steps(aligner_of(name, StepConfig(track_kl=reference)), batches, 3)

        peaks = sorted(peak_mib(run) for _ in range(3))
        key = f"align.memory.peak.{name}{'_with_reference' if reference else ''}"
        figures[key] = {
            "value": peaks[1], "low": peaks[0], "high": peaks[2], "unit": "MiB", "n": 3,
        }  # fmt: skip
        print(key, peaks, flush=True)
    return figures


def peak_mib(run: Callable[[], None]) -> float:
    """Resident MiB that `run` takes at its peak, in a forked process (Linux)."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
            before = memory_kib("VmRSS")
            run()
            os.write(writing, str(memory_kib("VmHWM") - before).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    if os.waitpid(child, 0)[1] or not said:
        raise RuntimeError("the process whose memory is measured failed")
    return round(int(said) / 1024, 1)


def memory_kib(name: str) -> int:
    """A figure of this process's memory, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def packing(model: torch.nn.Module, index: PrefixIndex, batches: ContextBatches, rounds: int):
    """Seconds of separate passes over those of a packed one, rounds interleaved."""
    batch = batches.build(np.arange(CONTEXTS)).histories
    rows_BK = torch.randint(index.num_rows, (CONTEXTS, CANDIDATES))
    codes_BKL = index.codes(rows_BK)

    def packed() -> None:
        learn(lambda: packed_log_probs(model, batch, codes_BKL, index, renormalise=True)[0].sum())

    def separate() -> None:
        learn(
            lambda: sum(
                packed_log_probs(
                    model, batch, codes_BKL[:, k : k + 1], index, renormalise=True
                )[0].sum()
                for k in range(CANDIDATES)
            )
        )  # fmt: skip

    def learn(total: Callable[[], object]) -> None:
        model.zero_grad()
        total().backward()  # type: ignore[attr-defined]

    ratios = []
    for one in range(rounds + 1):
        times = []
        for run in (packed, separate):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        if one:
            ratios.append(times[1] / times[0])
    print("packing", [round(r, 2) for r in ratios], flush=True)
    return {
        "value": round(statistics.median(ratios), 2), "low": round(min(ratios), 2),
        "high": round(max(ratios), 2), "unit": "x", "n": rounds,
    }  # fmt: skip


def steps(aligner: Aligner, batches: ContextBatches, rounds: int) -> list[float]:
    """Seconds of whole steps: rollouts, rewards, loss, backward, optimiser."""
    optimiser = torch.optim.AdamW(aligner.parameters(), lr=1e-6, fused=True)
    aligner.train()
    random, seconds = torch.Generator().manual_seed(0), []
    for windows in batches.epoch(0, 0)[: rounds + 1]:
        began = time.perf_counter()
        batch = aligner.augment(batches.build(windows), random)
        optimiser.zero_grad()
        aligner.loss(batch)[0].backward()
        optimiser.step()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


if __name__ == "__main__":
    main()
