"""How large a model is and what it computes: parameters, floating-point operations, memory.

Embeddings are tables with one row an item or a code, and the projection of item vectors that makes
one; N is everything else: what every position passes through. Training one target takes 6 N for
the products with weights (forward 2, backward 4) and 12 · layers · width · T for attention over a
context of T. Products of the state with item and code tables are counted apart, since they grow
with the catalogue and not with N: in small models they are most of the work.

Source:   Kaplan et al. 2020 (arXiv:2001.08361), table 1: N without embeddings, 6 N a token.
Differs:  a target is one item, however many codes its ID has: the history is encoded once an item.
          With a mixture of experts N and FLOP count every expert, also those that did not run.
Cost:     none.
Shapes:   T positions.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import torch
from torch import nn

EMBEDDINGS = {
    "causal": re.compile(r"items\.|codes\.|project\.|levels\.\d+\.(prefix\.|bias$)"),
    "sasrec": re.compile(r"items\."),
}
"""Systems that can be laddered, and which of their parameters are embeddings."""


def count_parameters(system: str, model: nn.Module) -> tuple[int, int]:
    """(non-embedding, embedding) parameters."""
    counts = [0, 0]
    for name, parameter in model.named_parameters():
        counts[bool(EMBEDDINGS[system].match(name))] += parameter.numel()
    return counts[0], counts[1]


def flop_per_target(parameters: int, num_layers: int, width: int, context: float) -> float:
    """6 N plus attention, forward and backward, of one target."""
    return 6 * parameters + 12 * num_layers * width * context


def table_rows(model: Any) -> int:
    """Rows that a state meets for one target: items, codes, and nodes of the tree."""
    if not hasattr(model, "tree"):
        return len(model.items.weight)
    rows = sum(model.widths) + (len(model.symbols_NL) if model.config.item_loss_weight else 0)
    if model.config.node_vectors:
        rows += sum(len(model.tree.counts(level)) - 1 for level in range(len(model.tree)))
    return rows


def peak_memory_bytes(device: torch.device) -> int:
    """Of the GPU in this run, else of this process since it began; 0 where nobody counts."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0  # not to be had there without another package
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
