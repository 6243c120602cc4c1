"""Health figures worked by hand, and the names of tree nodes."""

import numpy as np
import pytest

from sidrec.errors import DataError
from sidrec.testing.tokenizers import tiny_vectors
from sidrec.tokenizers import health as health_module
from sidrec.tokenizers.collisions import counter
from sidrec.tokenizers.health import health, prefix_purity
from sidrec.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from sidrec.tokenizers.tree import prefix_names
from sidrec.types import ItemVectors, SemanticIds, as_ids


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
    assert health_module.neighbour_agreement(follow, vectors.vectors) == 1.0
    assert health_module.neighbour_agreement(against, vectors.vectors) < 0.5
    one = ItemVectors(as_ids("a"), np.ones((1, 2), dtype=np.float32))
    assert health(ids_of((0, 0)), one).neighbour_agreement is None


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
