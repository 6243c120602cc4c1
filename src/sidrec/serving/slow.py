"""The protocol: uvicorn's, for clients that are too slow and requests that are too many.

Clients that send or read too slowly, or send what never ends, lose their connection.

A request must have come whole within some seconds of its first byte (of the connection, for the
first one), and an answer that fills the socket must be taken within as many. The head of a request
may have 64 KiB, and 32 requests may wait behind the one that is answered on the same connection.
Bodies are limited elsewhere; idle connections are closed by uvicorn. A request for which there is
no `Room` is answered at its head, unless an answer before it on the connection is still owed.

Cost:     one timer a connection; none for a request that comes in one piece.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sidrec.serving.refusing import ROUTES, Room

MAX_HEAD_BYTES = 1 << 16
MAX_PIPELINED = 32


def impatient(seconds: float, room: Room) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, with a time for each request to come in and each answer to go out."""

    class Impatient(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _head_bytes: int | None = None
        """What came of a request whose head is not whole; None between heads."""
        _refused: bool = False
        """Whether the newest request was refused at its head."""
        _whole: bool = False
        """Whether it has come to its end."""
        _asks: bool = False
        """Whether it is one for the engine that was let in."""
        _inside: bool = False
        """Whether the request that is answered takes a place in the room."""

        def connection_made(  # type: ignore[override]
            self, transport: asyncio.Transport
        ) -> None:
            super().connection_made(transport)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._leave()
            self._disarm()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._head_bytes is not None:
                self._head_bytes += len(data)
            if (self._head_bytes or 0) > MAX_HEAD_BYTES or len(self.pipeline) > MAX_PIPELINED:
                self.transport.abort()
            self._watch()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head_bytes, self._refused, self._asks, self._whole = 0, False, False, False

        def on_headers_complete(self) -> None:
            self._head_bytes = None
            route = ROUTES.get(self.url.partition(b"?")[0])
            free = (self.cycle is None or self.cycle.response_complete) and not self.pipeline
            self._asks = bool(route and free and not self.expect_100_continue)
            if route and self._asks and (answer := room.refusal(route)):
                self._refuse(answer)
            else:
                super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if not self._refused:
                super().on_body(body)

        def on_message_complete(self) -> None:
            self._whole = True
            if not self._refused:
                super().on_message_complete()
                if self._asks and not self.cycle.response_complete:
                    self._inside = True
                    room.enter()
            elif not self.transport.is_closing():
                self._unset_keepalive_if_required()
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

        def on_response_complete(self) -> None:
            self._leave()
            super().on_response_complete()

        def _leave(self) -> None:
            if self._inside:
                self._inside = False
                room.leave()

        def _refuse(self, answer: bytes) -> None:
            self._refused, stays = True, self.parser.should_keep_alive()
            if not stays:
                answer = answer.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
            self.transport.write(answer)
            if not stays:
                self.transport.close()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._watch()

        def _watch(self) -> None:
            cycle = self.cycle
            if self._refused:
                incomplete = not self._whole
            else:
                incomplete = cycle is None or cycle.more_body or cycle.response_complete
                incomplete = incomplete or self._head_bytes is not None
            if not (incomplete or self.flow.write_paused):
                self._disarm()
            elif self._timer is None and not self.transport.is_closing():
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(seconds, self.transport.abort)

        def _disarm(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Impatient
