"""What the simulated shop recorded: every list shown, clicks, non-clicks, and exposure.

Shapes: R logged lists, K places, E events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from sidrec.types import Bools, Floats, Ints


@dataclass(frozen=True, eq=False)
class Impressions:
    """All R lists, sorted by user, then time."""

    users_R: Ints
    times_R: Ints
    """Microseconds since 1970."""
    days_R: Ints
    """Days since the start of the log."""
    interests_R: Ints
    """Known truth, hidden from recommenders: the subcategory the user was after."""
    rows_RK: Ints
    """Catalogue rows shown, top place first."""
    clicks_RK: Bools
    purchases_RK: Bools
    propensities_RK: Floats
    """Exact probability that the logging policy showed the item (anywhere) in this list."""

    def __len__(self) -> int:
        return len(self.users_R)

    def frame(self) -> pl.DataFrame:
        """One row a shown item: list, user, time, place, item, click, purchase, propensity."""
        R, K = self.rows_RK.shape
        return pl.DataFrame(
            {
                "list": np.repeat(np.arange(R), K),
                "user": np.repeat(self.users_R, K),
                "time": np.repeat(self.times_R, K),
                "place": np.tile(np.arange(K), R),
                "item": self.rows_RK.ravel(),
                "click": self.clicks_RK.ravel(),
                "purchase": self.purchases_RK.ravel(),
                "propensity": self.propensities_RK.ravel(),
            }
        )


def event_times(times_R: Ints, rows_E: Ints, places_E: Ints, num_places: int) -> Ints:
    """Time (E,) of a click: places are reached one after another within 200 seconds."""
    return times_R[rows_E] + (places_E + 1) * (200_000_000 // num_places)
