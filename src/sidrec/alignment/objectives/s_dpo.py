"""S-DPO: DPO with all negatives of a context in one softmax, the hardest first.

    L = softplus( log sum_l exp( beta (D_l − D_w) ) ) + eta · −log π(y_w),    D = log π − log π_ref

The gradient shares itself out among negatives as softmax_l(beta D_l).

Source:   "On Softmax Direct Preference Optimization for Recommendation", arXiv:2406.09215.
Differs:  as many negatives as a context has; without any, the SFT term alone.
Cost:     as DPO.
Shapes:   B contexts, P positives, M negatives, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from sidrec.alignment.objectives.pairs import log_sum_exp_of_real, pair_parts, reference_margins
from sidrec.alignment.objectives.settings import require_not_negative, require_positive
from sidrec.alignment.objectives.sft import with_sft
from sidrec.alignment.values import PreferenceLogProbs


@dataclass(frozen=True, kw_only=True)
class SDpoConfig:
    """Settings of `SDpo`."""

    beta: float = 1.0
    """Strength of the pull towards the reference; larger stays closer. 1 in the paper's code."""
    sft_weight: float = 0.0
    """eta, weight of −log π of the first positive."""

    def __post_init__(self) -> None:
        require_positive("s_dpo", self, "beta")
        require_not_negative("s_dpo", self, "sft_weight")


class SDpo:
    """All negatives against the first positive at once."""

    config_class: ClassVar[type] = SDpoConfig
    kind: ClassVar[str] = "preference"

    def __init__(self, config: SDpoConfig) -> None:
        self.config = config

    @property
    def needs_reference(self) -> bool:
        return True

    def __call__(self, log_probs: PreferenceLogProbs) -> tuple[Tensor, dict[str, Tensor]]:
        """At policy = reference log(1 + n) a context with n negatives."""
        margins_BM = reference_margins(log_probs, "s_dpo")
        contrast_B = softmax_nats(margins_BM, log_probs.has_negative_BM, self.config.beta)
        loss, parts = with_sft(contrast_B, log_probs, self.config.sft_weight)
        return loss, parts | pair_parts(log_probs, margins_BM, contrast_B)


def softmax_nats(margins_BM: Tensor, real_BM: Tensor, beta: float) -> Tensor:
    """(B,) softplus of log-sum-exp over the real negatives of −beta · margin; 0 without any."""
    return -F.logsigmoid(-log_sum_exp_of_real(-beta * margins_BM, real_BM))
