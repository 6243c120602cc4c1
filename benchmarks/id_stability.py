"""How long IDs live: fit on the first 80 % of the events and again on all of them.

    python benchmarks/id_stability.py recipes/beauty.toml --seed 0 --runs DIR

Test events (every user's last) are set aside. Of the rest, the first 80 % (in time; of each user
where the data have no clock, as Amazon's sequence files) make the *old* embedder, tokenizer and
generator; all of them make the *new* embedder and tokenizer. Text alone
would give the same vectors twice, so vectors are `fusion`, text beside collaborative, whatever the
recipe says (`--embedding recipe` keeps its own). The catalogue is the same. Then the old generator,
its weights and item vectors unchanged, is asked the test questions through

  kept         the old IDs: the reference
  refitted     those of the new tokenizer as they are
  relabelled   the same after `lifecycle.migration`
  warm_start   those of a tokenizer started from the old IDs, then relabelled (a recipe's `parent`);
               residual_kmeans starts from them, others are only relabelled

Figures: `<dataset>.id_stability.<ids>.kept_depth<d>`: share of the items whose first d codes are
the old ones; `<dataset>.<generator>.ids_<ids>.<metric>`, and `ids_<ids>_minus_kept`, paired.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import as_figure, write

from sidrec import config, methods
from sidrec.cli import output
from sidrec.data import split
from sidrec.embeddings.cache import fit_embed
from sidrec.evaluation import EvaluationContext, Report, compare, evaluate
from sidrec.fitted import Fitted
from sidrec.processes import choose_device
from sidrec.recipe import EMBEDDING, RunConfig, load_config, read_data
from sidrec.recommender import Recommender
from sidrec.tokenizers.lifecycle import churn, migration
from sidrec.training import train
from sidrec.types import CatalogueContext, Dataset, Examples, Histories, SemanticIds, Split

METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.8, help="of the events, the first")
    parser.add_argument("--runs", type=Path, default=Path("runs/id_stability"))
    parser.add_argument("--embedding", choices=("fusion", "recipe"), default="fusion")
    parser.add_argument("--max-seconds", type=float, help="of training (default: recipe)")
    parser.add_argument("--users", type=int, help="ask at most so many test questions")
    arguments = parser.parse_args()
    settings = replace(load_config(arguments.recipe), seed=arguments.seed)
    if arguments.embedding == "fusion":
        settings = replace(settings, embedding=config.method(EMBEDDING, "fusion"))
    dataset = read_data(settings.data)
    parts = split(dataset, "leave_one_out")
    early, everything = two_fits(dataset, parts, arguments.share)
    folder = arguments.runs / f"{settings.name}-{settings.embedding.name}-seed{arguments.seed}"
    old = fitted(dataset, early, settings, folder / "vectors")
    old = trained(old, early, settings, arguments.max_seconds, folder)
    new = fitted(dataset, everything, settings, folder / "vectors")
    warm = fitted(dataset, everything, settings, folder / "vectors", earlier=old.ids)
    swapped = {
        "kept": (old.ids, old.tokenizer),
        "refitted": (new.ids, new.tokenizer),
        "relabelled": relabelled(old.ids, new),
        "warm_start": relabelled(old.ids, warm),
    }
    examples = some(parts.test, arguments.users)
    reports = {
        name: asked(old.with_ids(*pair), name, replace(parts, test=examples), dataset)
        for name, pair in swapped.items()
    }
    kept = {name: churn(old.ids, ids).kept for name, (ids, _) in swapped.items()}
    figures = all_figures(dataset.name, settings.generator.name, reports, kept)
    depths = [f"kept {depth}" for depth in range(1, old.ids.num_levels + 1)]
    rows = [[name, *kept[name], report.value("recall@10")] for name, report in reports.items()]
    output.table("IDs", ("ids", *depths, "recall@10"), rows)
    path = write(
        f"{settings.name}_id_stability",
        figures,
        seeds=[arguments.seed],
        command=" ".join(["python", *sys.argv]),
        notes=f"old: the first {len(early.items_E)} of {len(everything.items_E)} events, "
        f"{'in time' if dataset.interactions.has_clock else 'of each user'}; vectors: "
        f"{settings.embedding.name}; {reports['kept'].protocol.line()}",
    )
    print(f"wrote {path.name}")


def two_fits(dataset: Dataset, parts: Split, share: float) -> tuple[Histories, Histories]:
    """Sequences of the first share of the events, and of all; test events in neither."""
    events = dataset.interactions
    lengths_U = events.histories.lengths.copy()
    lengths_U[parts.test.user_rows] -= 1
    place_E = np.arange(len(events)) - np.repeat(
        events.histories.offsets[:-1], events.histories.lengths
    )
    known_E = place_E < lengths_U[events.users_E]
    if events.has_clock:
        early_E = events.times_E <= np.quantile(events.times_E[known_E], share)
    else:
        early_E = place_E < np.ceil(share * lengths_U)[events.users_E]

    def of(chosen_E: np.ndarray) -> Histories:
        counts_U = np.bincount(events.users_E[chosen_E], minlength=len(events.user_ids))
        offsets = np.concatenate([[0], np.cumsum(counts_U)]).astype(np.int64)
        return Histories(events.items_E[chosen_E], offsets)

    return of(known_E & early_E), of(known_E)


def fitted(
    dataset: Dataset,
    events: Histories,
    settings: RunConfig,
    folder: Path,
    earlier: SemanticIds | None = None,
) -> Recommender:
    """Embedder, tokenizer and IDs of these events, and a generator that has learnt nothing."""
    chosen, seed, items = settings.tokenizer, settings.seed, dataset.items
    embedding = config.with_seed(settings.embedding.config, seed)
    embedder_class = methods.resolve("embeddings", settings.embedding.name)
    context = CatalogueContext(items, events)
    embedder, vectors = fit_embed(embedder_class, context, embedding, folder)
    context = replace(context, vectors=vectors, earlier_ids=earlier)
    tokenizing = config.with_seed(chosen.config, seed)
    tokenizer = methods.resolve("tokenizers", chosen.name).fit(vectors, tokenizing, context)
    policy = settings.collisions
    resolve = methods.resolve("collisions", policy.name)
    own = () if policy.config is None else (policy.config,)
    ids, _ = resolve(tokenizer.encode(vectors), tokenizer, vectors, *own)
    context = replace(context, semantic_ids=ids)
    generating = config.with_seed(settings.generator.config, seed)
    generator = methods.resolve("generators", settings.generator.name).build(context, generating)
    return Recommender(
        items=items,
        train_counts_N=events.counts(len(items)),
        vectors=vectors,
        ids=ids,
        embedding=Fitted(
            stage="embeddings", name=settings.embedding.name, config=embedding, value=embedder
        ),
        tokenizer=Fitted(stage="tokenizers", name=chosen.name, config=tokenizing, value=tokenizer),
        collisions=settings.collisions,
        generator=Fitted(
            stage="generators",
            name=settings.generator.name,
            config=generating,
            value=generator.eval(),
        ),
        scorers={},
        hybrid=None,
        beam_width=settings.decoding.beam_width,
        renormalise=settings.decoding.renormalise,
        device=torch.device(choose_device(settings.device)),
    )


def trained(
    recommender: Recommender,
    events: Histories,
    settings: RunConfig,
    max_seconds: float | None,
    folder: Path,
) -> Recommender:
    """The generator after all its epochs; nothing is chosen on validation."""
    assert settings.generator.train is not None
    training = config.with_seed(settings.generator.train, settings.seed)
    training = replace(training, max_seconds=max_seconds or training.max_seconds)
    model = recommender.generator.value
    where = folder / f"training-{settings.generator.name}-{recommender.ids_version[:12]}"
    train(model, events, training, validate=None, run_dir=where, device=settings.device)
    model = model.to(recommender.device).eval()
    return replace(recommender, generator=replace(recommender.generator, value=model))


def relabelled(old: SemanticIds, new: Recommender) -> tuple[SemanticIds, Fitted]:
    """IDs and tokenizer of a re-fit, speaking the old codes."""
    found = migration(old, new.ids)
    tokenizer = replace(new.tokenizer, value=found.apply_to(new.tokenizer.value))
    return found.apply(new.ids), tokenizer


def some(examples: Examples, most: int | None) -> Examples:
    """At most so many questions, the same ones every time."""
    if most is None or most >= len(examples):
        return examples
    rows = np.random.default_rng(0).choice(len(examples), most, replace=False)
    return examples.take(np.sort(rows).astype(np.int64))


def asked(recommender: Recommender, name: str, parts: Split, dataset: Dataset) -> Report:
    """The generator's report on the test questions."""
    system = recommender.generator.name
    return evaluate(
        name,
        parts.test,
        context=EvaluationContext.of(
            parts, data_hash=dataset.content_hash, semantic_ids=recommender.ids
        ),
        candidates=lambda b, k, seen: recommender.answer(
            system, b.to(recommender.device), k, exclude=seen
        ),
        max_length=recommender.max_length(system),
        shared_codes=bool((recommender.ids.group_sizes_N > 1).any()),
        beam=recommender.beam_width,
    )


def all_figures(
    dataset: str,
    system: str,
    reports: Mapping[str, Report],
    kept: Mapping[str, tuple[float, ...]],
) -> dict[str, dict[str, Any]]:
    """Figures by their names."""
    figures: dict[str, dict[str, Any]] = {}
    for name, report in reports.items():
        for depth, share in enumerate(kept[name], 1):
            figures[f"{dataset}.id_stability.{name}.kept_depth{depth}"] = {
                "value": round(share, 5),
                "unit": "ratio",
            }
        for metric in METRICS:
            figures[f"{dataset}.{system}.ids_{name}.{metric}"] = as_figure(report.figures[metric])
            if name == "kept":
                continue
            paired = compare(report, reports["kept"], metric)
            figures[f"{dataset}.{system}.ids_{name}_minus_kept.{metric}"] = {
                "value": round(paired.value, 5),
                "low": round(paired.low, 5),
                "high": round(paired.high, 5),
                "p": round(paired.p, 5),
                "unit": "difference",
                "n": paired.n,
            }
    return figures


if __name__ == "__main__":
    main()
