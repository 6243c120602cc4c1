"""A real server: started by the command, killed, started again."""

from __future__ import annotations

import http.client
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import polars as pl
import pytest

from sidrec.errors import ServiceError
from sidrec.serving import run
from sidrec.serving.events import export_parquet
from sidrec.serving.settings import ServeSettings
from sidrec.serving.store import Store

WRITER = """
import sys, threading
from sidrec.serving.events import EventLog
from sidrec.serving.schemas import Event
from sidrec.serving.settings import ServeSettings
from sidrec.serving.store import Store

settings = ServeSettings(bundle=".")
log = EventLog(Store(sys.argv[1]), settings)

def send(sender):
    for number in range(10**6):
        ids = [f"{sys.argv[2]}-{sender}-{number}-{i}" for i in range(5)]
        log.add([Event(event_id=i, user_id="u", item_id="x") for i in ids]).result()
        sys.stdout.write("".join(f"{i}\\n" for i in ids)); sys.stdout.flush()

for sender in range(3):
    threading.Thread(target=send, args=(sender,)).start()
"""
"""What serves events, without the model: starts fast enough to be killed several times."""


def kept_in(store):
    opened = Store(store)
    with opened.reading() as connection:
        kept = [row[0] for row in connection.exec_driver_sql("select event_id from events")]
    opened.close()
    return kept


def test_kill_9_of_the_writer_loses_nothing_acknowledged(store_url):
    acknowledged = set()
    for cycle in range(4):
        words = [sys.executable, "-c", WRITER, store_url, str(cycle)]
        writer = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        lines = [writer.stdout.readline() for _ in range(100 + 37 * cycle)]
        writer.kill()
        lines += writer.stdout.read().split("\n")[:-1]  # the last may be cut short
        writer.wait()
        writer.stdout.close()
        acknowledged |= {line.strip() for line in lines}
    kept = kept_in(store_url)
    assert len(kept) == len(set(kept))
    assert len(acknowledged) > 400 and acknowledged <= set(kept)


def end_while_a_commit_waits(running, store, event):
    """SIGTERM while another program holds up the commit of an event: it is answered first."""
    said, other = [], sqlite3.connect(store, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    def send():
        said.append(running.ask("POST", "/v1/events", {"events": [event]}))

    sender = threading.Thread(target=send)
    sender.start()
    time.sleep(0.3)
    ending = threading.Thread(target=lambda: said.append(running.end()))
    ending.start()
    time.sleep(0.5)
    assert not said
    with pytest.raises(OSError):
        running.ask("GET", "/livez")  # nobody else comes in
    other.execute("COMMIT")
    other.close()
    sender.join(60)
    ending.join(60)
    assert (said[0][0], said[0][1]["accepted"], said[1]) == (200, 1, 0)


def test_kill_9_of_the_server_loses_nothing_acknowledged(server, bundles, tmp_path):
    """Then the same batches are sent again, as a sender does that got no answer; then SIGTERM."""
    store, item = tmp_path / "s.sqlite", bundles.ids[0]
    running, enough = server(bundles.first, store), threading.Event()
    acknowledged, batches = [], []

    def batch_of(sender, number):
        return [
            {"event_id": f"{sender}-{number}-{i}", "user_id": f"u{sender}", "item_id": item}
            for i in range(7)
        ]

    def send(sender):
        for number in range(10**6):
            batch = batch_of(sender, number)
            batches.append(batch)
            try:
                status, _ = running.ask("POST", "/v1/events", {"events": batch})
            except (OSError, http.client.HTTPException):  # before the answer, or within it
                return
            assert status == 200
            acknowledged.append(batch)
            if len(acknowledged) > 20:
                enough.set()

    senders = [threading.Thread(target=send, args=(n,)) for n in range(3)]
    for thread in senders:
        thread.start()
    assert enough.wait(120)
    running.end(signal.SIGKILL)
    for thread in senders:
        thread.join()
    again = server(bundles.first, store)
    for batch in acknowledged:
        said = again.ask("POST", "/v1/events", {"events": batch})[1]
        assert (said["accepted"], said["duplicates"]) == (0, 7)
    for batch in batches:
        assert again.ask("POST", "/v1/events", {"events": batch})[0] == 200
    assert again.ask("GET", "/v1/users/u0/history")[1]["items"][0] == item
    with pytest.raises(ServiceError, match="in use by another server"):
        Store(f"sqlite:///{store}")
    late = {"event_id": "late", "user_id": "u0", "item_id": item}
    end_while_a_commit_waits(again, store, late)
    kept = kept_in(f"sqlite:///{store}")
    assert len(batches) >= len(acknowledged) > 20
    sent = [event["event_id"] for batch in [*batches, [late]] for event in batch]
    assert sorted(kept) == sorted(sent)
    opened = Store(f"sqlite:///{store}")
    everything = export_parquet(opened, tmp_path / "events.parquet", quarantined=True)
    assert everything == len(kept)  # a fast machine sends more than the cap of a user lets count
    opened.close()
    table = pl.read_parquet(tmp_path / "events.parquet")
    assert set(table["item_id"]) == {item} and table["timestamp"].min() > 1e15


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "API keys are needed"),
        (["--port", "70000"], "port must be in"),
        (["--keys", "missing.toml"], "not a readable TOML file"),
        (["--store", "mysql://u:secret@h/db"], "must be sqlite or postgresql, got mysql"),
        (["--store", "postgresql+pg8000://u:secret@h/db"], "sidrec[postgres]"),
        (["--store", "postgresql://u:secret@127.0.0.1:1/db"], "cannot be opened"),
        (["--store", "what://u:secret@h/db"], "must be sqlite or postgresql, got what"),
        (["--store", "://secret"], "no database URL"),
    ],
)
def test_what_cannot_be_served_is_one_line_without_secrets(words, said, bundles, tmp_path, capfd):
    from sidrec import cli

    with pytest.raises(SystemExit) as stop:
        cli.main(["serve", str(bundles.first), *words])
    err = capfd.readouterr().err
    assert stop.value.code in (1, 2) and said in err and "secret" not in err


def test_bodies_do_not_wait_for_the_acknowledgement_of_their_headers(monkeypatch):
    seen = []

    class Server:
        def __init__(self, config):
            pass

        def run(self, sockets):
            seen.extend(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for s in sockets)

    monkeypatch.setattr(run.uvicorn, "Server", Server)
    monkeypatch.setattr(run, "Room", lambda service: None)
    app = SimpleNamespace(state=SimpleNamespace(service=None))
    monkeypatch.setattr(run, "create_app", lambda settings: app)
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    run.serve(ServeSettings(bundle=".", port=0), lambda url: None)
    assert seen == [1]
