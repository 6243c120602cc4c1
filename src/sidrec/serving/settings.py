"""Everything about a server that can be set, with its limits. Nothing is read from the environment.

Times are seconds unless the name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidrec.errors import ConfigError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How one server runs."""

    bundle: Path
    """What is served first."""
    models_dir: Path | None = None
    """Folder whose bundles may be activated by name; None: the folder that holds `bundle`."""
    store: str = "sidrec-serving.sqlite"
    """A file of SQLite, or a database URL; holds events, items and activations."""
    keys_file: Path | None = None
    """TOML with the hashes of API keys; None: no key is asked for, so loopback only."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    device: str = "auto"
    scenarios: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Named defaults of a recommend request."""
    compiled: bool = False
    """Search by one compiled call; see `Recommender.with_compiled`. What is served first must have
    it; a bundle that is activated without it is answered by PyTorch, and `/v1/models` says so."""
    keep_awake: bool = False
    """Keep the machine's cores from halting between requests; see `awake`."""

    max_body_bytes: int = 1 << 20
    """Longer bodies are refused before they are read."""
    read_seconds: float = 10.0
    """How long a request may take to come in, and an answer to be taken, in seconds."""
    max_queue: int = 128
    """Requests that may wait for the engine; the next is told to come back later."""
    max_wait_ms: int | None = None
    """How long a request may have to wait for the engine, told from how long the last ones took;
    one that would wait longer is told to come back later. None: as long as `max_queue` lets it."""
    max_batch: int = 32
    """Requests answered at once."""
    timeout_ms: int = 1000
    """How long a request waits before it gets popular items, unless it says otherwise."""
    max_waiting_writes: int = 512
    """Writes that may wait for their commit; the next is told to come back later."""
    max_waiting_changes: int = 64
    """Changes of items that may wait for each other; the next is told to come back later."""
    max_waiting_reads: int = 256
    """Histories that may wait to be read; beyond, popular items are answered."""
    history_events: int = 200
    """Newest events of a user that make the history."""
    not_history: tuple[str, ...] = ("impression",)
    """Event types that are kept but say nothing about what a user wants."""
    user_events_per_hour: int = 1000
    """Events of one user above this are kept in quarantine: not in histories, not exported."""
    cached_users: int = 50_000
    """Histories held in memory."""
    retention_days: float | None = None
    """Events received longer ago are deleted; None keeps all."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"serve: port must be in [0, 65535], got {self.port}")
        for name in (
            "max_body_bytes", "max_queue", "max_batch", "timeout_ms", "max_waiting_writes",
            "max_waiting_changes", "max_waiting_reads", "history_events", "user_events_per_hour",
            "cached_users",
        ):  # fmt: skip
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"serve: {name} must be at least 1, got {value}")
        if self.max_wait_ms is not None and self.max_wait_ms < 1:
            raise ConfigError(f"serve: max_wait_ms must be at least 1, got {self.max_wait_ms}")
        if not self.read_seconds > 0:
            raise ConfigError(f"serve: read_seconds must be above 0, got {self.read_seconds}")
        if self.retention_days is not None and not self.retention_days > 0:
            raise ConfigError(f"serve: retention_days must be above 0, got {self.retention_days}")
        if self.host not in LOOPBACK and self.keys_file is None:
            raise ConfigError(
                f"serve: the address {self.host} is open to other machines, so API keys are "
                "needed; make one with `sidrec key`, put it into a file and name it with --keys"
            )

    @property
    def store_url(self) -> str:
        """The store as a database URL."""
        return self.store if "://" in self.store else f"sqlite:///{self.store}"

    @property
    def models_folder(self) -> Path:
        """Where the bundles lie that may be activated."""
        return self.models_dir or self.bundle.resolve().parent
