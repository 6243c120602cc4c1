from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest


def upsert(client, *items, status=200):
    answer = client.post("/v1/items", json={"items": list(items)})
    assert answer.status_code == status, answer.text
    return answer.json()


def listed(client, history, k=60, **body):
    answer = client.post("/v1/recommend", json={"history": history, "k": k, **body})
    assert answer.status_code == 200, answer.text
    return {item["item_id"] for item in answer.json()["items"]}


def like(bundles, item_id, new_id, **changes):
    """A new item with the attributes of a known one."""
    row = bundles.recommender.items.attributes.row(bundles.ids.index(item_id), named=True)
    kept = {
        k: v for k, v in row.items() if isinstance(v, (str, float, int, list)) and k != "item_id"
    }
    return {"item_id": new_id, "attributes": {**kept, **changes}}


def test_a_new_item_is_servable_when_the_answer_comes_and_survives_a_restart(serving, bundles):
    everyone = "causal"
    with serving() as client:
        said = upsert(client, like(bundles, bundles.ids[3], "new/é 1"))
        assert (said["added"], said["updated"]) == (1, 0)
        state = said["items"][0]
        assert len(state["semantic_id"]) and state["available"]
        found = listed(client, bundles.history, system=everyone, k=61)
        assert "new/é 1" in found
        assert client.get("/v1/items/new/é 1").json() == state
        again = upsert(client, like(bundles, bundles.ids[3], "new/é 1", price=3.0))
        assert (again["added"], again["updated"]) == (0, 1)
        assert again["items"][0]["semantic_id"] == state["semantic_id"]
    with serving() as client:
        state = client.get("/v1/items/new/é 1").json()
        assert state["attributes"]["price"] == 3.0
        tree = {"field": "price", "op": "eq", "value": 3.0}
        assert "new/é 1" in listed(client, bundles.history, system=everyone, filter=tree)


def test_no_request_waits_for_the_tables_of_a_larger_catalogue(serving, bundles):
    """What answers are made from is there before the new snapshot is served."""
    with serving() as client:
        upsert(client, like(bundles, bundles.ids[3], "n1"))
        recommender = client.service.models.current.recommender
        tables = recommender.generator.value._tables
        assert len(recommender.items) == len(bundles.ids) + 1
        assert tables._held[1] is not None


def test_availability_and_deletion_count_at_once_and_survive_a_restart(serving, store_url, bundles):
    away, gone = bundles.ids[1], bundles.ids[2]
    with serving(store=store_url) as client:
        history = bundles.history
        assert {away, gone} <= listed(client, history, exclude_viewed=False)
        assert client.patch(f"/v1/items/{away}", json={"available": False}).status_code == 200
        assert client.delete(f"/v1/items/{gone}").status_code == 200
        assert client.delete(f"/v1/items/{gone}").json()["code"] == "unknown_item"
        for path, body in (
            ("/v1/recommend", {"history": history, "exclude_viewed": False}),
            ("/v1/recommend", {"history": [], "exclude_viewed": False}),
            ("/v1/similar", {"item_id": bundles.ids[0]}),
        ):
            answer = client.post(path, json={"k": 60, **body}).json()
            found = {item["item_id"] for item in answer["items"]}
            assert found and not {away, gone} & found
        ranked = client.post("/v1/rank", json={"history": history, "items": [away, gone, "x"]})
        assert ranked.json()["items"] == []
        assert client.get(f"/v1/items/{away}").json()["available"] is False
    with serving(store=store_url) as client:
        assert not {away, gone} & listed(client, history, exclude_viewed=False)
        titled = client.patch(f"/v1/items/{away}", json={"attributes": {"title": "away"}})
        assert titled.json()["items"][0]["available"] is False
        assert client.patch(f"/v1/items/{gone}", json={"available": True}).status_code == 404
        assert client.patch(f"/v1/items/{away}", json={"available": True}).status_code == 200
        upsert(client, {"item_id": gone})
        assert {away, gone} <= listed(client, history, exclude_viewed=False)


@pytest.mark.parametrize(
    ("attributes", "code", "said"),
    [
        ({"prize": 3}, "unknown_field", "prize"),
        ({"price": "cheap"}, "invalid_request", "price"),
        ({"price": {"a": [1]}}, "invalid_request", "price"),
        ({"title": 10**40}, "invalid_request", "title"),
        ({"item_id": "other"}, "unknown_field", "item_id"),
    ],
)
def test_attributes_that_do_not_fit_change_nothing(shared, bundles, attributes, code, said):
    before = shared.get(f"/v1/items/{bundles.ids[0]}").json()
    for item_id in (bundles.ids[0], "never"):
        entry = {"item_id": item_id, "attributes": attributes}
        answer = shared.post("/v1/items", json={"items": [entry]})
        problem = answer.json()
        assert answer.status_code == 422, problem
        assert problem["code"] == code and said in problem["detail"]
    assert shared.get(f"/v1/items/{bundles.ids[0]}").json() == before
    assert shared.get("/v1/items/never").status_code == 404


def test_every_answer_names_live_items_only_under_inserts_and_deletes(serving, bundles):
    """An item deleted before a request was sent is in no answer; changes go on meanwhile."""
    with serving(timeout_ms=20_000) as client:
        stop, gone, faults, answers = threading.Event(), set(), [], []
        known = set(bundles.ids) | {f"n{i}" for i in range(1000)}

        def ask():
            while not stop.is_set():
                before = set(gone)
                answer = client.post("/v1/recommend", json={"history": bundles.history, "k": 50})
                body = answer.json()
                found = [item["item_id"] for item in body["items"]]
                if answer.status_code != 200 or body["degraded"] or set(found) & before:
                    faults.append(body)
                if not set(found) <= known or len(set(found)) < len(found):
                    faults.append(found)
                answers.append(body["catalogue_version"])

        askers = [threading.Thread(target=ask) for _ in range(2)]
        for thread in askers:
            thread.start()
        for number in range(12):
            upsert(client, like(bundles, bundles.ids[number % 60], f"n{number}"))
            victim = f"n{number - 1}" if number % 2 else bundles.ids[number % 50]
            if client.delete(f"/v1/items/{victim}").status_code == 200:
                gone.add(victim)
        stop.set()
        for thread in askers:
            thread.join()
        assert not faults
        assert len(gone) == 12 and len(set(answers)) > 1


def test_an_item_that_was_deleted_before_the_start_begins_anew(serving):
    with serving() as client:
        upsert(client, {"item_id": "new", "attributes": {"title": "old", "price": 3.0}})
        client.delete("/v1/items/new")
    for _ in range(2):
        with serving() as client:
            if client.get("/v1/items/new").status_code == 404:
                upsert(client, {"item_id": "new", "attributes": {"title": "other"}})
            found = client.get("/v1/items/new").json()["attributes"]
            assert (found["title"], found["price"]) == ("other", None)


def test_a_batch_with_one_fault_changes_nothing(shared, bundles):
    price = {"price": 77.0}
    entries = [
        {"item_id": bundles.ids[0], "attributes": price}, {"item_id": "fine", "attributes": price},
        {"item_id": "faulty", "attributes": {"price": "cheap"}},
    ]  # fmt: skip
    before = shared.get(f"/v1/items/{bundles.ids[0]}").json()
    upsert(shared, *entries, status=422)
    assert shared.get(f"/v1/items/{bundles.ids[0]}").json() == before
    assert shared.get("/v1/items/fine").status_code == 404


def test_a_change_that_waits_brings_no_item_back_that_is_deleted_meanwhile(serving, bundles):
    gone = bundles.ids[3]
    with serving() as client, ThreadPoolExecutor(1) as sender:
        models, lines = client.service.models, client.service.lines
        with models._changing:
            body = {"json": {"available": True, "attributes": {"price": 1.0}}}
            sent = sender.submit(client.patch, f"/v1/items/{gone}", **body)
            while not lines.changes._held:
                time.sleep(0.005)
            models.current = models.current.without([gone])
        assert sent.result().status_code == 404
        assert client.get(f"/v1/items/{gone}").status_code == 404
