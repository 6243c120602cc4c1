"""Prefix-weighted loss: train what a beam prunes by, the probability of each prefix of the target.

A beam loses an item for good as soon as one prefix of its ID ranks below too many others, which a
mean over single codes does not see. With log p_s of code s given the history and the codes before,

    S_t        = sum over s <= t of log p_s                                the score of a beam
    pointwise  l_t = mean( −S_t / t ) / tau
    pairwise   l_t = mean( −log [ e^(S_t/tau) / (e^(S_t/tau) + r_t sum_n e^(S_nt/tau)) ] ) / t
    weights    w_t = l_t e^(eta l_t) / sum over t of the same              no gradient
    loss       = nats of the codes + beta L sum_t w_t l_t

where n runs over drawn items whose first t codes are not the target's, and r_t = (prefixes of t
codes − 1) / (items so kept) scales their sum to that over all other prefixes.

Source:  APAO, arXiv:2603.02730.
Differs: L beside beta, because our nats of the codes are a sum over levels, APAO's a mean; no end
         token, so that t runs to L itself; prefixes of an ID in several parts begin anew in each,
         as its beams do. Drawn items are uniform over the catalogue, one set a target position.
Cost:    pointwise nothing. Pairwise runs the depth decoder for M more IDs a position: M times its
         work, and P M V floats a level. Recall is what it is for; likelihood gets worse.
Shapes:  P positions, L levels, M drawn items, V codes of a level.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

NO_PREFIX = -1e30
"""Stands for the logarithm of 0; finite, so that differences of it are never NaN."""


def pointwise_nats(nats_PL: Tensor, temperature: float = 1.0) -> Tensor:
    """(L,) mean nats a code of each prefix, over the temperature."""
    lengths_L = torch.arange(1, nats_PL.shape[-1] + 1, device=nats_PL.device)
    return (nats_PL.cumsum(-1) / lengths_L).mean(0) / temperature


def pairwise_nats(
    nats_PL: Tensor,
    drawn_nats_PML: Tensor,
    same_PML: Tensor,
    num_prefixes_L: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """(L,) mean nats of each prefix among the prefixes of drawn items, over its length.

    `same_PML` marks drawn items that share the target's prefix, which do not compete with it. A
    position where all do costs nothing.
    """
    scores_PL = -nats_PL.cumsum(-1) / temperature
    drawn_PML = (-drawn_nats_PML.cumsum(-1) / temperature).masked_fill(same_PML, NO_PREFIX)
    kept_PL = (~same_PML).sum(1).clamp_min(1).to(nats_PL.dtype)
    scale_PL = ((num_prefixes_L - 1).clamp_min(1) / kept_PL).log()
    lost_PL = F.softplus(drawn_PML.logsumexp(1) + scale_PL - scores_PL)
    lengths_L = torch.arange(1, nats_PL.shape[-1] + 1, device=nats_PL.device)
    return lost_PL.mean(0) / lengths_L


def weighted(nats_L: Tensor, focus: float = 0.0) -> Tensor:
    """Sum of the prefix losses, each weighted by itself times e^(focus · itself)."""
    fixed_L = nats_L.detach()
    weights_L = (fixed_L.clamp_min(1e-30).log() + focus * fixed_L).softmax(0)
    return (weights_L * nats_L).sum()
