"""sidrec: generative recommendation with semantic IDs.

`read` data, `fit` a recommender, `recommend`, `save`, `load`. Nothing heavy is imported until used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sidrec.aligning import align as align
    from sidrec.data import read as read
    from sidrec.pipeline import fit as fit
    from sidrec.recommender import Recommender as Recommender
    from sidrec.recommender import load as load

_LAZY = {
    "align": "sidrec.aligning",
    "read": "sidrec.data",
    "fit": "sidrec.pipeline",
    "load": "sidrec.recommender",
    "Recommender": "sidrec.recommender",
}

__all__ = ["Recommender", "__version__", "align", "fit", "load", "read"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'sidrec' has no attribute {name!r}")
