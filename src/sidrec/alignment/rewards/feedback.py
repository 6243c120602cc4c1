"""Implicit feedback: what the user did with the item of a rollout, as far as the log knows.

    taken                grade (purchase above click), / max(propensity, clip) where asked
    shown and left       `left`, a negative number
    never shown          0

Dividing by the propensity undoes exposure: over the logging policy's lists the expected reward of
an item is then the probability that it is taken once shown, for every item alike, while plain
grades mostly say what was shown. `clip` bounds its variance and biases what is rarer.

The log is looked up by user, over all training contexts, or by user and the last events of the
history, which is the very context. The strongest of several records counts; items that share a
semantic ID are one.

Source:   graded feedback of OneRec-V2; inverse propensity scores, Schnabel et al. 2016
          (arXiv:1602.05352), clipped.
Differs:  OneRec-V2 takes the top quarter of watch time within buckets of duration and explicit
          dislikes, which our logs do not hold. `left` is not weighted: logs keep no propensities of
          what was left. What the user took in later training contexts counts too, by user. It looks
          up the very users it scores, so it does not call itself one that `learns`.
Cost:     a sort of the log once; a call O(B G log E).
Shapes:   B contexts, G rollouts of a context, E records, N items, R logged contexts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from sidrec.alignment.values import AlignmentContext, Preferences, Rollouts
from sidrec.errors import ConfigError, DataError
from sidrec.types import PAD, Floats, Histories, HistoryBatch, Ints

KEY_EVENTS = 5
"""Last events of a history by which a context is known again."""
Scope = Literal["user", "context"]


@dataclass(frozen=True, kw_only=True)
class FeedbackConfig:
    """Settings of `Feedback`."""

    weight: float = 1.0
    """Factor of this reward in a mixture."""
    scope: Scope = "user"
    """user: everything the user did in training; context: only after these last five events."""
    left: float = -0.5
    """Worth of what was shown and not taken; at most 0."""
    propensity: bool = False
    """Divide grades by the probability that the item was shown."""
    clip: float = 0.05
    """Propensities below count as this."""

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise ConfigError(
                f"feedback.scope must be one of {list(get_args(Scope))}, got {self.scope!r}"
            )
        if self.left > 0:
            raise ConfigError(f"feedback.left must be at most 0, got {self.left}")
        if not 0 < self.clip <= 1:
            raise ConfigError(f"feedback.clip must be above 0 and at most 1, got {self.clip}")


@dataclass(frozen=True, eq=False)
class Feedback:
    """Records of who took or left which ID, looked up for rollouts."""

    config_class: ClassVar[type] = FeedbackConfig

    config: FeedbackConfig
    groups_N: Ints
    """Number of each item's whole ID; equal for items that share one."""
    number_of: Mapping[bytes, int]
    """Number of each logged context, by the bytes of its key."""
    keys_E: Ints
    """Number of the context x N + number of the ID of each record, ascending, distinct."""
    rewards_E: Floats

    @classmethod
    def build(cls, context: AlignmentContext, config: FeedbackConfig) -> Self:
        """Sorts the log. DataError without preferences, or without the propensities asked for."""
        log = context.preferences
        if log is None:
            raise DataError(
                "feedback needs preferences, got none; use from_impressions, of_shop or exposed"
            )
        if config.propensity and log.propensities_E is None:
            raise DataError(
                "feedback.propensity needs preferences with propensities, got none; "
                "set feedback.propensity = false"
            )
        if config.scope == "user":
            log = log.take(np.flatnonzero(log.users_R >= 0))
        if not len(log):
            raise DataError(
                "feedback found no context of a known user; bring user rows or set "
                "feedback.scope = 'context'"
            )
        _, groups_N = np.unique(context.ids.codes, axis=0, return_inverse=True)
        groups_N = groups_N.ravel()
        keys_RK = _keys(log.users_R, _last_events(log.histories), config.scope)
        number_of: dict[bytes, int] = {}
        numbers_R = np.array([number_of.setdefault(k.tobytes(), len(number_of)) for k in keys_RK])
        taken, left = log.positives, log.negatives
        numbers_E = np.concatenate(
            [np.repeat(numbers_R, taken.lengths), np.repeat(numbers_R, left.lengths)]
        )
        rows_E = np.concatenate([taken.items_E, left.items_E])
        rewards_E = np.concatenate(
            [_worth(log, config), np.full(len(left.items_E), config.left, dtype=np.float32)]
        )
        keys_E = numbers_E * len(groups_N) + groups_N[rows_E]
        order = np.lexsort((-rewards_E, keys_E))  # the strongest record of a key first
        keys_E, firsts = np.unique(keys_E[order], return_index=True)
        return cls(config, groups_N, number_of, keys_E, rewards_E[order][firsts])

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """(B, G) worth of what is on record, 0 elsewhere, `left` for an ID without an item."""
        rows_BG = rollouts.rows_BG.cpu().numpy()
        numbers_B = self._numbers(rollouts.users_B.cpu().numpy(), rollouts.batch)
        keys_BG = numbers_B[:, None] * len(self.groups_N) + self.groups_N[rows_BG]
        found_BG = np.searchsorted(self.keys_E, keys_BG).clip(max=len(self.keys_E) - 1)
        known_BG = (self.keys_E[found_BG] == keys_BG) & (numbers_B >= 0)[:, None]
        rewards_BG = np.where(known_BG, self.rewards_E[found_BG], np.float32(0))
        rewards_BG = np.where(rows_BG == PAD, np.float32(self.config.left), rewards_BG)
        return torch.from_numpy(rewards_BG).to(rollouts.rows_BG.device)

    def _numbers(self, users_B: Ints, batch: HistoryBatch) -> Ints:
        """(B,) number of each context, −1 where the log has none like it."""
        last = batch.last(KEY_EVENTS)
        events_BK = np.full((len(users_B), KEY_EVENTS), PAD, dtype=np.int64)
        events_BK[:, : last.items_BT.shape[1]] = last.items_BT.cpu().numpy()
        keys_BK = _keys(users_B, events_BK, self.config.scope)
        return np.array([self.number_of.get(key.tobytes(), -1) for key in keys_BK], dtype=np.int64)


def _worth(log: Preferences, config: FeedbackConfig) -> Floats:
    """(E,) grade of each positive, over its clipped propensity where asked."""
    shape = log.positives.items_E.shape
    grades_E = np.ones(shape, dtype=np.float32) if log.grades_E is None else log.grades_E
    if not config.propensity or log.propensities_E is None:
        return grades_E
    return (grades_E / np.maximum(log.propensities_E, config.clip)).astype(np.float32)


def _last_events(histories: Histories) -> Ints:
    """(R, KEY_EVENTS) the last events of each history, oldest first, then −1."""
    batch = HistoryBatch.from_histories(histories, max_length=KEY_EVENTS)
    events_RK = np.full((len(histories), KEY_EVENTS), PAD, dtype=np.int64)
    events_RK[:, : batch.items_BT.shape[1]] = batch.items_BT.numpy()
    return events_RK


def _keys(users_R: Ints, events_RK: Ints, scope: Scope) -> Ints:
    """(R, 1 + KEY_EVENTS) what a context is known by: its user, and its last events if asked."""
    if scope == "user":
        events_RK = np.full_like(events_RK, PAD)
    return np.concatenate([users_R[:, None], events_RK], axis=1)
