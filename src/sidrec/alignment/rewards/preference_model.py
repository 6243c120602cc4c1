"""A reward model from preference pairs: r(x, y) such that what was taken beats what was left.

    P(w over l | x) = σ(r(x, w) − r(x, l))        loss = − log σ(r(x, w) − r(x, l))

Only differences inside a context are learnt: r has no zero. Rewards are shifted so that those of
held-out candidates have mean 0; a group objective does not care.

Source:   Bradley & Terry 1952; as a reward model, Ouyang et al. 2022, eq. 1 (arXiv:2203.02155).
Differs:  r is `interest_ranker`, not a language model; each positive meets a few drawn negatives of
          its context an epoch, not every pair; grades of positives are not compared.
Cost:     as `ranker`.
Shapes:   B contexts, G rollouts of a context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from sidrec.alignment.preferences import split_by_user
from sidrec.alignment.rewards.interest_ranker import (
    LOGIT_RANGE,
    InterestConfig,
    InterestRanker,
    Training,
    fit,
    new_network,
    paired_slates,
    pairwise,
    slate_logits,
)
from sidrec.alignment.values import AlignmentContext, Rollouts
from sidrec.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PreferenceModelConfig(InterestConfig):
    """Settings of `PreferenceModel`."""


@dataclass(frozen=True, kw_only=True)
class PreferenceReport:
    """What a reward model is worth on held-out users."""

    num_contexts: int
    """Learnt from."""
    num_held_out: int
    """Contexts held out."""
    pair_accuracy: float
    """Share of held-out pairs in their right order, ties half: the AUC inside a context."""
    log_loss: float
    """Nats a held-out pair; log 2 knows nothing."""
    training: Training


@dataclass(frozen=True, eq=False)
class PreferenceModel:
    """A fitted reward model as a reward."""

    config_class: ClassVar[type] = PreferenceModelConfig
    learns: ClassVar[bool] = True

    config: PreferenceModelConfig
    network: InterestRanker
    zero: float
    """Mean score of held-out candidates."""
    report: PreferenceReport

    @classmethod
    def build(cls, context: AlignmentContext, config: PreferenceModelConfig) -> Self:
        """Trained; `report` says how well. DataError where nothing was shown and left."""
        contexts = context.preferences
        if contexts is None or not contexts.negatives.lengths.any():
            raise DataError(
                "preference_model needs preferences with items that were shown and left, got none; "
                "use from_impressions or exposed, or choose the ranker reward"
            )
        contexts = contexts.take(np.flatnonzero(contexts.negatives.lengths > 0))
        learnt, held = split_by_user(contexts, config.held_out_share, context.seed)
        network = new_network(context, learnt, config)
        num, seed = config.num_negatives, context.seed
        held_slates = paired_slates(held, num, np.random.default_rng([seed, 3]))
        training = fit(
            network,
            learnt,
            lambda epoch: paired_slates(learnt, num, np.random.default_rng([seed, 4, epoch])),
            held,
            held_slates,
            pairwise,
            seed,
        )
        scores_SX = slate_logits(network, held.histories, held_slates)
        margins_SM = scores_SX[:, :1] - scores_SX[:, 1:]
        report = PreferenceReport(
            num_contexts=len(learnt),
            num_held_out=len(held),
            pair_accuracy=float(((margins_SM > 0) + 0.5 * (margins_SM == 0)).mean()),
            log_loss=float(np.logaddexp(0, -margins_SM).mean()),
            training=training,
        )
        return cls(config, network, float(scores_SX.mean()), report)

    @torch.no_grad()
    def __call__(self, rollouts: Rollouts) -> Tensor:
        """(B, G) rewards within ± LOGIT_RANGE."""
        network = self.network.to(rollouts.rows_BG.device)
        scores_BG = network(rollouts.batch, rollouts.rows_BG).float() - self.zero
        kept_BG = scores_BG.clamp(-LOGIT_RANGE, LOGIT_RANGE)
        return kept_BG.masked_fill(~rollouts.valid_BG, -LOGIT_RANGE)
