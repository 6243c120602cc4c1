"""S-GRec: how a semantic reward may join the business reward, on two Amazon sets.

    python benchmarks/align_s_grec.py --data amazon_industrial --seeds 0 1 2 --seconds 60

The published targets of the sets (each user's events in time order, those marked valid and test
are questions) over what of their histories could be had: numbers do not compare with published
ones. Business reward: matched prefix plus rank penalty, from the log alone, or with `--business
ranker` a trained ranker's probability, which is hardly ever silent. Semantic reward: the embedded
judge. Rows: likelihood alone for as long (sft), business alone, sum of rewards, sum of standardised
advantages, A2PO with every group judged and with 5 %. The `_conflict` rows take the opposite of
the business reward for the semantic one, ten times as large.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl
from aligned import Bench, over_seeds, real_data
from figures import write
from torch import Tensor

from sidrec import config, methods
from sidrec.align_config import REWARD, SHORT, AlignConfig
from sidrec.alignment.aligner import StepConfig
from sidrec.alignment.rollouts import RolloutConfig
from sidrec.alignment.values import AlignmentContext, Rollouts
from sidrec.cli import output
from sidrec.data import load_named
from sidrec.pipeline import Stages
from sidrec.recipe import GENERATOR, DataConfig, HybridConfig, default_config
from sidrec.types import Dataset, Examples, Histories, Split

FUSIONS = ("reward_sum", "advantage_sum", "a2po")
BUSINESS = {
    "log": (config.method(REWARD, "prefix"), config.method(REWARD, "rank_aware")),
    "ranker": (config.method(REWARD, "ranker"),),
}


@dataclass(frozen=True, kw_only=True)
class OppositeConfig:
    """Settings of `Opposite`."""

    weight: float = 1.0
    business: str = "log"


@dataclass(frozen=True, eq=False)
class Opposite:
    """Ten times the opposite of the business reward: a judge that conflicts on purpose."""

    config_class: ClassVar[type] = OppositeConfig
    learns: ClassVar[bool] = True  # nothing, but so it sees the contexts that the judge's rows see
    rewards: tuple[Any, ...]

    @classmethod
    def build(cls, context: AlignmentContext, config: OppositeConfig) -> Self:
        return cls(
            tuple(
                methods.resolve("rewards", one.name).build(context, one.config)
                for one in BUSINESS[config.business]
            )
        )

    def __call__(self, rollouts: Rollouts) -> Tensor:
        return -10.0 * sum(reward(rollouts) for reward in self.rewards)  # type: ignore[return-value]


def main() -> None:
    methods.METHODS["rewards"]["opposite"] = f"{Opposite.__module__}:Opposite"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="amazon_industrial")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training a row, processor")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--business", choices=tuple(BUSINESS), default="log")
    parser.add_argument("--rows", nargs="*")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    parser.add_argument("--nll", type=float, default=0.0, help="weight of likelihood in every row")
    parser.add_argument("--runs", type=Path, default=Path("runs/align"))
    parser.add_argument("--tag", default="", help="added to the name of the file")
    parser.add_argument("--part", choices=("test", "valid"), default="test")
    arguments = parser.parse_args()
    benches = [measured(arguments, seed) for seed in arguments.seeds]
    figures = over_seeds(benches, baselines=("sft", "grpo_business"))
    for bench in benches[:1]:
        for name, told in bench.told.items():
            judge = told.counts.get("judge")
            if judge:
                print(name, judge)
    if arguments.part == "test":
        path = write(
            "_".join(filter(None, ("align_s_grec", arguments.tag, arguments.data))),
            figures,
            seeds=arguments.seeds,
            command=" ".join(["python", *sys.argv]),
            notes=benches[0].parts.rule,
        )
        print(f"wrote {path.name}")


def measured(arguments: argparse.Namespace, seed: int) -> Bench:
    """All rows of one seed."""
    dataset = load_named(arguments.data)
    parts = official(dataset, real_data(arguments.data))
    if arguments.part == "valid":
        parts = replace(parts, test=parts.valid)
    settings = replace(
        default_config(dataset),
        seed=seed,
        data=DataConfig(name=arguments.data),
        generator=config.method(GENERATOR, "causal"),
        scorers=(),
        hybrid=HybridConfig(members=()),
    )
    with output.progress() as show:
        stages = Stages(dataset, settings, arguments.runs / f"{arguments.data}-seed{seed}", show)
        stages.split = parts
        recommender = stages.recommender
    align = AlignConfig(
        seed=seed,
        rewards=BUSINESS[arguments.business],
        judge=config.method(REWARD, "judge"),
        contexts=replace(AlignConfig().contexts, reward_share=0.3),
        rollouts=RolloutConfig(size=16),
        step=StepConfig(judged_share=1.0),
        train=replace(
            SHORT,
            epochs=1000,
            learning_rate=arguments.rate,
            max_seconds=arguments.seconds,
            clock="processor",
            validate_every_epochs=1.0,
        ),
        guard=False,
    )
    bench = Bench(
        data=arguments.data + (".ranker_reward" if arguments.business == "ranker" else ""),
        recommender=recommender,
        dataset=dataset,
        parts=parts,
        settings=align,
    )
    opposite = config.method(REWARD, "opposite", business=arguments.business)
    same = {"nll_weight": arguments.nll}
    rows: dict[str, tuple[str, dict[str, Any]]] = {
        "sft": ("grpo", {"nll_weight": 1.0, "group_weight": 0.0, "kl_weight": 0.0}),
        "grpo_business": ("a2po", {"fusion": "business", **same}),
        **{fusion: ("a2po", {"fusion": fusion, **same}) for fusion in FUSIONS},
        "a2po_judge5": ("a2po", {"fusion": "a2po", "step": {"judged_share": 0.05}, **same}),
        "reward_sum_conflict": ("a2po", {"fusion": "reward_sum", "judge": opposite, **same}),
        "a2po_conflict": ("a2po", {"fusion": "a2po", "judge": opposite, **same}),
    }
    for name, (objective, options) in rows.items():
        if not arguments.rows or name in arguments.rows:
            bench.row(name, objective, **options)
    return bench


def official(dataset: Dataset, folder: Path) -> Split:
    """Events marked train, then each marked valid or test a question after all before it."""
    table = pl.read_parquet(folder / "interactions.parquet").sort("user_id", "position")
    marks = dict(table.group_by("user_id", maintain_order=True).agg("split").iter_rows())
    sequences = dataset.interactions.histories
    train: list[list[int]] = []
    asked: dict[str, list[tuple[int, list[int], int]]] = {"valid": [], "test": []}
    for row, user in enumerate(dataset.interactions.user_ids):
        events, labels = sequences[row].tolist(), marks[int(user)]
        train.append([e for e, label in zip(events, labels, strict=True) if label == "train"])
        for place, label in enumerate(labels):
            if label != "train" and place:
                asked[label].append((row, events[:place], events[place]))

    def examples(part: str) -> Examples:
        rows, histories, targets = zip(*asked[part], strict=True)
        return Examples(
            np.array(rows, dtype=np.int64),
            Histories.from_lists(histories),
            np.array(targets, dtype=np.int64),
        )

    return Split(
        train=Histories.from_lists(train), valid=examples("valid"), test=examples("test"),
        num_items=len(dataset.items),
        rule="the published targets: every event marked valid or test is a question, asked after "
        "all events before it; ties count by expectation; seen items stay",
    )  # fmt: skip


if __name__ == "__main__":
    main()
