"""A recommender on disk: everything it needs to answer, nothing about the users it learnt from.

Layout:   bundle/{manifest.json, arrays.safetensors, items.parquet, semantic_ids.parquet,
          embedding/, tokenizer/, generator/, scorer_<name>/, searcher_<name>/,
          understanding/};
          retrievers are their configs.
Cost:     loading: one SHA-256 pass over every file.
Shapes:   N items, L levels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from sidrec import artifact, config
from sidrec.config import Stage
from sidrec.errors import ArtifactError
from sidrec.fitted import IDS, Fitted
from sidrec.retrieval.fusion import Hybrid
from sidrec.search_part import UNDERSTANDING, SearchPart
from sidrec.tokenizers.lifecycle import ids_version
from sidrec.types import CatalogueContext, Histories, Items, ItemVectors, SemanticIds, as_ids

if TYPE_CHECKING:
    from sidrec.recommender import Recommender

KIND = "bundle"


def save(recommender: Recommender, path: str | Path) -> str:
    """Write the bundle as the directory `path`, whole or not at all; return its hash."""
    with artifact.atomic_directory(path) as folder:
        items, codes_NL = recommender.items, recommender.ids.codes
        ids = pl.Series("item_id", items.item_ids.tolist(), dtype=pl.String)
        items.attributes.with_columns(ids).write_parquet(folder / "items.parquet")
        codes = pl.Series("codes", codes_NL.tolist(), dtype=pl.List(pl.Int64))
        pl.DataFrame([ids, codes]).write_parquet(folder / "semantic_ids.parquet")
        recommender.embedding.save(folder / "embedding")
        recommender.tokenizer.save(folder / "tokenizer")
        trained_on = {IDS: recommender.ids_version}
        recommender.generator.save(folder / "generator", trained_on)
        for name, fitted in recommender.scorers.items():
            fitted.save(folder / f"scorer_{name}", trained_on)
        hybrid, search = recommender.hybrid, recommender.search_part
        for name, fitted in search.searchers.items() if search else ():
            fitted.save(folder / f"searcher_{name}")
        if search and search.understanding:
            reading = search.understanding
            Fitted(
                stage="understanding", name="catalogue", config=reading.config, value=reading
            ).save(folder / UNDERSTANDING)
        state = {
            "num_codes": list(recommender.ids.num_codes),
            "views": [list(view) for view in recommender.vectors.views],
            "collisions": config.to_dict(recommender.collisions),
            "scorers": list(recommender.scorers),
            "retrievers": [config.to_dict(chosen) for chosen in recommender.retrievers],
            "hybrid": hybrid.to_dict() if hybrid else None,
            "search": search.state() if search else None,
            "beam_width": recommender.beam_width,
            "renormalise": recommender.renormalise,
            "length_penalty": recommender.length_penalty,
            "new_item_share": recommender.new_item_share,
            "ids_version": recommender.ids_version,
            "provenance": dict(recommender.provenance),
        }
        arrays = {
            "vectors": recommender.vectors.vectors,
            "train_counts": recommender.train_counts_N,
        }
        named = {"ids": recommender.ids_parent, "aligned_from": recommender.aligned_from}
        parents = {name: parent for name, parent in named.items() if parent}
        return artifact.seal(
            folder,
            kind=KIND,
            arrays=arrays,
            config=dict(recommender.settings),
            state=state,
            parents=parents,
        )


def parts(path: str | Path, device: torch.device) -> dict[str, Any]:
    """The fields of the `Recommender` that `save` wrote, models on `device`."""
    opened = artifact.load(path, kind=KIND)
    try:
        table = pl.read_parquet(opened.path / "items.parquet")
        state, ids = opened.state, ids_of(opened)
        items = Items(as_ids(table["item_id"]), table)
        vectors = ItemVectors(
            items.item_ids,
            opened.arrays["vectors"],
            tuple((str(name), int(width)) for name, width in state["views"]),
        )
        context = serving_context(items, vectors, ids)
        policy = state["collisions"]
        policy = {"name": policy} if isinstance(policy, str) else policy  # a name in older bundles

        def fitted(name: str) -> Fitted:
            found = Fitted.load(artifact.load_nested(opened, name), context)
            if isinstance(found.value, torch.nn.Module):
                found.value.to(device)
            return found

        return {
            "items": items,
            "train_counts_N": opened.arrays["train_counts"],
            "vectors": vectors,
            "ids": ids,
            "embedding": fitted("embedding"),
            "tokenizer": fitted("tokenizer"),
            "collisions": config.method(Stage("collisions"), **policy),
            "generator": fitted("generator"),
            "scorers": {name: fitted(f"scorer_{name}") for name in state["scorers"]},
            "retrievers": tuple(
                config.method(Stage("retrievers"), **chosen)
                for chosen in state.get("retrievers", [])
            ),
            "hybrid": None if state["hybrid"] is None else Hybrid(**state["hybrid"]),
            "search_part": SearchPart.from_state(state["search"], fitted)
            if state.get("search")
            else None,
            "beam_width": state["beam_width"],
            "renormalise": state["renormalise"],
            "length_penalty": state.get("length_penalty", 0.0),
            "new_item_share": state.get("new_item_share", 0.0),
            "ids_parent": opened.parents.get("ids"),
            "aligned_from": opened.parents.get("aligned_from"),
            "content_hash": opened.hash,
            "settings": opened.config,
            "provenance": state["provenance"],
            "device": device,
        }
    except (KeyError, TypeError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(f"{path} is not a complete bundle: {error!r}") from error


def load_ids(path: str | Path) -> SemanticIds:
    """The semantic IDs of a bundle, their version checked; no model is read."""
    opened = artifact.load(path, kind=KIND)
    try:
        return ids_of(opened)
    except (KeyError, TypeError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(f"{path} is not a complete bundle: {error!r}") from error


def ids_of(opened: artifact.Artifact) -> SemanticIds:
    """The IDs in an opened bundle. ArtifactError where they are not of the version it names."""
    table = pl.read_parquet(opened.path / "semantic_ids.parquet")
    num_codes = tuple(int(v) for v in opened.state["num_codes"])
    codes_NL = np.array(table["codes"].to_list(), dtype=np.int64).reshape(-1, len(num_codes))
    ids = SemanticIds(as_ids(table["item_id"]), codes_NL, num_codes)
    named, found = opened.state.get("ids_version"), ids_version(ids)
    if named not in (None, found):  # bundles before 0.2 name none
        raise ArtifactError(
            f"{opened.path} names semantic IDs of version {str(named)[:12]}…, its file holds "
            f"{found[:12]}…; the models beside it speak other IDs, copy the whole bundle again"
        )
    return ids


def serving_context(items: Items, vectors: ItemVectors, ids: SemanticIds) -> CatalogueContext:
    """What models are rebuilt from: the catalogue, and no one's history."""
    nobody = Histories(np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64))
    return CatalogueContext(items, nobody, vectors, ids)
