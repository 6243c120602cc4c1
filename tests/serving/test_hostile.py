"""What a stranger may send, and who may ask what."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from sidrec.serving.auth import ROLES, RULES, needed_role


def test_with_keys_every_route_asks_for_one_and_for_its_role(serving, keys_file, keys_of):
    """Walks the API description, so a route that is added later is walked too."""
    with serving(keys_file=keys_file) as client:
        admin = {"Authorization": f"Bearer {keys_of['admin']}"}
        paths = client.get("/openapi.json", headers=admin).json()["paths"]
        public = set()
        for path, methods in [
            *paths.items(),
            ("/openapi.json", {"get": {}}),
            ("/new", {"get": {}}),
        ]:
            for method in methods:
                url = path.format(item_id="x", user_id="x", name="x")
                needed = needed_role(method.upper(), url)
                answer = client.request(method, url)
                if needed == "public":
                    public.add(url)
                    assert answer.status_code == 200
                    continue
                assert answer.status_code == 401 and answer.json()["code"] == "unauthorised"
                wrong = {"Authorization": "Bearer sidrec_admix"}
                assert client.request(method, url, headers=wrong).status_code == 401
                for role, key in keys_of.items():
                    answer = client.request(method, url, headers={"X-Api-Key": key})
                    allowed = ROLES.index(role) >= ROLES.index(needed)
                    assert (answer.status_code not in (401, 403)) == allowed, (url, role)
        assert public == {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}


def test_what_no_rule_names_is_for_the_admin():
    assert needed_role("POST", "/v1/models/activate") == "admin"
    assert needed_role("PUT", "/v1/experiments/x") == "admin"
    assert needed_role("GET", "/v1/recommendations") == "admin"
    assert needed_role("DELETE", "/livez") == "admin"
    assert all(role in ROLES for _, _, role in RULES)


@pytest.mark.parametrize(
    "text",
    ["", "[keys.a]\nrole = 'admin'\nsha256 = 'short'", "[keys.a]\nrole = 'root'\nsha256 = ''",
     f"[keys.a]\nrole = 'secret'\nsha256 = '{'0' * 64}'", "keys = 3", "[keys"],
)  # fmt: skip
def test_a_file_of_keys_without_an_admin_or_with_a_fault_is_refused(text, tmp_path):
    from sidrec.errors import ConfigError
    from sidrec.serving.auth import read_keys

    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_keys(path)


HISTORY = b'{"history": ['


@pytest.mark.parametrize(
    ("content", "statuses"),
    [
        (b'{"history": [], "filter": ' + b'{"not":' * 5000 + b"{}" + b"}" * 5001, (400, 422)),
        (b"[" * 100_000, (400, 422)),
        (b'{"history": [], "filter": ' + b'{"not":' * 100 + b"{}" + b"}" * 101, (422,)),
        (HISTORY + b'"a",' * 999_999 + b'"a"]}', (413,)),
        (HISTORY + b'"a",' * 100_000 + b'"a"]}', (422,)),
        (b'{"history": [], "k": 1000000000}', (422,)),
        (b'{"history": [], "k": 1e400}', (400, 422)),
        (b'{"history": [], "diversity": NaN}', (400, 422)),
        (b'{"history": ["\\ud800"]}', (400, 422)),
        (b'\xff\xfe{"history": []}', (400, 422)),
        (b"", (422,)),
        (b"null", (422,)),
    ],
)
def test_hostile_bodies_are_refused_quickly(shared, content, statuses):
    start = time.thread_time()
    answer = shared.post(
        "/v1/recommend", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in statuses, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert time.thread_time() - start < 2


def test_a_body_that_does_not_say_its_length_is_cut_off(shared):
    def chunks():
        for _ in range(100):
            yield b" " * (1 << 16)

    answer = shared.post(
        "/v1/recommend", content=chunks(), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    huge = shared.post(
        "/v1/recommend", content=b"{}", headers={"Content-Length": "9" * 30}
    )  # fmt: skip
    assert huge.status_code == 413


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "😀", "‮abc", "00012", " x "])
def test_strange_ids_are_only_ids(shared, name):
    sent = {"events": [{"event_id": name, "user_id": name, "item_id": name}]}
    assert shared.post("/v1/events", json=sent).status_code == 200
    from urllib.parse import quote

    path = f"/v1/users/{quote(name, safe='')}"
    assert shared.get(f"{path}/history").json()["items"] == [name]
    assert shared.delete(path).json()["events"] == 1
    assert shared.get(f"/v1/items/{quote(name, safe='')}").status_code == 404


def test_overload_is_refused_with_a_time_to_come_back(serving, bundles):
    with serving(max_queue=2, max_batch=1, timeout_ms=20_000) as client:
        gate, engine = threading.Event(), client.service.engine
        current, engine.current = engine.current, lambda: (gate.wait(10), current())[1]
        answers = []

        def ask():
            answers.append(client.post("/v1/recommend", json={"history": bundles.history}))

        askers = [threading.Thread(target=ask) for _ in range(12)]
        for thread in askers:
            thread.start()
        while sum(answer.status_code == 429 for answer in answers) < 9:
            time.sleep(0.01)
        gate.set()
        for thread in askers:
            thread.join()
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(refused) == 9
        assert {a.headers["retry-after"] for a in refused} == {"1"}
        assert {a.json()["code"] for a in refused} == {"overloaded"}
        assert sum(answer.status_code == 200 for answer in answers) == 3
        assert client.post("/v1/recommend", json={"history": []}).status_code == 200


def test_past_its_deadline_a_request_gets_popular_items_under_its_rules(serving, bundles):
    with serving() as client:
        gate, engine = threading.Event(), client.service.engine
        current = engine.current
        worker = engine._thread

        def slow():
            if threading.current_thread() is worker:
                gate.wait(10)
            return current()

        engine.current = slow
        price = float(bundles.recommender.items.attributes["price"].median())
        body = {
            "history": bundles.history, "timeout_ms": 50, "include_fields": ["price"],
            "filter": {"field": "price", "op": "lt", "value": price},
        }  # fmt: skip
        answer = client.post("/v1/recommend", json=body).json()
        assert (answer["degraded"], answer["degraded_reason"]) == (True, "deadline")
        assert len(answer["items"]) == 10
        assert all(item["fields"]["price"] < price for item in answer["items"])
        assert not {item["item_id"] for item in answer["items"]} & set(bundles.history)
        gate.set()


def test_a_model_that_fails_is_covered_by_popular_items(serving, bundles, monkeypatch, caplog):
    from sidrec.recommender import Recommender

    with serving() as client:

        def broken(*_, **__):
            raise RuntimeError("secret inside")

        monkeypatch.setattr(Recommender, "candidates", broken)
        caplog.set_level(logging.CRITICAL)
        answer = client.post("/v1/recommend", json={"history": bundles.history}).json()
        assert answer["degraded_reason"] == "engine_error" and answer["items"]
        monkeypatch.undo()
        assert not client.post("/v1/recommend", json={"history": bundles.history}).json()[
            "degraded"
        ]


def test_an_error_nobody_foresaw_tells_nothing_but_its_request(serving, monkeypatch):
    from sidrec.serving.snapshot import Snapshot

    with serving() as client:

        def broken(*_):
            raise RuntimeError("secret inside")

        monkeypatch.setattr(Snapshot, "states", broken)
        answer = client.get("/v1/items/x")
        assert answer.status_code == 500 and "secret" not in answer.text
        assert answer.json()["code"] == "internal"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_nothing_of_a_user_is_in_logs_or_metrics(serving, bundles, caplog, monkeypatch):
    """Nor after failures, whose tracebacks and errors are logged too."""
    import sqlalchemy as sa

    from sidrec.recommender import Recommender
    from sidrec.serving.snapshot import Snapshot

    def broken(*_, **__):
        raise RuntimeError("broken")

    caplog.set_level(logging.DEBUG)
    sent = {
        "event_id": "e-marker", "user_id": "u-marker", "item_id": bundles.ids[0],
        "session_id": "s-marker", "request_id": "r-marker",
    }  # fmt: skip
    known = {"history": [*bundles.history, "h-marker"]}
    key = {"Authorization": "Bearer k-marker"}
    with serving() as client:
        for changed in ({}, {"weight": "w-marker"}):
            client.post("/v1/events", json={"events": [{**sent, **changed}]}, headers=key)
        client.post("/v1/recommend", json={"user_id": "u-marker"})
        client.post("/v1/recommend", json={**known, "user_id": "u-marker", "k": 0})
        client.get("/v1/users/u-marker/history?secret=q-marker")
        client.get("/nothing/p-marker")
        client.post("/v1/search", json={"query": "q-marker"})
        client.post("/v1/models/activate", json={"name": "u-marker"})
        with monkeypatch.context() as patched:
            patched.setattr(Recommender, "candidates", broken)
            assert client.post("/v1/recommend", json=known).json()["degraded"]
            patched.setattr(Snapshot, "states", broken)
            assert client.get("/v1/items/i-marker").status_code == 500
            store = client.service.store
            wrong = sa.text("insert into nothing values (:user)")
            patched.setattr(
                store,
                "insert_events",
                lambda rows: lambda c: c.execute(wrong, {"user": "u-marker"}),
            )
            assert client.post("/v1/events", json={"events": [sent]}).status_code == 503
        client.delete("/v1/users/u-marker")
        assert "marker" not in client.get("/metrics").text
    theirs = ("httpx", "httpcore", "asyncio")  # of the test's own client
    format_ = logging.Formatter("%(message)s").format
    texts = [format_(r) for r in caplog.records if not r.name.startswith(theirs)]
    assert any("broken" in text for text in texts)
    assert not [text for text in texts if "marker" in text]


def test_the_client_speaks_api_v1(listening, bundles):
    from sidrec.serving.client import Client, RefusedError

    with listening() as server, Client(server.url) as client:
        answer = client.recommend(history=bundles.history, k=3)
        assert len(answer.items) == 3 and not answer.degraded
        assert client.rank([i.item_id for i in answer.items], history=bundles.history).items
        assert client.similar(bundles.ids[0], k=2).items[0].reason.kind == "similar"
        assert client.explain(bundles.ids[0], history=bundles.history).explanation["levels"]
        sent = {"event_id": "1", "user_id": "a/b", "item_id": bundles.ids[0]}
        assert client.send_events([sent]).accepted == 1
        assert client.user_history("a/b").items == [bundles.ids[0]]
        assert client.erase_user("a/b").events == 1
        assert client.patch_item(bundles.ids[0], available=False).updated == 1
        assert client.patch_item(bundles.ids[0], available=True).items[0].available
        assert [m.name for m in client.models().models if m.active] == ["first"]
        with pytest.raises(RefusedError, match="k: Input should be") as refused:
            client.recommend(history=[], k=0)
        assert (refused.value.code, refused.value.status) == ("invalid_request", 422)


def test_a_publishable_key_reads_nothing_of_a_stored_history(serving, bundles, keys_file, keys_of):
    mine, lost = bundles.history, "lost-marker"
    events = [
        {"event_id": str(n), "user_id": "ann", "item_id": item}
        for n, item in enumerate([lost, *mine])
    ]
    scenarios = {"why": {"explain": True}}
    with serving(keys_file=keys_file, scenarios=scenarios) as client:

        def ask(role, path="recommend", status=200, **body):
            key = {"X-Api-Key": keys_of[role]}
            answer = client.post(f"/v1/{path}", json=body, headers=key)
            assert answer.status_code == status, answer.text
            return answer.json()

        ask("publishable", "events", events=events)
        for path, more in (("recommend", {"k": 60}), ("rank", {"items": bundles.ids})):
            shown, own, seen = (
                ask("publishable", path, user_id="ann", **more),
                ask("publishable", path, history=mine, **more),
                ask("secret", path, user_id="ann", **more),
            )
            assert [i["item_id"] for i in shown["items"]] == [i["item_id"] for i in own["items"]]
            assert any(item["reason"].get("item_id") for item in own["items"])
            assert [i["reason"] for i in seen["items"]] == [i["reason"] for i in own["items"]]
            for item in shown["items"]:
                assert item["reason"] == {
                    "kind": "sequence", "text": "often follows a history like this"
                }  # fmt: skip
            assert lost not in str(shown)
        for more in ({"dry_run": True}, {"k": 5}):
            assert lost in ask("secret", user_id="ann", **more)["skipped_items"]
            assert lost not in str(ask("publishable", user_id="ann", **more))
        for who in ({"user_id": "ann"}, {"history": mine}):
            for why in ({"explain": True}, {"scenario": "why"}):
                refused = ask("publishable", status=403, k=2, **who, **why)
                assert refused["code"] == "forbidden" and "secret" in refused["detail"]
                assert ask("secret", k=2, **who, **why)["items"][0]["explanation"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Host": "rebound.example:8000"},
        {"Host": "127.0.0.1.rebound.example"},
        {"Host": "127.0.0.1:8000", "Origin": "https://shop.example"},
        {"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:9000"},
        {"Host": "127.0.0.1:8000", "Origin": "null"},
    ],
)
def test_pages_of_other_sites_get_nothing_from_a_server_without_keys(shared, headers):
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/events"), ("DELETE", "/v1/users/u")):
        answer = shared.request(method, path, headers=headers)
        assert answer.status_code == 403, (method, path)
        assert "--keys" in answer.json()["hint"]


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:8000", "shop.localhost"])
def test_a_server_without_keys_answers_its_own_page(shared, host):
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert shared.get("/v1/models", headers=headers).status_code == 200
    assert shared.get("/v1/models", headers={"Host": host}).status_code == 200


def test_keys_let_any_name_in(serving, keys_file, keys_of):
    with serving(keys_file=keys_file) as client:
        headers = {"Host": "recommend.example", "X-Api-Key": keys_of["admin"]}
        assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/livez/", "/v1/models/", "/v1/recommend/", "/page/"])
def test_no_answer_leads_to_where_the_host_header_says(serving, keys_file, keys_of, path):
    with serving(keys_file=keys_file) as client:
        headers = {"Host": "rebound.example", "X-Api-Key": keys_of["admin"]}
        answer = client.get(path, headers=headers, follow_redirects=False)
        assert answer.status_code == 404 and "location" not in answer.headers


def test_what_an_unforeseen_error_says_is_not_logged(serving, bundles, monkeypatch, caplog):
    """It may hold what the caller wrote; kind and place are logged, of its cause too."""
    from sidrec.recommender import Recommender
    from sidrec.serving.snapshot import Snapshot

    def broken(_, given, *__, **___):
        try:
            return {}[f"marker-{given}"]
        except KeyError as error:
            raise ValueError(f"marker-{given}") from error

    with serving() as client:
        monkeypatch.setattr(Snapshot, "states", broken)
        assert client.get("/v1/items/i").status_code == 500
        monkeypatch.setattr(Recommender, "candidates", broken)
        assert client.post("/v1/recommend", json={"history": bundles.history}).json()["degraded"]
    texts = [logging.Formatter().format(record) for record in caplog.records]
    failed = [text for text in texts if "in broken" in text and "KeyError" in text]
    assert len(failed) == 2 and "marker-i" not in str(texts)
