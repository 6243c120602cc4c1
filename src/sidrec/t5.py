"""The blocks of T5 1.0, and their one-place-at-a-time form for beams.

RMS norm before each part, attention scores without a division, one relative position bias shared
by the blocks of a stack, ReLU feed-forward, no biases anywhere. A decoder block makes keys and
values of the encoded input once (`remember`); all beams of a request read the same ones.

Source:   Raffel et al. 2020 (arXiv:1910.10683); relative buckets as in its code (32, up to 128).
Differs:  fused query-key-value weights; dropout draws bytes (`FastDropout`).
Cost:     O(S^2 + S D) an encoder block; a decoding step keeps 2 * H * C floats a beam and block.
Shapes:   B requests, S source places, P places decoded at once, K candidates, W beams, L levels,
          D width, H heads, C width of one head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.linear import Linear, linear
from sidrec.transformer import FastDropout

NUM_BUCKETS, MAX_DISTANCE = 32, 128
Memory = tuple[Tensor, Tensor]
"""Keys and values, each (B, H, S, C)."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What every block needs to know."""

    width: int
    num_heads: int
    head_width: int
    feed_forward: int
    dropout: float

    @property
    def inner(self) -> int:
        """H * C, the width of all heads side by side."""
        return self.num_heads * self.head_width


def initialise(stack: nn.Module, sizes: Sizes) -> None:
    """First weights of all blocks below `stack`: scores start at unit variance undivided."""
    for part in stack.modules():
        if isinstance(part, Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
        elif isinstance(part, RelativeBias):
            nn.init.normal_(part.weight, std=sizes.width**-0.5)
    with torch.no_grad():
        for part in stack.modules():
            if isinstance(part, SelfAttention):
                part.project.weight[: sizes.inner] *= sizes.head_width**-0.5
            elif isinstance(part, CrossAttention):
                part.query.weight *= sizes.head_width**-0.5


class RmsNorm(nn.Module):
    """x / rms(x) * weight: no mean, no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-6)


class RelativeBias(nn.Module):
    """One learnt number a head and bucket of distance, added to the scores of every block."""

    def __init__(self, num_heads: int, *, bidirectional: bool) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.weight = nn.Parameter(torch.empty(NUM_BUCKETS, num_heads))

    def forward(self, length: int) -> Tensor:
        """(H, length, length): row = place that looks, column = place looked at."""
        places = torch.arange(length, device=self.weight.device)
        buckets = distance_buckets(places[None] - places[:, None], self.bidirectional)
        return self.weight[buckets].permute(2, 0, 1)


class SelfAttention(nn.Module):
    """Attention among the places of one sequence; scores are plain products (T5)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm = RmsNorm(sizes.width)
        self.project = Linear(sizes.width, 3 * sizes.inner, bias=False)
        self.out = Linear(sizes.inner, sizes.width, bias=False)
        self.dropout = FastDropout(sizes.dropout)
        self.head_shape = (sizes.num_heads, sizes.head_width)

    def forward(self, x_BPD: Tensor, bias: Tensor) -> Tensor:
        """Adds to x what its places say to each other; bias broadcasts to (B, H, P, P)."""
        return self.extend(x_BPD, None, bias)[0]

    def extend(self, x_BPD: Tensor, past: Memory | None, bias: Tensor) -> tuple[Tensor, Memory]:
        """`forward` for the last P of Q places, and keys and values (B, H, Q, C) of all of them.

        `past`: those of the places before; bias broadcasts to (B, H, P, Q).
        """
        qkv = self.project(self.norm(x_BPD)).unflatten(-1, (3, *self.head_shape))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        said = self.out(attend(query, key, value, bias, self.dropout))
        return x_BPD + self.dropout(said), (key, value)

    def step(self, x_BWD: Tensor, bias_HP: Tensor, cache: Tensor) -> Tensor:
        """The same for one new place a beam; `cache` (2, B*W, P, H*C) takes its key and value."""
        _, num_beams, num_places, inner = cache.shape
        qkv = self.project(self.norm(x_BWD)).view(num_beams, 3, inner)
        cache[:, :, -1] = qkv[:, 1:].transpose(0, 1)
        keys, values = cache.view(2, num_beams, num_places, *self.head_shape)
        query = qkv[:, :1].view(num_beams, 1, *self.head_shape)
        scores = (query * keys).sum(-1) + bias_HP.T  # (B*W, P, H)
        mixed = (scores.softmax(1)[..., None] * values).sum(1)
        return x_BWD + self.out(mixed.flatten(1)).view_as(x_BWD)


class CrossAttention(nn.Module):
    """Attention of decoder places to the encoded history, whose keys and values are made once."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm = RmsNorm(sizes.width)
        self.query = Linear(sizes.width, sizes.inner, bias=False)
        self.key_value = Linear(sizes.width, 2 * sizes.inner, bias=False)
        self.out = Linear(sizes.inner, sizes.width, bias=False)
        self.dropout = FastDropout(sizes.dropout)
        self.head_shape = (sizes.num_heads, sizes.head_width)

    def remember(self, x_BSD: Tensor) -> Memory:
        """Keys and values (B, H, S, C) of the encoded history."""
        key, value = (
            self.key_value(x_BSD).unflatten(-1, (2, *self.head_shape)).permute(2, 0, 3, 1, 4)
        )
        return key, value

    def forward(self, x_BPD: Tensor, key: Tensor, value: Tensor, mask_B11S: Tensor) -> Tensor:
        """Adds to x what the history says; the P places of one request share its keys."""
        num_requests, num_places, _ = x_BPD.shape
        query = self.query(self.norm(x_BPD)).view(num_requests, num_places, *self.head_shape)
        query = query.transpose(1, 2)
        return x_BPD + self.dropout(self.out(attend(query, key, value, mask_B11S, self.dropout)))


class FeedForward(nn.Module):
    """ReLU feed-forward part."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm = RmsNorm(sizes.width)
        self.inner = Linear(sizes.width, sizes.feed_forward, bias=False)
        self.out = Linear(sizes.feed_forward, sizes.width, bias=False)
        self.dropout = FastDropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(
            self.out(self.dropout(linear(self.norm(x), self.inner.weight, relu=True)))
        )


class EncoderBlock(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention, self.feed_forward = SelfAttention(sizes), FeedForward(sizes)

    def forward(self, x_BSD: Tensor, bias_BHSS: Tensor) -> Tensor:
        return self.feed_forward(self.attention(x_BSD, bias_BHSS))


class DecoderBlock(nn.Module):
    """Self-attention over the codes so far, attention to the history, feed-forward."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention, self.cross = SelfAttention(sizes), CrossAttention(sizes)
        self.feed_forward = FeedForward(sizes)

    def forward(
        self, x_BKLD: Tensor, bias_HLL: Tensor, key: Tensor, value: Tensor, mask_B11S: Tensor
    ) -> Tensor:
        """All levels at once: K candidates a request see their own codes and the one history."""
        return self.extend(x_BKLD, None, bias_HLL, key, value, mask_B11S)[0]

    def extend(
        self,
        x_BKLD: Tensor,
        past: Memory | None,
        bias_HLQ: Tensor,
        key: Tensor,
        value: Tensor,
        mask_B11S: Tensor,
    ) -> tuple[Tensor, Memory]:
        """`forward` for the last L of Q places, as in `SelfAttention.extend`."""
        shape = x_BKLD.shape
        x, past = self.attention.extend(x_BKLD.flatten(0, 1), past, bias_HLQ)
        x = self.cross(x.view(shape[0], -1, shape[3]), key, value, mask_B11S)
        return self.feed_forward(x).view(shape), past

    def step(
        self,
        x_BWD: Tensor,
        bias_HP: Tensor,
        cache: Tensor,
        key: Tensor,
        value: Tensor,
        mask_B11S: Tensor,
    ) -> Tensor:
        """One level for W beams."""
        x = self.attention.step(x_BWD, bias_HP, cache)
        return self.feed_forward(self.cross(x, key, value, mask_B11S))


def attend(
    query_BHPC: Tensor, key_BHSC: Tensor, value_BHSC: Tensor, bias: Tensor, dropout: nn.Module
) -> Tensor:
    """softmax(q k^T + bias) v, heads joined: (B, P, H * C). Plain batched products to train."""
    if dropout.training or torch.is_grad_enabled():
        scores_BHPS = query_BHPC @ key_BHSC.mT + bias
        mixed_BHPC = dropout(scores_BHPS.softmax(-1)) @ value_BHSC
    else:  # the fused form is faster forwards, and slower backwards on a CPU
        mixed_BHPC = F.scaled_dot_product_attention(
            query_BHPC, key_BHSC, value_BHSC, attn_mask=bias, scale=1.0
        )
    return mixed_BHPC.transpose(1, 2).flatten(2)


def distance_buckets(offsets: Tensor, bidirectional: bool) -> Tensor:
    """T5 bucket of (looked at − looking): exact for the near half, logarithmic beyond."""
    size = NUM_BUCKETS // 2 if bidirectional else NUM_BUCKETS
    first = (offsets > 0) * size if bidirectional else torch.zeros_like(offsets)
    distance = offsets.abs() if bidirectional else (-offsets).clamp(min=0)
    exact = size // 2
    ratio = (distance.clamp(min=1) / exact).log() / math.log(MAX_DISTANCE / exact)
    far = (exact + (ratio * (size - exact)).long()).clamp(max=size - 1)
    return first + torch.where(distance < exact, distance, far)
