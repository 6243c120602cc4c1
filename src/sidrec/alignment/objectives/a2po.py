"""A2PO: a semantic judge may amplify what the business reward says, never flip or replace it.

    A   = A_biz + lam A_sem
    lam = 1[sign(A_biz) = sign(A_sem)] min(|A_biz|, |A_sem|) / (max(|A_biz|, |A_sem|) + 1e-8)

Both are rewards standardised within the group, so that their scales never matter, and A enters the
clipped objective of GRPO. |A| is between |A_biz| and 2 |A_biz|, of the same sign; advantages below
1e-8 count as 0, whose sign is nobody's. Fused advantages are not zero in the mean.

A judge is asked about whole groups, few of them; a group that was not judged has A = A_biz. Where
single answers of a judged group could not be read, those rollouts have A = A_biz and the others
are standardised among themselves.

Source:   S-GRec, arXiv:2602.10606, known from summaries. The controls: fusion "advantage_sum" is
          A_biz + A_sem, "reward_sum" standardises r_biz + r_sem (an unread answer counts as the
          mean of its group), "business" is GRPO.
Differs:  population std with a floor of 1e-4; eps 1e-8.
Cost:     as GRPO; the judge is the caller's.
Shapes:   B contexts, G rollouts of a context, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sidrec.alignment.objectives.advantages import group_parts, scored, standardised
from sidrec.alignment.objectives.grpo import GrpoConfig, group_loss, mixed
from sidrec.alignment.values import GroupLogProbs

Fusion = Literal["a2po", "advantage_sum", "reward_sum", "business"]
ZERO = 1e-8


@dataclass(frozen=True, kw_only=True)
class A2poConfig(GrpoConfig):
    """Settings of `A2po`: those of GRPO, and what becomes of the two rewards."""

    name: ClassVar[str] = "a2po"

    fusion: Fusion = "a2po"
    """How the two rewards become one advantage; all but "a2po" are controls."""


class A2po:
    """GRPO with advantages that a semantic judge amplifies."""

    config_class: ClassVar[type] = A2poConfig
    kind: ClassVar[str] = "group"

    def __init__(self, config: A2poConfig) -> None:
        self.config = config

    @property
    def needs_reference(self) -> bool:
        return self.config.kl_weight > 0

    def __call__(self, log_probs: GroupLogProbs) -> tuple[Tensor, dict[str, Tensor]]:
        """Where nothing was judged that of GRPO, to the bit."""
        config = self.config
        scored_BG = scored(log_probs.rewards_BG, log_probs.real_BG)
        business_BG = standardised(log_probs.rewards_BG, scored_BG, std=config.std)
        advantages_BG, judge_parts = self._fused(log_probs, business_BG, scored_BG)
        group_B, parts = group_loss(
            log_probs, advantages_BG, scored_BG, clip=config.clip, kl_weight=config.kl_weight
        )
        loss = mixed(log_probs.target_nats_B, group_B, config.nll_weight, config.group_weight)
        return loss, parts | judge_parts | group_parts(log_probs, advantages_BG, scored_BG)

    def _fused(
        self, log_probs: GroupLogProbs, business_BG: Tensor, scored_BG: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, G) advantages of both rewards, and how far they agree."""
        judged_BG = judged(log_probs, scored_BG)
        rewards_BG, semantic_BG = log_probs.rewards_BG, log_probs.semantic_BG
        if semantic_BG is None:
            semantic_BG = torch.zeros_like(rewards_BG)
        semantic_BG = torch.where(judged_BG, semantic_BG, torch.zeros_like(semantic_BG)).to(
            rewards_BG.dtype
        )
        found_BG = standardised(semantic_BG, judged_BG, std=self.config.std)
        gates_BG = agreement(business_BG, found_BG)
        if self.config.fusion == "a2po":
            fused_BG = business_BG + gates_BG * found_BG
        elif self.config.fusion == "advantage_sum":
            fused_BG = business_BG + found_BG
        elif self.config.fusion == "reward_sum":
            num_B1 = judged_BG.sum(1, keepdim=True)
            means_B1 = semantic_BG.sum(1, keepdim=True) / num_B1.clamp_min(1)
            summed_BG = rewards_BG + torch.where(judged_BG, semantic_BG, means_B1)
            fused_BG = standardised(summed_BG, scored_BG, std=self.config.std)
        else:
            fused_BG = business_BG
        return fused_BG, _judge_parts(log_probs, judged_BG, business_BG, found_BG, gates_BG)


def judged(log_probs: GroupLogProbs, scored_BG: Tensor) -> Tensor:
    """(B, G) scored rollouts that the semantic judge gave a finite number."""
    if log_probs.semantic_BG is None:
        return torch.zeros_like(scored_BG)
    found_BG = scored_BG & log_probs.semantic_BG.isfinite()
    return found_BG if log_probs.judged_BG is None else found_BG & log_probs.judged_BG


def agreement(business_BG: Tensor, semantic_BG: Tensor) -> Tensor:
    """(B, G) lam in [0, 1]: how far two advantages agree in size, 0 where not in sign."""
    small_BG = torch.minimum(business_BG.abs(), semantic_BG.abs())
    large_BG = torch.maximum(business_BG.abs(), semantic_BG.abs())
    same_BG = (business_BG.sign() == semantic_BG.sign()) & (small_BG >= ZERO)
    return torch.where(same_BG, small_BG / (large_BG + ZERO), torch.zeros_like(small_BG))


def _judge_parts(
    log_probs: GroupLogProbs,
    judged_BG: Tensor,
    business_BG: Tensor,
    semantic_BG: Tensor,
    gates_BG: Tensor,
) -> dict[str, Tensor]:
    signed_BG = judged_BG & (business_BG.abs() >= ZERO) & (semantic_BG.abs() >= ZERO)
    same_BG = signed_BG & (business_BG.sign() == semantic_BG.sign())
    num_judged = judged_BG.sum().clamp_min(1)
    return {
        "judged_share": judged_BG.sum() / log_probs.real_BG.sum().clamp_min(1),
        "sign_agreement": same_BG.sum() / signed_BG.sum().clamp_min(1),
        "gate_open_rate": (gates_BG > 0).sum() / num_judged,
        "mean_lambda": (gates_BG * judged_BG).sum() / num_judged,
    }
