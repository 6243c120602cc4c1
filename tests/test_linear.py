"""The fast path of linear maps gives what `F.linear` gives, and steps aside where it must."""

import pytest
import torch
from torch.nn import functional as F

from sidrec import linear as module
from sidrec.linear import MIN_ROWS, Linear, linear


@pytest.mark.parametrize("shape", [(1, 24), (MIN_ROWS, 24), (3, 20, 24), (0, 24)])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_it_equals_f_linear(shape, relu, bias):
    torch.manual_seed(0)
    layer, x = Linear(24, 40, bias=bias), torch.randn(shape)
    with torch.inference_mode():
        expected = F.linear(x, layer.weight, layer.bias)
        expected = expected.relu() if relu else expected
        found = linear(x, layer.weight, layer.bias, relu=relu)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(linear(x.transpose(0, -2), layer.weight),
                                   F.linear(x.transpose(0, -2), layer.weight))  # fmt: skip


def test_gradients_and_autocast_take_the_plain_road(monkeypatch):
    layer, x = Linear(24, 40), torch.randn(32, 24, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    monkeypatch.setattr(module, "HAS_ONEDNN", False)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_rows_of_a_larger_table_are_a_valid_weight():
    table, x = torch.randn(100, 24), torch.randn(30, 24)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, table[17:60]), F.linear(x, table[17:60]))
