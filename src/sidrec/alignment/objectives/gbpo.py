"""GBPO: policy gradient of bounded size, without a clip and without dropping a rollout.

    L_t = −π / Dn · A,   Dn = max(π_old, sg(π))  if A >= 0,   Dn = max(π_old, 1 − sg(π))  if A < 0

At policy = sampled a good code has ratio 1 and a bad one π / max(π, 1 − π): what is already
unlikely is hardly pushed further down, as in binary cross-entropy.

Source:   OneRec-V2, arXiv:2508.20900.
Differs:  ratios of single codes, averaged, as in our GRPO; advantages are standardised rewards,
          where OneRec-V2 takes +1, 0 and −1 from feedback.
Cost:     the G rollouts under the policy.
Shapes:   B contexts, G rollouts of a context, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sidrec.alignment.objectives.advantages import Std, group_parts, scored, standardised
from sidrec.alignment.objectives.grpo import group_loss, mixed
from sidrec.alignment.objectives.settings import require_a_term
from sidrec.alignment.values import GroupLogProbs


@dataclass(frozen=True, kw_only=True)
class GbpoConfig:
    """Settings of `Gbpo`."""

    group_weight: float = 1.0
    """Weight of the rollouts."""
    nll_weight: float = 0.0
    """Weight of −log π of the truth."""
    std: Std = "population"
    """Spread that rewards are divided by."""

    def __post_init__(self) -> None:
        require_a_term("gbpo", self, "group_weight", "nll_weight")


class Gbpo:
    """Policy gradient whose size the denominator bounds."""

    config_class: ClassVar[type] = GbpoConfig
    kind: ClassVar[str] = "group"

    def __init__(self, config: GbpoConfig) -> None:
        self.config = config

    @property
    def needs_reference(self) -> bool:
        return False

    def __call__(self, log_probs: GroupLogProbs) -> tuple[Tensor, dict[str, Tensor]]:
        """At policy = sampled the gradient of GRPO for rollouts with A >= 0."""
        config = self.config
        scored_BG = scored(log_probs.rewards_BG, log_probs.real_BG)
        advantages_BG = standardised(log_probs.rewards_BG, scored_BG, std=config.std)
        bounds = bounds_of(log_probs.policy_BGL, log_probs.sampled_BGL, advantages_BG)
        group_B, parts = group_loss(
            replace(log_probs, sampled_BGL=bounds), advantages_BG, scored_BG, clip=0.0
        )
        loss = mixed(log_probs.target_nats_B, group_B, config.nll_weight, config.group_weight)
        return loss, parts | group_parts(log_probs, advantages_BG, scored_BG)


def bounds_of(policy_BGL: Tensor, sampled_BGL: Tensor, advantages_BG: Tensor) -> Tensor:
    """The log of Dn for each code, no gradient."""
    policy_BGL, sampled_BGL = policy_BGL.detach(), sampled_BGL.detach()
    others_BGL = (-policy_BGL.expm1()).log()  # log(1 − π)
    bad_BG1 = advantages_BG[..., None] < 0
    return torch.maximum(sampled_BGL, torch.where(bad_BG1, others_BGL, policy_BGL))
