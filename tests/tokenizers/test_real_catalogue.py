"""The default road from text to unique semantic IDs on Amazon Beauty (`SIDREC_DATA`)."""

import os
from pathlib import Path

import polars as pl
import pytest

from sidrec.embeddings.lsa import Lsa, LsaConfig
from sidrec.tokenizers.collisions import reassign
from sidrec.tokenizers.health import health
from sidrec.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from sidrec.types import CatalogueContext, Histories, Items, as_ids

FOLDER = Path(os.environ.get("SIDREC_DATA", "")) / "amazon_beauty"


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not FOLDER.is_dir(), reason="SIDREC_DATA is not set")
def test_beauty_gets_unique_and_telling_ids():
    table = pl.read_parquet(FOLDER / "items.parquet")
    items = Items(as_ids(table["item_id"].to_list()), table)
    vectors = Lsa.fit(CatalogueContext(items, Histories.from_lists([])), LsaConfig(dim=128)).embed(
        items
    )
    tokenizer = ResidualKMeans.fit(vectors, ResidualKMeansConfig(num_iters=10))
    ids, report = reassign(tokenizer.encode(vectors), tokenizer, vectors)
    leaves = [(path or [""])[-1] for path in table["categories"].to_list()]
    found = health(ids, vectors, tokenizer, leaves)
    assert report.share_before < 0.5 and report.share_after == 0 and found.num_ids == 12_101
    assert report.extra_distortion < 0.15
    errors = [level.reconstruction_error_ratio for level in found.levels]
    assert errors[0] < 0.6 and errors[2] < 0.3
    assert found.levels[0].prefix_purity_gain > 0.3 and found.levels[0].num_dead == 0
