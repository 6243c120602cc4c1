from __future__ import annotations

import polars as pl
import pytest

from sidrec import filters
from sidrec.errors import ConfigError

SHOP = pl.DataFrame(
    {
        "price": [1.0, 5.0, None, 9.0],
        "brand": ["Ada", "Bob", "ada", None],
        "tags": [["x"], ["x", "y"], [], None],
    }
)


@pytest.mark.parametrize(
    ("tree", "met"),
    [
        ({"field": "price", "op": "lt", "value": 5}, [1, 0, 0, 0]),
        ({"field": "price", "op": "ge", "value": 5}, [0, 1, 0, 1]),
        ({"field": "brand", "op": "ne", "value": "Ada"}, [0, 1, 1, 0]),
        ({"field": "brand", "op": "in", "value": ["Ada", "Bob"]}, [1, 1, 0, 0]),
        ({"field": "brand", "op": "contains", "value": "AD"}, [1, 0, 1, 0]),
        ({"field": "tags", "op": "contains", "value": "y"}, [0, 1, 0, 0]),
        ({"field": "price", "op": "exists"}, [1, 1, 0, 1]),
        ({"field": "price", "op": "exists", "value": False}, [0, 0, 1, 0]),
        ({"not": {"field": "price", "op": "lt", "value": 5}}, [0, 1, 1, 1]),
        (
            {
                "and": [
                    {"field": "price", "op": "gt", "value": 0},
                    {"not": {"or": [{"field": "brand", "op": "eq", "value": "Bob"}]}},
                ]
            },
            [1, 0, 0, 1],
        ),
    ],
)
def test_a_filter_keeps_exactly_the_items_that_meet_it(tree, met):
    assert filters.mask(tree, SHOP).tolist() == [bool(m) for m in met]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"field": "prise", "op": "lt", "value": 5}, "did you mean 'price'"),
        ({"field": "price", "op": "less", "value": 5}, "no op 'less'"),
        ({"field": "price", "op": "lt", "value": "cheap"}, "cannot compare"),
        ({"field": "brand", "op": "in", "value": "Ada"}, "needs a list"),
        ({"and": []}, "a filter is"),
        ("price < 5", "must be an object"),
        ({"field": "price", "op": "lt", "value": 5, "extra": 1}, "a filter is"),
    ],
)
def test_a_filter_that_cannot_work_says_why(tree, message):
    with pytest.raises(ConfigError, match=message):
        filters.mask(tree, SHOP)


def test_deep_and_wide_filters_are_refused():
    leaf = {"field": "price", "op": "exists"}
    deep = leaf
    for _ in range(20):
        deep = {"not": deep}
    for tree in (deep, {"or": [leaf] * 100}):
        with pytest.raises(ConfigError, match="may hold"):
            filters.mask(tree, SHOP)
