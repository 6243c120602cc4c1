"""Which groups of rollouts go to the judge: whole groups, a small share of them.

Source:  S-GRec (arXiv:2602.10606) judges about 5 % of training samples, by secondary summaries.
Differs: how they are chosen is not known; `uniform` is at random, `hard` at random among groups
         whose business reward is not constant, the only ones where the gate of A2PO can open.
Shapes:  B contexts, G rollouts of a context.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sidrec.errors import ConfigError, DataError

SHARE = 0.05
FLAT = 1e-8
"""Rewards that differ by no more are the same."""


def chosen_groups(
    rewards_BG: Tensor,
    real_BG: Tensor,
    *,
    generator: torch.Generator,
    share: float = SHARE,
    rule: Literal["uniform", "hard"] = "uniform",
) -> Tensor:
    """(B,) bool: groups to judge, `share` of B in the mean, on the device of the rewards.

    B x share is rounded up or down at random, so small batches are judged as often as they should
    be. `hard` takes as many, or all hard groups where there are fewer.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"the share of judged groups must be in [0, 1], got {share}")
    if rule not in ("uniform", "hard"):
        raise ConfigError(f"groups are chosen by 'uniform' or 'hard', got {rule!r}")
    if rewards_BG.shape != real_BG.shape or rewards_BG.ndim != 2:
        raise DataError(
            f"rewards and mask must both be (B, G), got {tuple(rewards_BG.shape)} "
            f"and {tuple(real_BG.shape)}"
        )
    num = len(rewards_BG)
    draws = torch.rand(num + 1, generator=generator, device=generator.device).cpu()
    wanted = int(num * share + float(draws[-1]))
    order_B = draws[:-1].argsort()
    allowed_B = real_BG.any(1) if rule == "uniform" else hard_groups(rewards_BG, real_BG)
    order_B = order_B[allowed_B.cpu()[order_B]]
    chosen_B = torch.zeros(num, dtype=torch.bool)
    chosen_B[order_B[: min(wanted, num)]] = True
    return chosen_B.to(rewards_BG.device)


def hard_groups(rewards_BG: Tensor, real_BG: Tensor) -> Tensor:
    """(B,) whether the rewards of the real rollouts differ."""
    high_B = rewards_BG.masked_fill(~real_BG, -torch.inf).amax(1)
    low_B = rewards_BG.masked_fill(~real_BG, torch.inf).amin(1)
    return high_B - low_B > FLAT
