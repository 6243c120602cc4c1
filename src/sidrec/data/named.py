"""Public data sets by name: from a local folder, else from their origin.

`SIDREC_DATA` (or `data_dir`) holds one folder a set with interactions.parquet, items.parquet and,
for some, item_vectors_minilm.npy. Otherwise the files of the origin are fetched into `SIDREC_CACHE`
(default ~/.cache/sidrec), verified, and the counts compared with the published ones.

Source:   Amazon 2014 5-core (McAuley et al. 2015) and 2018 5-core (Ni et al. 2019); MovieLens
          (Harper and Konstan 2015). Research use; none may be passed on with a package.
Differs:  the catalogue is the set of items with events, as in published 5-core counts; the local
          copies of amazon_industrial, amazon_office and amazon_grocery are cut-outs of the origin.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from sidrec.data import amazon
from sidrec.data.columns import choose_columns
from sidrec.data.download import Origin, fetch
from sidrec.data.readers import read
from sidrec.data.tables import open_parquet
from sidrec.data.validation import build_dataset
from sidrec.errors import ConfigError, DataError
from sidrec.types import Dataset, ItemVectors, as_ids

VECTORS_FILE = "item_vectors_minilm.npy"


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """One public set: where it comes from and what it must hold."""

    name: str
    about: str
    origins: tuple[Origin, ...]
    """One zip, or reviews and metadata."""
    counts: tuple[int, int, int] | None = None
    """Published users, items and events of the origin."""


def _amazon_2014(name: str, category: str, counts: tuple[int, int, int]) -> NamedSet:
    folder = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
    return NamedSet(
        name=name,
        about=f"Amazon {category.replace('_', ' ')} 2014, 5-core",
        origins=(
            Origin(url=f"{folder}/reviews_{category}_5.json.gz"),
            Origin(url=f"{folder}/meta_{category}.json.gz"),
        ),
        counts=counts,
    )


def _amazon_2018(name: str, category: str) -> NamedSet:
    folder = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2"
    return NamedSet(
        name=name,
        about=f"Amazon {category.replace('_', ' ')} 2018, 5-core",
        origins=(
            Origin(url=f"{folder}/categoryFilesSmall/{category}_5.json.gz"),
            Origin(url=f"{folder}/metaFiles2/meta_{category}.json.gz"),
        ),
    )


def _movielens(name: str, stem: str, md5: str, counts: tuple[int, int, int]) -> NamedSet:
    url = f"https://files.grouplens.org/datasets/movielens/{stem}.zip"
    return NamedSet(
        name=name, about=f"MovieLens {stem}", origins=(Origin(url=url, md5=md5),), counts=counts
    )


NAMED: dict[str, NamedSet] = {
    entry.name: entry
    for entry in (
        _amazon_2014("amazon_beauty", "Beauty", (22_363, 12_101, 198_502)),
        _amazon_2014("amazon_sports", "Sports_and_Outdoors", (35_598, 18_357, 296_337)),
        _amazon_2014("amazon_grocery", "Grocery_and_Gourmet_Food", (14_681, 8_713, 151_254)),
        _amazon_2018("amazon_industrial", "Industrial_and_Scientific"),
        _amazon_2018("amazon_office", "Office_Products"),
        _movielens("movielens_1m", "ml-1m", "c4d9eecfca2ab87c1945afe126590906",
                   (6_040, 3_883, 1_000_209)),
        _movielens("movielens_100k", "ml-100k", "0e33842e24a9c977be4e0107933c0723",
                   (943, 1_682, 100_000)),
    )
}  # fmt: skip


def load_named(name: str, *, data_dir: str | Path | None = None, download: bool = True) -> Dataset:
    """A public set. Looks in `data_dir` or `SIDREC_DATA`, then downloads. Raises DataError."""
    if name not in NAMED:
        raise ConfigError(f"no data set {name!r}: have {list(NAMED)}")
    if (folder := _local_folder(name, data_dir)) is not None:
        return read(folder, name=name)
    if not download:
        raise DataError(f"{name} is not at hand and downloading is off; {_what_to_do(name)}")
    cache = Path(os.environ.get("SIDREC_CACHE") or Path.home() / ".cache" / "sidrec")
    try:
        return load_from_origin(NAMED[name], cache)
    except DataError as error:
        raise DataError(f"{name}: {error}; or {_what_to_do(name)}") from error


def _what_to_do(name: str) -> str:
    return (
        f"set SIDREC_DATA to a folder that holds {name}/interactions.parquet, go online, "
        "or use the simulated shop, which needs neither (data = 'shop')"
    )


def _local_folder(name: str, data_dir: str | Path | None) -> Path | None:
    root = data_dir or os.environ.get("SIDREC_DATA")
    folder = Path(root) / name if root else None
    return folder if folder is not None and (folder / "interactions.parquet").exists() else None


def load_from_origin(entry: NamedSet, cache: Path) -> Dataset:
    """The set as its origin publishes it, through the cache folder."""
    paths = [fetch(origin, cache / entry.name) for origin in entry.origins]
    if len(paths) == 1:
        dataset = _from_zip(entry, paths[0])
    else:
        dataset = _from_reviews(entry, paths[0], paths[1])
    events = dataset.interactions
    got = (len(events.user_ids), len(dataset.items), len(events))
    if entry.counts is not None and got != entry.counts:
        raise DataError(
            f"{entry.name}: expected {entry.counts} users, items and events as published, "
            f"got {got}; the origin has changed, delete {cache / entry.name} and download again"
        )
    origin = entry.origins[0].url
    return replace(dataset, notes=(f"{entry.about}, downloaded from {origin}", *dataset.notes))


def _from_zip(entry: NamedSet, path: Path) -> Dataset:
    wanted = {"ratings.dat", "movies.dat", "u.data", "u.item"}
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if (plain := member.rsplit("/", 1)[-1]) in wanted:
                (Path(scratch) / plain).write_bytes(archive.read(member))
        return read(scratch, name=entry.name)


def _from_reviews(entry: NamedSet, reviews: Path, metadata: Path) -> Dataset:
    events = amazon.open_reviews(reviews, encoding="utf-8", on_error="raise")
    seen = sorted(set(events.frame.select("item_id").collect()["item_id"].drop_nulls()))
    known = amazon.open_metadata(metadata, on_error="skip", keep=set(seen))
    rows = known.frame.unique("item_id", keep="first", maintain_order=True)
    catalogue = pl.LazyFrame({"item_id": seen}).join(
        rows, on="item_id", how="left", maintain_order="left"
    )
    items = replace(known, frame=catalogue, rows=None)
    dataset = build_dataset(events, items, mapping={}, on_error="raise", name=entry.name)
    note = (
        "the origin lists reviews by item, so ties of one day follow the ASIN; "
        "report a run with ties='shuffle' too"
    )
    return replace(dataset, notes=(*dataset.notes, note))


def named_vectors(name: str, data_dir: str | Path | None = None) -> ItemVectors | None:
    """Ready-made MiniLM sentence vectors (N, 384) of a set's items, None where none lie there."""
    folder = _local_folder(name, data_dir)
    if folder is None or not (folder / VECTORS_FILE).exists():
        return None
    table = open_parquet(folder / "items.parquet")
    column = choose_columns(table, ("item",), {}, need=("item",))["item"]
    vectors = np.load(folder / VECTORS_FILE, allow_pickle=False).astype(np.float32)
    return ItemVectors(as_ids(table.collect([column])[column].to_list()), vectors)
