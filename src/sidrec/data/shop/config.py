"""Settings of the simulated shop."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from sidrec.data.shop.logger import CAP
from sidrec.data.shop.words import CATALOGUE
from sidrec.errors import ConfigError

MAX_SUBCATEGORIES = min(len(subcategories) for _, subcategories in CATALOGUE.values())


@dataclass(frozen=True, kw_only=True)
class ShopConfig:
    """Everything that decides a shop; the same settings give the same shop."""

    num_users: int = 2000
    num_items: int = 1000
    num_categories: int = 8
    num_subcategories: int = 5
    """Subcategories of each category."""
    num_days: int = 60
    start: str = "2026-01-05"
    """First day of the log, ISO date."""
    visits_per_day: float = 0.3
    """Mean share of days on which a user opens a session; users differ by a factor of several."""
    pages_per_session: float = 2.0
    """Mean number of lists looked at in one session."""
    list_length: int = 10
    """K, places in a logged list."""
    position_bias: float = 0.7
    """eta: place k (from 0) is looked at with probability (k + 1) ** -eta; 0 = no bias."""
    exploration: float = 0.2
    """Share of the logging policy that is uniform over the items on sale; above 0, so that every
    item can be shown and importance weights are finite."""
    popularity_pull: float = 0.4
    """How strongly the logging policy follows past clicks: weight (1 + clicks) ** pull."""
    recency_pull: float = 2.0
    """Log-weight the policy adds to the subcategory of the last click; half for its category."""
    taste_drift: float = 0.6
    """Share of each user's lasting interests that is replaced between first and last day."""
    popularity_drift: float = 0.6
    """Size, in logits, of the slow waves in items' appeal."""
    new_item_share: float = 0.15
    """Share of items that come on sale during the log."""
    stay: float = 0.6
    """Probability that the current interest stays at the last clicked subcategory inside a session;
    half of it between sessions."""
    follow: float = 0.2
    """Probability that it moves on to a subcategory related to the last clicked one."""
    memory: int = 32
    """Last clicks that count as familiar."""
    click_bias: float = -3.0
    """Logit of a click on an average item, looked at, with nothing in its favour."""
    profile_weight: float = 1.0
    lasting_weight: float = 3.5
    current_weight: float = 2.5
    novelty_weight: float = 2.0
    context_weight: float = 0.5
    """Weights of the parts of a click's logit; see docs/shop.md."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_users", 1, None),
            ("num_items", 2, None),
            ("num_categories", 1, len(CATALOGUE)),
            ("num_subcategories", 1, MAX_SUBCATEGORIES),
            ("num_days", 1, None),
            ("visits_per_day", 0.01, 1),
            ("pages_per_session", 1, None),
            ("list_length", 1, None),
            ("position_bias", 0, None),
            ("exploration", 0.001, 1),
            ("popularity_pull", 0, None),
            ("taste_drift", 0, 1),
            ("new_item_share", 0, 0.9),
            ("stay", 0, 1),
            ("follow", 0, 1),
            ("memory", 1, None),
            ("seed", 0, None),
        ):
            value = getattr(self, name)
            if not (value >= low and (high is None or value <= high)):
                bounds = f"at least {low}" if high is None else f"between {low} and {high}"
                raise ConfigError(f"shop.{name} must be {bounds}, got {value}")
        if self.stay + self.follow > 1:
            raise ConfigError(
                f"shop.stay + shop.follow must be at most 1, got {self.stay} + {self.follow}; "
                "lower one of them"
            )
        first_day_items = self.num_items - round(self.new_item_share * self.num_items)
        if self.list_length > CAP * first_day_items:
            raise ConfigError(
                f"shop.list_length must be at most {CAP:.0%} of the items on sale on the first day "
                f"({first_day_items}), got {self.list_length}; shorten lists or add items"
            )
        try:
            date.fromisoformat(self.start)
        except ValueError:
            raise ConfigError(
                f"shop.start must be a date like 2026-01-05, got {self.start!r}"
            ) from None

    @property
    def num_leaves(self) -> int:
        """G, subcategories of the whole shop."""
        return self.num_categories * self.num_subcategories
