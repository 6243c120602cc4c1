"""Rules: which items a request may get, applied inside the search so that k come back.

A predicate shared by the batch becomes live counts a node, once per rule and snapshot, kept by
content. A request's own exclusions become path decrements: only prefixes whose live items are
all excluded turn illegal, and only those are looked at during a step.

Source:   our choice; STATIC (arXiv:2602.22647) takes one static set of allowed IDs.
Cost:     predicate O(N) once, then nothing; exclusion of X items O(X log N) a request.
Shapes:   B requests, N items, X excluded items of a request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.errors import DataError
from sidrec.types import PAD, Bools, Ints


@dataclass(frozen=True, eq=False, kw_only=True)
class Rules:
    """What a batch of requests may get; rows are catalogue rows."""

    keep_N: Bools | Tensor | None = None
    """(N,) items that may be returned, for the whole batch; None keeps all."""
    exclude: Sequence[Sequence[int] | Ints] | Tensor | None = None
    """Items each request must not get: B lists of rows, or (B, X) padded with −1."""

    @cached_property
    def key(self) -> bytes:
        """Digest of the predicate: equal predicates share one restricted snapshot."""
        keep_N = np.asarray(torch.as_tensor(self.keep_N).cpu(), dtype=bool)
        return hashlib.blake2b(np.packbits(keep_N).tobytes(), digest_size=16).digest() + (
            len(keep_N).to_bytes(8, "little")
        )

    def restrict(self, index: PrefixIndex) -> PrefixIndex:
        """The snapshot of `index` in which only kept items live."""
        if self.keep_N is None:
            return index
        return index.restrict(torch.as_tensor(self.keep_N, dtype=torch.bool), self.key)

    def excluded_rows(self, num_requests: int, device: torch.device) -> Tensor | None:
        """(B, X) rows each request must not get, ascending, repeats as −1; None when none are.

        Raises DataError when there is not one list a request.
        """
        if self.exclude is None:
            return None
        rows_BX = padded(self.exclude).to(device)
        if rows_BX.ndim != 2 or len(rows_BX) != num_requests:
            raise DataError(
                f"rules: exclude must hold one list for each of {num_requests} requests, "
                f"got {tuple(rows_BX.shape)}"
            )
        if not rows_BX.shape[1]:
            return None
        rows_BX = rows_BX.sort(dim=1).values
        rows_BX[:, 1:].masked_fill_(rows_BX[:, 1:] == rows_BX[:, :-1], PAD)
        return rows_BX


def padded(lists: Sequence[Sequence[int] | Ints] | Tensor) -> Tensor:
    """(B, X) the lists one below the other, −1 after each; a tensor as it is."""
    if isinstance(lists, Tensor):
        return lists
    longest = max((len(rows) for rows in lists), default=0)
    rows_BX = np.full((len(lists), longest), PAD, dtype=np.int64)
    for place, rows in zip(rows_BX, lists, strict=True):
        place[: len(rows)] = rows
    return torch.from_numpy(rows_BX)


@dataclass(frozen=True, eq=False)
class Exhausted:
    """Prefixes of one level that are illegal for one request: all their items are excluded."""

    requests_E: Tensor
    parents_E: Tensor
    symbols_E: Tensor
    nodes_E: Tensor


def exhausted(index: PrefixIndex, rows_BX: Tensor) -> tuple[list[Exhausted | None], Tensor]:
    """What the exclusion of `rows_BX` closes at each level, and the items (B,) that remain.

    A level's entry is None where the exclusion closes nothing.
    """
    paths_LBX = index.paths(rows_BX)
    remaining_B = index.num_items - (paths_LBX[-1] != index.sinks[-1]).sum(1)
    nodes_LBX = paths_LBX.sort(dim=2).values
    left_LBX = torch.searchsorted(nodes_LBX, nodes_LBX)
    count_LBX = torch.searchsorted(nodes_LBX, nodes_LBX, right=True) - left_LBX
    live_LBX = torch.stack([a.take(n) for a, n in zip(index.live, nodes_LBX, strict=True)])
    one_each_LBX = left_LBX == torch.arange(nodes_LBX.shape[2], device=nodes_LBX.device)
    full_LBX = (count_LBX == live_LBX) & one_each_LBX  # the sink's count of live items is 0
    levels_E, requests_E, _ = full_LBX.nonzero(as_tuple=True)
    nodes_E = nodes_LBX[full_LBX]
    closed: list[Exhausted | None] = [None] * index.num_levels
    start = 0
    for level, size in enumerate(levels_E.bincount(minlength=index.num_levels).tolist()):
        if size:
            part = slice(start, start + size)
            keys_E, stride = index.tree.key_of(level, nodes_E[part]), index.tree.strides[level]
            parents_E = keys_E.div(stride, rounding_mode="floor")
            closed[level] = Exhausted(
                requests_E[part], parents_E, keys_E - parents_E * stride, nodes_E[part]
            )
        start += size
    return closed, remaining_B
