"""LETTER: an RQ-VAE whose latents agree with collaborative vectors and whose codes are spread out.

Two terms on top of `rqvae`: the quantised latent of an item is to tell its collaborative vector
from those of the other items of its batch, and a chosen code is drawn to another random code of its
group, groups being those of a constrained k-means of each codebook. Items are encoded from their
vectors alone, so new ones need no events. With alpha = diversity = sinkhorn = 0 it is `rqvae` bit
for bit.

Source:  LETTER, arXiv:2405.07314, sec. 3.2.
Differs: collaborative vectors are factorised PPMI counts of training events, not embeddings of
         SASRec or LightGCN, as wide as the latents (zeros fill what a small catalogue lacks); items
         without one are left out of that term. Groups have equal sizes within ±1 and are made anew
         every `regroup_every` epochs. Errors are summed over columns and levels, not averaged, so
         alpha and diversity are larger than the published ones. Codebooks start as in `rqvae`.
Cost:    that of `rqvae`, plus O(B^2 * Z) and O(L * B * V * Z) a step, a matching of V codes a level
         and regrouping, and O(B * V) an iteration of Sinkhorn.
Shapes:  N items, D input width, Z latent width, L levels, V codes of a level, B batch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from sidrec.embeddings.collaborative import CollaborativeConfig
from sidrec.embeddings.vectors import known_rows
from sidrec.errors import ConfigError
from sidrec.tokenizers.autoencoder import (
    Autoencoder,
    Objective,
    Quantised,
    fit_autoencoder,
    nearest_codes,
)
from sidrec.tokenizers.behaviour import collaborative_vectors
from sidrec.tokenizers.quantisation import plus_plus, squared_distances
from sidrec.tokenizers.residual_kmeans import codes_per_level, moments, require_items
from sidrec.tokenizers.rqvae import RqVae, RqVaeConfig
from sidrec.types import CatalogueContext, Floats, Ints, ItemVectors

SINKHORN_ITERS = 50
GROUPING_ITERS = 10


@dataclass(frozen=True, kw_only=True)
class LetterConfig(RqVaeConfig):
    """Settings of `Letter`."""

    method_name: ClassVar[str] = "letter"

    alpha: float = 10.0
    """Weight of the collaborative term; 0 leaves it out."""
    diversity: float = 0.1
    """Weight of the diversity term (the paper's beta); 0 leaves it out."""
    num_groups: int = 10
    """Groups of codes a level; at most half as many as there are codes."""
    regroup_every: int = 5
    """Epochs between groupings."""
    sinkhorn: float = 0.003
    """Entropy weight of the balanced choice of last-level codes in training; 0: nearest codes."""
    window: int = 5
    """Items are neighbours for the collaborative vectors when at most this many events apart."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "diversity", "sinkhorn"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"{self.method_name}.{name} must not be negative, got {value}")
        for name in ("num_groups", "regroup_every", "window"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{self.method_name}.{name} must be at least 1, got {value}")


@dataclass(frozen=True, eq=False)
class Letter(RqVae):
    """Fitted encoder, codebooks and decoder."""

    config_class: ClassVar[type] = LetterConfig
    config: LetterConfig
    num_without_collaborative: int = 0
    """Items of `fit` that the collaborative term says nothing about."""

    @classmethod
    def fit(  # type: ignore[override]
        cls, vectors: ItemVectors, config: LetterConfig, context: CatalogueContext | None = None
    ) -> Self:
        """Train on all items; collaborative vectors come from the context's training histories."""
        name = config.method_name
        sizes = codes_per_level(name, config.num_codes, config.num_levels)
        require_items(name, len(vectors), max(sizes))
        mean_D, deviation_D = moments(vectors.vectors, config.standardise)
        wanted_NZ = np.zeros((len(vectors), config.latent), np.float32)
        settings = CollaborativeConfig(dim=config.latent, window=config.window, seed=config.seed)
        fitted = (
            collaborative_vectors(name, vectors, context, settings) if config.alpha > 0 else None
        )
        if fitted is not None:
            wanted_NZ[:, : fitted.vectors_ND.shape[1]] = fitted.vectors_ND
        model = fit_autoencoder(
            torch.from_numpy((vectors.vectors - mean_D) / deviation_D),
            sizes,
            config,
            functools.partial(LetterObjective, wanted_NZ=wanted_NZ),
            cls.build,
        )
        plain = cls.of(model, config, mean_D, deviation_D)
        return replace(plain, num_without_collaborative=int((~known_rows(wanted_NZ)).sum()))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the fit had to do without."""
        alone = self.num_without_collaborative
        return (f"{alone:,} items have no collaborative vector to be near to",) if alone else ()

    def state(self) -> dict[str, Any]:
        """A count."""
        return {"num_without_collaborative": self.num_without_collaborative}

    @classmethod
    def from_arrays(
        cls, config: RqVaeConfig, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
    ) -> Self:
        """The tokenizer that `arrays` and `state` came from."""
        return replace(super().from_arrays(config, arrays, state), **state)


class LetterObjective(Objective):
    """The loss of RQ-VAE + alpha * L_CF + diversity * L_div."""

    config: LetterConfig

    def __init__(
        self, model: Autoencoder, points_ND: Tensor, config: LetterConfig, *, wanted_NZ: Floats
    ) -> None:
        super().__init__(model, points_ND, config)
        self.wanted_NZ = torch.from_numpy(wanted_NZ).to(points_ND.device)
        self.known_N = torch.from_numpy(known_rows(wanted_NZ)).to(points_ND.device)
        self.groups: list[Groups] = []
        if config.diversity > 0:
            self.regroup()

    def choose(self, residual_BZ: Tensor, book_VZ: Tensor, level: int) -> Tensor:
        """The nearest codes (B,); on the last level those of a balanced plan."""
        if self.config.sinkhorn == 0 or level < len(self.model.books) - 1:
            return nearest_codes(residual_BZ, book_VZ, level)
        return balanced_codes(torch.cdist(residual_BZ, book_VZ).square(), self.config.sinkhorn)

    def extra(self, rows_B: Tensor, latents_BZ: Tensor, quantised: Quantised) -> Tensor | float:
        """Both terms, weighted."""
        total: Tensor | float = 0.0
        known_B = self.known_N[rows_B]
        if self.config.alpha > 0 and known_B.any():
            wanted_BZ = self.wanted_NZ[rows_B[known_B]]
            total += self.config.alpha * agreement(quantised.output_BZ[known_B], wanted_BZ)
        for level, groups in enumerate(self.groups):
            codes_B, book_VZ = quantised.codes_BL[:, level], self.model.books[level]
            if len(book_VZ) > 1:
                term = diversity(quantised.rows[level], book_VZ, codes_B, groups.another(codes_B))
                total += self.config.diversity * term
        return total

    def after_epoch(self, epoch: int) -> None:
        """Group the codes anew where it is due."""
        if self.groups and epoch % self.config.regroup_every == 0:
            self.regroup()

    def regroup(self) -> None:
        """Group the codes of every level as they lie now."""
        device = self.points_ND.device
        rng = np.random.default_rng(self.config.seed)
        self.groups = [
            Groups(group_codes(book_VZ, self.config.num_groups, rng), device)
            for book_VZ in self.model.codebooks()
        ]


class Groups:
    """Codes by group, and a random draw of another code of the same group."""

    def __init__(self, groups_V: Ints, device: torch.device) -> None:
        order_V = np.argsort(groups_V, kind="stable")
        sizes_G = np.bincount(groups_V)
        starts_G = np.cumsum(sizes_G) - sizes_G
        place_V = np.empty(len(groups_V), dtype=np.int64)
        place_V[order_V] = np.arange(len(groups_V)) - starts_G[groups_V[order_V]]
        self.order_V, self.place_V, self.start_V, self.size_V = (
            torch.from_numpy(array).to(device)
            for array in (order_V, place_V, starts_G[groups_V], sizes_G[groups_V])
        )

    def another(self, codes_B: Tensor) -> Tensor:
        """Another code (B,) of the same group, each as likely; the code itself if it is alone."""
        sizes_B = self.size_V[codes_B]
        steps_B = 1 + (torch.rand(len(codes_B), device=codes_B.device) * (sizes_B - 1)).long()
        return self.order_V[self.start_V[codes_B] + (self.place_V[codes_B] + steps_B) % sizes_B]


def agreement(latents_BZ: Tensor, wanted_BZ: Tensor) -> Tensor:
    """L_CF = −mean over i of log softmax_j(z_hat_i · h_j)[i]; log B when all scores are equal."""
    own_B = torch.arange(len(latents_BZ), device=latents_BZ.device)
    return functional.cross_entropy(latents_BZ @ wanted_BZ.T, own_B)


def diversity(rows_BZ: Tensor, book_VZ: Tensor, codes_B: Tensor, others_B: Tensor) -> Tensor:
    """L_div = −mean of log softmax over v of (e_code · e_v) at the other code, v != code."""
    scores_BV = (rows_BZ @ book_VZ.T).scatter(1, codes_B[:, None], -torch.inf)
    return functional.cross_entropy(scores_BV, others_B)


def group_codes(book_VZ: Floats, num_groups: int, rng: np.random.Generator) -> Ints:
    """Group (V,) of each code by k-means with sizes equal within ±1, at least two a group."""
    num_codes = len(book_VZ)
    num_groups = max(min(num_groups, num_codes // 2), 1)
    slots_V = np.sort(np.arange(num_codes) % num_groups)
    centres_GZ = plus_plus(book_VZ, num_groups, rng)
    groups_V = np.full(num_codes, -1, dtype=np.int64)
    for _ in range(GROUPING_ITERS):
        costs_VG = squared_distances(book_VZ, centres_GZ)
        before_V, groups_V = groups_V, slots_V[linear_sum_assignment(costs_VG[:, slots_V])[1]]
        if np.array_equal(groups_V, before_V):
            break
        centres_GZ = np.stack([book_VZ[groups_V == g].mean(axis=0) for g in range(num_groups)])
    return groups_V


def balanced_codes(distances_BV: Tensor, epsilon: float) -> Tensor:
    """Codes (B,) with the most mass in a plan of least distance that uses all codes alike.

    Distances are scaled to a range of 2 and weigh against `epsilon` times entropy; the plan is
    diag(u) K diag(v) with K = exp(−distance / epsilon), by Sinkhorn's iterations.
    """
    distances_BV = distances_BV.double()
    reach = ((distances_BV.max() - distances_BV.min()) / 2).clamp_min(1e-12)
    shifted_BV = distances_BV - distances_BV.amin(dim=1, keepdim=True)  # u takes that up
    kernel_BV = (-shifted_BV / reach / epsilon).exp()
    rows_B = kernel_BV.new_ones(len(kernel_BV))
    columns_V = kernel_BV.new_ones(kernel_BV.shape[1])
    for _ in range(SINKHORN_ITERS):
        columns_V = 1 / (rows_B @ kernel_BV).clamp_min(1e-300) / len(columns_V)
        rows_B = 1 / (kernel_BV @ columns_V).clamp_min(1e-300) / len(rows_B)
    return (kernel_BV * columns_V).argmax(dim=1)
