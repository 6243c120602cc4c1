"""The runs behind the generator table: what each trains, and which of its systems are rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class GeneratorRun:
    """One fit: a generator with its IDs, and systems that answer from it."""

    generator: str = "causal"
    options: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str = "plum_rqvae"
    """The one whose IDs recommend best; runs that need IDs of their own name another."""
    tokenizer_options: Mapping[str, Any] = field(default_factory=dict)
    policy: str = "reassign"
    scorers: tuple[str, ...] = ()
    retrievers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rows: Mapping[str, str] = field(default_factory=dict)
    """Row of the table -> system of the bundle."""


RUNS: dict[str, GeneratorRun] = {
    "causal": GeneratorRun(
        scorers=("dense", "lite"),
        retrievers={"mixture": {}, "feedback": {}},
        rows={
            "causal_same_budget": "causal",
            "dense_same_budget": "dense",
            "lite": "lite",
            "rag_mixture": "mixture",
            "feedback": "feedback",
        },
    ),
    "moe": GeneratorRun(options={"num_experts": 4}, rows={"moe": "causal"}),
    "apao": GeneratorRun(options={"prefix_loss": "pointwise"}, rows={"apao": "causal"}),
    "s2gr": GeneratorRun(generator="s2gr", rows={"s2gr_same_budget": "s2gr"}),
    "parallel": GeneratorRun(
        generator="parallel",
        tokenizer="opq",
        tokenizer_options={"num_levels": 16},
        rows={"parallel": "parallel"},
    ),
    "liger": GeneratorRun(
        generator="liger",
        retrievers={"dense_ranking": {}},
        rows={"liger_beam": "liger", "liger": "dense_ranking"},
    ),
    "cobra": GeneratorRun(
        generator="cobra",
        tokenizer="residual_kmeans",
        tokenizer_options={"num_codes": 32},
        policy="keep",
        retrievers={"beam_fusion": {}},
        rows={"cobra_beam": "cobra", "cobra": "beam_fusion"},
    ),
    "barge": GeneratorRun(generator="barge", tokenizer="barge", rows={"barge": "barge"}),
    "barge_random": GeneratorRun(
        generator="barge",
        tokenizer="barge",
        tokenizer_options={"learn_rotation": False},
        rows={"barge_random_rotation": "barge"},
    ),
    "tiger": GeneratorRun(
        generator="tiger",
        options={"num_encoder_layers": 2, "num_decoder_layers": 2},
        rows={"tiger_same_budget": "tiger"},
    ),
}
"""Run -> what is fitted. Row names are those of the figures."""

BASELINE = "causal_same_budget"
ROWS = tuple(row for run in RUNS.values() for row in run.rows)
"""All rows in the order of the table."""

OWN_BEAM = {"liger": "liger_beam", "cobra": "cobra_beam"}
"""Row -> the same model asked as a plain generator."""

ALMOST_0 = 1e-6
"""tau and psi have to be above 0."""
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "liger": {
        "no_new_items": {"united_with": "nothing"},
        "no_beam": {"num_generated": 0, "united_with": "everything"},
        "beam_100": {"num_generated": 100},
    },
    "cobra": {
        "no_fusion": {"fusion": False},
        "ids_alone": {"psi": ALMOST_0},
        "vectors_alone": {"tau": ALMOST_0},
        "no_ids": {"within_ids": False},
    },
    "rag_mixture": {
        "n10": {"num_retrieved": 10, "weight": None},
        "n30": {"num_retrieved": 30, "weight": None},
        "n300": {"num_retrieved": 300, "weight": None},
        "generator_alone": {"weight": 0.0},
        "retriever_alone": {"weight": 1.0},
        "as_mixture": {"rule": "mixture", "weight": None},
    },
    "barge": {
        "channel_a": {"channels": "a"},
        "channel_b": {"channels": "b"},
        "max": {"merge": "max"},
        "reciprocal_rank": {"merge": "reciprocal_rank"},
        "absent_exact": {"absent": "exact"},
    },
}
"""Row -> change -> settings of its retriever, or of its generator where it is one."""
