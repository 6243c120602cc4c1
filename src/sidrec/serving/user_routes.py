"""The routes of a user's rights: look at what is stored, take it along, have it erased.

A user id may hold slashes. Written as `%2F` they are part of the id whatever follows:
`/v1/users/ann%2Fhistory` is all of the user `ann/history`, `/v1/users/ann/history` the history of
`ann`.
"""

from __future__ import annotations

import asyncio
from typing import Annotated
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Query, Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from sidrec.serving import schemas
from sidrec.serving.routes import IdInPath, reply, says, service_of


class WholeSegment(APIRoute):
    """A route whose last word must be a segment of its own, not the end of an encoded id."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As any route, over the path as it was sent: `scope["path"]` has lost the encoding."""
        word = self.path.rpartition("/")[2]
        sent = scope.get("raw_path") or scope["path"].encode()
        if "}" not in word and unquote_to_bytes(sent.rpartition(b"/")[2]) != word.encode():
            return Match.NONE, {}
        return super().matches(scope)


users = APIRouter(route_class=WholeSegment)


@users.get("/v1/users/{user_id:path}/history", responses=says(schemas.UserHistory, 429, 503))
async def user_history(request: Request, user_id: IdInPath) -> Response:
    """What recommendations for a user are made from."""
    service = service_of(request)
    found = await service.lines.reads.run(service.events.history, user_id)
    return reply({"user_id": user_id, "items": list(found)})


@users.get("/v1/users/{user_id:path}", responses=says(schemas.UserExport, 429, 503))
async def export_user(
    request: Request, user_id: IdInPath, after: Annotated[int, Query(ge=0, lt=1 << 63)] = 0
) -> Response:
    """Everything that is stored of a user as it came, 10,000 events at a time."""
    service = service_of(request)
    events, truncated = await service.lines.looks.run(service.events.export, user_id, after)
    return reply({"user_id": user_id, "events": events, "truncated": truncated})


@users.delete("/v1/users/{user_id:path}", responses=says(schemas.UserErased, 429, 503))
async def erase_user(request: Request, user_id: IdInPath) -> Response:
    """Delete everything that is stored of a user."""
    service = service_of(request)
    gone = await asyncio.wrap_future(service.events.erase(user_id))
    await service.lines.changes.run(service.store.checkpoint)
    return reply({"user_id": user_id, "events": gone})
