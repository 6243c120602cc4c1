"""A typed client of API v1. Needs nothing but the core packages.

    with Client("http://127.0.0.1:8000", key="sidrec_…") as client:
        answer = client.recommend(history=["B004756YJA"], k=5)
        client.send_events([{"event_id": "1", "user_id": "ann", "item_id": "B004756YJA"}])

A refused request raises `RefusedError` with the server's code and hint. One connection, so one
client a thread; where the server has closed it, idle for half a minute, a fresh one is opened. A
request is never repeated by itself.
"""

from __future__ import annotations

import http.client
import json
import selectors
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ValidationError

from sidrec.errors import ConfigError, ServiceError
from sidrec.serving import schemas

M = TypeVar("M", bound=BaseModel)


class RefusedError(ServiceError):
    """The server answered with a problem."""

    def __init__(self, problem: schemas.ProblemBody, retry_after_seconds: float | None) -> None:
        hint = f"; {problem.hint}" if problem.hint else ""
        super().__init__(f"{problem.code}: {problem.detail}{hint} (request {problem.request_id})")
        self.code, self.status, self.problem = problem.code, problem.status, problem
        self.retry_after_seconds = retry_after_seconds
        """When to come back; None where that would not help."""


class Client:
    """One connection to a server."""

    def __init__(self, url: str, *, key: str | None = None, timeout_seconds: float = 10.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"a server's address is http://host:port, got {url!r}")
        connect = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._connection = connect(parts.hostname, parts.port, timeout=timeout_seconds)
        self._base = parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    # ---------------------------------------------------------------- asking

    def recommend(
        self, *, user_id: str | None = None, history: Sequence[str] | None = None, **fields: Any
    ) -> schemas.Answer:
        """The best next items; `fields` are those of `schemas.RecommendRequest` but `dry_run`."""
        body = {"user_id": user_id, "history": history, **fields}
        return self._ask("POST", "/v1/recommend", body, schemas.Answer)

    def plan(
        self, *, user_id: str | None = None, history: Sequence[str] | None = None, **fields: Any
    ) -> schemas.Plan:
        """What `recommend` would do with the same arguments, without doing it."""
        body = {"user_id": user_id, "history": history, **fields, "dry_run": True}
        return self._ask("POST", "/v1/recommend", body, schemas.Plan)

    def rank(
        self, items: Sequence[str], *, user_id: str | None = None,
        history: Sequence[str] | None = None, **fields: Any,
    ) -> schemas.Answer:  # fmt: skip
        """Given items in the best order."""
        body = {"items": items, "user_id": user_id, "history": history, **fields}
        return self._ask("POST", "/v1/rank", body, schemas.Answer)

    def similar(self, item_id: str, **fields: Any) -> schemas.Answer:
        """The items most like one."""
        return self._ask("POST", "/v1/similar", {"item_id": item_id, **fields}, schemas.Answer)

    def explain(
        self, item_id: str, *, user_id: str | None = None, history: Sequence[str] | None = None
    ) -> schemas.Explanation:
        """Why an item would be recommended."""
        body = {"item_id": item_id, "user_id": user_id, "history": history}
        return self._ask("POST", "/v1/explain", body, schemas.Explanation)

    def search(
        self, query: str, *, user_id: str | None = None, history: Sequence[str] | None = None,
        **fields: Any,
    ) -> schemas.SearchAnswer:  # fmt: skip
        """The best answers to a text, those first that the person would like."""
        body = {"query": query, "user_id": user_id, "history": history, **fields}
        return self._ask("POST", "/v1/search", body, schemas.SearchAnswer)

    def trace(
        self, *, user_id: str | None = None, history: Sequence[str] | None = None, **fields: Any
    ) -> schemas.TraceAnswer:
        """What the beam of a recommendation did; `fields` are those of `schemas.TraceRequest`."""
        body = {"user_id": user_id, "history": history, **fields}
        return self._ask("POST", "/v1/trace", body, schemas.TraceAnswer)

    # ---------------------------------------------------------------- telling

    def send_events(self, events: Sequence[Mapping[str, Any]]) -> schemas.EventsAnswer:
        """Keep events; they are on the disk when this returns. Sending them again is harmless."""
        return self._ask("POST", "/v1/events", {"events": events}, schemas.EventsAnswer)

    def upsert_items(self, items: Sequence[Mapping[str, Any]]) -> schemas.ItemsAnswer:
        """Add or change items; they are servable when this returns."""
        return self._ask("POST", "/v1/items", {"items": items}, schemas.ItemsAnswer)

    def get_item(self, item_id: str) -> schemas.ItemState:
        """One item as it is served now."""
        return self._ask("GET", f"/v1/items/{quote(item_id, safe='')}", None, schemas.ItemState)

    def patch_item(self, item_id: str, **changes: Any) -> schemas.ItemsAnswer:
        """Change `attributes` or `available` of an item."""
        path = f"/v1/items/{quote(item_id, safe='')}"
        return self._ask("PATCH", path, changes, schemas.ItemsAnswer)

    def delete_item(self, item_id: str) -> schemas.ItemDeleted:
        """Take an item out of every answer."""
        path = f"/v1/items/{quote(item_id, safe='')}"
        return self._ask("DELETE", path, None, schemas.ItemDeleted)

    def user_history(self, user_id: str) -> schemas.UserHistory:
        """What recommendations for a user are made from."""
        path = f"/v1/users/{quote(user_id, safe='')}/history"
        return self._ask("GET", path, None, schemas.UserHistory)

    def export_user(self, user_id: str, *, after: int = 0) -> schemas.UserExport:
        """Everything that is stored of a user; where it is truncated, the rest comes `after` the id
        of its last event.
        """
        path = f"/v1/users/{quote(user_id, safe='')}?after={after}"
        return self._ask("GET", path, None, schemas.UserExport)

    def erase_user(self, user_id: str) -> schemas.UserErased:
        """Delete everything that is stored of a user."""
        path = f"/v1/users/{quote(user_id, safe='')}"
        return self._ask("DELETE", path, None, schemas.UserErased)

    # ---------------------------------------------------------------- operating

    def models(self) -> schemas.ModelsAnswer:
        """The bundles that can be activated."""
        return self._ask("GET", "/v1/models", None, schemas.ModelsAnswer)

    def activate(self, name: str) -> schemas.ModelsAnswer:
        """Serve another bundle."""
        return self._ask("POST", "/v1/models/activate", {"name": name}, schemas.ModelsAnswer)

    def roll_back(self) -> schemas.ModelsAnswer:
        """Serve the bundle that was served before."""
        return self._ask("POST", "/v1/models/rollback", None, schemas.ModelsAnswer)

    def experiments(self) -> schemas.ExperimentsAnswer:
        """The running experiment, where there is one."""
        return self._ask("GET", "/v1/experiments", None, schemas.ExperimentsAnswer)

    def start_experiment(
        self, name: str, variants: Sequence[Mapping[str, Any]]
    ) -> schemas.ExperimentState:
        """Run an experiment, or change the running one; variants are `schemas.Variant`."""
        path = f"/v1/experiments/{quote(name, safe='')}"
        return self._ask("PUT", path, {"variants": variants}, schemas.ExperimentState)

    def stop_experiment(self, name: str) -> schemas.ExperimentsAnswer:
        """End the running experiment."""
        path = f"/v1/experiments/{quote(name, safe='')}"
        return self._ask("DELETE", path, None, schemas.ExperimentsAnswer)

    def variant_of(self, name: str, user_id: str) -> schemas.Assignment:
        """The variant of a user."""
        path = f"/v1/experiments/{quote(name, safe='')}/users/{quote(user_id, safe='')}"
        return self._ask("GET", path, None, schemas.Assignment)

    # ---------------------------------------------------------------- the wire

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, model: type[M]) -> M:
        content = None
        if body is not None:
            named = {name: value for name, value in body.items() if value is not None}
            content = json.dumps(named, default=str).encode()
        if closed_meanwhile(self._connection):
            self._connection.close()
        try:
            self._connection.request(method, self._base + path, content, self._headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()  # the next request opens a fresh one
            raise ServiceError(f"the server did not answer {method} {path}: {error!r}") from error
        try:
            if answer.status < 400:
                return model.model_validate_json(text)
            problem = schemas.ProblemBody.model_validate_json(text)
        except ValidationError as error:
            raise ServiceError(
                f"{method} {path} was answered with status {answer.status} and no body of API v1; "
                "is this a sidrec server of this version?"
            ) from error
        wait = answer.headers.get("Retry-After")
        raise RefusedError(problem, None if wait is None else float(wait))


def closed_meanwhile(connection: http.client.HTTPConnection) -> bool:
    """Whether the other side has ended an idle connection: there is something to read, its end."""
    if connection.sock is None:
        return False
    with selectors.DefaultSelector() as watched:
        watched.register(connection.sock, selectors.EVENT_READ)
        return bool(watched.select(0))
