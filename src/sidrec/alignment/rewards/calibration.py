"""From a ranker's logits to probabilities that can be taken at their word.

    platt      σ(a · logit + b), a and b by maximum likelihood
    isotonic   the best non-decreasing step function in squared error, linear between its steps

Platt keeps every order. Isotonic fits any shape, but is flat in places: items of different logits
then tie.

Source:   Platt 1999; Zadrozny & Elkan 2002 (KDD); bins of equal size as in Nguyen & O'Connor 2015
          (arXiv:1508.05154).
Differs:  Platt's targets are not smoothed; with thousands of pairs it makes no difference.
Cost:     O(P log P) once; a look-up a value.
Shapes:   P pairs of a context and an item.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from sidrec.errors import ConfigError, DataError
from sidrec.types import Bools

Kind = Literal["platt", "isotonic", "none"]
KINDS: tuple[str, ...] = get_args(Kind)
Values = NDArray[np.float64]
ALMOST_UNREGULARISED = 1e6
NUM_BINS = 15


@dataclass(frozen=True, eq=False)
class Calibration:
    """A monotone map from logits to probabilities; `slope` first, then the steps if any."""

    slope: float = 1.0
    offset: float = 0.0
    knots_K: Values | None = None
    """Ascending logits between which isotonic probabilities are interpolated."""
    probs_K: Values | None = None

    @classmethod
    def fit(cls, kind: Kind, logits_P: Values, clicked_P: Bools) -> Self:
        """Learnt from pairs that the ranker was not trained on. "none" is the plain sigmoid."""
        if kind not in KINDS:
            raise ConfigError(f"calibration must be one of {list(KINDS)}, got {kind!r}")
        if kind == "none":
            return cls()
        if clicked_P.all() or not clicked_P.any():
            raise DataError(
                f"calibration needs clicks and non-clicks, got {int(clicked_P.sum())} clicks of "
                f"{len(clicked_P)} held-out pairs; hold out more users or set calibration='none'"
            )
        if kind == "isotonic":
            from sklearn.isotonic import IsotonicRegression

            steps: Any = IsotonicRegression(y_min=0, y_max=1).fit(logits_P, clicked_P)
            return cls(knots_K=steps.X_thresholds_, probs_K=steps.y_thresholds_)
        from sklearn.linear_model import LogisticRegression

        line: Any = LogisticRegression(C=ALMOST_UNREGULARISED).fit(logits_P[:, None], clicked_P)
        return cls(float(line.coef_[0, 0]), float(line.intercept_[0]))

    def logits(self, logits: Values) -> Values:
        """Log-odds of the calibrated probabilities; infinite where isotonic says 0 or 1."""
        if self.knots_K is None or self.probs_K is None:
            return self.slope * logits + self.offset
        probs = np.interp(logits, self.knots_K, self.probs_K)
        with np.errstate(divide="ignore"):
            return np.log(probs) - np.log1p(-probs)


def expected_calibration_error(
    probs_P: Values, clicked_P: Bools, num_bins: int = NUM_BINS
) -> float:
    """Mean over bins of equal size of |mean probability − share of clicks|, in [0, 1]."""
    gaps_P = probs_P - clicked_P
    bins = np.array_split(gaps_P[np.argsort(probs_P, kind="stable")], num_bins)
    return float(sum(abs(gaps.sum()) for gaps in bins) / max(len(gaps_P), 1))


def log_loss(probs_P: Values, clicked_P: Bools) -> float:
    """Mean nats a pair; probabilities are kept 1e-6 from 0 and 1."""
    safe_P = np.clip(probs_P, 1e-6, 1 - 1e-6)
    return float(-np.log(np.where(clicked_P, safe_P, 1 - safe_P)).mean())
