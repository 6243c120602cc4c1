from __future__ import annotations

import copy

import numpy as np
import polars as pl
import pytest
import torch

from sidrec import config as configuration
from sidrec.data.search import Judgements, made_search
from sidrec.embeddings.vectors import unit_rows
from sidrec.errors import ConfigError, DataError
from sidrec.retrieval.search.asking import best
from sidrec.retrieval.search.dual_tower import (
    Batch,
    DualTower,
    DualTowerConfig,
    Lessons,
    Towers,
    batches,
    symmetric_loss,
    tower_loss,
    train,
)
from sidrec.retrieval.search.views import ViewIndexConfig
from sidrec.testing.tiny_catalogue import tiny_context
from sidrec.types import Items, as_ids

B, G, F = 5, 3, 8
SMALL = DualTowerConfig(dim=6, hidden=(10,), num_steps=40, batch_size=8, learning_rate=5e-3)


def batch(seed=0):
    random = torch.Generator().manual_seed(seed)

    def unit(*shape):
        return torch.nn.functional.normalize(torch.randn(*shape, generator=random), dim=-1)

    excluded = torch.eye(B, dtype=torch.bool)
    excluded[0, 3] = True
    no_hard = torch.zeros(B, G, dtype=torch.bool)
    no_hard[2] = True
    return Batch(unit(B, F), unit(B, F), unit(B, G, F), excluded, no_hard)


def towers(config=SMALL, seed=3):
    """Towers with every weight moved, so that the two differ."""
    found = Towers(F, config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for table in found.parameters():
            table += 0.3 * torch.randn(table.shape, generator=random)
    return found


def changed(config, **values):
    return configuration.parse(DualTowerConfig, values, base=config)


def exchanged(found):
    other = copy.deepcopy(found)
    other.query, other.item = other.item, other.query
    return other


@pytest.mark.parametrize("loss", ["hinge", "softmax"])
@pytest.mark.parametrize("swapped", [False, True])
def test_the_loss_is_its_definition(loss, swapped):
    """Equation by equation, in plain numbers; the swap exchanges the towers and nothing else."""
    config, found, given = changed(SMALL, loss=loss), towers(), batch()
    f, g = (found.item, found.query) if swapped else (found.query, found.item)
    values, count, total = [], 0, 0.0
    with torch.no_grad():
        asked, own, hard = f(given.queries_BF), g(given.items_BF), g(given.hard_BGF)
        for b in range(B):
            right = float(asked[b] @ own[b])
            wrong = [float(asked[b] @ own[j]) for j in range(B) if not given.excluded_BB[b, j]]
            wrong += [float(asked[b] @ hard[b, j]) for j in range(G) if not given.no_hard_BG[b, j]]
            total += sum(max(0.0, config.margin - right + s) for s in wrong)
            count += len(wrong)
            logits = np.array([right, *wrong]) / config.temperature
            values.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[0])
        expected = total / count if loss == "hinge" else np.mean(values)
        assert float(tower_loss(f, g, given, config)) == pytest.approx(expected, rel=1e-4)


def test_no_swap_weight_is_the_plain_loss_bit_for_bit():
    found, given = towers(), batch()
    plain = tower_loss(found.query, found.item, given, SMALL)
    assert torch.equal(symmetric_loss(found, given, SMALL), plain)
    doubled = symmetric_loss(found, given, changed(SMALL, swap_weight=0.5))
    swap = tower_loss(found.item, found.query, given, SMALL)
    torch.testing.assert_close(doubled, plain + 0.5 * swap)


def test_exchanging_the_names_of_the_towers_exchanges_the_losses():
    found, given = towers(), batch()
    plain = tower_loss(found.query, found.item, given, SMALL)
    other = exchanged(found)
    assert torch.equal(plain, tower_loss(other.item, other.query, given, SMALL))
    whole = changed(SMALL, swap_weight=1.0)
    torch.testing.assert_close(
        symmetric_loss(found, given, whole), symmetric_loss(other, given, whole)
    )


def test_tied_towers_have_equal_losses_and_equal_views():
    found, given = towers(), batch()
    found.query = found.item
    plain = tower_loss(found.query, found.item, given, SMALL)
    assert torch.equal(plain, tower_loss(found.item, found.query, given, SMALL))
    inputs = given.items_BF.numpy()
    np.testing.assert_array_equal(found.embed("query", inputs), found.embed("item", inputs))


def test_the_swap_adds_no_parameter():
    numbers = [
        sum(t.numel() for t in Towers(F, changed(SMALL, swap_weight=w)).parameters())
        for w in (0.0, 1.0)
    ]
    assert numbers[0] == numbers[1]


def test_the_hinge_is_zero_without_gradient_where_every_margin_is_met():
    given = batch()
    inputs = torch.eye(F)[:B]
    apart = Batch(inputs, inputs, inputs[[1, 2, 3, 4, 0]][:, None], given.excluded_BB,
                  torch.zeros(B, 1, dtype=torch.bool))  # fmt: skip
    found = Towers(F, changed(SMALL, dim=F))  # as they start: the identity
    loss = symmetric_loss(found, apart, changed(SMALL, dim=F, swap_weight=1.0, margin=0.5))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(t.grad is None or not t.grad.any() for t in found.parameters())


def test_untrained_towers_are_the_text_vectors_themselves():
    inputs = unit_rows(np.random.default_rng(0).standard_normal((4, F)))
    found = Towers(F, changed(SMALL, dim=F))
    for tower in ("query", "item"):
        np.testing.assert_allclose(found.embed(tower, inputs), inputs, atol=1e-6)
    assert not found.embed("query", np.zeros((1, F), dtype=np.float32)).any()


def world(num=60, seed=0):
    """Queries are items seen through a rotation that a linear map can undo."""
    random = np.random.default_rng(seed)
    items = unit_rows(random.standard_normal((num, F)))
    rotation, _ = np.linalg.qr(random.standard_normal((F, F)))
    queries = unit_rows(items @ rotation + 0.05 * random.standard_normal((num, F)))
    rows = np.arange(num)
    judgements = Judgements.from_lists(
        rows, rows, np.ones(num, dtype=np.int64), num_queries=num, top_grade=1
    )
    return queries, items, judgements


@pytest.mark.parametrize("loss", ["hinge", "softmax"])
def test_training_undoes_a_rotation_for_queries_it_has_not_seen(loss):
    queries, items, judgements = world(200)
    seen = np.arange(150)
    lessons = Lessons.of(queries[seen], items, judgements.take(seen), 1)
    config = changed(SMALL, dim=F, hidden=(), loss=loss, batch_size=32, learning_rate=0.03)
    held_out = {}
    for steps in (1, 300):
        found = train(items, [lessons], changed(config, num_steps=steps))
        scores = found.embed("query", queries[150:]) @ found.embed("item", items).T
        held_out[steps] = (scores.argmax(axis=1) == np.arange(150, 200)).mean()
    assert held_out[1] < 0.1 and held_out[300] > 0.5


def test_the_swap_brings_both_views_of_an_item_together():
    """In a world where queries and items are alike, plain training lets the towers drift apart."""
    random = np.random.default_rng(1)
    items = unit_rows(random.standard_normal((60, F)))
    queries = unit_rows(items + 0.4 * random.standard_normal((60, F)))
    lessons = Lessons.of(queries, items, world()[2], 1)
    agreement = {}
    for weight in (0.0, 1.0):
        config = changed(SMALL, dim=F, num_steps=150, swap_weight=weight, batch_size=16)
        found = train(items, [lessons], config)
        u, v = found.embed("query", items), found.embed("item", items)
        agreement[weight] = (u * v).sum(axis=1).mean()
    assert agreement[1.0] > agreement[0.0] + 0.02


def test_negatives_never_answer_the_query_and_hard_ones_were_judged_too_low():
    queries, items, _ = world(20)
    triples = np.array([[0, 1, 2], [0, 2, 2], [0, 3, 0], [1, 4, 2], [1, 5, 1]])
    judged = Judgements.from_lists(*triples.T, num_queries=2, top_grade=2)
    lessons = Lessons.of(queries[:2], items, judged, 0)
    assert lessons.pairs_P2.tolist() == [[0, 1], [0, 2], [1, 4]]
    assert [row[row >= 0].tolist() for row in lessons.hard_MG] == [[3], [5]]
    given = next(batches(items, lessons, SMALL, np.random.default_rng(0)))
    rows = [(np.abs(items - item.numpy()).sum(axis=1)).argmin() for item in given.items_BF]
    for b, row in enumerate(rows):
        for other, item in enumerate(rows):
            answers = {1, 2} if row in (1, 2) else {4}
            assert bool(given.excluded_BB[b, other]) == (item in answers)


def test_without_judged_negatives_the_nearest_other_items_are_hard():
    queries, items, judgements = world(50)
    lessons = Lessons.of(queries, items, judgements, 1)
    for query in range(50):
        hard = lessons.hard_MG[query]
        order = np.argsort(-(items @ queries[query]))
        assert query not in hard and set(hard) == set(order[order != query][: len(hard)])


def test_items_are_encoded_for_ids_from_either_view():
    items = tiny_context().items
    found = DualTower.fit(items, changed(SMALL, swap_weight=0.5))
    views = {v: found.item_vectors(items, v).vectors for v in ("item", "query", "mean")}
    mean = unit_rows(views["item"] + views["query"])
    np.testing.assert_allclose(views["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(views["item"], found.index.items_ND, atol=1e-6)
    assert not np.allclose(views["item"], views["query"])


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_index_with_every_probe_answers_as_the_exact_one(kind):
    items = tiny_context().items
    asked = made_search(items).queries.texts[:9]
    lists = [
        best(DualTower.fit(items, changed(SMALL, index=index)).ask(asked, 5), 5)
        for index in (
            ViewIndexConfig(),
            ViewIndexConfig(kind=kind, num_cells=4, probes=24, view="query"),
        )
    ]
    np.testing.assert_allclose(lists[0].scores_BK, lists[1].scores_BK, atol=1e-5)


def test_settings_and_catalogues_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="swap_weight"):
        DualTowerConfig(swap_weight=-1)
    with pytest.raises(ConfigError, match="batch_size"):
        DualTowerConfig(batch_size=1)
    silent = Items(as_ids("ab"), pl.DataFrame({"price": [1, 2]}))
    with pytest.raises(DataError, match="text"):
        DualTower.fit(silent, SMALL)
    with pytest.raises(DataError, match="bring judged queries"):
        DualTower.fit(tiny_context().items, changed(SMALL, made_per_item=0))
