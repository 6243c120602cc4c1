"""One A/B experiment: a user is in the same variant for ever, on every server.

    bucket = BLAKE2b(experiment, user) as a number in [0, 1)

and variants share [0, 1) in their order, in proportion to their weights. Nothing is stored of a
user. A second experiment would share the first one's traffic, so there is one at a time.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
import sqlalchemy as sa

from sidrec.serving import store as tables
from sidrec.serving.problems import Problem
from sidrec.serving.schemas import Variant
from sidrec.serving.store import Store


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A running experiment."""

    name: str
    variants: tuple[Variant, ...]

    def variant(self, user_id: str) -> Variant:
        """The variant of a user."""
        total = sum(variant.weight for variant in self.variants)
        place, reached = bucket(self.name, user_id) * total, 0.0
        for variant in self.variants:
            reached += variant.weight
            if place < reached:
                return variant
        return self.variants[-1]


def bucket(experiment: str, user_id: str) -> float:
    """A number in [0, 1) that a user keeps.

    >>> bucket("ranking", "ann") == bucket("ranking", "ann") != bucket("ranking", "bob")
    True
    """
    text = f"{experiment}\x1f{user_id}".encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


class Experiments:
    """The running experiment, kept in the store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._changing = threading.Lock()
        self.running: Experiment | None = None
        with store.reading() as connection:
            row = connection.execute(sa.select(tables.experiments)).first()
        if row is not None:
            variants = tuple(Variant(**entry) for entry in orjson.loads(row[1]))
            self.running = Experiment(name=row[0], variants=variants)

    def start(self, name: str, variants: Sequence[Variant]) -> Experiment:
        """Run an experiment, or change the one of that name."""
        with self._changing:
            if self.running is not None and self.running.name != name:
                raise Problem(
                    "experiment_running",
                    f"{self.running.name!r} is running",
                    hint=f"DELETE /v1/experiments/{self.running.name} first",
                )
            text = orjson.dumps([variant.model_dump() for variant in variants]).decode()

            def write(connection: sa.Connection) -> None:
                connection.execute(tables.experiments.delete())
                connection.execute(tables.experiments.insert().values(name=name, variants=text))

            self.store.write(write).result()
            self.running = Experiment(name=name, variants=tuple(variants))
            return self.running

    def stop(self, name: str) -> None:
        """End an experiment. Problem `unknown_experiment`."""
        with self._changing:
            self.named(name)
            self.store.write(lambda c: c.execute(tables.experiments.delete())).result()
            self.running = None

    def named(self, name: str) -> Experiment:
        """The running experiment, where it has that name. Problem `unknown_experiment`."""
        if self.running is None or self.running.name != name:
            raise Problem("unknown_experiment", f"no experiment {name!r} is running")
        return self.running
