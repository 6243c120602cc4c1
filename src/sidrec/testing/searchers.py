# ruff: noqa: D103  (the name of a check is its sentence)
"""What it means to be a searcher: run these checks on any class with `Searcher`'s contract.

`for check in SEARCHER_CHECKS: check(MySearcher, my_small_config)`. A searcher whose package is not
installed is passed by (`unittest.SkipTest`).

Shapes:  B queries, N items, P items of a pool, K returned items.
"""

from __future__ import annotations

import json
from typing import Any
from unittest import SkipTest

import numpy as np
import polars as pl
import torch

from sidrec.data.search.made import made_search
from sidrec.errors import MissingExtra
from sidrec.retrieval.search.asking import best
from sidrec.testing.tiny_catalogue import NUM_ITEMS, tiny_context
from sidrec.types import PAD, Items, as_ids

ASKED = ("red wool coat", "kettle", "a running shoe", "garden chair")


def fitted(searcher_class: Any, config: Any, items: Items | None = None) -> Any:
    """A searcher of the tiny catalogue that has seen queries made of its words."""
    items = tiny_context().items if items is None else items
    try:
        return searcher_class.fit(items, config, made_search(items))
    except MissingExtra as missing:
        raise SkipTest(str(missing)) from missing


def all_scores(searcher: Any, texts: Any = ASKED) -> torch.Tensor:
    rows_BP = torch.arange(NUM_ITEMS).expand(len(texts), -1)
    return searcher.ask(list(texts), 1).log_probs(rows_BP)


def check_a_query_finds_the_items_that_hold_its_words(searcher_class: Any, config: Any) -> None:
    found = best(fitted(searcher_class, config).ask(ASKED, 6), 6)
    for row, cluster in zip(found.rows_BK, (0, 1, 3, 2), strict=True):
        assert set(row[row != PAD] // 6) == {cluster}


def check_the_list_is_the_best_of_the_scores(searcher_class: Any, config: Any) -> None:
    searcher = fitted(searcher_class, config)
    found, scores = best(searcher.ask(ASKED, NUM_ITEMS), NUM_ITEMS), all_scores(searcher)
    for row, listed in enumerate(found.rows_BK):
        listed = listed[listed != PAD]
        answers = np.flatnonzero(np.isfinite(scores[row].numpy()))
        assert set(listed) == set(answers)
        np.testing.assert_allclose(
            scores[row].numpy()[listed], np.sort(scores[row].numpy()[answers])[::-1], atol=1e-6
        )


def check_rules_hold_inside_the_search(searcher_class: Any, config: Any) -> None:
    searcher = fitted(searcher_class, config)
    first = best(searcher.ask(ASKED, 1), 1).rows_BK[:, 0]
    keep_N = np.ones(NUM_ITEMS, dtype=bool)
    keep_N[first] = False
    rows_BK = best(searcher.ask(ASKED, 3, keep_N), 3).rows_BK
    assert not np.isin(rows_BK, first).any() and (rows_BK != PAD).all()


def check_a_query_of_unknown_words_has_no_answer(searcher_class: Any, config: Any) -> None:
    opinion = fitted(searcher_class, config).ask(["qqqq zzzz", "靴", "kettle"], 4)
    rows_BK = best(opinion, 4).rows_BK
    assert (rows_BK[:2] == PAD).all() and (rows_BK[2] != PAD).any()


def check_a_query_does_not_depend_on_the_others_of_its_batch(
    searcher_class: Any, config: Any
) -> None:
    searcher = fitted(searcher_class, config)
    alone = torch.cat([all_scores(searcher, (text,)) for text in ASKED])
    together = all_scores(searcher)  # doubles, of models that may compute in floats
    torch.testing.assert_close(alone.float(), together.float())


def check_same_seed_gives_the_same_searcher(searcher_class: Any, config: Any) -> None:
    first, second = (all_scores(fitted(searcher_class, config)) for _ in range(2))
    assert torch.equal(first, second)


def check_saved_and_loaded_is_equal(searcher_class: Any, config: Any) -> None:
    searcher = fitted(searcher_class, config)
    arrays = {name: np.array(array) for name, array in searcher.arrays().items()}
    state = json.loads(json.dumps(searcher.state()))
    again = searcher_class.from_arrays(searcher.config, arrays, state)
    assert torch.equal(all_scores(searcher), all_scores(again))
    one, other = (best(found.ask(ASKED, 9), 9) for found in (searcher, again))
    np.testing.assert_array_equal(one.rows_BK, other.rows_BK)


def check_new_items_are_found_and_none_is_lost(searcher_class: Any, config: Any) -> None:
    items = tiny_context().items
    searcher = fitted(searcher_class, config)
    titles = [*items.titles(), "blue steel kettle number 7", None]
    ids = [*map(str, items.item_ids), "new/1", "new 2 🙂"]
    grown = searcher.with_items(Items(as_ids(ids), pl.DataFrame({"title": titles})))
    before = best(searcher.ask(["steel kettle"], 26), 26).rows_BK[0]
    after = best(grown.ask(["steel kettle"], 26), 26).rows_BK[0]
    assert set(after[after != PAD]) >= {*before[before != PAD], NUM_ITEMS}
    assert NUM_ITEMS in after[:8] and NUM_ITEMS + 1 not in after


SEARCHER_CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
