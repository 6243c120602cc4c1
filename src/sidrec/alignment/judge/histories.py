"""Histories as arrays with the last event in the last column.

Shapes: B contexts, T history length.
"""

from __future__ import annotations

import numpy as np

from sidrec.types import PAD, Histories, HistoryBatch, Ints


def last_events(histories: Histories, max_history: int) -> Ints:
    """(B, T) the last events of each history, newest in the last column, −1 in front."""
    ends_B = histories.offsets[1:]
    lengths_B = np.minimum(histories.lengths, max_history)
    width = max(int(lengths_B.max(initial=0)), 1)
    ages_T = np.arange(width)[::-1]
    flat = np.append(histories.items_E, PAD)
    index_BT = ends_B[:, None] - 1 - ages_T
    return flat[np.where(ages_T < lengths_B[:, None], index_BT, len(flat) - 1)]


def of_batch(batch: HistoryBatch) -> Histories:
    """The histories of a padded batch; its targets are not looked at."""
    items_BT = batch.items_BT.detach().cpu().numpy()
    lengths_B = batch.lengths_B.detach().cpu().numpy().astype(np.int64)
    real_BT = np.arange(items_BT.shape[1]) < lengths_B[:, None]
    offsets = np.concatenate([[0], np.cumsum(lengths_B)]).astype(np.int64)
    return Histories(items_BT[real_BT].astype(np.int64), offsets)
