"""Cross-entropy over the whole catalogue where the logit of an item is a sum over its codes.

Targets are taken in blocks small enough for their tables to stay in a CPU's cache; the gradient is
formed in the forward pass, so that only one block of scores is ever alive.

Source:   the softmax over items of RPG-like scores is ours; gradients formed in the forward pass as
          in Cut Cross-Entropy (arXiv:2411.09009).
Cost:     O(P N L) additions, twice; (N, 32) floats beside the logits and their gradient.
Shapes:   P targets, N items, L levels, V codes, S = L V + 1 columns, T seen items, E = N L.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sidrec.decoding.parallel import Columns, block_size

LEAST_ODDS = -60.0
"""Log odds against the best item below which all count the same: CPUs are slow at tinier floats."""


class _ItemSoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_LPV: Tensor,
        targets_P: Tensor,
        seen_PT: Tensor,
        repeat_bias: Tensor,
        places_NL: Tensor,
        columns: Columns,
    ) -> Tensor:
        (num_levels, num, width), num_items = logits_LPV.shape, len(places_NL)
        grad_LPV, bias = torch.empty_like(logits_LPV), repeat_bias.detach()
        nats, grad_bias = logits_LPV.new_zeros(()), logits_LPV.new_zeros(())
        step = block_size(places_NL.device, num_items)
        for start in range(0, num, step):
            part = slice(start, min(start + step, num))
            targets, size = targets_P[part], len(targets_P[part])
            table_SP = logits_LPV[:, part].transpose(1, 2).reshape(num_levels * width, size)
            odds_NP = F.embedding_bag(places_NL, F.pad(table_SP, (0, 0, 0, 1)), mode="sum")
            rows_TP, real_TP = seen_PT[part].T.clamp_min(0), (seen_PT[part] >= 0).T
            odds_NP.scatter_add_(0, rows_TP, real_TP * bias)
            here_P = torch.arange(size, device=targets.device)
            picked_P, peak_P = odds_NP[targets, here_P], odds_NP.amax(0)
            odds_NP.sub_(peak_P).clamp_(min=LEAST_ODDS).exp_()
            total_P = odds_NP.sum(0)
            nats += (total_P.log() + peak_P - picked_P).sum()
            odds_NP.div_(total_P)
            grad_bias += (odds_NP.gather(0, rows_TP) * real_TP).sum()
            grad_bias -= (rows_TP == targets).logical_and_(real_TP).sum()
            odds_NP[targets, here_P] -= 1
            grad_SP = F.embedding_bag(columns.items_E, odds_NP, columns.starts_S, mode="sum")
            grad_LPV[:, part] = grad_SP[:-1].unflatten(0, (num_levels, width)).transpose(1, 2)
        ctx.save_for_backward(grad_LPV.div_(num), grad_bias[None] / num)
        return nats / num

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_LPV, grad_bias = ctx.saved_tensors
        (scale,) = grad_outputs
        return grad_LPV * scale, None, None, grad_bias * scale, None, None


def item_softmax_loss(
    logits_LPV: Tensor,
    targets_P: Tensor,
    seen_PT: Tensor,
    repeat_bias: Tensor,
    places_NL: Tensor,
    columns: Columns,
) -> Tensor:
    """Mean cross-entropy, in nats, of `targets_P` under a softmax over all items.

    The logit of an item is the sum of those of its codes, plus `repeat_bias` (1,) for the items
    `seen_PT`, distinct, −1 for none. Constants of a level cancel, so logits and log-probabilities
    give the same. Equal to `F.cross_entropy`, without keeping P x N logits; first derivatives only.
    """
    loss = _ItemSoftmaxLoss.apply(logits_LPV, targets_P, seen_PT, repeat_bias, places_NL, columns)
    return loss  # type: ignore[no-any-return]
