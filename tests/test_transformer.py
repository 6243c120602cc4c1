import math

import pytest
import torch
from torch.nn import functional as F

from sidrec.errors import ConfigError
from sidrec.transformer import (
    BLOCK_ROWS,
    CausalTransformer,
    FastDropout,
    distinct,
    full_softmax_loss,
    last_states,
    seen_so_far,
)
from sidrec.types import HistoryBatch


def make_encoder(**overrides) -> CausalTransformer:
    torch.manual_seed(0)
    settings = {"width": 16, "num_layers": 2, "num_heads": 2, "hidden": 32, "dropout": 0.0}
    encoder = CausalTransformer(**{**settings, "max_length": 12, **overrides})
    torch.nn.init.normal_(encoder.distance_bias)
    return encoder.eval()


def test_a_position_never_sees_the_future():
    encoder, x_BTD = make_encoder(), torch.randn(2, 12, 16)
    changed_BTD = x_BTD.clone()
    changed_BTD[:, 7:] = torch.randn(2, 5, 16)
    before, after = encoder(x_BTD), encoder(changed_BTD)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().max() > 0.1


def test_a_position_sees_every_position_before_it():
    encoder, x_BTD = make_encoder(), torch.randn(1, 12, 16)
    for place in range(12):
        changed_BTD = x_BTD.clone()
        changed_BTD[:, place] = torch.randn(16)
        moved_T = (encoder(x_BTD) - encoder(changed_BTD))[0].abs().amax(-1)
        assert (moved_T[place:] > 1e-6).all()


def test_attention_equals_a_reading_of_the_formula():
    encoder, given_BTD = make_encoder(num_layers=1), torch.randn(3, 5, 16)
    x_BTD = given_BTD
    block, bias_H = encoder.blocks[0], encoder.distance_bias[0]
    normed = F.layer_norm(x_BTD, (16,), block.norm_attention.weight, block.norm_attention.bias)
    q, k, v = block.qkv(normed).view(3, 5, 3, 2, 8).unbind(2)
    expected = torch.zeros(3, 5, 2, 8)
    for b in range(3):
        for h in range(2):
            for t in range(5):
                logits = torch.stack(
                    [
                        q[b, t, h] @ k[b, s, h] / math.sqrt(8) + bias_H[h, t - s]
                        for s in range(t + 1)
                    ]
                )
                expected[b, t, h] = logits.softmax(0) @ v[b, : t + 1, h]
    x_BTD = x_BTD + block.out(expected.reshape(3, 5, 16))
    x_BTD = x_BTD + block.down(F.gelu(block.up(block.norm_hidden(x_BTD))))
    torch.testing.assert_close(encoder(given_BTD), encoder.norm(x_BTD))


@pytest.mark.parametrize("num_targets", [1, 7, BLOCK_ROWS, BLOCK_ROWS + 3])
def test_the_full_softmax_loss_and_its_gradients_equal_cross_entropy(num_targets):
    generator = torch.Generator().manual_seed(num_targets)
    states = torch.randn(num_targets, 8, generator=generator, requires_grad=True)
    table = torch.randn(50, 8, generator=generator, requires_grad=True)
    targets = torch.randint(50, (num_targets,), generator=generator)
    (3 * F.cross_entropy(states @ table.T, targets)).backward()
    expected = states.grad.clone(), table.grad.clone()
    states.grad = table.grad = None
    loss = full_softmax_loss(states, table, targets)
    (3 * loss).backward()
    torch.testing.assert_close(loss, F.cross_entropy(states @ table.T, targets))
    torch.testing.assert_close((states.grad, table.grad), expected)


def test_the_repeat_bias_enters_loss_and_gradients_as_in_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(5, 8, generator=generator, requires_grad=True)
    table = torch.randn(20, 8, generator=generator, requires_grad=True)
    bias = torch.tensor([-1.5], requires_grad=True)
    targets = torch.tensor([3, 0, 7, 7, 19])
    seen = torch.tensor([[1, 2, -1], [4, -1, -1], [7, 3, 0], [-1, -1, -1], [5, 18, 6]])
    mask = torch.zeros(5, 21).scatter(1, torch.where(seen < 0, 20, seen), 1.0)[:, :20]
    expected = F.cross_entropy(states @ table.T + mask * bias, targets)
    gradients = torch.autograd.grad(2 * expected, (states, table, bias))
    loss = full_softmax_loss(states, table, targets, seen, bias)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(2 * loss, (states, table, bias)), gradients)


def test_seen_so_far_lists_distinct_items_up_to_each_place():
    batch = HistoryBatch(torch.tensor([[5, 3, 5, -1]]), torch.tensor([3]))
    assert distinct(batch).tolist() == [[5, 3, -1, -1]]
    expected = [[5, -1, -1, -1], [5, 3, -1, -1], [5, 3, -1, -1], [5, 3, -1, -1]]
    assert seen_so_far(batch)[0].tolist() == expected


def test_under_bf16_the_gradients_keep_their_direction():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(300, 64, generator=generator, requires_grad=True)
    table = (0.3 * torch.randn(2000, 64, generator=generator)).requires_grad_()
    targets = torch.randint(2000, (300,), generator=generator)
    full_softmax_loss(states, table, targets).backward()
    exact = table.grad.clone()
    table.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        full_softmax_loss(states, table, targets).backward()
    assert (table.grad - exact).norm() < 0.01 * exact.norm()


def test_large_logits_do_not_overflow():
    states = torch.full((2, 4), 50.0)
    table = torch.stack([torch.full((4,), 10.0), torch.full((4,), -10.0)])
    loss = full_softmax_loss(states, table, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(2000.0)


def test_dropout_drops_its_rate_and_keeps_the_mean():
    torch.manual_seed(0)
    dropout, x = FastDropout(0.3), torch.ones(1000, 257)
    y = dropout.train()(x)
    assert (y == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert y.mean().item() == pytest.approx(1.0, abs=0.01)
    rows, columns = (y == 0).float().mean(1), (y == 0).float().mean(0)
    assert rows.std() < 0.04 and columns.std() < 0.02  # no stripes: bytes are independent
    assert torch.equal(dropout.eval()(x), x)


def test_dropout_repeats_under_one_seed_and_differs_under_another():
    dropout, x = FastDropout(0.5).train(), torch.ones(64, 64)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(dropout(x))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_dropout_that_would_drop_everything_is_refused():
    with pytest.raises(ConfigError, match=r"in \[0, 0.99\], got 1.0"):
        FastDropout(1.0)


def test_last_states_reads_the_last_real_event():
    states_BTD = torch.arange(24.0).view(2, 4, 3)
    picked = last_states(states_BTD, torch.tensor([4, 2]))
    torch.testing.assert_close(picked, torch.stack([states_BTD[0, 3], states_BTD[1, 1]]))
    assert torch.equal(last_states(states_BTD, torch.tensor([0, 1]))[0], states_BTD[0, 0])


def test_a_place_put_after_a_remembered_sequence_is_the_next_place_of_the_whole():
    encoder, x_BTD = make_encoder(max_length=6), torch.randn(3, 4, 16)
    lengths_B, added_BWD = torch.tensor([4, 2, 0]), torch.randn(3, 5, 16)
    found_BWD = encoder.extend(added_BWD, encoder.remember(x_BTD), lengths_B)
    for row, length in enumerate(lengths_B.tolist()):
        for way in range(5):
            whole = torch.cat([x_BTD[row, :length], added_BWD[row, way : way + 1]])
            torch.testing.assert_close(
                found_BWD[row, way], encoder(whole[None])[0, -1], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("layers", [{"num_layers": 1}, {"num_layers": 3}, {"num_experts": 2}])
def test_the_last_state_alone_is_that_of_the_whole_pass(layers):
    encoder, x_BTD, lengths_B = make_encoder(**layers), torch.randn(4, 12, 16), [12, 1, 5, 0]
    lengths_B = torch.tensor(lengths_B)
    with torch.no_grad():
        expected = last_states(encoder(x_BTD), lengths_B)
        found = encoder.last(x_BTD, lengths_B)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
