"""DPO: raise the margin by which the policy prefers what was taken, relative to a reference.

    L = softplus( −beta (D_w − D_l) ) + eta · −log π(y_w),      D = log π − log π_ref

A context with several negatives is the mean of its pairs (y_w, y_l), y_w its first positive.

Source:   Rafailov et al. 2023, eq. 7 (arXiv:2305.18290); eta > 0 is RPO (arXiv:2405.16436).
Differs:  pairs of one context share its weight; a context without negatives has the SFT term alone.
Cost:     the P positives and M negatives under policy and reference.
Shapes:   B contexts, P positives, M negatives, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from sidrec.alignment.objectives.pairs import mean_of_real, pair_parts, reference_margins
from sidrec.alignment.objectives.settings import require_not_negative, require_positive
from sidrec.alignment.objectives.sft import with_sft
from sidrec.alignment.values import PreferenceLogProbs


@dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """Settings of `Dpo`."""

    beta: float = 0.1
    """Strength of the pull towards the reference; larger stays closer. 0.1 to 0.5 in the paper."""
    sft_weight: float = 0.0
    """eta, weight of −log π of the first positive; above 0 this is RPO."""

    def __post_init__(self) -> None:
        require_positive("dpo", self, "beta")
        require_not_negative("dpo", self, "sft_weight")


class Dpo:
    """Each negative against the first positive, pair by pair."""

    config_class: ClassVar[type] = DpoConfig
    kind: ClassVar[str] = "preference"

    def __init__(self, config: DpoConfig) -> None:
        self.config = config

    @property
    def needs_reference(self) -> bool:
        return True

    def __call__(self, log_probs: PreferenceLogProbs) -> tuple[Tensor, dict[str, Tensor]]:
        """At policy = reference log 2 a context with negatives, for any beta."""
        margins_BM = reference_margins(log_probs, "dpo")
        contrast_B = mean_of_real(
            pair_nats(margins_BM, self.config.beta), log_probs.has_negative_BM
        )
        loss, parts = with_sft(contrast_B, log_probs, self.config.sft_weight)
        return loss, parts | pair_parts(log_probs, margins_BM, contrast_B)


def pair_nats(margins_BM: Tensor, beta: float) -> Tensor:
    """(B, M) nats of each pair, −log sigmoid(beta · margin)."""
    return -F.logsigmoid(beta * margins_BM)  # eq. 7
