"""Vectors from files: matched by id or by row, and refused with the reason."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from sidrec.embeddings.precomputed import Precomputed, PrecomputedConfig
from sidrec.errors import ConfigError, DataError
from sidrec.types import CatalogueContext, Histories, Items, as_ids

IDS = ["a/b", "c d", "🙂"]
ROWS = np.array([[3, 4], [0, 2], [0, 0]], dtype=np.float32)
CONTEXT = CatalogueContext(Items(as_ids(IDS), pl.DataFrame()), Histories.from_lists([[0, 1]]))


def embed(path, **settings):
    config = replace(PrecomputedConfig(path=str(path), normalise=False), **settings)
    return Precomputed.fit(CONTEXT, config).embed(CONTEXT.items).vectors


def test_parquet_is_matched_by_id_whatever_its_order(tmp_path):
    path = tmp_path / "vectors.parquet"
    pl.DataFrame({"item_id": IDS[::-1], "vector": ROWS[::-1].tolist()}).write_parquet(path)
    np.testing.assert_array_equal(embed(path), ROWS)
    pl.DataFrame({"item_id": IDS[::-1], "x": ROWS[::-1, 0], "y": ROWS[::-1, 1]}).write_parquet(path)
    np.testing.assert_array_equal(embed(path), ROWS)


def test_npy_is_matched_by_row_and_normalised_on_request(tmp_path):
    path = tmp_path / "vectors.npy"
    np.save(path, ROWS.astype(np.float16))
    np.testing.assert_array_equal(embed(path), ROWS)
    np.testing.assert_allclose(embed(path, normalise=True), [[0.6, 0.8], [0, 1], [0, 0]])


def test_safetensors_is_matched_by_ids_in_its_metadata_else_by_row(tmp_path):
    path = tmp_path / "vectors.safetensors"
    save_file({"any": ROWS}, path)
    np.testing.assert_array_equal(embed(path), ROWS)
    turned = np.ascontiguousarray(ROWS[::-1])
    save_file({"any": turned}, path, metadata={"item_id": json.dumps(IDS[::-1])})
    np.testing.assert_array_equal(embed(path), ROWS)


def test_items_the_file_lacks_stop_or_get_zero(tmp_path):
    path = tmp_path / "vectors.parquet"
    pl.DataFrame({"item_id": IDS[:2], "vector": ROWS[:2].tolist()}).write_parquet(path)
    with pytest.raises(DataError, match=r"1 of 3 items have no vector .* missing = 'zero'"):
        embed(path)
    np.testing.assert_array_equal(embed(path, missing="zero"), ROWS)


def write_text(path):
    path.write_text("not an array")


def test_files_that_cannot_be_used_are_named(tmp_path):
    cases = {
        "short.npy": (lambda p: np.save(p, ROWS[:2]), "2 rows for 3 items"),
        "flat.npy": (lambda p: np.save(p, ROWS[0]), "must hold"),
        "objects.npy": (lambda p: np.save(p, np.array([{}])), "plain numeric"),
        "broken.parquet": (write_text, "not a Parquet"),
        "broken.safetensors": (write_text, "not a safetensors"),
        "vectors.txt": (write_text, "must end in one of"),
        "noid.parquet": (
            lambda p: pl.DataFrame({"x": [1.0]}).write_parquet(p),
            "precomputed.id_column",
        ),
        "empty.parquet": (
            lambda p: pl.DataFrame({"item_id": IDS}).write_parquet(p),
            "vector_column",
        ),
        "ragged.parquet": (
            lambda p: pl.DataFrame(
                {"item_id": IDS, "vector": [[1.0], [1.0, 2.0], []]}
            ).write_parquet(p),
            "differ in length",
        ),
        "nan.npy": (lambda p: np.save(p, ROWS * np.nan), "NaN"),
    }
    for name, (write, message) in cases.items():
        write(tmp_path / name)
        with pytest.raises(DataError, match=message):
            embed(tmp_path / name)
    with pytest.raises(DataError, match="no file"):
        embed(tmp_path / "absent.npy")
    with pytest.raises(ConfigError, match=r"precomputed\.path is empty"):
        Precomputed.fit(CONTEXT, PrecomputedConfig())


@pytest.mark.parametrize("array", [None, np.array([["a"], ["b"], ["c"]]), ROWS + 1j])
def test_an_empty_file_and_what_are_no_real_numbers_are_refused(tmp_path, array):
    path = tmp_path / "vectors.npy"
    path.touch()
    if array is not None:
        np.save(path, array)
    with pytest.raises(DataError, match="real numbers" if array is not None else "numpy.save"):
        embed(path)
