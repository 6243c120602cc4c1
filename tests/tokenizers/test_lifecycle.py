from __future__ import annotations

import itertools
import json

import numpy as np
import polars as pl
import pytest

from sidrec.errors import DataError
from sidrec.testing.tiny_catalogue import small_config
from sidrec.testing.tokenizers import tiny_vectors
from sidrec.tokenizers import lifecycle
from sidrec.tokenizers.coba_rqvae import CobaRqVae, CobaRqVaeConfig
from sidrec.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from sidrec.types import CatalogueContext, Histories, Items, ItemVectors, SemanticIds, as_ids

RANDOM = np.random.default_rng(0)


def ids_of(codes, num_codes, names=None):
    codes = np.asarray(codes, dtype=np.int64)
    names = [f"i{row}" for row in range(len(codes))] if names is None else names
    return SemanticIds(as_ids(names), codes, tuple(num_codes))


def random_ids(num_items=60, num_codes=(5, 4, 3), seed=0):
    random = np.random.default_rng(seed)
    return ids_of(random.integers(0, num_codes, (num_items, len(num_codes))), num_codes)


def test_codes_that_only_changed_their_names_all_survive_the_relabelling():
    old = random_ids()
    permutations = [RANDOM.permutation(v) for v in old.num_codes]
    new = ids_of(lifecycle.renamed(old.codes, permutations), old.num_codes)
    found = lifecycle.migration(old, new)
    assert found.report.kept_relabelled == (1.0, 1.0, 1.0)
    assert found.report.num_moved > 0 == found.report.num_moved_relabelled
    np.testing.assert_array_equal(found.apply(new).codes, old.codes)


def test_the_first_level_is_the_best_of_all_permutations():
    old, new = random_ids(seed=1), random_ids(seed=2)
    best = max(
        (np.array(names)[new.codes[:, 0]] == old.codes[:, 0]).mean()
        for names in itertools.permutations(range(5))
    )
    assert lifecycle.churn(old, new).kept_relabelled[0] == pytest.approx(best)


def test_lower_levels_follow_the_items_whose_prefix_agrees_before_the_rest():
    """Two items keep their first code and swap the second; three strayed items vote otherwise."""
    old = ids_of([[0, 0], [0, 0], [0, 1], [0, 1], [1, 0], [1, 0], [1, 0]], (2, 2))
    new = ids_of([[0, 1], [0, 1], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0]], (2, 2))
    found = lifecycle.migration(old, new)
    assert found.relabel[1].tolist() == [1, 0]
    assert found.report.kept_relabelled == pytest.approx((4 / 7, 4 / 7))


def test_equal_ids_have_no_churn_and_keep_every_name_used_or_not():
    ids = ids_of([[0, 3], [2, 1]], (6, 9))
    found = lifecycle.migration(ids, ids)
    assert [names.tolist() for names in found.relabel] == [list(range(6)), list(range(9))]
    assert found.report.kept == found.report.kept_relabelled == (1.0, 1.0)
    assert found.report.num_moved == 0


def test_items_that_came_and_went_are_counted_and_mapped(tmp_path):
    old = ids_of([[0, 0], [1, 1], [1, 0]], (2, 2), ["a", "b", "gone"])
    new = ids_of([[1, 1], [0, 1], [1, -1]], (2, 2), ["b", "a", "come"])
    found = lifecycle.migration(old, new)
    report = found.report
    assert (report.num_common, report.num_added, report.num_removed) == (2, 1, 1)
    assert report.kept == (1.0, 0.5)
    found.write(tmp_path)
    table = {
        row["item_id"]: row for row in pl.read_parquet(tmp_path / "item_map.parquet").to_dicts()
    }
    assert table["gone"]["new"] is None and table["come"]["old"] is None
    assert table["come"]["new"] == [1] and table["come"]["kept_depth"] == 0
    assert (table["b"]["old"], table["b"]["kept_depth"]) == ([1, 1], 2)
    written = json.loads((tmp_path / "churn.json").read_text())
    assert written["num_moved"] == 1 and len(written["relabel"]) == 2


def test_shorter_ids_and_other_numbers_of_levels_are_compared_by_what_they_have():
    old = ids_of([[0, -1], [1, 1]], (2, 2))
    new = ids_of([[0, -1, -1], [1, 1, 0]], (2, 2, 3))
    report = lifecycle.churn(old, new)
    assert report.kept == (1.0, 1.0, 0.5)
    assert lifecycle.migration(old, new).table["kept_depth"].to_list() == [1, 2]
    assert lifecycle.churn(new, old).kept == (1.0, 1.0, 0.5)


def test_a_relabelled_tokenizer_writes_the_relabelled_ids():
    vectors = tiny_vectors()
    config = ResidualKMeansConfig(num_codes=8, num_levels=2)
    old = ResidualKMeans.fit(vectors, config)
    fresh = ResidualKMeans.fit(vectors, ResidualKMeansConfig(num_codes=8, num_levels=2, seed=5))
    found = lifecycle.migration(old.encode(vectors), fresh.encode(vectors))
    speaking = found.apply_to(fresh)
    np.testing.assert_array_equal(
        speaking.encode(vectors).codes, found.apply(fresh.encode(vectors)).codes
    )
    np.testing.assert_allclose(
        speaking.decode(speaking.encode(vectors).codes), fresh.decode(fresh.encode(vectors).codes)
    )
    assert found.report.kept_relabelled[0] >= found.report.kept[0]


def test_counts_of_use_follow_their_codes_when_a_tokenizer_is_relabelled():
    points_ND = np.random.default_rng(0).standard_normal((90, 8)).astype(np.float32)
    vectors = ItemVectors(as_ids(f"i{row}" for row in range(90)), points_ND)
    settings = small_config(CobaRqVaeConfig, balanced_assignment=True, delta_max=0.9)
    tokenizer = CobaRqVae.fit(vectors, settings)
    ids = tokenizer.encode(vectors)
    old = ids_of(3 - ids.codes, ids.num_codes, ids.item_ids)  # every level numbered backwards
    speaks_old = lifecycle.migration(old, ids).apply_to(tokenizer)
    assert np.ptp(tokenizer.activations[0]) > 0
    np.testing.assert_array_equal(speaks_old.encode(vectors).codes, old.codes)


def test_the_version_follows_ids_and_not_the_order_of_rows():
    ids = random_ids()
    order = RANDOM.permutation(len(ids))
    shuffled = SemanticIds(ids.item_ids[order], ids.codes[order], ids.num_codes)
    assert lifecycle.ids_version(ids) == lifecycle.ids_version(shuffled)
    moved = ids.codes.copy()
    moved[3, 2] = (moved[3, 2] + 1) % 3
    others = [
        SemanticIds(ids.item_ids, moved, ids.num_codes),
        SemanticIds(ids.item_ids, ids.codes, (5, 4, 4)),
        SemanticIds(as_ids(f"x{i}" for i in range(len(ids))), ids.codes, ids.num_codes),
    ]
    assert len({lifecycle.ids_version(other) for other in (ids, *others)}) == 4


def test_what_cannot_be_mapped_says_why():
    ids, other = random_ids(), ids_of([[0, 0, 0]], (5, 4, 3), ["elsewhere"])
    with pytest.raises(DataError, match="no item in common"):
        lifecycle.migration(ids, other)
    found = lifecycle.migration(ids, random_ids(num_codes=(3, 4, 3), seed=4))
    with pytest.raises(DataError, match="level 0 of the re-fit has 3 codes, the old IDs have 5"):
        found.apply_to_codebooks([np.zeros((v, 2), np.float32) for v in (3, 4, 3)])
    with pytest.raises(DataError, match="has no codebooks"):
        found.apply_to(NoCodebooks())  # type: ignore[type-var]


def test_a_warm_start_keeps_codes_where_a_cold_one_renumbers_them():
    """Rotated vectors with a little noise: a re-fit of the embedder, as codes see it."""
    vectors, random = tiny_vectors(400), np.random.default_rng(1)
    rotation = np.linalg.qr(random.standard_normal((vectors.vectors.shape[1],) * 2))[0]
    moved = vectors.vectors @ rotation + 0.02 * random.standard_normal(vectors.vectors.shape)
    again = ItemVectors(vectors.item_ids, moved.astype(np.float32))
    config, other = (
        ResidualKMeansConfig(num_codes=(4, 6), num_levels=2, seed=seed) for seed in (0, 3)
    )
    old = ResidualKMeans.fit(vectors, config).encode(vectors)
    reference = ResidualKMeans.fit(again, other)
    items = Items(again.item_ids, pl.DataFrame())
    nobody = Histories(np.zeros(0, np.int64), np.zeros(1, np.int64))
    context = CatalogueContext(items, nobody, again, earlier_ids=old)
    warm = ResidualKMeans.fit(again, config, context)
    kept = lifecycle.churn(old, warm.encode(again)).kept
    assert kept[0] == 1.0 and kept[1] > 0.8
    assert kept[1] > lifecycle.churn(old, reference.encode(again)).kept_relabelled[1]
    errors = [np.square(t.decode(t.encode(again).codes) - moved).sum() for t in (warm, reference)]
    assert errors[0] < 1.1 * errors[1]


def test_a_warm_start_takes_items_that_came_and_went_and_more_codes_than_before():
    vectors = tiny_vectors(60)
    old = random_ids(40, (4, 4))  # other items, none of them in common
    items = Items(vectors.item_ids, pl.DataFrame())
    nobody = Histories(np.zeros(0, np.int64), np.zeros(1, np.int64))
    context = CatalogueContext(items, nobody, vectors, earlier_ids=old)
    fitted = ResidualKMeans.fit(vectors, ResidualKMeansConfig(num_codes=6, num_levels=3), context)
    assert np.isfinite(fitted.codebooks[0]).all()
    assert len(np.unique(fitted.encode(vectors).codes[:, 0])) >= 4


class NoCodebooks:
    config = None

    def arrays(self):
        return {"mean": np.zeros(2)}

    def state(self):
        return {}
