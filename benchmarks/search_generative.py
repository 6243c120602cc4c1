"""Generative retrieval: ESCI with alignment, and kinds of IDs on queries made of Beauty's texts.

    taskset -c 0 python benchmarks/search_generative.py --part unjudged [--write]
    taskset -c 0 python benchmarks/search_generative.py --part esci [--towers] [--write]
    taskset -c 0 python benchmarks/search_generative.py --part minilm [--write]
    taskset -c 0 python benchmarks/search_generative.py --part ids [--write]

unjudged: decoders that no judged query taught or chose, asked all 100 queries. esci: the folds of
`search.py`. Of the four folds that are not asked, one (20 queries) chooses how
long the decoder learns and the weights of the fusion, three teach. Everything before the judged
queries is shared by all folds. `generative_sft` and the objectives all go on from `generative` for
the same steps, on Exact and Substitute items as positives (best first) and Complement and
Irrelevant ones of the same query as what was exposed: judged non-matches, not clicks. minilm: the
same decoder over vectors that all-MiniLM-L6-v2 gave; made queries have none, so judged queries and
the items' own vectors teach. ids: one target a query, items parted by training events into head,
torso and tail (80, 15, 5 % of events); `free` decoders do not read which IDs exist.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import write
from search import entry, text_vectors

from sidrec import config
from sidrec.data import split
from sidrec.data.search import made_search, query_folds, read_search
from sidrec.data.search.values import SearchData
from sidrec.evaluation.search import per_query_values
from sidrec.evaluation.significance import bootstrap, paired
from sidrec.recipe import DataConfig, read_data
from sidrec.retrieval.search.asking import best
from sidrec.retrieval.search.bm25 import Bm25, Bm25Config
from sidrec.retrieval.search.dual_tower import (
    DualTower,
    DualTowerConfig,
    Lessons,
    embed_texts,
    train,
)
from sidrec.retrieval.search.fusing import fuse_search, tune_search
from sidrec.retrieval.search.generative import DECODER, TOKENIZER, Generative, GenerativeConfig
from sidrec.retrieval.search.preferring import OBJECTIVE, SearchAlignConfig
from sidrec.retrieval.search.query_lessons import Lessons as QueryLessons
from sidrec.retrieval.search.views import ViewIndex
from sidrec.types import CatalogueContext, Floats, Items, ItemVectors, as_ids

METRICS = ("ndcg@10", "recall@10", "recall@100", "mrr")
ALIGNED: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "dpo": ("dpo", {"sft_weight": 0.0}),
    "simpo": ("simpo", {"sft_weight": 0.0}),
    "s_dpo": ("s_dpo", {"sft_weight": 0.0}),
    "rad_dpo": ("rad_dpo", {}),
    "rad_dpo_no_tlgd": ("rad_dpo", {"tlgd": False}),
    "rad_dpo_no_rdrw": ("rad_dpo", {"rdrw": False}),
    "rad_dpo_no_mlgc": ("rad_dpo", {"multi_label": False}),
}
MEMORY = {"window": 256, "refresh_steps": 16}
"""Of rad_dpo: 60 queries would take a long time to fill the published window of 4,096."""
BUCKETS = ("head", "torso", "tail")
Columns = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("unjudged", "esci", "minilm", "ids"), default="esci")
    parser.add_argument("--steps", type=int, default=80, help="of each round before judged queries")
    parser.add_argument("--judged-steps", type=int, default=60)
    parser.add_argument("--align-steps", type=int, default=40)
    parser.add_argument("--align-rate", type=float, default=3e-4)
    parser.add_argument("--rows", nargs="*", default=list(ALIGNED), choices=list(ALIGNED))
    parser.add_argument("--towers", action="store_true", help="a third member of the hybrid")
    parser.add_argument("--folds", type=int, nargs="*", default=list(range(5)))
    parser.add_argument("--runs", type=Path, default=Path("runs/search_generative"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    columns: Columns = {}
    parts = {"unjudged": unjudged, "esci": esci, "minilm": minilm, "ids": ids}
    figures = parts[arguments.part](arguments, columns)
    for key, values in columns.items():
        figures[key] = of(values)
    for key, figure in sorted(figures.items()):
        bounds = f" [{figure['low']:.4f}, {figure['high']:.4f}]" if "low" in figure else ""
        print(f"{key}: {figure['value']:.4f}{bounds}")
    print(f"{time.process_time() - began:.0f} s of processor", flush=True)
    if arguments.write:
        path = write(
            f"search_generative_{arguments.part}",
            figures,
            seeds=[arguments.seed],
            command=" ".join(["python", *sys.argv]),
            notes="intervals over queries; one seed; latency in processor time, one query at a "
            "time, beam of 100",
        )
        print(f"wrote {path.name}")


# ---------------------------------------------------------------- ESCI


@dataclass(frozen=True, eq=False)
class Fold:
    """Queries to learn from, to choose by, and to be asked."""

    teach: SearchData
    valid: SearchData
    test: SearchData


def folds_of(data: SearchData, seed: int) -> list[Fold]:
    parts = query_folds(data.queries, 5, seed=seed)
    folds: list[Fold] = []
    for number, test in enumerate(parts):
        valid = parts[(number + 1) % 5]
        rows = np.setdiff1d(np.arange(len(data.queries)), np.concatenate([test, valid]))
        folds.append(Fold(data.take(rows), data.take(valid), data.take(test)))
    return folds


def settings_of(arguments: argparse.Namespace, **changes: Any) -> GenerativeConfig:
    values = {"least_grade": 2, "exact_items": 0, "made_per_item": 2, "seed": arguments.seed}
    return GenerativeConfig(**values | changes)


def esci(arguments: argparse.Namespace, columns: Columns) -> dict[str, dict[str, Any]]:
    """All folds; what was measured before, under `--runs`, is not measured again."""
    data = read_search(Path(os.environ["SIDREC_DATA"]) / "esci_us_sample")
    arguments.runs.mkdir(parents=True, exist_ok=True)
    bases = bases_of(arguments, data)
    lessons = bases[0].lessons_of(data.items)
    bm25 = Bm25.fit(data.items, Bm25Config())
    milliseconds: list[float] = []
    for number, fold in enumerate(folds_of(data, arguments.seed)):
        kept = arguments.runs / f"fold{number}.json"
        if not kept.exists() and number in arguments.folds:
            print(f"fold {number}", flush=True)
            kept.write_text(json.dumps(measured(arguments, data, bases, lessons, bm25, fold)))
        if kept.exists():
            found, times = json.loads(kept.read_text())
            milliseconds += times
            for key, values in found.items():
                columns.setdefault(key, []).extend(values)
    pairs = [("generative", "bm25"), ("generative", "generative_untaught")]
    pairs += [("hybrid_two", "bm25")]
    if arguments.towers:
        pairs += [("generative", "dense_sci"), ("hybrid_generative", "hybrid")]
        pairs += [("hybrid_generative", "bm25")]
    pairs += [(f"generative_{name}", "generative") for name in arguments.rows]
    aligned = [name for name in arguments.rows if name != "sft"]
    pairs += [(f"generative_{name}", "generative_sft") for name in aligned]
    figures = differences(columns, pairs)
    others = ("esci.bm25.", "esci.dense_sci.", "esci.hybrid.")  # figures of `search.py`
    left_out = tuple(f"esci.generative_{name}." for name in ALIGNED if name not in arguments.rows)
    for key in [key for key in columns if key.startswith(others + left_out)]:
        del columns[key]
    p50 = float(np.percentile(milliseconds, 50))
    figures["esci.generative.p50"] = {"value": round(p50, 3), "unit": "ms", "n": len(milliseconds)}
    return figures


def bases_of(arguments: argparse.Namespace, data: SearchData) -> list[Generative]:
    """The decoder before any lesson, and after one and two rounds without judged queries."""
    text, items_NF = text_vectors(data.items)
    start = Generative.untaught(data.items, settings_of(arguments), text, items_NF)
    bases = [start]
    for number in range(2):
        kept = arguments.runs / f"base{number}.pt"
        if kept.exists():
            bases.append(replace(start, decoder=copy.deepcopy(start.decoder)))
            bases[-1].decoder.load_state_dict(torch.load(kept, weights_only=True))
        else:
            lessons, rate = start.lessons_of(data.items), start.config.learning_rate
            bases.append(bases[-1].trained(lessons, arguments.steps, rate))
            torch.save(bases[-1].decoder.state_dict(), kept)
    return bases


def unjudged(arguments: argparse.Namespace, columns: Columns) -> dict[str, dict[str, Any]]:
    """Decoders that no judged query taught or chose: all 100 queries are asked."""
    data = read_search(Path(os.environ["SIDREC_DATA"]) / "esci_us_sample")
    arguments.runs.mkdir(parents=True, exist_ok=True)
    bases = bases_of(arguments, data)
    names = ("generative_untaught", "generative_made", "generative_made_longer")
    for name, searcher in zip(names, bases, strict=True):
        measure(columns, f"esci.{name}", searcher, data)
    bm25 = Bm25.fit(data.items, Bm25Config())
    add(columns, "esci.bm25", listed(bm25, data), data)
    start = bases[0]
    known = start.known(data.queries.texts)
    cosines = torch.from_numpy(known.vectors_QF @ start.vectors_NF.T)
    add(columns, "esci.lsa", cosines.topk(100, dim=1).indices.numpy(), data)
    pairs = [(name, other) for name in names for other in ("lsa", "bm25")]
    figures = differences(columns, [*pairs, (names[1], names[0]), (names[2], names[0])])
    for key in [key for key in columns if key.startswith("esci.bm25.")]:
        del columns[key]
    times = asking_times(start, data.queries.texts[:21])
    p50 = float(np.percentile(times, 50))
    figures["esci.generative_untaught.p50"] = {
        "value": round(p50, 3), "unit": "ms", "n": len(times),
    }  # fmt: skip
    return figures


def measured(
    arguments: argparse.Namespace,
    data: SearchData,
    bases: list[Generative],
    lessons: list[QueryLessons],
    bm25: Bm25,
    fold: Fold,
) -> tuple[Columns, list[float]]:
    """All systems of one fold, and milliseconds of queries."""
    columns: Columns = {}
    start = bases[0]
    valid_of = chooser(start, fold.valid)
    values = [valid_of(base.decoder) for base in bases]
    base = bases[int(np.argmax(values))]
    found = taught(base, lessons, fold, arguments, valid_of)
    note = f"  bases {np.round(values, 4)}, taught {valid_of(found.decoder):.4f}"
    print(note, flush=True)
    rows = {"generative_untaught": start, "generative_indexed": base, "generative": found}
    milliseconds = asking_times(found, fold.test.queries.texts)
    for name in arguments.rows:
        objective, values_of = ALIGNED[name]
        values_of = values_of | (MEMORY if objective == "rad_dpo" else {})
        chosen = SearchAlignConfig(
            objective=config.method(OBJECTIVE, objective, **values_of),
            least_grade=2,
            num_steps=arguments.align_steps,
            learning_rate=arguments.align_rate,
        )
        rows[f"generative_{name}"] = found.aligned(fold.teach, chosen)
        value = valid_of(rows[f"generative_{name}"].decoder)
        print(f"  {name}: valid {value:.4f}", flush=True)
    for name, searcher in rows.items():
        measure(columns, f"esci.{name}", searcher, fold.test)
    hybrids: dict[str, dict[str, Any]] = {"hybrid_two": {"bm25": bm25, "generative": found}}
    if arguments.towers:
        tower = towers(start.text, start.vectors_NF, data, fold, arguments)
        hybrids["hybrid"] = {"bm25": bm25, "dual_tower": tower}
        hybrids["hybrid_generative"] = hybrids["hybrid"] | {"generative": found}
        add(columns, "esci.dense_sci", listed(tower, fold.test), fold.test)
    for name, systems in hybrids.items():
        hybrid = tune_search(systems, fold.valid).hybrid
        print(f"  {name}: {hybrid.rule} {hybrid.weights}", flush=True)
        lists = fuse_search(systems, hybrid, fold.test.queries.texts, 100).rows_BK
        add(columns, f"esci.{name}", lists, fold.test)
    add(columns, "esci.bm25", listed(bm25, fold.test), fold.test)
    return columns, milliseconds


def chooser(start: Generative, valid: SearchData) -> Callable[[Any], float]:
    """nDCG@10 of a decoder on the validation queries."""

    def value(decoder: Any) -> float:
        lists = listed(replace(start, decoder=decoder), valid, 10)
        return float(np.nanmean(per_query_values(lists, valid.judgements, recall_ks=())["ndcg@10"]))

    return value


def taught(
    base: Generative,
    lessons: list[QueryLessons],
    fold: Fold,
    arguments: argparse.Namespace,
    valid_of: Callable[[Any], float],
) -> Generative:
    """The base after judged queries, the best of validation."""
    known = base.known(fold.teach.queries.texts)
    judged = QueryLessons.judged(known, fold.teach.judgements, base.config.least_grade)
    rate = base.config.learning_rate
    return base.trained([judged, *lessons], arguments.judged_steps, rate, valid_of)


def towers(
    text: Any, items_NF: Floats, data: SearchData, fold: Fold, arguments: argparse.Namespace
) -> DualTower:
    """`dense_sci` of `search.py`."""
    settings = DualTowerConfig(num_steps=150, made_per_item=2, swap_weight=1.0, seed=arguments.seed)
    made = made_search(data.items, per_item=2, max_words=settings.made_words, seed=settings.seed)
    kinds = [
        Lessons.of(embed_texts(text, part.queries.texts), items_NF, part.judgements, least)
        for part, least in ((fold.teach, 0), (made, 1))
    ]
    both = train(items_NF, kinds, settings)
    views = (both.embed("query", items_NF), both.embed("item", items_NF))
    return DualTower(settings, text, both, ViewIndex.fit(*views, settings.index))


# ---------------------------------------------------------------- MiniLM


@dataclass(frozen=True, eq=False)
class Given:
    """An embedding that knows these texts alone."""

    vectors: dict[str, Floats]
    dim: int

    def embed(self, items: Items) -> ItemVectors:
        """The vector of each text, zero where it is not known."""
        zero_F = np.zeros(self.dim, dtype=np.float32)
        rows = [self.vectors.get(text, zero_F) for text in items.texts()]
        return ItemVectors(as_ids(range(len(rows))), np.stack(rows))


def minilm(arguments: argparse.Namespace, columns: Columns) -> dict[str, dict[str, Any]]:
    folder = Path(os.environ["SIDREC_DATA"]) / "esci_us_sample"
    data = read_search(folder)
    items_NF, asked_QF = (
        unit(np.load(folder / f"{part}_vectors_minilm.npy")) for part in ("item", "query")
    )
    text = Given(dict(zip(data.queries.texts, asked_QF, strict=True)), items_NF.shape[1])
    changes = {"made_per_item": 0, "decoder": replace(DECODER, width=items_NF.shape[1])}
    settings = settings_of(arguments, **changes)
    start = Generative.untaught(data.items, settings, text, items_NF)
    lessons = start.lessons_of(data.items)
    for number, fold in enumerate(folds_of(data, arguments.seed)):
        valid_of = chooser(start, fold.valid)
        found = taught(start, lessons, fold, arguments, valid_of)
        values = [valid_of(searcher.decoder) for searcher in (start, found)]
        print(f"fold {number}: valid {np.round(values, 4)}", flush=True)
        measure(columns, "esci.generative_minilm_untaught", start, fold.test)
        measure(columns, "esci.generative_minilm", found, fold.test)
        cosines = torch.from_numpy(embed_texts(text, fold.test.queries.texts) @ items_NF.T)
        add(columns, "esci.cosine_minilm", cosines.topk(100, dim=1).indices.numpy(), fold.test)
    return differences(columns, [("generative_minilm", "cosine_minilm")])


def unit(vectors: Any) -> Floats:
    rows = np.asarray(vectors, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


# ---------------------------------------------------------------- kinds of IDs


def ids(arguments: argparse.Namespace, columns: Columns) -> dict[str, dict[str, Any]]:
    dataset = read_data(DataConfig(name="amazon_beauty"))
    items = dataset.items
    parts = split(dataset)
    counts_N = parts.train_counts_N
    bucket_N = buckets(counts_N)
    text, items_NF = text_vectors(items)
    settings = settings_of(arguments, made_per_item=1, least_grade=0)
    learnt = made_search(items, per_item=1, max_words=settings.made_words, seed=arguments.seed)
    others = made_search(items, per_item=1, max_words=8, seed=arguments.seed + 1_000_003)
    part, bucket_Q = asked_queries(others, set(learnt.queries.texts), bucket_N, each=150)
    vectors = ItemVectors(items.item_ids, items_NF)
    context = CatalogueContext(items, parts.train, vectors)
    kinds = {
        "fixed_3": config.method(TOKENIZER, "residual_kmeans", num_codes=128, num_levels=3),
        "sarq": config.method(TOKENIZER, "sarq", num_codes=128, num_levels=4, mean_length=3.0),
        "sarq_unweighted": config.method(
            TOKENIZER, "sarq", num_codes=128, num_levels=4, mean_length=3.0, weighted=False
        ),
    }
    free = replace(DECODER, legal_softmax=False, node_vectors=False)
    figures: dict[str, dict[str, Any]] = {}
    lessons: list[QueryLessons] | None = None
    for name, chosen in kinds.items():
        tokenizer = config.with_seed(chosen.config, arguments.seed)
        made = tokenizer_of(chosen.name).fit(vectors, tokenizer, context).encode(vectors)
        figures |= shapes(f"search_ids.{name}", made, counts_N, bucket_N)
        for kind, decoder in (("", DECODER), ("_free", free)):
            own = replace(settings, ids="bundle", decoder=decoder)
            start = Generative.untaught(items, own, text, items_NF, ids=made)
            lessons = lessons or start.lessons_of(items)
            steps = arguments.steps * (3 if kind else 2)
            found = start.trained(lessons, steps, own.learning_rate * (6 if kind else 2))
            key = f"search_ids.{name}{kind}"
            lists = listed(found, part)
            values = per_query_values(lists, part.judgements)
            invalid_Q = found.invalid_shares(part.queries.texts)
            for number, bucket in enumerate(BUCKETS):
                there = bucket_Q == number
                columns[f"{key}.{bucket}.recall@10"] = values["recall@10"][there].tolist()
                columns[f"{key}.{bucket}.invalid_share"] = invalid_Q[there].tolist()
                top = np.unique(lists[:, :10])
                covered = int((bucket_N[top[top >= 0]] == number).sum())
                figures[f"{key}.{bucket}.coverage@10"] = {
                    "value": covered / int((bucket_N == number).sum()), "unit": "ratio",
                }  # fmt: skip
            columns[f"{key}.recall@10"] = values["recall@10"].tolist()
            columns[f"{key}.recall@100"] = values["recall@100"].tolist()
            columns[f"{key}.invalid_share"] = invalid_Q.tolist()
            print(key, np.nanmean(values["recall@10"]), invalid_Q.mean(), flush=True)
    for one, other in (("sarq", "fixed_3"), ("sarq", "sarq_unweighted")):
        for metric in ("recall@10", "head.recall@10", "tail.recall@10"):
            pair = (np.array(columns[f"search_ids.{n}.{metric}"]) for n in (one, other))
            figure, p = paired(*pair)
            figures[f"search_ids.{one}_minus_{other}.{metric}"] = entry(figure) | {"p": p}
        pair = (np.array(columns[f"search_ids.{n}_free.invalid_share"]) for n in (one, other))
        figure, p = paired(*pair)
        figures[f"search_ids.{one}_minus_{other}.free_invalid_share"] = entry(figure) | {"p": p}
    return figures


def tokenizer_of(name: str) -> Any:
    from sidrec import methods

    return methods.resolve("tokenizers", name)


def buckets(counts_N: Any) -> Any:
    """(N,) 0 for the head, 1 the torso, 2 the tail: 80, 15 and 5 % of the training events."""
    order = np.argsort(-counts_N, kind="stable")
    before = np.cumsum(counts_N[order]) - counts_N[order]
    bucket_N = np.empty(len(counts_N), dtype=np.int64)
    bucket_N[order] = np.searchsorted([0.8, 0.95], before / counts_N.sum(), side="right")
    return bucket_N


def asked_queries(
    made: SearchData, known: set[str], bucket_N: Any, each: int
) -> tuple[SearchData, Any]:
    """Queries that were not learnt, with one answer, as many of each bucket."""
    one = made.judgements.counts_Q == 1
    fresh = np.array([text not in known for text in made.queries.texts]) & one
    rows = np.flatnonzero(fresh)
    bucket = bucket_N[made.judgements.items_J[made.judgements.offsets[rows]]]
    random = np.random.default_rng(0)
    chosen = np.concatenate(
        [random.permutation(rows[bucket == number])[:each] for number in range(len(BUCKETS))]
    )
    part = made.take(np.sort(chosen))
    return part, bucket_N[part.judgements.items_J]


def shapes(key: str, made: Any, counts_N: Any, bucket_N: Any) -> dict[str, dict[str, Any]]:
    """Lengths and collisions of IDs."""
    lengths_N = (made.codes >= 0).sum(1)
    values = {
        "mean_length": (float(lengths_N.mean()), "codes"),
        "mean_length_by_events": (float(lengths_N @ counts_N / counts_N.sum()), "codes"),
        "collisions": (float((made.group_sizes_N > 1).mean()), "ratio"),
    }
    for number, bucket in enumerate(BUCKETS):
        shared_N = made.group_sizes_N[bucket_N == number] > 1
        values[f"{bucket}.collisions"] = (float(shared_N.mean()), "ratio")
    return {f"{key}.{n}": {"value": round(v, 5), "unit": u} for n, (v, u) in values.items()}


# ---------------------------------------------------------------- figures


def listed(searcher: Any, part: SearchData, k: int = 100) -> Any:
    return best(searcher.ask(part.queries.texts, k), k).rows_BK


def measure(columns: Columns, key: str, searcher: Generative, part: SearchData) -> None:
    add(columns, key, listed(searcher, part), part)
    shares = searcher.invalid_shares(part.queries.texts)
    columns.setdefault(f"{key}.invalid_share", []).extend(shares.tolist())


def add(columns: Columns, key: str, lists: Any, part: SearchData) -> None:
    values = per_query_values(lists, part.judgements)
    for metric in METRICS:
        columns.setdefault(f"{key}.{metric}", []).extend(values[metric].tolist())


def asking_times(searcher: Any, texts: Any) -> list[float]:
    """Processor milliseconds of each query, the first one left out."""
    found: list[float] = []
    for text in texts:
        began = time.process_time()
        best(searcher.ask([text], 100), 10)
        found.append(1000 * (time.process_time() - began))
    return found[1:]


def differences(columns: Columns, pairs: list[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {}
    for one, other in pairs:
        for metric in ("ndcg@10", "recall@100"):
            first, second = (np.array(columns[f"esci.{name}.{metric}"]) for name in (one, other))
            known = np.isfinite(first) & np.isfinite(second)
            figure, p = paired(first[known], second[known])
            figures[f"esci.{one}_minus_{other}.{metric}"] = entry(figure) | {"p": p}
    return figures


def of(values: list[float]) -> dict[str, Any]:
    known = np.array(values)[np.isfinite(values)]
    return entry(bootstrap(known[:, None])[0])


if __name__ == "__main__":
    main()
