"""Align a query decoder on what was shown: positives first, exposed non-matches against them.

A context is a query, what answered it (the best first) and what was shown or judged beside it and
did not. From judgements: items of at least `least_grade` are positives in the order of their
grades, items judged lower are negatives: somebody looked at them and said no. From sessions: clicks
against what was seen and passed by (`Sessions.skipped`). Any objective on preferences then aligns
the decoder, by the same steps as for recommendation.

Source:   RAD-DPO, arXiv:2602.23964: likelihood of all positives, contrast with what was exposed.
Differs:  judged non-matches stand for shown and not clicked where there are no sessions. The
          objective has the likelihood of the paper's first stage; the decoder was taught by it too.
Cost:     `num_steps` steps of `alignment.aligner`.
Shapes:   Q queries, R contexts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch

from sidrec import config as configuration
from sidrec import methods
from sidrec.alignment.aligner import Aligner, StepConfig
from sidrec.alignment.contexts import ContextBatches
from sidrec.alignment.rollouts import RolloutConfig
from sidrec.alignment.values import Preferences
from sidrec.config import Method, Stage
from sidrec.data.search.values import Judgements, Sessions
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.errors import ConfigError, DataError
from sidrec.generators.query_decoder import Asked, QueryDecoder
from sidrec.retrieval.search.query_lessons import KnownQueries
from sidrec.training import TrainResult, train
from sidrec.training_config import TrainConfig
from sidrec.types import Histories, Ints

OBJECTIVE = Stage("objectives")


@dataclass(frozen=True, kw_only=True)
class SearchAlignConfig:
    """How a taught decoder is aligned."""

    objective: Annotated[Method, OBJECTIVE] = field(
        default_factory=lambda: configuration.method(OBJECTIVE, "rad_dpo")
    )
    """A loss on preferences: rad_dpo, s_dpo, simpo, dpo, orpo or sft."""
    least_grade: int = 0
    """Judgements of at least this grade are positives, lower ones negatives; 0: the best grade."""
    num_negatives: int = 3
    """Negatives of a context in a step: those judged or shown first, then random items."""
    fill: Literal["none", "uniform", "beam"] = "uniform"
    """Where the rest of them comes from: nowhere, the catalogue, or the decoder's own best IDs."""
    num_steps: int = 100
    """Optimiser steps."""
    batch_size: int = 16
    """Queries of a step."""
    learning_rate: float = 1e-4
    """Constant, after a tenth of the steps."""
    freeze_items: bool = True
    """Move queries and codes alone: few judged queries say little about all items, and a step
    costs a tenth."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"generative.align.{name} must be at least 1, got {value}")
        kind = methods.resolve("objectives", self.objective.name).kind
        if kind != "preference":
            raise ConfigError(
                f"generative.align.objective must be on preferences, {self.objective.name} learns "
                "from rewards; take rad_dpo, s_dpo, simpo, dpo, orpo or sft"
            )


def judged_preferences(
    judgements: Judgements, least_grade: int = 0, *, seed: int = 0
) -> Preferences:
    """A context for each query with a positive; its history and user are the row of the query.

    Positives of one grade, and negatives, come in an order drawn by the seed. DataError where no
    query has a positive.
    """
    least = least_grade or judgements.top_grade
    random = np.random.default_rng(seed)
    rows: list[int] = []
    positives: list[Ints] = []
    negatives: list[Ints] = []
    for query in range(judgements.num_queries):
        items, grades = judgements.of(query)
        order = random.permutation(len(items))
        items, grades = items[order], grades[order]
        best = np.argsort(-grades, kind="stable")
        if (grades >= least).any():
            rows.append(query)
            positives.append(items[best][grades[best] >= least])
            negatives.append(items[grades < least])
    return _contexts(rows, positives, negatives)


def session_preferences(sessions: Sessions) -> Preferences:
    """A context for each session with a click, which knows its query alone; user is the session."""
    rows = [s for s in range(len(sessions)) if len(sessions.clicked(s))]
    made = _contexts(
        sessions.queries_S[rows].tolist(),
        [sessions.clicked(s) for s in rows],
        [sessions.skipped(s) for s in rows],
    )
    return Preferences(
        histories=made.histories,
        positives=made.positives,
        negatives=made.negatives,
        users_R=np.array(rows, dtype=np.int64),
    )


def _contexts(queries: list[int], positives: list[Ints], negatives: list[Ints]) -> Preferences:
    if not queries:
        raise DataError(
            "no query has an item that answers it, or no session a click: there is nothing to "
            "align on; bring more, or lower least_grade"
        )
    return Preferences(
        histories=Histories.from_lists([[query] for query in queries]),
        positives=Histories.from_lists(positives),
        negatives=Histories.from_lists(negatives),
        users_R=np.array(queries, dtype=np.int64),
    )


def align(
    decoder: QueryDecoder,
    index: PrefixIndex,
    queries: KnownQueries,
    preferences: Preferences,
    config: SearchAlignConfig,
    *,
    renormalise: bool,
    seed: int = 0,
    validate: Callable[[QueryDecoder], float] | None = None,
    validate_every: int = 20,
) -> TrainResult:
    """Align the decoder in place, on contexts whose histories are rows of `queries`.

    With `validate`, higher is better, the best weights stay, those of the start among them.
    """
    with torch.random.fork_rng(devices=[]), ExitStack() as stack:
        torch.manual_seed(seed)
        if config.freeze_items:
            stack.enter_context(decoder.items_frozen())
        aligner = Aligner(
            Asked(decoder, queries.batch()),
            methods.resolve("objectives", config.objective.name)(
                configuration.with_seed(config.objective.config, seed)
            ),
            index=index,
            counts_N=torch.ones(index.num_rows, dtype=torch.int64),
            config=StepConfig(num_negatives=config.num_negatives, fill=config.fill, track_kl=False),
            rollouts=RolloutConfig(),
            renormalise=renormalise,
        )
        batches = ContextBatches(preferences, 1, min(config.batch_size, len(preferences)))
        epochs = max(1, round(config.num_steps / batches.num_batches))

        def value(model: Any) -> float:
            assert validate is not None
            return validate(model.policy.decoder)

        result = train(
            aligner,
            batches,
            TrainConfig(
                epochs=epochs,
                batch_positions=config.batch_size,
                learning_rate=config.learning_rate,
                warmup_steps=max(1, config.num_steps // 10),
                schedule="constant",
                precision="fp32",
                patience=0,
                validate_every_epochs=validate_every / batches.num_batches,
                seed=seed,
            ),
            validate=None if validate is None else value,
            validate_first=True,
            device="cpu",
        )
    decoder.eval()
    return result
