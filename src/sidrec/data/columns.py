"""Which column is the user, the item, the time; and what a time means.

A column plays the role that `mapping` gives it, else the role of the first alias that matches its
name without case and punctuation. Numbers are epoch seconds, milliseconds, microseconds or
nanoseconds by their size; text is ISO 8601. A time without a zone counts as UTC.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from sidrec.data.tables import Table
from sidrec.errors import ConfigError, DataError
from sidrec.types import Bools, Ints

ALIASES: dict[str, tuple[str, ...]] = {
    "user": ("userid", "user", "uid", "reviewerid", "customerid", "visitorid", "memberid",
             "accountid", "sessionid", "session"),
    "item": ("itemid", "item", "iid", "parentasin", "asin", "sku", "productid", "product",
             "movieid", "articleid", "newsid", "trackid", "songid", "bookid", "videoid",
             "contentid"),
    "time": ("timestamp", "time", "ts", "datetime", "unixreviewtime", "eventtime", "date",
             "createdat"),
    "position": ("position",),
    "weight": ("weight", "rating", "overall", "score", "stars", "strength", "playcount",
               "watchtime"),
    "event": ("eventtype", "event", "feedbacktype", "action", "behavior", "behaviour"),
    "propensity": ("propensity", "propensityscore"),
}  # fmt: skip
TEXT_ALIASES: dict[str, tuple[str, ...]] = {
    "title": ("title", "name", "producttitle", "productname", "itemname", "movietitle"),
    "text": ("text", "itemtext"),
    "brand": ("brand", "store", "manufacturer"),
    "categories": ("categories", "category", "categorypath"),
    "keywords": ("keywords", "tags"),
    "genres": ("genres", "genre"),
    "description": ("description", "productdescription", "shortdescription", "abstract", "plot"),
}
EVENT_ROLES = tuple(ALIASES)
ITEM_ROLES = ("item", *TEXT_ALIASES)
UNITS = (("seconds", 1e8, 1e11, 1_000_000), ("milliseconds", 1e11, 1e14, 1_000),
         ("microseconds", 1e14, 1e17, 1), ("nanoseconds", 1e17, 1e20, 0))  # fmt: skip
"""(name, least, below, factor to microseconds; 0 = divide by 1000)"""


def check_mapping(mapping: Mapping[str, str | None] | None) -> dict[str, str | None]:
    """The mapping with its roles checked; ConfigError names the nearest role."""
    mapping = {role: column or None for role, column in (mapping or {}).items()}
    known = [*EVENT_ROLES, *TEXT_ALIASES]
    for role in mapping:
        if role not in known:
            near = difflib.get_close_matches(role, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"mapping: no role {role!r}: have {known}{hint}")
    return mapping


def plain_name(name: str) -> str:
    """Lower case without punctuation, so that User_ID, userId and user-id are one name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def choose_columns(
    table: Table, roles: Sequence[str], mapping: Mapping[str, str | None], *, need: Sequence[str]
) -> dict[str, str]:
    """Role -> column of this table. A role mapped to None is left out.

    An items table may call its id otherwise than the events do, and plainly `id`.
    """
    is_items = "user" not in roles
    columns, chosen = table.columns, {}
    plain: dict[str, str] = {}
    for column in columns:
        plain.setdefault(plain_name(column), column)
    for role in roles:
        mapped = mapping.get(role)
        if role in mapping and mapped is None:
            continue
        if mapped is not None and mapped in columns:
            chosen[role] = mapped
            continue
        if mapped is not None and not (is_items and role == "item"):
            raise DataError(
                f"{table.name}: no column {mapped!r} (mapped to {role}); it has {columns}; "
                f"correct the mapping{_nearest(mapped, columns)}"
            )
        aliases = ALIASES.get(role, ()) + TEXT_ALIASES.get(role, ())
        aliases += ("id",) if is_items and role == "item" else ()
        taken = set(chosen.values()) | {c for c in mapping.values() if c}
        found = [plain[a] for a in aliases if a in plain and plain[a] not in taken]
        if found:
            chosen[role] = found[0]
    twice = [c for c in set(chosen.values()) if list(chosen.values()).count(c) > 1]
    if twice:
        raise DataError(
            f"{table.name}: column {twice[0]!r} is mapped to more than one role; "
            "give each role its own column"
        )
    for role in need:
        if role not in chosen:
            wanted = mapping.get(role) or f"{role}_id"
            raise DataError(
                f"{table.name}: no column for the {role}; expected one named {wanted!r} (or an "
                f"alias), got {columns}; name it with mapping={{{role!r}: '<column>'}} "
                f"(--map {role}=<column>), or add a header line if the file has none"
            )
    return chosen


def _nearest(name: str, columns: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, columns, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def numbers(values: pl.Series, table: str, column: str) -> pl.Series:
    """The column as float64, null where text is no number. Raises DataError for other types."""
    if not (values.dtype.is_numeric() or values.dtype in (pl.String, pl.Boolean, pl.Null)):
        raise DataError(
            f"{table}, column {column!r}: expected numbers, got {values.dtype}; "
            "convert the column, or map its role to None to ignore it"
        )
    return values.cast(pl.Float64, strict=False)


@dataclass(frozen=True)
class Times:
    """Times as read: microseconds since 1970 where `missing`, `wrong` and `mixed` are False."""

    micros_E: Ints
    missing_E: Bools
    wrong_E: Bools
    """A value is there but is no time."""
    mixed_E: Bools
    """The value is in another unit than most."""
    meaning: str


def parse_times(values: pl.Series, table: str, column: str) -> Times:
    """Datetimes, dates, ISO text or epoch numbers to microseconds since 1970."""
    dtype = values.dtype
    if dtype == pl.Date or isinstance(dtype, pl.Datetime) or dtype == pl.Datetime:
        micros = (
            values.cast(pl.Datetime("us")) if dtype == pl.Date else values.dt.cast_time_unit("us")
        )
        return _times(values.is_null(), micros.dt.epoch("us"), "dates and times")
    if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum):
        text = values.cast(pl.String).str.strip_chars()
        text = text.set(text == "", None)
        floats = text.cast(pl.Float64, strict=False)
        if 2 * floats.count() > text.count():
            whole = text.cast(pl.Int64, strict=False)
            times = _epoch(whole if whole.count() == floats.count() else floats)
            words_E = (text.is_not_null() & floats.is_null()).to_numpy()
            return replace(
                times, missing_E=times.missing_E & ~words_E, wrong_E=times.wrong_E | words_E
            )
        return _times(text.is_null(), _iso(text), "ISO 8601 text")
    if dtype.is_numeric():
        return _epoch(values)
    raise DataError(
        f"{table}, column {column!r}: expected times as ISO text, datetimes or epoch numbers, "
        f"got {dtype}; convert the column"
    )


def _times(missing: pl.Series, micros: pl.Series, meaning: str) -> Times:
    missing_E = missing.to_numpy()
    wrong_E = micros.is_null().to_numpy() & ~missing_E
    none = np.zeros(len(micros), dtype=np.bool_)
    return Times(micros.fill_null(0).cast(pl.Int64).to_numpy(), missing_E, wrong_E, none, meaning)


def _iso(text: pl.Series) -> pl.Series:
    """Microseconds; null where none of the forms fits."""
    joined = text.str.replace(r"^(\S{8,10})\s+", "${1}T")
    zoned = joined.str.replace(r"\s*(?:Z|z|UTC)$", "+00:00").str.replace(r"\s+([+-]\d)", "$1")

    def parse(values: pl.Series, form: str) -> pl.Series:
        zone = "UTC" if "z" in form else None
        found = values.str.to_datetime(form, strict=False, time_unit="us", time_zone=zone)
        return found.dt.epoch("us")

    micros = text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")).dt.epoch("us")
    for form in ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M",
                 "%Y-%m-%dT%H:%M%#z", "%Y/%m/%dT%H:%M:%S%.f"):  # fmt: skip
        if micros.null_count() == text.null_count():
            break
        micros = pl.select(pl.coalesce(micros, parse(zoned, form))).to_series()
    return micros


def _epoch(values: pl.Series) -> Times:
    """Epoch numbers; the unit is that of the median size."""
    is_float = values.dtype.is_float() or isinstance(values.dtype, pl.Decimal)
    if is_float:
        values = values.cast(pl.Float64)
        values = values.set(~values.is_finite(), None)
    missing_E = values.is_null().to_numpy()
    sizes_E = np.abs(values.fill_null(0).to_numpy().astype(np.float64))
    present = sizes_E[~missing_E]
    middle = float(np.median(present)) if present.size else 0.0
    unit = next((u for u in UNITS if u[1] <= middle < u[2]), UNITS[0])
    name, least, _, factor = unit
    other_E = np.zeros(len(sizes_E), dtype=np.bool_)
    if middle >= UNITS[0][1]:
        for _, other_least, other_below, _ in UNITS:
            if other_least != least:
                other_E |= (sizes_E >= other_least) & (sizes_E < other_below)
        other_E &= ~missing_E
    filled = values.fill_null(0)
    if is_float:
        scaled = filled.to_numpy() * (factor or 1e-3)
        in_range = np.abs(scaled) < 2**62
        micros_E = np.rint(np.where(in_range, scaled, 0)).astype(np.int64)
    else:
        numbers = filled.cast(pl.Int64, strict=False).fill_null(0).to_numpy()
        in_range = np.abs(numbers.astype(np.float64)) * (factor or 1e-3) < 2**62
        safe = np.where(in_range, numbers, 0)
        micros_E = safe * factor if factor else safe // 1000
    meaning = f"epoch {name}" if middle >= UNITS[0][1] else "plain numbers, counted as seconds"
    return Times(micros_E, missing_E, ~in_range & ~other_E, other_E, meaning)
