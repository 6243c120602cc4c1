"""What a person may look at: the beam of a request, the tree of IDs, the catalogue by words.

Shapes:   N items, L levels, V codes of a level, K items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from sidrec.decoding import trace
from sidrec.decoding.beam import LevelTrace
from sidrec.explore import batch_of
from sidrec.recommender import Recommender
from sidrec.serving import answers, schemas
from sidrec.serving.answers import can_search
from sidrec.serving.problems import Problem
from sidrec.serving.schemas import RecommendRequest, TraceRequest, TreeQuery
from sidrec.serving.snapshot import Snapshot

NAMED_LEVELS = 2
"""Levels of a traced beam whose prefixes are named by words; deeper ones by their favourite."""


def trace_answer(
    snapshot: Snapshot, request: TraceRequest, history: Sequence[str]
) -> dict[str, Any]:
    """What the beam of a request did at each level, and the items that it found.

    The search is that of the request: same rules, same width. Problem `no_beam` where the system
    does not search by one.
    """
    asked = RecommendRequest.model_validate(request.model_dump(exclude={"shown"}))
    query = answers.recommend_query(snapshot, asked, history, request.system)
    if not len(query.rows_T):
        raise Problem("invalid_request", "a trace needs a history of at least one known item")
    recommender = snapshot.recommender
    k, length_penalty = asked_of_beam(recommender, query.system, request.k)
    levels: list[LevelTrace] = []
    found = recommender.generate(
        batch_of(recommender, query.rows_T),
        k,
        [query.exclude],
        query.keep_N,
        length_penalty=length_penalty,
        trace=levels,
    )
    story = trace.read(
        levels,
        recommender.index,
        causes_of(snapshot, asked, query.rows_T),
        renormalise=recommender.renormalise,
        shown=request.shown,
    )
    rows_K, scores_K = found.rows_BK[0], found.scores_BK[0]
    real = rows_K >= 0
    source = recommender.generator.name
    reasons = answers.reasons_of(snapshot, query.rows_T, rows_K[real])
    return {
        **snapshot.facts,
        "system": query.system,
        "generator": source,
        "beam_width": max(recommender.beam_width, k),
        "renormalise": recommender.renormalise,
        "levels": [level_json(level) for level in story],
        "items": answers.listed(snapshot, rows_K[real], scores_K[real], source, reasons, ()),
        "applied_filters": [answers.rule_json(rule) for rule in query.rules],
        "skipped_items": list(query.skipped),
    }


def asked_of_beam(recommender: Recommender, system: str, k: int) -> tuple[int, float]:
    """(items, length penalty) that a system asks of the generator's beam. Problem `no_beam`."""
    generator = recommender.generator.name
    if getattr(recommender.generator.value, "search", None) is not None:
        raise Problem("no_beam", f"{generator} does not write its codes one after another")
    if system == generator:
        return k, recommender.length_penalty
    hybrid = recommender.hybrid
    if system == "hybrid" and hybrid is not None and generator in hybrid.members:
        return max(hybrid.pool, k), 0.0
    raise Problem(
        "no_beam",
        f"{system} does not answer from a beam alone",
        hint=f"ask with system {generator!r}",
    )


def causes_of(snapshot: Snapshot, request: RecommendRequest, rows_T: Any) -> list[trace.Cause]:
    """The rules of a request by name, in the order in which they are said to apply."""
    causes = []
    if not snapshot.all_available:
        causes.append(trace.Cause(name="unavailable", keep_N=snapshot.available_N))
    if request.filter is not None:
        causes.append(trace.Cause(name="filter", keep_N=snapshot.mask(request.filter)))
    if request.exclude_viewed and len(rows_T):
        causes.append(trace.Cause(name="exclude_viewed", exclude=rows_T))
    if request.exclude_items:
        rows, _ = snapshot.rows_known(request.exclude_items)
        causes.append(trace.Cause(name="exclude_items", exclude=rows))
    return causes


def level_json(level: trace.Level) -> dict[str, Any]:
    """A level as an answer says it."""
    return {
        "entering": level.entering,
        "kept": level.kept,
        "fallen": level.fallen,
        "lost": dict(level.lost),
        "survivors": [prefix_json(prefix) for prefix in level.survivors],
        "others": [prefix_json(prefix) for prefix in level.others],
    }


def prefix_json(prefix: trace.Prefix) -> dict[str, Any]:
    """A prefix as an answer says it."""
    return {
        "codes": list(prefix.codes),
        "prob": prefix.prob,
        "parent": prefix.parent,
        "fate": prefix.fate,
        "num_items": prefix.num_items,
    }


def with_names(snapshot: Snapshot, said: dict[str, Any]) -> dict[str, Any]:
    """The traced prefixes with their names, and the items with their titles, in place."""
    shelves, titles = snapshot.shelves, snapshot.recommender.titles
    row_of = snapshot.recommender.items.row_of
    for level in said["levels"]:
        for prefix in (*level["survivors"], *level["others"]):
            codes = tuple(prefix["codes"])
            named = 0 < len(codes) <= NAMED_LEVELS and prefix["fate"] != trace.NO_ITEM
            name = shelves.names(codes[:-1]).get(codes[-1], "") if named else ""
            prefix["name"] = name or shelves.favourite(codes) or ""
    for item in said["items"]:
        item["title"] = titles[row_of[item["item_id"]]]
    return said


def tree_answer(snapshot: Snapshot, query: TreeQuery) -> dict[str, Any]:
    """The codes that follow a prefix, and some of the items below it, most bought first."""
    prefix, shelves = query.codes, snapshot.shelves
    num_codes = snapshot.recommender.ids.num_codes
    rows = shelves.under(prefix)
    if not len(rows) or len(prefix) > len(num_codes):
        raise Problem(
            "unknown_prefix",
            f"no item lies under {query.prefix!r}",
            hint="a prefix is the first codes of a semantic ID, such as 12-200",
        )
    recommender = snapshot.recommender
    return {
        **snapshot.facts,
        "prefix": list(prefix),
        "num_codes": list(num_codes),
        "num_items": len(rows),
        "num_available": int(snapshot.available_N[rows].sum()),
        "events": int(recommender.train_counts_N[rows].sum()),
        "branches": shelves.branches(prefix),
        "items": shelves.by_use(rows, query.offset, query.limit),
    }


def items_answer(snapshot: Snapshot, query: schemas.ItemsQuery) -> dict[str, Any]:
    """Items by words of their titles or by their ids."""
    shelves = snapshot.shelves
    if query.ids:
        rows, _ = snapshot.rows_known(query.ids)
        rows = rows[~snapshot.deleted_N[rows]]
        total = len(rows)
    else:
        rows, total = shelves.find(query.query, query.limit)
    return {
        **snapshot.facts,
        "total": total,
        "items": [shelves.item(row) for row in rows.tolist()],
    }


def active_model(snapshot: Snapshot) -> dict[str, Any]:
    """What the served bundle is and can."""
    recommender = snapshot.recommender
    searches = getattr(recommender.generator.value, "search", None) is not None
    return {
        "name": snapshot.name,
        "version": snapshot.version,
        "num_items": int((~snapshot.deleted_N).sum()),
        "num_codes": list(recommender.ids.num_codes),
        "beam_width": recommender.beam_width,
        "generator": recommender.generator.name,
        "has_beam": not searches,
        "has_search": can_search(recommender),
        "compiled": recommender.compiled,
        "fields": [
            {"name": name, "kind": kind_of(dtype)}
            for name, dtype in recommender.items.attributes.schema.items()
        ],
    }


def kind_of(dtype: Any) -> str:
    """What values a filter compares a field with."""
    if isinstance(dtype, pl.List):
        return f"list of {kind_of(dtype.inner)}"
    if dtype == pl.Boolean:
        return "boolean"
    return "number" if dtype.is_numeric() else "text"
