"""Health of semantic IDs: are the codes used, unique, faithful to the vectors, and meaningful?

Source:  usage, perplexity, collisions, reconstruction and purity as in arXiv:2405.07314 and
         arXiv:2605.25330.
Differs: purity is printed minus its value for shuffled IDs, so that 0 means "no better than
         chance" whatever the group sizes.
Cost:    O(N * L) plus one decode a level; neighbour agreement adds one exact search of a sample.
Shapes:  N items, L levels, V codes of a level, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from sidrec.types import Floats, Ints, ItemVectors, SemanticIds


@dataclass(frozen=True, kw_only=True)
class LevelHealth:
    """How one level uses its codes."""

    num_codes: int
    num_used: int
    """Codes that at least one item holds."""
    entropy_nats: float
    """Of the code of a random item, over items that have this level."""
    perplexity: float
    """exp(entropy): the number of evenly used codes that would be as uncertain."""
    reconstruction_error_ratio: float | None
    """Squared error of the vector rebuilt from this many levels, as a share of the variance;
    None for levels the tokenizer cannot decode, such as a counter."""
    prefix_purity: float | None
    """Share of items whose category is the main one of their prefix, up to this level."""
    prefix_purity_gain: float | None
    """The same minus its value when the IDs are shuffled among the items."""

    @property
    def num_dead(self) -> int:
        """Codes that no item holds."""
        return self.num_codes - self.num_used


@dataclass(frozen=True, kw_only=True)
class Health:
    """Figures of one assignment of semantic IDs."""

    num_items: int
    num_ids: int
    """Distinct whole IDs."""
    collision_rate: float
    """1 − distinct IDs / items."""
    collision_share: float
    """Share of items whose ID another item holds too."""
    largest_group: int
    levels: tuple[LevelHealth, ...]
    neighbour_agreement: float | None
    """Share of nearest neighbours, among 10 by vector, that also share the first code."""


def health(
    ids: SemanticIds,
    vectors: ItemVectors | None = None,
    tokenizer: Any = None,
    categories: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> Health:
    """Every figure that the given inputs allow; the rest is None.

    `vectors` with a `tokenizer` that has `decode` give reconstruction, `vectors` alone neighbour
    agreement, `categories` (one an item, '' where unknown) purity.
    """
    groups = ids.group_sizes_N
    num_ids = len(np.unique(ids.codes, axis=0))
    decodable = 0
    if vectors is not None and hasattr(tokenizer, "decode"):
        decodable = len(tokenizer.num_codes) if (ids.codes >= 0).all() else 0
    shuffle_N = np.random.default_rng(seed).permutation(len(ids))
    levels = []
    for level, num_codes in enumerate(ids.num_codes):
        codes = ids.codes[:, level]
        counts_V = np.bincount(codes[codes >= 0], minlength=num_codes)
        entropy = entropy_nats(counts_V)
        error = purity = gain = None
        if vectors is not None and level < decodable:
            rebuilt_ND = tokenizer.decode(ids.codes[:, : level + 1])
            error = error_ratio(vectors.vectors, rebuilt_ND)
        if categories is not None:
            prefixes = ids.codes[:, : level + 1]
            purity = prefix_purity(prefixes, categories)
            gain = purity - prefix_purity(prefixes[shuffle_N], categories)
        levels.append(
            LevelHealth(
                num_codes=num_codes,
                num_used=int((counts_V > 0).sum()),
                entropy_nats=entropy,
                perplexity=float(np.exp(entropy)),
                reconstruction_error_ratio=error,
                prefix_purity=purity,
                prefix_purity_gain=gain,
            )
        )
    return Health(
        num_items=len(ids),
        num_ids=num_ids,
        collision_rate=1 - num_ids / len(ids) if len(ids) else 0.0,
        collision_share=ids.collision_share(),
        largest_group=int(groups.max(initial=0)),
        levels=tuple(levels),
        neighbour_agreement=None if vectors is None else neighbour_agreement(ids, vectors.vectors),
    )


def entropy_nats(counts: Ints) -> float:
    """−sum p ln p of the distribution that the counts make; 0 for no counts."""
    p = counts[counts > 0] / max(int(counts.sum()), 1)
    return float(-(p * np.log(p)).sum() + 0.0)


def error_ratio(vectors_ND: Floats, rebuilt_ND: Floats) -> float:
    """|x − x̂|² / |x − mean|², summed over items; 0 where all vectors are equal and rebuilt."""
    error = np.square(vectors_ND.astype(np.float64) - rebuilt_ND).sum()
    spread = np.square(vectors_ND - vectors_ND.mean(axis=0, dtype=np.float64)).sum()
    return float(error / spread) if spread > 0 else float(error > 0)


def prefix_purity(codes_NL: Ints, categories: Sequence[str]) -> float:
    """Share, over items with a category, that hold the main category of their prefix group."""
    labels = np.array([str(c) for c in categories])
    known = labels != ""
    if not known.any():
        return 0.0
    _, group = np.unique(codes_NL[known], axis=0, return_inverse=True)
    _, label = np.unique(labels[known], return_inverse=True)
    pairs, counts = np.unique(
        np.column_stack([group.ravel(), label.ravel()]), axis=0, return_counts=True
    )
    main = np.zeros(int(pairs[:, 0].max()) + 1, dtype=np.int64)
    np.maximum.at(main, pairs[:, 0], counts)
    return float(main.sum() / known.sum())


def neighbour_agreement(
    ids: SemanticIds, vectors_ND: Floats, *, num_neighbours: int = 10, sample: int = 2000
) -> float | None:
    """Share of each item's nearest neighbours by cosine that share its first code.

    Taken over up to `sample` items, evenly spaced; None for a catalogue of one item.
    """
    num = min(num_neighbours, len(ids) - 1)
    if num < 1:
        return None
    rows = np.unique(np.linspace(0, len(ids) - 1, min(sample, len(ids))).astype(np.int64))
    lengths = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND = np.ascontiguousarray(vectors_ND / np.where(lengths > 0, lengths, 1), np.float32)
    _, found = faiss.knn(unit_ND[rows], unit_ND, num + 1, metric=faiss.METRIC_INNER_PRODUCT)
    others = found != rows[:, None]  # the item itself, wherever equal vectors put it
    others &= np.cumsum(others, axis=1) <= num
    same = ids.codes[found, 0] == ids.codes[rows, 0][:, None]
    return float(same[others].mean())
