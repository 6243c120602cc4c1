"""Many more requests than can be answered, over real sockets."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
import time
from pathlib import Path

import pytest

from sidrec.errors import ConfigError
from sidrec.serving.settings import ServeSettings


def test_more_than_can_be_answered_is_refused_at_once_and_leaves_nothing_behind(listening, bundles):
    """30 senders, soon back; the model stands still until 40 requests were refused."""
    body = json.dumps({"history": bundles.history, "k": 3}).encode()
    head = (
        b"POST /v1/recommend HTTP/1.1\r\nHost: s\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    accepted, refused, depths, enough_refused = [], [], [], threading.Event()

    async def send(address, enough):
        reader, writer = await asyncio.open_connection(*address)
        while len(accepted) < enough:
            writer.write(head + body)
            header = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(header.split(b"content-length: ")[1].split(b"\r\n")[0])
            answer = json.loads(await reader.readexactly(length))
            if header.startswith(b"http/1.1 200"):
                accepted.append(answer["degraded"])
            else:
                assert header.startswith(b"http/1.1 429") and b"retry-after: 1" in header
                refused.append(answer["code"])
                if len(refused) == 40:
                    enough_refused.set()
                await asyncio.sleep(0.05)
        writer.close()

    async def flood(server):
        await asyncio.gather(*(send(server.address, 20) for _ in range(30)))

    with listening(max_queue=8, max_batch=4, timeout_ms=60_000) as server:
        engine = server.service.engine
        answer, threads = engine._answer, threading.active_count()

        def slow(batch):
            depths.append(engine.depth)
            assert enough_refused.wait(60)
            answer(batch)

        engine._answer = slow
        asyncio.run(flood(server))
        assert set(refused) == {"overloaded"} and len(accepted) >= 20
        assert max(depths) <= 8
        assert not any(accepted)
        engine._answer, count = answer, len(accepted)
        asyncio.run(asyncio.wait_for(send(server.address, count + 3), 60))
        assert len(accepted) == count + 3 and not any(accepted)
        assert engine.depth == 0 and threading.active_count() <= threads + 2


def test_a_full_queue_refuses_before_it_reads(listening):
    with listening() as server:
        server.service.engine.max_queue = 0
        with socket.create_connection(server.address, timeout=20) as connection:
            head = b"POST /v1/recommend HTTP/1.1\r\nHost: s\r\nContent-Length: 900000\r\n\r\n"
            connection.sendall(head)  # and no body
            assert connection.recv(12) == b"HTTP/1.1 429"


def answers(connection):
    """Status line and headers, and the body, of each answer as it comes."""
    stream = connection.makefile("rb")
    while status := stream.readline():
        lines = iter(stream.readline, b"\r\n")
        headers = dict(line.decode().lower().strip().split(": ", 1) for line in lines)
        yield int(status.split()[1]), headers, stream.read(int(headers["content-length"]))


def asking(bundles, *extra):
    body = json.dumps({"history": bundles.history, "k": 3}).encode()
    lines = ["POST /v1/recommend HTTP/1.1", "Host: s", "Content-Type: application/json", *extra]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}\r\n\r\n"]).encode() + body


def test_a_refused_connection_goes_on(listening, bundles):
    """The body of a refused request is nobody's, and waiting afterwards is no fault."""
    with listening(read_seconds=1.5) as server:
        engine = server.service.engine
        with socket.create_connection(server.address, timeout=20) as connection:
            answer = answers(connection)
            room, engine.max_queue = engine.max_queue, 0
            request = asking(bundles)
            connection.sendall(request[:-5])
            status, headers, body = next(answer)
            assert status == 429 and len(headers["x-request-id"]) == 24
            assert headers["x-content-type-options"] == "nosniff"
            assert json.loads(body)["request_id"] == headers["x-request-id"]
            connection.sendall(request[-5:])
            engine.max_queue = room
            time.sleep(2.0)  # longer than a request may take to come in
            connection.sendall(request + request)
            for _ in range(2):
                status, _, body = next(answer)
                assert status == 200 and len(json.loads(body)["items"]) == 3
            engine.max_queue = 0
            connection.sendall(asking(bundles, "Connection: close"))
            status, headers, _ = next(answer)
            assert (status, headers["connection"]) == (429, "close")
            assert connection.recv(1) == b""
        counted = server.service.metrics.text().decode()
        assert 'sidrec_requests_total{route="/v1/recommend",status="429"} 2.0' in counted


def test_answers_come_in_order_where_a_later_request_finds_no_room(listening, bundles):
    """The first of two pipelined requests is still owed when the second is refused."""
    with listening() as server:
        engine, full = server.service.engine, threading.Event()
        answer = engine._answer

        def slow(batch):
            assert full.wait(60)
            answer(batch)

        engine._answer = slow
        with socket.create_connection(server.address, timeout=20) as connection:
            connection.sendall(asking(bundles))
            while not engine._busy:
                time.sleep(0.005)
            engine.max_queue = 0
            connection.sendall(asking(bundles))
            time.sleep(0.1)
            full.set()
            assert [status for status, _, _ in itertools.islice(answers(connection), 2)] == [
                200,
                429,
            ]


def held_up(engine):
    """What lets the engine answer again, and how it answered before."""
    answer, go_on = engine._answer, threading.Event()

    def slow(batch):
        assert go_on.wait(60)
        answer(batch)

    engine._answer = slow
    return go_on, answer


def lined_up(server, bundles, count):
    """Connections with a request each: the first is being answered, the others wait."""
    engine = server.service.engine
    connections = [socket.create_connection(server.address, timeout=20) for _ in range(count)]
    for number, connection in enumerate(connections):
        connection.sendall(asking(bundles))
        while engine.busy + engine.depth <= number or not engine.busy:
            time.sleep(0.005)
    return connections


def test_a_place_is_free_again_after_the_answer_and_after_a_client_that_goes(listening, bundles):
    with listening(max_queue=2, max_batch=1, timeout_ms=60_000) as server:
        engine = server.service.engine
        go_on, _ = held_up(engine)
        gone = lined_up(server, bundles, 3)
        with socket.create_connection(server.address, timeout=20) as connection:
            found = answers(connection)
            connection.sendall(asking(bundles))
            assert next(found)[0] == 429  # one is answered, two wait
            for client in gone:
                client.close()
            go_on.set()
            while engine.depth or engine.busy:
                time.sleep(0.01)
            for _ in range(5):
                connection.sendall(asking(bundles))
                assert next(found)[0] == 200


def test_who_would_wait_too_long_is_refused_and_who_would_not_is_answered(listening, bundles):
    """Each takes half a second: with 700 ms one may wait behind another, a third may not."""
    with listening(max_wait_ms=700, max_batch=1, timeout_ms=60_000) as server:
        engine = server.service.engine
        go_on, answer = held_up(engine)
        engine._seconds_each = 0.5
        others = lined_up(server, bundles, 2)
        with socket.create_connection(server.address, timeout=20) as connection:
            found = answers(connection)
            connection.sendall(asking(bundles))
            assert next(found)[0] == 429
            go_on.set()
            for other in others:
                assert next(answers(other))[0] == 200
            engine._answer, engine._seconds_each = answer, 60.0
            for _ in range(3):  # behind nobody there is a place, however long the last ones took
                connection.sendall(asking(bundles))
                assert next(found)[0] == 200
        for other in others:
            other.close()


def test_who_sends_slowly_takes_no_place(listening, bundles):
    with listening(max_queue=1) as server:
        slow = [socket.create_connection(server.address, timeout=20) for _ in range(4)]
        for connection in slow:
            connection.sendall(asking(bundles)[:-5])
        time.sleep(0.1)
        with socket.create_connection(server.address, timeout=20) as connection:
            connection.sendall(asking(bundles))
            assert next(answers(connection))[0] == 200
        for connection in slow:
            connection.close()


def test_who_waits_for_a_history_takes_no_place(listening, bundles, monkeypatch):
    with listening(max_queue=2, timeout_ms=60_000) as server:
        service, gate = server.service, threading.Event()
        read = service.events.history
        monkeypatch.setattr(service.events, "history", lambda user: gate.wait(60) and read(user))
        readers = [socket.create_connection(server.address, timeout=20) for _ in range(6)]
        mine = json.dumps({"history": bundles.history, "k": 3}).encode()
        for number, connection in enumerate(readers):
            body = json.dumps({"user_id": f"u{number}", "k": 3}).encode().ljust(len(mine))
            connection.sendall(asking(bundles).replace(mine, body))
            end = time.monotonic() + 20
            while service.reading <= number:
                assert time.monotonic() < end
                time.sleep(0.005)
        with socket.create_connection(server.address, timeout=20) as connection:
            connection.sendall(asking(bundles))
            assert next(answers(connection))[0] == 200
        gate.set()
        assert {next(answers(connection))[0] for connection in readers} <= {200, 429}
        assert service.reading == 0
        for connection in readers:
            connection.close()


def test_a_wait_of_nothing_is_no_bound():
    """0 would read as None, no bound at all."""
    with pytest.raises(ConfigError, match="max_wait_ms must be at least 1, got 0"):
        ServeSettings(bundle=Path("."), max_wait_ms=0)
