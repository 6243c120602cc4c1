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
Cost:     build O(N L) after one sort (1 M x 3: about 0.1 s, 45 MB); a step O(W V), none in N;
          insert of d items O(d L) plus one copy of the bit masks and counts.
Shapes:   B requests, W beams, N items, L levels, V symbols of a level, M nodes or rows asked for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sidrec.errors import DataError
from sidrec.types import PAD, Ints, SemanticIds

ILLEGAL = -1e30
"""Added to the logit of an illegal symbol. Finite, so that sums of it never turn into NaN."""
DEAD = -1e29
"""A beam whose score is below this has left the catalogue."""
NO_KEY = torch.iinfo(torch.int64).max // 2
MIN_MERGE = 1024  # an overlay smaller than this is never merged
MERGE_SHARE = 8  # the overlay is merged once it exceeds 1/8 of the base
MAX_VIEWS = 16  # restricted snapshots kept per snapshot


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
    """(rows,) entry of each catalogue row, −1 where it has none."""
    branching: tuple[int, ...]
    """Most children of any parent, a level."""
    largest_group: int

    @cached_property
    def num_nodes(self) -> tuple[int, ...]:
        return tuple(len(first) - 1 for first in self.entry_first)


@dataclass(frozen=True, eq=False)
class Overlay:
    """Items inserted after the base was built, sorted by leaf, then row."""

    rows_D: Tensor
    nodes_LD: Tensor
    """Node of each item at each level; those new to the base are numbered from n_l."""
    keys: tuple[Tensor, ...]
    """L x sorted int64 keys of new edges; node = n_l + position."""
    alive_D: Tensor


@dataclass(frozen=True, eq=False)
class PrefixIndex:
    """An immutable snapshot of the catalogue's prefix tree. Nodes of depth l lie below level l."""

    num_codes: tuple[int, ...]
    widths: tuple[int, ...]
    """V of each level: `num_codes[l]`, plus one where an ID may have ended."""
    version: int
    base: Base
    overlay: Overlay | None
    alive_E: Tensor | None
    """(E,) which base entries count; None when all do."""
    live: tuple[Tensor, ...]
    """L x (nodes + 1,) int32 live items below each node; the last is the sink, with 0."""
    bits: tuple[Tensor, ...]
    """L x (parents + 1, V / 8) uint8 legal symbols of each parent; the last row is the sink."""
    num_items: int
    num_rows: int
    """One more than the highest catalogue row ever held."""
    byte_bias: Tensor
    """(256, 8) float32: 0 for each set bit of a byte, ILLEGAL for each clear one."""
    _views: OrderedDict[bytes, PrefixIndex] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    # ---------------------------------------------------------------- construction

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
        return cls._from_items(rows_N, ids.codes, ids.num_codes, widths, device, 0, len(ids))

    @classmethod
    def _from_items(
        cls,
        rows_N: Ints,
        codes_NL: Ints,
        num_codes: tuple[int, ...],
        widths: tuple[int, ...],
        device: torch.device | str,
        version: int,
        num_rows: int,
    ) -> PrefixIndex:
        """A snapshot without overlay; `rows_N` ascend, codes hold −1 or the end symbol."""
        base = build_base(rows_N, codes_NL, num_codes, widths, num_rows)
        base = Base(
            *(tuple(torch.from_numpy(a).to(device) for a in arrays) for arrays in base[:3]),
            *(torch.from_numpy(a).to(device) for a in base[3:5]),
            *base[5:],
        )
        live = tuple(
            torch.cat([first.diff(), first.new_zeros(1)]).int() for first in base.entry_first
        )
        parents = (1, *base.num_nodes[:-1])
        bits = tuple(
            bit_rows(keys[: len(first) - 1], num_parents + 1, width)
            for keys, first, num_parents, width in zip(
                base.keys, base.entry_first, parents, widths, strict=True
            )
        )
        byte = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)
        byte_bias = (1.0 - (byte & 1).float()) * ILLEGAL
        return cls(
            num_codes, widths, version, base, None, None, live, bits, len(rows_N), num_rows,
            byte_bias,
        )  # fmt: skip

    # ---------------------------------------------------------------- facts

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

    @cached_property
    def sinks(self) -> tuple[int, ...]:
        """(L + 1) where dead beams go: `sinks[l]` among the parents of level l; root is node 0."""
        return (1, *(len(live) - 1 for live in self.live))

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Keys a parent owns at each level: V rounded up to whole bytes of the bit mask."""
        return tuple(bits.shape[1] * 8 for bits in self.bits)

    @cached_property
    def compact(self) -> tuple[bool, ...]:
        """Levels whose step looks at the children slice rather than at all V symbols."""
        pristine = self.alive_E is None and self.overlay is None
        return tuple(
            pristine and 2 * branching <= width
            for branching, width in zip(self.base.branching, self.widths, strict=True)
        )

    @cached_property
    def one_item_a_leaf(self) -> bool:
        return self.overlay is None and self.base.largest_group <= 1

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays this snapshot refers to, shared ones included."""
        base, over = self.base, self.overlay
        held = [*base.keys, *base.first, *base.entry_first, base.rows_E, base.entry_of_row]
        held += [*self.live, *self.bits, self.byte_bias]
        held += [] if over is None else [over.rows_D, over.nodes_LD, over.alive_D, *over.keys]
        held += [] if self.alive_E is None else [self.alive_E]
        return sum(t.nbytes for t in held)

    def num_prefixes(self, level: int) -> int:
        """Distinct live prefixes of `level` + 1 codes."""
        return int((self.live[level] > 0).sum())

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
        """The node each symbol leads to, any shape; the sink where there is no live one."""
        sink = self.sinks[level + 1]
        found = self.lookup(level, torch.add(symbols, nodes, alpha=self.strides[level]))
        return found.masked_fill(self.live[level].take(found) == 0, sink)

    def lookup(self, level: int, keys: Tensor) -> Tensor:
        """Nodes of edge keys; the sink where the tree has no such edge, live or not."""
        base_keys = self.base.keys[level]
        nodes = torch.searchsorted(base_keys, keys)
        known = base_keys.take(nodes) == keys
        new_keys = None if self.overlay is None else self.overlay.keys[level]
        if new_keys is None or not len(new_keys):
            return nodes.masked_fill(~known, self.sinks[level + 1])
        place = torch.searchsorted(new_keys, keys).clamp_(max=len(new_keys) - 1)
        new = (place + self.base.num_nodes[level]).masked_fill(
            new_keys.take(place) != keys, self.sinks[level + 1]
        )
        return torch.where(known, nodes, new)

    # ---------------------------------------------------------------- items and nodes

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
        known = (rows >= 0) & (rows < len(self.base.entry_of_row))
        entries = (
            self.base.entry_of_row.take(rows.masked_fill(~known, 0))
            if len(self.base.entry_of_row)
            else torch.full_like(rows, -1)
        )
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

    def codes(self, rows: Tensor) -> Tensor:
        """(…, L) symbols of each live catalogue row, the end symbol after a shorter ID."""
        paths = self.paths(rows)
        if bool((paths[-1] == self.sinks[-1]).any()):
            missing = rows[paths[-1] == self.sinks[-1]]
            raise DataError(
                f"prefix index: {missing.numel()} rows are not in it, "
                f"e.g. {missing.reshape(-1)[:3].tolist()}; insert them first"
            )
        symbols = [self.key_of(le, paths[le]) % self.strides[le] for le in range(self.num_levels)]
        return torch.stack(symbols, dim=-1)

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
        order = (owners * self.num_rows + rows).argsort()
        return owners[order], rows[order]

    def live_rows(self) -> Tensor:
        """Catalogue rows of all live items, ascending."""
        rows = self.base.rows_E if self.alive_E is None else self.base.rows_E[self.alive_E]
        if self.overlay is not None:
            rows = torch.cat([rows, self.overlay.rows_D[self.overlay.alive_D]])
        return rows.sort().values

    # ---------------------------------------------------------------- new snapshots

    def insert(self, rows: Ints, codes: Ints) -> PrefixIndex:
        """A snapshot that also holds items `rows` (d,) with `codes` (d, L), −1 after an end."""
        rows_D, symbols_DL = self._checked(np.asarray(rows), np.asarray(codes))
        if not len(rows_D):
            return self
        bare, over = self._without_overlay(), self.overlay
        if over is not None:
            kept = over.rows_D[over.alive_D]
            rows_D = torch.cat([kept, rows_D])
            symbols_DL = torch.cat([self.codes(kept), symbols_DL])
        num_rows = max(self.num_rows, int(rows_D.max()) + 1)
        nodes_D, new_keys, nodes = torch.zeros_like(rows_D), [], []
        for level, stride in enumerate(self.strides):
            keys_D = symbols_DL[:, level] + nodes_D * stride
            known_D = bare.lookup(level, keys_D)
            fresh_D = known_D == bare.sinks[level + 1]
            new_keys.append(keys_D[fresh_D].unique())
            place_D = torch.searchsorted(new_keys[-1], keys_D) + self.base.num_nodes[level]
            nodes_D = torch.where(fresh_D, place_D, known_D)
            nodes.append(nodes_D)
        order = (nodes_D * num_rows + rows_D).argsort()
        overlay = Overlay(
            rows_D[order],
            torch.stack(nodes)[:, order],
            tuple(new_keys),
            torch.ones_like(rows_D, dtype=torch.bool),
        )
        live, bits = bare._grown(overlay)
        snapshot = replace(
            self, version=self.version + 1, overlay=overlay, alive_E=bare.alive_E, live=live,
            bits=bits, num_items=bare.num_items + len(rows_D), num_rows=num_rows, **fresh_cache(),
        )  # fmt: skip
        crowded = len(rows_D) > max(MIN_MERGE, len(self.base.rows_E) // MERGE_SHARE)
        return snapshot.merged() if crowded else snapshot

    def delete(self, rows: Ints) -> PrefixIndex:
        """A snapshot without the items `rows` (d,); each must be alive. Codes are forgotten."""
        rows_D = torch.from_numpy(np.unique(np.asarray(rows, dtype=np.int64))).to(self.device)
        if not len(rows_D):
            return self
        paths_LD = self.paths(rows_D)
        if bool((paths_LD[-1] == self.sinks[-1]).any()):
            missing = rows_D[paths_LD[-1] == self.sinks[-1]]
            raise DataError(
                f"delete: {len(missing)} of {len(rows_D)} rows are not in the index, "
                f"e.g. {missing[:3].tolist()}; delete only items it holds"
            )
        alive_E, overlay = self.alive_E, self.overlay
        if overlay is not None:
            gone_D = torch.isin(overlay.rows_D, rows_D) & overlay.alive_D
            rows_D = rows_D[~torch.isin(rows_D, overlay.rows_D[gone_D])]
            overlay = replace(overlay, alive_D=overlay.alive_D & ~gone_D)
        if len(rows_D):
            alive_E = (
                torch.ones_like(self.base.rows_E, dtype=torch.bool)
                if alive_E is None
                else (alive_E.clone())
            )
            alive_E[self.base.entry_of_row[rows_D]] = False
        live, bits = self._shrunk(paths_LD)
        snapshot = replace(
            self, version=self.version + 1, overlay=overlay, alive_E=alive_E, live=live, bits=bits,
            num_items=self.num_items - paths_LD.shape[1], **fresh_cache(),
        )  # fmt: skip
        held = len(self.base.rows_E) + (0 if overlay is None else len(overlay.rows_D))
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
        keep_N = keep_N.to(self.device)
        alive_E = keep_N[self.base.rows_E]
        alive_E = alive_E if self.alive_E is None else alive_E & self.alive_E
        before = torch.cat([alive_E.new_zeros(1).long(), alive_E.cumsum(0)])
        over = self.overlay
        over = None if over is None else replace(over, alive_D=over.alive_D & keep_N[over.rows_D])
        live, bits = [], []
        for level, first in enumerate(self.base.entry_first):
            extra = self.sinks[level + 1] - self.base.num_nodes[level] + 1
            counts = torch.cat([before.take(first).diff(), before.new_zeros(extra)]).int()
            if over is not None:
                counts.index_add_(0, over.nodes_LD[level], over.alive_D.int())
            nodes = counts.nonzero()[:, 0]
            keys = self.key_of(level, nodes)
            live.append(counts)
            bits.append(bit_rows(keys, self.sinks[level] + 1, self.widths[level]))
        num_items = int(live[0].sum())
        view = replace(
            self, overlay=over, alive_E=alive_E, live=tuple(live), bits=tuple(bits),
            num_items=num_items, **fresh_cache(),
        )  # fmt: skip
        with self._lock:
            self._views[key] = view
            while len(self._views) > MAX_VIEWS:
                self._views.popitem(last=False)
        return view

    def merged(self) -> PrefixIndex:
        """The same live items in fresh base arrays; itself when there is nothing to merge."""
        if self.alive_E is None and self.overlay is None:
            return self
        rows_N = self.live_rows()
        codes_NL = self.codes(rows_N).cpu().numpy()
        return self._from_items(
            rows_N.cpu().numpy(), codes_NL, self.num_codes, self.widths, self.device,
            self.version, self.num_rows,
        )  # fmt: skip

    # ---------------------------------------------------------------- pieces of insert and delete

    def _checked(self, rows_D: Ints, codes_DL: Ints) -> tuple[Tensor, Tensor]:
        """Rows and symbols to insert as tensors, after every check a caller can fail."""
        if codes_DL.shape != (len(rows_D), self.num_levels):
            raise DataError(
                f"insert: codes must be (d, L) = {(len(rows_D), self.num_levels)}, "
                f"got {codes_DL.shape}"
            )
        if len(np.unique(rows_D)) != len(rows_D) or (rows_D < 0).any():
            raise DataError("insert: rows must be distinct catalogue rows, 0 or higher")
        symbols_DL = np.where(codes_DL < 0, self.num_codes, codes_DL)
        if (symbols_DL >= np.array(self.widths)).any():
            what = "the tree has no end symbol there" if (codes_DL < 0).any() else "too high"
            raise DataError(
                f"insert: codes fall outside levels of {self.widths} symbols ({what}); "
                "rebuild the index with PrefixIndex.build"
            )
        rows = torch.from_numpy(rows_D.astype(np.int64)).to(self.device)
        held = self.paths(rows)[-1] != self.sinks[-1]
        if bool(held.any()):
            raise DataError(
                f"insert: {int(held.sum())} rows are already in the index, "
                f"e.g. {rows[held][:3].tolist()}; delete them first to change their codes"
            )
        return rows, torch.from_numpy(symbols_DL.astype(np.int64)).to(self.device)

    def _without_overlay(self) -> PrefixIndex:
        """The base items alone, with arrays of the base's size."""
        if self.overlay is None:
            return self
        live, bits = self._shrunk(self.overlay.nodes_LD[:, self.overlay.alive_D])
        nodes = self.base.num_nodes
        live = tuple(torch.cat([a[:n], a.new_zeros(1)]) for a, n in zip(live, nodes, strict=True))
        bits = tuple(
            torch.cat([a[:n], a.new_zeros(1, a.shape[1])])
            for a, n in zip(bits, (1, *nodes[:-1]), strict=True)
        )
        count = self.num_items - int(self.overlay.alive_D.sum())
        return replace(self, overlay=None, live=live, bits=bits, num_items=count, **fresh_cache())

    def _grown(self, overlay: Overlay) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Counts and bit masks of this overlay-free snapshot with `overlay` added."""
        live, bits, extra_parents = [], [], 0
        for level, new_keys in enumerate(overlay.keys):
            num_base = self.base.num_nodes[level]
            before, rows = self.live[level], self.bits[level]
            counts = torch.cat([before[:num_base], before.new_zeros(len(new_keys) + 1)])
            nodes, added = overlay.nodes_LD[level].unique(return_counts=True)
            born = nodes[counts.take(nodes) == 0]
            counts[nodes] += added.int()
            old = born[born < num_base]
            keys = torch.cat([self.base.keys[level].take(old), new_keys])
            wider = torch.cat([rows, rows.new_zeros(extra_parents, rows.shape[1])])
            bits.append(add_bits(wider, keys))
            live.append(counts)
            extra_parents = len(new_keys)
        return tuple(live), tuple(bits)

    def _shrunk(self, paths_LD: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Counts and bit masks after one item on each path is gone."""
        live, bits = [], []
        for level, counts in enumerate(self.live):
            nodes, gone = paths_LD[level].unique(return_counts=True)
            counts = counts.clone()
            counts[nodes] -= gone.int()
            died = nodes[counts.take(nodes) == 0]
            rows = self.bits[level]
            bits.append(add_bits(rows.clone(), self.key_of(level, died), -1) if len(died) else rows)
            live.append(counts)
        return tuple(live), tuple(bits)


def fresh_cache() -> dict[str, object]:
    """Fields a new snapshot must not share with the one it came from."""
    return {"_views": OrderedDict(), "_lock": threading.Lock()}


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
    rows_N: Ints, codes_NL: Ints, num_codes: tuple[int, ...], widths: tuple[int, ...], num_rows: int
) -> tuple[list[Ints], list[Ints], list[Ints], Ints, Ints, tuple[int, ...], int]:
    """The arrays of `Base`, in its order, as NumPy arrays."""
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
    entry_of_row = np.full(num_rows, PAD, dtype=np.int64)
    entry_of_row[rows_N[order]] = np.arange(num_items)
    largest = int(np.diff(entry_first[-1]).max(initial=0))
    return keys, first, entry_first[1:], rows_N[order], entry_of_row, tuple(branching), largest


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
