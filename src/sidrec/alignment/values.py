"""What objectives and rewards see: preferences, rollouts, and log-probabilities of both.

Log-probabilities are natural logs of single codes given the history and the codes before them; the
end of a shorter ID counts as a code. They are 0 where an ID has no code, so a sum over L is that
of the whole ID.

Shapes:  B contexts, R contexts of a data set, P positives, M negatives, G rollouts of a context,
         L levels, D width of a state, N items.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sidrec.errors import DataError
from sidrec.types import Floats, Histories, HistoryBatch, Ints, Items, ItemVectors, SemanticIds


@dataclass(frozen=True, eq=False)
class Preferences:
    """R contexts: what was there before, what was taken, what was left."""

    histories: Histories
    """R sequences of catalogue rows, oldest first; none is empty."""
    positives: Histories
    """R lists of catalogue rows, the best first; none is empty."""
    negatives: Histories
    """R lists of rows that were shown and not taken; may be empty."""
    users_R: Ints
    """User row of each context; −1 where unknown."""
    grades_E: Floats | None = None
    """Strength of each positive (purchase above click), in the order of `positives.items_E`."""
    propensities_E: Floats | None = None
    """Probability in (0, 1] with which each positive was shown, in the same order."""

    def __post_init__(self) -> None:
        num = len(self.users_R)
        if not (len(self.histories) == len(self.positives) == len(self.negatives) == num):
            raise DataError("preferences need a history, positives, negatives and user a context")
        for name in ("histories", "positives"):
            if num and (getattr(self, name).lengths < 1).any():
                raise DataError(f"a context has no {name}; drop it")
        for name in ("grades_E", "propensities_E"):
            value = getattr(self, name)
            if value is not None and value.shape != self.positives.items_E.shape:
                raise DataError(f"{name} must have one value a positive, got {value.shape}")

    def __len__(self) -> int:
        return len(self.users_R)

    def take(self, rows: Ints) -> Self:
        """The chosen contexts, in the given order."""
        events = Histories(np.arange(len(self.positives.items_E)), self.positives.offsets)
        chosen_E = events.take(rows).items_E
        return replace(
            self,
            histories=self.histories.take(rows),
            positives=self.positives.take(rows),
            negatives=self.negatives.take(rows),
            users_R=self.users_R[rows],
            grades_E=None if self.grades_E is None else self.grades_E[chosen_E],
            propensities_E=None if self.propensities_E is None else self.propensities_E[chosen_E],
        )


@dataclass(frozen=True, eq=False)
class AlignmentContext:
    """What a reward or judge may learn from: the catalogue and training events, nothing later."""

    items: Items
    vectors: ItemVectors
    ids: SemanticIds
    train: Histories
    """One sequence a user."""
    preferences: Preferences | None = None
    """Training contexts with what was shown and left; None where no impressions are at hand."""
    seed: int = 0

    @property
    def train_counts_N(self) -> Ints:
        """Training events of each item."""
        return self.train.counts(len(self.items))


@dataclass(frozen=True, eq=False)
class Rollouts:
    """G IDs that a policy wrote for each of B contexts."""

    batch: HistoryBatch
    targets_B: Tensor
    """(B,) catalogue row that came next, the truth."""
    users_B: Tensor
    """(B,) user row, −1 where unknown."""
    codes_BGL: Tensor
    """(B, G, L) codes, −1 after the end of a shorter ID."""
    rows_BG: Tensor
    """(B, G) an item of that ID, −1 where no item holds it (unconstrained rollouts) or where there
    is no rollout."""
    log_probs_BGL: Tensor
    """(B, G, L) at the time of sampling, no gradient."""
    lengths_BG: Tensor
    """(B, G) codes of each ID, its end included; 0 where there is no rollout (tree too small)."""
    target_codes_BL: Tensor
    ranked: bool = True
    """Whether column g is the g-th best of a beam; samples have no order."""

    @property
    def real_BG(self) -> Tensor:
        """(B, G) whether there is a rollout."""
        return self.lengths_BG > 0

    @property
    def valid_BG(self) -> Tensor:
        """(B, G) whether some item holds the ID."""
        return self.rows_BG >= 0

    @property
    def hits_BG(self) -> Tensor:
        """(B, G) whether the rollout is the ID of the truth."""
        same_BG = (self.codes_BGL == self.target_codes_BL[:, None]).all(-1)
        return same_BG & self.real_BG

    def take(self, rows: Tensor) -> Rollouts:
        """The chosen contexts."""
        batch = self.batch
        return replace(
            self,
            batch=HistoryBatch(batch.items_BT[rows], batch.lengths_B[rows]),
            targets_B=self.targets_B[rows],
            users_B=self.users_B[rows],
            codes_BGL=self.codes_BGL[rows],
            rows_BG=self.rows_BG[rows],
            log_probs_BGL=self.log_probs_BGL[rows],
            lengths_BG=self.lengths_BG[rows],
            target_codes_BL=self.target_codes_BL[rows],
        )

    def of_targets(self) -> Rollouts:
        """The truth itself as the only rollout of each context, so that rewards can score it."""
        num_levels = self.codes_BGL.shape[-1]
        num_codes_B1 = (self.target_codes_BL >= 0).sum(-1, keepdim=True)
        lengths_B1 = (num_codes_B1 + 1).clamp(max=num_levels)  # the end of a shorter ID counts
        return replace(
            self,
            codes_BGL=self.target_codes_BL[:, None],
            rows_BG=self.targets_B[:, None],
            log_probs_BGL=self.log_probs_BGL.new_zeros(len(self.targets_B), 1, num_levels),
            lengths_BG=lengths_B1,
        )


@dataclass(frozen=True, eq=False)
class PreferenceLogProbs:
    """What a preference objective sees; the first positive of each context is its best one."""

    positive_BPL: Tensor
    negative_BML: Tensor
    positive_lengths_BP: Tensor
    """Codes of each ID; 0 where a context has fewer than P."""
    negative_lengths_BM: Tensor
    shared_BM: Tensor
    """Leading codes that each negative shares with the first positive."""
    shared_any_BM: Tensor
    """The most that it shares with any positive."""
    reference_positive_BP: Tensor | None = None
    """Whole-ID log-probabilities under the reference, no gradient."""
    reference_negative_BM: Tensor | None = None
    positive_states_BPD: Tensor | None = None
    """Representation of each whole ID in its context, for weights by similarity."""
    negative_states_BMD: Tensor | None = None

    @property
    def positive_BP(self) -> Tensor:
        """Whole-ID log-probabilities."""
        return self.positive_BPL.sum(-1)

    @property
    def negative_BM(self) -> Tensor:
        """Whole-ID log-probabilities."""
        return self.negative_BML.sum(-1)

    @property
    def has_positive_BP(self) -> Tensor:
        return self.positive_lengths_BP > 0

    @property
    def has_negative_BM(self) -> Tensor:
        return self.negative_lengths_BM > 0


@dataclass(frozen=True, eq=False)
class GroupLogProbs:
    """What a group objective sees: G rollouts of each context with their rewards, and the truth."""

    policy_BGL: Tensor
    """With gradient."""
    sampled_BGL: Tensor
    """When the rollouts were made, no gradient; equal in value to `policy_BGL.detach()` while each
    rollout is used once."""
    lengths_BG: Tensor
    """Codes of each rollout; 0 where there is none."""
    rewards_BG: Tensor
    """The (business) reward."""
    target_BL: Tensor
    """Log-probabilities of the codes of the truth, with gradient."""
    target_lengths_B: Tensor
    hits_BG: Tensor
    """Whether a rollout is the ID of the truth."""
    valid_BG: Tensor
    """Whether some item holds it."""
    target_rewards_B: Tensor | None = None
    """Reward of the truth by the same judge as the rollouts."""
    semantic_BG: Tensor | None = None
    """Reward of the semantic judge."""
    judged_BG: Tensor | None = None
    """Which of them were judged; whole groups, but for answers that could not be read."""
    reference_BGL: Tensor | None = None
    values_BGL: Tensor | None = None
    """Value head's estimate before each code, with gradient (PPO)."""
    sampled_values_BGL: Tensor | None = None
    still_BG: Tensor | None = None
    """Whole-ID log-probabilities of the rollouts without dropout, no gradient, for diagnostics;
    None where `policy_BGL` has none either."""
    still_target_B: Tensor | None = None
    """That of the truth."""

    @property
    def real_BG(self) -> Tensor:
        return self.lengths_BG > 0

    @property
    def mask_BGL(self) -> Tensor:
        """(B, G, L) 1.0 where a rollout has a code."""
        places_L = torch.arange(self.policy_BGL.shape[-1], device=self.policy_BGL.device)
        return (places_L < self.lengths_BG[..., None]).to(self.policy_BGL.dtype)

    @property
    def target_nats_B(self) -> Tensor:
        """−log π of the truth's whole ID."""
        return -self.target_BL.sum(-1)

    @property
    def diagnosed_BG(self) -> Tensor:
        """Whole-ID log-probabilities of the rollouts as gates see them."""
        return self.policy_BGL.detach().sum(-1) if self.still_BG is None else self.still_BG

    @property
    def diagnosed_nats_B(self) -> Tensor:
        """−log π of the truth as gates see it."""
        still_B = self.still_target_B
        return self.target_nats_B.detach() if still_B is None else -still_B
