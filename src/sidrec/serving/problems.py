"""Errors as problem JSON (RFC 9457): a stable code, what happened, and what to do.

Codes never change their meaning; texts may. An error nobody foresaw is a 500 that names the
request and nothing else.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from starlette.responses import Response

CODES: dict[str, tuple[int, str]] = {
    "invalid_request": (422, "The request is not valid"),
    "unknown_field": (422, "The request names a field that does not exist"),
    "unknown_item": (404, "No such item"),
    "unknown_model": (404, "No such model"),
    "unknown_experiment": (404, "No such experiment"),
    "unknown_prefix": (404, "No such prefix of semantic IDs"),
    "not_found": (404, "No such route"),
    "method_not_allowed": (405, "The route does not take this method"),
    "search_not_in_bundle": (404, "This model cannot search by text"),
    "no_beam": (404, "This system has no beam to look at"),
    "experiment_running": (409, "Another experiment is running"),
    "no_previous_model": (409, "There is no model to go back to"),
    "broken_model": (409, "The model cannot be served; the old one goes on"),
    "unfit_model": (409, "The model lacks what is in use; the old one goes on"),
    "body_too_large": (413, "The body is too large"),
    "unreadable_body": (400, "The body cannot be read"),
    "unauthorised": (401, "A key is needed"),
    "forbidden": (403, "This key may not do that"),
    "client_gone": (499, "The client went away before its answer"),
    "overloaded": (429, "Too many requests are waiting"),
    "store_unavailable": (503, "Nothing can be written now"),
    "not_ready": (503, "The server is starting or stopping"),
    "internal": (500, "Something went wrong on this side"),
}
"""Code -> (status, title)."""
RETRY_SECONDS = 1


class Problem(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        hint: str = "",
        errors: Sequence[Mapping[str, str]] = (),
    ) -> None:
        super().__init__(detail or code)
        self.code, self.detail, self.hint, self.errors = code, detail, hint, tuple(errors)
        self.status, self.title = CODES[code]


def problem_response(problem: Problem, request_id: str) -> Response:
    """The problem as an HTTP answer."""
    body: dict[str, Any] = {
        "type": f"urn:sidrec:problem:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "code": problem.code,
        "detail": problem.detail or problem.title,
        "request_id": request_id,
    }
    if problem.hint:
        body["hint"] = problem.hint
    if problem.errors:
        body["errors"] = problem.errors
    headers = {}
    if problem.status in (429, 503):
        headers["Retry-After"] = str(RETRY_SECONDS)
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(
        orjson.dumps(body),
        status_code=problem.status,
        headers=headers,
        media_type="application/problem+json",
    )


def places_of(error: BaseException) -> str:
    """Kind and place of an error and of its causes, for the log, without what they say: that may
    hold what a caller wrote.
    """
    told: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        told += [*traceback.format_tb(cause.__traceback__), f"{type(cause).__name__}\n"]
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "".join(told)


def from_validation(errors: Iterable[Mapping[str, Any]], names: Sequence[str]) -> Problem:
    """What pydantic found, field by field; `names` are the fields there are."""
    listed, unknown = [], False
    for error in errors:
        place = [str(part) for part in error["loc"] if part not in ("body", "query")]
        entry = {"field": ".".join(place) or "body", "message": str(error["msg"])[:300]}
        if error["type"] == "extra_forbidden":
            unknown = True
            entry["message"] = f"no field {place[-1]!r}"
            near = difflib.get_close_matches(place[-1], names, n=1)
            if near and near[0] != place[-1]:  # else another route has it
                entry["message"] += f"; did you mean {near[0]!r}?"
        elif error["type"] == "json_invalid":
            why = str(error.get("ctx", {}).get("error", ""))[:100]
            entry = {"field": "body", "message": f"no JSON: {why} at character {place[-1]}"}
        listed.append(entry)
        if len(listed) == 20:
            break
    first = listed[0]
    return Problem(
        "unknown_field" if unknown else "invalid_request",
        f"{first['field']}: {first['message']}",
        hint="GET /openapi.json says what each route takes",
        errors=listed,
    )
