from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import sidrec
from sidrec import artifact, fitted
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.search import search
from sidrec.errors import ArtifactError, ConfigError, DataError
from sidrec.generators.causal import Causal
from sidrec.recommender import serving_context
from sidrec.tokenizers import lifecycle
from sidrec.types import Histories, HistoryBatch, SemanticIds


@pytest.fixture(scope="session")
def recommender(tiny):
    return tiny.run.recommender


@pytest.fixture
def history(tiny):
    return tiny.run.example_history()


def test_a_loaded_bundle_answers_as_the_one_that_was_saved(tiny, recommender, history):
    loaded = sidrec.load(tiny.run.bundle)
    assert loaded.systems == recommender.systems
    for system in recommender.systems:
        before, after = (r.recommend(history, system=system) for r in (recommender, loaded))
        assert before.equals(after), system
    assert loaded.provenance == recommender.provenance


def test_saving_a_loaded_bundle_gives_the_same_hash(tiny, tmp_path):
    loaded = sidrec.load(tiny.run.bundle)
    assert loaded.save(tmp_path / "copy") == sidrec.load(tiny.run.bundle).save(tmp_path / "again")


def test_answers_do_not_depend_on_who_else_is_asked(recommender, tiny):
    histories = [
        [str(recommender.items.item_ids[i]) for i in tiny.run.split.test.histories[row]]
        for row in range(5)
    ]
    for system in recommender.systems:
        together = recommender.recommend(histories=histories, k=5, system=system)
        alone = [recommender.recommend(h, k=5, system=system) for h in histories]
        ids = [frame["item_id"].to_list() for frame in alone]
        assert (
            together.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()
            == ids
        ), system


@pytest.mark.parametrize("system", ["hybrid", "causal", "dense", "popularity"])
def test_every_rule_is_kept_and_k_items_come_back_when_k_exist(recommender, history, system):
    ids = list(map(str, recommender.items.item_ids))
    num_items = len(ids)
    everything = recommender.recommend(history, k=num_items, system=system, exclude_seen=False)
    assert sorted(everything["item_id"]) == sorted(ids)
    assert everything["rank"].to_list() == list(range(1, num_items + 1))
    assert (np.diff(everything["score"]) <= 0).all()
    unseen = recommender.recommend(history, k=num_items, system=system)
    assert set(unseen["item_id"]) == set(ids) - set(history)
    allow = [item for item in ids[:7] if item not in history]
    allowed = recommender.recommend(history, k=10, system=system, allow=allow)
    assert set(allowed["item_id"]) == set(allow)
    banned = recommender.recommend(
        history, k=num_items, system=system, exclude=ids[:30], exclude_seen=False
    )
    assert set(banned["item_id"]) == set(ids[30:])
    first = everything["title"][0]
    tree = {"not": {"field": "title", "op": "eq", "value": first}}
    for where in (tree, lambda frame: frame["title"] != first):
        kept = recommender.recommend(
            history, k=num_items, system=system, where=where, exclude_seen=False
        )
        assert set(kept["title"]) == set(everything["title"]) - {first}


def test_a_rule_that_leaves_nothing_gives_no_rows(recommender, history):
    assert recommender.recommend(history, allow=[]).height == 0


def test_an_unknown_item_is_named_or_skipped_and_counted(recommender, history):
    with pytest.raises(DataError, match=r"not in the catalogue, e\.g\. \['\.\./nope'\]"):
        recommender.recommend([*history, "../nope"])
    skipped = recommender.recommend([*history, "../nope"], unknown="skip")
    assert set(skipped["skipped"]) == {1}
    assert skipped.drop("skipped").equals(recommender.recommend(history))


def test_requests_of_one_user_are_counted_apart(recommender, history):
    asked = [[*history, "nope"], ["nope", "no", history[0]]]
    frame = recommender.recommend(histories=asked, user_ids=["a", "a"], k=2, unknown="skip")
    assert frame["skipped"].to_list() == [1, 1, 2, 2]


def test_an_empty_history_is_answered_by_popularity_and_says_so(recommender, history):
    frame = recommender.recommend(histories=[[], history], k=3)
    assert frame.filter(pl.col("user_id") == "0")["source"].unique().to_list() == ["popularity"]
    best = np.argsort(-recommender.train_counts_N, kind="stable")[:3]
    assert frame["item_id"].to_list()[:3] == recommender.items.item_ids[best].tolist()
    assert frame.filter(pl.col("user_id") == "1")["item_id"].to_list() == (
        recommender.recommend(history, k=3)["item_id"].to_list()
    )


def test_the_levels_of_an_explanation_add_up_to_the_score(recommender, history):
    top = recommender.recommend(history, k=1, system="causal", exclude_seen=False)
    why = recommender.explain(history, top["item_id"][0])
    assert why["log_prob"] == pytest.approx(top["score"][0], abs=1e-4)
    assert [level["code"] for level in why["levels"]] == top["semantic_id"][0].to_list()
    similarity = [item["similarity"] for item in why["history"]]
    assert similarity == sorted(similarity, reverse=True)


def test_similar_items_are_the_nearest_by_cosine_without_the_item_itself(recommender, history):
    found = recommender.similar(history[0], k=5)
    vectors = recommender.vectors.vectors
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    row = recommender.items.row_of[history[0]]
    cosines = unit @ unit[row]
    cosines[row] = -np.inf
    np.testing.assert_allclose(found["similarity"], np.sort(cosines)[::-1][:5], rtol=1e-4)
    assert history[0] not in found["item_id"].to_list()


def test_added_items_can_be_recommended_and_no_old_id_moves(recommender, history, tmp_path):
    table = recommender.items.attributes.head(3).with_columns(
        pl.Series("item_id", ["new/1", "../new 2", "новый 🎸"])
    )
    larger = recommender.add_items(table)
    num_old = len(recommender.items)
    np.testing.assert_array_equal(larger.ids.codes[:num_old], recommender.ids.codes)
    assert len(np.unique(larger.ids.codes, axis=0)) == num_old + 3
    for system in ("hybrid", "causal", "dense"):
        everything = larger.recommend(history, k=99, system=system, exclude_seen=False)
        assert len(everything) == num_old + 3, system
    assert larger.recommend(["новый 🎸"], k=3).height == 3
    larger.save(tmp_path / "larger")
    loaded = sidrec.load(tmp_path / "larger")
    assert loaded.recommend(history, k=99).equals(larger.recommend(history, k=99))
    with pytest.raises(DataError, match="already"):
        larger.add_items(table)
    assert len(recommender.items) == num_old


def test_added_items_of_which_nothing_is_known_are_counted(recommender, caplog):
    known = recommender.items.attributes.head(1).with_columns(item_id=pl.lit("like the first"))
    recommender.add_items(known)
    assert not caplog.records
    recommender.add_items(pl.DataFrame({"item_id": ["n0", "n1"]}))
    assert "nothing is known of 2 of 2 new items" in caplog.text


def test_added_items_leave_the_scores_of_all_others_as_they_were(recommender, tiny, tmp_path):
    """Far-off newcomers move the mean of the vectors; what training saw must not move with it."""
    num_old, titles = len(recommender.items), ["zebra zeppelin"] * 30
    table = pl.DataFrame({"item_id": [f"new {i}" for i in range(30)], "title": titles})
    recommender.add_items(table).save(tmp_path / "larger")
    larger = sidrec.load(tmp_path / "larger")
    batch = HistoryBatch.from_histories(tiny.run.split.test.histories, max_length=20)
    exact = {"rtol": 1e-5, "atol": 1e-5}
    before, after = (r.scorers["dense"].value.scores(batch) for r in (recommender, larger))
    torch.testing.assert_close(after[:, :num_old], before, **exact)
    before, after = (r.generator.value.item_scores(batch) for r in (recommender, larger))
    torch.testing.assert_close(after[:, :num_old], before, **exact)
    codes_BKL = torch.from_numpy(recommender.ids.codes[:9]).expand(batch.num_requests, -1, -1)
    before, after = (log_probs_by_tables(r, batch, codes_BKL) for r in (recommender, larger))
    torch.testing.assert_close(after, before, **exact)


def log_probs_by_tables(recommender, batch, codes_BKL):
    """Whole-ID log-probabilities over the whole codebook, without the mean items of the tree."""
    chosen = replace(recommender.generator.config, node_vectors=False)
    context = serving_context(recommender.items, recommender.vectors, recommender.ids)
    model = Causal.build(context, chosen).eval()
    model.load_state_dict(recommender.generator.value.state_dict())
    with torch.no_grad():
        return model.log_probs(batch, codes_BKL)


@pytest.mark.parametrize("system", ["causal", "dense", "hybrid"])
def test_the_twin_of_a_systems_first_choice_is_recommended_too(recommender, history, system):
    members = recommender.hybrid.members
    shares = replace(recommender.hybrid, weights=(0.4, 0.4, 0.2)[: len(members)])
    recommender = replace(recommender, hybrid=shares)
    first = recommender.recommend(history, k=1, system=system)["item_id"][0]
    row = recommender.items.row_of[first]
    table = recommender.items.attributes[row].with_columns(pl.Series("item_id", ["twin"]))
    larger = recommender.add_items(table)
    listed = larger.recommend(history, k=99, system=system)["item_id"].to_list()
    assert listed.index("twin") < len(listed) / 4
    assert set(larger.recommend([*history, "twin"], k=99, system=system)["item_id"]) < set(listed)


def test_adding_items_leaves_the_models_that_serve_where_they_are(recommender, monkeypatch):
    moved = []
    for part in (recommender.generator, recommender.scorers["dense"]):
        monkeypatch.setattr(part.value, "_apply", lambda *a, **k: moved.append(a))
    recommender.add_items(pl.DataFrame({"item_id": ["new"], "title": ["a new thing"]}))
    assert not moved


def test_nearest_items_do_not_depend_on_the_size_of_a_block(monkeypatch):
    vectors = np.random.default_rng(0).integers(-2, 3, (30, 3)).astype(np.float32)  # with ties
    whole = fitted.nearest_items(vectors[:7], vectors, 5)
    monkeypatch.setattr(fitted, "BLOCK_CELLS", 60)
    np.testing.assert_array_equal(fitted.nearest_items(vectors[:7], vectors, 5), whole)
    assert (whole[:, 0] <= np.arange(7)).all()


def test_a_new_item_with_the_text_of_an_old_one_scores_close_to_it(recommender, history):
    old = str(recommender.items.item_ids[0])
    table = recommender.items.attributes.head(1).with_columns(pl.Series("item_id", ["twin"]))
    larger = recommender.add_items(table)
    rows = Histories.from_lists([recommender.items.rows(history)])
    before = recommender.candidates(rows, len(recommender.items), system="dense")
    after = larger.candidates(rows, len(larger.items), system="dense")
    rank = {int(i): r for r, i in enumerate(after.rows_BK[0])}
    assert abs(rank[0] - rank[len(recommender.items)]) < len(larger.items) / 2
    assert before.rows_BK.shape[1] + 1 == after.rows_BK.shape[1]
    assert old in larger.items.row_of


def test_the_tree_of_inspect_holds_every_item_once(recommender):
    report = recommender.inspect(limit=1000)
    assert sum(node["items"] for node in report["tree"]) == len(recommender.items)
    first = report["tree"][0]
    below = recommender.inspect((int(first["prefix"]),), limit=1000)
    assert sum(node["items"] for node in below["tree"]) == first["items"]
    level = report["levels"][0]
    assert level["used"] + level["dead"] == level["codes"]


def test_collisions_are_reported_by_name(recommender):
    codes = recommender.ids.codes.copy()
    codes[3] = codes[5]
    ids = replace(recommender.ids, codes=codes)
    report = replace(recommender, ids=ids).inspect()
    assert report["collisions"] == [sorted(map(str, recommender.items.item_ids[[3, 5]]))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"system": "hybird"}, "no system 'hybird'"),
        ({"unknown": "maybe"}, "unknown must be"),
        ({"histories": [[]]}, "either history or histories"),
        ({"exclude": ["nope"]}, "exclude: 1 of 1 items"),
        ({"where": lambda frame: [1, 2]}, "one boolean an item"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(recommender, history, options, message):
    with pytest.raises((ConfigError, DataError), match=message):
        recommender.recommend(history, **options)


def test_a_text_is_not_taken_for_a_history(recommender):
    with pytest.raises(DataError, match="list of item ids"):
        recommender.recommend("item-1")


@pytest.mark.parametrize(
    "name", ["items.parquet", "semantic_ids.parquet", "generator/arrays.safetensors"]
)
def test_a_bundle_with_one_changed_byte_is_refused(tiny, tmp_path, name):
    shutil.copytree(tiny.run.bundle, tmp_path / "bundle")
    path = tmp_path / "bundle" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="SHA-256"):
        sidrec.load(tmp_path / "bundle")


def test_a_bundle_names_the_version_of_its_ids_and_the_one_they_came_from(recommender, tmp_path):
    manifest = json.loads((recommender_path(recommender, tmp_path / "old")).read_text())
    assert manifest["state"]["ids_version"] == recommender.ids_version
    assert manifest["parents"] == {}
    larger = recommender.add_items(pl.DataFrame({"item_id": ["new"], "title": ["a new thing"]}))
    assert larger.ids_version != larger.ids_parent == recommender.ids_version
    manifest = json.loads((recommender_path(larger, tmp_path / "new")).read_text())
    assert manifest["parents"] == {"ids": recommender.ids_version}
    assert sidrec.load(tmp_path / "new").ids_parent == recommender.ids_version
    assert larger.inspect()["bundle"]["version they came from"] == recommender.ids_version


def recommender_path(recommender, folder):
    """The manifest of a bundle saved there."""
    recommender.save(folder)
    return folder / "manifest.json"


def test_ids_of_another_version_than_the_manifest_names_are_refused(recommender, tmp_path):
    other = replace(recommender)
    other.__dict__["ids_version"] = "0" * 64
    other.save(tmp_path / "mixed")
    with pytest.raises(ArtifactError, match="names semantic IDs of version 000000000000"):
        sidrec.load(tmp_path / "mixed")


def test_a_generator_goes_on_with_renamed_codes_once_they_are_renamed_back(recommender, history):
    """A re-fit that finds the same clusters under other numbers costs nothing with the map."""
    random = np.random.default_rng(0)
    codes = lifecycle.renamed(
        recommender.ids.codes, [random.permutation(v) for v in recommender.ids.num_codes]
    )
    refitted = replace(recommender.ids, codes=codes)
    back = lifecycle.migration(recommender.ids, refitted).apply(refitted)
    before, swapped, mapped = (
        r.recommend(history, k=20, system="causal")
        for r in (
            recommender,
            recommender.with_ids(refitted, recommender.tokenizer),
            recommender.with_ids(back, recommender.tokenizer),
        )
    )
    assert mapped.equals(before)
    assert not swapped["item_id"].equals(before["item_id"])


def test_ids_of_other_items_or_sizes_are_refused(recommender):
    ids, tokenizer = recommender.ids, recommender.tokenizer
    fewer = SemanticIds(ids.item_ids[1:], ids.codes[1:], ids.num_codes)
    with pytest.raises(DataError, match="needs IDs of the 60 items"):
        recommender.with_ids(fewer, tokenizer)
    wider = replace(ids, num_codes=tuple(v + 1 for v in ids.num_codes))
    with pytest.raises(DataError, match="codebooks of the sizes"):
        recommender.with_ids(wider, tokenizer)


def test_weights_trained_on_other_ids_are_refused(recommender, tmp_path):
    codes_NL = recommender.ids.codes
    other = replace(recommender.ids, codes=codes_NL[np.roll(np.arange(len(codes_NL)), 1)])
    context = serving_context(recommender.items, recommender.vectors, other)
    recommender.save(tmp_path / "bundle")
    saved = artifact.load_nested(artifact.load(tmp_path / "bundle"), "generator")
    with pytest.raises(ArtifactError, match="trained on the semantic IDs"):
        fitted.Fitted.load(saved, context)


def test_an_index_of_other_codebook_sizes_is_refused(recommender, history):
    ids = recommender.ids
    wider = replace(ids, num_codes=tuple(2 * v for v in ids.num_codes))
    rows = Histories.from_lists([recommender.items.rows(history)])
    batch = HistoryBatch.from_histories(rows, max_length=20)
    with pytest.raises(DataError, match="build the index from the IDs it was trained on"):
        search(recommender.generator.value, batch, PrefixIndex.build(wider), k=3, beam_width=3)
