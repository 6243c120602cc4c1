"""One fitted value of any stage, and its way to disk and back.

Plain methods save `arrays()` and `state()`; an `nn.Module` saves its `state_dict`. A module is
rebuilt by `build(context, config)` and takes its saved weights; `grow` carries weights over to a
catalogue with more items.

Cost:     as `artifact`; `grow` is one matrix product of new by old items.
Shapes:   N old items, M new items, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from sidrec import artifact, config, methods
from sidrec.building import weights_follow
from sidrec.errors import ArtifactError
from sidrec.tokenizers.lifecycle import ids_version
from sidrec.types import CatalogueContext, Floats, Ints

IDS = "ids"
"""Name, among an artifact's parents, of the version of the IDs that weights were trained on."""
NUM_NEIGHBOURS = 8
"""A weight row of a new item starts as the mean over this many old items of nearest vectors."""
BLOCK_CELLS = 4_000_000
"""Similarities that exist at one time."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Fitted:
    """A method of a stage with its config and what fitting gave."""

    stage: str
    name: str
    config: Any
    value: Any

    def save(self, path: Path, parents: Mapping[str, str] | None = None) -> str:
        """Write the value as the directory `path`; return its hash."""
        if isinstance(self.value, nn.Module):
            arrays = {k: v.detach().cpu().numpy() for k, v in self.value.state_dict().items()}
            state: Any = {}
        else:
            arrays, state = self.value.arrays(), self.value.state()
        plain = None if self.config is None else config.to_dict(self.config)
        return artifact.save(
            path,
            kind=f"{self.stage}/{self.name}",
            arrays=arrays,
            config=plain,
            state=state,
            parents=parents,
        )

    @classmethod
    def load(cls, saved: artifact.Artifact, context: CatalogueContext | None = None) -> Self:
        """The value that `save` wrote; modules need the catalogue they were built for.

        ArtifactError where it names other semantic IDs than those of the context.
        """
        require_ids(saved, context)
        stage, _, name = saved.kind.partition("/")
        method_class = methods.resolve(stage, name)
        settings = config.parse(method_class.config_class, saved.config or {}, where=saved.kind)
        if not issubclass(method_class, nn.Module):
            value = method_class.from_arrays(settings, saved.arrays, saved.state)
            return cls(stage=stage, name=name, config=settings, value=value)
        with weights_follow():
            model = method_class.build(context, settings)
        load_weights(model, saved)
        return cls(stage=stage, name=name, config=settings, value=model.eval())


def require_ids(saved: artifact.Artifact, context: CatalogueContext | None) -> None:
    """ArtifactError where weights were trained on other IDs. Older files do not name theirs."""
    trained_on = saved.parents.get(IDS)
    if trained_on is None or context is None or context.semantic_ids is None:
        return
    if trained_on != (found := ids_version(context.semantic_ids)):
        raise ArtifactError(
            f"{saved.path} was trained on the semantic IDs {trained_on[:12]}…, got {found[:12]}…: "
            "its codes would mean other items; take the IDs of its own bundle, or carry it over "
            "with `sidrec migrate` (`recommender.with_ids`)"
        )


def load_weights(model: nn.Module, saved: artifact.Artifact) -> None:
    """Put saved arrays into a built model. ArtifactError where they do not fit."""
    try:
        model.load_state_dict({k: torch.from_numpy(v) for k, v in saved.arrays.items()})
    except RuntimeError as error:
        raise ArtifactError(
            f"{saved.path}: its weights do not fit the model {saved.kind} of this sidrec: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error


def grow(old: nn.Module, new: nn.Module, num_old: int, nearest_MK: Ints) -> nn.Module:
    """Give `new`, built for more items, the weights of `old`; return it, ready to serve.

    A table with one row an item keeps its old rows; a learnt row of a new item is the mean over
    its nearest old items, a buffer row is what `build` put there. Any other table that became
    longer or shorter (a level where IDs now end) keeps the rows it had, as far as they reach.
    """
    learnt = {name for name, _ in new.named_parameters()}
    target = new.state_dict()
    num_new = num_old + len(nearest_MK)
    for name, weights in old.state_dict().items():
        place, weights = target[name], weights.cpu()  # `old` may be serving from a GPU: not moved
        if place.shape == weights.shape:
            place.copy_(weights)
        elif place.shape[1:] == weights.shape[1:]:
            kept = min(len(place), len(weights))
            place[:kept] = weights[:kept]
            if name in learnt and (len(weights), len(place)) == (num_old, num_new):
                place[num_old:] = weights[torch.from_numpy(nearest_MK)].mean(dim=1)
    new.load_state_dict(target)
    return new.eval()


def nearest_items(vectors_MD: Floats, vectors_ND: Floats, k: int = NUM_NEIGHBOURS) -> Ints:
    """(M, k) rows of the k items with the highest cosine similarity, best first; k <= N."""
    unit_MD, unit_ND = _unit(vectors_MD), _unit(vectors_ND)
    rows_MK = np.empty((len(unit_MD), min(k, len(unit_ND))), dtype=np.int64)
    for start in range(0, len(unit_MD), step := max(1, BLOCK_CELLS // len(unit_ND))):
        similar_BN = unit_MD[start : start + step] @ unit_ND.T
        order_BN = np.argsort(-similar_BN, axis=1, kind="stable")
        rows_MK[start : start + step] = order_BN[:, : rows_MK.shape[1]]
    return rows_MK


def _unit(vectors: Floats) -> Floats:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
