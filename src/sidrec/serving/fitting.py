"""Whether a model has what the running experiment and the scenarios name.

Their users did not choose those names, so a model that lacks one would fail requests that are not
wrong. Such a model is not activated. Where one is served nevertheless (the server was started on
it, or the experiment ended a moment ago), its default system answers, marked degraded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sidrec.serving import answers
from sidrec.serving.experiments import Experiment
from sidrec.serving.problems import Problem
from sidrec.serving.schemas import RecommendRequest
from sidrec.serving.snapshot import Snapshot

Scenarios = Mapping[str, Mapping[str, Any]]


def lacking_systems(
    snapshot: Snapshot, scenarios: Scenarios, experiment: Experiment | None
) -> Iterator[str]:
    """Who names a system that the model lacks, and which."""
    named = [(f"scenario {name!r}", default.get("system")) for name, default in scenarios.items()]
    if experiment is not None:
        named += [(f"experiment {experiment.name!r}", arm.system) for arm in experiment.variants]
    for where, system in named:
        if not snapshot.has_system(system):
            have = snapshot.recommender.systems
            yield f"{where} names system {system!r}, and the model has {have}"


def lacking_fields(snapshot: Snapshot, scenarios: Scenarios) -> Iterator[str]:
    """Which scenario has a rule over item attributes that the model cannot follow, and why."""
    for name, defaults in scenarios.items():
        body = {"user_id": "anyone", **defaults, "system": None}
        try:
            answers.recommend_query(snapshot, RecommendRequest.model_validate(body), (), None)
        except Problem as problem:
            yield f"scenario {name!r}: {problem.detail}"


def require_fit(snapshot: Snapshot, scenarios: Scenarios, experiment: Experiment | None) -> None:
    """Problem `unfit_model` that names what the model lacks."""
    lacking = [
        *lacking_systems(snapshot, scenarios, experiment),
        *lacking_fields(snapshot, scenarios),
    ]
    if lacking:
        raise Problem(
            "unfit_model",
            f"{snapshot.name}: {lacking[0]}",
            hint="change or end the experiment, or start the server with other --scenarios",
        )
