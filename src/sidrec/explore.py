"""Look into a recommender: neighbours of an item, why an item, and the tree of semantic IDs.

Shapes:   N items, D width, L levels, V codes of a level, T history length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from sidrec import artifact
from sidrec.decoding.beam import legal_log_probs
from sidrec.errors import ConfigError, DataError
from sidrec.fitted import nearest_items
from sidrec.tokenizers.collisions import groups_of
from sidrec.tokenizers.health import Health, health
from sidrec.tokenizers.page import depth_rows, level_rows, page
from sidrec.tokenizers.tree import prefix_names
from sidrec.types import Floats, Histories, HistoryBatch, Ints, Items

if TYPE_CHECKING:
    from sidrec.recommender import Recommender

MAX_GROUPS = 20
"""Groups of colliding items that a report lists."""
KNOWS = "similar_scores"
"""The method of a scorer that knows what goes with an item."""


def similar(
    recommender: Recommender, item_id: str, k: int, system: str | None = None
) -> pl.DataFrame:
    """The k items with the nearest vectors, or with the best scores of a system, best first."""
    items, vectors = recommender.items, recommender.vectors.vectors
    row = int(items.rows([item_id], where="similar")[0])
    if system is None:
        rows = nearest_items(vectors[row : row + 1], vectors, k + 1)[0]
        rows = rows[rows != row][:k]
        scores = cosines(vectors[rows], vectors[row])
    else:
        able = {n: s.value for n, s in recommender.scorers.items() if hasattr(s.value, KNOWS)}
        if system not in able:
            raise ConfigError(f"similar: no system {system!r} that knows; have {list(able)}")
        asked_B = torch.tensor([row], device=recommender.device)
        scores_N = able[system].similar_scores(asked_B)[0].clone()
        with torch.inference_mode():
            scores_N[row] = -torch.inf
        best = scores_N.topk(min(k, len(items) - 1))
        rows, scores = best.indices.cpu().numpy(), best.values.tolist()
    return pl.DataFrame(
        {
            "item_id": items.item_ids[rows].tolist(),
            "title": [recommender.titles[r] for r in rows],
            "similarity": scores,
            "shared_codes": shared_codes(recommender.ids.codes, rows, row),
        }
    )


def explain(recommender: Recommender, history: Sequence[str], item_id: str) -> dict[str, Any]:
    """Why this item after this history, as far as the generator can say.

    `levels`: code and natural log-probability of each level of the item's ID given the codes
    before it, over legal continuations where the bundle renormalises; their sum is `log_prob`. An
    ID that stops early has its end as a last code, one above the codes of its level. Where the
    generator thinks, a level has a `thought` too: the cluster of codes that it points to.
    `history`: each item of the history with the number of leading codes it shares with the item
    and the cosine of their vectors, nearest first.
    """
    items, vectors = recommender.items, recommender.vectors.vectors
    rows = items.rows(history)
    if not len(rows):
        raise DataError("explain needs a history of at least one item, got none")
    target = int(items.rows([item_id], where="explain")[0])
    levels = level_log_probs(recommender, rows, target)
    if getattr(recommender.generator.value, "thinks", False):
        thoughts = thoughts_in_words(recommender, rows, target)
        for level, thought in zip(levels, thoughts, strict=True):
            level["thought"] = thought
    similarity = cosines(vectors[rows], vectors[target])
    shared = shared_codes(recommender.ids.codes, rows, target)
    return {
        "item_id": str(item_id),
        "title": recommender.titles[target],
        "log_prob": sum(level["log_prob"] for level in levels),
        "levels": levels,
        "history": [
            {
                "item_id": str(items.item_ids[rows[i]]),
                "title": recommender.titles[rows[i]],
                "shared_codes": shared[i],
                "similarity": similarity[i],
            }
            for i in sorted(range(len(rows)), key=lambda i: -similarity[i])
        ],
    }


@torch.inference_mode()
def level_log_probs(recommender: Recommender, rows_T: Ints, target: int) -> list[dict[str, Any]]:
    """One {"code", "log_prob"} a level of the target's ID, following the generator down."""
    generator, index = recommender.generator.value, recommender.index
    batch = batch_of(recommender, rows_T)
    state, levels = generator.start(batch), []
    renormalise = recommender.renormalise and not getattr(generator, "independent_codes", False)
    nodes, codes, parents = index.root(1), None, None
    for level, code in enumerate(recommender.ids.codes[target].tolist()):
        ends, code = code < 0, code if code >= 0 else index.num_codes[level]
        logits, state = generator.step(state, codes, parents)
        log_probs = legal_log_probs(index, level, nodes, logits, renormalise=renormalise)
        codes = torch.full((1, 1), code, device=recommender.device)
        parents = torch.zeros_like(codes)
        nodes = index.child(level, nodes, codes)
        levels.append({"code": code, "log_prob": float(log_probs[0, 0, code])})
        if ends:
            break
    return levels


@torch.inference_mode()
def thoughts_in_words(recommender: Recommender, rows_T: Ints, target: int) -> list[dict[str, Any]]:
    """What the generator's thought before each code of the target's ID says.

    `cluster` of codes and its `probability`; `holds_code`: whether the code that follows is in it;
    `words`: what sets the items of these codes apart from those of other clusters, among the
    `num_items` items of the cluster under the prefix so far or, where there are none (`legal` is
    false: no such ID exists), in the whole catalogue.
    """
    generator, codes_NL = recommender.generator.value, recommender.ids.codes
    codes_L = codes_NL[target]
    said = generator.thought_clusters(
        batch_of(recommender, rows_T),
        torch.from_numpy(codes_L)[None, None].to(recommender.device),
    )
    thoughts, under_N = [], np.ones(len(codes_NL), dtype=bool)
    for level, code in enumerate(codes_L.tolist()):
        cluster = int(said.clusters_BKL[0, 0, level])
        has_code_N = codes_NL[:, level] >= 0
        cluster_V = generator.clusters.clusters(level).cpu().numpy()
        cluster_N = np.where(has_code_N, cluster_V[codes_NL[:, level]], -1)
        legal = bool((under_N & (cluster_N == cluster)).any())
        rows_M = np.flatnonzero(has_code_N & (under_N if legal else True))
        names = recommender.words.names(rows_M, cluster_N[rows_M])
        thoughts.append(
            {
                "cluster": cluster,
                "words": list(names.get(cluster, ())),
                "probability": float(said.probs_BKL[0, 0, level]),
                "holds_code": bool(said.contains_BKL[0, 0, level]),
                "legal": legal,
                "num_items": int((cluster_N[rows_M] == cluster).sum()),
            }
        )
        if code < 0:
            break
        under_N &= codes_NL[:, level] == code
    return thoughts


def batch_of(recommender: Recommender, rows_T: Ints) -> HistoryBatch:
    """One history as the generator reads it."""
    histories = Histories.from_lists([rows_T])
    longest = int(recommender.generator.value.max_length)
    return HistoryBatch.from_histories(histories, max_length=longest).to(recommender.device)


def inspect(
    recommender: Recommender, prefix: tuple[int, ...], limit: int, train: Histories | None = None
) -> dict[str, Any]:
    """Facts of the bundle, use of every level, groups of colliding items, children of a prefix.

    `train` (training events, which no bundle holds) adds the figures of co-purchase. `health` holds
    every figure under its own name; the other tables are a choice of them for people.
    """
    ids = recommender.ids
    if len(prefix) >= ids.num_levels:
        raise ConfigError(f"a prefix must be shorter than {ids.num_levels} codes, got {prefix}")
    under_N = (ids.codes[:, : len(prefix)] == np.array(prefix, dtype=np.int64)).all(axis=1)
    if not under_N.any():
        raise ConfigError(f"no item lies under the prefix {'-'.join(map(str, prefix))}")
    figures = health_of(recommender, train)
    facts = {
        "items": len(ids),
        **facts_of(recommender),
        "distinct IDs": figures.num_ids,
        "ICR (distinct IDs / items)": figures.icr,
        "CUR (distinct IDs / possible IDs)": figures.cur,
        "items alone on their ID": figures.num_alone,
        "share of colliding items": figures.collision_share,
        "largest collision": figures.largest_group,
        "neighbours that share the first code": figures.neighbour_agreement,
    }
    if (ids.codes < 0).any():
        facts["mean codes of an ID"] = figures.mean_length
    return {
        "bundle": facts,
        "levels": level_rows(figures),
        "depths": depth_rows(figures),
        "health": asdict(figures),
        "collisions": [list(map(str, group)) for group in groups_of(ids)[:MAX_GROUPS]],
        "tree": branches(recommender, prefix, limit),
    }


def inspect_page(
    recommender: Recommender, path: str | Path, train: Histories | None = None
) -> Health:
    """Write the health and the tree of the IDs as one HTML page; return the figures."""
    ids, figures = recommender.ids, health_of(recommender, train)
    inner = max(ids.num_levels - 1, 1)  # whole IDs are named by the titles of their items
    text = page(
        ids,
        figures,
        titles=recommender.titles,
        train_counts_N=recommender.train_counts_N,
        tree=prefix_names(ids, recommender.items.texts(), depth=inner),
        facts=facts_of(recommender),
        name=f"Semantic IDs of {recommender.provenance.get('data', 'a bundle')}",
    )
    artifact.write_text(path, text)
    return figures


def health_of(recommender: Recommender, train: Histories | None = None) -> Health:
    """Every figure that a bundle allows, and those of co-purchase with training events."""
    return health(
        recommender.ids,
        recommender.vectors,
        recommender.tokenizer.value,
        categories_of(recommender.items),
        train=train,
        train_counts_N=recommender.train_counts_N,
    )


def facts_of(recommender: Recommender) -> dict[str, Any]:
    """Where the IDs come from."""
    facts = {
        "systems": ", ".join(recommender.systems),
        "tokenizer": recommender.tokenizer.name,
        "levels": " x ".join(map(str, recommender.ids.num_codes)),
        "version of the IDs": recommender.ids_version,
        "version they came from": recommender.ids_parent or "none",
    }
    return facts | {k: v for k, v in recommender.provenance.items() if k != "metrics"}


def categories_of(items: Items) -> list[str] | None:
    """The finest category of every item, '' where unknown; None without such a column."""
    for name in ("categories", "genres"):
        if name in items.attributes.columns:
            values = items.attributes[name].to_list()
            paths = [[v] if v is None or isinstance(v, str) else list(v) for v in values]
            return [str((path or [""])[-1] or "") for path in paths]
    return None


def branches(recommender: Recommender, prefix: tuple[int, ...], limit: int) -> list[dict[str, Any]]:
    """Branches below a prefix, largest first: items, a name of top words, the most bought item."""
    tree = prefix_names(recommender.ids, recommender.items.texts(), depth=len(prefix) + 1)
    nodes = []
    for node in tree.children(prefix)[:limit]:
        rows = tree.rows(node.prefix)
        favourite = rows[recommender.train_counts_N[rows].argmax()]
        nodes.append(
            {
                "prefix": "-".join(map(str, node.prefix)),
                "items": node.num_items,
                "name": ", ".join(node.words),
                "example": recommender.titles[favourite][:60],
            }
        )
    return nodes


def shared_codes(codes_NL: Ints, rows: Ints, row: int) -> list[int]:
    """Leading codes that each of the rows shares with one row."""
    same = (codes_NL[rows] == codes_NL[row]) & (codes_NL[rows] >= 0)
    return same.cumprod(axis=1).sum(axis=1).tolist()


def cosines(vectors_ND: Floats, vector_D: Floats) -> list[float]:
    """Cosine of each vector with one; 0 where either is zero."""
    lengths = np.linalg.norm(vectors_ND, axis=1) * np.linalg.norm(vector_D)
    return (vectors_ND @ vector_D / np.maximum(lengths, 1e-12)).tolist()
