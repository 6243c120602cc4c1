"""A logging policy whose propensities are exact: weights in, exposure and lists out.

`exposures` turns any preference weights into the probability that each item is in a list of K;
`draw_lists` draws lists that keep those probabilities exactly. Independent of the shop: with real
histories and popularity weights it makes exposed non-clicks for them.

Source:   systematic sampling (Madow 1949, Annals of Mathematical Statistics 20).
Differs:  the order in which items are laid out is permuted once a batch, the start once a list.
Cost:     O(B N).
Shapes:   B lists, N items, K places.
"""

from __future__ import annotations

import numpy as np

from sidrec.errors import ConfigError
from sidrec.types import Floats, Ints

CAP = 0.9
"""Highest probability with which any one item is shown."""


def exposures(weights_BN: Floats, num_places: int, exploration: float) -> Floats:
    """Probability (B, N) that each item is shown; rows sum to K, weight 0 means never.

    K x (a mixture of the normalised weights and, with share `exploration`, uniform over the items
    of positive weight). Where that would exceed CAP, the uniform share grows until it does not.
    """
    positive_BN = weights_BN > 0
    counts_B1 = positive_BN.sum(axis=1, keepdims=True)
    if (counts_B1 * CAP < num_places).any():
        raise ConfigError(
            f"lists of {num_places} need at least {num_places / CAP:.1f} items of positive weight, "
            f"got {counts_B1.min()}; shorten the lists"
        )
    probs_BN = weights_BN / weights_BN.sum(axis=1, keepdims=True)
    highest_B1, cap = probs_BN.max(axis=1, keepdims=True), CAP / num_places
    share_B1 = (highest_B1 - cap) / np.maximum(highest_B1 - 1 / counts_B1, 1e-12)
    share_B1 = np.clip(share_B1, exploration, 1)
    probs_BN *= num_places * (1 - share_B1)
    probs_BN += positive_BN * (num_places * share_B1 / counts_B1)
    return probs_BN.astype(np.float32, copy=False)


def draw_lists(exposures_BN: Floats, num_places: int, rng: np.random.Generator) -> Ints:
    """Lists (B, K) in which each item appears with exactly its exposure, likeliest first.

    Lay the items end to end, each as long as its exposure, and take those hit by a comb of K teeth,
    one apart, whose start is uniform in [0, 1).
    """
    order_N = rng.permutation(exposures_BN.shape[1])
    ends_BN = np.cumsum(exposures_BN[:, order_N], axis=1, dtype=np.float64)
    ends_BN *= num_places / ends_BN[:, -1:]
    teeth_BN = np.ceil(ends_BN - rng.random((len(ends_BN), 1)))
    teeth_BN[:, -1] = num_places
    hit_BN = np.diff(teeth_BN, axis=1, prepend=0) > 0
    rows_BK = order_N[np.nonzero(hit_BN)[1].reshape(-1, num_places)]
    shown_BK = np.take_along_axis(exposures_BN, rows_BK, axis=1)
    return np.take_along_axis(rows_BK, np.argsort(-shown_BK, axis=1, kind="stable"), axis=1)
