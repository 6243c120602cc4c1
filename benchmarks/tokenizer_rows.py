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
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rqvae_rotation": ("rqvae", {"gradient": "rotation"}),
    "coba_no_graph": ("coba_rqvae", {"alpha": 1.0}),
    "coba_no_uniformity": ("coba_rqvae", {"uniformity": 0.0}),
    "coba_no_balance": ("coba_rqvae", {"delta_max": 0.0}),
    "coba_balanced_assignment": ("coba_rqvae", {"balanced_assignment": True}),
    "plum_one_view": ("plum_rqvae", {"multi_view": False}),
    "plum_one_resolution": ("plum_rqvae", {"multi_resolution": False, "num_codes": 256}),
    "plum_no_masking": ("plum_rqvae", {"masking": False}),
    "plum_no_contrast": ("plum_rqvae", {"contrast": 0.0}),
    "sarq_unweighted": ("sarq", {"weighted": False}),
}
"""Name -> method and settings: ablations and options beside each method's defaults."""
