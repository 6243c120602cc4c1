"""Work that stands still in one line, and what goes on beside it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

LATE_SECONDS = 10.0
"""What stands still goes on by itself then, so that a test fails rather than hangs."""


@contextmanager
def stands_still(lock):
    """Hold the lock; `held` is set until it is let go."""
    lock.acquire()
    held = threading.Event()
    held.set()

    def let_go():
        if held.is_set():
            held.clear()
            lock.release()

    timer = threading.Timer(LATE_SECONDS, let_go)
    timer.start()
    try:
        yield held
    finally:
        timer.cancel()
        let_go()


def wait_for(met):
    end = time.monotonic() + LATE_SECONDS
    while not met():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_changes_that_wait_for_each_other_hold_up_nothing_else_and_are_bounded(serving, bundles):
    with serving(max_waiting_changes=4) as client, ThreadPoolExecutor(16) as senders:
        service = client.service

        def change(number):
            entry = {"item_id": bundles.ids[number], "available": True}
            return client.post("/v1/items", json={"items": [entry]})

        with stands_still(service.models._changing) as held:
            sent = [senders.submit(change, number) for number in range(12)]
            wait_for(lambda: service.lines.changes._held == 12)  # 8 threads and 4 that wait
            service.store.last_commit = 0  # health writes, to see whether that works
            assert client.get("/readyz").status_code == 200
            assert client.get("/v1/users/nobody/history").json()["items"] == []
            answer = client.post("/v1/recommend", json={"user_id": "someone"}).json()
            assert answer["items"] and not answer["degraded"]
            assert client.get("/v1/users/ann").status_code == 200
            assert client.get("/v1/models").status_code == 200
            for refused in (change(20), client.delete(f"/v1/items/{bundles.ids[20]}")):
                assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
                assert refused.json()["code"] == "overloaded"
            assert held.is_set()
        assert [future.result().status_code for future in sent] == [200] * 12
        assert change(20).status_code == 200
        assert service.lines.changes._held == 0


@pytest.fixture
def slow_store(monkeypatch):
    """A client whose store gives no history before `gate` is set."""

    def of(client):
        gate, read = threading.Event(), client.service.events.history

        def history(user_id):
            gate.wait(LATE_SECONDS)
            return read(user_id)

        monkeypatch.setattr(client.service.events, "history", history)
        return gate

    return of


def test_a_history_that_cannot_be_read_in_time_is_answered_by_popular_items(
    serving, bundles, slow_store
):
    sent = {"event_id": "1", "user_id": "ann", "item_id": bundles.ids[0]}
    with serving() as client:
        client.post("/v1/events", json={"events": [sent]})
        gate, start, limit = slow_store(client), time.monotonic(), {"timeout_ms": 50}
        who = {"user_id": "ann", **limit}
        answer = client.post("/v1/recommend", json=who).json()
        assert (answer["degraded_reason"], len(answer["items"])) == ("deadline", 10)
        assert answer["items"][0]["source"] == "popularity"
        ranked = client.post("/v1/rank", json={**who, "items": bundles.ids[:3]}).json()
        assert (ranked["degraded_reason"], len(ranked["items"])) == ("deadline", 3)
        for path, more in (
            ("explain", {"item_id": bundles.ids[1]}), ("trace", {}), ("search", {"query": "x"}),
            ("recommend", {"dry_run": True}),
        ):  # fmt: skip
            refused = client.post(f"/v1/{path}", json={**who, **more})
            assert refused.status_code == 429, (path, refused.text)
        assert time.monotonic() - start < LATE_SECONDS / 2
        gate.set()
        wait_for(lambda: not client.service.lines.reads._held)
        assert client.get("/v1/users/ann/history").json()["items"] == [bundles.ids[0]]
        assert not client.post("/v1/recommend", json={"user_id": "ann"}).json()["degraded"]


def test_more_histories_than_can_wait_are_answered_by_popular_items_at_once(serving, slow_store):
    with serving(max_waiting_reads=1, timeout_ms=20_000) as client:
        gate, start = slow_store(client), time.monotonic()
        with ThreadPoolExecutor(9) as senders:
            ask = lambda number: client.post("/v1/recommend", json={"user_id": f"u{number}"})  # noqa: E731
            sent = [senders.submit(ask, number) for number in range(9)]
            wait_for(lambda: client.service.lines.reads._held == 9)
            assert ask(9).json()["degraded_reason"] == "store_unavailable"
            assert client.get("/v1/users/u9/history").status_code == 429
            assert time.monotonic() - start < LATE_SECONDS / 2
            gate.set()
            assert not any(future.result().json()["degraded"] for future in sent)


def test_more_that_ask_for_health_than_are_told_hear_that_it_is_not_well(serving, monkeypatch):
    with serving() as client, ThreadPoolExecutor(33) as askers:
        gate = threading.Event()
        monkeypatch.setattr(client.service, "ready", lambda: gate.wait(LATE_SECONDS))
        sent = [askers.submit(client.get, "/readyz") for _ in range(33)]
        wait_for(lambda: client.service.lines.health._held == 33)
        assert client.get("/readyz").status_code == 503
        assert client.get("/livez").status_code == 200
        assert client.get("/v1/users/nobody/history").status_code == 200
        gate.set()
        assert [future.result().status_code for future in sent] == [200] * 33


def test_a_bundle_that_loads_holds_up_nothing_else(serving, bundles, monkeypatch):
    with serving() as client, ThreadPoolExecutor(8) as senders:
        service, gate, load = client.service, threading.Event(), client.service.models.loaded
        monkeypatch.setattr(
            service.models, "loaded", lambda name: gate.wait(LATE_SECONDS) and load(name)
        )
        swap = {"json": {"name": "second"}}
        sent = [senders.submit(client.post, "/v1/models/activate", **swap) for _ in range(4)]
        wait_for(lambda: service.lines.models._held == 4)  # 2 threads and 2 that wait
        service.store.last_commit = 0
        assert client.get("/readyz").status_code == 200
        assert client.get("/v1/models").json()["active"]["name"] == "first"
        assert not client.post("/v1/recommend", json={"user_id": "someone"}).json()["degraded"]
        assert client.post("/v1/items", json={"items": [{"item_id": "new"}]}).status_code == 200
        assert not gate.is_set()
        gate.set()
        assert [future.result().status_code for future in sent] == [200] * 4
