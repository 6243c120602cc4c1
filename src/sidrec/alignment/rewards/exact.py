"""Exact match: 1 where a rollout is the ID of the truth, else 0.

With 16 sampled rollouts most groups hold no hit or only hits, so the reward is constant in 69-81 %
of them (a related study, objectives card) and teaches nothing there.

Source:   the rule reward of MiniOneRec (arXiv:2510.24431).
Differs:  compares codes, not their text; items that share an ID are one.
Cost:     O(B G L).
Shapes:   B contexts, G rollouts of a context, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from sidrec.alignment.values import AlignmentContext, Rollouts


@dataclass(frozen=True, kw_only=True)
class ExactConfig:
    """Settings of `Exact`."""

    weight: float = 1.0
    """Factor of this reward in a mixture."""


@dataclass(frozen=True, eq=False)
class Exact:
    """1 for a hit, 0 for a miss."""

    config_class: ClassVar[type] = ExactConfig

    @classmethod
    def build(cls, context: AlignmentContext, config: ExactConfig) -> Self:
        """Nothing to learn."""
        return cls()

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """(B, G) 0 or 1."""
        return (rollouts.hits_BG & rollouts.valid_BG).float()
