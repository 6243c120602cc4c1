from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from sidrec.alignment.judge.aspects import Evidence
from sidrec.alignment.judge.embedded import EmbeddedConfig
from sidrec.alignment.judge.judge import Judge, JudgeConfig
from sidrec.alignment.judge.statistics import NUM_FOLDS, PairCounts, Statistics, kinds_of
from sidrec.alignment.rewards.mixture import Mixture
from sidrec.alignment.values import AlignmentContext
from sidrec.data import split
from sidrec.data.shop import ShopConfig, simulate
from sidrec.embeddings.lsa import Lsa, LsaConfig
from sidrec.errors import ConfigError, DataError
from sidrec.types import CatalogueContext, Histories, HistoryBatch, Items, SemanticIds, as_ids


@pytest.fixture(scope="module")
def judge(context):
    return Judge.build(context, JudgeConfig())


@pytest.fixture(scope="module")
def shop_judged():
    """A judge of a small shop, and its evidence and weights on held-out events."""
    shop = simulate(ShopConfig(num_users=400, num_items=300, num_days=40))
    items, parts = shop.dataset.items, split(shop.dataset)
    vectors = Lsa.fit(CatalogueContext(items, parts.train), LsaConfig(dim=64)).embed(items)
    ids = SemanticIds(items.item_ids, np.arange(len(items))[:, None], (len(items),))
    judge = Judge.build(AlignmentContext(items, vectors, ids, parts.train), JudgeConfig())
    rng = np.random.default_rng(0)
    test = parts.test
    random_Q = rng.integers(len(items), size=len(test))
    rows_QG = np.stack([test.targets, random_Q], axis=1)
    evidence = judge.evidence(test.histories, rows_QG, with_texts=False)
    return shop, test, judge, evidence, judge.weights(test.histories)


def auc(scores_Q2):
    gaps = scores_Q2[:, 0] - scores_Q2[:, 1]
    return (gaps > 0).mean() + 0.5 * (gaps == 0).mean()


def test_on_the_shop_the_next_event_scores_above_a_random_item(shop_judged):
    _, _, _, evidence, weights_QA = shop_judged
    whole = auc((evidence.scores_BGA * weights_QA[:, None]).sum(axis=2))
    single = [auc(evidence.scores_BGA[..., place]) for place in range(3)]
    assert whole > 0.7
    noise = 2 * np.sqrt(0.25 / len(weights_QA))
    assert whole > max(single) - noise


def test_on_the_shop_users_who_like_novelty_get_more_weight_of_it(shop_judged):
    shop, test, judge, _, weights_QA = shop_judged
    novelty_Q = weights_QA[:, judge.aspects.index("novelty")]
    assert np.corrcoef(novelty_Q, shop.tastes.novelty_U[test.user_rows])[0, 1] > 0.15
    assert novelty_Q.std() > 0.005


def test_scores_lie_in_range_and_weights_are_convex(judge, rollouts):
    rewards_BG = judge(rollouts)
    assert rewards_BG.shape == (3, 4) and rewards_BG.dtype == torch.float32
    real_BG = rollouts.real_BG
    assert torch.isfinite(rewards_BG[real_BG]).all() and rewards_BG[~real_BG].isnan().all()
    weights_BA = judge.weights([[0, 4, 8], [1, 5, 1, 5], []])
    np.testing.assert_allclose(weights_BA.sum(axis=1), 1, rtol=1e-5)
    assert (weights_BA >= 0).all()
    assert not np.allclose(weights_BA[0], weights_BA[1])


def test_an_id_without_an_item_is_worth_the_least(judge, rollouts):
    rewards_BG = judge(rollouts)
    assert rewards_BG[1, 1] < rewards_BG[1, [0, 2, 3]].min()


def test_permuting_rollouts_permutes_rewards_and_equal_items_score_alike(judge, rollouts):
    order = torch.tensor([2, 3, 0, 1])
    turned = replace(
        rollouts, rows_BG=rollouts.rows_BG[:, order], lengths_BG=rollouts.lengths_BG[:, order]
    )
    first_BG, second_BG = judge(rollouts), judge(turned)
    torch.testing.assert_close(first_BG[:, order], second_BG, equal_nan=True)
    assert first_BG[0, 0] == first_BG[0, 3]


def test_the_truth_is_not_looked_at(judge, rollouts):
    batch = rollouts.batch
    blind = replace(
        rollouts,
        targets_B=rollouts.targets_B + 1,
        target_codes_BL=torch.zeros_like(rollouts.target_codes_BL),
        batch=HistoryBatch(batch.items_BT, batch.lengths_B, torch.full_like(batch.items_BT, 3)),
    )
    torch.testing.assert_close(judge(rollouts), judge(blind), equal_nan=True)


def test_padding_changes_nothing(judge, rollouts):
    batch = rollouts.batch
    wide_BT = torch.nn.functional.pad(batch.items_BT, (0, 4), value=7)
    padded = replace(rollouts, batch=HistoryBatch(wide_BT, batch.lengths_B))
    torch.testing.assert_close(judge(rollouts), judge(padded), equal_nan=True)


def test_evidence_is_said_in_words_of_the_history(judge, context):
    evidence = judge.evidence([[0, 4, 8]], np.array([[12, 0, -1]]))
    titles = context.items.titles()
    profile, future, novelty = evidence.texts[0][0]
    assert any(titles[row] in profile for row in (0, 4, 8))
    assert titles[8] in future and "%" in future
    assert "not in the history" in novelty and "in the history already" in evidence.texts[0][1][2]
    assert evidence.texts[0][2] == ("", "", "")
    assert evidence.scores_BGA[0, 1, 2] == 0 and evidence.scores_BGA[0, 0, 2] >= 0.5


def test_without_a_session_context_is_dropped_and_with_one_it_counts_the_last_events(context):
    assert Judge.build(context, JudgeConfig()).aspects == ("profile", "future", "novelty")
    config = JudgeConfig(embedded=EmbeddedConfig(session_length=1))
    judge = Judge.build(context, config)
    near, far = judge.evidence([[0, 1, 8]], np.array([[9, 2]])).scores_BGA[0, :, 3]
    assert near > far  # item 9 is of the cluster of item 8, item 2 of that of 0 and 1


def test_same_input_same_judge(context, judge, rollouts):
    again = Judge.build(context, JudgeConfig())
    torch.testing.assert_close(judge(rollouts), again(rollouts), equal_nan=True)


def test_building_leaves_global_randomness_alone(context):
    before = torch.random.get_rng_state()
    Judge.build(context, JudgeConfig(weights="levels"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_fold_left_out_counts_as_if_its_users_had_never_been():
    train = Histories.from_lists([[0, 1, 2], [1, 2, 0], [2, 0], [0, 1]])
    folds_U = np.array([0, 1, 2, 3])
    pairs = PairCounts.of(train, 3, folds_U)
    left, right = np.meshgrid(np.arange(3), np.arange(3), indexing="ij")
    for fold in range(NUM_FOLDS):
        rest = train.take(np.flatnonzero(folds_U != fold))
        alone = PairCounts.of(rest, 3, folds_U[folds_U != fold])
        np.testing.assert_allclose(
            pairs(left, right, np.int64(fold)), alone(left, right, np.int64(-1)), rtol=1e-6
        )
    assert pairs(np.array([0]), np.array([1]), np.array([-1]))[0] == 2


def test_kinds_take_the_first_and_last_entry_of_a_path_and_the_brand():
    frame = pl.DataFrame(
        {
            "categories": [["home", "cup"], ["home", "pan"], ["garden", "cup"], []],
            "brand": ["Oak", "oak ", "unknown", "Elm"],
        }
    )
    codes_NC = kinds_of(Items(as_ids("abcd"), frame))
    np.testing.assert_array_equal(codes_NC, [[0, 0, 0], [1, 0, 0], [0, 1, -1], [-1, -1, 1]])


def test_only_training_events_are_counted(context):
    statistics = Statistics.of(context.items, context.vectors.vectors, context.train, 0)
    np.testing.assert_allclose(
        np.expm1(statistics.popularity_KN[-1]), context.train_counts_N, rtol=1e-5
    )


def test_budget_is_kept_and_the_rest_is_counted(context, rollouts):
    judge = Judge.build(context, JudgeConfig(budget=2))
    rewards_BG = judge(rollouts)
    assert torch.isfinite(rewards_BG[:2]).all() and rewards_BG[2].isnan().all()
    assert judge.counts()["calls"] == 2 and judge.counts()["over_budget"] == 3
    assert judge(rollouts).isnan().all() and judge.counts()["calls"] == 2


def test_the_weight_is_left_to_the_sum_it_joins(context, rollouts, judge):
    double = Judge.build(context, JudgeConfig(weight=2.0))
    torch.testing.assert_close(judge(rollouts), double(rollouts), equal_nan=True)
    total, _ = Mixture((("judge", double, double.config.weight),))(rollouts)
    torch.testing.assert_close(total, 2 * judge(rollouts), equal_nan=True)


def test_similarity_judges_by_words_alone(context, rollouts):
    judge = Judge.build(context, JudgeConfig(backend="similarity", weights="uniform"))
    evidence = judge.evidence([[0, 4]], np.array([[1, 8, 0, -1]]))
    same, other, repeat, none = evidence.scores_BGA[0]
    assert same[0] > other[0] and repeat[2] == 0 and np.isnan(none).all()
    assert torch.isfinite(judge(rollouts)[rollouts.real_BG]).all()


def test_histories_too_short_to_learn_from_say_so(context):
    single = replace(context, train=Histories.from_lists([[0], [1]]))
    with pytest.raises(DataError, match="sequences of two events or more"):
        Judge.build(single, JudgeConfig())


def test_evidence_outside_its_range_is_refused():
    with pytest.raises(DataError, match=r"evidence of novelty must lie in \[0.0, 1.0\]"):
        Evidence(("profile", "novelty"), np.array([[[0.0, -0.5]]], dtype=np.float32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "endpoint"}, r"judge\.model must name a model"),
        ({"budget": -1}, r"judge\.budget must be at least 0"),
        ({"retries": -1}, r"judge\.retries must be at least 0"),
        ({"timeout_seconds": 0.0}, r"judge\.timeout_seconds must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        JudgeConfig(**settings)
