from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest
import sqlalchemy as sa

from sidrec.serving.events import export_parquet
from sidrec.serving.schemas import Event

MARKER = "marker-7f3a"


def event(number, user="ann", item="x", **more):
    return {"event_id": f"{user}-{number}", "user_id": user, "item_id": item, **more}


def send(client, *events, status=200):
    answer = client.post("/v1/events", json={"events": list(events)})
    assert answer.status_code == status, answer.text
    return answer.json()


def test_events_count_once_and_enter_the_history_at_the_next_request(serving, store_url, bundles):
    a, b, c = bundles.ids[:3]
    with serving(store=store_url) as client:
        assert client.get("/v1/users/ann/history").json()["items"] == []
        said = send(client, event(1, item=a), event(2, item=b), event(1, item=c))
        assert (said["accepted"], said["duplicates"]) == (2, 1)
        assert send(client, event(2, item=c))["accepted"] == 0
        assert client.get("/v1/users/ann/history").json()["items"] == [a, b]
        body = client.post("/v1/recommend", json={"user_id": "ann", "k": 60}).json()
        found = {item["item_id"] for item in body["items"]}
        assert {a, b} & found == set() and c in found
        by_history = client.post("/v1/recommend", json={"history": [a, b], "k": 60}).json()
        assert by_history["items"] == body["items"]
        send(client, event(3, item=c, timestamp="2001-01-01T00:00:00Z"))
        assert client.get("/v1/users/ann/history").json()["items"] == [c, a, b]
        send(client, event(4, item="z", event_type="impression"))
        assert client.get("/v1/users/ann/history").json()["items"] == [c, a, b]
    with serving(store=store_url) as client:
        assert client.get("/v1/users/ann/history").json()["items"] == [c, a, b]


def test_times_are_read_in_every_form_and_the_far_future_is_refused(serving):
    with serving() as client:
        for number, stamp in enumerate((1e9, 1e12, "2001-09-09T01:46:40", "2001-09-09T01:46:40Z")):
            send(client, event(number, timestamp=stamp))
        times = {e["time_us"] for e in client.get("/v1/users/ann").json()["events"]}
        assert times == {10**15}
        for stamp in ("2999-01-01", -5, "soon", 1e300, "0001-01-01T00:00:00+14:00"):
            assert send(client, event(9, timestamp=stamp), status=422)["code"] == "invalid_request"


def test_too_many_events_of_one_user_are_kept_but_count_for_nothing(
    serving, store_url, bundles, tmp_path
):
    with serving(store=store_url, user_events_per_hour=5) as client:
        said = send(client, *[event(i, item=bundles.ids[i]) for i in range(8)])
        assert (said["accepted"], said["quarantined"]) == (8, 3)
        assert client.get("/v1/users/ann/history").json()["items"] == bundles.ids[:5]
        assert send(client, event(1, user="bob"))["quarantined"] == 0
        assert len(client.get("/v1/users/ann").json()["events"]) == 8
        store = client.service.store
        assert export_parquet(store, tmp_path / "e.parquet") == 6
        assert export_parquet(store, tmp_path / "e.parquet", quarantined=True) == 9


def test_a_flood_of_fresh_users_lifts_nobody_s_cap(serving, bundles, monkeypatch):
    monkeypatch.setattr("sidrec.serving.events.MAX_COUNTED_USERS", 100)
    with serving(user_events_per_hour=5) as client:
        assert send(client, *[event(i) for i in range(5)])["quarantined"] == 0
        for number in range(5):
            send(client, *[event(1, user=f"f{number}-{i}") for i in range(150)])
            assert len(client.service.events._of_hour) <= 100
            assert send(client, event(9 + number), event(99, user="bob"))["quarantined"] == 1
        assert client.get("/v1/users/ann/history").json()["items"] == ["x"] * 5


def test_events_of_others_move_no_list(serving, bundles):
    """Popularity is that of the training data: a crowd of fake users lifts no item."""
    worst = bundles.ids[int(bundles.recommender.train_counts_N.argmin())]
    cold = {"user_id": "who", "k": 60}
    known = {"history": bundles.history, "k": 60}
    with serving() as client:
        before = [client.post("/v1/recommend", json=b).json()["items"] for b in (cold, known)]
        assert before[0][0]["item_id"] != worst
        for user in range(20):
            send(client, *[event(i, user=f"fake{user}", item=worst) for i in range(50)])
        after = [client.post("/v1/recommend", json=b).json()["items"] for b in (cold, known)]
        assert after == before


def test_an_erased_user_is_in_no_table_and_no_file(serving, store_url, bundles, tmp_path):
    """Nor in quarantine or memory; PostgreSQL's own files are out of reach."""
    with serving(store=store_url, user_events_per_hour=15) as client:
        said = send(client, *[event(i, user=MARKER, item=bundles.ids[i]) for i in range(20)])
        assert said["quarantined"] == 5
        send(client, event(1, user="bob"))
        client.post("/v1/recommend", json={"user_id": MARKER})
        assert client.delete(f"/v1/users/{MARKER}").json() == {"user_id": MARKER, "events": 20}
        events = client.service.events
        assert MARKER not in str((events._histories, events._of_hour))
        assert client.get(f"/v1/users/{MARKER}/history").json()["items"] == []
        assert client.get(f"/v1/users/{MARKER}").json()["events"] == []
        with client.service.store.reading() as connection:
            for table in sa.inspect(connection).get_table_names():
                rows = connection.execute(sa.text(f"select * from {table}")).all()
                assert MARKER not in str(rows)
        assert MARKER not in client.get("/metrics").text
        export_parquet(client.service.store, tmp_path / "e.parquet", quarantined=True)
        for path in tmp_path.iterdir():
            assert MARKER.encode() not in path.read_bytes(), path
        assert len(client.get("/v1/users/bob").json()["events"]) == 1


def test_old_events_are_deleted_after_the_retention(serving, store_url):
    with serving(store=store_url, retention_days=2) as client:
        send(client, event(1), event(2), event(3, user="bob"))
        old = sa.text("update events set received_us = 0 where user_id = 'ann'")
        client.service.store.write(lambda connection: connection.execute(old)).result()
        assert client.get("/v1/users/ann/history").json()["items"] == ["x", "x"]
        assert client.service.events.sweep() == 2
        assert client.get("/v1/users/ann").json()["events"] == []
        assert client.get("/v1/users/ann/history").json()["items"] == []
        assert len(client.get("/v1/users/bob").json()["events"]) == 1


def test_many_senders_at_once_share_commits_and_lose_nothing(serving, store_url, bundles):
    with serving(store=store_url) as client:
        commits = []
        client.service.store.on_commit = lambda seconds, size: commits.append(size)

        def one(sender):
            for number in range(20):
                send(client, event(number, user=f"u{sender}", item=bundles.ids[number]))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(8)))
        for sender in range(8):
            found = client.get(f"/v1/users/u{sender}/history").json()["items"]
            assert found == bundles.ids[:20]
        assert sum(commits) == 160 > len(commits)


def test_while_nothing_can_be_written_events_are_refused_and_recommendations_go_on(
    serving, bundles
):
    with serving() as client:
        store = client.service.store
        send(client, event(1, item=bundles.ids[0]))

        def full(*_):
            raise sa.exc.OperationalError("insert", {}, Exception("disk full"))

        insert, store.insert_events = store.insert_events, lambda rows: full
        problem = send(client, event(2), status=503)
        assert problem["code"] == "store_unavailable" and "event_id" in problem["hint"]
        answer = client.post("/v1/recommend", json={"user_id": "ann"}).json()
        assert answer["items"] and not answer["degraded"]
        store.insert_events = insert
        assert send(client, event(2))["accepted"] == 1
        store.engine.dispose()
        reading, store.engine.connect = store.engine.connect, full
        answer = client.post("/v1/recommend", json={"user_id": "who"}).json()
        assert answer["degraded_reason"] == "store_unavailable" and answer["items"]
        store.engine.connect = reading


def test_the_export_reads_back_as_interactions(serving, bundles, tmp_path):
    with serving() as client:
        rows = [event(i, user=f"u{i % 3}", item=bundles.ids[i % 5], weight=0.5) for i in range(30)]
        send(client, *rows)
        export_parquet(client.service.store, tmp_path / "e.parquet")
    import sidrec

    data = sidrec.read(tmp_path / "e.parquet")
    assert len(data.interactions) == 30
    assert pl.read_parquet(tmp_path / "e.parquet")["weight"].to_list() == [0.5] * 30


@pytest.mark.parametrize("count", [0, 1001])
def test_a_batch_has_one_to_a_thousand_events(shared, count):
    rows = [event(i) for i in range(count)]
    assert send(shared, *rows, status=422)["errors"][0]["field"] == "events"


def test_a_user_id_may_end_as_a_route_does(listening):
    """Over a real socket: the test client decodes paths twice."""
    from urllib.parse import quote
    from urllib.request import Request, urlopen

    def ask(path, method="GET"):
        with urlopen(Request(f"{server.url}/v1/users/{path}", method=method)) as answer:
            return json.load(answer)

    with listening() as server:
        add = server.service.events.add
        add([Event(event_id="ann", user_id="ann", item_id="anns")]).result()
        for user in ("ann/history", "a/b", "/history", "ann%2Fhistory", "history"):
            add([Event(event_id=user, user_id=user, item_id="theirs")]).result()
            path = quote(user, safe="")
            assert [event["user_id"] for event in ask(path)["events"]] == [user]
            assert ask(f"{path}/history") == {"user_id": user, "items": ["theirs"]}
            assert ask("ann/history") == {"user_id": "ann", "items": ["anns"]}
            assert ask(path, "DELETE") == {"user_id": user, "events": 1}
        assert ask("a/b/history")["user_id"] == "a/b"
        assert len(ask("ann")["events"]) == 1


def test_a_batch_with_one_fault_keeps_nothing(shared):
    send(shared, event(1, user="eve"), event(2, user="eve", item=""), status=422)
    assert shared.get("/v1/users/eve").json()["events"] == []


def test_a_long_export_of_a_user_goes_on_where_it_ended(serving, store_url, monkeypatch):
    monkeypatch.setattr("sidrec.serving.events.MAX_EXPORTED", 3)
    with serving(store=store_url) as client:
        send(client, *[event(i) for i in range(7)], event(1, user="bob"))
        pages, last = [], 0
        while not pages or pages[-1]["truncated"]:
            pages.append(client.get(f"/v1/users/ann?after={last}").json())
            last = pages[-1]["events"][-1]["id"]
        found = [e["event_id"] for page in pages for e in page["events"]]
        assert found == [f"ann-{i}" for i in range(7)] and len(pages) == 3
        assert client.get("/v1/users/ann?after=-1").status_code == 422


def test_events_are_exported_while_the_server_runs(serving, store_url, tmp_path, capfd):
    from sidrec import cli

    with serving(store=store_url) as client:
        send(client, event(1), event(2))
        with pytest.raises(SystemExit) as stop:
            cli.main(["export-events", store_url, str(tmp_path / "e.parquet")])
        assert stop.value.code == 0
        assert send(client, event(3))["accepted"] == 1
    assert pl.read_parquet(tmp_path / "e.parquet")["user_id"].to_list() == ["ann", "ann"]
    assert "wrote 2 events" in capfd.readouterr().out


def test_a_file_that_is_no_store_is_not_exported_and_stays_as_it_is(tmp_path, capfd):
    import sqlite3

    from sidrec import cli

    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("create table mine (x)")
    other.close()
    with pytest.raises(SystemExit) as stop:
        cli.main(["export-events", str(path), str(tmp_path / "e.parquet")])
    assert stop.value.code == 1 and "no store that can be read" in capfd.readouterr().err
    with sqlite3.connect(path) as other:
        assert other.execute("select name from sqlite_master").fetchall() == [("mine",)]
    other.close()


def test_looking_for_old_events_does_not_hold_up_the_writer(serving):
    with serving(retention_days=2) as client:
        send(client, event(1))
        commits, store = [], client.service.store
        store.on_commit = lambda seconds, size: commits.append(size)
        assert client.service.events.sweep() == 0 and commits == []
