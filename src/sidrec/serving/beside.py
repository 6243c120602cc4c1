"""Another bundle of the models folder, loaded to be looked at beside the one that is served.

Cost:     its size in memory, until another is asked for or nobody asked for `IDLE_SECONDS`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from sidrec import artifact
from sidrec.recommender import Recommender
from sidrec.serving.models import Models
from sidrec.serving.problems import Problem
from sidrec.serving.snapshot import Snapshot

IDLE_SECONDS = 600.0


class Beside:
    """At most one bundle that is not served."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self._lock = threading.Lock()
        self._hash: str | None = None
        self._recommender: Recommender | None = None
        self._snapshot: Snapshot | None = None
        self._asked_seconds = 0.0

    def snapshot(self, name: str) -> Snapshot:
        """The named bundle with everything that was told about items. Problem as `activate`."""
        current = self.models.current
        manifest = self.models.manifest_named(name)
        with self._lock:
            self._asked_seconds = time.monotonic()
            found = artifact.file_hash(manifest)
            if (name, found[:12]) == (current.name, current.version):
                return current
            if self._recommender is None or self._hash != found:
                self._forget()
                self._recommender = self.models.loaded(name)
                self._hash = found
            version = current.catalogue_version
            if self._snapshot is None or self._snapshot.catalogue_version != version:
                held, self._snapshot = self._held(), None
                self.models.replaced.let_go(held, [self._recommender])
                self._snapshot = self._with_stored_items(self._recommender, name, version)
            return self._snapshot

    def _with_stored_items(self, recommender: Recommender, name: str, version: int) -> Snapshot:
        try:
            snapshot = self.models.with_stored_items(recommender, name, version)
            return replace(snapshot, catalogue_version=version)
        except Problem as problem:
            raise Problem("broken_model", f"{name}: stored items: {problem.detail}") from problem

    def forget_idle(self) -> None:
        """Let go of a bundle that nobody looks at any more."""
        with self._lock:
            if time.monotonic() - self._asked_seconds > IDLE_SECONDS:
                self._forget()

    def _forget(self) -> None:
        held, self._recommender, self._snapshot = self._held(), None, None
        self.models.replaced.let_go(held, [])

    def _held(self) -> list[Recommender]:
        found = [] if self._recommender is None else [self._recommender]
        return found if self._snapshot is None else [*found, self._snapshot.recommender]
