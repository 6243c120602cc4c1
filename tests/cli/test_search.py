from __future__ import annotations

import json

import polars as pl
import pytest

from sidrec import cli

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
