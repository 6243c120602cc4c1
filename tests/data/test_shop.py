"""The simulated shop: its log follows its laws, and its answers are the truth."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from sidrec.data.shop import ASPECTS, Shop, ShopConfig, draw_lists, exposures, simulate
from sidrec.errors import ConfigError, DataError
from sidrec.types import PAD, Ints

CONFIG = ShopConfig(num_users=1500, num_items=300, num_categories=6, num_days=30, seed=7)


@pytest.fixture(scope="module")
def shop() -> Shop:
    return simulate(CONFIG)


@pytest.fixture(scope="module")
def everyone() -> Ints:
    return np.arange(CONFIG.num_users)


def next_clicks(shop: Shop) -> tuple[Ints, Ints]:
    """Pairs of consecutive clicks of one user: item before, item after."""
    events = shop.dataset.interactions
    same = np.diff(events.users_E) == 0
    return events.items_E[:-1][same], events.items_E[1:][same]


# The log


def test_the_same_config_gives_the_same_shop_and_another_seed_another() -> None:
    config = ShopConfig(num_users=50, num_items=60, num_days=10)
    first, again, other = simulate(config), simulate(config), simulate(replace(config, seed=1))
    assert first.dataset.content_hash == again.dataset.content_hash != other.dataset.content_hash
    np.testing.assert_array_equal(first.impressions.rows_RK, again.impressions.rows_RK)
    np.testing.assert_array_equal(
        first.click_probs(np.arange(50)), again.click_probs(np.arange(50))
    )
    assert first.dataset.items.texts() == again.dataset.items.texts() != other.dataset.items.texts()


def test_events_are_exactly_the_clicked_impressions(shop: Shop) -> None:
    events, log = shop.dataset.interactions, shop.impressions
    shown = log.frame().filter(log.frame()["click"])
    assert shown["item"].to_list() == events.items_E.tolist()
    assert shown["user"].to_list() == events.users_E.tolist()
    np.testing.assert_array_equal(shown["propensity"].to_numpy(), events.propensities_E)
    assert events.events_E is not None and events.weights_E is not None
    np.testing.assert_array_equal(events.events_E == "purchase", shown["purchase"].to_numpy())
    assert set(events.weights_E[events.events_E == "purchase"]) == {3.0}
    assert not (log.purchases_RK & ~log.clicks_RK).any()
    gaps = events.times_E - log.times_R[shop.event_lists_E]
    assert gaps.min() > 0 and gaps.max() <= 200_000_000


def test_a_users_clicks_come_before_the_next_list(shop: Shop) -> None:
    log = shop.impressions
    same = np.diff(log.users_R) == 0
    assert (np.diff(log.times_R)[same] > 300_000_000 - 1).mean() == 1
    opening = np.datetime64(CONFIG.start, "us").astype(np.int64)
    np.testing.assert_array_equal((log.times_R - opening) // 86_400_000_000, log.days_R)


def test_items_are_neither_shown_nor_clicked_before_their_release(shop: Shop) -> None:
    log, release_N = shop.impressions, shop.world.catalogue.release_days_N
    assert (release_N > 0).sum() == round(0.15 * CONFIG.num_items)
    assert (release_N[log.rows_RK] <= log.days_R[:, None]).all()
    first_day = shop.logged_visits(np.flatnonzero(log.days_R == 0)[:5])
    assert (shop.click_probs(first_day)[:, release_N > 0] == 0).all()


def test_recorded_propensities_equal_exposure_worked_out_again_from_the_log(shop: Shop) -> None:
    rows = np.arange(0, len(shop.impressions), 37)
    exposure_BN = shop.exposure(shop.logged_visits(rows))
    shown_BK = np.take_along_axis(exposure_BN, shop.impressions.rows_RK[rows], axis=1)
    np.testing.assert_allclose(shown_BK, shop.impressions.propensities_RK[rows], rtol=1e-5)
    np.testing.assert_allclose(exposure_BN.sum(axis=1), CONFIG.list_length, rtol=1e-5)


def test_logged_clicks_happen_as_often_as_the_known_probabilities_say(shop: Shop) -> None:
    log = shop.impressions
    visits = shop.logged_visits(np.arange(len(log)))
    probs_RK = shop.click_probs(visits, log.rows_RK) * shop.world.examination(10)
    for chosen in (
        log.days_R < 10,
        log.days_R >= 20,
        *(probs_RK.max(axis=1) > q for q in (0.2, 0.5)),
    ):
        expected, spread = probs_RK[chosen], probs_RK[chosen] * (1 - probs_RK[chosen])
        error_K = (log.clicks_RK[chosen] - expected).sum(axis=0) / np.sqrt(spread.sum(axis=0))
        assert (abs(error_K) < 4).all()
    edges = np.quantile(probs_RK, np.linspace(0, 1, 11)[1:-1])
    groups = np.digitize(probs_RK.ravel(), edges)
    error = np.bincount(groups, (log.clicks_RK - probs_RK).ravel())
    assert (
        abs(error) < 4 * np.sqrt(np.bincount(groups, (probs_RK * (1 - probs_RK)).ravel()))
    ).all()


# The catalogue


def test_text_recovers_the_hierarchy(shop: Shop) -> None:
    attributes = shop.dataset.items.attributes
    texts = (attributes["title"] + " " + attributes["description"]).to_list()
    vectors = TfidfVectorizer().fit_transform(texts)
    similarity_NN = (vectors @ vectors.T).toarray()
    np.fill_diagonal(similarity_NN, -1)
    nearest_N5 = np.argsort(-similarity_NN, axis=1)[:, :5]
    purity = {}
    for level in ("category", "subcategory", "style"):
        labels = shop.hierarchy[level].to_numpy()
        purity[level] = (labels[nearest_N5] == labels[:, None]).mean()
    assert purity["category"] > 0.9 and purity["subcategory"] > 0.75  # chance: 0.17 and 0.03
    assert purity["style"] > 0.21  # chance: 0.17


def test_every_subcategory_has_items_and_belongs_to_one_category(shop: Shop) -> None:
    pairs = shop.hierarchy.select("category", "subcategory").unique()
    assert pairs.height == CONFIG.num_leaves == shop.hierarchy["subcategory"].n_unique()
    categories = shop.dataset.items.attributes["categories"].to_list()
    assert categories == [list(row) for row in shop.hierarchy.select(pairs.columns).rows()]


# The truth


def test_the_best_list_equals_brute_force_for_every_reward() -> None:
    config = ShopConfig(
        num_users=8, num_items=6, num_categories=2, num_subcategories=2, num_days=20, list_length=3
    )
    shop, users = simulate(config), np.arange(8)
    lists = np.array(list(permutations(range(6), 3)))
    for reward in ("click", "purchase", "profit"):
        best = shop.best(users, 3, reward)
        found_B = shop.true_reward(users, best.rows_BK, reward)
        for user in users:
            every = shop.true_reward(np.full(len(lists), user), lists, reward)
            assert found_B[user] == pytest.approx(every.max(), rel=1e-6)
            np.testing.assert_array_equal(lists[every.argmax()], best.rows_BK[user])


def test_the_best_list_beats_the_logging_policy_popularity_and_random(
    shop: Shop, everyone: Ints
) -> None:
    rng = np.random.default_rng(0)
    counts_N = shop.dataset.interactions.histories.counts(CONFIG.num_items)
    popular = np.tile(np.argsort(-counts_N)[:10], (len(everyone), 1))
    random = np.array([rng.permutation(CONFIG.num_items)[:10] for _ in everyone])
    lists = {
        "best": shop.best(everyone, 10).rows_BK,
        "logging": shop.logging_lists(everyone, rng),
        "popular": popular,
        "random": random,
    }
    rewards = {name: shop.true_reward(everyone, rows) for name, rows in lists.items()}
    assert all((rewards["best"] >= rewards[name] - 1e-6).all() for name in lists)
    means = {name: reward.mean() for name, reward in rewards.items()}
    assert means["best"] > 2 * max(means["logging"], means["popular"])
    assert min(means["logging"], means["popular"]) > 1.2 * means["random"]


def test_profit_and_clicks_want_different_lists(shop: Shop, everyone: Ints) -> None:
    by_click = shop.best(everyone, 10).rows_BK
    by_profit = shop.best(everyone, 10, "profit").rows_BK
    reward = shop.true_reward
    assert reward(everyone, by_profit).mean() < 0.9 * reward(everyone, by_click).mean()
    earned = [reward(everyone, rows, "profit").mean() for rows in (by_profit, by_click)]
    assert earned[0] > 1.2 * earned[1]


def test_the_mean_of_sampled_clicks_and_profit_equals_the_true_reward(shop: Shop) -> None:
    users = np.repeat(np.arange(20), 2000)
    rows_BK = np.repeat(shop.best(np.arange(20), 5).rows_BK, 2000, axis=0)
    response = shop.respond(users, rows_BK, np.random.default_rng(3))
    profit_BK = response.purchases_BK * shop.margins_N[rows_BK]
    for reward, drawn_BK in (("click", response.clicks_BK), ("profit", profit_BK)):
        drawn = drawn_BK.sum(axis=1).reshape(20, -1)
        truth = shop.true_reward(users[::2000], rows_BK[::2000], reward)
        errors = (drawn.mean(axis=1) - truth) / (drawn.std(axis=1) / np.sqrt(2000))
        assert abs(errors).max() < 4
        assert (errors**2).mean() < 2.2  # about 1 when unbiased


def test_true_reward_adds_up_by_hand(shop: Shop) -> None:
    probs = shop.click_probs(np.array([3]))[0]
    by_hand = probs[8] + 2**-0.7 * 0 + 3**-0.7 * probs[5]
    assert shop.true_reward([3], [[8, PAD, 5]])[0] == pytest.approx(by_hand, rel=1e-5)


def test_aspects_with_the_users_weights_rebuild_the_click_probability(shop: Shop) -> None:
    visits = shop.logged_visits(np.arange(100, 140))
    aspects = shop.aspects(visits)
    weights_BA = shop.tastes.weights_UA[visits.users_B]
    logits = CONFIG.click_bias + shop.world.quality_DN[visits.days_B]
    logits = logits + sum(
        w[:, None] * aspects[a] for w, a in zip(weights_BA.T, ASPECTS, strict=True)
    )
    probs_BN = shop.click_probs(visits)
    on_sale = probs_BN > 0
    np.testing.assert_allclose(probs_BN[on_sale], (1 / (1 + np.exp(-logits)))[on_sale], rtol=1e-4)


def test_click_probability_averages_over_an_uncertain_interest(shop: Shop) -> None:
    visits = shop.next_visits(np.array([11]))
    sure = [
        shop.click_probs(replace(visits, belief_BG=shop.world.certain(np.array([g]))))[0]
        for g in range(CONFIG.num_leaves)
    ]
    np.testing.assert_allclose(
        shop.click_probs(visits)[0], visits.belief_BG[0] @ np.array(sure), rtol=1e-4
    )
    assert visits.belief_BG.sum() == pytest.approx(1, abs=1e-5)


def test_asking_for_given_rows_equals_asking_for_all(shop: Shop) -> None:
    users = np.arange(40)
    rows = np.random.default_rng(1).integers(CONFIG.num_items, size=(40, 7))
    every = shop.click_probs(users)
    np.testing.assert_allclose(
        shop.click_probs(users, rows), np.take_along_axis(every, rows, axis=1), rtol=1e-5
    )


def test_clicks_carry_the_session_on(shop: Shop) -> None:
    visits = shop.next_visits(np.arange(200))
    rows = shop.best(visits, 10).rows_BK
    response = shop.respond(visits, rows, np.random.default_rng(0))
    after = shop.after(visits, response)
    clicked = response.clicks_BK.any(axis=1)
    last = np.array(
        [r[c][-1] for r, c in zip(rows[clicked], response.clicks_BK[clicked], strict=True)]
    )
    np.testing.assert_array_equal(after.recent_BM[clicked, -1], last)
    leaf = shop.world.catalogue.subcategories_N[last]
    assert (after.belief_BG[clicked, leaf] >= CONFIG.stay).all()
    np.testing.assert_array_equal(after.recent_BM[~clicked], visits.recent_BM[~clicked])


# Bias


def test_drawn_lists_keep_the_exposures_exactly() -> None:
    rng = np.random.default_rng(0)
    weights_BN = np.array([[1, 2, 3, 0, 5, 6, 200, 8], [1, 1, 1, 1, 0, 0, 1, 1]], dtype=np.float32)
    exposure_BN = exposures(weights_BN, 3, 0.1)
    np.testing.assert_allclose(exposure_BN.sum(axis=1), 3, rtol=1e-6)
    assert exposure_BN.max() == pytest.approx(0.9) and exposure_BN[0, 3] == 0
    np.testing.assert_allclose(exposure_BN[1, weights_BN[1] > 0], 0.5)
    shown_BN, draws = np.zeros((2, 8)), 200
    for _ in range(draws):  # a fresh order of the items each time
        lists = draw_lists(np.repeat(exposure_BN, 100, axis=0), 3, rng)
        assert (np.diff(np.sort(lists, axis=1), axis=1) > 0).all()
        shown_BN += [
            np.bincount(lists[half].ravel(), minlength=8) for half in np.split(np.arange(200), 2)
        ]
    error = shown_BN / (100 * draws) - exposure_BN
    assert (abs(error) <= 4 * np.sqrt(exposure_BN * (1 - exposure_BN) / (100 * draws)) + 1e-9).all()
    places = np.take_along_axis(np.repeat(exposure_BN, 100, axis=0), lists, axis=1)
    assert (np.diff(places, axis=1) <= 0).all()


def test_position_bias_is_visible_and_can_be_switched_off(shop: Shop) -> None:
    log = shop.impressions
    visits = shop.logged_visits(np.arange(len(log)))
    probs_RK = shop.click_probs(visits, log.rows_RK)
    looked_K = log.clicks_RK.sum(axis=0) / probs_RK.sum(axis=0)
    np.testing.assert_allclose(looked_K, np.arange(1, 11) ** -0.7, rtol=0.15)
    flat = simulate(ShopConfig(num_users=50, num_items=60, num_days=5, position_bias=0))
    assert (flat.world.examination(10) == 1).all()


def test_importance_weights_undo_exposure_bias_and_plain_averages_do_not(shop: Shop) -> None:
    log, places_K = shop.impressions, shop.world.examination(10)
    rows = np.arange(0, len(log), 2)
    clicks_RK, rows_RK = log.clicks_RK[rows], log.rows_RK[rows]
    old_N = shop.world.catalogue.release_days_N <= 0
    old_RK = old_N[rows_RK]
    # The policy to judge: one old item, drawn uniformly, at the first place of a list.
    old_RX = np.tile(np.flatnonzero(old_N), (len(rows), 1))
    truth = shop.click_probs(shop.logged_visits(rows), old_RX).mean()

    looked_RK = clicks_RK / places_K * old_RK  # position undone
    weighted_R = (looked_RK / log.propensities_RK[rows]).sum(axis=1) / old_N.sum()
    assert abs(weighted_R.mean() - truth) < 3 * weighted_R.std() / np.sqrt(len(rows))

    naive = looked_RK[old_RK]  # shown items are those that users like
    assert naive.mean() - truth > 10 * naive.std() / np.sqrt(len(naive))
    assert clicks_RK[old_RK].mean() < 0.9 * truth  # and low places are overlooked


def test_popular_items_are_shown_more_and_more(shop: Shop) -> None:
    log = shop.impressions
    top_shares = []
    for days in (log.days_R < 3, log.days_R >= 27):
        shows = np.sort(np.bincount(log.rows_RK[days].ravel(), minlength=CONFIG.num_items))
        top_shares.append(shows[-30:].sum() / shows.sum())
    assert top_shares[1] > 1.1 * top_shares[0]


# Behaviour


def test_tastes_drift_and_clicks_follow(shop: Shop, everyone: Ints) -> None:
    first, last = shop.tastes.first_UG, shop.tastes.last_UG
    moved = abs(first - last).sum(axis=1).mean() / 2
    assert 0.2 < moved <= CONFIG.taste_drift
    halfway = shop.tastes.lasting(everyone, np.full(len(everyone), 14.5))
    np.testing.assert_allclose(halfway, (first + last) / 2, atol=1e-6)
    still = simulate(ShopConfig(num_users=50, num_items=60, num_days=5, taste_drift=0))
    np.testing.assert_allclose(still.tastes.first_UG, still.tastes.last_UG, atol=1e-6)

    users_E = shop.dataset.interactions.users_E
    leaves_E = shop.world.catalogue.subcategories_N[shop.dataset.interactions.items_E]
    towards_E = last[users_E, leaves_E] - first[users_E, leaves_E]
    days_E = shop.impressions.days_R[shop.event_lists_E]
    early, late = towards_E[days_E < 10], towards_E[days_E >= 20]
    assert late.mean() - early.mean() > 8 * towards_E.std() / np.sqrt(min(len(early), len(late)))


def test_appetite_for_novelty_means_new_items_more_interests_and_fewer_repeats(shop: Shop) -> None:
    events, catalogue = shop.dataset.interactions, shop.world.catalogue
    keen_E = shop.tastes.novelty_U[events.users_E] > 0.6
    days_E = shop.impressions.days_R[shop.event_lists_E]
    fresh_E = shop.world.fresh_DN[days_E, events.items_E] > 0.3
    assert fresh_E[keen_E].mean() > 1.25 * fresh_E[~keen_E].mean()
    pairs = np.stack([events.users_E, events.items_E], axis=1)
    repeats = [1 - len(np.unique(pairs[k], axis=0)) / k.sum() for k in (keen_E, ~keen_E)]
    assert repeats[0] < 0.6 * repeats[1]
    taste_E = shop.tastes.lasting(events.users_E, days_E)
    planned_E = np.take_along_axis(taste_E, catalogue.subcategories_N[events.items_E][:, None], 1)
    assert planned_E[keen_E].mean() < planned_E[~keen_E].mean()


def test_what_comes_next_depends_on_what_came_last(shop: Shop) -> None:
    before, after = next_clicks(shop)
    half = len(before) // 2
    N, leaves_N = CONFIG.num_items, shop.world.catalogue.subcategories_N
    counts_N = np.bincount(after[:half], minlength=N)
    popular = np.argsort(-counts_N)[:10]
    in_leaf_NN = leaves_N[:, None] == leaves_N
    markov_NK = np.argsort(-(counts_N * in_leaf_NN), axis=1)[:, :10]
    popularity_hits = np.isin(after[half:], popular).mean()
    markov_hits = (markov_NK[before[half:]] == after[half:, None]).any(axis=1).mean()
    assert markov_hits > 1.5 * popularity_hits


def test_interest_moves_along_the_known_links(shop: Shop) -> None:
    before, after = (shop.world.catalogue.subcategories_N[rows] for rows in next_clicks(shop))
    moved = before != after
    linked = shop.world.related_GG[before, after][moved] > 0
    shuffled = np.random.default_rng(0).permutation(after[moved])
    assert linked.mean() > 1.5 * (shop.world.related_GG[before[moved], shuffled] > 0).mean()


def test_interest_stays_as_often_as_written(shop: Shop) -> None:
    log, catalogue = shop.impressions, shop.world.catalogue
    last_place_R = 9 - np.argmax(log.clicks_RK[:, ::-1], axis=1)
    last_leaf_R = catalogue.subcategories_N[log.rows_RK[np.arange(len(log)), last_place_R]]
    anchors_R = np.where(log.clicks_RK.any(axis=1), last_leaf_R, log.interests_R)
    pairs = np.flatnonzero(np.diff(log.users_R) == 0)
    users, days, anchors = log.users_R[pairs], log.days_R[pairs + 1], anchors_R[pairs]
    wander = shop.tastes.novelty_U[users] / 2
    taste = shop.tastes.lasting(users, days)[np.arange(len(pairs)), anchors]
    same_session = log.days_R[pairs] == days
    expected = np.where(same_session, 0.6, 0.3)
    expected += (0.8 - expected) * ((1 - wander) * taste + wander / CONFIG.num_leaves)
    stayed = log.interests_R[pairs + 1] == anchors
    for chosen in (same_session, ~same_session):
        error = (stayed - expected)[chosen].sum()
        assert abs(error) < 4 * np.sqrt((expected * (1 - expected))[chosen].sum())


def test_context_knows_the_weekend(shop: Shop) -> None:
    first_saturday = 5  # 2026-01-05 is a Monday
    jumps = abs(np.diff(shop.world.context_DG, axis=0)).max(axis=1)
    usual = jumps[first_saturday]  # Saturday to Sunday: season only
    assert jumps[first_saturday - 1] > 5 * usual and jumps[first_saturday + 1] > 5 * usual
    assert jumps[: first_saturday - 1].max() < 2 * usual


def test_appeal_of_items_moves_in_time_unless_told_not_to(shop: Shop) -> None:
    assert shop.world.quality_DN.std(axis=0).mean() > 0.1
    still = simulate(ShopConfig(num_users=50, num_items=60, num_days=5, popularity_drift=0))
    assert still.world.quality_DN.std(axis=0).max() < 1e-6


# Edges and errors


def test_the_smallest_shop_still_works() -> None:
    config = ShopConfig(
        num_users=1, num_items=2, num_categories=1, num_subcategories=1, list_length=1, click_bias=0
    )
    shop = simulate(config)
    assert shop.best(np.array([0]), 1).rows_BK.shape == (1, 1)
    assert shop.users.height == 1


def test_a_list_longer_than_the_shop_ends_in_pad(shop: Shop) -> None:
    early = shop.logged_visits(np.flatnonzero(shop.impressions.days_R == 0)[:3])
    best = shop.best(early, CONFIG.num_items)
    on_sale = (shop.world.catalogue.release_days_N <= 0).sum()
    assert ((best.rows_BK != PAD).sum(axis=1) == on_sale).all()
    assert np.isneginf(best.scores_BK[best.rows_BK == PAD]).all()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"num_users": 0}, "num_users must be at least 1, got 0"),
        ({"num_categories": 99}, "between 1 and 12, got 99"),
        ({"stay": 0.7, "follow": 0.5}, "at most 1"),
        ({"num_items": 10}, "list_length must be at most"),
        ({"start": "tomorrow"}, "date like 2026-01-05"),
        ({"click_bias": -80.0}, "saw no click"),
        ({"position_bias": float("nan")}, "position_bias"),
    ],
)
def test_unusable_settings_are_named(setting: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        simulate(replace(ShopConfig(num_users=20, num_items=50, num_days=5), **setting))


def test_unusable_lists_are_named(shop: Shop) -> None:
    for rows, words in (
        ([[1, 1]], "twice"),
        ([[CONFIG.num_items]], "outside the catalogue"),
        ([[1], [2]], "B = 1"),
    ):
        with pytest.raises(DataError, match=words):
            shop.true_reward([0], rows)
    with pytest.raises(ConfigError, match="reward must be one of"):
        shop.true_reward([0], [[1]], "money")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="shorten the lists"):
        exposures(np.ones((1, 3), dtype=np.float32), 3, 0.1)
