from __future__ import annotations

import json

import polars as pl
import pytest

from sidrec.data.search.shopdial import read_shopdial
from sidrec.errors import DataError

NAMES = ("Google Pixel 6a Phone", "OnePlus 10 Phone", "Blue Running Shoe", "Red Running Shoe")


def turn(role, goal, text):
    return {"role": role, "goal": goal, "text": text, "intents": []}


@pytest.fixture
def folder(tmp_path):
    domains = ["phones", "phones", "sport", "sport"]
    table = {"item_id": ["p0", "p1", "s0", "s1"], "domain": domains, "name": list(NAMES)}
    pl.DataFrame(table).write_parquet(tmp_path / "items.parquet")
    dialogue = {
        "dialogue_id": "one",
        "domain": "phones",
        "turns": [
            turn("seeker", "recommendation", "a phone\tplease"),
            turn("recommender", "meta", "do you like a blue running shoe?"),
            turn("recommender", "recommendation", "we have the google pixel"),
            turn("seeker", "search", "how much storage"),
            turn("seeker", "qa", "hm"),
            turn("recommender", "qa", "the Google Pixel has 128 GB, and there is OnePlus 10"),
        ],
    }
    (tmp_path / "dialogues.jsonl").write_text(json.dumps(dialogue) + "\n")
    return tmp_path


def test_the_first_naming_of_a_product_is_a_request_with_what_was_said_before(folder):
    first, second = read_shopdial(folder).requests
    assert (first.task, first.query, first.target) == ("recommend", "a phone please", 0)
    assert first.history.tolist() == []
    assert (second.task, second.target, second.history.tolist()) == ("search", 1, [0])
    assert second.query == "a phone please how much storage hm"


def test_products_of_other_domains_and_words_that_several_names_share_name_nothing(folder):
    dialogue = {
        "dialogue_id": "two",
        "domain": "sport",
        "turns": [
            turn("seeker", "search", "shoes"),
            turn("recommender", "search", "a running shoe, or the google pixel"),
            turn("recommender", "search", "this red running one"),
        ],
    }
    (folder / "dialogues.jsonl").write_text(json.dumps(dialogue))
    assert [request.target for request in read_shopdial(folder).requests] == [3]


def test_a_folder_with_something_else_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match="MG-ShopDial"):
        read_shopdial(tmp_path / "nowhere")
    pl.DataFrame({"item_id": ["a"]}).write_parquet(folder / "items.parquet")
    with pytest.raises(DataError, match="lacks"):
        read_shopdial(folder)
