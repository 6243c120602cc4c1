from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from tests.conftest import RECIPE, taught

from sidrec import pipeline, recipe
from sidrec.errors import ConfigError, DataError
from sidrec.recommender import load
from sidrec.testing import searchers
from sidrec.testing.tiny_catalogue import tiny_context

JOINT = """
[[scorers]]
name = "popularity"
[[scorers]]
name = "unicorn"
width = 16
num_negatives = 32
[scorers.train]
epochs = 3
batch_positions = 128
"""


@pytest.fixture(scope="module")
def bundle(tiny, tmp_path_factory):
    """A bundle whose generator and scorer both answer queries, written by a recipe and read."""
    text = RECIPE.format(folder=tiny.folder)
    text = text.replace('name = "causal"', 'name = "joint"')
    text = text[: text.index("[[scorers]]")] + JOINT + "[hybrid]\nmembers = []\n"
    folder = tmp_path_factory.mktemp("joint")
    (folder / "joint.toml").write_text(text)
    run = pipeline.run(
        recipe.load_config(folder / "joint.toml"), run_dir=folder / "run", evaluate=False
    )
    return load(run.bundle, device="cpu")


def words(bundle, row=0):
    return " ".join(bundle.titles[row].split()[:3])


@pytest.mark.parametrize("system", ["unicorn", "joint"])
def test_a_bundle_of_joint_models_searches_and_recommends_without_a_search_part(bundle, system):
    found = bundle.search(words(bundle), k=6, system=system)
    assert found.height == 6 and found["source"].unique().to_list() == [system]
    assert (np.diff(found["score"].to_numpy()) <= 1e-6).all()
    history = [str(bundle.items.item_ids[row]) for row in (3, 9)]
    assert bundle.recommend(history, k=4, system=system).height == 4


def test_the_scorer_answers_by_default_and_says_that_it_read_the_history(bundle):
    history = [str(bundle.items.item_ids[row]) for row in (3, 9)]
    assert bundle.search(words(bundle))["source"][0] == "unicorn"
    known = bundle.search(words(bundle), history, k=20)
    assert known["source"][0] == "unicorn + history"
    assert known["score"].to_list() != bundle.search(words(bundle), k=20)["score"].to_list()


@pytest.mark.parametrize("system", ["unicorn", "joint"])
def test_rules_and_unknown_words_hold(bundle, system):
    first = bundle.search(words(bundle), k=1, system=system)["item_id"][0]
    others = bundle.search(words(bundle), k=10, system=system, exclude=[first])
    assert others.height == 10 and first not in others["item_id"].to_list()
    assert bundle.search("qqqq zzzz", system=system).height == 0


def test_the_list_of_a_generator_is_scored_as_its_whole_catalogue_is(bundle):
    from sidrec.joint_search import own_searchers

    opinion = own_searchers(bundle)["joint"].value.ask([words(bundle)], 60)
    rows_BK = opinion.rows_BK[:, :8]
    again = opinion.log_probs(rows_BK)
    listed = opinion.log_probs(opinion.rows_BK.clamp_min(0))[:, :8]
    torch.testing.assert_close(again, listed, rtol=1e-4, atol=1e-4)


def test_similar_items_by_the_scorer(bundle):
    asked = str(bundle.items.item_ids[5])
    found = bundle.similar(asked, 7, system="unicorn")
    assert found.height == 7 and asked not in found["item_id"].to_list()
    assert (np.diff(found["similarity"].to_numpy()) <= 0).all()
    scores = bundle.scorers["unicorn"].value.similar_scores(torch.tensor([5]))[0]
    rows = bundle.items.rows(found["item_id"].to_list())
    np.testing.assert_allclose(found["similarity"].to_numpy(), scores[torch.from_numpy(rows)])
    with pytest.raises(ConfigError, match="unicorn"):
        bundle.similar(asked, system="popularity")


def test_new_items_are_found_by_words_that_are_known(bundle):
    title = bundle.titles[5]
    grown = bundle.add_items(pl.DataFrame({"item_id": ["new"], "title": [f"{title} unheardof"]}))
    found = grown.search(title, k=len(grown.items), system="unicorn")
    assert "new" in found["item_id"].to_list()[:20]
    assert grown.search("unheardof", system="unicorn").height == 0
    before = bundle.search(title, k=3, system="unicorn")
    kept = [i for i in found["item_id"].to_list() if i != "new"][:3]
    assert kept == before["item_id"].to_list()


def test_a_bundle_without_such_models_still_says_how_to_add_a_search(tiny):
    plain = load(tiny.run.bundle, device="cpu")
    with pytest.raises(DataError, match="search-fit"):
        plain.search("shoe")


class Asked:
    """The joint scorer as a searcher of its own, so that the checks of searchers run on it."""

    @classmethod
    def fit(cls, items, config, queries):
        from sidrec.joint_search import ScorerSearcher
        from sidrec.scorers.unicorn import Unicorn

        model = taught(Unicorn.build(replace(tiny_context(), items=items), config), steps=40)
        return ScorerSearcher(None, model)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "check",
    [
        searchers.check_a_query_finds_the_items_that_hold_its_words,
        searchers.check_the_list_is_the_best_of_the_scores,
        searchers.check_rules_hold_inside_the_search,
        searchers.check_a_query_of_unknown_words_has_no_answer,
    ],
)
def test_the_checks_of_searchers(check, monkeypatch):
    from sidrec.scorers.unicorn import UnicornConfig
    from sidrec.testing.tiny_catalogue import small_config

    small = small_config(UnicornConfig, pair_width=8, num_negatives=16, num_hard=4)
    if not hasattr(Asked, "made"):
        Asked.made = Asked.fit(tiny_context().items, small, None)  # trained once for all checks
    monkeypatch.setattr(Asked, "fit", classmethod(lambda cls, *given: Asked.made))
    check(Asked, small)
