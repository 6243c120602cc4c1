"""PPO: policy gradient against a learnt value of each prefix, rather than against a group.

    R_t  = 1[t is the last code] r − kl_weight (log π_old − log π_ref)_t
    A_t  = sum over k >= 0 of lam^k (R + V_old,next − V_old)_(t+k),   G_t = A_t + V_old,t    gamma 1
    L_pi = −mean of min( rho A, clip(rho, 1 − eps, 1 + eps) A )
    L_V  = ½ mean of max( (V − G)², (clip(V, V_old ± eps_V) − G)² )
    L    = L_pi + value_weight L_V + nll_weight · −log π(y*)

Means are over the codes of a rollout, then over the rollouts of a context, then over contexts.

Source:   PPO, arXiv:1707.06347, eq. 7; GAE, arXiv:1506.02438, eq. 16; the reward with KL as in
          arXiv:2203.02155.
Differs:  advantages are whitened over the codes of the batch, as is common. The KL is between what
          the rollouts were sampled from and the reference, and is part of the reward, so its
          gradient comes through A.
Cost:     the G rollouts under policy and value head, and the reference where kl_weight > 0.
Shapes:   B contexts, G rollouts of a context, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sidrec.alignment.objectives.advantages import STD_FLOOR, group_parts, scored
from sidrec.alignment.objectives.grpo import (
    clipped_gains,
    mean_of_codes,
    mixed,
    outside,
    over_group,
    ratios,
)
from sidrec.alignment.objectives.settings import (
    require_not_negative,
    require_positive,
    require_share,
)
from sidrec.alignment.values import GroupLogProbs
from sidrec.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """Settings of `Ppo`."""

    kl_weight: float = 0.05
    """Nats of KL that a unit of reward is worth; 0 needs no reference."""
    lam: float = 0.95
    """Of GAE: 1 trusts the reward, 0 the value head."""
    clip: float = 0.2
    """eps: how far rho may move where rollouts are reused; 0 does not clip."""
    value_clip: float = 0.2
    """eps_V: how far a value may move from what it was when sampled; 0 does not clip."""
    value_weight: float = 0.1
    """Weight of the loss of the value head."""
    nll_weight: float = 0.0
    """Weight of −log π of the truth."""
    whiten: bool = True
    """Standardise advantages over the codes of the batch."""

    def __post_init__(self) -> None:
        require_not_negative("ppo", self, "kl_weight", "clip", "value_clip", "nll_weight")
        require_positive("ppo", self, "value_weight")
        require_share("ppo", self, "lam")


class Ppo:
    """Clipped policy gradient of generalised advantages, and the loss of the value head."""

    config_class: ClassVar[type] = PpoConfig
    kind: ClassVar[str] = "group"

    def __init__(self, config: PpoConfig) -> None:
        self.config = config

    @property
    def needs_reference(self) -> bool:
        return self.config.kl_weight > 0

    @property
    def needs_values(self) -> bool:
        """Whether a value head's estimates are asked for."""
        return True

    def __call__(self, log_probs: GroupLogProbs) -> tuple[Tensor, dict[str, Tensor]]:
        """At policy = sampled −mean(A) plus the loss of values and likelihood."""
        config = self.config
        values_BGL, old_BGL = _values(log_probs)
        scored_BG = scored(log_probs.rewards_BG, log_probs.real_BG)
        mask_BGL = log_probs.mask_BGL * scored_BG[..., None]
        rewards_BGL, parts = self._rewards(log_probs, scored_BG, mask_BGL)
        advantages_BGL = gae(rewards_BGL, old_BGL, mask_BGL, config.lam)
        returns_BGL = advantages_BGL + old_BGL
        if config.whiten:
            advantages_BGL = whitened(advantages_BGL, mask_BGL)
        ratio_BGL = ratios(log_probs.policy_BGL, log_probs.sampled_BGL)
        # Each code has its own advantage: to the functions of groups, a rollout of one code.
        gains_BGL = clipped_gains(ratio_BGL[..., None], advantages_BGL, config.clip)[..., 0]
        outside_BGL = outside(ratio_BGL[..., None].detach(), advantages_BGL, config.clip)[..., 0]
        errors_BGL = value_errors(values_BGL, old_BGL, returns_BGL, config.value_clip)
        policy_B = -over_group(gains_BGL, mask_BGL, scored_BG)
        value_B = over_group(errors_BGL, mask_BGL, scored_BG)
        loss = mixed(
            log_probs.target_nats_B, policy_B + config.value_weight * value_B, config.nll_weight, 1
        )
        with torch.no_grad():
            parts["value_loss"] = value_B.mean()
            parts["value"] = mean_of_codes(values_BGL, mask_BGL, scored_BG)
            parts["clipped_share"] = mean_of_codes(
                outside_BGL.to(mask_BGL.dtype), mask_BGL, scored_BG
            )
            mean_BG = advantages_BGL.abs().sum(-1) / mask_BGL.sum(-1).clamp_min(1)
        return loss, parts | group_parts(log_probs, mean_BG, scored_BG)

    def _rewards(
        self, log_probs: GroupLogProbs, scored_BG: Tensor, mask_BGL: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, G, L) the reward at the last code, less the KL of each code; no gradient."""
        rewards_BG = torch.where(
            scored_BG, log_probs.rewards_BG.detach(), torch.zeros_like(log_probs.rewards_BG)
        ).to(mask_BGL.dtype)
        places_L = torch.arange(mask_BGL.shape[-1], device=mask_BGL.device)
        last_BGL = places_L == log_probs.lengths_BG[..., None] - 1
        rewards_BGL = last_BGL * rewards_BG[..., None]
        if log_probs.reference_BGL is None:
            if self.config.kl_weight:
                raise DataError(
                    f"ppo.kl_weight = {self.config.kl_weight} needs log-probabilities under the "
                    "reference, got none; fill reference_BGL or set kl_weight = 0"
                )
            return rewards_BGL, {}
        kl_BGL = (log_probs.sampled_BGL - log_probs.reference_BGL).detach()
        kl_BGL = torch.where(mask_BGL > 0, kl_BGL, torch.zeros_like(kl_BGL))
        parts = {"kl_per_code": mean_of_codes(kl_BGL, mask_BGL, scored_BG)}
        return rewards_BGL - self.config.kl_weight * kl_BGL, parts


def gae(rewards_BGL: Tensor, values_BGL: Tensor, mask_BGL: Tensor, lam: float) -> Tensor:
    """(B, G, L) generalised advantages at gamma = 1; 0 where there is no code."""
    num_levels = rewards_BGL.shape[-1]
    values_BGL = torch.where(mask_BGL > 0, values_BGL, torch.zeros_like(values_BGL))
    after_BG = next_BG = torch.zeros_like(values_BGL[..., 0])
    found: list[Tensor] = []
    for level in reversed(range(num_levels)):
        surprise_BG = rewards_BGL[..., level] + next_BG - values_BGL[..., level]
        after_BG = mask_BGL[..., level] * (surprise_BG + lam * after_BG)
        next_BG = values_BGL[..., level]
        found.append(after_BG)
    return torch.stack(found[::-1], dim=-1)


def whitened(advantages_BGL: Tensor, mask_BGL: Tensor) -> Tensor:
    """Less their mean and over their std (floor 1e-4), over the codes of the batch."""
    num = mask_BGL.sum().clamp_min(1)
    above_BGL = (advantages_BGL - (advantages_BGL * mask_BGL).sum() / num) * mask_BGL
    return above_BGL / (((above_BGL**2).sum() / num).sqrt() + STD_FLOOR)


def value_errors(
    values_BGL: Tensor, sampled_BGL: Tensor, returns_BGL: Tensor, clip: float
) -> Tensor:
    """(B, G, L) half the squared error of each value; moving past `clip` earns nothing."""
    errors_BGL = (values_BGL - returns_BGL) ** 2
    if clip:
        moved_BGL = sampled_BGL + (values_BGL - sampled_BGL).clamp(-clip, clip)
        errors_BGL = torch.maximum(errors_BGL, (moved_BGL - returns_BGL) ** 2)
    return errors_BGL / 2


def _values(log_probs: GroupLogProbs) -> tuple[Tensor, Tensor]:
    values_BGL, sampled_BGL = log_probs.values_BGL, log_probs.sampled_values_BGL
    if values_BGL is None:
        raise DataError("ppo needs the estimates of a value head, got none; fill values_BGL")
    return values_BGL, (values_BGL if sampled_BGL is None else sampled_BGL).detach()
