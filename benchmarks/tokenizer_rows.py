"""The rows of the tokenizer tables: every method, and ablations and options beside it."""

from __future__ import annotations

from typing import Any

METHODS = (
    "residual_kmeans",
    "rqvae",
    "coba_rqvae",
    "plum_rqvae",
    "sarq",
    "acrq",
    "letter",
    "balanced_kmeans",
    "opq",
    "fsq",
)
VARIANTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "rqvae_rotation": ("rqvae", {"gradient": "rotation"}, "reassign"),
    "rqvae_unrevived": ("rqvae", {"revive_every": 0}, "reassign"),
    "coba_unrevived": ("coba_rqvae", {"revive_every": 0}, "reassign"),
    "coba_no_graph": ("coba_rqvae", {"alpha": 1.0}, "reassign"),
    "coba_no_uniformity": ("coba_rqvae", {"uniformity": 0.0}, "reassign"),
    "coba_no_balance": ("coba_rqvae", {"delta_max": 0.0}, "reassign"),
    "coba_balanced_assignment": ("coba_rqvae", {"balanced_assignment": True}, "reassign"),
    "plum_one_view": ("plum_rqvae", {"multi_view": False}, "reassign"),
    "plum_one_resolution": (
        "plum_rqvae",
        {"multi_resolution": False, "num_codes": 256},
        "reassign",
    ),
    "plum_no_masking": ("plum_rqvae", {"masking": False}, "reassign"),
    "plum_no_contrast": ("plum_rqvae", {"contrast": 0.0}, "reassign"),
    "sarq_keep": ("sarq", {}, "keep"),
    "sarq_unweighted": ("sarq", {"weighted": False}, "reassign"),
    "sarq_normalised": ("sarq", {}, "reassign"),
    "sarq_keep_normalised": ("sarq", {}, "keep"),
    "residual_kmeans_keep": ("residual_kmeans", {}, "keep"),
    "residual_kmeans_sizes": ("residual_kmeans", {"num_codes": [512, 256, 128]}, "reassign"),
}
"""Name -> method, settings, collision policy: ablations and options beside the defaults."""

DECODING: dict[str, dict[str, Any]] = {
    "sarq_normalised": {"length_penalty": 1.0},
    "sarq_keep_normalised": {"length_penalty": 1.0},
}
"""Variant -> what its search changes: it asks the generator that was trained without it."""
BASELINES = ("residual_kmeans", "rqvae", "plum_rqvae")
COUNTERPARTS = {"coba_no_graph": "coba_rqvae", "coba_no_uniformity": "coba_rqvae",
                "coba_no_balance": "coba_rqvae", "coba_balanced_assignment": "coba_rqvae",
                "sarq_keep": "residual_kmeans_keep", "sarq_unweighted": "sarq",
                "sarq_normalised": "sarq", "sarq_keep_normalised": "sarq_keep"}  # fmt: skip
"""Variant -> the row that differs from it in one thing only."""

DEFAULT = "default"
TRIALS: dict[str, dict[str, dict[str, Any]]] = {
    "residual_kmeans": {"standardise": {"standardise": True}, "beam_5": {"beam": 5}},
    "sarq": {"shorter": {"mean_length": 2.5}, "longer": {"mean_length": 3.5}},
    "rqvae": {"beta_1": {"beta": 1.0}, "rate_third": {"learning_rate": 1e-3}},
    "coba_rqvae": {
        "no_graph": {"alpha": 1.0},
        "no_uniformity": {"uniformity": 0.0},
        "no_balance": {"delta_max": 0.0},
        "weak_uniformity": {"uniformity": 0.1},
    },
    "letter": {"alpha_1": {"alpha": 1.0}, "diversity_1": {"diversity": 1.0}},
    "fsq": {"levels_4444": {"levels": [4, 4, 4, 4]}, "levels_865": {"levels": [8, 6, 5]}},
    "acrq": {"anchor_1": {"anchor": 1.0}, "drift_tenfold": {"drift": 0.2}},
    "plum_rqvae": {
        "contrast_fivefold": {"contrast": 0.5},
        "narrow_view": {"collaborative_dim": 64},
    },
    "balanced_kmeans": {"halving": {"num_codes": [512, 256, 128]}},
    "opq": {"pca_128": {"pca": 128}, "unrotated": {"rotate": False}},
}
"""Method -> trial -> what it changes. no_graph, no_uniformity and no_balance take CoBa apart."""


def baselines_of(name: str) -> list[str]:
    """The rows that a row is paired with."""
    counterpart = [COUNTERPARTS[name]] if name in COUNTERPARTS else []
    return [baseline for baseline in (*BASELINES, *counterpart) if baseline != name]
