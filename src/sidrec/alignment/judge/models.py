"""A language model by its settings: behind an endpoint, or here. Loaded when it is asked for."""

from __future__ import annotations

from typing import Any, Protocol


class LanguageSettings(Protocol):
    """What the settings of whoever asks a model have in common."""

    @property
    def backend(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def base_url(self) -> str: ...
    @property
    def api_key_variable(self) -> str: ...
    @property
    def timeout_seconds(self) -> float: ...
    @property
    def max_answer_tokens(self) -> int: ...
    @property
    def answer_format(self) -> Any: ...
    @property
    def device(self) -> str: ...


def open_model(settings: LanguageSettings, *, client: Any = None) -> Any:
    """That of `backend` "endpoint", or the local one; `client` stands in for server or model."""
    if settings.backend == "endpoint":
        from sidrec.alignment.judge.endpoint import Endpoint

        return Endpoint.open(
            model=settings.model,
            base_url=settings.base_url,
            api_key_variable=settings.api_key_variable,
            timeout_seconds=settings.timeout_seconds,
            max_answer_tokens=settings.max_answer_tokens,
            answer_format=settings.answer_format,
            client=client,
        )
    from sidrec.alignment.judge.local import LocalModel

    return client or LocalModel.open(
        settings.model, device=settings.device, max_answer_tokens=settings.max_answer_tokens
    )
