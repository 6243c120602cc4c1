"""PLUM's SID-v2: its identities, its pairs, its views, and what it may know."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from sidrec.data import split
from sidrec.errors import ConfigError, DataError
from sidrec.testing.tiny_catalogue import small_config, tiny_context
from sidrec.tokenizers.autoencoder import Autoencoder, residual_quantise
from sidrec.tokenizers.plum_rqvae import (
    Companions,
    PlumObjective,
    PlumRqVae,
    PlumRqVaeConfig,
    info_nce,
    view_mlps,
)
from sidrec.tokenizers.rqvae import RqVae, RqVaeConfig
from sidrec.types import (
    CatalogueContext,
    Dataset,
    Histories,
    Interactions,
    Items,
    ItemVectors,
    as_ids,
)

SMALL = small_config(PlumRqVaeConfig)
OFF = {"multi_view": False, "multi_resolution": False, "masking": False, "contrast": 0.0}
CPU = torch.device("cpu")


def objective(config, known, pairs=(), seed=0):
    """An objective over two views of 5 and 3 columns, with random weights."""
    torch.manual_seed(seed)
    widths = (("text", 5), ("image", 3))
    encoder, decoder = view_mlps(widths, config, 8)
    model = Autoencoder(encoder, decoder, (4,) * config.num_levels, config.latent)
    for book in model.books:
        torch.nn.init.normal_(book)
    num_items = len(known)
    places = np.array([*pairs, *((j, i) for i, j in pairs)], dtype=np.int64).reshape(-1, 2).T
    graph = sparse.csr_array((np.ones(2 * len(pairs)), tuple(places)), (num_items, num_items))
    points = torch.randn(num_items, 8) * torch.from_numpy(np.repeat(known, [5, 3], axis=1))
    return PlumObjective(model, points, config, widths=widths, known_NM=known, pairs_NN=graph)


def test_codebooks_halve_exactly_down_to_the_floor():
    whole = PlumRqVaeConfig(num_codes=2048, num_levels=8, min_codes=1)
    assert whole.sizes() == (2048, 1024, 512, 256, 128, 64, 32, 16)
    assert replace(whole, num_codes=64, num_levels=4).sizes() == (64, 32, 16, 8)
    assert replace(whole, num_codes=64, num_levels=4, min_codes=16).sizes() == (64, 32, 16, 16)
    assert replace(whole, num_codes=8, num_levels=2, min_codes=16).sizes() == (8, 8)
    assert replace(whole, num_codes=(9, 7), num_levels=2).sizes() == (9, 7)
    assert replace(whole, multi_resolution=False).sizes() == (2048,) * 8
    assert np.prod(PlumRqVaeConfig().sizes()) == 256**3


def test_with_everything_off_it_is_rqvae_bit_for_bit():
    context = tiny_context()
    plain = RqVae.fit(context.vectors, small_config(RqVaeConfig), context)
    plum = PlumRqVae.fit(context.vectors, replace(SMALL, **OFF), context)
    assert plain.arrays().keys() == plum.arrays().keys()
    for name, array in plain.arrays().items():
        np.testing.assert_array_equal(plum.arrays()[name], array)
    codes = plain.encode(context.vectors).codes
    np.testing.assert_array_equal(plum.encode(context.vectors).codes, codes)
    np.testing.assert_array_equal(plum.decode(codes), plain.decode(codes))


def test_one_view_is_a_plain_encoder():
    vectors = tiny_context().vectors
    one = PlumRqVae.fit(vectors, SMALL)
    joint = PlumRqVae.fit(vectors, replace(SMALL, multi_view=False))
    for name, array in joint.arrays().items():
        np.testing.assert_array_equal(one.arrays()[name], array)


@pytest.mark.parametrize("part", sorted(OFF))
def test_each_part_changes_what_is_learnt(part):
    context = tiny_context()
    others_off = {name: value for name, value in OFF.items() if name != part}
    plain, with_part = (
        PlumRqVae.fit(context.vectors, replace(SMALL, min_codes=2, **off), context).arrays()
        for off in (OFF, others_off)
    )
    assert plain.keys() != with_part.keys() or any(
        not np.array_equal(array, with_part[name]) for name, array in plain.items()
    )


def test_depths_are_uniform_and_full_depth_is_no_masking():
    known = np.ones((30_000, 2), bool)
    masked = objective(replace(SMALL, num_levels=3, contrast=0.0), known)
    rows = torch.arange(len(known))
    shares = np.bincount(masked.depths(rows).numpy()) / len(rows)
    np.testing.assert_allclose(shares, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.02)
    whole = objective(replace(SMALL, num_levels=3, contrast=0.0, masking=False), known)
    assert whole.depths(rows) is None
    masked.depths = lambda rows: torch.full_like(rows, 3)
    torch.testing.assert_close(masked(rows[:50]), whole(rows[:50]))


def test_depth_one_rebuilds_from_the_first_level_only():
    deep = objective(replace(SMALL, num_levels=3, contrast=0.0), np.ones((20, 2), bool))
    rows, model = torch.arange(20), deep.model
    deep.depths = torch.ones_like
    deep.reconstruction = lambda rows, points, rebuilt: rebuilt.sum()
    latents = model.encoder(deep.points_ND)
    codes = torch.cdist(latents, model.books[0]).argmin(dim=1)
    expected = model.decoder(model.books[0][codes]).sum()
    without = deep(rows)
    deep.reconstruction = lambda rows, points, rebuilt: torch.tensor(0.0)
    torch.testing.assert_close(without - deep(rows), expected)


def test_the_contrastive_term_is_log_of_the_others_when_all_are_equal():
    members = torch.ones(10, 3)
    assert info_nce(members, torch.arange(10), 0.5).item() == pytest.approx(np.log(9), rel=1e-5)


def test_the_contrastive_term_is_that_of_the_paper():
    random = torch.Generator().manual_seed(0)
    p = torch.randn(8, 3, generator=random)
    scores = (p @ p.T).double().numpy() / 2
    losses = []
    for i in range(8):
        others = [j for j in range(8) if j != i]
        losses.append(np.log(np.exp(scores[i, others]).sum()) - scores[i, (i + 4) % 8])
    assert info_nce(p, torch.arange(8), 2.0).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_copies_of_an_item_or_of_its_positive_are_no_negatives():
    items = torch.tensor([1, 2, 5, 3, 1, 6])  # pairs (1, 3), (2, 1), (5, 6)
    p = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    scores = (p @ p.T).double().numpy()
    allowed = {
        0: [1, 2, 3, 5],
        1: [2, 3, 4, 5],
        2: [0, 1, 3, 4, 5],
        3: [0, 1, 2, 5],
        4: [1, 2, 3, 5],
        5: [0, 1, 2, 3, 4],
    }
    losses = [
        np.log(np.exp(scores[i, a]).sum()) - scores[i, (i + 3) % 6] for i, a in allowed.items()
    ]
    assert info_nce(p, items, 1.0).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_companions_are_drawn_in_proportion_to_shared_users():
    graph = np.array([[0, 3, 1, 0], [3, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    companions = Companions(sparse.csr_array(graph), CPU)
    drawn = companions.draw(torch.zeros(20_000, dtype=torch.int64)).numpy()
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, [0, 0.75, 0.25], atol=0.02)
    assert companions.draw(torch.tensor([1, 2, 3])).tolist() == [0, 0, -1]
    assert Companions(sparse.csr_array((4, 4)), CPU).draw(torch.arange(4)).tolist() == [-1] * 4


def test_a_missing_view_is_not_rebuilt():
    known = np.ones((12, 2), bool)
    known[:6, 1] = False
    target = objective(replace(SMALL, contrast=0.0), known)
    text, image = target.model.decoder.views
    target(torch.arange(6)).backward()
    assert any(w.grad.any() for w in text.parameters())
    assert not any(w.grad.any() for w in image.parameters())
    target(torch.arange(12)).backward()
    assert any(w.grad.any() for w in image.parameters())
    points, rebuilt = target.points_ND, torch.zeros(12, 8)
    expected = points.square().sum(dim=1).mean()  # zeros stand where a view is missing
    torch.testing.assert_close(target.reconstruction(torch.arange(12), points, rebuilt), expected)


def test_the_contrastive_term_moves_the_encoders_and_weighs_by_its_setting():
    known, pairs, rows = (
        np.ones((12, 2), bool),
        [(0, 1), (2, 3), (4, 5)],
        torch.tensor([0, 2, 4, 7]),
    )
    config = replace(SMALL, masking=False)
    losses = [
        objective(replace(config, contrast=weight), known, pairs)(rows)
        for weight in (0.0, 1.0, 3.0)
    ]
    torch.testing.assert_close(losses[2] - losses[0], 3 * (losses[1] - losses[0]))
    target = objective(replace(config, contrast=1.0), known, pairs)
    term = target.extra(rows, *quantised(target, rows))
    torch.testing.assert_close(term, losses[1] - losses[0])
    term.backward()
    assert all(w.grad is not None and w.grad.any() for w in target.model.encoder.parameters())
    assert all(book.grad is None for book in target.model.books)
    lonely = torch.tensor([7, 8])
    assert target.extra(lonely, *quantised(target, lonely)) == 0


def quantised(target, rows):
    latents = target.model.encoder(target.points_ND[rows])
    return latents, residual_quantise(latents, target.model.books)


def unrelated(num_items=64, seed=0):
    """Vectors without structure, and histories that walk inside pairs of items."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((num_items, 8)).astype(np.float32)
    ids = as_ids(f"item {row}" for row in range(num_items))
    pairs = random.permutation(num_items).reshape(-1, 2)
    context = tiny_context()
    items = Items(ids, context.items.attributes.clear().select([]))
    train = Histories.from_lists([pair for pair in pairs for _ in range(4)])
    return CatalogueContext(items, train, ItemVectors(ids, vectors)), pairs


def test_items_taken_together_come_to_share_codes():
    context, pairs = unrelated()
    shares = []
    for contrast in (0.0, 30.0):
        config = replace(
            SMALL, **{**OFF, "contrast": contrast}, num_codes=8, hidden=(64,), epochs=60
        )
        codes = PlumRqVae.fit(context.vectors, config, context).encode(context.vectors).codes
        shares.append((codes[pairs[:, 0], 0] == codes[pairs[:, 1], 0]).mean())
    assert shares[1] > shares[0] + 0.3


def test_unseen_items_are_encoded_from_the_vectors_alone():
    context, _ = unrelated()
    config = replace(SMALL, num_codes=16, hidden=(64,), epochs=30)
    train = Histories.from_lists([h for h in context.train if 0 not in h])
    fitted = PlumRqVae.fit(context.vectors, config, replace(context, train=train))
    assert fitted.num_missing == {"vectors": 0, "collaborative": 2} and fitted.num_isolated == 2
    new = ItemVectors(as_ids(f"new {row}" for row in range(64)), context.vectors.vectors)
    codes, blind = fitted.encode(context.vectors).codes, fitted.encode(new).codes
    np.testing.assert_array_equal(codes[0], blind[0])
    assert (codes != blind).any(), "the collaborative view of known items counts"


def test_only_training_events_matter():
    context = tiny_context()
    tokenizers = []
    for shift in (0, 5):
        lists = [
            [*map(int, h), (int(h[0]) + shift) % 24, (int(h[1]) + shift) % 24]
            for h in context.train
        ]
        events = Histories.from_lists(lists)
        users = np.repeat(np.arange(len(lists)), events.lengths)
        times = np.concatenate([np.arange(len(row)) for row in lists])
        ids = as_ids(f"user {user}" for user in range(len(lists)))
        interactions = Interactions(ids, users, events.items_E, times)
        parts = split(Dataset("tiny", context.items, interactions), "leave_one_out")
        known = replace(context, train=parts.train)
        tokenizers.append(PlumRqVae.fit(context.vectors, SMALL, known))
    first, second = (tokenizer.arrays() for tokenizer in tokenizers)
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array)


def test_views_of_fused_vectors_are_used_as_they_are():
    context = tiny_context()
    views = (("lsa", 5), ("collaborative", 3))
    vectors = context.vectors.vectors.copy()
    vectors[:4, 5:] = 0
    fused = replace(context.vectors, vectors=vectors, views=views)
    fitted = PlumRqVae.fit(fused, SMALL, context)
    assert fitted.views.widths == views and fitted.views.made is None
    assert fitted.num_missing == {"lsa": 0, "collaborative": 4}
    rebuilt = fitted.decode_views(fitted.encode(fused).codes)
    assert {name: part.shape for name, part in rebuilt.items()} == {
        "lsa": (24, 5),
        "collaborative": (24, 3),
    }
    vectors[:, 5:] = 0
    with pytest.raises(DataError, match="view 'collaborative' is zero for every item"):
        PlumRqVae.fit(replace(fused, vectors=vectors), SMALL, context)


def test_saved_and_loaded_with_a_view_of_its_own_is_equal():
    context = tiny_context()
    fitted = PlumRqVae.fit(context.vectors, SMALL, context)
    assert fitted.views.made is not None
    state = json.loads(json.dumps(fitted.state()))
    again = PlumRqVae.from_arrays(SMALL, fitted.arrays(), state)
    codes = fitted.encode(context.vectors).codes
    np.testing.assert_array_equal(again.encode(context.vectors).codes, codes)
    np.testing.assert_array_equal(again.decode(codes), fitted.decode(codes))
    assert fitted.decode(codes).shape == context.vectors.vectors.shape
    assert again.state() == fitted.state()


def test_without_events_that_meet_everything_rests_on_the_vectors():
    context = tiny_context()
    lonely = Histories.from_lists([[0], [1], [2, 2]])
    for known in (None, replace(context, train=lonely)):
        fitted = PlumRqVae.fit(context.vectors, SMALL, known)
        assert fitted.num_missing == {"vectors": 0, "collaborative": 24}
        assert fitted.num_isolated == 24
        assert len(fitted.encode(context.vectors)) == 24


def test_zero_and_duplicate_vectors_fit():
    context = tiny_context()
    vectors = context.vectors.vectors.copy()
    vectors[:6], vectors[6:12] = 0, vectors[12]
    fitted = PlumRqVae.fit(replace(context.vectors, vectors=vectors), SMALL, context)
    assert fitted.num_missing == {"vectors": 6, "collaborative": 0}


def test_bad_input_says_what_to_do():
    context = tiny_context()
    shuffled = replace(context.vectors, item_ids=context.vectors.item_ids[::-1])
    with pytest.raises(DataError, match="same order"):
        PlumRqVae.fit(shuffled, SMALL, context)
    with pytest.raises(DataError, match="at least num_codes = 512 items to fit, got 24; lower"):
        PlumRqVae.fit(context.vectors, PlumRqVaeConfig(), context)
    for setting, value in {
        "contrast": -1,
        "temperature": 0,
        "window": 0,
        "min_codes": 0,
        "collaborative_dim": -1,
    }.items():
        with pytest.raises(ConfigError, match=rf"plum_rqvae\.{setting} must"):
            PlumRqVaeConfig(**{setting: value})
