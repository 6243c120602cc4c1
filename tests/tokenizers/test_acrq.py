"""ACRQ-style IDs: the head never moves, the rest shares its codes, off switches give RQ-VAE."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from sidrec.errors import ConfigError, DataError
from sidrec.testing.tokenizers import tiny_vectors
from sidrec.tokenizers import acrq, autoencoder
from sidrec.tokenizers.acrq import Acrq, AcrqConfig, Anchored, Trace, popularity_groups
from sidrec.tokenizers.autoencoder import Autoencoder, Objective, nearest_codes
from sidrec.tokenizers.collisions import reassign
from sidrec.tokenizers.health import error_ratio
from sidrec.tokenizers.quantisation import quantise
from sidrec.tokenizers.rqvae import RqVae, RqVaeConfig
from sidrec.types import CatalogueContext, Histories, Items, ItemVectors, as_ids

SMALL = {
    "num_codes": 16,
    "num_levels": 2,
    "hidden": (16,),
    "latent": 4,
    "epochs": 20,
    "batch_size": 50,
    "device": "cpu",
}
OFF = {"anchor": 0.0, "drift": 0.0, "replay": 0.0}


def context_of(vectors, counts):
    train = Histories.from_lists([[row] * count for row, count in enumerate(counts)])
    items = Items(vectors.item_ids, pl.DataFrame({"title": list(vectors.item_ids)}))
    return CatalogueContext(items, train, vectors)


def skewed(num_items=200):
    """Items whose popularity falls with their row, the last tenth cold."""
    vectors = tiny_vectors(num_items)
    counts = np.maximum(100 // (1 + np.arange(num_items) // 10), 1)
    counts[-num_items // 10 :] = 0
    return vectors, context_of(vectors, counts)


@pytest.fixture(scope="module")
def world():
    vectors, context = skewed()
    return vectors, context, Acrq.fit(vectors, AcrqConfig(**SMALL), context)


def test_groups_follow_cumulative_events_and_cold_items_come_last():
    vectors = tiny_vectors(6)
    groups, num_cold = popularity_groups(
        vectors.item_ids, (0.8, 0.95), context_of(vectors, [1, 0, 50, 6, 40, 3])
    )
    assert [group.tolist() for group in groups] == [[2, 4], [3], [0, 1, 5]] and num_cold == 1


def test_one_best_seller_is_the_head_whatever_its_share():
    vectors = tiny_vectors(3)
    groups, _ = popularity_groups(vectors.item_ids, (0.8,), context_of(vectors, [1, 98, 1]))
    assert [group.tolist() for group in groups] == [[1], [0, 2]]


def test_groups_go_by_item_id_not_by_row():
    vectors, context = skewed(50)
    order = np.random.default_rng(0).permutation(50)
    shuffled = ItemVectors(vectors.item_ids[order], vectors.vectors[order])
    plain, mixed = (popularity_groups(v.item_ids, (0.8,), context)[0] for v in (vectors, shuffled))
    for mine, theirs in zip(plain, mixed, strict=True):
        assert set(vectors.item_ids[mine]) == set(shuffled.item_ids[theirs])


def test_head_ids_are_those_of_an_rqvae_of_the_head_alone(world):
    vectors, context, fitted = world
    rows = popularity_groups(vectors.item_ids, fitted.config.cuts, context)[0][0]
    mean, deviation = fitted.mean_D, fitted.deviation_D
    head = autoencoder.fit_autoencoder(
        torch.from_numpy((vectors.vectors[rows] - mean) / deviation), (14, 14), fitted.config
    )
    alone = RqVae.of(head, fitted.config, mean, deviation)
    taken = ItemVectors(vectors.item_ids[rows], vectors.vectors[rows])
    np.testing.assert_array_equal(fitted.encode(taken).codes, alone.encode(taken).codes)
    for book, before in zip(fitted.codebooks, alone.codebooks, strict=True):
        np.testing.assert_array_equal(book[:14], before)
        assert len(book) == 16


def test_a_head_item_keeps_its_id_where_the_other_path_would_rename_it(world):
    vectors, _, fitted = world
    rows = np.flatnonzero(fitted.in_head(vectors))
    strangers = ItemVectors(as_ids(f"new {row}" for row in rows), vectors.vectors[rows])
    own = fitted.encode(vectors).codes[rows]
    assert (own < 14).all()
    assert (fitted.encode(strangers).codes != own).any(), "both paths were the same one"


def test_the_rest_uses_the_extra_codes_and_only_the_rest(world):
    vectors, _, fitted = world
    codes, head = fitted.encode(vectors).codes, fitted.in_head(vectors)
    assert (codes[~head] >= 14).any() and not (codes[head] >= 14).any()


def test_head_codes_stay_with_frozen_rows_that_revival_would_restart():
    points = torch.from_numpy(tiny_vectors(60).vectors)
    config = AcrqConfig(**SMALL | {"epochs": 4, "revive_every": 1})
    head = autoencoder.fit_autoencoder(points[:20], (8, 8), config)
    head.books[0].data[3] = 1e3  # dead in the head
    model = acrq.fit_rest(
        head, points, (np.arange(20), np.arange(20, 60)), (4, 4), config, Trace(points[20:])
    )
    for book, before in zip(model.books, head.books, strict=True):
        torch.testing.assert_close(book[:8], before, rtol=0, atol=0)
    assert not torch.equal(model.encoder[0].weight, head.encoder[0].weight)


def test_one_group_is_rqvae_bit_for_bit():
    vectors, context = skewed()
    plain = RqVae.fit(vectors, RqVaeConfig(**SMALL))
    for config, given in ((AcrqConfig(cuts=(), **SMALL), context), (AcrqConfig(**SMALL), None)):
        fitted = Acrq.fit(vectors, config, given)
        arrays = plain.arrays()
        assert fitted.arrays().keys() == arrays.keys() and fitted.report.num_items == (200,)
        for name, array in fitted.arrays().items():
            np.testing.assert_array_equal(array, arrays[name])


def test_stage_two_without_weights_and_freezing_trains_as_rqvae_does_bit_for_bit():
    points = torch.from_numpy(tiny_vectors(60).vectors)
    config = AcrqConfig(freeze=False, **OFF, **SMALL | {"epochs": 5, "revive_every": 2})
    trained = []
    for anchored in (False, True):
        torch.manual_seed(0)
        model = Autoencoder(*autoencoder.mlps(config, 8), (16, 16), 4)
        rng = np.random.default_rng(0)
        autoencoder.start_codebooks(model.latents(points), model.books, rng)
        head = Autoencoder(*autoencoder.mlps(replace(config, seed=1), 8), (16, 16), 4)
        objective = (
            Anchored(model, points, config, head=head, rows_H=torch.arange(9), trace=Trace(points))
            if anchored
            else Objective(model, points, config)
        )
        autoencoder.train(objective, rng)
        trained.append(model.state_dict())
    for name, weight in trained[0].items():
        assert torch.equal(weight, trained[1][name]), name


def test_the_three_terms_are_the_sums_written_down():
    points = torch.from_numpy(tiny_vectors(40).vectors)
    torch.manual_seed(0)
    config = AcrqConfig(**SMALL | {"num_levels": 2})
    head = autoencoder.fit_autoencoder(points[:20], (8, 8), config).requires_grad_(False)
    model = Autoencoder(*autoencoder.mlps(config, 8), (10, 10), 4)
    for book, before in zip(model.books, head.books, strict=True):
        book.data.copy_(torch.cat([before, torch.randn(2, 4)]))
    rows = torch.arange(20, 40)
    latents = model.encoder(points[rows])
    quantised = autoencoder.residual_quantise(latents, model.books)
    made = {"model": model, "points_ND": points, "head": head, "trace": Trace(points)}

    def extra(**weights):
        settings = replace(config, **OFF | weights)
        objective = Anchored(config=settings, rows_H=torch.arange(20), **made)
        return objective.extra(rows, latents, quantised)

    drift = (latents - head.encoder(points[rows])).square().sum(1).mean()
    torch.testing.assert_close(extra(drift=2.0), 2 * drift)
    expected, residual = 0.0, latents
    for level in range(2):
        expected += torch.cdist(residual, head.books[level]).amin(1).square().mean()
        torch.testing.assert_close(extra(anchor=3.0, anchored_levels=level + 1), 3 * expected)
        residual = residual - model.books[level][nearest_codes(residual, model.books[level])]
    assert extra() == 0.0
    head.zero_grad()
    extra(anchor=1.0).backward(retain_graph=True)
    assert all(book.grad is None for book in (*model.books, *head.books))
    codes, _ = quantise(head.latents(points[:20]), head.codebooks())
    sums = sum(head.books[level][codes[:, level]] for level in range(2))
    worst = (points[:20] - model.decoder(sums)).square().sum(1).max()
    assert 0 < extra(replay=1.0) <= worst


def test_a_loaded_one_names_heads_and_strangers_alike_and_forgets_only_the_clock(world):
    vectors, _, fitted = world
    state = json.loads(json.dumps(fitted.state()))
    again = Acrq.from_arrays(fitted.config, fitted.arrays(), state)
    for items in (vectors, tiny_vectors(7, seed=3)):
        np.testing.assert_array_equal(again.encode(items).codes, fitted.encode(items).codes)
    assert again.report == replace(fitted.report, seconds=())
    assert "seconds" not in state


def test_reordered_codebooks_rename_head_items_consistently(world):
    """As `lifecycle` does to go on in old codes."""
    vectors, _, fitted = world
    order = np.random.default_rng(0).permutation(16)
    arrays = fitted.arrays()
    arrays["codebook.1"] = arrays["codebook.1"][order]
    turned = Acrq.from_arrays(fitted.config, arrays, fitted.state()).encode(vectors).codes
    before = fitted.encode(vectors).codes
    np.testing.assert_array_equal(turned[:, 0], before[:, 0])
    np.testing.assert_array_equal(order[turned[:, 1]], before[:, 1])


def test_the_report_counts_groups_and_traces_the_tail(world):
    vectors, context, fitted = world
    report = fitted.report
    groups, _ = popularity_groups(vectors.item_ids, (0.8, 0.95), context)
    assert report.num_items == tuple(map(len, groups)) and sum(report.num_items) == 200
    assert report.num_cold == 20
    assert len(report.tail_errors) == len(report.seconds) == 20 + 2 * 10
    assert list(report.seconds) == sorted(report.seconds)
    tail = vectors.vectors[groups[-1]]
    rebuilt = fitted.decode(fitted.encode(vectors).codes[groups[-1]])
    assert report.tail_errors[-1] == pytest.approx(error_ratio(tail, rebuilt), abs=1e-3)
    assert report.tail_errors[-1] < report.tail_errors[19] < report.tail_errors[0]


def test_ids_of_all_groups_take_part_in_one_reassignment(world):
    vectors, _, fitted = world
    ids, report = reassign(fitted.encode(vectors), fitted, vectors)
    assert report.share_after == 0 and ids.num_codes == (16, 16)


def test_without_freezing_there_is_no_head():
    vectors, context = skewed()
    fitted = Acrq.fit(vectors, AcrqConfig(freeze=False, **SMALL | {"epochs": 4}), context)
    assert fitted.head is None and not fitted.in_head(vectors).any()
    assert fitted.num_codes == (16, 16)


def test_what_it_cannot_do_is_refused():
    vectors = tiny_vectors(200)
    config = AcrqConfig(**SMALL)
    with pytest.raises(DataError, match="none of the 200 items has a training event"):
        Acrq.fit(vectors, config, context_of(vectors, np.zeros(200, int)))
    few = context_of(vectors, [1000, 1000] + [1] * 198)
    with pytest.raises(DataError, match=r"needs at least 14 items .* holds 2; lower num_codes"):
        Acrq.fit(vectors, config, few)
    for wrong in ({"anchor": -1.0}, {"extra_share": 1.0}, {"cuts": (0.9, 0.8)}, {"cuts": (1.0,)}):
        with pytest.raises(ConfigError, match=rf"acrq\.{next(iter(wrong))}"):
            AcrqConfig(**wrong)


def test_identical_vectors_fit():
    vectors = ItemVectors(as_ids(range(60)), np.zeros((60, 8), np.float32))
    context = context_of(vectors, np.arange(60, 0, -1))
    ids = Acrq.fit(vectors, AcrqConfig(**SMALL | {"epochs": 3}), context).encode(vectors)
    assert len(np.unique(ids.codes, axis=0)) <= 2
