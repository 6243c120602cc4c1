"""What an alignment is: one frozen config that a TOML recipe mirrors; `aligning` runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from sidrec import config
from sidrec.alignment.aligner import StepConfig
from sidrec.alignment.rollouts import RolloutConfig
from sidrec.config import Method, Stage
from sidrec.errors import ConfigError
from sidrec.recipe import DataConfig
from sidrec.training_config import TrainConfig

OBJECTIVE = Stage("objectives")
REWARD = Stage("rewards")
SHORT = TrainConfig(
    epochs=1,
    batch_positions=64,
    learning_rate=1e-4,
    warmup_steps=20,
    schedule="constant",
    precision="fp32",
    validate_every_epochs=0.1,
    patience=0,
)
"""Small steps near the starting weights; a step is `batch_positions` contexts."""


@dataclass(frozen=True, kw_only=True)
class ContextsConfig:
    """What alignment learns on."""

    source: Literal["histories", "impressions", "exposed"] = "histories"
    """histories: every training event is a target, nothing is known of what was shown.
    impressions: lists that were shown, with clicks and non-clicks. exposed: histories, with shown
    lists drawn by a simulated logger (for studies)."""
    impressions: str | None = None
    """File of shown lists: columns user (optional), history, candidates, clicks (lists)."""
    most: int | None = None
    """At most so many contexts, drawn by the seed."""
    reward_share: float = 0.5
    """Share of users that rewards which learn (ranker, preference_model, judge) learn from; the
    policy is aligned on the others, whose events no such reward has seen. 0 where none learns."""

    def __post_init__(self) -> None:
        if self.source not in ("histories", "impressions", "exposed"):
            raise ConfigError(
                f"contexts.source must be histories, impressions or exposed, got {self.source!r}"
            )
        if self.impressions is not None and self.source != "impressions":
            raise ConfigError(
                f"contexts.impressions names a file, but source is {self.source!r}; set source = "
                '"impressions"'
            )
        if not 0 <= self.reward_share < 1:
            raise ConfigError(f"contexts.reward_share must be in [0, 1), got {self.reward_share}")
        if self.most is not None and self.most < 1:
            raise ConfigError(f"contexts.most must be at least 1, got {self.most}")


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Everything an alignment depends on, beside the bundle."""

    name: str = "aligned"
    """What the run is called in tables and folders."""
    seed: int = 0
    """The one seed of rewards, draws and training."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<n>."""
    data: DataConfig | None = None
    """Where the data come from; by default where the bundle's came from. They must be the same."""
    contexts: ContextsConfig = ContextsConfig()
    """What is learnt on."""
    reference: str | None = None
    """Bundle whose generator is the reference of DPO and KL; by default the starting weights. It
    must speak the same semantic IDs."""
    objective: Annotated[Method, OBJECTIVE] = field(
        default_factory=lambda: config.method(OBJECTIVE, "adagrpo")
    )
    """The loss."""
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    """What the policy writes to be rewarded; objectives on preferences make none."""
    rewards: tuple[Annotated[Method, REWARD], ...] = field(
        default_factory=lambda: (config.method(REWARD, "ranker"),)
    )
    """What rollouts are worth: a weighted sum."""
    judge: Annotated[Method, REWARD] | None = None
    """The semantic reward of A2PO, kept apart from the others."""
    step: StepConfig = field(default_factory=StepConfig)
    """What a step does beside its objective."""
    renormalise: bool | None = None
    """Log-probabilities over legal codes only; by default as the bundle decodes, and false for
    unconstrained rollouts."""
    train: TrainConfig = SHORT
    """How long and how fast; `batch_positions` counts contexts."""
    guard: bool = True
    """Stop where validation falls beyond its interval."""
    validation_users: int = 2000
    """Users of the validation part that the guard asks."""

    def __post_init__(self) -> None:
        if self.renormalise and not self.rollouts.constrained:
            raise ConfigError(
                "renormalise = true needs constrained rollouts; leave one of the two away"
            )


def load_align_config(path: str | Path) -> AlignConfig:
    """Read an alignment recipe."""
    return config.load(AlignConfig, path)
