"""Training batches: every target once an epoch, sequences of like length together.

A sequence of n events gives n − 1 targets. One longer than `max_length` + 1 is cut into windows
from its end, so that the newest targets have the longest context. Windows are sorted by length
(ties in a new random order each epoch), cut where the running number of targets passes equal
shares, and the batches shuffled: hardly any padding, and about the same number of targets a step.

Source:  packing without padding, Krell et al. 2021 (arXiv 2107.02027); here by length buckets.
Cost:    O(S log S) an epoch; a batch is one gather. Memory: three integers a window.
Shapes:  S windows, B windows of one batch, T the longest of them, E events.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch

from sidrec.errors import DataError
from sidrec.types import PAD, Histories, HistoryBatch, Ints


class Batches(Protocol):
    """What the training loop asks of the data, cut into S windows."""

    @property
    def lengths_S(self) -> Ints:
        """Targets of each window; a batch weighs as many as its windows have."""
        ...

    @property
    def users_S(self) -> Ints:
        """Whose each window is, for error messages."""
        ...

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        ...

    def epoch(self, seed: int, epoch: int) -> list[Ints]:
        """The windows of each batch of an epoch; a function of `seed` and `epoch` only."""
        ...

    def build(self, windows_B: Ints) -> Any:
        """The batch that the model's `loss` takes; it has `to(device)`."""
        ...

    def digest(self) -> str:
        """Hash of the data, so that a run is resumed on the same."""
        ...


@dataclass(frozen=True, eq=False)
class TrainingBatches:
    """The windows of all training sequences, and where each batch of an epoch ends."""

    items_E: Ints
    """Catalogue rows of all sequences, then one −1."""
    starts_S: Ints
    """Event at which each window's input starts."""
    lengths_S: Ints
    """Targets of each window, in 1 … max_length."""
    users_S: Ints
    """Row of the sequence each window was cut from."""
    bounds: Ints
    """(num_batches + 1,) positions in an epoch's order; the same in every epoch."""

    @classmethod
    def cut(cls, histories: Histories, *, max_length: int, batch_positions: int) -> Self:
        """Windows of at most `max_length` targets; batches of about `batch_positions` targets."""
        targets_U = np.maximum(histories.lengths - 1, 0)
        if not targets_U.any():
            raise DataError(
                f"nothing to learn: none of the {len(histories)} training sequences has two "
                "events; check the split, or bring users with longer histories"
            )
        windows_U = -(-targets_U // max_length)
        users_S = np.repeat(np.arange(len(histories)), windows_U)
        first_S = np.repeat(np.cumsum(windows_U) - windows_U, windows_U)
        from_end_S = np.arange(len(users_S)) - first_S
        ends_S = targets_U[users_S] - from_end_S * max_length
        begins_S = np.maximum(ends_S - max_length, 0)
        lengths_S = ends_S - begins_S
        total = int(lengths_S.sum())
        num_batches = max(1, round(total / batch_positions))
        ascending = np.sort(lengths_S)
        middles = np.cumsum(ascending) - ascending / 2
        batch_of = (middles * num_batches // total).astype(np.int64)
        cuts = np.flatnonzero(np.diff(batch_of)) + 1
        return cls(
            items_E=np.append(histories.items_E, PAD),
            starts_S=histories.offsets[users_S] + begins_S,
            lengths_S=lengths_S,
            users_S=users_S,
            bounds=np.concatenate([[0], cuts, [len(lengths_S)]]).astype(np.int64),
        )

    @property
    def num_batches(self) -> int:
        return len(self.bounds) - 1

    @property
    def num_targets(self) -> int:
        return int(self.lengths_S.sum())

    def epoch(self, seed: int, epoch: int) -> list[Ints]:
        """The windows of each batch of an epoch; a function of `seed` and `epoch` only."""
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(self.lengths_S))
        order = order[np.argsort(self.lengths_S[order], kind="stable")]
        batches = np.split(order, self.bounds[1:-1])
        return [batches[b] for b in random.permutation(self.num_batches)]

    def digest(self) -> str:
        """Hash of all events and cuts."""
        return hashlib.sha256(self.items_E.tobytes() + self.starts_S.tobytes()).hexdigest()

    def build(self, windows_B: Ints) -> HistoryBatch:
        """Inputs `sequence[:-1]` and targets `sequence[1:]`, padded on the right with −1."""
        lengths_B = self.lengths_S[windows_B]
        columns_T = np.arange(int(lengths_B.max(initial=1)))
        padding_BT = columns_T >= lengths_B[:, None]
        index_BT = self.starts_S[windows_B][:, None] + columns_T
        index_BT[padding_BT] = len(self.items_E) - 2
        items_BT, targets_BT = self.items_E[index_BT], self.items_E[index_BT + 1]
        items_BT[padding_BT] = PAD
        targets_BT[padding_BT] = PAD
        return HistoryBatch(
            torch.from_numpy(items_BT), torch.from_numpy(lengths_B), torch.from_numpy(targets_BT)
        )
