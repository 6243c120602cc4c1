"""A mixture of rewards: their weighted sum, with every component kept for the log.

    total = sum over components c of weight_c · reward_c

Rewards of different scales are added as they are; objectives standardise the total of a group. NaN
marks a rollout that a component could not score: it makes the total NaN, which objectives leave
out, and is counted. A component of weight 0 is computed and logged, and kept out of the total.

Source:   none.
Cost:     that of the components.
Shapes:   B contexts, G rollouts of a context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sidrec import methods
from sidrec.alignment.values import AlignmentContext, Rollouts
from sidrec.contracts import Reward
from sidrec.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Mixture:
    """Calls each component once a batch."""

    components: tuple[tuple[str, Reward, float], ...]
    """(name, reward, weight); names are unique."""

    def __post_init__(self) -> None:
        names = [name for name, _, _ in self.components]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"a mixture needs rewards with different names, got {names}")

    @classmethod
    def build(cls, context: AlignmentContext, configs: Mapping[str, Any]) -> Self:
        """Rewards by name of `methods.py`, each under its config and with its `weight`."""
        return cls(
            tuple(
                (name, methods.resolve("rewards", name).build(context, config), config.weight)
                for name, config in configs.items()
            )
        )

    def __call__(self, rollouts: Rollouts) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, G) the weighted sum, and each component (B, G) before its weight."""
        parts = {name: reward(rollouts) for name, reward, _ in self.components}
        total_BG = torch.zeros_like(rollouts.rows_BG, dtype=torch.float32)
        for name, _, weight in self.components:
            if weight:
                total_BG = total_BG + weight * parts[name]
        return total_BG, parts

    def summary(
        self, rollouts: Rollouts, total_BG: Tensor, parts: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Scalars to log, over the rollouts that exist.

        `<name>_mean` and `<name>_std` (population) of each component and of the total, without
        NaN; `nan_share` of the total; `silent_share`, groups in which the total is constant.
        """
        real_BG = rollouts.real_BG
        logged: dict[str, Tensor] = {}
        for name, rewards_BG in {**parts, "total": total_BG}.items():
            known = rewards_BG[real_BG & ~rewards_BG.isnan()]
            logged[f"{name}_mean"] = known.mean()  # NaN where nothing is known
            logged[f"{name}_std"] = (known - known.mean()).square().mean().sqrt()
        known_BG = real_BG & ~total_BG.isnan()
        unknown_BG = real_BG & total_BG.isnan()
        logged["nan_share"] = unknown_BG.sum() / real_BG.sum().clamp_min(1)
        high_B = total_BG.masked_fill(~known_BG, -torch.inf).amax(1)
        low_B = total_BG.masked_fill(~known_BG, torch.inf).amin(1)
        logged["silent_share"] = (high_B <= low_B).float().mean()
        return logged
