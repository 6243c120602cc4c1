"""GRPO: make rollouts likelier that earned more than the others of their group.

    J_t  = min( rho_t A, clip(rho_t, 1 − eps, 1 + eps) A ) − kl_weight (e^d − d − 1)
    rho  = π / π_old,    d = log π_ref − log π                     each code by itself
    L    = nll_weight · −log π(y*) − group_weight · mean over rollouts of mean over codes of J

While every rollout is used once, rho is 1 in value and no clip acts; the gradient is A grad log π.
nll_weight = 1 and group_weight = w is the fixed mixture of likelihood and GRPO. Contexts have the
same weight, however many rollouts they have; one without rollouts has the likelihood alone.

Source:   MiniOneRec's code (arXiv:2510.24431); the clip of PPO (arXiv:1707.06347). With
          nll_weight > 0 and kl_weight = 0 the loss of GRPO-SR (GenRec, arXiv:2604.14878), without
          its reward gate.
Differs:  population std of rewards. Rollouts of a beam are no samples: the gradient is biased, and
          so is the KL. Log-ratios are held within ±20, so that no exponential overflows.
Cost:     the G rollouts under the policy, and under the reference where kl_weight > 0.
Shapes:   B contexts, G rollouts of a context, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sidrec.alignment.objectives.advantages import Std, group_parts, scored, standardised
from sidrec.alignment.objectives.settings import require_a_term, require_not_negative
from sidrec.alignment.values import GroupLogProbs
from sidrec.errors import DataError

MOST_NATS = 20.0
"""Where log-ratios are held; e^20 is half a billion."""


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """Settings of `Grpo`."""

    name: ClassVar[str] = "grpo"

    kl_weight: float = 1e-3
    """Weight of the k3 estimate of KL(π, reference), a code; 0 needs no reference."""
    clip: float = 0.2
    """eps: how far rho may move where rollouts are reused; 0 does not clip."""
    group_weight: float = 1.0
    """Weight of the rollouts."""
    nll_weight: float = 0.0
    """Weight of −log π of the truth."""
    std: Std = "population"
    """Spread that rewards are divided by; the reference code divides by the sample std."""

    def __post_init__(self) -> None:
        require_not_negative(self.name, self, "kl_weight", "clip")
        require_a_term(self.name, self, "group_weight", "nll_weight")


class Grpo:
    """Clipped policy gradient of standardised rewards, with KL and likelihood where asked for."""

    config_class: ClassVar[type] = GrpoConfig
    kind: ClassVar[str] = "group"

    def __init__(self, config: GrpoConfig) -> None:
        self.config = config

    @property
    def needs_reference(self) -> bool:
        return self.config.kl_weight > 0

    def __call__(self, log_probs: GroupLogProbs) -> tuple[Tensor, dict[str, Tensor]]:
        """At policy = sampled = reference −mean(A) = 0 plus the likelihood."""
        config = self.config
        scored_BG = scored(log_probs.rewards_BG, log_probs.real_BG)
        advantages_BG = standardised(log_probs.rewards_BG, scored_BG, std=config.std)
        group_B, parts = group_loss(
            log_probs, advantages_BG, scored_BG, clip=config.clip, kl_weight=config.kl_weight
        )
        loss = mixed(log_probs.target_nats_B, group_B, config.nll_weight, config.group_weight)
        return loss, parts | group_parts(log_probs, advantages_BG, scored_BG)


def group_loss(
    log_probs: GroupLogProbs,
    advantages_BG: Tensor,
    scored_BG: Tensor,
    *,
    clip: float,
    kl_weight: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(B,) −J of each context's scored rollouts, 0 without any, and what to report of them."""
    ratio_BGL = ratios(log_probs.policy_BGL, log_probs.sampled_BGL)
    gains_BGL = clipped_gains(ratio_BGL, advantages_BG, clip)
    mask_BGL = log_probs.mask_BGL
    parts: dict[str, Tensor] = {}
    if log_probs.reference_BGL is not None:
        kl_BGL = k3(log_probs.policy_BGL, log_probs.reference_BGL)
        parts["kl_per_code"] = mean_of_codes(kl_BGL.detach(), mask_BGL, scored_BG)
        if kl_weight:
            gains_BGL = gains_BGL - kl_weight * kl_BGL
    elif kl_weight:
        raise DataError(
            f"kl_weight = {kl_weight} needs log-probabilities under the reference, got none; fill "
            "reference_BGL or set kl_weight = 0"
        )
    outside_BGL = outside(ratio_BGL.detach(), advantages_BG, clip).to(mask_BGL.dtype)
    parts["clipped_share"] = mean_of_codes(outside_BGL, mask_BGL, scored_BG)
    return -over_group(gains_BGL, mask_BGL, scored_BG), parts


def ratios(policy_BGL: Tensor, sampled_BGL: Tensor) -> Tensor:
    """Each code's rho, no gradient to what was sampled."""
    return (policy_BGL - sampled_BGL.detach()).clamp(-MOST_NATS, MOST_NATS).exp()


def clipped_gains(ratio_BGL: Tensor, advantages_BG: Tensor, clip: float) -> Tensor:
    """min(rho A, clip(rho) A) of each code; rho A where `clip` is 0."""
    advantages_BG1 = advantages_BG.to(ratio_BGL.dtype)[..., None]
    gains_BGL = ratio_BGL * advantages_BG1
    if not clip:
        return gains_BGL
    return torch.minimum(gains_BGL, ratio_BGL.clamp(1 - clip, 1 + clip) * advantages_BG1)


def outside(ratio_BGL: Tensor, advantages_BG: Tensor, clip: float) -> Tensor:
    """Whether the clip takes the gradient of a code away."""
    if not clip:
        return torch.zeros_like(ratio_BGL, dtype=torch.bool)
    advantages_BG1 = advantages_BG[..., None]
    up_BGL = (advantages_BG1 > 0) & (ratio_BGL > 1 + clip)
    return up_BGL | ((advantages_BG1 < 0) & (ratio_BGL < 1 - clip))


def k3(policy_BGL: Tensor, reference_BGL: Tensor) -> Tensor:
    """e^d − d − 1 with d = log π_ref − log π: KL(π, reference) in the mean over samples of π."""
    d_BGL = (reference_BGL.detach() - policy_BGL).clamp(-MOST_NATS, MOST_NATS)
    return d_BGL.exp() - d_BGL - 1


def over_group(values_BGL: Tensor, mask_BGL: Tensor, scored_BG: Tensor) -> Tensor:
    """(B,) mean over codes of each scored rollout, then over them; 0 where there is none."""
    kept_BGL = torch.where(mask_BGL > 0, values_BGL, torch.zeros_like(values_BGL))
    means_BG = kept_BGL.sum(-1) / mask_BGL.sum(-1).clamp_min(1)
    means_BG = torch.where(scored_BG, means_BG, torch.zeros_like(means_BG))
    return means_BG.sum(1) / scored_BG.sum(1).clamp_min(1).to(means_BG.dtype)


def mean_of_codes(values_BGL: Tensor, mask_BGL: Tensor, scored_BG: Tensor) -> Tensor:
    """Mean over all codes of all scored rollouts; 0 where there is none."""
    kept_BGL = (mask_BGL > 0) & scored_BG[..., None]
    values_BGL = torch.where(kept_BGL, values_BGL, torch.zeros_like(values_BGL))
    return values_BGL.sum() / kept_BGL.sum().clamp_min(1)


def mixed(nll_B: Tensor, group_B: Tensor, nll_weight: float, group_weight: float) -> Tensor:
    """Mean over all contexts of both terms; one of weight 0 does not enter at all."""
    if not nll_weight:
        return group_weight * group_B.mean()
    nll = nll_weight * nll_B.mean()
    return nll + group_weight * group_B.mean() if group_weight else nll
