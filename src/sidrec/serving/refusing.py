"""Requests that the engine has no room for, refused before anything else looks at them.

Under overload most requests are refused, and what refusing costs is taken from those that are
answered: the loop shares the interpreter with the engine. So it is done where the head of a
request has just been read. No key is looked at, no body, no route; the refused count among the
requests by status, but not in the times of answers.
"""

from __future__ import annotations

import os
from http import HTTPStatus

from sidrec.serving.gate import HEADERS
from sidrec.serving.problems import Problem, problem_response
from sidrec.serving.service import Service

ROUTES = {
    f"/v1/{name}".encode(): f"/v1/{name}"
    for name in ("recommend", "similar", "rank", "search", "explain")
}
"""What the engine answers."""


class Room:
    """The requests for the engine that have come whole, and the refusal of those too many.

    Many come before the first of them reaches the queue. One loop's thread uses it.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._inside = service, 0

    def refusal(self, route: str) -> bytes | None:
        """A whole answer that refuses one more; None where it may come in."""
        engine = self._service.engine
        if self._inside - engine.busy < engine.max_queue:
            return None
        problem = engine.no_room()
        self._service.metrics.requests.labels(route, str(problem.status)).inc()
        return written(problem)

    def enter(self) -> None:
        """One has come whole; a slow one takes no place until then."""
        self._inside += 1

    def leave(self) -> None:
        """One that came in was answered, or its client has gone."""
        self._inside -= 1


def written(problem: Problem) -> bytes:
    """A problem as the bytes of an HTTP/1.1 answer."""
    request_id = os.urandom(12).hex()
    response = problem_response(problem, request_id)
    headers = [*response.raw_headers, (b"x-request-id", request_id.encode()), *HEADERS]
    status = f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n".encode()
    lines = [b"%b: %b\r\n" % pair for pair in headers]
    return b"".join([status, *lines, b"\r\n", bytes(response.body)])
