"""A small causal transformer over item positions, and the full-catalogue softmax loss.

Pre-norm blocks, batched-matmul attention with a learnt bias per head and distance (so positions
count backwards from the present), GELU feed-forward or, with several experts, a routed one
(`mixture_of_experts`). Histories are padded on the right: a real position never sees padding, so
no mask beyond causality exists and padding changes nothing.

Source:   Vaswani et al. 2017 (arXiv:1706.03762); relative bias as T5 (arXiv:1910.10683), one per
          distance; the loss is exact cross-entropy over the catalogue with its gradient formed
          block by block in the forward pass (the idea of Cut Cross-Entropy, arXiv:2411.09009).
Differs:  PyTorch's CPU flash attention is slower than plain matmuls below about 128 positions.
Cost:     O(B T^2 D) attention, O(P N D) loss; the loss keeps one block of (BLOCK_ROWS, N) logits.
Shapes:   B sequences, T positions, D width, H heads, P target positions, N items, W inputs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.errors import ConfigError
from sidrec.mixture_of_experts import MixtureOfExperts, Routing
from sidrec.types import HistoryBatch

Memory = tuple[Tensor, Tensor]
"""Keys and values (B, H, T, C) of a sequence in one block; C is the width of a head."""
BLOCK_ROWS = 256  # rows of logits that exist at one time in `full_softmax_loss`


class FastDropout(nn.Module):
    """Dropout whose mask costs one random byte an element instead of one random number.

    The rate is rounded to a multiple of 1/256 and outputs are rescaled by that rounded rate, so
    expectations are exact. On CPUs `nn.Dropout` draws serially and takes a tenth of a step.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate <= 0.99:
            raise ConfigError(f"dropout must be in [0, 0.99], got {rate}")
        self.threshold = round(rate * 256)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.threshold:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
        bytes_drawn = words.random_(-(2**63), None).view(torch.uint8)[: x.numel()].view(x.shape)
        keep = (bytes_drawn >= self.threshold).to(x.dtype)
        return x * keep.mul_(256 / (256 - self.threshold))


class CausalBlock(nn.Module):
    """Attention and feed-forward with residuals; (B, T, D) -> (B, T, D)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        hidden: int,
        dropout: float,
        num_experts: int = 1,
        experts_per_token: int = 2,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_hidden = nn.LayerNorm(width)
        self.dropout = FastDropout(dropout)
        self.routed = num_experts > 1
        if self.routed:
            self.moe = MixtureOfExperts(width, hidden, num_experts, experts_per_token, self.dropout)
        else:
            self.up = nn.Linear(width, hidden)
            self.down = nn.Linear(hidden, width)

    def forward(
        self, x_BTD: Tensor, bias_HTT: Tensor, routings: list[Routing] | None = None
    ) -> Tensor:
        x_BTD = x_BTD + self.dropout(self._attend(self.norm_attention(x_BTD), bias_HTT))
        return self._feed_forward(x_BTD, routings)

    def _feed_forward(self, x_BTD: Tensor, routings: list[Routing] | None = None) -> Tensor:
        normed_BTD = self.norm_hidden(x_BTD)
        if not self.routed:
            return x_BTD + self.dropout(self.down(self.dropout(F.gelu(self.up(normed_BTD)))))
        y_BTD, routing = self.moe(normed_BTD)
        if routings is not None:
            routings.append(routing)
        return x_BTD + self.dropout(y_BTD)

    def start_small(self, num_layers: int) -> None:
        """Draw what writes into the residual stream anew: GPT-2's 1/sqrt(2 * layers)."""
        linears: list[Any] = [self.out]
        linears += [expert.down for expert in self.moe.experts] if self.routed else [self.down]
        for linear in linears:
            nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * num_layers))
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def extend(self, x_BWD: Tensor, memory: Memory, bias_BH1T: Tensor, own_H: Tensor) -> Tensor:
        """(B, W, D) one more place, in W ways that do not see each other, after a remembered one.

        `bias_BH1T` is −inf where there is nothing to see; `own_H` is the bias of a place on itself.
        """
        q, k, v = self._heads(self.norm_attention(x_BWD))
        scale = q.shape[-1] ** -0.5
        past_BHWT = q @ memory[0].transpose(-1, -2) * scale + bias_BH1T
        own_BHW1 = (q * k).sum(-1, keepdim=True) * scale + own_H[:, None, None]
        attention = torch.cat([past_BHWT, own_BHW1], dim=-1).softmax(-1)
        seen = attention[..., :-1] @ memory[1] + attention[..., -1:] * v
        return self._feed_forward(x_BWD + self.out(seen.transpose(1, 2).reshape(x_BWD.shape)))

    def last(self, x_BTD: Tensor, x_BD: Tensor, bias_BH1T: Tensor) -> Tensor:
        """(B, D) what comes out at the one place of each sequence where `x_BD` came in."""
        B, D = x_BD.shape
        keys, values = self.remember(x_BTD)
        q = F.linear(self.norm_attention(x_BD), self.qkv.weight[:D], self.qkv.bias[:D])
        q_BH1C = q.view(B, self.num_heads, 1, -1) * (D // self.num_heads) ** -0.5
        attention = (q_BH1C @ keys.transpose(-1, -2) + bias_BH1T).softmax(-1).to(values.dtype)
        return self._feed_forward(x_BD + self.out((attention @ values).view(B, D)))

    def remember(self, x_BTD: Tensor) -> Memory:
        """Keys and values (B, H, T, C) of what comes into the block."""
        keys, values = self._heads(self.norm_attention(x_BTD), first=1)
        return keys, values

    def _heads(self, x_BTD: Tensor, first: int = 0) -> Tensor:
        """(3 − first, B, H, T, C) queries, keys and values, from the `first` of them on."""
        B, T, D = x_BTD.shape
        rows = slice(first * D, None)
        heads = F.linear(x_BTD, self.qkv.weight[rows], self.qkv.bias[rows])
        return heads.view(B, T, 3 - first, self.num_heads, D // self.num_heads).permute(
            2, 0, 3, 1, 4
        )

    def _attend(self, x_BTD: Tensor, bias_HTT: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self._heads(x_BTD)
        logits_BHTT = q @ k.transpose(-1, -2) * (D // self.num_heads) ** -0.5 + bias_HTT
        attention = self.dropout(logits_BHTT.softmax(-1).to(v.dtype))
        return self.out((attention @ v).transpose(1, 2).reshape(B, T, D))


class CausalTransformer(nn.Module):
    """Stack of causal blocks with a final norm; position t sees positions <= t only."""

    distance_TT: Tensor
    future_TT: Tensor

    def __init__(
        self,
        *,
        width: int,
        num_layers: int,
        num_heads: int,
        hidden: int,
        dropout: float,
        max_length: int,
        num_experts: int = 1,
        experts_per_token: int = 2,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            CausalBlock(width, num_heads, hidden, dropout, num_experts, experts_per_token)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.distance_bias = nn.Parameter(torch.zeros(num_layers, num_heads, max_length))
        index = torch.arange(max_length)
        distance = index[:, None] - index[None, :]
        self.register_buffer("distance_TT", distance.clamp_min(0), persistent=False)
        future = torch.zeros(max_length, max_length).masked_fill(distance < 0, -math.inf)
        self.register_buffer("future_TT", future, persistent=False)
        blocks: list[Any] = list(self.blocks)
        for block in blocks:
            block.start_small(num_layers)

    def forward(self, x_BTD: Tensor, routings: list[Routing] | None = None) -> Tensor:
        """States (B, T, D); appends to `routings`, where given, what each routed layer chose."""
        T = x_BTD.shape[1]
        distance = self.distance_TT[:T, :T]
        for bias_HT, block in zip(self.distance_bias, self.blocks, strict=True):
            x_BTD = block(x_BTD, bias_HT[:, distance] + self.future_TT[:T, :T], routings)
        return self.norm(x_BTD)

    def remember(self, x_BTD: Tensor) -> list[Memory]:
        """What every block keeps of a sequence that `extend` goes on from."""
        T, memory = x_BTD.shape[1], []
        distance = self.distance_TT[:T, :T]
        for bias_HT, block in zip(self.distance_bias, self.blocks, strict=True):
            memory.append(block.remember(x_BTD))  # type: ignore[operator]
            if len(memory) < len(self.blocks):
                x_BTD = block(x_BTD, bias_HT[:, distance] + self.future_TT[:T, :T])
        return memory

    def last(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """(B, D) `last_states` of `forward`; the last block computes no others. No dropout."""
        T = x_BTD.shape[1]
        distance = self.distance_TT[:T, :T]
        blocks: list[Any] = list(self.blocks)
        for bias_HT, block in zip(self.distance_bias, blocks[:-1], strict=False):
            x_BTD = block(x_BTD, bias_HT[:, distance] + self.future_TT[:T, :T])
        last_B = (lengths_B - 1).clamp_min(0)
        seen_BHT = self.distance_bias[-1][:, distance[last_B]].transpose(0, 1)
        bias_BH1T = (seen_BHT + self.future_TT[last_B, :T][:, None])[:, :, None]
        return self.norm(blocks[-1].last(x_BTD, last_states(x_BTD, lengths_B), bias_BH1T))

    def extend(self, x_BWD: Tensor, memory: list[Memory], lengths_B: Tensor) -> Tensor:
        """(B, W, D) the state of place `lengths_B` of each sequence, for W inputs there.

        Equal to `forward` on W copies of the sequence with the input put there, but the sequence,
        as `remember` keeps it, is not read again. No dropout.
        """
        T = memory[0][0].shape[2]
        distance_BT = lengths_B[:, None] - torch.arange(T, device=lengths_B.device)
        hidden_B11T = (distance_BT < 1)[:, None, None]
        distance_BT = distance_BT.clamp_min(0)
        for bias_HT, block, kept in zip(self.distance_bias, self.blocks, memory, strict=True):
            bias_BH1T = bias_HT[:, distance_BT].transpose(0, 1)[:, :, None]
            bias_BH1T = bias_BH1T.masked_fill(hidden_B11T, -math.inf)
            x_BWD = block.extend(x_BWD, kept, bias_BH1T, bias_HT[:, 0])  # type: ignore[operator]
        return self.norm(x_BWD)


class _FullSoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_PD: Tensor,
        table_ND: Tensor,
        targets_P: Tensor,
        seen_PT: Tensor,
        repeat_bias: Tensor,
    ) -> Tensor:
        states, table = states_PD.detach().float(), table_ND.detach().float()
        low = torch.is_autocast_enabled(states.device.type)
        dtype = torch.get_autocast_dtype(states.device.type) if low else torch.float32
        low_states, low_table = states.to(dtype), table.to(dtype)
        num, real_PT = len(targets_P), seen_PT >= 0
        columns_PT, bias_PT = seen_PT.clamp_min(0), (real_PT * repeat_bias.detach()).to(dtype)
        buffer = torch.empty(min(BLOCK_ROWS, num), len(table), dtype=dtype, device=table.device)
        log_totals = states.new_empty(num)
        grad_states, grad_table = torch.empty_like(states), torch.zeros_like(table)
        repeat_probs = states.new_zeros(())
        for start in range(0, num, BLOCK_ROWS):
            block = slice(start, min(start + BLOCK_ROWS, num))
            odds = torch.mm(low_states[block], low_table.T, out=buffer[: block.stop - start])
            odds.scatter_add_(1, columns_PT[block], bias_PT[block])
            peak = odds.amax(1, keepdim=True)
            odds.sub_(peak).exp_()
            total = odds.sum(1, keepdim=True, dtype=torch.float32)
            log_totals[block] = (total.log() + peak.float())[:, 0]
            grad_states[block] = (odds @ low_table).float() / total
            grad_table += odds.T @ (states[block] / total).to(dtype)
            repeats = odds.gather(1, columns_PT[block]).float() * real_PT[block]
            repeat_probs += (repeats / total).sum()
        targets = table[targets_P]
        is_repeat_P = (seen_PT == targets_P[:, None]).any(1).float()
        grad_states -= targets
        grad_table.index_add_(0, targets_P, states, alpha=-1)
        grad_bias = (repeat_probs - is_repeat_P.sum()).expand_as(repeat_bias)
        ctx.save_for_backward(grad_states.div_(num), grad_table.div_(num), grad_bias / num)
        ctx.dtypes = (states_PD.dtype, table_ND.dtype)
        picked_P = (states * targets).sum(1) + is_repeat_P * repeat_bias.detach()
        return (log_totals - picked_P).mean()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_states, grad_table, grad_bias = ctx.saved_tensors
        (scale,) = grad_outputs
        return (
            (grad_states * scale).to(ctx.dtypes[0]),
            (grad_table * scale).to(ctx.dtypes[1]),
            None,
            None,
            grad_bias * scale,
        )


def full_softmax_loss(
    states_PD: Tensor,
    table_ND: Tensor,
    targets_P: Tensor,
    seen_PT: Tensor | None = None,
    repeat_bias: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy, in nats, of `targets_P` under softmax(states · tableᵀ + repeats).

    `repeat_bias` (1,) is added to the logits of the items `seen_PT`, distinct, −1 for none. Equal
    to `F.cross_entropy` on those logits, without keeping them all; first derivatives only. Under
    bf16 autocast products and exponentials are bf16, sums are float32: gradients then carry a
    relative error of about 0.2 %.
    """
    if seen_PT is None or repeat_bias is None:
        seen_PT, repeat_bias = targets_P.new_empty(len(targets_P), 0), states_PD.new_zeros(1)
    loss = _FullSoftmaxLoss.apply(states_PD, table_ND, targets_P, seen_PT, repeat_bias)
    return loss  # type: ignore[no-any-return]


class RepeatBias(nn.Module):
    """One learnt number added to the score of every item that the history already holds.

    States resemble the items they were made from, so without it the last items of a history rank
    first even where nobody takes an item twice: on Beauty in nine lists of ten. Where people do
    come back to items the number turns positive.
    """

    RATE = 10.0  # moves ten times as fast as its learning rate says: it has to cross several nats

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        """(1,) nats."""
        return self.weight * self.RATE

    def add(self, logits_BN: Tensor, seen_BT: Tensor) -> Tensor:
        """Logits with the bias on the items `seen_BT`, distinct, −1 for none."""
        bias_BT = ((seen_BT >= 0) * self()).to(logits_BN.dtype)
        return logits_BN.scatter_add(1, seen_BT.clamp_min(0), bias_BT)


def distinct(batch: HistoryBatch) -> Tensor:
    """(B, T) the items of each history at their first place, −1 at repeats and padding."""
    items_BT = batch.items_BT
    same_BTT = items_BT[:, :, None] == items_BT[:, None, :]
    repeated_BT = same_BTT.tril(-1).any(2)
    return items_BT.masked_fill(repeated_BT, -1)


def seen_so_far(batch: HistoryBatch) -> Tensor:
    """(B, T, T) at place t the distinct items of places 0..t, −1 for none."""
    first_BT = distinct(batch)
    length = first_BT.shape[1]
    later_TT = torch.ones(length, length, dtype=torch.bool, device=first_BT.device).triu(1)
    return first_BT[:, None].expand(-1, length, -1).masked_fill(later_TT, -1)


def last_states(states_BTD: Tensor, lengths_B: Tensor) -> Tensor:
    """(B, D) the state at the last real event of each row; an empty history gives position 0."""
    rows = torch.arange(len(lengths_B), device=states_BTD.device)
    return states_BTD[rows, (lengths_B - 1).clamp_min(0)]
