"""IDs that end early, made unique where asked: a shared ID grows until its items part.

All items of a shared ID are lengthened by one code of their full path, and again, until no two are
equal; nobody keeps the short ID, so no outcome depends on an order of items. Those that still share
an ID at the last level are matched to last codes at least cost, as fixed-length IDs are. The end
counts as a symbol, so one ID may begin another and still be told from it.

Source:  our choice; the methods card (sa2crq) leaves collisions of truncated IDs open.
Differs: new items never end before the shortest ID there is: a model knows no end there.
Cost:    O(L) sorts of N IDs, and the matching of what shares a whole path.
Shapes:  N items, L levels, V codes of a level, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sidrec.errors import DataError
from sidrec.tokenizers.placement import Taken, distortion, in_id_order, match_last
from sidrec.types import Floats, Ints, ItemVectors, SemanticIds


def lengths_of(codes_NL: Ints) -> Ints:
    """Codes (N,) of each ID."""
    return (codes_NL >= 0).sum(axis=1).astype(np.int64)


def truncated(paths_NL: Ints, lengths_N: Ints) -> Ints:
    """The first codes of each path, −1 after them."""
    return np.where(np.arange(paths_NL.shape[1]) < lengths_N[:, None], paths_NL, -1)


def lengthened(paths_NL: Ints, lengths_N: Ints, held_ML: Ints) -> Ints:
    """Lengths (N,) at which no path is equal to another or to a `held` ID, as far as L allows."""
    lengths_N, most = lengths_N.copy(), paths_NL.shape[1]
    while True:
        codes_NL = truncated(paths_NL, lengths_N)
        _, inverse, counts = np.unique(
            np.concatenate([codes_NL, held_ML]), axis=0, return_inverse=True, return_counts=True
        )
        crowded_N = (counts[inverse.ravel()[: len(codes_NL)]] > 1) & (lengths_N < most)
        if not crowded_N.any():
            return lengths_N
        lengths_N += crowded_N


def resolve(
    policy: str,
    ids: SemanticIds,
    tokenizer: Any,
    vectors: ItemVectors,
    existing: SemanticIds | None = None,
) -> tuple[SemanticIds, dict[str, float]]:
    """IDs under a policy, and figures for its report; `existing` IDs stay and are not given again.

    `keep` leaves sets of items on one ID, `reassign` gives every item its own.
    """
    if policy not in ("keep", "reassign"):
        raise DataError(
            f"{policy} needs IDs of one length; some end early (code −1): use the collision policy "
            "'keep' (items that share an ID stay a set) or 'reassign' (every item its own ID)"
        )
    existing = existing or SemanticIds(ids.item_ids[:0], ids.codes[:0], ids.num_codes)
    if existing.num_codes != ids.num_codes:
        raise DataError(
            f"{policy}: the existing IDs have levels {existing.num_codes}, the tokenizer gives "
            f"{ids.num_codes}; pass the tokenizer that gave them"
        )
    if not len(ids) or (policy == "keep" and not len(existing)):
        return ids, {}
    paths_NL = full_paths(policy, ids, tokenizer, vectors)
    least = int(lengths_of(existing.codes).min()) if len(existing) else 1
    before_N = lengths_of(ids.codes)
    lengths_N, num_left = np.maximum(before_N, least), 0
    if policy == "reassign":
        lengths_N = lengthened(paths_NL, lengths_N, existing.codes)
    codes_NL = truncated(paths_NL, lengths_N)
    if policy == "reassign":
        codes_NL, num_left = _matched(codes_NL, ids, tokenizer, vectors, existing)
    figures: dict[str, float] = {
        "num_moved": int((codes_NL != ids.codes).any(axis=1).sum()),
        "num_moved_prefix": num_left,
        "num_lengthened": int((lengths_N > before_N).sum()),
    }
    if hasattr(tokenizer, "codebooks") and hasattr(tokenizer, "project"):
        points_ND, books = tokenizer.project(vectors), tokenizer.codebooks
        error = _distortion(points_ND, ids.codes, books)
        if error > 0:
            figures["extra_distortion"] = _distortion(points_ND, codes_NL, books) / error - 1
    return SemanticIds(ids.item_ids, codes_NL, ids.num_codes), figures


def full_paths(policy: str, ids: SemanticIds, tokenizer: Any, vectors: ItemVectors) -> Ints:
    """(N, L) codes that the IDs are the beginnings of."""
    if not hasattr(tokenizer, "full_paths"):
        raise DataError(
            f"{policy} needs IDs of one length, or a tokenizer with full_paths(vectors), the codes "
            f"it would go on with; {type(tokenizer).__name__} has none: use the policy 'keep'"
        )
    paths_NL: Ints = tokenizer.full_paths(vectors)
    if paths_NL.shape != ids.codes.shape or ((paths_NL != ids.codes) & (ids.codes >= 0)).any():
        raise DataError(
            f"{policy}: IDs do not begin the tokenizer's paths; pass the IDs that its encode gave"
        )
    return paths_NL


def _matched(
    codes_NL: Ints, ids: SemanticIds, tokenizer: Any, vectors: ItemVectors, existing: SemanticIds
) -> tuple[Ints, int]:
    """Codes with the whole paths among them made unique, and how many items left their prefix."""
    whole = np.flatnonzero(lengths_of(codes_NL) == ids.num_levels)
    held_ML = existing.codes[lengths_of(existing.codes) == ids.num_levels]
    both = np.concatenate([codes_NL[whole], held_ML])
    if len(np.unique(both, axis=0)) == len(both):
        return codes_NL, 0
    if not hasattr(tokenizer, "codebooks") or not hasattr(tokenizer, "project"):
        raise DataError(
            f"reassign needs a tokenizer with residual codebooks, got {type(tokenizer).__name__}; "
            "use the policy 'keep'"
        )
    room = int(np.prod([float(v) for v in ids.num_codes])) - len(held_ML)
    if len(whole) > room:
        raise DataError(
            f"reassign: {len(whole)} items of {ids.num_levels} codes do not fit into {room} free "
            f"IDs of levels {ids.num_codes}; raise num_codes or num_levels, "
            "and fit again"
        )
    points_ND = tokenizer.project(vectors)[whole]
    order = in_id_order(ids.item_ids[whole])
    matched_NL, num_left = match_last(
        points_ND, codes_NL[whole], tokenizer.codebooks, order, Taken(held_ML)
    )
    codes_NL = codes_NL.copy()
    codes_NL[whole] = matched_NL
    return codes_NL, num_left


def _distortion(points_ND: Floats, codes_NL: Ints, books: Sequence[Floats]) -> float:
    """Mean squared distance between points and the sums of the centroids that their IDs have."""
    lengths_N = lengths_of(codes_NL)
    parts = [(lengths_N == n, int(n)) for n in np.unique(lengths_N)]
    return sum(
        float(rows.mean()) * distortion(points_ND[rows], codes_NL[rows, :n], books[:n])
        for rows, n in parts
    )
