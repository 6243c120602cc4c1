from __future__ import annotations

import json

import polars as pl
import pytest

from sidrec import cli
from sidrec.recommender import load

pytest.importorskip("bm25s")
RECIPE = """
[[searchers]]
name = "bm25"
stemmer = "none"
"""


@pytest.fixture
def sidrec(capfd):
    """Run one command in this process: (exit code, stdout, stderr)."""

    def call(*words):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        out, err = capfd.readouterr()
        return (0 if stop.value.code is None else stop.value.code), out, err

    return call


@pytest.fixture(scope="module")
def titles(tiny):
    return pl.read_parquet(tiny.folder / "items.parquet")


def test_two_commands_lead_from_a_bundle_to_answers_and_figures(sidrec, tiny, titles, tmp_path):
    bundle, recipe = tmp_path / "searching", tmp_path / "search.toml"
    recipe.write_text(RECIPE)
    code, _, err = sidrec("search", tiny.run_dir, "shoe")
    assert code == 2 and "sidrec search-fit" in err
    code, out, _ = sidrec("search-fit", tiny.run_dir, recipe, "--output", bundle)
    assert code == 0 and "next: sidrec search" in out
    title, item_id = titles["title"][3], titles["item_id"][3]
    code, out, _ = sidrec("search", bundle, title, "--k", 60, "--json")
    assert code == 0 and item_id in [row["item_id"] for row in json.loads(out)]
    code, out, _ = sidrec("search", bundle, "zzzz")
    assert code == 0 and "nothing found" in out

    queries = pl.DataFrame({"query_id": ["good", "bad"], "query": [title, "zzzz"]})
    judged = pl.DataFrame(
        {"query_id": ["good", "bad"], "item_id": [item_id, item_id], "grade": [3, 3]}
    )
    queries.write_parquet(tmp_path / "q.parquet")
    judged.write_parquet(tmp_path / "j.parquet")
    files = ("--queries", tmp_path / "q.parquet", "--judgements", tmp_path / "j.parquet")
    code, out, _ = sidrec("search", bundle, *files, "--json")
    report = json.loads(out)["systems"][0]
    assert (code, report["name"], report["num_queries"]) == (0, "bm25", 2)
    assert [row["query_id"] for row in report["queries"]] == ["bad", "good"]
    assert report["queries"][0]["ndcg@10"] == 0
    code, out, _ = sidrec("search", bundle, *files)
    assert code == 0 and "worst queries first" in out and out.index("zzzz") < out.index(title[:20])


def test_probes_tell_what_cells_of_each_view_find(sidrec, tiny, titles, tmp_path):
    bundle, recipe = tmp_path / "towers", tmp_path / "search.toml"
    tower = '[[searchers]]\nname = "dual_tower"\nnum_steps = 5\n[searchers.index]\nnum_cells = 4\n'
    recipe.write_text(RECIPE + tower)
    assert sidrec("search-fit", tiny.run_dir, recipe, "--output", bundle)[0] == 0
    ids = ["a", "b", "c"]
    pl.DataFrame({"query_id": ids, "query": titles["title"][:3]}).write_parquet(
        tmp_path / "q.parquet"
    )
    pl.DataFrame({"query_id": ids, "item_id": titles["item_id"][:3], "grade": [1] * 3}).write_csv(
        tmp_path / "j.csv"
    )
    files = ("--queries", tmp_path / "q.parquet", "--judgements", tmp_path / "j.csv")
    code, out, _ = sidrec("search", bundle, *files, "--probes", "1, 4", "--json")
    rows = json.loads(out)["probes"]
    assert code == 0 and {row["system"] for row in rows} == {"dual_tower"}
    assert [row["view"] for row in rows[::2]] == ["item", "query", "mean", "union"]
    for one, all_cells in zip(rows[::2], rows[1::2], strict=True):
        assert (one["probes"], all_cells["probes"]) == (1, 4)
        assert one["recall"] <= all_cells["recall"] == 1
        assert one["scored"] < all_cells["scored"]
    code, out, _ = sidrec("search", bundle, *files, "--probes", "1")
    assert code == 0 and "cells of each view" in out
    for words, message in (
        ((*files, "--probes", "0"), "numbers above 0"),
        ((*files, "--probes", "1", "--system", "bm25"), "needs a dual_tower"),
        (("shoe", "--probes", "1"), "needs --queries"),
    ):
        code, _, err = sidrec("search", bundle, *words)
        assert code == 2 and message in err


def test_what_was_understood_is_printed(sidrec, tiny, titles, tmp_path):
    bundle, recipe = tmp_path / "reading", tmp_path / "search.toml"
    recipe.write_text(f"{RECIPE}\n[understanding]\n")
    sidrec("search-fit", tiny.run_dir, recipe, "--output", bundle)
    title = max(titles["title"], key=lambda text: max(map(len, text.split())))
    word = max((w for w in title.split() if w.isalpha()), key=len)
    wrong = word[:2] + word[3] + word[2] + word[4:]
    code, out, _ = sidrec("search", bundle, wrong, "--explain")
    assert code == 0 and f"{wrong.casefold()} -> {word.casefold()}" in out
    code, out, _ = sidrec("search", bundle, wrong, "--explain", "--json")
    said = json.loads(out)
    assert said["understood"]["corrected"] == word.casefold() and said["items"]
    code, _, err = sidrec("search", tiny.run_dir, "shoe", "--explain")
    assert code == 2 and "search-fit" in err


@pytest.fixture(scope="module")
def searching(tiny, tmp_path_factory):
    from sidrec import config
    from sidrec.recommender import load
    from sidrec.search_part import SearchConfig, fit_search

    recommender = load(tiny.run.bundle, device="cpu")
    settings = config.parse(SearchConfig, {"searchers": ["bm25"]})
    path = tmp_path_factory.mktemp("search") / "bundle"
    recommender.with_search(fit_search(recommender.items, settings)).save(path)
    return path


@pytest.mark.parametrize(
    ("query", "expected"),
    [("", "empty"), ("\x07 \u202e", "empty"), ("a " * 5000, "10,000 characters")],
)
def test_what_is_no_query_is_one_line(sidrec, searching, query, expected):
    code, _, err = sidrec("search", searching, query)
    assert code == 2 and expected in err and "Traceback" not in err


def test_odd_queries_have_an_answer(sidrec, searching, titles):
    code, out, _ = sidrec("search", searching, "\u9774")
    assert code == 0 and "nothing found" in out
    title = titles["title"][3]
    plain, dirty = title, title.replace(" ", "\x07\u202e ")
    assert sidrec("search", searching, dirty, "--json") == sidrec(
        "search", searching, plain, "--json"
    )


def judged(folder, queries, judgements):
    pl.DataFrame(queries, schema=["query_id", "query"], orient="row").write_csv(folder / "q.csv")
    names = ["query_id", "item_id", "grade"]
    pl.DataFrame(judgements, schema=names, orient="row").write_csv(folder / "j.csv")
    return "--queries", folder / "q.csv", "--judgements", folder / "j.csv"


def test_faulty_judgements_are_one_line_or_counted(sidrec, searching, titles, tmp_path):
    item, title = titles["item_id"][3], titles["title"][3]
    good = ("1", item, 3)
    for judgements, expected in (
        ([good, ("1", "gone", 3)], "judgements of unknown items"),
        ([good, ("9", item, 3)], "judgements of unknown queries"),
        ([good, ("2", item, 0)], "different grades"),
        ([("1", "gone", 3)], "unknown items"),
    ):
        files = judged(tmp_path, [("1", title), ("2", title.upper())], judgements)
        code, _, err = sidrec("search", searching, *files)
        assert code == 2 and expected in err
        code, out, err = sidrec("search", searching, *files, "--on-error", "skip")
        kept = expected not in ("different grades", "unknown items")
        assert code == (0 if kept else 2) and expected in (out + err if kept else err + expected)


def test_every_judged_query_is_written_worst_first(sidrec, searching, titles, tmp_path):
    item, title = titles["item_id"][3], titles["title"][3]
    files = judged(
        tmp_path,
        [("good", title), ("bad", "=zzzz <b>"), ("none", "qqqq")],
        [("good", item, 3), ("bad", item, 3)],
    )
    for ending in ("csv", "json", "html"):
        code, _, _ = sidrec("search", searching, *files, "--report", tmp_path / f"r.{ending}")
        assert code == 0
    rows = pl.read_csv(tmp_path / "r.csv")
    assert rows["query_id"].to_list() == ["bad", "good", "none"]
    assert rows["query"][0] == "'=zzzz <b>" and rows["ndcg@10"][2] is None
    assert json.loads((tmp_path / "r.json").read_text())[0]["queries"][0]["query_id"] == "bad"
    page = (tmp_path / "r.html").read_text()
    assert "&lt;b&gt;" in page and "<b>" not in page and page.index("zzzz") < page.index("qqqq")
    for words, expected in (
        (("search", searching, *files, "--report", "r.xls"), ".csv, .json, .html"),
        (("search", searching, "shoe", "--report", "r.csv"), "--report needs"),
        (("search", searching, *files, "--explain"), "--explain needs"),
    ):
        code, _, err = sidrec(*words)
        assert code == 2 and expected in err


COLUMNS = ["session_id", "query", "item_id", "clicked", "position"]
GENERATIVE = """
[[searchers]]
name = "generative"
ids = "bundle"
made_per_item = 1
num_steps = 5
judged_steps = 5
batch_size = 8
align = { num_steps = 4, objective = { name = "rad_dpo", window = 4 } }
decoder = { width = 16, num_heads = 2, depth_hidden = 16 }
"""


def test_clicks_teach_and_align_a_searcher_that_writes_the_ids_of_the_bundle(
    sidrec, tiny, titles, tmp_path
):
    bundle, recipe = tmp_path / "generative", tmp_path / "generative.toml"
    recipe.write_text(GENERATIVE)
    rows = [(s, titles["title"][s], titles["item_id"][s + p], p == 2, p) for s in range(4)
            for p in range(3)]  # fmt: skip
    shown = pl.DataFrame(rows, schema=COLUMNS, orient="row")
    shown.write_parquet(tmp_path / "shown.parquet")
    fit = ("search-fit", tiny.run_dir, recipe, "--sessions", tmp_path / "shown.parquet")
    code, out, err = sidrec(*fit, "--output", bundle)
    assert code == 0, err
    code, out, _ = sidrec("search", bundle, titles["title"][3], "--k", 5, "--json")
    found = json.loads(out)
    ids = load(tiny.run.bundle, device="cpu").ids
    assert code == 0 and len(found) == 5 and {row["source"] for row in found} == {"generative"}
    searcher = load(bundle, device="cpu").search_part.searchers["generative"].value
    assert (searcher.ids.codes == ids.codes).all()
    code, _, err = sidrec(*fit, "--data", tmp_path)
    assert code == 2 and "give one of them" in err


def test_mistakes_are_one_line_each(sidrec, tiny, tmp_path):
    for words, expected in (
        (("search", tiny.run_dir), "either a query, or both"),
        (("search", tiny.run_dir, "shoe", "--queries", "q.csv"), "either a query, or both"),
        (("search-fit", tiny.run_dir, "--init"), "--init needs the name"),
        (("search-fit", tiny.run_dir, "--data", tmp_path), "no search data"),
        (("search-fit", tiny.run_dir, "--on-error", "maybe"), "raise or skip"),
    ):
        code, _, err = sidrec(*words)
        assert code == 2 and expected in err, words
    code, _, _ = sidrec("search-fit", tiny.run_dir, tmp_path / "all.toml", "--init")
    assert code == 0 and "swap_weight" in (tmp_path / "all.toml").read_text()
