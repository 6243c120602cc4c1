# ruff: noqa: D103  (the name of a check is its sentence)
"""What it means to be an embedder: run these checks on any class with `Embedder`'s contract.

`for check in EMBEDDER_CHECKS: check(MyEmbedder, my_small_config)`. An embedder whose package is
not installed is passed by (`unittest.SkipTest`), as is one that names a model to download.

Shapes:  N items, D width.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
import polars as pl

from sidrec.errors import MissingExtra
from sidrec.testing.tiny_catalogue import NUM_ITEMS, tiny_context
from sidrec.types import Items, as_ids


@contextmanager
def ready(config: Any) -> Any:
    """The config, with a file of vectors where it asks for one."""
    if getattr(config, "path", None) == "":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vectors.parquet"
            vectors = tiny_context().vectors
            assert vectors is not None
            pl.DataFrame(
                {"item_id": list(vectors.item_ids), "vector": vectors.vectors.tolist()}
            ).write_parquet(path)
            yield replace(config, path=str(path), missing="zero")
    else:
        yield config


def fitted(embedder_class: Any, config: Any) -> Any:
    """An embedder of the tiny catalogue."""
    if "/" in getattr(config, "model", "") and not Path(config.model).exists():
        raise SkipTest(f"{config.model} would have to be downloaded")
    with ready(config) as prepared:
        try:
            return embedder_class.fit(tiny_context(), prepared)
        except MissingExtra as missing:
            raise SkipTest(str(missing)) from missing


def unseen_items() -> Items:
    """Two items that were not there at `fit`: one with known words, one without any text."""
    table = pl.DataFrame({"title": ["red wool shoe", None]})
    return Items(as_ids(["new/1", "new 2 🙂"]), table)


def check_one_float32_vector_an_item_in_step(embedder_class: Any, config: Any) -> None:
    items = tiny_context().items
    vectors = fitted(embedder_class, config).embed(items)
    np.testing.assert_array_equal(vectors.item_ids, items.item_ids)
    assert vectors.vectors.shape[0] == NUM_ITEMS and vectors.vectors.dtype == np.float32
    assert np.abs(vectors.vectors).sum() > 0


def check_same_seed_gives_the_same_vectors(embedder_class: Any, config: Any) -> None:
    items = tiny_context().items
    first, second = (fitted(embedder_class, config).embed(items).vectors for _ in range(2))
    np.testing.assert_array_equal(first, second)


def check_items_of_a_cluster_lie_together(embedder_class: Any, config: Any) -> None:
    vectors = fitted(embedder_class, config).embed(tiny_context().items).vectors
    vectors = vectors - vectors.mean(axis=0)
    gram = vectors @ vectors.T
    cluster = np.arange(NUM_ITEMS) // 6
    same = cluster[:, None] == cluster[None, :]
    np.fill_diagonal(gram, 0)
    assert gram[same].mean() > gram[~same].mean()


def check_order_of_items_does_not_matter_to_embed(embedder_class: Any, config: Any) -> None:
    items = tiny_context().items
    order = np.random.default_rng(1).permutation(NUM_ITEMS)
    shuffled = Items(items.item_ids[order], items.attributes[order.tolist()])
    embedder = fitted(embedder_class, config)
    np.testing.assert_allclose(
        embedder.embed(items).vectors[order], embedder.embed(shuffled).vectors, atol=1e-6
    )


def check_unseen_items_are_welcome(embedder_class: Any, config: Any) -> None:
    embedder = fitted(embedder_class, config)
    width = embedder.embed(tiny_context().items).vectors.shape[1]
    assert embedder.embed(unseen_items()).vectors.shape == (2, width)


def check_saved_and_loaded_is_equal(embedder_class: Any, config: Any) -> None:
    embedder = fitted(embedder_class, config)
    arrays = {name: np.array(array) for name, array in embedder.arrays().items()}
    state = json.loads(json.dumps(embedder.state()))
    again = embedder_class.from_arrays(embedder.config, arrays, state)
    for items in (tiny_context().items, unseen_items()):
        saved, loaded = embedder.embed(items), again.embed(items)
        np.testing.assert_array_equal(saved.vectors, loaded.vectors)
        assert saved.views == loaded.views


EMBEDDER_CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
