"""Generative retrieval on ESCI: before any judged query, with them, and aligned.

    python benchmarks/search_generative.py --part unjudged [--write]
    python benchmarks/search_generative.py --part esci --seeds 0 1 2 [--write]
    python benchmarks/search_generative.py --part minilm [--write]

unjudged: decoders that no judged query taught or chose, asked all 100 queries. esci: the folds of
`search.py`, the same for every seed. Of the four folds that are not asked, one (20 queries) chooses
how long the decoder learns and the weights of the fusion, three teach. Everything before the judged
queries is shared by the folds of a seed. `generative_sft` and the objectives all go on from
`generative` for the same steps, on Exact and Substitute items as positives (best first) and
Complement and Irrelevant ones of the same query as what was exposed: judged non-matches, not
clicks. `generative_rad_dpo_sessions` learns from simulated pages (`simulated_sessions`). Rows that
are not in `SEEDED` are measured with the first seed alone.
minilm: the same decoder over vectors that all-MiniLM-L6-v2 gave; made queries have none, so judged
queries and the items' own vectors teach.

`invalid_share` is what a free beam invents; `listed_invalid_share` the places of the ten answers
with no item of the catalogue, or none, of queries that are answered; `unanswered_share` counts the
queries of which no word is known. `p50` is processor time: the first seed's folds, one query at
a time, all systems in one process, one thread, first query of each fold left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from figures import write
from search import text_vectors
from search_figures import Columns, Figures, difference, figure_of, shown

from sidrec import config
from sidrec.data.search import made_search, query_folds, read_search
from sidrec.data.search.values import SearchData, Sessions
from sidrec.evaluation.search import per_query_values
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
from sidrec.retrieval.search.generative import DECODER, Generative, GenerativeConfig
from sidrec.retrieval.search.preferring import (
    OBJECTIVE,
    SearchAlignConfig,
    judged_preferences,
    session_preferences,
)
from sidrec.retrieval.search.query_lessons import Lessons as QueryLessons
from sidrec.retrieval.search.views import ViewIndex
from sidrec.types import Floats, Items, ItemVectors, as_ids

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
    "rad_dpo_sessions": ("rad_dpo", {}),
}
MEMORY = {"window": 256, "refresh_steps": 16}
"""Of rad_dpo: 60 queries would take a long time to fill the published window of 4,096."""
SESSIONS_EACH = 5
"""Simulated pages of a query: with batches of 16 about as many steps as judgements take."""
PLACES = 10
SEEDED = ("sft", "rad_dpo", "rad_dpo_sessions")
TIMED = ("generative", "generative_rad_dpo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("unjudged", "esci", "minilm"), default="esci")
    parser.add_argument("--steps", type=int, default=80, help="of each round before judged queries")
    parser.add_argument("--judged-steps", type=int, default=60)
    parser.add_argument("--align-steps", type=int, default=40)
    parser.add_argument("--align-rate", type=float, default=3e-4)
    parser.add_argument("--rows", nargs="*", default=list(ALIGNED), choices=list(ALIGNED))
    parser.add_argument("--folds", type=int, nargs="*", default=list(range(5)))
    parser.add_argument("--runs", type=Path, default=Path("runs/search_generative"))
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="the first one for others"
    )
    parser.add_argument("--tag", default="", help="told apart from other files of the day")
    parser.add_argument("--write", action="store_true", help="write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    began = time.process_time()
    parts = {"unjudged": unjudged, "esci": esci, "minilm": minilm}
    columns, figures = parts[arguments.part](arguments)
    figures |= {key: figure_of(columns, key) for key in columns[0]}
    for figure in figures.values():
        if "by_seed" not in figure:
            figure["seeds"] = arguments.seeds[:1]
    shown(figures)
    print(f"{time.process_time() - began:.0f} s of processor", flush=True)
    if arguments.write:
        path = write(
            "_".join(filter(None, ("search_generative", arguments.part, arguments.tag))),
            figures,
            seeds=arguments.seeds if arguments.part == "esci" else arguments.seeds[:1],
            command=" ".join(["python", *sys.argv]),
            notes="intervals over queries and seeds; p50 in processor time, one query at a time, "
            "beam of 100, first seed",
        )
        print(f"wrote {path.name}")


# ---------------------------------------------------------------- ESCI


@dataclass(frozen=True, eq=False)
class Fold:
    """Queries to learn from, to choose by, and to be asked."""

    teach: SearchData
    valid: SearchData
    test: SearchData


def folds_of(data: SearchData) -> list[Fold]:
    parts = query_folds(data.queries, 5, seed=0)
    folds: list[Fold] = []
    for number, test in enumerate(parts):
        valid = parts[(number + 1) % 5]
        rows = np.setdiff1d(np.arange(len(data.queries)), np.concatenate([test, valid]))
        folds.append(Fold(data.take(rows), data.take(valid), data.take(test)))
    return folds


def settings_of(seed: int, **changes: Any) -> GenerativeConfig:
    values: dict[str, Any] = {"least_grade": 2, "exact_items": 0, "made_per_item": 2}
    return GenerativeConfig(**values | {"seed": seed} | changes)


def esci(arguments: argparse.Namespace) -> tuple[list[Columns], Figures]:
    """All seeds and folds; what was measured before, under `--runs`, is not measured again."""
    data = read_search(Path(os.environ["SIDREC_DATA"]) / "esci_us_sample")
    bm25 = Bm25.fit(data.items, Bm25Config())
    columns: list[Columns] = []
    times: dict[str, list[float]] = {}
    figures: Figures = {}
    for seed in arguments.seeds:
        runs = arguments.runs / f"seed{seed}"
        runs.mkdir(parents=True, exist_ok=True)
        bases = bases_of(arguments, data, seed, runs)
        lessons = bases[0].lessons_of(data.items)
        if not figures:
            figures = sharing(bases[0], data)
        columns.append({})
        for number, fold in enumerate(folds_of(data)):
            kept = runs / f"fold{number}.json"
            if not kept.exists() and number in arguments.folds:
                print(f"seed {seed}, fold {number}", flush=True)
                kept.write_text(json.dumps(measured(arguments, data, bases, lessons, bm25, fold)))
            if kept.exists():
                found, milliseconds = json.loads(kept.read_text())
                for key, values in found.items():
                    columns[-1].setdefault(key, []).extend(values)
                for key, values in milliseconds.items() if seed == arguments.seeds[0] else ():
                    times.setdefault(key, []).extend(values)
    pairs = [("generative", other) for other in ("bm25", "generative_untaught", "dense_sci")]
    pairs += [
        ("hybrid_two", "bm25"),
        ("hybrid_generative", "hybrid"),
        ("hybrid_generative", "bm25"),
    ]
    pairs += [(f"generative_{name}", "generative") for name in arguments.rows]
    aligned = [name for name in arguments.rows if name != "sft"]
    pairs += [(f"generative_{name}", "generative_sft") for name in aligned]
    figures |= differences(columns, pairs)
    others = ("esci.bm25.", "esci.dense_sci.", "esci.hybrid.")  # figures of `search.py`
    for own in columns:
        for key in [key for key in own if key.startswith(others)]:
            del own[key]
    for name, values in times.items():
        p50 = float(np.percentile(values, 50))
        figures[f"esci.{name}.p50"] = {"value": round(p50, 3), "unit": "ms", "n": len(values)}
    return columns, figures


def bases_of(
    arguments: argparse.Namespace, data: SearchData, seed: int, runs: Path
) -> list[Generative]:
    """The decoder before any lesson, and after one and two rounds without judged queries."""
    text, items_NF = text_vectors(data.items)
    start = Generative.untaught(data.items, settings_of(seed), text, items_NF)
    bases = [start]
    for number in range(2):
        kept = runs / f"base{number}.pt"
        if kept.exists():
            bases.append(replace(start, decoder=copy.deepcopy(start.decoder)))
            bases[-1].decoder.load_state_dict(torch.load(kept, weights_only=True))
        else:
            lessons, rate = start.lessons_of(data.items), start.config.learning_rate
            bases.append(bases[-1].trained(lessons, arguments.steps, rate))
            torch.save(bases[-1].decoder.state_dict(), kept)
    return bases


def sharing(searcher: Generative, data: SearchData) -> Figures:
    """Share of pairs of a query's best positive and a judged non-match that share their first
    codes, at least one and at least two.
    """
    preferences = judged_preferences(data.judgements, 2, seed=searcher.config.seed)
    codes_NL = searcher.ids.codes
    shared: list[int] = []
    for row in range(len(preferences)):
        best_item, others = preferences.positives[row][0], preferences.negatives[row]
        equal_PL = codes_NL[others] == codes_NL[best_item]
        shared += np.cumprod(equal_PL, axis=1).sum(axis=1).tolist()
    return {
        f"esci.pairs_sharing_{codes}": {
            "value": round(float((np.array(shared) >= codes).mean()), 5),
            "unit": "ratio",
            "n": len(shared),
        }
        for codes in (1, 2)
    }


def unjudged(arguments: argparse.Namespace) -> tuple[list[Columns], Figures]:
    """Decoders that no judged query taught or chose: all 100 queries are asked."""
    data = read_search(Path(os.environ["SIDREC_DATA"]) / "esci_us_sample")
    columns: Columns = {}
    seed = arguments.seeds[0]
    runs = arguments.runs / f"seed{seed}"
    runs.mkdir(parents=True, exist_ok=True)
    bases = bases_of(arguments, data, seed, runs)
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
    pairs += [(names[1], names[0]), (names[2], names[0])]
    figures = differences([columns], pairs)
    for key in [key for key in columns if key.startswith("esci.bm25.")]:
        del columns[key]
    return [columns], figures


def measured(
    arguments: argparse.Namespace,
    data: SearchData,
    bases: list[Generative],
    lessons: list[QueryLessons],
    bm25: Bm25,
    fold: Fold,
) -> tuple[Columns, dict[str, list[float]]]:
    """All systems of one fold, and milliseconds of queries where the seed is the first."""
    columns: Columns = {}
    start = bases[0]
    seed = start.config.seed
    valid_of = chooser(start, fold.valid)
    values = [valid_of(base.decoder) for base in bases]
    base = bases[int(np.argmax(values))]
    found = taught(base, lessons, fold, arguments, valid_of)
    note = f"  bases {np.round(values, 4)}, taught {valid_of(found.decoder):.4f}"
    print(note, flush=True)
    rows = {"generative_untaught": start, "generative_indexed": base, "generative": found}
    first = seed == arguments.seeds[0]
    for name in arguments.rows if first else [row for row in arguments.rows if row in SEEDED]:
        objective, values_of = ALIGNED[name]
        values_of = values_of | (MEMORY if objective == "rad_dpo" else {})
        chosen = SearchAlignConfig(
            objective=config.method(OBJECTIVE, objective, **values_of),
            least_grade=2,
            num_steps=arguments.align_steps,
            learning_rate=arguments.align_rate,
        )
        shown_pages = None
        if name == "rad_dpo_sessions":
            shown_pages = session_preferences(simulated_sessions(fold.teach, seed))
        rows[f"generative_{name}"] = found.aligned(fold.teach, chosen, preferences=shown_pages)
        value = valid_of(rows[f"generative_{name}"].decoder)
        print(f"  {name}: valid {value:.4f}", flush=True)
    for name, searcher in rows.items():
        measure(columns, f"esci.{name}", searcher, fold.test)
    tower = towers(start, data, fold, 1.0)
    add(columns, "esci.dense_sci", listed(tower, fold.test), fold.test)
    add(columns, "esci.bm25", listed(bm25, fold.test), fold.test)
    texts = fold.test.queries.texts
    asked: dict[str, Callable[[list[str]], Any]] = {}
    for name, systems in {
        "hybrid_two": {"bm25": bm25, "generative": found},
        "hybrid": {"bm25": bm25, "dual_tower": tower},
        "hybrid_generative": {"bm25": bm25, "dual_tower": tower, "generative": found},
    }.items():
        hybrid = tune_search(systems, fold.valid).hybrid
        print(f"  {name}: {hybrid.rule} {hybrid.weights}", flush=True)
        lists = fuse_search(systems, hybrid, texts, 100).rows_BK
        add(columns, f"esci.{name}", lists, fold.test)
        asked[name] = partial(fuse_search, systems, hybrid, k=10)
    if not first:
        return columns, {}
    alone = {"bm25": bm25, "dense": towers(start, data, fold, 0.0), "dense_sci": tower}
    alone |= {name: rows[name] for name in TIMED if name in rows}
    asked |= {name: partial(listed_of, searcher) for name, searcher in alone.items()}
    return columns, {name: asking_times(ask, texts) for name, ask in asked.items()}


def simulated_sessions(part: SearchData, seed: int) -> Sessions:
    """Pages of up to ten judged items of a query in an order drawn by the seed, five a query.

    Exact items are clicked, all others on the page are exposed and not. No real click is like
    this: people pass by exact items, click others and read from the top.
    """
    random = np.random.default_rng([seed, 19])
    rows: list[int] = []
    pages: list[Any] = []
    clicks: list[Any] = []
    for query in range(len(part.queries)):
        items, grades = part.judgements.of(query)
        for _ in range(SESSIONS_EACH if len(items) else 0):
            page = random.permutation(len(items))[:PLACES]
            rows.append(query)
            pages.append(items[page])
            clicks.append(grades[page] == part.judgements.top_grade)
    return Sessions(
        part.queries,
        np.array(rows, dtype=np.int64),
        np.concatenate(pages),
        np.concatenate(clicks),
        np.cumsum([0, *map(len, pages)]).astype(np.int64),
    )


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


def towers(start: Generative, data: SearchData, fold: Fold, weight: float) -> DualTower:
    """`dense` (weight 0) or `dense_sci` (1) of `search.py`."""
    text, items_NF, seed = start.text, start.vectors_NF, start.config.seed
    settings = DualTowerConfig(num_steps=150, made_per_item=2, swap_weight=weight, seed=seed)
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


def minilm(arguments: argparse.Namespace) -> tuple[list[Columns], Figures]:
    columns: Columns = {}
    folder = Path(os.environ["SIDREC_DATA"]) / "esci_us_sample"
    data = read_search(folder)
    items_NF, asked_QF = (
        unit(np.load(folder / f"{part}_vectors_minilm.npy")) for part in ("item", "query")
    )
    text = Given(dict(zip(data.queries.texts, asked_QF, strict=True)), items_NF.shape[1])
    changes = {"made_per_item": 0, "decoder": replace(DECODER, width=items_NF.shape[1])}
    settings = settings_of(arguments.seeds[0], **changes)
    start = Generative.untaught(data.items, settings, text, items_NF)
    lessons = start.lessons_of(data.items)
    for number, fold in enumerate(folds_of(data)):
        valid_of = chooser(start, fold.valid)
        found = taught(start, lessons, fold, arguments, valid_of)
        values = [valid_of(searcher.decoder) for searcher in (start, found)]
        print(f"fold {number}: valid {np.round(values, 4)}", flush=True)
        measure(columns, "esci.generative_minilm_untaught", start, fold.test)
        measure(columns, "esci.generative_minilm", found, fold.test)
        cosines = torch.from_numpy(embed_texts(text, fold.test.queries.texts) @ items_NF.T)
        add(columns, "esci.cosine_minilm", cosines.topk(100, dim=1).indices.numpy(), fold.test)
    return [columns], differences([columns], [("generative_minilm", "cosine_minilm")])


def unit(vectors: Any) -> Floats:
    rows = np.asarray(vectors, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


# ---------------------------------------------------------------- figures


def listed(searcher: Any, part: SearchData, k: int = 100) -> Any:
    return best(searcher.ask(part.queries.texts, k), k).rows_BK


def listed_of(searcher: Any, texts: list[str]) -> Any:
    """The ten answers, of as many candidates as in `listed`."""
    return best(searcher.ask(texts, 100), 10)


def measure(columns: Columns, key: str, searcher: Generative, part: SearchData) -> None:
    lists = listed(searcher, part)
    add(columns, key, lists, part)
    values = {
        "invalid_share": searcher.invalid_shares(part.queries.texts),
        "listed_invalid_share": listed_invalid(lists[:, :10], searcher),
        "unanswered_share": (lists[:, 0] < 0).astype(np.float64),
    }
    for metric, shares in values.items():
        columns.setdefault(f"{key}.{metric}", []).extend(shares.tolist())


def listed_invalid(rows_QK: Any, searcher: Generative) -> Any:
    """(Q,) share of places with no item of the catalogue, or none at all; NaN where the query has
    no answer, as no word of it is known.
    """
    inside_QK = (rows_QK >= 0) & (rows_QK < len(searcher.ids))
    live_QK = inside_QK & searcher.known_N[np.where(inside_QK, rows_QK, 0)]
    return np.where(rows_QK[:, 0] < 0, np.nan, 1 - live_QK.mean(axis=1))


def add(columns: Columns, key: str, lists: Any, part: SearchData) -> None:
    values = per_query_values(lists, part.judgements)
    for metric in METRICS:
        columns.setdefault(f"{key}.{metric}", []).extend(values[metric].tolist())


def asking_times(ask: Callable[[list[str]], Any], texts: Sequence[str]) -> list[float]:
    """Processor milliseconds of each query, the first one left out."""
    found: list[float] = []
    for text in texts:
        began = time.process_time()
        ask([text])
        found.append(1000 * (time.process_time() - began))
    return found[1:]


def differences(columns: list[Columns], pairs: list[tuple[str, str]]) -> Figures:
    return {
        f"esci.{one}_minus_{other}.{metric}": difference(
            columns, f"esci.{one}.{metric}", f"esci.{other}.{metric}"
        )
        for one, other in pairs
        for metric in ("ndcg@10", "recall@100")
    }


if __name__ == "__main__":
    main()
