"""What a fit says of odd vectors, odd IDs, and what it had to do without."""

import numpy as np
import polars as pl
import pytest

from sidrec import methods
from sidrec.errors import DataError
from sidrec.tokenizers.remarks import id_remarks, vector_remarks
from sidrec.types import CatalogueContext, Histories, Items, ItemVectors, SemanticIds, as_ids


def vectors_of(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return ItemVectors(as_ids(range(len(rows))), rows)


def test_zero_and_shared_vectors_are_counted():
    said = vector_remarks(vectors_of([[0, 0], [0, 0], [1, 2], [1, 2], [3, 4]]))
    assert [remark.split(" items")[0] for remark in said] == ["2", "4"]
    assert vector_remarks(vectors_of([[1, 2], [3, 4]])) == []


def test_equal_vectors_alone_are_refused():
    with pytest.raises(DataError, match="all 3 items have the same vector"):
        vector_remarks(vectors_of([[1, 2]] * 3))


def test_a_level_of_one_code_is_named():
    ids = SemanticIds(as_ids(range(2)), np.array([[0, 0, 1], [1, 0, 0]]), (2, 1, 2))
    (remark,) = id_remarks(ids)
    assert remark.startswith("level 1 has one code"), "levels count from 0, as in inspect"


@pytest.mark.parametrize("name", ["coba_rqvae", "plum_rqvae", "letter", "sarq"])
def test_a_catalogue_without_events_is_said_to_be_one(name):
    rng = np.random.default_rng(0)
    vectors = vectors_of(rng.normal(size=(40, 8)))
    items = Items(vectors.item_ids, pl.DataFrame())
    context = CatalogueContext(items, Histories.from_lists([]), vectors)
    tokenizer = methods.resolve("tokenizers", name)
    settings = {"num_codes": 4} | ({} if name == "sarq" else {"epochs": 1})
    fitted = tokenizer.fit(vectors, tokenizer.config_class(**settings), context)
    assert fitted.remarks
