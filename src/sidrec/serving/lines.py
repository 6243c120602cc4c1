"""Threads for what would hold up the loop, a few for each kind of work, with a bounded line before.

Kinds do not share threads: changes of items wait for each other, bundles load for seconds, a store
that is down hangs; none of it may keep a history from being read or health from being told.

Cost:     at most 21 threads, each started when it is first needed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from sidrec.serving.problems import Problem
from sidrec.serving.settings import ServeSettings

T = TypeVar("T")
MAX_WAITING_FEW = 32
"""Calls that may wait for what only people and their tools ask: models, looks, health."""


class Line:
    """Some threads, and how many calls may wait for them."""

    def __init__(self, name: str, *, threads: int, max_waiting: int) -> None:
        self.name, self.max_held = name, threads + max_waiting
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"sidrec-{name}")
        self._held = 0
        self._lock = threading.Lock()

    async def run(self, work: Callable[..., T], *given: Any) -> T:
        """`work(*given)` on a thread of this line. Problem `overloaded` where too many wait.

        A caller that gives up takes its work out of the line; work that runs goes on to its end,
        and keeps its place until then.
        """
        with self._lock:
            if self._held >= self.max_held:
                raise Problem("overloaded", f"{self._held} requests wait for {self.name} already")
            self._held += 1
        future = self._threads.submit(work, *given)
        future.add_done_callback(self._leave)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Do what waits, then end the threads."""
        self._threads.shutdown()

    def _leave(self, _: Future[Any]) -> None:
        with self._lock:
            self._held -= 1


class Lines:
    """The lines of one server."""

    def __init__(self, settings: ServeSettings) -> None:
        few = MAX_WAITING_FEW
        self.reads = Line("reads", threads=8, max_waiting=settings.max_waiting_reads)
        """Histories."""
        self.changes = Line("changes", threads=8, max_waiting=settings.max_waiting_changes)
        """Changes of items, and the end of an erasure. Those that run wait for each other, and are
        made together."""
        self.models = Line("models", threads=2, max_waiting=few)
        """Bundles and experiments."""
        self.looks = Line("looks", threads=2, max_waiting=few)
        """Trees, lists and exports."""
        self.health = Line("health", threads=1, max_waiting=few)
        """Whether the store can be written; it may take a while to say no."""

    def close(self) -> None:
        """Do what waits, then end all threads."""
        for line in (self.reads, self.changes, self.models, self.looks, self.health):
            line.close()
