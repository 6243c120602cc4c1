"""What a fit should say about vectors and IDs before anybody wonders: counts, in sentences.

Cost:     one hash an item.
Shapes:   N items.
"""

from __future__ import annotations

from sidrec.errors import DataError
from sidrec.types import ItemVectors, SemanticIds


def vector_remarks(vectors: ItemVectors) -> list[str]:
    """Items whose vector is zero, and items that share one. DataError where all are the same."""
    distinct: dict[bytes, int] = {}
    for row in vectors.vectors:
        key = row.tobytes()
        distinct[key] = distinct.get(key, 0) + 1
    if len(distinct) == 1 and len(vectors) > 1:
        raise DataError(
            f"all {len(vectors):,} items have the same vector, so no ID can tell them apart; "
            "bring texts, choose other text columns, or take another embedding"
        )
    said = []
    if zero := int((~vectors.vectors.any(axis=1)).sum()):
        said.append(f"{zero:,} items have a zero vector: nothing is known of them")
    if shared := sum(n for n in distinct.values() if n > 1):
        said.append(
            f"{shared:,} items share their vector with another: only the collision policy can "
            "tell them apart"
        )
    return said


def id_remarks(ids: SemanticIds) -> list[str]:
    """Levels, from 0, that tell nothing apart."""
    return [
        f"level {level} has one code, which tells nothing apart; ask for fewer levels, or for a "
        "collision policy that adds none"
        for level, num_codes in enumerate(ids.num_codes)
        if num_codes == 1
    ]
