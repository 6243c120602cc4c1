"""`sidrec serve --compiled`: the same answers, said where it is asked, kept over every change."""

import gc
import logging
import weakref
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import sidrec
from sidrec import config
from sidrec.errors import ConfigError, MissingExtra
from sidrec.recipe import RETRIEVER

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


def listed(client, history, **rules):
    asked = {"history": history, "system": "causal", "k": 8, **rules}
    answer = client.post("/v1/recommend", json=asked)
    assert answer.status_code == 200 and not answer.json()["degraded"], answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def is_compiled(client):
    said = client.get("/v1/models").json()["active"]["compiled"]
    number = next(
        x for x in client.get("/metrics").text.splitlines() if x.startswith("sidrec_compiled ")
    )
    assert float(number.split()[1]) == said
    return said


def test_it_answers_alike_through_new_items_deletion_swap_and_roll_back(serving, bundles, tmp_path):
    out = []
    for compiled in (False, True):
        store = str(tmp_path / f"{compiled}.sqlite")
        with serving(compiled=compiled, store=store) as client:
            lists = [listed(client, bundles.history), listed(client, bundles.history[:1])]
            client.post("/v1/items", json={"items": [{"item_id": "new"}]})
            assert is_compiled(client) == compiled
            lists.append(listed(client, ["new", *bundles.history]))
            client.delete(f"/v1/items/{lists[0][0]}")
            lists.append(listed(client, bundles.history, exclude_viewed=False))
            client.post("/v1/models/activate", json={"name": "second"})
            assert is_compiled(client) == compiled
            lists.append(listed(client, bundles.history))
            client.post("/v1/models/rollback")
            assert is_compiled(client) == compiled
            lists.append(listed(client, bundles.history))
            out.append(lists)
    assert out[0] == out[1]


def test_an_upsert_leaves_nothing_to_compile_for_the_next_request(serving, bundles, monkeypatch):
    with serving(compiled=True) as client:
        client.post("/v1/items", json={"items": [{"item_id": "new"}]})
        monkeypatch.setattr("sidrec.compiled.search.session_of", None)
        listed(client, ["new"])


def test_a_bundle_without_it_does_not_start_but_may_be_activated_and_says_so(
    serving, bundles, tmp_path, caplog
):
    other = tmp_path / "models"
    penal = replace(bundles.recommender, length_penalty=0.5)
    penal.save(other / "penal")
    bundles.recommender.save(other / "plain")
    with (
        pytest.raises(ConfigError, match="no length penalty; leave compiled out"),
        serving(bundle=other / "penal", compiled=True),
    ):
        pass
    with serving(bundle=other / "plain", compiled=True) as client:
        with caplog.at_level(logging.WARNING, "sidrec.serving"):
            assert client.post("/v1/models/activate", json={"name": "penal"}).status_code == 200
        assert "penal is not compiled" in caplog.text
        assert not is_compiled(client)
        assert len(listed(client, bundles.history)) == 8
    with serving(bundle=other / "plain", compiled=True) as client:  # goes on with penal
        assert client.get("/v1/models").json()["active"]["name"] == "penal"


def test_without_the_package_it_says_what_to_install(serving, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with (
        pytest.raises(MissingExtra, match=r"pip install 'sidrec\[compiled\]'"),
        serving(compiled=True),
    ):
        pass


def test_what_a_compiled_model_was_made_of_is_let_go(serving, bundles, tmp_path, monkeypatch):
    mixture = config.method(RETRIEVER, "mixture", weight=0.4, num_retrieved=9)  # holds its model
    for name in ("first", "second"):
        model = replace(bundles.recommender, retrievers=(mixture,))
        model.save(tmp_path / "models" / name)
    loaded = []

    def load(*words, **options):
        made = sidrec.load(*words, **options)
        _ = made.retrieving
        loaded.append(weakref.ref(made))
        return made

    with serving(bundle=tmp_path / "models" / "first", compiled=True) as client:
        monkeypatch.setattr("sidrec.serving.models.load", load)
        gc.disable()
        try:
            client.post("/v1/models/activate", json={"name": "second"})
            assert is_compiled(client)
            assert [ref() for ref in loaded] == [None]
        finally:
            gc.enable()


def test_the_command_line_asks_for_it(bundles, monkeypatch):
    from sidrec.cli import app

    asked = []
    monkeypatch.setattr(
        "sidrec.serving.run.serve", lambda settings, started: asked.append(settings)
    )
    for words in ([], ["--compiled"]):
        done = CliRunner().invoke(app, ["serve", str(bundles.first), *words])
        assert done.exit_code == 0, done.output
    assert [settings.compiled for settings in asked] == [False, True]
