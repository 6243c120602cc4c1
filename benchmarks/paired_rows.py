"""Figures of a row by group of users, and its difference from another row on the same users.

Intervals come from the per-user values that a report keeps, so rows averaged over seeds have them
in every group too. Groups are prefixes of figure names: "" for all users, "tail." and so on.
Shapes:   Q examples, N items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from figures import as_figure

from sidrec.evaluation import Report, average_seeds
from sidrec.evaluation.comparison import require_comparable
from sidrec.evaluation.report import figures_of
from sidrec.evaluation.significance import paired
from sidrec.evaluation.strata import by_training_count
from sidrec.pipeline import metrics_of
from sidrec.types import Bools, Ints

METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
"""Of the tables; rows have figures of all the cuts that their reports have."""
Groups = Mapping[str, Bools]
"""Prefix of the figures' names -> (Q,) which examples."""


def strata_of(
    targets_Q: Ints, train_counts_N: Ints, *, no_events: str = "cold"
) -> dict[str, Bools]:
    """All examples, and the strata by training events of the target that have any."""
    groups = {"": np.ones(len(targets_Q), dtype=bool)}
    for stratum, chosen_Q in by_training_count(targets_Q, train_counts_N).items():
        if chosen_Q.any():
            groups[f"{no_events if stratum == 'cold' else stratum}."] = chosen_Q
    return groups


def by_group(start: str, of: Mapping[int, Report], groups: Groups) -> dict[str, dict[str, Any]]:
    """Each metric in each group: users' means over the seeds, then the mean with its interval."""
    seeds = sorted(of)
    report = average_seeds([of[seed] for seed in seeds])
    metrics, figures = metrics_of({"": report}), {}
    for group, chosen_Q in groups.items():
        found = figures_of(report.per_user, metrics, chosen=chosen_Q)
        for metric in metrics:
            means = [float(of[seed].per_user[metric][chosen_Q].mean()) for seed in seeds]
            figures[f"{start}.{group}{metric}"] = {
                **as_figure(found[metric]),
                "seeds": seeds,
                "by_seed": [round(mean, 5) for mean in means],
            }
    return figures


def differences(
    start: str, first: Mapping[int, Report], second: Mapping[int, Report], groups: Groups
) -> dict[str, dict[str, Any]]:
    """First minus second on the same users, averaged over the seeds that both have."""
    if not (common := sorted(set(first) & set(second))):
        return {}
    mine, theirs = (average_seeds([of[seed] for seed in common]) for of in (first, second))
    require_comparable([mine, theirs])
    figures = {}
    for group, chosen_Q in groups.items():
        for metric in metrics_of({"": mine}):
            values = (report.per_user[metric][chosen_Q] for report in (mine, theirs))
            figure, p = paired(*values)
            figures[f"{start}.{group}{metric}"] = {
                **as_figure(figure),
                "unit": "difference",
                "p": round(p, 5),
                "seeds": common,
            }
    return figures
