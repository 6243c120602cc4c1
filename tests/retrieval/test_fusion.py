import itertools
import math

import numpy as np
import pytest
import torch

from sidrec.errors import ConfigError
from sidrec.retrieval.fusion import (
    Hybrid,
    fuse,
    fused_scores,
    generator_member,
    pooled,
    scorer_member,
    tune_weights,
)
from sidrec.types import PAD, Candidates, Examples, Histories, HistoryBatch

NUM_ITEMS, NUM_REQUESTS = 30, 8


def table(seed):
    """Scores (item just seen, next item)."""
    return torch.randn(NUM_ITEMS, NUM_ITEMS, generator=torch.Generator().manual_seed(seed)) * 3


def last_items(batch):
    return batch.items_BT.gather(1, batch.lengths_B[:, None] - 1)[:, 0]


def scorer(seed):
    return lambda batch: table(seed)[last_items(batch)]


def generator(seed):
    """A stand-in for a generator: an exact search over log-probabilities, and those of items."""

    def log_probs(batch, rows_BP):
        assert (rows_BP >= 0).all()
        return scorer(seed)(batch).log_softmax(1).gather(1, rows_BP)

    def generated(batch, k, exclude, keep_N):
        scores_BN = scorer(seed)(batch).log_softmax(1)
        if keep_N is not None:
            scores_BN[:, ~torch.from_numpy(keep_N)] = -torch.inf
        for row, items in enumerate(exclude or ()):
            scores_BN[row, torch.from_numpy(items)] = -torch.inf
        best_BK, rows_BK = scores_BN.topk(min(k, NUM_ITEMS), dim=1)
        rows_BK = rows_BK.masked_fill(best_BK == -torch.inf, PAD)
        return Candidates(rows_BK.numpy(), best_BK.numpy())

    return generator_member(generated, log_probs)


MEMBERS = [generator(1), scorer_member(scorer(2)), scorer_member(scorer(3))]


@pytest.fixture
def batch():
    histories = Histories.from_lists([[i, 2 * i] for i in range(NUM_REQUESTS)])
    return HistoryBatch.from_histories(histories, max_length=5)


def hybrid(*weights, **settings):
    names = tuple("abc"[: len(weights)])
    return Hybrid(members=names, weights=weights, **{"pool": NUM_ITEMS} | settings)


def log_softmax(seed, batch):
    return scorer(seed)(batch).double().log_softmax(1)


def test_the_sum_equals_brute_force_over_the_catalogue_when_the_pool_covers_it(batch):
    listed = fuse(MEMBERS, hybrid(0.5, 0.3, 0.2), batch, 7)
    expected = sum(
        w * log_softmax(seed, batch) for w, seed in zip((0.5, 0.3, 0.2), (1, 2, 3), strict=True)
    )
    best, rows = expected.topk(7, dim=1)
    assert np.array_equal(listed.rows_BK, rows)
    np.testing.assert_allclose(listed.scores_BK, best, rtol=1e-5)


@pytest.mark.parametrize("rule", ["log_probs", "z_scores", "reciprocal_rank"])
@pytest.mark.parametrize("member", [0, 1, 2])
def test_a_weight_of_one_gives_that_member_back_exactly(batch, rule, member):
    weights = [float(m == member) for m in range(3)]
    listed = fuse(MEMBERS, hybrid(*weights, rule=rule), batch, NUM_ITEMS)
    alone = log_softmax(member + 1, batch).argsort(dim=1, descending=True)
    assert np.array_equal(listed.rows_BK, alone)


def test_a_small_pool_holds_every_members_best_scored_by_all(batch):
    rows_BP, log_probs_MBP = pooled(MEMBERS, batch, 4)
    for b in range(NUM_REQUESTS):
        real = rows_BP[b][rows_BP[b] != PAD].tolist()
        best = [log_softmax(seed, batch)[b].topk(4).indices.tolist() for seed in (1, 2, 3)]
        assert real == sorted(set(itertools.chain(*best)))
        for m, seed in enumerate((1, 2, 3)):
            torch.testing.assert_close(
                log_probs_MBP[m, b, : len(real)], log_softmax(seed, batch)[b, real],
                rtol=1e-5, atol=1e-5,
            )  # fmt: skip
            assert (log_probs_MBP[m, b, len(real) :] == -torch.inf).all()


def test_rules_hold_for_every_member_and_k_come_back_when_k_exist(batch):
    keep_N = np.arange(NUM_ITEMS) % 2 == 0
    exclude = [np.array([0, 2, b]) for b in range(NUM_REQUESTS)]
    listed = fuse(MEMBERS, hybrid(1, 1, 1, pool=3), batch, 12, exclude=exclude, keep_N=keep_N)
    for b, rows in enumerate(listed.rows_BK):
        left = set(np.flatnonzero(keep_N)) - set(exclude[b].tolist())
        assert len(left) >= 12 and (rows != PAD).all() and set(rows.tolist()) <= left
    few = fuse(MEMBERS, hybrid(1, 1, 1), batch, 5, keep_N=np.arange(NUM_ITEMS) < 2)
    assert (np.sort(few.rows_BK[:, :2]) == [0, 1]).all() and (few.rows_BK[:, 2:] == PAD).all()
    none = fuse(MEMBERS, hybrid(1, 1, 1), batch, 5, keep_N=np.zeros(NUM_ITEMS, dtype=bool))
    assert (none.rows_BK == PAD).all() and np.isneginf(none.scores_BK).all()


def test_the_scores_of_excluded_items_still_count_in_the_softmax(batch):
    """A rule hides items; it does not make a member surer of the rest."""
    all_in, _ = scores_of(batch, None)
    some_out, rows = scores_of(batch, [np.arange(10)] * NUM_REQUESTS)
    torch.testing.assert_close(some_out, all_in.gather(1, rows))


def scores_of(batch, exclude):
    rows_BP, log_probs_MBP = pooled(MEMBERS[1:2], batch, NUM_ITEMS, exclude=exclude)
    return log_probs_MBP[0], rows_BP


def test_an_item_one_member_never_heard_of_is_not_lost_but_comes_last_for_that_member(batch):
    def knows_half(batch):
        scores_BN = scorer(2)(batch)
        scores_BN[:, NUM_ITEMS // 2 :] = -torch.inf
        return scores_BN

    members = [MEMBERS[0], scorer_member(knows_half)]
    alone = fuse(members, hybrid(0, 1), batch, NUM_ITEMS)
    half = NUM_ITEMS // 2
    x = knows_half(batch)[:, :half]
    assert np.array_equal(alone.rows_BK[:, :half], x.argsort(dim=1, descending=True))
    x = log_softmax(1, batch)[:, half:]  # what nobody with a weight knows follows, none is lost
    assert np.array_equal(alone.rows_BK[:, half:], half + x.argsort(dim=1, descending=True))
    listed = fuse(members, hybrid(0.5, 0.5), batch, NUM_ITEMS)
    assert (np.sort(listed.rows_BK, axis=1) == np.arange(NUM_ITEMS)).all()
    x = knows_half(batch).double().log_softmax(1)
    floor = x.masked_fill(x == -torch.inf, torch.inf).amin(1, keepdim=True)
    expected = 0.5 * log_softmax(1, batch) + 0.5 * torch.maximum(x, floor)
    assert np.array_equal(listed.rows_BK, expected.argsort(dim=1, descending=True))


def test_reciprocal_ranks_and_z_scores_are_those_worked_out_by_hand():
    first = torch.tensor([[0.0, -1.0, -2.0]])
    second = torch.tensor([[-5.0, 0.0, -1.0]])
    members = [scorer_member(lambda _: first), scorer_member(lambda _: second)]
    batch = HistoryBatch.from_histories(Histories.from_lists([[0]]), max_length=1)
    listed = fuse(members, hybrid(1, 1, pool=3, rule="reciprocal_rank"), batch, 3)
    # ranks: item 0 is 1st and 3rd, item 1 2nd and 1st, item 2 3rd and 2nd
    assert listed.rows_BK.tolist() == [[1, 0, 2]]
    np.testing.assert_allclose(
        listed.scores_BK[0], [1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 63 + 1 / 62], rtol=1e-6
    )
    listed = fuse(members, hybrid(1, 1, pool=3, rule="z_scores"), batch, 3)
    spread = math.sqrt(2 / 3)  # of 0, −1, −2
    other = math.sqrt((3**2 + 2**2 + 1**2) / 3)  # of −5, 0, −1 around −2
    by_item = [1 / spread - 3 / other, 2 / other, -1 / spread + 1 / other]
    assert listed.rows_BK.tolist() == [[1, 2, 0] if by_item[2] > by_item[0] else [1, 0, 2]]
    np.testing.assert_allclose(listed.scores_BK[0], sorted(by_item, reverse=True), rtol=1e-5)


def test_scores_that_float32_log_probs_would_tie_keep_their_order():
    close = torch.tensor([[1.0000001, 1.0, 1.0000002] + [14.0] * 5])
    member = scorer_member(lambda _: close)
    batch = HistoryBatch.from_histories(Histories.from_lists([[0]]), max_length=1)
    listed = fuse([member], hybrid(1, pool=8), batch, 8)
    assert listed.rows_BK[0].tolist() == [3, 4, 5, 6, 7, 2, 0, 1]


# Choosing the weight -----------------------------------------------------------------------------


def examples(weights, num=60):
    """The truth is what a fusion with these weights puts first."""
    random = np.random.default_rng(0)
    histories = Histories.from_lists(
        [random.integers(0, NUM_ITEMS, size=n) for n in random.integers(1, 6, size=num)]
    )
    batch = HistoryBatch.from_histories(histories, max_length=5)
    members = MEMBERS[: len(weights)]
    targets = fuse(members, hybrid(*weights), batch, 1).rows_BK[:, 0]
    return Examples(np.arange(num), histories, targets)


def naive_ndcg(weights, questions, k=10):
    batch = HistoryBatch.from_histories(questions.histories, max_length=5)
    listed = fuse(MEMBERS[: len(weights)], hybrid(*weights), batch, k)
    gains = (listed.rows_BK == questions.targets[:, None]) / np.log2(np.arange(k) + 2)
    return float(gains.sum(1).mean())


@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.2, 0.5, 0.3)])
def test_tuning_finds_the_weights_that_made_the_world(weights):
    questions = examples(weights)
    tuned = tune_weights(
        MEMBERS[: len(weights)], "abc"[: len(weights)], questions,
        max_length=5, pool=NUM_ITEMS, batch_size=7,
    )  # fmt: skip
    assert tuned.metric == 1.0 and tuned.oracle_recall == 1.0
    np.testing.assert_allclose(tuned.hybrid.weights, weights, atol=0.11)
    for tried, value in tuned.table[:: len(tuned.table) // 7]:
        assert value == pytest.approx(naive_ndcg(tried, questions))
    corners = {tried for tried, _ in tuned.table if max(tried) == 1.0}
    assert len(corners) == len(weights)
    assert len(tuned.table) == (21 if len(weights) == 2 else 66)


def test_equal_values_go_to_equal_shares():
    same = [MEMBERS[1], MEMBERS[1]]
    tuned = tune_weights(same, ["a", "b"], examples((0.0, 1.0)), max_length=5, pool=5)
    assert tuned.hybrid.weights == (0.5, 0.5)


def test_a_target_outside_the_pool_is_a_miss_and_a_tie_counts_against_it():
    def flat(batch):
        return torch.zeros(batch.num_requests, NUM_ITEMS)

    questions = Examples(np.arange(1), Histories.from_lists([[0]]), np.array([NUM_ITEMS - 1]))
    arguments = dict(max_length=1, k=3)  # noqa: C408
    covered = tune_weights([scorer_member(flat)], ["a"], questions, pool=NUM_ITEMS, **arguments)
    small = tune_weights([scorer_member(flat)], ["a"], questions, pool=3, **arguments)
    assert covered.metric == small.metric == covered.oracle_recall == 0.0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"members": ("a",), "weights": (1, 2)}, "1 members need as many weights, got 2"),
        ({"members": ("a", "b"), "weights": (0, 0)}, "not all 0"),
        ({"members": ("a",), "weights": (1,), "pool": 0}, "pool must be at least 1"),
        ({"members": ("a",), "weights": (1,), "rule": "sum"}, "rule must be one of"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, expected):
    with pytest.raises(ConfigError, match=expected):
        Hybrid(**settings)


def test_a_hybrid_survives_json(batch):
    import json

    made = hybrid(0.5, 0.25, 0.25, pool=9, rule="z_scores")
    assert Hybrid(**json.loads(json.dumps(made.to_dict()))) == made
    with pytest.raises(ConfigError, match="needs 3 members, got 2"):
        fuse(MEMBERS[:2], made, batch, 3)


def test_what_a_generator_did_not_find_counts_as_its_worst():
    found = Candidates(np.array([[4, 1, 0]]), np.array([[-0.5, -1.0, -3.0]], dtype=np.float32))
    member = generator_member(lambda batch, k, exclude, keep_N: found)
    batch = HistoryBatch(torch.tensor([[2]]), torch.tensor([1]))
    opinion = member(batch, 3, None, None)
    log_probs = opinion.log_probs(torch.tensor([[0, 1, 2, 3, 4]]))
    assert log_probs[0].tolist() == [-3.0, -1.0, -torch.inf, -torch.inf, -0.5]
    other = torch.tensor([[[-9.0, -9.0, -1.0, -2.0, -9.0]]]).double()
    fused = fused_scores(torch.cat([log_probs[None], other]), (1.0, 1.0))
    assert fused[0].tolist() == [-12.0, -10.0, -4.0, -5.0, -9.5]
