"""A bundle whose generator thinks: explained in words, saved, loaded, and grown."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import sidrec
from sidrec import cli, methods
from sidrec.fitted import Fitted
from sidrec.recommender import serving_context
from sidrec.testing.tiny_catalogue import small_config
from sidrec.tokenizers.tree import ItemWords


def thinking(tiny, name="s2gr", **changes):
    """The tiny run's recommender with an untrained generator that thinks."""
    old = tiny.run.recommender
    model_class = methods.resolve("generators", name)
    config = small_config(model_class.config_class, num_clusters=3, **changes)
    context = serving_context(old.items, old.vectors, old.ids)
    value = model_class.build(context, config).eval()
    fitted = Fitted(stage="generators", name=name, config=config, value=value)
    return replace(old, generator=fitted, scorers={}, hybrid=None)


@pytest.mark.parametrize("name", ["s2gr", "s2gr_tiger"])
def test_an_explanation_says_what_each_thought_says_in_words(tiny, name):
    recommender, history = thinking(tiny, name), tiny.run.example_history()
    item = str(recommender.recommend(history, k=1)["item_id"][0])
    codes = recommender.ids.codes[recommender.items.row_of[item]]
    levels = recommender.explain(history, item)["levels"]
    assert [level["code"] for level in levels] == codes.tolist()
    clusters = recommender.generator.value.clusters
    for number, level in enumerate(levels):
        thought = level["thought"]
        own = int(clusters.clusters(number)[codes[number]])
        assert thought["holds_code"] == (thought["cluster"] == own)
        under = (recommender.ids.codes[:, :number] == codes[:number]).all(1)
        cluster_N = clusters.clusters(number).numpy()[recommender.ids.codes[:, number]]
        inside = under & (cluster_N == thought["cluster"])
        assert thought["legal"] == inside.any()
        among = inside if inside.any() else cluster_N == thought["cluster"]
        assert thought["num_items"] == among.sum() > 0
        texts = [recommender.items.texts()[row].lower() for row in np.flatnonzero(among)]
        assert thought["words"] and all(
            any(word in text for text in texts) for word in thought["words"]
        )


def test_a_saved_bundle_thinks_as_before(tiny, tmp_path):
    recommender, history = thinking(tiny), tiny.run.example_history()
    recommender.save(tmp_path / "bundle")
    loaded = sidrec.load(tmp_path / "bundle")
    item = str(recommender.items.item_ids[0])
    assert loaded.explain(history, item) == recommender.explain(history, item)


def test_new_items_are_written_and_explained(tiny):
    recommender, history = thinking(tiny), tiny.run.example_history()
    old = str(recommender.items.item_ids[3])
    row = recommender.items.attributes.row(3, named=True) | {"item_id": "brand new"}
    grown = recommender.add_items(pl.DataFrame([row], infer_schema_length=None))
    assert grown.recommend(history, k=1, allow=["brand new"])["item_id"].to_list() == ["brand new"]
    assert grown.explain(history, "brand new")["levels"][0]["thought"]["words"]
    before, after = (r.explain(history, old)["levels"] for r in (recommender, grown))
    assert [x["thought"]["cluster"] for x in before] == [x["thought"]["cluster"] for x in after]


def test_without_thoughts_an_explanation_has_codes_alone(tiny):
    recommender, history = thinking(tiny, thoughts="none"), tiny.run.example_history()
    levels = recommender.explain(history, str(recommender.items.item_ids[0]))["levels"]
    assert all(set(level) == {"code", "log_prob"} for level in levels)


def test_groups_are_named_by_what_sets_them_apart():
    words = ItemWords.of(["red coat", "red hat", "blue coat", "blue hat", "bare 77"])
    rows = np.array([0, 1, 2, 3])
    assert words.names(rows, np.array([5, 5, 2, 2]), num_words=1) == {5: ("red",), 2: ("blue",)}
    assert words.names(rows, np.array([0, 1, 0, 1]), num_words=1) == {0: ("coat",), 1: ("hat",)}
    assert words.names(rows[:0], rows[:0]) == {}


def run(capfd, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    out, err = capfd.readouterr()
    assert stop.value.code in (0, None), err
    return out


def test_recommend_prints_the_thought_before_each_code(tiny, tmp_path, capfd):
    recommender, history = thinking(tiny), tiny.run.example_history()
    recommender.save(tmp_path / "bundle")
    words = ("recommend", tmp_path / "bundle", "--history", ",".join(history), "-k", 2)
    out = run(capfd, *words, "--explain")
    item = recommender.recommend(history, k=2).to_dicts()[1]
    levels = recommender.explain(history, item["item_id"])["levels"]
    block = out[out.index(f"\n2. {item['title'][:20]}") :]
    assert "the thought before it" in block
    for level in levels:
        assert ", ".join(level["thought"]["words"]) in block
    rows = json.loads(run(capfd, *words, "--explain", "--json"))
    assert [row["explanation"]["item_id"] for row in rows] == [row["item_id"] for row in rows]
    assert "explanation" not in json.loads(run(capfd, *words, "--json"))[0]


def test_explain_copes_with_empty_and_unknown_histories(tiny, tmp_path, capfd):
    thinking(tiny).save(tmp_path / "bundle")
    path = tmp_path / "requests.jsonl"
    known = tiny.run.example_history()[0]
    lines = [{"user_id": "a", "history": []}, {"user_id": "a", "history": ["nowhere", known]}]
    path.write_text("\n".join(map(json.dumps, lines)))
    out = run(capfd, "recommend", tmp_path / "bundle", "--input", path, "-k", 1, "--explain",
              "--unknown", "skip")  # fmt: skip
    first, second = map(json.loads, out.splitlines())
    assert first["explanation"] is None and first["user_id"] == second["user_id"] == "a"
    assert [shown["item_id"] for shown in second["explanation"]["history"]] == [known]
