"""One model for search and recommendation against one a task, on Beauty with made queries.

    taskset -c 0 python benchmarks/joint_model.py --model scorer --runs runs/joint --write
    taskset -c 0 python benchmarks/joint_model.py --model generator --runs runs/joint --write

Joint and separate models have the same parameters, the same epochs (so every task sees the same
number of its rows) and the same vectors and IDs; the last weights are measured, nothing is chosen
on the questions. Recommendation: the next item of test users. Similar items (scorer only): the same
answer from the last item alone. Search: made queries, none of them, nor a reordering of its words,
among those learnt from. These are words of the answers themselves, which favours BM25; it stands
beside. Coherence is measured by character n-grams, which retrieve nothing here. What is measured is
kept in `--runs`, so that a run goes on where it stopped.
Figures: `joint.{recommend,search,similar}.{joint,separate,…}.ndcg@10`, `joint.iceg`,
`joint.coherence.*`, `joint.swap.*`; those of the generator begin with `joint.generator`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import write
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from sidrec import config, methods
from sidrec.data.search import made_search
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.search import search
from sidrec.evaluation.joint import Encoded, iceg
from sidrec.evaluation.metrics import ndcg
from sidrec.evaluation.protocol import rank_all
from sidrec.evaluation.search import per_query_values
from sidrec.evaluation.significance import bootstrap, paired
from sidrec.fitted import nearest_items
from sidrec.pipeline import Stages
from sidrec.query_words import words_of
from sidrec.recipe import EMBEDDING, DataConfig, RunConfig
from sidrec.retrieval.search.asking import best
from sidrec.retrieval.search.bm25 import Bm25, Bm25Config
from sidrec.retrieval.top_items import top_items
from sidrec.training import train
from sidrec.training_config import TrainConfig
from sidrec.types import Candidates, CatalogueContext, HistoryBatch, SemanticIds

K, BEAM, BLOCK = 10, 20, 128
DATA = "amazon_beauty"
HELD_OUT_SEED = 1_000_003
SEEDS = (0, 1, 2)
"""Models of any of them have not learnt from what is asked."""
TRAINING = TrainConfig(
    batch_positions=768, learning_rate=2e-3, weight_decay=0.1, warmup_steps=100, patience=0,
    clock="processor",
)  # fmt: skip
SCORER = {"width": 64, "num_negatives": 512, "num_hard": 8}
GENERATOR = {"width": 64, "depth_hidden": 128}
Values = dict[str, Any]

SCORERS: dict[str, Values] = {
    "joint": {},
    "recommend": {"similar_weight": 0.0, "search_weight": 0.0},
    "similar": {"recommend_weight": 0.0, "search_weight": 0.0},
    "search": {"recommend_weight": 0.0, "similar_weight": 0.0},
    "no_names": {"recommend_weight": 0.0, "search_weight": 0.0, "impute_names": False},
}
"""Changes of the joint scorer's config; `no_names` is `similar` with absent queries."""
GENERATORS: dict[str, Values] = {
    "joint": {},
    "recommend": {"search_rows": 0.0},
    "search": {"recommend_rows": 0.0},
    "ids_recommend": {},
    "ids_search": {},
    "ids_both": {},
}
ID_WEIGHTS = {"ids_recommend": 0.0, "ids_search": 1.0, "ids_both": 0.5}
"""`search_weight` of the joint vectors that IDs are made of."""


class World:
    """Beauty, its vectors and IDs, and what is asked."""

    def __init__(self, runs: Path, users: int, queries: int, part: str) -> None:
        self.runs = runs
        self.stages = self.stages_of(None)
        self.items = self.stages.dataset.items
        examples = self.stages.split.test if part == "test" else self.stages.split.valid
        random = np.random.default_rng(0)
        known = np.flatnonzero(examples.histories.lengths > 0)
        self.examples = examples.take(np.sort(random.permutation(known)[:users]))
        ends_Q = self.examples.histories.offsets[1:]
        self.last_Q = self.examples.histories.items_E[ends_Q - 1]
        source = methods.resolve("scorers", "unicorn").config_class()
        learnt = {word_set(t) for s in SEEDS for t in source.pairs(self.items, s).texts}
        seed = HELD_OUT_SEED + (0 if part == "test" else 1)
        made = made_search(self.items, per_item=1, max_words=4, seed=seed)
        fresh = [q for q, text in enumerate(made.queries.texts) if word_set(text) not in learnt]
        self.asked = made.take(np.sort(random.permutation(fresh)[:queries]))

    def stages_of(self, search_weight: float | None) -> Stages:
        settings = RunConfig(data=DataConfig(name=DATA))
        if search_weight is not None:
            joint = config.method(EMBEDDING, "joint", search_weight=search_weight, num_steps=500)
            settings = replace(settings, embedding=joint)
        return Stages.of(None, settings, self.runs / "stages", lambda event: None)

    def context(self, ids: SemanticIds | None = None) -> CatalogueContext:
        """The catalogue with LSA vectors, and IDs of these or of others."""
        return replace(self.stages.context, semantic_ids=ids or self.stages.ids)

    @cached_property
    def encoded(self) -> Encoded:
        """Queries and item texts by character n-grams."""
        grams = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(3, 4), max_features=20_000, sublinear_tf=True
        )
        items = grams.fit_transform(self.items.texts())
        narrow = TruncatedSVD(128, n_iter=2, random_state=0)
        items_ND = narrow.fit_transform(items).astype(np.float32)
        asked = grams.transform(self.asked.queries.texts)
        return Encoded(narrow.transform(asked).astype(np.float32), items_ND)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("scorer", "generator"), default="scorer")
    parser.add_argument("--systems", nargs="*", help="only these")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--users", type=int, default=4000)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], choices=SEEDS)
    parser.add_argument("--part", choices=("valid", "test"), default="test")
    parser.add_argument("--write", action="store_true", help="write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = World(arguments.runs, arguments.users, arguments.queries, arguments.part)
    plans = SCORERS if arguments.model == "scorer" else GENERATORS
    chosen = arguments.systems or list(plans)
    found: dict[str, Values] = {}
    for seed in arguments.seeds:
        for name in chosen:
            path = arguments.runs / (
                f"{arguments.model}-{name}-{seed}-{arguments.epochs}-{arguments.part}.npz"
            )
            if not path.is_file():
                measured = measure(arguments.model, name, world, seed, arguments.epochs)
                np.savez(path, **measured)
            with np.load(path) as kept:
                for key in kept.files:
                    found.setdefault(name, {}).setdefault(key, []).append(kept[key])
            shown = {k: round(float(np.nanmean(v[-1])), 4) for k, v in found[name].items()}
            print(name, seed, shown, flush=True)
    values = {n: {k: np.mean(v, axis=0) for k, v in kept.items()} for n, kept in found.items()}
    figures = scorer_figures(values, world) if arguments.model == "scorer" else (
        generator_figures(values)
    )  # fmt: skip
    for key, figure in sorted(figures.items()):
        interval = f" [{figure['low']:.4f}, {figure['high']:.4f}]" if "low" in figure else ""
        print(f"{key}: {figure['value']:.4f}{interval}")
    if arguments.write:
        path = write(
            f"joint_model_{arguments.model}",
            figures,
            seeds=arguments.seeds,
            command=" ".join(["python", *sys.argv]),
            notes=f"{world.stages.split.rule}; {arguments.epochs} epochs of every model; made "
            "queries hold words of their answers; per-context values are means over the seeds",
        )
        print(f"wrote {path.name}")


def measure(model_name: str, system: str, world: World, seed: int, epochs: int) -> Values:
    """Train one system and ask it everything that it learnt."""
    started = time.process_time()
    ids = None
    if system in ID_WEIGHTS:
        ids = world.stages_of(ID_WEIGHTS[system]).ids
    context = world.context(ids)
    training = replace(TRAINING, epochs=epochs, seed=seed)
    if model_name == "scorer":
        method = methods.resolve("scorers", "unicorn")
        settings = method.config_class(**SCORER, **SCORERS[system], seed=seed)
    else:
        method = methods.resolve("generators", "joint")
        settings = method.config_class(**GENERATOR, **GENERATORS[system], seed=seed)
    model = method.build(context, settings)
    result = train(model, world.stages.split.train, training, validate=None, device="cpu")
    model.eval()
    values: Values = {
        "train_seconds": result.train_seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    values |= of_scorer(model, world) if model_name == "scorer" else of_generator(model, world, ids)
    print(f"{system}: {time.process_time() - started:.0f} s in all", flush=True)
    return values


def of_scorer(model: Any, world: World) -> Values:
    """Metrics of the tasks that the scorer learnt, and of flags exchanged where it is joint."""
    values: Values = {}
    weights = dict(zip(("recommend", "similar", "search"), model.config.weights, strict=True))
    if weights["recommend"]:
        values |= ranked("recommend", world, model.scores)
    if weights["similar"]:
        values |= similar(world, lambda rows: model.similar_scores(torch.from_numpy(rows)))
    if weights["search"]:
        values |= searched(world, lambda texts: top_items(model.query_scores(texts), 100))
    if all(weights.values()):
        swapped = ranked("flag_search", world, lambda batch: model.scores(batch, task="search"))
        own_QK, other_QK = values["recommend.rows"], swapped["flag_search.rows"]
        shared = [len(np.intersect1d(a, b)) / K for a, b in zip(own_QK, other_QK, strict=True)]
        values |= {"swap.recommend": swapped["flag_search.ndcg"], "swap.overlap": np.array(shared)}
        asked = searched(
            world, lambda texts: top_items(model.query_scores(texts, task="recommend"), 100)
        )
        values["swap.search"] = asked["search.ndcg"]
    return values


def of_generator(model: Any, world: World, ids: SemanticIds | None) -> Values:
    """The same by beam search, for the two tasks of a generator."""
    index = PrefixIndex.build(ids or world.stages.ids)
    weights_N = torch.from_numpy(world.stages.split.train_counts_N + 1.0)

    @torch.inference_mode()
    def beam(batch: HistoryBatch, k: int, width: int) -> Candidates:
        return search(model, batch, index, k=k, beam_width=width, weights_N=weights_N)

    values: Values = {}
    if model.config.recommend_rows:
        found = rank_all(
            world.examples,
            candidates=lambda batch, k, seen: beam(batch, k, BEAM),
            k=K, num_items=len(world.items), max_length=model.max_length, batch_size=BLOCK,
        )  # fmt: skip
        values["recommend.ndcg"] = ndcg(found.better_Q, found.tied_Q, K)
    if model.config.search_rows:
        values |= searched(world, lambda texts: beam(model.asked(texts), 100, 100))
    return values


def ranked(name: str, world: World, scores: Callable[[HistoryBatch], torch.Tensor]) -> Values:
    """nDCG@10 of the next item, and the lists."""
    found = rank_all(
        world.examples, scores=scores, k=K, num_items=len(world.items), max_length=50,
        batch_size=BLOCK,
    )  # fmt: skip
    return {f"{name}.ndcg": ndcg(found.better_Q, found.tied_Q, K), f"{name}.rows": found.rows_QK}


def similar(world: World, scores: Callable[[Any], torch.Tensor]) -> Values:
    """nDCG@10 of the next item given the last one alone."""
    values = []
    for start in range(0, len(world.last_Q), BLOCK):
        part = slice(start, start + BLOCK)
        scores_BN = scores(world.last_Q[part])
        own_B1 = scores_BN.gather(1, torch.from_numpy(world.examples.targets[part])[:, None])
        better_B, tied_B = (scores_BN > own_B1).sum(1), (scores_BN == own_B1).sum(1) - 1
        values.append(ndcg(better_B.numpy(), tied_B.numpy(), K))
    return {"similar.ndcg": np.concatenate(values)}


def searched(world: World, ask: Callable[[list[str]], Candidates]) -> Values:
    """Metrics of the held-out queries."""
    texts = list(world.asked.queries.texts)
    rows_QK = np.concatenate(
        [ask(texts[start : start + BLOCK]).rows_BK for start in range(0, len(texts), BLOCK)]
    )
    found = per_query_values(rows_QK, world.asked.judgements)
    return {
        "search.ndcg": found["ndcg@10"],
        "search.recall": found["recall@10"],
        "coherence": world.encoded.coherence(rows_QK, K),
        "coherence_random": world.encoded.coherence_of_random(rows_QK, K),
    }


def baselines(world: World) -> dict[str, Values]:
    """What needs no training here."""
    vectors_ND = world.stages.vectors.vectors
    near_QK = nearest_items(vectors_ND[world.last_Q], vectors_ND, K + 1)
    answers_Q1 = world.examples.targets[:, None]
    values = np.zeros(len(near_QK))
    for query, rows in enumerate(near_QK):
        rows = rows[rows != world.last_Q[query]][:K]
        place = np.flatnonzero(rows == answers_Q1[query])
        values[query] = 1 / np.log2(place[0] + 2) if len(place) else 0.0
    graph_class = methods.resolve("scorers", "transition_graph")
    graph = graph_class.build(world.context(), graph_class.config_class())

    def after(rows: Any) -> torch.Tensor:
        batch = HistoryBatch(
            torch.from_numpy(rows)[:, None], torch.ones(len(rows), dtype=torch.int64)
        )
        return graph.scores(batch)

    bm25 = Bm25.fit(world.items, Bm25Config())
    return {
        "vectors": {"similar.ndcg": values},
        "transition_graph": {**similar(world, after), **ranked("recommend", world, graph.scores)},
        "bm25": searched(world, lambda texts: best(bm25.ask(texts, 100), 100)),
    }


def scorer_figures(values: dict[str, Values], world: World) -> dict[str, Values]:
    figures = compared("joint", values, ("recommend", "similar", "search"))
    for name, kept in baselines(world).items():
        for task in ("recommend", "similar", "search"):
            if f"{task}.ndcg" in kept:
                figures[f"joint.{task}.{name}.ndcg@10"] = entry(kept[f"{task}.ndcg"])
        if "coherence" in kept:
            figures[f"joint.coherence.{name}"] = entry(kept["coherence"])
            figures["joint.coherence.random"] = entry(kept["coherence_random"])
    joint, named, without = values["joint"], values["similar"], values["no_names"]
    figures["joint.similar.separate_no_names.ndcg@10"] = entry(without["similar.ndcg"])
    figures["joint.similar.names_minus_no_names.ndcg@10"] = minus(named, without, "similar.ndcg")
    figures["joint.coherence.joint"] = entry(joint["coherence"])
    figures["joint.coherence.separate"] = entry(values["search"]["coherence"])
    for task in ("recommend", "search"):
        figures[f"joint.swap.{task}.ndcg@10"] = entry(joint[f"swap.{task}"])
    figures["joint.swap.recommend.overlap@10"] = entry(joint["swap.overlap"])
    return figures


def generator_figures(values: dict[str, Values]) -> dict[str, Values]:
    figures = compared("joint.generator", values, ("recommend", "search"))
    for name in ("joint", *ID_WEIGHTS):
        for task in ("recommend", "search"):
            key = "ids_lsa" if name == "joint" else name
            figures[f"joint.generator.{key}.{task}.ndcg@10"] = entry(values[name][f"{task}.ndcg"])
    figures["joint.generator.coherence.joint"] = entry(values["joint"]["coherence"])
    figures["joint.generator.coherence.separate"] = entry(values["search"]["coherence"])
    return figures


def compared(start: str, values: dict[str, Values], tasks: tuple[str, ...]) -> dict[str, Values]:
    """Joint against separate models in each task, and over tasks that count alike."""
    figures: dict[str, Values] = {}
    joint = values["joint"]
    for task in tasks:
        figures[f"{start}.{task}.joint.ndcg@10"] = entry(joint[f"{task}.ndcg"])
        figures[f"{start}.{task}.separate.ndcg@10"] = entry(values[task][f"{task}.ndcg"])
        figures[f"{start}.{task}.joint_minus_separate.ndcg@10"] = minus(
            joint, values[task], f"{task}.ndcg"
        )
    parts = [(joint[f"{task}.ndcg"], values[task][f"{task}.ndcg"]) for task in tasks]
    one_Q, other_Q = (np.concatenate(side) for side in zip(*parts, strict=True))
    weights_Q = np.concatenate([np.full(len(one), 1 / len(one)) for one, _ in parts])
    figures[f"{start}.iceg"] = rounded(asdict(iceg(one_Q, other_Q, weights_Q)))
    for name, kept in values.items():
        seconds = {"value": round(float(kept["train_seconds"]), 1), "unit": "s"}
        figures[f"{start}.{name}.train_cpu_seconds"] = seconds
    figures[f"{start}.parameters"] = {"value": int(joint["parameters"]), "unit": "weights"}
    return figures


def minus(one: Values, other: Values, key: str) -> Values:
    """The paired difference with its interval and p."""
    figure, p = paired(one[key], other[key])
    return rounded(asdict(figure)) | {"p": p}


def entry(values_Q: Any) -> Values:
    known_Q = values_Q[np.isfinite(values_Q)]
    return rounded(asdict(bootstrap(known_Q[:, None])[0]))


def rounded(figure: Values) -> Values:
    return {k: v if k == "n" else round(v, 5) for k, v in figure.items()} | {"unit": "ratio"}


def word_set(text: str) -> tuple[str, ...]:
    """The words of a query whatever their order."""
    return tuple(sorted(set(words_of(text))))


if __name__ == "__main__":
    main()
