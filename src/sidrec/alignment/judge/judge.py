"""The Personalised Semantic Judge as a reward: aspect evidence, then each user's own weights.

    r_sem(x, a) = s_hol(x, a) = Σ_d w_d(x) s_d(x, a)

A back end gives the evidence s: `embedded` (small, trained here), `endpoint` (any server that
speaks OpenAI's protocol), `local` (a Hugging Face model), `similarity` (for tests). The weights w
come from features of the history, learned from pairs of training events; see `weights`. The judge
is part of training; nothing that recommends imports it.

Source:  S-GRec (arXiv:2602.10606), sec. on the judge, by secondary summaries.
Differs: see `embedded`, `asking` and `weights`. With a language model as back end, the weights are
         learned on the evidence of the embedded judge, unless `judged_pairs` buys its own.
Cost:    build: 2 to 10 seconds on one core; a call of a language model a context.
Shapes:  B contexts, G candidates of a context, A aspects, R training contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, cast

import numpy as np
import torch
from torch import Tensor

from sidrec.alignment.judge.aspects import ASPECTS, Evidence
from sidrec.alignment.judge.embedded import Embedded, EmbeddedConfig
from sidrec.alignment.judge.feedback import Feedback, sampled_feedback, shown_feedback
from sidrec.alignment.judge.histories import last_events, of_batch
from sidrec.alignment.judge.ledger import Ledger
from sidrec.alignment.judge.models import open_model
from sidrec.alignment.judge.similarity import SimilarityJudge
from sidrec.alignment.judge.weights import (
    Kind,
    Weights,
    WeightsConfig,
    fit_weights,
    history_features,
)
from sidrec.alignment.values import AlignmentContext, Rollouts
from sidrec.errors import ConfigError
from sidrec.types import Floats, Histories, Ints

WEIGHT_CONTEXTS = 8000
"""Training contexts that weights are learned from, at most."""
LANGUAGE = ("endpoint", "local")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Settings of `Judge`."""

    weight: float = 1.0
    """Factor of the score in a sum with other rewards."""
    backend: Literal["embedded", "endpoint", "local", "similarity"] = "embedded"
    """Who judges: a small model trained here, a server, a local language model, or word overlap
    (for tests)."""
    weights: Kind = "learned"
    """How users' weights of the aspects are found: by likelihood of pairs, by sampled importance
    levels as published, or the same for all."""
    budget: int | None = None
    """Calls allowed, each of one context; what comes after is not judged. None: no limit."""
    model: str = ""
    """Name of the model at the server, or a local folder or hub name."""
    base_url: str = "http://localhost:8000/v1"
    """Where the server speaks OpenAI's protocol."""
    api_key_variable: str = ""
    """Environment variable that holds the key; '' for servers that ask for none."""
    timeout_seconds: float = 30.0
    """A server that has not answered by then counts as a timeout."""
    pause_seconds: float = 1.0
    """Wait before a call is repeated after a server error; twice as long each time."""
    retries: int = 2
    """How often a question is repeated after a timeout, an error or a malformed answer."""
    give_up_after: int = 10
    """After this many contexts in a row without an answer, the model is asked no more."""
    answer_format: Literal["schema", "object", "text"] = "schema"
    """What the server is told of the answer: its JSON schema, that it is JSON, or nothing."""
    max_answer_tokens: int = 4096
    cache: Path | None = None
    """JSON-lines file of answers, shared by runs; None keeps none."""
    prompt_history: int = 20
    """How many of the last events a language model is shown."""
    max_item_chars: int = 200
    """Longer item texts are cut in prompts."""
    judged_pairs: int = 0
    """Training contexts that a language model judges to learn the weights from, within the budget;
    0 learns them on the evidence of the embedded judge."""
    device: str = "auto"
    """Of the local model: `auto`, `cpu`, `cuda`, …"""
    embedded: EmbeddedConfig = field(default_factory=EmbeddedConfig)
    aggregation: WeightsConfig = field(default_factory=WeightsConfig)

    def __post_init__(self) -> None:
        if self.backend in LANGUAGE and not self.model:
            raise ConfigError(
                f"judge.model must name a model for backend = {self.backend!r}, got ''; set it, or "
                "use backend = 'embedded', which needs none"
            )
        for name, low in (
            ("retries", 0),
            ("give_up_after", 1),
            ("max_answer_tokens", 1),
            ("prompt_history", 1),
            ("max_item_chars", 1),
            ("judged_pairs", 0),
            ("pause_seconds", 0),
        ):
            if (value := getattr(self, name)) < low:
                raise ConfigError(f"judge.{name} must be at least {low}, got {value}")
        if self.timeout_seconds <= 0:
            raise ConfigError(f"judge.timeout_seconds must be above 0, got {self.timeout_seconds}")
        if self.budget is not None and self.budget < 0:
            raise ConfigError(f"judge.budget must be at least 0 calls, got {self.budget}")


class Backend(Protocol):
    """Who gives the evidence."""

    @property
    def aspects(self) -> tuple[str, ...]:
        """A names, in the order of the scores."""
        ...

    def evidence(
        self, histories: Histories, rows_BG: Ints, *, with_texts: bool = False
    ) -> Evidence:
        """Scores (B, G, A); NaN where a row is −1 or was not judged."""
        ...


@dataclass(frozen=True, eq=False)
class Judge:
    """A reward; `ledger` counts what it was asked and what went wrong."""

    config_class: ClassVar[type] = JudgeConfig
    learns: ClassVar[bool] = True
    config: JudgeConfig
    backend: Backend
    embedded: Embedded
    weights_of: Weights
    ledger: Ledger

    @classmethod
    def build(cls, context: AlignmentContext, config: JudgeConfig, *, client: Any = None) -> Self:
        """Learn from training events; `client` stands in for the server or model of a back end."""
        ledger = Ledger(budget=config.budget)
        embedded = Embedded.fit(context, config.embedded)
        backend: Backend = embedded
        if config.backend == "similarity":
            backend = SimilarityJudge.of(context.items)
        elif config.backend in LANGUAGE:
            backend = _language_backend(context, config, ledger, client)
        weights_of = _learned_weights(context, config, backend, embedded)
        return cls(config, backend, embedded, weights_of, ledger)

    @property
    def aspects(self) -> tuple[str, ...]:
        return self.backend.aspects

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """(B, G) float32 `weight` · s_hol; NaN where not judged or where there is no rollout.

        An ID without an item has every aspect at its lowest, unless the whole group is without an
        answer. Neither the truth nor the order of
        the rollouts is looked at.
        """
        histories = of_batch(rollouts.batch)
        rows_BG = rollouts.rows_BG.detach().cpu().numpy().astype(np.int64)
        real_BG = rollouts.real_BG.detach().cpu().numpy()
        rows_BG = np.where(real_BG, rows_BG, -1)
        weights_BA = self.weights(histories)
        scores_BGA = self.evidence(histories, rows_BG, with_texts=False).scores_BGA
        scores_BG = (scores_BGA * weights_BA[:, None]).sum(axis=2)
        lowest_A = np.array([ASPECTS[name].lowest for name in self.aspects], dtype=np.float32)
        asked_B = (rows_BG >= 0).any(axis=1)
        silent_B = asked_B & np.isnan(scores_BG).all(axis=1)  # the whole group stays unjudged
        empty_BG = real_BG & (rows_BG < 0) & ~silent_B[:, None]
        scores_BG = np.where(empty_BG, (weights_BA @ lowest_A)[:, None], scores_BG)
        return torch.from_numpy(scores_BG.astype(np.float32)).to(rollouts.rows_BG.device)

    def evidence(
        self,
        history_rows: Histories | Sequence[Sequence[int] | Ints],
        candidate_rows: Ints,
        *,
        with_texts: bool = True,
    ) -> Evidence:
        """What the back end says of candidates (B, G), within the budget; NaN where nothing."""
        histories = _histories(history_rows)
        rows_BG = np.asarray(candidate_rows, dtype=np.int64)
        with self.ledger.timed():
            if self.config.backend in LANGUAGE:
                return self.backend.evidence(histories, rows_BG, with_texts=with_texts)
            rows_BG = self._within_budget(rows_BG)
            return self.backend.evidence(histories, rows_BG, with_texts=with_texts)

    def weights(self, history_rows: Histories | Sequence[Sequence[int] | Ints]) -> Floats:
        """(B, A) what each user makes of the aspects: at least 0, rows sum to 1."""
        items_BT = last_events(_histories(history_rows), self.config.embedded.max_history)
        return self.weights_of(history_features(self.embedded, items_BT))

    def holistic(
        self, history_rows: Histories | Sequence[Sequence[int] | Ints], candidate_rows: Ints
    ) -> Floats:
        """(B, G) s_hol, NaN where not judged."""
        evidence = self.evidence(history_rows, candidate_rows, with_texts=False)
        return (evidence.scores_BGA * self.weights(history_rows)[:, None]).sum(axis=2)

    def reweighed(self, context: AlignmentContext, kind: Kind) -> Self:
        """The same judge, with the weights found another way."""
        config = replace(self.config, weights=kind)
        weights_of = _learned_weights(context, config, self.backend, self.embedded)
        return replace(self, config=config, weights_of=weights_of)

    def counts(self) -> dict[str, float]:
        """What was asked and what went wrong since `build`, by name."""
        return self.ledger.counts()

    def _within_budget(self, rows_BG: Ints) -> Ints:
        """Rows with −1 in the contexts that the budget does not pay for; the others are paid."""
        kept_BG = rows_BG.copy()
        for b in np.flatnonzero((rows_BG >= 0).any(axis=1)):
            if self.ledger.may_call():
                self.ledger.calls += 1
            else:
                self.ledger.over_budget += int((rows_BG[b] >= 0).sum())
                kept_BG[b] = -1
        return kept_BG


def _language_backend(
    context: AlignmentContext, config: JudgeConfig, ledger: Ledger, client: Any
) -> Backend:
    from sidrec.alignment.judge.asking import AskingJudge

    model = open_model(config, client=client)
    return AskingJudge.of(context.items, model, config, ledger)


def _learned_weights(
    context: AlignmentContext, config: JudgeConfig, backend: Backend, embedded: Embedded
) -> Weights:
    own = config.embedded
    num = WEIGHT_CONTEXTS
    if config.backend in LANGUAGE and config.judged_pairs:
        num = config.judged_pairs
    feedback = _feedback(context, embedded, num, own)
    features_RF = history_features(embedded, feedback.items_RT, feedback.folds_R)
    if config.weights == "uniform":
        scores_RGA = np.zeros((0, 2, len(backend.aspects)), dtype=np.float32)
    elif isinstance(backend, Embedded) or (config.backend in LANGUAGE and not config.judged_pairs):
        evidence = embedded.of_feedback(feedback)
        places = [evidence.aspects.index(name) for name in backend.aspects]
        scores_RGA = evidence.scores_BGA[:, :, places]
    else:
        scores_RGA = backend.evidence(feedback.histories, feedback.rows_RG).scores_BGA
    return fit_weights(
        config.weights, backend.aspects, features_RF, scores_RGA, config.aggregation, context.seed
    )


def _feedback(
    context: AlignmentContext, embedded: Embedded, num: int, config: EmbeddedConfig
) -> Feedback:
    """Pairs of impressions where there are any, else of training events and random items."""
    settings = {
        "num": num,
        "num_negatives": config.num_negatives,
        "max_history": config.max_history,
        "seed": context.seed + 1,
    }
    if context.preferences is not None:
        shown = shown_feedback(context.preferences, embedded.statistics, **settings)
        if shown is not None:
            return shown
    return sampled_feedback(context, embedded.statistics, horizon=1, **settings)


def _histories(rows: Histories | Sequence[Sequence[int] | Ints]) -> Histories:
    if isinstance(rows, Histories):
        return rows
    return Histories.from_lists(cast("Sequence[Ints]", rows))
