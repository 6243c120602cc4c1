"""Who gets which popular items: those of a segment first, then those of everyone."""

from __future__ import annotations

import threading

import numpy as np


def listed(client, **body):
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def rows_of(body, bundles):
    return [bundles.ids.index(item["item_id"]) for item in body["items"]]


def kinds_of(body):
    return [item["reason"]["kind"] for item in body["items"]]


def test_a_person_without_a_history_gets_what_is_popular_in_the_segment_first(shared, bundles):
    prices_N = bundles.recommender.items.attributes["price"].to_numpy()
    dear_N = prices_N >= np.sort(prices_N)[-6]
    segment = {"field": "price", "op": "ge", "value": float(prices_N[dear_N].min())}
    body = listed(shared, history=[], k=10, segment=segment)
    assert not body["degraded"] and body["applied_filters"] == []
    counts_N, rows = bundles.recommender.train_counts_N, rows_of(body, bundles)
    inside, outside = np.flatnonzero(dear_N), np.flatnonzero(~dear_N)
    best = [part[np.argsort(-counts_N[part], kind="stable")] for part in (inside, outside)]
    assert rows == [*best[0], *best[1]][:10]
    assert kinds_of(body) == ["popular_in_segment"] * 6 + ["popular"] * 4
    scores = [item["score"] for item in body["items"]]
    assert scores == sorted(scores, reverse=True)
    known = {"history": bundles.history, "k": 10, "system": "causal"}
    assert listed(shared, **known, segment=segment)["items"] == listed(shared, **known)["items"]
    wrong = shared.post("/v1/recommend", json={"history": [], "segment": {"field": "agee"}})
    assert wrong.status_code == 422


def test_a_degraded_answer_begins_with_what_is_popular_among_items_like_the_history(
    serving, bundles, monkeypatch
):
    with serving() as client:
        engine, gate = client.service.engine, threading.Event()
        current, worker = engine.current, engine._thread
        held = lambda: gate.wait(20) if threading.current_thread() is worker else None  # noqa: E731
        monkeypatch.setattr(engine, "current", lambda: (held(), current())[1])
        late = {"timeout_ms": 30, "k": 60}
        body = listed(client, history=bundles.history, **late)
        first_N = bundles.recommender.ids.codes[:, 0]
        newest = [bundles.ids.index(item) for item in bundles.history[-5:]]
        inside = np.isin(first_N[rows_of(body, bundles)], first_N[newest])
        assert body["degraded_reason"] == "deadline" and len(inside) > 20
        assert inside.any() and not inside.all() and (np.diff(inside.astype(int)) <= 0).all()
        assert kinds_of(body) == ["popular_in_segment" if i else "popular" for i in inside]
        price = {"field": "price", "op": "lt", "value": 20.0}
        within = listed(client, history=bundles.history, filter=price, **late)
        prices_N = bundles.recommender.items.attributes["price"].to_numpy()
        assert within["items"] and (prices_N[rows_of(within, bundles)] < 20).all()
        gate.set()
