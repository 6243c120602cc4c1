"""SARQ-style IDs from a recipe to a served bundle: fit, save, load, answer, add, inspect."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import sidrec
from sidrec import cli, config, pipeline, recipe
from sidrec.decoding.exact import exact_scores
from sidrec.tokenizers.variable_length import lengths_of
from sidrec.types import Histories, HistoryBatch

TINY = {"width": 16, "num_encoder_layers": 1, "num_decoder_layers": 1, "num_heads": 2,
        "head_width": 8, "feed_forward": 32}  # fmt: skip


def settings_of(tiny, collisions, generator):
    settings = recipe.load_config(tiny.recipe)
    sarq = config.method(recipe.TOKENIZER, "sarq", num_codes=8, num_levels=3, mean_length=1.6)
    chosen = settings.generator
    if generator == "tiger":
        chosen = config.method(recipe.GENERATOR, "tiger", **TINY)
        chosen = replace(chosen, train=replace(chosen.train, epochs=1))
    return replace(
        settings,
        tokenizer=sarq,
        collisions=config.method(recipe.COLLISIONS, collisions),
        generator=chosen,
        scorers=(),
        hybrid=recipe.HybridConfig(members=()),
    )


@pytest.fixture(scope="module", params=[("keep", "causal"), ("reassign", "causal"),
                                        ("keep", "tiger")], ids="-".join)  # fmt: skip
def fitted(request, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sarq")
    return request.param, pipeline.run(settings_of(tiny, *request.param), run_dir=folder)


def batch_of(recommender, item_ids):
    histories = Histories.from_lists([recommender.items.rows(item_ids)])
    return HistoryBatch.from_histories(histories, max_length=10)


def test_ids_have_several_lengths_and_share_what_the_policy_allows(fitted):
    (policy, _), run = fitted
    ids = run.recommender.ids
    assert len(set(lengths_of(ids.codes).tolist())) > 1
    assert (ids.collision_share() > 0) == (policy == "keep")


def test_items_come_back_with_probabilities_that_sum_to_one(fitted):
    _, run = fitted
    recommender, history = run.recommender, run.example_history()
    frame = recommender.recommend(history, k=60, exclude_seen=False)
    assert sorted(frame["item_id"]) == sorted(map(str, recommender.items.item_ids))
    assert np.exp(frame["score"]).sum() == pytest.approx(1, abs=1e-4)
    assert [len(codes) for codes in frame["semantic_id"]] == [
        int(lengths_of(recommender.ids.codes)[recommender.items.row_of[i]])
        for i in frame["item_id"]
    ]
    exact = exact_scores(
        recommender.generator.value, batch_of(recommender, history), recommender.index,
        weights_N=recommender.weights_N,
    )[0]  # fmt: skip
    rows = recommender.items.rows(frame["item_id"].to_list())
    np.testing.assert_allclose(frame["score"], exact[torch.from_numpy(rows)], rtol=1e-3, atol=1e-3)


def test_an_explanation_adds_up_to_the_log_probability_of_the_id(fitted):
    _, run = fitted
    recommender, history = run.recommender, run.example_history()
    exact = exact_scores(
        recommender.generator.value, batch_of(recommender, history), recommender.index
    )[0]
    lengths_N = lengths_of(recommender.ids.codes)
    for row in (int(lengths_N.argmin()), int(lengths_N.argmax())):
        why = recommender.explain(history, str(recommender.items.item_ids[row]))
        assert why["log_prob"] == pytest.approx(float(exact[row]), abs=1e-3)
        assert len(why["levels"]) == min(lengths_N[row] + 1, 3)


def test_a_loaded_bundle_answers_and_measures_the_same(fitted):
    _, run = fitted
    loaded = sidrec.load(run.bundle)
    np.testing.assert_array_equal(loaded.ids.codes, run.recommender.ids.codes)
    history = run.example_history()
    assert loaded.recommend(history).equals(run.recommender.recommend(history))
    found = loaded.tokenizer.value.encode(loaded.vectors)
    np.testing.assert_array_equal(found.codes, run.recommender.tokenizer.value.encode(
        run.recommender.vectors).codes)  # fmt: skip
    assert set(run.reports) == {run.recommender.generator.name}


def test_added_items_are_found_by_the_index_and_survive_saving(fitted, tmp_path):
    (policy, _), run = fitted
    old = run.recommender
    table = old.items.attributes.head(8).with_columns(
        pl.Series("item_id", [f"new {i}" for i in range(8)])
    )
    grown = old.add_items(table)
    np.testing.assert_array_equal(grown.ids.codes[: len(old.ids)], old.ids.codes)
    shortest = lengths_of(old.ids.codes).min()
    assert (lengths_of(grown.ids.codes[len(old.ids) :]) >= shortest).all()
    assert (grown.ids.collision_share() > 0) == (policy == "keep")
    frame = grown.recommend(run.example_history(), k=80, exclude_seen=False)
    assert set(frame["item_id"]) == set(map(str, grown.items.item_ids))
    assert np.exp(frame["score"]).sum() == pytest.approx(1, abs=1e-4)
    grown.save(tmp_path / "grown")
    again = sidrec.load(tmp_path / "grown").recommend(
        run.example_history(), k=80, exclude_seen=False
    )
    np.testing.assert_allclose(again["score"], frame["score"], rtol=1e-4)


def test_inspect_prints_ids_of_several_lengths(fitted):
    (policy, _), run = fitted
    report = json.loads(CliRunner().invoke(cli.app, ["inspect", str(run.bundle), "--json"]).stdout)
    mean = float(lengths_of(run.recommender.ids.codes).mean())
    assert report["bundle"]["mean codes of an ID"] == pytest.approx(mean)
    assert bool(report["collisions"]) == (policy == "keep")
    done = CliRunner().invoke(cli.app, ["inspect", str(run.bundle), "--prefix", "0"])
    assert done.exit_code == 0, done.output


def test_the_penalty_of_a_recipe_reaches_the_search_and_the_bundle_but_not_the_hybrid(fitted):
    _, run = fitted
    history = run.example_history()
    normalised = replace(run.recommender, length_penalty=1.0)
    raw = run.recommender.recommend(history, k=60, exclude_seen=False)
    frame = normalised.recommend(history, k=60, exclude_seen=False)
    scores = dict(zip(frame["item_id"], frame["score"], strict=True))
    for item, score, codes in zip(raw["item_id"], raw["score"], raw["semantic_id"], strict=True):
        assert scores[item] == pytest.approx(score / min(len(codes) + 1, 3), rel=1e-4, abs=1e-5)
    batch = batch_of(normalised, history)
    with torch.inference_mode():
        opinions = [
            r.member(r.generator.name)(batch, 60, None, None).log_probs(torch.arange(60)[None])
            for r in (normalised, run.recommender)
        ]
    assert torch.equal(*opinions)
