"""The catalogue's tree of semantic IDs as a generator needs it: nodes, what lies below, mean items.

Source:   hierarchical softmax (Morin & Bengio 2005); the tree is that of the catalogue's IDs.
Cost:     4 M V bytes a level for the links; one pass over N rows for the means.
Shapes:   N items, L levels, V symbols of a level, M nodes of a level, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.types import Ints


class CodeTree(nn.Module):
    """The catalogue's tree of IDs: nodes of level l are its M distinct prefixes of l + 1 symbols.

    The root is node 0 above level 0. Node M of a level stands for every prefix that no item has;
    it holds no items, and all its continuations are unknown too. At each level of `starts` the
    path begins anew at the root, so that IDs of several parts have a tree for each.
    """

    def __init__(
        self, symbols_NL: Ints, widths: tuple[int, ...], starts: tuple[int, ...] = (0,)
    ) -> None:
        super().__init__()
        self.starts = starts
        parents_N, num_parents = np.zeros(len(symbols_NL), dtype=np.int64), 1
        for level, width in enumerate(widths):
            if level in starts:
                parents_N, num_parents = np.zeros(len(symbols_NL), dtype=np.int64), 1
            keys_M, nodes_N, counts_M = np.unique(
                parents_N * width + symbols_NL[:, level], return_inverse=True, return_counts=True
            )
            below = np.full((num_parents + 1, width), len(keys_M), dtype=np.int32)
            below[keys_M // width, keys_M % width] = np.arange(len(keys_M))
            counts = np.append(counts_M, 1).astype(np.float32)
            arrays = {
                "below": below,
                "counts": counts,
                "nodes": nodes_N.reshape(-1),
                "parents": parents_N,
            }
            for name, array in arrays.items():
                self.register_buffer(f"{name}{level}", torch.from_numpy(array), persistent=False)
            parents_N, num_parents = arrays["nodes"], len(keys_M)

    def of(self, name: str, level: int) -> Tensor:
        """One of the arrays of a level."""
        return getattr(self, f"{name}{level}")

    def parents_of(self, level: int, rows: Tensor) -> Tensor:
        """Node, one level up, under which the items `rows` have their symbol of `level`."""
        return self.of("parents", level)[rows]

    def counts(self, level: int) -> Tensor:
        """(M + 1,) float32 items under each node; 1 for the unknown one."""
        return self.of("counts", level)

    def num_prefixes(self) -> Tensor:
        """(L,) nodes of each level, the unknown one not counted."""
        return torch.tensor([len(self.counts(level)) - 1 for level in range(len(self))])

    def share_prefix(self, rows: Tensor, other_rows: Tensor) -> Tensor:
        """(…, L) bool: whether two items lie under the same node of each level."""
        nodes_L = [self.of("nodes", level) for level in range(len(self))]
        return torch.stack([nodes[rows] == nodes[other_rows] for nodes in nodes_L], dim=-1)

    def means(self, table_ND: Tensor) -> list[Tensor]:
        """L tables (M + 1, D): mean row of the items under each node; 0 for the unknown one."""
        tables = []
        for level, nodes_N in enumerate(self.of("nodes", level) for level in range(len(self))):
            counts_M = self.counts(level)
            sums_MD = table_ND.new_zeros(len(counts_M), table_ND.shape[1])
            tables.append(sums_MD.index_add(0, nodes_N, table_ND) / counts_M[:, None])
        return tables

    def below(self, level: int, parents: Tensor) -> Tensor:
        """(…, V) node that each symbol leads to from the given nodes of the level above."""
        return self.of("below", level)[parents].long()

    def child_of(self, level: int, parents: Tensor, symbols: Tensor) -> Tensor:
        """Node that `symbols` lead to from the given nodes of the level above."""
        below = self.of("below", level)
        return below.take(torch.add(symbols, parents, alpha=below.shape[1])).long()

    def child(self, level: int, parents: Tensor, symbols: Tensor) -> Tensor:
        """Node reached from `parents` by `symbols`; the root again where the next part begins."""
        nodes = self.child_of(level, parents, symbols)
        return torch.zeros_like(nodes) if level + 1 in self.starts else nodes

    def legal(self, level: int, parents: Tensor) -> Tensor:
        """(…, V) bool: symbols that continue some ID of the catalogue."""
        return self.of("below", level)[parents] < len(self.counts(level)) - 1

    def __len__(self) -> int:
        return sum(name.startswith("below") for name in self._buffers)
