"""Paths and addresses in every text of a request: nothing is opened, nothing asked."""

from __future__ import annotations

import copy
from urllib.parse import quote

import pytest

from sidrec.serving.app import FIELDS

SECRET = "content-of-a-file-nobody-may-read"
TEXTS = [
    "../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "....//secret.txt", "..\\secret.txt",
    "../../../../../../etc/passwd", "/etc/passwd", "/proc/self/environ", "first/../../secret.txt",
    "C:\\Windows\\win.ini", "\\\\203.0.113.7\\share", "..\u2215secret.txt", "file:///etc/passwd",
    "http://203.0.113.7/", "http://169.254.169.254/latest/meta-data/", "http://[::ffff:cb00:7107]/",
    "https://example.com/x?y=1", "gopher://203.0.113.7:6379/_INFO", "//203.0.113.7/x", "s3://b/k",
    "${jndi:ldap://203.0.113.7/a}", "{{7*7}}", "'; drop table events; --", "$(id)", "`id`",
]  # fmt: skip
TREE = {"field": "", "op": "", "value": ""}
WORKS = {"field": "title", "op": "eq", "value": ""}
EVENT = {
    "event_id": "", "user_id": "", "item_id": "", "event_type": "", "session_id": "",
    "request_id": "", "timestamp": "",
}  # fmt: skip
BODIES = {
    "/v1/recommend": {
        "user_id": "", "system": "", "scenario": "", "filter": TREE, "segment": WORKS,
        "boost": [{"filter": WORKS, "factor": 2}], "exclude_items": [""], "include_fields": [""],
    },
    "/v1/recommend#history": {"history": ["", ""], "filter": WORKS},
    "/v1/similar": {"item_id": "", "filter": TREE, "exclude_items": [""], "include_fields": [""]},
    "/v1/rank": {"user_id": "", "history": [""], "items": [""], "include_fields": [""]},
    "/v1/explain": {"user_id": "", "history": [""], "item_id": ""},
    "/v1/search": {"query": "", "user_id": "", "history": [""], "filter": TREE},
    "/v1/events": {"events": [EVENT]},
    "/v1/items": {"items": [{"item_id": "", "attributes": {"title": "", "": ""}}]},
    "/v1/models/activate": {"name": ""},
    "/v1/trace": {
        "user_id": "", "history": [""], "system": "", "filter": TREE, "exclude_items": [""],
    },
    "/v1/models/second/recommend": {"history": [""], "system": "", "filter": TREE},
}  # fmt: skip
NO_TEXTS = {
    "available", "diversity", "dry_run", "exclude_viewed", "explain", "k", "limit", "offset",
    "position", "timeout_ms", "variants", "weight",
}  # fmt: skip
IN_PATH = ("/v1/items/{}", "/v1/users/{}", "/v1/users/{}/history", "/v1/experiments/{}", "/{}",
           "/page/{}", "/v1/models/{}/recommend")  # fmt: skip
IN_QUERY = (("/v1/tree", "prefix"), ("/v1/items", "query"), ("/v1/items", "ids"))


def places_of(body, place=()):
    """Where the texts are."""
    if body == "":
        yield place
    parts = list(enumerate(body)) if isinstance(body, list) else []
    for name, part in body.items() if isinstance(body, dict) else parts:
        yield from places_of(part, (*place, name))


def with_text(body, places, text):
    """The body with a text in these places; in the others a harmless one, or none."""
    body = copy.deepcopy(body)
    for place in places_of(body):
        inside = body
        for part in place[:-1]:
            inside = inside[part]
        if place in places:
            inside[place[-1]] = text
        elif isinstance(place[-1], str) and place[-1] in ("system", "scenario", "timestamp"):
            inside[place[-1]] = None
        else:
            inside[place[-1]] = {"field": "title", "op": "eq"}.get(str(place[-1]), "x")
    return body


def names_in(body):
    if isinstance(body, dict):
        return set(body).union(*(names_in(part) for part in body.values()))
    return set().union(*map(names_in, body)) if isinstance(body, list) else set()


def test_every_text_field_that_there_is_is_in_the_corpus():
    named = set().union(*(names_in(body) for body in BODIES.values()))
    named |= {name for _, name in IN_QUERY}
    assert set(FIELDS) - named == NO_TEXTS


def test_no_path_and_no_address_leads_anywhere(serving, bundles, outgoing):
    (bundles.folder.parent / "secret.txt").write_text(SECRET)
    (bundles.folder / "secret.txt").write_text(SECRET)
    before = sorted(bundles.folder.rglob("*"))
    answers = []
    with serving(timeout_ms=20_000) as client:

        def ask(method, path, body=None):
            answer = client.request(method, path, json=body)
            assert answer.status_code < 500, (path, body, answer.text)
            assert SECRET not in answer.text and "root:x:" not in answer.text, (path, body)
            answers.append(answer.status_code)

        number = 0
        for route, body in BODIES.items():
            path, places = route.split("#")[0], list(places_of(body))
            for place in places:
                for text in TEXTS[number % 4 :: 4]:
                    ask("POST", path, with_text(body, [place], text))
                number += 1
            for text in TEXTS:
                ask("POST", path, with_text(body, places, text))
        for path in IN_PATH:
            for text in TEXTS:
                ask("GET", path.format(quote(text, safe="")))
                ask("GET", path.format(quote(text)))
        for path, name in IN_QUERY:
            for text in TEXTS:
                ask("GET", f"{path}?{name}={quote(text, safe='')}")
    assert answers.count(200) > 100 and outgoing == []
    assert sorted(bundles.folder.rglob("*")) == before
    (bundles.folder / "secret.txt").unlink()


@pytest.mark.parametrize("address", [("203.0.113.7", 80), ("2001:db8::1", 80, 0, 0)])
def test_the_watch_sees_a_connection_that_goes_out(address, outgoing):
    import socket

    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as going, pytest.raises(OSError, match="goes out"):
        going.connect(address)
    with pytest.raises(OSError, match="goes out"):
        socket.getaddrinfo("sidrec.example", 80)
    assert len(outgoing) == 2
    outgoing.clear()
