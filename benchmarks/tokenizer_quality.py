"""Every tokenizer under the same generator: health of its IDs, and what they do for recommending.

    python benchmarks/tokenizer_quality.py --data amazon_beauty --seeds 0 --methods rqvae coba_rqvae

For each method and seed: fit the tokenizer on the default vectors (timed), look at its IDs as they
come and after the collision policy, train the default generator on them for `--epochs`, and read
the test part once. A finished one is kept under `--runs` and not done again, so the table grows
over several calls; every call writes all that is there. `--ids-only` stops before the generator,
`--ablations` writes what concerns variants alone, to a file of its own.
Figures: `<data>.tokenizer.<method>.{icr,cur,collision_share,fit_seconds,...}`,
`<data>.<method>_ids.[<stratum>.]<metric>`, and paired differences
`<data>.<method>_ids_minus_<baseline>_ids.<metric>` on the seeds both have.
`fit_seconds` is processor time of one thread.
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

import numpy as np
from figures import write
from quality import BEYOND, STRATA, as_difference, as_figure
from tokenizer_rows import METHODS, VARIANTS

from sidrec import config, methods
from sidrec.cli import output
from sidrec.data import load_named, split
from sidrec.embeddings.cache import fit_embed
from sidrec.evaluation import Report, average_seeds, compare
from sidrec.evaluation.strata import by_training_count
from sidrec.pipeline import evaluate_systems, fit
from sidrec.recipe import COLLISIONS, TOKENIZER, HybridConfig, RunConfig, default_config
from sidrec.tokenizers.health import health
from sidrec.types import Bools, CatalogueContext, Dataset, Ints, ItemVectors, Split

METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
BASELINES = ("residual_kmeans", "rqvae", "plum_rqvae")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="amazon_beauty")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=8, help="of the generator")
    parser.add_argument("--runs", type=Path, default=Path("runs/tokenizers"))
    parser.add_argument("--ids-only", action="store_true", help="train no generator")
    parser.add_argument("--ablations", action="store_true", help="write the variants alone")
    parser.add_argument("--tag", default="", help="added to the name of the file")
    arguments = parser.parse_args()
    dataset = load_named(arguments.data)
    parts = split(dataset, "leave_one_out")
    for seed in arguments.seeds:
        folder = arguments.runs / f"{arguments.data}-seed{seed}"
        for name in arguments.methods:
            settings = settings_for(dataset, name, seed, arguments.epochs)
            done = folder / name / "ids.json"
            if not done.exists():
                figures = figures_of_ids(dataset, parts, settings, folder)
                done.parent.mkdir(parents=True, exist_ok=True)
                done.write_text(json.dumps(figures, indent=1))
                print(name, seed, json.dumps(figures), flush=True)
            done = folder / name / "report.json"
            if not (arguments.ids_only or done.exists()):
                done.write_text(measure(dataset, parts, settings, folder).to_json())
                print(name, seed, short(Report.from_json(done.read_text())), flush=True)
    figures, seeds = collect(arguments.data, arguments.runs)
    if arguments.ablations:
        figures = {name: figure for name, figure in figures.items() if of_variant(name)}
    kind = "tokenizer_ablations" if arguments.ablations else "tokenizers"
    path = write(
        "_".join(filter(None, (kind, arguments.tag, arguments.data))),
        figures,
        seeds=seeds,
        command=" ".join(["python", *sys.argv]),
        notes=f"default generator, {arguments.epochs} epochs a row; IDs before the collision "
        "policy, recommendation after it (reassign)",
    )
    print(f"wrote {path.name}")


def of_variant(figure: str) -> bool:
    """Whether a figure is of a variant, or of lengths and sharing by popularity."""
    part = figure.split(".")
    system = part[2] if part[1] == "tokenizer" else part[1].partition("_ids")[0]
    return system in VARIANTS or (part[1] == "tokenizer" and part[3] in STRATA)


def settings_for(dataset: Dataset, name: str, seed: int, epochs: int) -> RunConfig:
    """The default recipe with this tokenizer and the generator alone."""
    method, options, policy = VARIANTS.get(name, (name, {}, "reassign"))
    settings = default_config(dataset)
    generator = settings.generator
    assert generator.train is not None
    return replace(
        settings,
        seed=seed,
        tokenizer=config.method(TOKENIZER, method, **options),
        collisions=config.method(COLLISIONS, policy),
        generator=replace(generator, train=replace(generator.train, epochs=epochs)),
        scorers=(),
        hybrid=HybridConfig(members=()),
    )


def figures_of_ids(
    dataset: Dataset, parts: Split, settings: RunConfig, folder: Path
) -> dict[str, float]:
    """Health of the IDs before any collision policy, and the seconds of fitting."""
    vectors = vectors_of(dataset, parts, settings, folder)
    context = CatalogueContext(dataset.items, parts.train, vectors)
    chosen = settings.tokenizer
    started = time.process_time()
    tokenizer = methods.resolve("tokenizers", chosen.name).fit(
        vectors, config.with_seed(chosen.config, settings.seed), context
    )
    seconds = time.process_time() - started
    ids = tokenizer.encode(vectors)
    found = health(ids, vectors, tokenizer)
    lengths_N = (ids.codes >= 0).sum(axis=1)
    figures = {
        "fit_seconds": round(seconds, 2),
        "icr": found.num_ids / found.num_items,
        "cur": found.num_ids / float(np.prod([float(size) for size in ids.num_codes])),
        "collision_share": found.collision_share,
        "largest_group": found.largest_group,
        "mean_length": float(lengths_N.mean()),
    }
    events_N = parts.train_counts_N
    sharing_N = shares_its_id(ids.codes)
    for group, chosen_N in by_training_count(np.arange(len(vectors)), events_N).items():
        if chosen_N.any():
            figures[f"{group}.mean_length"] = float(lengths_N[chosen_N].mean())
            figures[f"{group}.collision_share"] = float(sharing_N[chosen_N].mean())
    for level, part in enumerate(found.levels, 1):
        figures[f"entropy_level_{level}"] = part.entropy_nats
        if part.reconstruction_error_ratio is not None:
            figures[f"reconstruction_error_level_{level}"] = part.reconstruction_error_ratio
    return figures


def shares_its_id(codes_NL: Ints) -> Bools:
    """(N,) whether another item has the same codes."""
    _, groups_N, sizes_G = np.unique(codes_NL, axis=0, return_inverse=True, return_counts=True)
    return sizes_G[groups_N] > 1


def vectors_of(dataset: Dataset, parts: Split, settings: RunConfig, folder: Path) -> ItemVectors:
    """The vectors that the pipeline makes with these settings, from its cache."""
    chosen = settings.embedding
    _, vectors = fit_embed(
        methods.resolve("embeddings", chosen.name),
        CatalogueContext(dataset.items, parts.train),
        config.with_seed(chosen.config, settings.seed),
        folder / "stages" / "vectors",
    )
    return vectors


def measure(dataset: Dataset, parts: Split, settings: RunConfig, folder: Path) -> Report:
    """The generator trained on these IDs, on the test part."""
    with output.progress() as show:
        recommender = fit(dataset, settings, run_dir=folder, on_event=show)
    (report,) = evaluate_systems(recommender, dataset, parts, settings=settings).values()
    return replace(report, seeds=(settings.seed,))


def collect(data: str, runs: Path) -> tuple[dict[str, dict[str, Any]], list[int]]:
    """Figures of every finished method, averaged over its seeds."""
    ids: dict[str, list[Mapping[str, float]]] = {}
    reports: dict[str, dict[int, Report]] = {}
    for folder in sorted(runs.glob(f"{data}-seed*")):
        seed = int(folder.name.rsplit("seed", 1)[1])
        for path in sorted(folder.glob("*/ids.json")):
            ids.setdefault(path.parent.name, []).append(json.loads(path.read_text()))
        for path in sorted(folder.glob("*/report.json")):
            reports.setdefault(path.parent.name, {})[seed] = Report.from_json(path.read_text())
    figures: dict[str, dict[str, Any]] = {}
    for name, seeds in ids.items():
        for figure in seeds[0]:
            values = [found[figure] for found in seeds]
            unit = "s" if figure == "fit_seconds" else "ratio"
            figures[f"{data}.tokenizer.{name}.{figure}"] = {
                "value": round(float(np.mean(values)), 6),
                "unit": unit,
                "by_seed": [round(float(value), 6) for value in values],
            }
    for name, of in reports.items():
        report = average_seeds(list(of.values()))
        for metric in (*METRICS, *BEYOND):
            if metric in report.figures:
                figures[f"{data}.{name}_ids.{metric}"] = {
                    **as_figure(report.figures[metric]),
                    "seeds": sorted(of),
                }
        for stratum in STRATA:
            for metric in METRICS:
                if metric in report.strata.get(stratum, {}):
                    figure = as_figure(report.strata[stratum][metric])
                    figures[f"{data}.{name}_ids.{stratum}.{metric}"] = figure
        for baseline in BASELINES:
            common = sorted(set(of) & set(reports.get(baseline, {})))
            if baseline == name or not common:
                continue
            mine, theirs = (
                average_seeds([found[seed] for seed in common]) for found in (of, reports[baseline])
            )
            for metric in METRICS:
                figures[f"{data}.{name}_ids_minus_{baseline}_ids.{metric}"] = {
                    **as_difference(compare(mine, theirs, metric)),
                    "seeds": common,
                }
    return figures, sorted({seed for of in reports.values() for seed in of})


def short(report: Report) -> str:
    """The main figures in one line."""
    return " ".join(f"{metric} {report.figures[metric].value:.4f}" for metric in METRICS)


if __name__ == "__main__":
    main()
