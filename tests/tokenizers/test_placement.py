"""Transport and capacities: marginals, optimality on tiny prefixes, what never moves."""

import json
from collections import Counter
from dataclasses import replace
from itertools import permutations, product
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec import config
from sidrec.errors import ConfigError, DataError
from sidrec.recipe import COLLISIONS, RunConfig
from sidrec.recommender import load
from sidrec.tokenizers import collisions
from sidrec.tokenizers.collisions import CapacityConfig, SinkhornConfig
from sidrec.tokenizers.placement import Taken, spread, transport_plan
from sidrec.tokenizers.quantisation import quantise
from sidrec.types import ItemVectors, SemanticIds, as_ids


def tokenizer_of(*codebooks):
    books = tuple(np.asarray(book, dtype=np.float32) for book in codebooks)
    sizes = tuple(map(len, books))

    def encode(vectors):
        return SemanticIds(vectors.item_ids, quantise(vectors.vectors, books)[0], sizes)

    return SimpleNamespace(
        codebooks=books, num_codes=sizes, encode=encode, project=lambda vectors: vectors.vectors
    )


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), max_size=12), st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_taken_under_a_prefix_is_what_items_hold_there(ids, data):
    taken = Taken(np.array(ids, dtype=np.int64).reshape(-1, 3))
    asked = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=6))
    for prefix in asked:
        assert taken[prefix] == {last for *first, last in ids if tuple(first) == prefix}
        taken[prefix].add(7)
        assert 7 in taken[prefix]  # what is given away stays given
        taken[prefix].remove(7)
    assert taken.num_ids() == len(set(ids)) and taken.num_items == len(ids)


def line(points, names=None):
    """Items on a line."""
    vectors = np.asarray(points, dtype=np.float32)[:, None]
    return ItemVectors(as_ids(names or range(len(points))), vectors)


def world(num_items, seed):
    """Random items and three random codebooks of 3, 4 and 4 codes; some items are duplicates."""
    random = np.random.default_rng(seed)
    tokenizer = tokenizer_of(*(random.standard_normal((size, 2)) for size in (3, 4, 4)))
    points = np.round(random.standard_normal((num_items, 2)), 1).astype(np.float32)
    return tokenizer, ItemVectors(as_ids(random.permutation(num_items)), points)


def loads(ids, depth):
    return Counter(map(tuple, ids.codes[:, :depth].tolist()))


ON_A_LINE = tokenizer_of([[0.0], [100.0]], [[0.0], [1.0], [2.0]])


def test_the_plan_of_transport_has_uniform_marginals():
    costs = np.random.default_rng(0).random((7, 4))
    plan = transport_plan(costs, epsilon=0.1, num_iters=500)
    np.testing.assert_allclose(plan.sum(axis=1), 1 / 7, rtol=1e-12)
    np.testing.assert_allclose(plan.sum(axis=0), 1 / 4, rtol=1e-6)


def test_the_plan_depends_on_neither_unit_nor_offset_of_the_costs():
    costs = np.random.default_rng(1).random((5, 3))
    plan = transport_plan(costs, epsilon=0.2, num_iters=60)
    np.testing.assert_allclose(transport_plan(7 * costs + 3, 0.2, 60), plan, rtol=1e-9)
    assert np.isfinite(transport_plan(np.zeros((2, 2)), 0.003, 50)).all()


@pytest.mark.parametrize("seed", range(5))
def test_with_little_entropy_the_plan_is_the_best_of_all_permutations(seed):
    costs = np.random.default_rng(seed).random((5, 5))
    plan = transport_plan(costs, epsilon=0.01, num_iters=2000)
    best = min(permutations(range(5)), key=lambda p: sum(costs[i, c] for i, c in enumerate(p)))
    np.testing.assert_array_equal(plan.argmax(axis=1), best)
    np.testing.assert_array_equal(spread(costs, 0.01, 2000), best)


def test_few_rows_take_near_columns_and_many_rows_fill_them_evenly():
    costs = np.abs(np.array([[0.0], [0.1]]) - np.linspace(0, 1, 11))  # both are nearest to 0
    np.testing.assert_array_equal(np.sort(spread(costs, 0.003, 50)), [0, 1])
    many = np.random.default_rng(0).random((60, 6))
    assert set(np.bincount(spread(many, 0.01, 500))) <= {9, 10, 11}


def test_sinkhorn_parts_two_items_of_one_id_and_moves_nobody_else():
    vectors = line([0.0, 0.3, 1.9, 101.0])
    ids = ON_A_LINE.encode(vectors)
    np.testing.assert_array_equal(ids.codes, [[0, 0], [0, 0], [0, 2], [1, 1]])
    after, report = collisions.sinkhorn(ids, ON_A_LINE, vectors)
    np.testing.assert_array_equal(after.codes, [[0, 0], [0, 1], [0, 2], [1, 1]])
    assert (report.num_moved, report.num_rounds, report.share_after) == (1, 1, 0.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10_000))
def test_sinkhorn_keeps_all_codes_but_the_last_and_only_moves_items_that_collide(num_items, seed):
    tokenizer, vectors = world(num_items, seed)
    ids = tokenizer.encode(vectors)
    after, report = collisions.sinkhorn(ids, tokenizer, vectors)
    np.testing.assert_array_equal(after.codes[:, :-1], ids.codes[:, :-1])
    alone = ids.group_sizes_N == 1
    np.testing.assert_array_equal(after.codes[alone], ids.codes[alone])
    assert report.share_after == after.collision_share() <= report.share_before
    order = np.random.default_rng(seed).permutation(num_items)
    shuffled = ItemVectors(vectors.item_ids[order], vectors.vectors[order])
    again, _ = collisions.sinkhorn(tokenizer.encode(shuffled), tokenizer, shuffled)
    np.testing.assert_array_equal(again.codes, after.codes[order])


def test_sinkhorn_parts_all_distinct_items_where_there_is_room():
    random = np.random.default_rng(2)
    tokenizer = tokenizer_of(np.zeros((1, 3)), random.standard_normal((32, 3)))
    vectors = ItemVectors(as_ids(range(20)), (0.2 * random.standard_normal((20, 3))).astype("f4"))
    ids = tokenizer.encode(vectors)
    _, report = collisions.sinkhorn(ids, tokenizer, vectors)
    assert report.share_before > 0.3 and report.share_after == 0
    matched, best = collisions.reassign(ids, tokenizer, vectors)
    assert matched.collision_share() == 0
    assert 0 < best.extra_distortion <= report.extra_distortion < 5 * best.extra_distortion


def test_sinkhorn_reports_duplicates_and_full_prefixes_as_left():
    _, report = collisions.sinkhorn(ON_A_LINE.encode(line([5.0] * 2)), ON_A_LINE, line([5.0] * 2))
    assert report.share_after == 1.0 and report.num_moved == 0
    crowd = line([0.0, 0.1, 0.2, 0.3, 0.4, 0.45])  # six items, three codes
    smooth = SinkhornConfig(epsilon=0.05, num_iters=500)
    _, report = collisions.sinkhorn(ON_A_LINE.encode(crowd), ON_A_LINE, crowd, smooth)
    assert report.share_after == 1.0 and report.largest_after == 2 < report.largest_before


def test_new_items_are_spread_around_the_old_ones():
    existing = ON_A_LINE.encode(line([0.0, 2.0]))
    new = line([0.0, 101.0], names=["x", "y"])
    added, _ = collisions.assign_new(existing, ON_A_LINE, new, "sinkhorn")
    np.testing.assert_array_equal(added.codes, [[0, 1], [1, 1]])
    full = ON_A_LINE.encode(line([0.0, 1.0, 2.0]))
    added, report = collisions.assign_new(full, ON_A_LINE, new, "sinkhorn")
    np.testing.assert_array_equal(added.codes, [[0, 0], [1, 1]])  # nowhere to go under prefix 0
    assert report.num_moved == 0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(0, 10_000), st.integers(1, 3), st.integers(0, 9), st.booleans()
)
def test_no_prefix_holds_more_than_its_capacity(num_items, seed, depth, slack, unique):
    tokenizer, vectors = world(num_items, seed)
    num_prefixes = int(np.prod(tokenizer.num_codes[:depth]))
    capacity = -(-num_items // num_prefixes) + slack
    if unique:
        capacity = min(capacity, 48 // num_prefixes)
    ids = tokenizer.encode(vectors)
    limited = CapacityConfig(capacity=capacity, depth=depth, unique=unique)
    after, report = collisions.capacity(ids, tokenizer, vectors, limited)
    assert max(loads(after, depth).values()) == report.largest_prefix_after <= capacity
    assert report.largest_prefix_before == max(loads(ids, depth).values())
    assert not unique or after.collision_share() == 0
    for prefix, num_held in loads(ids, depth).items():  # a crowded one ends full of its own
        rows = (ids.codes[:, :depth] == prefix).all(axis=1)
        stayed = (after.codes[rows, :depth] == prefix).all(axis=1)
        assert stayed.sum() == min(num_held, capacity)
        if not unique:
            np.testing.assert_array_equal(after.codes[rows][stayed], ids.codes[rows][stayed])


def test_the_worst_fitting_items_go_to_the_nearest_prefix_with_room():
    tokenizer = tokenizer_of([[0.0], [10.0], [30.0]], [[0.0], [1.0]])
    vectors = line([0.0, 1.0, 2.0, 3.0, 10.0, 11.0])
    limited = CapacityConfig(capacity=2, depth=1, unique=False)
    after, report = collisions.capacity(tokenizer.encode(vectors), tokenizer, vectors, limited)
    # 2 and 3 fit worst into prefix 0; prefix 10 is full, so both go to 30, quantised anew there
    np.testing.assert_array_equal(after.codes[:, 0], [0, 0, 2, 2, 1, 1])
    np.testing.assert_array_equal(after.codes[2:4, 1], [0, 0])
    assert (report.num_moved_prefix, report.largest_prefix_before) == (2, 4)


def test_one_item_too_many_takes_the_nearest_prefix_of_all():
    random = np.random.default_rng(4)
    tokenizer = tokenizer_of(random.standard_normal((4, 2)), random.standard_normal((5, 2)))
    vectors = ItemVectors(as_ids("ab"), np.zeros((2, 2), dtype=np.float32))
    limited = CapacityConfig(capacity=1, depth=2, unique=False)
    after, _ = collisions.capacity(tokenizer.encode(vectors), tokenizer, vectors, limited)
    first, second = tokenizer.codebooks
    sums = {(a, b): np.square(first[a] + second[b]).sum() for a, b in product(range(4), range(5))}
    del sums[tuple(after.codes[0].tolist())]
    assert tuple(after.codes[1].tolist()) == min(sums, key=sums.__getitem__)


def test_by_default_capacity_gives_every_item_an_id_and_leaves_quiet_prefixes_alone():
    tokenizer, vectors = world(12, 7)
    ids = tokenizer.encode(vectors)
    after, report = collisions.capacity(ids, tokenizer, vectors)
    assert report.share_after == 0 and report.largest_prefix_after <= 4
    num_quiet = 0
    for prefix in loads(ids, 2):  # no collision, and nobody came or went
        held, holds = ((i.codes[:, :2] == prefix).all(axis=1) for i in (ids, after))
        if (ids.group_sizes_N[held] == 1).all() and np.array_equal(held, holds):
            np.testing.assert_array_equal(after.codes[held], ids.codes[held])
            num_quiet += 1
    assert num_quiet


def test_order_of_rows_does_not_matter_to_capacity():
    vectors = line([0.0] * 5, names=["e", "a", "d", "b", "c"])
    limited = CapacityConfig(capacity=3, depth=1)
    first, _ = collisions.capacity(ON_A_LINE.encode(vectors), ON_A_LINE, vectors, limited)
    np.testing.assert_array_equal(first.codes[:, 0], [1, 0, 1, 0, 0])  # a, b, c stay
    order = np.array([3, 0, 4, 1, 2])
    shuffled = ItemVectors(vectors.item_ids[order], vectors.vectors[order])
    second, _ = collisions.capacity(ON_A_LINE.encode(shuffled), ON_A_LINE, shuffled, limited)
    np.testing.assert_array_equal(second.codes, first.codes[order])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["sinkhorn", "reassign", "capacity"]))
def test_new_items_never_take_an_id_that_is_held(seed, policy):
    tokenizer, vectors = world(24, seed)
    old = ItemVectors(vectors.item_ids[:12], vectors.vectors[:12])
    new = ItemVectors(vectors.item_ids[12:], vectors.vectors[12:])
    own = {"capacity": CapacityConfig(capacity=9, depth=1)}.get(policy)
    existing, _ = collisions.capacity(
        tokenizer.encode(old), tokenizer, old, CapacityConfig(capacity=9, depth=1)
    )
    before = existing.codes.copy()
    added, _ = collisions.assign_new(existing, tokenizer, new, policy, own)
    np.testing.assert_array_equal(existing.codes, before)
    if policy == "sinkhorn":
        np.testing.assert_array_equal(added.codes[:, :-1], tokenizer.encode(new).codes[:, :-1])
        return
    joined = np.concatenate([existing.codes, added.codes])
    assert len(np.unique(joined, axis=0)) == 24
    if policy == "capacity":
        assert np.bincount(joined[:, 0]).max() <= 9


def test_what_cannot_be_done_is_refused_with_numbers():
    vectors = line(np.linspace(0, 100, 5))
    ids = ON_A_LINE.encode(vectors)
    with pytest.raises(DataError, match=r"5 items do not fit into 4 free places, 2 under each"):
        collisions.capacity(ids, ON_A_LINE, vectors, CapacityConfig(capacity=2, depth=1))
    with pytest.raises(ConfigError, match=r"a prefix of 1 codes has 3 IDs"):
        collisions.capacity(ids, ON_A_LINE, vectors, CapacityConfig(capacity=4, depth=1))
    with pytest.raises(ConfigError, match=r"depth = 3 but IDs have 2 levels"):
        collisions.capacity(ids, ON_A_LINE, vectors, CapacityConfig(depth=3))
    limited = CapacityConfig(capacity=3, depth=1)
    existing, _ = collisions.capacity(ids, ON_A_LINE, vectors, limited)
    with pytest.raises(DataError, match=r"2 items do not fit into 1 free places"):
        collisions.assign_new(existing, ON_A_LINE, line([0, 1], "xy"), "capacity", limited)
    short = SemanticIds(as_ids("a"), np.array([[0, -1]]), (2, 3))
    for policy in (collisions.sinkhorn, collisions.capacity):
        with pytest.raises(DataError, match="one length"):
            policy(short, ON_A_LINE, line([0.0]))
    for wrong in ({"epsilon": 0.0}, {"num_rounds": 0}, {"num_iters": 0}):
        with pytest.raises(ConfigError, match=r"sinkhorn\."):
            SinkhornConfig(**wrong)
    for wrong in ({"capacity": 0}, {"depth": 0}):
        with pytest.raises(ConfigError, match=r"capacity\."):
            CapacityConfig(**wrong)


def test_a_recipe_names_a_policy_or_gives_it_a_section():
    assert RunConfig().collisions.name == RunConfig(collisions="reassign").collisions.name
    assert config.parse(RunConfig, {"collisions": "counter"}).collisions.config is None
    section = {"collisions": {"name": "capacity", "capacity": 64, "depth": 1}}
    chosen = config.parse(RunConfig, section)
    assert chosen.collisions.config == CapacityConfig(capacity=64, depth=1)
    assert config.parse(RunConfig, config.to_dict(chosen)) == chosen
    with pytest.raises(ConfigError, match=r"collisions\.capacty is not a known key; did you mean"):
        config.parse(RunConfig, {"collisions": {"name": "capacity", "capacty": 1}})
    with pytest.raises(ConfigError, match=r"did you mean 'sinkhorn'"):
        config.parse(RunConfig, {"collisions": "sinkhron"})
    with pytest.raises(ConfigError, match=r"reassign takes no keys but name"):
        config.parse(RunConfig, {"collisions": {"name": "reassign", "epsilon": 1.0}})


def test_a_bundle_keeps_the_policy_and_its_settings_and_old_bundles_name_it(tiny, tmp_path):
    chosen = config.method(COLLISIONS, "capacity", capacity=40, depth=1)
    replace(tiny.run.recommender, collisions=chosen).save(tmp_path / "bundle")
    assert load(tmp_path / "bundle").collisions == chosen
    manifest = tmp_path / "bundle" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["state"]["collisions"] = "counter"
    manifest.write_text(json.dumps(content))
    assert load(tmp_path / "bundle").collisions == config.method(COLLISIONS, "counter")
