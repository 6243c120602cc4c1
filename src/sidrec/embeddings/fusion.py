"""Fusion: several views of an item (text, collaborative, image, …) in one vector.

Each view is scaled, weighted and laid beside the others; PCA (and whitening) may follow. A view
that knows nothing of an item, such as the collaborative view of a new item, is predicted from the
other views by ridge regression learnt on the items that have both.

Source:  Hoerl & Kennard 1970 (ridge); concatenation of unit vectors is the usual hybrid control.
Differs: predicted parts are scaled to unit length like known ones, so that distances compare.
Cost:    the views' own cost, plus O(N * D^2) for regression and PCA.
Shapes:  N items, D_v width of view v, D their sum or the PCA width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np

from sidrec import methods
from sidrec.embeddings.collaborative import CollaborativeConfig
from sidrec.embeddings.lsa import LsaConfig
from sidrec.embeddings.precomputed import PrecomputedConfig
from sidrec.embeddings.sentence import SentenceConfig
from sidrec.embeddings.vectors import known_rows, unit_rows
from sidrec.errors import ConfigError, DataError
from sidrec.types import CatalogueContext, Floats, Items, ItemVectors


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Settings of `Fusion`."""

    views: tuple[str, ...] = ("lsa", "collaborative")
    """Names of the embedders to join, in order."""
    weights: tuple[float, ...] = ()
    """Weight of each view's part; empty weighs all alike."""
    scale: Literal["unit", "standard"] = "unit"
    """`unit`: every part has length 1. `standard`: columns have mean 0 and common deviation 1."""
    dim: int | None = None
    """Keep this many principal components of the joined vector; None keeps it as it is."""
    whiten: bool = False
    """Give every principal component the same variance."""
    ridge: float = 1.0
    """Strength of the penalty when a missing part is predicted from the others."""
    lsa: LsaConfig = field(default_factory=LsaConfig)
    """Settings of the view `lsa`."""
    collaborative: CollaborativeConfig = field(default_factory=CollaborativeConfig)
    """Settings of the view `collaborative`."""
    sentence: SentenceConfig = field(default_factory=SentenceConfig)
    """Settings of the view `sentence`."""
    precomputed: PrecomputedConfig = field(default_factory=PrecomputedConfig)
    """Settings of the view `precomputed`."""

    def __post_init__(self) -> None:
        if not self.views or len(set(self.views)) != len(self.views) or "fusion" in self.views:
            raise ConfigError(f"fusion.views must be different embedders, got {self.views}")
        if self.weights and (len(self.weights) != len(self.views) or min(self.weights) <= 0):
            raise ConfigError(
                f"fusion.weights must be one number above 0 a view {self.views}, got {self.weights}"
            )
        if self.dim is not None and self.dim < 1:
            raise ConfigError(f"fusion.dim must be at least 1, got {self.dim}")
        if self.ridge < 0:
            raise ConfigError(f"fusion.ridge must not be negative, got {self.ridge}")
        if self.whiten and self.dim is None:
            raise ConfigError("fusion.whiten needs fusion.dim, the number of components to keep")

    def config_of(self, view: str) -> Any:
        """Settings of one view; views of other packages use their defaults."""
        config = getattr(self, view, None)
        return config if config is not None else methods.resolve("embeddings", view).config_class()


@dataclass(frozen=True, eq=False)
class Mixer:
    """The fitted way from one vector a view to the joined vector; holds plain arrays only."""

    config: FusionConfig
    tables: Mapping[str, np.ndarray]
    """`mean.v`, `deviation.v` of each view; `fill.v`, `offset.v` predict it from the others;
    `centre`, `axes` rotate the joined vector where `dim` is set."""

    @classmethod
    def fit(cls, views: Mapping[str, Floats], config: FusionConfig) -> Self:
        """Learn scales, predictions of missing parts, and principal axes."""
        tables: dict[str, np.ndarray] = {}
        known = {name: known_rows(vectors) for name, vectors in views.items()}
        for name, vectors in views.items():
            if not known[name].any():
                raise DataError(f"fusion: the view {name!r} knows no item; leave it out of views")
            rows = vectors[known[name]].astype(np.float64)
            tables[f"mean.{name}"] = rows.mean(axis=0).astype(np.float32)
            deviation = np.sqrt(rows.var(axis=0).mean()) or 1.0
            tables[f"deviation.{name}"] = np.array([deviation], dtype=np.float32)
        mixer = cls(config, tables)
        parts = mixer.scaled(views)
        for name in views:
            if len(views) > 1:
                others = np.hstack([part for other, part in parts.items() if other != name])
                both = known[name] & known_rows(others)
                fill, offset = ridge_regression(others[both], parts[name][both], config.ridge)
                tables |= {f"fill.{name}": fill, f"offset.{name}": offset}
        if config.dim is not None:
            joined = mixer.join(views)
            tables |= principal_axes(joined, config.dim, whiten=config.whiten)
        return mixer

    def scaled(self, views: Mapping[str, Floats]) -> dict[str, Floats]:
        """Each view by the chosen scale; what it does not know stays zero."""
        return {name: self._scale(name, vectors) for name, vectors in views.items()}

    def _scale(self, name: str, vectors: Floats) -> Floats:
        if self.config.scale == "unit":
            return unit_rows(vectors)
        centred = (vectors - self.tables[f"mean.{name}"]) / self.tables[f"deviation.{name}"]
        known = known_rows(vectors)[:, None] / np.sqrt(vectors.shape[1])
        return np.asarray(centred * known, dtype=np.float32)

    def join(self, views: Mapping[str, Floats]) -> Floats:
        """Scaled, completed and weighted parts, side by side (N, sum of D_v)."""
        parts, filled = self.scaled(views), {}
        for name, part in parts.items():
            missing = ~known_rows(views[name])
            if missing.any() and len(parts) > 1:
                others = np.hstack([p for other, p in parts.items() if other != name])
                predicted = others @ self.tables[f"fill.{name}"] + self.tables[f"offset.{name}"]
                if self.config.scale == "unit":
                    predicted = unit_rows(predicted)
                missing &= known_rows(others)
                part = np.where(missing[:, None], predicted, part)
            filled[name] = part
        weights = self.config.weights or (1.0,) * len(parts)
        return np.hstack([np.float32(w) * p for w, p in zip(weights, filled.values(), strict=True)])

    def mix(self, views: Mapping[str, Floats]) -> tuple[Floats, tuple[tuple[str, int], ...]]:
        """Joined vectors (N, D), and the names and widths of their parts where they keep them."""
        joined = self.join(views)
        if "axes" in self.tables:
            rotated = (joined - self.tables["centre"]) @ self.tables["axes"]
            return rotated.astype(np.float32), ()
        return joined, tuple((name, vectors.shape[1]) for name, vectors in views.items())


@dataclass(frozen=True, eq=False)
class Fusion:
    """Several fitted embedders and the fitted way to join them."""

    config_class: ClassVar[type] = FusionConfig
    config: FusionConfig
    embedders: Mapping[str, Any]
    mixer: Mixer
    num_filled: Mapping[str, int]
    """Items of the fitted catalogue whose part in a view was predicted from the other views."""

    @classmethod
    def fit(cls, context: CatalogueContext, config: FusionConfig) -> Self:
        """Fit every view, then the way to join them."""
        embedders = {
            name: methods.resolve("embeddings", name).fit(context, config.config_of(name))
            for name in config.views
        }
        views = {name: e.embed(context.items).vectors for name, e in embedders.items()}
        mixer = Mixer.fit(views, config)
        filled = {name: int((~known_rows(v)).sum()) for name, v in views.items()}
        return cls(config, embedders, mixer, filled)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the fit had to do without."""
        return tuple(
            f"{n:,} items have no view {view!r}: predicted from the other views where these know "
            "the item"
            for view, n in self.num_filled.items()
            if n
        )

    def embed(self, items: Items) -> ItemVectors:
        """Joined vectors (N, D); parts a view does not know are predicted from the others."""
        views = {name: e.embed(items).vectors for name, e in self.embedders.items()}
        vectors_ND, parts = self.mixer.mix(views)
        return ItemVectors(items.item_ids, vectors_ND, parts)

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` to rebuild this embedder."""
        arrays = {f"mixer.{name}": table for name, table in self.mixer.tables.items()}
        for view, embedder in self.embedders.items():
            arrays |= {f"{view}.{name}": array for name, array in embedder.arrays().items()}
        return arrays

    def state(self) -> dict[str, Any]:
        """JSON-able rest: the states of the views."""
        states = {view: embedder.state() for view, embedder in self.embedders.items()}
        return {"views": states, "num_filled": dict(self.num_filled)}

    @classmethod
    def from_arrays(
        cls, config: FusionConfig, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
    ) -> Self:
        """The embedder that `arrays` and `state` came from."""

        def under(prefix: str) -> dict[str, np.ndarray]:
            return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

        embedders = {
            view: methods.resolve("embeddings", view).from_arrays(
                config.config_of(view), under(f"{view}."), state["views"][view]
            )
            for view in config.views
        }
        return cls(config, embedders, Mixer(config, under("mixer.")), dict(state["num_filled"]))


def fuse(views: Mapping[str, ItemVectors], config: FusionConfig | None = None) -> ItemVectors:
    """Join vectors made elsewhere, as `Fusion` would; all views must list the same items."""
    config = config or FusionConfig(views=tuple(views))
    item_ids = next(iter(views.values())).item_ids
    for name, vectors in views.items():
        if not np.array_equal(vectors.item_ids, item_ids):
            raise DataError(f"fusion: the view {name!r} lists other items than the first view")
    tables = {name: vectors.vectors for name, vectors in views.items()}
    vectors_ND, parts = Mixer.fit(tables, config).mix(tables)
    return ItemVectors(item_ids, vectors_ND, parts)


def ridge_regression(
    inputs_NP: Floats, outputs_NQ: Floats, penalty: float
) -> tuple[Floats, Floats]:
    """Weights (P, Q) and offset (Q,) that minimise squared error + penalty * |weights|^2."""
    if not len(inputs_NP):
        return (
            np.zeros((inputs_NP.shape[1], outputs_NQ.shape[1]), np.float32),
            np.zeros(outputs_NQ.shape[1], np.float32),
        )
    x, y = inputs_NP.astype(np.float64), outputs_NQ.astype(np.float64)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    gram = (x - x_mean).T @ (x - x_mean) + max(penalty, 1e-9) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, (x - x_mean).T @ (y - y_mean))
    return weights.astype(np.float32), (y_mean - x_mean @ weights).astype(np.float32)


def principal_axes(vectors_ND: Floats, dim: int, *, whiten: bool) -> dict[str, np.ndarray]:
    """`centre` (D,) and `axes` (D, dim) of the largest principal components, signs fixed."""
    if dim > vectors_ND.shape[1]:
        raise ConfigError(
            f"fusion.dim = {dim} is more than the {vectors_ND.shape[1]} columns of its views; "
            "lower it"
        )
    centre = vectors_ND.mean(axis=0, dtype=np.float64)
    centred = vectors_ND - centre
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    variances, axes = variances[::-1][:dim], axes[:, ::-1][:, :dim]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(dim)])
    if whiten:
        axes = axes / np.sqrt(np.maximum(variances, 1e-9 * max(float(variances[0]), 1e-30)))
    return {"centre": centre.astype(np.float32), "axes": axes.astype(np.float32)}
