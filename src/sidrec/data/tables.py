"""Files to tables: Parquet, CSV/TSV, JSON lines, plain or gzipped, nothing believed about them yet.

CSV cells stay text until their role is known, so ids keep leading zeros. A fast reader parses; only
when it refuses does a slow scan look for the rows at fault.

Cost: one pass; text files are held in memory once, Parquet columns are read on demand.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
from polars.exceptions import PolarsError

from sidrec.errors import DataError

OnError = Literal["raise", "skip"]
ROW = "__row__"
"""Column of 1-based data row numbers, added when a table is collected."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows as they lie in a file."""

    name: str
    """What messages call it, usually the file name."""
    frame: pl.LazyFrame
    rows: pl.Series | None = None
    """Data row numbers where rows were dropped in parsing; else 1, 2, …."""
    notes: tuple[str, ...] = ()
    all_text: bool = False
    """The file has no types, so numbers arrive as text."""

    @property
    def columns(self) -> list[str]:
        return self.frame.collect_schema().names()

    def collect(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """The chosen columns (all by default) with their row numbers in `ROW`."""
        lazy = self.frame if columns is None else self.frame.select(columns)
        try:
            frame = lazy.collect()
        except (PolarsError, OSError) as error:
            raise DataError(_unreadable(self.name, error)) from error
        if self.rows is None:
            return frame.with_row_index(ROW, offset=1)
        return frame.with_columns(self.rows.alias(ROW))


def examples(rows: Sequence[int], most: int = 3) -> str:
    """'row 4' or 'rows 4, 9, 17, …'."""
    listed = ", ".join(str(row) for row in rows[:most])
    return f"row{'s' if len(rows) > 1 else ''} {listed}{', …' if len(rows) > most else ''}"


def _unreadable(name: str, error: Exception) -> str:
    return f"{name} cannot be read: {_first_line(error)}; write the file again"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).strip()


def plain_suffix(path: Path) -> str:
    """Suffix without compression, lower case: 'x.JSON.gz' gives '.json'."""
    path = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return path.suffix.lower()


def read_bytes(path: Path) -> bytes:
    """The file's content, unzipped if gzipped, without a byte-order mark."""
    if not path.exists():
        raise DataError(f"{path} does not exist; give the path of an existing file")
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise DataError(_unreadable(path.name, error)) from error
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path.name} is UTF-16; expected UTF-8; save it as UTF-8")
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise DataError(f"{path.name} is empty; expected one event or item a line; fill it")
    return content


def first_line(path: Path) -> str:
    """The first line that is not blank, for guessing the layout."""
    if not path.exists():
        raise DataError(f"{path} does not exist; give the path of an existing file")
    try:
        with path.open("rb") as raw:
            lines = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            for line in lines:
                if line.strip():
                    text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
                    return text.rstrip("\r\n")
    except (OSError, EOFError) as error:
        raise DataError(_unreadable(path.name, error)) from error
    raise DataError(f"{path.name} is empty; expected one event or item a line; fill it")


def read_utf8(
    path: Path,
    encoding: str,
    on_error: OnError,
    *,
    header: bool = True,
    content: bytes | None = None,
) -> tuple[bytes, list[str]]:
    """Content as valid UTF-8 and notes; lines in another encoding raise or are dropped."""
    content = read_bytes(path) if content is None else content
    try:
        text = content.decode(encoding)
        return (content if encoding == "utf-8" else text.encode()), []
    except UnicodeDecodeError as error:
        lines = content.splitlines(keepends=True)
        bad = [i for i, line in enumerate(lines) if not _decodes(line, encoding)]
        if on_error == "raise" or not bad or (header and bad[0] == 0):
            rows = examples([i + (not header) for i in bad]) if bad else "the file"
            raise DataError(
                f"{path.name}: {len(bad)} lines are not {encoding} ({rows}); expected {encoding}, "
                f"got byte 0x{content[error.start]:02x}; pass encoding='latin-1' (or what it is), "
                "or save the file as UTF-8"
            ) from error
        drop = set(bad)
        kept = b"".join(line for i, line in enumerate(lines) if i not in drop)
        note = f"{path.name}: dropped {len(bad)} lines that are not {encoding}"
        return kept, [note]


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def open_table(path: Path, *, encoding: str = "utf-8", on_error: OnError = "raise") -> Table:
    """A Parquet, CSV/TSV or JSON lines file as a table."""
    suffix = plain_suffix(path)
    if suffix in {".parquet", ".pq"}:
        return open_parquet(path)
    if suffix in {".jsonl", ".ndjson", ".json"}:
        return open_json_lines(path, encoding=encoding, on_error=on_error)
    return open_csv(path, encoding=encoding, on_error=on_error)


def open_parquet(path: Path) -> Table:
    """A Parquet file; columns are read when they are asked for."""
    if not path.exists():
        raise DataError(f"{path} does not exist; give the path of an existing file")
    if not path.stat().st_size:
        raise DataError(f"{path.name} is empty; expected a Parquet file; write it again")
    try:
        frame = pl.scan_parquet(path)
        frame.collect_schema()
    except (PolarsError, OSError) as error:
        raise DataError(_unreadable(path.name, error)) from error
    return Table(name=path.name, frame=frame)


def open_csv(
    path: Path,
    *,
    encoding: str = "utf-8",
    on_error: OnError = "raise",
    separator: str | None = None,
    quotes: bool = True,
    names: Sequence[str] | None = None,
    content: bytes | None = None,
) -> Table:
    """A delimited file, every cell as text. `names` replaces a header that the file lacks.

    `content` stands in for what lies at `path`, if something had to be replaced in it.
    """
    content, notes = read_utf8(path, encoding, on_error, header=names is None, content=content)
    header = content.split(b"\n", 1)[0].decode()
    separator = separator or max(",\t;|", key=header.count)
    parse = _CsvParse(path.name, separator, quotes and separator != "\t", names)
    try:
        frame, rows = parse(content), None
    except PolarsError as error:
        good, bad = parse.lines(content)
        if on_error == "raise" or not bad:
            where = f" ({examples(bad)})" if bad else ""
            raise DataError(
                f"{path.name}: {len(bad) or 'some'} rows cannot be split into "
                f"{parse.width(content)} columns{where}; "
                f"expected the columns of the header, got {_first_line(error)}; "
                "quote the cells or read with on_error='skip'"
            ) from error
        notes.append(
            f"{path.name}: dropped {len(bad)} rows with too many columns ({examples(bad)})"
        )
        frame = pl.DataFrame(
            [cells for _, cells in good], schema=parse.header(content), orient="row"
        )
        rows = pl.Series(ROW, [row for row, _ in good], dtype=pl.UInt32)
    return Table(name=path.name, frame=frame.lazy(), rows=rows, notes=tuple(notes), all_text=True)


@dataclass(frozen=True)
class _CsvParse:
    name: str
    separator: str
    quotes: bool
    names: Sequence[str] | None

    def __call__(self, content: bytes) -> pl.DataFrame:
        return pl.read_csv(
            content,
            separator=self.separator,
            quote_char='"' if self.quotes else None,
            infer_schema_length=0,
            has_header=self.names is None,
            new_columns=self.names,
        )

    def _cells(self, content: bytes) -> Iterator[list[str]]:
        quoting = csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE
        return csv.reader(
            io.StringIO(content.decode(), newline=""), delimiter=self.separator, quoting=quoting
        )

    def header(self, content: bytes) -> dict[str, Any]:
        cells = list(self.names) if self.names is not None else next(self._cells(content))
        return dict.fromkeys(cells, pl.String)

    def width(self, content: bytes) -> int:
        return len(self.header(content))

    def lines(self, content: bytes) -> tuple[list[tuple[int, list[str | None]]], list[int]]:
        """Usable rows as (row number, cells) and the numbers of rows with too many cells."""
        width, good, bad = self.width(content), [], []
        csv.field_size_limit(1 << 30)
        reader = self._cells(content)
        if self.names is None:
            next(reader)
        for row, cells in enumerate(reader, start=1):
            if len(cells) > width:
                bad.append(row)
            else:
                padded = [cell or None for cell in cells] + [None] * (width - len(cells))
                good.append((row, padded))
        return good, bad


def open_json_lines(
    path: Path,
    *,
    encoding: str = "utf-8",
    on_error: OnError = "raise",
    schema: dict[str, type[pl.DataType]] | None = None,
) -> Table:
    """One JSON object a line (or one array of objects). `schema` reads only those fields."""
    content, notes = read_utf8(path, encoding, on_error, header=False)
    rows = None
    try:
        if content.lstrip()[:1] == b"[":
            frame = pl.DataFrame(json.loads(content), infer_schema_length=None)
        else:
            frame = pl.read_ndjson(content, infer_schema_length=None, schema=schema)
    except (PolarsError, ValueError, TypeError) as error:
        good, bad = _json_lines(content)
        if on_error == "raise" or not bad:
            where = (
                f"{len(bad)} rows are not JSON objects ({examples(bad)})"
                if bad
                else _first_line(error)
            )
            raise DataError(
                f"{path.name}: {where}; expected one JSON object a line; "
                "mend those lines or read with on_error='skip'"
            ) from error
        notes.append(f"{path.name}: dropped {len(bad)} rows that are not JSON ({examples(bad)})")
        if not good:
            raise DataError(f"{path.name}: no line is a JSON object; check the layout") from error
        kept = b"\n".join(line for _, line in good)
        frame = pl.read_ndjson(kept, infer_schema_length=None, schema=schema)
        rows = pl.Series(ROW, [row for row, _ in good], dtype=pl.UInt32)
    return Table(name=path.name, frame=frame.lazy(), rows=rows, notes=tuple(notes))


def _json_lines(content: bytes) -> tuple[list[tuple[int, bytes]], list[int]]:
    good, bad = [], []
    lines = (line for line in content.splitlines() if line.strip())
    for row, line in enumerate(lines, start=1):
        try:
            fine = isinstance(json.loads(line), dict)
        except ValueError:
            fine = False
        if fine:
            good.append((row, line))
        else:
            bad.append(row)
    return good, bad
