"""How often each code is right, and each thought before it, along the true IDs of targets.

Every level is asked with the true codes before it, so that an early mistake does not count again.
A code is right where it has the highest probability among the legal continuations; a thought where
the cluster it points to holds the code that follows (generators with thoughts only).

Source:   the per-level accuracies that S2GR (arXiv:2601.18664) argues from.
Cost:     one step a level and target, as of a beam of width 1.
Shapes:   B requests, L levels, Q examples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sidrec.contracts import Generator
from sidrec.decoding.beam import legal_log_probs
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.errors import ConfigError
from sidrec.types import Examples, HistoryBatch

Hits = Callable[[HistoryBatch, Tensor], tuple[Tensor, Tensor]]


def level_accuracy(
    generator: Generator, examples: Examples, index: PrefixIndex, *, batch_size: int = 512
) -> list[float]:
    """L shares of the examples whose ID reaches the level: the code is the likeliest."""
    return _shares(
        lambda batch, rows_B: code_hits(generator, batch, index, rows_B),
        generator, examples, index, batch_size,
    )  # fmt: skip


def thought_accuracy(
    generator: Generator, examples: Examples, index: PrefixIndex, *, batch_size: int = 512
) -> list[float]:
    """L shares of the examples whose ID reaches the level: the thought's cluster holds the code."""
    if not getattr(generator, "thinks", False):
        raise ConfigError(
            f"thought_accuracy needs a generator with thoughts, got {type(generator).__name__} "
            "without any; take s2gr or s2gr_tiger"
        )
    return _shares(
        lambda batch, rows_B: thought_hits(generator, batch, index, rows_B),
        generator, examples, index, batch_size,
    )  # fmt: skip


@torch.inference_mode()
def code_hits(
    generator: Generator, batch: HistoryBatch, index: PrefixIndex, rows_B: Tensor
) -> tuple[Tensor, Tensor]:
    """(B, L) bool twice: the true code is the likeliest legal one; the ID reaches the level."""
    symbols_BL, paths_LB = index.codes(rows_B), index.paths(rows_B)
    state, hits = generator.start(batch), []
    codes_B1, parents_B1 = None, None
    for level in range(index.num_levels):
        logits_B1V, state = generator.step(state, codes_B1, parents_B1)
        nodes_B1 = paths_LB[level - 1][:, None] if level else index.root(len(rows_B))
        x_B1V = legal_log_probs(index, level, nodes_B1, logits_B1V, renormalise=True)
        codes_B1 = symbols_BL[:, level, None]
        parents_B1 = torch.zeros_like(codes_B1)
        hits.append(x_B1V[:, 0].argmax(1) == symbols_BL[:, level])
    return torch.stack(hits, dim=1), reached(index, symbols_BL)


@torch.inference_mode()
def thought_hits(
    generator: Generator, batch: HistoryBatch, index: PrefixIndex, rows_B: Tensor
) -> tuple[Tensor, Tensor]:
    """(B, L) bool twice: the thought's cluster holds the true code; the ID reaches the level."""
    symbols_BL = index.codes(rows_B)
    said = generator.thought_clusters(batch, symbols_BL[:, None])  # type: ignore[attr-defined]
    return said.contains_BKL[:, 0], reached(index, symbols_BL)


def reached(index: PrefixIndex, symbols_BL: Tensor) -> Tensor:
    """(B, L) bool: levels at which an ID has a code or its end."""
    has_code_BL = symbols_BL < torch.tensor(index.num_codes, device=symbols_BL.device)
    return torch.nn.functional.pad(has_code_BL[:, :-1], (1, 0), value=True)


def _shares(
    hits: Hits, generator: Generator, examples: Examples, index: PrefixIndex, batch_size: int
) -> list[float]:
    longest = int(generator.max_length)
    right_L = torch.zeros(index.num_levels, dtype=torch.float64, device=index.device)
    asked_L = torch.zeros_like(right_L)
    order = np.argsort(np.minimum(examples.histories.lengths, longest), kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = HistoryBatch.from_histories(examples.histories, rows, max_length=longest)
        targets_B = torch.from_numpy(examples.targets[rows]).to(index.device)
        hits_BL, reached_BL = hits(batch.to(index.device), targets_B)
        right_L += (hits_BL & reached_BL).sum(0)
        asked_L += reached_BL.sum(0)
    return (right_L / asked_L.clamp_min(1)).tolist()
