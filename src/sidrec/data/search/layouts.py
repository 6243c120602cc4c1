"""Search data from files: ESCI (plain tables, or as published), WANDS, BEIR, sessions of clicks.

| layout | catalogue | queries | judgements |
| --- | --- | --- | --- |
| `esci` | items.parquet | queries.parquet: query_id, query | judgements.parquet (see below) |
| `esci_original` | shopping_queries_dataset_products.parquet | …_examples.parquet | the same |
| `wands` | product.csv | query.csv | label.csv: query_id, product_id, label; tabs between cells |
| `beir` | corpus.jsonl: _id, title, text | queries.jsonl: _id, text | qrels/<part>.tsv |

`esci`'s judgements: query_id, item_id, and a grade of 0 to 3 or a label, Exact … Irrelevant.
`esci_original` is the repository's: one row an example with query, product and label E, S, C or I.

Source:   ESCI, Reddy et al. 2022, arXiv:2206.06588; WANDS, Chen et al., ECIR 2022; BEIR, Thakur et
          al. 2021, arXiv:2104.08663.
Differs:  WANDS: Exact 2, Partial 1, Irrelevant 0. BEIR: the best grade is the largest in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from sidrec.data.search.checks import build_search, build_sessions
from sidrec.data.search.values import SearchData, Sessions
from sidrec.data.tables import (
    ROW,
    OnError,
    Table,
    open_csv,
    open_json_lines,
    open_parquet,
    plain_suffix,
)
from sidrec.errors import ConfigError, DataError
from sidrec.types import Items, as_ids

LABELS = {
    "esci": {"exact": 3, "substitute": 2, "complement": 1, "irrelevant": 0,
             "e": 3, "s": 2, "c": 1, "i": 0},
    "wands": {"exact": 2, "partial": 1, "irrelevant": 0},
}  # fmt: skip
WANDS_COLUMNS = {
    "product_id": "item_id",
    "product_name": "title",
    "category hierarchy": "categories",
    "product_description": "description",
}
ESCI_EXAMPLES = "shopping_queries_dataset_examples.parquet"
ESCI_PRODUCTS = "shopping_queries_dataset_products.parquet"
ESCI_COLUMNS = {
    "product_id": "item_id",
    "product_title": "title",
    "product_brand": "brand",
    "product_color": "color",
    "product_bullet_point": "bullet_points",
    "product_description": "description",
}
SESSION_COLUMNS = {
    "session": "session_id",
    "query": "query",
    "item": "item_id",
    "clicked": "clicked",
    "position": "position",
}


def read_search(
    folder: str | Path,
    items: Items | None = None,
    *,
    layout: str = "auto",
    part: str = "test",
    on_error: OnError = "raise",
) -> SearchData:
    """The queries and judgements of a folder, over its own catalogue or over `items`.

    `part` is the file of BEIR's judgements, or the split of `esci_original`, whose other choices
    `read_esci` takes. Raises DataError at the first fault, or counts and drops faulty rows with
    `on_error="skip"`; see `checks`.
    """
    folder = Path(folder)
    if layout == "auto":
        layout = guess_layout(folder)
    if layout not in LAYOUTS:
        raise ConfigError(f"no layout {layout!r} of search data: have {list(LAYOUTS)}")
    return LAYOUTS[layout](folder, items, part, on_error)


def guess_layout(folder: Path) -> str:
    """The layout of a folder, by the names of its files."""
    for layout, name in (
        ("esci", "judgements.parquet"),
        ("esci_original", ESCI_EXAMPLES),
        ("wands", "label.csv"),
        ("beir", "queries.jsonl"),
    ):
        if (folder / name).is_file():
            return layout
    raise DataError(
        f"{folder} holds no search data; expected judgements.parquet (ESCI), {ESCI_EXAMPLES} (ESCI "
        "as published), label.csv (WANDS) or queries.jsonl (BEIR); name the layout, or bring the "
        "files"
    )


def read_tables(
    queries: str | Path, judgements: str | Path, items: Items, *, on_error: OnError = "raise"
) -> SearchData:
    """Two files with the columns of ESCI, Parquet, CSV or JSON lines, over a known catalogue."""
    asked, judged = _open(Path(queries)), _open(Path(judgements))
    return _graded(Path(queries).name, items, asked, judged, on_error)


def read_sessions(
    path: str | Path,
    items: Items,
    *,
    columns: Mapping[str, str] | None = None,
    on_error: OnError = "raise",
) -> Sessions:
    """Sessions of a file with one row a shown item: session_id, query, item_id, clicked, position.

    `columns` renames: {"session": "sid", …}. An item shown twice counts once, clicked if ever.
    """
    names = {**SESSION_COLUMNS, **(columns or {})}
    if unknown := set(names) - set(SESSION_COLUMNS):
        raise ConfigError(f"columns: no role {sorted(unknown)}; have {list(SESSION_COLUMNS)}")
    table = _open(Path(path))
    _require(table, Path(path).name, list(names.values()))
    return build_sessions(table, items, name=Path(path).name, columns=names, on_error=on_error)


def read_esci(
    folder: str | Path,
    items: Items | None = None,
    *,
    locale: str = "us",
    version: str = "small",
    part: str = "test",
    on_error: OnError = "raise",
) -> SearchData:
    """The files of amazon-science/esci-data: one locale (`us`, `es`, `jp`), one version, one split.

    `small` holds the harder queries of the ranking task, `large` all. The catalogue is every
    product of the locale: ids repeat across locales, never inside one.
    """
    folder = Path(folder)
    if version not in ("small", "large"):
        raise ConfigError(f"esci: version must be small or large, got {version!r}")
    if items is None:
        products = open_parquet(folder / ESCI_PRODUCTS)
        _require(products, ESCI_PRODUCTS, ["product_id", "product_title", "product_locale"])
        renamed = {old: new for old, new in ESCI_COLUMNS.items() if old in products.columns}
        own = _where(products, pl.col("product_locale") == locale, list(renamed))
        items = catalogue(own.rename(renamed), ESCI_PRODUCTS)
    examples, chosen = open_parquet(folder / ESCI_EXAMPLES), f"{version}_version"
    columns = ["query_id", "query", "product_id", "esci_label"]
    _require(examples, ESCI_EXAMPLES, [*columns, "product_locale", chosen, "split"])
    wanted = (pl.col("product_locale") == locale) & (pl.col(chosen) == 1)
    judged = _where(examples, wanted & (pl.col("split") == part), columns)
    if not judged.height:
        raise DataError(
            f"{ESCI_EXAMPLES}: no example with product_locale {locale!r}, {chosen} 1 and split "
            f"{part!r}; choose another locale (us, es, jp), version or part (train, test)"
        )
    return build_search(
        f"esci_{locale}_{version}_{part}",
        items,
        judged.select("query_id", "query").unique(maintain_order=True),
        judged,
        grade_of=_label(LABELS["esci"]),
        top_grade=3,
        query_columns=("query_id", "query"),
        judgement_columns=("query_id", "product_id", "esci_label"),
        on_error=on_error,
    )


def _esci_original(folder: Path, items: Items | None, part: str, on_error: OnError) -> SearchData:
    return read_esci(folder, items, part=part, on_error=on_error)


def _esci(folder: Path, items: Items | None, part: str, on_error: OnError) -> SearchData:
    items = items or catalogue(_open(folder / "items.parquet"), "items.parquet")
    asked, judged = _open(folder / "queries.parquet"), _open(folder / "judgements.parquet")
    return _graded(folder.name, items, asked, judged, on_error)


def _graded(
    name: str, items: Items, asked: pl.DataFrame, judged: pl.DataFrame, on_error: OnError
) -> SearchData:
    """ESCI's columns: a grade, or a label where there is none."""
    _require(asked, name, ["query_id", "query"])
    value = "grade" if "grade" in judged.columns or "label" not in judged.columns else "label"
    _require(judged, name, ["query_id", "item_id", value])
    top = 3
    if value == "grade":
        top = max(1, int(judged[value].cast(pl.Float64, strict=False).max() or 1))  # type: ignore[arg-type]
    return build_search(
        name,
        items,
        asked,
        judged,
        grade_of=_label(LABELS["esci"]) if value == "label" else _whole,
        top_grade=top,
        query_columns=("query_id", "query"),
        judgement_columns=("query_id", "item_id", value),
        on_error=on_error,
    )


def _wands(folder: Path, items: Items | None, part: str, on_error: OnError) -> SearchData:
    if items is None:
        table = _open(folder / "product.csv", separator="\t")
        _require(table, "product.csv", ["product_id", "product_name"])
        renamed = {old: new for old, new in WANDS_COLUMNS.items() if old in table.columns}
        items = catalogue(table.rename(renamed), "product.csv")
    asked = _open(folder / "query.csv", separator="\t")
    judged = _open(folder / "label.csv", separator="\t")
    _require(asked, "query.csv", ["query_id", "query"])
    _require(judged, "label.csv", ["query_id", "product_id", "label"])
    return build_search(
        folder.name,
        items,
        asked,
        judged,
        grade_of=_label(LABELS["wands"]),
        top_grade=2,
        query_columns=("query_id", "query"),
        judgement_columns=("query_id", "product_id", "label"),
        on_error=on_error,
    )


def _beir(folder: Path, items: Items | None, part: str, on_error: OnError) -> SearchData:
    if items is None:
        table = _open(folder / "corpus.jsonl")
        _require(table, "corpus.jsonl", ["_id"])
        items = catalogue(table.rename({"_id": "item_id"}), "corpus.jsonl")
    asked = _open(folder / "queries.jsonl")
    judged = _open(folder / "qrels" / f"{part}.tsv", separator="\t")
    _require(asked, "queries.jsonl", ["_id", "text"])
    _require(judged, f"qrels/{part}.tsv", ["query-id", "corpus-id", "score"])
    judged_ids = set(judged["query-id"].to_list())
    asked = asked.filter(pl.col("_id").cast(pl.String).is_in(judged_ids))  # of all parts, this one
    largest = judged["score"].cast(pl.Float64, strict=False).max()
    return build_search(
        folder.name,
        items,
        asked,
        judged,
        grade_of=_whole,
        top_grade=max(1, int(largest or 1)),  # type: ignore[arg-type]
        query_columns=("_id", "text"),
        judgement_columns=("query-id", "corpus-id", "score"),
        on_error=on_error,
    )


LAYOUTS = {"esci": _esci, "esci_original": _esci_original, "wands": _wands, "beir": _beir}


def catalogue(table: pl.DataFrame, name: str) -> Items:
    """Items of a table with a column item_id."""
    _require(table, name, ["item_id"])
    return Items(as_ids(table["item_id"]), table.drop(ROW, strict=False))


def _where(table: Table, kept: pl.Expr, columns: list[str]) -> pl.DataFrame:
    """The rows that are kept; the others are never in memory."""
    return replace(table, frame=table.frame.filter(kept)).collect(columns)


def _open(path: Path, separator: str | None = None) -> pl.DataFrame:
    """A Parquet, CSV or JSON-lines file by its name."""
    match plain_suffix(path):
        case ".parquet" | ".pq":
            return open_parquet(path).collect()
        case ".csv" | ".tsv":
            return open_csv(path, separator=separator, quotes=separator is None).collect()
        case ".jsonl" | ".ndjson":
            return open_json_lines(path).collect()
    raise DataError(f"{path.name} must end in .parquet, .csv, .tsv or .jsonl")


def _require(table: pl.DataFrame | Table, name: str, columns: list[str]) -> None:
    missing = [column for column in columns if column not in table.columns]
    if missing:
        have = [column for column in table.columns if column != ROW]
        raise DataError(f"{name}: no column {missing}, has {have}; rename the columns")


def _label(grades: Mapping[str, int]) -> Any:
    return lambda value: grades.get(str(value).strip().casefold())


def _whole(value: Any) -> int | None:
    """A whole number of at least 0, else None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() and number >= 0 else None
