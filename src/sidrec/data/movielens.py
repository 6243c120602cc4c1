"""MovieLens: ratings.dat and movies.dat (1M, 10M), u.data and u.item (100K), ratings.csv (later).

The older files are Latin-1, have no header and separate cells by `::`, tabs or `|`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl

from sidrec.data.tables import OnError, Table, open_csv, read_bytes

NAMES = ("ratings.dat", "movies.dat", "u.data", "u.item", "movies.csv")
RATINGS = ("user_id", "item_id", "rating", "timestamp")
GENRES = ("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime",
          "Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery",
          "Romance", "Sci-Fi", "Thriller", "War", "Western")  # fmt: skip
"""Flags of u.item, in order (u.genre)."""
DOUBLE_COLON = "\x1f"
"""What `::` becomes, because a separator is one byte."""


def open_ratings(path: Path, *, on_error: OnError) -> Table:
    """Ratings as user_id, item_id, rating, timestamp."""
    if path.suffix == ".csv":
        return open_csv(path, on_error=on_error)
    if path.name.lower() == "u.data":
        return open_csv(path, on_error=on_error, separator="\t", quotes=False, names=RATINGS)
    return _open_double_colon(path, RATINGS, on_error)


def open_movies(path: Path, *, on_error: OnError) -> Table:
    """Movies as item_id, title, year, genres (a list)."""
    if path.name.lower() == "u.item":
        names = ("item_id", "title", "released", "video", "url", *GENRES)
        table = open_csv(path, encoding="latin-1", on_error=on_error, separator="|",
                         quotes=False, names=names)  # fmt: skip
        flags = [pl.when(pl.col(g) == "1").then(pl.lit(g)) for g in GENRES]
        genres = pl.concat_list(flags).list.drop_nulls()
    else:
        if path.suffix == ".csv":
            table = open_csv(path, on_error=on_error)
        else:
            table = _open_double_colon(path, ("item_id", "title", "genres"), on_error)
        genres = pl.col("genres").str.split("|")
    item = "movieId" if "movieId" in table.columns else "item_id"
    title = pl.col("title").str.strip_chars()
    year = title.str.extract(r"\((\d{4})\)\s*$").cast(pl.Int32)
    frame = table.frame.select(
        pl.col(item).alias("item_id"), title, year.alias("year"), genres.alias("genres")
    )
    return replace(table, frame=frame)


def _open_double_colon(path: Path, names: tuple[str, ...], on_error: OnError) -> Table:
    content = read_bytes(path).replace(b"::", DOUBLE_COLON.encode())
    return open_csv(path, encoding="latin-1", on_error=on_error, separator=DOUBLE_COLON,
                    quotes=False, names=names, content=content)  # fmt: skip
