"""The time that events get: a clock that nobody sets back or forth.

The wall clock is read once, at the start of the process; from then on the time that has passed is
added to it, as the kernel counts it, sleep of the machine included. So a jump of the wall clock
changes no order of events, refuses none, and lets none grow old at once.

Differs:  a server that starts on a wrong wall clock stays wrong until its next start; so does one
          that is resumed from a snapshot of its machine.
"""

from __future__ import annotations

import time

PASSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock:
    """Microseconds since 1970."""

    def __init__(self) -> None:
        self._start_us = time.time_ns() // 1000 - passed_us()

    def now_us(self) -> int:
        """The time now; never less than it was."""
        return self._start_us + passed_us()


def passed_us() -> int:
    """Microseconds since the machine started."""
    return time.clock_gettime_ns(PASSED) // 1000


CLOCK = Clock()
"""Of this process."""
