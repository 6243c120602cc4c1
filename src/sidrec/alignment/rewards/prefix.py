"""Prefix: part of the reward for the first codes of the truth.

    steps "sidreasoner"   2^-(L - m),  0 at m = 0        L = 3:  1, .5, .25, 0
    steps "structural"    10^-(L - m), 0 at m = 0        L = 3:  1, .1, .01, 0

m is the number of leading codes shared with the truth, L that of its codes. The end of a shorter
ID counts as a code, of both.

Source:   SIDReasoner (arXiv:2603.23183); structural score of ReCast (arXiv:2604.22169).
Differs:  0 at m = 0, which SIDReasoner leaves open; ReCast writes its three values for L = 3 and
          uses them for ranks inside a group, not as a reward.
Cost:     O(B G L).
Shapes:   B contexts, G rollouts of a context, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self, get_args

from torch import Tensor

from sidrec.alignment.values import AlignmentContext, Rollouts
from sidrec.errors import ConfigError

Steps = Literal["sidreasoner", "structural"]
FALL: dict[str, float] = {"sidreasoner": 2.0, "structural": 10.0}
"""What one missing code divides the reward by."""


@dataclass(frozen=True, kw_only=True)
class PrefixConfig:
    """Settings of `Prefix`."""

    weight: float = 1.0
    """Factor of this reward in a mixture."""
    steps: Steps = "sidreasoner"
    """sidreasoner: each missing code halves the reward; structural: it takes nine tenths."""

    def __post_init__(self) -> None:
        if self.steps not in get_args(Steps):
            raise ConfigError(
                f"prefix.steps must be one of {list(get_args(Steps))}, got {self.steps!r}"
            )


@dataclass(frozen=True, eq=False)
class Prefix:
    """Between 0 and 1 by the number of leading codes that are right."""

    config_class: ClassVar[type] = PrefixConfig

    config: PrefixConfig

    @classmethod
    def build(cls, context: AlignmentContext, config: PrefixConfig) -> Self:
        """Nothing to learn."""
        return cls(config)

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """(B, G) in [0, 1]."""
        matched_BG = matched_codes(rollouts.codes_BGL, rollouts.target_codes_BL)
        missing_BG = num_places(rollouts.target_codes_BL)[:, None] - matched_BG
        rewards_BG = FALL[self.config.steps] ** -missing_BG.float()
        return rewards_BG * ((matched_BG > 0) & rollouts.valid_BG)


def matched_codes(codes_BGL: Tensor, target_codes_BL: Tensor) -> Tensor:
    """(B, G) leading codes that a rollout shares with the truth; a shared end counts once."""
    same_BGL = codes_BGL == target_codes_BL[:, None]
    places_B1 = num_places(target_codes_BL)[:, None]
    return same_BGL.long().cumprod(-1).sum(-1).minimum(places_B1)


def num_places(codes_BL: Tensor) -> Tensor:
    """(B,) codes of each ID, the end of a shorter one included."""
    return ((codes_BL >= 0).sum(-1) + 1).clamp_max(codes_BL.shape[-1])
