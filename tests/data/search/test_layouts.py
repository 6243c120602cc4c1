from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sidrec.data.search import made_search, query_folds, read_esci, read_search, read_sessions
from sidrec.data.search.layouts import catalogue, read_tables
from sidrec.errors import ConfigError, DataError

ITEMS = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["red shoe", "blue shoe", "kettle"]})


def esci(folder, queries=None, judgements=None):
    queries = queries or [("1", "red shoe"), ("2", "boil water")]
    judgements = judgements or [("1", "a", 3), ("1", "b", 2), ("2", "c", 3), ("2", "a", 0)]
    ITEMS.write_parquet(folder / "items.parquet")
    pl.DataFrame(queries, schema=["query_id", "query"], orient="row").write_parquet(
        folder / "queries.parquet"
    )
    pl.DataFrame(judgements, schema=["query_id", "item_id", "grade"], orient="row").write_parquet(
        folder / "judgements.parquet"
    )
    return folder


def plain(data):
    """{query text: {item id: grade}}."""
    found = {}
    for row, text in enumerate(data.queries.texts):
        items, grades = data.judgements.of(row)
        names = data.items.item_ids[items].tolist()
        found[text] = dict(zip(names, grades.tolist(), strict=True))
    return found


EXPECTED = {"red shoe": {"a": 3, "b": 2}, "boil water": {"a": 0, "c": 3}}


def test_esci_reads_back(tmp_path):
    data = read_search(esci(tmp_path))
    assert plain(data) == EXPECTED
    assert (data.judgements.top_grade, data.notes) == (3, ())


def test_esci_labels_stand_for_grades(tmp_path):
    esci(tmp_path)
    rows = [("1", "a", "Exact"), ("1", "b", "S"), ("2", "c", "exact"), ("2", "a", "Irrelevant")]
    table = pl.DataFrame(rows, schema=["query_id", "item_id", "label"], orient="row")
    table.write_parquet(tmp_path / "judgements.parquet")
    assert plain(read_search(tmp_path)) == EXPECTED


def published_esci(folder, examples=()):
    """Files with the columns of amazon-science/esci-data; two locales share a product id."""
    names = ["query", "query_id", "product_id", "product_locale", "esci_label", "small_version",
             "large_version", "split"]  # fmt: skip
    rows = [
        ("red shoe", 1, "a", "us", "E", 1, 1, "test"),
        ("red shoe", 1, "b", "us", "S", 1, 1, "test"),
        ("boil water", 2, "c", "us", "E", 1, 1, "test"),
        ("boil water", 2, "a", "us", "I", 1, 1, "test"),
        ("shoe", 3, "a", "us", "C", 1, 1, "train"),
        ("easy shoe", 4, "a", "us", "E", 0, 1, "test"),
        ("zapato rojo", 5, "a", "es", "E", 1, 1, "test"),
        *examples,
    ]
    table = pl.DataFrame(rows, schema=names, orient="row").with_row_index("example_id")
    table.write_parquet(folder / "shopping_queries_dataset_examples.parquet")
    products = [("a", "red shoe", "Acme", "red", "us"), ("b", "blue shoe", None, "blue", "us"),
                ("c", "kettle", "Acme", None, "us"), ("a", "zapato", None, None, "es")]  # fmt: skip
    names = ["product_id", "product_title", "product_brand", "product_color", "product_locale"]
    table = pl.DataFrame(products, schema=names, orient="row")
    table.write_parquet(folder / "shopping_queries_dataset_products.parquet")
    return folder


def test_esci_as_published_reads_one_locale_version_and_split(tmp_path):
    data = read_search(published_esci(tmp_path))
    assert plain(data) == EXPECTED
    assert data.items.item_ids.tolist() == ["a", "b", "c"]
    assert {"title", "brand", "color"} <= set(data.items.attributes.columns)
    assert (data.name, data.judgements.top_grade) == ("esci_us_small_test", 3)
    assert plain(read_search(tmp_path, part="train")) == {"shoe": {"a": 1}}
    assert set(plain(read_esci(tmp_path, version="large"))) == {*EXPECTED, "easy shoe"}
    spanish = read_esci(tmp_path, locale="es")
    assert (plain(spanish), len(spanish.items)) == ({"zapato rojo": {"a": 3}}, 1)
    known = catalogue(ITEMS[:2], "items")
    assert plain(read_search(tmp_path, known, on_error="skip"))["red shoe"] == EXPECTED["red shoe"]


@pytest.mark.parametrize(
    ("example", "match"),
    [
        (("red shoe", 1, "gone", "us", "E", 1, 1, "test"), "unknown items"),
        (("red shoe", 1, "c", "us", "X", 1, 1, "test"), "without a grade"),
        (("RED shoe", 9, "b", "us", "E", 1, 1, "test"), "different grades"),
        (("", 9, "b", "us", "E", 1, 1, "test"), "empty queries"),
    ],
)
def test_faults_of_published_esci_are_those_of_any_layout(tmp_path, example, match):
    published_esci(tmp_path, [example])
    with pytest.raises(DataError, match=match):
        read_search(tmp_path)
    assert plain(read_search(tmp_path, on_error="skip"))["boil water"] == EXPECTED["boil water"]


def test_published_esci_says_what_it_lacks(tmp_path):
    published_esci(tmp_path)
    with pytest.raises(DataError, match="no example with product_locale 'jp'"):
        read_esci(tmp_path, locale="jp")
    with pytest.raises(ConfigError, match="small or large"):
        read_esci(tmp_path, version="tiny")
    pl.DataFrame({"query": ["x"]}).write_parquet(
        tmp_path / "shopping_queries_dataset_examples.parquet"
    )
    with pytest.raises(DataError, match="esci_label"):
        read_search(tmp_path)


def test_wands_reads_back(tmp_path):
    (tmp_path / "product.csv").write_text(
        "product_id\tproduct_name\tproduct_class\tcategory hierarchy\tproduct_description\n"
        '0\tred 5" shoe\tShoes\tHome / Shoes\tsoft\n7\tkettle\tKitchen\t\t\n'
    )
    (tmp_path / "query.csv").write_text("query_id\tquery\tquery_class\n3\tshoe\tShoes\n")
    (tmp_path / "label.csv").write_text(
        "id\tquery_id\tproduct_id\tlabel\n0\t3\t0\tExact\n1\t3\t7\tIrrelevant\n"
    )
    data = read_search(tmp_path)
    assert plain(data) == {"shoe": {"0": 2, "7": 0}}
    assert data.items.texts()[0] == 'red 5" shoe. Categories: Home / Shoes. soft'
    assert data.judgements.top_grade == 2


def test_beir_reads_the_queries_of_one_part(tmp_path):
    documents = [{"_id": "d1", "title": "Shoe", "text": "red"}, {"_id": "d2", "text": "kettle"}]
    queries = [{"_id": "q1", "text": "shoe"}, {"_id": "q2", "text": "of another part"}]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0")
    data = read_search(tmp_path)
    assert plain(data) == {"shoe": {"d1": 2, "d2": 0}}
    assert data.judgements.top_grade == 2
    with pytest.raises(DataError, match=r"dev\.tsv"):
        read_search(tmp_path, part="dev")


FAULTS = {
    "empty queries": {"queries": [("1", "red shoe"), ("2", " \x00 "), ("3", None)]},
    "more than 1000 characters": {"queries": [("1", "red shoe"), ("2", "x " * 5000)]},
    "second text": {"queries": [("1", "red shoe"), ("1", "kettle"), ("2", "boil water")]},
    "unknown items": {"judgements": [("1", "a", 3), ("1", "gone", 3)]},
    "unknown queries": {"judgements": [("1", "a", 3), ("9", "a", 3)]},
    "without a grade": {"judgements": [("1", "a", 3.0), ("1", "b", 1.5), ("2", "a", -1.0)]},
    "different grades": {"judgements": [("1", "a", 3), ("1", "b", 3), ("1", "b", 1)]},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_an_error_or_dropped_and_counted(tmp_path, fault):
    esci(tmp_path, **FAULTS[fault])
    with pytest.raises(DataError, match=fault):
        read_search(tmp_path)
    data = read_search(tmp_path, on_error="skip")
    assert any(fault in note and "dropped" in note for note in data.notes)
    assert plain(data)["red shoe"]["a"] == 3
    assert len(data.queries) == len(data.judgements.counts_Q)


def test_equal_words_are_one_query_and_their_conflicting_grades_a_fault(tmp_path):
    queries = [("1", "Red Shoe"), ("2", "red  shoe\x07")]
    esci(tmp_path, queries, [("1", "a", 3), ("2", "b", 2), ("2", "a", 3)])
    data = read_search(tmp_path)
    assert plain(data) == {"Red Shoe": {"a": 3, "b": 2}}
    words = ("1 queries repeat another's words", "control characters", "1 repeated judgements")
    assert all(any(word in note for note in data.notes) for word in words)
    esci(tmp_path, queries, [("1", "a", 3), ("2", "a", 0), ("2", "b", 2)])
    with pytest.raises(DataError, match="different grades"):
        read_search(tmp_path)
    data = read_search(tmp_path, on_error="skip")
    assert plain(data) == {"Red Shoe": {"b": 2}}


def test_a_query_without_a_judgement_stays_and_is_noted(tmp_path):
    data = read_search(esci(tmp_path, judgements=[("1", "a", 3)]))
    assert plain(data) == {"red shoe": {"a": 3}, "boil water": {}}
    assert "1 queries without a judgement" in data.notes[0]


def test_other_scripts_are_read_as_they_are(tmp_path):
    data = read_search(esci(tmp_path, [("1", "красные туфли"), ("2", "赤い靴")]))
    assert data.queries.texts == ("красные туфли", "赤い靴")


def test_no_judgement_left_and_an_unknown_layout_are_errors(tmp_path):
    esci(tmp_path, judgements=[("1", "gone", 3)])
    with pytest.raises(DataError, match="no judgement is left"):
        read_search(tmp_path, on_error="skip")
    with pytest.raises(DataError, match="no search data"):
        read_search(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="trec"):
        read_search(tmp_path, layout="trec")


def test_two_files_judge_a_known_catalogue(tmp_path):
    (tmp_path / "q.csv").write_text("query_id,query\n1,red shoe\n2,boil water\n")
    (tmp_path / "j.csv").write_text("query_id,item_id,grade\n1,a,3\n1,b,2\n2,c,3\n2,a,0\n")
    items = catalogue(ITEMS, "items")
    assert plain(read_tables(tmp_path / "q.csv", tmp_path / "j.csv", items)) == EXPECTED


def test_sessions_are_read_in_the_order_of_the_page(tmp_path):
    rows = [("s1", "Shoe", "b", 1, 2), ("s2", "shoe", "a", 0, 1), ("s1", "Shoe", "a", 0, 1),
            ("s2", "shoe", "a", 1, 3)]  # fmt: skip
    names = ["session_id", "query", "item_id", "clicked", "position"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(tmp_path / "s.parquet")
    found = read_sessions(tmp_path / "s.parquet", catalogue(ITEMS, "items"))
    assert (len(found), [text.lower() for text in found.queries.texts]) == (2, ["shoe"])
    parts = {
        tuple(found.items_E[a:b].tolist()): found.clicked_E[a:b].tolist()
        for a, b in zip(found.offsets, found.offsets[1:], strict=False)
    }
    assert parts == {(0, 1): [False, True], (0,): [True]}  # shown twice counts once, as clicked


def test_sessions_with_faults_raise_or_are_counted(tmp_path):
    rows = [("s1", "shoe", "a", 1, 1), ("s1", "boot", "b", 0, 2), ("s2", "shoe", "a", 1, 1),
            ("s2", "shoe", "gone", 0, 2), ("s2", "shoe", "b", 7, 3)]  # fmt: skip
    names = ["session_id", "query", "item_id", "clicked", "position"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(tmp_path / "s.parquet")
    items = catalogue(ITEMS, "items")
    with pytest.raises(DataError, match="not 0 or 1"):
        read_sessions(tmp_path / "s.parquet", items)
    found = read_sessions(tmp_path / "s.parquet", items, on_error="skip")
    assert (len(found), found.items_E.tolist()) == (1, [0])
    assert len(found.notes) == 3


def test_folds_hold_every_query_once_and_no_reordering_of_its_words_twice(tmp_path):
    texts = ["kitchen towels", "Towels kitchen", *(f"thing {n}" for n in range(20))]
    esci(tmp_path, [(str(n), text) for n, text in enumerate(texts)])
    queries = read_search(tmp_path, on_error="skip").queries
    folds = query_folds(queries, 5, seed=1)
    assert sorted(np.concatenate(folds).tolist()) == list(range(len(queries)))
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    assert sum({0, 1} <= set(fold.tolist()) for fold in folds) == 1
    again = query_folds(queries, 5, seed=1)
    assert all((a == b).all() for a, b in zip(folds, again, strict=True))
    with pytest.raises(DataError, match="lower the folds"):
        query_folds(queries, 40)


def test_made_queries_ask_for_every_item_that_holds_their_words():
    data = made_search(catalogue(ITEMS, "items"), per_item=8, max_words=1)
    found = plain(data)
    assert found["shoe"] == {"a": 1, "b": 1} and found["kettle"] == {"c": 1}
    with pytest.raises(DataError, match="bring queries"):
        made_search(catalogue(pl.DataFrame({"item_id": ["a"]}), "items"))


@pytest.mark.data
@pytest.mark.skipif("SIDREC_DATA" not in os.environ, reason="SIDREC_DATA is not set")
def test_the_esci_sample_is_what_its_readme_says():
    data = read_search(Path(os.environ["SIDREC_DATA"]) / "esci_us_sample", on_error="skip")
    assert (len(data.queries), len(data.items)) == (100, 6_764)
    assert len(data.judgements.items_J) == 4_452, data.notes
