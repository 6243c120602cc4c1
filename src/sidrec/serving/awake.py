"""Cores that do not sleep between requests, by Linux's power management quality of service.

A core with nothing to do halts, and the next request pays for its waking. On a virtual machine
the host takes a halted core away, caches and all, and the next answer may take twice as long.
Holding `/dev/cpu_dma_latency` open at 0 keeps every core of the machine in its shallowest idle
state, at the price of the power and the processor time that polling takes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidrec.errors import ServiceError

DEVICE = Path("/dev/cpu_dma_latency")


@contextmanager
def cores_awake(wanted: bool = True) -> Iterator[None]:
    """While the block runs, if `wanted`. ServiceError where this process may not ask for it."""
    if not wanted:
        yield
        return
    try:
        request = os.open(DEVICE, os.O_WRONLY)
    except OSError as error:
        raise ServiceError(
            f"--keep-awake: {DEVICE} cannot be written: {error.strerror}; it is a device of Linux "
            "that belongs to root: give this user the right to write it (in a container: "
            f"--device {DEVICE}), or serve without --keep-awake"
        ) from error
    try:
        os.write(request, struct.pack("i", 0))  # microseconds that waking may take
        yield
    finally:
        os.close(request)  # withdraws the request
