"""Batches of contexts for the training loop: each context is one target, in random order.

Source:   the shape of a preference session follows RAD-DPO (arXiv:2602.23964), sec. 3.
Cost:     a batch is a few gathers.
Shapes:   R contexts, B contexts of a batch, T history length, P positives, S shown and left.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sidrec.alignment.values import Preferences
from sidrec.errors import ConfigError, DataError
from sidrec.types import PAD, Histories, HistoryBatch, Ints


@dataclass(frozen=True, eq=False)
class ContextBatch:
    """B contexts on their way through one step."""

    histories: HistoryBatch
    positives_BP: Tensor
    """Catalogue rows, the best first, −1 after the last."""
    shown_BS: Tensor
    """Rows shown and left, −1 after the last."""
    users_B: Tensor

    @property
    def targets_B(self) -> Tensor:
        """The best positive."""
        return self.positives_BP[:, 0]

    def to(self, device: torch.device | str) -> ContextBatch:
        """The same batch on another device."""
        return replace(
            self,
            histories=self.histories.to(device),
            positives_BP=self.positives_BP.to(device),
            shown_BS=self.shown_BS.to(device),
            users_B=self.users_B.to(device),
        )

    def with_targets(self) -> HistoryBatch:
        """The histories with every next item as a target, the best positive last."""
        items_BT, lengths_B = self.histories.items_BT, self.histories.lengths_B
        targets_BT = torch.nn.functional.pad(items_BT[:, 1:], (0, 1), value=PAD)
        targets_BT = targets_BT.scatter(1, lengths_B[:, None] - 1, self.targets_B[:, None])
        return replace(self.histories, targets_BT=targets_BT)


@dataclass(frozen=True, eq=False)
class ContextBatches:
    """All contexts of a run, `batch_contexts` a step; `training.train` takes it as its data."""

    preferences: Preferences
    max_length: int
    """Longest history that the policy reads."""
    batch_contexts: int
    max_positives: int = 8
    """Best positives of a context that are used."""
    max_shown: int = 32
    """First negatives of a context that are kept to draw from."""

    def __post_init__(self) -> None:
        if self.batch_contexts < 1:
            raise ConfigError(f"batches need at least one context, got {self.batch_contexts}")
        if not len(self.preferences):
            raise DataError("there is no context to align on; check the data and max_contexts")

    @property
    def lengths_S(self) -> Ints:
        """One target a context."""
        return np.ones(len(self.preferences), dtype=np.int64)

    @property
    def users_S(self) -> Ints:
        return self.preferences.users_R

    @property
    def num_batches(self) -> int:
        return -(-len(self.preferences) // self.batch_contexts)

    def epoch(self, seed: int, epoch: int) -> list[Ints]:
        """All contexts in an order that depends on `seed` and `epoch` only."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self.preferences))
        return np.array_split(order, self.num_batches)

    def build(self, windows_B: Ints) -> ContextBatch:
        """The contexts of a step."""
        chosen = self.preferences
        histories = HistoryBatch.from_histories(
            chosen.histories, windows_B, max_length=self.max_length
        )
        return ContextBatch(
            histories,
            padded(chosen.positives, windows_B, self.max_positives),
            padded(chosen.negatives, windows_B, self.max_shown),
            torch.from_numpy(chosen.users_R[windows_B]),
        )

    def digest(self) -> str:
        """Hash of all contexts."""
        digest = hashlib.sha256()
        for part in ("histories", "positives", "negatives"):
            lists: Histories = getattr(self.preferences, part)
            digest.update(lists.offsets.tobytes())
            digest.update(lists.items_E.tobytes())
        return digest.hexdigest()


def padded(lists: Histories, rows_B: Ints, most: int) -> Tensor:
    """(B, n) the first `most` entries of each chosen list, −1 after the last; n is at least 1."""
    starts_B = lists.offsets[rows_B]
    lengths_B = np.minimum(lists.offsets[rows_B + 1] - starts_B, most)
    columns = np.arange(max(int(lengths_B.max(initial=0)), 1))
    flat = np.append(lists.items_E, PAD)
    places = np.where(columns < lengths_B[:, None], starts_B[:, None] + columns, len(flat) - 1)
    return torch.from_numpy(flat[places])
