"""From a request's fields to a query of the recommender, and from what it found to an answer.

Shapes:   N items, T history length, K returned items, P pool, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from sidrec import searching
from sidrec.errors import ConfigError, DataError
from sidrec.joint_search import own_searchers
from sidrec.recommender import POPULAR, Recommender
from sidrec.serving.engine import Found, Query, Rule
from sidrec.serving.problems import Problem
from sidrec.serving.rerank import boosted, diversified, pool_of
from sidrec.serving.schemas import RankRequest, RecommendRequest, SearchRequest, SimilarRequest
from sidrec.serving.snapshot import MAX_SKIPPED, Snapshot
from sidrec.types import Bools, Floats, Ints

NOTHING = np.zeros(0, dtype=np.int64)
FOLLOWS = {"kind": "sequence", "text": "often follows a history like this"}


# What is asked ------------------------------------------------------------------------------------


def recommend_query(
    snapshot: Snapshot,
    request: RecommendRequest,
    history: Sequence[str],
    system: str | None,
    *,
    chosen: bool = True,
) -> Query:
    """What a recommend request asks. Problem names a field that does not exist, or a system.

    A system that was not `chosen` by the caller, but by an experiment or a scenario, gives way to
    the default where the model lacks it.
    """
    lacking = not (chosen or snapshot.has_system(system))
    snapshot.require_fields(request.include_fields)
    for boost in request.boost:
        snapshot.mask(boost.filter)
    rows_T, skipped = snapshot.rows_known(history)
    keep_N, key, rules = kept(snapshot, request.filter)
    parts = []
    if request.exclude_viewed and len(rows_T):
        parts.append(np.unique(rows_T))
        rules.append(_excluded(snapshot, "exclude_viewed", parts[-1]))
    if request.exclude_items:
        listed, _ = snapshot.rows_known(request.exclude_items)
        parts.append(np.unique(listed))
        rules.append(_excluded(snapshot, "exclude_items", parts[-1]))
    picked = bool(request.boost) or request.diversity > 0
    return Query(
        rows_T=rows_T,
        k=pool_of(request.k) if picked else request.k,
        system=snapshot.system(None if lacking else system),
        keep_N=keep_N,
        keep_key=key,
        exclude=np.unique(np.concatenate(parts)) if len(parts) > 1 else [*parts, NOTHING][0],
        segment_N=None if request.segment is None else snapshot.mask(request.segment),
        rules=tuple(rules),
        skipped=tuple(skipped),
        degraded="unknown_system" if lacking else None,
    )


def rank_query(snapshot: Snapshot, request: RankRequest, history: Sequence[str]) -> Query:
    """What a rank request asks: the given items, and no others.

    Skipped are those of them that the catalogue lacks, then those of the history.
    """
    snapshot.require_fields(request.include_fields)
    rows_T, lost = snapshot.rows_known(history)
    rows = np.unique(snapshot.rows_known(request.items)[0])
    row_of, deleted_N = snapshot.recommender.items.row_of, snapshot.deleted_N
    lacking = [i for i in request.items if (row := row_of.get(i)) is None or deleted_N[row]]
    keep_N = np.zeros(len(snapshot.available_N), dtype=bool)
    keep_N[rows] = True
    keep_N &= snapshot.available_N
    rules = [Rule(kind="items", removed=int(snapshot.available_N.sum() - keep_N.sum()))]
    if away := len(rows) - int(keep_N.sum()) - int(deleted_N[rows].sum()):
        rules.append(Rule(kind="unavailable", removed=away))
    return Query(
        rows_T=rows_T,
        k=max(len(rows), 1),
        system=snapshot.system(request.system),
        keep_N=keep_N,
        keep_key=("items", rows.tobytes()),
        exclude=NOTHING,
        rules=tuple(rules),
        skipped=tuple(dict.fromkeys([*lacking, *lost]))[:MAX_SKIPPED],
    )


def kept(
    snapshot: Snapshot, tree: Mapping[str, Any] | None
) -> tuple[Bools | None, tuple[Any, ...], list[Rule]]:
    """The mask of availability and filter (None for everything), its key, and its rules."""
    available_N = snapshot.available_N
    rules = []
    if not snapshot.all_available:
        gone = int((~available_N & ~snapshot.deleted_N).sum())
        rules.append(Rule(kind="unavailable", removed=gone))
    if tree is None:
        return (None if snapshot.all_available else available_N), ("all",), rules
    parts = tree["and"] if list(tree) == ["and"] and isinstance(tree["and"], list) else [tree]
    mask_N = snapshot.mask(tree)
    for part in parts:
        met_N = mask_N if part is tree else snapshot.mask(part)
        removed = int((available_N & ~met_N).sum())
        rules.append(Rule(kind="filter", removed=removed, filter=dict(part)))
    key = orjson.dumps(tree, option=orjson.OPT_SORT_KEYS)
    return mask_N & available_N, ("filter", key), rules


def _excluded(snapshot: Snapshot, kind: str, rows: Ints) -> Rule:
    return Rule(kind=kind, removed=int(snapshot.available_N[rows].sum()))


# What is answered ---------------------------------------------------------------------------------


def recommend_answer(found: Found, request: RecommendRequest) -> dict[str, Any]:
    """The body of a recommend answer, without what the route adds."""
    snapshot, rows_P, scores_P = found.snapshot, found.rows_K, found.scores_K
    if request.boost:
        boosts = [(snapshot.mask(boost.filter), boost.factor) for boost in request.boost]
        counts = found.source == POPULAR
        rows_P, scores_P = boosted(rows_P, scores_P, boosts, counts=counts)
    if request.diversity > 0:
        rows_P, scores_P = diversified(
            rows_P, scores_P, snapshot.unit_vectors_ND, request.k, request.diversity
        )
    rows_K, scores_K = rows_P[: request.k], scores_P[: request.k]
    body = answer(found, rows_K, scores_K, request.include_fields)
    if request.explain and found.source != POPULAR:
        item_ids = snapshot.recommender.items.item_ids
        history = [str(item) for item in item_ids[found.query.rows_T]]
        for entry in body["items"]:
            entry["explanation"] = snapshot.recommender.explain(history, entry["item_id"])
    return body


def answer(
    found: Found, rows_K: Ints, scores_K: Floats, include_fields: Sequence[str]
) -> dict[str, Any]:
    """The body of every answer that lists items."""
    snapshot, query = found.snapshot, found.query
    degraded = found.degraded or query.degraded
    if found.source == POPULAR:
        reasons = popular_reasons(found, rows_K)
    else:
        reasons = reasons_of(snapshot, query.rows_T, rows_K)
    return {
        **snapshot.facts,
        "items": listed(snapshot, rows_K, scores_K, found.source, reasons, include_fields),
        "applied_filters": [rule_json(rule) for rule in query.rules],
        "degraded": degraded is not None,
        "degraded_reason": degraded,
        "skipped_items": list(query.skipped),
    }


def listed(
    snapshot: Snapshot,
    rows_K: Ints,
    scores_K: Floats,
    source: str,
    reasons: Sequence[Mapping[str, Any]],
    include_fields: Sequence[str],
) -> list[dict[str, Any]]:
    """One entry an item, best first."""
    ids = snapshot.recommender.items.item_ids[rows_K].tolist()
    codes_KL = snapshot.recommender.ids.codes[rows_K].tolist()
    entries = [
        {
            "item_id": str(item_id),
            "rank": rank,
            "score": score,
            "semantic_id": [code for code in codes if code >= 0],
            "source": source,
            "reason": reason,
        }
        for rank, (item_id, codes, score, reason) in enumerate(
            zip(ids, codes_KL, scores_K.tolist(), reasons, strict=True), 1
        )
    ]
    if include_fields:
        fields = snapshot.attributes(rows_K.tolist(), include_fields)
        for entry, values in zip(entries, fields, strict=True):
            entry["fields"] = values
    return entries


def without_history(body: dict[str, Any]) -> dict[str, Any]:
    """The body without the items and codes of the history that it names."""
    items = [
        {**item, "reason": FOLLOWS} if item["reason"]["kind"] == "like_history" else item
        for item in body.get("items", ())
    ]
    return {**body, "items": items} if items else body


def popular_reasons(found: Found, rows_K: Ints) -> list[dict[str, Any]]:
    """Whether each item is popular in the segment of the request, or with everyone."""
    everyone = {"kind": "popular", "text": "popular with everyone"}
    if found.segment_N is None:
        return [everyone] * len(rows_K)
    named = found.query.segment_N is not None
    text = "popular in the segment" if named else "popular among items like those of the history"
    inside = {"kind": "popular_in_segment", "text": text}
    return [inside if of_it else everyone for of_it in found.segment_N[rows_K].tolist()]


def reasons_of(snapshot: Snapshot, rows_T: Ints, rows_K: Ints) -> list[dict[str, Any]]:
    """Why each item: the newest item of the history that shares the most leading codes with it."""
    codes_NL, newest_T = snapshot.recommender.ids.codes, rows_T[::-1][:50]
    codes_KL = codes_NL[rows_K]
    same_KTL = (codes_KL[:, None] == codes_NL[newest_T][None]) & (codes_KL[:, None] >= 0)
    shared_KT = same_KTL.cumprod(axis=2).sum(axis=2)
    lengths_K = (codes_KL >= 0).sum(axis=1)
    best_K = shared_KT.argmax(axis=1)
    item_ids, reasons = snapshot.recommender.items.item_ids, []
    for place, best in enumerate(best_K.tolist()):
        shared = int(shared_KT[place, best])
        if not shared:
            reasons.append(FOLLOWS)
            continue
        like = str(item_ids[newest_T[best]])
        reasons.append(
            {
                "kind": "like_history",
                "text": f"shares {shared} of {lengths_K[place]} codes with {like}",
                "item_id": like,
                "shared_codes": shared,
            }
        )
    return reasons


def similar_answer(snapshot: Snapshot, request: SimilarRequest) -> dict[str, Any]:
    """The k available items whose vectors are nearest, by cosine."""
    snapshot.require_fields(request.include_fields)
    row = snapshot.row(request.item_id)
    keep_N, _, rules = kept(snapshot, request.filter)
    unit_ND = snapshot.unit_vectors_ND
    cosines_N = unit_ND @ unit_ND[row]
    allowed_N = (snapshot.available_N if keep_N is None else keep_N).copy()
    allowed_N[row] = False
    skipped: list[str] = []
    if request.exclude_items:
        rows, skipped = snapshot.rows_known(request.exclude_items)
        rules.append(_excluded(snapshot, "exclude_items", np.unique(rows)))
        allowed_N[rows] = False
    rows_K = best_rows(np.where(allowed_N, cosines_N, -np.inf), request.k)
    codes_NL = snapshot.recommender.ids.codes
    same = (codes_NL[rows_K] == codes_NL[row]) & (codes_NL[rows_K] >= 0)
    reasons = [
        {
            "kind": "similar",
            "text": f"shares {shared} of {length} codes with {request.item_id}",
            "item_id": request.item_id,
            "shared_codes": shared,
        }
        for shared, length in zip(
            same.cumprod(axis=1).sum(axis=1).tolist(),
            (codes_NL[rows_K] >= 0).sum(axis=1).tolist(),
            strict=True,
        )
    ]
    return {
        **snapshot.facts,
        "items": listed(
            snapshot, rows_K, cosines_N[rows_K], "vectors", reasons, request.include_fields
        ),
        "applied_filters": [rule_json(rule) for rule in rules],
        "degraded": False,
        "degraded_reason": None,
        "skipped_items": skipped,
    }


def search_answer(
    snapshot: Snapshot, request: SearchRequest, history: Sequence[str]
) -> dict[str, Any]:
    """The k best available answers to a query. Problem where the bundle has no search part."""
    recommender = snapshot.recommender
    if not can_search(recommender):
        raise Problem(
            "search_not_in_bundle",
            f"the model {snapshot.name!r} has no search part",
            hint="add one with `sidrec search-fit`, or use /v1/recommend with a filter",
        )
    snapshot.require_fields(request.include_fields)
    keep_N, _, rules = kept(snapshot, request.filter)
    rows_T, skipped = snapshot.rows_known(history)
    try:
        frame = searching.search(
            recommender,
            [request.query],
            history=rows_T if len(rows_T) else None,
            k=request.k,
            system=None,
            keep_N=keep_N,
        )
    except (ConfigError, DataError) as error:
        raise Problem("invalid_request", f"query: {error}") from error
    rows_K = recommender.items.rows(frame["item_id"].to_list())
    scores_K = frame["score"].to_numpy()
    source = frame["source"][0] if frame.height else "search"
    reasons = [{"kind": "search", "text": "answers the query"}] * len(rows_K)
    return {
        **snapshot.facts,
        "items": listed(snapshot, rows_K, scores_K, source, reasons, request.include_fields),
        "applied_filters": [rule_json(rule) for rule in rules],
        "degraded": False,
        "degraded_reason": None,
        "skipped_items": skipped,
        "understood": understood_of(recommender, request.query),
    }


def understood_of(recommender: Recommender, query: str) -> dict[str, Any] | None:
    """What the search took a query to mean; None where it takes the words as they come."""
    reading = searching.part_of(recommender).understanding
    return None if reading is None else reading.parse(query).to_dict()  # it was kept


def can_search(recommender: Recommender) -> bool:
    """Whether a search part, or a model of the bundle itself, answers texts."""
    return recommender.search_part is not None or bool(own_searchers(recommender))


def explain_answer(snapshot: Snapshot, history: Sequence[str], item_id: str) -> dict[str, Any]:
    """Why an item after a history. Problem where either is not in the catalogue."""
    snapshot.row(item_id)
    rows, _ = snapshot.rows_known(history)
    if not len(rows):
        raise Problem("invalid_request", "explain needs a history of at least one known item")
    known = [str(item) for item in snapshot.recommender.items.item_ids[rows]]
    return {**snapshot.facts, "explanation": snapshot.recommender.explain(known, item_id)}


def plan(snapshot: Snapshot, query: Query) -> dict[str, Any]:
    """What a dry run says of a query."""
    return {
        **snapshot.facts,
        "dry_run": True,
        "system": query.system if len(query.rows_T) else POPULAR,
        "history_items": len(query.rows_T),
        "allowed_items": query.allowed(snapshot),
        "applied_filters": [rule_json(rule) for rule in query.rules],
        "skipped_items": list(query.skipped),
    }


def best_rows(scores_N: Floats, k: int) -> Ints:
    """Rows of the k highest finite scores, best first, ties by row."""
    k = min(k, int(np.isfinite(scores_N).sum()))
    if not k:
        return NOTHING
    least = np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k]
    rows = np.flatnonzero(scores_N >= least)
    return rows[np.argsort(-scores_N[rows], kind="stable")][:k]


def rule_json(rule: Rule) -> dict[str, Any]:
    """A rule as an answer says it."""
    said: dict[str, Any] = {"kind": rule.kind, "removed": rule.removed}
    return said if rule.filter is None else {**said, "filter": rule.filter}
