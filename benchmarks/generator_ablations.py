"""What each part of a hybrid is worth: parts taken out of finished runs, asked again.

    python benchmarks/generator_ablations.py --data amazon_beauty --only liger barge

Nothing is trained: the bundles of `generators.py` (same `--runs` and `--seconds`, seed 0) answer
with a part left out, on a random sample of the test users. What a change leaves open (the weight of
a mixture) is chosen on validation, as in the run. Rows are paired on the same users with the
unchanged system, from the report that its run kept. Finished ones are kept in the run's folder.
Figures: `<data>.<row>_<change>.<metric>`, the unchanged row on these users under the change
`whole`, differences `<data>.<row>_<change>_minus_whole.<metric>`, and for BARGE the recall of both
channels' lists together, `<data>.barge_either_channel.recall@10`, and `<data>.barge.kappa@10`, the
share of what A misses that B misses too.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from figures import as_figure, write
from generator_rows import CHANGES, OWN_BEAM, RUNS
from paired_rows import METRICS

import sidrec
from generators import finished
from sidrec.data import load_named, split
from sidrec.evaluation import EvaluationContext, Report, rank_all
from sidrec.evaluation.report import figures_of, report_of
from sidrec.evaluation.significance import paired
from sidrec.evaluation.two_lists import Misses
from sidrec.recommender import Recommender
from sidrec.types import Examples, Split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="amazon_beauty")
    parser.add_argument("--only", nargs="*", default=list(CHANGES), choices=list(CHANGES))
    parser.add_argument("--seconds", type=float, default=200, help="that the runs trained for")
    parser.add_argument("--users", type=int, default=5000, help="test users asked")
    parser.add_argument("--runs", type=Path, default=Path("runs/generators"))
    arguments = parser.parse_args()
    dataset = load_named(arguments.data)
    parts = split(dataset, "leave_one_out")
    folders = finished(dataset, arguments.runs / f"{arguments.data}-seed0", arguments.seconds)
    asked_Q = sample(len(parts.test), arguments.users)
    figures: dict[str, dict[str, Any]] = {}
    for row, changes in CHANGES.items():
        name = next(name for name, run in RUNS.items() if row in run.rows)
        if name not in folders:
            continue
        for change, settings in changes.items():
            kept = folders[name] / f"{row}-{change}-{len(asked_Q)}.npz"
            if row in arguments.only and not kept.exists():
                recommender = sidrec.load(folders[name] / "bundle")
                system = RUNS[name].rows[row]
                changed = with_settings(recommender, system, settings, parts.valid)
                np.savez_compressed(kept, **answered(changed, system, parts, asked_Q))
                print(row, change, flush=True)
        report = Report.from_json((folders[name] / f"{row}.json").read_text())
        figures |= figures_of_row(f"{dataset.name}.{row}", folders[name], row, report, asked_Q)
    path = write(
        f"generator_ablations_{arguments.data}",
        figures,
        seeds=[0],
        command=" ".join(["python", *sys.argv]),
        notes=f"{len(asked_Q)} test users; {arguments.seconds:.0f} s of training a model",
    )
    print(f"wrote {path.name}")


def sample(num: int, most: int) -> np.ndarray:
    """Ascending rows of the questions that are asked, the same ones every time."""
    return np.sort(np.random.default_rng(0).permutation(num)[:most])


def with_settings(
    recommender: Recommender, system: str, settings: Mapping[str, Any], valid: Examples
) -> Recommender:
    """The recommender with other settings of one system, what they leave open chosen anew."""
    if system == recommender.generator.name:
        model = copy.copy(recommender.generator.value)
        model.config = replace(model.config, **settings)
        return replace(recommender, generator=replace(recommender.generator, value=model))
    questions = valid.take(sample(len(valid), 2000))
    retrievers = []
    for method in recommender.retrievers:
        if method.name == system:
            method = replace(method, config=replace(method.config, **settings))
            changed = replace(recommender, retrievers=(method,)).retrieving[system]
            method = replace(method, config=changed.tuned(questions))
            print(system, method.config, flush=True)
        retrievers.append(method)
    return replace(recommender, retrievers=tuple(retrievers))


def answered(
    recommender: Recommender, system: str, parts: Split, asked_Q: np.ndarray
) -> dict[str, np.ndarray]:
    """Metric -> one value a question."""
    rankings = rank_all(
        parts.test.take(asked_Q),
        candidates=lambda b, k, seen: recommender.answer(system, b, k, exclude=seen),
        k=10,
        num_items=len(recommender.items),
        max_length=recommender.max_length(system),
    )
    context = EvaluationContext.of(parts)
    per_user = report_of(system, rankings, context=context, resamples=2).per_user
    return {metric: per_user[metric] for metric in METRICS}


def figures_of_row(
    start: str, folder: Path, row: str, report: Report, asked_Q: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Figures of a row's changes that are finished, and their differences from the whole."""
    whole = {metric: report.per_user[metric][asked_Q] for metric in METRICS}
    found = {}
    if row in OWN_BEAM:  # the run kept its report too
        beam = Report.from_json((folder / f"{OWN_BEAM[row]}.json").read_text())
        found["beam_alone"] = {metric: beam.per_user[metric][asked_Q] for metric in METRICS}
    for change in CHANGES[row]:
        if (kept := folder / f"{row}-{change}-{len(asked_Q)}.npz").exists():
            with np.load(kept) as values:
                found[change] = {metric: values[metric] for metric in METRICS}
    if not found:
        return {}
    figures: dict[str, dict[str, Any]] = {}
    if {"channel_a", "channel_b"} <= set(found):  # hits of either list: what the merge can reach
        hits = [found[change]["recall@10"] for change in ("channel_a", "channel_b")]
        either = {"recall@10": np.maximum(*hits)}
        figures[f"{start}_either_channel.recall@10"] = as_figure(
            figures_of(either, ["recall@10"])["recall@10"]
        )
        kappa = Misses.of(hits[0] > 0, hits[1] > 0).kappa
        figures[f"{start}.kappa@10"] = {"value": round(kappa, 5), "unit": "ratio"}
    for change, values in {"whole": whole, **found}.items():
        for metric, figure in figures_of(values, list(METRICS)).items():
            figures[f"{start}_{change}.{metric}"] = as_figure(figure)
        for metric in METRICS if change != "whole" else ():
            figure, p = paired(values[metric], whole[metric])
            figures[f"{start}_{change}_minus_whole.{metric}"] = {
                **as_figure(figure), "unit": "difference", "p": round(p, 5),
            }  # fmt: skip
    return figures


if __name__ == "__main__":
    main()
