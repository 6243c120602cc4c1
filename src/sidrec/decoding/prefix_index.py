"""Prefix index: which codes may follow a prefix, and where they lead, for a whole beam at once.

The catalogue's IDs form a tree of exactly L levels. A level is one sorted array of edge keys
`parent * stride + symbol`; the child node is the position of its key, so the children of a node
are a contiguous slice. Legality is one bit a symbol a node, gathered and unpacked by a table of
256 bytes. Items hang on leaves in catalogue-row order, several where IDs collide. A shorter ID
ends with the extra symbol `num_codes[l]`, which repeats down to level L-1; levels before the
first end have no such symbol. `insert` and `delete` return new snapshots that share the base
arrays: new nodes are numbered behind the old ones, and a node is legal while its count of live
items is above zero. `restrict` does the same for a predicate over items.

Source:   STATIC (arXiv:2602.22647) for fixed-shape gathers over a flattened tree.
Differs:  sorted keys and bit masks instead of CSR with dense first levels; dead beams go to a
          sink node, never the root; insert and delete, which STATIC leaves open; lists of items.
Cost:     build O(N L) after one sort (1 M x 3: 0.1 s, 40 MB); a step O(W V), none of it in N;
          insert of d items O(d L) plus one copy of the bit masks and counts.
Shapes:   B requests, W beams, N items, L levels, V symbols of a level, d items that change.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sidrec.decoding.prefix_tree import Tree, add_bits, bit_rows, build_base, with_overlay
from sidrec.errors import DataError
from sidrec.types import Ints, SemanticIds

ILLEGAL = -1e30
"""Added to the logit of an illegal symbol. Finite, so that sums of it never turn into NaN."""
DEAD = -1e29
"""A beam whose score is below this has left the catalogue."""
MIN_MERGE = 1024  # an overlay smaller than this is never merged
MERGE_SHARE = 8  # the overlay is merged once it exceeds 1/8 of the base
MAX_VIEWS = 16  # restricted snapshots kept per snapshot

PerLevel = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class PrefixIndex:
    """An immutable snapshot of the catalogue's IDs; node 0 is the root, nodes are int64."""

    num_codes: tuple[int, ...]
    widths: tuple[int, ...]
    """V of each level: `num_codes[l]`, plus one where an ID may have ended."""
    tree: Tree
    live: PerLevel
    """L x (nodes + 1,) int32 live items below each node; the last is the sink, with 0."""
    bits: PerLevel
    """L x (parents + 1, V / 8) uint8 legal symbols of each parent; the last row is the sink."""
    num_items: int
    """Live items."""
    num_rows: int
    """One more than the highest catalogue row ever held."""
    byte_bias: Tensor
    """(256, 8) float32: 0 for each set bit of a byte, ILLEGAL for each clear one."""
    version: int = 0
    """Goes up by one with each insert or delete."""
    _views: OrderedDict[bytes, PrefixIndex] = field(default_factory=OrderedDict, repr=False)
    _parts: dict[tuple[int, int], PrefixIndex] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    # ---------------------------------------------------------------- construction and facts

    @classmethod
    def build(
        cls, ids: SemanticIds, *, device: torch.device | str = "cpu", first_end: int | None = None
    ) -> PrefixIndex:
        """Index every item of `ids`; row i is catalogue row i.

        `first_end` is the first level at which an ID may have ended; by default it is read off
        the codes. Give it when shorter IDs than those at hand will be inserted later.
        """
        ended_L = (ids.codes < 0).any(axis=0)
        if ended_L.any():
            found = int(ended_L.argmax())
            first_end = found if first_end is None else min(first_end, found)
        widths = tuple(
            v + (first_end is not None and level >= first_end)
            for level, v in enumerate(ids.num_codes)
        )
        rows_N = np.arange(len(ids), dtype=np.int64)
        return cls._of_items(rows_N, ids.codes, ids.num_codes, widths, len(ids), device)

    @classmethod
    def _of_items(
        cls,
        rows_N: Ints,
        codes_NL: Ints,
        num_codes: tuple[int, ...],
        widths: tuple[int, ...],
        num_rows: int,
        device: torch.device | str,
    ) -> PrefixIndex:
        """A snapshot without overlay; `rows_N` ascend, codes hold −1 or the end symbol."""
        base = build_base(rows_N, codes_NL, num_codes, widths, num_rows, device)
        live = tuple(torch.cat([f.diff(), f.new_zeros(1)]).int() for f in base.entry_first)
        levels = zip(base.keys, base.num_nodes, (1, *base.num_nodes), widths, strict=False)
        bits = tuple(bit_rows(keys[:n], parents + 1, v) for keys, n, parents, v in levels)
        tree = Tree(base, None, None, tuple(rows.shape[1] * 8 for rows in bits))
        byte = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)
        byte_bias = (1.0 - (byte & 1).float()) * ILLEGAL
        return cls(num_codes, widths, tree, live, bits, len(rows_N), num_rows, byte_bias)

    @property
    def device(self) -> torch.device:
        return self.byte_bias.device

    @property
    def num_levels(self) -> int:
        return len(self.widths)

    @cached_property
    def first_end(self) -> int | None:
        """First level with an end symbol; None when every ID has L codes."""
        ends = [w > v for w, v in zip(self.widths, self.num_codes, strict=True)]
        return ends.index(True) if any(ends) else None

    @property
    def sinks(self) -> tuple[int, ...]:
        """(L + 1) where dead beams go: `sinks[l]` is a parent at level l without children."""
        return self.tree.sinks

    @cached_property
    def compact(self) -> tuple[bool, ...]:
        """Levels whose step looks at the children slice rather than at all V symbols."""
        pairs = zip(self.tree.base.branching, self.widths, strict=True)
        return tuple(self.tree.pristine and 2 * branching <= width for branching, width in pairs)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays this snapshot refers to, shared ones included."""
        return sum(a.nbytes for a in (*self.tree.arrays, *self.live, *self.bits, self.byte_bias))

    def num_prefixes(self, level: int) -> int:
        """Distinct live prefixes of `level` + 1 codes."""
        return int((self.live[level] > 0).sum())

    def live_mask(self, num_rows: int) -> Tensor | None:
        """(num_rows,) bool: catalogue rows that are alive; None where all of them are."""
        if self.num_items == num_rows == self.num_rows:
            return None
        tree, mask_N = self.tree, torch.zeros(num_rows, dtype=torch.bool, device=self.device)
        alive_E, over = tree.alive_E, tree.overlay
        mask_N[tree.base.rows_E if alive_E is None else tree.base.rows_E[alive_E]] = True
        if over is not None:
            mask_N[over.rows_D[over.alive_D]] = True
        return mask_N

    # ---------------------------------------------------------------- one step of a search

    def root(self, num_requests: int) -> Tensor:
        """(B, 1) every request at the root."""
        return torch.zeros(num_requests, 1, dtype=torch.int64, device=self.device)

    def bias(self, level: int, nodes_BW: Tensor) -> Tensor:
        """(B, W, V) float32: 0 where a symbol continues the prefix, ILLEGAL elsewhere."""
        bytes_M = self.bits[level].index_select(0, nodes_BW.reshape(-1)).int().view(-1)
        bias_BWV = self.byte_bias.index_select(0, bytes_M).view(*nodes_BW.shape, -1)
        width = self.widths[level]
        return bias_BWV if bias_BWV.shape[-1] == width else bias_BWV[..., :width]

    def children_mask(self, level: int, nodes_BW: Tensor) -> Tensor:
        """(B, W, V) bool: which symbols of `level` continue each prefix to a live item."""
        return self.bias(level, nodes_BW) == 0

    def child(self, level: int, nodes: Tensor, symbols: Tensor) -> Tensor:
        """The node each symbol leads to, any shape; the sink where no live item lies that way."""
        keys = torch.add(symbols, nodes, alpha=self.tree.strides[level])
        found = self.tree.lookup(level, keys)
        return found.masked_fill(self.live[level].take(found) == 0, self.sinks[level + 1])

    def paths(self, rows: Tensor) -> Tensor:
        """(L, …) node of each catalogue row at each level; the sink for rows not alive, −1 too."""
        return self.tree.paths(rows)

    def codes(self, rows: Tensor) -> Tensor:
        """(…, L) symbols of live catalogue rows, the end symbol after a shorter ID."""
        paths = self.paths(rows)
        self._require(paths[-1] != self.sinks[-1], rows, "are not in the index", "insert them")
        return self.tree.symbols(paths)

    # ---------------------------------------------------------------- new snapshots

    def insert(self, rows: Ints, codes: Ints) -> PrefixIndex:
        """A snapshot that also holds items `rows` (d,) with `codes` (d, L), −1 after an end."""
        rows_D, symbols_DL = self._checked(np.asarray(rows, np.int64), np.asarray(codes, np.int64))
        if not len(rows_D):
            return self
        (live, bits), num_items, over = self._without_overlay(), self.num_items, self.tree.overlay
        if over is not None:
            num_items -= int(over.alive_D.sum())
            rows_D = torch.cat([rows_D, over.rows_D[over.alive_D]])
            kept_DL = self.tree.symbols(over.nodes_LD[:, over.alive_D])
            symbols_DL = torch.cat([symbols_DL, kept_DL])
        tree = with_overlay(self.tree, rows_D, symbols_DL)
        live, bits = grown(tree, live, bits)
        num_rows = max(self.num_rows, int(rows_D.max()) + 1)
        snapshot = self._next(tree, live, bits, num_items + len(rows_D), num_rows)
        crowded = len(rows_D) > max(MIN_MERGE, len(self.tree.base.rows_E) // MERGE_SHARE)
        return snapshot.merged() if crowded else snapshot

    def delete(self, rows: Ints) -> PrefixIndex:
        """A snapshot without the items `rows` (d,), each of which must be alive."""
        rows_D = torch.from_numpy(np.unique(np.asarray(rows, np.int64))).to(self.device)
        if not len(rows_D):
            return self
        paths_LD, tree = self.paths(rows_D), self.tree
        self._require(paths_LD[-1] != self.sinks[-1], rows_D, "are not in the index", "skip them")
        overlay, base_rows = tree.overlay, rows_D
        if overlay is not None:
            gone_D = torch.isin(overlay.rows_D, rows_D) & overlay.alive_D
            base_rows = rows_D[~torch.isin(rows_D, overlay.rows_D[gone_D])]
            overlay = replace(overlay, alive_D=overlay.alive_D & ~gone_D)
        alive_E = tree.alive_E
        if len(base_rows):
            everything = torch.ones_like(tree.base.rows_E, dtype=torch.bool)
            alive_E = everything if alive_E is None else alive_E.clone()
            alive_E[tree.base.entry_of_row[base_rows]] = False
        live, bits = shrunk(tree, self.live, self.bits, paths_LD)
        tree = replace(tree, overlay=overlay, alive_E=alive_E)
        snapshot = self._next(tree, live, bits, self.num_items - len(rows_D), self.num_rows)
        held = len(tree.base.rows_E) + (0 if overlay is None else len(overlay.rows_D))
        crowded = held - snapshot.num_items > max(MIN_MERGE, held // 2)
        return snapshot.merged() if crowded else snapshot

    def restrict(self, keep_N: Tensor, key: bytes) -> PrefixIndex:
        """A snapshot in which only rows with `keep_N` live; cached under `key`, newest 16 kept."""
        with self._lock:
            if key in self._views:
                self._views.move_to_end(key)
                return self._views[key]
        if len(keep_N) < self.num_rows:
            raise DataError(
                f"rules: keep_N must cover the {self.num_rows} catalogue rows of the index, "
                f"got {len(keep_N)}; give one value a row"
            )
        base, over = self.tree.base, self.tree.overlay
        keep_N = keep_N.to(self.device)
        alive_E = keep_N[base.rows_E]
        alive_E = alive_E if self.tree.alive_E is None else alive_E & self.tree.alive_E
        over = None if over is None else replace(over, alive_D=over.alive_D & keep_N[over.rows_D])
        before = torch.cat([alive_E.new_zeros(1).long(), alive_E.cumsum(0)])
        live, bits = [], []
        for level, first in enumerate(base.entry_first):
            extra = self.sinks[level + 1] - base.num_nodes[level] + 1
            counts = torch.cat([before.take(first).diff(), before.new_zeros(extra)]).int()
            if over is not None:
                counts.index_add_(0, over.nodes_LD[level], over.alive_D.int())
            keys = self.tree.key_of(level, counts.nonzero()[:, 0])
            bits.append(bit_rows(keys, self.sinks[level] + 1, self.widths[level]))
            live.append(counts)
        tree = replace(self.tree, overlay=over, alive_E=alive_E)
        view = self._next(tree, tuple(live), tuple(bits), int(live[0].sum()), self.num_rows, 0)
        with self._lock:
            self._views[key] = view
            while len(self._views) > MAX_VIEWS:
                self._views.popitem(last=False)
        return view

    def part(self, start: int, stop: int) -> PrefixIndex:
        """The same live items by levels `start` … `stop` − 1 of their IDs alone; made once, O(N L).

        Items that differ elsewhere share a leaf.
        """
        with self._lock:
            if (start, stop) not in self._parts:
                rows_N, symbols_NL = (a.cpu().numpy() for a in self.tree.items())
                self._parts[start, stop] = self._of_items(
                    rows_N, symbols_NL[:, start:stop], self.num_codes[start:stop],
                    self.widths[start:stop], self.num_rows, self.device,
                )  # fmt: skip
            return self._parts[start, stop]

    def merged(self) -> PrefixIndex:
        """The same live items in fresh base arrays; itself when there is nothing to merge."""
        return self if self.tree.pristine else self._merged

    @cached_property
    def _merged(self) -> PrefixIndex:
        rows_N, codes_NL = (a.cpu().numpy() for a in self.tree.items())
        fresh = self._of_items(
            rows_N, codes_NL, self.num_codes, self.widths, self.num_rows, self.device
        )
        return replace(fresh, version=self.version)

    # ---------------------------------------------------------------- their pieces

    def _next(
        self, tree: Tree, live: PerLevel, bits: PerLevel, num_items: int, num_rows: int, by: int = 1
    ) -> PrefixIndex:
        return PrefixIndex(
            self.num_codes, self.widths, tree, live, bits, num_items, num_rows, self.byte_bias,
            self.version + by,
        )  # fmt: skip

    def _require(self, fine: Tensor, rows: Tensor, what: str, hint: str) -> None:
        if not bool(fine.all()):
            bad = rows[~fine]
            raise DataError(
                f"prefix index: {bad.numel()} of {rows.numel()} rows {what}, "
                f"e.g. {bad.reshape(-1)[:3].tolist()}; {hint} first"
            )

    def _checked(self, rows_D: Ints, codes_DL: Ints) -> tuple[Tensor, Tensor]:
        """Rows and symbols to insert as tensors, after every check a caller can fail."""
        if codes_DL.shape != (len(rows_D), self.num_levels):
            raise DataError(
                f"insert: codes must be (d, L) = {(len(rows_D), self.num_levels)}, "
                f"got {codes_DL.shape}"
            )
        if len(np.unique(rows_D)) != len(rows_D) or (rows_D < 0).any():
            raise DataError("insert: rows must be distinct catalogue rows, 0 or higher")
        if ((codes_DL[:, :-1] < 0) & (codes_DL[:, 1:] >= 0)).any():
            raise DataError("insert: a code follows the end (−1) of its semantic ID")
        symbols_DL = np.where(codes_DL < 0, self.num_codes, codes_DL)
        if (symbols_DL >= np.array(self.widths)).any():
            raise DataError(
                f"insert: codes need more symbols than the {self.widths} of the levels (an ID "
                "that ends early needs one more); rebuild with PrefixIndex.build"
            )
        rows = torch.from_numpy(rows_D).to(self.device)
        known = self.paths(rows)[-1] != self.sinks[-1]
        self._require(~known, rows, "are already in the index", "delete them")
        return rows, torch.from_numpy(symbols_DL).to(self.device)

    def _without_overlay(self) -> tuple[PerLevel, PerLevel]:
        """Counts and bit masks of the base items alone, in arrays of the base's size."""
        over, nodes = self.tree.overlay, self.tree.base.num_nodes
        if over is None:
            return self.live, self.bits
        live, bits = shrunk(self.tree, self.live, self.bits, over.nodes_LD[:, over.alive_D])
        return (
            tuple(cut(a, n) for a, n in zip(live, nodes, strict=True)),
            tuple(cut(a, n) for a, n in zip(bits, (1, *nodes[:-1]), strict=True)),
        )


def cut(array: Tensor, count: int) -> Tensor:
    """The first `count` entries and a zero one for the sink."""
    return torch.cat([array[:count], torch.zeros_like(array[:1])])


def grown(tree: Tree, live: PerLevel, bits: PerLevel) -> tuple[PerLevel, PerLevel]:
    """Counts and bit masks of the base (given) with the overlay of `tree` added."""
    assert tree.overlay is not None
    counts_L, bits_L, new_parents = [], [], 0
    for level, new_keys in enumerate(tree.overlay.keys):
        num_base, rows = tree.base.num_nodes[level], bits[level]
        counts = torch.cat([live[level], live[level].new_zeros(len(new_keys))])
        nodes, added = tree.overlay.nodes_LD[level].unique(return_counts=True)
        born = nodes[counts.take(nodes) == 0]
        counts[nodes] += added.int()
        keys = torch.cat([tree.base.keys[level].take(born[born < num_base]), new_keys])
        wider = torch.cat([rows, rows.new_zeros(new_parents, rows.shape[1])])
        bits_L.append(add_bits(wider, keys))
        counts_L.append(counts)
        new_parents = len(new_keys)
    return tuple(counts_L), tuple(bits_L)


def shrunk(
    tree: Tree, live: PerLevel, bits: PerLevel, paths_LD: Tensor
) -> tuple[PerLevel, PerLevel]:
    """Counts and bit masks after one item on each path is gone."""
    counts_L, bits_L = [], []
    for level, rows in enumerate(bits):
        nodes, gone = paths_LD[level].unique(return_counts=True)
        counts = live[level].clone()
        counts[nodes] -= gone.int()
        keys = tree.key_of(level, nodes[counts.take(nodes) == 0])
        bits_L.append(add_bits(rows.clone(), keys, -1) if len(keys) else rows)
        counts_L.append(counts)
    return tuple(counts_L), tuple(bits_L)
