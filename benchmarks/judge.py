"""Does the semantic judge tell what comes next from what does not? Pair AUC and point accuracy.

    python benchmarks/judge.py --seeds 0 1 2
    python benchmarks/judge.py --backends endpoint --model qwen3 --base-url http://localhost:8000/v1

A pair is a held-out next event and a random item of like popularity that is not in the history
(among the 50 next more and 50 next less popular). Pair AUC: the share of pairs in the right order.
Point accuracy: the share of right verdicts, one item at a time, by the threshold on the score that
is best on pairs of the validation events. Intervals are over users; seeds are averaged first. The
embedded judge is fitted on training events alone; `similarity` is a judge for tests and weighs all
aspects alike. A language model is given the first `--contexts` users of each set.
Figures: `judge.<back end>.{pair_auc,point_accuracy}` over all users of all sets,
`judge.<back end>.<set>.{pair_auc,point_accuracy,fit_seconds,contexts_per_second}`,
`judge.<back end>.<set>.first_time.pair_auc` where the next event repeats none of the history,
`judge.<back end>.<set>.<aspect>.pair_auc`, `judge.<back end>.<set>.weights_<kind>.pair_auc` for
other ways of weighing, `judge.<back end>.shop.novelty_weight.correlation` with the users' true one.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from figures import write

from sidrec.alignment.judge.judge import LANGUAGE, Judge, JudgeConfig
from sidrec.alignment.values import AlignmentContext
from sidrec.data import load_named, split
from sidrec.data.named import named_vectors
from sidrec.data.shop import Shop, simulate
from sidrec.embeddings.lsa import Lsa, LsaConfig
from sidrec.errors import DataError
from sidrec.evaluation.significance import bootstrap
from sidrec.types import CatalogueContext, Dataset, Examples, Ints, ItemVectors, SemanticIds, Split

SETS = ("amazon_industrial", "amazon_office", "shop")
NEIGHBOURS = 50
"""How far a random item's popularity rank may be from that of the one it is compared with."""
OTHER_WEIGHTS = ("levels", "uniform")
MEASURES = ("pair_auc", "point_accuracy")


@dataclass(frozen=True, eq=False)
class Task:
    """One set, cut, with item vectors."""

    name: str
    dataset: Dataset
    parts: Split
    vectors: ItemVectors
    shop: Shop | None = None

    def context(self, seed: int) -> AlignmentContext:
        """What a judge may see."""
        items = self.dataset.items
        ids = SemanticIds(items.item_ids, np.arange(len(items))[:, None], (len(items),))
        return AlignmentContext(items, self.vectors, ids, self.parts.train, seed=seed)


@dataclass(frozen=True, eq=False)
class Measured:
    """Values of one user a row; NaN where the judge did not answer."""

    values: dict[str, np.ndarray]
    fit_seconds: float
    contexts_per_second: float
    words: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--backends", nargs="+", default=["embedded", "similarity"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--model", default="", help="of a language model")
    parser.add_argument("--base-url", default=JudgeConfig.base_url)
    parser.add_argument("--key-variable", default="")
    parser.add_argument("--contexts", type=int, default=200, help="users for a language model")
    arguments = parser.parse_args()
    tasks = [load(name) for name in arguments.sets]
    figures: dict[str, dict[str, Any]] = {}
    words: list[str] = []
    for backend in arguments.backends:
        config = JudgeConfig(
            backend=backend,  # type: ignore[arg-type]
            weights="uniform" if backend == "similarity" else "learned",
            model=arguments.model,
            base_url=arguments.base_url,
            api_key_variable=arguments.key_variable,
        )
        most = arguments.contexts if backend in LANGUAGE else None
        pooled: dict[str, list[np.ndarray]] = {measure: [] for measure in MEASURES}
        for task in tasks:
            runs = [measure(task, config, seed, most) for seed in arguments.seeds]
            for name in runs[0].values:
                values_S = [run.values[name] for run in runs]
                figures[f"judge.{backend}.{task.name}.{name}"] = over_users(values_S)
                if name in pooled:
                    pooled[name].append(mean_over_seeds(values_S))
            for name, unit in (("fit_seconds", "s"), ("contexts_per_second", "1/s")):
                mean = float(np.mean([getattr(run, name) for run in runs]))
                figures[f"judge.{backend}.{task.name}.{name}"] = {
                    "value": round(mean, 2),
                    "unit": unit,
                }
            figures |= correlations(backend, task, config, arguments.seeds)
            print(f"{task.name}, {backend}: {runs[0].words}")
            if task.shop is not None:  # texts of real sets are not ours to pass on
                words.append(f"{backend}: {runs[0].words}")
        for name, parts in pooled.items():
            figures[f"judge.{backend}.{name}"] = over_users([np.concatenate(parts)])
    for name, figure in figures.items():
        print(name, {k: figure[k] for k in ("value", "low", "high") if k in figure})
    path = write(
        "judge" if set(arguments.backends) <= {"embedded", "similarity"} else "judge_language",
        figures,
        seeds=arguments.seeds,
        command=" ".join(["python", *sys.argv]),
        notes="leave-one-out; MiniLM vectors for the Amazon sets, LSA for the shop; two users of "
        f"the shop in words: {' || '.join(words)}",
    )
    print(f"wrote {path.name}")


def load(name: str) -> Task:
    """The set with its cut and text vectors."""
    if name == "shop":
        shop = simulate()
        parts = split(shop.dataset)
        items = shop.dataset.items
        lsa = Lsa.fit(CatalogueContext(items, parts.train), LsaConfig(dim=64))
        return Task(name, shop.dataset, parts, lsa.embed(items), shop)
    dataset = load_named(name)
    found = named_vectors(name)
    if found is None:
        raise DataError(f"{name} has no ready-made vectors; set SIDREC_DATA to a folder with them")
    row_of = {item_id: row for row, item_id in enumerate(found.item_ids)}
    rows = [row_of[item_id] for item_id in dataset.items.item_ids]
    vectors = ItemVectors(dataset.items.item_ids, found.vectors[rows])
    return Task(name, dataset, split(dataset), vectors)


def measure(task: Task, config: JudgeConfig, seed: int, most: int | None) -> Measured:
    """One fitted judge on the test pairs."""
    context = task.context(seed)
    start = time.perf_counter()
    judge = Judge.build(context, config)
    fit_seconds = time.perf_counter() - start
    counts_N, rng = context.train_counts_N, np.random.default_rng(seed)
    test, valid = (
        part.take(np.arange(min(most or len(part), len(part))))
        for part in (task.parts.test, task.parts.valid)
    )
    test_Q2, valid_Q2 = (pairs(part, counts_N, rng) for part in (test, valid))
    start = time.perf_counter()
    scores_Q2A = judge.evidence(test.histories, test_Q2, with_texts=False).scores_BGA
    weights_QA = judge.weights(test.histories)
    seconds = time.perf_counter() - start
    whole_Q2 = (scores_Q2A * weights_QA[:, None]).sum(axis=2)
    threshold = best_threshold(judge.holistic(valid.histories, valid_Q2))
    right_Q2 = (whole_Q2 > threshold) == np.array([True, False])
    values = {
        "pair_auc": in_order(whole_Q2),
        "point_accuracy": np.where(np.isnan(whole_Q2).any(axis=1), np.nan, right_Q2.mean(axis=1)),
    }
    for place, name in enumerate(judge.aspects):
        values[f"{name}.pair_auc"] = in_order(scores_Q2A[..., place])
    for kind in OTHER_WEIGHTS if config.backend == "embedded" else ():
        other_QA = judge.reweighed(context, kind).weights(test.histories)
        values[f"weights_{kind}.pair_auc"] = in_order((scores_Q2A * other_QA[:, None]).sum(2))
    repeat_Q = np.array(
        [target in test.histories[q] for q, target in enumerate(test.targets)], dtype=bool
    )
    values["first_time.pair_auc"] = np.where(repeat_Q, np.nan, values["pair_auc"])
    if judge.counts()["skipped"] or judge.counts()["over_budget"]:
        print(task.name, config.backend, judge.counts())
    return Measured(values, fit_seconds, len(test) / seconds, in_words(judge, test, weights_QA))


def pairs(questions: Examples, counts_N: Ints, rng: np.random.Generator) -> Ints:
    """(Q, 2) the target, and a random item of like popularity that the history does not hold."""
    order = np.argsort(counts_N, kind="stable")
    place_N = np.empty_like(order)
    place_N[order] = np.arange(len(order))
    rows_Q2 = np.stack([questions.targets, questions.targets], axis=1)
    for question, target in enumerate(questions.targets):
        near = order[max(place_N[target] - NEIGHBOURS, 0) : place_N[target] + NEIGHBOURS + 1]
        taken = np.append(questions.histories[question], target)
        rows_Q2[question, 1] = rng.choice(np.setdiff1d(near, taken))
    return rows_Q2


def in_order(scores_Q2: np.ndarray) -> np.ndarray:
    """(Q,) 1 where the first scores higher, ½ at a tie, NaN where one has no score."""
    gaps_Q = scores_Q2[:, 0] - scores_Q2[:, 1]
    return np.where(np.isnan(gaps_Q), np.nan, (gaps_Q > 0) + 0.5 * (gaps_Q == 0))


def best_threshold(scores_Q2: np.ndarray) -> float:
    """The score above which an item is called the next one with the fewest errors."""
    scores = scores_Q2[~np.isnan(scores_Q2).any(axis=1)]
    edges = np.unique(scores)
    wrong = np.searchsorted(np.sort(scores[:, 0]), edges, side="right") - np.searchsorted(
        np.sort(scores[:, 1]), edges, side="right"
    )
    return float(edges[wrong.argmin()])


def over_users(values_S: list[np.ndarray]) -> dict[str, Any]:
    """Mean over seeds and users with a 95 % interval over users; NaN is left out."""
    mean_Q = mean_over_seeds(values_S)
    mean_Q = mean_Q[~np.isnan(mean_Q)]
    (figure,) = bootstrap(mean_Q[:, None])
    found: dict[str, Any] = {
        "value": round(figure.value, 4),
        "low": round(figure.low or 0.0, 4),
        "high": round(figure.high or 0.0, 4),
        "unit": "ratio",
        "n": figure.n,
    }
    if len(values_S) > 1:
        found["by_seed"] = [round(float(np.nanmean(values)), 4) for values in values_S]
    return found


def mean_over_seeds(values_S: list[np.ndarray]) -> np.ndarray:
    """(Q,) mean of what is known of each user; NaN where nothing is."""
    values_SQ = np.stack(values_S)
    known_Q = (~np.isnan(values_SQ)).sum(axis=0)
    return np.where(known_Q, np.nansum(values_SQ, axis=0) / np.maximum(known_Q, 1), np.nan)


def correlations(
    backend: str, task: Task, config: JudgeConfig, seeds: list[int]
) -> dict[str, dict[str, Any]]:
    """How the learned weight of novelty goes with the shop's users' true appetite for it."""
    if task.shop is None or backend != "embedded":
        return {}
    judge = Judge.build(task.context(seeds[0]), config)
    found_Q = judge.weights(task.parts.test.histories)[:, judge.aspects.index("novelty")]
    true_Q = task.shop.tastes.novelty_U[task.parts.test.user_rows]
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(true_Q), size=len(true_Q)) for _ in range(1000)]
    resampled = [np.corrcoef(found_Q[rows], true_Q[rows])[0, 1] for rows in draws]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {
        f"judge.{backend}.shop.novelty_weight.correlation": {
            "value": round(float(np.corrcoef(found_Q, true_Q)[0, 1]), 4),
            "low": round(float(low), 4),
            "high": round(float(high), 4),
            "unit": "ratio",
            "n": len(true_Q),
        }
    }


def in_words(judge: Judge, test: Examples, weights_QA: np.ndarray) -> str:
    """Weights and evidence of the two users who care least and most for novelty."""
    place = judge.aspects.index("novelty")
    said: list[str] = []
    for question in (int(weights_QA[:, place].argmin()), int(weights_QA[:, place].argmax())):
        chosen = test.take(np.array([question]))
        evidence = judge.evidence(chosen.histories, chosen.targets[:, None])
        rows = zip(judge.aspects, weights_QA[question], evidence.scores_BGA[0, 0],
                   evidence.texts[0][0], strict=True)  # fmt: skip
        parts = [
            f"{name} {score:.2f} (weight {weight:.2f}): {text}"
            for name, weight, score, text in rows
        ]
        said.append(f"user {int(test.user_rows[question])}: " + " ".join(parts))
    return " | ".join(said)


if __name__ == "__main__":
    main()
