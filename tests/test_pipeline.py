from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import sidrec
from sidrec import config, pipeline, plan, recipe
from sidrec.errors import ConfigError, DataError
from sidrec.evaluation import Report
from sidrec.tokenizers.lifecycle import churn
from sidrec.tokenizers.residual_kmeans import ResidualKMeans
from sidrec.types import Items


def events_of(run):
    seen = []
    run(seen.append)
    return [(e["stage"], e.get("message", "")) for e in seen]


def test_a_run_leaves_a_bundle_reports_and_the_recipe_that_made_it(tiny):
    settings = recipe.load_config(tiny.recipe)
    assert recipe.load_config(tiny.run_dir / "recipe.toml") == settings
    summary = json.loads((tiny.run_dir / "summary.json").read_text())
    assert set(summary["systems"]) == set(tiny.run.recommender.systems)
    report = Report.from_json((tiny.run_dir / "reports" / "causal.json").read_text())
    assert report.value("recall@10") == summary["systems"]["causal"]["recall@10"]["value"]


def test_running_again_loads_every_stage_and_gives_the_same_bytes(tiny):
    before = (tiny.run.bundle / "manifest.json").read_bytes()
    settings = recipe.load_config(tiny.recipe)
    seen = events_of(lambda e: pipeline.run(settings, run_dir=tiny.run_dir, on_event=e))
    fitted = [message for stage, message in seen if stage.split()[0] in STAGES and message]
    assert set(fitted) == {"already done"}
    assert (tiny.run.bundle / "manifest.json").read_bytes() == before


STAGES = ("embeddings", "tokenizers", "generators", "scorers")


def test_a_changed_setting_redoes_its_stage_and_what_follows_only(tiny):
    settings = recipe.load_config(tiny.recipe)
    changed = replace(
        settings,
        collisions="counter",
        scorers=settings.scorers[:1],
        hybrid=recipe.HybridConfig(members=()),
    )
    seen = events_of(lambda e: pipeline.fit(None, changed, run_dir=tiny.run_dir, on_event=e))
    done = dict(reversed(seen))
    assert done["embeddings lsa"] == done["tokenizers residual_kmeans"] == "already done"
    assert done["generators causal"] == "fitting"


def test_a_tokenizer_that_names_items_otherwise_leaves_no_model_of_the_old_ids(tiny, monkeypatch):
    settings = replace(
        recipe.load_config(tiny.recipe), scorers=(), hybrid=recipe.HybridConfig(members=())
    )
    encode = ResidualKMeans.encode

    def other(self, vectors):
        ids = encode(self, vectors)
        return replace(ids, codes=np.roll(ids.codes, 1, axis=0))

    monkeypatch.setattr(ResidualKMeans, "encode", other)
    seen = events_of(lambda e: pipeline.fit(None, settings, run_dir=tiny.run_dir, on_event=e))
    done = dict(reversed(seen))
    assert done["tokenizers residual_kmeans"] == "already done"
    assert done["generators causal"] == "fitting"


def test_the_same_seed_gives_the_same_recommendations_and_another_seed_others(tiny):
    settings = recipe.load_config(tiny.recipe)
    settings = replace(settings, scorers=(), hybrid=recipe.HybridConfig(members=()))
    history = tiny.run.example_history()
    one, two, other = (
        pipeline.fit(tiny.run.dataset, replace(settings, seed=seed)).recommend(history)
        for seed in (0, 0, 1)
    )
    assert one.equals(two)
    assert not one.equals(other)


def test_no_stage_before_evaluation_sees_a_test_target():
    """Replacing every user's last event by another item must not change what is fitted."""
    rng = np.random.default_rng(0)
    rows = [(u, f"i{i}", t) for u in range(40) for t, i in enumerate(rng.permutation(20)[:6])]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    last = pl.col("timestamp") == 5
    moved = events.with_columns(
        pl.when(last & (pl.col("user_id") > 0))
        .then(pl.lit("i0"))
        .otherwise(pl.col("item_id"))
        .alias("item_id")
    )
    items = pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(20)],
            "title": [f"word{i % 5} thing{i % 3}" for i in range(20)],
        }
    )
    settings = config.parse(
        recipe.RunConfig,
        {
            "embedding": {"name": "fusion", "lsa": {"dim": 4}, "collaborative": {"dim": 4}},
            "tokenizer": {"name": "residual_kmeans", "num_codes": 4},
            "generator": {"name": "causal", "width": 8, "train": {"epochs": 1}},
            "scorers": [
                {"name": "popularity"},
                {"name": "transition_graph"},
                {"name": "dense", "width": 8, "train": {"epochs": 1}},
            ],
            "hybrid": {"members": ["generator", "dense", "transition_graph"]},
        },
    )
    fitted = [pipeline.fit(sidrec.read(table, items), settings) for table in (events, moved)]
    history = ["i1", "i2"]
    for system in fitted[0].systems:
        answers = [f.recommend(history, system=system) for f in fitted]
        assert answers[0].equals(answers[1]), system


def test_default_codebooks_fit_a_small_catalogue():
    items = pl.DataFrame({"user_id": [1, 1, 2], "item_id": ["a", "b", "c"], "timestamp": [1, 2, 3]})
    dataset = sidrec.read(items)
    settings = recipe.default_config(dataset)
    assert settings.tokenizer.config.num_codes <= 3
    assert config.parse(recipe.RunConfig, config.to_dict(settings)) == settings


def test_a_plan_counts_and_trains_nothing(tiny):
    settings = recipe.load_config(tiny.recipe)
    figures = plan.plan(settings)
    causal = tiny.run.recommender.generator.value
    weights = sum(p.numel() for p in causal.parameters())
    assert figures["causal: parameters"] == f"{weights:,}"
    assert figures["test questions"] == len(tiny.run.split.test)


@pytest.mark.parametrize("name", ["causal", "liger"])
def test_a_plan_refuses_more_experts_than_a_batch_can_fill(tiny, name):
    settings = recipe.load_config(tiny.recipe)
    num_experts = 1 + 2 * settings.generator.train.batch_positions
    generator = config.method(recipe.GENERATOR, name, num_experts=num_experts, width=8)
    generator = replace(generator, train=settings.generator.train)
    with pytest.raises(ConfigError, match=rf"^{name}\.num_experts = {num_experts} is more"):
        plan.plan(replace(settings, generator=generator))


@pytest.mark.parametrize(
    ("name", "values", "sizes"),
    [
        ("residual_kmeans", {"num_codes": (8, 4), "num_levels": 2}, (8, 4)),
        ("plum_rqvae", {"num_codes": 64, "min_codes": 32}, (64, 32, 32)),
        ("fsq", {"levels": (3, 2), "num_levels": 2}, (6, 6)),
        ("sarq", {"num_codes": 5, "num_levels": 2}, (5, 5)),
        ("barge", {"num_codes": (8, 4), "num_levels": 2}, (8, 4, 8, 4)),
    ],
)
def test_a_plan_knows_the_codebooks_and_refuses_fewer_items_than_codes(name, values, sizes):
    settings = config.method(recipe.TOKENIZER, name, **values).config
    assert plan.code_sizes(name, settings, 64) == sizes
    if name != "fsq":  # its grids need no items
        with pytest.raises(DataError, match=f"{name} needs at least num_codes"):
            plan.code_sizes(name, settings, max(sizes) - 1)


def test_a_recipe_must_name_a_hybrid_scorer_that_exists():
    asked = {"scorers": ["popularity"], "hybrid": {"members": ["generator", "sasrec"]}}
    with pytest.raises(ConfigError, match="members names 'sasrec'"):
        config.parse(recipe.RunConfig, asked)


def test_a_bundle_is_not_measured_on_other_data(tiny):
    other = replace(tiny.run.dataset, content_hash="0" * 64)
    with pytest.raises(DataError, match="content hash"):
        pipeline.require_same_data(tiny.run.recommender, other)


def test_the_hybrid_is_at_least_as_good_on_validation_as_its_better_part(tiny):
    run = tiny.run
    settings = recipe.load_config(tiny.recipe)
    reports = pipeline.evaluate_systems(
        run.recommender, run.dataset, run.split, settings=settings, part="valid"
    )
    parts = max(reports[name].value("ndcg@10") for name in ("causal", "dense"))
    assert reports["hybrid"].value("ndcg@10") >= parts - 1e-9
    assert reports["causal"].protocol.beam == 20
    assert reports["hybrid"].protocol.beam == 100  # its pool widens the search


def test_systems_to_measure_are_named_as_for_recommending(tiny):
    run, settings = tiny.run, recipe.load_config(tiny.recipe)

    def measured(*names):
        return pipeline.evaluate_systems(
            run.recommender, run.dataset, run.split, settings=settings, systems=names
        )

    assert set(measured("generator")) == {"causal"}
    with pytest.raises(ConfigError, match="no system 'casual'"):
        measured("casual")


def test_default_hybrid_members_follow_the_configured_scorers():
    from sidrec.recipe import RunConfig

    both = config.parse(RunConfig, {"scorers": [{"name": "popularity"}, {"name": "dense"}]})
    assert both.hybrid.members == ("generator", "dense")
    alone = config.parse(RunConfig, {"scorers": [{"name": "popularity"}]})
    assert alone.hybrid.members == ()


def test_a_fit_with_a_parent_goes_on_with_its_codes_and_names_it(tiny, tmp_path):
    settings = replace(
        recipe.load_config(tiny.recipe), scorers=(), hybrid=recipe.HybridConfig(members=()), seed=9
    )
    events = []
    alone = pipeline.fit(tiny.run.dataset, settings)
    child = replace(settings, parent=str(tiny.run.bundle))
    child = pipeline.fit(tiny.run.dataset, child, on_event=events.append)
    old = tiny.run.recommender
    kept, without = churn(old.ids, child.ids).kept, churn(old.ids, alone.ids).kept_relabelled
    assert kept[0] > 0.9 and kept[0] >= without[0] and kept[1] > without[1]
    assert child.ids_parent == old.ids_version and alone.ids_parent is None
    assert any("codes of the parent" in event.get("message", "") for event in events)


def test_a_run_says_how_many_items_a_view_lacked(tiny):
    settings = recipe.load_config(tiny.recipe)
    settings = replace(settings, embedding=config.method(recipe.EMBEDDING, "fusion"))
    data = recipe.read_data(settings.data)
    data = replace(data, items=with_a_new_item(data.items))
    said = events_of(lambda on_event: pipeline.Stages.of(data, settings, None, on_event).embedded)
    (remark,) = [m for stage, m in said if stage == "embeddings fusion" and "no view" in m]
    assert "'collaborative'" in remark


def with_a_new_item(items):
    named = items.attributes.head(1).with_columns(pl.lit("nobody took it").alias("item_id"))
    item_ids = np.append(items.item_ids, "nobody took it").astype(object)
    return Items(item_ids, pl.concat([items.attributes, named], how="diagonal_relaxed"))
