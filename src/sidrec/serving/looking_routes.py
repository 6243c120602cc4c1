"""The page, and the routes that it looks through; see `looking` for what they say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import resources
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from sidrec.serving import answers, schemas
from sidrec.serving import looking as looks
from sidrec.serving.engine import look_up, seconds_of
from sidrec.serving.problems import Problem
from sidrec.serving.routes import (
    NameInPath,
    deadline_of,
    history_of,
    reply,
    require_history,
    says,
    service_of,
    stamped,
    while_connected,
)
from sidrec.serving.schemas import RecommendRequest
from sidrec.serving.snapshot import Snapshot

looking = APIRouter()
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
MEDIA = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def page_files() -> dict[str, Response]:
    """The files of the page by name, as answers."""
    folder, found = resources.files("sidrec.serving").joinpath("page"), {}
    for file in folder.iterdir():
        ending = file.name.rpartition(".")[2]
        if ending in MEDIA:
            found[file.name] = Response(
                file.read_bytes(),
                media_type=MEDIA[ending],
                headers={"content-security-policy": PAGE_POLICY},
            )
    return found


FILES = page_files()


@looking.get("/", include_in_schema=False)
async def index() -> Response:
    """The page."""
    return FILES["index.html"]


@looking.get("/page/{name}", include_in_schema=False)
async def page_file(name: str) -> Response:
    """A file of the page."""
    if name not in FILES:
        raise Problem("not_found")
    return FILES[name]


async def history_that_can_be_read(
    request: Request, body: schemas.Known, deadline: float
) -> Sequence[str]:
    """The history that a request means. Problem `store_unavailable` or `overloaded`."""
    history, missing = await history_of(service_of(request), body.user_id, body.history, deadline)
    require_history(missing)
    return history


@looking.post("/v1/trace", responses=says(schemas.TraceAnswer, 404, 429, 503))
async def trace(request: Request, body: schemas.TraceRequest) -> Response:
    """What the beam of a recommendation did at each level."""
    start, service = time.perf_counter(), service_of(request)
    deadline = deadline_of(service, start, body.timeout_ms)
    history = await history_that_can_be_read(request, body, deadline)

    def traced(snapshot: Snapshot) -> tuple[Snapshot, dict[str, Any]]:
        return snapshot, looks.trace_answer(snapshot, body, history)

    left = deadline - time.perf_counter()
    snapshot, said = await while_connected(request, service.engine.call(traced, left))
    said = await service.lines.looks.run(looks.with_names, snapshot, said)  # the engine goes on
    return stamped(request, start, said)


@looking.get("/v1/tree", responses=says(schemas.TreeAnswer, 404, 429))
async def tree(request: Request, query: Annotated[schemas.TreeQuery, Query()]) -> Response:
    """The codes that follow a prefix of semantic IDs, and some of the items below it."""
    service = service_of(request)
    said = await service.lines.looks.run(looks.tree_answer, service.models.current, query)
    return reply({"request_id": request.state.request_id, **said})


@looking.get("/v1/items", responses=says(schemas.FoundItems, 429))
async def find_items(request: Request, query: Annotated[schemas.ItemsQuery, Query()]) -> Response:
    """Items by words of their titles or by their ids, the most bought first."""
    service = service_of(request)
    said = await service.lines.looks.run(looks.items_answer, service.models.current, query)
    return reply({"request_id": request.state.request_id, **said})


@looking.post("/v1/models/{name}/recommend", responses=says(schemas.Answer, 404, 409, 429, 503))
async def recommend_beside(request: Request, name: NameInPath, body: RecommendRequest) -> Response:
    """What another bundle of the models folder would recommend; the active one stays as it is.

    The bundle is loaded at the first request and stays in memory until another one is asked for,
    or nobody has asked for ten minutes. A scenario, an experiment and a dry run mean nothing here.
    """
    start, service = time.perf_counter(), service_of(request)
    deadline = deadline_of(service, start, body.timeout_ms)
    history = await history_that_can_be_read(request, body, deadline)
    beside = await service.lines.models.run(service.beside.snapshot, name)

    def answer(_: Snapshot) -> dict[str, Any]:
        query = answers.recommend_query(beside, body, history, body.system)
        (found,) = look_up(beside, [query])
        return answers.recommend_answer(found, body)

    seconds = seconds_of(body.timeout_ms, service.settings.timeout_ms)
    said = await while_connected(request, service.engine.call(answer, seconds))
    return stamped(request, start, said, experiment=None)
