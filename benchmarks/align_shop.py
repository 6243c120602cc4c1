"""AdaGRPO against fixed mixtures in the simulated shop, where the true reward is known.

    python benchmarks/align_shop.py --seconds 60

A ranker learns from the shop's exposure-biased clicks. One supervised policy is aligned by
likelihood alone (sft), fixed mixtures of likelihood and GRPO (mix_<weight>), AdaGRPO, its gates one
by one, and a random gate that admits as many. Recall@10 of the next logged click; true reward: the
expected clicks of the list of ten at each user's next visit; invalid share: of the first ten IDs
that a free beam writes. At every validation, and for the best and the final checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from aligned import Bench, over_seeds
from figures import write

from sidrec import config
from sidrec.admission import analyse
from sidrec.align_config import OBJECTIVE, REWARD, SHORT, AlignConfig
from sidrec.alignment.aligner import StepConfig
from sidrec.alignment.preferences import of_shop
from sidrec.alignment.rollouts import RolloutConfig
from sidrec.cli import output
from sidrec.data import split
from sidrec.data.shop import Shop, ShopConfig, simulate
from sidrec.pipeline import fit
from sidrec.recipe import (
    GENERATOR,
    TOKENIZER,
    DataConfig,
    DecodingConfig,
    HybridConfig,
    RunConfig,
)
from sidrec.recommender import Recommender

WEIGHTS = (0.1, 0.3, 1.0, 3.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of training a row, processor")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of policy and ranker")
    parser.add_argument("--shop-seed", type=int, default=0)
    parser.add_argument("--rows", nargs="*", help="default: all")
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate")
    parser.add_argument(
        "--noise", type=float, default=0.0, help="of the ranker, standard deviation"
    )
    parser.add_argument("--weight", type=float, default=1.0, help="of admitted rollouts (AdaGRPO)")
    parser.add_argument("--cells", action="store_true", help="the 2 x 2 analysis too")
    arguments = parser.parse_args()
    benches = [prepared(arguments, seed) for seed in arguments.seeds]
    for bench in benches:
        for name, (objective, options) in rows(arguments.weight).items():
            if arguments.rows is not None and name not in arguments.rows:
                continue
            if name == "gate_random" and "adagrpo" in bench.told:
                options = {**options, "random_rate": admitted(bench)}
            bench.row(name, objective, **options)
    bench = benches[0]
    if bench.rows:
        figures = over_seeds(benches, baselines=("sft", "gate_random"))
        if "adagrpo" in bench.told:
            rates = [admitted(one) for one in benches]
            figures[f"{bench.data}.adagrpo.admission_rate"] = {
                "value": round(float(np.mean(rates)), 4), "by_seed": rates, "unit": "ratio",
            }  # fmt: skip
        what = "align_shop" + (f"_noise{arguments.noise:g}" if arguments.noise else "")
        curves = {name: told.curve for name, told in bench.told.items()}
        path = write(
            what,
            figures,
            seeds=arguments.seeds,
            command=" ".join(["python", *sys.argv]),
            notes=json.dumps({"curves of the first seed": curves}),
        )
        print(f"wrote {path.name}")
    if arguments.cells:
        path = write(
            "align_shop_cells",
            cells(bench),
            seeds=arguments.seeds[:1],
            command=" ".join(["python", *sys.argv]),
        )
        print(f"wrote {path.name}")


def prepared(arguments: argparse.Namespace, seed: int) -> Bench:
    """The shop, its supervised policy and the contexts to align on."""
    shop = simulate(ShopConfig(seed=arguments.shop_seed))
    recommender = supervised(shop, seed)
    ranker = config.method(REWARD, "ranker", noise=arguments.noise)
    align = AlignConfig(
        seed=seed,
        contexts=replace(AlignConfig().contexts, source="impressions"),
        rewards=(ranker,),
        rollouts=RolloutConfig(size=16, how="beam", constrained=False),
        step=StepConfig(dropout=True, track_kl=True),
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
    parts = split(shop.dataset, config.parse(RunConfig, recommender.settings).split.rule)
    name = f"shop_noise{arguments.noise:g}" if arguments.noise else "shop"
    return Bench(
        data=name, recommender=recommender, dataset=shop.dataset, parts=parts, settings=align,
        preferences=of_shop(shop, parts.train), more=true_reward_of(shop),
    )  # fmt: skip


def supervised(shop: Shop, seed: int, *, free: bool = True) -> Recommender:
    """A causal policy fitted on the shop's log; a `free` one may write IDs that no item holds."""
    options = {"legal_softmax": False, "node_vectors": False} if free else {}
    settings = RunConfig(
        name="shop",
        seed=seed,
        data=DataConfig(name="shop"),
        tokenizer=config.method(TOKENIZER, "residual_kmeans", num_codes=32),
        generator=config.method(GENERATOR, "causal", **options),
        scorers=(),
        hybrid=HybridConfig(members=()),
        decoding=DecodingConfig(renormalise=not free),
    )
    with output.progress() as show:
        return fit(shop.dataset, settings, on_event=show)


def true_reward_of(shop: Shop) -> Callable[[Recommender], dict[str, np.ndarray]]:
    """Of a recommender: the expected clicks of the list of ten at each user's next visit."""
    whole = shop.dataset.interactions.histories
    users = np.flatnonzero(whole.lengths > 0)
    asked = whole.take(users)

    def true_reward(one: Recommender) -> dict[str, np.ndarray]:
        lists = [
            one.candidates(asked.take(block), 10, system="generator").rows_BK
            for block in np.array_split(np.arange(len(users)), 4)
        ]
        return {"true_reward": shop.true_reward(users, np.concatenate(lists)).astype(np.float64)}

    best = shop.true_reward(users, shop.best(users, 10).rows_BK).mean()
    logged = shop.true_reward(users, shop.logging_lists(users, np.random.default_rng(0))).mean()
    print(f"true reward: best possible {best:.4f}, logging policy {logged:.4f}")
    return true_reward


def admitted(bench: Bench) -> float:
    """Share of contexts that AdaGRPO's gates admitted, after the warm-up of its quantiles."""
    rates = [rate for rate in bench.admission["adagrpo"] if rate > 0]
    return round(float(np.mean(rates)), 4)


def rows(weight: float) -> dict[str, tuple[str, dict[str, object]]]:
    """Row -> objective and its options."""
    return {
        "sft": ("adagrpo", {"gate": "closed"}),
        **{
            f"mix_{w}": ("grpo", {"nll_weight": 1.0, "group_weight": w, "kl_weight": 0.0})
            for w in WEIGHTS
        },
        "adagrpo": ("adagrpo", {"group_weight": weight}),
        "adagrpo_3.0": ("adagrpo", {"group_weight": 3.0}),
        "gate_difficulty": ("adagrpo", {"group_weight": weight, "gate": "difficulty"}),
        "gate_discriminability": ("adagrpo", {"group_weight": weight, "gate": "discriminability"}),
        "gate_random": ("adagrpo", {"group_weight": weight, "gate": "random", "random_rate": 0.5}),
    }


def cells(bench: Bench) -> dict[str, dict[str, object]]:
    """The 2 x 2 analysis as figures."""
    figures: dict[str, dict[str, object]] = {}
    settings = replace(bench.settings, objective=config.method(OBJECTIVE, "adagrpo"))
    for cell in analyse(
        bench.recommender, settings, data=bench.dataset, preferences=bench.preferences,
        like=bench.lent, parts=bench.parts,
    ):  # fmt: skip
        key = f"shop.cell.{cell.name.replace(', ', '_').replace(' ', '_')}"
        figures[f"{key}.share"] = {"value": round(cell.share, 4), "unit": "ratio"}
        for metric, figure in (("recall@10", cell.recall), ("ndcg@10", cell.ndcg)):
            if figure is not None:
                figures[f"{key}.{metric}"] = {
                    "value": round(figure.value, 5), "low": round(figure.low or 0, 5),
                    "high": round(figure.high or 0, 5), "unit": "difference", "n": figure.n,
                }  # fmt: skip
        print(cell.summary())
    return figures


if __name__ == "__main__":
    main()
