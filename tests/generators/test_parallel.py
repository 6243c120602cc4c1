"""The parallel generator, held against plain readings of its formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sidrec.decoding.beam import beam_search
from sidrec.decoding.exact import exact_scores
from sidrec.decoding.parallel import columns_of
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.rules import Rules
from sidrec.decoding.search import search
from sidrec.errors import ConfigError, DataError
from sidrec.fitted import Fitted, grow
from sidrec.generators.item_softmax import item_softmax_loss
from sidrec.generators.parallel import Parallel, ParallelConfig
from sidrec.testing.generators import all_log_probs, built
from sidrec.testing.tiny_catalogue import (
    NUM_CODES,
    NUM_ITEMS,
    eight_sequences,
    small_config,
    tiny_batch,
    tiny_context,
)
from sidrec.tokenizers.collisions import reassign
from sidrec.tokenizers.health import health
from sidrec.tokenizers.opq import Opq, OpqConfig
from sidrec.types import (
    CatalogueContext,
    Histories,
    HistoryBatch,
    Items,
    ItemVectors,
    SemanticIds,
    as_ids,
)

SMALL = small_config(ParallelConfig, code_loss_weight=1.0, item_loss_weight=0.0)
COSINE = replace(SMALL, temperature=0.3)


def context_with(codes_NL, num_codes, seed=0):
    """A catalogue with these IDs and random vectors."""
    import polars as pl

    names = as_ids(f"item {row}" for row in range(len(codes_NL)))
    vectors = np.random.default_rng(seed).standard_normal((len(names), 8)).astype(np.float32)
    return CatalogueContext(
        Items(names, pl.DataFrame()),
        Histories.from_lists([[0, 1]]),
        ItemVectors(names, vectors),
        SemanticIds(names, np.asarray(codes_NL, dtype=np.int64), num_codes),
    )


def randomised(context, config=SMALL):
    model = Parallel.build(context, config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def tiny_index():
    return PrefixIndex.build(tiny_context().semantic_ids)


# Codes ---------------------------------------------------------------------------------------


def test_the_probabilities_of_every_head_sum_to_one_over_its_own_codes():
    model = built(Parallel, SMALL)
    table_BS = model.log_prob_table(tiny_batch()).double()
    assert (table_BS[:, -1] == 0).all()
    table_BLV = table_BS[:, :-1].unflatten(1, (len(NUM_CODES), -1))
    for level, num_codes in enumerate(NUM_CODES):
        probs_BV = table_BLV[:, level].exp()
        torch.testing.assert_close(probs_BV[:, :num_codes].sum(1), torch.ones(5).double())
        assert (probs_BV[:, num_codes:] == 0).all()


@pytest.mark.parametrize("config", [SMALL, COSINE], ids=["products", "cosines"])
def test_a_logit_is_the_product_of_code_and_head_or_their_cosine_over_the_temperature(config):
    model, batch = built(Parallel, config), tiny_batch()
    with torch.no_grad():
        codes_LVD = model.code_table()
        state_D = model.states(batch, codes_LVD)[0, batch.lengths_B[0] - 1]
        head_D = state_D + F.silu(model.head_weight[1] @ state_D + model.head_bias[1, 0])
        state = model.start(batch)
        logits_BWV, _ = model.step(model.step(state, None, None)[1], torch.zeros(5, 3), None)
        products_V = model.codes[1] @ head_D
        if config.temperature is not None:
            products_V = products_V / head_D.norm() / model.codes[1].norm(dim=1) / 0.3
    torch.testing.assert_close(logits_BWV[0, 0], products_V.log_softmax(0))


def test_what_a_level_says_does_not_depend_on_the_codes_so_far():
    model = built(Parallel, SMALL)
    _, state = model.step(model.start(tiny_batch()), None, None)
    codes_BW = torch.tensor([[0, 1, 3]] * 5)
    logits_BWV, _ = model.step(state, codes_BW, torch.zeros_like(codes_BW))
    assert logits_BWV.shape == (5, 3, NUM_CODES[1])
    assert torch.equal(logits_BWV[:, 0], logits_BWV[:, 1])
    assert torch.equal(logits_BWV[:, 0], logits_BWV[:, 2])


@pytest.mark.parametrize("config", [SMALL, COSINE], ids=["products", "cosines"])
def test_an_item_reads_the_mean_of_its_code_embeddings(config):
    model = built(Parallel, replace(config, input_vectors=False, item_embedding=False))
    model.encoder = torch.nn.Identity()
    batch = HistoryBatch(torch.tensor([[7, 3]]), torch.tensor([2]))
    with torch.no_grad():
        got = model.states(batch, model.code_table())[0, 0]
        codes = tiny_context().semantic_ids.codes[7]
        rows = [model.codes[level][code] for level, code in enumerate(codes)]
        rows = rows if config.temperature is None else [F.normalize(r, dim=0) for r in rows]
    torch.testing.assert_close(got, sum(rows) / 3 * (3 * 16) ** 0.5)
    twins = HistoryBatch(torch.tensor([[22], [23]]), torch.tensor([1, 1]))  # one ID, two items
    with torch.no_grad():
        first, second = model.states(twins, model.code_table())[:, 0]
    assert torch.equal(first, second)


def test_the_order_of_levels_and_the_numbers_of_codes_change_nothing():
    ids, batch = tiny_context().semantic_ids, tiny_batch()
    model = built(Parallel, SMALL)
    order, names = [2, 0, 1], [np.random.default_rng(1).permutation(v) for v in NUM_CODES]
    codes_NL = np.stack([names[level][ids.codes[:, level]] for level in order], axis=1)
    context = replace(
        tiny_context(),
        semantic_ids=SemanticIds(ids.item_ids, codes_NL, tuple(NUM_CODES[le] for le in order)),
    )
    other = Parallel.build(context, SMALL).eval()
    weights = dict(model.state_dict())
    for place, level in enumerate(order):
        weights[f"codes.{place}"] = model.state_dict()[f"codes.{level}"][np.argsort(names[level])]
    weights["head_weight"] = model.head_weight[order]
    weights["head_bias"] = model.head_bias[order]
    other.load_state_dict(weights)
    torch.testing.assert_close(other.item_scores(batch), model.item_scores(batch))


def test_a_shorter_id_ends_with_a_symbol_of_its_own_and_costs_nothing_after():
    codes = [[0, 1, 0], [0, -1, -1], [1, 1, -1], [1, 0, 1]]
    model = randomised(context_with(codes, (2, 2, 2)))
    assert model.widths == (2, 3, 3)
    batch = HistoryBatch(torch.tensor([[0, 3]]), torch.tensor([2]))
    table_LV = model.log_prob_table(batch)[0, :-1].view(3, 3)
    expected = [
        table_LV[0, 0] + table_LV[1, 1] + table_LV[2, 0],
        table_LV[0, 0] + table_LV[1, 2],
        table_LV[0, 1] + table_LV[1, 1] + table_LV[2, 2],
        table_LV[0, 1] + table_LV[1, 0] + table_LV[2, 1],
    ]
    given = model.log_probs(batch, torch.tensor([codes]))[0]
    torch.testing.assert_close(given, torch.stack(expected))
    with torch.no_grad():
        model.repeat_bias.weight.zero_()
    torch.testing.assert_close(model.item_scores(batch)[0], torch.stack(expected))
    codes_12 = torch.tensor([1, 2])
    batch = HistoryBatch(torch.tensor([[0]]), torch.tensor([1]), torch.tensor([[1]]))
    with torch.no_grad():
        nats_L = model.code_nats(model.logits(torch.randn(2, 16), model.code_table()), codes_12)
    assert nats_L.shape == (3,) and (nats_L > 0).all()


# Loss ----------------------------------------------------------------------------------------


def test_the_loss_of_the_codes_is_minus_the_log_probability_of_the_targets():
    model, batch = built(Parallel, SMALL), eight_sequences()
    loss, parts = model.loss(batch)
    total = 0.0
    codes_NL = torch.from_numpy(tiny_context().semantic_ids.codes)
    for row in range(8):
        for place in range(4):
            prefix = HistoryBatch(
                batch.items_BT[row : row + 1, : place + 1], torch.tensor([place + 1])
            )
            target = int(batch.targets_BT[row, place])
            total -= model.log_probs(prefix, codes_NL[target][None, None]).item()
    assert parts["code_nats"].item() == pytest.approx(total / 32, rel=1e-5)
    assert loss.item() == pytest.approx((parts["code_nats"] + parts["item_nats"]).item(), rel=1e-5)


def test_the_item_loss_is_minus_the_log_probability_that_search_gives_the_target():
    model, batch = built(Parallel, SMALL), eight_sequences()
    _, parts = model.loss(batch)
    total = 0.0
    for row in range(8):
        for place in range(4):
            prefix = HistoryBatch(
                batch.items_BT[row : row + 1, : place + 1], torch.tensor([place + 1])
            )
            found = model.search(prefix, tiny_index(), k=NUM_ITEMS, beam_width=1)
            where = found.rows_BK[0].tolist().index(int(batch.targets_BT[row, place]))
            total -= float(found.scores_BK[0, where])
    assert parts["item_nats"].item() == pytest.approx(total / 32, rel=1e-4)


def test_the_item_softmax_equals_plain_cross_entropy_and_its_gradients():
    random = torch.Generator().manual_seed(0)
    num_levels, width, num_items, num = 3, 5, 40, 70  # more targets than one block
    places_NL = torch.randint(width, (num_items, num_levels), generator=random)
    places_NL = (places_NL + torch.arange(num_levels) * width).int()
    places_NL[:4, -1] = num_levels * width  # IDs that end early
    columns = columns_of(places_NL, num_levels * width + 1)
    targets_P = torch.randint(num_items, (num,), generator=random)
    seen_PT = torch.stack([torch.randperm(num_items, generator=random)[:4] for _ in range(num)])
    seen_PT[::3, 2:] = -1
    seen_PT[0, 0] = targets_P[0]
    logits = torch.randn(num_levels, num, width, generator=random)
    ours = logits.clone().requires_grad_(), torch.tensor([0.7], requires_grad=True)
    loss = item_softmax_loss(ours[0], targets_P, seen_PT, ours[1], places_NL, columns)
    (2 * loss).backward()

    plain = logits.clone().requires_grad_(), torch.tensor([0.7], requires_grad=True)
    flat_PS = F.pad(plain[0].transpose(0, 1).flatten(1), (0, 1))
    scores_PN = flat_PS[:, places_NL.long()].sum(2)
    bonus_PT = (seen_PT >= 0) * plain[1]
    scores_PN = scores_PN.scatter_add(1, seen_PT.clamp_min(0), bonus_PT)
    expected = F.cross_entropy(scores_PN, targets_P)
    (2 * expected).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours[0].grad, plain[0].grad)
    torch.testing.assert_close(ours[1].grad, plain[1].grad)


def gradients(config, batch):
    model = built(Parallel, config)
    loss, _ = model.loss(batch)
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


def test_without_an_item_loss_only_the_repeat_bias_learns_from_items():
    batch = eight_sequences()
    model = built(Parallel, SMALL)
    logits_LPV = None
    plain = gradients(SMALL, batch)
    codes_LVD = model.code_table()
    real = batch.targets_BT >= 0
    logits_LPV = model.logits(model.states(batch, codes_LVD)[real], codes_LVD)
    model.code_nats(logits_LPV, batch.targets_BT[real]).sum().backward()
    for name, weight in model.named_parameters():
        if not name.startswith("repeat"):
            torch.testing.assert_close(plain[name], weight.grad)
    assert plain["repeat_bias.weight"] is not None
    with_items = gradients(replace(SMALL, item_loss_weight=1.0), batch)
    assert not torch.allclose(with_items["codes.0"], plain["codes.0"])
    torch.testing.assert_close(with_items["repeat_bias.weight"], plain["repeat_bias.weight"])


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_repeat_bias_falls_where_nobody_comes_back_and_rises_where_all_do(weight):
    config = replace(SMALL, item_loss_weight=weight)
    items = torch.tensor([[0, 1, 2], [6, 7, 8]])
    never = HistoryBatch(items, torch.tensor([3, 3]), items + 3)
    always = HistoryBatch(items, torch.tensor([3, 3]), torch.tensor([[0, 1, 0], [6, 6, 8]]))
    assert gradients(config, never)["repeat_bias.weight"] > 0  # a step goes down
    assert gradients(config, always)["repeat_bias.weight"] < 0


def test_fewer_targets_for_the_item_softmax_are_drawn_in_training_only():
    config = replace(SMALL, item_loss_weight=1.0, item_targets=5)
    model, batch = built(Parallel, config), eight_sequences()
    assert model.item_targets_of(torch.arange(32)) is None
    every = model.loss(batch)[1]["item_nats"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        chosen = model.train().item_targets_of(torch.arange(32))
        assert len(set(chosen.tolist())) == 5
        some = [model.loss(batch)[1]["item_nats"].item() for _ in range(60)]
    assert min(some) < every.item() < max(some)
    assert np.mean(some) == pytest.approx(every.item(), abs=4 * np.std(some) / 60**0.5)


# Search --------------------------------------------------------------------------------------


def test_item_scores_are_the_brute_force_sums_plus_the_repeat_bias():
    model, batch, index = built(Parallel, SMALL), tiny_batch(), tiny_index()
    plain_BN = exact_scores(model, batch, index, renormalise=False).clone()
    with torch.no_grad():
        model.repeat_bias.weight.fill_(-0.4)
    for row, length in enumerate(batch.lengths_B.tolist()):
        plain_BN[row, batch.items_BT[row, :length].unique()] -= 4.0
    torch.testing.assert_close(model.item_scores(batch), plain_BN, rtol=1e-4, atol=1e-4)
    found = model.search(batch, index, k=NUM_ITEMS, beam_width=1)
    for row in range(5):
        own = plain_BN[row].log_softmax(0)[torch.from_numpy(found.rows_BK[row])]
        torch.testing.assert_close(torch.from_numpy(found.scores_BK[row]), own)
    assert found.rows_BK[:, 0].tolist() == plain_BN.argmax(1).tolist()


def test_graph_and_exact_search_agree_on_a_small_catalogue():
    exact, batch, index = built(Parallel, SMALL), tiny_batch(), tiny_index()
    graph = built(Parallel, replace(SMALL, exact_below=0, num_neighbours=NUM_ITEMS, search_beam=5))
    rules = Rules(keep_N=np.arange(NUM_ITEMS) % 4 != 0, exclude=[[1, 2], [], [3], [5], [9]])
    for asked in (None, rules):
        expected = exact.search(batch, index, k=10, beam_width=5, rules=asked)
        found = graph.search(batch, index, k=10, beam_width=5, rules=asked)
        np.testing.assert_array_equal(found.rows_BK, expected.rows_BK)


def test_rules_and_deleted_items_are_kept_out_and_weights_divide_shared_ids():
    model, batch, index = built(Parallel, SMALL), tiny_batch(), tiny_index()
    allowed = np.arange(NUM_ITEMS) >= 12
    smaller = index.delete(np.array([13, 14]))
    found = model.search(
        batch, smaller, k=NUM_ITEMS, beam_width=1,
        rules=Rules(keep_N=allowed, exclude=[[23]] + [[]] * 4),
        weights_N=torch.arange(1.0, NUM_ITEMS + 1),
    )  # fmt: skip
    left = [12, *range(15, NUM_ITEMS)]
    assert sorted(r for r in found.rows_BK[0].tolist() if r >= 0) == left[:-1]
    assert sorted(r for r in found.rows_BK[1].tolist() if r >= 0) == left
    probs_BK = np.exp(found.scores_BK)
    np.testing.assert_allclose(probs_BK.sum(1), 1, rtol=1e-5)
    rows = found.rows_BK[1].tolist()
    seen = set(batch.items_BT[1].tolist())
    assert not seen & {22, 23}
    ratio = probs_BK[1, rows.index(23)] / probs_BK[1, rows.index(22)]
    assert ratio == pytest.approx(24 / 23, rel=1e-4)


def test_a_rule_that_leaves_few_items_is_answered_exactly():
    config = replace(SMALL, exact_below=6, num_neighbours=1, search_beam=1, search_steps=0)
    graph, exact = built(Parallel, config), built(Parallel, SMALL)
    few = Rules(keep_N=np.arange(NUM_ITEMS) < 6)
    batch, index = tiny_batch(), tiny_index()
    expected = exact.search(batch, index, k=3, beam_width=1, rules=few)
    found = graph.search(batch, index, k=3, beam_width=1, rules=few)
    np.testing.assert_array_equal(found.rows_BK, expected.rows_BK)
    np.testing.assert_allclose(found.scores_BK, expected.scores_BK, atol=1e-5)


def test_the_graph_is_made_once_and_again_when_the_weights_have_changed():
    model = built(Parallel, replace(SMALL, num_neighbours=3))
    first = model.graph()
    assert model.graph() is first
    with torch.no_grad():
        model.codes[0].add_(1.0)
    changed = model.graph()
    assert changed is not first
    model.train().eval()
    assert model.graph() is not changed


def test_a_beam_over_the_same_logits_finds_the_same_items_when_all_tuples_are_items():
    codes = np.stack(np.meshgrid(range(3), range(2), range(2)), -1).reshape(-1, 3)
    context = context_with(codes, (3, 2, 2))
    model, index = randomised(context), PrefixIndex.build(context.semantic_ids)
    with torch.no_grad():
        model.repeat_bias.weight.zero_()
    batch = HistoryBatch(torch.tensor([[0, 5], [7, -1]]), torch.tensor([2, 1]))
    beam = beam_search(model, batch, index, k=12, beam_width=12)
    own = model.search(batch, index, k=12, beam_width=12)
    np.testing.assert_array_equal(beam.rows_BK, own.rows_BK)
    np.testing.assert_allclose(beam.scores_BK, own.scores_BK, atol=1e-4)


# Life ----------------------------------------------------------------------------------------


def test_a_grown_model_scores_old_items_as_before_and_new_ones_like_their_neighbours():
    old_codes = tiny_context().semantic_ids.codes
    context = tiny_context()
    larger = context_with(np.concatenate([old_codes, [[0, 2, 1], [3, -1, -1]]]), NUM_CODES)
    vectors = np.concatenate([context.vectors.vectors, context.vectors.vectors[[0, 20]]])
    larger = replace(larger, vectors=ItemVectors(larger.semantic_ids.item_ids, vectors))
    model = built(Parallel, SMALL)
    grown = Parallel.build(larger, SMALL)
    assert grown.widths == (4, 4, 3)  # the second level can end now
    grow(model, grown, NUM_ITEMS, np.array([[0, 1], [20, 21]]))
    torch.testing.assert_close(grown.items.weight[24], model.items.weight[[0, 1]].mean(0))
    batch = tiny_batch()
    before_BN, after_BN = model.item_scores(batch), grown.item_scores(batch)
    shift_BN = after_BN[:, :NUM_ITEMS] - before_BN  # the new ends take the same from all
    torch.testing.assert_close(shift_BN, shift_BN[:, :1].expand_as(shift_BN))
    found = grown.search(batch, PrefixIndex.build(larger.semantic_ids), k=26, beam_width=1)
    assert (np.sort(found.rows_BK) == np.arange(26)).all()


def test_a_recommender_with_it_recommends_added_items(tiny):
    import polars as pl

    from sidrec.recommender import serving_context

    bundle = tiny.run.recommender
    context = serving_context(bundle.items, bundle.vectors, bundle.ids)
    model = Parallel.build(context, SMALL).eval()
    fitted = Fitted(stage="generators", name="parallel", config=SMALL, value=model)
    small = replace(bundle, generator=fitted, hybrid=None)
    history = tiny.run.example_history()
    first = small.recommend(history, k=1)["item_id"][0]
    twin = bundle.items.attributes.row(bundle.items.row_of[first], named=True)
    larger = small.add_items(pl.DataFrame([{**twin, "item_id": "the twin"}]))
    everything = larger.recommend(history, k=len(larger.items), exclude_seen=False)
    assert sorted(everything["item_id"]) == sorted([*map(str, bundle.items.item_ids), "the twin"])
    assert everything["score"].exp().sum() == pytest.approx(1, rel=1e-4)
    why = larger.explain(history, "the twin")
    codes = torch.from_numpy(larger.ids.codes[-1])
    batch = HistoryBatch.from_histories(
        Histories.from_lists([larger.items.rows(history)]), max_length=6
    )
    given = larger.generator.value.log_probs(batch, codes[None, None])
    assert why["log_prob"] == pytest.approx(given.item(), abs=1e-4)


def test_long_ids_of_a_product_quantiser_go_all_the_way():
    random = np.random.default_rng(0)
    names = as_ids(f"item {row}" for row in range(400))
    vectors_ND = random.standard_normal((400, 48)).astype(np.float32)
    vectors_ND[7] = vectors_ND[3]  # two items of one ID
    vectors = ItemVectors(names, vectors_ND)
    config = OpqConfig(num_levels=24, num_codes=16, num_rotations=2, num_iters=3)
    tokenizer = Opq.fit(vectors, config)
    ids, report = reassign(tokenizer.encode(vectors), tokenizer, vectors)
    assert report.share_before > 0 and report.share_after == 0
    assert 0 < health(ids, vectors, tokenizer).cur < 1e-20
    context = replace(context_with(ids.codes, ids.num_codes), vectors=vectors)
    index, model = PrefixIndex.build(ids), randomised(context, replace(SMALL, exact_below=100))
    found = model.search(tiny_batch(), index, k=10, beam_width=10)
    assert all(len(set(rows)) == 10 for rows in found.rows_BK.tolist())


@pytest.mark.parametrize("num_levels", [3, 32])
def test_the_index_of_long_ids_takes_some_bytes_a_code(num_levels):
    codes = np.random.default_rng(0).integers(0, 256, (2000, num_levels))
    ids = SemanticIds(as_ids(range(2000)), codes, (256,) * num_levels)
    assert PrefixIndex.build(ids).nbytes < 100 * codes.size


def test_what_cannot_be_searched_or_built_is_refused_with_the_reason():
    model, batch, index = built(Parallel, SMALL), tiny_batch(), tiny_index()
    other = context_with([[0, 0], [1, 1]], (2, 2)).semantic_ids
    with pytest.raises(DataError, match="built for 24 items with codes"):
        model.search(batch, PrefixIndex.build(other), k=1, beam_width=1)
    with pytest.raises(DataError, match="keep_N must cover the 24 catalogue rows"):
        model.search(batch, index, k=1, beam_width=1, rules=Rules(keep_N=np.ones(3, dtype=bool)))
    with pytest.raises(DataError, match="weights_N must cover the 24 catalogue rows"):
        model.search(batch, index, k=1, beam_width=1, weights_N=torch.ones(3))
    with pytest.raises(ConfigError, match="k must be at least 1"):
        model.search(batch, index, k=0, beam_width=1)
    bare = replace(tiny_context(), semantic_ids=None)
    with pytest.raises(DataError, match="parallel needs item vectors and semantic IDs"):
        Parallel.build(bare, SMALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 15, "num_heads": 2}, "multiple of num_heads"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"num_neighbours": 0}, "num_neighbours must be at least 1"),
        ({"search_steps": -1}, "search_steps must not be negative"),
        ({"item_targets": 0}, "leave it out for all"),
        ({"code_loss_weight": 0.0, "item_loss_weight": 0.0}, "got both 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        ParallelConfig(**changes)


def test_the_fingerprint_does_not_depend_on_the_search_settings():
    searched = replace(SMALL, exact_below=0, num_neighbours=2, search_steps=1, search_beam=3)
    first, second = built(Parallel, SMALL), built(Parallel, searched)
    assert torch.equal(all_log_probs(first, tiny_batch()), all_log_probs(second, tiny_batch()))


@pytest.mark.parametrize("option", [{"length_penalty": 1.0}, {"renormalise": False}])
def test_options_of_a_beam_over_ids_are_refused_not_ignored(option):
    context = tiny_context()
    model = Parallel.build(context, small_config(ParallelConfig)).eval()
    index = PrefixIndex.build(context.semantic_ids)
    asked = {"k": 3, "beam_width": 3, "renormalise": True, "length_penalty": 0.0}
    assert search(model, tiny_batch(2), index, **asked).rows_BK.shape == (2, 3)
    with pytest.raises(ConfigError, match="Parallel searches in its own way"):
        search(model, tiny_batch(2), index, **(asked | option))
