"""A catalogue small enough to check by hand, and configs small enough to train in a second.

24 items in 4 planted clusters, with text, vectors and three-level semantic IDs that follow the
clusters; the last two items collide. Training sequences walk inside a cluster.

Shapes:   N = 24 items, L = 3 levels, D = 8 vector width.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import polars as pl

from sidrec.types import CatalogueContext, Histories, HistoryBatch, Items, ItemVectors, SemanticIds
from sidrec.types import as_ids as ids_of

NUM_ITEMS = 24
NUM_CODES = (4, 3, 2)
WORDS = ("red wool coat", "blue steel kettle", "green garden chair", "black running shoe")
SMALL: dict[str, Any] = {
    "width": 16,
    "dim": 4,
    "latent": 4,
    "hidden": (8,),
    "depth_hidden": 16,
    "feed_forward": 32,
    "head_width": 8,
    "num_layers": 1,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "max_length": 6,
    "dropout": 0.0,
    "input_dropout": 0.0,
    "depth_dropout": 0.0,
    "dense_width": 8,
    "dense_hidden": 16,
    "dense_dropout": 0.0,
    "num_codes": 4,
    "num_clusters": 2,
    "num_levels": 2,
    "num_iters": 5,
    "epochs": 2,
    "num_steps": 30,
    "judged_steps": 10,
    "device": "cpu",
}
"""Values for config fields of these names, wherever a config has them."""


def small_config(config_class: type, **changes: Any) -> Any:
    """The method's config with every known size made small and every known dropout off."""
    known = {f.name for f in fields(config_class)} if config_class is not type(None) else set()
    values = {name: value for name, value in (SMALL | changes).items() if name in known}
    return config_class(**values)


def tiny_context(seed: int = 0) -> CatalogueContext:
    """Items with text, training sequences, vectors and semantic IDs, all in step."""
    random = np.random.default_rng(seed)
    rows = np.arange(NUM_ITEMS)
    cluster = rows // 6
    titles = [f"{WORDS[c]} number {row}" for row, c in enumerate(cluster)]
    items = Items(ids_of(f"item {row}" for row in rows), pl.DataFrame({"title": titles}))
    centres = 4 * random.standard_normal((4, 8))
    vectors = centres[cluster] + 0.3 * random.standard_normal((NUM_ITEMS, 8))
    codes = np.stack([cluster, rows % 6 // 2, rows % 2], axis=1)
    codes[-1] = codes[-2]
    train = [random.choice(6, 5, replace=False) + 6 * (user % 4) for user in range(32)]
    return CatalogueContext(
        items,
        Histories.from_lists(train),
        ItemVectors(items.item_ids, vectors.astype(np.float32)),
        SemanticIds(items.item_ids, codes.astype(np.int64), NUM_CODES),
    )


def tiny_batch(
    num_requests: int = 5, *, length: int = 4, max_length: int = 6, seed: int = 1
) -> HistoryBatch:
    """Random histories of 1 … `length` events, the first one of full length."""
    random = np.random.default_rng(seed)
    lengths = [length, *random.integers(1, length + 1, num_requests - 1)]
    sequences = [random.integers(0, NUM_ITEMS, size) for size in lengths]
    return HistoryBatch.from_histories(Histories.from_lists(sequences), max_length=max_length)


def eight_sequences(length: int = 5) -> HistoryBatch:
    """Eight training sequences with eight different first events and last targets."""
    random = np.random.default_rng(2)
    events = random.integers(0, NUM_ITEMS, (8, length))
    events[:, 0], events[:, -1] = np.arange(8), 2 * np.arange(8) + 1
    inputs = HistoryBatch.from_histories(
        Histories.from_lists(list(events[:, :-1])), max_length=length
    )
    targets = HistoryBatch.from_histories(
        Histories.from_lists(list(events[:, 1:])), max_length=length
    )
    return HistoryBatch(inputs.items_BT, inputs.lengths_B, targets.items_BT)


def padded(batch: HistoryBatch, columns: int = 2) -> HistoryBatch:
    """The same histories with more padding behind them."""
    from torch.nn.functional import pad

    targets = None if batch.targets_BT is None else pad(batch.targets_BT, (0, columns), value=-1)
    return HistoryBatch(pad(batch.items_BT, (0, columns), value=-1), batch.lengths_B, targets)


def request(batch: HistoryBatch, row: int) -> HistoryBatch:
    """One request of a batch on its own, without the others' padding."""
    length = max(int(batch.lengths_B[row]), 1)
    return HistoryBatch(batch.items_BT[row : row + 1, :length], batch.lengths_B[row : row + 1])
