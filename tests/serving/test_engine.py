"""The engine's batches: what shares one gets the answer that it would get alone."""

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest

from sidrec.serving import answers
from sidrec.serving.engine import Engine
from sidrec.serving.problems import Problem
from sidrec.serving.schemas import RecommendRequest
from sidrec.serving.snapshot import Snapshot
from sidrec.types import Histories

WAIT_SECONDS = 30.0


@pytest.fixture
def snapshot(bundles):
    return Snapshot.of(bundles.recommender, name="first", catalogue_version=0)


def together(snapshot, requests):
    """Answers of requests that waited in one queue, and the sizes of the engine's batches."""
    engine, sizes, free = Engine(lambda: snapshot), [], threading.Event()
    engine.on_batch = lambda size, seconds: sizes.append(size)

    async def ask(body):
        request = RecommendRequest.model_validate(body)
        return await engine.recommend(
            lambda s: answers.recommend_query(s, request, request.history, request.system),
            lambda found: answers.recommend_answer(found, request),
            WAIT_SECONDS,
        )

    async def main():
        held = asyncio.create_task(engine.call(lambda _: free.wait(WAIT_SECONDS), WAIT_SECONDS))
        while not engine._busy:
            await asyncio.sleep(0.001)
        asked = [asyncio.create_task(ask(body)) for body in requests]
        while engine.depth < len(requests):
            await asyncio.sleep(0.001)
        free.set()
        await held
        return await asyncio.gather(*asked)

    try:
        return asyncio.run(main()), sizes
    finally:
        engine.stop()


@pytest.mark.parametrize("system", ["generator", None])
def test_requests_of_one_batch_get_what_they_get_alone(snapshot, bundles, system):
    ids = bundles.ids
    some = {"field": "item_id", "op": "in", "value": ids[::2]}
    kinds = [
        {},
        {"k": 1},
        {"k": 40},
        {"exclude_viewed": False},
        {"exclude_items": ids[:30]},
        {"filter": some},
        {"filter": {"not": some}, "k": 3},
        {"boost": [{"filter": some, "factor": 5.0}]},
        {"diversity": 0.5},
    ]
    histories = [bundles.history, bundles.history[:1], ids[5:50:3], ids[::-1][:7], []]
    requests = [
        {"k": 7, "history": history, "system": system, **kind}
        for kind in kinds
        for history in histories
    ]
    answered, sizes = together(snapshot, requests[:30])
    assert max(sizes) > 20
    answered += together(snapshot, requests[30:])[0]
    for request, answer in zip(requests, answered, strict=True):
        (alone,), _ = together(snapshot, [request])
        scores = [[item.pop("score") for item in one["items"]] for one in (answer, alone)]
        assert answer == alone
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_new_items_are_merged_into_the_index_and_answers_stay_those_of_the_grown_one(snapshot):
    new = [{"item_id": f"new-{i}", "attributes": {}, "available": True} for i in range(3)]
    grown = snapshot.with_items(new).recommender
    assert grown.index.tree.overlay is None
    rows = np.arange(len(grown.items) - 3, len(grown.items))
    insert = snapshot.recommender.index.insert(rows, grown.ids.codes[rows])
    assert insert.tree.overlay is not None
    histories = Histories.from_lists([[1, 2, 3], [int(rows[0]), 5]])
    found, expected = (
        one.candidates(histories, len(grown.items), system="generator")
        for one in (grown, replace(grown, index_override=insert))
    )
    assert (found.rows_BK == expected.rows_BK).all()
    assert found.scores_BK == pytest.approx(expected.scores_BK, abs=1e-5)


def test_a_lone_request_is_not_kept_waiting_for_company(snapshot, bundles):
    engine, sizes = Engine(lambda: snapshot), []
    engine.on_batch = lambda size, seconds: sizes.append(size)

    async def main():
        for _ in range(3):
            await engine.call(lambda _: None, WAIT_SECONDS)

    asyncio.run(main())
    engine.stop()
    assert sizes == [1, 1, 1]


def test_the_end_waits_for_what_waits_and_lets_nothing_else_in(snapshot):
    engine, free, told = Engine(lambda: snapshot, max_batch=1), threading.Event(), []

    async def main():
        calls = [engine.call(lambda _: free.wait(WAIT_SECONDS), WAIT_SECONDS) for _ in range(3)]
        asked = [asyncio.create_task(call) for call in calls]
        while engine.depth < 2:
            await asyncio.sleep(0.001)
        ending = threading.Thread(target=engine.stop)
        ending.start()
        while not engine._stopping:
            await asyncio.sleep(0.001)
        with pytest.raises(Problem) as refused:
            await engine.call(lambda _: None, WAIT_SECONDS)
        told.append(refused.value.code)
        free.set()
        told.extend(await asyncio.gather(*asked))
        await asyncio.to_thread(ending.join)

    asyncio.run(main())
    assert told == ["not_ready", True, True, True]
