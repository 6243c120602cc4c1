"""Exact scoring: the log-probability of every catalogue item, each prefix visited once.

The tree is walked in contiguous blocks of prefixes of one depth; a block's states are made from
its parents' by one `step`, its children are split into blocks again. Items share the work of their
common prefixes, so the cost is one decoder step a distinct prefix, not L steps an item.

Source:   TIGER's identity (arXiv:2305.05065): a beam as wide as the catalogue ranks by log p(ID).
Cost:     O(prefixes) decoder steps and O(B N) output; at most `block` prefixes alive a level.
Shapes:   B requests, N catalogue rows, K items, P prefixes of a block, E edges of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sidrec.contracts import Generator
from sidrec.decoding.beam import ended, legal_log_probs, log_shares
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.rules import Exhausted, exhausted
from sidrec.types import HistoryBatch


@torch.inference_mode()
def exact_scores(
    generator: Generator,
    batch: HistoryBatch,
    index: PrefixIndex,
    *,
    renormalise: bool = True,
    weights_N: Tensor | None = None,
    block: int = 2048,
) -> Tensor:
    """(B, N) float32 log-probability of each catalogue row; −inf for rows not in the index.

    Items that share an ID all have its log-probability or, with `weights_N`, divide its
    probability, as in `beam_search`.
    """
    index = index.merged()
    num_requests = batch.num_requests
    scores_BN = torch.full((num_requests, index.num_rows), -torch.inf, device=index.device)
    if not index.num_items:
        return scores_BN
    block = max(1, block // num_requests)

    def walk(level: int, start: int, stop: int, scores_BP: Tensor, logits_BPV: Tensor, state: Any,
             ended_BP: Tensor | None) -> None:  # fmt: skip
        """Score what hangs below the prefixes start … stop − 1 among the parents of `level`."""
        nodes_BP = torch.arange(start, stop, device=index.device).expand(num_requests, -1)
        x_BPV = legal_log_probs(
            index, level, nodes_BP, logits_BPV, renormalise=renormalise, ended_BW=ended_BP
        )
        first, end = (int(index.tree.base.first[level][node]) for node in (start, stop))
        keys_E = index.tree.base.keys[level][first:end]
        parents_E = keys_E.div(index.tree.strides[level], rounding_mode="floor") - start
        codes_E = keys_E % index.tree.strides[level]
        scores_BE = scores_BP[:, parents_E] + x_BPV[:, parents_E, codes_E]
        if level == index.num_levels - 1:
            entries = index.tree.base.entry_first[level][first : end + 1]
            below = slice(int(entries[0]), int(entries[-1]))
            rows_E, leaves_E = index.tree.base.rows_E[below], torch.arange(end - first)
            leaves_E = leaves_E.to(index.device).repeat_interleave(entries.diff())
            scores_BN[:, rows_E] = scores_BE[:, leaves_E]
            if weights_N is not None:
                shares_E = weights_N.to(index.device)[rows_E]
                scores_BN[:, rows_E] += log_shares(shares_E, leaves_E, end - first)
            return
        for low in range(0, end - first, block):
            part = slice(low, min(low + block, end - first))
            codes_BP = codes_E[part].expand(num_requests, -1)
            logits, child_state = generator.step(
                state, codes_BP, parents_E[part].expand(num_requests, -1)
            )
            walk(level + 1, first + part.start, first + part.stop, scores_BE[:, part], logits,
                 child_state, ended(index, level + 1, codes_BP))  # fmt: skip

    logits_B1V, state = generator.step(generator.start(batch), None, None)
    walk(0, 0, 1, torch.zeros(num_requests, 1, device=index.device), logits_B1V, state, None)
    return scores_BN


def item_log_probs(
    generator: Generator,
    batch: HistoryBatch,
    index: PrefixIndex,
    rows_BK: Tensor,
    *,
    renormalise: bool = True,
    excluded_BX: Tensor | None = None,
) -> Tensor:
    """(B, K) float32 log-probability of the IDs of given items, as `beam_search` scores them.

    `excluded_BX` are what each request must not get, as `Rules.excluded_rows` gives them.
    To be read, not learnt from: `alignment.log_probs` has gradients. Raises DataError when a row is
    not in the index.
    """
    closed: list[Exhausted | None] = [None] * index.num_levels
    if excluded_BX is not None:
        closed, _ = exhausted(index, excluded_BX)
    codes_BKL = index.codes(rows_BK)
    paths_LBK = index.paths(rows_BK)
    state = generator.start(batch)
    parents_BK, total_BK = None, torch.zeros(rows_BK.shape, device=index.device)
    for level in range(index.num_levels):
        codes_BK = codes_BKL[..., level]
        previous = codes_BKL[..., level - 1] if level else None
        logits, state = generator.step(state, previous, parents_BK)
        nodes_BK = paths_LBK[level - 1] if level else index.root(len(rows_BK))
        x_BKV = legal_log_probs(
            index, level, nodes_BK, logits,
            renormalise=renormalise, closed=closed[level], ended_BW=ended(index, level, previous),
        )  # fmt: skip
        own = x_BKV.expand(-1, rows_BK.shape[1], -1) if not level else x_BKV
        total_BK = total_BK + own.gather(2, codes_BK.unsqueeze(2)).squeeze(2)
        beams = torch.arange(rows_BK.shape[1], device=index.device).expand_as(rows_BK)
        parents_BK = torch.zeros_like(rows_BK) if not level else beams
    return total_BK
