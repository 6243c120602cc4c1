"""Every tokenizer under the same generator: health of its IDs, and what they do for recommending.

    python benchmarks/tokenizer_quality.py --data amazon_beauty --seeds 0 --methods rqvae coba_rqvae

For each method and seed: fit the tokenizer on the default vectors (timed), look at its IDs as they
come and after the collision policy, train the default generator on them for `--epochs`, and read
the test part once. A finished one is kept under `--runs` by its settings and not done again, so
the table grows over several calls; every call writes all that is there of these epochs.
`--ids-only` stops before the generator, `--ablations` writes what concerns variants alone, to a
file of its own; rows of another budget than a table's need a `--label`, a `<data>.<label>`.
Figures: `<data>.tokenizer.<method>.{icr,cur,collision_share,fit_seconds,...}`,
`<data>.<method>_ids.[<stratum>.]<metric>`, and paired differences
`<data>.<method>_ids_minus_<baseline>_ids.[<stratum>.]<metric>` on the seeds both have; the stratum
`cold` is of targets without training events (cold_start.py has the protocol of new items).
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

import kept_rows
import numpy as np
from figures import as_figure, unit_of, write
from paired_rows import METRICS, by_group, differences, strata_of
from quality import BEYOND, STRATA
from tokenizer_rows import DECODING, METHODS, VARIANTS, baselines_of

from sidrec import config, methods
from sidrec.cli import output
from sidrec.data import load_named, split
from sidrec.embeddings.cache import fit_embed
from sidrec.evaluation import Report, average_seeds
from sidrec.evaluation.strata import by_training_count
from sidrec.pipeline import evaluate_systems, fit
from sidrec.recipe import COLLISIONS, TOKENIZER, HybridConfig, RunConfig, default_config
from sidrec.tokenizers.health import health
from sidrec.types import Bools, CatalogueContext, Dataset, Ints, ItemVectors, Split


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
    parser.add_argument(
        "--label", default="", help="put after the data set in figures' names: rows of a budget"
    )
    arguments = parser.parse_args()
    dataset = load_named(arguments.data)
    parts = split(dataset, "leave_one_out")
    for seed in arguments.seeds:
        folder = arguments.runs / f"{arguments.data}-seed{seed}"
        for name in arguments.methods:
            settings = settings_for(dataset, name, seed, arguments.epochs)
            kept = kept_rows.folder_of(folder, name, settings)
            done = kept / "ids.json"
            if not done.exists():
                figures = figures_of_ids(dataset, parts, settings, folder)
                kept_rows.record(kept, settings)
                done.write_text(json.dumps(figures, indent=1))
                print(name, seed, json.dumps(figures), flush=True)
            done = kept / "report.json"
            if not (arguments.ids_only or done.exists()):
                done.write_text(measure(dataset, parts, settings, folder).to_json())
                print(name, seed, short(Report.from_json(done.read_text())), flush=True)
    figures, seeds = collect(
        dataset, parts, arguments.runs, arguments.epochs, label=arguments.label
    )
    if arguments.ablations:
        start = named(arguments.data, arguments.label)
        figures = {n: f for n, f in figures.items() if of_variant(n.removeprefix(f"{start}."))}
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
    """Whether a figure, without its data set, is of a variant, or of lengths by popularity."""
    part = figure.split(".")
    system = part[1] if part[0] == "tokenizer" else part[0].partition("_ids")[0]
    return system in VARIANTS or (part[0] == "tokenizer" and part[2] in STRATA)


def named(data: str, label: str) -> str:
    """What figures' names begin with."""
    return f"{data}.{label}" if label else data


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
        decoding=replace(settings.decoding, **DECODING.get(name, {})),
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


def collect(
    dataset: Dataset, parts: Split, runs: Path, epochs: int, *, label: str = ""
) -> tuple[dict[str, dict[str, Any]], list[int]]:
    """Figures of every finished method of these epochs, averaged over its seeds."""
    ids: dict[str, dict[int, Mapping[str, float]]] = {}
    reports: dict[str, dict[int, Report]] = {}
    for folder in sorted(runs.glob(f"{dataset.name}-seed*")):
        seed = int(folder.name.rsplit("seed", 1)[1])
        for name in (*METHODS, *VARIANTS):
            settings = settings_for(dataset, name, seed, epochs)
            kept = kept_rows.folder_of(folder, name, settings)
            if (path := kept / "ids.json").exists():
                ids.setdefault(name, {})[seed] = json.loads(path.read_text())
            if (path := kept / "report.json").exists():
                reports.setdefault(name, {})[seed] = Report.from_json(path.read_text())
    data = named(dataset.name, label)
    figures: dict[str, dict[str, Any]] = {}
    for name, of in ids.items():
        figures |= id_figures(f"{data}.tokenizer.{name}", of)
    counts_N = parts.train_counts_N
    for name, of in reports.items():
        start, report = f"{data}.{name}_ids", average_seeds(list(of.values()))
        groups = strata_of(report.targets, counts_N)
        figures |= by_group(start, of, groups)
        for metric in (metric for metric in BEYOND if metric in report.figures):
            figure = as_figure(report.figures[metric], unit_of(metric))
            figures[f"{start}.{metric}"] = {**figure, "seeds": sorted(of)}
        for baseline in baselines_of(name):
            if baseline in reports:
                pair = f"{start}_minus_{baseline}_ids"
                figures |= differences(pair, of, reports[baseline], groups)
    return figures, sorted({seed for of in (*reports.values(), *ids.values()) for seed in of})


def id_figures(start: str, of: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Means of the figures of IDs over the seeds that have them: older runs may lack some."""
    figures = {}
    for name in dict.fromkeys(name for found in of.values() for name in found):
        values = {seed: float(of[seed][name]) for seed in sorted(of) if name in of[seed]}
        figures[f"{start}.{name}"] = {
            "value": round(float(np.mean(list(values.values()))), 6),
            "unit": unit_of_ids(name),
            "seeds": list(values),
            "by_seed": [round(value, 6) for value in values.values()],
        }
    return figures


def unit_of_ids(figure: str) -> str:
    """The unit of a figure of IDs; a stratum before the name does not change it."""
    name = figure.rsplit(".", 1)[-1]
    if name.startswith("entropy_level_"):
        return "nats"
    return {"fit_seconds": "s", "largest_group": "items", "mean_length": "codes"}.get(name, "ratio")


def short(report: Report) -> str:
    """The main figures in one line."""
    return " ".join(f"{metric} {report.figures[metric].value:.4f}" for metric in METRICS)


if __name__ == "__main__":
    main()
