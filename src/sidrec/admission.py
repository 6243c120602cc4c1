"""The 2 x 2 analysis to run before AdaGRPO: where do rewards help, and where do they harm?

Training contexts are sorted by the two diagnostics of the objective, on rollouts of the policy as
it is: is the truth difficult for it, and does the reward tell the truth from the rollouts? Each of
the four cells then trains a copy of the policy by GRPO alone, for as many steps as the others, and
validation says what that did. The paper's picture: only difficult and discriminable contexts
gain.

Source:   the stratified study of AdaGRPO (arXiv:2606.08480); its details are ours.
Cost:     one pass of rollouts over the contexts, and four short trainings.
Shapes:   R contexts, G rollouts, Q validation questions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from sidrec import config, methods
from sidrec.align_config import OBJECTIVE, AlignConfig
from sidrec.aligning import Alignment
from sidrec.alignment.aligner import Aligner
from sidrec.alignment.contexts import ContextBatches
from sidrec.alignment.values import Preferences
from sidrec.errors import ConfigError
from sidrec.evaluation.metrics import ndcg, recall
from sidrec.evaluation.significance import Figure, Values, paired
from sidrec.guard import Guard
from sidrec.pipeline import OnEvent, quiet
from sidrec.recommender import Recommender
from sidrec.training import train
from sidrec.types import Bools, Dataset, Ints, Split

CELLS: tuple[tuple[bool, bool], ...] = ((True, True), (True, False), (False, True), (False, False))
"""(difficult, discriminable)."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One of the four, and what GRPO on it alone did to the policy."""

    difficult: bool
    discriminable: bool
    share: float
    """Of all contexts."""
    num_contexts: int
    """Trained on; cells that have fewer than others go through theirs more often."""
    recall: Figure | None
    """Recall@10 on validation, after minus before; None where the cell is empty."""
    ndcg: Figure | None
    invalid_share: float | None
    """Change of the share of a free beam's IDs that no item holds."""
    gradient_norm: float | None
    """Mean over batches of the norm of GRPO's gradient before training."""
    silent_share: float | None
    """Groups whose reward is constant."""

    @property
    def name(self) -> str:
        """As a reader says it."""
        first = "difficult" if self.difficult else "easy"
        return f"{first}, {'' if self.discriminable else 'not '}discriminable"

    def summary(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"cell": self.name, **asdict(self)}


def analyse(
    recommender: Recommender,
    settings: AlignConfig,
    *,
    data: Dataset | None = None,
    preferences: Preferences | None = None,
    most: int = 2048,
    on_event: OnEvent = quiet,
    like: Alignment | None = None,
    parts: Split | None = None,
) -> list[Cell]:
    """The four cells; each trains for as many steps as `most` contexts make.

    `settings.objective` must be adagrpo; its diagnostics sort, its training settings train.
    """
    if settings.objective.name != "adagrpo":
        raise ConfigError(
            f"the analysis sorts contexts by adagrpo's diagnostics, got {settings.objective.name!r}"
        )
    work = Alignment(recommender, settings, data, preferences, on_event, like, parts)
    difficult_R, discriminable_R = diagnosed(work)
    guard = Guard(recommender, work.validation)
    start = answers(guard, recommender.generator.value)
    rows_C = [
        np.flatnonzero((difficult_R == difficult) & (discriminable_R == discriminable))
        for difficult, discriminable in CELLS
    ]
    cells = []
    for (difficult, discriminable), rows in zip(CELLS, rows_C, strict=True):
        one = Cell(
            difficult=difficult, discriminable=discriminable,
            share=len(rows) / max(len(difficult_R), 1), num_contexts=min(most, len(rows)),
            recall=None, ndcg=None, invalid_share=None, gradient_norm=None, silent_share=None,
        )  # fmt: skip
        on_event({"stage": "cells", "message": f"{one.name}: {one.share:.1%} of contexts"})
        if len(rows):
            random = np.random.default_rng(settings.seed)
            chosen = np.sort(random.choice(rows, one.num_contexts, replace=False))
            one = trained_on(one, work, guard, start, chosen.astype(np.int64), most)
        cells.append(one)
    return cells


def diagnosed(work: Alignment) -> tuple[Bools, Bools]:
    """(R,) whether each context is difficult, and whether it is discriminable, for the policy."""
    aligner, batches = work.aligner.eval(), contexts(work, work.preferences)
    difficult, discriminable = [], []
    with torch.no_grad():
        for start in range(0, len(work.preferences), 256):
            rows = np.arange(start, min(start + 256, len(work.preferences)), dtype=np.int64)
            batch = batches.build(rows).to(work.parent.device)
            log_probs, _ = aligner.group_log_probs(aligner.rolled_out(batch, aligner.rollouts))
            both = aligner.objective.diagnosed(log_probs)  # type: ignore[attr-defined]
            difficult.append(both[0].cpu().numpy())
            discriminable.append(both[1].cpu().numpy())
            done = {"done": start + len(rows), "total": len(work.preferences)}
            work.on_event({"stage": "diagnose", **done})
    work.on_event({"stage": "diagnose", "finished": True})
    return np.concatenate(difficult), np.concatenate(discriminable)


def contexts(work: Alignment, preferences: Preferences) -> ContextBatches:
    """Batches as the alignment itself would make them."""
    batch_contexts = work.settings.train.batch_positions
    return ContextBatches(preferences, work.aligner.max_length, batch_contexts)


def trained_on(
    cell: Cell, work: Alignment, guard: Guard, start: Sequence[Any], rows: Ints, most: int
) -> Cell:
    """The cell with what GRPO alone on these contexts did, in as many steps as `most` make."""
    chosen = work.preferences.take(rows)
    batches, aligner = contexts(work, chosen), only_rewards(work)
    norms, silent = [], []
    for windows in batches.epoch(work.settings.seed, 0)[:8]:
        aligner.zero_grad()
        loss, parts = aligner.loss(batches.build(windows).to(work.parent.device))
        loss.backward()
        grads = [p.grad for p in aligner.policy.parameters() if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))
        silent.append(float(parts["silent_share"]))
    aligner.zero_grad()
    training = config.with_seed(work.settings.train, work.settings.seed)
    training = replace(training, epochs=max(1, round(most / len(rows))), max_seconds=None)
    train(aligner, batches, training, validate=None, device=str(work.parent.device))
    recall_Q, ndcg_Q, invalid = answers(guard, aligner.policy.eval())
    return replace(
        cell,
        recall=paired(recall_Q, start[0])[0],
        ndcg=paired(ndcg_Q, start[1])[0],
        invalid_share=invalid - start[2],
        gradient_norm=float(np.mean(norms)),
        silent_share=float(np.mean(silent)),
    )


def only_rewards(work: Alignment) -> Aligner:
    """A copy of the untouched policy under GRPO without likelihood."""
    chosen = config.method(OBJECTIVE, "grpo", nll_weight=0.0, kl_weight=0.0)
    objective = methods.resolve("objectives", "grpo")(chosen.config)
    return work.aligner_of(copy.deepcopy(work.parent.generator.value), objective)


def answers(guard: Guard, policy: Any) -> tuple[Values, Values, float]:
    """Recall@10 and NDCG@10 of each validation question, and the share of invalid IDs."""
    ranked = guard.ranked(policy)
    return (
        recall(ranked.better_Q, ranked.tied_Q, 10),
        ndcg(ranked.better_Q, ranked.tied_Q, 10),
        guard.invalid_share(policy),
    )
