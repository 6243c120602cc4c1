"""The typed client, over a real socket of this process."""

from __future__ import annotations

import socket
import threading

import pytest

from sidrec.serving.client import Client, RefusedError


@pytest.fixture
def client(listening, searching):
    with listening(bundle=searching.path) as server, Client(server.url) as client:
        yield client


def ids_of(answer):
    return [item.item_id for item in answer.items]


def test_search_takes_a_text_and_a_history(client, searching, bundles):
    found = ids_of(client.search(searching.query, k=4))
    assert found == searching.recommender.search(searching.query, k=4)["item_id"].to_list()
    ranked = client.search(searching.query, history=bundles.history, k=4, include_fields=["title"])
    assert all(item.reason.kind == "search" and item.fields["title"] for item in ranked.items)


def test_get_item_says_what_is_served(client):
    name = "a/b ü?#%2F"
    client.upsert_items([{"item_id": name, "attributes": {"price": 2.5}}])
    found = client.get_item(name)
    assert (found.item_id, found.available, found.attributes["price"]) == (name, True, 2.5)
    client.delete_item(name)
    with pytest.raises(RefusedError) as refused:
        client.get_item(name)
    assert refused.value.code == "unknown_item"


def test_export_user_gives_every_event(client):
    for user in ("ann", "ann/history"):
        event = {"event_id": user, "user_id": user, "item_id": "x", "position": 3}
        client.send_events([event])
        found = client.export_user(user)
        assert (found.user_id, found.truncated) == (user, False)
        assert [{k: e[k] for k in event} for e in found.events] == [event]


def test_experiments_are_started_looked_at_and_ended(client):
    assert client.experiments().experiments == []
    variants = [{"name": "a", "system": "popularity"}, {"name": "b", "weight": 2.0}]
    started = client.start_experiment("ranking", variants)
    assert [arm["name"] for arm in started.variants] == ["a", "b"]
    assert client.experiments().experiments == [started]
    variant = client.variant_of("ranking", "a/b").variant
    assert client.recommend(user_id="a/b").experiment == {"name": "ranking", "variant": variant}
    assert client.stop_experiment("ranking").experiments == []


def test_a_trace_ends_in_the_list(client, bundles):
    generator = bundles.recommender.generator.name
    story = client.trace(history=bundles.history, k=3, system=generator)
    listed = client.recommend(history=bundles.history, k=3, system=generator)
    assert ids_of(story) == ids_of(listed)
    assert len(story.levels) == bundles.recommender.ids.num_levels


def test_a_plan_says_what_a_request_would_do(client, bundles):
    plan = client.plan(history=bundles.history, exclude_items=[bundles.ids[0]])
    assert plan.dry_run and plan.history_items == len(bundles.history)
    assert plan.allowed_items < len(bundles.ids)


def test_a_connection_that_the_server_closed_meanwhile_is_opened_again():
    """As after half a minute without a request."""
    body = b'{"models":[],"experiments":[]}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    listening = socket.create_server(("127.0.0.1", 0))
    taken = threading.Semaphore(0)

    def answer_and_close():
        for _ in range(3):
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)
            taken.release()

    serving = threading.Thread(target=answer_and_close, daemon=True)
    serving.start()
    with Client("http://{}:{}".format(*listening.getsockname())) as client:
        for _ in range(3):
            assert client.experiments().experiments == []
            assert taken.acquire(timeout=20)
    serving.join()
    listening.close()
