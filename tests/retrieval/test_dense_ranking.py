"""Candidates of the beam united with what is new, ranked by the dense head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import sidrec
from sidrec import config, pipeline, recipe
from sidrec.errors import ConfigError, DataError
from sidrec.recipe import GENERATOR, RETRIEVER, HybridConfig
from sidrec.retrieval.dense_ranking import DenseRanking, DenseRankingConfig, without
from sidrec.retrieval.top_items import top_items
from sidrec.transformer import distinct
from sidrec.types import PAD, HistoryBatch

NEW = np.array([3, 11, 40])


@pytest.fixture(scope="module")
def bundle(tiny):
    """A small fit with a dense head and its retriever; every item has training events."""
    settings = replace(
        recipe.load_config(tiny.recipe),
        generator=config.method(
            GENERATOR, "liger", width=16, depth_hidden=16, dense_width=8, dense_hidden=16,
            train={"epochs": 2, "batch_positions": 256},
        ),
        scorers=(),
        retrievers=(config.method(RETRIEVER, "dense_ranking", num_generated=6),),
        hybrid=HybridConfig(members=()),
    )  # fmt: skip
    return pipeline.fit(tiny.run.dataset, settings)


@pytest.fixture(scope="module")
def with_new(bundle):
    """The same with three items that nobody has taken in training."""
    counts_N = np.maximum(bundle.train_counts_N, 1)
    counts_N[NEW] = 0
    return replace(bundle, train_counts_N=counts_N)


def ranking(systems, **settings):
    return DenseRanking.build(systems, DenseRankingConfig(**settings))


def dense_logits(systems, batch):
    """(B, N) the head asked about everything, one item at a time."""
    model, num_items = systems.generator.value, len(systems.items)
    with torch.inference_mode():
        rows_BN = torch.arange(num_items).expand(batch.num_requests, -1)
        users_BD, items_ND = model.dense_states(batch), model.dense_items()
        return model.dense.logits_of(
            users_BD[:, None], items_ND[rows_BN], rows_BN, distinct(batch)[:, None]
        )


def test_united_with_everything_it_is_the_dense_head(with_new, questions):
    found = ranking(with_new, num_generated=0, united_with="everything").answer(questions, 12)
    expected = top_items(dense_logits(with_new, questions), 12)
    np.testing.assert_array_equal(found.rows_BK, expected.rows_BK)
    np.testing.assert_allclose(found.scores_BK, expected.scores_BK, rtol=1e-5, atol=1e-5)


def test_a_beam_of_the_whole_catalogue_alone_is_the_dense_head_too(with_new, questions):
    every = len(with_new.items)
    found = ranking(with_new, num_generated=every, united_with="nothing").answer(questions, 12)
    expected = top_items(dense_logits(with_new, questions), 12)
    np.testing.assert_allclose(found.scores_BK, expected.scores_BK, rtol=1e-5, atol=1e-5)
    assert (found.rows_BK == expected.rows_BK).mean() > 0.99  # ties may fall otherwise


def test_candidates_are_the_beam_and_the_new_items_each_once(with_new, questions):
    asked = ranking(with_new, num_generated=6)
    rows_BP, logits_BP = asked.compared(questions, 5)
    beam_BK = with_new.generate(questions, 6).rows_BK
    expected_BN = dense_logits(with_new, questions)
    for row, beam, size in zip(
        rows_BP.tolist(), beam_BK.tolist(), asked.num_candidates(questions, 5), strict=True
    ):
        real = [item for item in row if item != PAD]
        assert sorted(real) == sorted({*beam, *NEW.tolist()}) and len(real) == size
    own_BP = expected_BN.gather(1, rows_BP.clamp_min(0)).masked_fill(rows_BP == PAD, -torch.inf)
    torch.testing.assert_close(logits_BP, own_BP)
    listed = asked.answer(questions, 5)
    for row, rows in enumerate(listed.rows_BK):
        among = rows_BP[row][rows_BP[row] != PAD]
        best = among[expected_BN[row, among].argsort(descending=True)][:5]
        assert rows.tolist() == best.tolist()


def test_without_new_items_the_list_holds_only_what_the_beam_found(with_new, questions):
    rows_BK = ranking(with_new, num_generated=6, united_with="nothing").answer(questions, 6).rows_BK
    beam_BK = with_new.generate(questions, 6).rows_BK
    np.testing.assert_array_equal(np.sort(rows_BK), np.sort(beam_BK))


def test_k_items_come_back_whenever_k_exist_however_few_were_to_be_generated(with_new, questions):
    for settings in (
        {"num_generated": 1, "united_with": "nothing"},
        {"num_generated": 1},
        {"num_generated": 0},
    ):
        rows_BK = ranking(with_new, **settings).answer(questions, 20).rows_BK
        assert (rows_BK != PAD).all()
    only_new = ranking(with_new, num_generated=0)
    assert (only_new.num_candidates(questions, 3) == 3).all()
    assert (np.sort(only_new.answer(questions, 3).rows_BK) == NEW).all()


def test_rules_hold_for_both_kinds_of_candidates(with_new, questions):
    num_items = len(with_new.items)
    keep_N = np.ones(num_items, dtype=bool)
    keep_N[:3], keep_N[NEW[0]] = False, False
    exclude = [np.array([NEW[1], row % num_items]) for row in range(questions.num_requests)]
    for settings in ({}, {"united_with": "everything"}, {"num_generated": 0}):
        asked = ranking(with_new, **settings)
        rows_BK = asked.answer(questions, num_items, exclude, keep_N).rows_BK
        for row, forbidden in zip(rows_BK, exclude, strict=True):
            real = row[row != PAD]
            allowed = set(np.flatnonzero(keep_N).tolist()) - set(forbidden.tolist())
            assert set(real.tolist()) == allowed and len(real) == len(allowed)
    few_N = np.zeros(num_items, dtype=bool)
    few_N[[5, NEW[2]]] = True
    rows_BK = ranking(with_new).answer(questions, 4, None, few_N).rows_BK
    assert (np.sort(rows_BK) == [PAD, PAD, 5, NEW[2]]).all()


def test_a_request_does_not_depend_on_the_others_of_its_batch(with_new, questions):
    exclude = [NEW if row % 3 == 0 else NEW[:0] for row in range(questions.num_requests)]
    asked = ranking(with_new, num_generated=0)
    together = asked.answer(questions, 3, exclude)
    for row in range(6):
        one = HistoryBatch(questions.items_BT[row : row + 1], questions.lengths_B[row : row + 1])
        alone = asked.answer(one, 3, exclude[row : row + 1])
        np.testing.assert_array_equal(alone.rows_BK[0], together.rows_BK[row])


def test_places_that_are_taken_out_become_no_item():
    rows_BM = torch.tensor([[4, 7, 9], [4, 7, 9]])
    assert without(rows_BM, torch.tensor([[1, -1], [2, 0]])).tolist() == [[4, -1, 9], [-1, 7, -1]]


def test_a_bundle_keeps_it_and_an_added_item_can_be_found(bundle, questions, tmp_path):
    bundle.save(tmp_path / "bundle")
    loaded = sidrec.load(tmp_path / "bundle")
    before, after = (r.answer("dense_ranking", questions, 5) for r in (bundle, loaded))
    np.testing.assert_array_equal(before.rows_BK, after.rows_BK)
    model = bundle.items.attributes.row(int(bundle.train_counts_N.argmax()), named=True)
    new = pl.DataFrame([{**model, "item_id": "brand-new"}])
    more = loaded.add_items(new)
    row = len(bundle.items)
    assert more.train_counts_N[row] == 0
    asked = more.retrieving["dense_ranking"]
    rows_BP, logits_BP = asked.compared(questions, 5)
    assert ((rows_BP == row).sum(1) == 1).all() and logits_BP[rows_BP == row].isfinite().all()
    twin = int(bundle.train_counts_N.argmax())
    items_ND = more.generator.value.dense_items()
    assert (items_ND[row] @ items_ND[twin]).item() == pytest.approx(1.0, abs=1e-3)
    torch.testing.assert_close(
        items_ND[:row], bundle.generator.value.dense_items(), rtol=1e-4, atol=1e-5
    )
    only_N = np.zeros(len(more.items), dtype=bool)
    only_N[row] = True
    assert more.answer("dense_ranking", questions, 1, keep_N=only_N).rows_BK.tolist() == [[row]] * (
        questions.num_requests
    )


def test_bad_settings_say_what_to_do(systems):
    with pytest.raises(DataError, match=r"dense head, got 'causal'; set generator\.name to liger"):
        ranking(systems)
    with pytest.raises(ConfigError, match=r"num_generated must not be negative, got -1"):
        DenseRankingConfig(num_generated=-1)
    with pytest.raises(ConfigError, match=r"no candidates: set num_generated above 0"):
        DenseRankingConfig(num_generated=0, united_with="nothing")
