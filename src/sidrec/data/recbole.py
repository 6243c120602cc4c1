"""RecBole atomic files: tab-separated, with the type of each column in the header.

`user_id:token  item_id:token  rating:float  timestamp:float`; token_seq cells are lists of words.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl

from sidrec.data.tables import OnError, Table, open_csv
from sidrec.errors import DataError

TYPES = ("token", "token_seq", "float", "float_seq")


def is_typed_header(line: str) -> bool:
    """Whether every tab-separated name ends in a RecBole type."""
    cells = line.split("\t")
    return len(cells) > 1 and all(cell.rpartition(":")[2] in TYPES for cell in cells)


def open_atomic(path: Path, *, encoding: str, on_error: OnError) -> Table:
    """An .inter or .item file with plain column names."""
    table = open_csv(path, encoding=encoding, on_error=on_error, separator="\t", quotes=False)
    if not is_typed_header("\t".join(table.columns)):
        raise DataError(
            f"{path.name}: expected a header of name:type with types {list(TYPES)}, "
            f"got {table.columns}; add the types or read it as layout='csv'"
        )
    columns = []
    for header in table.columns:
        name, _, kind = header.rpartition(":")
        cell = pl.col(header).alias(name)
        columns.append(cell.str.split(" ") if kind == "token_seq" else cell)
    return replace(table, frame=table.frame.select(columns))
