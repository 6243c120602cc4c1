"""Clients that send or read too slowly lose their connection, so that they hold nothing for long.

A request must have come whole within some seconds of its first byte (of the connection, for the
first one), and an answer that fills the socket must be taken within as many. Bodies are limited in
size elsewhere; idle connections are closed by uvicorn.

Cost:     one timer a connection; none for a request that comes in one piece.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


def impatient(seconds: float) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, with a time for each request to come in and each answer to go out."""
    base: Any = AutoHTTPProtocol

    class Impatient(base):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._disarm()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._watch()

        def _watch(self) -> None:
            cycle = self.cycle
            incomplete = cycle is None or cycle.more_body or cycle.response_complete
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
