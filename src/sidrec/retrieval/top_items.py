"""The best items of scores of the whole catalogue, under rules.

Shapes:   B requests, N items, K returned items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sidrec.evaluation.protocol import top_rows
from sidrec.types import PAD, Bools, Candidates, Ints


def allowed_scores(
    scores_BN: Tensor, exclude: Sequence[Ints] | None = None, keep_N: Bools | None = None
) -> Tensor:
    """A copy of the scores in float32, −inf where the rules forbid an item."""
    scores_BN = scores_BN.float().clone()
    if keep_N is not None:
        scores_BN[:, torch.from_numpy(~keep_N)] = -torch.inf
    for row, rows in enumerate(exclude or ()):
        scores_BN[row, torch.from_numpy(np.asarray(rows))] = -torch.inf
    return scores_BN


def top_items(
    scores_BN: Tensor,
    k: int,
    exclude: Sequence[Ints] | None = None,
    keep_N: Bools | None = None,
) -> Candidates:
    """The k best of every row of scores that the rules leave; ties by lowest row."""
    scores_BN = allowed_scores(scores_BN, exclude, keep_N)
    rows_BK = top_rows(scores_BN, min(k, scores_BN.shape[1]))
    kept_BK = scores_BN.gather(1, rows_BK.clamp_min(0)).masked_fill(rows_BK == PAD, -torch.inf)
    return Candidates(rows_BK.cpu().numpy(), kept_BK.cpu().numpy())


def listed(rows_BP: Tensor, scores_BP: Tensor, k: int) -> Candidates:
    """The k best of items (B, P), −1 for none, by their scores; ties by the earlier place."""
    best_BP, order_BP = scores_BP.sort(dim=1, descending=True, stable=True)
    best_BK, rows_BK = best_BP[:, :k], rows_BP.gather(1, order_BP)[:, :k]
    rows_BK = rows_BK.masked_fill(best_BK == -torch.inf, PAD)
    missing = (0, k - rows_BK.shape[1])
    return Candidates(
        torch.nn.functional.pad(rows_BK, missing, value=PAD).cpu().numpy(),
        torch.nn.functional.pad(best_BK, missing, value=-torch.inf).float().cpu().numpy(),
    )
