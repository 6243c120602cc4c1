"""The engine: requests wait in a bounded queue and are answered together by one thread.

The thread takes whatever waits, at most `max_batch`, and never waits for more: while it works, the
next batch gathers. Requests with equal rules and system are one batch of the recommender, each
history encoded once. A whole batch is answered from one snapshot. Past its deadline a request gets
popular items under its own rules, those of its segment first, marked degraded; so it does where
the model fails. Past its deadline, or once its client has gone, a request never reaches the model.

Requests share a batch only where that cannot change a list: same system, same filter, and a k that
makes the beam no wider. Rounding of batched sums is all that remains.

Cost:     a batch costs little more than its longest request.
Shapes:   B requests, N items, K returned items.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sidrec.recommender import POPULAR
from sidrec.serving.problems import Problem, places_of
from sidrec.serving.snapshot import Snapshot
from sidrec.types import PAD, Bools, Floats, Histories, Ints

log = logging.getLogger("sidrec.serving")
Hashable = tuple[Any, ...]
SEGMENT_ITEMS = 5
"""Newest items of a history whose first codes make its segment."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule and the available items that it removed."""

    kind: str
    removed: int
    filter: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Query:
    """What the recommender is asked, in catalogue rows of one snapshot."""

    rows_T: Ints
    """The history, oldest first."""
    k: int
    """Items to find; more than are returned where they are re-ranked."""
    system: str
    keep_N: Bools | None
    """Items that may be returned; None keeps all."""
    keep_key: Hashable
    """Equal where `keep_N` is."""
    exclude: Ints
    segment_N: Bools | None = None
    """Items of the segment, where the request names one; popularity prefers them."""
    rules: tuple[Rule, ...] = ()
    skipped: tuple[str, ...] = ()
    degraded: str | None = None
    """Why this query is less than was asked for."""

    def allowed(self, snapshot: Snapshot) -> int:
        """Items that the rules leave."""
        keep_N = snapshot.available_N if self.keep_N is None else self.keep_N
        return int(keep_N.sum()) - int(keep_N[self.exclude].sum())


@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """What the recommender answered, best first."""

    snapshot: Snapshot
    query: Query
    rows_K: Ints
    scores_K: Floats
    source: str
    segment_N: Bools | None = None
    """Items that came first because they are of the segment."""
    degraded: str | None = None
    """Why this is less than was asked for."""


@dataclass(eq=False)
class Work:
    """One request in the queue: something to look up together, or a call of its own."""

    prepare: Callable[[Snapshot], Query] | None
    finish: Callable[..., Any]
    """Of what was found, or without `prepare` of the snapshot: the body of the answer."""
    deadline: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    query: Query | None = field(default=None)


class Engine:
    """The queue and its thread."""

    def __init__(
        self,
        current: Callable[[], Snapshot],
        *,
        max_queue: int = 128,
        max_wait_seconds: float = math.inf,
        max_batch: int = 32,
    ) -> None:
        self.current, self.max_batch = current, max_batch
        self.max_queue, self.max_wait_seconds = max_queue, max_wait_seconds
        self.on_batch: Callable[[int, float], None] = lambda size, seconds: None
        self._queue: deque[Work] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._busy = 0
        self._seconds_each = 0.0
        self._thread = threading.Thread(target=self._run, name="sidrec-engine", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    async def recommend(
        self,
        prepare: Callable[[Snapshot], Query],
        finish: Callable[[Found], Any],
        timeout_seconds: float,
    ) -> Any:
        """`finish` of what `prepare`'s query finds, or of popular items after the timeout.

        A request whose time is over already never enters the queue.
        """
        if timeout_seconds > 0:
            work = self._submit(prepare, finish, timeout_seconds)
            try:
                async with asyncio.timeout(timeout_seconds):
                    return await work.future
            except TimeoutError:
                pass
        snapshot = self.current()
        return finish(popular(snapshot, prepare(snapshot), "deadline"))

    async def call(self, run: Callable[[Snapshot], Any], timeout_seconds: float) -> Any:
        """`run` of the snapshot, on the engine's thread. Problem `overloaded` at the timeout."""
        work = self._submit(None, run, timeout_seconds)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await work.future
        except TimeoutError:
            raise Problem("overloaded", "the answer took longer than timeout_ms") from None

    @property
    def busy(self) -> int:
        """Requests that are being answered."""
        return self._busy

    def full(self, waiting: int, seconds: float = math.inf) -> bool:
        """Whether one more may not wait behind `waiting` others, or would for over `seconds`.

        How long is told from the last batches. Behind nobody there is always a place, or one slow
        batch would shut the queue for good.
        """
        if waiting >= self.max_queue:
            return True
        expected = (waiting + self._busy) * self._seconds_each
        return waiting > 0 and expected > min(seconds, self.max_wait_seconds)

    def require_room(self, timeout_seconds: float = math.inf) -> None:
        """Problem `overloaded` where too many wait, or so many that a request would come late."""
        waiting = len(self._queue)
        if self.full(waiting, timeout_seconds):
            raise Problem(
                "overloaded",
                f"{waiting} requests wait already",
                hint="come back after Retry-After seconds",
            )

    def stop(self) -> None:
        """Answer what waits, then end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    # ---------------------------------------------------------------- inside

    def _submit(
        self,
        prepare: Callable[[Snapshot], Query] | None,
        finish: Callable[..., Any],
        timeout_seconds: float,
    ) -> Work:
        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + timeout_seconds
        work = Work(prepare, finish, deadline, loop, loop.create_future())
        with self._wake:
            if self._stopping:
                raise Problem("not_ready", "the server is stopping")
            self.require_room(timeout_seconds)
            self._queue.append(work)
            self._wake.notify()
        return work

    def _run(self) -> None:
        while True:
            with self._wake:
                self._busy = 0
                while not self._queue and not self._stopping:
                    self._wake.wait()
                if not self._queue:
                    return
                live = self._next_batch()
                self._busy = len(live)
            start = time.perf_counter()
            if live:
                try:
                    self._answer(live)
                except Exception as error:  # the thread must outlive whatever a request does
                    log.error("engine: a batch of %d failed\n%s", len(live), places_of(error))
                    _settle([(w, None, Problem("internal")) for w in live])
                seconds = time.perf_counter() - start
                each = seconds / len(live)
                self._seconds_each += 0.1 * (each - self._seconds_each)
                self.on_batch(len(live), seconds)

    def _next_batch(self) -> list[Work]:
        """What waits, at most `max_batch`; past its deadline or without a client it takes no place.

        Called with the lock held.
        """
        now, live = time.monotonic(), []
        while self._queue and len(live) < self.max_batch:
            work = self._queue.popleft()
            if work.deadline > now and not work.future.cancelled():
                live.append(work)
        return live

    def _answer(self, batch: Sequence[Work]) -> None:
        snapshot = self.current()  # one for the whole batch
        groups: dict[Hashable, list[Work]] = {}
        for work in batch:
            if work.prepare is None:
                _settle([_finished(work, snapshot)])
                continue
            try:
                query = work.query = work.prepare(snapshot)
            except Problem as problem:
                _settle([(work, None, problem)])
                continue
            groups.setdefault(_group_key(snapshot, query), []).append(work)
        for members in groups.values():
            queries = [w.query for w in members if w.query is not None]
            found = look_up(snapshot, queries)
            _settle([_finished(w, f) for w, f in zip(members, found, strict=True)])


def _finished(work: Work, value: Any) -> tuple[Work, Any, Exception | None]:
    try:
        return work, work.finish(value), None
    except Exception as error:
        return work, None, error


def _settle(results: Sequence[tuple[Work, Any, Exception | None]]) -> None:
    """Hand results to the loops that wait for them, one wake-up a loop."""
    loops = {id(work.loop): work.loop for work, _, _ in results}
    for loop in loops.values():
        mine = [result for result in results if result[0].loop is loop]
        loop.call_soon_threadsafe(_resolve, mine)


def _resolve(results: Sequence[tuple[Work, Any, Exception | None]]) -> None:
    for work, value, error in results:
        if work.future.done():
            continue
        if error is None:
            work.future.set_result(value)
        else:
            work.future.set_exception(error)


def _group_key(snapshot: Snapshot, query: Query) -> Hashable:
    """Equal for queries that one batch may answer without changing any list."""
    recommender = snapshot.recommender
    if query.system == "hybrid" and recommender.hybrid is not None:
        simple = query.k <= recommender.hybrid.pool
    elif query.system == recommender.generator.name:
        simple = query.k <= recommender.beam_width
    else:
        simple = query.system in recommender.scorers
    simple = simple and not recommender.new_item_share
    return (query.system, query.keep_key, 0 if simple else query.k, not len(query.rows_T))


def look_up(snapshot: Snapshot, queries: Sequence[Query]) -> list[Found]:
    """What the recommender finds for queries of one group; popular items where it fails."""
    first = queries[0]
    source = first.system if len(first.rows_T) else POPULAR
    if source == POPULAR:
        return [popular(snapshot, query, None) for query in queries]
    try:
        found = snapshot.recommender.candidates(
            Histories.from_lists([query.rows_T for query in queries]),
            max(query.k for query in queries),
            system=source,
            exclude=[query.exclude for query in queries],
            keep_N=first.keep_N,
        )
    except Exception as error:
        said = "engine: system %s failed; answered with popular items\n%s"
        log.error(said, source, places_of(error))
        return [popular(snapshot, query, "engine_error") for query in queries]
    answers = []
    for query, rows_K, scores_K in zip(queries, found.rows_BK, found.scores_BK, strict=True):
        rows_K, scores_K = rows_K[: query.k], scores_K[: query.k]
        real = rows_K != PAD
        answers.append(
            Found(
                snapshot=snapshot,
                query=query,
                rows_K=rows_K[real],
                scores_K=scores_K[real],
                source=source,
            )
        )
    return answers


def popular(snapshot: Snapshot, query: Query, degraded: str | None) -> Found:
    """Popular items under the query's rules: first those of its segment, then the others.

    The segment is what the request names. Where popular items stand in for others it is else the
    items whose semantic ID begins with the same code as one of the newest items of the history.
    """
    segment_N = query.segment_N
    if segment_N is None and degraded and len(query.rows_T):
        segment_N = snapshot.like(query.rows_T[-SEGMENT_ITEMS:])
    rows_K, scores_K = snapshot.popular(query.k, query.keep_N, query.exclude, segment_N)
    return Found(
        snapshot=snapshot,
        query=query,
        rows_K=rows_K,
        scores_K=scores_K,
        source=POPULAR,
        segment_N=segment_N,
        degraded=degraded,
    )


def seconds_of(timeout_ms: int | None, default_ms: int) -> float:
    """The time a request may take."""
    value = default_ms if timeout_ms is None else timeout_ms
    return math.nextafter(value / 1000, math.inf)
