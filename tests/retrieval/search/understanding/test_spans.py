from __future__ import annotations

import numpy as np
import pytest

from sidrec.retrieval.search.understanding.spans import price_bounds


def labelled(found, query):
    return [(span.label, span.text) for span in found.parse(query).spans]


@pytest.mark.parametrize(
    ("query", "spans"),
    [
        ("nike running shoes", [("brand", "nike"), ("category", "running shoes")]),
        ("red michael kors shoe", [("colour", "red"), ("brand", "michael kors"),
                                   ("category", "shoe")]),
        ("rose gold earbuds", [("colour", "rose gold"), ("category", "earbuds")]),
        ("steel kettle", [("category", "kettle")]),  # Steel is a brand, but mostly a word
        ("kettle under 20 dollars", [("category", "kettle"), ("price", "under 20 dollars")]),
        ("kettle under $20", [("category", "kettle"), ("price", "under $20")]),
        ("shelf under 20 inches", [("size", "20 inches")]),
        ('1/2 inch hose 3.5" 10-pack', [("size", "1/2 inch"), ("size", '3.5"'),
                                        ("quantity", "10-pack")]),
        ("set of 6 cups 32 oz", [("quantity", "set of 6"), ("size", "32 oz")]),
        ("kettle without red lid", [("category", "kettle"), ("excluded", "red lid")]),
        ("cable 5 m", [("size", "5 m")]),
        ("charge 3", []),
    ],
)  # fmt: skip
def test_words_get_their_labels(found, query, spans):
    assert labelled(found.with_config(spelling=True), query) == spans


@pytest.mark.parametrize(
    ("query", "bounds"),
    [
        ("under $20", (None, 20)), ("over 15 dollars", (15, None)), ("$10 - $30", (10, 30)),
        ("between 10 and 30 dollars", (10, 30)), ("less than 9.99 usd", (None, 9.99)),
        ("\u20ac50", (None, 50)), ("under 20 inches", (None, None)), ("kettle", (None, None)),
    ],
)  # fmt: skip
def test_prices_are_read_with_their_direction(found, query, bounds):
    assert price_bounds(found.parse(query).spans) == bounds


def test_no_value_is_outside_the_catalogue_and_no_span_overlaps(found, shop):
    random = np.random.default_rng(0)
    brands, nodes = set(shop.attributes["brand"]), set(found.attributes.nodes)
    words = [*found.lexicon.words, "gucci", "sofa", "$20", "under", "without", "2", "inch", "and"]
    for _ in range(150):
        query = " ".join(random.choice(words, random.integers(1, 7)))
        parsed = found.parse(query)
        assert set(parsed.values("brand")) <= brands
        assert set(parsed.values("category")) <= nodes
        ends = [0, *(span.end for span in parsed.spans)]
        for span, end in zip(parsed.spans, ends, strict=False):
            assert end <= span.start < span.end
            assert parsed.corrected[span.start : span.end] == span.text


def test_filters_are_trees_that_the_filter_module_reads(found, shop):
    from sidrec.filters import mask

    parsed = found.parse("nike shoes between $20 and $40")
    assert [label for label, _ in parsed.filters] == ["brand", "price", "price"]
    met = mask({"and": [dict(tree) for _, tree in parsed.filters]}, shop.attributes)
    rows = shop.attributes.filter(met)
    assert rows.height and set(rows["brand"]) == {"Nike"}
    assert rows["price"].is_between(20, 40).all()
