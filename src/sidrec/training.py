"""One training loop for every model with a `loss`: it knows no method.

AdamW over batches of like-length sequences, a learning-rate schedule over epochs or wall time,
bf16 where the processor has it, early stop on a validation metric, checkpoints that survive
`kill -9`, resume to the same bytes, and several processes under `torchrun`.

The randomness of a step (dropout, augmentation, order) depends on the seed, the step and the rank
only, so a resumed run needs no generator state. With `max_seconds` the schedule follows the clock,
and two runs differ as their clocks do.

Source:  decoupled weight decay, Loshchilov & Hutter 2019 (arXiv 1711.05101).
Differs: gradients of several processes are weighted by their number of targets, so they equal
         those of one process.
Cost:    beside the model: two optimiser moments, the best weights, and, if asked, the average.
Shapes:  B sequences of a batch, T positions.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.batching import Batches, TrainingBatches
from sidrec.checkpoints import load_newest, save_checkpoint
from sidrec.errors import ConfigError, ServiceError
from sidrec.processes import Interruption, Team, choose_device, joined_team, uses_bf16
from sidrec.training_config import TrainConfig, learning_rate_at
from sidrec.types import Histories, Ints

__all__ = ["TrainConfig", "TrainEvent", "TrainResult", "choose_device", "train"]


Validate = Callable[[nn.Module], float | tuple[float, dict[str, float]]]
"""A metric of the model, higher is better, and what else to keep in the result."""


@dataclass(frozen=True)
class TrainEvent:
    """What a progress bar may want to know; sent after steps and after validations."""

    step: int
    """Steps done."""
    epoch: float
    """Passes done, with fraction."""
    loss: float
    """Mean loss of the steps since the last event, as the model reports it (nats a target)."""
    parts: dict[str, float]
    """The parts of the last step's loss."""
    learning_rate: float
    targets_per_second: float
    """Mean over the run's training steps, validations left out."""
    metric: float | None
    """The validation metric, where this event follows a validation."""
    eta_seconds: float
    """Until the last epoch or `max_seconds`, if nothing stops the run before."""


@dataclass(kw_only=True)
class TrainResult:
    """How a run went; the model holds the best weights."""

    best_metric: float | None = None
    best_epoch: float = 0.0
    epochs_run: float = 0.0
    seconds: float = 0.0
    """Wall time over all resumed parts."""
    train_seconds: float = 0.0
    """The part of it spent on training steps."""
    targets_per_second: float = 0.0
    losses: list[float] = field(default_factory=list)
    """Mean loss of each whole epoch."""
    metrics: list[tuple[float, float]] = field(default_factory=list)
    """(epoch, metric) of each validation."""
    notes: list[dict[str, float]] = field(default_factory=list)
    """What each validation told beside its metric."""
    stopped_because: str = ""
    """epochs, max_seconds, patience, or what the guard said."""


@dataclass(kw_only=True)
class _Progress(TrainResult):
    """The result so far, and what else a resumed run must know."""

    step: int = 0
    stale: int = 0
    """Validations since the best one."""
    epoch_loss: float = 0.0
    epoch_targets: int = 0
    targets: int = 0
    """Targets trained over the whole run."""


def train(
    model: nn.Module,
    train: Histories | Batches,
    config: TrainConfig,
    *,
    validate: Validate | None,
    validate_first: bool = False,
    guard: Callable[[], str] | None = None,
    run_dir: Path | None = None,
    device: str = "auto",
    on_event: Callable[[TrainEvent], None] | None = None,
) -> TrainResult:
    """Train `model` in place; it ends with the weights that validated best.

    The model offers `loss(batch) -> (mean nats a target, parts)` and `max_length`, and may offer
    `no_weight_decay(parameter_name) -> bool`, `augment(batch, generator) -> batch` and
    `check_batches(num_positions)`, which raises ConfigError where full batches are too small.
    `validate(model)` runs in eval mode without gradients. Without it the last weights stay. With
    `validate_first` the weights at the start are validated too, and stay where nothing better
    comes. After each validation `guard()` may say in a few words why to stop. `train` may bring
    batches of its own. A `run_dir` that holds an unfinished run of the same settings and data is
    resumed; one that holds a finished run gives its weights and result back at once.

    Raises ConfigError when `run_dir` holds another run, ServiceError when the loss is not finite,
    and, after saving, when SIGTERM or SIGINT arrives.
    """
    with joined_team(device) as team:
        devices = [team.device] if team.device.type == "cuda" else []
        with torch.random.fork_rng(devices), Interruption() as interruption:
            run = _Run(model, train, config, validate, run_dir, on_event, team, interruption)
            run.guard = guard
            if validate_first and validate is not None and not run.progress.metrics:
                run.run_validation(validate)
            return run.to_the_end()


# The run -----------------------------------------------------------------------------------------

SETTLE_EVERY_STEPS = 20
"""On CUDA, losses are read (and checked) once in so many steps, since reading waits for the GPU."""


class _Run:
    """One run's moving state; everything a checkpoint holds is reached from here."""

    def __init__(
        self,
        model: nn.Module,
        train: Histories | Batches,
        config: TrainConfig,
        validate: Validate | None,
        run_dir: Path | None,
        on_event: Callable[[TrainEvent], None] | None,
        team: Team,
        interruption: Interruption,
    ) -> None:
        self.model, self.config, self.validate = model.to(team.device), config, validate
        self.folder = None if run_dir is None else Path(run_dir) / "checkpoints"
        self.on_event, self.team, self.interruption = on_event, team, interruption
        if check := getattr(model, "check_batches", None):
            check(config.batch_positions)
        self.guard: Callable[[], str] | None = None
        self.batches: Batches = (
            TrainingBatches.cut(
                train, max_length=int(model.max_length), batch_positions=config.batch_positions
            )
            if isinstance(train, Histories)
            else train
        )
        self.identity = _identity(model, train, config)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = _optimizer(model, config)
        self.bf16 = uses_bf16(config.precision, team.device)
        self.settle_every = SETTLE_EVERY_STEPS if team.device.type == "cuda" else 1
        self.unsettled: list[tuple[int, Ints, Tensor, Tensor]] = []
        self.order: tuple[int, list[Ints]] = (-1, [])
        self.progress = _Progress()
        self.average: dict[str, Tensor] = {}
        self.best: dict[str, Tensor] = {}
        self.recent_loss = self.clock = 0.0
        self.now = time.perf_counter if config.clock == "wall" else processor_seconds
        self.resume()
        team.broadcast([t.detach() for t in (*model.parameters(), *model.buffers())])
        if config.ema and not self.average:
            self.average = {n: p.detach().clone() for n, p in model.named_parameters()}
        self.started = self.now() - self.progress.seconds
        self.saved_at = time.perf_counter()

    # Loop

    def to_the_end(self) -> TrainResult:
        progress, config = self.progress, self.config
        per_epoch = self.batches.num_batches
        validate_every = max(1, round(config.validate_every_epochs * per_epoch))
        while not progress.stopped_because:
            stop_asked = self.train_step()
            over = ""
            if progress.step >= config.epochs * per_epoch:
                over = "epochs"
            elif config.max_seconds and self.clock >= config.max_seconds:
                over = "max_seconds"
            due = progress.step % validate_every == 0
            due = due and progress.step >= config.validate_from_epoch * per_epoch
            if self.validate and (due or over):
                self.run_validation(self.validate)
                over = self.guarded() or over
                if config.patience and progress.stale >= config.patience:
                    over = over or "patience"
            stop_asked = stop_asked or (self.team.size == 1 and bool(self.interruption.received))
            if over:
                self.finish(over)
            elif (
                stop_asked or time.perf_counter() - self.saved_at >= config.checkpoint_every_seconds
            ):
                self.save()
            if stop_asked:  # also where it came in the last step: what follows must not run
                self.say_interrupted()
        known = {f: getattr(progress, f) for f in TrainResult.__dataclass_fields__}
        return TrainResult(**known)

    def train_step(self) -> bool:
        """One step of the optimiser; whether the team agreed in it that a signal ends the run."""
        config, team, progress = self.config, self.team, self.progress
        began = self.now()
        epoch, position = divmod(progress.step, self.batches.num_batches)
        if self.order[0] != epoch:
            self.order = (epoch, self.batches.epoch(config.seed, epoch))
        windows = self.order[1][position]
        num_targets = int(self.batches.lengths_S[windows].sum())
        share = windows[team.rank :: team.size]
        loss = torch.zeros((), device=team.device)
        parts: dict[str, Tensor] = {}
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        if len(share):
            generator = _seed_step(config.seed, progress.step, team)
            batch = self.batches.build(share)
            if augment := getattr(self.model, "augment", None):
                batch = augment(batch, generator)
            weight = int(self.batches.lengths_S[share].sum()) / num_targets
            with torch.autocast(team.device.type, torch.bfloat16, enabled=self.bf16):
                loss, parts = self.model.loss(batch.to(team.device))
            loss = loss * weight
            loss.backward()
            loss = loss.detach()
        clock, stop_asked = began - self.started, False
        if team.size > 1:
            own = [float(loss), float(bool(self.interruption.received)), clock / team.size]
            total, signals, clock = team.sum_gradients(self.parameters, own)
            loss, stop_asked = loss.new_tensor(total), signals > 0
        self.clock = clock
        norm = self.gradient_norm()
        self.unsettled.append((progress.step, windows, loss, norm))
        if self.settle_every == 1:
            self.settle()  # before the weights change
        share_done = progress.step / (config.epochs * self.batches.num_batches)
        if config.max_seconds:
            share_done = max(share_done, clock / config.max_seconds)
        rate = learning_rate_at(config, progress.step, share_done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        progress.step += 1
        self.update_average()
        progress.targets += num_targets
        progress.epochs_run = progress.step / self.batches.num_batches
        at_epoch_end = position + 1 == self.batches.num_batches
        if at_epoch_end or len(self.unsettled) >= self.settle_every:
            self.settle()
        now = self.now()
        progress.seconds = now - self.started
        progress.train_seconds += now - began
        if not self.unsettled:
            self.send(rate, parts)
        if at_epoch_end:
            progress.losses.append(progress.epoch_loss / progress.epoch_targets)
            progress.epoch_loss, progress.epoch_targets = 0.0, 0
        return stop_asked

    def gradient_norm(self) -> Tensor:
        """Norm of the whole gradient before clipping; the gradient is clipped."""
        largest = self.config.grad_clip or math.inf
        return nn.utils.clip_grad_norm_(self.parameters, largest, foreach=True)

    def update_average(self) -> None:
        if not self.average:
            return
        step = self.progress.step
        decay = min(self.config.ema, (1 + step) / (10 + step))  # forget the first weights soon
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                self.average[name].lerp_(parameter, 1 - decay)

    def settle(self) -> None:
        """Read the losses that are due, stop at the first that is not finite."""
        if not self.unsettled:
            return
        losses = torch.stack([loss for *_, loss, _ in self.unsettled]).tolist()
        norms = torch.stack([norm for *_, norm in self.unsettled]).tolist()
        recent = 0.0
        for (step, windows, *_), loss, norm in zip(self.unsettled, losses, norms, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self.say_not_finite(step, windows, loss, norm)
            num_targets = int(self.batches.lengths_S[windows].sum())
            self.progress.epoch_loss += loss * num_targets
            self.progress.epoch_targets += num_targets
            recent += loss / len(losses)
        self.recent_loss = recent
        self.unsettled.clear()

    # Validation

    def run_validation(self, validate: Validate) -> None:
        self.settle()
        plain: dict[str, Tensor] = {}
        if self.average:
            plain = {n: p.detach().clone() for n, p in self.model.named_parameters()}
            self.model.load_state_dict(self.average, strict=False)
        metric = torch.zeros((), dtype=torch.float64, device=self.team.device)
        if self.team.rank == 0:
            self.model.eval()
            with torch.no_grad():
                found = validate(self.model)
                found, note = found if isinstance(found, tuple) else (found, {})
                metric += float(found)
                self.progress.notes.append(note)
        self.team.broadcast([metric])
        progress, value = self.progress, float(metric)
        progress.metrics.append((progress.epochs_run, value))
        progress.stale += 1
        best = progress.best_metric
        if best is None or math.isnan(best) or value > best:
            progress.best_metric, progress.best_epoch, progress.stale = (
                value,
                progress.epochs_run,
                0,
            )
            self.best = {n: t.detach().clone() for n, t in self.model.state_dict().items()}
        if plain:
            self.model.load_state_dict(plain, strict=False)
        progress.seconds = self.now() - self.started
        if progress.step:
            self.send(self.optimizer.param_groups[0]["lr"], {}, metric=value)

    def guarded(self) -> str:
        """Why the guard ends the run, on every process; empty where it does not."""
        if self.guard is None:
            return ""
        reason = self.guard() if self.team.rank == 0 else ""  # it alone has validated
        stop = torch.tensor(float(bool(reason)), device=self.team.device)
        self.team.broadcast([stop])
        return reason or ("guard" if bool(stop) else "")

    def send(self, rate: float, parts: dict[str, Tensor], metric: float | None = None) -> None:
        if self.on_event is None or self.team.rank:
            return
        progress, config = self.progress, self.config
        total_steps = config.epochs * self.batches.num_batches
        eta = progress.seconds / progress.step * (total_steps - progress.step)
        if config.max_seconds:
            eta = min(eta, max(config.max_seconds - progress.seconds, 0.0))
        self.on_event(
            TrainEvent(
                step=progress.step,
                epoch=progress.epochs_run,
                loss=self.recent_loss,
                parts={name: float(value.detach()) for name, value in parts.items()},
                learning_rate=rate,
                targets_per_second=progress.targets / max(progress.train_seconds, 1e-9),
                metric=metric,
                eta_seconds=eta,
            )
        )

    # Checkpoints

    def resume(self) -> None:
        found = None if self.folder is None else load_newest(self.folder)
        if found is None:
            return
        tensors, state = found
        changed = _differences(state["identity"], self.identity)
        if changed:
            raise ConfigError(
                f"{self.folder} holds a run with other settings: {'; '.join(changed)}; take "
                "another run directory, or the old settings to resume"
            )
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups.setdefault(group, {})[rest] = tensor.to(self.team.device)
        self.model.load_state_dict(groups["model"])
        self.average, self.best = groups.get("average", {}), groups.get("best", {})
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups.get("optimizer", {}).items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = tensor
        param_groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": param_groups})
        saved = state["progress"]
        self.progress = _Progress(**{**saved, "metrics": [tuple(m) for m in saved["metrics"]]})

    def save(self) -> None:
        """Write a checkpoint; nothing is written before the loss is known to be finite."""
        self.settle()
        self.saved_at = time.perf_counter()
        if self.folder is None or self.team.rank:
            return
        self.progress.seconds = self.now() - self.started
        groups: dict[str, dict[str, Tensor]] = {"model": self.model.state_dict()}
        if not self.progress.stopped_because:
            groups |= {"average": self.average, "best": self.best}
            state = self.optimizer.state_dict()["state"]
            groups["optimizer"] = {f"{i}.{k}": t for i, s in state.items() for k, t in s.items()}
        tensors = {f"{group}.{n}": t for group, named in groups.items() for n, t in named.items()}
        state = {"identity": self.identity, "progress": asdict(self.progress)}
        save_checkpoint(self.folder, self.progress.step, tensors, state)

    def finish(self, reason: str) -> None:
        """Take the best weights and write them as the run's last checkpoint."""
        self.settle()
        progress = self.progress
        progress.stopped_because = reason
        progress.seconds = self.now() - self.started
        progress.targets_per_second = progress.targets / max(progress.train_seconds, 1e-9)
        if self.best:
            self.model.load_state_dict(self.best)
        elif self.average:
            self.model.load_state_dict(self.average, strict=False)
        self.model.eval()
        self.save()

    # Ends that are not a success

    def say_interrupted(self) -> None:
        where = "nothing was saved, for want of a run directory"
        if self.folder is not None:
            where = f"saved in {self.folder}; run again to resume"
        raise ServiceError(
            f"interrupted by {self.interruption.received or 'another process'} at epoch "
            f"{self.progress.epochs_run:.2f}, step {self.progress.step}: {where}"
        )

    def say_not_finite(self, step: int, windows: Ints, loss: float, norm: float) -> None:
        epoch, position = divmod(step, self.batches.num_batches)
        users = np.unique(self.batches.users_S[windows])
        kept = "no checkpoint holds it"
        if self.folder is not None:
            kept += f", the newest good one lies in {self.folder}"
        raise ServiceError(
            f"training stopped at epoch {epoch}, batch {position} (step {step}): loss {loss}, "
            f"gradient norm {norm}, on {len(users)} users, training rows {users[:8].tolist()}"
            f"{' …' if len(users) > 8 else ''}; {kept}; lower learning_rate, raise warmup_steps, "
            "set precision = 'fp32', or look for odd values in what these users' items bring"
        )


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    exempt: Callable[[str], bool] = getattr(model, "no_weight_decay", lambda name: False)
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim < 2 or exempt(name) else decayed).append(parameter)
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _seed_step(seed: int, step: int, team: Team) -> torch.Generator:
    """Seed dropout for this step and rank; the generator for augmentation."""
    seeds = np.random.SeedSequence([seed, step, team.rank]).generate_state(2).tolist()
    torch.default_generator.manual_seed(seeds[0])  # torch.manual_seed takes 0.5 ms
    if team.device.type == "cuda":
        torch.cuda.manual_seed(seeds[0])
    return torch.Generator().manual_seed(seeds[1])


def processor_seconds() -> float:
    """Processor time of this process, divided by the threads that torch may use."""
    return time.process_time() / torch.get_num_threads()


def _identity(model: nn.Module, train: Histories | Batches, config: TrainConfig) -> dict[str, Any]:
    """What must not change between the parts of a run, as JSON values."""
    if isinstance(train, Histories):
        digest = hashlib.sha256(train.offsets.tobytes())
        digest.update(train.items_E.tobytes())
        data = digest.hexdigest()
    else:
        data = train.digest()
    settings = asdict(config)
    del settings["checkpoint_every_seconds"]
    own = getattr(model, "config", None)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    identity = {
        "training": settings,
        "model": asdict(own) if is_dataclass(own) and not isinstance(own, type) else {},
        "weights": {"class": type(model).__name__, **shapes},
        "data": {"sha256": data},
    }
    return json.loads(json.dumps(identity, default=str))


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{part}.{name} was {before!r}, now {now!r}"
        for part in new
        for name in sorted(old.get(part, {}).keys() | new[part].keys())
        if (before := old.get(part, {}).get(name)) != (now := new[part].get(name))
    ]
