"""Log-probabilities of many IDs after one history: the history is encoded once, IDs side by side.

This is what label packing gives on a generator whose history and ID are apart (RAD-DPO packs them
into one sequence with a block-diagonal mask): candidates see the history and themselves, never each
other, and their order carries no signal.

With an `index`, each code's softmax runs over the legal continuations of its prefix, as constrained
decoding does; without, over the whole codebook, as the papers of language models do. Rollouts and
losses must use the same one.

Source:   label packing, RAD-DPO (arXiv:2602.23964), sec. on its multi-label engine.
Cost:     one pass of the history encoder, K decoder passes of L codes; B K V L floats of logits.
Shapes:   B contexts, K IDs, L levels, V symbols of a level, D width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.errors import DataError
from sidrec.types import HistoryBatch


class PackedLogProbs(NamedTuple):
    """The IDs of B contexts, code by code."""

    token_BKL: Tensor
    """Natural log-probability of each code; 0 after the end, and where there is no ID."""
    states_BKLD: Tensor | None
    """Representation before each code, and (place L) after the last; None for generators that only
    offer `step`."""


def id_lengths(codes_BKL: Tensor, widths: tuple[int, ...], num_codes: tuple[int, ...]) -> Tensor:
    """(B, K) codes of each ID, the end of a shorter one included; 0 where it has none at all."""
    lengths_BK = (codes_BKL >= 0).sum(-1)
    can_end_L = torch.tensor([w > v for w, v in zip(widths, num_codes, strict=True)])
    ends_BK = lengths_BK.clamp(max=codes_BKL.shape[-1] - 1)
    shorter_BK = (lengths_BK > 0) & (lengths_BK < codes_BKL.shape[-1])
    return lengths_BK + (shorter_BK & can_end_L.to(codes_BKL.device)[ends_BK]).long()


def packed_log_probs(
    generator: Any,
    batch: HistoryBatch,
    codes_BKL: Tensor,
    index: PrefixIndex,
    *,
    renormalise: bool,
) -> PackedLogProbs:
    """Log-probabilities of the codes (B, K, L) of K IDs a context, −1 after an end or for no ID.

    Differentiable. With `renormalise`, DataError where an ID is not of the catalogue.
    """
    num_codes = index.num_codes
    lengths_BK = id_lengths(codes_BKL, index.widths, num_codes)
    real_BK = lengths_BK > 0
    ends_L = torch.tensor(num_codes, device=codes_BKL.device)
    symbols_BKL = torch.where(codes_BKL < 0, ends_L, codes_BKL)
    symbols_BKL = torch.where(real_BK[..., None], symbols_BKL, _any_id(index, symbols_BKL))
    along = getattr(generator, "along", None)
    if along is not None:
        logits_L, states_BKLD = along(batch, symbols_BKL)
    else:
        logits_L, states_BKLD = _stepped(generator, batch, symbols_BKL), None
    nodes_BK = torch.zeros_like(symbols_BKL[..., 0])
    token: list[Tensor] = []
    for level, logits_BKV in enumerate(logits_L):
        x_BKV = logits_BKV.float()
        if renormalise:
            x_BKV = x_BKV.masked_fill(~index.children_mask(level, nodes_BK), -torch.inf)
        symbols_BK = symbols_BKL[..., level]
        if renormalise:
            nodes_BK = index.child(level, nodes_BK, symbols_BK)
            if bool((nodes_BK == index.sinks[level + 1]).any()):
                raise DataError(
                    "log-probabilities over legal codes need IDs of the catalogue, got one that no "
                    "item holds; drop it, or set renormalise = false"
                )
        token_BK = x_BKV.gather(-1, symbols_BK[..., None])[..., 0] - x_BKV.logsumexp(-1)
        token.append(token_BK.masked_fill(lengths_BK <= level, 0.0))
    return PackedLogProbs(torch.stack(token, dim=-1), states_BKLD)


def _any_id(index: PrefixIndex, symbols_BKL: Tensor) -> Tensor:
    """(L,) symbols of some live item, to stand where there is no ID."""
    rows = index.live_mask(index.num_rows)
    row = torch.zeros(1, dtype=torch.long) if rows is None else rows.nonzero()[0]
    return index.codes(row.to(symbols_BKL.device))[0]


def _stepped(generator: Any, batch: HistoryBatch, symbols_BKL: Tensor) -> list[Tensor]:
    """The same logits through the contract every generator keeps: one `step` a level."""
    num_requests, num_ids, num_levels = symbols_BKL.shape
    state, codes_BK, parents_BK = generator.start(batch), None, None
    beams_BK = torch.arange(num_ids, device=symbols_BKL.device).expand(num_requests, -1)
    logits_L: list[Tensor] = []
    for level in range(num_levels):
        logits_BKV, state = generator.step(state, codes_BK, parents_BK)
        logits_L.append(logits_BKV.expand(-1, num_ids, -1))
        codes_BK = symbols_BKL[..., level]
        parents_BK = torch.zeros_like(beams_BK) if level == 0 else beams_BK
    return logits_L
