"""What each user makes of the aspects: weights at least 0 that sum to 1, read off the history.

    s_hol(x, a) = Σ_d w_d(x) s_d(x, a)

`learned`: w = softmax(W φ(x) + b), by maximum likelihood of P(a_i above a_j) =
σ(τ (s_hol(x, a_i) − s_hol(x, a_j))), Bradley and Terry's model. `levels`, as published: a policy
draws one importance level an aspect, w is the levels over their sum, and the reward of a draw is
1[s_hol(x, a_i) > s_hol(x, a_j)]. `uniform`: 1 / A.

Source:  stage B of S-GRec (arXiv:2602.10606); 5 levels, groups of 8, KL .04 by a re-implementation.
Differs: the paper's policy is a 4B language model, ours is linear in history features; each draw is
         used once, so no ratio is clipped; weights are the policy's mean levels over their sum, not
         a draw, so that the same history always gives the same weights.
Cost:    fit: one to three seconds for 8,000 contexts on one core.
Shapes:  B contexts, R training contexts, M items left, A aspects, F history features, V levels,
         S draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnf

from sidrec.alignment.judge.embedded import Embedded
from sidrec.alignment.judge.statistics import RECENCY
from sidrec.errors import ConfigError
from sidrec.types import Floats, Ints

Kind = Literal["learned", "levels", "uniform"]
NUM_LEVELS = 5
"""Importance 1 to 5."""
RECENT = 3
"""Events that count as recent."""
HISTORY_FEATURES = (
    "length",
    "diversity",
    "repetition",
    "drift",
    "popularity",
    "popularity_spread",
    "novelty",
    "recent_novelty",
    "step_similarity",
)
BLOCK_CELLS = 2_000_000
MIN_TOTAL = 1e-12


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """How `Weights` are learned."""

    epochs: int = 200
    """Steps over all training pairs."""
    learning_rate: float = 0.05
    shrinkage: float = 1e-3
    """Squared-norm penalty on what differs between users."""
    num_samples: int = 8
    """Draws of importance levels a pair, for `levels`."""
    kl: float = 0.04
    """Pull of `levels` towards the policy that draws uniformly."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.num_samples < 2:
            raise ConfigError(
                "judge.aggregation.epochs must be at least 1 and num_samples at least 2, got "
                f"{self.epochs} and {self.num_samples}"
            )
        for name in ("learning_rate", "shrinkage", "kl"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"judge.aggregation.{name} must be at least 0, got {value}")


@dataclass(frozen=True, eq=False)
class Weights:
    """A fitted map from history features to weights."""

    kind: Kind
    aspects: tuple[str, ...]
    mean_F: Floats
    deviation_F: Floats
    maps_AVF: Floats
    """Logits of each level for `levels`; V = 1, the logits of the softmax, for `learned`."""
    bias_AV: Floats
    sharpness: float = 1.0
    """tau of Bradley and Terry's model."""

    def __call__(self, features_BF: Floats) -> Floats:
        """(B, A) at least 0, rows sum to 1."""
        if self.kind == "uniform":
            num = len(self.aspects)
            return np.full((len(features_BF), num), 1 / num, dtype=np.float32)
        inputs_BF = (features_BF - self.mean_F) / self.deviation_F
        logits_BAV = np.einsum("bf,avf->bav", inputs_BF, self.maps_AVF) + self.bias_AV
        logits = torch.from_numpy(logits_BAV)
        if self.kind == "learned":
            return logits[..., 0].softmax(-1).numpy().astype(np.float32)
        levels_V = torch.arange(1, logits.shape[-1] + 1, dtype=logits.dtype)
        return normalised((logits.softmax(-1) @ levels_V).numpy())


def uniform(aspects: tuple[str, ...]) -> Weights:
    """The same weight for every aspect and user."""
    none = np.zeros(0, dtype=np.float32)
    maps_AVF = np.zeros((len(aspects), 1, 0), dtype=np.float32)
    bias_AV = np.zeros((len(aspects), 1), dtype=np.float32)
    return Weights("uniform", aspects, none, none, maps_AVF, bias_AV)


def normalised(levels: np.ndarray) -> Floats:
    """Importance levels (..., A) over their sum: their scale never matters; all 0 is uniform.

    >>> normalised(np.array([1.0, 1.0, 2.0])).tolist() == normalised(np.array([4.0, 4.0, 8.0])).tolist()
    True
    """  # noqa: E501
    total = levels.sum(axis=-1, keepdims=True)
    even = np.full_like(levels, 1 / levels.shape[-1], dtype=np.float64)
    return np.where(total > MIN_TOTAL, levels / np.maximum(total, MIN_TOTAL), even).astype(
        np.float32
    )


def fit_weights(
    kind: Kind,
    aspects: tuple[str, ...],
    features_RF: Floats,
    scores_RGA: Floats,
    config: WeightsConfig,
    seed: int,
) -> Weights:
    """Weights that put column 0 above the other columns; NaN scores are left out."""
    if kind == "uniform":
        return uniform(aspects)
    gaps_RMA = scores_RGA[:, :1] - scores_RGA[:, 1:]
    real_RM = np.isfinite(gaps_RMA.sum(axis=2))
    used_R = real_RM.max(axis=1)
    if not used_R.any():
        raise ConfigError(
            "the judge has no pair to learn weights from: no candidate was judged; "
            "raise judge.budget, or set judge.weights = 'uniform'"
        )
    mean_F = features_RF[used_R].mean(axis=0)
    deviation_F = features_RF[used_R].std(axis=0)
    deviation_F = np.where(deviation_F > 1e-6, deviation_F, 1.0).astype(np.float32)
    inputs_RF = torch.from_numpy(((features_RF - mean_F) / deviation_F)[used_R].astype(np.float32))
    gaps = torch.from_numpy(np.nan_to_num(gaps_RMA[used_R]).astype(np.float32))
    real = torch.from_numpy(real_RM[used_R])
    fit = _likelihood if kind == "learned" else _policy
    maps_AVF, bias_AV, sharpness = fit(inputs_RF, gaps, real, config, seed)
    return Weights(kind, aspects, mean_F, deviation_F, maps_AVF.numpy(), bias_AV.numpy(), sharpness)


def _likelihood(
    inputs_RF: Tensor, gaps_RMA: Tensor, real_RM: Tensor, config: WeightsConfig, _seed: int
) -> tuple[Tensor, Tensor, float]:
    num_aspects, num_features = gaps_RMA.shape[2], inputs_RF.shape[1]
    maps_AF = torch.zeros(num_aspects, num_features, requires_grad=True)
    bias_A = torch.zeros(num_aspects, requires_grad=True)
    log_sharpness = torch.tensor(1.0, requires_grad=True)
    optimizer = torch.optim.Adam([maps_AF, bias_A, log_sharpness], lr=config.learning_rate)
    for _ in range(config.epochs):
        weights_RA = (inputs_RF @ maps_AF.T + bias_A).softmax(-1)
        margins_RM = log_sharpness.exp() * (gaps_RMA @ weights_RA[..., None])[..., 0]
        loss = (nnf.softplus(-margins_RM) * real_RM).sum() / real_RM.sum()
        loss = loss + config.shrinkage * maps_AF.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return maps_AF.detach()[:, None], bias_A.detach()[:, None], float(log_sharpness.detach().exp())


def _policy(
    inputs_RF: Tensor, gaps_RMA: Tensor, real_RM: Tensor, config: WeightsConfig, seed: int
) -> tuple[Tensor, Tensor, float]:
    """Group-relative policy gradient: the group of a context is its draws of levels."""
    num_aspects, num_features = gaps_RMA.shape[2], inputs_RF.shape[1]
    maps_AVF = torch.zeros(num_aspects, NUM_LEVELS, num_features, requires_grad=True)
    bias_AV = torch.zeros(num_aspects, NUM_LEVELS, requires_grad=True)
    optimizer = torch.optim.Adam([maps_AVF, bias_AV], lr=config.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    counts_R1 = real_RM.sum(1, keepdim=True)
    for _ in range(config.epochs):
        logits_RAV = torch.einsum("rf,avf->rav", inputs_RF, maps_AVF) + bias_AV
        log_probs_RAV = logits_RAV.log_softmax(-1)
        draws_RAS = torch.multinomial(
            log_probs_RAV.detach().exp().flatten(0, 1),
            config.num_samples,
            replacement=True,
            generator=generator,
        ).view(*logits_RAV.shape[:2], config.num_samples)
        weights_RAS = (draws_RAS + 1) / (draws_RAS + 1).sum(1, keepdim=True)
        better_RMS = (gaps_RMA @ weights_RAS > 0) & real_RM[..., None]
        rewards_RS = better_RMS.sum(1) / counts_R1  # r_pw, the mean over the context's pairs
        centred_RS = rewards_RS - rewards_RS.mean(1, keepdim=True)
        spread_R1 = rewards_RS.std(1, correction=0, keepdim=True)
        advantages_RS = centred_RS / spread_R1.clamp_min(1e-4)
        drawn_RS = log_probs_RAV.gather(2, draws_RAS).sum(1)
        kl = (log_probs_RAV.exp() * log_probs_RAV).sum(-1).sum(-1).mean()  # to uniform, + constant
        loss = -(advantages_RS * drawn_RS).mean() + config.kl * kl
        loss = loss + config.shrinkage * maps_AVF.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return maps_AVF.detach(), bias_AV.detach(), 1.0


def history_features(embedded: Embedded, items_BT: Ints, folds_B: Ints | None = None) -> Floats:
    """(B, F) in the order of `HISTORY_FEATURES`; 0 for an empty history."""
    statistics = embedded.statistics
    width = items_BT.shape[1]
    step = max(1, BLOCK_CELLS // (width * max(statistics.unit_ND.shape[1], width)))
    folds_B = np.full(len(items_BT), -1) if folds_B is None else folds_B
    blocks = [
        _history_block(embedded, items_BT[i : i + step], folds_B[i : i + step])
        for i in range(0, len(items_BT), step)
    ]
    return np.concatenate([np.zeros((0, len(HISTORY_FEATURES)), np.float32), *blocks])


def _history_block(embedded: Embedded, items_BT: Ints, folds_B: Ints) -> Floats:
    statistics = embedded.statistics
    real_BT = items_BT >= 0
    num_B = np.maximum(real_BT.sum(axis=1), 1)
    units_BTD = statistics.unit_ND[items_BT] * real_BT[:, :, None]
    sims_BTT = units_BTD @ units_BTD.swapaxes(1, 2)
    width = items_BT.shape[1]
    earlier_TT = np.tril(np.ones((width, width), dtype=bool), -1)
    earlier_BTT = earlier_TT & real_BT[:, :, None] & real_BT[:, None, :]
    best_BT = np.where(earlier_BTT, sims_BTT, -1).max(axis=2)
    same_BTT = (items_BT[:, :, None] == items_BT[:, None, :]) & earlier_BTT
    repeated_BT = same_BTT.max(axis=2)
    ranks_BT = statistics.ranks_KN[folds_B[:, None], items_BT]
    later_BT = earlier_BTT.max(axis=2)  # every event but the first
    novelty_BT = embedded.novelty(best_BT, ranks_BT, repeated_BT)
    ages_T = np.arange(width)[::-1]
    recent_BT = real_BT & (ages_T < RECENT)
    mean_BD = units_BTD.sum(axis=1) / num_B[:, None]
    recent_BD = (units_BTD * recent_BT[:, :, None]).sum(axis=1)
    steps_BT = np.concatenate(
        [np.zeros((len(items_BT), 1)), np.diagonal(sims_BTT, offset=-1, axis1=1, axis2=2)], axis=1
    )
    popularity_B = _mean(ranks_BT, real_BT)
    parts = [
        np.log(num_B),
        1 - (mean_BD**2).sum(axis=1),
        _mean(repeated_BT, later_BT),
        1 - _cosine(mean_BD, recent_BD),
        popularity_B,
        np.sqrt(_mean((ranks_BT - popularity_B[:, None]) ** 2, real_BT)),
        _mean(novelty_BT, later_BT),
        _mean(novelty_BT, later_BT * RECENCY**ages_T),
        _mean(steps_BT, later_BT),
    ]
    features_BF = np.stack(parts, axis=1).astype(np.float32)
    features_BF[~real_BT.any(axis=1)] = 0.0
    return features_BF


def _mean(values_BT: np.ndarray, weights_BT: np.ndarray) -> np.ndarray:
    return (values_BT * weights_BT).sum(axis=1) / np.maximum(weights_BT.sum(axis=1), 1e-9)


def _cosine(left_BD: np.ndarray, right_BD: np.ndarray) -> np.ndarray:
    lengths_B = np.linalg.norm(left_BD, axis=1) * np.linalg.norm(right_BD, axis=1)
    return (left_BD * right_BD).sum(axis=1) / np.maximum(lengths_B, 1e-9)
