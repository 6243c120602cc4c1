"""What preference objectives share: the first positive of a context against its negatives.

A context without negatives has nothing to compare and costs 0 here, at every weight finite. Means
over contexts divide by all B of them, so that what one context weighs does not depend on who else
is in its batch; the share without negatives is reported.

Shapes:  B contexts, P positives, M negatives, K positives or negatives, L levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sidrec.alignment.values import PreferenceLogProbs
from sidrec.errors import DataError

NO_NEGATIVE = -1e30
"""Stands for the logarithm of 0; finite, so that differences of it are never NaN."""


def per_code(log_probs_BK: Tensor, lengths_BK: Tensor) -> Tensor:
    """Whole-ID log-probabilities over the number of codes, log π(y) / |y|; 0 where there is no ID.

    The end of a shorter ID counts as one of its codes.
    """
    return log_probs_BK / lengths_BK.clamp_min(1).to(log_probs_BK.dtype)


def mean_of_real(values_BK: Tensor, real_BK: Tensor) -> Tensor:
    """(B,) mean over the real entries of each context; 0 where there is none."""
    kept_BK = torch.where(real_BK, values_BK, torch.zeros_like(values_BK))
    return kept_BK.sum(1) / real_BK.sum(1).clamp_min(1).to(values_BK.dtype)


def log_sum_exp_of_real(values_BK: Tensor, real_BK: Tensor) -> Tensor:
    """(B,) log-sum-exp over the real entries of each context; `NO_NEGATIVE` where there is none."""
    if not values_BK.shape[1]:
        return values_BK.sum(1) + NO_NEGATIVE
    filled_B = values_BK.masked_fill(~real_BK, NO_NEGATIVE).logsumexp(1)
    return filled_B.masked_fill(~real_BK.any(1), NO_NEGATIVE)


def reference_margins(log_probs: PreferenceLogProbs, method: str) -> Tensor:
    """(B, M) D(y_w) − D(y_l) with D = log π − log π_ref, no gradient to the reference."""
    positive_BP, negative_BM = log_probs.reference_positive_BP, log_probs.reference_negative_BM
    if positive_BP is None or negative_BM is None:
        raise DataError(
            f"{method} needs log-probabilities under the reference, got none; fill "
            "reference_positive_BP and reference_negative_BM"
        )
    chosen_B1 = (log_probs.positive_BP - positive_BP.detach())[:, :1]
    return chosen_B1 - (log_probs.negative_BM - negative_BM.detach())


def pair_parts(
    log_probs: PreferenceLogProbs, margins_BM: Tensor, contrast_B: Tensor
) -> dict[str, Tensor]:
    """What every preference objective reports.

    `margins_BM` are positive where the first positive is preferred. Both mean log-probabilities
    falling together is squeezing.
    """
    with torch.no_grad():
        real_BM = log_probs.has_negative_BM
        some_B = real_BM.any(1)
        real_BP = log_probs.has_positive_BP
        return {
            "contrast": mean_of_real(contrast_B[None], some_B[None])[0],
            "accuracy": _mean((margins_BM > 0).to(margins_BM.dtype), real_BM),
            "no_negatives": 1 - some_B.to(margins_BM.dtype).mean(),
            "positive_log_prob": _mean(log_probs.positive_BP, real_BP),
            "negative_log_prob": _mean(log_probs.negative_BM, real_BM),
        }


def _mean(values_BK: Tensor, real_BK: Tensor) -> Tensor:
    return mean_of_real(values_BK.reshape(1, -1), real_BK.reshape(1, -1))[0]
