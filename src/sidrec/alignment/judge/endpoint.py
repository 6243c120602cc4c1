"""A language model behind a server that speaks OpenAI's protocol: vLLM, Ollama, OpenAI, ….

The key is read from the environment variable that the config names, and is kept nowhere else.

Source:  the `openai` package (extra `llm`), chat completions.
Cost:    the server's.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, field
from typing import Any, Self

from sidrec.alignment.judge.asking import NoAnswer
from sidrec.alignment.judge.prompt import Message
from sidrec.errors import ConfigError, MissingExtra, ServiceError

REFUSED = (401, 403, 404)
"""Answers that no repetition changes: wrong key, no such model or address."""
MAX_REASON_CHARS = 200


@dataclass(frozen=True, eq=False)
class Endpoint:
    """Asks with temperature 0."""

    model: str
    base_url: str
    answer_format: str
    max_answer_tokens: int
    client: Any = field(repr=False)
    """An `openai.OpenAI`, or whatever has its `chat.completions.create`."""
    timeouts: tuple[type[Exception], ...] = (TimeoutError,)
    """What the client raises when the server takes too long."""
    failures: tuple[type[Exception], ...] = (ConnectionError,)
    """What it raises when a call fails otherwise."""

    @classmethod
    def open(
        cls,
        *,
        model: str,
        base_url: str,
        api_key_variable: str,
        timeout_seconds: float,
        max_answer_tokens: int,
        answer_format: str,
        client: Any = None,
    ) -> Self:
        """A client for the server; nothing is sent yet. `client` stands in for it."""
        if client is not None:
            return cls(model, base_url, answer_format, max_answer_tokens, client)
        key = os.environ.get(api_key_variable) if api_key_variable else "none"
        if not key:
            raise ConfigError(
                f"judge.api_key_variable names {api_key_variable}, which is not set in the "
                "environment; export it, or name another"
            )
        try:
            openai = importlib.import_module("openai")
        except ImportError as cause:
            raise MissingExtra("openai", "llm", "the judge's endpoint back end") from cause
        client = openai.OpenAI(
            base_url=base_url, api_key=key, timeout=timeout_seconds, max_retries=0
        )
        return cls(
            model, base_url, answer_format, max_answer_tokens, client,
            (TimeoutError, openai.APITimeoutError), (ConnectionError, openai.APIError),
        )  # fmt: skip

    @property
    def name(self) -> tuple[str, ...]:
        return ("endpoint", self.base_url, self.model, self.answer_format,
                str(self.max_answer_tokens))  # fmt: skip

    def complete(self, messages: tuple[Message, ...], schema: dict[str, Any]) -> str:
        """The text of the first choice."""
        try:
            reply = self.client.chat.completions.create(
                model=self.model,
                messages=list(messages),
                temperature=0,
                max_tokens=self.max_answer_tokens,
                **self._format(schema),
            )
        except self.timeouts as cause:
            raise TimeoutError(f"the judge's server did not answer in time: {cause}") from cause
        except self.failures as cause:
            status = getattr(cause, "status_code", None)
            reason = str(cause)[:MAX_REASON_CHARS]
            if status in REFUSED:
                raise ServiceError(
                    f"the judge's server refused model {self.model!r} (status {status}): {reason}; "
                    "check judge.model, judge.base_url and the key in judge.api_key_variable"
                ) from cause
            raise NoAnswer(f"the judge's server failed (status {status}): {reason}") from cause
        choices = getattr(reply, "choices", None)
        if not choices or not (text := choices[0].message.content):
            raise NoAnswer("the judge's server sent no text")
        if getattr(choices[0], "finish_reason", None) == "length":
            raise NoAnswer(
                f"the answer was cut off at judge.max_answer_tokens = {self.max_answer_tokens}"
            )
        return str(text)

    def _format(self, schema: dict[str, Any]) -> dict[str, Any]:
        if self.answer_format == "text":
            return {}
        if self.answer_format == "object":
            return {"response_format": {"type": "json_object"}}
        wanted = {"name": "verdicts", "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": wanted}}
