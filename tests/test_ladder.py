"""The ladder of a scaling study: what is counted, what is measured, what is kept."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sidrec import config, ladder, pipeline
from sidrec.data.shop import chain
from sidrec.decoding.exact import exact_scores
from sidrec.errors import ConfigError, ServiceError
from sidrec.generators.causal import Causal, CausalConfig
from sidrec.item_loss import item_nats, last_events, log_shares
from sidrec.ladder import Ladder, LadderConfig, Rung, share_of, study
from sidrec.model_size import count_parameters, flop_per_target, table_rows
from sidrec.recipe import COLLISIONS, default_config
from sidrec.scorers.sasrec import SASRec, SASRecConfig
from sidrec.types import Histories, HistoryBatch

WORLD = chain(num_users=60, num_items=24, length=6)
SMALL = LadderConfig(
    sizes=tuple(Rung(width=w, num_layers=1) for w in (4, 6)), shares=(0.5,), seeds=(0, 1), epochs=1
)


def settings(**changes):
    found = default_config(WORLD.dataset)
    evaluation = replace(found.evaluation, validation_users=40)
    return replace(found, device="cpu", evaluation=evaluation, **changes)


@pytest.fixture(scope="module")
def stages():
    return pipeline.Stages.of(WORLD.dataset, settings(), None, pipeline.quiet)


# Counting ----------------------------------------------------------------------------------------


def test_parameters_are_counted_as_by_hand(stages):
    model = Causal.build(
        stages.context,
        CausalConfig(width=8, num_heads=2, hidden_multiplier=2, depth_hidden=16, max_length=5),
    )
    block = (8 * 24 + 24) + (8 * 8 + 8) + (8 * 16 + 16) + (16 * 8 + 8) + 2 * 16
    encoder = block + 16 + 1 * 2 * 5  # final norm, bias by head and distance
    level = 16 + (8 * 16 + 16) + (16 * 8 + 8)
    num_levels, widths = stages.ids.num_levels, model.widths
    below = sum(sum(widths[:level]) for level in range(num_levels))
    dim = stages.vectors.vectors.shape[1]
    by_hand = (
        encoder + num_levels * level + 1,  # 1: the bias of items seen before
        24 * 8 + dim * 8 + sum(widths) * 8 + below * 8 + sum(widths),
    )
    assert count_parameters("causal", model) == by_hand
    assert sum(by_hand) == sum(p.numel() for p in model.parameters())


def test_the_embeddings_of_an_id_model_are_its_items(stages):
    model = SASRec.build(stages.context, SASRecConfig(width=8))
    assert count_parameters("sasrec", model)[1] == 24 * 8


def test_flop_are_six_a_parameter_and_attention():
    assert flop_per_target(1000, 2, 8, 10.0) == 6 * 1000 + 12 * 2 * 8 * 10


def test_a_state_meets_items_codes_and_nodes(stages):
    codes = stages.ids.codes
    nodes = sum(len(np.unique(codes[:, : level + 1], axis=0)) for level in range(codes.shape[1]))
    model = Causal.build(stages.context, CausalConfig(width=8))
    assert table_rows(model) == 24 + sum(model.widths) + nodes
    assert table_rows(SASRec.build(stages.context, SASRecConfig(width=8))) == 24


# Loss --------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_probabilities_over_items_that_sum_to_one(stages):
    model = Causal.build(stages.context, CausalConfig(width=8)).eval()
    examples = stages.validation
    nats_Q = item_nats(stages, "generators", model, examples, batch_size=7)
    batch = HistoryBatch.from_histories(examples.histories, max_length=50)
    scores_QN = exact_scores(model, batch, stages.index)
    np.testing.assert_allclose(scores_QN.exp().sum(1), 1, rtol=1e-4)
    expected = -scores_QN.numpy()[np.arange(len(examples)), examples.targets]
    np.testing.assert_allclose(nats_Q, expected, rtol=1e-4)


def test_an_untrained_id_model_loses_about_the_log_of_the_catalogue(stages):
    model = SASRec.build(stages.context, SASRecConfig(width=8)).eval()
    nats_Q = item_nats(stages, "scorers", model, stages.validation)
    assert nats_Q.mean() == pytest.approx(np.log(24), abs=0.1)


def test_items_of_one_id_divide_its_probability():
    kept = settings(
        tokenizer=config.parse(
            type(settings()), {"tokenizer": {"name": "residual_kmeans", "num_levels": 1,
                                             "num_codes": 5}}
        ).tokenizer,
        collisions=config.method(COLLISIONS, "keep"),
        least_code_use=0.0,
    )  # fmt: skip
    stages = pipeline.Stages.of(WORLD.dataset, kept, None, pipeline.quiet)
    model = Causal.build(stages.context, CausalConfig(width=8)).eval()
    examples = stages.validation
    batch = HistoryBatch.from_histories(examples.histories, max_length=50)
    weights_N = torch.from_numpy(stages.split.train_counts_N + 1.0)
    scores_QN = exact_scores(model, batch, stages.index, weights_N=weights_N)
    expected = -scores_QN.numpy()[np.arange(len(examples)), examples.targets]
    nats_Q = item_nats(stages, "generators", model, examples)
    np.testing.assert_allclose(nats_Q, expected, rtol=1e-4)
    assert np.exp(log_shares(stages)).sum() == pytest.approx(5)


def test_learnt_questions_end_in_the_last_training_event():
    examples = last_events(Histories.from_lists([[1, 2, 3], [4], [5, 6]]), 10)
    assert examples.targets.tolist() == [3, 6]
    assert [examples.histories[row].tolist() for row in range(2)] == [[1, 2], [5]]


def test_a_smaller_share_lies_inside_a_larger_one():
    histories = Histories.from_lists([[user, user] for user in range(40)])
    users = {share: set(share_of(histories, share).items_E.tolist()) for share in (0.1, 0.25, 0.5)}
    assert [len(found) for found in users.values()] == [4, 10, 20]
    assert users[0.1] < users[0.25] < users[0.5]


# Training ----------------------------------------------------------------------------------------


def test_points_are_kept_and_a_killed_study_goes_on(tmp_path, monkeypatch):
    whole = study(settings(), SMALL, folder=tmp_path / "whole", data=WORLD.dataset, resamples=5)
    calls, train = [], ladder.train

    def killed(*arguments, **options):
        calls.append(options["run_dir"].name)
        if len(calls) == 3:
            raise ServiceError("killed")
        return train(*arguments, **options)

    monkeypatch.setattr(ladder, "train", killed)
    with pytest.raises(ServiceError):
        study(settings(), SMALL, folder=tmp_path / "broken", data=WORLD.dataset, resamples=5)
    again = study(settings(), SMALL, folder=tmp_path / "broken", data=WORLD.dataset, resamples=5)
    assert len(calls) == 3 + 2 and calls[2] == calls[3]  # 4 points: the third was begun twice
    ends = [
        [(p.name, p.loss, p.ndcg) for p in report.systems["causal"].points]
        for report in (whole, again)
    ]
    assert ends[0] == ends[1]
    assert [name for name, *_ in ends[0]] == [
        "causal-4x1-share1-seed0", "causal-4x1-share1-seed1", "causal-6x1-share1-seed0",
        "causal-6x1-share0.5-seed0",
    ]  # fmt: skip
    written = json.loads((tmp_path / "broken" / "scaling.json").read_text())
    assert len(written["systems"]["causal"]["points"]) == 4
    point = written["systems"]["causal"]["points"][0]
    assert point["loss"] == pytest.approx(
        sum(g["loss"] * g["n"] for g in point["groups"].values()) / 40
    )
    assert point["events"] == 60 * 4 and point["tokens"] == 60 * 3 * 3
    assert not list((tmp_path / "broken" / "training").iterdir())


def climbing(tmp_path, **changes):
    stages = pipeline.Stages.of(WORLD.dataset, settings(), tmp_path, pipeline.quiet)
    return Ladder(
        stages=stages, settings=replace(SMALL, **changes), folder=tmp_path, on_event=pipeline.quiet
    )


def test_a_share_gets_as_many_steps_and_validations_as_the_whole(tmp_path):
    rungs = climbing(tmp_path, epochs=3)
    training = rungs.train_config(rungs.chosen("causal"), 0.25, 1, 0.01)
    assert (training.epochs, training.validate_every_epochs, training.seed) == (12, 4.0, 1)


def test_the_rate_falls_with_the_root_of_the_width_unless_rates_are_given(tmp_path):
    chosen = climbing(tmp_path).chosen("causal")
    base = chosen.train.learning_rate * chosen.config.width**0.5
    assert climbing(tmp_path).rates(chosen) == pytest.approx([base * 4**-0.5, base * 6**-0.5])
    assert climbing(tmp_path, learning_rates=(0.1, 0.2)).rates(chosen) == [0.1, 0.2]


def test_tuned_rates_go_on_along_the_line_through_the_two_smallest(tmp_path, monkeypatch):
    sizes = tuple(Rung(width=w, num_layers=1) for w in (4, 8, 16))
    rungs = climbing(tmp_path, sizes=sizes, tune=(0.5, 1, 2))
    chosen = rungs.chosen("causal")
    rule = climbing(tmp_path, sizes=sizes).rates(chosen)
    best = {4: rule[0] * 2, 8: rule[1] * 0.5}

    def point(self, chosen, rung, share, seed, rate):
        from types import SimpleNamespace

        return SimpleNamespace(loss=abs(rate - best[rung.width]), learning_rate=rate)

    monkeypatch.setattr(Ladder, "point", point)
    found = rungs.rates(chosen)
    assert found[:2] == [best[4], best[8]]
    assert found[2] == pytest.approx(best[8] ** 2 / best[4])


def test_the_depth_decoder_follows_the_width(tmp_path):
    rungs = climbing(tmp_path)
    found = rungs.model_config(rungs.chosen("causal"), Rung(width=16, num_layers=2), 3)
    assert (found.width, found.num_layers, found.depth_hidden, found.seed) == (16, 2, 32, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": ("tiger",)}, r"systems must be some of \['causal', 'sasrec'\]"),
        ({"sizes": (Rung(width=8, num_layers=1), Rung(width=4, num_layers=1))}, "ascending"),
        ({"shares": (0.5, 1.0)}, "between 0 and 1"),
        ({"seeds": (0, 0)}, "seeds must be different"),
        ({"learning_rates": (0.1,)}, "one for each of the 2 sizes"),
        ({"learning_rates": (0.1, 0.2), "tune": (1.0,)}, "left out where rates are given"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
)
def test_ladders_that_cannot_be_climbed_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **changes)


def test_default_sizes_span_a_factor_of_thirty(stages):
    counts = [
        count_parameters(
            "causal",
            Causal.build(
                stages.context,
                CausalConfig(width=r.width, num_layers=r.num_layers, depth_hidden=2 * r.width),
            ),
        )[0]
        for r in LadderConfig().sizes
    ]
    assert len(counts) >= 5 and counts[-1] > 30 * counts[0]
    assert counts == sorted(counts)


# The chain ---------------------------------------------------------------------------------------


def test_no_guess_scores_better_on_the_chain_than_its_source(stages):
    examples = stages.split.valid
    world = chain(num_users=4000, num_items=24, length=6)
    many = pipeline.Stages.of(world.dataset, settings(), None, pipeline.quiet).split.valid
    assert world.nats(many) == pytest.approx(world.entropy(many), abs=0.05)
    assert WORLD.entropy(examples) < np.log(24)
    np.testing.assert_allclose(WORLD.probs_NN.sum(1), 1)
    with pytest.raises(ConfigError, match="length must be at least 3"):
        chain(length=2)
