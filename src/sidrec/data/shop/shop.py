"""The simulated shop: a log to learn from, and the truth to judge by.

`simulate` draws a catalogue, users, and `num_days` of visits under a logging policy, and returns a
`Shop`: the dataset a recommender may see, the impressions behind it, and exact answers: the click
probability of every item, the expected reward of any list, and the best list. See docs/shop.md.

Cost:     simulation O(R N) time, O(B N) memory for blocks of B visits; 2,000 users x 1,000 items x
          60 days take a few seconds on one core.
Shapes:   U users, N items, R logged lists, K places, E events, B visits asked about, M memory,
          D days + 1, G subcategories.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import polars as pl

from sidrec.data.shop.catalogue import build_catalogue
from sidrec.data.shop.config import ShopConfig
from sidrec.data.shop.log import Impressions, event_times
from sidrec.data.shop.logger import draw_lists
from sidrec.data.shop.tastes import Tastes, build_tastes
from sidrec.data.shop.world import Response, Visits, World, build_world
from sidrec.data.validation import content_hash
from sidrec.errors import ConfigError, DataError
from sidrec.types import PAD, Candidates, Dataset, Floats, Interactions, Ints, as_ids

Reward = Literal["click", "purchase", "profit"]
DAY, SECOND = 86_400_000_000, 1_000_000  # microseconds
BLOCK_CELLS = 4_000_000  # visits x items computed at once
POPULARITY_DECAY = 0.95  # of past clicks, a day
MAX_PAGES = 6
CLICK_WEIGHT, PURCHASE_WEIGHT = 1.0, 3.0


@dataclass(frozen=True, eq=False)
class Shop:
    """A simulated log and everything that is true of it.

    Methods take `who`: user rows, which mean each user's next visit after the log, or `Visits`.
    """

    world: World
    dataset: Dataset
    """Clicks (event 'click' or 'purchase', weight 1 or 3) with time and exposure propensity."""
    impressions: Impressions
    event_lists_E: Ints
    """The logged list each event of `dataset` was clicked in."""
    pull_DN: Floats
    """Popularity weight of each item for the logging policy at the start of each day."""
    anchors_U: Ints
    """Where each user's current interest stands after the log; −1 for users who never came."""

    @property
    def config(self) -> ShopConfig:
        return self.world.config

    @property
    def tastes(self) -> Tastes:
        return self.world.tastes

    @property
    def users(self) -> pl.DataFrame:
        """U rows: user_id, age, gender, budget."""
        return self.tastes.users

    @property
    def margins_N(self) -> Floats:
        return self.world.catalogue.margins_N

    @cached_property
    def hierarchy(self) -> pl.DataFrame:
        """N rows: item_id, category, subcategory, style."""
        return self.world.catalogue.hierarchy()

    def next_visits(self, user_rows: Ints) -> Visits:
        """Each user's first visit on the day after the log; the current interest is not drawn."""
        rows = np.asarray(user_rows, dtype=np.int64)
        events = self.dataset.interactions
        ends = events.histories.offsets[rows + 1]
        days_B = np.full(len(rows), self.config.num_days)
        recent_BM = self._recent(rows, ends)
        return self.world.arrive(rows, days_B, self.anchors_U[rows], recent_BM, new_session=True)

    def logged_visits(self, list_rows: Ints) -> Visits:
        """The visits of logged lists, as they were before the list was shown; interest known.

        `event_lists_E[e]` is the list of event e: its visit is what the user was in just before
        clicking, so rollouts for a training prefix can be judged by the truth.
        """
        rows, log = np.asarray(list_rows, dtype=np.int64), self.impressions
        ends = np.searchsorted(self.event_lists_E, rows)
        belief_BG = self.world.certain(log.interests_R[rows])
        users_B = log.users_R[rows]
        return Visits(users_B, log.days_R[rows], belief_BG, self._recent(users_B, ends))

    def after(self, visits: Visits, response: Response, *, new_session: bool = False) -> Visits:
        """The same users' next visits, for shops that run on beyond the log (same day)."""
        return self.world.arrive(
            visits.users_B,
            visits.days_B,
            response.anchors_B,
            response.recent_BM,
            new_session=new_session,
        )

    def click_probs(self, who: Ints | Visits, rows_BX: Ints | None = None) -> Floats:
        """P(click | looked at) of every item (B, N), or of the given items (B, X)."""
        return self.world.click_probs(self._visits(who), rows_BX)

    def aspects(self, who: Ints | Visits, rows_BX: Ints | None = None) -> dict[str, Floats]:
        """Known relevance (B, N) of each item by profile, interest, novelty and context.

        The user's own weights of them are `tastes.weights_UA`; see `World.aspects`.
        """
        return self.world.aspects(self._visits(who), rows_BX)

    def exposure(self, who: Ints | Visits) -> Floats:
        """Exact probability (B, N) that the logging policy shows each item; rows sum to K."""
        visits = self._visits(who)
        return self.world.exposure(visits, self.pull_DN[visits.days_B])

    def logging_lists(self, who: Ints | Visits, rng: np.random.Generator) -> Ints:
        """Lists (B, K) that the logging policy would show."""
        return draw_lists(self.exposure(who), self.config.list_length, rng)

    def respond(self, who: Ints | Visits, rows_BK: Ints, rng: np.random.Generator) -> Response:
        """Draw current interests, clicks and purchases for lists of any length (PAD allowed)."""
        return self.world.respond(self._visits(who), self._lists(who, rows_BK), rng)

    def true_reward(self, who: Ints | Visits, rows_BK: Ints, reward: Reward = "click") -> Floats:
        """Expected reward (B,) of lists: sum over places of looked at x click x value.

        The value of a click is 1, P(purchase | click), or that times the margin.
        """
        rows_BK = self._lists(who, rows_BK)
        values_BK = self.click_probs(who, rows_BK) * self._values(reward)[rows_BK]
        return (values_BK @ self.world.examination(rows_BK.shape[1])).astype(np.float32)

    def best(self, who: Ints | Visits, k: int, reward: Reward = "click") -> Candidates:
        """The list of k items with the highest `true_reward`; ties go to the lower row.

        Rewards add up over places and places are looked at less and less, so sorting by click
        probability x value is optimal. Fewer than k items on sale: the row ends in PAD.
        """
        visits = self._visits(who)
        step = max(1, BLOCK_CELLS // self.config.num_items)
        blocks = [
            self._best(visits.take(np.arange(start, min(start + step, len(visits)))), k, reward)
            for start in range(0, len(visits), step)
        ]
        rows, scores = zip(*blocks, strict=True)
        return Candidates(np.concatenate(rows), np.concatenate(scores))

    def _best(self, visits: Visits, k: int, reward: Reward) -> tuple[Ints, Floats]:
        scores_BN = self.click_probs(visits) * self._values(reward)
        rows_BK = np.argsort(-scores_BN, axis=1, kind="stable")[:, :k]
        scores_BK = np.take_along_axis(scores_BN, rows_BK, axis=1)
        on_sale = self.world.catalogue.release_days_N[rows_BK] <= visits.days_B[:, None]
        order = np.argsort(~on_sale, axis=1, kind="stable")
        rows_BK, scores_BK = (np.take_along_axis(a, order, axis=1) for a in (rows_BK, scores_BK))
        on_sale = np.take_along_axis(on_sale, order, axis=1)
        return np.where(on_sale, rows_BK, PAD), np.where(on_sale, scores_BK, -np.inf)

    def _values(self, reward: Reward) -> Floats:
        catalogue = self.world.catalogue
        values = {
            "click": np.ones_like(catalogue.margins_N),
            "purchase": catalogue.conversions_N,
            "profit": catalogue.conversions_N * catalogue.margins_N,
        }
        if reward not in values:
            raise ConfigError(f"reward must be one of {list(values)}, got {reward!r}")
        return values[reward]

    def _visits(self, who: Ints | Visits) -> Visits:
        return who if isinstance(who, Visits) else self.next_visits(who)

    def _lists(self, who: Ints | Visits, rows_BK: Ints) -> Ints:
        rows_BK = np.asarray(rows_BK, dtype=np.int64)
        if rows_BK.ndim != 2 or len(rows_BK) != len(who):
            raise DataError(f"lists must be (B, K) with B = {len(who)}, got {rows_BK.shape}")
        if ((rows_BK < PAD) | (rows_BK >= self.config.num_items)).any():
            raise DataError(
                f"lists hold rows outside the catalogue of {self.config.num_items} items; "
                "use catalogue rows, or −1 for an empty place"
            )
        ordered = np.sort(rows_BK, axis=1)
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PAD)).any():
            raise DataError("an item appears twice in one list; drop the repeats")
        return rows_BK

    def _recent(self, users_B: Ints, ends_B: Ints) -> Ints:
        """The last M clicks (B, M) of each user before event `ends_B`, PAD in front."""
        histories = self.dataset.interactions.histories
        index_BM = ends_B[:, None] + np.arange(-self.config.memory, 0)
        real_BM = index_BM >= histories.offsets[users_B][:, None]
        return np.where(real_BM, histories.items_E[np.maximum(index_BM, 0)], PAD)


def simulate(config: ShopConfig | None = None) -> Shop:
    """Draw a shop and its log. Same config, same shop."""
    config = config or ShopConfig()
    rng = np.random.default_rng(config.seed)
    catalogue = build_catalogue(config, rng)
    world = build_world(config, catalogue, build_tastes(config, rng), rng)
    pull_DN = np.zeros((config.num_days + 1, config.num_items), dtype=np.float32)
    clicks_N = np.zeros(config.num_items)
    anchors_U = np.full(config.num_users, -1)
    recent_UM = np.full((config.num_users, config.memory), PAD)
    parts: list[tuple[np.ndarray, ...]] = []
    for day in range(config.num_days + 1):
        pull_DN[day] = (1 + clicks_N) ** config.popularity_pull * (catalogue.release_days_N <= day)
        if day == config.num_days:
            break
        today_N = np.zeros(config.num_items)
        for users_B, times_B, page in _schedule(config, world.tastes, day, rng):
            days_B = np.full(len(users_B), day)
            visits = world.arrive(
                users_B, days_B, anchors_U[users_B], recent_UM[users_B], new_session=page == 0
            )
            exposure_BN = world.exposure(visits, pull_DN[day][None])
            rows_BK = draw_lists(exposure_BN, config.list_length, rng)
            response = world.respond(visits, rows_BK, rng)
            anchors_U[users_B], recent_UM[users_B] = response.anchors_B, response.recent_BM
            clicks_BK = response.clicks_BK
            today_N += np.bincount(rows_BK[clicks_BK], minlength=config.num_items)
            shown_BK = np.take_along_axis(exposure_BN, rows_BK, axis=1)
            truth = (response.interests_B, rows_BK, clicks_BK, response.purchases_BK, shown_BK)
            parts.append((users_B, times_B, days_B, *truth))
        clicks_N = POPULARITY_DECAY * clicks_N + today_N
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else []
    if not columns or not columns[6].any():
        raise ConfigError(
            f"a shop of {config.num_users} users and {config.num_days} days saw no click; "
            "raise num_users, num_days or click_bias"
        )
    order = np.lexsort((columns[1], columns[0]))
    impressions = Impressions(*(column[order] for column in columns))
    lists_E, places_E = np.nonzero(impressions.clicks_RK)
    dataset = _dataset(config, world, impressions, lists_E, places_E)
    return Shop(world, dataset, impressions, lists_E, pull_DN, anchors_U)


def _schedule(config: ShopConfig, tastes: Tastes, day: int, rng: np.random.Generator):
    """Blocks of today's visits: users (B,), times (B,) in µs, page of the session."""
    users = np.flatnonzero(rng.random(config.num_users) < tastes.activity_U)
    pages = np.minimum(rng.geometric(1 / config.pages_per_session, len(users)), MAX_PAGES)
    opening = int(np.datetime64(config.start, "us").astype(np.int64)) + day * DAY
    starts = opening + rng.integers(7 * 3600, 22 * 3600, len(users)) * SECOND
    block = max(1, BLOCK_CELLS // config.num_items)
    for page in range(MAX_PAGES):
        for chunk in np.array_split(np.flatnonzero(pages > page), -(-len(users) // block) or 1):
            if len(chunk):
                pause = (page * 600 + rng.integers(0, 300, len(chunk))) * SECOND
                yield users[chunk], starts[chunk] + pause, page


def _dataset(
    config: ShopConfig, world: World, log: Impressions, lists_E: Ints, places_E: Ints
) -> Dataset:
    bought_E = log.purchases_RK[lists_E, places_E]
    interactions = Interactions(
        user_ids=as_ids(world.tastes.users["user_id"]),
        users_E=log.users_R[lists_E],
        items_E=log.rows_RK[lists_E, places_E],
        times_E=event_times(log.times_R, lists_E, places_E, config.list_length),
        weights_E=np.where(bought_E, PURCHASE_WEIGHT, CLICK_WEIGHT).astype(np.float32),
        events_E=np.where(bought_E, "purchase", "click").astype(object),
        propensities_E=log.propensities_RK[lists_E, places_E],
    )
    notes = (
        f"simulated shop, seed {config.seed}: {len(log)} lists shown, {len(bought_E)} clicks, "
        f"{int(bought_E.sum())} purchases",
    )
    digest = content_hash(world.catalogue.items, interactions)
    return Dataset("shop", world.catalogue.items, interactions, notes, digest)
