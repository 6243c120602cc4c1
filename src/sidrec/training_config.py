"""How long, how fast and how carefully to train: the settings, and the learning rate they mean.

Source:  cosine, Loshchilov & Hutter 2017 (arXiv 1608.03983); warm-up, Goyal et al. 2017
         (1706.02677); inverse square root, Vaswani et al. 2017 (1706.03762).
Differs: warm-up multiplies the schedule instead of preceding it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sidrec.errors import ConfigError

Schedule = Literal["cosine", "linear", "constant", "inverse_sqrt"]

SCHEDULES: dict[str, Callable[[float, int, int], float]] = {
    "cosine": lambda progress, step, warmup: 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))),
    "linear": lambda progress, step, warmup: 1 - min(progress, 1.0),
    "constant": lambda progress, step, warmup: 1.0,
    "inverse_sqrt": lambda progress, step, warmup: math.sqrt(max(warmup, 1) / max(step, warmup, 1)),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how fast and how carefully to train."""

    epochs: int = 40
    """Passes over all training targets."""
    batch_positions: int = 1024
    """Target positions of one step, over all processes. Many small steps beat few large ones."""
    learning_rate: float = 1e-3
    """Highest learning rate, reached after the warm-up."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices; biases, norms and what `model.no_weight_decay(name)` names
    are left out."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of AdamW's first and second moment."""
    warmup_steps: int = 200
    """Steps over which the learning rate rises from 0."""
    schedule: Schedule = "cosine"
    """How the learning rate falls over the run: cosine, linear, constant or inverse_sqrt."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16: autocast; auto: bf16 on CUDA and on CPUs with bf16 instructions, else fp32."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; 0 leaves it alone."""
    patience: int = 5
    """Validations without a new best before the run stops; 0 never stops early."""
    validate_every_epochs: float = 1.0
    """Epochs between validations; may be a fraction."""
    validate_from_epoch: float = 0.0
    """No validation before this epoch."""
    checkpoint_every_seconds: float = 60.0
    """Wall time between checkpoints; the one setting that may change when a run resumes."""
    max_seconds: float | None = None
    """Seconds after which the run ends, resumed parts and validations included; the schedule
    reaches its end then or after `epochs`, whichever is sooner."""
    clock: Literal["wall", "processor"] = "wall"
    """What `max_seconds` and all reported seconds count: wall time, or the processor time of this
    process over its threads, which is fair to every run on a busy machine."""
    ema: float = 0.0
    """Decay a step of the averaged weights that are validated and kept; 0 keeps the plain ones."""
    seed: int = 0
    """Seeds order, dropout and augmentation; the model's first weights are the model's affair."""

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, expected: str) -> None:
            if not ok:
                value = getattr(self, name)
                raise ConfigError(f"training: {name} must be {expected}, got {value!r}")

        for name in ("epochs", "batch_positions"):
            need(getattr(self, name) >= 1, name, "at least 1")
        for name in ("learning_rate", "validate_every_epochs", "checkpoint_every_seconds"):
            need(getattr(self, name) > 0, name, "above 0")
        for name in ("weight_decay", "warmup_steps", "grad_clip", "patience"):
            need(getattr(self, name) >= 0, name, "at least 0")
        need(self.max_seconds is None or self.max_seconds > 0, "max_seconds", "above 0 or none")
        need(self.clock in ("wall", "processor"), "clock", "wall or processor")
        need(0 <= self.ema < 1, "ema", "in [0, 1)")
        need(self.schedule in SCHEDULES, "schedule", f"one of {list(SCHEDULES)}")
        need(self.precision in ("auto", "bf16", "fp32"), "precision", "auto, bf16 or fp32")


def learning_rate_at(config: TrainConfig, step: int, progress: float) -> float:
    """Learning rate of 0-based `step`; `progress` in [0, 1] is the share of the run behind it."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    decay = SCHEDULES[config.schedule](progress, step + 1, config.warmup_steps)
    return config.learning_rate * warm * decay
