"""SARQ-style IDs: the identities of the card, hand-worked entropies, cold and unseen items."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter

import numpy as np
import polars as pl
import pytest

from sidrec.errors import ConfigError, DataError
from sidrec.evaluation import strata
from sidrec.testing.tokenizers import tiny_vectors
from sidrec.tokenizers import lengths
from sidrec.tokenizers.collisions import reassign
from sidrec.tokenizers.lengths import length_report
from sidrec.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from sidrec.tokenizers.sarq import Sarq, SarqConfig, branching_bits, path_bits
from sidrec.tokenizers.variable_length import lengths_of
from sidrec.types import CatalogueContext, Histories, Items, ItemVectors, SemanticIds, as_ids


def catalogue(num_items=300, dim=6, seed=0):
    random = np.random.default_rng(seed)
    centres = 4 * random.standard_normal((12, dim))
    vectors = centres[random.integers(0, 12, num_items)] + random.standard_normal((num_items, dim))
    return ItemVectors(as_ids(range(num_items)), vectors.astype(np.float32))


def context_of(vectors, counts):
    """Training events so many times each item."""
    items = Items(vectors.item_ids, pl.DataFrame({"title": list(map(str, vectors.item_ids))}))
    events = np.repeat(np.arange(len(counts)), counts)
    return CatalogueContext(items, Histories.from_lists([events]), vectors)


def skewed(num_items, seed=1):
    """A few items with most of the events, some with none."""
    random = np.random.default_rng(seed)
    return random.permutation((400 / np.arange(1, num_items + 1)).astype(np.int64))


VECTORS = catalogue()
COUNTS = skewed(len(VECTORS))
CONTEXT = context_of(VECTORS, COUNTS)


def sarq(context=CONTEXT, vectors=VECTORS, **settings):
    return Sarq.fit(vectors, SarqConfig(**{"num_codes": 8, "num_levels": 4} | settings), context)


def lengths_for(**settings):
    return lengths_of(sarq(**settings).encode(VECTORS).codes)


def grid(*sizes):
    """Every path of a full tree."""
    return np.array(list(itertools.product(*map(range, sizes))))


# Identities -------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_an_endless_budget_gives_the_fixed_length_tokenizer(smoothing):
    endless = sarq(tau=math.inf, smoothing=smoothing).encode(VECTORS)
    fixed = ResidualKMeans.fit(VECTORS, ResidualKMeansConfig(num_codes=8, num_levels=4))
    np.testing.assert_array_equal(endless.codes, fixed.encode(VECTORS).codes)
    assert (lengths_for(rule="entropy", tau=-math.inf) == 4).all()


def test_no_budget_gives_one_code_to_every_item():
    assert (lengths_for(tau=0.0) == 1).all()
    assert (lengths_for(rule="entropy", tau=math.inf) == 1).all()


@pytest.mark.parametrize(("rule", "sign"), [("surprisal", 1), ("entropy", -1)])
def test_lengths_only_grow_with_the_budget(rule, sign):
    before = np.ones(len(VECTORS), dtype=np.int64)
    seen = set()
    for tau in sign * np.linspace(0, 14, 15) - (sign < 0) * -8:
        now = lengths_for(rule=rule, tau=float(tau))
        assert (now >= before).all()
        before, seen = now, seen | set(now.tolist())
    assert seen == {1, 2, 3, 4}


def test_scaled_counts_change_nothing_without_smoothing_and_something_with_it():
    many = context_of(VECTORS, 7 * COUNTS)
    for rule in ("surprisal", "entropy"):
        settings = {"rule": rule, "smoothing": 0.0, "tau": 5.123 if rule == "surprisal" else 1.234}
        np.testing.assert_array_equal(
            lengths_for(context=many, **settings), lengths_for(**settings)
        )
    once, seven = (sarq(context=c, tau=5.0) for c in (CONTEXT, many))
    assert (once.nodes[0].bits_M != seven.nodes[0].bits_M).any()


@pytest.mark.parametrize("smoothing", [0.0, 1.0, 3.0])
def test_even_counts_on_a_full_tree_give_level_times_log2_k_bits(smoothing):
    paths = grid(4, 4, 4)
    _, numbers, bits = path_bits(paths, (4, 4, 4), np.full(64, 5.0), smoothing)
    for level, bits_M in enumerate(bits):
        np.testing.assert_allclose(bits_M, (level + 1) * 2.0, rtol=1e-12)
    for entropy_M in branching_bits(numbers, np.full(64, 5.0), smoothing):
        np.testing.assert_allclose(entropy_M, 2.0, rtol=1e-12)


def test_probabilities_of_all_paths_sum_to_one():
    for weights_N in (COUNTS.astype(float), np.zeros(300), np.ones(300)):
        for smoothing in (0.0, 1.0):
            paths = sarq(tau=1.0).full_paths(VECTORS)
            keys, _, bits = path_bits(paths, (8,) * 4, weights_N, smoothing)
            assert all(len(k) == len(b) for k, b in zip(keys, bits, strict=True))
            for bits_M in bits:
                assert np.exp2(-bits_M).sum() == pytest.approx(1)


def test_bits_and_entropies_of_a_small_tree_worked_by_hand():
    # root -> 0 (6 events), 1 (2);  0 -> 0 (6), 1 (0);  1 -> 0 (2); smoothing 1
    paths, weights = np.array([[0, 0], [0, 1], [1, 0]]), np.array([6.0, 0.0, 2.0])
    _, numbers, (first, second) = path_bits(paths, (2, 2), weights, 1.0)
    np.testing.assert_allclose(first, [-math.log2(7 / 10), -math.log2(3 / 10)])
    np.testing.assert_allclose(second, first[[0, 0, 1]] - np.log2([7 / 8, 1 / 8, 1]))
    (below,) = branching_bits(numbers, weights, 1.0)
    np.testing.assert_allclose(below, [-(7 * math.log2(7 / 8) + math.log2(1 / 8)) / 8, 0])


@pytest.mark.parametrize("rule", ["surprisal", "entropy"])
def test_lengths_equal_a_walk_over_a_dictionary_of_prefixes(rule):
    tau = 6.3 if rule == "surprisal" else 1.1
    fitted = sarq(rule=rule, tau=tau)
    paths = list(map(tuple, fitted.full_paths(VECTORS).tolist()))
    events = Counter()
    for path, count in zip(paths, COUNTS.tolist(), strict=True):
        for depth in range(5):
            events[path[:depth]] += count
    children = {}
    for prefix in events:
        if prefix:
            children.setdefault(prefix[:-1], []).append(prefix)

    def p(prefix):
        parent = prefix[:-1]
        return (events[prefix] + 1) / (events[parent] + len(children[parent]))

    def stops(prefix):
        if rule == "surprisal":
            return -sum(math.log2(p(prefix[:n])) for n in range(1, len(prefix) + 1)) >= tau
        return -sum(p(c) * math.log2(p(c)) for c in children[prefix]) <= tau

    expected = [next((n for n in range(1, 4) if stops(path[:n])), 4) for path in paths]
    np.testing.assert_array_equal(lengths_of(fitted.encode(VECTORS).codes), expected)
    assert len(set(expected)) > 2


# What it is for ---------------------------------------------------------------------------------


def test_head_items_get_longer_ids_than_tail_items_and_the_unweighted_control_does_not_know():
    weighted, control = (
        length_report(sarq(mean_length=3.5, weighted=w).encode(VECTORS), COUNTS)
        for w in (True, False)
    )
    assert weighted.groups["head"].mean_length > weighted.groups["tail"].mean_length + 0.4
    assert weighted.mean_length_events > weighted.mean_length_items + 0.2
    assert weighted.popularity_correlation > 0.2 > 0.1 > abs(control.popularity_correlation)


@pytest.mark.parametrize("rule", ["surprisal", "entropy"])
@pytest.mark.parametrize("wanted", [1.0, 1.7, 2.5, 3.3, 4.0])
def test_tau_is_chosen_for_a_wanted_mean_length(rule, wanted):
    fitted = sarq(rule=rule, mean_length=wanted)
    got = lengths_of(fitted.encode(VECTORS).codes).mean()
    assert got == pytest.approx(wanted, abs=0.05 if rule == "surprisal" else 0.3)
    np.testing.assert_array_equal(
        lengths_for(rule=rule, tau=fitted.tau), lengths_of(fitted.encode(VECTORS).codes)
    )


def test_after_reassign_the_budget_decides_how_long_ids_are_and_not_who_shares_a_prefix():
    ids = {}
    for wanted in (1.5, 3.5):
        fitted = sarq(mean_length=wanted)
        ids[wanted], report = reassign(fitted.encode(VECTORS), fitted, VECTORS)
        assert report.share_after == 0
    short, long = (lengths_of(ids[wanted].codes) for wanted in (1.5, 3.5))
    assert (short <= long).all() and short.sum() < long.sum()
    for depth in (1, 2, 3):  # items are together in the one exactly where they are in the other
        groups = [np.unique(ids[w].codes[:, :depth], axis=0, return_inverse=True)[1] for w in ids]
        pairs = np.unique(np.column_stack([group.ravel() for group in groups]), axis=0)
        assert len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1]))


def test_without_a_wish_ids_have_three_quarters_of_the_levels():
    assert lengths_for().mean() == pytest.approx(3, abs=0.03)


def test_without_a_context_every_item_counts_once_and_the_tokenizer_says_so():
    alone, control = sarq(context=None), sarq(weighted=False)
    np.testing.assert_array_equal(alone.encode(VECTORS).codes, control.encode(VECTORS).codes)
    assert alone.num_events is control.num_events is None
    assert sarq().num_events == COUNTS.sum()


def test_only_training_events_set_lengths_and_items_are_found_by_id():
    order = np.random.default_rng(3).permutation(len(VECTORS))
    items = Items(VECTORS.item_ids[order], CONTEXT.items.attributes[order])
    events = np.argsort(order)[CONTEXT.train.items_E]
    shuffled = CatalogueContext(items, Histories.from_lists([events]), VECTORS)
    np.testing.assert_array_equal(lengths_for(context=shuffled), lengths_for())


# Cold and unseen items --------------------------------------------------------------------------


def test_items_without_events_get_ids_even_when_nobody_bought_anything():
    cold = context_of(VECTORS, np.zeros(300, dtype=np.int64))
    for smoothing in (0.0, 1.0):
        fitted = sarq(context=cold, smoothing=smoothing, mean_length=2.0)
        assert fitted.num_events == 0
        assert lengths_of(fitted.encode(VECTORS).codes).mean() == pytest.approx(2, abs=0.3)


def test_an_unseen_item_ends_at_the_latest_where_no_fitted_item_is():
    fitted = sarq(tau=math.inf)
    prefixes = {tuple(p[:n]) for p in fitted.full_paths(VECTORS).tolist() for n in range(1, 5)}
    new = catalogue(200, seed=7)
    ids, paths = fitted.encode(new), fitted.full_paths(new)
    for codes, path in zip(ids.codes.tolist(), paths.tolist(), strict=True):
        expected = next((n for n in range(1, 5) if tuple(path[:n]) not in prefixes), 4)
        assert codes == path[:expected] + [-1] * (4 - expected)
    assert len(set(lengths_of(ids.codes).tolist())) > 1


def test_an_unseen_item_on_a_known_path_gets_the_length_of_the_items_there():
    fitted = sarq(tau=6.0)
    twin = ItemVectors(as_ids(f"new {i}" for i in range(300)), VECTORS.vectors)
    np.testing.assert_array_equal(fitted.encode(twin).codes, fitted.encode(VECTORS).codes)


def test_bits_of_an_id_are_those_of_its_last_known_prefix():
    fitted = sarq(tau=6.0)
    ids = fitted.encode(VECTORS)
    paths = fitted.full_paths(VECTORS)
    _, numbers, bits = path_bits(paths, (8,) * 4, COUNTS.astype(float), 1.0)
    ends = lengths_of(ids.codes) - 1
    expected = [bits[level][numbers[row, level]] for row, level in enumerate(ends)]
    np.testing.assert_allclose(fitted.bits(ids), expected)
    assert (np.array(expected)[ends < 3] >= 6).all()


# Saving, other quantisers, bad settings ---------------------------------------------------------


@pytest.mark.parametrize("name", ["residual_kmeans", "balanced_kmeans"])
def test_saved_and_loaded_ids_and_vectors_are_equal_with_any_quantiser(name):
    config = SarqConfig(
        num_codes=8, num_levels=3, quantiser=name, quantiser_settings={"num_iters": 3}, tau=math.inf
    )
    fitted = Sarq.fit(VECTORS, config, CONTEXT)
    state = json.loads(json.dumps(fitted.state(), allow_nan=False))
    again = Sarq.from_arrays(config, fitted.arrays(), state)
    new = catalogue(50, seed=5)
    codes = fitted.encode(new).codes
    np.testing.assert_array_equal(again.encode(new).codes, codes)
    np.testing.assert_array_equal(again.decode(codes), fitted.decode(codes))
    assert (again.tau, again.num_events) == (fitted.tau, fitted.num_events)
    assert fitted.quantiser.config.num_iters == 3


def test_a_vector_is_rebuilt_from_the_codes_its_id_has():
    fitted = sarq(tau=6.0)
    codes = fitted.encode(VECTORS).codes
    rebuilt, lengths_N = fitted.decode(codes), lengths_of(codes)
    for row in range(20):
        expected = fitted.quantiser.decode(codes[row : row + 1, : lengths_N[row]])[0]
        np.testing.assert_allclose(rebuilt[row], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 1.0, "mean_length": 2.0}, "got both"),
        ({"tau": math.nan}, "got nan"),
        ({"mean_length": 0.5}, r"mean_length must be in \[1, num_levels = 4\]"),
        ({"mean_length": 5.0}, r"got 5.0"),
        ({"smoothing": -1.0}, "at least 0"),
        ({"quantiser": "sarq"}, "another tokenizer"),
        ({"quantiser": "residual_kmean"}, "did you mean 'residual_kmeans'"),
        ({"quantiser_settings": {"seed": 3}}, "set seed in sarq itself"),
        ({"quantiser_settings": {"num_iter": 3}}, "did you mean 'num_iters'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        sarq(**settings)


def test_too_few_items_and_other_widths_are_refused_by_the_quantiser():
    with pytest.raises(DataError, match="at least num_codes = 8 items"):
        Sarq.fit(tiny_vectors(5), SarqConfig(num_codes=8))
    with pytest.raises(DataError, match="width 6, got 8"):
        sarq().encode(tiny_vectors(5))


# The report of lengths --------------------------------------------------------------------------


def test_the_length_report_worked_by_hand():
    codes = np.array([[0, 0, 0], [0, 0, 1], [1, -1, -1], [1, -1, -1], [2, 0, -1]])
    ids = SemanticIds(as_ids("abcde"), codes, (3, 2, 2))
    counts = np.array([30, 10, 0, 2, 8])
    report = length_report(ids, counts, bits_N=np.array([1.0, 2, 3, 4, 5]))
    assert report.mean_length_items == pytest.approx(10 / 5)
    assert report.mean_length_events == pytest.approx((90 + 30 + 2 + 16) / 50)
    assert report.mean_symbols_items == pytest.approx((3 + 3 + 2 + 2 + 3) / 5)
    assert report.items_of_length == (2, 1, 2) and report.share_at_cap == pytest.approx(0.4)
    assert (report.total_bits, report.bits_per_item) == (15, 3)
    assert report.bits_per_event == pytest.approx((30 + 20 + 8 + 40) / 50)
    assert report.largest_group == 2 and report.group_size_of_a_hit == pytest.approx(52 / 50)
    assert report.popularity_correlation == pytest.approx(
        np.corrcoef(np.log1p(counts), [3, 3, 1, 1, 2])[0, 1]
    )
    assert {name: group.num_items for name, group in report.groups.items()} == {
        "cold": 1, "tail": 1, "mid": 2, "head": 1,
    }  # fmt: skip
    assert report.groups["cold"].collision_share == 1 and report.groups["mid"].collision_share == 0
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_report_without_events_or_of_one_length_leaves_out_what_is_undefined():
    ids = SemanticIds(as_ids("ab"), np.array([[0], [1]]), (2,))
    report = length_report(ids, np.zeros(2, dtype=np.int64))
    assert report.popularity_correlation is None and report.mean_length_events is None
    assert report.total_bits is None and list(report.groups) == ["cold"]
    with pytest.raises(DataError, match="2 items but 3 entries of train_counts_N"):
        length_report(ids, np.zeros(3, dtype=np.int64))


def test_popularity_groups_are_those_of_the_evaluation():
    assert list(lengths.GROUPS) == list(strata.COUNT_NAMES)
    assert list(lengths.GROUPS.values()) == [0, *strata.COUNT_EDGES]
