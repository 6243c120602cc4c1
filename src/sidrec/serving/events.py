"""Events: kept once, in the user's history from the next request on, gone when the user is.

The newest events of a user, in the order of their times, are the history. It is read when first
asked for and held in memory until an event of that user commits. A user with more events an hour
than anyone has is kept in quarantine: such events are stored and count for nothing.

Cost:     a history that is not in memory: one index look-up.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import sqlalchemy as sa

from sidrec.serving import store as tables
from sidrec.serving.clock import CLOCK
from sidrec.serving.problems import Problem
from sidrec.serving.schemas import Event
from sidrec.serving.settings import ServeSettings
from sidrec.serving.store import Reader, Store

HOUR_SECONDS = 3600
EXPORT_ROWS = 100_000
MAX_EXPORTED = 10_000
"""Events of one user in one answer."""
MAX_COUNTED_USERS = 100_000
"""Users whose events of this hour are counted at a time; beyond, those with the fewest are not."""
SWEEP_ROWS = 5000
"""Events deleted in one transaction when they are too old."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What became of a batch."""

    accepted: int
    duplicates: int
    quarantined: int


class EventLog:
    """Events in, histories out."""

    def __init__(self, store: Store, settings: ServeSettings) -> None:
        self.store, self.settings = store, settings
        self._lock = threading.Lock()
        self._histories: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._generation = 0
        self._hour = 0
        self._of_hour: dict[str, int] = {}

    # ---------------------------------------------------------------- in

    def add(self, events: Sequence[Event]) -> Future[Kept]:
        """Keep a batch; done once it is on the disk and histories know it."""
        now_us = CLOCK.now_us()
        rows = [self._row(event, now_us) for event in events]
        users = {event.user_id for event in events}
        kept: Future[Kept] = Future()

        def committed(done: Future[int]) -> None:
            if error := done.exception():
                self._uncount(rows)
                kept.set_exception(error)
                return
            self._forget(users)
            if not (accepted := done.result()):  # a batch sent again is no sign of a busy user
                self._uncount(rows)
            held = sum(row["quarantined"] for row in rows)
            kept.set_result(
                Kept(
                    accepted=accepted,
                    duplicates=len(rows) - accepted,
                    quarantined=min(held, accepted),
                )
            )

        try:
            written = self.store.write(self.store.insert_events(rows))
        except Problem:
            self._uncount(rows)
            raise
        written.add_done_callback(committed)
        return kept

    def _row(self, event: Event, now_us: int) -> dict[str, Any]:
        time_us = now_us if event.timestamp is None else int(event.timestamp.timestamp() * 1e6)
        return {
            "event_id": event.event_id,
            "user_id": event.user_id,
            "item_id": event.item_id,
            "event_type": event.event_type,
            "time_us": time_us,
            "weight": event.weight,
            "session_id": event.session_id,
            "request_id": event.request_id,
            "position": event.position,
            "received_us": now_us,
            "quarantined": self._too_many(event.user_id),
        }

    def _too_many(self, user_id: str) -> bool:
        with self._lock:
            hour = int(time.monotonic() // HOUR_SECONDS)  # a clock that nobody sets
            if hour != self._hour:
                self._hour, self._of_hour = hour, {}
            if len(self._of_hour) >= MAX_COUNTED_USERS and user_id not in self._of_hour:
                self._of_hour = busiest(self._of_hour, MAX_COUNTED_USERS // 2)
            count = self._of_hour[user_id] = self._of_hour.get(user_id, 0) + 1
        return count > self.settings.user_events_per_hour

    def _uncount(self, rows: Sequence[dict[str, Any]]) -> None:
        with self._lock:
            for row in rows:
                if count := self._of_hour.get(row["user_id"]):
                    self._of_hour[row["user_id"]] = count - 1

    # ---------------------------------------------------------------- out

    def cached(self, user_id: str) -> tuple[str, ...] | None:
        """The history where it is in memory."""
        with self._lock:
            found = self._histories.get(user_id)
            if found is not None:
                self._histories.move_to_end(user_id)
            return found

    def history(self, user_id: str) -> tuple[str, ...]:
        """Items of the newest events, oldest first; () of a user nobody knows."""
        if (found := self.cached(user_id)) is not None:
            return found
        with self._lock:
            generation = self._generation
        t = tables.events.c
        newest = (
            sa.select(t.item_id)
            .where(t.user_id == user_id, t.quarantined.is_(False))
            .where(t.event_type.not_in(self.settings.not_history))
            .order_by(t.time_us.desc(), t.id.desc())
            .limit(self.settings.history_events)
        )
        with self.store.reading() as connection:
            found = tuple(reversed(connection.scalars(newest).all()))
        with self._lock:
            if generation == self._generation:  # else an event may have committed meanwhile
                self._histories[user_id] = found
                while len(self._histories) > self.settings.cached_users:
                    self._histories.popitem(last=False)
        return found

    def _forget(self, users: set[str]) -> None:
        with self._lock:
            self._generation += 1
            for user_id in users:
                self._histories.pop(user_id, None)

    # ---------------------------------------------------------------- a user's rights

    def export(self, user_id: str, after: int = 0) -> tuple[list[dict[str, Any]], bool]:
        """Stored events of a user with an `id` above `after`, by it, and whether there are more."""
        t = tables.events
        mine = (t.c.user_id == user_id) & (t.c.id > after)
        chosen = sa.select(t).where(mine).order_by(t.c.id)
        with self.store.reading() as connection:
            rows = connection.execute(chosen.limit(MAX_EXPORTED + 1)).mappings().all()
        listed = [{str(name): value for name, value in row.items()} for row in rows]
        return listed[:MAX_EXPORTED], len(listed) > MAX_EXPORTED

    def erase(self, user_id: str) -> Future[int]:
        """Delete everything of a user; done once that is on the disk. Result: events deleted."""
        erased: Future[int] = Future()

        def write(connection: sa.Connection) -> int:
            gone = tables.events.delete().where(tables.events.c.user_id == user_id)
            return connection.execute(gone).rowcount

        def committed(done: Future[int]) -> None:
            if error := done.exception():
                erased.set_exception(error)
                return
            self._forget({user_id})
            with self._lock:
                self._of_hour.pop(user_id, None)
            erased.set_result(done.result())

        self.store.write(write).add_done_callback(committed)
        return erased

    # ---------------------------------------------------------------- upkeep

    def sweep(self) -> int:
        """Delete up to `SWEEP_ROWS` events that are older than the retention; return how many.

        They are looked for beside the writer, which would have nothing else written meanwhile.
        """
        days = self.settings.retention_days
        if days is None:
            return 0
        cutoff_us = CLOCK.now_us() - int(days * 86_400 * 1e6)
        t = tables.events.c
        with self.store.reading() as connection:
            found = sa.select(t.id).where(t.received_us < cutoff_us).limit(SWEEP_ROWS)
            old = connection.scalars(found).all()
        if not old:
            return 0

        def write(connection: sa.Connection) -> list[str]:
            gone = tables.events.delete().where(t.id.in_(old)).returning(t.user_id)
            return list(connection.scalars(gone))

        users = self.store.write(write).result()
        self._forget(set(users))
        return len(users)


def busiest(counts: dict[str, int], limit: int) -> dict[str, int]:
    """At most `limit` of the users, those with the highest counts.

    So a flood of fresh ids, each seen once or twice, makes nobody's count start anew: to drop a
    user with n events it takes `limit` others with more than n / 2.

    >>> busiest({"a": 1, "b": 9, "c": 1, "d": 2}, 2)
    {'b': 9, 'd': 2}
    """
    least = 1
    while len(counts) > limit:
        counts = {user: count for user, count in counts.items() if count > least}
        least *= 2
    return counts


def export_parquet(store: Reader, path: Path, *, quarantined: bool = False) -> int:
    """Write all events as one Parquet file that `sidrec fit` reads; return how many.

    Read some at a time, so that a server's log is not kept from being emptied.

    Columns: user_id, item_id, timestamp (microseconds), event_type, weight, session_id,
    request_id, position. Events in quarantine are left out unless asked for.
    """
    t = tables.events.c
    columns = [t.user_id, t.item_id, t.time_us.label("timestamp"), t.event_type, t.weight,
               t.session_id, t.request_id, t.position]  # fmt: skip
    parts, last = [pl.DataFrame(schema=EXPORT_SCHEMA)], 0
    while True:
        chosen = sa.select(t.id, *columns).where(t.id > last).order_by(t.id).limit(EXPORT_ROWS)
        if not quarantined:
            chosen = chosen.where(t.quarantined.is_(False))
        with store.reading() as connection:
            rows = connection.execute(chosen).all()
        if not rows:
            break
        last = rows[-1][0]
        listed = [tuple(row)[1:] for row in rows]
        parts.append(pl.DataFrame(listed, schema=EXPORT_SCHEMA, orient="row"))
    table = pl.concat(parts)
    scratch = path.with_name(f".{path.name}.part")
    table.write_parquet(scratch)
    scratch.replace(path)
    return table.height


EXPORT_SCHEMA: dict[str, Any] = {
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp": pl.Int64,
    "event_type": pl.String,
    "weight": pl.Float64,
    "session_id": pl.String,
    "request_id": pl.String,
    "position": pl.Int64,
}
