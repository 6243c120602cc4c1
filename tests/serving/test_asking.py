from __future__ import annotations

import numpy as np
import pytest

from sidrec.serving.schemas import SearchAnswer


def ask(client, path="/v1/recommend", status=200, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def ids_of(body):
    return [item["item_id"] for item in body["items"]]


def test_an_answer_is_that_of_the_library_and_says_where_it_comes_from(shared, bundles):
    for system in bundles.recommender.systems:
        body = ask(shared, history=bundles.history, k=5, system=system)
        frame = bundles.recommender.recommend(bundles.history, k=5, system=system)
        assert ids_of(body) == frame["item_id"].to_list()
        scores = [item["score"] for item in body["items"]]
        np.testing.assert_allclose(scores, frame["score"].to_list(), rtol=1e-5)
        codes = [item["semantic_id"] for item in body["items"]]
        assert codes == frame["semantic_id"].to_list()
        assert {item["source"] for item in body["items"]} == {system}
    assert [item["rank"] for item in body["items"]] == [1, 2, 3, 4, 5]
    assert body["model"] == "first" and len(body["model_version"]) == 12
    assert body["request_id"] and not body["degraded"]
    assert all(item["reason"]["text"] for item in body["items"])


def test_an_empty_history_gets_popular_items_and_the_answer_says_so(shared, bundles):
    body = ask(shared, history=[], k=3)
    counts = bundles.recommender.train_counts_N
    best = np.argsort(-counts, kind="stable")[:3]
    assert ids_of(body) == [bundles.ids[row] for row in best]
    assert {item["reason"]["kind"] for item in body["items"]} == {"popular"}


def test_rules_leave_what_they_say_and_k_items_come_back(shared, bundles):
    attributes = bundles.recommender.items.attributes
    name = next(c for c in ("category", "categories", "price") if c in attributes.columns)
    tree = {"field": name, "op": "exists", "value": True}
    price = {"field": "price", "op": "lt", "value": float(attributes["price"].median())}
    everything = ask(shared, history=bundles.history, k=5)
    body = ask(
        shared, history=bundles.history, k=5, filter={"and": [tree, price]},
        exclude_items=ids_of(everything)[:2], include_fields=["price"],
    )  # fmt: skip
    assert len(body["items"]) == 5
    assert all(item["fields"]["price"] < price["value"] for item in body["items"])
    assert not set(ids_of(body)) & {*ids_of(everything)[:2], *bundles.history}
    kinds = [rule["kind"] for rule in body["applied_filters"]]
    assert kinds == ["filter", "filter", "exclude_viewed", "exclude_items"]
    removed = int((attributes["price"] >= price["value"]).sum())
    assert body["applied_filters"][1]["removed"] == removed
    seen = ask(shared, history=bundles.history, k=60, exclude_viewed=False)
    assert set(bundles.history) <= set(ids_of(seen)) and len(seen["items"]) == 60


def test_boosts_lift_and_diversity_spreads(shared, bundles):
    dear = {"field": "price", "op": "ge", "value": 0}
    some = ask(shared, history=bundles.history, k=10)
    last = some["items"][-1]["item_id"]
    price = ask(shared, history=bundles.history, k=10, include_fields=["price"])
    value = price["items"][-1]["fields"]["price"]
    tree = {"field": "price", "op": "eq", "value": value}
    lifted = ask(shared, history=bundles.history, k=10, boost=[{"filter": tree, "factor": 1000}])
    assert ids_of(lifted).index(last) < 9
    same = ask(shared, history=bundles.history, k=10, boost=[{"filter": dear, "factor": 7}])
    assert ids_of(same) == ids_of(some)

    def closeness(body):
        rows = [bundles.ids.index(item) for item in ids_of(body)]
        unit = bundles.recommender.vectors.vectors[rows]
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        return (unit @ unit.T).mean()

    spread = ask(shared, history=bundles.history, k=10, diversity=0.9)
    assert closeness(spread) < closeness(some) and len(set(ids_of(spread))) == 10


def test_similar_rank_and_explain(shared, bundles):
    target = bundles.history[0]
    body = ask(shared, "/v1/similar", item_id=target, k=4)
    frame = bundles.recommender.similar(target, k=4)
    assert ids_of(body) == frame["item_id"].to_list()
    shared_codes = [item["reason"]["shared_codes"] for item in body["items"]]
    assert shared_codes == frame["shared_codes"].to_list()
    wanted = [i for i in bundles.ids[:8] if i not in bundles.history]
    ranked = ask(shared, "/v1/rank", history=bundles.history, items=[*wanted, "nobody"])
    assert sorted(ids_of(ranked)) == sorted(wanted) and ranked["skipped_items"] == ["nobody"]
    scores = [item["score"] for item in ranked["items"]]
    assert scores == sorted(scores, reverse=True)
    told = ask(shared, "/v1/explain", history=bundles.history, item_id=wanted[0])
    expected = bundles.recommender.explain(bundles.history, wanted[0])
    assert told["explanation"]["levels"] == expected["levels"]
    with_it = ask(shared, history=bundles.history, k=2, explain=True)
    assert all(item["explanation"]["history"] for item in with_it["items"])
    assert ask(shared, "/v1/search", query="lamp", status=404)["code"] == "search_not_in_bundle"


def test_a_dry_run_says_what_would_be_asked(shared, bundles):
    body = ask(shared, history=[*bundles.history, "gone"], dry_run=True)
    assert body["dry_run"] and body["skipped_items"] == ["gone"]
    assert body["allowed_items"] == len(bundles.ids) - len(set(bundles.history))
    assert "items" not in body


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"history": [], "exlude_items": []}, "unknown_field", "exlude_items"),
        ({"history": [], "k": 10**9}, "invalid_request", "k"),
        ({"history": [], "k": 0}, "invalid_request", "k"),
        ({}, "invalid_request", "body"),
        ({"history": ["a\u0000b"]}, "invalid_request", "history.0"),
        ({"history": "B1,B2"}, "invalid_request", "history"),
        ({"history": [], "boost": [{"filter": {}, "faktor": 1}]}, "unknown_field", "faktor"),
    ],
)
def test_a_wrong_field_is_named(shared, body, code, field):
    problem = shared.post("/v1/recommend", json=body)
    assert problem.status_code == 422
    assert problem.headers["content-type"] == "application/problem+json"
    said = problem.json()
    assert said["code"] == code and said["request_id"] == problem.headers["x-request-id"]
    assert any(field in error["field"] for error in said["errors"])


def test_a_filter_on_no_attribute_or_with_no_op_is_refused(shared, bundles):
    tree = {"field": "prize", "op": "lt", "value": 5}
    said = ask(shared, history=bundles.history, filter=tree, status=422)
    assert said["code"] == "unknown_field" and "price" in said["detail"]
    said = ask(shared, history=[], filter={"field": "price", "op": "eval"}, status=422)
    assert said["code"] == "invalid_request"
    said = ask(shared, history=[], include_fields=["prize"], status=422)
    assert said["code"] == "unknown_field"


def test_scenarios_are_defaults_that_a_request_may_change(serving, bundles):
    with serving(scenarios={"home": {"k": 3, "exclude_viewed": False}}) as client:
        assert len(ask(client, history=bundles.history, scenario="home")["items"]) == 3
        assert len(ask(client, history=bundles.history, scenario="home", k=4)["items"]) == 4
        assert "home" in ask(client, history=[], scenario="hoem", status=422)["detail"]


def test_health_metrics_and_description(shared):
    assert shared.get("/livez").json() == {"status": "live"}
    assert shared.get("/readyz").json() == {"status": "ready"}
    assert shared.get("/v2/health/live").json()["live"] is True
    assert shared.get("/v2/health/ready").json()["ready"] is True
    text = shared.get("/metrics").text
    assert "sidrec_request_seconds_bucket" in text and "sidrec_items 60.0" in text
    paths = shared.get("/openapi.json").json()["paths"]
    assert "/v1/recommend" in paths
    assert shared.get("/v1/nothing").json()["code"] == "not_found"
    assert shared.get("/v1/recommend").json()["code"] == "method_not_allowed"


def test_a_bundle_with_a_search_part_answers_texts(serving, bundles, searching):
    query = searching.query
    with serving(bundle=searching.path) as client:
        found = ids_of(ask(client, "/v1/search", query=query, k=5))
        frame = searching.recommender.search(query, k=5)
        assert found == frame["item_id"].to_list()
        client.delete(f"/v1/items/{found[0]}")
        body = ask(client, "/v1/search", query=query, k=5, history=bundles.history)
        assert len(body["items"]) == 5 and found[0] not in ids_of(body)
        assert {item["reason"]["kind"] for item in body["items"]} == {"search"}
        for wrong in ("", " ", "\x00\u202e", "a " * 5000):
            assert ask(client, "/v1/search", query=wrong, status=422)["code"] == "invalid_request"
        assert ask(client, "/v1/search", query="\u9774")["items"] == []
        dirty = query.replace(" ", "\x07\u202e ")
        assert ids_of(ask(client, "/v1/search", query=dirty, k=5, history=bundles.history)) == (
            ids_of(body)
        )


def test_what_a_scenario_and_a_request_contradict_is_the_callers_mistake(serving, bundles, caplog):
    scenarios = {"why": {"explain": True}, "many": {"k": 50}}
    with serving(scenarios=scenarios) as client:
        for body in ({"scenario": "why", "k": 50}, {"scenario": "many", "explain": True}):
            said = ask(client, history=bundles.history, status=422, **body)
            assert said["code"] == "invalid_request" and "at most 20" in said["detail"]
    assert not caplog.records


def test_what_is_left_out_of_a_ranking_is_named(serving, bundles):
    gone, away, listed = bundles.ids[:3]
    with serving() as client:
        client.delete(f"/v1/items/{gone}")
        client.patch(f"/v1/items/{away}", json={"available": False})
        history = [*bundles.history, "once"]
        body = ask(client, "/v1/rank", history=history, items=[listed, "nobody", gone, away])
    assert ids_of(body) == [listed] and body["skipped_items"] == ["nobody", gone, "once"]
    rules = [(rule["kind"], rule["removed"]) for rule in body["applied_filters"]]
    assert rules == [("items", len(bundles.ids) - 3), ("unavailable", 1)]


def test_an_explanation_takes_no_system_since_the_generator_gives_it(shared, bundles):
    body = {"history": bundles.history, "item_id": bundles.ids[0], "system": "popularity"}
    said = ask(shared, "/v1/explain", status=422, **body)
    assert said["code"] == "unknown_field" and said["detail"] == "system: no field 'system'"


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b'{"history": [', "application/json", "no JSON"),
        (b'{"history": []}', "application/x-www-form-urlencoded", "Content-Type: application/json"),
        (b"history=a", "text/plain", "Content-Type: application/json"),
    ],
)
def test_a_body_that_cannot_be_read_says_why(shared, content, kind, said):
    answer = shared.post("/v1/recommend", content=content, headers={"Content-Type": kind})
    problem = answer.json()
    assert answer.status_code == 422 and problem["errors"][0]["field"] == "body"
    assert said in problem["detail"] + problem["hint"]


def test_a_search_says_what_the_query_was_taken_to_mean(serving, bundles, tmp_path):
    from sidrec import config
    from sidrec.search_part import SearchConfig, fit_search

    settings = config.parse(SearchConfig, {"searchers": [{"name": "bm25"}], "understanding": {}})
    recommender = bundles.recommender.with_search(fit_search(bundles.recommender.items, settings))
    recommender.save(tmp_path / "reading")
    word = max(recommender.titles[0].split(), key=len).lower()
    query = f"{word[:-1]} under 20 dollars"
    with serving(bundle=tmp_path / "reading") as client:
        body = ask(client, "/v1/search", query=query)
    found = body["understood"]
    assert SearchAnswer.model_validate(body).understood
    assert found == recommender.understand(query).to_dict()
    assert found["filters"][0]["filter"]["field"] == "price"
