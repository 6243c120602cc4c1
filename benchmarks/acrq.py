"""ACRQ-style IDs against RQ-VAE on all items at once, at equal numbers of items seen in training.

    python benchmarks/acrq.py --data amazon_beauty --seeds 0 1 2 --epochs 60

Both get the default vectors. Reconstruction error (squared, as a share of the variance of the
group) of head, torso and tail; the paired difference with its interval over items; and processor
seconds until each reached the worse of the two final tail errors, by its error after every epoch.
Figures: `<data>.tokenizer.<method>.<group>.reconstruction_error`,
`<data>.tokenizer.acrq_minus_rqvae.<group>.reconstruction_error`,
`<data>.tokenizer.<method>.{seconds_to_tail_error,train_seconds}`.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import write
from tokenizer_quality import settings_for, vectors_of

from sidrec.data import load_named, split
from sidrec.tokenizers.acrq import Acrq, AcrqConfig, Trace, Traced, popularity_groups
from sidrec.tokenizers.autoencoder import fit_autoencoder
from sidrec.tokenizers.residual_kmeans import codes_per_level, moments
from sidrec.tokenizers.rqvae import RqVae, RqVaeConfig
from sidrec.types import CatalogueContext, Floats, ItemVectors

GROUPS = ("head", "torso", "tail")
METHODS = ("acrq", "rqvae")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="amazon_beauty")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=AcrqConfig().epochs, help="of ACRQ's groups")
    parser.add_argument("--runs", type=Path, default=Path("runs/tokenizers"))
    arguments = parser.parse_args()
    dataset = load_named(arguments.data)
    parts = split(dataset, "leave_one_out")
    settings = settings_for(dataset, "rqvae", arguments.seeds[0], 1)
    vectors = vectors_of(dataset, parts, settings, arguments.runs)
    context = CatalogueContext(dataset.items, parts.train, vectors)
    groups, _ = popularity_groups(vectors.item_ids, AcrqConfig().cuts, context)
    runs = [compare(vectors, context, seed, arguments.epochs) for seed in arguments.seeds]
    figures: dict[str, dict[str, Any]] = {}
    for name, rows in zip(GROUPS, groups, strict=True):
        centred_ND = vectors.vectors[rows] - vectors.vectors[rows].mean(axis=0)
        spread = float(np.square(centred_ND).sum(axis=1).mean())
        errors = {m: np.array([run[m]["errors"][rows] for run in runs]) / spread for m in METHODS}
        for method, errors_SN in errors.items():
            key = f"{arguments.data}.tokenizer.{method}.{name}.reconstruction_error"
            figures[key] = over_items(errors_SN)
            print(method, name, figures[key]["value"])
        key = f"{arguments.data}.tokenizer.acrq_minus_rqvae.{name}.reconstruction_error"
        figures[key] = over_items(errors["acrq"] - errors["rqvae"]) | {"unit": "difference"}
        print(key, {k: figures[key][k] for k in ("value", "low", "high")})
    for method in METHODS:
        for measure in ("seconds_to_tail_error", "train_seconds"):
            values = [round(run[method][measure], 2) for run in runs]
            figures[f"{arguments.data}.tokenizer.{method}.{measure}"] = {
                "value": round(float(np.mean(values)), 2),
                "unit": "s",
                "by_seed": values,
            }
            print(method, measure, values)
    path = write(
        f"acrq_{arguments.data}",
        figures,
        seeds=arguments.seeds,
        command=" ".join(["python", *sys.argv]),
        notes="equal numbers of items seen in training; seconds to the worse of the two final tail "
        f"errors ({[round(run['target'], 4) for run in runs]} by seed)",
    )
    print(f"wrote {path.name}")


def compare(
    vectors: ItemVectors, context: CatalogueContext, seed: int, epochs: int
) -> dict[str, Any]:
    """Squared errors (N,) and seconds of both methods."""
    config = AcrqConfig(epochs=epochs, seed=seed)
    mine = Acrq.fit(vectors, config, context)
    head, *rest = mine.report.num_items
    rest_epochs = epochs // len(rest)
    seen = epochs * head + rest_epochs * sum(sum(rest[: i + 1]) for i in range(len(rest)))
    plain = RqVaeConfig(epochs=max(round(seen / len(vectors)), 1), seed=seed)
    groups, _ = popularity_groups(vectors.item_ids, config.cuts, context)
    mean_D, deviation_D = moments(vectors.vectors, plain.standardise)
    points_ND = torch.from_numpy((vectors.vectors - mean_D) / deviation_D)
    trace = Trace(points_ND[groups[-1]])
    sizes = codes_per_level("rqvae", plain.num_codes, plain.num_levels)
    model = fit_autoencoder(points_ND, sizes, plain, partial(Traced, trace=trace))
    theirs = RqVae.of(model, plain, mean_D, deviation_D)
    traces = {
        "acrq": (mine.report.tail_errors, mine.report.seconds),
        "rqvae": (trace.errors, trace.seconds),
    }
    target = max(tail_errors[-1] for tail_errors, _ in traces.values())
    found: dict[str, Any] = {"target": target}
    for (method, (tail_errors, seconds)), fitted in zip(
        traces.items(), (mine, theirs), strict=True
    ):
        reached = next(i for i, error in enumerate(tail_errors) if error <= target)
        found[method] = {
            "errors": item_errors(fitted, vectors),
            "seconds_to_tail_error": seconds[reached],
            "train_seconds": seconds[-1],
        }
    return found


def item_errors(fitted: RqVae, vectors: ItemVectors) -> Floats:
    """Squared distance (N,) between each vector and the one its codes rebuild."""
    rebuilt_ND = fitted.decode(fitted.encode(vectors).codes)
    return np.square(vectors.vectors - rebuilt_ND).sum(axis=1)


def over_items(values_SN: np.ndarray) -> dict[str, Any]:
    """Mean over seeds and items, with a 95 % interval over items."""
    values_N = values_SN.mean(axis=0)
    mean = float(values_N.mean())
    half = 1.96 * float(values_N.std(ddof=1) / np.sqrt(len(values_N)))
    return {
        "value": round(mean, 5),
        "low": round(mean - half, 5),
        "high": round(mean + half, 5),
        "unit": "ratio",
        "n": len(values_N),
        "by_seed": [round(float(value), 5) for value in values_SN.mean(axis=1)],
    }


if __name__ == "__main__":
    main()
