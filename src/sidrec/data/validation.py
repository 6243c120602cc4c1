"""Tables to a `Dataset`: every row is checked, and a bad one is named or, on request, dropped.

With `on_error="raise"` the first kind of fault ends reading with one line: file, column, count,
rows, expected, got, and what to do. With "skip" faulty rows are dropped and counted in the notes.
Ids become row numbers on their distinct values, so nothing loops over events in Python.

Differs:  repeated events (same user, item and time) are kept and reported; "skip" drops the later.
Cost:     a hash join an id column and one stable sort; about 100 bytes of memory an event.
Shapes:   E events, U users, N items; _R rows of a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl

from sidrec.data.columns import (
    EVENT_ROLES,
    ITEM_ROLES,
    TEXT_ALIASES,
    choose_columns,
    numbers,
    parse_times,
)
from sidrec.data.tables import ROW, OnError, Table, examples
from sidrec.errors import DataError
from sidrec.types import Bools, Dataset, Floats, Ids, Interactions, Ints, Items, as_ids

SKIP = "or read with on_error='skip' (--on-error skip) to drop them"


class Sieve:
    """Which rows of one table stay; knows how to say why the others do not."""

    def __init__(self, table: str, rows_R: Ints, on_error: OnError) -> None:
        self.table, self.rows_R, self.on_error = table, rows_R, on_error
        self.keep_R: Bools = np.ones(len(rows_R), dtype=np.bool_)
        self.notes: list[str] = []

    def reject(self, bad_R: Bools, column: str, what: str, *, expected: str, got: str, fix: str):
        """Raise for the rows marked, or drop and count them."""
        bad_R = bad_R & self.keep_R
        if not bad_R.any():
            return
        rows = np.sort(self.rows_R[bad_R])[:4].tolist()
        message = (
            f"{self.table}, column {column!r}: {int(bad_R.sum())} of {len(bad_R)} rows {what} "
            f"({examples(rows)})"
        )
        if self.on_error == "raise":
            raise DataError(f"{message}; expected {expected}, got {got}; {fix}, {SKIP}")
        self.notes.append(f"dropped: {message}")
        self.keep_R = self.keep_R & ~bad_R

    def require_rows(self) -> None:
        if not self.keep_R.any():
            lost = "; ".join(self.notes) or "a header but no rows"
            raise DataError(
                f"{self.table} holds no usable rows ({lost}); expected at least one; "
                "check the file and the mapping"
            )


def factorise(values: pl.Series) -> tuple[Ints, pl.Series]:
    """Codes in order of first appearance, −1 for null, and the distinct values they number."""
    distinct = values.drop_nulls().unique(maintain_order=True).alias("value")
    numbered = distinct.to_frame().with_row_index("code")
    joined = (
        values.alias("value")
        .to_frame()
        .join(numbered, on="value", how="left", maintain_order="left")
    )
    return joined["code"].cast(pl.Int64).fill_null(-1).to_numpy().copy(), distinct


def read_ids(sieve: Sieve, values: pl.Series, column: str) -> tuple[Ints, Ids]:
    """Codes (R,) of an id column and the distinct ids as text; missing ids are rejected."""
    dtype = values.dtype
    if isinstance(dtype, pl.Categorical | pl.Enum):
        values = values.cast(pl.String)
    elif dtype.is_float():
        whole = values.cast(pl.Int64, strict=False)
        fraction = (values.is_finite() & (whole.is_null() | (whole != values))).fill_null(False)
        sieve.reject(
            fraction.to_numpy(), column, "hold a fraction", expected="text or whole numbers",
            got=f"{values.filter(fraction).head(1).to_list()}", fix="write the ids as text",
        )  # fmt: skip
        values = whole
    elif not (dtype == pl.String or dtype.is_integer() or dtype == pl.Null):
        raise DataError(
            f"{sieve.table}, column {column!r}: expected ids as text or whole numbers, "
            f"got {dtype}; convert the column or map another one"
        )
    codes_R, distinct = factorise(values)
    ids = as_ids(distinct.to_list())
    blank = np.flatnonzero([not text.strip() for text in ids])
    missing_R = codes_R < 0
    if blank.size:
        missing_R |= np.isin(codes_R, blank)
    sieve.reject(missing_R, column, "hold no id", expected="an id in every row",
                 got="null, NaN or blank", fix="fill them in")  # fmt: skip
    return codes_R, ids


def build_dataset(
    events: Table,
    items: Table | None,
    *,
    mapping: Mapping[str, str | None],
    on_error: OnError,
    name: str,
) -> Dataset:
    """Check both tables and join them. Raises DataError as the module says."""
    notes = list(events.notes)
    columns = choose_columns(events, EVENT_ROLES, mapping, need=("user", "item"))
    if "time" in columns:
        columns.pop("position", None)
    frame = events.collect(list(columns.values()))
    sieve = Sieve(events.name, frame[ROW].to_numpy().astype(np.int64), on_error)
    sieve.require_rows()
    read_as = ", ".join(f"{role} = {column!r}" for role, column in columns.items())
    notes.append(f"{events.name}: {frame.height} rows, {read_as}")

    users_R, user_ids = read_ids(sieve, frame[columns["user"]], columns["user"])
    items_R, seen_ids = read_ids(sieve, frame[columns["item"]], columns["item"])
    times_R, has_clock = _order(sieve, frame, columns, notes)
    for role in ("weight", "event", "propensity"):
        if role in columns and not frame[columns[role]].count():
            notes.append(f"{events.name}: {columns.pop(role)!r} is empty and was left out")
    weights_R = _numbers(sieve, frame, columns.get("weight"), low=-np.inf)
    propensities_R = _numbers(sieve, frame, columns.get("propensity"), low=0.0, high=1.0)

    if items is None:
        used = np.bincount(items_R[sieve.keep_R], minlength=len(seen_ids)) > 0
        catalogue = Items(np.sort(seen_ids[used]), pl.DataFrame())
        notes.append(f"no items table: the catalogue is the {len(catalogue)} items seen")
    else:
        catalogue, item_notes = read_items(items, mapping=mapping, on_error=on_error)
        notes += item_notes
    row_of = catalogue.row_of
    rows_seen = np.array([row_of.get(i, -1) for i in seen_ids], dtype=np.int64)
    items_R = np.append(rows_seen, -1)[items_R]
    if items is not None:
        unknown = [seen_ids[i] for i in np.flatnonzero(rows_seen < 0) if str(seen_ids[i]).strip()]
        sieve.reject(
            items_R < 0, columns["item"], f"name items that {items.name} lacks",
            expected=f"the {len(catalogue)} ids of {items.name}",
            got=f"{len(unknown)} unknown ids, e.g. {unknown[:3]}",
            fix="add them to the items table",
        )  # fmt: skip

    order_E = _sorted_rows(sieve, users_R, times_R)
    repeats_E = _repeats(order_E, users_R, items_R, times_R)
    if (count := int(repeats_E.sum())) and columns.keys() & {"time", "position"}:
        rows = np.sort(sieve.rows_R[order_E[repeats_E]])[:4].tolist()
        done = "dropped" if on_error == "skip" else "kept; on_error='skip' drops them"
        notes.append(
            f"{events.name}: {count} rows repeat the user, item and time of an earlier row "
            f"({examples(rows)}): {done}"
        )
        if on_error == "skip":
            order_E = order_E[~repeats_E]
    notes += sieve.notes
    sieve.require_rows()

    used_users = np.bincount(users_R[order_E], minlength=len(user_ids)) > 0
    users_E = (np.cumsum(used_users) - 1)[users_R[order_E]]
    user_ids = user_ids[used_users]
    _require_several(events.name, columns, user_ids, catalogue)
    times_E = times_R[order_E]
    if not has_clock:
        starts = np.concatenate([[0], np.cumsum(np.bincount(users_E))[:-1]])
        times_E = np.arange(len(users_E)) - starts[users_E]
    kinds_E = None
    if "event" in columns:
        kinds = frame[columns["event"]]
        if kinds.dtype.is_nested():
            raise DataError(
                f"{events.name}, column {columns['event']!r}: expected event names, got "
                f"{kinds.dtype}; map the role event to None to ignore the column"
            )
        codes, kinds = factorise(kinds.cast(pl.String))
        kinds_E = as_ids([*kinds.to_list(), ""])[codes[order_E]]
    interactions = Interactions(
        user_ids=user_ids,
        users_E=users_E,
        items_E=items_R[order_E],
        times_E=times_E,
        has_clock=has_clock,
        weights_E=None if weights_R is None else weights_R[order_E],
        events_E=kinds_E,
        propensities_E=None if propensities_R is None else propensities_R[order_E],
    )
    digest = content_hash(catalogue, interactions)
    return Dataset(name, catalogue, interactions, tuple(notes), digest)


def read_items(
    items: Table, *, mapping: Mapping[str, str | None], on_error: OnError
) -> tuple[Items, list[str]]:
    """The catalogue of an items table, in file order, and notes."""
    columns = choose_columns(items, ITEM_ROLES, mapping, need=("item",))
    frame = items.collect()
    sieve = Sieve(items.name, frame[ROW].to_numpy().astype(np.int64), on_error)
    sieve.require_rows()
    codes_R, ids = read_ids(sieve, frame[columns["item"]], columns["item"])
    first_R = np.zeros(len(codes_R), dtype=np.bool_)
    first_R[np.unique(codes_R, return_index=True)[1]] = True
    repeated = np.unique(codes_R[~first_R & (codes_R >= 0)])
    sieve.reject(
        ~first_R & sieve.keep_R, columns["item"], "repeat an item of an earlier row",
        expected="one row an item", fix="drop the repeated rows",
        got=f"{len(repeated)} repeated ids, e.g. {list(ids[repeated[:3]])}",
    )  # fmt: skip
    sieve.require_rows()
    renamed = {c: r for r, c in columns.items() if r in TEXT_ALIASES and c != r}
    attributes = frame.filter(pl.Series(sieve.keep_R)).drop(ROW, columns["item"])
    attributes = attributes.drop([r for r in renamed.values() if r in attributes.columns])
    attributes = attributes.rename(renamed)
    if items.all_text:
        attributes = _numeric_where_possible(attributes)
    read_as = ", ".join(f"{role} = {column!r}" for role, column in columns.items())
    notes = [*items.notes, f"{items.name}: {frame.height} rows, {read_as}", *sieve.notes]
    return Items(ids[codes_R[sieve.keep_R]], attributes), notes


def _numeric_where_possible(frame: pl.DataFrame) -> pl.DataFrame:
    """Text columns whose every value is a plain number become numbers; free text stays."""
    changed = []
    for column in frame.get_columns():
        if column.dtype != pl.String or column.name in TEXT_ALIASES or not column.count():
            continue
        if column.str.contains(r"^\s*[+-]?0\d").any():  # leading zeros: a code, not a number
            continue
        for dtype in (pl.Int64, pl.Float64):
            number = column.cast(dtype, strict=False)
            if number.null_count() == column.null_count():
                changed.append(number)
                break
    return frame.with_columns(changed)


def _order(
    sieve: Sieve, frame: pl.DataFrame, columns: Mapping[str, str], notes: list[str]
) -> tuple[Ints, bool]:
    """Sort key (R,) of each row, and whether it is a clock."""
    if (column := columns.get("time")) is not None:
        times = parse_times(frame[column], sieve.table, column)
        fine = "ISO text, datetimes or epoch numbers"
        sieve.reject(times.missing_E, column, "hold no time", expected=fine,
                     got="null or NaN", fix="fill them in")  # fmt: skip
        got = frame[column].filter(pl.Series(times.wrong_E)).head(1).to_list()
        sieve.reject(times.wrong_E, column, "hold no readable time", expected=fine,
                     got=str(got), fix="correct them")  # fmt: skip
        got = frame[column].filter(pl.Series(times.mixed_E)).head(1).to_list()
        sieve.reject(times.mixed_E, column, "are in another unit", expected=times.meaning,
                     got=str(got), fix="convert them to one unit")  # fmt: skip
        notes.append(
            f"{sieve.table}: {column!r} read as {times.meaning}, UTC where no zone is given; "
            "events of one user at one time keep file order"
        )
        return times.micros_E, True
    if (column := columns.get("position")) is not None:
        places = numbers(frame[column], sieve.table, column)
        sieve.reject((~places.is_finite()).fill_null(True).to_numpy(), column, "hold no position",
                     expected="a number in every row", got="null, NaN or text",
                     fix="fill them in")  # fmt: skip
        notes.append(f"{sieve.table}: no time column; order from {column!r}")
        return np.unique(places.fill_null(0).to_numpy(), return_inverse=True)[1], False
    notes.append(f"{sieve.table}: no time or position column; rows are taken as oldest first")
    return np.arange(frame.height), False


def _numbers(
    sieve: Sieve, frame: pl.DataFrame, column: str | None, *, low: float, high: float = np.inf
) -> Floats | None:
    """An optional numeric column (R,); finite, above `low` and at most `high`."""
    if column is None:
        return None
    values = numbers(frame[column], sieve.table, column)
    good = (values.is_finite() & (values > low) & (values <= high)).fill_null(False)
    sieve.reject((~good).to_numpy(), column, "hold no usable number",
                 expected="finite numbers" if high == np.inf else f"numbers in ({low:g}, {high:g}]",
                 got=str(frame[column].filter(~good).head(1).to_list()),
                 fix="correct them, map the role to None to ignore the column")  # fmt: skip
    return values.fill_null(0).fill_nan(0).to_numpy().astype(np.float32)


def _sorted_rows(sieve: Sieve, users_R: Ints, times_R: Ints) -> Ints:
    """Kept rows by user, then time; equal times keep file order."""
    rows = np.flatnonzero(sieve.keep_R)
    users, times = users_R[rows], times_R[rows]
    step = np.diff(users)
    if not ((step < 0) | ((step == 0) & (np.diff(times) < 0))).any():
        return rows
    return rows[np.lexsort((times, users))]


def _repeats(order_E: Ints, users_R: Ints, items_R: Ints, times_R: Ints) -> Bools:
    """Marks (E,) events whose user, item and time an earlier row already holds."""
    users, times = users_R[order_E], times_R[order_E]
    tied = np.zeros(len(order_E) + 1, dtype=np.bool_)
    tied[1:-1] = (np.diff(users) == 0) & (np.diff(times) == 0)
    places = np.flatnonzero(tied[1:] | tied[:-1])  # only events that share user and time
    repeats = np.zeros(len(order_E), dtype=np.bool_)
    keys = np.stack([users[places], times[places], items_R[order_E[places]]])
    by_key = np.lexsort(keys)
    same = (np.diff(keys[:, by_key]) == 0).all(axis=0)
    repeats[places[by_key[1:][same]]] = True
    return repeats


def _require_several(
    table: str, columns: Mapping[str, str], user_ids: Ids, catalogue: Items
) -> None:
    for role, ids in (("user", user_ids), ("item", catalogue.item_ids)):
        if len(ids) < 2:
            raise DataError(
                f"{table}, column {columns[role]!r}: every row belongs to one {role} "
                f"({str(ids[0])!r}); expected at least two {role}s to learn from, got 1; "
                f"add rows of others or map another column to the {role}"
            )


def content_hash(items: Items, interactions: Interactions) -> str:
    """SHA-256 over item ids and texts, user ids and events in final order; machines agree."""
    digest = hashlib.sha256()

    def add(values: Ints | Floats | None) -> None:
        array = np.zeros(0) if values is None else values
        kind = "<f4" if array.dtype == np.float32 else "<i8"
        digest.update(f"{kind}{len(array)}:".encode())
        digest.update(np.ascontiguousarray(array.astype(kind)).tobytes())

    def add_ids(ids: Iterable[object]) -> None:
        texts = [str(i).encode() for i in ids]
        add(np.array([len(t) for t in texts], dtype=np.int64))
        digest.update(b"".join(texts))

    add_ids(items.item_ids)
    add_ids(items.texts())
    add_ids(interactions.user_ids)
    for values in (interactions.users_E, interactions.items_E, interactions.times_E):
        add(values)
    digest.update(b"clock" if interactions.has_clock else b"order")
    add(interactions.weights_E)
    if interactions.events_E is not None:
        codes, kinds = factorise(pl.Series(interactions.events_E.tolist(), dtype=pl.String))
        add(codes)
        add_ids(as_ids(kinds.to_list()))
    add(interactions.propensities_E)
    return digest.hexdigest()
