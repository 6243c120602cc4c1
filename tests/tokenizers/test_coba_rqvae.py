"""CoBa RQ-VAE: its terms on hand-worked codebooks, what it is with all three switched off."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from sidrec.errors import ConfigError, DataError
from sidrec.testing.tokenizers import tiny_vectors
from sidrec.tokenizers.autoencoder import Autoencoder
from sidrec.tokenizers.coba_rqvae import (
    CobaObjective,
    CobaRqVae,
    CobaRqVaeConfig,
    Neighbours,
    balance,
    nearest_weighted,
    uniformity,
)
from sidrec.tokenizers.cooccurrence import cooccurrence, normalised, propagate
from sidrec.tokenizers.quantisation import squared_distances
from sidrec.tokenizers.rqvae import RqVae, RqVaeConfig
from sidrec.types import CatalogueContext, Histories, Items, ItemVectors

FEW = {
    "num_codes": 6,
    "num_levels": 2,
    "hidden": (8,),
    "latent": 4,
    "epochs": 6,
    "batch_size": 40,
    "device": "cpu",
}
PLAIN = {"alpha": 1.0, "uniformity": 0.0, "delta_max": 0.0}


def context_of(vectors, alone=5, seed=0):
    """Histories that never touch the last `alone` items."""
    random = np.random.default_rng(seed)
    num = len(vectors) - alone
    train = Histories.from_lists([random.integers(0, num, 6) for _ in range(80)])
    return CatalogueContext(Items(vectors.item_ids, pl.DataFrame()), train, vectors)


def objective_of(config, sizes=(6, 6), num=50):
    torch.manual_seed(0)
    model = Autoencoder(torch.nn.Linear(8, 4), torch.nn.Linear(4, 8), sizes, 4)
    for book in model.books:
        torch.nn.init.normal_(book)
    return CobaObjective(model, torch.randn(num, 8), config)


def test_with_all_three_off_it_is_rqvae_bit_for_bit():
    vectors = tiny_vectors(100)
    coba = CobaRqVae.fit(vectors, CobaRqVaeConfig(**FEW, **PLAIN), context_of(vectors))
    plain = RqVae.fit(vectors, RqVaeConfig(**FEW))
    for name, array in plain.arrays().items():
        np.testing.assert_array_equal(coba.arrays()[name], array, err_msg=name)
    for items in (vectors, tiny_vectors(9, seed=4)):
        np.testing.assert_array_equal(coba.encode(items).codes, plain.encode(items).codes)


@pytest.mark.parametrize("switch", [{"alpha": 0.5}, {"uniformity": 5.0}, {"delta_max": 0.5}])
def test_each_of_the_three_alone_changes_the_codebooks(switch):
    vectors = tiny_vectors(100)
    config = CobaRqVaeConfig(**FEW, **(PLAIN | {"delta": 2.0} | switch))
    coba = CobaRqVae.fit(vectors, config, context_of(vectors))
    plain = RqVae.fit(vectors, RqVaeConfig(**FEW))
    assert not np.array_equal(coba.codebooks[0], plain.codebooks[0])


# Neighbours


def test_rows_are_those_of_the_paper_where_there_are_neighbours():
    vectors = tiny_vectors(60)
    context, config = context_of(vectors), CobaRqVaeConfig(alpha=0.3, hops=3, window=2)
    graph = normalised(cooccurrence(context.train, 60, 2))
    expected = propagate(graph, vectors.vectors, alpha=0.3, hops=3)
    near = Neighbours.of(vectors, config, context)
    rows = near.norm_ratio * near.align(vectors)
    np.testing.assert_allclose(rows[:-5], expected[:-5], atol=1e-3 * np.abs(expected).max())


def test_items_without_neighbours_keep_their_vectors_and_are_counted():
    vectors, unseen = tiny_vectors(60), tiny_vectors(4, seed=7)
    config = CobaRqVaeConfig(alpha=0.3, hops=2)
    near = Neighbours.of(vectors, config, context_of(vectors, alone=5))
    assert near.num_isolated == 5 and len(near.item_ids) == 55
    np.testing.assert_array_equal(near.align(vectors)[-5:], vectors.vectors[-5:])
    np.testing.assert_array_equal(near.align(unseen), unseen.vectors)
    lengths = np.linalg.norm(vectors.vectors, axis=1)
    ratios = np.linalg.norm(near.align(vectors), axis=1) / lengths
    assert ratios[:-5].mean() == pytest.approx(1, abs=1e-3)
    graph = normalised(cooccurrence(context_of(vectors).train, 60, config.window))
    shrunk = propagate(graph, vectors.vectors, alpha=0.3, hops=2)[-1]
    assert near.own == pytest.approx(
        np.linalg.norm(shrunk) / np.linalg.norm(vectors.vectors[-1]), rel=1e-5
    )


def test_without_a_context_or_with_only_cold_items_every_item_is_isolated():
    vectors = tiny_vectors(20)
    config = CobaRqVaeConfig()
    empty = replace(context_of(vectors), train=Histories.from_lists([[], [3]]))
    for context in (None, empty):
        near = Neighbours.of(vectors, config, context)
        assert near.num_isolated == 20 and not len(near.item_ids)
        np.testing.assert_array_equal(near.align(vectors), vectors.vectors)


def test_zero_vectors_take_those_of_their_neighbours_and_huge_ones_stay_finite():
    vectors = tiny_vectors(40)
    values = 1e7 * vectors.vectors
    values[0] = 0
    vectors = ItemVectors(vectors.item_ids, values)
    train = Histories.from_lists([[0, 1], [2, 3]])
    context = replace(context_of(vectors), train=train)
    aligned = Neighbours.of(vectors, CobaRqVaeConfig(), context).align(vectors)
    assert np.isfinite(aligned).all()
    cosine = aligned[0] @ values[1] / np.linalg.norm(aligned[0]) / np.linalg.norm(values[1])
    assert cosine == pytest.approx(1, abs=1e-4)


def test_neighbours_follow_their_ids_whatever_the_order_of_rows():
    vectors = tiny_vectors(60)
    near = Neighbours.of(vectors, CobaRqVaeConfig(), context_of(vectors))
    order = np.random.default_rng(0).permutation(60)
    shuffled = ItemVectors(vectors.item_ids[order], vectors.vectors[order])
    np.testing.assert_array_equal(near.align(shuffled), near.align(vectors)[order])


def test_only_training_events_reach_the_graph():
    vectors = tiny_vectors(60)
    context = context_of(vectors)
    fits = [
        CobaRqVae.fit(vectors, CobaRqVaeConfig(**FEW), replace(context, semantic_ids=ids))
        for ids in (None, RqVae.fit(vectors, RqVaeConfig(**FEW)).encode(vectors))
    ]
    np.testing.assert_array_equal(fits[0].codebooks[0], fits[1].codebooks[0])
    touched = set(np.unique(context.train.items_E).tolist())
    known = {vectors.item_ids[row] for row in touched}
    assert set(fits[0].neighbours.item_ids) <= known


def test_vectors_in_another_order_than_the_catalogue_are_refused():
    vectors = tiny_vectors(40)
    other = ItemVectors(vectors.item_ids[::-1], vectors.vectors)
    with pytest.raises(DataError, match="in the same order"):
        CobaRqVae.fit(other, CobaRqVaeConfig(**FEW), context_of(vectors))


# Uniformity


def test_uniformity_is_zero_beyond_delta_and_largest_when_all_rows_coincide():
    far = torch.eye(5) * 3  # squared distances 18
    assert uniformity(far, 17.9, 1.0).item() == 0
    assert uniformity(torch.ones(5, 3), 0.1, 1.0).item() == pytest.approx(np.log(1 + 5 * 4))
    assert uniformity(torch.ones(1, 3), 0.1, 1.0).item() == 0


def test_uniformity_sums_ordered_close_pairs_of_squared_distances():
    book = torch.tensor([[0.0, 0], [2, 0], [0, 3], [100, 100]], requires_grad=True)
    loss = uniformity(book, 9.5, 0.5)  # squared distances 4, 9 (close), 13 and more (not)
    expected = np.log(1 + 2 * np.exp(-0.5 * 4) + 2 * np.exp(-0.5 * 9))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert not book.grad[3].any() and book.grad[1, 0] < 0, "close rows move apart, others rest"


def test_delta_and_mu_do_not_depend_on_the_scale_of_the_codebooks():
    losses = []
    for scale in (1.0, 1e3):
        objective = objective_of(CobaRqVaeConfig(**FEW, uniformity=1.0, delta=1.2, mu=2.0))
        with torch.no_grad():
            for book in objective.model.books:
                book.mul_(scale)
        losses.append(objective.extra(torch.arange(3), torch.zeros(3, 4), None).item())
    assert losses[0] > 0.1
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


# Balance


def test_equal_use_changes_nothing_and_unused_codes_look_nearer():
    assert not balance(torch.full((4,), 7.0), 0.5).any()
    assert not balance(torch.zeros(4), 0.5).any()
    f = balance(torch.tensor([0.0, 4.0, 3.0, 1.0]), 0.3)  # mean 2
    np.testing.assert_allclose(f, [0.3, -0.3, -0.3, 0.3])
    f = balance(torch.tensor([0.0, 4.0, 3.0, 1.0]), 0.9)
    np.testing.assert_allclose(f, [0.9, -0.9, -0.5, 0.5], atol=1e-5)
    tiny = balance(torch.tensor([0.0, 2e-6]), 0.9)[0].item()  # mean = eps
    assert tiny == pytest.approx(0.5, rel=1e-3), "min(delta_max, mean / (mean + eps))"


def test_training_chooses_by_the_balanced_distance_and_counts_with_decay():
    objective = objective_of(CobaRqVaeConfig(**FEW, count_decay=0.9, delta_max=0.8))
    book = objective.model.books[0].detach()
    residual = torch.randn(30, 4)
    plain = squared_distances(residual.numpy(), book.numpy())
    first = objective.choose(residual, book, 0).numpy()
    np.testing.assert_array_equal(first, plain.argmin(1))
    u = np.bincount(first, minlength=6).astype(np.float64)
    np.testing.assert_allclose(objective.activations[0], u)
    f = np.clip((u.mean() - u) / (u.mean() + 1e-6), -0.8, 0.8)
    second = objective.choose(residual, book, 0).numpy()
    np.testing.assert_array_equal(second, (plain * (1 - f)).argmin(1))
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(
        objective.activations[0], 0.9 * u + np.bincount(second, minlength=6), rtol=1e-6
    )
    assert not objective.activations[1].any(), "every level counts for itself"


def test_weighted_nearest_agrees_with_brute_force_and_breaks_ties_low():
    random = np.random.default_rng(0)
    points = random.standard_normal((9000, 5)).astype(np.float32)
    book = random.standard_normal((7, 5)).astype(np.float32)
    book[4] = book[2]
    factor = np.array([1.0, 0.5, 1.2, 0.7, 1.2, 1.5, 0.9])
    expected = (factor * squared_distances(points, book)).argmin(1)
    np.testing.assert_array_equal(nearest_weighted(points, book, factor), expected)
    np.testing.assert_array_equal(nearest_weighted(points[:1], book, factor), expected[:1])
    assert 4 not in expected and 2 in expected
    assert not nearest_weighted(points[:3], book[:1], factor[:1]).any()


def test_balanced_assignment_follows_the_stored_counts_and_is_saved():
    spread = np.random.default_rng(0).standard_normal((150, 8)).astype(np.float32)
    vectors = ItemVectors(tiny_vectors(150).item_ids, spread)
    fitted = CobaRqVae.fit(vectors, CobaRqVaeConfig(**FEW, delta_max=0.8), context_of(vectors))
    config = replace(fitted.config, balanced_assignment=True)
    even = replace(fitted, config=config, activations=(np.ones(6, np.float32),) * 2)
    np.testing.assert_array_equal(even.encode(vectors).codes, fitted.encode(vectors).codes)
    counts = np.arange(1, 7, dtype=np.float32)
    skewed = replace(even, activations=(counts, np.ones(6, np.float32)))
    factor = 1 - np.clip((counts.mean() - counts) / counts.mean(), -0.8, 0.8)
    expected = (factor * squared_distances(fitted.project(vectors), fitted.codebooks[0])).argmin(1)
    np.testing.assert_array_equal(skewed.encode(vectors).codes[:, 0], expected)
    assert not np.array_equal(expected, fitted.encode(vectors).codes[:, 0])
    again = CobaRqVae.from_arrays(config, skewed.arrays(), skewed.state())
    np.testing.assert_array_equal(again.encode(vectors).codes, skewed.encode(vectors).codes)
    alone = ItemVectors(vectors.item_ids[7:8], vectors.vectors[7:8])
    np.testing.assert_array_equal(skewed.encode(alone).codes[0], skewed.encode(vectors).codes[7])


def test_saved_neighbours_are_loaded_again():
    vectors = tiny_vectors(60)
    fitted = CobaRqVae.fit(vectors, CobaRqVaeConfig(**FEW), context_of(vectors))
    again = CobaRqVae.from_arrays(fitted.config, fitted.arrays(), fitted.state())
    np.testing.assert_array_equal(again.project(vectors), fitted.project(vectors))
    assert again.neighbours.num_isolated == fitted.neighbours.num_isolated == 5


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="takes all items"):
        CobaRqVaeConfig(delta_max=1.0)
    for wrong in ({"alpha": 1.1}, {"hops": 0}, {"window": -1}, {"mu": -1.0}, {"count_decay": 1.0}):
        with pytest.raises(ConfigError, match=rf"coba_rqvae\.{next(iter(wrong))}"):
            CobaRqVaeConfig(**wrong)
    with pytest.raises(ConfigError, match=r"coba_rqvae\.beta"):
        CobaRqVaeConfig(beta=-1)
