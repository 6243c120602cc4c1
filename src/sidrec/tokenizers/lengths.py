"""How long IDs are, for whom, and what that costs: figures for IDs of several lengths.

Source:  our metrics for SARQ-style IDs (methods card sa2crq, section 4); popularity groups are the
         strata of the evaluation: 0, 1-5, 6-20 and over 20 training events.
Cost:    O(N L), one sort of the IDs.
Shapes:  N items, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sidrec.errors import DataError
from sidrec.tokenizers.variable_length import lengths_of
from sidrec.types import Ints, SemanticIds

GROUPS = {"cold": 0, "tail": 1, "mid": 6, "head": 21}
"""Name of a popularity group -> the least training events of its items."""


@dataclass(frozen=True, kw_only=True)
class GroupLengths:
    """IDs of the items of one popularity group."""

    num_items: int
    mean_length: float
    """Mean number of codes."""
    share_at_cap: float
    """Share of items whose ID has all L codes; they may still collide."""
    collision_share: float
    """Share of items whose ID another item of the catalogue holds too."""


@dataclass(frozen=True, kw_only=True)
class LengthReport:
    """Figures of one assignment; those weighted by events are None without events."""

    num_levels: int
    """L, the cap."""
    mean_length_items: float
    """Mean number of codes of an item's ID."""
    mean_length_events: float | None
    """The same over training events: codes read for one event of a history."""
    mean_symbols_items: float
    """Codes and the end where an ID stops early: steps that decide something."""
    mean_symbols_events: float | None
    items_of_length: tuple[int, ...]
    """Items with 1, 2, …, L codes."""
    share_at_cap: float
    """Share of items with all L codes."""
    total_bits: float | None
    """Sum over items of the surprisal of their IDs; None without `bits_N`."""
    bits_per_item: float | None
    bits_per_event: float | None
    popularity_correlation: float | None
    """Pearson's r of log(1 + training events) and length over items; None where either never
    changes."""
    largest_group: int
    """Most items on one ID."""
    group_size_of_a_hit: float | None
    """Mean over training events of how many items share the ID of the event's item."""
    groups: Mapping[str, GroupLengths]
    """cold, tail, mid and head, as far as they have items."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def length_report(
    ids: SemanticIds, train_counts_N: Ints, bits_N: np.ndarray | None = None
) -> LengthReport:
    """Lengths of IDs against training events; `bits_N` from `Sarq.bits` adds bits."""
    for name, given in (("train_counts_N", train_counts_N), ("bits_N", bits_N)):
        if given is not None and len(given) != len(ids):
            raise DataError(f"length_report: {len(ids)} items but {len(given)} entries of {name}")
    if not len(ids):
        raise DataError("length_report needs at least one item, got none")
    lengths_N, sizes_N, most = lengths_of(ids.codes), ids.group_sizes_N, ids.num_levels
    symbols_N = np.minimum(lengths_N + 1, most)

    def over_events(values_N: np.ndarray) -> float | None:
        total = train_counts_N.sum()
        return float((values_N * train_counts_N).sum() / total) if total else None

    popularity_N = np.log1p(train_counts_N)
    constant = np.ptp(popularity_N) == 0 or np.ptp(lengths_N) == 0
    edges = [*GROUPS.values(), np.inf]
    groups = {}
    for name, least, above in zip(GROUPS, edges, edges[1:], strict=False):
        chosen = (train_counts_N >= least) & (train_counts_N < above)
        if chosen.any():
            groups[name] = GroupLengths(
                num_items=int(chosen.sum()),
                mean_length=float(lengths_N[chosen].mean()),
                share_at_cap=float((lengths_N[chosen] == most).mean()),
                collision_share=float((sizes_N[chosen] > 1).mean()),
            )
    return LengthReport(
        num_levels=most,
        mean_length_items=float(lengths_N.mean()),
        mean_length_events=over_events(lengths_N),
        mean_symbols_items=float(symbols_N.mean()),
        mean_symbols_events=over_events(symbols_N),
        items_of_length=tuple(np.bincount(lengths_N, minlength=most + 1)[1:].tolist()),
        share_at_cap=float((lengths_N == most).mean()),
        total_bits=None if bits_N is None else float(bits_N.sum()),
        bits_per_item=None if bits_N is None else float(bits_N.mean()),
        bits_per_event=None if bits_N is None else over_events(bits_N),
        popularity_correlation=(
            None if constant else float(np.corrcoef(popularity_N, lengths_N)[0, 1])
        ),
        largest_group=int(sizes_N.max()),
        group_size_of_a_hit=over_events(sizes_N),
        groups=groups,
    )
