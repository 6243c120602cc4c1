"""Mixture of experts: several small feed-forwards in place of one, of which each position takes k.

A router scores the E experts for every position; its k best run, weighted by their renormalised
probabilities. Each has 1/k of the hidden width of the feed-forward it stands for, so a position
passes through as many weights as before, plus the router (E D): comparisons are at equal *active*
parameters. With x the normed state,

    p = softmax(R x);  S = the k best of p;  y = bias + sum over e in S of p_e / p(S) * FFN_e(x)
    balance = E * sum over e of f_e * P_e

where f_e is the share of the choices that fell on expert e and P_e the mean of p_e over positions.
Balance is 1 when routing is uniform and E / k when all positions choose the same k experts with
certainty. Its gradient goes through P.

Source:   Shazeer et al. 2017 (arXiv:1701.06538); renormalised top-k as GShard (arXiv:2006.16668);
          the loss of Switch Transformer (arXiv:2101.03961), eq. 4. PLUM (arXiv:2510.07784) has MoE
          backbones and gives no equations.
Differs:  no noise on the router and no capacity: no position is ever dropped, and a position gets
          the same answer whoever else is in the batch. With k = 1 the weight is p_e itself, as in
          Switch: renormalised it would be 1, and the task would never teach the router. The bias
          of the output is shared by the experts. Balance is the mean over layers, not their sum,
          and of several processes each balances its own share of a batch. The router is float32
          under autocast too, as in Switch: in bf16, choices flip between near equals.
Cost:     as the feed-forward of that width, plus a sort of the k choices of every position and E
          small products instead of one; on GPUs a wait for the E counts.
Shapes:   D width, E experts, K experts of a position (k above), S positions, H hidden width of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.errors import ConfigError


class Routing(NamedTuple):
    """What the router of one layer said about every position."""

    probs: Tensor
    """(..., E) float32 softmax over all experts."""
    chosen: Tensor
    """(..., K) experts that ran, the likeliest first."""


class Parameters(NamedTuple):
    """How many numbers a model has learnt, and how many of them one position passes through."""

    total: int
    active: int
    """Total less the experts that a position does not take; tables count whole."""


class MixtureOfExperts(nn.Module):
    """Routed feed-forward, (..., D) -> (..., D); `hidden` is shared out among a position's experts.

    Equal to running every expert on every position and weighting by the gates, 0 where not chosen.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        num_experts: int,
        experts_per_token: int,
        dropout: nn.Module,
    ) -> None:
        super().__init__()
        require_experts("mixture_of_experts", num_experts, experts_per_token, hidden)
        self.num_experts, self.experts_per_token = num_experts, experts_per_token
        self.router = nn.Linear(width, num_experts, bias=False)
        nn.init.normal_(self.router.weight, std=0.02)  # nearly uniform gates at first
        self.experts = nn.ModuleList(
            Expert(width, hidden // experts_per_token, dropout) for _ in range(num_experts)
        )
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """The outputs and where each position went."""
        D, K = x.shape[-1], self.experts_per_token
        x_SD = x.reshape(-1, D)
        with torch.autocast(x.device.type, enabled=False):
            probs_SE = self.router(x_SD.float()).softmax(-1)
        gates_SK, chosen_SK = probs_SE.topk(K, dim=-1)
        if K > 1:
            gates_SK = gates_SK / gates_SK.sum(-1, keepdim=True)
        choices = chosen_SK.reshape(-1)
        order = choices.argsort(stable=True)  # the positions of expert 0, then of expert 1, …
        counts_E = torch.bincount(choices, minlength=self.num_experts).tolist()
        parts_E = x_SD.index_select(0, order // K).split(counts_E)
        # An expert without positions runs on none: its gradients are 0, not missing.
        sorted_D = torch.cat([e(part) for e, part in zip(self.experts, parts_E, strict=True)])
        back = order.argsort()
        outputs_SKD = sorted_D.index_select(0, back).view(-1, K, D)
        y_SD = (outputs_SKD * gates_SK[..., None].to(outputs_SKD.dtype)).sum(1) + self.bias
        routing = Routing(
            probs_SE.view(*x.shape[:-1], self.num_experts), chosen_SK.view(*x.shape[:-1], K)
        )
        return y_SD.view(x.shape), routing


class Expert(nn.Module):
    """One feed-forward without an output bias; (..., D) -> (..., D)."""

    def __init__(self, width: int, hidden: int, dropout: nn.Module) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(F.gelu(self.up(x))))


def balance_loss(routings: Sequence[Routing], real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The balance of the positions that are `real` (...), mean over layers, and what to report.

    Reported are the balance and the shares of the choices that the busiest and the idlest expert
    of any layer got; 1 / E each when all is even.
    """
    balances, shares = [], []
    for probs, chosen in routings:
        probs_SE, num_experts = probs[real], probs.shape[-1]
        counts_E = torch.bincount(chosen[real].reshape(-1), minlength=num_experts)
        shares_E = counts_E / counts_E.sum().clamp_min(1)
        balances.append(num_experts * (shares_E * probs_SE.mean(0)).sum())
        shares.append(shares_E)
    balance, shares_E = torch.stack(balances).mean(), torch.stack(shares)
    return balance, {
        "balance": balance.detach(),
        "expert_share_max": shares_E.max(),
        "expert_share_min": shares_E.min(),
    }


def count_parameters(model: nn.Module) -> Parameters:
    """Numbers that `model` learns, in total and active for one position."""
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    idle = 0
    for layer in model.modules():
        if isinstance(layer, MixtureOfExperts):
            one = sum(p.numel() for p in layer.experts[0].parameters())
            idle += one * (layer.num_experts - layer.experts_per_token)
    return Parameters(total, total - idle)


def require_experts(
    method: str,
    num_experts: int,
    experts_per_token: int,
    hidden: int,
    balance_weight: float = 0.0,
) -> None:
    """ConfigError unless each position can take its experts; one expert is the plain layer."""
    if num_experts < 1:
        raise ConfigError(
            f"{method}.num_experts must be at least 1, got {num_experts}; 1 is the plain "
            "feed-forward"
        )
    if balance_weight < 0:
        raise ConfigError(f"{method}.balance_weight must be at least 0, got {balance_weight}")
    if num_experts == 1:
        return
    if not 1 <= experts_per_token <= num_experts:
        raise ConfigError(
            f"{method}.experts_per_token must be between 1 and num_experts = {num_experts}, got "
            f"{experts_per_token}; a position cannot take more experts than there are"
        )
    if hidden % experts_per_token:
        raise ConfigError(
            f"{method}: the hidden width {hidden} of the feed-forward must be a multiple of "
            f"experts_per_token, got {experts_per_token}; each expert gets an equal part of it"
        )


def require_positions(
    method: str, num_experts: int, experts_per_token: int, num_positions: int
) -> None:
    """ConfigError where even a full batch leaves experts idle whatever the router does.

    A smaller last batch of an epoch is let through: nothing is dropped there either, experts
    without a position merely learn nothing in that step.
    """
    if num_experts > 1 and num_positions * experts_per_token < num_experts:
        raise ConfigError(
            f"{method}.num_experts = {num_experts} is more than a batch can fill: "
            f"{num_positions} positions choose {experts_per_token} each; raise "
            "train.batch_positions or lower num_experts"
        )
