"""A value computed from weights, kept until one of them changes: what a trained model answers from.

An answer must not compute a table of the whole catalogue anew, nor be read from one of older
weights. Every write that PyTorch counts is seen (`load_state_dict`, optimisers, in-place
arithmetic, another tensor in the place of the old one); fused optimisers leave no trace, so models
also call `forget` whenever they change between training and answering.

Cost:     a look at each tensor's address and version a call; microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Kept(Generic[T]):
    """One such value."""

    def __init__(self) -> None:
        self._held: tuple[Any, T | None] = (None, None)

    def of(self, weights: Iterable[Tensor], make: Callable[[], T]) -> T:
        """`make()` without gradient, or what it gave for the same state of `weights`."""
        key = [(weight.data_ptr(), weight._version) for weight in weights]
        held_key, held = self._held
        if held is None or held_key != key:
            # no inference tensors, which no later training step could save for its backward pass
            with torch.inference_mode(False), torch.no_grad():
                held = make()
            self._held = key, held
        return held

    def forget(self) -> None:
        """Compute it anew at the next call."""
        self._held = None, None
