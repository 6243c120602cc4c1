"""`read`: any of the common layouts to a checked `Dataset`.

The layout is named or guessed from the file's name and first line; each layout has its own file
here and gives tables; `validation` checks and joins them.

Cost: 10 M Parquet rows in seconds; metadata of Amazon files is parsed line by line in Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl

from sidrec.data import amazon, movielens, recbole, sequences
from sidrec.data.columns import ALIASES, check_mapping, plain_name
from sidrec.data.tables import (
    OnError,
    Table,
    first_line,
    open_csv,
    open_json_lines,
    open_parquet,
    open_table,
    plain_suffix,
)
from sidrec.data.validation import build_dataset
from sidrec.errors import ConfigError, DataError
from sidrec.types import Dataset

LAYOUTS = ("auto", "parquet", "csv", "jsonl", "recbole", "amazon", "movielens", "sequences")
Source = str | Path | pl.DataFrame | pl.LazyFrame


def read(
    interactions: Source,
    items: Source | None = None,
    *,
    layout: str = "auto",
    mapping: Mapping[str, str | None] | None = None,
    on_error: OnError = "raise",
    name: str | None = None,
    encoding: str = "utf-8",
) -> Dataset:
    """Events, and a catalogue if there is one, as a checked `Dataset`.

    `interactions` is a file, a polars frame, or a folder that holds files of a known layout.
    `mapping` names columns by role: `{"user": "uid", "item": "sku", "time": "ts"}`; None leaves a
    role out. Without `items` the catalogue is the set of items seen. `Dataset.notes` says what was
    guessed and dropped. Raises DataError naming file, column, rows and the fix.

    >>> import polars as pl
    >>> events = pl.DataFrame({"uid": ["a", "b"], "sku": ["x", "y"], "ts": [1.7e9, 1.8e9]})
    >>> len(read(events).interactions)
    2
    """
    mapping = check_mapping(mapping)
    if layout not in LAYOUTS:
        raise ConfigError(f"no layout {layout!r}: have {list(LAYOUTS)}")
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    if isinstance(interactions, str | Path) and Path(interactions).is_dir():
        folder = Path(interactions)
        name = name or folder.name
        interactions, found = find_in_folder(folder)
        items = found if items is None else items
    if name is None:
        name = (
            Path(interactions).name.split(".")[0]
            if isinstance(interactions, str | Path)
            else "table"
        )
    events = _open_events(interactions, layout, on_error, encoding)
    catalogue = None if items is None else _open_items(items, layout, on_error, encoding)
    return build_dataset(events, catalogue, mapping=mapping, on_error=on_error, name=name)


def find_in_folder(folder: Path) -> tuple[Path, Path | None]:
    """The interactions and items files of a folder in a known layout."""
    pairs = [
        (f"interactions{end}", f"items{end}")
        for end in (".parquet", ".csv", ".csv.gz", ".tsv", ".jsonl", ".jsonl.gz")
    ]
    pairs += [("ratings.dat", "movies.dat"), ("u.data", "u.item"), ("ratings.csv", "movies.csv")]
    pairs += [(p.name, f"{p.stem}.item") for p in sorted(folder.glob("*.inter"))]
    for events, items in pairs:
        if (folder / events).exists():
            return folder / events, folder / items if (folder / items).exists() else None
    raise DataError(
        f"{folder} holds no interactions; expected interactions.parquet (.csv, .tsv, .jsonl), "
        f"ratings.dat, u.data, ratings.csv or *.inter, got "
        f"{sorted(p.name for p in folder.iterdir())[:8]}; name the file itself"
    )


def guess_layout(path: Path) -> str:
    """The layout of a file, from its name and first line."""
    suffix, name = plain_suffix(path), path.name.lower()
    if suffix in {".parquet", ".pq"}:
        return "parquet"
    if suffix in {".inter", ".item", ".user"}:
        return "recbole"
    if name in movielens.NAMES:
        return "movielens"
    line = first_line(path)
    if suffix in {".jsonl", ".ndjson", ".json"} or line[:1] in "{[":
        return "amazon" if amazon.is_review(line) else "jsonl"
    if recbole.is_typed_header(line):
        return "recbole"
    if "::" in line:
        return "movielens"
    known = {alias for aliases in ALIASES.values() for alias in aliases}
    has_header = any(plain_name(cell) in known for cell in line.replace("\t", ",").split(","))
    if suffix in {".csv", ".tsv"} or has_header or len(line.split()) < 2:
        return "csv"
    return "sequences"


def _as_table(source: Source, what: str) -> Table | Path:
    """A frame as a table; a path that exists as it is."""
    if isinstance(source, str | Path):
        if not Path(source).is_file():
            raise DataError(f"{what}: {source} does not exist; give the path of an existing file")
        return Path(source)
    if not isinstance(source, (pl.DataFrame, pl.LazyFrame)):
        raise DataError(
            f"{what}: expected a path or a polars frame, got {type(source).__name__}; "
            "convert it with polars.DataFrame(...)"
        )
    return Table(name=what, frame=source.lazy())


def _open_events(source: Source, layout: str, on_error: OnError, encoding: str) -> Table:
    path = _as_table(source, "interactions")
    if isinstance(path, Table):
        return path
    if layout == "auto":
        table = _open_events(source, guess_layout(path), on_error, encoding)
        note = f"{path.name}: read as layout {guess_layout(path)!r}, guessed"
        return replace(table, notes=(note, *table.notes))
    match layout:
        case "parquet":
            return open_parquet(path)
        case "csv":
            return open_csv(path, encoding=encoding, on_error=on_error)
        case "jsonl":
            return open_json_lines(path, encoding=encoding, on_error=on_error)
        case "recbole":
            return recbole.open_atomic(path, encoding=encoding, on_error=on_error)
        case "amazon":
            return amazon.open_reviews(path, encoding=encoding, on_error=on_error)
        case "movielens":
            return movielens.open_ratings(path, on_error=on_error)
        case _:
            return sequences.open_sequences(path, encoding=encoding, on_error=on_error)


def _open_items(source: Source, layout: str, on_error: OnError, encoding: str) -> Table:
    path = _as_table(source, "items")
    if isinstance(path, Table):
        return path
    suffix = plain_suffix(path)
    if suffix == ".item":
        if layout == "movielens" or path.name == "u.item":
            return movielens.open_movies(path, on_error=on_error)
        return recbole.open_atomic(path, encoding=encoding, on_error=on_error)
    if path.name.lower() in movielens.NAMES:
        return movielens.open_movies(path, on_error=on_error)
    if suffix in {".parquet", ".pq"}:
        return open_parquet(path)
    line = first_line(path)
    if layout == "amazon" or (line[:1] == "{" and amazon.is_metadata(line)):
        return amazon.open_metadata(path, on_error=on_error)
    if line[:1] in "{[":
        return open_json_lines(path, encoding=encoding, on_error=on_error)
    return open_table(path, encoding=encoding, on_error=on_error)
