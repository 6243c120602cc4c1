"""Every generator at one budget: accuracy, what it costs to train and to ask.

    python benchmarks/generators.py --data amazon_beauty --seconds 300 --only causal liger
    python benchmarks/generators.py --data amazon_beauty --latency

Each run of `generator_rows.RUNS` embeds as the default recipe does, makes PLUM's IDs (unless its
method has IDs of its own), then trains its generator, and each scorer it needs, for `--seconds` of
processor time, validation included; choices are made on validation, the test part is read once.
Finished runs are kept under `--runs` by their settings. `--latency` loads those of these seconds
and times all rows in turn, one user at a time and in batches: run it alone on an idle machine.
Every call writes all that is there of these seconds.
Figures: `<data>.<row>.[<stratum>.]{recall,ndcg}@{5,10}`, `no_events` being targets without a
training event, `<data>.<row>.coverage@10`, `<data>.<row>.{parameters,active_parameters}`,
`<data>.<row>.train_seconds`, paired differences
`<data>.<row>_minus_causal_same_budget.[<stratum>.]<metric>`, and with `--latency`
`<data>.<row>.beam<width>.{one_user.p50,batch.users_per_second}`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import kept_rows
import numpy as np
import torch
from figures import as_figure, write
from generator_rows import BASELINE, RUNS, GeneratorRun
from paired_rows import METRICS, by_group, differences, strata_of

import sidrec
from sidrec import config
from sidrec.checkpoints import load_newest
from sidrec.cli import output
from sidrec.config import Method
from sidrec.data import load_named, split
from sidrec.evaluation import Report, average_seeds
from sidrec.fitted import Fitted
from sidrec.mixture_of_experts import count_parameters
from sidrec.pipeline import evaluate_systems, fit
from sidrec.recipe import (
    COLLISIONS,
    GENERATOR,
    RETRIEVER,
    SCORER,
    TOKENIZER,
    HybridConfig,
    RunConfig,
    default_config,
)
from sidrec.recommender import Recommender
from sidrec.types import Dataset, Split

BEAMS = (20, 50)
K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="amazon_beauty")
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--seconds", type=float, default=300, help="of training, processor time")
    parser.add_argument("--runs", type=Path, default=Path("runs/generators"))
    parser.add_argument("--latency", action="store_true", help="time the finished runs")
    parser.add_argument("--users", type=int, default=300, help="timed one at a time")
    arguments = parser.parse_args()
    dataset = load_named(arguments.data)
    parts = split(dataset, "leave_one_out")
    if arguments.latency:
        folder = arguments.runs / f"{arguments.data}-seed0"
        kept = finished(dataset, folder, arguments.seconds)
        if not kept:
            parser.error(f"no run of {arguments.seconds:g} seconds is finished in {folder}")
        times = latencies(dataset.name, parts, kept, arguments.users)
        command = " ".join(["python", *sys.argv])
        path = write(f"generators_{arguments.data}", times, seeds=[0], command=command,
                     folder="speed", notes=f"{torch.get_num_threads()} threads")  # fmt: skip
        print(f"wrote {path.name}")
        return
    for seed in arguments.seeds:
        folder = arguments.runs / f"{arguments.data}-seed{seed}"
        for name in arguments.only:
            settings = settings_for(dataset, RUNS[name], seed, arguments.seconds)
            kept = kept_rows.folder_of(folder, name, settings)
            if not (kept / "rows.json").exists():
                measure(dataset, parts, settings, RUNS[name], folder, kept)
    figures, seeds = collect(dataset, parts, arguments.runs, arguments.seconds)
    path = write(
        f"generators_{arguments.data}",
        figures,
        seeds=seeds,
        command=" ".join(["python", *sys.argv]),
        notes=f"{arguments.seconds:.0f} s of processor time to train each model",
    )
    print(f"wrote {path.name}")


def settings_for(dataset: Dataset, chosen: GeneratorRun, seed: int, seconds: float) -> RunConfig:
    """The default recipe with this generator, its IDs and the systems it needs."""
    settings = default_config(dataset)
    return replace(
        settings,
        seed=seed,
        tokenizer=config.method(TOKENIZER, chosen.tokenizer, **chosen.tokenizer_options),
        collisions=config.method(COLLISIONS, chosen.policy),
        generator=timed(config.method(GENERATOR, chosen.generator, **chosen.options), seconds),
        scorers=tuple(timed(config.method(SCORER, name), seconds) for name in chosen.scorers),
        retrievers=tuple(
            config.method(RETRIEVER, name, **options) for name, options in chosen.retrievers.items()
        ),
        hybrid=HybridConfig(members=()),
        evaluation=replace(settings.evaluation, validation_users=2000),
    )


def timed(chosen: Method, seconds: float) -> Method:
    """The method with this budget and nothing else to end its training."""
    if chosen.train is None:
        return chosen
    budget = replace(chosen.train, epochs=1000, max_seconds=seconds, clock="processor", patience=0)
    return replace(chosen, train=budget)


def measure(
    dataset: Dataset,
    parts: Split,
    settings: RunConfig,
    chosen: GeneratorRun,
    shared: Path,
    folder: Path,
) -> None:
    """Fit, keep the bundle, read the test part, and write what the table needs."""
    with output.progress() as show:
        recommender = fit(dataset, settings, run_dir=shared, on_event=show)
    kept_rows.record(folder, settings)
    recommender.save(folder / "bundle")
    systems = list(chosen.rows.values())
    reports = evaluate_systems(recommender, dataset, parts, settings=settings, systems=systems)
    rows = {}
    for row, system in chosen.rows.items():
        report = replace(reports[system], seeds=(settings.seed,))
        (folder / f"{row}.json").write_text(report.to_json())
        rows[row] = cost_of(recommender, system, shared)
        shown = " ".join(f"{metric} {report.figures[metric].value:.4f}" for metric in METRICS)
        print(row, settings.seed, shown, rows[row], flush=True)
    (folder / "rows.json").write_text(json.dumps(rows))


def cost_of(recommender: Recommender, system: str, shared: Path) -> dict[str, float]:
    """Parameters and training seconds of the models that a system asks."""
    seconds = 0.0
    for fitted in asked_by(recommender, system):
        folders = sorted((shared / "training").glob(f"{fitted.name}-*"), key=newest)
        found = load_newest(folders[-1] / "checkpoints")
        assert found is not None
        seconds += found[1]["progress"]["seconds"]
    return {**sizes_of(recommender, system), "train_seconds": round(seconds, 1)}


def sizes_of(recommender: Recommender, system: str) -> dict[str, float]:
    """Parameters of the models that a system asks, and those that one position passes through."""
    parameters = active = 0
    for fitted in asked_by(recommender, system):
        own = sum(p.numel() for p in fitted.value.parameters())
        learnt = count_parameters(fitted.value)
        parameters, active = parameters + own, active + own - (learnt.total - learnt.active)
    return {"parameters": parameters, "active_parameters": active}


def asked_by(recommender: Recommender, system: str) -> list[Fitted]:
    """The models behind a system: itself, or the generator and what its retriever compares with."""
    asked = {recommender.generator.name: recommender.generator, **recommender.scorers}
    own = [asked[system]] if system in asked else [recommender.generator]
    retriever = next((c.config for c in recommender.retrievers if c.name == system), None)
    if (scorer := getattr(retriever, "retriever", None)) is not None:
        own.append(recommender.scorers[scorer])
    return own


def newest(folder: Path) -> float:
    """When the folder was last written."""
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))


def finished(dataset: Dataset, folder: Path, seconds: float) -> dict[str, Path]:
    """Run -> where it is kept, of those that are finished with these seconds."""
    seed = int(folder.name.rsplit("seed", 1)[1])
    kept = {
        name: kept_rows.folder_of(folder, name, settings_for(dataset, chosen, seed, seconds))
        for name, chosen in RUNS.items()
    }
    return {name: path for name, path in kept.items() if (path / "rows.json").exists()}


def collect(
    dataset: Dataset, parts: Split, runs: Path, seconds: float
) -> tuple[dict[str, dict[str, Any]], list[int]]:
    """Figures of every row finished with these seconds, averaged over its seeds."""
    reports: dict[str, dict[int, Report]] = {}
    costs: dict[str, list[Mapping[str, float]]] = {}
    for folder in sorted(runs.glob(f"{dataset.name}-seed*")):
        seed = int(folder.name.rsplit("seed", 1)[1])
        for name, kept in finished(dataset, folder, seconds).items():
            for row, cost in costs_in(kept, RUNS[name]).items():
                report = Report.from_json((kept / f"{row}.json").read_text())
                reports.setdefault(row, {})[seed] = report
                costs.setdefault(row, []).append(cost)
    figures: dict[str, dict[str, Any]] = {}
    for row, of in reports.items():
        start, report = f"{dataset.name}.{row}", average_seeds(list(of.values()))
        groups = strata_of(report.targets, parts.train_counts_N, no_events="no_events")
        figures |= by_group(start, of, groups)
        coverage = as_figure(report.figures["coverage@10"])
        figures[f"{start}.coverage@10"] = {**coverage, "seeds": sorted(of)}
        for name in ("parameters", "active_parameters", "train_seconds"):
            unit = "s" if name == "train_seconds" else "parameters"
            value = float(np.mean([cost[name] for cost in costs[row]]))
            figures[f"{start}.{name}"] = {"value": round(value, 1), "unit": unit}
        if row != BASELINE and BASELINE in reports:
            figures |= differences(f"{start}_minus_{BASELINE}", of, reports[BASELINE], groups)
    return figures, sorted({seed for of in reports.values() for seed in of})


def costs_in(kept: Path, chosen: GeneratorRun) -> dict[str, dict[str, float]]:
    """Row -> its costs; sizes that an older run did not write come from its bundle."""
    costs = json.loads((kept / "rows.json").read_text())
    if any("active_parameters" not in cost for cost in costs.values()):
        recommender = sidrec.load(kept / "bundle")
        costs = {
            row: {**cost, **sizes_of(recommender, chosen.rows[row])} for row, cost in costs.items()
        }
    return costs


def latencies(
    data: str, parts: Split, kept: Mapping[str, Path], num_users: int
) -> dict[str, dict[str, Any]]:
    """p50 of one user and users a second of every kept row, rows in turn within each pass."""
    histories = parts.test.histories.take(
        np.random.default_rng(0).permutation(len(parts.test))[: max(num_users, 2048)]
    )
    asked: dict[str, tuple[Recommender, str]] = {}
    for name, folder in kept.items():
        recommender = sidrec.load(folder / "bundle")
        for row in json.loads((folder / "rows.json").read_text()):
            asked[row] = recommender, RUNS[name].rows[row]
    figures: dict[str, dict[str, Any]] = {}
    for beam in BEAMS:
        chosen = {row: (replace(r, beam_width=beam), s) for row, (r, s) in asked.items()}
        alone: dict[str, list[float]] = {row: [] for row in chosen}
        together: dict[str, list[float]] = {row: [] for row in chosen}
        for turn in range(4):  # the first warms up
            for row, (recommender, system) in chosen.items():
                for user in range(turn, num_users, 3):
                    one = histories.take(np.array([user]))
                    started = time.perf_counter()
                    recommender.candidates(one, K, system=system)
                    if turn:
                        alone[row].append(1e3 * (time.perf_counter() - started))
                started = time.perf_counter()
                for start in range(0, 2048, 256):
                    block = histories.take(np.arange(start, start + 256))
                    recommender.candidates(block, K, system=system)
                if turn:
                    together[row].append(2048 / (time.perf_counter() - started))
        for row in chosen:
            name = f"{data}.{row}.beam{beam}"
            figures[f"{name}.one_user.p50"] = {
                "value": round(float(np.median(alone[row])), 3), "unit": "ms", "n": len(alone[row]),
            }  # fmt: skip
            figures[f"{name}.batch.users_per_second"] = {
                "value": round(float(np.median(together[row])), 1), "unit": "users/s", "n": 2048,
            }  # fmt: skip
            print(name, figures[f"{name}.one_user.p50"]["value"], "ms", flush=True)
    return figures


if __name__ == "__main__":
    main()
