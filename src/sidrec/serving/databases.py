"""The databases that a store may lie in: SQLite in a file, PostgreSQL by its URL.

Both commit durably, and one server has a store to itself: it holds a lock on a file beside the
SQLite file, or an advisory lock in PostgreSQL, which ends with the connection that took it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sidrec.errors import ConfigError, ServiceError

LOCK_KEY = 0x51D12EC
"""Of the advisory lock; one a database."""
LOCK_SECONDS = 5.0
"""How long PostgreSQL may take to notice that the server before this one is gone."""
WRITES = "sidrec_writes"
"""Execution option of connections that write; those of SQLite then wait for its lock."""
BUSY_MS = 5000
"""How long SQLite waits for what another connection holds."""
IN_USE = "the store {} is in use by another server; stop it, or take another --store"


def engine_of(url: str) -> sa.Engine:
    """The database, with durable commits; errors never hold parameters, which are users' data."""
    if sa.make_url(url).get_backend_name() == "postgresql":
        return _postgresql(url)
    engine = sa.create_engine(url, hide_parameters=True)

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say so, below
        for pragma in (  # the first counts before the first table is made, and not after
            "auto_vacuum=INCREMENTAL", "journal_mode=WAL", "synchronous=FULL",
            f"busy_timeout={BUSY_MS}", "secure_delete=ON", "foreign_keys=ON",
        ):  # fmt: skip
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A transaction that reads first could not wait for another's lock once it writes: SQLite
        # refuses it at once, whatever its busy_timeout. A checkpoint holds that lock.
        writes = connection.get_execution_options().get(WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql(url: str) -> sa.Engine:
    engine = sa.create_engine(
        url, pool_pre_ping=True, hide_parameters=True, connect_args={"connect_timeout": 5}
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("SHOW synchronous_commit")
        if cursor.fetchone() == ("off",):  # acknowledged must mean durable
            cursor.execute("SET synchronous_commit TO on")
        connection.commit()

    return engine


def held_alone(engine: sa.Engine) -> Callable[[], None]:
    """Keep other servers from this store; what is returned lets go of it.

    Two servers would hold different histories in memory. ServiceError where another has it.
    """
    if engine.dialect.name == "postgresql":
        return _advisory_lock(engine)
    path = engine.url.database
    return (lambda: None) if path in (None, "", ":memory:") else _file_lock(str(path))


def _advisory_lock(engine: sa.Engine) -> Callable[[], None]:
    """A lock that lives as long as one connection, which nothing else uses."""
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    end = time.monotonic() + LOCK_SECONDS
    while not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(LOCK_KEY))):
        if time.monotonic() > end:
            connection.close()
            engine.dispose()
            raise ServiceError(IN_USE.format(shown(engine)))
        time.sleep(0.1)

    def let_go() -> None:
        connection.invalidate()  # or the pool would keep the session, and with it the lock
        connection.close()

    return let_go


def _file_lock(path: str) -> Callable[[], None]:
    """A lock on a file beside the database; where that is not there, it is made for this user."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # its log takes the same rights
        handle = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ServiceError(f"the store {path} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise ServiceError(IN_USE.format(path)) from error
    return lambda: os.close(handle)


def with_driver(url: str) -> str:
    """The URL with the driver that comes with the extra `postgres`, where it names none."""
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            return f"postgresql+psycopg://{url.removeprefix(scheme)}"
    return url


def require_backend(url: str) -> None:
    """ConfigError where the URL is none, or none of a database that we write to."""
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise ConfigError(
                f"the store must be sqlite or postgresql, got {parsed.get_backend_name()}; see "
                "--store"
            )
        parsed.get_dialect().import_dbapi()
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError) as error:
        raise ConfigError("the store is no file and no database URL; see --store") from error
    except ImportError as error:
        raise ConfigError(
            f"the store needs a driver that cannot be loaded ({error}); for PostgreSQL: "
            "pip install 'sidrec[postgres]'"
        ) from error


def shown(engine: sa.Engine) -> str:
    """The URL without its password."""
    return engine.url.render_as_string(hide_password=True)
