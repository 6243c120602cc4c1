"""Building a model whose weights follow: nothing is drawn or computed that they replace.

A model is built again for its bundle, and for every catalogue that grows, and then takes weights
that exist. Random starts, and tables of the catalogue that only start a training, are most of what
building costs; inside `weights_follow()` they are zeros. A model built there must be loaded whole.

Cost:    a look at each call of torch while it builds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_following: ContextVar[bool] = ContextVar("weights follow", default=False)


@contextmanager
def weights_follow() -> Iterator[None]:
    """Models built inside are to be loaded with weights for every parameter and saved buffer."""
    token = _following.set(True)
    try:
        with _Zeros():
            yield
    finally:
        _following.reset(token)


def starts_fresh() -> bool:
    """Whether a model that is built now is to be trained, or used, as it is built."""
    return not _following.get()


class _Zeros(TorchFunctionMode):
    """Fills with zeros where `torch.nn.init` would draw."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
            with torch.no_grad():
                return tensor.zero_()
        return func(*args, **kwargs)
