"""Rank-aware: a hit earns 1; in a group with a hit, misses lose the more the higher they rank.

    miss at place i (from 0):  - (1 / log2(i + 2)) / sum over k of 1 / log2(k + 2)      hit:  1

Without a hit in the group all rewards are 0. G = 4: −.3904, −.2463, −.1952, −.1681. The order of
the beam carries the penalty, so that misses differ where an exact match alone ties them.

Source:   rule and ranking reward of MiniOneRec (arXiv:2510.24431; AkaliKong/MiniOneRec).
Differs:  the sum runs over the rollouts that exist, where a small tree gives fewer than G. An ID
          without an item is worth the penalty of place 0, hit or no hit; their beam has none.
Cost:     O(B G L).
Shapes:   B contexts, G rollouts of a context, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from sidrec.alignment.values import AlignmentContext, Rollouts
from sidrec.errors import DataError


@dataclass(frozen=True, kw_only=True)
class RankAwareConfig:
    """Settings of `RankAware`."""

    weight: float = 1.0
    """Factor of this reward in a mixture."""
    penalty: float = 1.0
    """Factor of the penalty; 0 leaves the exact match."""


@dataclass(frozen=True, eq=False)
class RankAware:
    """Exact match and a penalty by place; for rollouts of a beam."""

    config_class: ClassVar[type] = RankAwareConfig
    needs_order: ClassVar[bool] = True
    """The place of a rollout in its group changes its reward."""

    config: RankAwareConfig

    @classmethod
    def build(cls, context: AlignmentContext, config: RankAwareConfig) -> Self:
        """Nothing to learn."""
        return cls(config)

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """(B, G) in [−penalty, 1]. DataError where rollouts are samples."""
        if not rollouts.ranked:
            raise DataError(
                "rank_aware expected the rollouts of a beam, best first, got samples, which have "
                "no order; roll out by beam or choose the exact or prefix reward"
            )
        hits_BG = rollouts.hits_BG & rollouts.valid_BG
        penalties_BG = self.config.penalty * place_penalties(rollouts.real_BG)
        missed_BG = hits_BG.any(1, keepdim=True) & ~hits_BG
        rewards_BG = hits_BG.float() - penalties_BG * missed_BG
        return torch.where(rollouts.valid_BG, rewards_BG, -penalties_BG[:, :1])


def place_penalties(real_BG: Tensor) -> Tensor:
    """(B, G) share of each place in the sum of 1 / log2(place + 2) over the rollouts there are."""
    places_G = torch.arange(real_BG.shape[1], device=real_BG.device, dtype=torch.float32)
    discounts_G = 1 / torch.log2(places_G + 2)
    return discounts_G / (discounts_G * real_BG).sum(1, keepdim=True).clamp_min(1.0)
