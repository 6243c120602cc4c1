import numpy as np
import pytest

from sidrec.alignment.judge.weights import (
    HISTORY_FEATURES,
    WeightsConfig,
    fit_weights,
    normalised,
    uniform,
)
from sidrec.errors import ConfigError

ASPECTS = ("profile", "future", "novelty")


def planted(num=600, seed=0):
    """Users who decide by novelty where feature 0 is positive, else by profile."""
    rng = np.random.default_rng(seed)
    features_RF = rng.standard_normal((num, 2)).astype(np.float32)
    scores_RGA = rng.uniform(0, 1, (num, 5, 3)).astype(np.float32)
    aspect_R = np.where(features_RF[:, 0] > 0, 2, 0)
    best_R = scores_RGA[np.arange(num), :, aspect_R].argmax(axis=1)
    for row, best in enumerate(best_R):
        scores_RGA[row, [0, best]] = scores_RGA[row, [best, 0]]
    return features_RF, scores_RGA


@pytest.mark.parametrize("kind", ["learned", "levels"])
def test_pairs_teach_which_users_look_at_which_aspect(kind):
    features_RF, scores_RGA = planted()
    weights = fit_weights(kind, ASPECTS, features_RF, scores_RGA, WeightsConfig(), 0)
    new_BF, _ = planted(200, seed=1)
    weights_BA = weights(new_BF)
    np.testing.assert_allclose(weights_BA.sum(axis=1), 1, rtol=1e-5)
    assert (weights_BA >= 0).all()
    keen = new_BF[:, 0] > 0.5
    shy = new_BF[:, 0] < -0.5
    assert weights_BA[keen, 2].mean() > weights_BA[shy, 2].mean() + 0.1
    assert weights_BA[shy, 0].mean() > weights_BA[keen, 0].mean() + 0.1
    assert weights_BA[:, 1].mean() < weights_BA[:, [0, 2]].mean()


def test_importance_levels_count_by_their_ratio_alone():
    levels_BA = np.array([[1.0, 2, 5], [3, 3, 3], [0, 0, 4]])
    for scale in (0.01, 7.0):
        np.testing.assert_allclose(normalised(scale * levels_BA), normalised(levels_BA), rtol=1e-6)
    np.testing.assert_allclose(normalised(levels_BA).sum(axis=1), 1)
    np.testing.assert_allclose(normalised(np.zeros((1, 4))), 0.25)


def test_same_seed_gives_the_same_weights():
    features_RF, scores_RGA = planted(100)
    first, second = (
        fit_weights("levels", ASPECTS, features_RF, scores_RGA, WeightsConfig(epochs=5), 3)
        for _ in range(2)
    )
    np.testing.assert_array_equal(first(features_RF), second(features_RF))


def test_candidates_without_a_score_are_left_out():
    features_RF, scores_RGA = planted(300)
    holes_RGA = scores_RGA.copy()
    holes_RGA[:, 3:] = np.nan
    full = fit_weights("learned", ASPECTS, features_RF, scores_RGA[:, :3], WeightsConfig(), 0)
    holed = fit_weights("learned", ASPECTS, features_RF, holes_RGA, WeightsConfig(), 0)
    np.testing.assert_allclose(full(features_RF), holed(features_RF), atol=1e-3)


def test_uniform_weights_ask_for_nothing():
    weights_BA = uniform(ASPECTS)(np.zeros((2, len(HISTORY_FEATURES)), dtype=np.float32))
    np.testing.assert_allclose(weights_BA, 1 / 3)


def test_no_pair_says_what_to_do():
    scores_RGA = np.full((4, 3, 3), np.nan, dtype=np.float32)
    features_RF = np.zeros((4, 2), dtype=np.float32)
    with pytest.raises(ConfigError, match=r"no pair to learn weights from.*raise judge\.budget"):
        fit_weights("learned", ASPECTS, features_RF, scores_RGA, WeightsConfig(), 0)
