"""What every request passes, before and after its route: id, key, size, numbers, last resort.

An ASGI middleware: a request without the needed key, or with too long a body, is refused before
anything of it is parsed. Every answer carries `X-Request-Id` and headers that keep browsers from
guessing; an error that no route foresaw becomes a 500 that names the request only.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidrec.serving.auth import foreign, may, needed_role, offered_key, role_of
from sidrec.serving.problems import Problem, places_of, problem_response
from sidrec.serving.service import Service

log = logging.getLogger("sidrec.serving")
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


class Gate:
    """The middleware."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, request_id = time.perf_counter(), os.urandom(12).hex()
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                named = {name for name, _ in headers}
                headers += [pair for pair in HEADERS if pair[0] not in named]
                message = {**message, "headers": headers}
            await send(message)

        try:
            self._admit(scope)
            await self.app(scope, _limited(receive, self.service.settings.max_body_bytes), sending)
        except Problem as problem:
            if not status:
                await problem_response(problem, request_id)(scope, receive, sending)
        except Exception as error:
            log.error("request %s failed\n%s", request_id, places_of(error))
            if not status:
                response = problem_response(Problem("internal"), request_id)
                await response(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            metrics = self.service.metrics
            metrics.requests.labels(route, str(status)).inc()
            metrics.seconds.labels(route).observe(time.perf_counter() - start)

    def _admit(self, scope: Scope) -> None:
        """Problem where the key does not suffice, a server without keys is asked from elsewhere, or
        the body says it is too long.

        Leaves the role for the routes: that of the admin where no keys are configured.
        """
        scope["state"]["role"] = "admin"
        if keys := self.service.keys:
            needed = needed_role(scope["method"], scope["path"])
            scope["state"]["role"] = "public"
            if needed != "public":
                role = role_of(keys, offered_key(scope["headers"]))
                if role == "public":
                    raise Problem("unauthorised", hint="send Authorization: Bearer <key>")
                if not may(role, needed):
                    raise Problem("forbidden", f"a key with role {needed!r} is needed")
                scope["state"]["role"] = role
        elif found := foreign(scope["headers"]):
            raise Problem(
                "forbidden",
                f"without keys only this machine's own pages are answered, got {found[:100]}",
                hint="use http://localhost, or serve with --keys",
            )
        for name, value in scope["headers"]:
            if name == b"content-length" and _too_long(value, self.service.settings.max_body_bytes):
                raise _body_too_large(self.service.settings.max_body_bytes)


def _too_long(content_length: bytes, limit: int) -> bool:
    return not content_length.isdigit() or len(content_length) > 18 or int(content_length) > limit


def _body_too_large(limit: int) -> Problem:
    return Problem("body_too_large", f"a body may have {limit} bytes", hint="send smaller batches")


def _limited(receive: Receive, limit: int) -> Receive:
    """`receive`, until more than `limit` bytes have come."""
    received = 0

    async def receiving() -> dict[str, Any]:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise HTTPException(413)  # the framework turns any other error here into a 400
        return dict(message)

    return receiving
