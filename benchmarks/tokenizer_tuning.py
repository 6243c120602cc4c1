"""A few settings of each tokenizer, judged on validation: which would win?

    python benchmarks/tokenizer_tuning.py --data amazon_beauty --methods rqvae coba_rqvae

Every trial changes one setting of a tokenizer, fits it on the default vectors and asks, on the
validation questions, what its IDs are worth: `--judge counted` by a generator that is counted in
seconds (`counted_generator`), `--judge generator` by the default one trained for `--epochs`. The
test part is not read. Finished trials are kept under `--runs` by their settings; every call writes
all of this judge.
Figures: `<data>.tuning.<judge>.<method>.<trial>.{recall,ndcg}@10` and the paired differences
`<data>.tuning.<judge>.<method>.<trial>_minus_default.<metric>`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import kept_rows
import numpy as np
from counted_generator import CountedGenerator
from figures import as_figure, write
from tokenizer_rows import DEFAULT, TRIALS

from sidrec import config
from sidrec.cli import output
from sidrec.data import load_named, split
from sidrec.evaluation import EvaluationContext, rank_all
from sidrec.evaluation.report import figures_of, report_of
from sidrec.evaluation.significance import paired
from sidrec.pipeline import Stages
from sidrec.recipe import TOKENIZER, HybridConfig, RunConfig, default_config
from sidrec.types import Dataset, Examples, Split

METRICS = ["recall@10", "ndcg@10"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="amazon_beauty")
    parser.add_argument("--methods", nargs="*", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument("--judge", choices=("counted", "generator"), default="counted")
    parser.add_argument("--epochs", type=int, default=2, help="of the trained judge")
    parser.add_argument("--users", type=int, default=8000, help="validation users asked")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/tokenizers"))
    arguments = parser.parse_args()
    dataset = load_named(arguments.data)
    parts = split(dataset, "leave_one_out")
    runs = arguments.runs / f"{arguments.data}-seed{arguments.seed}"
    rows_Q = np.sort(np.random.default_rng(0).permutation(len(parts.valid))[: arguments.users])
    asked, judge, values = parts.valid.take(rows_Q), arguments.judge, {}
    for method, trials in TRIALS.items():
        for trial, options in {DEFAULT: {}, **trials}.items():
            settings = settings_for(dataset, method, options, arguments.seed, arguments.epochs)
            folder = kept_rows.folder_of(runs / "tuning", f"{method}-{trial}", settings)
            kept = folder / f"{judge}-{len(asked)}.npz"
            if method in arguments.methods and not kept.exists():
                found = judged(dataset, parts, settings, runs, asked, judge)
                kept_rows.record(folder, settings)
                np.savez_compressed(kept, **found)
                print(method, trial, f"ndcg@10 {found['ndcg@10'].mean():.5f}", flush=True)
            if kept.exists():
                with np.load(kept) as found:
                    values[method, trial] = {metric: found[metric] for metric in METRICS}
    path = write(
        f"tokenizer_tuning_{judge}_{arguments.data}",
        all_figures(f"{dataset.name}.tuning.{judge}", values),
        seeds=[arguments.seed],
        command=" ".join(["python", *sys.argv]),
        notes=f"{len(asked)} validation users; the test part is not read",
    )
    print(f"wrote {path.name}")


def settings_for(
    dataset: Dataset, method: str, options: dict[str, Any], seed: int, epochs: int
) -> RunConfig:
    """The default recipe with this tokenizer and, where it is asked, a short generator alone."""
    settings = default_config(dataset)
    assert settings.generator.train is not None
    train = replace(settings.generator.train, epochs=epochs)
    return replace(
        settings,
        seed=seed,
        tokenizer=config.method(TOKENIZER, method, **options),
        generator=replace(settings.generator, train=train),
        scorers=(),
        hybrid=HybridConfig(members=()),
    )


def judged(
    dataset: Dataset, parts: Split, settings: RunConfig, runs: Path, asked: Examples, judge: str
) -> dict[str, np.ndarray]:
    """Metric -> one value a question, of the IDs that these settings make."""
    with output.progress() as show:
        stages = Stages.of(dataset, settings, runs, show)
        num_items = len(dataset.items)
        if judge == "counted":
            counted = CountedGenerator.of(stages.ids.codes, parts.train)
            rankings = rank_all(
                asked, scores=counted.scores, k=10, num_items=num_items, max_length=3,
                filter_seen=True,
            )  # fmt: skip
        else:
            recommender = stages.recommender
            rankings = rank_all(
                asked,
                candidates=lambda b, k, seen: recommender.generate(b, k, seen),
                k=10,
                num_items=num_items,
                max_length=recommender.max_length(recommender.generator.name),
            )
    context = EvaluationContext.of(parts, part="valid")
    per_user = report_of(judge, rankings, context=context, resamples=2).per_user
    return {metric: per_user[metric] for metric in METRICS}


def all_figures(
    start: str, values: dict[tuple[str, str], dict[str, np.ndarray]]
) -> dict[str, dict[str, Any]]:
    """Figures of every trial, and what its change did."""
    figures: dict[str, dict[str, Any]] = {}
    for (method, trial), found in values.items():
        for metric, figure in figures_of(found, METRICS).items():
            figures[f"{start}.{method}.{trial}.{metric}"] = as_figure(figure)
        default = values.get((method, DEFAULT))
        for metric in METRICS if default is not None and trial != DEFAULT else ():
            figure, p = paired(found[metric], default[metric])  # type: ignore[index]
            name = f"{start}.{method}.{trial}_minus_{DEFAULT}.{metric}"
            figures[name] = {**as_figure(figure), "unit": "difference", "p": round(p, 5)}
    return figures


if __name__ == "__main__":
    main()
