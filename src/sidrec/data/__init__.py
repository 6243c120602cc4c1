"""Data: files to a `Dataset`, its checks, its splits, named public sets, the simulated shop."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidrec.data.findings import Finding as Finding
    from sidrec.data.findings import audit as audit
    from sidrec.data.findings import summary as summary
    from sidrec.data.named import NAMED as NAMED
    from sidrec.data.named import load_named as load_named
    from sidrec.data.named import named_vectors as named_vectors
    from sidrec.data.readers import read as read
    from sidrec.data.splits import split as split

_LAZY = {
    "read": "readers",
    "split": "splits",
    "load_named": "named",
    "named_vectors": "named",
    "NAMED": "named",
    "summary": "findings",
    "audit": "findings",
    "Finding": "findings",
}

__all__ = [
    "NAMED",
    "Finding",
    "audit",
    "load_named",
    "named_vectors",
    "read",
    "split",
    "summary",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"sidrec.data.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'sidrec.data' has no attribute {name!r}")
