"""How a searcher is asked: texts in, an opinion on items out, the same form that fusion takes.

An item that is no answer (no word in common, no vector) has the score −inf and is never listed.

Shapes:   B queries, N items, P items of a pool, K returned items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sidrec.retrieval.fusion import Opinion
from sidrec.retrieval.top_items import listed, top_items
from sidrec.types import PAD, Bools, Candidates


def opinion_of(scores_BN: Tensor, pool: int, keep_N: Bools | None) -> Opinion:
    """What scores (B, N) of the whole catalogue say; −inf is no answer."""
    found = top_items(scores_BN, min(pool, scores_BN.shape[1]), keep_N=keep_N)
    return Opinion(
        torch.from_numpy(found.rows_BK), lambda rows_BP: scores_BN.gather(1, rows_BP).double()
    )


def best(opinion: Opinion, k: int) -> Candidates:
    """The k best of an opinion's own items."""
    rows_BK = opinion.rows_BK
    scores_BK = opinion.log_probs(rows_BK.clamp_min(0)).masked_fill(rows_BK == PAD, -torch.inf)
    return listed(rows_BK, scores_BK, k)
