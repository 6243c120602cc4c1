"""ORPO: fine-tuning with a penalty on the odds of what was not taken, without a reference.

    L = −S_w/|y_w| + lam · softplus( −(lo_w − lo_l) ),   lo = log p − log(1 − p),  p = e^(S/|y|)

A context with several negatives is the mean of its pairs (y_w, y_l), y_w its first positive; one
without has the likelihood alone.

Source:   ORPO, arXiv:2403.07691, eq. 4, 6 and 7.
Differs:  p is held below e^−1e-6, where the odds have no gradient: they are infinite at p = 1. |y|
          counts the end of a shorter ID.
Cost:     as SimPO.
Shapes:   B contexts, P positives, M negatives, K either, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from sidrec.alignment.objectives.pairs import mean_of_real, pair_parts, per_code
from sidrec.alignment.objectives.settings import require_not_negative
from sidrec.alignment.values import PreferenceLogProbs

LARGEST_LOG_PROB = -1e-6


@dataclass(frozen=True, kw_only=True)
class OrpoConfig:
    """Settings of `Orpo`."""

    odds_weight: float = 0.1
    """lam, weight of the odds ratio; 0.1 in the paper."""

    def __post_init__(self) -> None:
        require_not_negative("orpo", self, "odds_weight")


class Orpo:
    """Likelihood of the first positive and its odds against each negative."""

    config_class: ClassVar[type] = OrpoConfig
    kind: ClassVar[str] = "preference"

    def __init__(self, config: OrpoConfig) -> None:
        self.config = config

    @property
    def needs_reference(self) -> bool:
        return False

    def __call__(self, log_probs: PreferenceLogProbs) -> tuple[Tensor, dict[str, Tensor]]:
        """At equal p the likelihood's nats a code plus lam · log 2."""
        chosen_B1 = per_code(log_probs.positive_BP, log_probs.positive_lengths_BP)[:, :1]
        left_BM = per_code(log_probs.negative_BM, log_probs.negative_lengths_BM)
        margins_BM = log_odds(chosen_B1) - log_odds(left_BM)
        contrast_B = mean_of_real(-F.logsigmoid(margins_BM), log_probs.has_negative_BM)
        nats = -chosen_B1.mean()
        parts = pair_parts(log_probs, margins_BM, contrast_B)
        return nats + self.config.odds_weight * contrast_B.mean(), parts | {"sft": nats.detach()}


def log_odds(log_probs_BK: Tensor) -> Tensor:
    """The log odds log p − log(1 − p) of log p, safe near p = 1 and p = 0."""
    log_p_BK = log_probs_BK.clamp(max=LARGEST_LOG_PROB)
    return log_p_BK - (-log_p_BK.expm1()).log()
