"""Run the server until it is told to stop: a socket, uvicorn, a graceful end."""

from __future__ import annotations

import gc
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from sidrec.errors import ServiceError
from sidrec.serving.app import create_app
from sidrec.serving.awake import cores_awake
from sidrec.serving.memory import map_large_blocks
from sidrec.serving.refusing import Room
from sidrec.serving.settings import ServeSettings
from sidrec.serving.slow import impatient

SWITCH_SECONDS = 0.001
"""How long the engine's thread may keep the interpreter from the loop's; Python's own is 0.005."""


def serve(settings: ServeSettings, started: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `started` gets the address once requests are answered."""
    try:
        listening = socket.create_server((settings.host, settings.port), backlog=1024)
    except OSError as error:
        raise ServiceError(
            f"cannot listen on {settings.host}:{settings.port}: {error}; take another --port"
        ) from error
    with listening, cores_awake(settings.keep_awake):
        # Inherited by each connection. Without it the body of an answer, written after its headers,
        # waits for the client's delayed acknowledgement: 40 ms.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sys.setswitchinterval(SWITCH_SECONDS)
        map_large_blocks()
        app = create_app(settings)
        # What lives as long as the server is not looked at again: a full collection over it would
        # stop every thread for a quarter of a second. `memory` looks after models that go.
        gc.collect()
        gc.freeze()
        host, port = listening.getsockname()[:2]
        for sent in (signal.SIGINT, signal.SIGTERM):  # uvicorn ends well, then raises them again
            signal.signal(sent, lambda *_: None)

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                started(f"http://{host}:{port}")

        Server(configured(app, settings)).run(sockets=[listening])


def configured(app: FastAPI, settings: ServeSettings) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        http=impatient(settings.read_seconds, Room(app.state.service)),
        ws="none",  # else who asks for one leaves this protocol and its limits
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
    )
