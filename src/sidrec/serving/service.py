"""The parts of a running server, joined: store, models, engine, events, experiment, keys."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence

from sidrec.errors import ConfigError
from sidrec.serving.auth import read_keys
from sidrec.serving.beside import Beside
from sidrec.serving.engine import Engine
from sidrec.serving.events import SWEEP_ROWS, EventLog
from sidrec.serving.experiments import Experiment, Experiments
from sidrec.serving.fitting import lacking_fields, lacking_systems, require_fit
from sidrec.serving.lines import Lines
from sidrec.serving.metrics import Metrics
from sidrec.serving.models import Models
from sidrec.serving.problems import Problem
from sidrec.serving.schemas import Variant
from sidrec.serving.settings import ServeSettings
from sidrec.serving.store import Store

log = logging.getLogger("sidrec.serving")
SWEEP_SECONDS = 60.0


class Service:
    """Everything that routes need."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.keys = read_keys(settings.keys_file)
        self.store = Store(settings.store_url, max_waiting=settings.max_waiting_writes)
        try:
            self.models = Models(settings, self.store)
            self.experiments = Experiments(self.store)
            self._look_at_what_is_served()
        except BaseException:
            self.store.close()
            raise
        self.lines = Lines(settings)
        self.beside = Beside(self.models)
        self.events = EventLog(self.store, settings)
        self.engine = Engine(
            lambda: self.models.current,
            max_queue=settings.max_queue,
            max_wait_seconds=(settings.max_wait_ms or math.inf) / 1000,
            max_batch=settings.max_batch,
        )
        self.reading = 0
        """Requests that wait for a history; counted on the thread of the one loop."""
        self.metrics = Metrics()
        self.metrics.watch(
            queue=lambda: self.engine.depth,
            items=lambda: int(self.models.current.available_N.sum()),
            catalogue=lambda: self.models.current.catalogue_version,
            compiled=lambda: self.models.current.recommender.compiled,
        )
        self.engine.on_batch = self._count_batch
        self.store.on_commit = lambda seconds, _: self.metrics.commit.observe(seconds)
        self.stopping = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="sidrec-sweeper", daemon=True)
        self._sweeper.start()

    def ready(self) -> bool:
        """Whether requests will be answered and events kept."""
        return not self.stopping.is_set() and self.store.writable()

    def close(self) -> None:
        """Answer and write what waits, then end."""
        self.stopping.set()
        self._sweeper.join()
        self.lines.close()
        self.engine.stop()
        self.store.close()

    def start_experiment(self, name: str, variants: Sequence[Variant]) -> Experiment:
        """Run an experiment, or change the one of that name, over systems that are served."""
        with self.models.unchanged() as snapshot:
            for variant in variants:
                snapshot.system(variant.system)
            return self.experiments.start(name, variants)

    def _look_at_what_is_served(self) -> None:
        """ConfigError where a scenario's rules do not fit; a log line where a system is missing."""
        scenarios = self.settings.scenarios
        self.models.require_fit = lambda s: require_fit(s, scenarios, self.experiments.running)
        for said in lacking_fields(self.models.current, scenarios):
            raise ConfigError(said)
        for said in lacking_systems(self.models.current, scenarios, self.experiments.running):
            log.warning("models: %s; its default answers instead, marked degraded", said)

    def _count_batch(self, size: int, seconds: float) -> None:
        self.metrics.batch.observe(size)
        self.metrics.batch_seconds.observe(seconds)

    def _sweep(self) -> None:
        while not self.stopping.wait(SWEEP_SECONDS):
            self.beside.forget_idle()
            self.models.replaced.collect()
            try:
                self.sweep()
            except Problem as problem:
                log.warning("events: nothing could be deleted: %s", problem.code)

    def sweep(self) -> None:
        """Delete what is too old, and give the disk back what is free. Problem of the store."""
        while self.events.sweep() == SWEEP_ROWS and not self.stopping.is_set():
            continue
        given = 0
        while (pages := self.store.give_back()) and not self.stopping.is_set():
            given += pages
        if given:
            self.store.checkpoint()
