import numpy as np
import pytest
import torch

from sidrec.errors import ConfigError, DataError
from sidrec.evaluation import metrics as m
from sidrec.evaluation.protocol import ABSENT, first_copies, rank_all, rank_lists, top_rows
from sidrec.testing.evaluation import check_evaluator, lists_of, random_examples, scorer_of
from sidrec.types import Candidates, Examples, Histories

N = 40


@pytest.fixture
def world():
    rng = np.random.default_rng(3)
    examples = random_examples(rng, 60, N)
    scores = rng.normal(size=(60, N)).astype(np.float32)
    return examples, scores


def run(examples, scores=None, candidates=None, **changes):
    settings = {"k": 10, "num_items": N, "max_length": 50, "batch_size": 16, **changes}
    return rank_all(examples, scores=scores, candidates=candidates, **settings)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_and_lists_equal_the_naive_evaluator_with_ties_and_minus_infinity(seed):
    check_evaluator(seed=seed)


def test_a_constant_scorer_gets_chance_when_ties_are_averaged_and_nothing_when_pessimistic(world):
    examples, _ = world
    ranks = run(examples, lambda batch: torch.zeros(batch.num_requests, N))
    recall = m.recall(ranks.better_Q, ranks.tied_Q, 10)
    np.testing.assert_allclose(recall, 10 / N)
    ndcg = m.ndcg(ranks.better_Q, ranks.tied_Q, 10)
    np.testing.assert_allclose(ndcg, m.discounts(10).sum() / N)
    assert m.recall(ranks.better_Q, ranks.tied_Q, 10, "pessimistic").sum() == 0


def test_a_perfect_scorer_gets_one(world):
    examples, _ = world
    perfect = np.zeros((60, N), dtype=np.float32)
    distinct = Examples(
        examples.user_rows,
        Histories.from_lists([[u % N, u // N] for u in range(60)]),
        examples.targets,
    )
    perfect[np.arange(60), examples.targets] = 1
    ranks = run(distinct, scorer_of(perfect, distinct))
    for metric in m.ONE_TARGET.values():
        assert (metric(ranks.better_Q, ranks.tied_Q, 1) == 1).all()


def test_the_order_of_users_and_the_batch_size_change_nothing(world):
    examples, scores = world
    score_all = scorer_of(scores, examples)
    straight = run(examples, score_all)
    order = np.random.default_rng(0).permutation(60)
    shuffled = run(examples.take(order), score_all, batch_size=7)
    assert (shuffled.better_Q == straight.better_Q[order]).all()
    assert (shuffled.rows_QK == straight.rows_QK[order]).all()


def test_the_seen_filter_equals_setting_minus_infinity(world):
    examples, scores = world
    score_all = scorer_of(scores, examples)

    def masked(batch):
        block = score_all(batch).clone()
        for row, (items, length) in enumerate(zip(batch.items_BT, batch.lengths_B, strict=True)):
            block[row, items[:length]] = -torch.inf
        return block

    filtered, by_hand = run(examples, score_all, filter_seen=True), run(examples, masked)
    assert (filtered.better_Q == by_hand.better_Q).all()
    assert (filtered.rows_QK == by_hand.rows_QK).all()
    seen_targets = [
        t in h for h, t in ((examples.histories[u], examples.targets[u]) for u in range(60))
    ]
    assert filtered.num_targets_filtered == sum(seen_targets) > 0
    assert (filtered.better_Q[seen_targets] == ABSENT).all()


def test_seen_items_beyond_the_models_reach_are_filtered_too():
    examples = Examples(np.array([0]), Histories.from_lists([[5, 1, 2]]), np.array([3]))
    scores = torch.zeros(1, N)
    scores[0, 5] = 9
    ranks = run(examples, lambda batch: scores, filter_seen=True, max_length=2)
    assert 5 not in ranks.rows_QK


def test_the_scorers_tensor_is_not_written_to(world):
    examples, _ = world
    shared = torch.arange(N, dtype=torch.float32)
    before = shared.clone()
    run(examples, lambda batch: shared.expand(batch.num_requests, -1), filter_seen=True)
    assert torch.equal(shared, before)


@pytest.mark.parametrize("filter_seen", [False, True])
def test_exact_lists_rank_as_the_scores_they_come_from(world, filter_seen):
    examples, scores = world
    score_all = scorer_of(scores, examples)
    full = run(examples, score_all, filter_seen=filter_seen)
    listed = run(examples, candidates=lists_of(score_all), filter_seen=filter_seen)
    for k in (1, 5, 10):
        for metric in m.ONE_TARGET.values():
            np.testing.assert_array_equal(
                metric(full.better_Q, full.tied_Q, k), metric(listed.better_Q, listed.tied_Q, k)
            )
    assert (full.rows_QK == listed.rows_QK).all()


def one_list(rows, scores, target, **changes):
    candidates = Candidates(np.array([rows]), np.array([scores], dtype=np.float32))
    better, tied, listed = rank_lists(
        candidates, np.array([target]), len(rows), num_items=N, **changes
    )
    return int(better[0]), int(tied[0]), listed[0].tolist()


def test_ties_are_read_from_the_list_and_empty_places_are_misses():
    rows, scores = [4, 7, 8, 9, -1], [3, 2, 2, 1, -np.inf]
    assert one_list(rows, scores, 8)[:2] == (1, 1)
    assert one_list(rows, scores, 9)[:2] == (3, 0)
    assert one_list(rows, scores, 30)[:2] == (ABSENT, 0)


def test_a_group_cut_by_the_end_of_the_list_is_a_miss_or_counts_in_full_when_its_size_is_known():
    groups = np.arange(N)
    groups[[7, 8, 20]] = 7  # three items share one semantic ID, two of them fit in the list
    rows, scores = [4, 7, 8], [3, 2, 2]
    assert one_list(rows, scores, 8)[:2] == (ABSENT, 0)
    for target in (7, 8, 20):
        assert one_list(rows, scores, target, groups_N=groups)[:2] == (1, 2)
    assert one_list(rows, scores, 4, groups_N=groups)[:2] == (0, 0)
    # one of the group is filtered as seen: two are left to share the place
    seen = [np.array([20])]
    assert one_list(rows, scores, 8, groups_N=groups, seen=seen)[:2] == (1, 1)


def test_shared_codes_give_the_expected_rank_of_a_full_scoring_of_ids():
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 3, (N, 3))
    examples = random_examples(rng, 50, N)
    examples = Examples(
        examples.user_rows,
        Histories.from_lists([[u % N, u // N] for u in range(50)]),
        examples.targets,
    )
    by_group = rng.normal(size=(50, 27)).astype(np.float32)
    score_all = scorer_of(by_group[:, codes @ [9, 3, 1]], examples)
    full = run(examples, score_all)
    listed = run(examples, candidates=lists_of(score_all), shared_codes_NL=codes)
    for metric in m.ONE_TARGET.values():
        np.testing.assert_allclose(
            metric(full.better_Q, full.tied_Q, 10), metric(listed.better_Q, listed.tied_Q, 10)
        )


def test_top_rows_equals_a_stable_sort_under_many_ties():
    rng = np.random.default_rng(6)
    scores = torch.from_numpy(rng.integers(0, 4, (30, 25)).astype(np.float32))
    expected = scores.sort(dim=1, stable=True, descending=True)[1][:, :6]
    assert torch.equal(top_rows(scores, 6), expected)


def test_lists_longer_than_the_catalogue_end_in_padding():
    examples = Examples(np.array([0]), Histories.from_lists([[0]]), np.array([1]))
    ranks = rank_all(examples, scores=lambda b: torch.eye(3)[:1], k=5, num_items=3, max_length=9)
    assert ranks.rows_QK.tolist() == [[0, 1, 2, -1, -1]]


def test_later_copies_are_removed_and_counted():
    rows, removed = first_copies(np.array([[3, 3, 1, 3], [2, 0, -1, -1]]))
    assert rows.tolist() == [[3, 1, -1, -1], [2, 0, -1, -1]]
    assert removed == 2


def test_wrong_inputs_say_what_was_expected(world):
    examples, scores = world
    with pytest.raises(DataError, match=r"\(B, N\) = \(16, 40\), got \(16, 3\)"):
        run(examples, lambda batch: torch.zeros(batch.num_requests, 3))
    with pytest.raises(DataError, match="NaN"):
        run(examples, lambda batch: torch.full((batch.num_requests, N), torch.nan))
    with pytest.raises(DataError, match="seen items although"):
        run(
            examples,
            candidates=lambda batch, k, exclude: lists_of(scorer_of(scores, examples))(
                batch, k, None
            ),
            filter_seen=True,
        )
    with pytest.raises(ConfigError, match="exactly one"):
        run(examples)
