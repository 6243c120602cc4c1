"""Advantages: what each rollout of a group earned above the others, in units of their spread.

    A_i = (r_i − mean(r)) / (std(r) + 1e-4)

over the rollouts of one context. A group whose rewards are all the same says nothing: A = 0, and
the share of such groups is reported. A rollout whose reward is no finite number is left out of its
group, as if it had not been written, and counted.

Source:  GRPO as in MiniOneRec (arXiv:2510.24431).
Differs: population std by default, where MiniOneRec's code has the sample std.
Cost:    nothing beside the rewards.
Shapes:  B contexts, G rollouts of a context.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sidrec.alignment.values import GroupLogProbs

Std = Literal["population", "sample"]
STD_FLOOR = 1e-4


def scored(rewards_BG: Tensor, real_BG: Tensor) -> Tensor:
    """(B, G) whether there is a rollout and its reward is a finite number."""
    return real_BG & rewards_BG.isfinite()


def standardised(
    rewards_BG: Tensor, scored_BG: Tensor, *, std: Std = "population", floor: float = STD_FLOOR
) -> Tensor:
    """(B, G) advantages of scored rollouts within their group; 0 for others, no gradient."""
    rewards_BG = torch.where(scored_BG, rewards_BG.detach(), torch.zeros_like(rewards_BG))
    num_B1 = scored_BG.sum(1, keepdim=True).to(rewards_BG.dtype)
    means_B1 = rewards_BG.sum(1, keepdim=True) / num_B1.clamp_min(1)
    above_BG = torch.where(scored_BG, rewards_BG - means_B1, torch.zeros_like(rewards_BG))
    divisor_B1 = (num_B1 - 1 if std == "sample" else num_B1).clamp_min(1)
    stds_B1 = ((above_BG**2).sum(1, keepdim=True) / divisor_B1).sqrt()
    silent_B1 = silent(rewards_BG, scored_BG)[:, None]
    return (above_BG / (stds_B1 + floor)).masked_fill(silent_B1, 0.0)


def silent(rewards_BG: Tensor, scored_BG: Tensor) -> Tensor:
    """(B,) whether the scored rewards of a group are all the same, or fewer than two."""
    if not rewards_BG.shape[1]:
        return torch.ones(len(rewards_BG), dtype=torch.bool, device=rewards_BG.device)
    highest_B = rewards_BG.masked_fill(~scored_BG, -torch.inf).amax(1)
    lowest_B = rewards_BG.masked_fill(~scored_BG, torch.inf).amin(1)
    return ~(highest_B > lowest_B)


def group_parts(
    log_probs: GroupLogProbs, advantages_BG: Tensor, scored_BG: Tensor
) -> dict[str, Tensor]:
    """What every group objective reports: rewards, advantages, silent groups, nats of the truth."""
    with torch.no_grad():
        rewards_BG, real_BG = log_probs.rewards_BG, log_probs.real_BG
        num_scored = scored_BG.sum().clamp_min(1)
        return {
            "reward": torch.where(scored_BG, rewards_BG, torch.zeros_like(rewards_BG)).sum()
            / num_scored,
            "advantage_abs": advantages_BG.abs().sum() / num_scored,
            "silent_share": silent(rewards_BG, scored_BG).float().mean(),
            "missing_rewards": (real_BG & ~scored_BG).sum() / real_BG.sum().clamp_min(1),
            "nll": log_probs.target_nats_B.mean(),
        }
