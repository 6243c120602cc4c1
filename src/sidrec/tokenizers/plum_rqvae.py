"""PLUM's SID-v2: an RQ-VAE of several views of an item, coarse to fine, that knows what goes along.

Four things on top of `rqvae`, each with a setting that turns it off: an encoder and a decoder for
every view (`multi_view`), codebooks that halve from level to level (`multi_resolution`),
reconstruction from a random number of levels (`masking`), and items that the same users took drawn
together (`contrast`). All off, with equal codebooks, it is `rqvae` bit for bit.

Source:  PLUM, arXiv:2510.07784, sec. 3.1.
Differs: m_l = 1[l <= r], as the sentence says, not 1[l < r] as printed; the contrastive term has
         the logarithm its equation lacks, is a mean over its 2 Nb items, leaves out an item's own
         copies and further copies of its positive, and takes the masked z_hat itself, no MLP head
         before it. Residuals of the codebook terms are those before subtraction. Views are those of
         the vectors (text, image, …) and, where there are training events, factorised PPMI counts
         in place of a video encoder. An item without a view has zeros there, and that view of it is
         not rebuilt. Codebook sizes and weights are for public catalogues.
Cost:    that of `rqvae`, its MLPs once a view; the contrastive term encodes as many items again.
Shapes:  N items, M views, D_m width of a view, D their sum, Z latent width, L levels, V codes of a
         level, B batch, P = 2 Nb items of pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from sidrec.embeddings.collaborative import Collaborative, CollaborativeConfig
from sidrec.embeddings.vectors import known_rows
from sidrec.errors import ConfigError, DataError
from sidrec.tokenizers.autoencoder import (
    Autoencoder,
    Objective,
    Quantised,
    fit_autoencoder,
    mlp,
    mlps,
    residual_quantise,
    run_rows,
)
from sidrec.tokenizers.behaviour import collaborative_vectors, companions
from sidrec.tokenizers.quantisation import reconstruct
from sidrec.tokenizers.residual_kmeans import codes_per_level, moments, require_items, require_width
from sidrec.tokenizers.rqvae import RqVae, RqVaeConfig
from sidrec.types import Bools, CatalogueContext, Floats, Ints, Items, ItemVectors


@dataclass(frozen=True, kw_only=True)
class PlumRqVaeConfig(RqVaeConfig):
    """Settings of `PlumRqVae`; the defaults have as many whole IDs as three levels of 256."""

    method_name: ClassVar[str] = "plum_rqvae"

    num_codes: int | tuple[int, ...] = 512
    """V of the first level (halved from level to level by `multi_resolution`), or one size a level.
    """
    multi_view: bool = True
    """An encoder and a decoder for every view; off: one pair for the vectors as they come."""
    collaborative_dim: int = 128
    """Width of the view made of training events where the vectors have none; 0 makes none. A view
    weighs in the reconstruction by its width."""
    multi_resolution: bool = True
    """Level l has half the codes of level l − 1, where `num_codes` is one number."""
    min_codes: int = 16
    """Where halving ends."""
    masking: bool = True
    """Rebuild each item from its first r levels, r uniform in 1 … L; off: from all."""
    contrast: float = 0.1
    """w, weight of the term that draws co-occurring items together; 0 leaves it out."""
    temperature: float = 1.0
    """What dot products of that term are divided by."""
    normalise: bool = False
    """Take cosines there, not dot products."""
    window: int = 5
    """Two items co-occur when at most this many events apart in a training history."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = self.method_name
        for setting in ("collaborative_dim", "contrast"):
            if (value := getattr(self, setting)) < 0:
                raise ConfigError(f"{name}.{setting} must not be negative, got {value}")
        for setting in ("min_codes", "window"):
            if (value := getattr(self, setting)) < 1:
                raise ConfigError(f"{name}.{setting} must be at least 1, got {value}")
        if self.temperature <= 0:
            raise ConfigError(f"{name}.temperature must be above 0, got {self.temperature}")

    def sizes(self) -> tuple[int, ...]:
        """V of each level: K_l = K / 2^(l − 1), l from 1, but not below `min_codes`."""
        sizes = codes_per_level(self.method_name, self.num_codes, self.num_levels)
        if isinstance(self.num_codes, int) and self.multi_resolution:
            least = min(self.min_codes, self.num_codes)
            return tuple(max(size >> level, least) for level, size in enumerate(sizes))
        return sizes

    def collaborative(self) -> CollaborativeConfig:
        """Settings of the view that is made here."""
        return CollaborativeConfig(dim=self.collaborative_dim, window=self.window, seed=self.seed)


@dataclass(frozen=True, eq=False)
class Views:
    """Which columns of a point belong together, and the view that the tokenizer made itself."""

    widths: tuple[tuple[str, int], ...] = ()
    """Names and widths of the views, in order; the one made here comes last."""
    made: Collaborative | None = None

    @classmethod
    def of(
        cls, vectors: ItemVectors, config: PlumRqVaeConfig, context: CatalogueContext | None
    ) -> Self:
        """The views of the vectors, and a collaborative one where training events give it."""
        width = vectors.vectors.shape[1]
        if not config.multi_view:
            return cls((("vectors", width),))
        views = vectors.views or (("vectors", width),)
        if not config.collaborative_dim or "collaborative" in dict(views):
            return cls(views)
        made = collaborative_vectors(config.method_name, vectors, context, config.collaborative())
        if made is None:
            return cls(views)
        return cls((*views, ("collaborative", made.vectors_ND.shape[1])), made)

    @property
    def given(self) -> int:
        """Columns that vectors must bring."""
        return sum(width for _, width in self.widths[: -1 if self.made else None])

    def parts(self, vectors: ItemVectors) -> tuple[list[Floats], Bools]:
        """One array (N, D_m) a view, and which items (N, M) each knows; a single view knows all."""
        widths = [width for _, width in self.widths]
        parts = np.split(vectors.vectors, np.cumsum(widths)[:-1], axis=1)[: len(widths)]
        if self.made is not None:
            parts[-1] = self.made.embed(Items(vectors.item_ids, pl.DataFrame())).vectors
        if len(parts) == 1:
            return parts, np.ones((len(vectors), 1), dtype=bool)
        return parts, np.stack([known_rows(part) for part in parts], axis=1)

    def points(self, vectors: ItemVectors, mean_D: Floats, deviation_D: Floats) -> Floats:
        """Standardised views side by side (N, D), zero where an item lacks one."""
        parts, known_NM = self.parts(vectors)
        known_ND = np.repeat(known_NM, [width for _, width in self.widths], axis=1)
        return np.where(known_ND, (np.hstack(parts) - mean_D) / deviation_D, np.float32(0))


@dataclass(frozen=True, eq=False)
class PlumRqVae(RqVae):
    """Fitted encoders, codebooks and decoders; `decode` rebuilds the views that vectors bring."""

    config_class: ClassVar[type] = PlumRqVaeConfig
    config: PlumRqVaeConfig
    views: Views = field(default_factory=Views)
    num_missing: Mapping[str, int] = field(default_factory=dict)
    """View -> items of `fit` without it."""
    num_isolated: int = 0
    """Items of `fit` that co-occur with none: the contrastive term says nothing about them."""

    @classmethod
    def fit(  # type: ignore[override]
        cls, vectors: ItemVectors, config: PlumRqVaeConfig, context: CatalogueContext | None = None
    ) -> Self:
        """Train on all items; the context's training histories give a view, and pairs.

        Without a context every item is counted as isolated and as without a collaborative view.
        """
        name, sizes = config.method_name, config.sizes()
        require_items(name, len(vectors), max(sizes))
        views = Views.of(vectors, config, context)
        parts, known_NM = views.parts(vectors)
        for (view, _), known_N in zip(views.widths, known_NM.T, strict=True):
            if not known_N.any():
                raise DataError(f"{name}: the view {view!r} is zero for every item; leave it out")
        scales = [
            moments(part[known_N], config.standardise)
            for part, known_N in zip(parts, known_NM.T, strict=True)
        ]
        mean_D, deviation_D = (np.concatenate(rows) for rows in zip(*scales, strict=True))
        pairs_NN = companions(name, vectors, context if config.contrast else None, config.window)
        objective = functools.partial(
            PlumObjective, widths=views.widths, known_NM=known_NM, pairs_NN=pairs_NN
        )
        points_ND = torch.from_numpy(views.points(vectors, mean_D, deviation_D))
        build = functools.partial(view_mlps, views.widths)
        plain = cls.of(
            fit_autoencoder(points_ND, sizes, config, objective, build), config, mean_D, deviation_D
        )
        missing = {
            view: int(n.sum()) for (view, _), n in zip(views.widths, ~known_NM.T, strict=True)
        }
        if config.multi_view and config.collaborative_dim:
            missing.setdefault("collaborative", len(vectors))
        isolated = int((np.diff(pairs_NN.indptr) == 0).sum())
        return replace(plain, views=views, num_missing=missing, num_isolated=isolated)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the fit had to do without."""
        said = [f"{n:,} items have no view {view!r}" for view, n in self.num_missing.items() if n]
        if self.num_isolated and self.config.contrast:
            said.append(f"{self.num_isolated:,} items co-occur with none: no contrast for them")
        return tuple(said)

    def project(self, vectors: ItemVectors) -> Floats:
        """Latents (N, Z); items unseen in `fit` have no collaborative view."""
        require_width(self.config.method_name, vectors, self.views.given)
        return run_rows(self.encoder, self.views.points(vectors, self.mean_D, self.deviation_D))

    def decode(self, codes_NL: Ints) -> Floats:
        """Rebuild vectors (N, D) as they came; fewer columns of the codes give a coarser vector."""
        return super().decode(codes_NL)[:, : self.views.given]

    def decode_views(self, codes_NL: Ints) -> dict[str, Floats]:
        """Rebuild every view (N, D_m), the one made at fit included."""
        rebuilt_ND = run_rows(self.decoder, reconstruct(codes_NL, self.codebooks))
        names, widths = zip(*self.views.widths, strict=True)
        parts = np.split(rebuilt_ND * self.deviation_D + self.mean_D, np.cumsum(widths)[:-1], 1)
        return dict(zip(names, parts, strict=True))

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` to rebuild this tokenizer."""
        made = {} if self.views.made is None else {"collaborative": self.views.made.vectors_ND}
        return {**super().arrays(), **made}

    def state(self) -> dict[str, Any]:
        """Names of views, the items of the one made at fit, and counts."""
        made = self.views.made
        return {
            "views": [list(view) for view in self.views.widths],
            "collaborative": None if made is None else made.state(),
            "num_missing": dict(self.num_missing),
            "num_isolated": self.num_isolated,
        }

    @classmethod
    def from_arrays(  # type: ignore[override]
        cls, config: PlumRqVaeConfig, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
    ) -> Self:
        """The tokenizer that `arrays` and `state` came from."""
        widths = tuple((str(name), int(width)) for name, width in state["views"])
        made, known = None, state["collaborative"]
        if known is not None:
            vectors = {"vectors": arrays["collaborative"]}
            made = Collaborative.from_arrays(config.collaborative(), vectors, known)
        encoder, decoder = view_mlps(widths, config, len(arrays["mean"]))
        for part, module in (("encoder.", encoder), ("decoder.", decoder)):
            own = {k: torch.tensor(v) for k, v in arrays.items() if k.startswith(part)}
            module.load_state_dict({k.removeprefix(part): v for k, v in own.items()})
        return cls(
            config,
            encoder.eval(),
            decoder.eval(),
            tuple(arrays[f"codebook.{level}"] for level in range(config.num_levels)),
            arrays["mean"],
            arrays["deviation"],
            Views(widths, made),
            state["num_missing"],
            state["num_isolated"],
        )


def view_mlps(
    widths: Sequence[tuple[str, int]], config: RqVaeConfig, width: int
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of all views; of a single one, those of RQ-VAE."""
    if len(widths) == 1:
        return mlps(config, width)
    columns = [columns for _, columns in widths]
    return ViewEncoder(columns, config), ViewDecoder(columns, config)


class ViewEncoder(nn.Module):
    """A hidden part for each view, then one projection of all of them, concatenated, to z."""

    def __init__(self, widths: Sequence[int], config: RqVaeConfig) -> None:
        super().__init__()
        self.widths, hidden = list(widths), config.hidden
        self.views = nn.ModuleList(
            nn.Sequential(
                mlp((width, *hidden), config.dropout), nn.ReLU(), nn.Dropout(config.dropout)
            )
            if hidden
            else nn.Identity()
            for width in widths
        )
        joined = hidden[-1] * len(widths) if hidden else sum(widths)
        self.projection = nn.Linear(joined, config.latent)

    def forward(self, points_BD: Tensor) -> Tensor:
        """Latents (B, Z)."""
        parts = points_BD.split(self.widths, dim=1)
        encoded = [view(part) for view, part in zip(self.views, parts, strict=True)]
        return self.projection(torch.cat(encoded, dim=1))


class ViewDecoder(nn.Module):
    """A decoder for each view."""

    def __init__(self, widths: Sequence[int], config: RqVaeConfig) -> None:
        super().__init__()
        inner = (config.latent, *config.hidden[::-1])
        self.views = nn.ModuleList(mlp((*inner, width), config.dropout) for width in widths)

    def forward(self, quantised_BZ: Tensor) -> Tensor:
        """Rebuilt views, side by side (B, D)."""
        return torch.cat([view(quantised_BZ) for view in self.views], dim=1)


class PlumObjective(Objective):
    """The loss of RQ-VAE over known views and masked levels + contrast * L_con."""

    config: PlumRqVaeConfig

    def __init__(
        self,
        model: Autoencoder,
        points_ND: Tensor,
        config: PlumRqVaeConfig,
        *,
        widths: Sequence[tuple[str, int]],
        known_NM: Bools,
        pairs_NN: sparse.csr_array,
    ) -> None:
        super().__init__(model, points_ND, config)
        self.widths = [width for _, width in widths]
        self.known_NM = torch.from_numpy(known_NM).to(points_ND.device)
        self.companions = Companions(pairs_NN, points_ND.device)

    def reconstruction(self, rows_B: Tensor, points_BD: Tensor, rebuilt_BD: Tensor) -> Tensor:
        """Squared error of the views that each item has."""
        if len(self.widths) == 1:
            return super().reconstruction(rows_B, points_BD, rebuilt_BD)
        errors = (points_BD - rebuilt_BD).square().split(self.widths, dim=1)
        errors_BM = torch.stack([error.sum(dim=1) for error in errors], dim=1)
        return (errors_BM * self.known_NM[rows_B]).sum(dim=1).mean()

    def depths(self, rows_B: Tensor) -> Tensor | None:
        """Depth r (B,) of each item, uniform in 1 … L."""
        if not self.config.masking:
            return None
        return torch.randint(1, len(self.model.books) + 1, rows_B.shape, device=rows_B.device)

    def extra(self, rows_B: Tensor, latents_BZ: Tensor, quantised: Quantised) -> Tensor | float:
        """The contrastive term of the items of this batch that co-occur with any."""
        if self.config.contrast == 0:
            return 0.0
        others_B = self.companions.draw(rows_B)
        paired = others_B >= 0
        if not paired.any():
            return 0.0
        others_P = others_B[paired]
        other = residual_quantise(
            self.model.encoder(self.points_ND[others_P]).float(),
            self.model.books,
            self.choose,
            self.config.gradient,
            self.depths(others_P),
        )
        members_PZ = torch.cat([quantised.output_BZ[paired], other.output_BZ])
        if self.config.normalise:
            members_PZ = functional.normalize(members_PZ, dim=1)
        items_P = torch.cat([rows_B[paired], others_P])
        return self.config.contrast * info_nce(members_PZ, items_P, self.config.temperature)


class Companions:
    """Draws, for each item, one that co-occurs with it, in proportion to the users they share."""

    def __init__(self, pairs_NN: sparse.csr_array, device: torch.device) -> None:
        counts_E = np.concatenate([[0.0], np.cumsum(pairs_NN.data, dtype=np.float64)])
        self.starts = torch.from_numpy(pairs_NN.indptr.astype(np.int64)).to(device)
        self.items_E = torch.from_numpy(pairs_NN.indices.astype(np.int64)).to(device)
        self.upto_E = torch.from_numpy(counts_E).to(device)

    def draw(self, rows_B: Tensor) -> Tensor:
        """Items (B,), −1 where nothing co-occurs."""
        first_B, end_B = self.starts[rows_B], self.starts[rows_B + 1]
        low_B, high_B = self.upto_E[first_B], self.upto_E[end_B]
        chance_B = torch.rand(len(rows_B), dtype=torch.float64, device=rows_B.device)
        place_B = torch.searchsorted(self.upto_E, low_B + chance_B * (high_B - low_B), right=True)
        drawn_B = torch.full_like(rows_B, -1)
        some = end_B > first_B
        drawn_B[some] = self.items_E[torch.minimum(place_B[some], end_B[some]) - 1]
        return drawn_B


def info_nce(members_PZ: Tensor, items_P: Tensor, temperature: float) -> Tensor:
    """Mean over i of −log(exp(p_i · p_i+) / sum over j of exp(p_i · p_j)), i+ = i ± P / 2.

    An item's own copies, and further copies of its positive, are not in the sum.
    """
    positive_P = torch.arange(len(items_P), device=items_P.device).roll(len(items_P) // 2)
    same_PP = items_P[:, None] == items_P
    left_out_PP = same_PP | same_PP[positive_P]
    left_out_PP.scatter_(1, positive_P[:, None], False)
    scores_PP = members_PZ @ members_PZ.T / temperature
    return functional.cross_entropy(scores_PP.masked_fill(left_out_PP, -torch.inf), positive_P)
