"""SimPO: prefer what was taken by a margin in mean log-probability a code, without a reference.

    L = softplus( −( beta S_w/|y_w| − beta S_l/|y_l| − gamma ) ) + eta · −S_w,     S = log π(y)

A context with several negatives is the mean of its pairs (y_w, y_l), y_w its first positive.

Source:   SimPO, arXiv:2405.14734, eq. 6.
Differs:  gamma is the margin itself, not a ratio to beta. |y| counts the end of a shorter ID.
Cost:     the P positives and M negatives under the policy alone.
Shapes:   B contexts, P positives, M negatives, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from sidrec.alignment.objectives.pairs import mean_of_real, pair_parts, per_code
from sidrec.alignment.objectives.settings import require_not_negative, require_positive
from sidrec.alignment.objectives.sft import with_sft
from sidrec.alignment.values import PreferenceLogProbs


@dataclass(frozen=True, kw_only=True)
class SimPoConfig:
    """Settings of `SimPo`."""

    beta: float = 2.0
    """Scale of the scores; 2 to 2.5 in the paper."""
    gamma: float = 1.0
    """Margin in nats that a pair must clear; 0.5 to 1.6 in the paper."""
    sft_weight: float = 0.0
    """eta, weight of −log π of the first positive."""

    def __post_init__(self) -> None:
        require_positive("simpo", self, "beta")
        require_not_negative("simpo", self, "gamma", "sft_weight")


class SimPo:
    """Length-normalised margins against the first positive, pair by pair."""

    config_class: ClassVar[type] = SimPoConfig
    kind: ClassVar[str] = "preference"

    def __init__(self, config: SimPoConfig) -> None:
        self.config = config

    @property
    def needs_reference(self) -> bool:
        return False

    def __call__(self, log_probs: PreferenceLogProbs) -> tuple[Tensor, dict[str, Tensor]]:
        """At equal scores softplus(gamma) a context with negatives."""
        margins_BM = score_margins(log_probs)
        nats_BM = -F.logsigmoid(self.config.beta * margins_BM - self.config.gamma)
        contrast_B = mean_of_real(nats_BM, log_probs.has_negative_BM)
        loss, parts = with_sft(contrast_B, log_probs, self.config.sft_weight)
        return loss, parts | pair_parts(log_probs, margins_BM, contrast_B)


def score_margins(log_probs: PreferenceLogProbs) -> Tensor:
    """(B, M) S/|y| of the first positive less that of each negative."""
    chosen_B1 = per_code(log_probs.positive_BP, log_probs.positive_lengths_BP)[:, :1]
    return chosen_B1 - per_code(log_probs.negative_BM, log_probs.negative_lengths_BM)
