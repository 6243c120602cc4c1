"""Requests that the engine has no room for, refused before anything else looks at them.

Under overload most requests are refused, and what refusing costs is taken from those that are
answered: the loop shares the interpreter with the engine. So it is done where the head of a
request has just been read. No key is looked at, no body, no route; the refused count among the
requests by status, but not in the times of answers.
"""

from __future__ import annotations

import random
from http import HTTPStatus

from sidrec.serving.gate import HEADERS
from sidrec.serving.problems import Problem, problem_response
from sidrec.serving.service import Service

ROUTES = {
    f"/v1/{name}".encode(): f"/v1/{name}"
    for name in ("recommend", "similar", "rank", "search", "explain")
}
"""What the engine answers."""
PLACE = b"0" * 24
"""Where an answer names its request."""


class Room:
    """The requests for the engine that have come whole, and the refusal of those too many.

    Many come before the first of them reaches the queue. Those whose history is still being read
    are not counted: they have a line of their own, so a store that hangs shuts nobody out. One
    loop's thread uses it.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._engine, self._inside = service, service.engine, 0
        problem = Problem(
            "overloaded",
            "as many requests wait as may",
            hint="come back after Retry-After seconds",
        )
        self._parts = written(problem, PLACE.decode()).split(PLACE)
        counted, status = service.metrics.requests, str(problem.status)
        self._counts = {route: counted.labels(route, status) for route in ROUTES.values()}

    def refusal(self, route: str) -> bytes | None:
        """A whole answer that refuses one more; None where it may come in."""
        waiting = self._inside - self._service.reading - self._engine.busy
        if not self._engine.full(waiting):
            return None
        self._counts[route].inc()
        request_id = b"%024x" % random.getrandbits(96)  # no call that would let go of the lock
        return request_id.join(self._parts)

    def enter(self) -> None:
        """One has come whole; a slow one takes no place until then."""
        self._inside += 1

    def leave(self) -> None:
        """One that came in was answered, or its client has gone."""
        self._inside -= 1


def written(problem: Problem, request_id: str) -> bytes:
    """A problem as the bytes of an HTTP/1.1 answer."""
    response = problem_response(problem, request_id)
    headers = [*response.raw_headers, (b"x-request-id", request_id.encode()), *HEADERS]
    status = f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n".encode()
    lines = [b"%b: %b\r\n" % pair for pair in headers]
    return b"".join([status, *lines, b"\r\n", bytes(response.body)])
