from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from sidrec import config
from sidrec.data.search import made_search
from sidrec.errors import ConfigError, DataError
from sidrec.recommender import load
from sidrec.search_part import SearchConfig, fit_search

pytest.importorskip("bm25s")
SMALL = {
    "searchers": [
        {"name": "bm25"},
        {"name": "dual_tower", "dim": 8, "hidden": [8], "num_steps": 20, "batch_size": 16,
         "swap_weight": 0.5, "text": {"name": "lsa", "dim": 16}},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def recommender(tiny):
    return load(tiny.run.bundle, device="cpu")


@pytest.fixture(scope="module")
def searching(recommender):
    made = made_search(recommender.items, per_item=2, seed=5)
    settings = config.parse(SearchConfig, SMALL)
    return recommender.with_search(fit_search(recommender.items, settings, made))


def words(recommender, row=0):
    return " ".join(recommender.titles[row].split()[:3])


def test_a_bundle_without_a_search_part_says_how_to_add_one(recommender):
    with pytest.raises(DataError, match="sidrec search-fit"):
        recommender.search("shoe")


@pytest.mark.parametrize("system", [None, "bm25", "dual_tower"])
def test_the_words_of_an_item_find_it(searching, system):
    found = searching.search(searching.titles[7], k=5, system=system)
    assert str(searching.items.item_ids[7]) in found["item_id"].to_list()
    assert found["rank"].to_list() == [1, 2, 3, 4, 5]
    assert found["source"].unique().to_list() == [system or "hybrid"]
    assert (np.diff(found["score"].to_numpy()) <= 0).all()


def test_several_queries_answer_as_each_alone(searching):
    queries = [words(searching, row) for row in (0, 9, 30)]
    together = searching.search(queries, k=4)
    alone = pl.concat([searching.search(query, k=4) for query in queries])
    assert together.select("query", "item_id").equals(alone.select("query", "item_id"))


@pytest.mark.parametrize(
    ("query", "match"), [("", "empty"), ("\x00\n", "empty"), ("a " * 5000, "10,000 characters")]
)
def test_what_is_no_query_is_an_error(searching, query, match):
    with pytest.raises(DataError, match=match):
        searching.search(query)


@pytest.mark.parametrize("query", ["靴", "туфли", "𝔘𝔫𝔨𝔫𝔬𝔴𝔫", "!!! ???"])
def test_a_query_without_a_known_word_has_an_empty_answer(searching, query):
    assert searching.search(query).height == 0


def test_control_characters_do_not_change_the_answer(searching):
    plain, dirty = words(searching), words(searching).replace(" ", "\x07 \u202e")
    assert searching.search(dirty).equals(searching.search(plain))


def test_rules_are_those_of_recommend(searching):
    first = searching.search(words(searching), k=1)["item_id"][0]
    assert first not in searching.search(words(searching), k=60, exclude=[first])["item_id"]
    assert searching.search(words(searching), allow=[first])["item_id"].to_list() == [first]
    assert searching.search(words(searching), where=lambda t: np.zeros(t.height, bool)).height == 0
    with pytest.raises(ConfigError, match="no search system 'lucene'"):
        searching.search("shoe", system="lucene")
    with pytest.raises(ConfigError, match="k must be"):
        searching.search("shoe", k=0)


def test_a_history_reorders_the_answers_and_adds_none(searching, tiny):
    history, query = tiny.run.example_history(), words(searching)
    plain = searching.search(query, k=60)
    moved = searching.search(query, history, k=60)
    assert sorted(plain["item_id"]) == sorted(moved["item_id"])
    assert moved["source"][0] == "hybrid + history"
    part = searching.search_part
    for weight, same in ((0.0, True), (0.9, False)):
        changed = searching.with_search(
            type(part)(searchers=part.searchers, hybrid=part.hybrid, history_weight=weight)
        )
        found = changed.search(query, history, k=60)["item_id"].to_list()
        assert (found == plain["item_id"].to_list()) == same
    assert searching.search(query, [], k=5).equals(searching.search(query, k=5))
    with pytest.raises(DataError, match="not in the catalogue"):
        searching.search(query, ["nothing"])


def test_saved_and_loaded_it_answers_alike(searching, tmp_path):
    searching.save(tmp_path / "bundle")
    again = load(tmp_path / "bundle", device="cpu")
    assert again.search_part.systems == ["hybrid", "bm25", "dual_tower"]
    for system in again.search_part.systems:
        one, other = (r.search(words(r, 3), k=8, system=system) for r in (searching, again))
        assert one.equals(other)


def test_new_items_are_found_at_once(searching):
    table = pl.DataFrame({"item_id": ["new"], "title": [searching.titles[4]]})
    grown = searching.add_items(table)
    assert "new" in grown.search(searching.titles[4], k=5)["item_id"]
    assert searching.search_part.searchers["bm25"].value.num_items == len(searching.items)


def test_weights_are_chosen_on_queries_that_taught_no_searcher(recommender):
    made = made_search(recommender.items, per_item=2, seed=5)
    part = fit_search(recommender.items, config.parse(SearchConfig, SMALL), made)
    assert 0 < part.tuned_on < len(made.queries) / 3
    few = fit_search(recommender.items, config.parse(SearchConfig, SMALL), made.take(np.arange(10)))
    assert (few.tuned_on, few.hybrid.rule) == (0, "reciprocal_rank")


@pytest.fixture(scope="module")
def understanding(recommender):
    settings = config.parse(SearchConfig, {"searchers": ["bm25"], "understanding": {}})
    return recommender.with_search(fit_search(recommender.items, settings))


def typo_of(title):
    """The title with two letters of its longest plain word exchanged."""
    word = max((w for w in title.split() if w.isalpha()), key=len)
    return title.replace(word, word[:2] + word[3] + word[2] + word[4:])


def test_a_misspelt_title_finds_its_item_only_with_understanding(understanding, searching):
    title = max(understanding.titles, key=lambda t: max(map(len, t.split())))
    wrong = typo_of(title)
    item = understanding.items.item_ids[understanding.titles.index(title)]
    assert understanding.understand(wrong).corrected.casefold() == title.casefold()
    word = next(w for w in wrong.split() if w not in title.split())
    assert searching.search(word, system="bm25").height == 0
    assert understanding.search(word).height
    assert item in understanding.search(wrong)["item_id"].to_list()
    with pytest.raises(DataError, match=r"\[understanding\]"):
        searching.understand("shoe")


def test_understanding_is_saved_and_learns_new_items(understanding, tmp_path):
    understanding.save(tmp_path / "bundle")
    again = load(tmp_path / "bundle", device="cpu")
    wrong = typo_of(max(understanding.titles, key=lambda t: max(map(len, t.split()))))
    assert again.understand(wrong).to_dict() == understanding.understand(wrong).to_dict()
    assert again.search(wrong).equals(understanding.search(wrong))
    assert again.understand("zorblaxx").corrected == "zorblaxx"
    table = pl.DataFrame({"item_id": ["n1", "n2"], "title": ["Zorblax one", "Zorblax two"]})
    grown = again.add_items(table)
    assert grown.understand("zorblaxx").corrected == "zorblax"
    assert set(grown.search("zorblaxx")["item_id"]) == {"n1", "n2"}


def test_settings_round_trip_and_impossible_ones_are_refused(tmp_path):
    settings = config.parse(SearchConfig, SMALL)
    path = tmp_path / "search.toml"
    path.write_text(config.to_toml(settings))
    assert config.to_dict(config.load(SearchConfig, path)) == config.to_dict(settings)
    with pytest.raises(ConfigError, match="brand_weight"):
        config.parse(SearchConfig, {"understanding": {"brand_weigth": 1.0}})
    with pytest.raises(ConfigError, match="different names"):
        config.parse(SearchConfig, {"searchers": ["bm25", "bm25"]})
    with pytest.raises(ConfigError, match="history_weight"):
        SearchConfig(history_weight=1.0)
