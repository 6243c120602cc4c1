"""What each part of query understanding adds to retrieval, on ESCI and on misspelt ESCI queries.

    taskset -c 0 python benchmarks/query_understanding.py [--steps 150] [--price] [--write]

Weights of a part are chosen by nDCG@10 of BM25 on four folds, among `GRID` (0 leaves the part out),
and the fifth is asked; the same weights serve the hybrid, whose towers and fusion are those of
`benchmarks/search.py`. Spelling has no weight. Typos: one edit in one word of at least four
letters, drawn by seed, three seeds averaged by query. Gains are paired differences to the same
system without understanding. Spans: micro F1 on the test half of `query_spans.json`, labelled by
hand; rules were only looked at on the other half.
Figures: `query.<part>.{ndcg@10,recall@100}` and `…_gain` (bm25), `query.<part>.hybrid.…`,
`query.typos.{none,spelling,all}.…`, `query.price_asked.{none,boost,hard}.ndcg@10`,
`query.spans.{f1,…}`, `query.category.{top1,ece}`,
`query.spelling.{restored,changed_clean}`, `query.latency.<path>.{p50,p95}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import write
from search import made_lessons, text_vectors, tower_of

from sidrec.data.search import SearchData, query_folds, read_search
from sidrec.evaluation.search import per_query_values
from sidrec.evaluation.significance import bootstrap
from sidrec.retrieval.search.asking import best
from sidrec.retrieval.search.bm25 import WORD, Bm25, Bm25Config
from sidrec.retrieval.search.dual_tower import DualTowerConfig, Lessons, embed_texts
from sidrec.retrieval.search.fusing import fuse_search, tune_search
from sidrec.retrieval.search.understanding.asked import FIELDS, Asker
from sidrec.retrieval.search.understanding.asker_config import AskerConfig
from sidrec.retrieval.search.understanding.attributes import key_of
from sidrec.retrieval.search.understanding.boosting import understood_search
from sidrec.retrieval.search.understanding.understanding import (
    WEIGHTED,
    QueryUnderstanding,
    UnderstandingConfig,
)

GRID = dict.fromkeys(WEIGHTED, (0.0, 0.25, 0.5, 1.0, 2.0)) | {"expansion": (0.0, 0.1, 0.2, 0.4)}
PLAIN = UnderstandingConfig(spelling=False)
METRICS = ("ndcg@10", "recall@100")
NUM_TYPO_SEEDS = 3
K = 100
KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
Values = dict[str, np.ndarray]
Columns = dict[str, list[Values]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--price", action="store_true", help="measure prices alone")
    parser.add_argument("--write", action="store_true", help="write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = read_search(Path(os.environ["SIDREC_DATA"]) / "esci_us_sample")
    started = time.perf_counter()
    found = QueryUnderstanding.fit(data.items, PLAIN)
    figures: dict[str, dict[str, Any]] = {
        "query.fit_seconds": {"value": round(time.perf_counter() - started, 2), "unit": "s", "n": 1}
    }
    if arguments.price:
        figures = price_figures(found, data)
    else:
        figures |= span_figures(found) | category_figures(found, data)
        figures |= latency_figures(found, data)
        columns = retrieval(found, data, arguments)
        figures |= spelling_figures(found, data, arguments.seed) | retrieval_figures(columns)
    for name, figure in sorted(figures.items()):
        interval = f" [{figure['low']:.4f}, {figure['high']:.4f}]" if "low" in figure else ""
        print(f"{name}: {figure['value']:.4f}{interval}")
    if arguments.write:
        command = "python " + " ".join(sys.argv)
        what = "query_price" if arguments.price else "query_understanding"
        path = write(what, figures, seeds=[arguments.seed], command=command)
        print(f"wrote {path.name}")


def retrieval(
    found: QueryUnderstanding, data: SearchData, arguments: argparse.Namespace
) -> Columns:
    """`<system>.<part>` -> values of every query, each asked with weights it did not choose."""
    base = DualTowerConfig(num_steps=arguments.steps, made_per_item=2, swap_weight=1.0,
                           seed=arguments.seed)  # fmt: skip
    text, items_NF = text_vectors(data.items)
    asked_QF = embed_texts(text, data.queries.texts)
    made = made_lessons(data.items, text, items_NF, base)
    bm25 = Bm25.fit(data.items, Bm25Config())
    words = Ask({"bm25": bm25}, lambda members, texts, k, keep: best(
        members["bm25"].ask(texts, k, keep), k))  # fmt: skip
    table = {
        (part, weight): words.values(found, {f"{part}_weight": weight}, data)["ndcg@10"]
        for part in WEIGHTED
        for weight in GRID[part]
    }
    columns: Columns = defaultdict(list)
    typos = [misspelt(data, seed) for seed in range(NUM_TYPO_SEEDS)]
    folds = query_folds(data.queries, 5, seed=arguments.seed)
    for number, test in enumerate(folds):
        others = np.concatenate([fold for fold in folds if fold is not test])
        chosen = {
            f"{part}_weight": max(
                GRID[part], key=lambda w, part=part: (np.nanmean(table[part, w][others]), -w)
            )
            for part in WEIGHTED
        }
        valid = folds[(number + 1) % 5]
        rows = np.setdiff1d(others, valid)
        lessons = [Lessons.of(asked_QF[rows], items_NF, data.judgements.take(rows), 0), made]
        members = {"bm25": bm25, "dual_tower": tower_of(base, text, items_NF, lessons)}
        tuned = tune_search(members, data.take(valid)).hybrid
        print(f"fold {number}: {chosen}; {tuned.rule} {tuned.weights}", flush=True)
        both = Ask(members, lambda m, texts, k, keep, tuned=tuned: fuse_search(
            m, tuned, texts, k, keep))  # fmt: skip
        variants: dict[str, Mapping[str, Any]] = {"none": {}, "spelling": {"spelling": True}}
        variants |= {part: {f"{part}_weight": chosen[f"{part}_weight"]} for part in WEIGHTED}
        variants["all"] = {"spelling": True, **chosen}
        for name, system in (("bm25", words), ("hybrid", both)):
            for part, changes in variants.items():
                columns[f"{name}.{part}"].append(system.values(found, changes, data.take(test)))
            for part in ("none", "spelling", "all"):
                of_seeds = [system.values(found, variants[part], typo.take(test)) for typo in typos]
                mean = {m: np.mean([values[m] for values in of_seeds], axis=0) for m in METRICS}
                columns[f"{name}.typos.{part}"].append(mean)
    return dict(columns)


class Ask:
    """A system, asked with and without understanding."""

    def __init__(self, members: Mapping[str, Any], ask: Callable[..., Any]) -> None:
        self.members, self.ask = members, ask

    def values(
        self, found: QueryUnderstanding, changes: Mapping[str, Any], data: SearchData
    ) -> Values:
        """Metric -> (Q,) values under these settings."""
        reading = found.with_config(**changes)
        lists = understood_search(reading, self.members, self.ask, data.queries.texts, K)
        values = per_query_values(lists.rows_BK, data.judgements)
        return {metric: values[metric] for metric in METRICS}


def retrieval_figures(columns: Columns) -> dict[str, dict[str, Any]]:
    """Values, and gains over the same system without understanding."""
    joined = {
        name: {metric: np.concatenate([fold[metric] for fold in found]) for metric in METRICS}
        for name, found in columns.items()
    }
    figures: dict[str, dict[str, Any]] = {}
    for name, values in joined.items():
        system, _, part = name.partition(".")
        base = joined[f"{system}.typos.none" if part.startswith("typos") else f"{system}.none"]
        label = f"query.{part}" if system == "bm25" else f"query.{part}.hybrid"
        for metric in METRICS:
            figures[f"{label}.{metric}"] = entry(values[metric])
            if not part.endswith("none"):
                figures[f"{label}.{metric}_gain"] = entry(values[metric] - base[metric])
    return figures


def price_figures(found: QueryUnderstanding, data: SearchData) -> dict[str, dict[str, Any]]:
    """BM25 on queries to which "under $…" is added, the middle price of their exact items.

    ESCI's people name no price. Dearer items count as irrelevant, those of unknown price as before.
    """
    prices_N = found.attributes.prices_N
    rows, texts, grades_J = [], list(data.queries.texts), data.judgements.grades_J.copy()
    for row in range(len(texts)):
        items, grades = data.judgements.of(row)
        known = prices_N[items[grades == data.judgements.top_grade]]
        known = known[np.isfinite(known)]
        if len(known) >= 4 and len(set(known.tolist())) > 1:
            most = int(np.ceil(np.median(known)))
            rows.append(row)
            texts[row] += f" under ${most}"
            part = slice(data.judgements.offsets[row], data.judgements.offsets[row + 1])
            with np.errstate(invalid="ignore"):
                grades_J[part] = np.where(prices_N[items] > most, 0, grades)
    asked = replace(
        data,
        queries=replace(data.queries, texts=tuple(texts)),
        judgements=replace(data.judgements, grades_J=grades_J),
    ).take(np.array(rows))
    bm25 = Bm25.fit(data.items, Bm25Config())
    words = Ask({"bm25": bm25}, lambda members, texts, k, keep: best(
        members["bm25"].ask(texts, k, keep), k))  # fmt: skip
    base = words.values(found, {}, asked)
    figures = {"query.price_asked.none.ndcg@10": entry(base["ndcg@10"])}
    for name, changes in (("boost", {"price_weight": 1.0}), ("hard", {"hard": ("price",)})):
        values = words.values(found, changes, asked)["ndcg@10"]
        figures[f"query.price_asked.{name}.ndcg@10"] = entry(values)
        figures[f"query.price_asked.{name}.ndcg@10_gain"] = entry(values - base["ndcg@10"])
    return figures


def misspelt(data: SearchData, seed: int) -> SearchData:
    """The same queries with a typo each, where a word has at least four letters."""
    random = np.random.default_rng([seed, 7])
    texts = tuple(with_typo(text, random)[0] for text in data.queries.texts)
    return replace(data, queries=replace(data.queries, texts=texts))


def with_typo(text: str, random: np.random.Generator) -> tuple[str, str, str]:
    """The text with one edit in one word, the word, and what became of it."""
    words = [found for found in WORD.finditer(text) if len(found.group()) >= 4
             and found.group().isalpha()]  # fmt: skip
    if not words:
        return text, "", ""
    found = words[int(random.integers(len(words)))]
    word = changed = found.group()
    while changed == word:
        place, kind = int(random.integers(len(word))), int(random.integers(4))
        near = neighbour(word[place], random)
        if kind == 0:
            changed = word[:place] + word[place + 1 :]
        elif kind == 1:
            changed = word[:place] + near + word[place:]
        elif kind == 2:
            changed = word[:place] + near + word[place + 1 :]
        elif place + 1 < len(word):
            changed = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return text[: found.start()] + changed + text[found.end() :], word, changed


def neighbour(letter: str, random: np.random.Generator) -> str:
    """A key beside the letter's, or the letter where it is on no row."""
    row = next((row for row in KEYS if letter in row), letter)
    place = row.index(letter)
    near = [row[p] for p in (place - 1, place + 1) if 0 <= p < len(row)] or [letter]
    return near[int(random.integers(len(near)))]


def spelling_figures(
    found: QueryUnderstanding, data: SearchData, seed: int
) -> dict[str, dict[str, Any]]:
    """How often a typo is undone, and how often a query without one is changed."""
    reading = found.with_config(spelling=True)
    restored = []
    for number in range(NUM_TYPO_SEEDS):
        random = np.random.default_rng([number, 7])
        for text in data.queries.texts:
            wrong, word, changed = with_typo(text, random)
            known = word and reading.lexicon.known(word.casefold())
            if known and not reading.lexicon.known(changed.casefold()):
                same = key_of(reading.parse(wrong).corrected) == key_of(
                    reading.parse(text).corrected
                )
                restored.append(float(same))
    parsed = [reading.parse(text) for text in data.queries.texts]
    for query in parsed:
        if query.corrections:
            print(f"clean query changed: {query.corrections}", flush=True)
    return {
        "query.spelling.restored": entry(np.array(restored)),
        "query.spelling.changed_clean": entry(
            np.array([float(bool(p.corrections)) for p in parsed])
        ),
    }


def span_figures(found: QueryUnderstanding) -> dict[str, dict[str, Any]]:
    """Micro F1 of exact spans with their labels, on the test half and by label."""
    rows = json.loads((Path(__file__).parent / "query_spans.json").read_text())["queries"]
    figures: dict[str, dict[str, Any]] = {}
    for part in ("dev", "test"):
        counts = np.array([counted(found, row) for row in rows if row["part"] == part])
        figures[f"query.spans.{part}.f1" if part == "dev" else "query.spans.f1"] = f1_entry(counts)
    tested = [row for row in rows if row["part"] == "test"]
    for origin, name in (("esci", "clean"), ("made, misspelt", "misspelt")):
        counts = np.array([counted(found, row) for row in tested if row["origin"] == origin])
        figures[f"query.spans.{name}.f1"] = f1_entry(counts)
    for label in ("brand", "category", "colour", "size", "excluded"):
        counts = np.array([counted(found, row, label) for row in tested])
        figures[f"query.spans.{label}.f1"] = f1_entry(counts)
    return figures


def counted(found: QueryUnderstanding, row: Mapping[str, Any], only: str = "") -> list[int]:
    """Right, found and labelled spans of one query."""
    reading = found.parse(row["query"])
    mine = {(s.label, "".join(key_of(s.text))) for s in reading.spans}
    gold = {(label, "".join(key_of(text))) for label, text in row["spans"]}
    if only:
        mine, gold = ({pair for pair in pairs if pair[0] == only} for pairs in (mine, gold))
    if mine != gold and row["part"] == "dev" and not only:
        print(f"dev: {row['query']!r}: wrong {mine - gold}, missed {gold - mine}", flush=True)
    return [len(mine & gold), len(mine), len(gold)]


def f1_entry(counts_Q3: np.ndarray) -> dict[str, Any]:
    """F1 with a bootstrap interval over queries."""
    random = np.random.default_rng(0)
    draws = random.integers(0, len(counts_Q3), (2000, len(counts_Q3)))
    sums = counts_Q3[draws].sum(axis=1)
    values = 2 * sums[:, 0] / np.maximum(sums[:, 1] + sums[:, 2], 1)
    right, mine, gold = counts_Q3.sum(axis=0)
    value = 2 * right / max(mine + gold, 1)
    low, high = np.percentile(values, [2.5, 97.5])
    bounds = {"low": min(float(low), float(value)), "high": max(float(high), float(value))}
    rounded = {name: round(bound, 5) for name, bound in bounds.items()}
    return {"value": round(float(value), 5), **rounded, "n": len(counts_Q3), "unit": "ratio"}


def category_figures(found: QueryUnderstanding, data: SearchData) -> dict[str, dict[str, Any]]:
    """Whether the likeliest category is one of an exact answer, and how honest its probability."""
    right, said = [], []
    for row, text in enumerate(data.queries.texts):
        items, grades = data.judgements.of(row)
        exact = found.attributes.categories_N[items[grades == data.judgements.top_grade]]
        exact = exact[exact >= 0]
        if len(exact):
            path, probability = found.parse(text).categories[0]
            most = np.bincount(exact).argmax()
            right.append(float(found.attributes.number_of[path] == most))
            said.append(probability)
    order = np.argsort(said)
    gaps = [abs(np.mean(np.array(right)[part]) - np.mean(np.array(said)[part])) * len(part)
            for part in np.array_split(order, 10)]  # fmt: skip
    error = {"value": round(float(sum(gaps)) / len(right), 5), "unit": "ratio", "n": len(right)}
    return {"query.category.top1": entry(np.array(right)), "query.category.ece": error}


def latency_figures(found: QueryUnderstanding, data: SearchData) -> dict[str, dict[str, Any]]:
    """Milliseconds of processor time to understand one query, by path.

    `asked` has a model that answers at once: what the question and the checks cost.
    """
    answer = json.dumps({f: [] for f in FIELDS} | {"corrected": "", "price_min": None,
                                                    "price_max": None})  # fmt: skip

    class Stub:
        name = ("stub",)

        def complete(self, messages: Any, schema: Any) -> str:
            query = json.loads(messages[1]["content"].split("\n")[1])["query"]
            return answer.replace('"corrected": ""', f'"corrected": {json.dumps(query)}')

    config = AskerConfig(backend="local", model="stub")
    asker = Asker.open(config, client=Stub())
    fresh, asked = found.with_config(), replace(found.with_config(), asker=asker)
    _ = fresh.version, asked.version, fresh.parse("warm up wrod"), asked.parse("warm up wrod")
    typos = misspelt(data, 0).queries.texts
    paths = {
        "embedded": lambda text: fresh.parse(text),
        "cached": lambda text: fresh.parse(text),
        "asked": lambda text: asked.parse(text),
    }
    figures: dict[str, dict[str, Any]] = {}
    for path, call in paths.items():
        took = []
        for text in typos:
            start = time.thread_time()
            call(text)
            took.append(1000 * (time.thread_time() - start))
        for share in (50, 95):
            value = round(float(np.percentile(took, share)), 4)
            figures[f"query.latency.{path}.p{share}"] = {"value": value, "unit": "ms", "n": 100}
    return figures


def entry(values: np.ndarray) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    figure = asdict(bootstrap(known[:, None])[0])
    return {**{k: v if k == "n" else round(v, 5) for k, v in figure.items()}, "unit": "ratio"}


if __name__ == "__main__":
    main()
