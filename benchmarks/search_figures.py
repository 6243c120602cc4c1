"""Values of queries made figures: intervals over queries, and over seeds where there are several.

One `Columns` a seed holds the values of the same queries in the same order; a figure is over the
seeds that have it. A difference draws the
same queries and the same seeds for both sides: row s of both saw the same folds and started alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sidrec.evaluation.significance import Values, bootstrap_seeds, paired_seeds

Columns = dict[str, list[float]]
Figures = dict[str, dict[str, Any]]
FEWEST = 20
"""Values below which a column is one a model, not one a query."""


def entry(figure: Any, unit: str = "ratio") -> dict[str, Any]:
    kept = {k: v if k == "n" else round(v, 5) for k, v in asdict(figure).items()}
    return {**kept, "unit": unit}


def figure_of(columns: Sequence[Columns], key: str, unit: str = "ratio") -> dict[str, Any]:
    """The mean over seeds and queries; queries without a value are left out."""
    values_SQ = stacked(columns, key)
    if values_SQ.shape[1] < FEWEST:
        return {"value": round(float(values_SQ.mean()), 5), "n": values_SQ.size, "unit": unit}
    return entry(bootstrap_seeds(values_SQ), unit) | by_seed(values_SQ)


def difference(columns: Sequence[Columns], one: str, other: str) -> dict[str, Any]:
    """First minus second of two columns, paired by seed and query."""
    both = [column for column in columns if one in column and other in column]
    both_SQ = [np.array([column[key] for column in both]) for key in (one, other)]
    known_Q = np.isfinite(both_SQ).all(axis=(0, 1))
    first_SQ, second_SQ = (values_SQ[:, known_Q] for values_SQ in both_SQ)
    figure, p = paired_seeds(first_SQ, second_SQ, shared=True)
    return entry(figure) | {"p": round(p, 5)} | by_seed(first_SQ - second_SQ)


def by_seed(values_SQ: Values) -> dict[str, list[float]]:
    """The mean of each seed, where there are several."""
    means = [round(float(value), 5) for value in values_SQ.mean(axis=1)]
    return {"by_seed": means} if len(means) > 1 else {}


def stacked(columns: Sequence[Columns], key: str) -> Values:
    """(S, Q) values of the queries that have one."""
    values_SQ = np.array([column[key] for column in columns if key in column])
    return values_SQ[:, np.isfinite(values_SQ).all(axis=0)]


def shown(figures: Figures) -> None:
    """One line a figure."""
    for key, figure in sorted(figures.items()):
        bounds = f" [{figure['low']:.4f}, {figure['high']:.4f}]" if "low" in figure else ""
        print(f"{key}: {figure['value']:.4f}{bounds}")
