"""What a server must not lose: events, items, activations, the experiment. One writer, durable.

All writes go through one thread. It takes whatever waits, runs it in one transaction and commits
with full sync; only then is any of it acknowledged (group commit). A write that fails spoils no
other: the group is rolled back and each is run alone. SQLite is opened in WAL mode with
synchronous=FULL and secure_delete; other databases by their URL.

Cost:     one sync a group, whatever it holds.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from sidrec.errors import ConfigError, ServiceError
from sidrec.serving.databases import (
    WRITES,
    engine_of,
    held_alone,
    require_backend,
    shown,
    with_driver,
)
from sidrec.serving.problems import Problem

T = TypeVar("T")
log = logging.getLogger("sidrec.serving")
Write = Callable[[sa.Connection], Any]
STORE_FAILURES = (sa.exc.OperationalError, sa.exc.InterfaceError)
"""Errors that are not of one write: no space, no connection."""
SCHEMA = 1
GIVEN_BACK = 500
"""Pages, of 4 KiB, that one transaction hands back to the disk."""
KEPT_FREE = 256
MAX_GROUP = 256
"""Writes in one transaction."""
CHECK_SECONDS = 2.0
"""How long a successful commit proves that the store can be written."""

tables = sa.MetaData()
meta = sa.Table(
    "meta", tables,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)  # fmt: skip
events = sa.Table(
    "events", tables,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("event_id", sa.Text, nullable=False, unique=True),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("item_id", sa.Text, nullable=False),
    sa.Column("event_type", sa.Text, nullable=False),
    sa.Column("time_us", sa.BigInteger, nullable=False),
    sa.Column("weight", sa.Float),
    sa.Column("session_id", sa.Text),
    sa.Column("request_id", sa.Text),
    sa.Column("position", sa.Integer),
    sa.Column("received_us", sa.BigInteger, nullable=False),
    sa.Column("quarantined", sa.Boolean, nullable=False),
    sa.Index("events_of_user", "user_id", "time_us"),
)  # fmt: skip
items = sa.Table(
    "items", tables,
    sa.Column("item_id", sa.Text, primary_key=True),
    sa.Column("place", sa.Integer, nullable=False),
    sa.Column("attributes", sa.Text, nullable=False),
    sa.Column("available", sa.Boolean, nullable=False),
    sa.Column("deleted", sa.Boolean, nullable=False),
)  # fmt: skip
activations = sa.Table(
    "activations", tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("started_with", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)  # fmt: skip
experiments = sa.Table(
    "experiments", tables,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("variants", sa.Text, nullable=False),
)  # fmt: skip


@dataclass(eq=False)
class _Waiting:
    write: Write
    done: Future[Any] = field(default_factory=Future)


class Reader:
    """A database that is only read, also beside the server that writes it."""

    def __init__(self, url: str) -> None:
        url = with_driver(url)
        require_backend(url)
        self.engine = engine_of(url)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection to read with. Problem `store_unavailable` where that fails."""
        try:
            with self.engine.connect() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise Problem("store_unavailable", "the store cannot be read") from error

    def close(self) -> None:
        """Let go of the database."""
        self.engine.dispose()


class Store(Reader):
    """An open database with its writer thread."""

    def __init__(self, url: str, *, max_waiting: int = 512) -> None:
        super().__init__(url)
        self.max_waiting = max_waiting
        self.last_commit = 0.0
        self.failure: str | None = None
        """Why the last write failed; None when it did not."""
        self.on_commit: Callable[[float, int], None] = lambda seconds, size: None
        self._waiting: deque[_Waiting] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._writing = self.engine.execution_options(**{WRITES: True})
        self._insert = _insert_ignoring(self.engine)
        try:
            self._let_go = held_alone(self.engine)
        except sa.exc.SQLAlchemyError as error:
            raise ServiceError(
                f"the store {shown(self.engine)} cannot be opened: {error}"
            ) from error
        try:
            self._prepare()
        except sa.exc.SQLAlchemyError as error:
            self._let_go()
            raise ServiceError(
                f"the store {shown(self.engine)} cannot be opened: {error}"
            ) from error
        except ConfigError:
            self._let_go()
            raise
        self._thread = threading.Thread(target=self._run, name="sidrec-writer", daemon=True)
        self._thread.start()

    # ---------------------------------------------------------------- writing

    def write(self, write: Write) -> Future[Any]:
        """Run `write` on the writer thread; the future is done once its commit is on the disk.

        Problem `overloaded` where too many wait already. A write may run twice, in different
        transactions of which one is rolled back, so it must touch nothing but its connection.
        """
        waiting = _Waiting(write)
        with self._wake:
            if self._closing:
                raise Problem("not_ready", "the server is stopping")
            if len(self._waiting) >= self.max_waiting:
                raise Problem("overloaded", f"{self.max_waiting} writes wait for their commit")
            self._waiting.append(waiting)
            self._wake.notify()
        return waiting.done

    def insert_events(self, rows: list[dict[str, Any]]) -> Write:
        """A write that inserts the events it does not hold yet and returns how many those were."""

        def write(connection: sa.Connection) -> int:
            done = connection.execute(self._insert, rows)
            return len(done.all()) if done.returns_rows else done.rowcount

        return write

    def writable(self) -> bool:
        """Whether a commit has succeeded just now."""
        if time.monotonic() - self.last_commit < CHECK_SECONDS and self.failure is None:
            return True
        try:
            self.write(_touch).result(timeout=CHECK_SECONDS)
        except (Problem, TimeoutError):
            return False
        return self.failure is None

    def checkpoint(self) -> None:
        """Empty SQLite's write-ahead log, so that no deleted row is left in it.

        Problem `store_unavailable` where somebody who reads the file all the while keeps it.
        """
        if self.engine.dialect.name != "sqlite":
            return
        connection = self.engine.raw_connection()
        try:
            (kept, *_) = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            raise Problem("store_unavailable", "the log cannot be emptied") from error
        finally:
            connection.close()
        if kept:
            raise Problem(
                "store_unavailable",
                "the log of the store cannot be emptied while another program reads it",
                hint="send the same again",
            )

    def give_back(self) -> int:
        """Hand up to `GIVEN_BACK` free pages of SQLite's file to the disk; return how many.

        `KEPT_FREE` pages stay for what comes next. Stores made before this could do it, and
        PostgreSQL, which does it by itself, give 0. The file is shorter after the next checkpoint.
        """
        if self.engine.dialect.name != "sqlite":
            return 0

        def write(connection: sa.Connection) -> int:
            cursor = connection.connection.cursor()
            if not cursor.execute("PRAGMA auto_vacuum").fetchone()[0]:
                return 0
            free = cursor.execute("PRAGMA freelist_count").fetchone()[0]
            if (wanted := min(free - KEPT_FREE, GIVEN_BACK)) <= 0:
                return 0
            cursor.execute(f"PRAGMA incremental_vacuum({wanted})").fetchall()
            return wanted

        return self.write(write).result()

    def close(self) -> None:
        """Finish what waits, then let go of the database."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self._let_go()
        super().close()

    # ---------------------------------------------------------------- the writer thread

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closing:
                    self._wake.wait()
                group = [self._waiting.popleft() for _ in range(min(MAX_GROUP, self._num_waiting))]
            if not group:
                return
            if wanted := [w for w in group if w.done.set_running_or_notify_cancel()]:
                self._commit(wanted)

    @property
    def _num_waiting(self) -> int:
        return len(self._waiting)

    def _commit(self, group: list[_Waiting]) -> None:
        start = time.perf_counter()
        try:
            with self._writing.begin() as connection:
                results = [waiting.write(connection) for waiting in group]
        except Exception as error:
            alone = len(group) == 1 or isinstance(error, STORE_FAILURES)
            for waiting in group:
                if alone:
                    self._failed(waiting, error)
                else:
                    self._commit([waiting])
            return
        self.last_commit, self.failure = time.monotonic(), None
        self.on_commit(time.perf_counter() - start, len(group))
        for waiting, result in zip(group, results, strict=True):
            waiting.done.set_result(result)

    def _failed(self, waiting: _Waiting, error: Exception) -> None:
        if isinstance(error, sa.exc.SQLAlchemyError):
            self.failure = type(error).__name__
            log.warning("store: a write failed: %s", self.failure)
            problem = Problem(
                "store_unavailable",
                "the store took nothing; nothing was acknowledged",
                hint="send the same again; events are known by their event_id",
            )
            problem.__cause__ = error
            error = problem
        waiting.done.set_exception(error)

    def _prepare(self) -> None:
        with self._writing.begin() as connection:
            tables.create_all(connection)
            found = connection.scalar(sa.select(meta.c.value).where(meta.c.name == "schema"))
            if found is None:
                connection.execute(meta.insert().values(name="schema", value=str(SCHEMA)))
            elif found != str(SCHEMA):
                raise ConfigError(
                    f"the store has schema {found}, this sidrec writes {SCHEMA}; take another store"
                )
        self.last_commit = time.monotonic()


def _touch(connection: sa.Connection) -> None:
    connection.execute(meta.delete().where(meta.c.name == "touched"))
    connection.execute(meta.insert().values(name="touched", value=str(time.time_ns())))


def _insert_ignoring(engine: sa.Engine) -> Any:
    if engine.dialect.name == "sqlite":
        return sqlite.insert(events).on_conflict_do_nothing(index_elements=["event_id"])
    insert = postgresql.insert(events).on_conflict_do_nothing(index_elements=["event_id"])
    return insert.returning(events.c.id)  # its driver counts no rows of many at once
