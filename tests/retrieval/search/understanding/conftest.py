"""A small shop: three kinds of things, brands, colours and prices; one brand is a common word."""

from __future__ import annotations

import polars as pl
import pytest

from sidrec.retrieval.search.understanding.understanding import (
    QueryUnderstanding,
    UnderstandingConfig,
)
from sidrec.types import Items, as_ids

KINDS = {
    ("Shoes", "Running Shoes"): ("running shoes", ["cushioned", "laces", "trainer"]),
    ("Kitchen", "Kettles"): ("steel kettle", ["whistle", "boil", "litre"]),
    ("Electronics", "Headphones & Earbuds"): ("wireless headphones", ["bass", "noise", "ear"]),
}
BRANDS = ("Nike", "Michael Kors", "Jura")
COLOURS = ("Red", "Black", "Rose Gold")


def shop_items(num=90):
    rows = []
    kinds = list(KINDS.items())
    for n in range(num):
        path, (name, words) = kinds[n % 3]
        brand, colour = BRANDS[n // 3 % 3], COLOURS[n // 9 % 3]
        title = f"{brand} {name} {words[n // 3 % 3]} {words[(n // 3 + 1) % 3]} {colour}"
        rows.append((title, brand, list(path), colour, float(10 + n)))
    rows[0] = (rows[0][0] + " steel", "Steel", *rows[0][2:4], None)  # a brand that is a plain word
    rows[1] = (*rows[1][:2], None, *rows[1][3:])  # a kettle without a category
    names = ["title", "brand", "categories", "color", "price"]
    types = [pl.String, pl.String, pl.List(pl.String), pl.String, pl.Float64]
    schema = dict(zip(names, types, strict=True))
    return Items(as_ids(range(num)), pl.DataFrame(rows, schema=schema, orient="row"))


@pytest.fixture(scope="session")
def shop():
    return shop_items()


@pytest.fixture(scope="session")
def found(shop):
    return QueryUnderstanding.fit(shop, UnderstandingConfig())
