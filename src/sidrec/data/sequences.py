"""Per-user sequence files: a line holds a user and then the items, oldest first, as in S3-Rec.

Row numbers in messages are line numbers; an id cannot hold a space in this layout.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from sidrec.data.tables import OnError, Table, examples, read_utf8
from sidrec.errors import DataError


def open_sequences(path: Path, *, encoding: str, on_error: OnError) -> Table:
    """One row an event: user_id, item_id, in file order."""
    content, notes = read_utf8(path, encoding, on_error, header=False)
    lines = pl.Series("cells", content.decode().splitlines(), dtype=pl.String)
    cells = lines.str.extract_all(r"\S+")
    lengths = cells.list.len().to_numpy().astype(np.int64)
    alone = np.flatnonzero(lengths == 1) + 1
    if alone.size and on_error == "raise":
        raise DataError(
            f"{path.name}: {len(alone)} of {len(lines)} lines hold a user without items "
            f"({examples(alone.tolist())}); expected 'user item item …', got one word; "
            "drop those lines or read with on_error='skip'"
        )
    if alone.size:
        notes.append(f"{path.name}: dropped {len(alone)} lines without items")
    usable = np.flatnonzero(lengths > 1)
    users = cells.gather(usable).list.first()
    again = ~users.is_first_distinct().to_numpy()
    if again.any() and on_error == "raise":
        raise DataError(
            f"{path.name}: {int(again.sum())} of {len(lines)} lines repeat the user of an earlier "
            f"line ({examples((usable[again] + 1).tolist())}); expected one line a user; if a line "
            "is one event, add a header (user_id item_id …) and read it with layout='csv'"
        )
    if again.any():
        notes.append(f"{path.name}: dropped {int(again.sum())} lines that repeat a user")
        usable = usable[~again]
    words = cells.gather(usable)
    frame = pl.DataFrame({"user_id": words.list.first(), "item_id": words.list.slice(1)})
    frame = frame.explode("item_id")
    numbers = np.repeat(usable + 1, lengths[usable] - 1)
    rows = pl.Series(numbers, dtype=pl.UInt32)
    return Table(name=path.name, frame=frame.lazy(), rows=rows, notes=tuple(notes))
