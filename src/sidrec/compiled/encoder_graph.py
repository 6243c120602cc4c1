"""The encoder of `causal` in an ONNX graph: histories to one state each.

Source:   see `transformer`.
Differs:  the attention of the last block, which has one query a history, never makes keys and
          values: key and query weights are multiplied beforehand, value and output weights too.
Shapes:   B requests, T history length, D width, H heads, C width of a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import helper
from torch import Tensor, nn

from sidrec.compiled.graph import Graph, Value
from sidrec.generators.causal import Causal
from sidrec.transformer import CausalBlock


def encoded(g: Graph, generator: Causal, items_BT: Value, lengths_B: Value) -> Value:
    """(B, D) state of each history."""
    inputs_ND = g.input("inputs_ND", np.float32, 2)
    x_BTD = g.op("Gather", inputs_ND, g.op("Max", items_BT, 0))
    encoder = generator.encoder
    blocks: list[Any] = list(encoder.blocks)
    T = g.op("Squeeze", g.op("Shape", items_BT, start=1))
    places_T = g.op("Range", 0, T, 1)
    distance_TT = g.op("Unsqueeze", places_T, [1]) - g.op("Unsqueeze", places_T, [0])
    for bias_HT, block in zip(encoder.distance_bias, blocks[:-1], strict=False):
        bias_HTT = distance_bias(g, bias_HT, distance_TT)
        x_BTD = whole_block(g, block, x_BTD, bias_HTT)
    last_B1 = g.op("Unsqueeze", g.op("Max", lengths_B - 1, 0), [1])
    bias_HBT = distance_bias(
        g, encoder.distance_bias[-1], last_B1 - g.op("Unsqueeze", places_T, [0])
    )
    bias_BHT = g.op("Transpose", bias_HBT, perm=[1, 0, 2])
    return norm(g, encoder.norm, last_of_block(g, blocks[-1], x_BTD, last_B1, bias_BHT))


def distance_bias(g: Graph, bias_HT: Tensor, distance: Value) -> Value:
    """(H, …) attention bias of these distances; −inf for what lies ahead."""
    bias = g.op("Gather", array(bias_HT), g.op("Max", distance, 0), axis=1)
    return g.op("Where", distance < 0, float("-inf"), bias)


def whole_block(g: Graph, block: CausalBlock, x_BTD: Value, bias_HTT: Value) -> Value:
    """(B, T, D) what comes out of a block at every place."""
    H, D = block.num_heads, block.qkv.in_features
    qkv = linear(g, block.qkv, norm(g, block.norm_attention, x_BTD))
    heads = g.op("Reshape", qkv, [0, 0, 3, H, D // H])
    q, k, v = (
        g.op("Transpose", g.op("Gather", heads, part, axis=2), perm=perm)
        for part, perm in ((0, [0, 2, 1, 3]), (1, [0, 2, 3, 1]), (2, [0, 2, 1, 3]))
    )
    attention = g.op("Softmax", (q @ k) * (D // H) ** -0.5 + bias_HTT, axis=-1)
    seen = g.op("Transpose", attention @ v, perm=[0, 2, 1, 3])
    x_BTD = x_BTD + linear(g, block.out, g.op("Reshape", seen, [0, 0, D]))
    return x_BTD + feed_forward(g, block, x_BTD)


def last_of_block(
    g: Graph, block: CausalBlock, x_BTD: Value, last_B1: Value, bias_BHT: Value
) -> Value:
    """(B, D) what comes out of a block at the last place of each history.

    A logit is q_h · k_h = (W_q x' + b_q) W_k x + c, of which c is the same for every place.
    """
    H, D = block.num_heads, block.qkv.in_features
    C = D // H
    weight_3HCD = block.qkv.weight.detach().double().view(3, H, C, D)
    bias_3HC = block.qkv.bias.detach().double().view(3, H, C)
    out_DHC = block.out.weight.detach().double().view(D, H, C)
    asked_DHD = torch.einsum("hcd,hce->dhe", weight_3HCD[0], weight_3HCD[1]) * C**-0.5
    asked_HD = torch.einsum("hc,hce->he", bias_3HC[0], weight_3HCD[1]) * C**-0.5
    given_HDD = torch.einsum("hcd,ehc->hde", weight_3HCD[2], out_DHC)
    given_D = torch.einsum("hc,ehc->e", bias_3HC[2], out_DHC) + block.out.bias.detach()
    last_B11 = g.op("Unsqueeze", last_B1, [2])
    here = g.op("Expand", last_B11, g.op("Concat", [1, 1], [D], axis=0))
    x_BD = g.op("Squeeze", g.op("GatherElements", x_BTD, here, axis=1), [1])
    normed_BTD = norm(g, block.norm_attention, x_BTD)
    normed_BD = g.op("Squeeze", g.op("GatherElements", normed_BTD, here, axis=1), [1])
    asked_BHD = normed_BD @ array(asked_DHD.reshape(D, H * D)) + array(asked_HD.reshape(H * D))
    asked_BHD = g.op("Reshape", asked_BHD, [0, H, D])
    logits_BHT = asked_BHD @ g.op("Transpose", normed_BTD, perm=[0, 2, 1]) + bias_BHT
    read_BHD = g.op("Softmax", logits_BHT, axis=-1) @ normed_BTD
    read_BD = g.op("Reshape", read_BHD, [0, H * D]) @ array(given_HDD.reshape(H * D, D))
    x_BD = x_BD + (read_BD + array(given_D))
    return x_BD + feed_forward(g, block, x_BD)


def feed_forward(g: Graph, block: CausalBlock, x: Value) -> Value:
    """(…, D) what the feed-forward adds."""
    return linear(g, block.down, g.op("Gelu", linear(g, block.up, norm(g, block.norm_hidden, x))))


# ------------------------------------------------------------------ pieces


def linear(g: Graph, module: nn.Linear, x: Value) -> Value:
    """`module` on (…, D)."""
    y = x @ array(module.weight.T)
    return y if module.bias is None else y + array(module.bias)


def norm(g: Graph, module: nn.LayerNorm, x: Value) -> Value:
    """`module` on (…, D)."""
    return g.op(
        "LayerNormalization", x, array(module.weight), array(module.bias), axis=-1,
        epsilon=module.eps,
    )  # fmt: skip


def cast(g: Graph, x: Value, dtype: Any) -> Value:
    """`x` in another type."""
    return g.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def array(weight: Tensor) -> np.ndarray[Any, Any]:
    """A weight as a constant."""
    return np.ascontiguousarray(weight.detach().cpu().float().numpy())
