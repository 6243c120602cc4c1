"""Thoughts before codes: what they are taught, and what they say.

A thought is a vector that a generator makes before it writes a code, and reads back. Two kinds of
teaching give it a meaning. The code embeddings of each level fall into K clusters with centroids
C_l; the thought t_l before a code is to point to the cluster of that code. A light decoder that
reads the history alone makes a vector v, which is to point to the mean embedding v̄ of the target's
codes, and the first thought is to point where v does:

    L_align(l) = -log softmax over k of ( cos(t_l, C_lk) / tau )   at the cluster of the code
    L_InfoNCE  = -log softmax over j of ( cos(v, v̄_j) / tau' )     at the own target j of the batch
    L_Reg      = 1 - cos(t_1, sg(v))
    L          = L_Rec + sum over l of L_align(l) + L_InfoNCE + lambda L_Reg

Source:   S2GR, arXiv:2601.18664, eq. 15 to 24.
Differs:  two temperatures where the paper has one symbol; other targets of a batch with the same
          codes as the own one are left out of L_InfoNCE; a level after the end of a shorter ID is
          taught nothing. Clusters are k-means of the directions of the embeddings of codes that
          items hold (lengths, which no cosine sees, would leave half the clusters one code each),
          started at random codes and then at the centroids before, without gradient.
Cost:     L_InfoNCE O(P^2 D) a step; a refresh of the clusters O(V K D) an iteration and level.
Shapes:   P targets, L levels, V codes of a level, K clusters of a level, D width; … any shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.errors import ConfigError

NUM_ITERS = 10
"""Lloyd iterations of one refresh, at most."""


@dataclass(frozen=True, kw_only=True)
class ThoughtConfig:
    """The settings that generators with thoughts share."""

    thoughts: Literal["stepwise", "first", "none"] = "stepwise"
    """stepwise: a thought before each code; first: all L thoughts before the first code, the same
    number of decoder passes; none: the backbone as it is."""
    supervision: bool = True
    """Teach the thoughts; false leaves them to the loss of the codes."""
    num_clusters: int | tuple[int, ...] = 32
    """K, clusters of the code embeddings: for every level, or one number a level."""
    refresh_steps: int = 100
    """Training steps between two refreshes of the clusters."""
    align_temperature: float = 0.1
    """tau, divides the cosines of a thought with the centroids."""
    contrast_temperature: float = 0.1
    """tau', divides the cosines of the light decoder's vector with the targets."""
    regulariser: float = 0.5
    """lambda, weight of L_Reg."""
    align_weight: float = 1.0
    """Weight of L_align; 1 in the paper."""
    contrast_weight: float = 1.0
    """Weight of L_InfoNCE; 1 in the paper."""


def check_thoughts(method: str, config: ThoughtConfig) -> None:
    """ConfigError where a setting of `ThoughtConfig` cannot be."""
    clusters = config.num_clusters
    if min((clusters,) if isinstance(clusters, int) else clusters, default=0) < 1:
        raise ConfigError(f"{method}.num_clusters must be at least 1, got {clusters}")
    if config.refresh_steps < 1:
        raise ConfigError(f"{method}.refresh_steps must be at least 1, got {config.refresh_steps}")
    for name in ("align_temperature", "contrast_temperature"):
        if not (value := getattr(config, name)) > 0:
            raise ConfigError(f"{method}.{name} must be above 0, got {value}")
    for name in ("regulariser", "align_weight", "contrast_weight"):
        if not (value := getattr(config, name)) >= 0:
            raise ConfigError(f"{method}.{name} must not be negative, got {value}")


class ThoughtClusters(NamedTuple):
    """What each thought says before the code of its level."""

    clusters_BKL: Tensor
    """The cluster whose centroid is nearest in angle."""
    probs_BKL: Tensor
    """Its probability under the softmax of L_align."""
    contains_BKL: Tensor
    """Whether it holds the code that follows; false after the end of a shorter ID."""


class Thinking(NamedTuple):
    """What teaching needs of one pass along the IDs of targets."""

    thoughts_LPD: Tensor
    summaries_PD: Tensor
    """v, what the light decoder makes of the history alone."""
    symbols_PL: Tensor
    """Codes of the targets, one above the last code of a level where an ID has ended."""


class CodeClusters(nn.Module):
    """K-means clusters of the code embeddings of every level; all are buffers, saved with them."""

    steps: Tensor

    def __init__(
        self, method: str, tables_L: Sequence[Tensor], symbols_NL: Tensor, config: ThoughtConfig
    ) -> None:
        super().__init__()
        self.refresh_steps = config.refresh_steps
        sizes = clusters_per_level(method, config.num_clusters, len(tables_L))
        for level, (table_VD, size) in enumerate(zip(tables_L, sizes, strict=True)):
            used = symbols_NL[:, level].unique()
            if len(used) < size:
                raise ConfigError(
                    f"{method}.num_clusters is {size}, but items hold only {len(used)} codes of "
                    f"level {level}; lower it to at most {len(used)}, or give one number a level"
                )
            first_KD = table_VD.detach()[used[torch.randperm(len(used))[:size]]].float()
            self.register_buffer(f"used{level}", used, persistent=False)
            self.register_buffer(f"centroids{level}", F.normalize(first_KD, dim=1))
            self.register_buffer(f"clusters{level}", torch.zeros(len(table_VD), dtype=torch.int64))
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))
        self.num_steps: int | None = 0  # `steps` as a number, so that a step waits for no GPU
        self.register_load_state_dict_post_hook(forget_steps)
        self.refresh(tables_L)

    def centroids(self, level: int) -> Tensor:
        """(K, D) float32 of length 1, without gradient."""
        return getattr(self, f"centroids{level}")

    def clusters(self, level: int) -> Tensor:
        """(V,) cluster of each code, as of the last refresh."""
        return getattr(self, f"clusters{level}")

    def count_step(self, tables_L: Sequence[Tensor]) -> None:
        """Before each training step: refresh at the first and every `refresh_steps` after it."""
        if self.num_steps is None:
            self.num_steps = int(self.steps)
        if self.num_steps % self.refresh_steps == 0:
            self.refresh(tables_L)
        self.num_steps += 1
        self.steps += 1

    @torch.no_grad()
    def refresh(self, tables_L: Sequence[Tensor]) -> None:
        """Cluster the embeddings (V, D) as they are now, starting at the centroids before."""
        for level, table_VD in enumerate(tables_L):
            table_VD, centroids_KD = table_VD.detach().float(), self.centroids(level)
            used = getattr(self, f"used{level}")
            centroids_KD.copy_(kmeans(table_VD[used], centroids_KD, NUM_ITERS))
            self.clusters(level).copy_(nearest(table_VD, centroids_KD))

    def aligned(self, thoughts: Tensor, level: int, temperature: float) -> Tensor:
        """(…, K) logits of the clusters of a level: cosines over the temperature."""
        return cosines(thoughts, self.centroids(level)) / temperature

    def said(
        self,
        thoughts_L: Sequence[Tensor],
        symbols_BKL: Tensor,
        *,
        num_codes: Sequence[int],
        temperature: float,
    ) -> ThoughtClusters:
        """What thoughts that broadcast to (B, K, D) say before the given codes."""
        live_BKL = levels_of(symbols_BKL, num_codes)[1]
        tops, probs, contains = [], [], []
        for level, thoughts in enumerate(thoughts_L):
            symbols_BK = symbols_BKL[..., level]
            odds = self.aligned(thoughts, level, temperature).softmax(-1)
            top_probs, top = (x.expand_as(symbols_BK) for x in odds.max(-1))
            tops.append(top)
            probs.append(top_probs)
            contains.append((self.clusters(level)[symbols_BK] == top) & live_BKL[..., level])
        return ThoughtClusters(*(torch.stack(x, dim=-1) for x in (tops, probs, contains)))


def forget_steps(clusters: Any, _: Any) -> None:
    """After loading: the number of steps is the loaded one."""
    clusters.num_steps = None


def teach(
    passed: Thinking,
    clusters: CodeClusters,
    tables_L: Sequence[Tensor],
    num_codes: Sequence[int],
    config: ThoughtConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of what thoughts are taught, in nats a target, and its parts."""
    real_PL, live_PL = levels_of(passed.symbols_PL, num_codes)
    parts = {
        f"align{level}_nats": align_nats(
            thoughts_PD,
            clusters.centroids(level),
            clusters.clusters(level)[passed.symbols_PL[:, level]],
            config.align_temperature,
            live_PL[:, level],
        )
        for level, thoughts_PD in enumerate(passed.thoughts_LPD)
    }
    taught = config.align_weight * torch.stack(list(parts.values())).sum()
    parts["contrast_nats"] = contrast_nats(
        passed.summaries_PD,
        mean_codes(passed.symbols_PL, real_PL, tables_L),
        passed.symbols_PL.unique(dim=0, return_inverse=True)[1],
        config.contrast_temperature,
    )
    parts["first_thought_gap"] = gap(passed.thoughts_LPD[0], passed.summaries_PD)
    taught = taught + config.contrast_weight * parts["contrast_nats"]
    taught = taught + config.regulariser * parts["first_thought_gap"]
    return taught, {name: part.detach() for name, part in parts.items()}


def align_nats(
    thoughts_PD: Tensor,
    centroids_KD: Tensor,
    clusters_P: Tensor,
    temperature: float,
    live_P: Tensor | None = None,
) -> Tensor:
    """L_align of one level: mean over targets, 0 for those whose ID has ended."""
    logits_PK = cosines(thoughts_PD, centroids_KD) / temperature
    nats_P = F.cross_entropy(logits_PK, clusters_P, reduction="none")
    return (nats_P if live_P is None else nats_P * live_P).mean()


def contrast_nats(
    summaries_PD: Tensor, means_PD: Tensor, groups_P: Tensor, temperature: float
) -> Tensor:
    """L_InfoNCE: every other group's targets are negatives; the own group's others are left out."""
    logits_PP = cosines(summaries_PD, means_PD) / temperature
    same_PP = groups_P[:, None] == groups_P[None]
    same_PP.fill_diagonal_(False)
    own_P = torch.arange(len(groups_P), device=groups_P.device)
    return F.cross_entropy(logits_PP.masked_fill(same_PP, -torch.inf), own_P)


def gap(first_thoughts_PD: Tensor, summaries_PD: Tensor) -> Tensor:
    """L_Reg; its gradient reaches the thoughts alone."""
    cosines_P = F.cosine_similarity(first_thoughts_PD.float(), summaries_PD.detach().float(), -1)
    return 1 - cosines_P.mean()


def mean_codes(symbols_PL: Tensor, real_PL: Tensor, tables_L: Sequence[Tensor]) -> Tensor:
    """(P, D) v̄: mean embedding of the codes that each ID has."""
    sums_PD = sum(
        F.embedding(symbols_PL[:, level], table) * real_PL[:, level, None]
        for level, table in enumerate(tables_L)
    )
    return sums_PD / real_PL.sum(1, keepdim=True)


def levels_of(symbols: Tensor, num_codes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(…, L) bool twice: where an ID has a code, and where it has a code or its end."""
    real = symbols < torch.tensor(num_codes, device=symbols.device)
    return real, F.pad(real[..., :-1], (1, 0), value=True)


def cosines(states: Tensor, table_KD: Tensor) -> Tensor:
    """(…, K) float32 cosines of states (…, D) with the rows of a table."""
    with torch.autocast(states.device.type, enabled=False):
        return F.normalize(states.float(), dim=-1) @ F.normalize(table_KD.float(), dim=-1).T


def kmeans(points_VD: Tensor, centroids_KD: Tensor, num_iters: int) -> Tensor:
    """(K, D) unit centroids of spherical k-means, from a start; the length of a point is nothing.

    One that no point is nearest to restarts at the point that its own centroid fits worst.
    """
    points_VD = F.normalize(points_VD, dim=1)
    clusters_V = nearest(points_VD, centroids_KD)
    for _ in range(num_iters):
        counts_K = torch.bincount(clusters_V, minlength=len(centroids_KD))
        sums_KD = torch.zeros_like(centroids_KD).index_add_(0, clusters_V, points_VD)
        centroids_KD = F.normalize(sums_KD, dim=1)
        if len(dead := (counts_K == 0).nonzero()[:, 0]):
            fits_V = (points_VD * centroids_KD[clusters_V]).sum(1)
            centroids_KD[dead] = points_VD[fits_V.topk(len(dead), largest=False).indices]
        before_V, clusters_V = clusters_V, nearest(points_VD, centroids_KD)
        if torch.equal(before_V, clusters_V):
            break
    return centroids_KD


def nearest(points_VD: Tensor, centroids_KD: Tensor) -> Tensor:
    """(V,) index of the centroid with the highest cosine to each point."""
    return cosines(points_VD, centroids_KD).argmax(1)


def clusters_per_level(
    method: str, num_clusters: int | tuple[int, ...], num_levels: int
) -> tuple[int, ...]:
    """One number of clusters a level. ConfigError where they are not as many as levels."""
    if isinstance(num_clusters, int):
        return (num_clusters,) * num_levels
    if len(num_clusters) != num_levels:
        raise ConfigError(
            f"{method}.num_clusters lists {len(num_clusters)} numbers, the IDs have {num_levels} "
            "levels; give one number, or one a level"
        )
    return num_clusters
