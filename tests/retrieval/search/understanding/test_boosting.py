from __future__ import annotations

import numpy as np
import pytest

from sidrec.filters import mask
from sidrec.retrieval.search.asking import best
from sidrec.retrieval.search.bm25 import Bm25, Bm25Config
from sidrec.retrieval.search.understanding.boosting import asked_text, understood_search

pytest.importorskip("bm25s")
OFF = {"spelling": False}


@pytest.fixture(scope="module")
def ask(shop):
    searcher = Bm25.fit(shop, Bm25Config())

    def asked(reading, texts, k=20, keep_N=None):
        def system(members, texts, k, keep_N):
            return best(members["bm25"].ask(texts, k, keep_N), k)

        return understood_search(reading, {"bm25": searcher}, system, texts, k, keep_N)

    asked.plain = lambda texts, k=20, keep_N=None: best(searcher.ask(texts, k, keep_N), k)
    return asked


def test_without_weights_and_spelling_nothing_changes(found, ask):
    texts = ["nike shoes", "red kettle under $20", "unknown", "ketle"]
    one, other = ask(found.with_config(**OFF), texts), ask.plain(texts)
    assert one.rows_BK.tolist() == other.rows_BK.tolist()
    np.testing.assert_allclose(one.scores_BK, other.scores_BK)


def test_a_misspelt_query_answers_as_the_right_one(found, ask):
    wrong, right = ask(found, ["nkie runing shoes"]), ask(found, ["nike running shoes"])
    assert wrong.rows_BK.tolist() == right.rows_BK.tolist()
    assert (ask(found.with_config(**OFF), ["ketle"]).rows_BK == -1).all()


@pytest.mark.parametrize(
    ("query", "part", "column", "value"),
    [
        ("steel nike", "brand", "brand", "Nike"),
        ("steel black", "colour", "color", "Black"),
        ("kettle under $40", "price", "price", None),
    ],
)
def test_a_boost_moves_matching_items_up(found, shop, ask, query, part, column, value):
    def places(weight):
        rows = ask(found.with_config(**{f"{part}_weight": weight}), [query], 60).rows_BK[0]
        cells = shop.attributes[column].to_list()
        right = [
            cells[row] == value if value else (cells[row] or 99) <= 40 for row in rows if row >= 0
        ]
        return np.flatnonzero(right).mean()

    assert places(50.0) < places(0.0) or places(0.0) == (places(50.0) == 0)


def test_the_category_of_the_query_comes_first(found, shop, ask):
    rows = ask(found.with_config(category_weight=50.0), ["red nike whistle"], 60).rows_BK[0]
    kinds = [found.attributes.paths[found.categories_N[row]][-1] for row in rows[rows >= 0]]
    assert kinds[:5] == ["Kettles"] * 5 and len(set(kinds)) > 1


def test_hard_filters_leave_out_what_their_tree_leaves_out_for_their_query_alone(found, shop, ask):
    hard = found.with_config(hard=("price", "brand"))
    queries = ["kettle between $20 and $60", "kettle", "nike kettle under $50"]
    found_BK = ask(hard, queries, 60).rows_BK
    alone = [ask(hard, [query], 60).rows_BK[0].tolist() for query in queries]
    assert found_BK.tolist() == alone
    for rows, query in zip(found_BK, queries, strict=True):
        trees = [dict(tree) for _, tree in hard.parse(query).filters]
        kept = mask({"and": trees}, shop.attributes) if trees else np.ones(len(shop), dtype=bool)
        plain = ask.plain([asked_text(hard, hard.parse(query), "bm25")], 60).rows_BK[0]
        assert set(rows[rows >= 0]) == set(plain[plain >= 0]) & set(np.flatnonzero(kept))
    keep_N = np.arange(len(shop)) % 2 == 0
    rows = ask(hard, queries[:1], 60, keep_N).rows_BK[0]
    assert set(rows[rows >= 0]) == {r for r in alone[0] if r >= 0 and keep_N[r]}


def test_words_of_a_price_are_not_searched_for_where_the_price_counts(found):
    query = "kettle under $20 red"
    for changes, text in (
        ({"price_weight": 1.0}, "kettle red"),
        ({"hard": ("price",)}, "kettle red"),
        ({}, query),
    ):
        reading = found.with_config(**changes)
        assert asked_text(reading, reading.parse(query), "bm25") == text
    priced = found.with_config(price_weight=1.0)
    assert asked_text(priced, priced.parse("under $20"), "bm25") == "under $20"


def test_added_words_weigh_less_than_those_of_the_query(found):
    reading = found.with_config(expansion_weight=0.25, num_expansions=2)
    parsed = reading.parse("kettle")
    assert asked_text(reading, parsed, "bm25") == " ".join(["kettle"] * 4 + [*parsed.expansions])
    assert asked_text(reading, parsed, "dual_tower") == "kettle"
