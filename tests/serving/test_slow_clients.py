"""Clients that go away, that send slowly, and that send too much, over a real socket."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time

import pytest


def connected(server):
    return socket.create_connection(server.address, timeout=20)


def request_of(body, **headers):
    content = json.dumps(body).encode()
    lines = ["POST /v1/recommend HTTP/1.1", "Host: s", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if "Content_Length" not in headers:
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def read_all(connection):
    """Everything until the other side closes."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def eventually(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("path", ["recommend", "similar"])
def test_a_request_whose_client_has_gone_never_reaches_the_model(listening, bundles, path):
    with listening(max_batch=4, timeout_ms=20_000) as server:
        engine, gate, held = server.service.engine, threading.Event(), threading.Event()
        answered, current = [], engine.current

        def slow():
            held.set()
            gate.wait(20)
            return current()

        engine.current, answer = slow, engine._answer
        engine._answer = lambda batch: (answered.append(len(batch)), answer(batch))
        staying = connected(server)
        staying.sendall(request_of({"history": bundles.history}))
        assert held.wait(20)
        bodies = {
            "recommend": {"history": bundles.history},
            "similar": {"item_id": bundles.ids[0]},
        }
        leaving = [connected(server) for _ in range(6)]
        for connection in leaving:
            sent = request_of(bodies[path]).replace(b"recommend", path.encode(), 1)
            connection.sendall(sent)
        eventually(lambda: engine.depth == 6)
        last = connected(server)
        last.sendall(request_of({"history": bundles.history}))
        eventually(lambda: engine.depth == 7)
        for connection in leaving:
            connection.close()
        eventually(lambda: sum(work.future.cancelled() for work in engine._queue) == 6)
        gate.set()
        for connection in (staying, last):
            assert connection.recv(12) == b"HTTP/1.1 200"
            connection.close()
        assert answered == [1, 1]  # the last of seven came with the next batch of four
        route = f"/v1/{path}"
        eventually(
            lambda: f'route="{route}",status="499"' in server.service.metrics.text().decode()
        )


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"POST /v1/recommend HTTP/1.1\r\nHost: s\r\nX-A: ",
        request_of({"history": []})[:-3],
        request_of({"history": []}, Transfer_Encoding="chunked", Content_Length=0)[:-3],
    ],
)
def test_who_sends_slowly_loses_the_connection_and_holds_up_nobody(listening, start):
    with listening(read_seconds=0.5) as server:
        slow = connected(server)
        slow.sendall(start)
        began = time.monotonic()
        closed = threading.Event()

        def drip():
            try:
                while not closed.is_set():
                    slow.sendall(b" ")
                    time.sleep(0.1)
            except OSError:
                pass

        dripping = threading.Thread(target=drip if start else lambda: None)
        dripping.start()
        with connected(server) as quick:
            quick.sendall(request_of({"history": []}))
            assert quick.recv(12) == b"HTTP/1.1 200"
        read_all(slow)
        assert time.monotonic() - began < 10
        closed.set()
        dripping.join()
        slow.close()


def test_who_does_not_take_an_answer_loses_the_connection(listening):
    with listening(read_seconds=0.5) as server:
        lazy = socket.socket()
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(server.address)
        lazy.settimeout(20)
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: s\r\n\r\n"
        for number in range(20 * 60):  # one after the other, until answers fill the sockets
            try:
                lazy.sendall(ask)
            except ConnectionError:
                break
            assert number < 20 * 60 - 1
            time.sleep(1 / 60)
        lazy.close()


def test_a_head_that_never_ends_loses_the_connection(listening):
    with listening(read_seconds=60) as server, connected(server) as endless:
        endless.sendall(b"GET /livez HTTP/1.1\r\nHost: s\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(10_000):
                endless.sendall(b"X-A: " + b"a" * 2000 + b"\r\n")


def test_one_value_of_a_head_that_never_ends_loses_the_connection(listening):
    with listening(read_seconds=60) as server, connected(server) as endless:
        endless.sendall(b"GET /livez HTTP/1.1\r\nHost: s\r\nX-A: ")
        with pytest.raises(ConnectionError):
            for _ in range(10_000):
                endless.sendall(b"a" * 2000)


def test_who_asks_on_without_an_answer_loses_the_connection(listening):
    with listening(read_seconds=60) as server, connected(server) as asking:
        gate = threading.Event()
        current = server.service.engine.current
        server.service.engine.current = lambda: gate.wait(20) and current()
        asking.sendall(request_of({"history": [], "timeout_ms": 20_000}))
        with pytest.raises(ConnectionError):
            for _ in range(100_000):
                asking.sendall(b"GET /livez HTTP/1.1\r\nHost: s\r\n\r\n")
        gate.set()


def test_a_connection_that_is_used_well_stays_open(listening):
    with listening(read_seconds=0.3) as server:
        connection = http.client.HTTPConnection(*server.address, timeout=20)
        used = []
        for _ in range(4):
            connection.request("GET", "/livez")
            assert connection.getresponse().read() == b'{"status":"live"}'
            used.append(connection.sock)
            time.sleep(0.2)
        assert len(set(used)) == 1
        connection.close()


def test_a_body_of_100_megabytes_is_refused_before_it_is_sent(listening):
    with listening() as server, connected(server) as connection:
        connection.sendall(request_of({}, Content_Length=100 << 20)[:-2])
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")


def test_a_body_without_a_length_is_refused_once_it_is_too_long(listening):
    with listening() as server, connected(server) as connection:
        sent = request_of({}, Transfer_Encoding="chunked", Content_Length=0)[:-2]
        connection.sendall(sent.replace(b"Content-Length: 0\r\n", b""))
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(18):
            connection.sendall(chunk)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")
        assert server.service.metrics.text()


def test_who_asks_for_a_websocket_is_answered_as_anybody(listening):
    with listening() as server, connected(server) as connection:
        connection.sendall(
            b"GET /livez HTTP/1.1\r\nHost: s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        head = connection.recv(1 << 16).lower()
        assert head.startswith(b"http/1.1 200") and b"x-request-id" in head
        assert b"server:" not in head
