"""The compiled search against the beam search that it stands for, on random models."""

import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import sidrec
from sidrec.compiled import search as compiled
from sidrec.compiled.search import CompiledSearch
from sidrec.decoding.beam import beam_search
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.rules import Rules
from sidrec.errors import ConfigError, DataError, MissingExtra, ServiceError
from sidrec.generators.causal import Causal, CausalConfig
from sidrec.testing.decoding import TableGenerator
from sidrec.types import (
    PAD,
    CatalogueContext,
    Histories,
    HistoryBatch,
    Items,
    ItemVectors,
    SemanticIds,
    as_ids,
)

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

NUM_ITEMS = 200
NUM_CODES = (12, 9, 7)
SMALL = CausalConfig(width=16, num_heads=2, depth_hidden=16, max_length=8)
MODELS = {
    "plain": {},
    "deep": {"num_layers": 3, "num_heads": 4},
    "codes_alone": {"node_vectors": False, "item_embedding": False},
}
IDS = ("distinct", "shared", "ending")


def ids_of(kind):
    """Random IDs: each item its own, some shared, or some that end early."""
    random = np.random.default_rng(3)
    places = random.choice(int(np.prod(NUM_CODES)), NUM_ITEMS, replace=kind == "shared")
    codes_NL = np.stack(np.unravel_index(places, NUM_CODES), axis=1).astype(np.int64)
    if kind == "shared":
        codes_NL[::3] = codes_NL[0]
    if kind == "ending":
        codes_NL[::4, 2] = -1
        codes_NL[::12, 1] = -1
    return SemanticIds(as_ids(range(NUM_ITEMS)), codes_NL, NUM_CODES)


def model_of(ids, seed=0, **changes):
    """An untrained generator whose every weight is far from its start."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((len(ids), 10)).astype(np.float32)
    items = Items(ids.item_ids, pl.DataFrame({"item_id": ids.item_ids.astype(str)}))
    context = CatalogueContext(
        items, Histories.from_lists([]), ItemVectors(ids.item_ids, vectors), ids
    )
    generator = Causal.build(context, replace(SMALL, **changes)).eval()
    with torch.no_grad():
        torch.manual_seed(seed)
        for weight in generator.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return generator


def batch_of(lists, generator):
    return HistoryBatch.from_histories(
        Histories.from_lists(lists), max_length=generator.max_length
    ).last(generator.max_length)


def histories(count, seed=0):
    """Histories of 1 to 12 items, some with repeats; the first has one item."""
    random = np.random.default_rng(seed)
    lengths = [1, *random.integers(1, 13, size=count - 1)]
    return [random.integers(NUM_ITEMS, size=length) for length in lengths]


def assert_same(found, wanted):
    """Same items in the same order, but for neighbours whose scores are equal to rounding."""
    np.testing.assert_allclose(found.scores_BK, wanted.scores_BK, rtol=1e-5, atol=2e-5)
    moved = found.rows_BK != wanted.rows_BK
    for request, place in zip(*moved.nonzero(), strict=True):
        scores_K = wanted.scores_BK[request]
        gaps_K = np.abs(scores_K - scores_K[place])
        assert (gaps_K < 2e-5).sum() > 1, (found.rows_BK[request], wanted.rows_BK[request])
        assert sorted(found.rows_BK[request]) == sorted(wanted.rows_BK[request])


@pytest.fixture(scope="module")
def plain():
    generator = model_of(ids_of("distinct"))
    index = PrefixIndex.build(ids_of("distinct"))
    return generator, index, CompiledSearch(generator, index)


@pytest.mark.parametrize(("kind", "name"), [
    ("distinct", "plain"), ("distinct", "deep"), ("distinct", "codes_alone"),
    ("shared", "plain"), ("ending", "plain"), ("ending", "deep"),
])  # fmt: skip
def test_finds_what_the_beam_search_finds_with_any_rules(kind, name):
    ids = ids_of(kind)
    generator, index = model_of(ids, **MODELS[name]), PrefixIndex.build(ids)
    weights_N = None if kind == "distinct" else torch.arange(NUM_ITEMS) + 1.0
    search = CompiledSearch(generator, index, weights_N)
    keep_N = np.random.default_rng(5).random(NUM_ITEMS) < 0.4
    for size, k, beam_width in ((1, 3, 1), (1, 10, 20), (5, 20, 7), (32, 10, 30)):
        lists = histories(size, seed=size)
        batch = batch_of(lists, generator)
        some = [rows[:3] for rows in lists]
        for rules in (None, Rules(exclude=lists), Rules(keep_N=keep_N),
                      Rules(exclude=some, keep_N=keep_N)):  # fmt: skip
            asked = {"k": k, "beam_width": beam_width, "rules": rules}
            wanted = beam_search(generator, batch, index, weights_N=weights_N, **asked)
            assert_same(search.search(batch, **asked), wanted)


def test_rules_that_leave_little_or_nothing_leave_the_same(plain):
    generator, index, search = plain
    batch = batch_of([[5], [6, 7, 6]], generator)
    everything = np.arange(NUM_ITEMS)
    nothing_N = np.zeros(NUM_ITEMS, dtype=bool)
    one_N = nothing_N.copy()
    one_N[9] = True
    for rules in (
        Rules(exclude=[everything, everything[:-2]]),
        Rules(exclude=[[NUM_ITEMS + 4, -1, 3], [3, 3]]),
        Rules(keep_N=nothing_N),
        Rules(keep_N=one_N),
        Rules(keep_N=one_N, exclude=[[9], [8]]),
    ):
        asked = {"k": 5, "beam_width": 10, "rules": rules}
        wanted = beam_search(generator, batch, index, **asked)
        assert_same(search.search(batch, **asked), wanted)
    assert (search.search(batch, k=5, beam_width=5, rules=rules).rows_BK[0] == PAD).all()
    with pytest.raises(DataError, match="one list for each of 2 requests"):
        search.search(batch, k=5, beam_width=5, rules=Rules(exclude=[[1]]))
    with pytest.raises(ConfigError, match="k must be at least 1"):
        search.search(batch, k=0, beam_width=5)


def test_an_empty_history_is_read_as_the_generator_reads_it(plain):
    generator, index, search = plain
    batch = batch_of([[], [3, 4]], generator)
    wanted = beam_search(generator, batch, index, k=10, beam_width=20)
    assert_same(search.search(batch, k=10, beam_width=20), wanted)


def test_a_wide_beam_of_a_large_batch_takes_the_other_way_to_the_nodes(plain):
    generator, index, search = plain
    batch = batch_of(histories(64), generator)
    wanted = beam_search(generator, batch, index, k=50, beam_width=NUM_ITEMS)
    assert_same(search.search(batch, k=50, beam_width=NUM_ITEMS), wanted)


def test_items_that_nobody_takes_twice_leave_the_tree():
    ids = ids_of("distinct")
    generator, index = model_of(ids), PrefixIndex.build(ids)
    with torch.no_grad():
        generator.repeat_bias.weight.fill_(-3.0)
    batch = batch_of(histories(16), generator)
    asked = {"k": NUM_ITEMS, "beam_width": NUM_ITEMS}
    wanted = beam_search(generator, batch, index, **asked)
    assert_same(CompiledSearch(generator, index).search(batch, **asked), wanted)


def test_deleted_items_are_gone_and_do_not_count(plain):
    generator, index, _ = plain
    smaller = index.delete(np.arange(0, NUM_ITEMS, 3))
    assert not smaller.tree.pristine
    search = CompiledSearch(generator, smaller)
    lists = histories(8)
    batch = batch_of(lists, generator)
    asked = {"k": 10, "beam_width": 20, "rules": Rules(exclude=lists)}
    found = search.search(batch, **asked)
    assert_same(found, beam_search(generator, batch, smaller, **asked))
    assert (found.rows_BK % 3 != 0).all()


def test_weights_that_change_are_followed():
    ids = ids_of("distinct")
    generator, index = model_of(ids), PrefixIndex.build(ids)
    search, batch = CompiledSearch(generator, index), batch_of(histories(4), generator)
    before = search.search(batch, k=10, beam_width=20)
    generator.load_state_dict(model_of(ids, seed=1).state_dict())
    found = search.search(batch, k=10, beam_width=20)
    assert_same(found, beam_search(generator, batch, index, k=10, beam_width=20))
    assert (found.rows_BK != before.rows_BK).any()


def test_what_cannot_be_compiled_says_what_to_do(plain, monkeypatch):
    generator, index, _ = plain
    with pytest.raises(ConfigError, match="only causal has one, got tablegenerator"):
        CompiledSearch(TableGenerator(index.widths), index)
    experts = model_of(ids_of("distinct"), num_experts=2)
    with pytest.raises(ConfigError, match="num_experts = 1"):
        CompiledSearch(experts, index)
    others = PrefixIndex.build(ids_of("shared"))
    with pytest.raises(ConfigError, match="other items"):
        CompiledSearch(generator, others)
    overlaid = index.delete(np.array([0])).insert(np.array([NUM_ITEMS]), np.array([[0, 0, 0]]))
    with pytest.raises(ConfigError, match="keeps new ones apart"):
        CompiledSearch(generator, overlaid)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"pip install 'sidrec\[compiled\]'"):
        CompiledSearch(generator, index)


def test_a_runtime_that_computes_something_else_is_refused(plain, monkeypatch):
    generator, index, _ = plain
    other = model_of(ids_of("distinct"), seed=1)
    plain_session = compiled.session_of
    monkeypatch.setattr(compiled, "session_of", lambda _: plain_session(other))
    with pytest.raises(ServiceError, match="scores are not those of PyTorch"):
        CompiledSearch(generator, index).check()


# ------------------------------------------------------------------ the recommender


@pytest.fixture(scope="module")
def pair(tiny):
    """A bundle without and with its compiled search."""
    return sidrec.load(tiny.run.bundle, device="cpu"), sidrec.load(
        tiny.run.bundle, device="cpu", compiled=True
    )


def test_a_recommender_answers_alike_by_its_generator_and_by_a_fusion(pair, tiny):
    eager, fast = pair
    assert fast.compiled and not eager.compiled
    history = list(tiny.run.example_history())
    asked = [history, history[:1], [], history[::-1]]
    for system in ("generator", "hybrid"):
        for rules in ({}, {"exclude_seen": False}, {"exclude": history[:1]}):
            wanted = eager.recommend(histories=asked, k=8, system=system, **rules)
            found = fast.recommend(histories=asked, k=8, system=system, **rules)
            assert found["item_id"].to_list() == wanted["item_id"].to_list()
            assert found["score"].to_numpy() == pytest.approx(wanted["score"].to_numpy(), abs=1e-4)


def test_new_items_are_found_without_compiling_again(pair, tiny, monkeypatch):
    eager, fast = pair
    first = eager.items.attributes.head(2)
    new = first.with_columns(pl.Series("item_id", ["new1", "new2"]))
    assert fast.compiled_search is not None
    monkeypatch.setattr(compiled, "opened", None)  # the graph stays as it is
    eager, fast = eager.add_items(new), fast.add_items(new)
    assert fast.compiled and fast.compiled_search is not None
    histories = [["new1", "new2"], list(tiny.run.example_history())]
    wanted = eager.recommend(histories=histories, k=len(eager.items), system="generator")
    found = fast.recommend(histories=histories, k=len(eager.items), system="generator")
    assert found["item_id"].to_list() == wanted["item_id"].to_list()
    assert {"new1", "new2"} <= set(found["item_id"])


def test_a_trace_or_a_length_penalty_stays_with_the_beam_search(pair):
    eager, fast = pair
    batch = batch_of([[1, 2]], fast.generator.value)
    levels = []
    fast.generate(batch, 3, trace=levels)
    assert len(levels) == fast.index.num_levels
    found = fast.generate(batch, 5, length_penalty=1.0).scores_BK
    wanted = eager.generate(batch, 5, length_penalty=1.0).scores_BK
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ConfigError, match="renormalise = true"):
        replace(eager, renormalise=False).with_compiled()
    with pytest.raises(ConfigError, match="length_penalty = 0"):
        replace(eager, length_penalty=0.5).with_compiled()
