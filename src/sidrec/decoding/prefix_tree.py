"""The prefix tree of a catalogue's IDs as flat sorted arrays: what leads where, and to which items.

To build it, every ID is packed with its position into one integer (where 63 bits suffice, else
sorted level by level); after sorting, a node is a run of entries with the same prefix, so nodes,
children and items are found by comparing neighbours. Items inserted later form an overlay whose
new nodes are numbered behind the base's, so that no array of the base changes. A key's place in
the bit masks is the key itself, byte `key >> 3` and bit `key & 7`, because a parent owns a whole
number of bytes of keys.

Source:   our choice; the sorted-array form of the CSR tree of STATIC (arXiv:2602.22647).
Cost:     O(N log N) for the sort, O(N L) for the rest; no Python per item.
Shapes:   N items, L levels, V symbols of a level, n_l nodes of depth l, M runs or keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sidrec.types import PAD, Ints

NO_KEY = torch.iinfo(torch.int64).max // 2


@dataclass(frozen=True, eq=False)
class Base:
    """The arrays that snapshots share; entries are (item, ID) pairs sorted by ID, then row."""

    keys: tuple[Tensor, ...]
    """L x (n_l + branching_l,) sorted int64 edge keys, padded with NO_KEY."""
    first: tuple[Tensor, ...]
    """L x (parents + 1,) position of each parent's first child; the last is the sink's."""
    entry_first: tuple[Tensor, ...]
    """L x (n_l + 1,) first entry below each node."""
    rows_E: Tensor
    entry_of_row: Tensor
    """(rows + 1,) entry of each catalogue row, −1 where it has none, and at the end."""
    branching: tuple[int, ...]
    """Most children of any parent, a level."""
    largest_group: int

    @cached_property
    def num_nodes(self) -> tuple[int, ...]:
        return tuple(len(first) - 1 for first in self.entry_first)

    @cached_property
    def num_children(self) -> tuple[Tensor, ...]:
        """L x (parents + 1,) children of each parent; the last is the sink, with 0."""
        return tuple(torch.cat([first.diff(), first.new_zeros(1)]) for first in self.first)

    @cached_property
    def nodes_of_row(self) -> Tensor:
        """(L, rows + 1) node of each catalogue row, n_l where it has none, and at the end."""
        entries = self.entry_of_row
        return torch.stack(
            [
                (torch.searchsorted(first, entries.clamp_min(0), right=True) - 1).masked_fill(
                    entries < 0, num
                )
                for first, num in zip(self.entry_first, self.num_nodes, strict=True)
            ]
        )

    @property
    def arrays(self) -> list[Tensor]:
        return [*self.keys, *self.first, *self.entry_first, self.rows_E, self.entry_of_row]


@dataclass(frozen=True, eq=False)
class Overlay:
    """Items inserted after the base was built, sorted by leaf, then row."""

    rows_D: Tensor
    nodes_LD: Tensor
    """Node of each item at each level; those new to the base are numbered from n_l."""
    keys: tuple[Tensor, ...]
    """L x sorted int64 keys of new edges; node = n_l + position."""
    alive_D: Tensor

    @property
    def arrays(self) -> list[Tensor]:
        return [self.rows_D, self.nodes_LD, *self.keys, self.alive_D]


@dataclass(frozen=True, eq=False)
class Tree:
    """Base and overlay as one tree; nodes of depth l lie below level l, the root is node 0."""

    base: Base
    overlay: Overlay | None
    alive_E: Tensor | None
    """(E,) which base entries count; None when all do."""
    strides: tuple[int, ...]
    """Keys a parent owns at each level: V rounded up to whole bytes of the bit mask."""

    @cached_property
    def num_nodes(self) -> tuple[int, ...]:
        """Nodes of each depth, dead ones included."""
        extra = [0] * len(self.strides) if self.overlay is None else map(len, self.overlay.keys)
        return tuple(n + more for n, more in zip(self.base.num_nodes, extra, strict=True))

    @cached_property
    def sinks(self) -> tuple[int, ...]:
        """(L + 1) where dead beams go: `sinks[l]` among the parents of level l, after the rest."""
        return (1, *self.num_nodes)

    @property
    def arrays(self) -> list[Tensor]:
        """All tensors, shared ones included."""
        own = [] if self.alive_E is None else [self.alive_E]
        return [*self.base.arrays, *own, *([] if self.overlay is None else self.overlay.arrays)]

    @property
    def pristine(self) -> bool:
        """Nothing inserted or dead since the base was built."""
        return self.overlay is None and self.alive_E is None

    @property
    def one_item_a_leaf(self) -> bool:
        """No two items share an ID, dead ones included."""
        return self.overlay is None and self.base.largest_group <= 1

    def lookup(self, level: int, keys: Tensor, *, known: bool = False) -> Tensor:
        """Nodes of edge keys; the sink where the tree has no such edge, live or not.

        With `known` the caller promises that the edges exist, or will drop those that do not.
        """
        base_keys = self.base.keys[level]
        nodes = torch.searchsorted(base_keys, keys)
        if known and self.overlay is None:
            return nodes
        found = base_keys.take(nodes) == keys
        new_keys = None if self.overlay is None else self.overlay.keys[level]
        if new_keys is None or not len(new_keys):
            return nodes.masked_fill(~found, self.sinks[level + 1])
        place = torch.searchsorted(new_keys, keys).clamp_(max=len(new_keys) - 1)
        new = (place + self.base.num_nodes[level]).masked_fill(
            new_keys.take(place) != keys, self.sinks[level + 1]
        )
        return torch.where(found, nodes, new)

    def key_of(self, level: int, nodes: Tensor) -> Tensor:
        """Edge keys that lead to real nodes (not the sink)."""
        num_base = self.base.num_nodes[level]
        if self.overlay is None or not len(self.overlay.keys[level]):
            return self.base.keys[level].take(nodes)
        old = self.base.keys[level].take(nodes.clamp(max=max(num_base - 1, 0)))
        return torch.where(
            nodes < num_base, old, self.overlay.keys[level].take((nodes - num_base).clamp(min=0))
        )

    def paths(self, rows: Tensor) -> Tensor:
        """(L, …) node of each catalogue row at each level; the sink for rows not alive, PAD too."""
        of_row = self.base.entry_of_row
        if self.pristine:
            return self.base.nodes_of_row[:, rows.clamp(-1, len(of_row) - 1)]
        known = (rows >= 0) & (rows < len(of_row) - 1)
        entries = of_row.take(rows.masked_fill(~known, -1))  # the last place holds −1
        known &= entries >= 0
        entries = entries.masked_fill(~known, 0)
        if self.alive_E is not None and len(self.alive_E):
            known &= self.alive_E.take(entries)
        nodes = [
            (torch.searchsorted(first, entries, right=True) - 1).masked_fill(~known, sink)
            for first, sink in zip(self.base.entry_first, self.sinks[1:], strict=True)
        ]
        if self.overlay is None:
            return torch.stack(nodes)
        order = self.overlay.rows_D.argsort()
        by_row = self.overlay.rows_D[order]
        place = torch.searchsorted(by_row, rows).clamp_(max=len(by_row) - 1)
        new = (by_row.take(place) == rows) & self.overlay.alive_D.take(order.take(place))
        return torch.where(new, self.overlay.nodes_LD[:, order.take(place)], torch.stack(nodes))

    def symbols(self, paths_L: Tensor) -> Tensor:
        """(…, L) symbols along (L, …) paths of real nodes."""
        levels = [self.key_of(le, nodes) % self.strides[le] for le, nodes in enumerate(paths_L)]
        return torch.stack(levels, dim=-1)

    def items_below(self, leaves_M: Tensor) -> tuple[Tensor, Tensor]:
        """(owner, row) of every live item on real leaves, by owner (position in M), then row."""
        num_base = self.base.num_nodes[-1]
        first = self.base.entry_first[-1]
        inside = leaves_M < num_base
        leaves = leaves_M.masked_fill(~inside, 0)
        counts = (first.take(leaves + 1) - first.take(leaves)) * inside if num_base else inside * 0
        owners, entries = ragged(first.take(leaves), counts)
        if self.alive_E is not None:
            alive = self.alive_E.take(entries)
            owners, entries = owners[alive], entries[alive]
        rows = self.base.rows_E.take(entries) if len(entries) else entries
        if self.overlay is None:
            return owners, rows
        leaves_D = self.overlay.nodes_LD[-1]
        start = torch.searchsorted(leaves_D, leaves_M)
        stop = torch.searchsorted(leaves_D, leaves_M, right=True)
        new_owners, places = ragged(start, stop - start)
        alive = self.overlay.alive_D.take(places)
        owners = torch.cat([owners, new_owners[alive]])
        rows = torch.cat([rows, self.overlay.rows_D.take(places[alive])])
        by_row = rows.argsort()
        order = by_row[owners[by_row].argsort(stable=True)]
        return owners[order], rows[order]

    def items(self) -> tuple[Tensor, Tensor]:
        """Catalogue rows (n,) of all live items, ascending, and their symbols (n, L)."""
        base, levels = self.base, []
        for keys, first, stride in zip(base.keys, base.entry_first, self.strides, strict=True):
            levels.append((keys[: len(first) - 1] % stride).repeat_interleave(first.diff()))
        rows, symbols = base.rows_E, torch.stack(levels, dim=1)
        if self.alive_E is not None:
            rows, symbols = rows[self.alive_E], symbols[self.alive_E]
        if self.overlay is not None:
            alive = self.overlay.alive_D
            rows = torch.cat([rows, self.overlay.rows_D[alive]])
            new = self.symbols(self.overlay.nodes_LD[:, alive])
            symbols = torch.cat([symbols, new])
        rows, order = rows.sort()
        return rows, symbols[order]


def with_overlay(tree: Tree, rows_D: Tensor, symbols_DL: Tensor) -> Tree:
    """The tree with `rows_D` as its overlay, whatever overlay it had before."""
    bare = Tree(tree.base, None, tree.alive_E, tree.strides)
    nodes_D, new_keys, nodes = torch.zeros_like(rows_D), [], []
    for level, stride in enumerate(tree.strides):
        keys_D = symbols_DL[:, level] + nodes_D * stride
        known_D = bare.lookup(level, keys_D)
        fresh_D = known_D == bare.sinks[level + 1]
        new_keys.append(keys_D[fresh_D].unique())
        place_D = torch.searchsorted(new_keys[-1], keys_D) + tree.base.num_nodes[level]
        nodes_D = torch.where(fresh_D, place_D, known_D)
        nodes.append(nodes_D)
    by_row = rows_D.argsort()
    order = by_row[nodes_D[by_row].argsort(stable=True)]
    alive_D = torch.ones_like(rows_D, dtype=torch.bool)
    overlay = Overlay(rows_D[order], torch.stack(nodes)[:, order], tuple(new_keys), alive_D)
    return Tree(tree.base, overlay, tree.alive_E, tree.strides)


def add_bits(bits: Tensor, keys: Tensor, sign: int = 1) -> Tensor:
    """`bits` with the bits of `keys` set (all clear before) or, sign −1, cleared; in place."""
    values = (torch.ones_like(keys) << (keys & 7)) * sign
    bits.view(-1).index_add_(0, keys >> 3, values.to(torch.uint8))
    return bits


def bit_rows(keys: Tensor, num_parents: int, width: int) -> Tensor:
    """(num_parents, V / 8) uint8 with the bits of distinct `keys` set."""
    num_bytes = -(-width // 8)
    return add_bits(
        torch.zeros(num_parents, num_bytes, dtype=torch.uint8, device=keys.device), keys
    )


def ragged(starts_M: Tensor, counts_M: Tensor) -> tuple[Tensor, Tensor]:
    """(owner, position) of every place in M runs that begin at `starts` with `counts` places."""
    owners = torch.repeat_interleave(torch.arange(len(counts_M), device=counts_M.device), counts_M)
    before_M = counts_M.cumsum(0) - counts_M
    return owners, torch.arange(len(owners), device=owners.device) + (starts_M - before_M)[owners]


def build_base(
    rows_N: Ints,
    codes_NL: Ints,
    num_codes: tuple[int, ...],
    widths: tuple[int, ...],
    num_rows: int,
    device: torch.device | str = "cpu",
) -> Base:
    """The tree of items `rows_N` (ascending); after its end an ID holds −1 or the end symbol."""
    num_items = len(rows_N)
    columns, order = sorted_columns(codes_NL, num_codes, widths)
    keys, first, entry_first, branching = [], [], [np.array([0, num_items])], []
    node_of_entry = np.zeros(num_items + 1, dtype=np.int64)  # the last belongs to the sink
    changed = np.ones(num_items + 1, dtype=bool)
    changed[1:num_items] = False
    for symbols, width in zip(columns, widths, strict=True):
        changed[1:num_items] |= symbols[1:] != symbols[:-1]
        entry_first.append(np.flatnonzero(changed))
        starts = entry_first[-1][:-1]
        level_keys = node_of_entry[starts] * (-(-width // 8) * 8) + symbols[starts]
        node_of_entry = np.cumsum(changed) - 1
        first.append(node_of_entry[entry_first[-2]])
        branching.append(int(np.diff(first[-1]).max(initial=1)))
        keys.append(np.append(level_keys, np.full(branching[-1], NO_KEY)))
    entry_of_row = np.full(num_rows + 1, PAD, dtype=np.int64)
    entry_of_row[rows_N[order]] = np.arange(num_items)
    largest_group = int(np.diff(entry_first[-1]).max(initial=0))

    def tensors(arrays: list[Ints]) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(array).to(device) for array in arrays)

    rows_E, entry_of_row = tensors([rows_N[order], entry_of_row])
    return Base(
        tensors(keys), tensors(first), tensors(entry_first[1:]), rows_E, entry_of_row,
        tuple(branching), largest_group,
    )  # fmt: skip


def sorted_columns(
    codes_NL: Ints, num_codes: tuple[int, ...], widths: tuple[int, ...]
) -> tuple[list[Ints], Ints]:
    """Symbols of each level in the order of whole IDs, ties by position, and that order (N,)."""
    columns = [
        np.where(codes_NL[:, level] < 0, num_codes[level], codes_NL[:, level])
        for level in range(len(widths))
    ]
    index_bits = max(len(codes_NL) - 1, 1).bit_length()
    level_bits = [max(width - 1, 1).bit_length() for width in widths]
    if sum(level_bits) + index_bits > 63:  # too long for one integer
        order = np.lexsort(columns[::-1])
        return [column[order] for column in columns], order
    packed = np.zeros(len(codes_NL), dtype=np.int64)
    for column, bits in zip(columns, level_bits, strict=True):
        packed = (packed << bits) | column
    packed = np.sort((packed << index_bits) | np.arange(len(codes_NL)))
    order = packed & ((1 << index_bits) - 1)
    columns, shift = [], sum(level_bits) + index_bits
    for bits in level_bits:
        shift -= bits
        columns.append((packed >> shift) & ((1 << bits) - 1))
    return columns, order
