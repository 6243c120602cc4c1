"""The depth decoder: from a state and the codes so far to the next code.

Source:   tied code tables started at residual means of the codes are ours; see `causal`.
Cost:     O(hidden D + l D) a prefix of l codes; the centroids one pass over N vectors a level.
Shapes:   N items, L levels, V symbols of a level, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.building import starts_fresh
from sidrec.transformer import FastDropout
from sidrec.types import Floats, Ints, SemanticIds

if TYPE_CHECKING:
    from sidrec.generators.causal import CausalConfig


class DepthLevel(nn.Module):
    """The depth decoder of one level: (state, prefix) -> the vector that meets the code table."""

    def __init__(
        self, level: int, widths: tuple[int, ...], config: CausalConfig, first: int = 0
    ) -> None:
        super().__init__()
        width, self.first = config.width, first
        self.prefix = nn.ModuleList(nn.Embedding(widths[j], width) for j in range(first, level))
        for table in self.prefix:
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, config.depth_hidden)
        self.dropout = FastDropout(config.depth_dropout)
        self.down = nn.Linear(config.depth_hidden, width)
        nn.init.normal_(self.down.weight, std=0.01)
        nn.init.zeros_(self.down.bias)
        self.bias = nn.Parameter(torch.zeros(widths[level]))

    def forward(self, states: Tensor, symbols: Tensor, added: Tensor | None = None) -> Tensor:
        """(…, D) for states (…, D) that broadcast against symbols (…, l), read from `first` on, as
        many as there are. `added` (…, D) is read beside them.
        """
        moved = states if added is None else states + added
        for place, table in zip(range(self.first, symbols.shape[-1]), self.prefix, strict=False):
            moved = moved + table(symbols[..., place])
        return states + self.down(self.dropout(F.gelu(self.up(self.norm(moved)))))


def symbols_of(ids: SemanticIds) -> tuple[Ints, tuple[int, ...]]:
    """Codes with −1 replaced by an end symbol, and the symbols of each level.

    A level where an ID may have ended has one symbol more than codes, `num_codes[l]`.
    """
    ended_L = [bool((ids.codes[:, level] < 0).any()) for level in range(ids.num_levels)]
    widths = tuple(v + ended for v, ended in zip(ids.num_codes, ended_L, strict=True))
    return np.where(ids.codes < 0, np.array(ids.num_codes), ids.codes), widths


def code_centroids(symbols_NL: Ints, widths: tuple[int, ...], vectors_ND: Floats) -> list[Floats]:
    """L arrays (V, D): mean vector of the items with each code, less the means of levels before.

    Zeros where they would be replaced; see `building`.
    """
    if not starts_fresh():
        return [np.zeros((size, vectors_ND.shape[1]), dtype=np.float32) for size in widths]
    residuals_ND, centroids = vectors_ND, []
    rows_N, ones_N = np.arange(len(vectors_ND)), np.ones(len(vectors_ND), dtype=np.float32)
    for level, size in enumerate(widths):
        held_VN = csr_array((ones_N, (symbols_NL[:, level], rows_N)), shape=(size, len(rows_N)))
        sums_VD = held_VN @ residuals_ND
        counts_V = np.bincount(symbols_NL[:, level], minlength=size)
        means_VD = sums_VD / np.maximum(counts_V, 1)[:, None].astype(np.float32)
        residuals_ND = residuals_ND - means_VD[symbols_NL[:, level]]
        centroids.append(means_VD)
    return centroids


def code_table(centroids_VD: Floats, projection: Tensor) -> Tensor:
    """Centroids in the width of the model, with the spread of a fresh embedding."""
    table = torch.from_numpy(centroids_VD) @ projection.T
    return table * (0.02 / table.std().clamp_min(1e-6))
