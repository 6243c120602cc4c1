"""Requests that the engine has no room for, refused before anything else looks at them.

Under overload most requests are refused, and what refusing costs is taken from those that are
answered: the loop shares the interpreter with the engine. So it is done where the head of a
request has just been read. No key is looked at, no body, no route; the refused count among the
requests by status, but not in the times of answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from http import HTTPStatus

from sidrec.serving.gate import HEADERS
from sidrec.serving.problems import Problem, problem_response
from sidrec.serving.service import Service

ANSWERED_BY_ENGINE = tuple(
    f"/v1/{name}" for name in ("recommend", "similar", "rank", "search", "explain")
)
Refuse = Callable[[bytes], bytes | None]
"""Path of a request -> a whole answer that refuses it and keeps the connection; None to go on."""


def refusing(service: Service) -> Refuse:
    """What a server's protocol asks about each request."""
    routes = {route.encode(): route for route in ANSWERED_BY_ENGINE}

    def refuse(path: bytes) -> bytes | None:
        route = routes.get(path)
        if route is None:
            return None
        try:
            service.engine.require_room()
        except Problem as problem:
            service.metrics.requests.labels(route, str(problem.status)).inc()
            return written(problem)
        return None

    return refuse


def written(problem: Problem) -> bytes:
    """A problem as the bytes of an HTTP/1.1 answer."""
    request_id = os.urandom(12).hex()
    response = problem_response(problem, request_id)
    headers = [*response.raw_headers, (b"x-request-id", request_id.encode()), *HEADERS]
    status = f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n".encode()
    lines = [b"%b: %b\r\n" % pair for pair in headers]
    return b"".join([status, *lines, b"\r\n", bytes(response.body)])
