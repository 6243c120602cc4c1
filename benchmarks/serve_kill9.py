"""Kill the server while events come in, start it again, and send what it had again.

A sender that got no answer sends its batch again, and one that crashed may send again what was
acknowledged. So after each kill every batch of the cycle is sent again: an acknowledged one must
be known whole (what is accepted anew was lost), one in flight must be taken whole or be known
whole, and known the next time. Then each user's history and export must hold each event once, and
so must the table that the next training reads. Every batch is of a user of its own, so that no
event falls to the hourly cap and a history shows the order as well.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from serve_load import Pool, Server

from sidrec.serving.events import export_parquet
from sidrec.serving.store import Store

SIZE = 20
"""Events of a batch."""
SENDERS = 4
ITEMS = [f"x{number}" for number in range(SIZE)]


@dataclass
class Found:
    """What the kills did."""

    acknowledged: int = 0
    """Events that were answered with 200 before a kill."""
    in_flight: int = 0
    """Batches that were sent and not answered."""
    lost: int = 0
    """Acknowledged events that were accepted anew, or are missing where they are read."""
    doubled: int = 0
    """Events that were accepted anew though known, or are more than once where they are read."""
    torn: int = 0
    """Batches of which a part was kept."""


def kill(bundle: Path, store: Path, cycles: int, folder: Path) -> Found:
    """Kill `cycles` times, each 0.2 to 1.2 s after the first acknowledgement of the cycle."""
    found, draw, answered, unanswered = Found(), random.Random(1), [], []
    users: list[str] = []
    for cycle in range(cycles + 1):
        server = Server(bundle, store)
        asyncio.run(send_again(server, answered, unanswered, found))
        users += [*answered, *unanswered]
        if cycle == cycles:
            server.end()
            break
        answered, unanswered = asyncio.run(load(server, cycle, 0.2 + draw.random()))
        found.acknowledged += SIZE * len(answered)
        found.in_flight += len(unanswered)
    look_at_table(store, users, folder, found)
    return found


def batch(user: str) -> dict[str, Any]:
    """The one batch of a user."""
    return {
        "events": [
            {"event_id": f"{user}-{item}", "user_id": user, "item_id": item} for item in ITEMS
        ]
    }


async def load(server: Server, cycle: int, seconds: float) -> tuple[list[str], list[str]]:
    """Send batches until the server is killed; users whose batch was answered, and was not."""
    pool, answered, unanswered = Pool(server.url), [], []
    numbers = iter(range(1 << 60))
    killed = threading.Timer(seconds, server.end, [signal.SIGKILL])

    async def send() -> None:
        while True:
            user = f"u{cycle}-{next(numbers)}"
            try:
                status, _ = await pool.ask("POST", "/v1/events", batch(user))
            except OSError:  # no connection any more: nothing was sent
                return
            if status != 200:
                unanswered.append(user)
                return
            answered.append(user)
            if not killed.ident:  # from the first acknowledgement on, however slow
                killed.start()

    await asyncio.gather(*(send() for _ in range(SENDERS)))
    killed.join()
    pool.close()
    return answered, unanswered


async def send_again(
    server: Server, answered: Sequence[str], unanswered: Sequence[str], found: Found
) -> None:
    """Send the batches of the last cycle again, then read what each user has."""
    pool = Pool(server.url)

    async def accepted(user: str) -> int:
        status, said = await pool.ask("POST", "/v1/events", batch(user))
        assert status == 200, said
        kept = json.loads(said)
        assert kept["accepted"] + kept["duplicates"] == SIZE and not kept["quarantined"], kept
        return kept["accepted"]

    for user in answered:
        found.lost += await accepted(user)
    for user in unanswered:
        found.torn += await accepted(user) not in (0, SIZE)
        found.doubled += await accepted(user)
    for user in (*answered, *unanswered):
        _, history = await pool.ask("GET", f"/v1/users/{user}/history")
        _, export = await pool.ask("GET", f"/v1/users/{user}")
        compare(json.loads(history)["items"], found)
        compare([event["item_id"] for event in json.loads(export)["events"]], found)
    pool.close()


def look_at_table(store: Path, users: Sequence[str], folder: Path, found: Found) -> None:
    """Read the table that the next training would."""
    opened = Store(f"sqlite:///{store}")
    path = folder / "kill9.parquet"
    export_parquet(opened, path)
    opened.close()
    table = pl.read_parquet(path).group_by("user_id").agg("item_id")
    items_of = dict(table.iter_rows())
    for user in users:
        compare(items_of.pop(user, []), found)
    assert not items_of, f"users that nobody sent: {list(items_of)[:3]}"


def compare(items: Sequence[str], found: Found) -> None:
    """Count what is missing of a batch, and what is there more than once or in another order."""
    counts = Counter(items)
    found.lost += sum(counts[item] == 0 for item in ITEMS)
    found.doubled += sum(count - 1 for count in counts.values())
    assert [item for item in ITEMS if counts[item]] == list(dict.fromkeys(items)), items
