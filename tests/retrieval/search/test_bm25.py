from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from sidrec.errors import ConfigError, DataError, MissingExtra
from sidrec.retrieval.search import bm25 as module
from sidrec.retrieval.search.asking import best, opinion_of
from sidrec.retrieval.search.bm25 import Bm25, Bm25Config, words_of
from sidrec.types import Items, as_ids

pytest.importorskip("bm25s")
TITLES = ["red running shoes", "blue shoe", "shoe shoe shoe rack", "steel kettle", None]


def items(titles=TITLES):
    return Items(as_ids(range(len(titles))), pl.DataFrame({"title": titles}))


def naive(titles, query, k1, b):
    """The formula, item by item."""
    found = [words_of(title or "", module.without_plural) for title in titles]
    mean = sum(map(len, found)) / len(found)
    scores = []
    for words in found:
        total, counts = 0.0, Counter(words)
        for word in words_of(query, module.without_plural):
            df = sum(word in other for other in found)
            idf = math.log(1 + (len(found) - df + 0.5) / (df + 0.5))
            tf = counts[word]
            total += tf and idf * tf / (tf + k1 * (1 - b + b * len(words) / mean))
        scores.append(total or -math.inf)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.0), (2.0, 1.0)])
@pytest.mark.parametrize("query", ["shoes", "Red SHOE kettle", "shoe shoe", "unknown"])
def test_scores_are_those_of_the_formula(k1, b, query):
    index = Bm25.fit(items(), Bm25Config(k1=k1, b=b))
    np.testing.assert_allclose(index.scores([query])[0], naive(TITLES, query, k1, b), rtol=1e-5)


def test_what_shares_no_word_is_no_answer():
    found = best(Bm25.fit(items(), Bm25Config()).ask(["kettle", "zzz", "!?"], 5), 3)
    assert found.rows_BK.tolist() == [[3, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert np.isneginf(found.scores_BK[1:]).all()


def test_rules_leave_items_out_and_the_pool_bounds_the_list():
    index = Bm25.fit(items(), Bm25Config())
    keep_N = np.array([True, False, True, True, True])
    assert set(index.ask(["shoe"], 5, keep_N).rows_BK[0].tolist()) == {2, 0, -1}
    assert index.ask(["shoe"], 1).rows_BK.tolist() == [[2]]


def test_an_opinion_scores_any_item_not_only_its_own():
    index = Bm25.fit(items(), Bm25Config())
    opinion = index.ask(["shoe"], 1)
    torch.testing.assert_close(
        opinion.log_probs(torch.arange(5)[None]), index.scores(["shoe"]).double()
    )


@pytest.mark.parametrize("seed", range(4))
def test_asking_looks_at_few_items_and_answers_as_if_at_all(seed):
    random = np.random.default_rng(seed)
    words = [f"w{n}" for n in range(12)]
    titles = [" ".join(random.choice(words, random.integers(0, 6))) for _ in range(90)]
    index = Bm25.fit(items(titles), Bm25Config())
    asked = [" ".join(random.choice([*words, "new"], random.integers(1, 5))) for _ in range(20)]
    for keep_N in (None, random.random(90) < 0.5):
        for pool in (1, 7, 90, 200):  # repeated titles tie
            fast, plain = (
                index.ask(asked, pool, keep_N),
                opinion_of(index.scores(asked), pool, keep_N),
            )
            assert fast.rows_BK.tolist() == plain.rows_BK.tolist()
            some = torch.from_numpy(random.integers(0, 90, (20, 30)))
            torch.testing.assert_close(fast.log_probs(some), plain.log_probs(some))


def test_scripts_without_spaces_match_by_character_and_others_by_word():
    index = Bm25.fit(items(["красные туфли", "赤い靴", "ผ้าพันคอ", "chaussures"]), Bm25Config())
    found = best(index.ask(["туфли", "靴", "ผ้า", "ТУФЛИ красные"], 4), 1)
    assert found.rows_BK[:, 0].tolist() == [0, 1, 2, 0]


def test_a_catalogue_that_grew_is_indexed_as_if_it_had_always_been_whole():
    grown = Bm25.fit(items(TITLES[:3]), Bm25Config()).with_items(items())
    whole = Bm25.fit(items(), Bm25Config())
    torch.testing.assert_close(grown.scores(["shoe kettle"]), whole.scores(["shoe kettle"]))


def test_chosen_columns_are_read_and_missing_ones_named():
    table = pl.DataFrame({"title": ["shoe", "hat"], "tags": [["red", "soft"], None]})
    catalogue = Items(as_ids("ab"), table)
    index = Bm25.fit(catalogue, Bm25Config(columns=("tags",)))
    assert index.words == ("red", "soft")
    with pytest.raises(DataError, match="colour"):
        Bm25.fit(catalogue, Bm25Config(columns=("colour",)))
    with pytest.raises(DataError, match="has text"):
        Bm25.fit(items([None, ""]), Bm25Config())


def test_stemmers_join_forms_of_a_word_and_unknown_ones_are_refused():
    pytest.importorskip("Stemmer")
    plain, plural, english = (
        Bm25.fit(items(["running shoes"]), Bm25Config(stemmer=name)).words
        for name in ("none", "plural", "english")
    )
    assert (plain, plural) == (("running", "shoes"), ("running", "shoe"))
    assert english == ("run", "shoe")
    with pytest.raises(ConfigError, match="klingon"):
        Bm25Config(stemmer="klingon")


def test_a_missing_package_names_the_extra(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(module.importlib, "import_module", missing)
    with pytest.raises(MissingExtra, match=r"sidrec\[search\]"):
        Bm25.fit(items(), Bm25Config())
    with pytest.raises(MissingExtra, match="PyStemmer"):
        module.stemmer("english")


@pytest.mark.data
@pytest.mark.skipif("SIDREC_DATA" not in os.environ, reason="SIDREC_DATA is not set")
def test_esci_gives_the_figures_its_readme_names():
    from sidrec.data.search import read_search
    from sidrec.evaluation.search import per_query_values

    data = read_search(Path(os.environ["SIDREC_DATA"]) / "esci_us_sample")
    index = Bm25.fit(data.items, Bm25Config(stemmer="none", columns=("title", "brand")))
    found = best(index.ask(data.queries.texts, 10), 10)
    values = per_query_values(found.rows_BK, data.judgements, recall_ks=(10,))
    assert values["ndcg@10"].mean() == pytest.approx(0.619, abs=0.005)
    assert np.nanmean(values["mrr"]) == pytest.approx(0.748, abs=0.005)
