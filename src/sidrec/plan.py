"""What a run would take: rows, parameters, memory, time. Nothing is trained and nothing written.

Models are built for the real catalogue with random vectors and codes, which costs what real ones
cost; a few steps of each are timed on them.

Cost:     reading the data, plus a second or two a model.
Shapes:   N items, D width, L levels, B sequences, T positions.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import nn

from sidrec import methods
from sidrec.batching import TrainingBatches
from sidrec.config import Method
from sidrec.data import split
from sidrec.mixture_of_experts import count_parameters
from sidrec.processes import choose_device
from sidrec.recipe import RunConfig, describe, read_data
from sidrec.tokenizers.residual_kmeans import require_items
from sidrec.types import CatalogueContext, Dataset, Histories, ItemVectors, SemanticIds

PROBE_STEPS = 3
DEFAULT_WIDTH = 256
"""Width of item vectors where the embedder's config names none."""


def plan(settings: RunConfig, data: Dataset | None = None) -> dict[str, Any]:
    """Figures of each part of the run, in words and numbers."""
    dataset = data if data is not None else read_data(settings.data)
    parts = split(dataset, settings.split.rule)
    device = choose_device(settings.device)
    figures: dict[str, Any] = {
        "data": describe(dataset),
        "split": parts.rule,
        "train events": len(parts.train.items_E),
        "test questions": len(parts.test),
        "device": str(device),
    }
    context = stand_in(dataset, parts.train, settings)
    most_bytes, seconds = 0, 0.0
    for chosen in (settings.generator, *settings.scorers):
        if chosen.train is None:
            continue
        model = methods.resolve(chosen.stage, chosen.name).build(context, chosen.config)
        if check := getattr(model, "check_batches", None):
            check(chosen.train.batch_positions)
        weights, active = count_parameters(model)
        taken = training_seconds(model, chosen, parts.train, device)
        figures[f"{chosen.name}: parameters"] = f"{weights:,}" + (
            f", {active:,} of them active" if active < weights else ""
        )
        figures[f"{chosen.name}: training at most"] = f"{taken / 60:.1f} min"
        most_bytes, seconds = max(most_bytes, 4 * weights), seconds + taken
    vectors = context.vectors.vectors.nbytes if context.vectors else 0
    # weights, gradients, two moments, best weights; two copies of the vectors; torch itself
    memory = 5 * most_bytes + 2 * vectors + 400e6
    figures["memory"] = f"about {memory / 2**30:.1f} GiB"
    figures["time"] = f"at most about {seconds / 60 + 1:.0f} min; early stopping ends sooner"
    return figures


def stand_in(dataset: Dataset, train: Histories, settings: RunConfig) -> CatalogueContext:
    """The real catalogue with random vectors and codes of the configured sizes."""
    rng, num_items = np.random.default_rng(0), len(dataset.items)
    width = int(getattr(settings.embedding.config, "dim", None) or DEFAULT_WIDTH)
    vectors = rng.standard_normal((num_items, width), dtype=np.float32)
    sizes = code_sizes(settings.tokenizer.name, settings.tokenizer.config, num_items)
    if settings.collisions.name == "counter":
        sizes = (*sizes, 16)
    codes = np.stack([rng.integers(0, size, num_items) for size in sizes], axis=1)
    ids = dataset.items.item_ids
    return CatalogueContext(
        dataset.items, train, ItemVectors(ids, vectors), SemanticIds(ids, codes, sizes)
    )


def code_sizes(name: str, tokenizer: Any, num_items: int) -> tuple[int, ...]:
    """Codebook sizes that a tokenizer's settings lead to. DataError where items are too few."""
    if hasattr(tokenizer, "of_quantiser"):
        return code_sizes(name, tokenizer.of_quantiser()[1], num_items)
    if hasattr(tokenizer, "id_sizes"):
        sizes = tokenizer.id_sizes(num_items)
    elif hasattr(tokenizer, "sizes"):
        sizes = tokenizer.sizes()
    else:
        sizes = getattr(tokenizer, "num_codes", 256)
        sizes = (sizes,) * getattr(tokenizer, "num_levels", 3) if isinstance(sizes, int) else sizes
    if hasattr(tokenizer, "num_codes"):
        require_items(name, num_items, max(sizes))
    return tuple(sizes)


def training_seconds(
    model: nn.Module, chosen: Method, train: Histories, device: torch.device
) -> float:
    """Time of the whole training at the pace of a few steps, `max_seconds` at most."""
    settings = chosen.train
    batches = TrainingBatches.cut(
        train, max_length=int(model.max_length), batch_positions=settings.batch_positions
    )
    model.to(device).train()
    order = batches.epoch(0, 0)
    steps = order[:: max(1, len(order) // PROBE_STEPS)][: PROBE_STEPS + 1]
    started = time.perf_counter()
    for number, windows in enumerate(steps):
        if number == 1:  # the first step also warms up
            started = time.perf_counter()
        loss, _ = model.loss(batches.build(windows).to(device))
        loss.backward()
        float(loss.detach())  # waits for a GPU
    a_step = (time.perf_counter() - started) / max(len(steps) - 1, 1)
    whole = 1.2 * a_step * len(order) * settings.epochs  # the optimiser and validation come on top
    return min(whole, settings.max_seconds or whole)
