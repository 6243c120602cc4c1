"""LETTER: its identities, its two terms, its groups, its balanced codes, and what it may know."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from sidrec.data import split
from sidrec.embeddings.collaborative import Collaborative, CollaborativeConfig
from sidrec.errors import ConfigError, DataError
from sidrec.testing.tiny_catalogue import small_config, tiny_context
from sidrec.tokenizers import letter
from sidrec.tokenizers.autoencoder import Autoencoder, mlps, residual_quantise
from sidrec.tokenizers.letter import Groups, Letter, LetterConfig, LetterObjective
from sidrec.tokenizers.placement import transport_plan
from sidrec.tokenizers.quantisation import reconstruct
from sidrec.tokenizers.rqvae import RqVae, RqVaeConfig
from sidrec.types import CatalogueContext, Dataset, Histories, Interactions, ItemVectors, as_ids

SMALL = small_config(LetterConfig)
OFF = {"alpha": 0.0, "diversity": 0.0, "sinkhorn": 0.0}
CPU = torch.device("cpu")


def objective(config, num_items=12, cold=(), seed=0):
    torch.manual_seed(seed)
    encoder, decoder = mlps(config, 5)
    model = Autoencoder(encoder, decoder, (6,) * config.num_levels, config.latent)
    for book in model.books:
        torch.nn.init.normal_(book)
    wanted = torch.nn.functional.normalize(torch.randn(num_items, config.latent)).numpy()
    wanted[list(cold)] = 0
    return LetterObjective(model, torch.randn(num_items, 5), config, wanted_NZ=wanted)


def quantised(target, rows):
    latents = target.model.encoder(target.points_ND[rows])
    return latents, residual_quantise(latents, target.model.books)


def test_with_everything_off_it_is_rqvae_bit_for_bit():
    context = tiny_context()
    plain = RqVae.fit(context.vectors, small_config(RqVaeConfig), context)
    fitted = Letter.fit(context.vectors, replace(SMALL, **OFF), context)
    assert plain.arrays().keys() == fitted.arrays().keys()
    for name, array in plain.arrays().items():
        np.testing.assert_array_equal(fitted.arrays()[name], array)


@pytest.mark.parametrize("part", sorted(OFF))
def test_each_part_changes_what_is_learnt(part):
    context = tiny_context()
    others_off = {name: value for name, value in OFF.items() if name != part}
    plain, with_part = (
        Letter.fit(context.vectors, replace(SMALL, **off), context).arrays()
        for off in (OFF, others_off)
    )
    assert any(not np.array_equal(array, with_part[name]) for name, array in plain.items())


def test_the_collaborative_term_is_log_b_when_all_scores_are_equal():
    same = torch.ones(7, 3)
    assert letter.agreement(torch.randn(7, 3), same).item() == pytest.approx(np.log(7), rel=1e-5)


def test_the_collaborative_term_is_that_of_the_paper():
    random = torch.Generator().manual_seed(0)
    latents, wanted = (torch.randn(6, 3, generator=random) for _ in range(2))
    scores = (latents @ wanted.T).double().numpy()
    expected = np.mean([np.log(np.exp(scores[i]).sum()) - scores[i, i] for i in range(6)])
    assert letter.agreement(latents, wanted).item() == pytest.approx(expected, rel=1e-5)


def test_the_collaborative_term_reaches_encoders_and_leaves_out_items_without_a_vector():
    target = objective(replace(SMALL, **{**OFF, "alpha": 1.0}), cold=[1, 3])
    rows = torch.tensor([0, 1, 2, 3, 4])
    term = target.extra(rows, *quantised(target, rows))
    _, known = quantised(target, rows[::2])
    torch.testing.assert_close(term, letter.agreement(known.output_BZ, target.wanted_NZ[rows[::2]]))
    term.backward()
    assert all(w.grad.any() for w in target.model.encoder.parameters())
    assert all(book.grad is None for book in target.model.books)
    cold = torch.tensor([1, 3])
    assert target.extra(cold, *quantised(target, cold)) == 0


def test_the_diversity_term_is_log_of_the_other_codes_when_all_rows_are_equal():
    codes, others = torch.tensor([0, 1, 4]), torch.tensor([1, 2, 0])
    term = letter.diversity(torch.ones(3, 4), torch.ones(6, 4), codes, others)
    assert term.item() == pytest.approx(np.log(5), rel=1e-5)


def test_the_diversity_term_is_that_of_the_paper():
    book = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    codes, others = torch.tensor([0, 1, 4]), torch.tensor([1, 2, 0])
    scores = (book @ book.T).double().numpy()
    losses = []
    for code, other in zip(codes.tolist(), others.tolist(), strict=True):
        rest = [v for v in range(5) if v != code]
        losses.append(np.log(np.exp(scores[code, rest]).sum()) - scores[code, other])
    term = letter.diversity(book[codes], book, codes, others)
    assert term.item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_diversity_term_moves_codebooks_of_all_levels_and_nothing_else():
    target = objective(replace(SMALL, **{**OFF, "diversity": 1.0}))
    rows = torch.arange(12)
    target.extra(rows, *quantised(target, rows)).backward()
    assert all(book.grad is not None and book.grad.any() for book in target.model.books)
    assert all(w.grad is None for w in target.model.encoder.parameters())


def test_groups_have_equal_sizes_and_follow_clusters():
    random = np.random.default_rng(0)
    centres = 20 * random.standard_normal((5, 4))
    cluster = random.permutation(np.arange(40) % 5)
    book = (centres[cluster] + 0.1 * random.standard_normal((40, 4))).astype(np.float32)
    groups = letter.group_codes(book, 5, np.random.default_rng(0))
    assert len(set(zip(groups.tolist(), cluster.tolist(), strict=True))) == 5
    for num_codes, num_groups in ((256, 10), (7, 10), (2, 10), (1, 10)):
        book = random.standard_normal((num_codes, 4)).astype(np.float32)
        groups = letter.group_codes(book, num_groups, np.random.default_rng(0))
        sizes = np.bincount(groups)
        assert len(sizes) == max(min(num_groups, num_codes // 2), 1)
        assert sizes.max() - sizes.min() <= 1 and (sizes.min() >= 2 or num_codes == 1)


def test_another_code_is_of_the_same_group_and_each_is_as_likely():
    groups = np.array([0, 1, 0, 1, 0, 0, 1, 2])
    drawn = Groups(groups, CPU)
    codes = torch.full((9000,), 2)
    counts = np.bincount(drawn.another(codes).numpy(), minlength=8)
    assert set(np.flatnonzero(counts)) == {0, 4, 5} and counts[[0, 4, 5]].min() > 2800
    assert set(drawn.another(torch.full((500,), 6)).tolist()) == {1, 3}
    assert drawn.another(torch.tensor([7])).tolist() == [7]


def test_codes_are_grouped_anew_when_it_is_due():
    target = objective(replace(SMALL, diversity=1.0, regroup_every=3))
    first = target.groups
    for epoch in (1, 2):
        target.after_epoch(epoch)
    assert target.groups is first
    target.after_epoch(3)
    assert target.groups is not first


def test_balanced_codes_are_the_best_matching():
    random = torch.Generator().manual_seed(0)
    distances = 1 + torch.rand(6, 6, generator=random)
    distances[:, 0] -= 1  # all are nearest to code 0
    assert set(distances.argmin(dim=1).tolist()) == {0}
    _, best = linear_sum_assignment(distances.numpy())
    assert letter.balanced_codes(distances, 0.02).tolist() == best.tolist()
    many = torch.rand(60, 6, generator=random)
    plan = transport_plan(many.double().numpy(), 0.1, letter.SINKHORN_ITERS)
    assert letter.balanced_codes(many, 0.1).tolist() == plan.argmax(axis=1).tolist()
    assert np.bincount(letter.balanced_codes(many, 0.003)).max() <= 13


def test_balanced_codes_of_equal_or_very_unequal_distances_are_codes():
    assert letter.balanced_codes(torch.zeros(3, 4), 0.003).max() < 4
    wild = torch.tensor([[0.0, 1e12, 1.0], [0.0, 1.0, 1e12], [1e-9, 1e12, 1e12]])
    assert letter.balanced_codes(wild, 1e-4).max() < 3


def test_only_the_last_level_is_balanced():
    target = objective(replace(SMALL, **{**OFF, "sinkhorn": 0.003}))
    book = torch.eye(6, SMALL.latent)
    points = book[0] + 0.01 * torch.randn(6, SMALL.latent)
    assert target.choose(points, book, 0).unique().tolist() == [0]
    assert len(target.choose(points, book, SMALL.num_levels - 1).unique()) > 1


def unrelated(num_items=64, seed=0):
    """Vectors without structure, and histories that walk inside groups of eight items."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((num_items, 8)).astype(np.float32)
    ids = as_ids(f"item {row}" for row in range(num_items))
    groups = random.permutation(num_items).reshape(-1, 8)
    train = Histories.from_lists([random.permutation(group) for group in groups for _ in range(8)])
    items = replace(
        tiny_context().items,
        item_ids=ids,
        attributes=tiny_context().items.attributes[:0].select([]),
    )
    return CatalogueContext(items, train, ItemVectors(ids, vectors)), groups


def test_quantised_latents_come_to_tell_what_items_are_taken_with():
    context, groups = unrelated()
    chances = []
    known = {"num_codes": 8, "latent": 8, "hidden": (64,), "epochs": 60, "learning_rate": 1e-2}
    for alpha in (0.0, 30.0):
        config = replace(SMALL, **{**OFF, "alpha": alpha}, **known, batch_size=32)
        fitted = Letter.fit(context.vectors, config, context)
        rebuilt = reconstruct(fitted.encode(context.vectors).codes, fitted.codebooks)
        wanted = Collaborative.fit(context, CollaborativeConfig(dim=8)).vectors_ND
        scores = torch.from_numpy(rebuilt @ wanted.T).softmax(dim=1).numpy()
        own = [scores[np.ix_(group, group)].sum(axis=1).mean() for group in groups]
        chances.append(np.mean(own))
    assert chances[0] < 0.25 and chances[1] > 2 * chances[0]


def test_unseen_items_get_the_codes_of_known_ones_with_their_vector():
    context, _ = unrelated()
    fitted = Letter.fit(context.vectors, SMALL, context)
    new = ItemVectors(as_ids(f"new {row}" for row in range(64)), context.vectors.vectors)
    np.testing.assert_array_equal(fitted.encode(new).codes, fitted.encode(context.vectors).codes)


def test_items_without_a_collaborative_vector_are_counted():
    context, groups = unrelated()
    train = Histories.from_lists([h for h in context.train if groups[0, 0] not in h])
    assert (
        Letter.fit(context.vectors, SMALL, replace(context, train=train)).num_without_collaborative
        == 8
    )
    lonely = replace(context, train=Histories.from_lists([[0], [1]]))
    for known in (None, lonely):
        assert Letter.fit(context.vectors, SMALL, known).num_without_collaborative == 64


def test_only_training_events_matter():
    context, tokenizers = tiny_context(), []
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
        tokenizers.append(Letter.fit(context.vectors, SMALL, known))
    first, second = (tokenizer.arrays() for tokenizer in tokenizers)
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array)


def test_saved_and_loaded_is_equal():
    context = tiny_context()
    fitted = Letter.fit(context.vectors, SMALL, context)
    again = Letter.from_arrays(SMALL, fitted.arrays(), json.loads(json.dumps(fitted.state())))
    codes = fitted.encode(context.vectors).codes
    np.testing.assert_array_equal(again.encode(context.vectors).codes, codes)
    assert again.state() == fitted.state()


def test_bad_input_says_what_to_do():
    context = tiny_context()
    shuffled = replace(context.vectors, item_ids=context.vectors.item_ids[::-1])
    with pytest.raises(DataError, match="same order"):
        Letter.fit(shuffled, SMALL, context)
    with pytest.raises(DataError, match="at least num_codes = 256 items to fit, got 24; lower"):
        Letter.fit(context.vectors, LetterConfig(), context)
    bad = {"alpha": -1, "diversity": -1, "sinkhorn": -1, "num_groups": 0, "regroup_every": 0}
    for setting, value in {**bad, "window": 0}.items():
        with pytest.raises(ConfigError, match=rf"letter\.{setting} must"):
            LetterConfig(**{setting: value})
