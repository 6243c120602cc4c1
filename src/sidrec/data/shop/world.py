"""The laws of the simulated shop: interest, clicks, what the logging policy shows.

Everything is a known formula of a visit: who, which day, what the user may be after just now, and
what was clicked lately. Simulation samples from these formulas, and the answers of `Shop` evaluate
them, so that log and truth cannot drift apart.

Source:   click model: position-based examination (Craswell et al. 2008, WSDM), P(click) =
          P(look at place k) * P(click | looked at).
Cost:     O(B N) a batch for exposure and full click probabilities, O(B K) for a list.
Shapes:   B visits, N items, K places, G subcategories, C categories, D days + 1, M memory,
          U users, A aspects. X is N where all items are asked for, and K for given lists.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidrec.data.shop.catalogue import Catalogue
from sidrec.data.shop.config import ShopConfig
from sidrec.data.shop.logger import exposures
from sidrec.data.shop.tastes import ASPECTS, Tastes
from sidrec.types import PAD, Bools, Floats, Ints

FRESH_DAYS = 14.0  # an item's newness falls by e in this many days
BUDGET_STEEPNESS = 0.4


@dataclass(frozen=True, eq=False)
class Visits:
    """B moments at which users look at one list each: all that their clicks depend on."""

    users_B: Ints
    days_B: Ints
    """Days since the start of the log."""
    belief_BG: Floats
    """Probability that the current interest is each subcategory; one-hot where it is known."""
    recent_BM: Ints
    """Catalogue rows of the last clicks, newest last, −1 in front."""

    def __len__(self) -> int:
        return len(self.users_B)

    def take(self, rows: Ints) -> Visits:
        """The chosen visits, in the given order."""
        return Visits(
            self.users_B[rows], self.days_B[rows], self.belief_BG[rows], self.recent_BM[rows]
        )


@dataclass(frozen=True, eq=False)
class Response:
    """What users did with the lists they were shown."""

    clicks_BK: Bools
    purchases_BK: Bools
    """Clicks that ended in a purchase."""
    interests_B: Ints
    """The subcategory each user was after."""
    anchors_B: Ints
    """Where the next interest starts from: the last click's subcategory, else `interests_B`."""
    recent_BM: Ints


@dataclass(frozen=True, eq=False)
class World:
    """Catalogue, tastes, and how appeal and interest move."""

    config: ShopConfig
    catalogue: Catalogue
    tastes: Tastes
    quality_DN: Floats
    """Appeal to everybody, in logits: a constant plus a slow wave for each item."""
    fresh_DN: Floats
    """Newness in [0, 1]; 0 for items that were always there."""
    context_DG: Floats
    """Season and weekday, in [-1, 1]."""
    related_GG: Floats
    """Probability of the next interest, given that it moves on to a related subcategory."""

    def arrive(
        self, users_B: Ints, days_B: Ints, anchors_B: Ints, recent_BM: Ints, *, new_session: bool
    ) -> Visits:
        """Visits whose current interest follows from `anchors_B` (−1: none yet)."""
        config = self.config
        stay = config.stay * (0.5 if new_session else 1.0)
        known_B1 = (anchors_B >= 0)[:, None]
        wander_B1 = 0.5 * self.tastes.novelty_U[users_B][:, None]
        taste_BG = (1 - wander_B1) * self.tastes.lasting(users_B, days_B)
        taste_BG += wander_B1 / config.num_leaves
        moved_BG = stay * self.certain(anchors_B) + config.follow * self.related_GG[anchors_B]
        moved_BG += (1 - stay - config.follow) * taste_BG
        belief_BG = np.where(known_B1, moved_BG, taste_BG).astype(np.float32)
        return Visits(users_B, days_B, belief_BG, recent_BM)

    def aspects(self, visits: Visits, rows_BX: Ints | None = None) -> dict[str, Floats]:
        """The four things that speak for an item, each (B, X), before the user's weights.

        Lasting and expected current interest are both in `interest`. Where the current interest is
        known, the click's logit is `click_bias` + quality + sum of `tastes.weights_UA` x aspect.
        """
        rows_BX = self._rows(rows_BX)
        same_BX, near_BX = self._matches(visits, rows_BX)
        current_BX = self.config.current_weight * (same_BX + 0.5 * near_BX)
        aspects = self._steady_aspects(visits, rows_BX)
        return {**aspects, "interest": (aspects["interest"] + current_BX).astype(np.float32)}

    def click_probs(self, visits: Visits, rows_BX: Ints | None = None) -> Floats:
        """P(click | looked at) (B, X), the current interest averaged over `visits.belief_BG`.

        0 for items not on sale yet, and for PAD.
        """
        rows_BX = self._rows(rows_BX)
        weights_BA = self.tastes.weights_UA[visits.users_B]
        logits_BX = self.config.click_bias + self.quality_DN[visits.days_B[:, None], rows_BX]
        for column, part_BX in enumerate(self._steady_aspects(visits, rows_BX).values()):
            logits_BX = logits_BX + weights_BA[:, column, None] * part_BX
        same_BX, near_BX = self._matches(visits, rows_BX)
        boost_B1 = self.config.current_weight * weights_BA[:, ASPECTS.index("interest"), None]
        probs_BX = (
            same_BX * _sigmoid(logits_BX + boost_B1)
            + near_BX * _sigmoid(logits_BX + 0.5 * boost_B1)
            + (1 - same_BX - near_BX) * _sigmoid(logits_BX)
        )
        on_sale_BX = self.catalogue.release_days_N[rows_BX] <= visits.days_B[:, None]
        return (probs_BX * (on_sale_BX & (rows_BX != PAD))).astype(np.float32)

    def examination(self, num_places: int) -> Floats:
        """Probability (K,) that place k of a list is looked at."""
        return (np.arange(1, num_places + 1) ** -self.config.position_bias).astype(np.float32)

    def respond(self, visits: Visits, rows_BK: Ints, rng: np.random.Generator) -> Response:
        """Draw each user's current interest, then clicks and purchases on the list."""
        interests_B = _draw(visits.belief_BG, rng)
        certain = replace(visits, belief_BG=self.certain(interests_B))
        probs_BK = self.click_probs(certain, rows_BK) * self.examination(rows_BK.shape[1])
        clicks_BK = rng.random(rows_BK.shape) < probs_BK
        purchases_BK = clicks_BK & (rng.random(rows_BK.shape) < self.conversions(rows_BK))
        clicked_BK = np.where(clicks_BK, rows_BK, PAD)
        recent_BX = np.concatenate([visits.recent_BM, clicked_BK], axis=1)
        order_BX = np.argsort(recent_BX != PAD, axis=1, kind="stable")
        memory = visits.recent_BM.shape[1]
        recent_BM = np.take_along_axis(recent_BX, order_BX, axis=1)[:, -memory:]
        last_B = self.catalogue.subcategories_N[recent_BM[:, -1]]
        anchors_B = np.where(clicks_BK.any(axis=1), last_B, interests_B)
        return Response(clicks_BK, purchases_BK, interests_B, anchors_B, recent_BM)

    def certain(self, interests_B: Ints) -> Floats:
        """Beliefs (B, G) that know the current interest."""
        return np.eye(self.config.num_leaves, dtype=np.float32)[interests_B]

    def conversions(self, rows_BX: Ints) -> Floats:
        """P(purchase | click) of the given items."""
        return self.catalogue.conversions_N[rows_BX]

    def exposure(self, visits: Visits, pull_BN: Floats) -> Floats:
        """Exact probability (B, N) that the logging policy shows each item; rows sum to K.

        The policy sees past clicks only: `pull_BN`, the popularity weight of every item on that
        day (0 when not on sale), times a boost for the last click's subcategory and category.
        """
        config, catalogue = self.config, self.catalogue
        last_B = visits.recent_BM[:, -1]
        leaf_B1 = np.where(last_B == PAD, -1, catalogue.subcategories_N[last_B])[:, None]
        category_B1 = np.where(leaf_B1 < 0, -1, catalogue.categories_G[leaf_B1])
        steps_BG = 0.5 * (leaf_B1 == np.arange(config.num_leaves))
        steps_BG += 0.5 * (category_B1 == catalogue.categories_G)
        boost_BG = np.exp(config.recency_pull * steps_BG).astype(np.float32)
        weights_BN = pull_BN * boost_BG[:, catalogue.subcategories_N]
        return exposures(weights_BN, config.list_length, config.exploration)

    def _rows(self, rows_BX: Ints | None) -> Ints:
        return np.arange(len(self.catalogue.items))[None] if rows_BX is None else rows_BX

    def _matches(self, visits: Visits, rows_BX: Ints) -> tuple[Floats, Floats]:
        """P(current interest is the item's subcategory), P(another one of its category)."""
        catalogue, B1 = self.catalogue, np.arange(len(visits))[:, None]
        same_BX = visits.belief_BG[B1, catalogue.subcategories_N[rows_BX]]
        per_category = (len(visits), -1, self.config.num_subcategories)
        belief_BC = visits.belief_BG.reshape(per_category).sum(axis=2)
        return same_BX, belief_BC[B1, catalogue.categories_N[rows_BX]] - same_BX

    def _steady_aspects(self, visits: Visits, rows_BX: Ints) -> dict[str, Floats]:
        """Aspects (B, X) in the order of ASPECTS; `interest` holds the lasting part only."""
        config, catalogue, tastes = self.config, self.catalogue, self.tastes
        users_B, B1 = visits.users_B, np.arange(len(visits))[:, None]
        days_B1 = visits.days_B[:, None]
        leaves_BX = catalogue.subcategories_N[rows_BX]
        gap_BX = catalogue.price_levels_N[rows_BX] - tastes.budgets_U[users_B][:, None]
        style_BX = tastes.styles_US[users_B[:, None], catalogue.styles_N[rows_BX]]
        lasting_BX = tastes.lasting(users_B, visits.days_B)[B1, leaves_BX]
        surprise_BX = self.fresh_DN[days_B1, rows_BX] - self._familiar(visits, rows_BX)
        return {
            "profile": config.profile_weight * (style_BX - BUDGET_STEEPNESS * gap_BX**2),
            "interest": config.lasting_weight * lasting_BX,
            "novelty": config.novelty_weight * surprise_BX,
            "context": config.context_weight * self.context_DG[days_B1, leaves_BX],
        }

    def _familiar(self, visits: Visits, rows_BX: Ints) -> Bools:
        """Whether each item is among the user's recent clicks."""
        B, recent_BM = len(visits), visits.recent_BM
        if rows_BX.shape[0] == B and rows_BX.shape[1] <= 64:
            return (rows_BX[:, :, None] == recent_BM[:, None, :]).any(axis=2) & (rows_BX != PAD)
        seen_BN = np.zeros((B, len(self.catalogue.items) + 1), dtype=bool)
        np.put_along_axis(seen_BN, recent_BM, True, axis=1)  # PAD lands in the spare last column
        seen_BN[:, PAD] = False
        return seen_BN[np.arange(B)[:, None], rows_BX]


def build_world(
    config: ShopConfig, catalogue: Catalogue, tastes: Tastes, rng: np.random.Generator
) -> World:
    """Draw how appeal moves with time, and which subcategories lead to which."""
    N, C = config.num_items, config.num_categories
    days_D1 = np.arange(config.num_days + 1)[:, None]
    waves_DN = np.sin(2 * np.pi * (days_D1 / rng.uniform(40, 160, N) + rng.random(N)))
    quality_DN = rng.normal(0, 0.6, N) + config.popularity_drift * waves_DN
    age_DN = days_D1 - catalogue.release_days_N
    fresh_DN = np.where(age_DN >= 0, np.exp(-np.maximum(age_DN, 0) / FRESH_DAYS), 0)
    season_DC = np.sin(2 * np.pi * (days_D1 / 365 + rng.random(C)))
    first_weekday = np.datetime64(config.start, "D").astype(np.int64) + 3  # 1970-01-01: a Thursday
    weekend_D1 = (days_D1 + first_weekday) % 7 >= 5
    context_DC = 0.5 * season_DC + 0.5 * weekend_D1 * rng.uniform(-1, 1, C)
    return World(
        config,
        catalogue,
        tastes,
        quality_DN.astype(np.float32),
        fresh_DN.astype(np.float32),
        context_DC[:, catalogue.categories_G].astype(np.float32),
        _related(catalogue.categories_G, rng),
    )


def _related(categories_G: Ints, rng: np.random.Generator) -> Floats:
    """Each subcategory leads to two others: mostly (0.7) one of its category, else any."""
    G = len(categories_G)
    related_GG = np.zeros((G, G), dtype=np.float32)
    for leaf in range(G):
        others = np.setdiff1d(np.arange(G), [leaf]) if G > 1 else np.array([leaf])
        siblings = others[categories_G[others] == categories_G[leaf]]
        related_GG[leaf, rng.choice(siblings if len(siblings) else others)] += 0.7
        related_GG[leaf, rng.choice(others)] += 0.3
    return related_GG


def _draw(probs_BG: Floats, rng: np.random.Generator) -> Ints:
    """One index a row, drawn with the given probabilities."""
    ends_BG = np.cumsum(probs_BG, axis=1, dtype=np.float64)
    return (rng.random((len(probs_BG), 1)) * ends_BG[:, -1:] >= ends_BG).sum(axis=1)


def _sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-logits))
