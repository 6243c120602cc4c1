"""Linear maps that run at full speed on CPUs where PyTorch's default library does not.

PyTorch multiplies float32 matrices with MKL, which takes a slow path on AMD processors. oneDNN, in
the same wheel, does not: on an EPYC (Zen 5), one thread, 80 x 128 by 128 x 1,024 takes 202 µs with
MKL and 107 µs with oneDNN. On few rows, where MKL's lower overhead wins, under autocast, on GPUs
and wherever gradients are recorded, this is `F.linear`.

Source:  `mkldnn::_linear_pointwise`, the operator TorchInductor emits for linear layers on CPU.
Cost:    as `F.linear`, and about 8 µs more a call.
Shapes:  ... any leading places, D in, O out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIN_ROWS = 8  # below, the call costs more than the multiplication gains
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(
    x: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None, *, relu: bool = False
) -> Tensor:
    """(..., O): x (..., D) times the transpose of the weight, plus bias; `relu` cuts below 0."""
    if (
        HAS_ONEDNN
        and not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == weight_OD.dtype == torch.float32
        and x.numel() >= MIN_ROWS * weight_OD.shape[1]
        and not torch.is_autocast_enabled("cpu")
    ):
        after = "relu" if relu else "none"
        return torch.ops.mkldnn._linear_pointwise.default(x, weight_OD, bias_O, after, [], "")
    y = F.linear(x, weight_OD, bias_O)
    return y.relu_() if relu else y


class Linear(nn.Linear):
    """`nn.Linear` through `linear`; same weights, same names."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
