"""RQ-VAE: its losses against NumPy, its gradients, its dead codes and its fit."""

import numpy as np
import pytest
import torch

from sidrec import methods
from sidrec.errors import ConfigError, DataError, ServiceError
from sidrec.testing.tiny_catalogue import small_config
from sidrec.testing.tokenizers import tiny_vectors
from sidrec.tokenizers import autoencoder
from sidrec.tokenizers.autoencoder import Autoencoder, Objective, residual_quantise
from sidrec.tokenizers.health import error_ratio
from sidrec.tokenizers.quantisation import quantise, reconstruct
from sidrec.tokenizers.rqvae import RqVae, RqVaeConfig

SMALL = RqVaeConfig(
    num_codes=8, num_levels=2, hidden=(16,), latent=4, epochs=60, batch_size=50, device="cpu"
)


def parts(seed=0):
    random = torch.Generator().manual_seed(seed)
    latents = torch.randn(6, 3, generator=random, requires_grad=True)
    books = [torch.randn(4, 3, generator=random, requires_grad=True) for _ in range(2)]
    return latents, books


def rqvae_loss(points, encoder, decoder, books, beta):
    model = Autoencoder(encoder, decoder, [4, 4], 3)
    model.books = torch.nn.ParameterList(torch.nn.Parameter(book.detach()) for book in books)
    return Objective(model, points, RqVaeConfig(beta=beta))(torch.arange(len(points)))


def test_the_two_terms_are_the_sums_of_the_paper():
    latents, books = parts()
    quantised = residual_quantise(latents, books)
    residuals, total, rebuilt = latents.detach().numpy(), 0.0, np.zeros((6, 3))
    for level, book in enumerate(books):
        rows = book.detach().numpy()
        codes = np.square(residuals[:, None] - rows[None]).sum(-1).argmin(1)
        np.testing.assert_array_equal(quantised.codes_BL[:, level], codes)
        total += np.square(residuals - rows[codes]).sum(1).mean()
        rebuilt, residuals = rebuilt + rows[codes], residuals - rows[codes]
    assert quantised.codebook_term.item() == pytest.approx(total, rel=1e-5)
    assert quantised.commitment_term.item() == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(quantised.output_BZ.detach().numpy(), rebuilt, atol=1e-5)


def test_the_gradient_passes_the_quantiser_straight_through():
    latents, books = parts()
    weights = torch.arange(18.0).reshape(6, 3)
    (residual_quantise(latents, books).output_BZ * weights).sum().backward()
    torch.testing.assert_close(latents.grad, weights)
    assert all(book.grad is None for book in books)


def test_each_term_moves_only_its_own_side():
    latents, books = parts()
    quantised = residual_quantise(latents, books)
    quantised.codebook_term.backward(retain_graph=True)
    assert latents.grad is None and all(book.grad is not None for book in books)
    for book in books:
        book.grad = None
    quantised.commitment_term.backward()
    assert latents.grad is not None and all(book.grad is None for book in books)


def test_masked_levels_leave_the_output_and_stay_in_the_terms():
    latents, books = parts()
    whole = residual_quantise(latents, books)
    depths = torch.tensor([1, 2, 1, 2, 1, 2])
    masked = residual_quantise(latents, books, depths_B=depths)
    torch.testing.assert_close(masked.output_BZ[1::2], whole.output_BZ[1::2])
    torch.testing.assert_close(masked.output_BZ[::2], whole.rows[0][::2])
    torch.testing.assert_close(masked.codebook_term, whole.codebook_term)


def test_the_rotation_trick_keeps_the_value_and_turns_the_gradient():
    latents, books = parts()
    plain, turned = (
        residual_quantise(latents, books, gradient=g).output_BZ
        for g in ("straight_through", "rotation")
    )
    torch.testing.assert_close(turned, plain)
    z, q = latents[0].detach().double(), plain[0].detach().double()
    row = torch.autograd.functional.jacobian(
        lambda latent: autoencoder.rotate(latent[None], q[None])[0], z
    )
    scale = q.norm() / z.norm()
    rotation = row / scale
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(3).double())
    torch.testing.assert_close(rotation @ (z / z.norm()), q / q.norm())
    assert torch.linalg.det(rotation).item() == pytest.approx(1)


def test_opposite_and_zero_vectors_pass_straight_through_the_rotation():
    latents = torch.tensor([[1.0, 0, 0], [0, 0, 0], [1, 0, 0]], requires_grad=True)
    quantised = torch.tensor([[-2.0, 0, 0], [1, 1, 1], [0, 0, 0]])
    out = autoencoder.rotate(latents, quantised)
    torch.testing.assert_close(out, quantised)
    out.sum().backward()
    torch.testing.assert_close(latents.grad, torch.ones(3, 3))


def test_beta_reaches_the_loss_and_zero_beta_takes_commitment_away():
    points, books = torch.randn(6, 5), parts()[1]
    encoder, decoder = torch.nn.Linear(5, 3), torch.nn.Linear(3, 5)
    losses = [rqvae_loss(points, encoder, decoder, books, beta) for beta in (0.0, 1.0, 2.0)]
    commitment = residual_quantise(encoder(points), books).commitment_term
    assert (losses[1] - losses[0]).item() == pytest.approx(commitment.item(), rel=1e-4)
    assert (losses[2] - losses[0]).item() == pytest.approx(2 * commitment.item(), rel=1e-4)
    silent = torch.nn.Linear(3, 5)
    silent.weight.data.zero_()  # reconstruction then says nothing to the encoder
    rqvae_loss(points, encoder, silent, books, 0.0).backward()
    assert encoder.weight.grad is not None and not encoder.weight.grad.any()
    rqvae_loss(points, encoder, silent, books, 0.25).backward()
    assert encoder.weight.grad.any()


def test_changing_beta_changes_the_fitted_codebooks():
    vectors = tiny_vectors(100)
    few = {"num_codes": 4, "num_levels": 2, "hidden": (8,), "latent": 4, "epochs": 3}
    first, second = (
        RqVae.fit(vectors, RqVaeConfig(beta=beta, device="cpu", **few)) for beta in (0.0, 5.0)
    )
    assert not np.array_equal(first.codebooks[0], second.codebooks[0])


def test_dead_codes_come_alive_and_living_ones_stay():
    vectors = tiny_vectors(200)
    latents = np.ascontiguousarray(vectors.vectors[:, :4])
    book = torch.nn.Parameter(torch.full((8, 4), 1e3))
    book.data[0] = 0
    optimiser = torch.optim.AdamW([book])
    optimiser.zero_grad()
    book.sum().backward()
    optimiser.step()
    before = book.detach().clone()
    assert autoencoder.revive(latents, [book], optimiser, np.random.default_rng(0)) == 7
    torch.testing.assert_close(book[0], before[0])
    used = set(quantise(latents, [book.detach().numpy()])[0].ravel().tolist())
    assert used >= set(range(1, 8))
    assert not optimiser.state[book]["exp_avg"][1:].any(), "old moments must not push new codes"


def test_training_explains_the_vectors_and_uses_the_codes():
    vectors = tiny_vectors(400)
    tokenizer = RqVae.fit(vectors, SMALL)
    codes = tokenizer.encode(vectors).codes
    assert error_ratio(vectors.vectors, tokenizer.decode(codes)) < 0.05
    assert error_ratio(vectors.vectors, tokenizer.decode(codes[:, :1])) < 0.5
    assert len(np.unique(codes[:, 0])) >= 4


def test_quantising_what_the_codes_stand_for_returns_the_codes():
    vectors = tiny_vectors(400)
    tokenizer = RqVae.fit(vectors, SMALL)
    codes = tokenizer.encode(vectors).codes
    first = reconstruct(codes[:, :1], tokenizer.codebooks)
    again, _ = quantise(first, tokenizer.codebooks[:1])
    np.testing.assert_array_equal(again, codes[:, :1])


def test_codes_and_residual_add_up_to_the_encoder_output():
    vectors = tiny_vectors(50)
    tokenizer = RqVae.fit(vectors, SMALL)
    latents = tokenizer.project(vectors)
    codes, residuals = quantise(latents, tokenizer.codebooks)
    rebuilt = reconstruct(codes, tokenizer.codebooks)
    np.testing.assert_allclose(rebuilt + residuals, latents, atol=1e-4)


def test_fitting_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    RqVae.fit(tiny_vectors(50), RqVaeConfig(num_codes=4, hidden=(8,), latent=4, epochs=1))
    torch.testing.assert_close(torch.rand(2), expected, rtol=0, atol=0)


def test_a_loss_that_is_not_finite_stops_with_the_place():
    config = RqVaeConfig(
        num_codes=4, hidden=(8,), latent=4, epochs=3, learning_rate=1e30, device="cpu"
    )
    with pytest.raises(ServiceError, match=r"the loss is (nan|inf) in epoch 2, batch 0"):
        RqVae.fit(tiny_vectors(50), config)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(DataError, match="at least num_codes = 256 items to fit, got 50"):
        RqVae.fit(tiny_vectors(50), RqVaeConfig())
    for wrong in ({"beta": -1.0}, {"dropout": 1.0}, {"epochs": 0}, {"learning_rate": 0.0}):
        with pytest.raises(ConfigError, match=rf"rqvae\.{next(iter(wrong))}"):
            RqVaeConfig(**wrong)


def test_any_number_of_steps_can_be_trained():
    vectors = tiny_vectors(50)
    for epochs in (1, 2, 20, 21):  # a warm-up of 5 % of 20 steps ends before it begins
        few = {"num_codes": 4, "num_levels": 1, "hidden": (8,), "latent": 4, "epochs": epochs}
        assert len(RqVae.fit(vectors, RqVaeConfig(device="cpu", **few)).codebooks) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden": (0,)},
        {"hidden": (8, -3)},
        {"learning_rate": float("nan")},
        {"beta": float("nan")},
    ],
)
def test_settings_that_no_network_can_have_are_refused(wrong):
    with pytest.raises(ConfigError, match=rf"rqvae\.{next(iter(wrong))} must"):
        RqVaeConfig(**wrong)


@pytest.mark.parametrize("name", ["rqvae", "fsq", "barge"])
def test_a_device_that_is_not_there_is_named(name):
    chosen = methods.resolve("tokenizers", name)
    with pytest.raises(ConfigError, match="no device 'abacus'"):
        chosen.fit(tiny_vectors(), small_config(chosen.config_class, device="abacus"))
