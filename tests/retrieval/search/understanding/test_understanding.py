from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from sidrec import config
from sidrec.errors import ConfigError, DataError
from sidrec.retrieval.search.understanding.understanding import (
    QueryUnderstanding,
    UnderstandingConfig,
)
from sidrec.types import Items, as_ids


def grown(shop):
    table = pl.DataFrame(
        {"title": ["Zorblax kettle steel"] * 3, "brand": ["Zorblax"] * 3},
        schema_overrides={"title": pl.String},
    )
    whole = pl.concat([shop.attributes, table], how="diagonal")
    return Items(as_ids([*shop.item_ids, "new1", "new2", "new3"]), whole)


def test_categories_are_probabilities_and_know_their_words(found):
    for query in ("kettle", "nike cushioned laces", "bass", "unknown words", "!!"):
        shares = dict(found.likely(query, None))
        assert sum(shares.values()) == pytest.approx(1)
    assert found.parse("something to boil with whistle").categories[0][0] == ("Kitchen", "Kettles")
    assert found.parse("noise ear").categories[0][0][0] == "Electronics"
    assert found.parse("noise ear").categories[0][1] > 0.8


def test_an_item_without_a_category_gets_that_of_its_title(found):
    assert found.attributes.categories_N[1] == -1
    assert found.attributes.paths[found.categories_N[1]] == ("Kitchen", "Kettles")


def test_added_words_stand_in_titles_with_those_of_the_query(found):
    added = found.parse("kettle").expansions
    assert set(added) & {"whistle", "boil", "litre"}
    assert not set(added) & {"kettle", "kettles", "running", "bass"}
    assert found.parse("unknownword").expansions == ()
    assert found.with_config(num_expansions=2).parse("kettle").expansions == added[:2]


def test_phrases_of_titles_stay_together(found):
    assert found.parse("rose gold kettle").segments == ("rose gold", "kettle")
    assert found.parse("gold rose").segments == ("gold", "rose")


def test_intent_is_the_share_of_words(found):
    intent = found.parse("nike running shoes cheap").intent
    assert intent == pytest.approx({"brand": 0.25, "kind": 0.5, "property": 0, "other": 0.25})
    assert found.parse("!!!").intent == {"other": 1.0}


def test_a_known_query_is_not_read_again_and_old_ones_are_let_go(found):
    small = found.with_config(cached=2)
    first = small.parse("kettle")
    assert small.parse(" kettle\x00 ") is first
    small.parse("shoe")
    assert small.parse("kettle") is first
    small.parse("bass")
    assert len(small.cache) == 2 and small.parse("kettle") is first


def test_a_changed_catalogue_or_setting_never_answers_from_the_old_cache(found, shop):
    """Even a cache that is carried over: its keys hold the version."""
    old = found.parse("zorblax kettle")
    assert old.values("brand") == ()
    new = found.with_items(grown(shop))
    new.cache.update(found.cache)
    assert new.parse("zorblax kettle").values("brand") == ("Zorblax",)
    assert new.version != found.version
    other = found.with_config(num_expansions=1)
    other.cache.update(found.cache)
    assert len(other.parse("zorblax kettle").expansions) == 1
    renamed = shop.attributes.with_columns(color=pl.lit("Teal"))
    assert QueryUnderstanding.fit(Items(shop.item_ids, renamed)).version != found.version
    assert QueryUnderstanding.fit(shop).version == found.version


def test_saved_and_loaded_it_reads_alike(found):
    state = json.loads(json.dumps(found.state()))
    again = QueryUnderstanding.from_arrays(found.config, found.arrays(), state)
    assert again.version == found.version
    for query in ("nike runing shoes under $20", "rose gold ketle"):
        assert again.parse(query).to_dict() == found.parse(query).to_dict()


@pytest.mark.parametrize(
    ("query", "match"), [("", "empty"), ("\x00 \u202e", "empty"), ("a " * 5000, "10,000")]
)
def test_what_is_no_query_is_an_error(found, query, match):
    with pytest.raises(DataError, match=match):
        found.parse(query)


@pytest.mark.parametrize("query", ["\u9774", "a" * 1000, "a b " * 250, "\u202e$%&/()", "1/0 0"])
def test_odd_queries_are_read_without_harm(found, query):
    parsed = found.parse(query)
    assert parsed.corrected and json.dumps(parsed.to_dict())


def test_a_catalogue_without_attributes_still_corrects():
    items = Items(
        as_ids(range(9)), pl.DataFrame({"title": ["steel kettle", "red shoe", "hat"] * 3})
    )
    bare = QueryUnderstanding.fit(items)
    parsed = bare.parse("stel ketlle under $5")
    assert parsed.corrected == "steel kettle under $5"
    assert parsed.categories == () and [span.label for span in parsed.spans] == ["price"]
    assert parsed.filters == ()  # there is no price to compare with


def test_settings_round_trip_and_impossible_ones_are_refused():
    plain = {"category_weight": 0.5, "hard": ["price"], "asker": {"backend": "none"}}
    parsed = config.parse(UnderstandingConfig, plain)
    assert config.to_dict(config.parse(UnderstandingConfig, config.to_dict(parsed))) == (
        config.to_dict(parsed)
    )
    for wrong in ({"brand_weight": -1.0}, {"least_items": 0}, {"expansion_weight": 2.0},
                  {"hard": ["colour"]}, {"asker": {"backend": "endpoint"}}):  # fmt: skip
        with pytest.raises(ConfigError):
            config.parse(UnderstandingConfig, wrong)


def test_the_prior_and_temperature_are_those_with_the_least_loss(found):
    assert found.categories.temperature > 0
    assert np.isfinite(found.categories.gains_Z).all() and (found.categories.gains_Z >= 0).all()
