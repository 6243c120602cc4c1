"""Where a run takes place: its device, the processes that share it, and signals that end it.

Processes are those `torchrun` starts on one machine (gloo on the CPU, nccl on CUDA); gradients
and the few numbers all must agree on travel in one exchange a step.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sidrec.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """'auto' is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"no device {name!r}: have auto, cpu, cuda and cuda:<n>") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"no device {name!r}: have auto, cpu, cuda and cuda:<n>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA "
            "devices; use auto"
        )
    return device


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether steps run under bf16 autocast on this device."""
    if precision == "auto":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return device.type == "cuda" or any(getattr(torch.cpu, probe)() for probe in probes)
    return precision == "bf16"


@dataclass(frozen=True)
class Team:
    """The processes that share each batch; one alone unless `torchrun` started several."""

    device: torch.device
    rank: int = 0
    size: int = 1

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Overwrite each tensor with that of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def sum_gradients(self, parameters: list[nn.Parameter], extras: list[float]) -> list[float]:
        """Replace gradients by their sum over processes; the sums of `extras`, in one exchange."""
        present = [float(p.grad is not None) for p in parameters]
        grads = [(p.grad if p.grad is not None else torch.zeros_like(p)) for p in parameters]
        numbers = torch.tensor([*extras, *present], dtype=torch.float32, device=self.device)
        flat = torch.cat([g.float().ravel() for g in grads] + [numbers])
        dist.all_reduce(flat)
        *sums, tail = flat.split([g.numel() for g in grads] + [len(numbers)])
        values = tail.tolist()
        for p, total, holders in zip(parameters, sums, values[len(extras) :], strict=True):
            p.grad = total.view_as(p).to(p.dtype) if holders else None
        return values[: len(extras)]


@contextmanager
def joined_team(device_name: str) -> Iterator[Team]:
    """The team of this process, with the process group open while the block runs."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team(choose_device(device_name))
        return
    if device_name == "auto" and torch.cuda.is_available():
        device_name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = choose_device(device_name)
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Team(device, dist.get_rank(), dist.get_world_size())
    finally:
        if ours:
            dist.destroy_process_group()


class Interruption:
    """Notes the first SIGTERM or SIGINT; a second one acts as it did before."""

    received = ""

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: object) -> None:
        self.received = signal.Signals(number).name
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, action in self._before.items():
            signal.signal(number, signal.SIG_DFL if action is None else action)
