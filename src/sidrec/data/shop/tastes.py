"""The simulated users: who they are, what they like, and how that drifts.

Age and gender tilt which categories a user cares for; a few subcategories become lasting interests.
A share of them is replaced, linearly in time, so tastes are known on every day of the log.

Shapes: U users, B users asked about, G subcategories, S styles, A aspects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from sidrec.data.shop.config import ShopConfig
from sidrec.data.shop.words import STYLES
from sidrec.types import Floats, Ints, as_ids

AGES = ("18-29", "30-44", "45-59", "60+")
GENDERS = ("female", "male", "other")
BUDGETS = ("low", "middle", "high")
ASPECTS = ("profile", "interest", "novelty", "context")
BACKGROUND = 0.1  # share of a taste that is spread like the tastes of the user's age and gender


@dataclass(frozen=True, eq=False)
class Tastes:
    """What is true of each user; nothing here is visible to a recommender but `users`."""

    users: pl.DataFrame
    """U rows: user_id, age, gender, budget."""
    first_UG: Floats
    """Lasting interests on the first day; each row sums to 1."""
    last_UG: Floats
    """Lasting interests on the last day; each row sums to 1."""
    styles_US: Floats
    """Liking of each style, in [-1, 1]."""
    budgets_U: Floats
    """Preferred price level, in standard deviations."""
    weights_UA: Floats
    """What each user makes of profile, interest, novelty and context: at least 0, mean about 1."""
    activity_U: Floats
    """Probability of a session on an ordinary day."""
    num_days: int

    @property
    def novelty_U(self) -> Floats:
        """Appetite for novelty in [0, 1]: new items, unfamiliar items, unplanned interests."""
        return self.weights_UA[:, ASPECTS.index("novelty")] / np.float32(2)

    def lasting(self, users_B: Ints, days_B: Ints) -> Floats:
        """Lasting interests (B, G) on the given days; each row sums to 1."""
        share_B1 = np.clip(days_B / max(self.num_days - 1, 1), 0, 1)[:, None].astype(np.float32)
        first_BG, last_BG = self.first_UG[users_B], self.last_UG[users_B]
        return (first_BG + share_B1 * (last_BG - first_BG)).astype(np.float32)


def build_tastes(config: ShopConfig, rng: np.random.Generator) -> Tastes:
    """Users drawn from four ages, three genders and three budgets of unequal size."""
    U, C, G = config.num_users, config.num_categories, config.num_leaves
    ages_U = rng.choice(len(AGES), U, p=[0.35, 0.3, 0.2, 0.15])
    genders_U = rng.choice(len(GENDERS), U, p=[0.5, 0.44, 0.06])
    budgets_U = rng.choice(len(BUDGETS), U, p=[0.4, 0.4, 0.2])
    tilt_UC = (
        rng.normal(0, 0.7, (len(AGES), C))[ages_U]
        + rng.normal(0, 0.5, (len(GENDERS), C))[genders_U]
    )
    group_UG = np.repeat(np.exp(tilt_UC), config.num_subcategories, axis=1)
    group_UG = group_UG * rng.dirichlet(np.full(G, 5.0))
    group_UG /= group_UG.sum(axis=1, keepdims=True)
    first_UG = _interests(group_UG, rng)
    last_UG = (1 - config.taste_drift) * first_UG + config.taste_drift * _interests(group_UG, rng)
    gamma_U = rng.gamma(3.0, 1 / 3, U)
    users = pl.DataFrame(
        {
            "user_id": as_ids(f"user-{row:06d}" for row in range(U)).astype(str),
            "age": np.array(AGES)[ages_U],
            "gender": np.array(GENDERS)[genders_U],
            "budget": np.array(BUDGETS)[budgets_U],
        }
    )
    novelty_U = 2 * rng.beta(1.5, 1.5, U)
    others_U3 = rng.uniform(0.5, 1.5, (U, 3))
    return Tastes(
        users,
        first_UG.astype(np.float32),
        last_UG.astype(np.float32),
        rng.uniform(-1, 1, (U, len(STYLES))).astype(np.float32),
        (budgets_U - 1 + rng.normal(0, 0.3, U)).astype(np.float32),
        np.insert(others_U3, ASPECTS.index("novelty"), novelty_U, axis=1).astype(np.float32),
        (config.visits_per_day * gamma_U).clip(0.08, 0.95).astype(np.float32),
        config.num_days,
    )


def _interests(group_UG: Floats, rng: np.random.Generator) -> Floats:
    """Two to four interests a user, drawn without replacement from the user's group (Gumbel)."""
    U, G = group_UG.shape
    chosen_UG = np.argsort(rng.gumbel(size=(U, G)) + np.log(group_UG), axis=1)[:, ::-1]
    width = min(4, G)
    strengths = rng.gamma(2.0, size=(U, width)) + 0.1
    strengths *= np.arange(width) < rng.integers(2, 5, U)[:, None]
    strengths /= strengths.sum(axis=1, keepdims=True)
    interests_UG = BACKGROUND * group_UG
    np.put_along_axis(
        interests_UG,
        chosen_UG[:, :width],
        np.take_along_axis(interests_UG, chosen_UG[:, :width], axis=1)
        + (1 - BACKGROUND) * strengths,
        axis=1,
    )
    return interests_UG
