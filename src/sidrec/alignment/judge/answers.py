"""Reading a language model's answer: strict JSON, every candidate and aspect, levels as listed.

What is wrong is said precisely, so that the model can be asked again; entries that are right are
kept. Thoughts before the answer (`<think>`) and a code fence around it are taken off.

Shapes: none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from sidrec.alignment.judge.aspects import ASPECTS
from sidrec.alignment.judge.prompt import cleaned

MAX_ANSWER_CHARS = 200_000
MAX_EVIDENCE_CHARS = 300
MAX_COMPLAINTS = 4
THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
FENCE = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n\s*```\s*$", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """What could be read."""

    scores: dict[str, tuple[float, ...]]
    """Candidate -> level of every aspect."""
    texts: dict[str, tuple[str, ...]]
    """Candidate -> reason of every aspect."""
    complaints: tuple[str, ...]
    """What has to change; empty where every candidate has been judged."""
    unknown: int
    """Entries about candidates that were not asked about; they do no harm."""

    @property
    def complaint(self) -> str:
        """The first complaints as one text."""
        rest = len(self.complaints) - MAX_COMPLAINTS
        more = f"; and {rest} more" if rest > 0 else ""
        return "; ".join(self.complaints[:MAX_COMPLAINTS]) + more


def read_answer(text: str, ids: Sequence[str], aspects: Sequence[str]) -> Answer:
    """The verdicts in a model's answer about the candidates `ids`."""
    try:
        content = decoded(text)
    except (ValueError, RecursionError) as cause:
        return _nothing(f"it is not one JSON object ({cleaned(str(cause), 80)})")
    if not isinstance(content, dict) or not isinstance(content.get("candidates"), list):
        return _nothing('it must be an object with a list under "candidates"')
    model = verdict_model(tuple(aspects))
    complaints: list[str] = []
    found: dict[str, list[Any]] = {}
    unknown = 0
    for place, entry in enumerate(content["candidates"]):
        name = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(name, str) and name not in ids:
            unknown += 1
            continue
        try:
            verdict = model.model_validate(entry)
        except ValidationError as error:
            complaints.append(_said(f"candidates[{place}] ({name})", error))
            continue
        found.setdefault(str(name), []).append(verdict)
    for name in ids:
        if len(found.get(name, ())) > 1:
            complaints.append(f"{name} is judged more than once")
    missing = [name for name in ids if name not in found]
    if missing and not complaints:
        complaints.append(f"no verdict on {', '.join(missing)}")
    kept = {name: verdicts[0] for name, verdicts in found.items() if len(verdicts) == 1}
    parts = {name: [getattr(verdict, a) for a in aspects] for name, verdict in kept.items()}
    return Answer(
        {name: tuple(part.level for part in row) for name, row in parts.items()},
        {
            name: tuple(cleaned(part.evidence, MAX_EVIDENCE_CHARS) for part in row)
            for name, row in parts.items()
        },
        tuple(complaints),
        unknown,
    )


@cache
def verdict_model(aspects: tuple[str, ...]) -> type[BaseModel]:
    """The pydantic model of one candidate's entry."""
    fields: dict[str, Any] = {name: (_aspect_model(name), ...) for name in aspects}
    return create_model(
        "Verdict", __config__=ConfigDict(extra="forbid", strict=True), id=(str, ...), **fields
    )


def answer_schema(ids: Sequence[str], aspects: Sequence[str]) -> dict[str, Any]:
    """JSON schema of the answer, for servers that hold a model to one."""
    properties: dict[str, Any] = {"id": {"type": "string", "enum": list(ids)}}
    for name in aspects:
        properties[name] = _object(
            {
                "level": {"type": "number", "enum": list(ASPECTS[name].levels)},
                "evidence": {"type": "string"},
            }
        )
    return _object({"candidates": {"type": "array", "items": _object(properties)}})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _aspect_model(name: str) -> type[BaseModel]:
    levels = ASPECTS[name].levels

    def listed(value: float) -> float:
        if value not in levels:
            raise ValueError(f"must be one of {[*levels]}, got {value:g}")
        return value

    return create_model(
        f"{name.capitalize()}Verdict",
        __config__=ConfigDict(extra="forbid", strict=True),
        level=(Annotated[float, Field(strict=True), AfterValidator(listed)], ...),
        evidence=(str, ...),
    )


def decoded(text: str) -> Any:
    """The one JSON value of an answer, without thoughts and code fence; ValueError for others."""
    if len(text) > MAX_ANSWER_CHARS:
        raise ValueError(f"longer than {MAX_ANSWER_CHARS} characters")
    body = THOUGHT.sub("", text)
    if fenced := FENCE.match(body):
        body = fenced.group(1)
    return json.loads(body, object_pairs_hook=_distinct, parse_constant=_refused)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("an object holds a key twice")
    return dict(pairs)


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _nothing(complaint: str) -> Answer:
    return Answer({}, {}, (complaint,), 0)


def _said(where: str, error: ValidationError) -> str:
    """The first fault of an entry, with its place, in safe characters."""
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    return cleaned(f"{where} {place}: {fault['msg'].removeprefix('Value error, ')}", 160)
