"""Alignment from a bundle to a bundle: contexts, guard, resume, parents, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import sidrec
from sidrec import aligning, artifact, config, methods
from sidrec.align_config import (
    OBJECTIVE,
    REWARD,
    SHORT,
    AlignConfig,
    ContextsConfig,
    load_align_config,
)
from sidrec.aligning import only, require_same_ids, run_alignment, without_held_out
from sidrec.alignment.aligner import StepConfig
from sidrec.alignment.rollouts import RolloutConfig
from sidrec.alignment.values import Preferences
from sidrec.errors import ConfigError, DataError, ServiceError
from sidrec.types import Histories

RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "align"
EXACT = (config.method(REWARD, "exact"), config.method(REWARD, "prefix"))


def settings_of(objective, *, rewards=EXACT, train=None, **options):
    return AlignConfig(
        objective=config.method(OBJECTIVE, objective, **options),
        rewards=rewards,
        contexts=ContextsConfig(most=200),
        rollouts=RolloutConfig(size=4),
        train=replace(SHORT, batch_positions=50, validate_every_epochs=0.5, **(train or {})),
    )


def weights(recommender):
    return {n: t.clone() for n, t in recommender.generator.value.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", methods.METHODS["objectives"])
def test_every_objective_moves_a_copy_and_leaves_the_bundle_alone(tiny, name):
    before = weights(tiny.run.recommender)
    seen = []
    result = run_alignment(
        tiny.run.recommender,
        replace(settings_of(name), judge=config.method(REWARD, "judge", backend="similarity")),
        evaluate=False,
        on_validation=lambda policy, entry: seen.append(
            policy.state_dict()["items.weight"].clone()
        ),
    )
    assert same(before, weights(tiny.run.recommender))
    assert not torch.equal(seen[0], seen[-1])
    assert [entry["epoch"] for entry in result.curve] == [0.0, 0.5, 1.0]
    best = max(entry["ndcg@10"] for entry in result.curve)
    assert result.curve[0]["ndcg@10"] <= best == pytest.approx(result.training.best_metric)


def test_the_new_bundle_names_its_parent_and_answers_after_loading(tiny, tmp_path):
    parent = sidrec.load(tiny.run.bundle)
    result = run_alignment(parent, settings_of("grpo"), run_dir=tmp_path / "run")
    assert result.bundle is not None
    manifest = json.loads((result.bundle / "manifest.json").read_text())
    assert manifest["parents"]["aligned_from"] == artifact.load(tiny.run.bundle).hash
    loaded = sidrec.load(result.bundle)
    assert same(weights(loaded), weights(result.recommender))
    history = tiny.run.example_history()
    assert loaded.recommend(history).equals(result.recommender.recommend(history))
    assert loaded.hybrid is not None
    assert set(result.reports) == {"before", "after"}
    assert config.parse(AlignConfig, loaded.provenance["align"]) == settings_of("grpo")


def test_an_interrupted_alignment_resumes_to_the_bit(tiny, tmp_path, monkeypatch):
    for name, step in (
        ("adagrpo", StepConfig()),
        ("rad_dpo", StepConfig()),
        ("ppo", StepConfig(dropout=False, sync_steps=3)),
    ):
        options = {"difficulty": "nll_quantile", "warmup_contexts": 60} if name == "adagrpo" else {}
        settings = replace(settings_of(name, **options), step=step)
        whole = run_alignment(
            tiny.run.recommender, settings, run_dir=tmp_path / f"{name}-whole", evaluate=False
        )
        often = replace(settings, train=replace(settings.train, checkpoint_every_seconds=1e-9))
        stopped = []

        def stop(policy, entry, stopped=stopped):
            stopped.append(entry)
            if len(stopped) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_alignment(
                tiny.run.recommender, often, run_dir=tmp_path / name, evaluate=False,
                on_validation=stop,
            )  # fmt: skip
        resumed = run_alignment(
            tiny.run.recommender, often, run_dir=tmp_path / name, evaluate=False
        )
        assert same(weights(whole.recommender), weights(resumed.recommender)), name
        assert whole.curve == resumed.curve


def test_a_run_folder_of_another_objective_is_not_taken_for_this_one(tiny, tmp_path):
    run_alignment(tiny.run.recommender, settings_of("dpo"), run_dir=tmp_path, evaluate=False)
    with pytest.raises(ConfigError, match="other settings"):
        run_alignment(tiny.run.recommender, settings_of("sft"), run_dir=tmp_path, evaluate=False)


def test_the_guard_stops_a_run_that_hurts_and_gives_the_start_back(tiny):
    harmful = settings_of("grpo", train={"learning_rate": 0.5, "epochs": 4, "warmup_steps": 0})
    result = run_alignment(tiny.run.recommender, harmful, evaluate=False)
    assert result.stopped_by_guard.startswith("guard: validation ndcg@10 -")
    assert result.training.epochs_run < 4
    assert same(weights(result.recommender), weights(tiny.run.recommender))
    assert result.validation.value == 0
    free = run_alignment(tiny.run.recommender, replace(harmful, guard=False), evaluate=False)
    assert free.training.epochs_run == 4 and not free.stopped_by_guard


def test_a_constant_reward_leaves_the_policy_where_it_is(tiny):
    validity = (config.method(REWARD, "validity"),)
    moved = []
    result = run_alignment(
        tiny.run.recommender,
        settings_of("grpo", rewards=validity, kl_weight=0.0),
        evaluate=False,
        on_validation=lambda policy, entry: moved.append(
            policy.state_dict()["items.weight"].clone()
        ),
    )
    assert torch.equal(moved[0], moved[-1])
    assert result.training.stopped_because == "epochs"
    assert result.training_means["silent_share"] == 1.0
    assert result.summary()["training_means"]["missing_rewards"] == 0.0


def test_closed_gates_train_as_likelihood_does_to_the_bit(tiny):
    closed = run_alignment(
        tiny.run.recommender, settings_of("adagrpo", gate="closed"), evaluate=False
    )
    likelihood = run_alignment(
        tiny.run.recommender,
        settings_of("grpo", group_weight=0.0, nll_weight=1.0, kl_weight=0.0),
        evaluate=False,
    )
    assert same(weights(closed.recommender), weights(likelihood.recommender))


def test_judging_nothing_equals_the_business_reward_alone_to_the_bit(tiny):
    judge = config.method(REWARD, "judge", backend="similarity")
    step = StepConfig(judged_share=0.0)
    without = run_alignment(
        tiny.run.recommender,
        replace(settings_of("a2po", fusion="a2po"), judge=judge, step=step),
        evaluate=False,
    )
    business = run_alignment(
        tiny.run.recommender,
        replace(settings_of("a2po", fusion="business"), judge=judge, step=step),
        evaluate=False,
    )
    assert same(weights(without.recommender), weights(business.recommender))


def test_preferences_of_the_callers_own_are_learnt_from(tiny):
    train = tiny.run.split.train
    users = np.flatnonzero(train.lengths > 3)[:60]
    histories = Histories.from_lists([train[u][:-1] for u in users])
    positives = Histories.from_lists([train[u][-1:] for u in users])
    negatives = Histories.from_lists([train[u][:1] for u in users])
    chosen = Preferences(histories, positives, negatives, users.astype(np.int64))
    result = run_alignment(
        tiny.run.recommender, settings_of("dpo"), preferences=chosen, evaluate=False
    )
    assert result.counts["contexts"] == len(users)


def test_impressions_of_held_out_events_are_left_out(tiny):
    parts = tiny.run.split
    user, target = int(parts.test.user_rows[0]), int(parts.test.targets[0])
    one, other = Histories.from_lists([[0], [0]]), Histories.from_lists([[target], [target]])
    nothing = Histories.from_lists([[], []])
    both = Preferences(one, other, nothing, np.array([user, -1]))
    assert without_held_out(both, parts).users_R.tolist() == [-1]


def test_a_file_of_impressions_is_read_and_what_is_dropped_is_said(tiny, tmp_path):
    items = tiny.run.dataset.items.item_ids
    table = pl.DataFrame(
        {
            "history": [[items[0], items[1]], [items[2]], ["nobody"]],
            "candidates": [[items[3], items[4]], [items[5], "unknown"], [items[6]]],
            "clicks": [[1, 0], [1, 0], [1]],
        }
    )
    table.write_parquet(tmp_path / "shown.parquet")
    contexts = ContextsConfig(
        source="impressions", impressions=str(tmp_path / "shown.parquet"), reward_share=0.0
    )
    settings = replace(settings_of("rad_dpo"), contexts=contexts)
    result = run_alignment(tiny.run.recommender, settings, evaluate=False)
    assert result.counts["contexts"] == 2
    assert any("no history" in note for note in result.counts["notes"])


def test_other_data_than_the_bundles_are_refused(tiny):
    other = replace(tiny.run.dataset, content_hash="0" * 64)
    with pytest.raises(DataError, match="fitted on"):
        run_alignment(tiny.run.recommender, settings_of("grpo"), data=other)


def test_a_reference_of_other_ids_is_refused(tiny, monkeypatch):
    ids = tiny.run.recommender.ids
    swapped = replace(ids, codes=np.roll(ids.codes, 1, axis=0))
    other = replace(tiny.run.recommender, ids=swapped)
    with pytest.raises(ConfigError, match="same semantic IDs"):
        require_same_ids(tiny.run.recommender, other)
    require_same_ids(tiny.run.recommender, tiny.run.recommender)
    monkeypatch.setattr(aligning, "load", lambda path, device: other)
    with pytest.raises(ConfigError, match="same semantic IDs"):
        run_alignment(tiny.run.recommender, replace(settings_of("dpo"), reference="other"))


def test_another_bundle_may_be_the_reference(tiny, tmp_path):
    other = sidrec.load(tiny.run.bundle)
    with torch.no_grad():
        other.generator.value.items.weight.mul_(3.0)
    other.save(tmp_path / "other")
    moved = []
    for reference in (None, str(tmp_path / "other")):
        run_alignment(
            tiny.run.recommender,
            replace(settings_of("dpo"), reference=reference),
            evaluate=False,
            on_validation=lambda policy, _: moved.append(policy.items.weight.detach().clone()),
        )
    assert torch.equal(moved[0], moved[3]) and not torch.equal(moved[2], moved[5])


def test_contexts_of_unknown_items_are_left_out_and_counted(tiny):
    num_items = len(tiny.run.dataset.items)
    lists = Histories.from_lists
    chosen = Preferences(
        lists([[0], [1], [2]]), lists([[3], [num_items], [4]]), lists([[], [], [-1]]),
        np.array([-1, -1, -1]),
    )  # fmt: skip
    result = run_alignment(
        tiny.run.recommender, settings_of("sft"), preferences=chosen, evaluate=False
    )
    assert result.counts["contexts"] == 1
    assert any("2 of 3 contexts name items outside" in note for note in result.counts["notes"])
    with pytest.raises(DataError, match="no context is left"):
        run_alignment(
            tiny.run.recommender, settings_of("sft"), preferences=chosen.take(np.array([1])),
            evaluate=False,
        )  # fmt: skip


def test_group_objectives_without_rewards_say_what_to_add(tiny):
    with pytest.raises(ConfigError, match=r"\[\[rewards\]\]"):
        run_alignment(tiny.run.recommender, settings_of("grpo", rewards=()), evaluate=False)


def test_settings_that_contradict_are_refused():
    with pytest.raises(ConfigError, match="constrained"):
        AlignConfig(renormalise=True, rollouts=RolloutConfig(constrained=False))
    with pytest.raises(ConfigError, match="dropout = false"):
        StepConfig(sync_steps=4)
    with pytest.raises(ConfigError, match='source = "impressions"'):
        ContextsConfig(impressions="shown.parquet")


def test_users_that_rewards_do_not_learn_from_keep_their_row_and_lose_their_events(tiny):
    train = tiny.run.split.train
    kept = only(train, np.array([2, 5]))
    assert len(kept) == len(train)
    assert kept[5].tolist() == train[5].tolist()
    assert kept.lengths.sum() == train.lengths[[2, 5]].sum()


def test_an_alignment_that_broke_says_so(tiny):
    broken = settings_of("grpo", train={"learning_rate": 1e30, "warmup_steps": 0})
    with pytest.raises(ServiceError, match="loss"):
        run_alignment(tiny.run.recommender, replace(broken, guard=False), evaluate=False)


def test_a_section_of_a_recipe_changes_the_default_of_its_field_not_that_of_its_class():
    settings = config.parse(AlignConfig, {"train": {"epochs": 7}})
    assert settings.train == replace(SHORT, epochs=7)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipes_are_read(path):
    settings = load_align_config(path)
    assert settings.name == path.stem
    assert settings.objective.name in methods.METHODS["objectives"]
