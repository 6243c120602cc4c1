"""Every layout gives the same events; ids and times survive whatever form they came in."""

import gzip
import json

import numpy as np
import polars as pl
import pytest

from sidrec.data import read
from sidrec.errors import ConfigError, DataError

ROWS = [  # user, item, epoch seconds; deliberately out of order, with one tie (b: z before y)
    ("b", "z", 1_600_000_300),
    ("a", "x", 1_600_000_200),
    ("a", "y", 1_600_000_100),
    ("b", "y", 1_600_000_300),
    ("b", "x", 1_600_000_000),
]
EXPECTED = {"b": ["x", "z", "y"], "a": ["y", "x"]}


def frame(rows=ROWS, names=("user_id", "item_id", "timestamp")):
    return pl.DataFrame(rows, schema=list(names), orient="row")


def sequences(dataset):
    """user id -> item ids, oldest first."""
    events, ids = dataset.interactions, dataset.items.item_ids
    pairs = zip(events.user_ids, range(len(events.user_ids)), strict=True)
    return {user: [str(i) for i in ids[events.histories[row]]] for user, row in pairs}


def write(path, text, encoding="utf-8"):
    content = text.encode(encoding)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def csv_text(separator=",", header=("user_id", "item_id", "timestamp")):
    return "\n".join(separator.join(map(str, row)) for row in [header, *ROWS]) + "\n"


def json_text(names=("user_id", "item_id", "timestamp"), scale=1):
    rows = [dict(zip(names, (u, i, t * scale), strict=True)) for u, i, t in ROWS]
    return "\n".join(json.dumps(row) for row in rows)


LAYOUTS = {
    "events.csv": csv_text(),
    "events.csv.gz": csv_text(),
    "events.tsv": csv_text("\t"),
    "semicolons.csv": csv_text(";"),
    "crlf.csv": csv_text().replace("\n", "\r\n"),
    "bom.csv": "\ufeff" + csv_text(),
    "events.jsonl": json_text(),
    "events.jsonl.gz": json_text(),
    "bom.jsonl": "\ufeff" + json_text(),
    "bom.inter": "\ufeff" + csv_text("\t", ("user_id:token", "item_id:token", "timestamp:float")),
    "crlf.jsonl": json_text().replace("\n", "\r\n"),
    "array.json": "[" + json_text().replace("\n", ",") + "]",
    "atomic.inter": csv_text("\t", ("user_id:token", "item_id:token", "timestamp:float")),
    "reviews_2014.json.gz": json_text(("reviewerID", "asin", "unixReviewTime")),
    "reviews_2023.jsonl": json_text(("user_id", "parent_asin", "timestamp"), 1000),
    "ratings.csv": csv_text(header=("userId", "movieId", "timestamp")),
    "ratings.dat": "\n".join(f"{u}::{i}::4::{t}" for u, i, t in ROWS),
    "u.data": "\n".join(f"{u}\t{i}\t4\t{t}" for u, i, t in ROWS),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_sequences_and_times(tmp_path, name):
    dataset = read(write(tmp_path / name, LAYOUTS[name]))
    assert sequences(dataset) == EXPECTED
    assert dataset.interactions.has_clock
    assert dataset.interactions.times_E[-1] == 1_600_000_200_000_000


def test_parquet_and_a_frame_give_the_same_dataset(tmp_path):
    frame().write_parquet(tmp_path / "events.parquet")
    from_file, from_frame = read(tmp_path / "events.parquet"), read(frame())
    assert sequences(from_file) == EXPECTED
    assert from_file.content_hash == from_frame.content_hash


def test_per_user_sequence_files_keep_their_order(tmp_path):
    path = write(tmp_path / "Beauty.txt", "u1 9 8 7\nu2 7 9\n")
    dataset = read(path)
    assert sequences(dataset) == {"u1": ["9", "8", "7"], "u2": ["7", "9"]}
    assert not dataset.interactions.has_clock
    assert dataset.interactions.times_E.tolist() == [0, 1, 2, 0, 1]
    assert any("'sequences', guessed" in note for note in dataset.notes)


def test_a_list_of_events_is_not_taken_for_a_sequence_file(tmp_path):
    path = write(tmp_path / "events.txt", "u1 9 5\nu1 8 3\nu2 7 1\n")
    with pytest.raises(DataError, match=r"repeat the user of an earlier line \(row 2\).*csv"):
        read(path)


@pytest.mark.parametrize(
    ("values", "meaning"),
    [
        ([1_600_000_000, 1_600_000_001, 1_600_000_002], "epoch seconds"),
        ([1_600_000_000.0, 1_600_000_001.0, 1_600_000_002.0], "epoch seconds"),
        (["1600000000", "1600000001", "1600000002"], "epoch seconds"),
        ([1_600_000_000_000, 1_600_000_001_000, 1_600_000_002_000], "epoch milliseconds"),
        ([1_600_000_000_000_000 + s * 1_000_000 for s in range(3)], "epoch microseconds"),
        ([(1_600_000_000 + s) * 10**9 for s in range(3)], "epoch nanoseconds"),
        (["2020-09-13T12:26:40Z", "2020-09-13 12:26:41", "2020-09-13T14:26:42.000+02:00"], "ISO"),
        (["2020-09-13 12:26:40 UTC", "2020-09-13T12:26:41+0000", "2020-09-13 12:26:42 +00"], "ISO"),
    ],
)
def test_the_unit_of_times_is_guessed_and_written_down(values, meaning):
    rows = frame().head(3).with_columns(pl.Series("timestamp", values))
    dataset = read(rows)
    times = np.sort(dataset.interactions.times_E)
    np.testing.assert_array_equal(times, 1_600_000_000_000_000 + np.arange(3) * 1_000_000)
    assert any(meaning in note for note in dataset.notes)


def test_dates_datetimes_and_zones_are_read_as_utc():
    local = pl.Series(["2020-09-13T14:26:40"] * 3).str.to_datetime()
    berlin = local.dt.replace_time_zone("Europe/Berlin")
    for series in (berlin, berlin.dt.cast_time_unit("ns"), berlin.dt.cast_time_unit("ms")):
        dataset = read(frame().head(3).with_columns(series.alias("timestamp")))
        assert set(dataset.interactions.times_E.tolist()) == {1_600_000_000_000_000}
    days = read(frame().head(3).with_columns(local.dt.date().alias("timestamp")))
    assert set(days.interactions.times_E.tolist()) == {1_599_955_200_000_000}


def test_small_numbers_count_as_seconds_and_keep_their_order():
    dataset = read(frame([("a", "x", 2), ("a", "y", 1), ("b", "x", 0)]))
    assert sequences(dataset)["a"] == ["y", "x"]
    assert any("plain numbers" in note for note in dataset.notes)


def test_position_orders_events_where_there_is_no_time():
    rows = frame([("a", "x", 7), ("a", "y", 3), ("b", "x", 0)], ("user", "item", "position"))
    dataset = read(rows)
    assert sequences(dataset)["a"] == ["y", "x"]
    assert not dataset.interactions.has_clock
    assert dataset.interactions.times_E.tolist() == [0, 1, 0]


def test_without_time_or_position_file_order_counts_and_the_notes_say_so():
    dataset = read(frame([("a", "y"), ("b", "x"), ("a", "x")], ("user", "item")))
    assert sequences(dataset)["a"] == ["y", "x"]
    assert any("oldest first" in note for note in dataset.notes)


STRANGE = [
    "a/b",
    "../up",
    "two words",
    "🎁",
    "مرحبا",
    "007",
    "7",
    "a,b",
    'say "hi"',
    "null",
    "NaN",
    "-1",
]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_strange_ids_come_back_unchanged(tmp_path, suffix):
    rows = frame([(u, i, 1_600_000_000) for u in STRANGE for i in STRANGE])
    path = tmp_path / f"events.{suffix}"
    {"csv": rows.write_csv, "jsonl": rows.write_ndjson, "parquet": rows.write_parquet}[suffix](path)
    dataset = read(path)
    assert sorted(dataset.items.item_ids) == sorted(STRANGE)
    assert sequences(dataset) == dict.fromkeys(STRANGE, STRANGE)


def test_whole_number_ids_keep_their_digits_in_every_numeric_type(tmp_path):
    big = 9_007_199_254_740_993  # not a float64
    rows = frame([(big, 1.0, 0), (2, 2.0, 0)])
    dataset = read(rows)
    assert dataset.interactions.user_ids.tolist() == [str(big), "2"]
    assert dataset.items.item_ids.tolist() == ["1", "2"]


def test_mapping_names_columns_by_role_and_none_leaves_one_out():
    rows = frame().rename({"user_id": "who", "item_id": "sku_code", "timestamp": "when"})
    dataset = read(rows, mapping={"user": "who", "item": "sku_code", "time": "when"})
    assert sequences(dataset) == EXPECTED
    untimed = read(frame(), mapping={"time": None})
    assert not untimed.interactions.has_clock
    with pytest.raises(ConfigError, match=r"no role 'usr'.*did you mean 'user'"):
        read(rows, mapping={"usr": "who"})
    with pytest.raises(DataError, match=r"no column 'whom'.*did you mean 'who'"):
        read(rows, mapping={"user": "whom"})
    with pytest.raises(DataError, match="no column 'sku'"):
        read(frame(), mapping={"item": "sku"})  # item_id is there, but it was not asked for
    with pytest.raises(DataError, match="'who' is mapped to more than one role"):
        read(rows, mapping={"user": "who", "item": "who"})


def test_a_column_called_id_is_the_item_in_an_items_table_only():
    events = frame().with_columns(id=pl.int_range(5)).rename({"item_id": "sku"})
    items = pl.DataFrame({"id": ["x", "y", "z"]})
    assert sequences(read(events, items, mapping={"item": "sku"})) == EXPECTED
    with pytest.raises(DataError, match="no column for the item"):
        read(events.drop("sku"))


def test_items_table_gives_order_text_and_items_never_seen(tmp_path):
    path = write(
        tmp_path / "items.csv",
        "sku,name,price,zip,category\ny,Why,1.5,01234,a\nx,Ex,2,99999,b\nw,Double,3,12345,c\nz,Zed,,1,d\n",
    )
    dataset = read(frame(), path)
    assert dataset.items.item_ids.tolist() == ["y", "x", "w", "z"]
    assert dataset.items.titles() == ["Why", "Ex", "Double", "Zed"]
    attributes = dataset.items.attributes
    assert attributes["price"].to_list() == [1.5, 2.0, 3.0, None]
    assert attributes["zip"].to_list() == ["01234", "99999", "12345", "1"]
    assert attributes["categories"].to_list() == ["a", "b", "c", "d"]
    assert sequences(dataset) == EXPECTED


def test_weights_event_types_and_propensities_follow_their_events():
    rows = frame().with_columns(
        rating=pl.Series([1, 2, 3, 4, 5]),
        event_type=pl.Series(["buy", "view", "view", None, "buy"]),
        propensity=pl.Series([0.1, 0.2, 0.3, 0.4, 1.0]),
    )
    events = read(rows).interactions
    assert events.weights_E.tolist() == [5, 1, 4, 3, 2]
    assert events.events_E.tolist() == ["buy", "buy", "", "view", "view"]
    np.testing.assert_allclose(events.propensities_E, [1.0, 0.1, 0.4, 0.3, 0.2])


def test_amazon_metadata_of_2014_and_2023_become_clean_items(tmp_path):
    old = (
        "{'asin': 'x', 'title': 'Tom &amp; Jerry', 'price': 9.5, 'brand': 'It\\'s', "
        "'categories': [['Beauty', 'Nails'], ['Beauty', 'Gifts']], "
        "'description': 'a <b>bold</b> one'}"
    )
    new = {"parent_asin": "y", "title": "T", "store": "S", "categories": ["A", "B"],
           "description": ["one", "two"], "price": "$1,299.00"}  # fmt: skip
    meta = write(tmp_path / "meta.json.gz", old + "\n" + json.dumps(new) + "\n" + '{"asin": "z"}')
    items = read(frame(), meta, layout="auto").items
    assert items.item_ids.tolist() == ["x", "y", "z"]
    assert items.attributes.row(0) == (
        "Tom & Jerry",
        "It's",
        ["Beauty", "Nails", "Gifts"],
        "a bold one",
        9.5,
    )
    assert items.attributes.row(1) == ("T", "S", ["A", "B"], "one two", 1299.0)
    assert items.texts()[2] == ""


def test_reviews_of_2023_name_the_parent_and_not_the_variant(tmp_path):
    rows = [{"user_id": u, "asin": f"variant-{i}", "parent_asin": i, "timestamp": t * 1000,
             "rating": 4.0} for u, i, t in ROWS]  # fmt: skip
    path = write(tmp_path / "reviews.jsonl", "\n".join(map(json.dumps, rows)))
    assert sequences(read(path)) == EXPECTED


def test_movielens_folders_are_found_with_titles_years_and_genres(tmp_path):
    write(tmp_path / "ratings.dat", "1::10::5::978300760\n2::20::3::978300761\n")
    write(
        tmp_path / "movies.dat", "10::Café: Première (1995)::Drama|War\n20::B::Comedy\n", "latin-1"
    )
    dataset = read(tmp_path)
    assert dataset.items.attributes.rows() == [
        ("Café: Première (1995)", 1995, ["Drama", "War"]),
        ("B", None, ["Comedy"]),
    ]
    assert dataset.interactions.weights_E.tolist() == [5, 3]
    old = tmp_path / "old"
    old.mkdir()
    write(old / "u.data", "1\t10\t5\t978300760\n2\t20\t3\t978300761\n")
    flags = "|".join(["0", "0", "0", "1", "0", "1", *["0"] * 13])
    write(old / "u.item", f"10|Café (1995)|01-Jan-1995||u|{flags}\n20|B|||u|{flags}\n", "latin-1")
    assert read(old).items.attributes["genres"].to_list()[0] == ["Animation", "Comedy"]


def test_recbole_item_files_split_token_sequences(tmp_path):
    write(tmp_path / "toy.inter", LAYOUTS["atomic.inter"])
    write(
        tmp_path / "toy.item",
        'item_id:token\ttitle:token_seq\tprice:float\nx\t12" disc\t1\ny\tred hat\t2.5\nz\t\t\n',
    )
    items = read(tmp_path).items
    assert items.attributes["title"].to_list()[:2] == [['12"', "disc"], ["red", "hat"]]
    assert items.attributes["price"].to_list() == [1.0, 2.5, None]


def test_the_content_hash_moves_with_any_event_or_text_and_with_nothing_else():
    base = read(frame())
    assert read(frame(), name="other").content_hash == base.content_hash
    swapped = frame([*ROWS[:3], ("b", "x", 1_600_000_300), ("b", "y", 1_600_000_000)])
    later = frame([*ROWS[:4], ("b", "x", 1_600_000_001)])
    named = pl.DataFrame({"item_id": ["x", "y", "z"], "title": ["red hat", "blue hat", "coat"]})
    tables = (swapped, later)
    texts = (named, named.with_columns(pl.col("title").str.to_uppercase()))
    hashes = {base.content_hash, *(read(table).content_hash for table in tables)}
    hashes |= {read(frame(), text).content_hash for text in texts}
    assert len(hashes) == 5
    priced = named.with_columns(price=pl.lit(2.5))
    assert read(frame(), priced).content_hash in hashes
    same_on_every_machine = "7bd52f7c694b1a031ad99a974aef08f6aeb3206a214b078ab7e1c436f13f2945"
    assert base.content_hash == same_on_every_machine
