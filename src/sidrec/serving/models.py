"""Which snapshot is served: changes of items, hot swap between bundles, roll back.

`current` is one reference; to change what is served is to replace it, so a reader sees the state
before or after, never between. A change of items is built beside the served snapshot, written to
the store, and published once that is on the disk. A bundle is loaded, checked, warmed and given
all stored changes before it is published; where any of that fails, the old one stays.

Source:   our choice.
Differs:  items that were added here get their IDs anew when they are put on another bundle, or on
          the same one after a restart; IDs of the bundle's own items never move.
Cost:     an upsert: one `Recommender.add_items`, shared by all that wait; a swap: one loading.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import sqlalchemy as sa

from sidrec import artifact
from sidrec.errors import ArtifactError, ConfigError, SidrecError
from sidrec.recommender import Recommender, load
from sidrec.serving import store as tables
from sidrec.serving.memory import Replaced
from sidrec.serving.problems import Problem, places_of
from sidrec.serving.settings import ServeSettings
from sidrec.serving.snapshot import Snapshot
from sidrec.serving.store import Store
from sidrec.types import Histories

log = logging.getLogger("sidrec.serving")
Entry = Mapping[str, Any]
"""An item to add or change: item_id, attributes, available (None: as it is); `known`: true where
there must be one."""


@dataclass(eq=False)
class _Change:
    entries: Sequence[Entry]
    done: Future[Upserted] = field(default_factory=Future)


@dataclass(frozen=True, kw_only=True)
class Upserted:
    """What became of a batch of items."""

    snapshot: Snapshot
    added: int
    updated: int


class Models:
    """The served snapshot, and every way to change it."""

    def __init__(self, settings: ServeSettings, store: Store) -> None:
        self.settings, self.store = settings, store
        self.require_fit: Callable[[Snapshot], None] = lambda snapshot: None
        """Problem where a snapshot must not be served instead of the current one."""
        self._changing = threading.Lock()
        self._pending: list[_Change] = []
        self._pending_lock = threading.Lock()
        self._previous: tuple[str, Recommender] | None = None
        self.replaced = Replaced()
        self._started_with = artifact.file_hash(manifest_of(settings.bundle))
        path = self._last_activated() or settings.bundle
        first = path == settings.bundle
        self._base = load(path, device=settings.device, compiled=settings.compiled and first)
        self._base = self._base if first else self._compiled(self._base, path.name)
        warm_up(self._base)
        try:
            self.current: Snapshot = self.with_stored_items(self._base, path.name, 0)
        except Problem as problem:
            raise ConfigError(
                f"{path} cannot be served with the items of this store: {problem.detail}; take "
                "another --store, or a bundle whose items have the same columns"
            ) from problem

    # ---------------------------------------------------------------- items

    def upsert(self, entries: Sequence[Entry]) -> Upserted:
        """Add or change items, all or none; returns once they are on the disk and servable.

        Changes that wait for each other's lock are made together.
        """
        change = _Change(entries)
        with self._pending_lock:
            self._pending.append(change)
        with self._changing:
            with self._pending_lock:
                taken, self._pending = self._pending, []
            self._upsert_together(taken)
        return change.done.result()

    def delete(self, item_ids: Sequence[str]) -> Snapshot:
        """Take items out of every answer; returns once that is on the disk."""
        with self._changing:
            snapshot = self.current.without(item_ids)
            gone = [{"item_id": i, "attributes": {}, "available": False} for i in item_ids]
            self._write(gone, deleted=True)
            self._serve(snapshot)
        return snapshot

    def _upsert_together(self, changes: Sequence[_Change]) -> None:
        ids = [entry["item_id"] for change in changes for entry in change.entries]
        if len(changes) > 1 and len(set(ids)) < len(ids):  # an item twice: one after the other
            for change in changes:
                self._upsert_together([change])
            return
        entries = [entry for change in changes for entry in change.entries]
        if not changes:
            return
        try:
            before = self.current
            snapshot = before.with_items(entries)
            if len(snapshot.recommender.items) > len(before.recommender.items):
                fill_tables(snapshot.recommender)
            self._write(entries, deleted=False)
        except Exception as error:
            if len(changes) > 1:
                for change in changes:
                    self._upsert_together([change])
            else:
                changes[0].done.set_exception(error)
            return
        self._serve(snapshot)
        known = before.recommender.items.row_of
        for change in changes:
            updated = sum(entry["item_id"] in known for entry in change.entries)
            change.done.set_result(
                Upserted(snapshot=snapshot, added=len(change.entries) - updated, updated=updated)
            )

    def _write(self, entries: Sequence[Entry], *, deleted: bool) -> None:
        t, known = tables.items, self.current.recommender.items.row_of

        def write(connection: sa.Connection) -> None:
            place = connection.scalar(sa.select(sa.func.max(t.c.place))) or 0
            for entry in entries:
                same = t.c.item_id == entry["item_id"]
                chosen = sa.select(t.c.attributes, t.c.available).where(same)
                stored = connection.execute(chosen).first()
                named, available = ("{}", True) if stored is None else stored
                if entry["item_id"] not in known:  # deleted before the start: it begins anew
                    named = "{}"
                if entry["available"] is not None:
                    available = entry["available"]
                values = {
                    "attributes": orjson.dumps(
                        {**orjson.loads(named), **entry["attributes"]}
                    ).decode(),
                    "available": available,
                    "deleted": deleted,
                }
                if stored is None:
                    place += 1
                    new = {"item_id": entry["item_id"], "place": place, **values}
                    connection.execute(t.insert().values(**new))
                else:
                    connection.execute(t.update().where(same).values(**values))

        self.store.write(write).result()

    def with_stored_items(
        self, recommender: Recommender, name: str, catalogue_version: int
    ) -> Snapshot:
        """A bundle with everything that was told about items since, as far as its columns go."""
        snapshot = Snapshot.of(recommender, name=name, catalogue_version=catalogue_version)
        t = tables.items
        with self.store.reading() as connection:
            rows = connection.execute(sa.select(t).order_by(t.c.place)).mappings().all()
        columns, row_of = recommender.items.attributes.columns, recommender.items.row_of
        entries = [
            {
                "item_id": row["item_id"],
                "available": row["available"],
                "attributes": {
                    k: v for k, v in orjson.loads(row["attributes"]).items() if k in columns
                },
            }
            for row in rows
            if not row["deleted"] or row["item_id"] in row_of
        ]
        if entries:
            snapshot = snapshot.with_items(entries)
        gone = [row["item_id"] for row in rows if row["deleted"] and row["item_id"] in row_of]
        return snapshot.without(gone) if gone else snapshot

    # ---------------------------------------------------------------- bundles

    @contextmanager
    def unchanged(self) -> Iterator[Snapshot]:
        """The current snapshot, which nothing replaces meanwhile."""
        with self._changing:
            yield self.current

    def listed(self) -> list[dict[str, Any]]:
        """The bundles of the models folder."""
        current, found = self.current, []
        folder = self.settings.models_folder
        for path in sorted(folder.iterdir()):
            if not artifact.FILE_NAME.fullmatch(path.name) or path.is_symlink():
                continue
            if not (path / artifact.MANIFEST).is_file():
                continue
            version = artifact.file_hash(path / artifact.MANIFEST)[:12]
            previous = self._previous
            found.append(
                {
                    "name": path.name,
                    "version": version,
                    "active": (path.name, version) == (current.name, current.version),
                    "previous": previous is not None
                    and (path.name, version) == (previous[0], str(previous[1].content_hash)[:12]),
                }
            )
        return found

    def manifest_named(self, name: str) -> Path:
        """The manifest of a bundle of the models folder. Problem `unknown_model`."""
        path = self.settings.models_folder / name / artifact.MANIFEST
        if not artifact.FILE_NAME.fullmatch(name) or not path.is_file():
            raise Problem("unknown_model", f"the models folder holds no bundle {name!r}")
        return path

    def loaded(self, name: str) -> Recommender:
        """A bundle of the models folder, checked and warm. Problem `broken_model`."""
        path = self.manifest_named(name).parent
        try:
            recommender = load(path, device=self.settings.device)
            warm_up(recommender)
        except Exception as error:
            log.warning("models: %s was refused: %r", name, error)
            detail = str(error) if isinstance(error, SidrecError) else type(error).__name__
            raise Problem("broken_model", f"{name}: {detail}") from error
        return recommender

    def activate(self, name: str) -> Snapshot:
        """Serve another bundle of the models folder.

        Problem `broken_model`, or of `require_fit`: the old one stays. One that is served already
        is loaded anew, and the one before it stays that of a roll back.
        """
        recommender = self._compiled(self.loaded(name), name)
        with self._changing:
            served = (self.current.name, self._base)
            again = (name, recommender.content_hash) == (served[0], self._base.content_hash)
            return self._publish(recommender, name, self._previous if again else served)

    def _compiled(self, recommender: Recommender, name: str) -> Recommender:
        """The same, searched by a compiled call where the settings ask for it and it has one."""
        if not self.settings.compiled:
            return recommender
        try:
            made = recommender.with_compiled()
            warm_up(made)
        except SidrecError as error:
            log.warning("models: %s is not compiled, PyTorch answers: %s", name, error)
            return recommender
        self.replaced.let_go([recommender], [made])
        return made

    def roll_back(self) -> Snapshot:
        """Serve the bundle that was served before this one."""
        with self._changing:
            if self._previous is None:
                raise Problem(
                    "no_previous_model",
                    hint="a server remembers one model, since it started; activate by name",
                )
            name, recommender = self._previous
            return self._publish(recommender, name, (self.current.name, self._base))

    def _publish(
        self, recommender: Recommender, name: str, previous: tuple[str, Recommender] | None
    ) -> Snapshot:
        version = self.current.catalogue_version + 1
        try:
            snapshot = self.with_stored_items(recommender, name, version)
        except Problem as problem:
            raise Problem("broken_model", f"{name}: stored items: {problem.detail}") from problem
        self.require_fit(snapshot)
        row = {
            "started_with": self._started_with,
            "name": name,
            "hash": str(recommender.content_hash),
        }
        self.store.write(lambda c: c.execute(tables.activations.insert().values(**row))).result()
        before = self._held()
        self.current, self._base, self._previous = snapshot, recommender, previous
        self.replaced.let_go(before, self._held())
        return snapshot

    def _serve(self, snapshot: Snapshot) -> None:
        """Publish a snapshot of the same bundle."""
        before = self._held()
        self.current = snapshot
        self.replaced.let_go(before, self._held())

    def _held(self) -> list[Recommender]:
        previous = [] if self._previous is None else [self._previous[1]]
        return [self.current.recommender, self._base, *previous]

    def _last_activated(self) -> Path | None:
        """The bundle to go on with after a restart with the same arguments."""
        t = tables.activations
        last = sa.select(t).order_by(t.c.id.desc()).limit(1)
        with self.store.reading() as connection:
            row = connection.execute(last).mappings().first()
        if row is None or row["started_with"] != self._started_with:
            return None
        path = self.settings.models_folder / row["name"]
        manifest = path / artifact.MANIFEST
        if not manifest.is_file() or artifact.file_hash(manifest) != row["hash"]:
            log.warning("models: %s, activated last, is gone or changed", row["name"])
            return None
        return path


def manifest_of(bundle: Path) -> Path:
    """The manifest of a bundle. ArtifactError where there is none."""
    path = bundle / artifact.MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{bundle} is not a bundle: no {artifact.MANIFEST} in it")
    return path


def fill_tables(recommender: Recommender) -> None:
    """Make what the first answer over a larger catalogue needs, so that no request waits for it."""
    history = np.argsort(-recommender.train_counts_N, kind="stable")[:1]
    try:
        recommender.candidates(Histories.from_lists([history]), 1)
    except Exception as error:  # requests get popular items
        log.error("models: no answer over the larger catalogue\n%s", places_of(error))


def warm_up(recommender: Recommender) -> None:
    """Answer once by every way that requests take, so that the first one is not slow."""
    popular = np.argsort(-recommender.train_counts_N, kind="stable")[:3]
    history = [str(item) for item in recommender.items.item_ids[popular]]
    for exclude in ((), history[:1]):
        frame = recommender.recommend(history, k=2, exclude=exclude)
        if not frame["score"].is_finite().all():
            raise ArtifactError("a warm-up request got scores that are no numbers")
