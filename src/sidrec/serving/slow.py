"""Clients that send or read too slowly, or send what never ends, lose their connection.

A request must have come whole within some seconds of its first byte (of the connection, for the
first one), and an answer that fills the socket must be taken within as many. The head of a request
may have 64 KiB, and 32 requests may wait behind the one that is answered on the same connection.
Bodies are limited elsewhere; idle connections are closed by uvicorn.

Cost:     one timer a connection; none for a request that comes in one piece.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 1 << 16
MAX_PIPELINED = 32


def impatient(seconds: float) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, with a time for each request to come in and each answer to go out."""

    class Impatient(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _head_bytes: int | None = None
        """What came of a request whose head is not whole; None between heads."""

        def connection_made(  # type: ignore[override]
            self, transport: asyncio.Transport
        ) -> None:
            super().connection_made(transport)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
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
            self._head_bytes = 0

        def on_headers_complete(self) -> None:
            self._head_bytes = None
            super().on_headers_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._watch()

        def _watch(self) -> None:
            cycle = self.cycle
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
