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
}
"""Name -> method and settings: ablations and options beside each method's defaults."""
