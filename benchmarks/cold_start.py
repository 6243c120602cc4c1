"""Cold start: items that no training saw, added to a finished recommender, then asked for.

    python benchmarks/cold_start.py recipes/beauty.toml --seeds 0 --share 0.05 --runs DIR

A random share of the items leaves the data: their events leave every sequence and they leave the
catalogue that embedder, tokenizer and models are built from. The recipe is fitted on the rest, the
hybrid weighed on the rest's validation questions, and the items come back with `add_items`. Then
every test question of the whole data is asked, with its whole history. *cold* are the questions
whose target is one of the items that came back, *warm* the others. Users who would keep fewer than
three events are left out of the fit, since their last event would be trained on.

Every system is asked twice: as the recipe decodes, and with `decoding.new_item_share` (a part of
every list kept for items without training events, ranked among themselves by the same system).
`content_knn` is added to the systems as the floor. Scorers that hold no vectors (popularity,
transition_graph) cannot name a new item: their 0 is by construction. Figures:
`<dataset>.<system>[.new_items_<percent>pct].{cold,warm_beside_cold,all_with_cold}.<metric>`, and
`cold.{new_share,invalid_share}@10`: places of the lists that new items take, and that no item does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from figures import as_figure, write
from numpy.typing import NDArray

from sidrec import config
from sidrec.cli import output
from sidrec.config import Method
from sidrec.data import split
from sidrec.data.validation import content_hash
from sidrec.errors import ConfigError
from sidrec.evaluation import EvaluationContext, rank_all
from sidrec.evaluation.report import figures_of, report_of
from sidrec.pipeline import run
from sidrec.recipe import SCORER, RunConfig, load_config, read_data
from sidrec.recommender import Recommender
from sidrec.types import PAD, Bools, Dataset, Examples, Histories, Ints, Items, Split

LEAST_EVENTS = 3
METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10", "new_share@10", "invalid_share@10")
GROUPS = ("cold", "warm_beside_cold", "all_with_cold")
Values = Mapping[str, NDArray[np.float64]]
"""Metric -> (Q,) one value a question."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--share", type=float, default=0.05, help="of the items, removed")
    parser.add_argument("--draw", type=int, default=0, help="seed of which items are removed")
    parser.add_argument("--runs", type=Path, default=Path("runs/cold_start"))
    parser.add_argument("--new-item-shares", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--member", action="store_true", help="content_knn joins the hybrid")
    parser.add_argument("--max-seconds", type=float, help="of training a model (default: recipe)")
    arguments = parser.parse_args()
    settings = with_content_knn(load_config(arguments.recipe), arguments.member)
    if arguments.max_seconds is not None:
        settings = short(settings, arguments.max_seconds)
    dataset = read_data(settings.data)
    cold_N = draw(len(dataset.items), arguments.share, arguments.draw)
    values: dict[str, list[Values]] = {}
    for seed in arguments.seeds:
        kind = "-member" if arguments.member else ""
        folder = arguments.runs / f"{settings.name}-cold{arguments.draw}{kind}-seed{seed}"
        larger, parts = grown(dataset, cold_N, replace(settings, seed=seed), folder)
        for share in arguments.new_item_shares:
            for name, found in measured(larger, parts, share).items():
                values.setdefault(name, []).append(found)
    figures = all_figures(dataset.name, values, parts.test.targets >= (~cold_N).sum())
    rows = [
        [name, *(figures[f"{dataset.name}.{name}.{g}.recall@10"]["value"] for g in GROUPS)]
        for name in values
    ]
    output.table("recall@10", ("system", *GROUPS), rows)
    path = write(
        f"{settings.name}_cold_start",
        figures,
        seeds=arguments.seeds,
        command=" ".join(["python", *sys.argv]),
        notes=parts.rule,
    )
    print(f"wrote {path.name}")


def with_content_knn(settings: RunConfig, member: bool) -> RunConfig:
    """The recipe with the text k-NN among its scorers, and in the hybrid where asked."""
    scorers, hybrid = settings.scorers, settings.hybrid
    if all(scorer.name != "content_knn" for scorer in scorers):
        scorers = (*scorers, config.method(SCORER, "content_knn"))
    if member and hybrid.members and "content_knn" not in hybrid.members:
        hybrid = replace(hybrid, members=(*hybrid.members, "content_knn"))
    return replace(settings, scorers=scorers, hybrid=hybrid)


def short(settings: RunConfig, seconds: float) -> RunConfig:
    """The recipe with at most so many seconds of training a model."""

    def cut(chosen: Method) -> Method:
        if chosen.train is None:
            return chosen
        return replace(chosen, train=replace(chosen.train, max_seconds=seconds))

    scorers = tuple(cut(scorer) for scorer in settings.scorers)
    return replace(settings, generator=cut(settings.generator), scorers=scorers)


def draw(num_items: int, share: float, seed: int) -> Bools:
    """(N,) the items to remove, drawn at random from the whole catalogue."""
    cold_N = np.zeros(num_items, dtype=bool)
    chosen = np.random.default_rng(seed).choice(num_items, round(share * num_items), replace=False)
    cold_N[chosen] = True
    return cold_N


def without(dataset: Dataset, cold_N: Bools) -> Dataset:
    """The data as if the items had never been: no row, no event, no user too short to split."""
    events, rows_N = dataset.interactions, np.cumsum(~cold_N) - 1
    kept_E = ~cold_N[events.items_E]
    left_U = np.bincount(events.users_E[kept_E], minlength=len(events.user_ids))
    kept_E &= left_U[events.users_E] >= LEAST_EVENTS

    def of(values: Any) -> Any:
        return None if values is None else values[kept_E]

    interactions = replace(
        events,
        users_E=of(events.users_E),
        items_E=rows_N[of(events.items_E)],
        times_E=of(events.times_E),
        weights_E=of(events.weights_E),
        events_E=of(events.events_E),
        propensities_E=of(events.propensities_E),
    )
    items = some(dataset.items, ~cold_N)
    return Dataset(
        f"{dataset.name}_without_{int(cold_N.sum())}_items",
        items,
        interactions,
        content_hash=content_hash(items, interactions),
    )


def some(items: Items, chosen_N: Bools) -> Items:
    """The chosen rows of a catalogue."""
    return Items(items.item_ids[chosen_N], items.attributes.filter(pl.Series(chosen_N)))


def grown(
    dataset: Dataset, cold_N: Bools, settings: RunConfig, folder: Path
) -> tuple[Recommender, Split]:
    """A recommender fitted without the items and given them afterwards, and the questions."""
    if settings.split.rule != "leave_one_out":
        raise ConfigError("cold_start needs split.rule = 'leave_one_out': cuts in time would move")
    whole = split(dataset, settings.split.rule)
    with output.progress() as show:
        fitted = run(
            settings, run_dir=folder, data=without(dataset, cold_N), on_event=show, evaluate=False
        )
    larger = fitted.recommender.add_items(some(dataset.items, cold_N))
    order_N = np.concatenate([np.flatnonzero(~cold_N), np.flatnonzero(cold_N)])
    row_of_N = np.argsort(order_N)
    rule = (
        f"{whole.rule}; {int(cold_N.sum())} of {len(cold_N)} items removed from training and "
        "catalogue, then added"
    )
    test = moved(whole.test, row_of_N)
    return larger, replace(fitted.split, test=test, num_items=len(cold_N), rule=rule)


def moved(examples: Examples, row_of_N: Ints) -> Examples:
    """The same questions over a catalogue in another order."""
    histories = Histories(row_of_N[examples.histories.items_E], examples.histories.offsets)
    return Examples(examples.user_rows, histories, row_of_N[examples.targets])


def measured(
    recommender: Recommender, parts: Split, share: float, systems: Sequence[str] | None = None
) -> dict[str, Values]:
    """Values of every test question for every system, or these, lists of ten."""
    recommender = replace(recommender, new_item_share=share)
    context = EvaluationContext.of(parts)
    suffix = f".new_items_{round(100 * share)}pct" if share else ""
    new_N = recommender.train_counts_N == 0
    found: dict[str, Values] = {}
    for name in recommender.systems if systems is None else systems:
        rankings = rank_all(
            parts.test,
            candidates=lambda b, k, seen, name=name: recommender.answer(
                name, b.to(recommender.device), k, exclude=seen
            ),
            k=10,
            num_items=len(recommender.items),
            max_length=recommender.max_length(name),
        )
        real_QK = rankings.rows_QK != PAD
        found[name + suffix] = {
            **report_of(name, rankings, context=context, resamples=2).per_user,
            "new_share@10": (new_N[rankings.rows_QK] & real_QK).mean(axis=1),
            "invalid_share@10": (~real_QK).mean(axis=1),
        }
    return found


def all_figures(
    dataset: str, values: Mapping[str, list[Values]], cold_Q: Bools
) -> dict[str, dict[str, Any]]:
    """Figures of every system and group by their names, questions averaged over seeds."""
    figures: dict[str, dict[str, Any]] = {}
    groups = dict(zip(GROUPS, (cold_Q, ~cold_Q, cold_Q | True), strict=True))
    for name, seeds in values.items():
        mean = {metric: np.mean([found[metric] for found in seeds], axis=0) for metric in METRICS}
        for group, chosen in groups.items():
            for metric, figure in figures_of(mean, list(METRICS), chosen=chosen).items():
                figures[f"{dataset}.{name}.{group}.{metric}"] = as_figure(figure)
    return figures


if __name__ == "__main__":
    main()
