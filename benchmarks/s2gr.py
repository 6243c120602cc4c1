"""S²GR: does a thought before each code help, and is it the teaching, the place, or the IDs?

    python benchmarks/s2gr.py --seeds 0 --epochs 8 --max-seconds 300
    python benchmarks/s2gr.py --part valid --rows s2gr --set num_clusters=16  # to choose settings

Rows: `s2gr`; `_no_reason`, without thoughts, which is the backbone; `_no_supervision`, thoughts
that are taught nothing; `_all_first`, all thoughts before the first code; `_rqvae`, all of it on
plain RQ-VAE IDs. The others have CoBa RQ-VAE's. Same vectors, same budget, and with `--generator
s2gr_tiger` the same on the encoder-decoder, where `_no_reason` is shown as `tiger_coba`. A
finished row is kept under `--runs` by its settings and not done again; every call writes all rows
that are there with these settings.
Figures: `<data>.<row>.[min10.]<metric>`, min10 being the paper's protocol: users with at least 10
events; paired differences `<data>.<generator>_minus_<row>.[min10.]<metric>`;
`<data>.<row>.level<n>_accuracy` of each code with the true codes before it,
`thought<n>_holds_code`, and `majority<n>_holds_code`, what naming the most frequent cluster would
give; `parameters`, with the row's settings.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import kept_rows
import numpy as np
import torch
from figures import write
from paired_rows import METRICS, by_group, differences

from sidrec import artifact, config
from sidrec.cli import output
from sidrec.data import load_named, split
from sidrec.decoding.levels import level_accuracy, thought_accuracy
from sidrec.evaluation import Report
from sidrec.pipeline import evaluate_systems, fit
from sidrec.recipe import GENERATOR, TOKENIZER, HybridConfig, RunConfig, default_config
from sidrec.recommender import Recommender
from sidrec.types import Bools, Dataset, Examples, Split

LEAST_EVENTS = 10
"""The paper drops test users with fewer events."""
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "": ("coba_rqvae", {}),
    "_no_reason": ("coba_rqvae", {"thoughts": "none"}),
    "_no_supervision": ("coba_rqvae", {"supervision": False}),
    "_all_first": ("coba_rqvae", {"thoughts": "first"}),
    "_rqvae": ("rqvae", {}),
}
"""What comes after the generator's name -> tokenizer, settings of the generator."""
SHOWN = {"s2gr_tiger_no_reason": "tiger_coba"}
"""Row -> its name in figures: without thoughts it is TIGER on CoBa IDs."""


def main(words: list[str] | None = None) -> None:
    asked = parsed(words)
    dataset = load_named(asked.data)
    parts = split(dataset, "leave_one_out")
    for seed in asked.seeds:
        for row in asked.rows:
            settings = settings_for(dataset, asked, row, seed)
            folder = folder_of(asked, row, settings)
            if (folder / f"{asked.part}.json").exists():
                continue
            stages = asked.runs / f"{asked.data}-seed{seed}"
            with output.progress() as show:
                recommender = fit(dataset, settings, run_dir=stages, on_event=show)
            report, levels = measured(recommender, dataset, parts, settings, asked.part)
            kept_rows.record(folder, settings)
            plain = {**levels, "settings": config.to_dict(settings.generator)}
            (folder / f"{asked.part}_levels.json").write_text(json.dumps(plain, indent=1))
            artifact.write_text(folder / f"{asked.part}.json", report.to_json())
            print(row, seed, short(report), json.dumps(levels), flush=True)
    figures, seeds = collect(dataset, parts, asked)
    for name, figure in figures.items():
        print(f"{name:60} {figure['value']:.4f}")
    if asked.part == "valid":
        return
    path = write(
        f"{asked.generator}_{asked.data}",
        figures,
        seeds=seeds,
        command=" ".join(["python", *(sys.argv if words is None else ["s2gr.py", *words])]),
        notes=f"the generator alone, at most {asked.epochs} epochs and "
        f"{asked.max_seconds or 'any'} seconds ({asked.clock} clock) a row; settings beside those "
        f"of the rows: {' '.join(asked.set) or 'defaults'}",
    )
    print(f"wrote {path.name}")


def parsed(words: list[str] | None) -> argparse.Namespace:
    """The options; rows by their whole names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="amazon_beauty")
    parser.add_argument("--generator", default="s2gr", choices=["s2gr", "s2gr_tiger"])
    parser.add_argument("--rows", nargs="+", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--max-seconds", type=float, help="of training a row")
    parser.add_argument("--clock", default="processor", choices=["processor", "wall"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE",
                        help="settings of the generator, or train.KEY=VALUE")  # fmt: skip
    parser.add_argument("--part", default="test", choices=["test", "valid"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/s2gr"))
    asked = parser.parse_args(words)
    known = [asked.generator + end for end in ROWS]
    asked.rows = asked.rows or known
    if unknown := sorted(set(asked.rows) - set(known)):
        parser.error(f"no rows {unknown}; have {known}")
    return asked


def settings_for(dataset: Dataset, asked: argparse.Namespace, row: str, seed: int) -> RunConfig:
    """The default recipe with the row's tokenizer and the generator alone."""
    tokenizer, own = ROWS[row.removeprefix(asked.generator)]
    values: dict[str, Any] = {}
    training = {"epochs": asked.epochs, "clock": asked.clock}
    if asked.max_seconds:
        training["max_seconds"] = asked.max_seconds
    for setting in asked.set:
        key, _, value = setting.partition("=")
        into = training if key.startswith("train.") else values
        into[key.removeprefix("train.")] = plain_value(value)
    return replace(
        default_config(dataset),
        seed=seed,
        device=asked.device,
        tokenizer=config.method(TOKENIZER, tokenizer),
        generator=config.method(GENERATOR, asked.generator, **{**values, **own}, train=training),
        scorers=(),
        hybrid=HybridConfig(members=()),
    )


def plain_value(text: str) -> Any:
    """A value as a recipe would hold it; a bare word is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def folder_of(asked: argparse.Namespace, row: str, settings: RunConfig) -> Path:
    """Where a row of these settings is kept."""
    return kept_rows.folder_of(asked.runs / f"{asked.data}-seed{settings.seed}", row, settings)


def measured(
    recommender: Recommender, dataset: Dataset, parts: Split, settings: RunConfig, part: str
) -> tuple[Report, dict[str, Any]]:
    """The report of one part, and what is right at each level."""
    found = evaluate_systems(recommender, dataset, parts, settings=settings, part=part)
    report = replace(found[recommender.generator.name], seeds=(settings.seed,))
    generator = recommender.generator.value
    examples = parts.test if part == "test" else parts.valid
    levels: dict[str, Any] = {
        "parameters": sum(weight.numel() for weight in generator.parameters()),
        "accuracy": level_accuracy(generator, examples, recommender.index),
    }
    if generator.thinks:
        levels["holds_code"] = thought_accuracy(generator, examples, recommender.index)
        levels["majority"] = majority(recommender, examples)
    return report, levels


def majority(recommender: Recommender, examples: Examples) -> list[float]:
    """L shares of the targets whose code is in the cluster that most of them are in."""
    clusters, codes_QL = recommender.generator.value.clusters, recommender.ids.codes
    codes_QL = torch.from_numpy(codes_QL[examples.targets])
    shares = []
    for level, codes_Q in enumerate(codes_QL.T):
        held_M = clusters.clusters(level).cpu()[codes_Q[codes_Q >= 0]]
        shares.append(float(held_M.bincount().max() / len(held_M)))
    return shares


def collect(
    dataset: Dataset, parts: Split, asked: argparse.Namespace
) -> tuple[dict[str, dict[str, Any]], list[int]]:
    """Figures of every row that is there with these settings, averaged over its seeds."""
    examples = parts.test if asked.part == "test" else parts.valid
    events_Q = examples.histories.lengths + (1 if asked.part == "test" else 2)
    groups = {"": np.ones(len(examples), dtype=bool), "min10.": events_Q >= LEAST_EVENTS}
    reports: dict[str, dict[int, Report]] = {}
    figures: dict[str, dict[str, Any]] = {}
    for row in (asked.generator + end for end in ROWS):
        levels: dict[int, dict[str, Any]] = {}
        for folder in sorted(asked.runs.glob(f"{asked.data}-seed*")):
            seed = int(folder.name.rsplit("seed", 1)[1])
            kept = folder_of(asked, row, settings_for(dataset, asked, row, seed))
            if (path := kept / f"{asked.part}.json").exists():
                reports.setdefault(row, {})[seed] = Report.from_json(path.read_text())
                levels[seed] = json.loads((kept / f"{asked.part}_levels.json").read_text())
        if levels:
            start = f"{asked.data}.{SHOWN.get(row, row)}"
            figures |= row_figures(start, reports[row], levels, groups)
    first = asked.generator
    for row in reports:
        if row != first and first in reports:
            figures |= differences(
                f"{asked.data}.{first}_minus_{SHOWN.get(row, row)}",
                reports[first],
                reports[row],
                groups,
            )
    return figures, sorted({seed for of in reports.values() for seed in of})


def row_figures(
    start: str,
    reports: Mapping[int, Report],
    levels: Mapping[int, Mapping[str, Any]],
    groups: Mapping[str, Bools],
) -> dict[str, dict[str, Any]]:
    """Metrics of all users and of each group, what is right at each level, and the settings."""
    figures = by_group(start, reports, groups)
    seeds = sorted(reports)
    names = {"accuracy": "level{}_accuracy", "holds_code": "thought{}_holds_code",
             "majority": "majority{}_holds_code"}  # fmt: skip
    for name, figure in names.items():
        if all(name in found for found in levels.values()):
            values_SL = np.array([levels[seed][name] for seed in seeds])
            for level, values_S in enumerate(values_SL.T, 1):
                figures[f"{start}.{figure.format(level)}"] = {
                    "value": round(float(values_S.mean()), 5),
                    "unit": "ratio",
                    "n": len(reports[seeds[0]].targets),
                    "seeds": seeds,
                }
    last = levels[seeds[-1]]
    figures[f"{start}.parameters"] = {
        "value": last["parameters"],
        "unit": "weights",
        "seeds": seeds,
        "settings": last["settings"],
    }
    return figures


def short(report: Report) -> str:
    """The main figures in one line."""
    return " ".join(f"{metric} {report.figures[metric].value:.4f}" for metric in METRICS)


if __name__ == "__main__":
    main()
