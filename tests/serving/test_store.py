"""The store when its disk is full, its database is gone, or the clock jumps."""

from __future__ import annotations

import resource
import sqlite3
import time
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from sidrec.errors import ServiceError
from sidrec.serving.clock import CLOCK
from sidrec.serving.store import Store, meta

HOUR_NS = 3600 * 10**9


def batch(number, size=5):
    return [
        {"event_id": f"{number}-{i}", "user_id": f"u{number % 3}", "item_id": "x" * 200}
        for i in range(size)
    ]


def send(client, events):
    return client.post("/v1/events", json={"events": events})


@contextmanager
def files_no_larger_than(num_bytes):
    """As on a full disk: this process can make no file longer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_on_a_full_disk_nothing_is_acknowledged_and_recommendations_go_on(
    serving, bundles, tmp_path
):
    acknowledged, refused = [], []
    with serving() as client:
        send(client, batch(0))
        wal = tmp_path / "store.sqlite-wal"
        with files_no_larger_than(wal.stat().st_size + 100_000):
            for number in range(1, 200):
                answer = send(client, batch(number))
                if answer.status_code != 200:
                    break
                acknowledged.append(number)
            assert answer.status_code == 503 and answer.headers["retry-after"]
            assert answer.json()["code"] == "store_unavailable"
            refused = [number, number + 1]
            assert send(client, batch(number + 1, size=100)).status_code == 503
            for _ in range(40):  # a page may still fit: health writes until none does
                client.service.store.last_commit = 0
                if (health := client.get("/readyz").status_code) == 503:
                    break
            assert health == 503
            assert client.post("/v1/items", json={"items": [{"item_id": "n"}]}).status_code == 503
            assert client.get("/v1/items/n").status_code == 404
            assert client.delete("/v1/users/u1").status_code == 503
            body = client.post("/v1/recommend", json={"user_id": "u0", "history": bundles.history})
            assert body.status_code == 200 and not body.json()["degraded"]
            assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 200
        assert send(client, batch(refused[0])).json()["accepted"] == 5
        assert send(client, batch(refused[1], size=100)).json()["accepted"] == 100
        for number in acknowledged:
            assert send(client, batch(number)).json()["duplicates"] == 5
    assert len(acknowledged) > 3
    store = Store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    with store.reading() as connection:
        count = connection.exec_driver_sql("select count(*) from events").scalar()
        assert connection.exec_driver_sql("pragma integrity_check").scalar() == "ok"
    store.close()
    assert count == 5 * (1 + len(acknowledged)) + 105


def test_a_database_that_is_gone_for_a_while_loses_nothing(serving, cluster, bundles):
    url = cluster.database()
    with serving(store=url) as client:
        assert send(client, batch(1)).json()["accepted"] == 5
        assert client.get("/v1/users/u1/history").json()["items"] == ["x" * 200] * 5
        cluster.stop()
        try:
            answer = send(client, batch(2))
            assert answer.status_code == 503 and answer.json()["code"] == "store_unavailable"
            assert client.get("/readyz").status_code == 503
            assert client.get("/v1/users/u2/history").status_code == 503
            known = client.post("/v1/recommend", json={"user_id": "u1"}).json()
            unknown = client.post("/v1/recommend", json={"user_id": "u2"}).json()
            assert known["items"] and not known["degraded"]
            assert unknown["items"] and unknown["degraded_reason"] == "store_unavailable"
        finally:
            cluster.start()
        assert client.get("/readyz").status_code == 200
        assert send(client, batch(2)).json()["accepted"] == 5
        assert send(client, batch(1)).json()["duplicates"] == 5


def test_the_file_is_shorter_after_old_events_are_deleted(serving, tmp_path):
    path = tmp_path / "store.sqlite"

    def size():
        return path.stat().st_size

    with serving(retention_days=1) as client:
        service = client.service
        for number in range(12):
            answer = send(client, batch(number, size=1000))
            assert answer.status_code == 200, answer.text
        service.store.checkpoint()
        full = size()
        assert full > 3_000_000
        old = "update events set received_us = 0 where user_id in ('u0', 'u1')"
        service.store.write(lambda connection: connection.exec_driver_sql(old)).result()
        service.sweep()
        kept = service.events.export("u2")[0]
        assert len(kept) == 4000 and service.events.export("u1")[0] == []
        assert size() < 0.7 * full
        assert send(client, batch(2, size=1000)).json()["duplicates"] == 1000
    store = Store(f"sqlite:///{path}")
    with store.reading() as connection:
        assert connection.exec_driver_sql("pragma integrity_check").scalar() == "ok"
        assert connection.exec_driver_sql("select count(*) from events").scalar() == 4000
    store.close()


def test_a_store_of_before_keeps_its_size_and_goes_on(serving, tmp_path):
    with sqlite3.connect(tmp_path / "store.sqlite") as connection:
        connection.execute("create table before (x)")  # now it is too late for auto_vacuum
        connection.execute("insert into before values (zeroblob(4000000))")
    with serving() as client:
        client.service.store.write(lambda c: c.exec_driver_sql("drop table before")).result()
        client.service.sweep()
        assert (tmp_path / "store.sqlite").stat().st_size > 4_000_000
        assert send(client, batch(1)).json()["accepted"] == 5


def test_two_servers_never_share_a_store(store_url, monkeypatch):
    monkeypatch.setattr("sidrec.serving.databases.LOCK_SECONDS", 0.2)
    first = Store(store_url)
    with pytest.raises(ServiceError, match="in use by another server"):
        Store(store_url)
    first.close()
    Store(store_url).close()


def test_postgresql_commits_are_durable_even_where_its_default_is_not(cluster):
    url = cluster.database()
    store = Store(f"{url}&options=-c%20synchronous_commit%3Doff")
    with store.reading() as connection:
        assert connection.exec_driver_sql("show synchronous_commit").scalar() == "on"
    store.close()


def test_events_sent_again_after_a_failure_do_not_count_as_too_many(serving, bundles):
    import sqlalchemy as sa

    with serving(user_events_per_hour=8) as client:
        store = client.service.store

        def full(*_):
            raise sa.exc.OperationalError("insert", {}, Exception("disk full"))

        insert, store.insert_events = store.insert_events, lambda rows: full
        for _ in range(5):
            assert send(client, batch(1)).status_code == 503
        store.insert_events = insert
        for _ in range(5):
            assert send(client, batch(1)).json()["quarantined"] == 0
        said = send(client, batch(4)).json()
        assert (said["accepted"], said["quarantined"]) == (5, 2)


@pytest.mark.parametrize("hours", [-24 * 400, 24 * 400])
def test_a_clock_that_jumps_changes_no_order_and_lets_nothing_grow_old(
    serving, bundles, monkeypatch, hours
):
    with serving(retention_days=30, user_events_per_hour=4) as client:

        def one(number, **more):
            event = {"event_id": str(number), "user_id": "ann", "item_id": bundles.ids[number]}
            return send(client, [{**event, **more}]).json()

        assert one(0)["accepted"] == 1
        real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real() + hours * HOUR_NS)
        monkeypatch.setattr(time, "time", lambda: (real() + hours * HOUR_NS) / 1e9)
        assert one(1)["accepted"] == 1
        assert one(2, timestamp=CLOCK.now_us() / 1e6)["accepted"] == 1
        assert one(1)["duplicates"] == 1
        assert client.service.events.sweep() == 0
        monkeypatch.undo()
        assert one(3)["quarantined"] == 0
        assert one(4)["quarantined"] == 1
        assert client.get("/v1/users/ann/history").json()["items"] == bundles.ids[:4]
        assert abs(CLOCK.now_us() - time.time_ns() // 1000) < 60_000_000


def test_a_write_that_reads_first_waits_for_another_lock(tmp_path):
    """As items are written, while a checkpoint or a backup holds the database."""
    path = tmp_path / "store.sqlite"
    store = Store(f"sqlite:///{path}")

    def read_then_write(connection):
        names = connection.scalar(sa.select(sa.func.count()).select_from(meta))
        connection.execute(meta.insert().values(name="mine", value=str(names)))
        return names

    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    done = store.write(read_then_write)
    with pytest.raises(TimeoutError):
        done.result(timeout=0.3)
    other.execute("INSERT INTO meta VALUES ('theirs', '')")
    other.execute("COMMIT")
    assert done.result(timeout=20) == 2  # the schema's line and theirs
    store.close()


def test_only_this_user_may_read_the_store(serving, tmp_path):
    with serving() as client:
        send(client, batch(1))
        rights = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.glob("store.sqlite*")}
    assert set(rights) >= {"store.sqlite", "store.sqlite-wal"} and set(rights.values()) == {0o600}


def test_a_path_that_is_no_file_is_no_store(tmp_path):
    with pytest.raises(ServiceError, match="cannot be opened"):
        Store(f"sqlite:///{tmp_path}")


def test_an_erasure_that_leaves_the_user_in_the_log_is_not_acknowledged(
    serving, tmp_path, monkeypatch
):
    """As while another program reads the file, such as a backup."""
    monkeypatch.setattr("sidrec.serving.databases.BUSY_MS", 100)
    with serving() as client:
        send(client, batch(1))
        other = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM events").fetchone()
        assert client.delete("/v1/users/u1").status_code == 503
        assert b"u1" in (tmp_path / "store.sqlite-wal").read_bytes()
        other.close()
        assert client.delete("/v1/users/u1").status_code == 200
        for path in tmp_path.glob("store.sqlite*"):
            assert b"u1" not in path.read_bytes()
