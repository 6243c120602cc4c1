"""What the page looks through: the beam of a request, the tree, the catalogue, another bundle."""

from __future__ import annotations

import numpy as np
import pytest

from sidrec.serving.auth import needed_role


def ask(client, path, status=200, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def get(client, path, status=200, **query):
    answer = client.get(path, params=query)
    assert answer.status_code == status, answer.text
    return answer.json()


def ids_of(body):
    return [item["item_id"] for item in body["items"]]


def test_a_trace_ends_in_the_list_of_the_same_request(shared, bundles):
    price = float(bundles.recommender.items.attributes["price"].median())
    rules = {
        "history": bundles.history, "k": 8, "exclude_items": bundles.ids[:3],
        "filter": {"field": "price", "op": "lt", "value": price},
    }  # fmt: skip
    generator = bundles.recommender.generator.name
    plain = ask(shared, "/v1/recommend", system=generator, **rules)
    story = ask(shared, "/v1/trace", system=generator, **rules)
    assert ids_of(story) == ids_of(plain) and len(ids_of(plain)) == 8
    for traced, listed in zip(story["items"], plain["items"], strict=True):
        assert traced["score"] == pytest.approx(listed["score"], rel=1e-5)
        assert traced["title"] == bundles.recommender.titles[bundles.ids.index(traced["item_id"])]
    assert story["applied_filters"] == plain["applied_filters"]
    whole = [tuple(item["semantic_id"]) for item in story["items"]]
    assert set(whole) <= {tuple(p["codes"]) for p in story["levels"][-1]["survivors"]}
    assert len(story["levels"]) == bundles.recommender.ids.num_levels
    for level in story["levels"]:
        lost = level["lost"]
        assert set(lost) == {"no_item", "filter", "exclude_viewed", "exclude_items"}
        total = level["kept"] + level["fallen"] + sum(lost.values())
        assert total == pytest.approx(level["entering"], abs=1e-5)
        assert all(prefix["name"] and prefix["num_items"] for prefix in level["survivors"])
    assert sum(level["lost"]["filter"] for level in story["levels"]) > 0


def test_a_hybrid_is_traced_as_wide_as_it_asks_and_other_systems_are_not(shared, bundles):
    story = ask(shared, "/v1/trace", history=bundles.history)
    assert (story["system"], story["beam_width"]) == ("hybrid", bundles.recommender.hybrid.pool)
    refused = ask(shared, "/v1/trace", 404, history=bundles.history, system="popularity")
    assert refused["code"] == "no_beam" and bundles.recommender.generator.name in refused["hint"]
    assert ask(shared, "/v1/trace", 422, history=[])["code"] == "invalid_request"


def test_a_generator_with_its_own_search_has_no_beam(shared, bundles, monkeypatch):
    generator = type(bundles.recommender.generator.value)
    monkeypatch.setattr(generator, "search", lambda *_, **__: None, raising=False)
    assert ask(shared, "/v1/trace", 404, history=bundles.history)["code"] == "no_beam"
    assert not get(shared, "/v1/models")["active"]["has_beam"]


def test_a_model_that_answers_texts_by_itself_can_search(shared, monkeypatch):
    assert not get(shared, "/v1/models")["active"]["has_search"]
    monkeypatch.setattr("sidrec.serving.answers.own_searchers", lambda _: {"joint": None})
    assert get(shared, "/v1/models")["active"]["has_search"]


def test_the_tree_holds_every_item_once_and_opens_down_to_the_items(shared, bundles):
    recommender = bundles.recommender
    root = get(shared, "/v1/tree", limit=5)
    assert root["num_items"] == len(bundles.ids) == sum(b["num_items"] for b in root["branches"])
    assert root["events"] == int(recommender.train_counts_N.sum())
    best = np.argsort(-recommender.train_counts_N)[:5]
    assert [item["events"] for item in root["items"]] == recommender.train_counts_N[best].tolist()
    row = len(bundles.ids) // 2
    codes = [code for code in recommender.ids.codes[row].tolist() if code >= 0]
    for depth in range(1, len(codes) + 1):
        body = get(shared, "/v1/tree", prefix="-".join(map(str, codes[:depth])), limit=200)
        assert bundles.ids[row] in ids_of(body)
        assert all(item["semantic_id"][:depth] == codes[:depth] for item in body["items"])
        deeper = sum(branch["num_items"] for branch in body["branches"])
        ending = sum(len(item["semantic_id"]) == depth for item in body["items"])
        assert deeper + ending == body["num_items"] == len(body["items"])
    pages = [ids_of(get(shared, "/v1/tree", limit=7, offset=at)) for at in (0, 7)]
    assert len({*pages[0], *pages[1]}) == 14


def test_items_are_found_by_words_ids_and_use(shared, bundles):
    titles, counts = bundles.recommender.titles, bundles.recommender.train_counts_N
    popular = get(shared, "/v1/items", limit=3)
    assert [item["events"] for item in popular["items"]] == sorted(counts.tolist())[::-1][:3]
    words = titles[7].upper().split()
    found = get(shared, "/v1/items", query=f"{words[-1][:3]} {words[0]}", limit=50)
    assert titles[7] in [item["title"] for item in found["items"]]
    for item in found["items"]:
        assert all(w[:3].lower() in item["title"].lower() for w in (words[0], words[-1]))
    assert bundles.ids[9] in ids_of(get(shared, "/v1/items", query=bundles.ids[9], limit=50))
    assert ids_of(get(shared, "/v1/items", ids=[bundles.ids[4], "nobody", bundles.ids[2]])) == [
        bundles.ids[4], bundles.ids[2],
    ]  # fmt: skip
    assert get(shared, "/v1/items", query="no such words")["total"] == 0


@pytest.mark.parametrize(
    ("path", "query", "code"),
    [
        ("/v1/tree", {"prefix": "0", "depth": "3"}, "unknown_field"),
        ("/v1/items", {"q": "soap"}, "unknown_field"),
        ("/v1/tree", {"prefix": "0-"}, "invalid_request"),
        ("/v1/tree", {"prefix": "0-" * 70 + "0"}, "invalid_request"),
        ("/v1/tree", {"prefix": "999999999"}, "unknown_prefix"),
        ("/v1/tree", {"prefix": "0-0-0-0-0-0-0-0-0-0"}, "unknown_prefix"),
        ("/v1/tree", {"limit": "201"}, "invalid_request"),
        ("/v1/items", {"limit": "51"}, "invalid_request"),
        ("/v1/items", {"query": "a" * 201}, "invalid_request"),
        ("/v1/items", {"ids": ["x"] * 201}, "invalid_request"),
    ],
)
def test_strange_questions_are_refused(shared, path, query, code):
    answer = shared.get(path, params=query)
    assert answer.json()["code"] == code and answer.status_code in (404, 422)


def test_an_unknown_field_of_a_trace_is_named(shared, bundles):
    body = ask(shared, "/v1/trace", 422, history=bundles.history, exclude_viewd=True)
    assert body["code"] == "unknown_field" and "exclude_viewed" in body["detail"]
    assert ask(shared, "/v1/trace", 422, history=bundles.history, k=101)["errors"]


def test_deleted_items_are_on_no_shelf_and_unavailable_ones_are_marked(serving, bundles):
    with serving() as client:
        gone, away = bundles.ids[0], bundles.ids[1]
        client.delete(f"/v1/items/{gone}")
        client.patch(f"/v1/items/{away}", json={"available": False})
        root = get(client, "/v1/tree", limit=200)
        assert gone not in ids_of(root) and root["num_items"] == len(bundles.ids) - 1
        assert root["num_available"] == len(bundles.ids) - 2
        assert [i["item_id"] for i in root["items"] if not i["available"]] == [away]
        assert get(client, "/v1/items", ids=[gone])["items"] == []
        assert gone not in ids_of(get(client, "/v1/items", query=gone, limit=50))
        story = ask(client, "/v1/trace", history=bundles.history, k=5)
        assert "unavailable" in story["levels"][0]["lost"]
        assert not {gone, away} & set(ids_of(story))


def test_another_bundle_answers_beside_the_active_one_with_the_same_catalogue(serving, bundles):
    with serving() as client:
        client.post("/v1/items", json={"items": [{"item_id": "new", "attributes": {}}]})
        client.delete(f"/v1/items/{bundles.ids[0]}")
        path = "/v1/models/second/recommend"
        body = ask(client, path, history=[*bundles.history, "new"], k=60, exclude_viewed=False)
        assert body["model"] == "second" and body["skipped_items"] == []
        assert bundles.ids[0] not in ids_of(body)
        assert body["catalogue_version"] == client.service.models.current.catalogue_version
        assert client.service.models.current.name == "first"
        held = client.service.beside._recommender
        ask(client, path, history=bundles.history)
        assert client.service.beside._recommender is held
        same = ask(client, "/v1/models/first/recommend", history=bundles.history)
        assert same["items"] == ask(client, "/v1/recommend", history=bundles.history)["items"]
        assert ask(client, "/v1/models/none/recommend", 404, history=[])["code"] == "unknown_model"
        client.service.beside._asked_seconds -= 601
        client.service.beside.forget_idle()
        assert client.service.beside._recommender is None


def test_of_all_routes_only_the_page_and_health_are_public(shared):
    def walk(routes):
        for route in routes:
            if methods := getattr(route, "methods", None):
                yield from ((method, route.path) for method in methods)
            yield from walk(getattr(getattr(route, "original_router", None), "routes", ()))

    walked = set(walk(shared.app.routes))
    assert ("POST", "/v1/trace") in walked and ("GET", "/page/{name}") in walked
    public = {path for method, path in walked if needed_role(method, path) == "public"}
    health = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}
    assert public == {"/", "/page/{name}", *health}
    described = shared.get("/openapi.json").json()["paths"]
    for path in ("/v1/trace", "/v1/tree", "/v1/items", "/v1/models/{name}/recommend"):
        assert path in described
        assert needed_role("GET" if path in ("/v1/tree", "/v1/items") else "POST", path) in (
            "secret", "admin",
        )  # fmt: skip


def test_the_page_is_public_and_forbids_itself_everything_else(serving, keys_file):
    with serving(keys_file=keys_file) as client:
        answer = client.get("/")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert client.get("/page/index.html").status_code == 200
        for name in ("none.js", "..%2f..%2fapp.py", "%2e%2e/app.py", "../app.py"):
            assert client.get(f"/page/{name}").status_code in (401, 404)
        assert client.get("//v1/models").status_code == 401
