"""Validity: 1 where some item holds the ID, a set value where none does.

For rollouts that no tree constrains. Under a constrained beam it is 1 everywhere and adds nothing.

Source:   format reward of OneRec (arXiv:2506.13695).
Differs:  scores every rollout; OneRec scores K random ones of a group and drops illegal ones
          instead of punishing them, which a reward alone cannot say.
Cost:     O(B G).
Shapes:   B contexts, G rollouts of a context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from sidrec.alignment.values import AlignmentContext, Rollouts
from sidrec.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ValidityConfig:
    """Settings of `Validity`."""

    weight: float = 1.0
    """Factor of this reward in a mixture."""
    invalid: float = -1.0
    """Worth of an ID that no item holds; below 1, usually −1 or 0."""

    def __post_init__(self) -> None:
        if not self.invalid < 1:
            raise ConfigError(f"validity.invalid must be below 1, got {self.invalid}")


@dataclass(frozen=True, eq=False)
class Validity:
    """1 for an item, `invalid` for none."""

    config_class: ClassVar[type] = ValidityConfig

    config: ValidityConfig

    @classmethod
    def build(cls, context: AlignmentContext, config: ValidityConfig) -> Self:
        """Nothing to learn."""
        return cls(config)

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """(B, G) 1 or `invalid`."""
        valid_BG = rollouts.valid_BG.float()
        return valid_BG + self.config.invalid * (1 - valid_BG)
