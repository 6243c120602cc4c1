"""Two decoders, two beams, one list: held against every half-ID scored by hand."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import sidrec
from sidrec import config, pipeline, recipe
from sidrec.decoding.exact import exact_scores
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.rules import Rules
from sidrec.errors import ConfigError, DataError
from sidrec.generators import barge
from sidrec.generators.barge import Barge, BargeConfig, Listed, union_of
from sidrec.testing.tiny_catalogue import small_config
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

NUM_ITEMS = 30
SIZES = (4, 3)
SMALL = small_config(BargeConfig)


def make_context(sizes=2 * SIZES, seed=0, codes=None):
    random = np.random.default_rng(seed)
    if codes is None:
        codes = np.stack([random.integers(0, size, NUM_ITEMS) for size in sizes], axis=1)
    ids = as_ids(range(len(codes)))
    vectors = random.standard_normal((len(codes), 5)).astype(np.float32)
    return CatalogueContext(
        Items(ids, pl.DataFrame()),
        Histories.from_lists([[0, 1, 2]]),
        ItemVectors(ids, vectors),
        SemanticIds(ids, codes, sizes),
    )


def make_model(context=None, **changes):
    model = Barge.build(context or make_context(), replace(SMALL, **changes))
    with torch.no_grad():
        torch.manual_seed(1)
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def index_of(context):
    return PrefixIndex.build(context.semantic_ids)


BATCH = HistoryBatch(torch.tensor([[0, 3, 7], [5, -1, -1]]), torch.tensor([3, 1]))
WEIGHTS_N = torch.arange(1.0, NUM_ITEMS + 1)


def channel_scores(model, context, weights_N=None, rules=None):
    """(2, B, N) log-probability of each item in each half, every half-ID scored."""
    index, weights_N = index_of(context), torch.ones(NUM_ITEMS) if weights_N is None else weights_N
    return torch.stack([
        exact_scores(half, BATCH, half.index, weights_N=weights_N)
        for half in model.halves(BATCH, index, rules)
    ])  # fmt: skip


def test_no_code_of_b_depends_on_those_of_a():
    context = make_context()
    model = make_model(context)
    codes_BKL = torch.tensor([[[0, 0, 3, 1], [2, 1, 3, 1]], [[0, 0, 3, 1], [2, 1, 3, 1]]])
    both = model.log_probs(BATCH, codes_BKL)
    swapped = codes_BKL.clone()
    swapped[:, 0, 2:], swapped[:, 1, 2:] = torch.tensor([1, 2]), torch.tensor([1, 2])
    moved = model.log_probs(BATCH, swapped)
    torch.testing.assert_close(both[:, 0] - both[:, 1], moved[:, 0] - moved[:, 1])
    half = model.halves(BATCH, index_of(context))[1]
    _, state = model.step(model.start(BATCH), None, None)
    _, state = model.step(state, torch.tensor([[2, 0], [1, 3]]), torch.zeros(2, 2).long())
    first, state = model.step(state, torch.tensor([[1, 0], [2, 2]]), torch.tensor([[1, 0], [0, 1]]))
    alone, own = half.step(half.start(BATCH), None, None)
    torch.testing.assert_close(first, alone.expand(-1, 2, -1))
    codes, parents = torch.tensor([[3, 1], [0, 2]]), torch.zeros(2, 2).long()
    torch.testing.assert_close(
        model.step(state, codes, parents)[0], half.step(own, codes, parents)[0]
    )


def test_the_loss_is_that_of_both_halves():
    context = make_context()
    model = make_model(context, item_loss_weight=0.0, legal_softmax=False)
    batch = HistoryBatch(torch.tensor([[0]]), torch.tensor([1]), torch.tensor([[4]]))
    codes_11L = torch.from_numpy(context.semantic_ids.codes[4])[None, None]
    loss, parts = model.loss(batch)
    expected = -model.log_probs(HistoryBatch(batch.items_BT, batch.lengths_B), codes_11L)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert sorted(parts) == [f"level{level}_nats" for level in range(4)]


def test_prefixes_of_the_prefix_loss_begin_anew_in_b():
    context = make_context()
    batch = HistoryBatch(torch.tensor([[0]]), torch.tensor([1]), torch.tensor([[4]]))
    model = make_model(context, prefix_loss="pointwise", item_loss_weight=0.0)
    _, parts = model.loss(batch)
    nats = [parts[f"level{level}_nats"].item() for level in range(4)]
    expected = 0.0
    for first, second in (nats[:2], nats[2:]):
        losses = np.array([first, (first + second) / 2])
        expected += 2 * (losses**2).sum() / losses.sum()
    assert parts["prefix_nats"].item() == pytest.approx(expected, rel=1e-5)
    paired = make_model(context, prefix_loss="pairwise", prefix_negatives=7)
    assert paired.loss(batch)[0].isfinite()


@pytest.mark.parametrize("weights_N", [None, WEIGHTS_N], ids=["even", "popularity"])
@pytest.mark.parametrize("merge", ["logsumexp", "max", "sum"])
def test_full_beams_rank_as_every_item_merged_by_hand(merge, weights_N):
    context = make_context()
    model = make_model(context, merge=merge)
    a_BN, b_BN = scores = channel_scores(model, context, weights_N)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(2, 2))
    by_hand = {
        "logsumexp": (a_BN.exp() + b_BN.exp()).log(),
        "max": a_BN.maximum(b_BN),
        "sum": a_BN + b_BN,
    }
    expected_BN = by_hand[merge]
    found = model.search(
        BATCH, index_of(context), k=NUM_ITEMS, beam_width=2 * NUM_ITEMS, weights_N=weights_N
    )
    own = expected_BN.gather(1, torch.from_numpy(found.rows_BK))
    np.testing.assert_allclose(found.scores_BK, own, atol=1e-4)
    best = expected_BN.sort(1, descending=True).values
    np.testing.assert_allclose(found.scores_BK, best, atol=1e-4)


def test_reciprocal_ranks_are_those_of_both_whole_lists():
    context = make_context()
    model = make_model(context, merge="reciprocal_rank")
    places = [s.argsort(dim=1, descending=True).argsort(dim=1)
              for s in channel_scores(model, context, WEIGHTS_N)]  # fmt: skip
    expected_BN = sum(1 / (61 + place.float()) for place in places)
    found = model.search(
        BATCH, index_of(context), k=NUM_ITEMS, beam_width=2 * NUM_ITEMS, weights_N=WEIGHTS_N
    )
    own = expected_BN.gather(1, torch.from_numpy(found.rows_BK))
    np.testing.assert_allclose(found.scores_BK, own, rtol=1e-5)


def test_equal_halves_add_log_2_and_keep_the_order():
    random = np.random.default_rng(3)
    codes = np.stack([random.integers(0, size, NUM_ITEMS) for size in SIZES], axis=1)
    context = make_context(codes=np.hstack([codes, codes]))
    model = make_model(context)
    with torch.no_grad():
        for level in (0, 1):
            model.codes[level + 2].copy_(model.codes[level])
        model.levels[2].load_state_dict(model.levels[0].state_dict())
        model.levels[3].load_state_dict(model.levels[1].state_dict())
    both = model.search(BATCH, index_of(context), k=5, beam_width=10, weights_N=WEIGHTS_N)
    model.config = replace(model.config, channels="a")
    alone = model.search(BATCH, index_of(context), k=5, beam_width=5, weights_N=WEIGHTS_N)
    np.testing.assert_array_equal(both.rows_BK, alone.rows_BK)
    np.testing.assert_allclose(both.scores_BK, alone.scores_BK + math.log(2), rtol=1e-5)


def test_an_item_one_list_lacks_counts_as_its_worst(monkeypatch):
    model = make_model(make_context())
    lists = [
        Listed(torch.tensor([[4, 2, 9], [1, PAD, PAD]]),
               torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -np.inf, -np.inf]])),
        Listed(torch.tensor([[2, 7], [8, 1]]), torch.tensor([[-0.5, -4.0], [-1.0, -2.0]])),
    ]  # fmt: skip
    monkeypatch.setattr(model, "lists", lambda *_, **__: lists)
    found = model.search(BATCH, index_of(make_context()), k=5, beam_width=4)
    a, b = -3.0, -4.0  # floors of the first request
    by_hand = {2: (-2.0, -0.5), 4: (-1.0, b), 9: (-3.0, b), 7: (a, -4.0)}
    expected = {row: np.logaddexp(*pair) for row, pair in by_hand.items()}
    assert found.rows_BK[0].tolist() == [2, 4, 7, 9, PAD]  # 7 and 9 tie: the lower row first
    np.testing.assert_allclose(found.scores_BK[0, :4], [expected[r] for r in (2, 4, 7, 9)])
    assert found.rows_BK[1].tolist() == [8, 1, PAD, PAD, PAD]  # 8 counts as -1 in A, its worst
    np.testing.assert_allclose(
        found.scores_BK[1, :2], [np.logaddexp(-1, -1), np.logaddexp(-1, -2)], rtol=1e-6
    )
    model.config = replace(model.config, merge="reciprocal_rank")
    ranked = model.search(BATCH, index_of(make_context()), k=4, beam_width=4)
    assert ranked.rows_BK[0].tolist() == [2, 4, 7, 9]
    np.testing.assert_allclose(
        ranked.scores_BK[0], [1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63], rtol=1e-5
    )


@pytest.mark.parametrize("ruled", [False, True])
def test_exact_gives_every_item_the_score_of_a_full_beam(ruled):
    context, rules = make_context(), None
    if ruled:  # a whole branch of A; and items whose half-IDs others hold
        branch = np.flatnonzero(context.semantic_ids.codes[:, 0] == 1)
        rules = Rules(
            keep_N=np.arange(NUM_ITEMS) % 7 != 1, exclude=[branch, [*range(0, NUM_ITEMS, 3), 3]]
        )
    index, asked = index_of(context), {"rules": rules, "weights_N": WEIGHTS_N}
    full = make_model(context).search(BATCH, index, k=NUM_ITEMS, beam_width=80, **asked)
    narrow = make_model(context, absent="exact").search(BATCH, index, k=3, beam_width=2, **asked)
    floored = make_model(context).search(BATCH, index, k=3, beam_width=2, **asked)
    for row in range(2):
        known = dict(zip(full.rows_BK[row].tolist(), full.scores_BK[row].tolist(), strict=True))
        for item, score in zip(narrow.rows_BK[row], narrow.scores_BK[row], strict=True):
            assert score == pytest.approx(known[int(item)], abs=1e-4)
    assert not np.allclose(narrow.scores_BK, floored.scores_BK)


def test_rules_hold_in_both_halves_and_k_come_back_while_k_exist():
    context, gone = make_context(), [[2, 3, 4, 5], [9]]
    keep_N = np.arange(NUM_ITEMS) < 9
    for absent in ("floor", "exact"):
        found = make_model(context, absent=absent).search(
            BATCH, index_of(context), k=7, beam_width=2, rules=Rules(keep_N=keep_N, exclude=gone)
        )
        assert set(found.rows_BK[0].tolist()) == {0, 1, 6, 7, 8, PAD}
        assert len(set(found.rows_BK[1].tolist())) == 7 and found.rows_BK[1].max() < 9
        nobody = make_model(context, absent=absent).search(
            BATCH, index_of(context), k=2, beam_width=2, rules=Rules(keep_N=keep_N & False)
        )
        assert (nobody.rows_BK == PAD).all() and (nobody.scores_BK == -np.inf).all()


def test_both_halves_follow_items_that_come_and_go():
    context = make_context()
    model, index = make_model(context), index_of(context)
    smaller = index.delete(np.array([4, 11]))
    rows = model.search(BATCH, smaller, k=NUM_ITEMS, beam_width=60).rows_BK
    assert set(rows[0].tolist()) == set(range(NUM_ITEMS)) - {4, 11} | {PAD}
    larger = smaller.insert(np.array([4, 40]), np.array([[3, 2, 3, 2], [0, 1, 2, 0]]))
    rows = model.search(BATCH, larger, k=NUM_ITEMS, beam_width=60).rows_BK
    assert set(rows[0].tolist()) == set(range(NUM_ITEMS)) - {11} | {40}
    assert larger.part(0, 2) is larger.part(0, 2)


def test_the_beam_is_divided_and_the_history_encoded_once(monkeypatch):
    context, widths, encoded = make_context(), [], []
    model, plain = make_model(context), barge.beam_search
    states_of = model.history_states

    def recorded(*arguments, beam_width, **named):
        widths.append(beam_width)
        return plain(*arguments, beam_width=beam_width, **named)

    monkeypatch.setattr(barge, "beam_search", recorded)
    monkeypatch.setattr(model, "history_states", lambda b: encoded.append(b) or states_of(b))
    for k, channels in ((3, "both"), (8, "both"), (3, "b")):
        model.config = replace(model.config, channels=channels)
        model.search(BATCH, index_of(context), k=k, beam_width=10)
    assert widths == [5, 5, 8, 8, 10] and len(encoded) == 3


def test_the_union_holds_every_item_once():
    first, second = torch.tensor([[4, 2, PAD]]), torch.tensor([[2, 9, PAD]])
    assert [row for row in union_of(first, second)[0].tolist() if row != PAD] == [2, 4, 9]


def test_a_counter_joins_the_second_half():
    assert Barge.part_starts(SMALL, 8) == (0, 4)
    assert Barge.part_starts(SMALL, 9) == (0, 4)
    assert Barge.part_starts(replace(SMALL, first_levels=3), 9) == (0, 3)


def test_what_cannot_work_is_refused():
    with pytest.raises(DataError, match="IDs of 1 levels of which 0 make part A"):
        Barge.build(make_context(sizes=(4,)), SMALL)
    with pytest.raises(
        DataError, match=r"IDs of 4 levels of which 4 .* change barge\.first_levels"
    ):
        Barge.build(make_context(), replace(SMALL, first_levels=4))
    short = make_context()
    short.semantic_ids.codes[0, 3] = -1
    with pytest.raises(DataError, match="end early"):
        Barge.build(short, SMALL)
    with pytest.raises(ConfigError, match=r"barge\.pool must be at least 1, got 0"):
        BargeConfig(pool=0)
    with pytest.raises(DataError, match="writes IDs of 4 levels, the index holds IDs of 3"):
        other = index_of(make_context(sizes=(4, 3, 2)))
        make_model().search(BATCH, other, k=1, beam_width=2)


@pytest.fixture(scope="module")
def recommender(tiny, tmp_path_factory):
    settings = recipe.load_config(tiny.recipe)
    chosen = config.method(recipe.GENERATOR, "barge", width=16, depth_hidden=16, pool=60)
    settings = replace(
        settings,
        tokenizer=config.method(recipe.TOKENIZER, "barge", num_codes=4, num_levels=2, epochs=3),
        generator=replace(chosen, train=settings.generator.train),
        scorers=(),
        hybrid=recipe.HybridConfig(members=()),
    )
    return pipeline.run(settings, run_dir=tmp_path_factory.mktemp("barge")).recommender


def test_a_bundle_answers_by_both_halves_and_answers_the_same_when_loaded(
    tiny, recommender, tmp_path
):
    history = tiny.run.example_history()
    ids = set(map(str, recommender.items.item_ids))
    asked = recommender.recommend(history, k=len(ids))
    assert set(asked["item_id"]) == ids - set(history)
    assert recommender.ids.collision_share() == 0.0 and recommender.weights_N is not None
    recommender.save(tmp_path / "bundle")
    loaded = sidrec.load(tmp_path / "bundle", device="cpu")
    assert loaded.recommend(history, k=len(ids)).equals(asked)


def test_items_added_later_are_found(tiny, recommender):
    table = pl.DataFrame({"item_id": ["new"], "title": [recommender.titles[0]]})
    larger = recommender.add_items(table)
    history = tiny.run.example_history()
    found = larger.recommend(history, k=len(larger.items))
    assert "new" in set(found["item_id"])
    before = recommender.ids.codes
    np.testing.assert_array_equal(larger.ids.codes[: len(before)], before)
    codes = larger.ids.codes[-1]
    assert found.filter(pl.col("item_id") == "new")["semantic_id"][0].to_list() == codes.tolist()
