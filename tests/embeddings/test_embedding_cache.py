"""The cache: found when nothing changed, not found when anything did, never trusted blindly."""

import logging
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from sidrec.embeddings.cache import content_key, fit_embed
from sidrec.embeddings.fusion import Fusion, FusionConfig
from sidrec.embeddings.lsa import Lsa, LsaConfig
from sidrec.embeddings.precomputed import Precomputed, PrecomputedConfig
from sidrec.testing.tiny_catalogue import tiny_context
from sidrec.types import CatalogueContext, Histories, Items

CONFIG = LsaConfig(dim=4)


@pytest.fixture
def count_fits(monkeypatch):
    """A list that grows by one at every true fit of LSA."""
    fits, fit = [], Lsa.fit.__func__

    def counted(cls, context, config):
        fits.append(config)
        return fit(cls, context, config)

    monkeypatch.setattr(Lsa, "fit", classmethod(counted))
    return fits


def test_the_second_time_nothing_is_fitted_and_all_is_equal(tmp_path, count_fits):
    context = tiny_context()
    fusion = FusionConfig(lsa=CONFIG)
    for method, config in ((Lsa, CONFIG), (Fusion, fusion)):
        count_fits.clear()
        (first, a), (second, b) = (
            fit_embed(method, context, config, tmp_path / "new folder") for _ in range(2)
        )
        assert len(count_fits) == 1
        np.testing.assert_array_equal(a.vectors, b.vectors)
        assert a.views == b.views
        np.testing.assert_array_equal(
            first.embed(context.items).vectors, second.embed(context.items).vectors
        )
    assert {path.suffix for path in (tmp_path / "new folder").iterdir()} == {".safetensors"}


def test_no_folder_keeps_nothing(count_fits):
    for _ in range(2):
        fit_embed(Lsa, tiny_context(), CONFIG, None)
    assert len(count_fits) == 2


def test_a_change_of_anything_changes_the_key(tmp_path):
    context = tiny_context()
    items = context.items
    titles = items.attributes["title"].to_list()
    other_text = Items(items.item_ids, pl.DataFrame({"title": ["new", *titles[1:]]}))
    other_train = Histories.from_lists([[0, 1], [2, 3]])
    keys = [
        content_key(Lsa, context, CONFIG),
        content_key(Fusion, context, CONFIG),
        content_key(Lsa, context, replace(CONFIG, seed=1)),
        content_key(Lsa, CatalogueContext(other_text, context.train), CONFIG),
        content_key(Lsa, CatalogueContext(items, other_train), CONFIG),
    ]
    path = tmp_path / "vectors.npy"
    for values in (np.ones((24, 2)), np.zeros((24, 2))):
        np.save(path, values)
        keys.append(content_key(Precomputed, context, PrecomputedConfig(path=str(path))))
    assert len(set(keys)) == len(keys)
    assert content_key(Lsa, tiny_context(), LsaConfig(dim=4)) == keys[0]


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_a_damaged_entry_is_built_again_and_said_so(tmp_path, count_fits, caplog, harm):
    context = tiny_context()
    _, first = fit_embed(Lsa, context, CONFIG, tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes({"cut": content[:-9], "flip": content, "empty": b""}[harm])
    with caplog.at_level(logging.WARNING):
        _, second = fit_embed(Lsa, context, CONFIG, tmp_path)
    assert "is damaged and is built again" in caplog.text
    np.testing.assert_array_equal(first.vectors, second.vectors)
    fit_embed(Lsa, context, CONFIG, tmp_path)
    assert len(count_fits) == 2
