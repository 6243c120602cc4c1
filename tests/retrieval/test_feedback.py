from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from sidrec.errors import ConfigError, DataError
from sidrec.fitted import Fitted
from sidrec.retrieval.feedback import (
    Feedback,
    FeedbackConfig,
    finds_itself,
    forbidden,
    mixed,
    neighbourhood,
    spread,
    unit,
)
from sidrec.types import PAD


def feedback(systems, **settings):
    return Feedback.build(systems, FeedbackConfig(**{"temperature": 0.05, **settings}))


def test_weight_0_is_the_generators_own_list(systems, questions):
    own = systems.generate(questions, 10)
    found = feedback(systems, weight=0.0, num_beams=10).answer(questions, 10)
    np.testing.assert_array_equal(found.rows_BK, own.rows_BK)
    np.testing.assert_allclose(found.scores_BK, own.scores_BK, atol=1e-4)


@pytest.mark.parametrize("form", ["set", "mean"])
def test_the_neighbourhood_moves_probability_and_loses_none(systems, questions, form):
    asked = feedback(systems, num_beams=6, form=form)
    pool = asked.pooled(questions)
    mass_B = pool[1].sum(1)
    for weight in (0.0, 0.3, 1.0):
        scores_BC = mixed(pool, neighbourhood(pool, 0.05), weight)
        torch.testing.assert_close(scores_BC.exp().sum(1), mass_B, rtol=1e-6, atol=1e-9)


def test_scores_are_the_formula_of_the_docstring(systems, questions):
    asked = feedback(systems, num_beams=3, num_probes=4)
    pool = asked.pooled(questions)
    scores_BC = mixed(pool, neighbourhood(pool, 0.1), 0.25)
    own = systems.generate(questions, 3)
    vectors_ND = unit(systems.vectors.vectors)
    rebuilt_ND = unit(systems.tokenizer.value.decode(systems.ids.codes))
    for row in range(4):
        expected = dict.fromkeys(pool[0][row].tolist(), 0.0)
        for item, score in zip(own.rows_BK[row], own.scores_BK[row], strict=True):
            expected[item] += 0.75 * np.exp(score)
            cosine_N = vectors_ND @ rebuilt_ND[item]
            near = np.argsort(-cosine_N, kind="stable")[:4]
            kernel = np.exp((cosine_N[near] - cosine_N[near].max()) / 0.1)
            for place, share in zip(near, kernel / kernel.sum(), strict=True):
                expected[place] += 0.25 * np.exp(score) * share
        for item, score in zip(pool[0][row].tolist(), scores_BC[row].tolist(), strict=True):
            assert item == PAD or np.exp(score) == pytest.approx(expected[item], rel=1e-3)


def test_one_beam_is_its_own_mean(systems, questions):
    one = [
        feedback(systems, num_beams=1, weight=0.5, form=form).answer(questions, 3).rows_BK[:, 0]
        for form in ("set", "mean")
    ]
    np.testing.assert_array_equal(*one)


def test_new_items_are_reached_without_retraining(systems, questions):
    text = systems.items.attributes[:1]
    names = pl.DataFrame({"item_id": [f"new {i}" for i in range(5)]})
    grown = systems.add_items(pl.concat([names, pl.concat([text] * 5)], how="horizontal"))
    asked = feedback(grown, num_beams=grown.beam_width, num_probes=20, weight=1.0)
    assert asked.rebuilt_ND.shape[0] == asked.near.ntotal == len(grown.items)
    keep_N = np.arange(len(grown.items)) >= len(systems.items)
    keep_N[0] = True
    rows_BC, generated_BC, *_ = pool = asked.pooled(questions)
    probed_BC = (rows_BC >= len(systems.items)) & (generated_BC == 0)
    assert probed_BC.any()
    assert (mixed(pool, neighbourhood(pool, 0.05), 1.0)[probed_BC] > -50).any()
    found = asked.answer(questions, 6, None, keep_N).rows_BK
    assert (keep_N[found[found != PAD]]).all() and (found[:, 5] != PAD).all()


def test_rules_hold_for_probed_items_too(systems, questions):
    asked = feedback(systems, weight=0.5)
    free = asked.answer(questions, 5).rows_BK
    ruled = asked.answer(questions, 5, list(free)).rows_BK
    for before, after in zip(free, ruled, strict=True):
        assert not set(before) & set(after) and (after != PAD).all()


def test_places_of_forbidden_items():
    rows_BWP = torch.tensor([[[0, 1], [2, PAD]], [[0, 1], [2, 3]]])
    keep_N = np.array([True, False, True, True])
    found = forbidden(rows_BWP, [np.array([2]), np.array([], dtype=np.int64)], keep_N)
    assert found.tolist() == [[[False, True], [True, True]], [[False, True], [False, False]]]


def test_values_go_to_the_candidate_they_name():
    rows_BC = torch.tensor([[2, 5, 9], [4, PAD, PAD]])
    given = torch.tensor([[9, 2, 9], [PAD, 4, PAD]])
    values = torch.tensor([[1.0, 2.0, 3.0], [7.0, 5.0, 7.0]])
    assert spread(rows_BC, given, values).tolist() == [[2, 0, 4], [5, 0, 0]]


def test_choices_are_made_on_validation(systems, valid):
    few = valid.take(np.arange(30))
    asked = Feedback.build(systems, FeedbackConfig(num_beams=10))
    tuned = asked.tuned(few)
    assert tuned.weight is not None and tuned.temperature is not None
    kept = Feedback.build(systems, FeedbackConfig(weight=0.3, temperature=0.1))
    assert kept.tuned(few) == kept.config


def test_codes_lead_back_to_their_items(systems):
    rebuilt_ND = unit(systems.tokenizer.value.decode(systems.ids.codes))
    nearest_N = (rebuilt_ND @ unit(systems.vectors.vectors).T).argmax(axis=1)
    codes_NL = systems.ids.codes
    share = (codes_NL[nearest_N] == codes_NL).all(axis=1).mean()
    assert finds_itself(feedback(systems)) == pytest.approx(share)
    assert 0.5 < share < 1


def test_bad_settings_say_what_to_do(systems, questions):
    class Mute:
        pass

    mute = Fitted(stage="tokenizers", name="mute", config=None, value=Mute())
    with pytest.raises(DataError, match=r"mute does not; residual_kmeans"):
        feedback(replace(systems, tokenizer=mute))
    with pytest.raises(ConfigError, match=r"not chosen; set them, or tune"):
        Feedback.build(systems, FeedbackConfig()).answer(questions, 3)
    for bad in ({"weight": -0.1}, {"num_beams": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            FeedbackConfig(**bad)
