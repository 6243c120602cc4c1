"""The loss an item: how surprising the item that came next was, whatever wrote it.

−log p(target | history) in nats, in eval mode. For a generator of semantic IDs p is that of
decoding: the product over levels of a softmax over the codes that continue some ID; items that
share an ID divide it, as in beam search. So items sum to 1, and models with other IDs, of other
lengths, or without any, compare. For a scorer it is the softmax over items.

Source:   likelihoods by item, not by code: the scaling card; `decoding.exact.item_log_probs`.
Cost:     one decoder step a level and question.
Shapes:   Q questions, N items, B requests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sidrec.decoding.exact import item_log_probs
from sidrec.evaluation.power_law import Values
from sidrec.pipeline import Stages
from sidrec.types import Examples, Histories, HistoryBatch

BATCH_SIZE = 256


@torch.inference_mode()
def item_nats(
    stages: Stages, stage: str, model: Any, examples: Examples, *, batch_size: int = BATCH_SIZE
) -> Values:
    """(Q,) −log p(target | history), see the module docstring. The model is in eval mode."""
    nats_Q = np.empty(len(examples))
    log_shares_N = log_shares(stages)
    order = np.argsort(examples.histories.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = HistoryBatch.from_histories(
            examples.histories, rows, max_length=int(model.max_length)
        ).to(stages.device)
        targets_B1 = torch.from_numpy(examples.targets[rows])[:, None].to(stages.device)
        if stage == "scorers":
            log_probs_B1 = model.scores(batch).float().log_softmax(1).gather(1, targets_B1)
        else:
            log_probs_B1 = item_log_probs(
                model, batch, stages.index, targets_B1,
                renormalise=stages.settings.decoding.renormalise,
            )  # fmt: skip
        nats_Q[rows] = -log_probs_B1[:, 0].double().cpu().numpy()
        if stage == "generators" and log_shares_N is not None:
            nats_Q[rows] -= log_shares_N[examples.targets[rows]]
    return nats_Q


def log_shares(stages: Stages) -> Values | None:
    """(N,) log of each item's share in the probability of its ID, by training events + 1, as beam
    search divides it; None where every item has its own.
    """
    ids = stages.ids
    if (ids.group_sizes_N == 1).all():
        return None
    _, groups_N = np.unique(ids.codes, axis=0, return_inverse=True)
    weights_N = stages.split.train_counts_N + 1.0
    return np.log(weights_N / np.bincount(groups_N.ravel(), weights_N)[groups_N.ravel()])


def last_events(train_part: Histories, most: int) -> Examples:
    """Questions whose answers were trained on: the last event of up to `most` users."""
    users = np.flatnonzero(train_part.lengths >= 2)
    if len(users) > most:
        users = np.sort(np.random.default_rng(0).choice(users, most, replace=False))
    histories = [train_part[user] for user in users.tolist()]
    return Examples(
        users.astype(np.int64),
        Histories.from_lists([history[:-1] for history in histories]),
        np.array([history[-1] for history in histories], dtype=np.int64),
    )
