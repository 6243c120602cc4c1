"""Does the semantic judge find the tastes of users whose tastes are known? In the simulated shop.

    python benchmarks/judge_tastes.py --seeds 0 1 2

Each seed is a shop, its log and a judge fitted on all of that log. Every user's next visit, after
the log, asks about pairs of items drawn from those on sale. Truth: the user's weighted aspects of
an item (`tastes`), without what makes it appeal to everybody, or the probability of a click on it
(`clicks`), with that. Pair AUC: share of a user's pairs in the true order. Point accuracy: share of
items rightly told to be above or below the median of the truth, the threshold on the score chosen
on the other half of the users. Intervals are over the users of all shops.

Figures: `judge.<back end>.shop_tastes.{pair_auc,point_accuracy}`, the same under `clicks.`,
`.clear.pair_auc` for pairs whose logits differ by more than 1, `.same_category.pair_auc`,
`.<aspect>.pair_auc` of one aspect alone, `.weights_<kind>.pair_auc` for ways of weighing and
`.weights_<kind>_minus_learned.pair_auc`, and `.weight_<aspect>.correlation` of a user's weight with
the true one (`.weights_<kind>.weight_<aspect>.correlation`). Kinds: learned from shown lists, as
the judge is; `sampled`: from drawn negatives; `levels`, `uniform`; `mean` and `levels_mean`: the
mean user's weights for all. To compare with:
`judge.preference_model.shop_tastes.*`, a reward model trained on the same shown lists;
`judge.truth.shop_tastes.*`, the true aspects one by one, under uniform and under mean weights, and
popularity.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from figures import write
from judge import best_threshold, over_users

from sidrec.alignment.judge.judge import Judge, JudgeConfig
from sidrec.alignment.preferences import of_shop
from sidrec.alignment.rewards.interest_ranker import Slates, slate_logits
from sidrec.alignment.rewards.preference_model import PreferenceModel, PreferenceModelConfig
from sidrec.alignment.values import AlignmentContext
from sidrec.data.shop import Shop, ShopConfig, simulate
from sidrec.embeddings.lsa import Lsa, LsaConfig
from sidrec.types import CatalogueContext, Floats, Histories, Ints, SemanticIds

BACKENDS = ("embedded", "similarity", "preference_model")
NUM_PAIRS = 20
CLEAR = 1.0
"""Logits that differ by more make a pair clear."""
TRUE_ASPECT = {"profile": "profile", "future": "interest", "novelty": "novelty"}
Values = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Asked:
    """One shop, its users' next visits, and pairs of items to judge."""

    shop: Shop
    users_Q: Ints
    rows_QX: Ints
    """Items 2p and 2p + 1 are pair p."""

    @classmethod
    def of(cls, seed: int) -> Asked:
        """All users who ever clicked, with pairs drawn from what is on sale after the log."""
        shop = simulate(ShopConfig(seed=seed))
        users_Q = np.flatnonzero(shop.dataset.interactions.histories.lengths > 0)
        return cls(shop, users_Q, drawn_pairs(shop, len(users_Q), seed).reshape(len(users_Q), -1))

    @property
    def histories(self) -> Histories:
        return self.shop.dataset.interactions.histories.take(self.users_Q)

    def context(self, seed: int) -> AlignmentContext:
        """What a judge may see: all of the log."""
        shop = self.shop
        items, log = shop.dataset.items, shop.dataset.interactions.histories
        vectors = Lsa.fit(CatalogueContext(items, log), LsaConfig(dim=64)).embed(items)
        ids = SemanticIds(items.item_ids, np.arange(len(items))[:, None], (len(items),))
        return AlignmentContext(items, vectors, ids, log, of_shop(shop), seed=seed)

    def tastes(self) -> tuple[Floats, dict[str, Floats]]:
        """(Q, X) the personal part of a click's logit, and the aspects it weighs and adds."""
        aspects = self.shop.aspects(self.users_Q, self.rows_QX)
        weights_QA = self.shop.tastes.weights_UA[self.users_Q]
        return np.einsum("aqx,qa->qx", np.stack([*aspects.values()]), weights_QA), aspects

    def click_logits(self) -> Floats:
        """(Q, X) logit of P(click | looked at)."""
        probs_QX = self.shop.click_probs(self.users_Q, self.rows_QX).astype(np.float64)
        return np.log(probs_QX) - np.log1p(-probs_QX)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS))
    parser.add_argument("--tag", default="", help="added to the name of the file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    shops = [Asked.of(seed) for seed in arguments.seeds]
    found = {"truth": [bounds(asked) for asked in shops]}
    for backend in arguments.backends:
        measure = reward_model if backend == "preference_model" else judged
        found[backend] = [
            measure(asked, backend, asked.context(seed))
            for asked, seed in zip(shops, arguments.seeds, strict=True)
        ]
    for backend, runs in found.items():
        for name in runs[0]:
            values = [run[name] for run in runs]
            key = f"judge.{backend}.shop_tastes.{name}"
            if name.endswith("correlation"):
                figures[key] = correlation(values)
            else:
                figures[key] = over_users([np.concatenate(values)])
                figures[key]["by_seed"] = [round(float(np.nanmean(v)), 4) for v in values]
            if "_minus_" in name:
                figures[key]["unit"] = "difference"
            shown = {k: figures[key][k] for k in ("value", "low", "high", "by_seed")}
            print(key, shown, flush=True)
    path = write(
        "_".join(filter(None, ("judge_tastes", arguments.tag))),
        figures,
        seeds=arguments.seeds,
        command=" ".join(["python", *sys.argv]),
        notes=f"a shop a seed; {NUM_PAIRS} pairs a user at the first visit after the log; LSA "
        "vectors; weights learned from the shop's shown lists",
    )
    print(f"wrote {path.name}")


def drawn_pairs(shop: Shop, num: int, seed: int) -> Ints:
    """(num, NUM_PAIRS, 2) different items on sale after the log."""
    rng = np.random.default_rng([seed, 7])
    on_sale = np.flatnonzero(shop.world.catalogue.release_days_N <= shop.config.num_days)
    first = rng.integers(len(on_sale), size=(num, NUM_PAIRS))
    step = rng.integers(1, len(on_sale), size=first.shape)
    return on_sale[np.stack([first, (first + step) % len(on_sale)], axis=-1)]


def judged(asked: Asked, backend: str, context: AlignmentContext) -> Values:
    """Everything of one judge on one shop; two values a user for correlations, else one."""
    shop = asked.shop
    plain = backend == "similarity"
    config = JudgeConfig(backend=backend, weights="uniform" if plain else "learned")  # type: ignore[arg-type]
    judge = Judge.build(context, config)
    scores_QXA = judge.evidence(asked.histories, asked.rows_QX, with_texts=False).scores_BGA
    weights_QA = judge.weights(asked.histories)
    whole_QX = weighed(scores_QXA, weights_QA)
    values, tastes_QX = compared(asked, whole_QX), asked.tastes()[0]
    for place, name in enumerate(judge.aspects):
        values[f"{name}.pair_auc"] = pair_auc(tastes_QX, scores_QXA[..., place])
    if plain:
        return values
    others = {
        "sampled": judge.reweighed(replace(context, preferences=None), "learned"),
        "levels": judge.reweighed(context, "levels"),
        "uniform": judge.reweighed(context, "uniform"),
    }
    weights = {kind: other.weights(asked.histories) for kind, other in others.items()}
    weights["mean"] = np.broadcast_to(weights_QA.mean(axis=0), weights_QA.shape)
    levels_A = weights["levels"].mean(axis=0)
    weights["levels_mean"] = np.broadcast_to(levels_A, weights_QA.shape)
    for kind, other_QA in weights.items():
        auc_Q = pair_auc(tastes_QX, weighed(scores_QXA, other_QA))
        values[f"weights_{kind}.pair_auc"] = auc_Q
        values[f"weights_{kind}_minus_learned.pair_auc"] = auc_Q - values["pair_auc"]
    true = dict(zip(asked.tastes()[1], shop.tastes.weights_UA[asked.users_Q].T, strict=True))
    total_Q = sum(true[name] for name in TRUE_ASPECT.values())
    personal = {"": weights_QA, **{f"weights_{k}.": weights[k] for k in ("sampled", "levels")}}
    for prefix, found_QA in personal.items():
        for place, name in enumerate(judge.aspects):
            pair = np.stack([found_QA[:, place], true[TRUE_ASPECT[name]] / total_Q])
            values[f"{prefix}weight_{name}.correlation"] = pair
            values[f"{prefix}weight_{name}.mean"] = found_QA[:, place]
    return values


def reward_model(asked: Asked, _: str, context: AlignmentContext) -> Values:
    """The same of a reward model trained on the same shown lists."""
    model = PreferenceModel.build(context, PreferenceModelConfig(max_seconds=600.0))
    fillers = np.zeros(asked.rows_QX.shape, dtype=bool)
    slates = Slates(np.arange(len(asked.users_Q)), asked.rows_QX, fillers)
    return compared(asked, slate_logits(model.network, asked.histories, slates))


def bounds(asked: Asked) -> Values:
    """What the true aspects say without the user's own weights, and what popularity says."""
    tastes_QX, aspects = asked.tastes()
    parts_QXA = np.stack([*aspects.values()], axis=-1)
    mean_A = asked.shop.tastes.weights_UA.mean(axis=0)
    counts_N = asked.shop.dataset.interactions.histories.counts(len(asked.shop.dataset.items))
    return {
        **{f"{name}.pair_auc": pair_auc(tastes_QX, part) for name, part in aspects.items()},
        "weights_uniform.pair_auc": pair_auc(tastes_QX, parts_QXA.mean(axis=-1)),
        "weights_mean.pair_auc": pair_auc(tastes_QX, parts_QXA @ mean_A),
        "popularity.pair_auc": pair_auc(tastes_QX, counts_N[asked.rows_QX]),
        "clicks.popularity.pair_auc": pair_auc(asked.click_logits(), counts_N[asked.rows_QX]),
    }


def compared(asked: Asked, scores_QX: np.ndarray) -> Values:
    """Scores against tastes and clicks; pairs of one category apart."""
    tastes_QX, _ = asked.tastes()
    values = against(tastes_QX, scores_QX)
    values |= {f"clicks.{n}": v for n, v in against(asked.click_logits(), scores_QX).items()}
    categories_QX = asked.shop.world.catalogue.categories_N[asked.rows_QX]
    alike_QP = categories_QX[:, ::2] == categories_QX[:, 1::2]
    return values | {"same_category.pair_auc": pair_auc(tastes_QX, scores_QX, alike_QP)}


def against(truth_QX: np.ndarray, scores_QX: np.ndarray) -> Values:
    """Pair AUC, of all and of clear pairs, and point accuracy of each user."""
    clear_QP = np.abs(truth_QX[:, ::2] - truth_QX[:, 1::2]) > CLEAR
    return {
        "pair_auc": pair_auc(truth_QX, scores_QX),
        "clear.pair_auc": pair_auc(truth_QX, scores_QX, clear_QP),
        "point_accuracy": point_accuracy(truth_QX, scores_QX),
    }


def weighed(scores_QXA: np.ndarray, weights_QA: np.ndarray) -> np.ndarray:
    """(Q, X) sums of aspects by the users' weights."""
    return (scores_QXA * weights_QA[:, None]).sum(axis=2)


def pair_auc(
    truth_QX: np.ndarray, scores_QX: np.ndarray, counts_QP: np.ndarray | None = None
) -> np.ndarray:
    """(Q,) share of pairs in the true order, ties of the scores half; NaN without a pair."""
    true_QP = truth_QX[:, ::2] - truth_QX[:, 1::2]
    said_QP = (scores_QX[:, ::2] - scores_QX[:, 1::2]) * np.sign(true_QP)
    right_QP = (said_QP > 0) + 0.5 * (said_QP == 0)
    used_QP = (true_QP != 0) if counts_QP is None else (true_QP != 0) & counts_QP
    num_Q = used_QP.sum(axis=1)
    return np.where(num_Q, (right_QP * used_QP).sum(axis=1) / np.maximum(num_Q, 1), np.nan)


def point_accuracy(truth_QX: np.ndarray, scores_QX: np.ndarray) -> np.ndarray:
    """(Q,) share of items rightly put above or below the median of the truth over all users.

    Every other user is judged by the threshold that is best for the users between them.
    """
    good_QX = truth_QX > np.median(truth_QX)
    right_Q = np.empty(len(truth_QX))
    for half in (0, 1):
        learnt, judged = slice(1 - half, None, 2), slice(half, None, 2)
        good, bad = (scores_QX[learnt][good_QX[learnt] == side] for side in (True, False))
        num = min(len(good), len(bad))
        threshold = best_threshold(np.stack([good[:num], bad[:num]], axis=1))
        right_Q[judged] = ((scores_QX[judged] > threshold) == good_QX[judged]).mean(axis=1)
    return right_Q


def correlation(pairs_S: list[np.ndarray]) -> dict[str, Any]:
    """Pearson's inside shops, over the users of all of them, with a 95 % interval over users."""
    standard_S = [(p - p.mean(1, keepdims=True)) / p.std(1, keepdims=True) for p in pairs_S]
    found_Q, true_Q = np.concatenate(standard_S, axis=1)
    rng = np.random.default_rng(0)
    draws = rng.integers(len(found_Q), size=(1000, len(found_Q)))
    resampled = [np.corrcoef(found_Q[rows], true_Q[rows])[0, 1] for rows in draws]
    low, high = np.quantile(resampled, [0.025, 0.975])
    by_seed = [round(float(np.corrcoef(*pair)[0, 1]), 4) for pair in pairs_S]
    return {
        "value": round(float(np.corrcoef(found_Q, true_Q)[0, 1]), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "unit": "ratio",
        "n": len(found_Q),
        "by_seed": by_seed,
    }


if __name__ == "__main__":
    main()
