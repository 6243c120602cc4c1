"""SFT: raise the likelihood of what was taken.

    L = mean over contexts of  1/P sum_p −log π(y_p)

With several positives this is multi-label: each of them is a target of its context.

Source:   supervised next-item training; 1/P sum over Y_pos as eq. 2 of RAD-DPO (arXiv:2602.23964).
Differs:  whole-ID sums without length normalisation, as there.
Cost:     one pass over the P positives.
Shapes:   B contexts, P positives, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sidrec.alignment.objectives.pairs import mean_of_real
from sidrec.alignment.values import PreferenceLogProbs


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Settings of `Sft`."""

    first_only: bool = False
    """Learn from the first positive of each context alone; otherwise from the mean of all."""


class Sft:
    """Negative log-likelihood of positives; negatives are not looked at."""

    config_class: ClassVar[type] = SftConfig
    kind: ClassVar[str] = "preference"

    def __init__(self, config: SftConfig) -> None:
        self.config = config

    @property
    def needs_reference(self) -> bool:
        return False

    def __call__(self, log_probs: PreferenceLogProbs) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats of a positive; under a uniform policy over V codes L log V."""
        loss = sft_nats(log_probs, first_only=self.config.first_only).mean()
        return loss, {"sft": loss.detach()}


def sft_nats(log_probs: PreferenceLogProbs, *, first_only: bool = False) -> Tensor:
    """(B,) −log π of the positives, their mean or the first one's."""
    nats_BP = -log_probs.positive_BP
    if first_only:
        return nats_BP[:, 0]
    return mean_of_real(nats_BP, log_probs.has_positive_BP)


def with_sft(
    contrast_B: Tensor, log_probs: PreferenceLogProbs, weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss of the contexts: the contrast plus weight · −log π of the first positive."""
    nats_B = sft_nats(log_probs, first_only=True)
    loss = contrast_B.mean()
    if weight:
        loss = loss + weight * nats_B.mean()
    with torch.no_grad():
        return loss, {"sft": nats_B.mean()}
