"""Which language model helps to understand queries; see `asked`. Apart, so that a search without
one loads nothing of it.

Shapes:   none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sidrec.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AskerConfig:
    """Which language model is asked, and how often."""

    backend: Literal["none", "endpoint", "local"] = "none"
    """Nobody, a server that speaks OpenAI's protocol, or a Hugging Face model in this process."""
    model: str = ""
    """Name of the model at the server, or a local folder or hub name."""
    base_url: str = "http://localhost:8000/v1"
    """Where the server is."""
    api_key_variable: str = ""
    """Environment variable that holds the key; '' for servers that ask for none."""
    timeout_seconds: float = 5.0
    """A server that has not answered by then counts as a timeout."""
    retries: int = 1
    """How often a question is repeated after an answer with mistakes."""
    budget: int | None = None
    """Calls allowed; what comes after is understood without the model. None: no limit."""
    give_up_after: int = 10
    """After this many queries in a row without an answer, the model is asked no more."""
    answer_format: Literal["schema", "object", "text"] = "schema"
    """What the server is told of the answer: its JSON schema, that it is JSON, or nothing."""
    max_answer_tokens: int = 400
    cache: Path | None = None
    """JSON-lines file of answers, shared by runs; None keeps none."""
    device: str = "auto"
    """Of the local model."""

    def __post_init__(self) -> None:
        if self.backend != "none" and not self.model:
            raise ConfigError(
                f"understanding.asker.model must name a model for backend = {self.backend!r}"
            )
        for name, low in (("retries", 0), ("give_up_after", 1), ("max_answer_tokens", 1)):
            if (value := getattr(self, name)) < low:
                raise ConfigError(f"understanding.asker.{name} must be at least {low}, got {value}")
