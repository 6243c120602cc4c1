"""Soak: does a server that does everything at once for a while stay as large as it was?

    python benchmarks/serve_soak.py runs/beauty/bundle --minutes 20

Requests in an open loop, batches of events, changes and deletions of a fixed set of items, and
swaps between the bundle and a twin, on a SQLite store of its own. Every few seconds the server's
memory, descriptors and threads are read. `serve.soak.rss_slope` is the least-squares slope of the
resident memory without the first quarter of the run, in which caches fill; growths of descriptors
and threads are medians of the last quarter minus medians of the second.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from figures import write
from serve import Bench, prepare, say, whole
from serve_load import Outcome, Pool, Server, open_loop

USERS = 2000
NEW_ITEMS = 20


@dataclass
class Sizes:
    """What the server held, at each reading."""

    minutes: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def read(self, server: Server, start: float) -> None:
        """Add one reading."""
        process = Path(f"/proc/{server.process.pid}")
        status = (process / "status").read_text()
        self.minutes.append((time.perf_counter() - start) / 60)
        self.rss_mib.append(server.rss_bytes() / 2**20)
        self.descriptors.append(len(list((process / "fd").iterdir())))
        self.threads.append(int(status.split("Threads:")[1].split()[0]))

    def slope(self) -> tuple[float, float]:
        """(MiB a minute, its standard error) of the memory after the first quarter."""
        start = len(self.minutes) // 4
        minutes, rss = np.array(self.minutes[start:]), np.array(self.rss_mib[start:])
        (slope, _), covariance = np.polyfit(minutes, rss, 1, cov=True)
        return float(slope), float(covariance[0, 0] ** 0.5)

    def growth(self, values: list[int]) -> float:
        """The median of the last quarter minus that of the second."""
        quarter = len(values) // 4
        return float(np.median(values[-quarter:]) - np.median(values[quarter : 2 * quarter]))


async def soak(bench: Bench, server: Server, sizes: Sizes) -> tuple[Outcome, list[Any]]:
    """The load; what became of requests, and calls that failed."""
    options, pool, failed = bench.options, Pool(server.url), []
    start, end = time.perf_counter(), time.perf_counter() + options.minutes * 60
    outcome = Outcome()

    async def each(seconds: float, number: int, calls: Any) -> None:
        """Make the calls of `calls(number)` every `seconds`, until the end."""
        while time.perf_counter() < end:
            for method, path, body in calls(number):
                status, said = await pool.ask(method, path, body)
                if status != 200:
                    failed.append((path, status, said[:200]))
            number += 1
            await asyncio.sleep(seconds)

    def events(number: int) -> Any:
        batch = [
            {
                "event_id": f"{number}-{i}",
                "user_id": f"u{(number * 20 + i) % USERS}",
                "item_id": bench.requests[i]["history"][0],
            }
            for i in range(20)
        ]
        yield "POST", "/v1/events", {"events": batch}
        yield "POST", "/v1/recommend", {"user_id": batch[0]["user_id"], "timeout_ms": 20_000}

    def items(number: int) -> Any:
        name, attributes = f"new-{number % NEW_ITEMS}", bench.item_rows[number % NEW_ITEMS]
        yield "POST", "/v1/items", {"items": [{"item_id": name, "attributes": attributes}]}
        yield "GET", f"/v1/items/{name}", None
        yield "DELETE", f"/v1/items/{name}", None

    def swap(number: int) -> Any:
        yield "POST", "/v1/models/activate", {"name": ("twin", "bundle")[number % 2]}

    async def read() -> None:
        while time.perf_counter() < end:
            sizes.read(server, start)
            await asyncio.sleep(options.every)

    background = [
        asyncio.create_task(task)
        for task in (
            each(options.events_every, 0, events),
            each(options.item_every, 0, items),
            each(options.swap_every, 0, swap),
            read(),
        )
    ]
    for number in itertools.count():
        if (left := end - time.perf_counter()) <= 1:
            break
        part = await open_loop(
            pool, "/v1/recommend", bench.requests, rate=options.rate, seconds=min(30, left),
            check=whole, seed=number,
        )  # fmt: skip
        outcome.seconds += part.seconds
        outcome.faults += part.faults
        for status, n in part.statuses.items():
            outcome.statuses[status] = outcome.statuses.get(status, 0) + n
    await asyncio.gather(*background)
    pool.close()
    return outcome, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=5.0, help="requests/s")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between readings")
    parser.add_argument("--events-every", type=float, default=0.5, help="seconds between batches")
    parser.add_argument("--item-every", type=float, default=5.0, help="seconds between new items")
    parser.add_argument("--swap-every", type=float, default=60.0, help="seconds between swaps")
    parser.add_argument("--system", default="generator")
    parser.add_argument("--beam", type=int, default=20)
    parser.add_argument("--keep-awake", action="store_true", help="serve with it")
    parser.add_argument("--compiled", action="store_true", help="serve with it")
    parser.add_argument("--dry-run", action="store_true", help="print figures, write no file")
    options = parser.parse_args()
    sizes = Sizes()
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(options, Path(folder))
        bench.requests = [{**request, "timeout_ms": 20_000} for request in bench.requests]
        server = bench.server("soak")
        try:
            outcome, failed = asyncio.run(soak(bench, server, sizes))
        finally:
            server.end()
    slope, error = sizes.slope()
    n = len(sizes.minutes)
    low, high = slope - 1.96 * error, slope + 1.96 * error
    found = {
        "serve.soak.minutes": {"value": options.minutes, "unit": "min", "n": len(outcome.seconds)},
        "serve.soak.rss_slope": {
            "value": slope, "unit": "MiB/min", "low": low, "high": high, "n": n,
        },
        "serve.soak.rss": {"value": max(sizes.rss_mib), "unit": "MiB", "n": n},
        "serve.soak.descriptors": {
            "value": sizes.growth(sizes.descriptors), "unit": "more at the end", "n": n,
        },
        "serve.soak.threads": {
            "value": sizes.growth(sizes.threads), "unit": "more at the end", "n": n,
        },
        "serve.soak.failed": {
            "value": outcome.errors + len(failed), "unit": "answers", "n": len(outcome.seconds),
        },
    }  # fmt: skip
    say(json.dumps(found, indent=1))
    say(f"statuses {outcome.statuses}, faults {outcome.faults[:3]}, failed {failed[:3]}")
    say("rss by minute: " + " ".join(f"{rss:.0f}" for rss in sizes.rss_mib[:: max(n // 20, 1)]))
    notes = (
        f"bundle {options.bundle.parent.name}, system {options.system}, beam {options.beam}, "
        f"{options.rate:g} requests/s; every {options.events_every:g} s 20 events, every "
        f"{options.item_every:g} s an item that comes and goes, every {options.swap_every:g} s a "
        "swap; the client is on the same cores"
    )
    command = "python benchmarks/serve_soak.py " + " ".join(sys.argv[1:])
    if not options.dry_run:
        path = write("serve_soak", found, seeds=[0], command=command, folder="speed", notes=notes)
        say(f"wrote {path.name}")


if __name__ == "__main__":
    main()
