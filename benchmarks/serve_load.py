"""A server as a process, and load for it from one thread: open loop, so that nothing is omitted.

Requests leave at their scheduled times whether or not earlier ones were answered, and a latency
counts from that time (coordinated omission). Raw HTTP/1.1 over a pool of sockets, so that the
client takes little of the cores it shares with the server.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SOCKETS = 1000
"""Connections of one client; a request that waits for a place is late by that wait."""
IDLE_SECONDS = 20.0
"""A socket that rested longer is not used again: the server closes it after 30 s."""
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
PROGRAM = "import sys; from sidrec.cli import main; main(sys.argv[1:])"


class Server:
    """`sidrec serve` as a process."""

    def __init__(self, bundle: Path, store: Path, *words: str) -> None:
        start = time.perf_counter()
        command = [sys.executable, "-c", PROGRAM, "serve", str(bundle), "--port", "0",
                   "--store", str(store), *words]  # fmt: skip
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        said = ""
        assert self.process.stderr is not None
        while not (found := re.search(r"at (http://\S+)", said)):
            line = self.process.stderr.readline()
            if not line:
                raise RuntimeError(f"the server ended: {said}")
            said += line
        self.url = found.group(1)
        self.start_seconds = time.perf_counter() - start

    def end(self, how: int = signal.SIGTERM) -> int:
        """Signal the process and wait for it: its exit code."""
        self.process.send_signal(how)
        return self.process.wait(600)

    def rss_bytes(self) -> int:
        """Memory that the process holds."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Outcome:
    """What became of a run of load."""

    seconds: list[float] = field(default_factory=list)
    """Latency of each answer, from its scheduled time."""
    accepted: Outcome | None = None
    """Of an open loop: the answers with status 200 alone, their latency from leaving the client."""
    statuses: dict[int, int] = field(default_factory=dict)
    """Status -> answers; 0 where the connection broke."""
    faults: list[str] = field(default_factory=list)
    """What `check` found wrong."""

    @property
    def errors(self) -> int:
        """Answers that were not what was asked for."""
        return sum(n for status, n in self.statuses.items() if status != 200) + len(self.faults)

    def percentile_ms(self, share: float) -> float:
        """The latency that this share of answers met, in milliseconds."""
        ordered = sorted(self.seconds)
        if not ordered:
            return float("inf")
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] * 1e3


class Connection(asyncio.Protocol):
    """One socket; answers come to `answer`, (0, b"") where it breaks."""

    answer: asyncio.Future[tuple[int, bytes]]
    transport: asyncio.Transport
    received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._give(0, b"")

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if end:
            length = LENGTH.search(head)
            if len(body) >= (int(length.group(1)) if length else 0):
                self._give(int(head[9:12]), body)

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send a whole request; the answer comes to the future."""
        self.received, self.answer = b"", asyncio.get_running_loop().create_future()
        if self.transport.is_closing():
            self._give(0, b"")
        else:
            self.transport.write(request)
        return self.answer

    def _give(self, status: int, body: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result((status, body))


class Pool:
    """Sockets to one server, at most `SOCKETS`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.places = asyncio.Semaphore(SOCKETS)
        self.host, self.port = parts.hostname, parts.port
        self.free: list[tuple[float, Connection]] = []

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """(status, body) of one request."""
        return await self.send(written(method, path, body))

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """(status, body) of a request that is written already."""
        while self.free and time.monotonic() - self.free[0][0] > IDLE_SECONDS:
            self.free.pop(0)[1].transport.close()
        if self.free:
            _, connection = self.free.pop()
        else:
            loop = asyncio.get_running_loop()
            try:
                _, connection = await loop.create_connection(Connection, self.host, self.port)
            except OSError:
                return 0, b""
        status, answer = await connection.ask(request)
        if status:
            self.free.append((time.monotonic(), connection))
        return status, answer

    def close(self) -> None:
        """Close every socket."""
        for _, connection in self.free:
            connection.transport.close()
        self.free.clear()


def written(method: str, path: str, body: Any = None) -> bytes:
    """A request as bytes."""
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: s\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


Check = Callable[[Any, Any], str | None]
"""(request, answer) -> what is wrong with it."""


async def open_loop(
    pool: Pool,
    path: str,
    requests: Sequence[Any],
    *,
    rate: float,
    seconds: float,
    check: Check | None = None,
    seed: int = 0,
) -> Outcome:
    """Requests at Poisson times, `rate` a second, taken from `requests` in a drawn order."""
    draw, outcome, running = random.Random(seed), Outcome(accepted=Outcome()), set()
    letters = [(request, written("POST", path, request)) for request in requests]
    start = time.perf_counter()
    at = 0.0

    async def one(scheduled: float, request: Any, letter: bytes) -> None:
        async with pool.places:
            sent = time.perf_counter()
            status, answer = await pool.send(letter)
        outcome.seconds.append(time.perf_counter() - scheduled)
        outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
        if status == 200 and outcome.accepted is not None:
            outcome.accepted.seconds.append(time.perf_counter() - sent)
        if status == 200 and check and (fault := check(request, json.loads(answer))):
            outcome.faults.append(fault)

    while (at := at + draw.expovariate(rate)) < seconds:
        wait = start + at - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(start + at, *draw.choice(letters)))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return outcome


async def closed_loop(
    pool: Pool, path: str, make: Callable[[int], Any], *, senders: int, seconds: float
) -> Outcome:
    """Each sender sends its next request when the last is answered; `make(n)` gives the n-th."""
    outcome, number, end = Outcome(), iter(range(1 << 60)), time.perf_counter() + seconds

    async def send() -> None:
        while (start := time.perf_counter()) < end:
            status, _ = await pool.ask("POST", path, make(next(number)))
            outcome.seconds.append(time.perf_counter() - start)
            outcome.statuses[status] = outcome.statuses.get(status, 0) + 1

    await asyncio.gather(*(send() for _ in range(senders)))
    return outcome
