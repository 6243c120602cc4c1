"""Amazon reviews of 2014, 2018 and 2023: JSON lines of reviews and of item metadata.

Reviews name their fields `reviewerID, asin, unixReviewTime, overall` (2014, 2018) or
`user_id, parent_asin, timestamp (ms), rating` (2023). Metadata of 2014 are Python literals, not
JSON. The 5-core files list reviews by item, so file order breaks ties of day-long times by ASIN
(pitfall A2): compare with `split(..., ties="shuffle")`.

Cost: reviews are parsed by polars; metadata one line at a time, about 20 k lines a second.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from sidrec.data.tables import OnError, Table, examples, open_json_lines, read_bytes
from sidrec.errors import DataError

FIELDS = {
    "reviewerID": pl.String, "user_id": pl.String, "asin": pl.String, "parent_asin": pl.String,
    "unixReviewTime": pl.Int64, "timestamp": pl.Int64, "overall": pl.Float64, "rating": pl.Float64,
}  # fmt: skip
SCHEMA = {
    "item_id": pl.String, "title": pl.String, "brand": pl.String,
    "categories": pl.List(pl.String), "description": pl.String, "price": pl.Float64,
}  # fmt: skip
ASIN = re.compile(rb"""['"](?:parent_)?asin['"]\s*:\s*['"]([^'"]+)['"]""")


def is_review(line: str) -> bool:
    """Whether a line of JSON looks like an Amazon review."""
    return '"reviewerID"' in line or '"parent_asin"' in line


def is_metadata(line: str) -> bool:
    """Whether a line looks like an Amazon item."""
    fields = ("title", "description", "categories", "category", "imUrl", "salesRank", "related")
    has_field = any(f"{quote}{f}{quote}" in line for f in fields for quote in "\"'")
    return has_field and ASIN.search(line.encode()) is not None


def open_reviews(path: Path, *, encoding: str, on_error: OnError) -> Table:
    """Reviews as user_id, item_id, timestamp, rating."""
    table = open_json_lines(path, encoding=encoding, on_error=on_error, schema=FIELDS)
    frame = table.frame.select(
        pl.coalesce("reviewerID", "user_id").alias("user_id"),
        pl.coalesce("parent_asin", "asin").alias("item_id"),
        pl.coalesce("unixReviewTime", "timestamp").alias("timestamp"),
        pl.coalesce("overall", "rating").alias("rating"),
    )
    return replace(table, frame=frame)


def open_metadata(path: Path, *, on_error: OnError, keep: Container[str] | None = None) -> Table:
    """Items as item_id, title, brand, categories, description, price; only those in `keep`."""
    items, rows, bad = [], [], []
    lines = (line for line in read_bytes(path).splitlines() if line.strip())
    for row, line in enumerate(lines, start=1):
        if keep is not None and not any(m.decode() in keep for m in ASIN.findall(line)):
            continue
        try:
            items.append(_item(_parse(line)))
            rows.append(row)
        except (ValueError, SyntaxError, KeyError, TypeError):
            bad.append(row)
    if bad and on_error == "raise":
        raise DataError(
            f"{path.name}: {len(bad)} rows are no item ({examples(bad)}); expected a JSON object "
            "with asin or parent_asin; mend those lines or read with on_error='skip'"
        )
    notes = (f"{path.name}: dropped {len(bad)} rows that are no item",) if bad else ()
    frame = pl.DataFrame(items, schema=SCHEMA, orient="row")
    numbers = pl.Series(rows, dtype=pl.UInt32)
    return Table(name=path.name, frame=frame.lazy(), rows=numbers, notes=notes)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError:
        return ast.literal_eval(line.decode())


def _item(raw: dict[str, Any]) -> tuple[Any, ...]:
    return (
        str(raw.get("parent_asin") or raw["asin"]),
        _text(raw.get("title")),
        _text(raw.get("brand") or raw.get("store")),
        _categories(raw.get("categories") or raw.get("category") or raw.get("main_category")),
        _text(raw.get("description")),
        _price(raw.get("price")),
    )


def _text(value: Any) -> str | None:
    """One line of plain text; lists are joined, entities and tags removed."""
    if isinstance(value, list):
        value = " ".join(str(part) for part in value if part)
    if not value:
        return None
    text = html.unescape(re.sub(r"<[^>]*>", " ", str(value)))
    return " ".join(text.split()) or None


def _categories(value: Any) -> list[str]:
    """The names of all paths, each once, in order."""
    if not value:
        return []
    paths = [value] if isinstance(value, str) else value
    flat = [c for path in paths for c in (path if isinstance(path, list) else [path])]
    return list(dict.fromkeys(text for c in flat if (text := _text(c))))


def _price(value: Any) -> float | None:
    found = re.search(r"\d+(?:\.\d+)?", str(value).replace(",", "")) if value else None
    return float(found.group()) if found else None
