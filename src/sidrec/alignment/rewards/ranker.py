"""A trained ranker: the calibrated probability that the user takes the item of a rollout.

The stand-in for a production ranker: `interest_ranker` learnt by cross-entropy on items shown and
taken or left, or, without impressions, on next items against items drawn from the catalogue. It
sees training contexts only. A tenth of the users is held out: they choose the epoch, calibrate the
output and give the report, in which each half is judged by the calibration of the other.

A probability means: of what was learnt from. Against drawn items the share of positives is that
of the drawing; logged lists without a click are no contexts, so lists of `of_shop` hold more clicks
than the shop.

Source:   reward model of AdaGRPO (arXiv:2606.08480), there a production ranker; the network is
          DIN's (arXiv:1706.06978).
Differs:  small, without user profiles; noise can be added to test how robust an objective is.
Cost:     training seconds to a minute; a call O(B G T D H), one pass.
Shapes:   B contexts, G rollouts of a context, P pairs of a context and an item.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from sidrec.alignment.preferences import from_histories, held_out, split_by_user
from sidrec.alignment.rewards.calibration import (
    KINDS,
    Calibration,
    Kind,
    Values,
    expected_calibration_error,
    log_loss,
)
from sidrec.alignment.rewards.interest_ranker import (
    LOGIT_RANGE,
    InterestConfig,
    InterestRanker,
    Slates,
    Training,
    fit,
    new_network,
    pointwise,
    sampled_slates,
    shown_slates,
    slate_logits,
)
from sidrec.alignment.values import AlignmentContext, Preferences, Rollouts
from sidrec.errors import ConfigError, DataError
from sidrec.types import Bools, Ints

LearnFrom = Literal["auto", "shown", "drawn"]
Output = Literal["probability", "logit"]


@dataclass(frozen=True, kw_only=True)
class RankerConfig(InterestConfig):
    """Settings of `Ranker`."""

    learn_from: LearnFrom = "auto"
    """shown: what was shown and taken or left; drawn: next items against drawn ones; auto: shown
    where the preferences hold negatives, else drawn. The report says which."""
    popularity_share: float = 0.5
    """Share of drawn negatives that are drawn by training count; the rest are uniform."""
    calibration: Kind = "platt"
    """platt, isotonic or none, on held-out users."""
    output: Output = "probability"
    """probability: in [0, 1]; logit: its log-odds, within ± 10."""
    noise: float = 0.0
    """Deviation of Gaussian noise on the log-odds, fixed for each user and item."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (
            ("learn_from", get_args(LearnFrom)),
            ("calibration", KINDS),
            ("output", get_args(Output)),
        ):
            if (value := getattr(self, name)) not in choices:
                raise ConfigError(f"ranker.{name} must be one of {list(choices)}, got {value!r}")
        for name, high in (("popularity_share", 1.0), ("noise", np.inf)):
            if not 0 <= (value := getattr(self, name)) <= high:
                raise ConfigError(f"ranker.{name} must be between 0 and {high}, got {value}")


@dataclass(frozen=True, kw_only=True)
class RankerReport:
    """What a ranker is worth on held-out users."""

    learnt_from: str
    """shown or drawn."""
    num_contexts: int
    """Learnt from."""
    num_held_out: int
    """Contexts held out."""
    taken_share: float
    """Of the held-out pairs."""
    auc: float
    """Of all held-out pairs together."""
    auc_in_context: float
    """Mean over held-out contexts with both kinds, which is what ranking asks."""
    log_loss: float
    """Nats a pair, before calibration."""
    log_loss_calibrated: float
    calibration_error: float
    """Expected calibration error in 15 bins of equal size, before calibration."""
    calibration_error_calibrated: float
    """After it; each half of the held-out users under the calibration of the other half."""
    training: Training


@dataclass(frozen=True, eq=False)
class Ranker:
    """A fitted ranker as a reward."""

    config_class: ClassVar[type] = RankerConfig
    learns: ClassVar[bool] = True

    config: RankerConfig
    network: InterestRanker
    calibration: Calibration
    report: RankerReport
    seed: int

    @classmethod
    def build(cls, context: AlignmentContext, config: RankerConfig) -> Self:
        """Trained and calibrated; `report` says how well."""
        contexts, source = _contexts(context, config.learn_from)
        learnt, held = split_by_user(contexts, config.held_out_share, context.seed)
        counts_N = learnt.positives.counts(len(context.items))

        def slates_of(chosen: Preferences, stream: tuple[int, ...]) -> Slates:
            random = np.random.default_rng([context.seed, *stream])
            if source == "shown":
                return shown_slates(chosen, random)
            share, num = config.popularity_share, config.num_negatives
            return sampled_slates(chosen, counts_N, num, share, random)

        network = new_network(context, learnt, config)
        held_slates = slates_of(held, (3,))
        training = fit(
            network,
            learnt,
            lambda epoch: slates_of(learnt, (4, epoch)),
            held,
            held_slates,
            pointwise,
            context.seed,
        )
        logits_SX = slate_logits(network, held.histories, held_slates)
        real_SX = held_slates.rows_SX >= 0
        contexts_P = np.repeat(held_slates.contexts_S, real_SX.sum(axis=1))
        logits_P = logits_SX[real_SX].astype(np.float64)
        taken_P = held_slates.taken_SX[real_SX]
        calibrated_P = _cross_calibrated(config.calibration, logits_P, taken_P, contexts_P, held)
        raw_P = sigmoid(logits_P)
        report = RankerReport(
            learnt_from=source,
            num_contexts=len(learnt),
            num_held_out=len(held),
            taken_share=float(taken_P.mean()),
            auc=auc(logits_P, taken_P),
            auc_in_context=auc_in_context(logits_P, taken_P, contexts_P),
            log_loss=log_loss(raw_P, taken_P),
            log_loss_calibrated=log_loss(calibrated_P, taken_P),
            calibration_error=expected_calibration_error(raw_P, taken_P),
            calibration_error_calibrated=expected_calibration_error(calibrated_P, taken_P),
            training=training,
        )
        calibration = Calibration.fit(config.calibration, logits_P, taken_P)
        return cls(config, network, calibration, report, context.seed)

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """(B, G) probabilities or log-odds."""
        logits_BG = self.logits(rollouts)
        if self.config.output == "logit":
            return logits_BG.masked_fill(~rollouts.valid_BG, -LOGIT_RANGE)
        return logits_BG.sigmoid() * rollouts.valid_BG

    @torch.no_grad()
    def logits(self, rollouts: Rollouts) -> Tensor:
        """(B, G) calibrated log-odds with their noise, within ± LOGIT_RANGE."""
        device = rollouts.rows_BG.device
        raw_BG = self.network.to(device)(rollouts.batch, rollouts.rows_BG)
        logits_BG = self.calibration.logits(raw_BG.cpu().numpy().astype(np.float64))
        if self.config.noise:
            rows_BG, users_B = rollouts.rows_BG.cpu().numpy(), _who(rollouts)
            logits_BG = logits_BG + self.config.noise * noise(users_B[:, None], rows_BG, self.seed)
        kept_BG = np.clip(logits_BG, -LOGIT_RANGE, LOGIT_RANGE).astype(np.float32)
        return torch.from_numpy(kept_BG).to(device)


def noise(users: Ints, rows: Ints, seed: int) -> Values:
    """Standard normal numbers, each a function of user, item and seed alone.

    Both uniforms of Box and Muller come from splitmix64's finaliser, so that a user and an item
    meet the same error in every batch, on every machine.
    """
    keys = _mixed(_mixed(users.astype(np.uint64) + np.uint64(seed)) ^ rows.astype(np.uint64))
    first, second = (
        ((_mixed(keys + np.uint64(stream)) >> np.uint64(11)) + 0.5) * 2.0**-53 for stream in (1, 2)
    )
    return np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second)


def auc(scores_P: Values, taken_P: Bools) -> float:
    """P(a taken pair scores above a left one), ties half; NaN where one kind is missing."""
    num_taken = int(taken_P.sum())
    if not 0 < num_taken < len(taken_P):
        return float("nan")
    from scipy.stats import rankdata

    ranks = rankdata(scores_P)[taken_P].sum() - num_taken * (num_taken + 1) / 2
    return float(ranks / (num_taken * (len(taken_P) - num_taken)))


def auc_in_context(scores_P: Values, taken_P: Bools, contexts_P: Ints) -> float:
    """Mean AUC of the contexts that hold both kinds; NaN where none does."""
    order = np.argsort(contexts_P, kind="stable")
    ends = np.flatnonzero(np.diff(contexts_P[order])) + 1
    each = [auc(scores_P[rows], taken_P[rows]) for rows in np.split(order, ends)]
    known = [value for value in each if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def sigmoid(logits: Values) -> Values:
    """Probabilities of log-odds, infinite ones included."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logits))


def _contexts(context: AlignmentContext, learn_from: LearnFrom) -> tuple[Preferences, str]:
    """The contexts to learn from, and whether their shown items count."""
    shown = context.preferences
    has_negatives = shown is not None and bool(shown.negatives.lengths.any())
    if learn_from == "shown" and not has_negatives:
        raise DataError(
            "ranker.learn_from = 'shown' needs preferences with items that were shown and left, "
            "got none; use from_impressions or exposed, or set learn_from = 'drawn'"
        )
    if shown is not None and has_negatives and learn_from != "drawn":
        return shown, "shown"
    return from_histories(context.train), "drawn"


def _cross_calibrated(
    kind: Kind, logits_P: Values, taken_P: Bools, contexts_P: Ints, held: Preferences
) -> Values:
    """(P,) probabilities, each half of the users under the calibration of the other half."""
    second_P = held_out(held.users_R, 0.5, 0)[contexts_P]
    probs_P = np.empty_like(logits_P)
    for half_P in (second_P, ~second_P):
        other = Calibration.fit(kind, logits_P[~half_P], taken_P[~half_P])
        probs_P[half_P] = sigmoid(other.logits(logits_P[half_P]))
    return probs_P


def _who(rollouts: Rollouts) -> Ints:
    """(B,) user rows; where unknown, a number that the last event and the length decide."""
    batch, users_B = rollouts.batch, rollouts.users_B.cpu().numpy()
    last_B = batch.items_BT.gather(1, (batch.lengths_B - 1).clamp_min(0)[:, None])[:, 0]
    stand_ins_B = -2 - last_B.cpu().numpy() - (batch.lengths_B.cpu().numpy() << 32)
    return np.where(users_B < 0, stand_ins_B, users_B)


def _mixed(keys: np.ndarray) -> np.ndarray:
    """splitmix64 of unsigned 64-bit numbers."""
    keys = keys + np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
