"""API v1: every route, thin. What a route may do without which key stands in `auth`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Annotated, Any, TypeVar

import orjson
import pydantic
from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from sidrec.serving import answers, schemas
from sidrec.serving.auth import may
from sidrec.serving.engine import Found, Query, seconds_of
from sidrec.serving.looking import active_model
from sidrec.serving.problems import Problem, from_validation
from sidrec.serving.schemas import RecommendRequest
from sidrec.serving.service import Service
from sidrec.serving.snapshot import Snapshot

router = APIRouter()
T = TypeVar("T")
UNWATCHED_SECONDS = 0.02
IdInPath = Annotated[str, Path(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
NameInPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def says(model: Any, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route answers, for the API description."""
    found: dict[int | str, dict[str, Any]] = {200: {"model": model}}
    for status in (400, 401, 403, 413, 422, *statuses):
        found[status] = {"model": schemas.ProblemBody, "description": "Problem"}
    return found


def reply(body: Any, status: int = 200) -> Response:
    """A JSON answer."""
    content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, status_code=status, media_type="application/json")


def service_of(request: Request) -> Service:
    """The running server."""
    return request.app.state.service


def stamped(request: Request, start: float, body: dict[str, Any], **more: Any) -> Response:
    """The answer with its request id and the time it took."""
    took_ms = round((time.perf_counter() - start) * 1e3, 3)
    return reply({"request_id": request.state.request_id, **body, **more, "took_ms": took_ms})


def deadline_of(service: Service, start: float, timeout_ms: int | None) -> float:
    """When a request that came at `start` gets what there is, by `time.perf_counter`."""
    return start + seconds_of(timeout_ms, service.settings.timeout_ms)


async def history_of(
    service: Service, user_id: str | None, history: Sequence[str] | None, deadline: float
) -> tuple[Sequence[str], str | None]:
    """The history that a request means, and why there is none where it could not be read."""
    if history is not None:
        return history, None
    assert user_id is not None  # the schema asks for one of both
    if (found := service.events.cached(user_id)) is not None:
        return found, None
    service.reading += 1
    try:
        async with asyncio.timeout(deadline - time.perf_counter()):
            return await service.lines.reads.run(service.events.history, user_id), None
    except TimeoutError:
        return (), "deadline"
    except Problem:  # the store fails, or is so slow that too many wait for it
        return (), "store_unavailable"
    finally:
        service.reading -= 1


def may_not_see_history(request: Request, body: schemas.Known | schemas.SearchRequest) -> bool:
    """Whether the answer is made from a stored history that the key may not read."""
    return body.history is None and not may(request.state.role, "secret")


def require_history(missing: str | None) -> None:
    """Problem for an answer that is nothing without the history."""
    if missing == "deadline":
        raise Problem("overloaded", "reading the user's history took longer than timeout_ms")
    if missing is not None:
        raise Problem("store_unavailable", "the user's history cannot be read")


async def while_connected(request: Request, answer: Awaitable[T]) -> T:
    """What `answer` gives; it is cancelled when the client goes away, so that nothing is searched.

    The connection is watched from `UNWATCHED_SECONDS` on: most answers are out before.
    """
    loop, asking, watching = asyncio.get_running_loop(), asyncio.current_task(), []
    gone = False
    assert asking is not None

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            continue
        gone = True
        asking.cancel()

    def start() -> None:
        watching.append(loop.create_task(watch()))

    later = loop.call_later(UNWATCHED_SECONDS, start)
    try:
        return await answer
    except asyncio.CancelledError:
        if not gone:
            raise
        asking.uncancel()
        raise Problem("client_gone") from None
    finally:
        later.cancel()
        for task in watching:
            task.cancel()


# Asking ------------------------------------------------------------------------------------------


@router.post("/v1/recommend", responses=says(schemas.Answer, 429, 503))
async def recommend(request: Request, body: RecommendRequest) -> Response:
    """The best next items of a user or a history."""
    start, service = time.perf_counter(), service_of(request)
    chosen = body.system is not None
    if body.scenario is not None:
        body = with_scenario(service, body)
    if body.explain and not may(request.state.role, "secret"):
        raise Problem("forbidden", "explain: a key with role 'secret' is needed")
    deadline = deadline_of(service, start, body.timeout_ms)
    history, missing = await history_of(service, body.user_id, body.history, deadline)
    experiment, system = None, body.system
    running = service.experiments.running
    if running is not None and body.user_id is not None:
        variant = running.variant(body.user_id)
        experiment = {"name": running.name, "variant": variant.name}
        system = system or variant.system

    def prepare(snapshot: Snapshot) -> Query:
        return answers.recommend_query(snapshot, body, history, system, chosen=chosen)

    left = deadline - time.perf_counter()
    if body.dry_run:
        require_history(missing)
        planned = service.engine.call(lambda s: answers.plan(s, prepare(s)), left)
        said = await while_connected(request, planned)
        if may_not_see_history(request, body):
            said["skipped_items"] = []
        return reply({"request_id": request.state.request_id, **said})

    def finish(found: Found) -> dict[str, Any]:
        return answers.recommend_answer(found, body)

    said = await while_connected(request, service.engine.recommend(prepare, finish, left))
    if may_not_see_history(request, body):
        said = {**answers.without_history(said), "skipped_items": []}
    return degraded_or_not(request, start, service, said, missing, experiment)


def with_scenario(service: Service, body: RecommendRequest) -> RecommendRequest:
    """The request over the defaults of its scenario."""
    scenarios, name = service.settings.scenarios, body.scenario or ""
    if name not in scenarios:
        raise Problem(
            "invalid_request",
            f"scenario: no {name!r}; have {sorted(scenarios)}",
            hint="scenarios are named when the server starts, by --scenarios",
            errors=[{"field": "scenario", "message": "unknown"}],
        )
    given = body.model_dump(exclude_unset=True)
    try:
        return RecommendRequest.model_validate({**scenarios[name], **given})
    except pydantic.ValidationError as error:  # each is valid, both together are not
        raise from_validation(error.errors(), ()) from None


def degraded_or_not(
    request: Request, start: float, service: Service, said: dict[str, Any], missing: str | None,
    experiment: dict[str, str] | None = None,
) -> Response:  # fmt: skip
    """The answer, honest about what was missing."""
    if missing is not None:
        said = {**said, "degraded": True, "degraded_reason": missing}
    if said["degraded"]:
        service.metrics.degraded.labels(said["degraded_reason"]).inc()
    return stamped(request, start, said, experiment=experiment)


@router.post("/v1/rank", responses=says(schemas.Answer, 429, 503))
async def rank(request: Request, body: schemas.RankRequest) -> Response:
    """Given items in the best order; items that the system cannot score are left out."""
    start, service = time.perf_counter(), service_of(request)
    deadline = deadline_of(service, start, body.timeout_ms)
    history, missing = await history_of(service, body.user_id, body.history, deadline)

    def finish(found: Found) -> dict[str, Any]:
        return answers.answer(found, found.rows_K, found.scores_K, body.include_fields)

    found = service.engine.recommend(
        lambda snapshot: answers.rank_query(snapshot, body, history),
        finish,
        deadline - time.perf_counter(),
    )
    said = await while_connected(request, found)
    if may_not_see_history(request, body):
        named = [item for item in said["skipped_items"] if item in body.items]
        said = {**answers.without_history(said), "skipped_items": named}
    return degraded_or_not(request, start, service, said, missing)


@router.post("/v1/similar", responses=says(schemas.Answer, 404, 429, 503))
async def similar(request: Request, body: schemas.SimilarRequest) -> Response:
    """The items most like one."""
    start, service = time.perf_counter(), service_of(request)
    found = service.engine.call(
        lambda snapshot: answers.similar_answer(snapshot, body),
        seconds_of(body.timeout_ms, service.settings.timeout_ms),
    )
    said = await while_connected(request, found)
    return stamped(request, start, said, experiment=None)


@router.post("/v1/explain", responses=says(schemas.Explanation, 404, 429, 503))
async def explain(request: Request, body: schemas.ExplainRequest) -> Response:
    """Why an item would be recommended."""
    start, service = time.perf_counter(), service_of(request)
    deadline = deadline_of(service, start, body.timeout_ms)
    history, missing = await history_of(service, body.user_id, body.history, deadline)
    require_history(missing)
    found = service.engine.call(
        lambda snapshot: answers.explain_answer(snapshot, history, body.item_id),
        deadline - time.perf_counter(),
    )
    said = await while_connected(request, found)
    return stamped(request, start, said)


@router.post("/v1/search", responses=says(schemas.SearchAnswer, 404, 429, 503))
async def search(request: Request, body: schemas.SearchRequest) -> Response:
    """Items for a text, where the bundle has a search part."""
    start, service = time.perf_counter(), service_of(request)
    deadline = deadline_of(service, start, body.timeout_ms)
    history: Sequence[str] = ()
    missing = None
    if body.user_id is not None or body.history is not None:
        history, missing = await history_of(service, body.user_id, body.history, deadline)
    found = service.engine.call(
        lambda snapshot: answers.search_answer(snapshot, body, history),
        deadline - time.perf_counter(),
    )
    said = await while_connected(request, found)
    if may_not_see_history(request, body):
        said["skipped_items"] = []
    return degraded_or_not(request, start, service, said, missing)


# Telling -----------------------------------------------------------------------------------------


@router.post("/v1/events", responses=says(schemas.EventsAnswer, 429, 503))
async def add_events(request: Request, body: schemas.EventsRequest) -> Response:
    """Keep a batch of events. The answer comes after they are on the disk."""
    service = service_of(request)
    kept = await asyncio.wrap_future(service.events.add(body.events))
    for state in ("accepted", "duplicates", "quarantined"):
        service.metrics.events.labels(state).inc(getattr(kept, state))
    return reply(
        {
            "request_id": request.state.request_id,
            "accepted": kept.accepted,
            "duplicates": kept.duplicates,
            "quarantined": kept.quarantined,
        }
    )


@router.post("/v1/items", responses=says(schemas.ItemsAnswer, 429, 503))
async def upsert_items(request: Request, body: schemas.ItemsRequest) -> Response:
    """Add or change items; they are servable when the answer comes."""
    ids = [item.item_id for item in body.items]
    if len(set(ids)) < len(ids):
        raise Problem("invalid_request", "items: the same item_id occurs twice")
    entries, service = [item.model_dump() for item in body.items], service_of(request)
    done = await service.lines.changes.run(service.models.upsert, entries)
    return reply(
        {
            "request_id": request.state.request_id,
            "catalogue_version": done.snapshot.catalogue_version,
            "added": done.added,
            "updated": done.updated,
            "items": done.snapshot.states(ids),
        }
    )


@router.get("/v1/items/{item_id:path}", responses=says(schemas.ItemState, 404))
async def get_item(request: Request, item_id: IdInPath) -> Response:
    """One item as it is served now."""
    return reply(service_of(request).models.current.states([item_id])[0])


@router.patch("/v1/items/{item_id:path}", responses=says(schemas.ItemsAnswer, 404, 429, 503))
async def patch_item(request: Request, item_id: IdInPath, body: schemas.ItemPatch) -> Response:
    """Change attributes or availability of an item."""
    service = service_of(request)
    service.models.current.row(item_id)
    entry = {
        "item_id": item_id,
        "attributes": body.attributes or {},
        "available": body.available,
        "known": True,
    }
    done = await service.lines.changes.run(service.models.upsert, [entry])
    return reply(
        {
            "request_id": request.state.request_id,
            "catalogue_version": done.snapshot.catalogue_version,
            "added": done.added,
            "updated": done.updated,
            "items": done.snapshot.states([item_id]),
        }
    )


@router.delete("/v1/items/{item_id:path}", responses=says(schemas.ItemDeleted, 404, 429, 503))
async def delete_item(request: Request, item_id: IdInPath) -> Response:
    """Take an item out of every answer."""
    service = service_of(request)
    snapshot = await service.lines.changes.run(service.models.delete, [item_id])
    return reply(
        {
            "request_id": request.state.request_id,
            "item_id": item_id,
            "catalogue_version": snapshot.catalogue_version,
        }
    )


# Operating ---------------------------------------------------------------------------------------


def models_answer(service: Service) -> dict[str, Any]:
    """The bundles, and the systems of the active one."""
    snapshot = service.models.current
    return {
        "models": service.models.listed(),
        "systems": snapshot.recommender.systems,
        "active": active_model(snapshot),
    }


@router.get("/v1/models", responses=says(schemas.ModelsAnswer, 429))
async def list_models(request: Request) -> Response:
    """The bundles that can be activated."""
    service = service_of(request)
    return reply(await service.lines.looks.run(models_answer, service))


@router.post("/v1/models/activate", responses=says(schemas.ModelsAnswer, 404, 409, 429, 503))
async def activate_model(request: Request, body: schemas.ActivateRequest) -> Response:
    """Serve another bundle of the models folder."""
    service = service_of(request)
    await service.lines.models.run(service.models.activate, body.name)
    return reply(await service.lines.looks.run(models_answer, service))


@router.post("/v1/models/rollback", responses=says(schemas.ModelsAnswer, 409, 429, 503))
async def roll_back_model(request: Request) -> Response:
    """Serve the bundle that was served before."""
    service = service_of(request)
    await service.lines.models.run(service.models.roll_back)
    return reply(await service.lines.looks.run(models_answer, service))


@router.get("/v1/experiments", responses=says(schemas.ExperimentsAnswer))
async def list_experiments(request: Request) -> Response:
    """The running experiment."""
    running = service_of(request).experiments.running
    return reply({"experiments": [] if running is None else [experiment_state(running)]})


@router.put("/v1/experiments/{name}", responses=says(schemas.ExperimentState, 409, 429, 503))
async def start_experiment(
    request: Request, name: NameInPath, body: schemas.ExperimentRequest
) -> Response:
    """Run an experiment, or change the running one."""
    service = service_of(request)
    running = await service.lines.models.run(service.start_experiment, name, body.variants)
    return reply(experiment_state(running))


@router.delete("/v1/experiments/{name}", responses=says(schemas.ExperimentsAnswer, 404, 429, 503))
async def stop_experiment(request: Request, name: NameInPath) -> Response:
    """End the running experiment."""
    service = service_of(request)
    await service.lines.models.run(service.experiments.stop, name)
    return reply({"experiments": []})


@router.get("/v1/experiments/{name}/users/{user_id:path}", responses=says(schemas.Assignment, 404))
async def assigned_variant(request: Request, name: NameInPath, user_id: IdInPath) -> Response:
    """The variant of a user."""
    variant = service_of(request).experiments.named(name).variant(user_id)
    return reply({"experiment": name, "variant": variant.name})


def experiment_state(running: Any) -> dict[str, Any]:
    """An experiment as an answer says it."""
    variants = [variant.model_dump() for variant in running.variants]
    return {"name": running.name, "variants": variants}


# Health ------------------------------------------------------------------------------------------


@router.get("/livez", responses={200: {"model": schemas.Health}})
async def live() -> Response:
    """Whether the process answers."""
    return reply({"status": "live"})


async def is_ready(service: Service) -> bool:
    """Whether the service is ready; where too many ask to be told, it is not."""
    try:
        return await service.lines.health.run(service.ready)
    except Problem:
        return False


@router.get("/readyz", responses={200: {"model": schemas.Health}})
async def ready(request: Request) -> Response:
    """Whether the model is warm and events can be written."""
    well = await is_ready(service_of(request))
    return reply({"status": "ready" if well else "not ready"}, 200 if well else 503)


@router.get("/v2/health/live", responses={200: {"model": schemas.Health}})
async def kserve_live() -> Response:
    """`/livez` by its KServe name."""
    return reply({"status": "live", "live": True})


@router.get("/v2/health/ready", responses={200: {"model": schemas.Health}})
async def kserve_ready(request: Request) -> Response:
    """`/readyz` by its KServe name."""
    well = await is_ready(service_of(request))
    status = "ready" if well else "not ready"
    return reply({"status": status, "ready": well}, 200 if well else 503)


@router.get("/metrics", responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    found = service_of(request).metrics
    return Response(found.text(), media_type=found.content_type)
