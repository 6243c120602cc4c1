"""The few frozen values that travel between stages; nothing else travels.

Each checks itself once, at construction. Row index = catalogue row: outside ids (strings) appear
only where data enter and where recommendations leave.

Shapes: B requests, N items, U users, E events, Q evaluation examples, T history length,
        D width, L levels, V codes per level, K returned items.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sidrec.errors import DataError

if TYPE_CHECKING:
    import polars as pl
    import torch

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ids = NDArray[np.object_]
"""Outside identifiers: an object array of str."""

PAD = -1
"""Item row that fills the places after the end of a history, and after the last candidate."""


def as_ids(values: Iterable[object]) -> Ids:
    """Outside ids as an object array (n,) of str."""
    return np.array([str(value) for value in values], dtype=object)


def require_unique(ids: Ids, what: str) -> None:
    """Raise DataError naming up to three repeated ids."""
    values, counts = np.unique(ids.astype(str), return_counts=True)
    if (counts > 1).any():
        repeated = values[counts > 1]
        raise DataError(
            f"{what} must be unique, but {len(repeated)} repeat, "
            f"e.g. {list(map(str, repeated[:3]))}; "
            "drop the repeated rows"
        )


@dataclass(frozen=True, eq=False)
class Items:
    """The catalogue: row i describes `item_ids[i]`."""

    item_ids: Ids
    """(N,) the caller's own identifiers, unique."""
    attributes: pl.DataFrame
    """N rows; any columns. Text comes from `title`, `brand`, `categories`, `description`, `text`
    and `keywords` where they exist."""

    def __post_init__(self) -> None:
        require_unique(self.item_ids, "item ids")
        if self.attributes.height != len(self.item_ids) and self.attributes.width:
            raise DataError(
                f"attributes have {self.attributes.height} rows for {len(self.item_ids)} items"
            )

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Outside id -> catalogue row."""
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    def rows(self, item_ids: Sequence[str], *, where: str = "history") -> Ints:
        """Catalogue rows (n,) of outside ids. Raises DataError naming up to three unknown ids."""
        row_of = self.row_of
        unknown = [str(i) for i in item_ids if str(i) not in row_of]
        if unknown:
            raise DataError(
                f"{where}: {len(unknown)} of {len(item_ids)} items are not in the catalogue, "
                f"e.g. {unknown[:3]}; add them to the items table or drop them"
            )
        return np.array([row_of[str(i)] for i in item_ids], dtype=np.int64)

    def texts(self) -> list[str]:
        """One string an item, '' where nothing is known: title, brand, categories, …."""
        columns = set(self.attributes.columns)
        parts: list[list[str]] = []
        for name in TEXT_COLUMNS:
            if name in columns:
                parts.append([_as_text(name, v) for v in self.attributes[name].to_list()])
        if not parts:
            return [""] * len(self)
        return [". ".join(p for p in row if p) for row in zip(*parts, strict=True)]

    def titles(self) -> list[str]:
        """A short name for people, one an item: title, else first text column, else the id."""
        for name in ("title", "name", *TEXT_COLUMNS):
            if name in self.attributes.columns:
                values = [_as_text("title", v) for v in self.attributes[name].to_list()]
                return [v or str(i) for v, i in zip(values, self.item_ids, strict=True)]
        return [str(i) for i in self.item_ids]


TEXT_COLUMNS = ("title", "text", "brand", "categories", "keywords", "genres", "description")
MAX_DESCRIPTION_CHARS = 600


def _as_text(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        text = value.strip()
    elif isinstance(value, Iterable):
        text = ", ".join(str(v) for v in value if v is not None)
    else:
        text = str(value)
    if column == "brand":
        return "" if text.lower() in {"", "unknown"} else f"Brand: {text}"
    if column == "categories":
        return f"Categories: {text}" if text else ""
    return text[:MAX_DESCRIPTION_CHARS] if column == "description" else text


@dataclass(frozen=True, eq=False)
class Interactions:
    """Events, sorted by user, then time; events of one user at one time keep their file order."""

    user_ids: Ids
    """(U,) the caller's own identifiers, unique."""
    users_E: Ints
    """User row of each event, ascending."""
    items_E: Ints
    """Catalogue row of each event."""
    times_E: Ints
    """Microseconds since 1970 where `has_clock`, else the position inside the user's sequence."""
    has_clock: bool = True
    weights_E: Floats | None = None
    """Optional strength of each event (rating, watch time), finite."""
    events_E: Ids | None = None
    """Optional event type ('click', 'purchase', …)."""
    propensities_E: Floats | None = None
    """Optional probability in (0, 1] that the item was shown."""

    def __post_init__(self) -> None:
        require_unique(self.user_ids, "user ids")
        if not (len(self.users_E) == len(self.items_E) == len(self.times_E)):
            raise DataError("users, items and times must have one entry an event")
        if not len(self.users_E):
            raise DataError("interactions are empty; at least one event is needed")
        if (np.diff(self.users_E) < 0).any():
            raise DataError("events must be sorted by user row")
        same_user = np.diff(self.users_E) == 0
        if (np.diff(self.times_E)[same_user] < 0).any():
            raise DataError("events of one user must be sorted by time")
        if self.weights_E is not None and not np.isfinite(self.weights_E).all():
            raise DataError("weights must be finite numbers")

    def __len__(self) -> int:
        return len(self.users_E)

    @cached_property
    def histories(self) -> Histories:
        """All events as one sequence a user (U of them)."""
        counts = np.bincount(self.users_E, minlength=len(self.user_ids))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Histories(self.items_E, offsets, self.times_E)


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a user brings: a catalogue and events over it."""

    name: str
    items: Items
    interactions: Interactions
    notes: tuple[str, ...] = ()
    """What reading did, in words: guessed columns and time units, dropped rows with counts."""
    content_hash: str = ""
    """SHA-256 over ids and events in their final order; goes into every manifest and report."""


@dataclass(frozen=True, eq=False)
class Histories:
    """Item sequences, oldest event first, stored one after another."""

    items_E: Ints
    """Catalogue rows of all sequences, one after another."""
    offsets: Ints
    """(number of sequences + 1,) sequence u is `items_E[offsets[u]:offsets[u + 1]]`."""
    times_E: Ints | None = None
    """Microseconds of each event, where they are known; training sequences of a split have them."""

    def __post_init__(self) -> None:
        if self.times_E is not None and len(self.times_E) != len(self.items_E):
            raise DataError(
                f"{len(self.items_E)} events need as many times, got {len(self.times_E)}"
            )
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.items_E):
            raise DataError("offsets must start at 0 and end at the number of events")
        if (np.diff(self.offsets) < 0).any():
            raise DataError("offsets must not decrease")

    @classmethod
    def from_lists(cls, sequences: Sequence[Sequence[int] | Ints]) -> Histories:
        lengths = [len(s) for s in sequences]
        parts = [np.asarray(s, dtype=np.int64) for s in sequences]
        flat = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        return cls(flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Ints:
        return self.items_E[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> Ints:
        return np.diff(self.offsets)

    def counts(self, num_items: int) -> Ints:
        """Events (N,) per item."""
        return np.bincount(self.items_E, minlength=num_items).astype(np.int64)

    def take(self, rows: Ints) -> Histories:
        """The chosen sequences, in the given order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        starts = np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        events = starts + np.arange(offsets[-1])
        times_E = None if self.times_E is None else self.times_E[events]
        return Histories(self.items_E[events], offsets, times_E)


@dataclass(frozen=True, eq=False)
class Examples:
    """Evaluation questions: what comes after this history?"""

    user_rows: Ints
    """(Q,) user row each example belongs to."""
    histories: Histories
    """Q sequences: everything known before the cut (for test, the validation item too)."""
    targets: Ints
    """(Q,) the item that came next."""

    def __post_init__(self) -> None:
        if not (len(self.user_rows) == len(self.histories) == len(self.targets)):
            raise DataError("examples need one user, one history and one target each")

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Ints) -> Examples:
        """The chosen examples, in the given order."""
        return Examples(self.user_rows[rows], self.histories.take(rows), self.targets[rows])


@dataclass(frozen=True, eq=False)
class Split:
    """Training sequences, and validation and test questions, cut by one written rule."""

    train: Histories
    """One sequence a user (U), possibly empty; tokenizers and graphs may see only these."""
    valid: Examples
    test: Examples
    num_items: int
    rule: str
    """The rule in words, printed with every table."""

    @cached_property
    def train_counts_N(self) -> Ints:
        """Training events (N,) per item; 0 marks a cold item."""
        return self.train.counts(self.num_items)


@dataclass(frozen=True, eq=False)
class ItemVectors:
    """One dense vector an item; row i belongs to `item_ids[i]`."""

    item_ids: Ids
    vectors: Floats
    """(N, D) float32, finite."""
    views: tuple[tuple[str, int], ...] = ()
    """Names and widths of the parts that were concatenated, in order; () when there is one."""

    def __post_init__(self) -> None:
        require_unique(self.item_ids, "item ids of vectors")
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.item_ids):
            raise DataError(
                f"vectors must be (N, D) with N = {len(self.item_ids)}, got {self.vectors.shape}"
            )
        if self.vectors.dtype != np.float32:
            raise DataError(f"vectors must be float32, got {self.vectors.dtype}")
        bad = ~np.isfinite(self.vectors).all(axis=1)
        if bad.any():
            rows = np.flatnonzero(bad)
            raise DataError(
                f"{len(rows)} item vectors hold NaN or infinity, first rows {rows[:3].tolist()}; "
                "recompute or drop them"
            )
        if self.views and sum(width for _, width in self.views) != self.vectors.shape[1]:
            raise DataError(f"views {self.views} do not add up to D = {self.vectors.shape[1]}")

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """One code tuple an item; row i belongs to `item_ids[i]`."""

    item_ids: Ids
    codes: Ints
    """(N, L) int64; level l holds values in [0, num_codes[l]); −1 after the end of a shorter ID."""
    num_codes: tuple[int, ...]
    """L codebook sizes, coarse to fine."""

    def __post_init__(self) -> None:
        require_unique(self.item_ids, "item ids of semantic IDs")
        expected = (len(self.item_ids), len(self.num_codes))
        if self.codes.shape != expected:
            raise DataError(f"codes must be (N, L) = {expected}, got {self.codes.shape}")
        if ((self.codes < -1) | (self.codes >= np.array(self.num_codes))).any():
            raise DataError(f"codes fall outside their codebooks of sizes {self.num_codes}")
        if len(self.codes) and (self.codes[:, 0] < 0).any():
            raise DataError("a semantic ID must have at least one code")
        if ((self.codes[:, :-1] < 0) & (self.codes[:, 1:] >= 0)).any():
            raise DataError("a code follows the end (−1) of its semantic ID")

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def num_levels(self) -> int:
        return len(self.num_codes)

    @cached_property
    def group_sizes_N(self) -> Ints:
        """How many items hold the same whole ID as each item; 1 means unique."""
        if not len(self.codes):
            return np.zeros(0, dtype=np.int64)
        _, inverse, counts = np.unique(self.codes, axis=0, return_inverse=True, return_counts=True)
        return counts[inverse.ravel()].astype(np.int64)

    def collision_share(self) -> float:
        """Share of items, in [0, 1], whose code tuple is also held by another item."""
        return float((self.group_sizes_N > 1).mean()) if len(self.codes) else 0.0


@dataclass(frozen=True, eq=False)
class HistoryBatch:
    """Histories of B requests or training sequences, padded on the right with −1."""

    items_BT: torch.Tensor
    """(B, T) int64 catalogue rows, oldest first."""
    lengths_B: torch.Tensor
    """(B,) int64 number of real events in each row."""
    targets_BT: torch.Tensor | None = None
    """(B, T) int64 the item that follows each position, −1 where nothing is to be learnt."""

    @property
    def num_requests(self) -> int:
        return int(self.items_BT.shape[0])

    def to(self, device: torch.device | str) -> HistoryBatch:
        """The same batch on another device."""
        targets = None if self.targets_BT is None else self.targets_BT.to(device)
        return HistoryBatch(self.items_BT.to(device), self.lengths_B.to(device), targets)

    def last(self, max_length: int) -> HistoryBatch:
        """The last `max_length` events of each row; the batch itself where none is longer."""
        if self.items_BT.shape[1] <= max_length:
            return self
        first_B = (self.lengths_B - max_length).clamp_min(0)
        index_BT = first_B[:, None] + first_B.new_ones(max_length).cumsum(0)[None] - 1

        def cut(rows_BT: torch.Tensor) -> torch.Tensor:
            return rows_BT.gather(1, index_BT)

        targets = None if self.targets_BT is None else cut(self.targets_BT)
        return HistoryBatch(cut(self.items_BT), self.lengths_B.clamp_max(max_length), targets)

    @classmethod
    def from_histories(
        cls, histories: Histories, rows: Ints | None = None, *, max_length: int
    ) -> HistoryBatch:
        """The last `max_length` events of each chosen sequence."""
        import torch

        rows = np.arange(len(histories)) if rows is None else rows
        ends = histories.offsets[rows + 1]
        lengths = np.minimum(ends - histories.offsets[rows], max_length)
        width = max(int(lengths.max(initial=0)), 1)
        columns = np.arange(width)
        index = (ends - lengths)[:, None] + columns
        real = columns < lengths[:, None]
        flat = np.append(histories.items_E, PAD)
        items = flat[np.where(real, index, len(flat) - 1)]
        return cls(torch.from_numpy(items), torch.from_numpy(lengths.astype(np.int64)))


@dataclass(frozen=True, eq=False)
class Candidates:
    """Ranked items of B requests; a row with fewer than K items ends in −1 with score −inf."""

    rows_BK: Ints
    scores_BK: Floats

    def __post_init__(self) -> None:
        if self.rows_BK.shape != self.scores_BK.shape or self.rows_BK.ndim != 2:
            raise DataError(
                f"rows and scores must both be (B, K), got {self.rows_BK.shape} "
                f"and {self.scores_BK.shape}"
            )
        if self.rows_BK.shape[1] > 1:
            if (self.scores_BK[:, :-1] < self.scores_BK[:, 1:]).any():
                raise DataError("candidate scores must not increase along a row")
            ordered = np.sort(self.rows_BK, axis=1)
            if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PAD)).any():
                raise DataError("an item appears twice in one list of candidates")


@dataclass(frozen=True, eq=False)
class CatalogueContext:
    """What a method may know of the catalogue when it is built: training events only."""

    items: Items
    train: Histories
    vectors: ItemVectors | None = None
    semantic_ids: SemanticIds | None = None
    earlier_ids: SemanticIds | None = None
    """For a tokenizer: IDs of an earlier fit, to start from. Items may have come and gone since."""

    @property
    def num_items(self) -> int:
        return len(self.items)

    @cached_property
    def train_counts_N(self) -> Ints:
        return self.train.counts(self.num_items)
