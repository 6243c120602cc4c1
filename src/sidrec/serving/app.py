"""The application: routes, gate, and errors as problem JSON, around one `Service`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, get_args

import pydantic
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from sidrec import __version__
from sidrec.errors import ConfigError
from sidrec.serving import schemas
from sidrec.serving.gate import Gate
from sidrec.serving.looking_routes import looking
from sidrec.serving.problems import Problem, from_validation, problem_response
from sidrec.serving.routes import router
from sidrec.serving.service import Service
from sidrec.serving.settings import ServeSettings
from sidrec.serving.user_routes import users

OF_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def create_app(settings: ServeSettings) -> FastAPI:
    """The application, its model loaded and warm, its store open. Closed by its lifespan."""
    require_scenarios(settings)
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="sidrec",
        version=__version__,
        description="Recommendations from semantic IDs. Errors are application/problem+json.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would lead wherever the Host header says
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(router)
    app.include_router(users)
    app.include_router(looking)
    app.add_middleware(Gate, service=service)
    app.add_exception_handler(Problem, on_problem)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, on_invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, on_http)  # type: ignore[arg-type]
    return app


async def on_problem(request: Request, problem: Problem) -> Response:
    """A problem that a route raised."""
    return problem_response(problem, request.state.request_id)


async def on_invalid(request: Request, error: RequestValidationError) -> Response:
    """A body or path that does not fit."""
    problem = from_validation(error.errors(), FIELDS)
    if problem.errors[0]["field"] == "body" and "json" not in request.headers.get(
        "content-type", ""
    ):
        problem.hint = "send Content-Type: application/json"
    return problem_response(problem, request.state.request_id)


async def on_http(request: Request, error: HTTPException) -> Response:
    """What the framework refuses by itself."""
    code = OF_STATUS.get(error.status_code, "unreadable_body")
    return problem_response(Problem(code), request.state.request_id)


def require_scenarios(settings: ServeSettings) -> None:
    """ConfigError where a scenario's defaults are no fields of a request."""
    for name, defaults in settings.scenarios.items():
        try:
            schemas.RecommendRequest.model_validate({"user_id": "anyone", **defaults})
        except pydantic.ValidationError as error:
            problem = from_validation(error.errors(), FIELDS)  # type: ignore[arg-type]
            raise ConfigError(f"scenario {name!r}: {problem.detail}") from error


def fields_of(model: type[pydantic.BaseModel]) -> Iterator[str]:
    """Names of a model's fields, and of the models in them."""
    for name, field in model.model_fields.items():
        yield name
        for part in _parts(field.annotation):
            if isinstance(part, type) and issubclass(part, schemas.In):
                yield from fields_of(part)


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


FIELDS = sorted({name for model in schemas.In.__subclasses__() for name in fields_of(model)}
                | set(fields_of(schemas.RecommendRequest)))  # fmt: skip
"""Every field that a body may have, for suggestions."""
