from __future__ import annotations

import gc
import json
import shutil
import threading
import time
import weakref
from contextlib import contextmanager

import numpy as np
import pytest

from sidrec.errors import ArtifactError, ConfigError
from sidrec.serving.problems import Problem


def activate(client, name, status=200):
    answer = client.post("/v1/models/activate", json={"name": name})
    assert answer.status_code == status, answer.text
    return answer.json()


def active(client):
    models = client.get("/v1/models").json()["models"]
    return [model["name"] for model in models if model["active"]]


def test_swap_roll_back_and_restart(serving, bundles):
    with serving() as client:
        assert active(client) == ["first"]
        assert client.post("/v1/models/rollback").json()["code"] == "no_previous_model"
        client.delete(f"/v1/items/{bundles.ids[5]}")
        client.post("/v1/items", json={"items": [{"item_id": "new"}]})
        activate(client, "second")
        assert active(client) == ["second"]
        assert client.get("/v1/items/new").status_code == 200
        assert client.get(f"/v1/items/{bundles.ids[5]}").status_code == 404
        client.post("/v1/models/rollback")
        assert active(client) == ["first"]
        client.post("/v1/models/rollback")
        assert active(client) == ["second"]
    with serving() as client:
        assert active(client) == ["second"]
    with serving(bundle=bundles.second) as client:
        assert active(client) == ["second"]


def listed(client, history):
    answer = client.post("/v1/recommend", json={"history": history, "system": "causal"})
    assert answer.status_code == 200, answer.text
    return answer.json(), [item["item_id"] for item in answer.json()["items"]]


def test_hot_swap_under_load_fails_no_request_and_mixes_no_answer(serving, bundles):
    with serving(timeout_ms=20_000) as client:
        versions = {m["name"]: m["version"] for m in client.get("/v1/models").json()["models"]}
        expected = {}
        for name in ("first", "second"):
            activate(client, name)
            body = client.post(
                "/v1/recommend", json={"history": bundles.history, "system": "causal"}
            )
            expected[name] = [item["item_id"] for item in body.json()["items"]]
        stop, faults, seen = threading.Event(), [], set()

        def ask():
            while not stop.is_set():
                body, found = listed(client, bundles.history)
                version = versions[body["model"]]
                whole = not body["degraded"] and body["model_version"] == version
                if not whole or found != expected[body["model"]]:
                    faults.append(body)
                seen.add(body["model"])

        askers = [threading.Thread(target=ask) for _ in range(2)]
        for thread in askers:
            thread.start()
        for swap in range(6):
            activate(client, ("first", "second")[swap % 2])
        stop.set()
        for thread in askers:
            thread.join()
        assert not faults and seen == {"first", "second"}


@pytest.mark.parametrize("name", ["..", "../first", "first/../second", "/etc", "a\u0000", "x" * 65])
def test_a_name_that_leaves_the_folder_is_no_model(shared, name):
    answer = shared.post("/v1/models/activate", json={"name": name})
    assert answer.status_code == 422


def damaged(bundle, folder, kind, rng):
    """A copy of the bundle with one thing wrong."""
    target = folder / f"bad-{kind}-{rng.integers(1 << 30)}"
    shutil.copytree(bundle, target)
    files = sorted(p for p in target.rglob("*") if p.is_file())
    path = files[rng.integers(len(files))]
    content = bytearray(path.read_bytes())
    if kind == "truncate":
        path.write_bytes(content[: rng.integers(len(content))])
    elif kind == "flip":
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
    elif kind == "symlink":
        moved = folder.parent / f"outside-{rng.integers(1 << 30)}"
        path.rename(moved)
        path.symlink_to(moved)
    elif kind == "missing":
        path.unlink()
    elif kind == "wrong_hash":
        manifest = json.loads((target / "manifest.json").read_text())
        name = sorted(manifest["files"])[rng.integers(len(manifest["files"]))]
        manifest["files"][name]["sha256"] = "0" * 64
        (target / "manifest.json").write_text(json.dumps(manifest))
    elif kind == "huge_header":
        arrays = target / "arrays.safetensors"
        arrays.write_bytes((1 << 60).to_bytes(8, "little") + arrays.read_bytes()[8:])
    return target


KINDS = ("truncate", "flip", "symlink", "missing", "wrong_hash", "huge_header")


def test_a_damaged_bundle_is_refused_and_the_old_one_goes_on(serving, bundles, tmp_path):
    """Manifests are identity, not signature: flips that leave it valid JSON are caught below it."""
    models, rng = tmp_path / "models", np.random.default_rng(0)
    models.mkdir()
    with serving(models_dir=models) as client:
        before = client.post("/v1/recommend", json={"history": bundles.history}).json()["items"]
        for kind in KINDS * 3:
            bad = damaged(bundles.second, models, kind, rng)
            problem = client.post("/v1/models/activate", json={"name": bad.name})
            if problem.status_code == 200:  # a flip in a free text of the manifest, say
                assert kind == "flip"
                client.post("/v1/models/rollback")
                continue
            assert problem.status_code in (404, 409), problem.text
            assert problem.json()["code"] in ("broken_model", "unknown_model")
        assert activate(client, "nothing", 404)["code"] == "unknown_model"
        after = client.post("/v1/recommend", json={"history": bundles.history}).json()["items"]
        assert after == before


def test_a_model_that_gives_no_numbers_is_refused(serving, bundles, tmp_path):
    import copy
    from dataclasses import replace

    import torch

    fitted = bundles.recommender.generator
    broken = copy.deepcopy(fitted.value)
    with torch.no_grad():
        for weights in broken.parameters():
            weights.fill_(torch.nan)
    sick = replace(bundles.recommender, generator=replace(fitted, value=broken), hybrid=None)
    models = tmp_path / "models"
    sick.save(models / "sick")
    with serving(models_dir=models) as client:
        assert activate(client, "sick", 409)["code"] == "broken_model"
    with pytest.raises((Problem, ArtifactError, ValueError)), serving(bundle=models / "sick"):
        pass


def test_an_experiment_splits_users_for_good(serving, bundles):
    with serving() as client:
        arms = [{"name": "a", "system": "popularity"}, {"name": "b", "weight": 3}]
        started = client.put("/v1/experiments/ranking", json={"variants": arms})
        assert started.status_code == 200
        assert client.put("/v1/experiments/other", json={"variants": arms}).status_code == 409
        found = {}
        for user in range(200):
            path = f"/v1/experiments/ranking/users/u{user}"
            found[f"u{user}"] = client.get(path).json()["variant"]
        assert 120 < sum(variant == "b" for variant in found.values()) < 180
        for user in list(found)[:10]:
            client.post("/v1/events", json={"events": [
                {"event_id": user, "user_id": user, "item_id": bundles.ids[0]}]})  # fmt: skip
            body = client.post("/v1/recommend", json={"user_id": user}).json()
            assert body["experiment"] == {"name": "ranking", "variant": found[user]}
            source = body["items"][0]["source"]
            assert (source == "popularity") == (found[user] == "a")
    with serving() as client:
        path = "/v1/experiments/ranking/users/u7"
        assert client.get(path).json()["variant"] == found["u7"]
        assert client.delete("/v1/experiments/ranking").json() == {"experiments": []}
        assert client.get(path).status_code == 404


@pytest.fixture
def two_models(bundles, tmp_path):
    """A folder with `whole`, and `plain` that lacks the hybrid and an attribute."""
    from dataclasses import replace

    from sidrec.types import Items

    models, recommender = tmp_path / "models", bundles.recommender
    table = recommender.items.attributes.drop("price")
    items = Items(recommender.items.item_ids, table)
    replace(recommender, hybrid=None, items=items).save(models / "plain")
    shutil.copytree(bundles.first, models / "whole")
    return models


ARMS = [{"name": "a", "system": "hybrid"}, {"name": "b"}]


def test_a_model_that_lacks_what_is_in_use_is_refused_by_name(serving, two_models):
    cheap = {"field": "price", "op": "lt", "value": 1e9}
    with serving(bundle=two_models / "plain") as client:
        activate(client, "whole")
        client.put("/v1/experiments/ranking", json={"variants": ARMS})
        problem = activate(client, "plain", 409)
        assert problem["code"] == "unfit_model"
        assert "'ranking'" in problem["detail"] and "'hybrid'" in problem["detail"]
        assert client.post("/v1/models/rollback").json()["code"] == "unfit_model"
        assert active(client) == ["whole"]
        client.delete("/v1/experiments/ranking")
        activate(client, "plain")
        started = client.put("/v1/experiments/ranking", json={"variants": ARMS})
        assert started.status_code == 422 and "hybrid" in started.json()["detail"]
    for number, defaults in enumerate(({"system": "hybrid"}, {"filter": cheap})):
        settings = {"bundle": two_models / "whole", "scenarios": {"home": defaults}}
        with serving(store=str(two_models / f"{number}.sqlite"), **settings) as client:
            problem = activate(client, "plain", 409)
            assert problem["code"] == "unfit_model" and "'home'" in problem["detail"]
            body = {"history": [], "scenario": "home"}
            assert not client.post("/v1/recommend", json=body).json()["degraded"]


def test_a_server_started_on_a_model_that_lacks_a_system_answers_by_its_default(
    serving, two_models, bundles, caplog
):
    with serving(bundle=two_models / "whole") as client:
        client.put("/v1/experiments/ranking", json={"variants": ARMS})
        path = "/v1/experiments/ranking/users/"
        arms = {u: client.get(path + u).json()["variant"] for u in map(str, range(20))}
    scenarios = {"home": {"system": "hybrid"}}
    with serving(bundle=two_models / "plain", scenarios=scenarios) as client:
        assert [r.message for r in caplog.records if "hybrid" in r.message] != []
        caplog.clear()
        history = {"history": bundles.history}
        for user, arm in arms.items():
            said = client.post("/v1/recommend", json={"user_id": user, **history}).json()
            assert said["items"][0]["source"] == bundles.recommender.generator.name
            assert said["degraded_reason"] == ("unknown_system" if arm == "a" else None)
        said = client.post("/v1/recommend", json={"scenario": "home", **history}).json()
        assert said["degraded_reason"] == "unknown_system" and said["items"]
        asked = client.post("/v1/recommend", json={"system": "hybrid", **history})
        assert asked.status_code == 422
        assert not caplog.records
    cheap = {"cheap": {"filter": {"field": "price", "op": "lt", "value": 3}}}
    with (
        pytest.raises(ConfigError, match=r"'cheap'.*price"),
        serving(bundle=two_models / "plain", scenarios=cheap),
    ):
        pass


def wait_until(met):
    end = time.monotonic() + 10
    while not met():
        assert time.monotonic() < end
        time.sleep(0.02)


def served(client):
    """The recommender that answers, and whatever else of it stays in memory."""
    return weakref.ref(client.service.models.current.recommender)


@contextmanager
def no_collector():
    """As far as the collector goes, everything stays: what is there now for good, as in `run`."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def test_a_model_that_is_replaced_gives_its_memory_back_without_the_collector(
    serving, bundles, tmp_path
):
    """Of models whose retrievers hold them."""
    from dataclasses import replace

    from sidrec import config
    from sidrec.recipe import RETRIEVER

    mixture = config.method(RETRIEVER, "mixture", weight=0.4, num_retrieved=9)
    for number, name in enumerate(("first", "second")):
        beam_width = bundles.recommender.beam_width + number
        model = replace(bundles.recommender, retrievers=(mixture,), beam_width=beam_width)
        model.save(tmp_path / "models" / name)
    with serving(bundle=tmp_path / "models" / "first") as client:

        def use():
            body = {"history": bundles.history, "system": "mixture"}
            assert not client.post("/v1/recommend", json=body).json()["degraded"]
            return served(client)

        seen = [use()]
        with no_collector():
            for swap in range(10):
                activate(client, ("second", "first")[swap % 2])
                seen.append(use())
                client.post("/v1/items", json={"items": [{"item_id": f"new{swap}"}]})
                seen.append(use())
            client.post("/v1/models/second/recommend", json={"history": bundles.history})
            models = client.service.models
            held = {id(models.current.recommender), id(models._base), id(models._previous[1])}
            wait_until(lambda: {id(r()) for r in seen if r() is not None} <= held)
            assert models.replaced.collect(0) == 0


def test_the_collector_takes_a_replaced_model_that_holds_itself(serving, bundles):
    with serving() as client:
        first = served(client)
        vars(first())["itself"] = first()
        with no_collector():
            activate(client, "second")
            activate(client, "first")  # the one before this is kept
            models = client.service.models
            assert first() is not None and models.replaced.collect(60) == 0
            wait_until(lambda: models.replaced.collect(0) or first() is None)
            assert first() is None


def test_stored_items_that_do_not_fit_the_bundle_of_the_start_are_named(serving, bundles, tmp_path):
    from dataclasses import replace

    import polars as pl

    from sidrec.types import Items

    items = bundles.recommender.items
    table = items.attributes.with_columns(pl.col("price").cast(pl.String))
    replace(bundles.recommender, items=Items(items.item_ids, table)).save(tmp_path / "m" / "text")
    with serving() as client:
        client.post("/v1/items", json={"items": [{"item_id": "n", "attributes": {"price": 3}}]})
    with (
        pytest.raises(ConfigError, match="'price' must be String"),
        serving(bundle=tmp_path / "m" / "text"),
    ):
        pass


def test_a_bundle_that_is_activated_twice_is_still_rolled_back_to_the_one_before(serving, bundles):
    with serving() as client:
        for _ in range(2):  # as by who got no answer to the first
            activate(client, "second")
        client.post("/v1/models/rollback")
        assert active(client) == ["first"]
        activate(client, "first")
        client.post("/v1/models/rollback")
        assert active(client) == ["second"]
