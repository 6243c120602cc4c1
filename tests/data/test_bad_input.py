"""Bad input: one line that names file, column, count, rows, expected, got and the fix."""

import polars as pl
import pytest

from sidrec.data import read
from sidrec.errors import ConfigError, DataError

HEADER = "user_id,item_id,timestamp\n"
GOOD = "a,x,1600000000\na,y,1600000001\nb,x,1600000002\n"


def attempt(tmp_path, content, name="events.csv", **arguments):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read(path, **arguments)


CASES = {
    "empty file": ("", r"events\.csv is empty"),
    "blank file": ("\n \n", r"events\.csv is empty"),
    "header only": (HEADER, r"events\.csv holds no usable rows \(a header but no rows\)"),
    "no header": (GOOD, r"no column for the user.*got \['a', 'x', '1600000000'\].*add a header"),
    "missing column": ("user_id,what\na,x\n", r"no column for the item.*got \['user_id', 'what'\]"),
    "null user": (HEADER + GOOD + ",x,1\n", r"'user_id': 1 of 4 rows hold no id \(row 4\)"),
    "blank item": (HEADER + "a, ,5\n" + GOOD, r"'item_id': 1 of 4 rows hold no id \(row 1\)"),
    "short row": (HEADER + GOOD + "c\n", r"'item_id': 1 of 4 rows hold no id \(row 4\)"),
    "null times": (
        HEADER + "a,x,\n" * 5 + GOOD,
        r"'timestamp': 5 of 8 rows hold no time \(rows 1, 2, 3, …\).*expected ISO.*null.*fill",
    ),
    "NaN time": (HEADER + GOOD + "c,x,nan\n", r"'timestamp': 1 of 4 rows hold no time \(row 4\)"),
    "wrong type": (
        HEADER + GOOD + "c,x,yesterday\n",
        r"'timestamp': 1 of 4 rows hold no readable time \(row 4\).*got \['yesterday'\]",
    ),
    "impossible date": (
        HEADER + "a,x,2024-01-30\nb,y,2024-02-30\n",
        r"1 of 2 rows hold no readable time \(row 2\).*2024-02-30",
    ),
    "mixed units": (
        HEADER + GOOD + "c,x,1600000000000\n",
        r"'timestamp': 1 of 4 rows are in another unit \(row 4\); expected epoch seconds",
    ),
    "too many cells": (HEADER + GOOD + "c,x,1,2\n", r"1 rows cannot be split into 3 .*\(row 4\)"),
    "open quote": (HEADER + GOOD + 'c,"x,1\n', r"events\.csv: some rows cannot be split"),
    "one user": (HEADER + "a,x,1\na,y,2\n", r"every row belongs to one user \('a'\).*at least two"),
    "one item": (HEADER + "a,x,1\nb,x,2\n", r"every row belongs to one item \('x'\).*at least two"),
    "not UTF-8": (
        (HEADER + GOOD).encode() + "c,café,5\n".encode("latin-1"),
        r"1 lines are not utf-8 \(row 4\).*byte 0xe9; pass encoding='latin-1'",
    ),
    "UTF-16": ((HEADER + GOOD).encode("utf-16"), r"is UTF-16; expected UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_tables_get_one_line_that_says_what_and_where(tmp_path, case):
    content, expected = CASES[case]
    with pytest.raises(DataError, match=expected) as caught:
        attempt(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert "events.csv" in str(caught.value)


SKIPPABLE = {
    "null user": ",x,1\n",
    "null time": "c,x,\n",
    "wrong type": "c,x,yesterday\n",
    "mixed units": "c,x,1600000000000\n",
    "too many cells": "c,x,1,2\n",
    "not UTF-8": b"c,caf\xe9,5\n",
}


@pytest.mark.parametrize("case", SKIPPABLE)
def test_skip_drops_exactly_the_bad_rows_and_counts_them(tmp_path, case):
    bad = SKIPPABLE[case]
    bad = bad if isinstance(bad, bytes) else bad.encode()
    content = HEADER.encode() + bad + GOOD.encode() + bad
    dataset = attempt(tmp_path, content, on_error="skip")
    assert len(dataset.interactions) == 3
    assert dataset.interactions.user_ids.tolist() == ["a", "b"]  # c has no row left
    dropped = [note for note in dataset.notes if "dropped" in note]
    assert len(dropped) == 1 and " 2 " in dropped[0]
    assert dataset.content_hash == attempt(tmp_path, HEADER + GOOD).content_hash


def test_rows_keep_their_numbers_after_broken_ones_were_dropped(tmp_path):
    content = HEADER + "a,x,1,1,1\n" + GOOD + ",x,5\n"
    notes = attempt(tmp_path, content, on_error="skip").notes
    assert any("too many columns (row 1)" in note for note in notes)
    assert any("hold no id (row 5)" in note for note in notes)


def test_nothing_usable_is_an_error_even_when_skipping(tmp_path):
    with pytest.raises(DataError, match=r"no usable rows \(dropped.*2 of 2 rows hold no id"):
        attempt(tmp_path, HEADER + ",x,1\n,y,2\n", on_error="skip")


def test_unknown_items_are_counted_with_rows_and_can_be_skipped():
    events = pl.DataFrame({"user": ["a", "b", "b", "a"], "item": ["x", "q", "y", "r"]})
    items = pl.DataFrame({"item": ["x", "y"]})
    with pytest.raises(
        DataError,
        match=r"2 of 4 rows name items that items lacks \(rows 2, 4\).*2 unknown ids, e.g. "
        r"\['q', 'r'\]; add them to the items table",
    ):
        read(events, items)
    dataset = read(events, items, on_error="skip")
    assert len(dataset.interactions) == 2
    assert any("dropped" in note and "2 of 4" in note for note in dataset.notes)


def test_repeated_item_rows_raise_or_the_first_one_stays():
    events = pl.DataFrame({"user": ["a", "b"], "item": ["x", "y"]})
    items = pl.DataFrame({"item": ["x", "y", "x", "x"], "title": ["one", "two", "three", "four"]})
    with pytest.raises(
        DataError, match=r"items, column 'item': 2 of 4 rows repeat .*\(rows 3, 4\)"
    ):
        read(events, items)
    assert read(events, items, on_error="skip").items.titles() == ["one", "two"]


def test_missing_item_ids_in_the_catalogue_are_named_before_repeats():
    events = pl.DataFrame({"user": ["a", "b"], "item": ["x", "y"]})
    items = pl.DataFrame({"item": ["x", None, "y", None]})
    with pytest.raises(DataError, match=r"2 of 4 rows hold no id \(rows 2, 4\)"):
        read(events, items)
    assert read(events, items, on_error="skip").items.item_ids.tolist() == ["x", "y"]


def test_repeated_events_are_reported_and_kept_unless_skipping():
    rows = [("a", "x", 5), ("b", "y", 5), ("a", "y", 5), ("a", "x", 5), ("a", "x", 6)]
    events = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    dataset = read(events)
    assert len(dataset.interactions) == 5
    assert any("1 rows repeat" in note and "(row 4): kept" in note for note in dataset.notes)
    dataset = read(events, on_error="skip")
    assert len(dataset.interactions) == 4
    assert dataset.items.item_ids[dataset.interactions.items_E].tolist() == ["x", "y", "x", "y"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.5, 2.0, 3.0], r"'user': 1 of 3 rows hold a fraction \(row 1\)"),
        ([1.0, float("nan"), 3.0], r"'user': 1 of 3 rows hold no id \(row 2\)"),
        ([None, None, None], r"'user': 3 of 3 rows hold no id"),
        ([[1], [2], [3]], r"expected ids as text or whole numbers, got List"),
        ([True, False, True], r"expected ids as text or whole numbers, got Boolean"),
    ],
)
def test_ids_of_a_wrong_type_are_refused(values, expected):
    events = pl.DataFrame({"user": values, "item": ["x", "y", "x"]})
    with pytest.raises(DataError, match=expected):
        read(events)


@pytest.mark.parametrize("weight", [None, float("nan"), float("inf"), "much"])
def test_weights_must_be_finite_numbers(weight):
    weights = pl.Series(["1", "2", str(weight) if weight is not None else None])
    events = pl.DataFrame({"user": ["a", "b", "b"], "item": ["x", "y", "x"], "rating": weights})
    with pytest.raises(DataError, match=r"'rating': 1 of 3 rows hold no usable number \(row 3\)"):
        read(events)
    assert read(events, mapping={"weight": None}).interactions.weights_E is None


def test_propensities_must_be_probabilities_above_zero():
    events = pl.DataFrame({"user": ["a", "b"], "item": ["x", "y"], "propensity": [0.5, 0.0]})
    with pytest.raises(DataError, match=r"numbers in \(0, 1\], got \[0.0\]"):
        read(events)


def test_broken_json_lines_are_named_and_can_be_skipped(tmp_path):
    good = '{"user": "a", "item": "x"}\n{"user": "b", "item": "y"}\n'
    content = good + "not json\n\n[1]\n"
    with pytest.raises(DataError, match=r"2 rows are not JSON objects \(rows 3, 4\)"):
        attempt(tmp_path, content, "events.jsonl")
    dataset = attempt(tmp_path, content, "events.jsonl", on_error="skip")
    assert len(dataset.interactions) == 2


def test_damaged_files_are_named_without_a_traceback(tmp_path):
    for name in ("events.parquet", "events.csv.gz"):
        content = b"PAR1 nonsense" if name.endswith("parquet") else b"\x1f\x8b broken"
        with pytest.raises(DataError, match=rf"{name} cannot be read"):
            attempt(tmp_path, content, name)
    with pytest.raises(DataError, match=r"events.parquet is empty"):
        attempt(tmp_path, b"", "events.parquet")
    good = tmp_path / "good.parquet"
    pl.DataFrame({"user": ["a"] * 9999, "item": range(9999)}).write_parquet(good)
    content = bytearray(good.read_bytes())
    content[100:4000] = bytes(3900)
    with pytest.raises(DataError, match=r"cut.parquet cannot be read"):
        attempt(tmp_path, bytes(content), "cut.parquet")


def test_paths_layouts_and_arguments_are_checked(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv does not exist"):
        read(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r"holds no interactions; expected interactions\.parquet"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"expected a path or a polars frame, got list"):
        read([1, 2])
    with pytest.raises(ConfigError, match="no layout 'excel'"):
        read(tmp_path, layout="excel")
    with pytest.raises(ConfigError, match="on_error must be"):
        read(tmp_path, on_error="ignore")


def test_sequence_lines_without_items_raise_or_are_skipped(tmp_path):
    content = "u1 1 2\nu2\nu3 2 1\n"
    with pytest.raises(DataError, match=r"1 of 3 lines hold a user without items \(row 2\)"):
        attempt(tmp_path, content, "sequences.txt", layout="sequences")
    dataset = attempt(tmp_path, content, "sequences.txt", layout="sequences", on_error="skip")
    assert dataset.interactions.user_ids.tolist() == ["u1", "u3"]


def test_items_without_text_and_with_equal_text_are_read():
    events = pl.DataFrame({"user": ["a", "b", "b"], "item": ["x", "y", "z"]})
    items = pl.DataFrame({"item": ["x", "y", "z"], "title": [None, "same", "same"]})
    assert read(events, items).items.texts() == ["", "same", "same"]
