"""Health figures worked by hand, and the names of tree nodes."""

from dataclasses import replace

import numpy as np
import pytest

from sidrec import pipeline, recipe
from sidrec.errors import ConfigError, DataError
from sidrec.testing.tokenizers import tiny_vectors
from sidrec.tokenizers import health as health_module
from sidrec.tokenizers.collisions import counter
from sidrec.tokenizers.health import (
    chance_of,
    health,
    prefix_groups,
    prefix_purity,
    require_alive,
    top_share,
)
from sidrec.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from sidrec.tokenizers.tree import prefix_names
from sidrec.types import Histories, ItemVectors, SemanticIds, as_ids


def ids_of(*codes, num_codes=(4, 2)):
    return SemanticIds(as_ids(range(len(codes))), np.array(codes, dtype=np.int64), num_codes)


def test_usage_entropy_and_collisions_of_five_items():
    report = health(ids_of((0, 0), (0, 0), (1, 0), (1, 1), (1, 1)))
    first, second = report.levels
    assert (first.num_used, first.num_dead, second.num_dead) == (2, 2, 0)
    entropy = -(0.4 * np.log(0.4) + 0.6 * np.log(0.6))
    assert first.entropy_nats == pytest.approx(entropy)
    assert first.perplexity == pytest.approx(np.exp(entropy))
    assert report.num_ids == 3 and report.collision_rate == pytest.approx(1 - 3 / 5)
    assert report.collision_share == pytest.approx(4 / 5) and report.largest_group == 2


def test_shorter_ids_count_only_where_they_have_a_code():
    level = health(ids_of((0, -1), (0, 1), (1, -1))).levels[1]
    assert (level.num_used, level.entropy_nats) == (1, 0.0)


def test_purity_counts_the_main_category_of_each_prefix_and_skips_unknown():
    codes = np.array([[0], [0], [0], [1], [1]])
    assert prefix_purity(codes, ["a", "a", "b", "c", ""]) == pytest.approx(3 / 4)
    report = health(
        ids_of(*[(i // 25, 0) for i in range(100)]), categories=[str(i // 25) for i in range(100)]
    )
    assert report.levels[0].prefix_purity == 1.0
    assert 0.5 < report.levels[0].prefix_purity_gain < 0.8  # shuffled: a bit above 1/4


def test_reconstruction_falls_with_depth_and_is_unknown_for_a_counter():
    vectors = tiny_vectors(300)
    tokenizer = ResidualKMeans.fit(vectors, ResidualKMeansConfig(num_codes=8))
    ids, _ = counter(tokenizer.encode(vectors), tokenizer, vectors)
    errors = [lv.reconstruction_error_ratio for lv in health(ids, vectors, tokenizer).levels]
    assert errors[0] > errors[1] > errors[2] and errors[3] is None
    codes = ids.codes[:, :1]
    mean = vectors.vectors.mean(axis=0)
    expected = (
        np.square(vectors.vectors - tokenizer.decode(codes)).sum()
        / np.square(vectors.vectors - mean).sum()
    )
    assert errors[0] == pytest.approx(expected, rel=1e-4)


def test_neighbours_agree_where_codes_follow_vectors_and_not_where_they_do_not():
    vectors = tiny_vectors(200)
    follow = ids_of(*[(i % 4, 0) for i in range(200)])
    against = ids_of(*[(i // 4 % 4, 0) for i in range(200)])
    assert health_module.neighbour_agreement(follow, vectors.vectors) == [1.0, 1.0]
    assert health_module.neighbour_agreement(against, vectors.vectors)[0] < 0.5
    found = health(follow, vectors)
    assert found.neighbour_agreement == found.levels[0].neighbour_agreement == 1.0
    chance = (50 - 1) / (200 - 1)
    assert found.levels[0].neighbour_agreement_gain == pytest.approx(1 - chance)
    one = ItemVectors(as_ids("a"), np.ones((1, 2), dtype=np.float32))
    assert health(ids_of((0, 0)), one).neighbour_agreement is None


def test_cur_and_icr_are_one_count_over_two_denominators():
    found = health(ids_of((0, 0), (0, 0), (1, 0), (1, 1), (1, 1)))
    assert (found.icr, found.cur) == (3 / 5, 3 / 8)
    assert found.icr == 1 - found.collision_rate
    assert found.cur * 8 == found.icr * 5 == found.num_ids


def test_group_sizes_count_every_item_once():
    found = health(ids_of((0, 0), (0, 0), (1, 0), (1, 1), (1, 1)))
    assert found.group_sizes == ((1, 1), (2, 2)) and found.num_alone == 1
    assert sum(size * number for size, number in found.group_sizes) == found.num_items


def test_gini_is_zero_for_even_use_and_counts_dead_codes():
    even, one = health(ids_of((0, 1), (1, 1), (2, 1), (3, 1))).levels
    assert even.gini == 0.0 and one.gini == pytest.approx(1 / 2)  # all in one of two codes


def test_traffic_follows_training_events_not_items():
    ids = ids_of(*[(i, 0) for i in range(20)], num_codes=(20, 2))
    counts = np.array([91] + [0] * 10 + [1] * 9)
    level = health(ids, train_counts_N=counts).levels[0]
    assert level.gini == 0.0 and level.traffic_gini > 0.9
    assert level.traffic_top_share == pytest.approx(0.92)  # the two busiest of twenty codes
    assert health(ids).levels[0].traffic_gini is None
    assert top_share(np.ones(10, dtype=np.int64)) == pytest.approx(0.1)


def test_copurchased_pairs_that_share_a_prefix_are_counted_by_users_and_against_chance():
    ids = ids_of((0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (2, 0))
    train = Histories.from_lists([[0, 1], [0, 1], [0, 2], [0, 5]])
    found = health(ids, train=train)
    assert found.num_pairs == 3
    first, second = found.levels
    assert first.copurchase_agreement == pytest.approx(3 / 4)
    assert second.copurchase_agreement == pytest.approx(2 / 4)
    assert first.copurchase_agreement_gain == pytest.approx(3 / 4 - 8 / 30)
    assert second.copurchase_agreement_gain == pytest.approx(2 / 4 - 2 / 30)
    assert first.traffic_top_share is not None, "training counts come from the histories"


def test_chance_is_what_shuffled_ids_reach():
    groups = prefix_groups(ids_of(*[(i % 3, i % 2) for i in range(30)], num_codes=(3, 2)))
    random, pairs = np.random.default_rng(0), [(0, 1), (2, 17), (5, 6), (7, 29)]
    for level in range(2):
        shuffled = [random.permutation(groups[:, level]) for _ in range(4000)]
        share = np.mean([[g[i] == g[j] for i, j in pairs] for g in shuffled])
        assert share == pytest.approx(chance_of(np.bincount(groups[:, level])), abs=0.01)


def test_prefixes_of_ids_that_end_early_are_grouped_by_the_whole_id():
    ids = ids_of((0, -1), (0, -1), (0, 0), (1, -1))
    assert prefix_groups(ids).tolist() == [[0, 0], [0, 0], [0, 1], [1, 2]]
    found = health(ids, train=Histories.from_lists([[0, 1], [0, 2]]))
    assert [level.num_items for level in found.levels] == [4, 1]
    assert [level.num_prefixes for level in found.levels] == [2, 3] and found.num_ids == 3
    assert [level.copurchase_agreement for level in found.levels] == [1.0, 0.5]
    assert found.mean_length == 5 / 4


def test_reconstruction_of_ids_that_end_early_uses_the_codes_they_have():
    vectors = tiny_vectors(100)
    tokenizer = ResidualKMeans.fit(vectors, ResidualKMeansConfig(num_codes=8, num_levels=2))
    codes = tokenizer.encode(vectors).codes.copy()
    codes[::2, 1] = -1
    found = health(SemanticIds(vectors.item_ids, codes, (8, 8)), vectors, tokenizer)
    expected = tokenizer.decode(np.maximum(codes, 0))
    expected[::2] = tokenizer.decode(codes[::2, :1])
    assert found.levels[1].reconstruction_error_ratio == pytest.approx(
        health_module.error_ratio(vectors.vectors, expected)
    )


def test_figures_of_other_catalogues_are_refused():
    ids = ids_of((0, 0), (1, 0))
    with pytest.raises(DataError, match="2 items but 1 entries of categories"):
        health(ids, categories=["a"])
    with pytest.raises(DataError, match="item row 2 of a catalogue of 2"):
        health(ids, train=Histories.from_lists([[0, 2]]))
    assert health(ids, train=Histories.from_lists([[0], [1]])).num_pairs == 0


def test_a_collapsed_level_is_an_error_that_names_level_figures_and_cure():
    ids = ids_of(*[(i % 64, i % 2) for i in range(256)], num_codes=(64, 64))
    with pytest.raises(DataError, match=r"level 1 of rqvae collapsed: 256 .* 2 of 64 .*num_levels"):
        require_alive(ids, name="rqvae")
    require_alive(ids, least_use=0.03)
    require_alive(ids, least_use=0)
    with pytest.raises(ConfigError, match="least_use"):
        require_alive(ids, least_use=5)


def test_nearly_all_items_on_one_code_is_a_collapse_too_and_so_is_one_of_few_codes():
    skewed = [(0 if i < 900 else i % 64, 0) for i in range(1000)]
    with pytest.raises(DataError, match="level 0"):
        require_alive(ids_of(*skewed, num_codes=(64, 1)))
    with pytest.raises(DataError, match="level 1"):
        require_alive(ids_of(*[(i % 4, 0) for i in range(16)], num_codes=(4, 4)))


def test_few_items_equal_items_and_rare_levels_are_no_collapse():
    require_alive(ids_of(*[(0, 0)] * 200, num_codes=(64, 64)))
    ids = ids_of(*[(i % 2, 0) for i in range(400)], num_codes=(64, 64))
    equal = ItemVectors(ids.item_ids, np.repeat(np.eye(2, dtype=np.float32), 200, axis=0))
    require_alive(ids, equal)
    early = [(i % 64, 0 if i < 9 else -1) for i in range(400)]
    require_alive(ids_of(*early, num_codes=(64, 64)))


TEXTS = (
    "shoe red leather",
    "shoe blue leather",
    "shoe green canvas",
    "lamp red steel",
    "lamp blue steel",
    "",
)
TREE_IDS = ids_of((0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), num_codes=(3, 2))


def test_nodes_are_named_by_the_words_that_set_them_apart():
    tree = prefix_names(TREE_IDS, TEXTS, num_words=1)
    assert tree.nodes[0,].words == ("shoe",)
    assert tree.nodes[0, 0].words == ("leather",)
    assert tree.nodes[1, 1].words == ("blue",)
    assert tree.nodes[2,].words == ()


def test_the_tree_counts_items_and_ids_and_walks_parents_first():
    tree = prefix_names(TREE_IDS, TEXTS)
    assert (tree.nodes[0,].num_items, tree.nodes[0,].num_ids) == (3, 2)
    walked = [node.prefix for node in tree.walk()]
    assert walked == [(0,), (0, 0), (0, 1), (1,), (1, 0), (1, 1), (2,), (2, 0)]
    assert [node.prefix for node in tree.walk(depth=1)] == [(0,), (1,), (2,)]
    assert [node.prefix for node in tree.walk((1,))] == [(1, 0), (1, 1)]
    np.testing.assert_array_equal(tree.rows((0, 0)), [0, 1])
    assert tree.children((2, 0)) == ()


def test_a_shorter_id_ends_where_it_ends_and_texts_must_match_items():
    tree = prefix_names(ids_of((0, -1), (0, 1)), ["a word", "another"])
    assert set(tree.nodes) == {(0,), (0, 1)}
    with pytest.raises(DataError, match="2 items, 1 texts"):
        prefix_names(ids_of((0, 0), (0, 1)), ["one"])
    assert prefix_names(ids_of((0, 0)), [""]).nodes[0,].words == ()


def test_a_fit_stops_at_a_collapsed_tokenizer_and_says_how_to_go_on(tiny, monkeypatch):
    encode = ResidualKMeans.encode

    def collapsed(self, vectors):
        ids = encode(self, vectors)
        return SemanticIds(ids.item_ids, ids.codes * 0, ids.num_codes)

    monkeypatch.setattr(ResidualKMeans, "encode", collapsed)
    settings = recipe.load_config(tiny.recipe)
    with pytest.raises(DataError, match=r"level 0 of residual_kmeans .*least_code_use = 0"):
        pipeline.fit(None, settings)
    with pytest.raises(ConfigError, match="least_code_use must be in"):
        replace(settings, least_code_use=2.0)
