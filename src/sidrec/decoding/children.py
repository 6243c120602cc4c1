"""The continuations of a beam as one list a request: what the catalogue holds, and nothing else.

A level with 256 codes has a handful of children a prefix. Listed one after another, by beam, then
by code, they are all that a step has to score: a generator that offers `step_children` is asked
for these logits only, and everything after it works on lists instead of whole codebooks.

Source:   our choice; STATIC (arXiv:2602.22647) pads every prefix to the largest number of children.
Cost:     a step O(P) a request, P the children of its beams; rows are padded to the longest.
Shapes:   B requests, W beams, P children of a request's beams.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sidrec.decoding.prefix_index import ILLEGAL, PrefixIndex


class Children(NamedTuple):
    """What may follow each beam, in the order of beams, then of codes."""

    owners_BP: Tensor
    """Beam (place in W) that each continues; any after the end of a row."""
    symbols_BP: Tensor
    nodes_BP: Tensor
    """Child nodes; any after the end of a row."""
    real_BP: Tensor
    """False after the end of a row, and for children without an item that the request may get."""

    @classmethod
    def of(
        cls, index: PrefixIndex, level: int, nodes_BW: Tensor, gone_BX: Tensor | None = None
    ) -> Children:
        """The children of these prefixes. The index must hold no overlay.

        `gone_BX`: nodes, ascending, of this level above the items that each request must not get.
        """
        base, num_beams = index.tree.base, nodes_BW.shape[1]
        counts_BW = base.num_children[level].take(nodes_BW)
        ends_BW = counts_BW.cumsum(1)
        longest = max(int(ends_BW[:, -1].max()), 1)
        places_P = torch.arange(longest, device=nodes_BW.device)
        places_BP = places_P.repeat(len(nodes_BW), 1)
        owners_BP = torch.searchsorted(ends_BW, places_BP, right=True).clamp_(max=num_beams - 1)
        shifts_BW = base.first[level].take(nodes_BW) - ends_BW + counts_BW
        nodes_BP = places_BP.add_(shifts_BW.gather(1, owners_BP))
        nodes_BP.clamp_(max=len(base.keys[level]) - 1)
        real_BP = places_P < ends_BW[:, -1:]
        if gone_BX is not None or index.tree.alive_E is not None:
            live = index.live[level]
            left_BP = live.take(nodes_BP.clamp(max=len(live) - 1))
            if gone_BX is not None:
                left_BP = left_BP + torch.searchsorted(gone_BX, nodes_BP)
                left_BP -= torch.searchsorted(gone_BX, nodes_BP, right=True)
            real_BP &= left_BP > 0
        symbols_BP = base.keys[level].take(nodes_BP)
        symbols_BP -= (nodes_BW * index.tree.strides[level]).gather(1, owners_BP)
        symbols_BP.clamp_(0, index.widths[level] - 1)
        return cls(owners_BP, symbols_BP, nodes_BP, real_BP)


def log_softmax(x_BP: Tensor, owners_BP: Tensor, num_beams: int) -> Tensor:
    """(B, P) log-probability of each child among those of its beam; illegal ones are ILLEGAL."""
    if num_beams == 1:
        return x_BP.log_softmax(1)
    most_BW = x_BP.new_full((len(x_BP), num_beams), ILLEGAL)
    most_BW.scatter_reduce_(1, owners_BP, x_BP, "amax")
    x_BP = x_BP - most_BW.gather(1, owners_BP)
    sums_BW = torch.zeros_like(most_BW).scatter_add_(1, owners_BP, x_BP.exp())
    return x_BP.sub_(sums_BW.log_().gather(1, owners_BP))
