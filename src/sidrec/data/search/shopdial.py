"""Shopping dialogues that mix search and recommendation: MG-ShopDial.

Its turns name products in running text, without ids, and tell which goal each turn serves. A turn
of the assistant names a product where it holds two or more words in a row that stand in the name of
exactly one product of the dialogue's domain. The first naming of each product in a dialogue is one
request: what the shopper said until then is its query, products named before it the history, and
the task is that of the shopper's last turn that serves search or recommendation. What the shopper
then took is not recorded.

Source:  MG-ShopDial, Bernard and Balog, SIGIR 2023; the rule that finds products is ours.
Cost:    one pass over the texts.
Shapes:  N products.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from sidrec.data.search.values import clean_query
from sidrec.errors import DataError
from sidrec.types import Ints, Items, as_ids

WORD = re.compile(r"\w+")
LEAST_WORDS = 2
GOALS = {"search": "search", "recommendation": "recommend"}
SMALL_WORDS = frozenset({"a", "an", "and", "by", "for", "from", "in", "is", "it", "of", "on", "or",
                         "that", "the", "this", "to", "with", "you"})  # fmt: skip
MAX_QUERY_WORDS = 40
"""The shopper's last words that a query holds."""


@dataclass(frozen=True, eq=False)
class ShopRequest:
    """One product that the assistant brings up, and what came before."""

    dialogue: str
    task: Literal["search", "recommend"]
    query: str
    """What the shopper said so far, the last `MAX_QUERY_WORDS` words; '' where nothing."""
    history: Ints
    """Catalogue rows named before, in their order."""
    target: int


@dataclass(frozen=True, eq=False)
class ShopDialogues:
    """The catalogue, the requests of all dialogues, and what reading did."""

    items: Items
    requests: tuple[ShopRequest, ...]
    notes: tuple[str, ...]


def read_shopdial(folder: str | Path) -> ShopDialogues:
    """The requests of `dialogues.jsonl` over the products of `items.parquet`.

    DataError where a file is missing or holds something else.
    """
    folder = Path(folder)
    try:
        table = pl.read_parquet(folder / "items.parquet")
        lines = (folder / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
        dialogues = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{folder.name} does not hold MG-ShopDial: {error}") from error
    missing = {"item_id", "domain", "name"} - set(table.columns)
    if missing:
        raise DataError(f"items.parquet lacks {sorted(missing)}, has {table.columns}")
    columns = {"name": "title", "short_description": "description"}
    known = {old: new for old, new in columns.items() if old in table.columns}
    items = Items(as_ids(table["item_id"]), table.rename(known))
    runs = {
        domain: own_runs(items.titles(), np.flatnonzero((table["domain"] == domain).to_numpy()))
        for domain in table["domain"].unique().to_list()
    }
    requests = [r for dialogue in dialogues for r in requests_of(dialogue, runs)]
    named = {request.dialogue for request in requests}
    notes = (
        f"{len(requests)} products named in {len(named)} of {len(dialogues)} dialogues, "
        f"{len({request.target for request in requests})} of {len(items)} different",
    )
    return ShopDialogues(items, tuple(requests), notes)


def own_runs(titles: list[str], rows: Ints) -> dict[tuple[str, ...], int]:
    """Runs of `LEAST_WORDS` words that stand in one title alone, not of small words, -> its row."""
    found: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for row in rows.tolist():
        for run in runs_of(titles[row]):
            found[run].add(row)
    return {run: min(owners) for run, owners in found.items() if len(owners) == 1}


def runs_of(text: str) -> list[tuple[str, ...]]:
    """Runs of words of a text, at least one of them no small word or number."""
    words = WORD.findall(text.casefold())
    runs = [tuple(words[i : i + LEAST_WORDS]) for i in range(len(words) - LEAST_WORDS + 1)]
    return [run for run in runs if any(w not in SMALL_WORDS and not w.isdigit() for w in run)]


def requests_of(
    dialogue: dict[str, Any], runs: dict[str, dict[tuple[str, ...], int]]
) -> list[ShopRequest]:
    """The first naming of every product, in the order of the turns."""
    own, requests = runs.get(dialogue["domain"], {}), []
    named: list[int] = []
    said: list[str] = []
    task: Any = "recommend"
    for turn in dialogue["turns"]:
        if turn["role"] == "seeker":
            said += clean_query(turn["text"]).split()
            task = GOALS.get(turn["goal"], task)
            continue
        found = dict.fromkeys(own[run] for run in runs_of(turn["text"]) if run in own)
        for row in (row for row in found if row not in named):
            query, history = " ".join(said[-MAX_QUERY_WORDS:]), np.array(named, dtype=np.int64)
            requests.append(ShopRequest(dialogue["dialogue_id"], task, query, history, row))
        named += [row for row in found if row not in named]
    return requests
