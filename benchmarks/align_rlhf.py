"""RLHF on item choices in the simulated shop: a reward model from clicks, PPO, and what was true.

    python benchmarks/align_rlhf.py --seconds 40 --seeds 0 1 2

A supervised policy (start). A Bradley-Terry reward model learns from what half of the users clicked
and left in the lists they were shown; PPO follows it on the contexts of the others, with KL to the
start (ppo; ten times as much of it: ppo_kl_0.5) and without (ppo_no_kl); likelihood on the same
contexts for as long is `sft`. Every user's next visit, after the log, is asked about, where the
truth is known:

    model_reward  mean reward of eight sampled IDs, by the reward model: what PPO pursues
    true_click    P(click | looked at) of the same samples
    true_reward   expected clicks of the list of ten that is served
    kl            nats an ID between the policy and its start, over the samples

and recall@10 of the next logged click, as in the other tables. The reward model itself:
`shop_rlhf.reward_model.pair_accuracy` on shown lists of users whom it has not seen, and
`.true_pair_auc` of pairs of any items on sale by the true probability of a click.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from align_shop import supervised, true_reward_of
from aligned import Bench, over_seeds
from figures import write
from judge import over_users
from judge_tastes import NUM_PAIRS, drawn_pairs, pair_auc

from sidrec import config
from sidrec.align_config import OBJECTIVE, REWARD, SHORT, AlignConfig
from sidrec.aligning import Alignment
from sidrec.alignment.aligner import StepConfig
from sidrec.alignment.log_probs import packed_log_probs
from sidrec.alignment.preferences import of_shop
from sidrec.alignment.rewards.interest_ranker import Slates, paired_slates, slate_logits
from sidrec.alignment.rewards.preference_model import PreferenceModel
from sidrec.alignment.rollouts import RolloutConfig, roll_out
from sidrec.alignment.values import Preferences
from sidrec.data import split
from sidrec.data.shop import Shop, ShopConfig, simulate
from sidrec.pipeline import quiet
from sidrec.recipe import RunConfig
from sidrec.recommender import Recommender
from sidrec.types import Histories, HistoryBatch, Ints

SAMPLES = RolloutConfig(size=8, how="sample")
BLOCK = 256
UNITS = {"kl": "nats", "model_reward": "logits", "true_reward": "clicks"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40.0, help="of training a row, processor")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="*", help="default: all")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    parser.add_argument("--tag", default="", help="added to the name of the file")
    arguments = parser.parse_args()
    runs = [measured(arguments, seed) for seed in arguments.seeds]
    figures = over_seeds([bench for bench, _ in runs], baselines=("start", "sft"), plain="final")
    for name, entry in figures.items():
        if "_minus_" not in name:
            entry["unit"] = UNITS.get(name.split(".")[-1], "ratio")
    for name in runs[0][1]:
        values = [model[name] for _, model in runs]
        entry = over_users([np.concatenate(values)])
        entry["by_seed"] = [round(float(np.nanmean(v)), 4) for v in values]
        figures[f"shop_rlhf.reward_model.{name}"] = entry
        print(name, entry)
    curves = {name: told.curve for name, told in runs[0][0].told.items()}
    path = write(
        "_".join(filter(None, ("align_rlhf", arguments.tag))),
        figures,
        seeds=arguments.seeds,
        command=" ".join(["python", *sys.argv]),
        notes=json.dumps({"curves of the first seed": curves}),
    )
    print(f"wrote {path.name}")


def measured(arguments: argparse.Namespace, seed: int) -> tuple[Bench, dict[str, np.ndarray]]:
    """All rows of one seed, and what the reward model is worth, one value a user."""
    shop = simulate(ShopConfig())
    recommender = supervised(shop, seed, free=False)
    parts = split(shop.dataset, config.parse(RunConfig, recommender.settings).split.rule)
    align = AlignConfig(
        seed=seed,
        contexts=replace(AlignConfig().contexts, source="impressions"),
        objective=config.method(OBJECTIVE, "ppo"),
        rewards=(config.method(REWARD, "preference_model", max_seconds=600.0),),
        rollouts=RolloutConfig(size=16, how="sample"),
        step=StepConfig(sync_steps=4, dropout=False),
        train=replace(
            SHORT,
            epochs=50,
            learning_rate=arguments.rate,
            max_seconds=arguments.seconds,
            clock="processor",
            validate_every_epochs=0.5,
        ),
        guard=False,
    )
    preferences = of_shop(shop, parts.train)
    work = Alignment(recommender, align, shop.dataset, preferences, quiet, None, parts)
    assert work.rewards is not None
    model = work.rewards.components[0][1]
    assert isinstance(model, PreferenceModel)
    truth = Truth(shop, model, recommender)
    bench = Bench(
        data="shop_rlhf", recommender=recommender, dataset=shop.dataset, parts=parts,
        settings=align, preferences=preferences, more=truth, lent=work,
    )  # fmt: skip
    start = bench.measured(recommender.generator.value)
    bench.rows["start"] = {"best": start, "final": start}
    print("start", {metric: round(float(v.mean()), 4) for metric, v in start.items()}, flush=True)
    rows: dict[str, tuple[str, dict[str, Any]]] = {
        "sft": ("grpo", {"nll_weight": 1.0, "group_weight": 0.0, "kl_weight": 0.0}),
        "ppo": ("ppo", {}),
        "ppo_kl_0.5": ("ppo", {"kl_weight": 0.5}),
        "ppo_no_kl": ("ppo", {"kl_weight": 0.0}),
    }
    for name, (objective, options) in rows.items():
        if arguments.rows is None or name in arguments.rows:
            bench.row(name, objective, **options)
    return bench, worth(shop, model, work.preferences, seed)


@dataclass(frozen=True, eq=False)
class Truth:
    """What the reward model and the shop say of a policy at each user's next visit."""

    shop: Shop
    model: PreferenceModel
    start: Recommender

    def __post_init__(self) -> None:
        object.__setattr__(self, "true_reward", true_reward_of(self.shop))

    def __call__(self, one: Recommender) -> dict[str, np.ndarray]:
        """Metric -> value of each user who ever clicked. Draws are the same every time."""
        whole = self.shop.dataset.interactions.histories
        users = np.flatnonzero(whole.lengths > 0)
        asked = whole.take(users)
        policy, start = one.generator.value, self.start.generator.value
        parts: dict[str, list[np.ndarray]] = {"model_reward": [], "true_click": [], "kl": []}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            for first in range(0, len(users), BLOCK):
                rows = np.arange(first, min(first + BLOCK, len(users)))
                batch = HistoryBatch.from_histories(asked, rows, max_length=policy.max_length)
                nobody_B = torch.zeros(len(rows), dtype=torch.long)
                rollouts = roll_out(
                    policy, batch, one.index, SAMPLES, targets_B=nobody_B, users_B=nobody_B,
                    renormalise=True,
                )  # fmt: skip
                before_BGL = packed_log_probs(
                    start, batch, rollouts.codes_BGL, one.index, renormalise=True
                ).token_BKL
                moved_BG = (rollouts.log_probs_BGL - before_BGL).sum(-1)
                items_BG = rollouts.rows_BG.numpy()
                parts["kl"].append(moved_BG.mean(1).numpy())
                parts["model_reward"].append(self.model(rollouts).mean(1).numpy())
                probs_BG = self.shop.click_probs(users[rows], items_BG)
                parts["true_click"].append(probs_BG.mean(axis=1))
        found = {name: np.concatenate(blocks).astype(float) for name, blocks in parts.items()}
        return found | self.true_reward(one)  # type: ignore[attr-defined]


def worth(
    shop: Shop, model: PreferenceModel, unseen: Preferences, seed: int
) -> dict[str, np.ndarray]:
    """Pair accuracy on shown lists of users the model has not seen, and by the truth."""
    kept = unseen.take(np.flatnonzero(unseen.negatives.lengths > 0))
    slates = paired_slates(kept, model.config.num_negatives, np.random.default_rng([seed, 5]))
    scores_SX = slate_logits(model.network, kept.histories, slates)
    margins_SM = scores_SX[:, :1] - scores_SX[:, 1:]
    right_S = ((margins_SM > 0) + 0.5 * (margins_SM == 0)).mean(axis=1)
    found = {"pair_accuracy": by_user(right_S, kept.users_R[slates.contexts_S])}
    whole = shop.dataset.interactions.histories
    users = np.flatnonzero(whole.lengths > 0)
    users = users[np.isin(users, unseen.users_R)]
    rows_QX = drawn_pairs(shop, len(users), seed).reshape(len(users), 2 * NUM_PAIRS)
    said_QX = scored(model, whole.take(users), rows_QX)
    return found | {"true_pair_auc": pair_auc(shop.click_probs(users, rows_QX), said_QX)}


def scored(model: PreferenceModel, histories: Histories, rows_QX: Ints) -> np.ndarray:
    """(Q, X) logits of items after histories."""
    nothing = np.zeros(rows_QX.shape, dtype=bool)
    return slate_logits(model.network, histories, Slates(np.arange(len(rows_QX)), rows_QX, nothing))


def by_user(values_S: np.ndarray, users_S: Ints) -> np.ndarray:
    """The mean of each user."""
    _, rows_S = np.unique(users_S, return_inverse=True)
    return np.bincount(rows_S, weights=values_S) / np.bincount(rows_S)


if __name__ == "__main__":
    main()
