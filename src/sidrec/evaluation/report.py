"""Evaluate one system: metrics with intervals, strata, per-user values, and where they come from.

`evaluate` runs the protocol, applies the metrics and returns a `Report`, a plain value that goes
to JSON and back. Comparing reports is `comparison`'s part.

Source:   protocol and metrics of the evaluation card; see `protocol`, `metrics`, `significance`.
Differs:  coverage, Gini, entropy and popularity lift describe the run as a whole: no interval.
Cost:     one pass over the examples, then well under a second of arithmetic per 20 k users.
Shapes:   Q examples, N items, D width, L levels, K = the largest cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidrec.errors import ArtifactError, ConfigError, DataError
from sidrec.evaluation import metrics as m
from sidrec.evaluation.protocol import Generate, Rankings, ScoreAll, Ties, group_of, rank_all
from sidrec.evaluation.significance import RESAMPLES, Figure, bootstrap
from sidrec.evaluation.strata import all_strata
from sidrec.types import Examples, Floats, Ints, ItemVectors, SemanticIds, Split

EVALUATOR_VERSION = 1
"""Raised whenever a change here can move a figure; reports of different versions never mix."""

__all__ = ["EvaluationContext", "Figure", "Protocol", "Rankings", "Report", "evaluate"]


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationContext:
    """What the metrics need to know beyond the examples; counts are of training events only."""

    train_counts_N: Ints
    split_rule: str
    part: str
    """'valid' or 'test'."""
    data_hash: str = ""
    vectors_ND: Floats | None = None
    """For intra-list diversity. Compare systems with the same vectors."""
    codes_NL: Ints | None = None
    """For prefix diversity, the collision share and the SID-level diagnostic."""

    @classmethod
    def of(
        cls,
        split: Split,
        *,
        part: str = "test",
        data_hash: str = "",
        vectors: ItemVectors | None = None,
        semantic_ids: SemanticIds | None = None,
    ) -> Self:
        """The context of one part of a split."""
        if part not in ("valid", "test"):
            raise ConfigError(f"part must be 'valid' or 'test', got {part!r}")
        return cls(
            train_counts_N=split.train_counts_N,
            split_rule=split.rule,
            part=part,
            data_hash=data_hash,
            vectors_ND=None if vectors is None else vectors.vectors,
            codes_NL=None if semantic_ids is None else semantic_ids.codes,
        )


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The rules under which figures may stand in one table, and what the system itself used."""

    data_hash: str
    split_rule: str
    part: str
    ties: Ties
    filter_seen: bool
    num_examples: int
    num_items: int
    evaluator_version: int = EVALUATOR_VERSION
    max_length: int
    """Last events of a history that the system could read; may differ between systems."""
    beam: int | None = None
    """Beam width of a generator; None for a system that scores every item."""
    num_targets_filtered: int = 0
    """Targets that the seen filter removed: misses by construction."""

    SHARED = (
        "data_hash",
        "split_rule",
        "part",
        "ties",
        "filter_seen",
        "num_examples",
        "num_items",
        "evaluator_version",
    )

    def line(self) -> str:
        """The shared rules in words; printed with every table."""
        ties = {
            "expected": "ties averaged over their positions",
            "pessimistic": "ties counted as better than the target",
        }[self.ties]
        seen = "seen items filtered" if self.filter_seen else "no seen filter"
        return (
            f"{self.split_rule}; {self.part} part, {self.num_examples:,} examples; full ranking "
            f"over {self.num_items:,} items; {seen}; {ties}; evaluator v{self.evaluator_version}"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """Metric -> figure, per-user values, strata and provenance of one system."""

    name: str
    protocol: Protocol
    figures: dict[str, Figure]
    """`recall@10` … with intervals over users; whole-run figures (`coverage@10`) without."""
    strata: dict[str, dict[str, Figure]]
    """Stratum -> metric -> figure."""
    per_user: dict[str, NDArray[np.float64]]
    """Metric -> (Q,) values, for paired comparison."""
    user_rows: Ints
    targets: Ints
    seeds: tuple[int, ...] = ()
    seed_means: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Metric -> mean of each seed, where seeds were averaged."""
    bundle: str = ""
    """Hash of the bundle or configuration that was measured."""

    def value(self, metric: str) -> float:
        """The figure's value. DataError names the metrics there are."""
        if metric not in self.figures:
            raise DataError(f"report {self.name!r} has no {metric!r}; it has {list(self.figures)}")
        return self.figures[metric].value

    def to_json(self) -> str:
        """One JSON object; per-user values are kept exactly."""
        return json.dumps(
            {
                "name": self.name,
                "protocol": asdict(self.protocol),
                "protocol_line": self.protocol.line(),
                "figures": {k: asdict(f) for k, f in self.figures.items()},
                "strata": {
                    s: {k: asdict(f) for k, f in figures.items()}
                    for s, figures in self.strata.items()
                },
                "seeds": list(self.seeds),
                "seed_means": {k: list(v) for k, v in self.seed_means.items()},
                "bundle": self.bundle,
                "user_rows": self.user_rows.tolist(),
                "targets": self.targets.tolist(),
                "per_user": {k: v.tolist() for k, v in self.per_user.items()},
            },
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The report that `to_json` wrote. ArtifactError where it is not one."""
        try:
            raw: dict[str, Any] = json.loads(text)
            return cls(
                name=raw["name"],
                protocol=Protocol(**raw["protocol"]),
                figures={k: Figure(**f) for k, f in raw["figures"].items()},
                strata={
                    s: {k: Figure(**f) for k, f in figures.items()}
                    for s, figures in raw["strata"].items()
                },
                seeds=tuple(raw["seeds"]),
                seed_means={k: tuple(v) for k, v in raw["seed_means"].items()},
                bundle=raw["bundle"],
                user_rows=np.array(raw["user_rows"], dtype=np.int64),
                targets=np.array(raw["targets"], dtype=np.int64),
                per_user={k: np.array(v, dtype=np.float64) for k, v in raw["per_user"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"this is not a report of evaluator v{EVALUATOR_VERSION} ({error}); evaluate again"
            ) from error


def evaluate(
    name: str,
    examples: Examples,
    *,
    context: EvaluationContext,
    scores: ScoreAll | None = None,
    candidates: Generate | None = None,
    ks: tuple[int, ...] = (5, 10),
    max_length: int,
    filter_seen: bool = False,
    ties: Ties = "expected",
    shared_codes: bool = False,
    beam: int | None = None,
    seed: int | None = None,
    bundle: str = "",
    extra: Mapping[str, float] | None = None,
    batch_size: int = 512,
    resamples: int = RESAMPLES,
    on_batch: Callable[[int, int], None] | None = None,
) -> Report:
    """Rank, measure, resample.

    `shared_codes` says that items of one semantic ID and as many training events always score the
    same (generation alone with collisions left in). `extra` adds figures measured elsewhere, e.g.
    `invalid_share`.
    """
    if not ks or min(ks) < 1:
        raise ConfigError(f"ks must be cuts of at least 1, got {ks}")
    alike_NL = None
    if shared_codes:
        if context.codes_NL is None:
            raise ConfigError("shared_codes needs the semantic IDs in the evaluation context")
        alike_NL = np.column_stack([context.codes_NL, context.train_counts_N])
    if beam is not None and beam < max(ks):
        raise ConfigError(f"beam {beam} is below the largest cut {max(ks)} and would cap recall")
    rankings = rank_all(
        examples,
        scores=scores,
        candidates=candidates,
        k=max(ks),
        num_items=len(context.train_counts_N),
        max_length=max_length,
        batch_size=batch_size,
        filter_seen=filter_seen,
        ties=ties,
        shared_codes_NL=alike_NL,
        on_batch=on_batch,
    )
    return report_of(
        name,
        rankings,
        context=context,
        ks=ks,
        beam=beam,
        seed=seed,
        bundle=bundle,
        extra=extra,
        resamples=resamples,
    )


def report_of(
    name: str,
    rankings: Rankings,
    *,
    context: EvaluationContext,
    ks: tuple[int, ...] = (5, 10),
    beam: int | None = None,
    seed: int | None = None,
    bundle: str = "",
    extra: Mapping[str, float] | None = None,
    resamples: int = RESAMPLES,
) -> Report:
    """The report of rankings already made."""
    examples, k = rankings.examples, max(ks)
    per_user = {
        f"{metric}@{cut}": measure(rankings.better_Q, rankings.tied_Q, cut, rankings.ties)
        for metric, measure in m.ONE_TARGET.items()
        for cut in ks
    }
    accuracy = list(per_user)
    figures = figures_of(per_user, accuracy, resamples=resamples)
    strata = {
        stratum: figures_of(per_user, accuracy, chosen=chosen, resamples=resamples)
        for stratum, chosen in all_strata(examples, context.train_counts_N).items()
    }
    figures |= {f"hit@{cut}": figures[f"recall@{cut}"] for cut in ks}  # equal for one target
    listed = _listed_values(rankings, context, k)
    for metric, values_Q in listed.items():
        known = np.isfinite(values_Q)
        if known.any():
            figures |= figures_of({metric: values_Q}, [metric], chosen=known, resamples=resamples)
    whole = {**_whole_run_values(rankings, context, k), **(extra or {})}
    figures |= {
        metric: Figure(value=float(value), n=len(examples))
        for metric, value in whole.items()
        if np.isfinite(value)
    }
    return Report(
        name=name,
        protocol=Protocol(
            data_hash=context.data_hash,
            split_rule=context.split_rule,
            part=context.part,
            ties=rankings.ties,
            filter_seen=rankings.filter_seen,
            num_examples=len(examples),
            num_items=rankings.num_items,
            max_length=rankings.max_length,
            beam=beam,
            num_targets_filtered=rankings.num_targets_filtered,
        ),
        figures=figures,
        strata=strata,
        per_user=per_user,
        user_rows=examples.user_rows,
        targets=examples.targets,
        seeds=() if seed is None else (seed,),
        bundle=bundle,
    )


def figures_of(
    per_user: Mapping[str, NDArray[np.float64]],
    names: list[str],
    *,
    chosen: NDArray[np.bool_] | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Figure]:
    """Mean and interval of each named metric over all users, or over the chosen ones."""
    values_QM = np.stack([per_user[name] for name in names], axis=1)
    if chosen is not None:
        values_QM = values_QM[chosen]
    return dict(zip(names, bootstrap(values_QM, resamples=resamples), strict=True))


def _listed_values(
    rankings: Rankings, context: EvaluationContext, k: int
) -> dict[str, NDArray[np.float64]]:
    """Per-user values of the lists beyond accuracy, and the SID-level diagnostic."""
    rows_QK, counts_N = rankings.rows_QK[:, :k], context.train_counts_N
    values = {
        f"popularity@{k}": m.popularity(rows_QK, counts_N),
        f"novelty@{k}": m.novelty(rows_QK, counts_N),
    }
    if context.vectors_ND is not None:
        values[f"diversity@{k}"] = m.diversity(rows_QK, context.vectors_ND)
    if context.codes_NL is not None:
        values[f"prefix_diversity@{k}"] = m.prefix_diversity(rows_QK, context.codes_NL)
        groups_N = group_of(context.codes_NL)
        if len(np.unique(groups_N)) < len(groups_N):
            targets = rankings.examples.targets
            values[f"sid_recall@{k}"] = m.sid_recall(rows_QK, targets, groups_N, k)
    return values


def _whole_run_values(rankings: Rankings, context: EvaluationContext, k: int) -> dict[str, float]:
    """Figures of the run as a whole."""
    rows_QK, counts_N = rankings.rows_QK[:, :k], context.train_counts_N
    shown_N = m.exposure(rows_QK, rankings.num_items)
    values = {
        f"coverage@{k}": m.coverage(rows_QK, rankings.num_items),
        f"gini@{k}": m.gini(shown_N),
        f"exposure_entropy@{k}": m.exposure_entropy(shown_N),
        f"popularity_lift@{k}": m.popularity_lift(rows_QK, rankings.examples.histories, counts_N),
    }
    if context.codes_NL is not None:
        sizes_N = np.bincount(group_of(context.codes_NL))[group_of(context.codes_NL)]
        values["collision_share"] = float((sizes_N > 1).mean())
    return values
