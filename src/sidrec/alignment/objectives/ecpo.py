"""ECPO: GRPO that bounds what a bad rollout can do, by clipping its denominator early.

    π_old' = max( sg(π) / (1 + eps + delta), π_old )  where A < 0,  π_old elsewhere
    J_t    = min( (π/π_old') A, clip(π/π_old', 1 − eps, 1 + eps) A )

PPO's clip leaves the gradient of a bad rollout unbounded in rho; here it is at most 1 + eps + delta
times A. No KL: likelihood is trained along.

Source:   OneRec, arXiv:2506.13695.
Differs:  ratios of single codes, averaged, as in our GRPO; OneRec writes them of whole IDs.
Cost:     the G rollouts under the policy.
Shapes:   B contexts, G rollouts of a context, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from sidrec.alignment.objectives.advantages import Std, group_parts, scored, standardised
from sidrec.alignment.objectives.grpo import group_loss, mixed
from sidrec.alignment.objectives.settings import (
    require_a_term,
    require_not_negative,
    require_positive,
)
from sidrec.alignment.values import GroupLogProbs


@dataclass(frozen=True, kw_only=True)
class EcpoConfig:
    """Settings of `Ecpo`."""

    clip: float = 0.2
    """eps: how far rho may move where rollouts are reused."""
    delta: float = 0.1
    """How far beyond that a bad rollout's ratio may go; 0.1 in OneRec."""
    group_weight: float = 1.0
    """Weight of the rollouts."""
    nll_weight: float = 1.0
    """Weight of −log π of the truth, which stands in for a KL."""
    std: Std = "population"
    """Spread that rewards are divided by."""

    def __post_init__(self) -> None:
        require_positive("ecpo", self, "clip")
        require_not_negative("ecpo", self, "delta")
        require_a_term("ecpo", self, "group_weight", "nll_weight")


class Ecpo:
    """Policy gradient with early clipping of bad rollouts."""

    config_class: ClassVar[type] = EcpoConfig
    kind: ClassVar[str] = "group"

    def __init__(self, config: EcpoConfig) -> None:
        self.config = config

    @property
    def needs_reference(self) -> bool:
        return False

    def __call__(self, log_probs: GroupLogProbs) -> tuple[Tensor, dict[str, Tensor]]:
        """At policy = sampled the gradient of GRPO without KL."""
        config = self.config
        scored_BG = scored(log_probs.rewards_BG, log_probs.real_BG)
        advantages_BG = standardised(log_probs.rewards_BG, scored_BG, std=config.std)
        early = early_clipped(
            log_probs.policy_BGL, log_probs.sampled_BGL, advantages_BG, config.clip + config.delta
        )
        group_B, parts = group_loss(
            replace(log_probs, sampled_BGL=early), advantages_BG, scored_BG, clip=config.clip
        )
        loss = mixed(log_probs.target_nats_B, group_B, config.nll_weight, config.group_weight)
        return loss, parts | group_parts(log_probs, advantages_BG, scored_BG)


def early_clipped(
    policy_BGL: Tensor, sampled_BGL: Tensor, advantages_BG: Tensor, most: float
) -> Tensor:
    """The log of π_old', so that the ratio of a rollout with A < 0 is at most 1 + `most`."""
    raised_BGL = torch.maximum(policy_BGL.detach() - log(1 + most), sampled_BGL.detach())
    return torch.where(advantages_BG[..., None] < 0, raised_BGL, sampled_BGL.detach())
