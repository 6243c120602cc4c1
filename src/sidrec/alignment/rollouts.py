"""Rollouts: the IDs a policy writes for a context, to be scored by rewards.

`beam` takes the G likeliest IDs of a beam search: distinct, and all of the catalogue. They are no
samples of the policy, so a policy gradient over them is biased towards what the policy prefers
already; in return no rollout is wasted on a repeat. `sample` draws G IDs independently, code by
code, repeats allowed.

Both are held to the catalogue's prefix tree. With `constrained = false` the whole codebook is open,
and an ID that no item holds is marked as such: only so can hallucination be seen and trained on.

Source:   beam groups as in MiniOneRec (arXiv:2510.24431).
Cost:     one beam search of width G a context, or one draw of G IDs; and, where asked, one pass for
          their log-probabilities.
Shapes:   B contexts, G rollouts, L levels, V symbols of a level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sidrec.alignment.log_probs import id_lengths, packed_log_probs
from sidrec.alignment.values import Rollouts
from sidrec.decoding.beam import (
    ended,
    follow,
    full_log_probs,
    legal_log_probs,
    search_ids,
    unconstrained_search,
)
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.errors import ConfigError
from sidrec.types import HistoryBatch


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How rollouts are made."""

    size: int = 16
    """G, rollouts of a context."""
    how: Literal["beam", "sample"] = "beam"
    """beam: the G likeliest IDs, distinct; sample: G independent draws."""
    constrained: bool = True
    """Hold rollouts to the catalogue. False opens the whole codebook: what no item holds is then a
    hallucination, and log-probabilities are those of the whole codebook."""
    temperature: float = 1.0
    """Divides the logits that samples are drawn from; log-probabilities stay the policy's own."""

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ConfigError(f"rollouts.size must be at least 2 to compare, got {self.size}")
        if self.how not in ("beam", "sample"):
            raise ConfigError(f"rollouts.how must be beam or sample, got {self.how!r}")
        if not self.temperature > 0:
            raise ConfigError(f"rollouts.temperature must be above 0, got {self.temperature}")


@torch.no_grad()
def roll_out(
    policy: Any,
    batch: HistoryBatch,
    index: PrefixIndex,
    config: RolloutConfig,
    *,
    targets_B: Tensor,
    users_B: Tensor,
    renormalise: bool,
    with_log_probs: bool = True,
) -> Rollouts:
    """G IDs of each context. Draws come from torch's default generator.

    `renormalise` is that of the log-probabilities; it must be off for unconstrained rollouts.
    Without `with_log_probs` they are zeros, for callers whose policy has not moved since.
    """
    if renormalise and not config.constrained:
        raise ConfigError(
            "rollouts.constrained = false writes IDs that no item holds, which have no "
            "probability over legal codes; set renormalise = false"
        )
    write = _searched if config.how == "beam" else _drawn
    symbols_BGL = write(policy, batch, index, config, renormalise)
    symbols_BGL = symbols_BGL.clone()  # searches run in inference mode; autograd saves these
    ends_L = torch.tensor(index.num_codes, device=symbols_BGL.device)
    codes_BGL = torch.where(symbols_BGL >= ends_L, -1, symbols_BGL)
    lengths_BG = id_lengths(codes_BGL, index.widths, index.num_codes)
    log_probs_BGL = torch.zeros(codes_BGL.shape, device=codes_BGL.device)
    if with_log_probs:
        log_probs_BGL = packed_log_probs(
            policy, batch, codes_BGL, index, renormalise=renormalise
        ).token_BKL
    target_symbols_BL = index.codes(targets_B)
    return Rollouts(
        batch=batch,
        targets_B=targets_B,
        users_B=users_B,
        codes_BGL=codes_BGL,
        rows_BG=_rows(index, symbols_BGL),
        log_probs_BGL=log_probs_BGL,
        lengths_BG=lengths_BG,
        target_codes_BL=torch.where(target_symbols_BL >= ends_L, -1, target_symbols_BL),
        ranked=config.how == "beam",
    )


def _searched(
    policy: Any, batch: HistoryBatch, index: PrefixIndex, config: RolloutConfig, renormalise: bool
) -> Tensor:
    """(B, G, L) symbols of a beam's IDs, best first; −1 where it found fewer than G."""
    if not config.constrained:
        return unconstrained_search(policy, batch, index, beam_width=config.size).codes_BKL
    found = search_ids(policy, batch, index, beam_width=config.size, renormalise=renormalise)
    places, rows = found.items()
    num_requests, width = found.leaves_BW.shape
    symbols = torch.full((num_requests * width, index.num_levels), -1, device=index.device)
    symbols[places] = index.codes(rows)  # items of one leaf agree
    symbols_BWL = symbols.view(num_requests, width, index.num_levels)
    return torch.nn.functional.pad(symbols_BWL, (0, 0, 0, config.size - width), value=-1)


def _drawn(
    policy: Any, batch: HistoryBatch, index: PrefixIndex, config: RolloutConfig, renormalise: bool
) -> Tensor:
    """(B, G, L) symbols of independent draws."""
    num_requests, size = batch.num_requests, config.size
    beams_BG = torch.arange(size, device=index.device).expand(num_requests, -1)
    state, codes_BG, parents_BG = policy.start(batch), None, None
    nodes_BG, drawn = index.root(num_requests), []
    for level in range(index.num_levels):
        logits_BGV, state = policy.step(state, codes_BG, parents_BG)
        logits_BGV = logits_BGV.float() / config.temperature
        ended_BG = ended(index, level, codes_BG)
        if config.constrained:
            x_BGV = legal_log_probs(
                index, level, nodes_BG, logits_BGV, renormalise=renormalise, ended_BW=ended_BG
            )
        else:
            x_BGV = full_log_probs(index, level, logits_BGV, False, ended_BG)
        probs_BGV = x_BGV.softmax(-1).expand(-1, size, -1)
        codes_BG = probs_BGV.flatten(0, 1).multinomial(1).view(num_requests, size)
        drawn.append(codes_BG)
        if config.constrained:
            nodes_BG = index.child(level, nodes_BG.expand(-1, size), codes_BG)
        parents_BG = torch.zeros_like(beams_BG) if level == 0 else beams_BG
    return torch.stack(drawn, dim=-1)


def _rows(index: PrefixIndex, symbols_BGL: Tensor) -> Tensor:
    """(B, G) the first item of each ID, −1 where no item holds it."""
    real_BG = symbols_BGL[..., 0] >= 0
    leaves_BG = follow(index, symbols_BGL.clamp_min(0))[-1]
    held = ((leaves_BG != index.sinks[-1]) & real_BG).flatten().nonzero()[:, 0]
    owners, rows = index.tree.items_below(leaves_BG.flatten()[held])
    found = torch.full((leaves_BG.numel(),), -1, dtype=torch.long, device=leaves_BG.device)
    found[held] = rows[torch.searchsorted(owners, torch.arange(len(held), device=rows.device))]
    return found.view(leaves_BG.shape)
