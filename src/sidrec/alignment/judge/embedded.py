"""The judge that needs no language model: aspects from vectors, history statistics and categories.

    profile  2 F(cos to the whole history) − 1, F the share of training pairs with less
    future   P(among the next items), a small network over `statistics.FEATURES` and kinds, trained
             on training sequences against sampled negatives
    novelty  0 for an item of the history, else ½ + ¼ (1 − F(best cos)) + ¼ (1 − popularity rank)
    context  F(cos to the last `session_length` events); dropped where `session_length` is 0

The reasons are sentences with the nearest items of the history. Nothing looks at the next item.

Source:  stage A of S-GRec (arXiv:2602.10606) names the aspects; the scorer is ours.
Differs: the paper scores by a 4B language model trained on 20,000 labelled pairs. Neither an
         `AlignmentContext` nor rollouts hold time or place: context is the session by order.
Cost:    fit: seconds for 8,000 contexts; O(B T G D) to judge.
Shapes:  B contexts, R training contexts, G candidates, A aspects, T history length, F features,
         H hidden units, P points of a curve.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch.nn import functional as nnf

from sidrec.alignment.judge.aspects import ASPECTS, WITHOUT_CONTEXT, Evidence
from sidrec.alignment.judge.feedback import Feedback, sampled_feedback
from sidrec.alignment.judge.histories import last_events
from sidrec.alignment.judge.statistics import FEATURES, Statistics
from sidrec.alignment.values import AlignmentContext
from sidrec.errors import ConfigError
from sidrec.types import Floats, Histories, Ints

NUM_POINTS = 65
TITLE_CHARS = 60
WORD = re.compile(r"[^\W\d_]{3,}")
STOP_WORDS = frozenset(("and", "the", "for", "with", "from", "series", "pack", "set"))


@dataclass(frozen=True, kw_only=True)
class EmbeddedConfig:
    """Settings of `Embedded`."""

    max_history: int = 50
    """How many of the last events count as the history."""
    session_length: int = 0
    """How many of the last events are the present session; 0 drops the aspect context."""
    horizon: int = 1
    """An item is a future interest if it is among this many next events."""
    max_contexts: int = 8000
    """Training contexts, at most."""
    num_negatives: int = 4
    """Sampled items each event is compared with."""
    hidden: int = 16
    """Hidden units of the network; 0 makes it a logistic regression."""
    epochs: int = 20
    batch_contexts: int = 256
    learning_rate: float = 0.01
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("max_history", "horizon", "max_contexts", "num_negatives", "epochs",
                     "batch_contexts"):  # fmt: skip
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"judge.embedded.{name} must be at least 1, got {value}")
        for name in ("session_length", "hidden", "learning_rate", "weight_decay"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"judge.embedded.{name} must be at least 0, got {value}")


@dataclass(frozen=True, eq=False)
class Network:
    """Logit of features: standardise, one hidden layer of tanh units, or none."""

    mean_F: Floats
    deviation_F: Floats
    hidden_HF: Floats
    """(0, F) where the network is linear."""
    hidden_bias_H: Floats
    linear_F: Floats
    out_H: Floats
    bias: float

    def __call__(self, features: Floats) -> Floats:
        """Logits (...) of features (..., F)."""
        inputs = (features - self.mean_F) / self.deviation_F
        units = np.tanh(inputs @ self.hidden_HF.T + self.hidden_bias_H)
        return np.asarray(inputs @ self.linear_F + units @ self.out_H + self.bias, np.float32)


@dataclass(frozen=True, eq=False)
class Embedded:
    """The fitted default back end."""

    config: EmbeddedConfig
    statistics: Statistics
    network: Network
    curves: dict[str, Floats]
    """(P,) ascending quantiles, over training pairs, of each similarity that is read as a share."""
    titles: tuple[str, ...]

    @property
    def aspects(self) -> tuple[str, ...]:
        return tuple(ASPECTS) if self.config.session_length else WITHOUT_CONTEXT

    @classmethod
    def fit(cls, context: AlignmentContext, config: EmbeddedConfig) -> Self:
        """Learn from the training sequences of `context`."""
        statistics = Statistics.of(
            context.items, context.vectors.vectors, context.train, context.seed
        )
        feedback = sampled_feedback(
            context,
            statistics,
            num=config.max_contexts,
            num_negatives=config.num_negatives,
            max_history=config.max_history,
            horizon=config.horizon,
            seed=context.seed,
        )
        features_RGF, session_RG = statistics.features(
            feedback.items_RT,
            feedback.rows_RG,
            feedback.folds_R,
            session_length=config.session_length,
        )
        balanced = feedback.rows_RG[:, :2] >= 0  # as many taken as not taken
        values = {
            "long": features_RGF[..., FEATURES.index("long_similarity")],
            "best": features_RGF[..., FEATURES.index("best_similarity")],
            "session": session_RG,
        }
        grid = np.linspace(0, 1, NUM_POINTS)
        curves = {
            name: np.quantile(value[:, :2][balanced], grid).astype(np.float32)
            for name, value in values.items()
        }
        network = fit_network(features_RGF, feedback.rows_RG >= 0, config, context.seed)
        return cls(config, statistics, network, curves, tuple(context.items.titles()))

    def evidence(
        self, histories: Histories, rows_BG: Ints, *, with_texts: bool = False
    ) -> Evidence:
        """Scores, and reasons where asked for; NaN where a row is −1."""
        return self.judged(last_events(histories, self.config.max_history), rows_BG, None,
                           with_texts=with_texts)  # fmt: skip

    def of_feedback(self, feedback: Feedback) -> Evidence:
        """Evidence of training contexts, counted without their users' folds."""
        return self.judged(feedback.items_RT, feedback.rows_RG, feedback.folds_R)

    def judged(
        self, items_BT: Ints, rows_BG: Ints, folds_B: Ints | None, *, with_texts: bool = False
    ) -> Evidence:
        """Evidence of right-aligned histories."""
        features_BGF, session_BG = self.statistics.features(
            items_BT, rows_BG, folds_B, session_length=self.config.session_length
        )
        ranks_KN = self.statistics.ranks_KN
        ranks_BG = ranks_KN[-1][rows_BG] if folds_B is None else ranks_KN[folds_B[:, None], rows_BG]
        long_BG = features_BGF[..., FEATURES.index("long_similarity")]
        best_BG = features_BGF[..., FEATURES.index("best_similarity")]
        repeat_BG = features_BGF[..., FEATURES.index("repeat")] > 0
        parts = [
            2 * self.share("long", long_BG) - 1,
            1 / (1 + np.exp(-self.network(features_BGF).astype(np.float64))),
            self.novelty(best_BG, ranks_BG, repeat_BG),
        ]
        if self.config.session_length:
            parts.append(self.share("session", session_BG))
        scores_BGA = np.stack(parts, axis=-1).astype(np.float32)
        empty_B = (items_BT < 0).all(axis=1)
        scores_BGA[empty_B, :, 0] = 0.0
        scores_BGA[rows_BG < 0] = np.nan
        texts = self._texts(items_BT, rows_BG, scores_BGA) if with_texts else ()
        return Evidence(self.aspects, scores_BGA, texts)

    def novelty(self, best: Floats, ranks: Floats, repeated: np.ndarray) -> Floats:
        """Novelty in [0, 1] from the best similarity to the history and the popularity rank."""
        new = 0.5 + 0.25 * (1 - self.share("best", best)) + 0.25 * (1 - ranks)
        return np.where(repeated, 0.0, new).astype(np.float32)

    def share(self, curve: str, values: Floats) -> Floats:
        """The share of training pairs with a lower value, in [0, 1]."""
        return np.interp(values, self.curves[curve], np.linspace(0, 1, NUM_POINTS)).astype(
            np.float32
        )

    def _texts(
        self, items_BT: Ints, rows_BG: Ints, scores_BGA: Floats
    ) -> tuple[tuple[tuple[str, ...], ...], ...]:
        sims_BTG = self.statistics.similarities(items_BT, rows_BG)
        return tuple(
            tuple(
                self._reasons(items_BT[b], int(row), scores_BGA[b, g], sims_BTG[b, :, g])
                for g, row in enumerate(rows_BG[b])
            )
            for b in range(len(rows_BG))
        )

    def _reasons(
        self, items_T: Ints, row: int, scores_A: Floats, sims_T: Floats
    ) -> tuple[str, ...]:
        if row < 0:
            return ("",) * len(self.aspects)
        real_T = np.flatnonzero(items_T >= 0)
        if not len(real_T):
            return ("The history is empty.",) * len(self.aspects)
        near = items_T[real_T[np.argsort(-sims_T[real_T], kind="stable")]]
        nearest = list(dict.fromkeys(int(i) for i in near))[:2]
        words = self._shared_words(row, nearest[0])
        kin = f"; both are about {', '.join(words)}" if words else ""
        last = self._title(int(items_T[-1]))
        kind = "is in the history already" if row in items_T else (
            f"is not in the history; nearest there is {self._title(nearest[0])}"
        )  # fmt: skip
        known = float(self.statistics.ranks_KN[-1][row])
        level = dict(zip(self.aspects, (float(s) for s in scores_A), strict=True))
        reasons = {
            "profile": f"Closest in the whole history: "
            f"{' and '.join(self._title(i) for i in nearest)}{kin}.",
            "future": f"After {last}, {level['future']:.0%} likely to be taken rather than a "
            "random item.",
            "novelty": f"It {kind}; better known than {known:.0%} of the catalogue.",
            "context": f"Closer to the last events, {last} the newest, than "
            f"{level.get('context', 0):.0%} of items are.",
        }
        return tuple(reasons[name] for name in self.aspects)

    def _title(self, row: int) -> str:
        title = " ".join(self.titles[row].split())
        return f"“{title if len(title) <= TITLE_CHARS else title[: TITLE_CHARS - 1] + '…'}”"

    def _shared_words(self, row: int, other: int) -> list[str]:
        theirs = set(WORD.findall(self.titles[other].lower()))
        mine = dict.fromkeys(WORD.findall(self.titles[row].lower()))
        return [word for word in mine if word in theirs and word not in STOP_WORDS][:3]


def fit_network(
    features_RGF: Floats, real_RG: np.ndarray, config: EmbeddedConfig, seed: int
) -> Network:
    """Tell column 0 (taken) from the other columns; both sides weigh the same."""
    flat_EF = features_RGF[real_RG].astype(np.float64)
    mean_F = flat_EF.mean(axis=0)
    deviation_F = flat_EF.std(axis=0)
    deviation_F = np.where(deviation_F > 1e-6, deviation_F, 1.0)
    inputs_RGF = torch.from_numpy(((features_RGF - mean_F) / deviation_F).astype(np.float32))
    real = torch.from_numpy(real_RG)
    truth = torch.zeros(real.shape)
    truth[:, 0] = 1.0
    share = real[:, 1:].sum() / real[:, 0].sum().clamp_min(1)
    weights = torch.where(truth > 0, share, 1.0) * real
    generator = torch.Generator().manual_seed(seed)
    width = inputs_RGF.shape[2]
    hidden = torch.randn(config.hidden, width, generator=generator) / width**0.5
    parameters = [hidden, torch.zeros(config.hidden), torch.zeros(width),
                  torch.zeros(config.hidden), torch.zeros(())]  # fmt: skip
    for parameter in parameters:
        parameter.requires_grad_()
    hidden, hidden_bias, linear, out, bias = parameters
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    for _ in range(config.epochs):
        for rows in torch.randperm(len(inputs_RGF), generator=generator).split(
            config.batch_contexts
        ):
            inputs = inputs_RGF[rows]
            units = torch.tanh(inputs @ hidden.T + hidden_bias)
            logits = inputs @ linear + units @ out + bias
            loss = nnf.binary_cross_entropy_with_logits(
                logits, truth[rows], weights[rows], reduction="sum"
            ) / weights[rows].sum().clamp_min(1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    arrays = [parameter.detach().numpy() for parameter in parameters]
    return Network(
        mean_F.astype(np.float32),
        deviation_F.astype(np.float32),
        hidden_HF=arrays[0],
        hidden_bias_H=arrays[1],
        linear_F=arrays[2],
        out_H=arrays[3],
        bias=float(arrays[4]),
    )
