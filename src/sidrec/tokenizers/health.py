"""Health of semantic IDs: are the codes used, unique, faithful to the vectors, and meaningful?

A prefix of depth d is the first d codes; an ID that ends before depth d counts as its own prefix
there, so items of one short whole ID stay together at every depth.

Source:  CUR and ICR: S2GR, arXiv:2601.18664, defined by the arithmetic of its tables; usage,
         perplexity, collisions, reconstruction and purity as in arXiv:2405.07314 and
         arXiv:2605.25330.
Differs: agreement of neighbours, of co-purchases and purity are also given minus their value for
         IDs shuffled among the items, so that 0 means "no better than chance" whatever the group
         sizes: the exact expectation for pairs, one shuffle for purity.
Cost:    O(N * L) plus L decodes; neighbour agreement adds one exact search of a sample,
         co-purchase agreement the pairs of the training events.
Shapes:  N items, L levels, V codes of a level, D width, P prefixes of a depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import faiss
import numpy as np

from sidrec.errors import ConfigError, DataError
from sidrec.evaluation.metrics import gini
from sidrec.tokenizers.cooccurrence import cooccurrence
from sidrec.types import Floats, Histories, Ints, ItemVectors, SemanticIds

BUSIEST = 0.1
"""Share of the codes of a level that count as its busiest."""
PAIR_WINDOW = 5
"""Events of one user at most this far apart are a co-purchase."""
ITEMS_PER_CODE = 4
"""A level with fewer distinct items a code cannot be expected to use its codes."""


@dataclass(frozen=True, kw_only=True)
class LevelHealth:
    """How one level uses its codes, and what prefixes down to it say."""

    num_codes: int
    """Size of the codebook."""
    num_used: int
    """Codes that at least one item holds."""
    num_items: int
    """Items whose ID reaches this level."""
    num_prefixes: int
    """Distinct prefixes of this depth."""
    entropy_nats: float
    """Of the code of a random item, over items that have this level."""
    perplexity: float
    """exp(entropy): the number of evenly used codes that would be as uncertain."""
    gini: float
    """Of items a code, over all codes: 0 even use, towards 1 where one code holds every item."""
    traffic_gini: float | None
    """The same of training events a code; None without training counts."""
    traffic_top_share: float | None
    """Share of training events on the busiest tenth of the codes; 0.1 where traffic is even."""
    reconstruction_error_ratio: float | None
    """Squared error of the vector rebuilt from this many levels, as a share of the variance;
    None for levels the tokenizer cannot decode, such as a counter."""
    neighbour_agreement: float | None
    """Share of nearest neighbours, among 10 by vector, that share the prefix of this depth."""
    neighbour_agreement_gain: float | None
    """The same minus chance: what shuffled IDs would reach."""
    prefix_purity: float | None
    """Share of items whose category is the main one of their prefix, up to this level."""
    prefix_purity_gain: float | None
    """The same minus its value when the IDs are shuffled among the items."""
    copurchase_agreement: float | None
    """Share of co-purchased pairs (items that one user took within 5 events, a pair counted once a
    user) that share the prefix of this depth; None without training events."""
    copurchase_agreement_gain: float | None
    """The same minus chance: what shuffled IDs would reach."""

    @property
    def num_dead(self) -> int:
        """Codes that no item holds."""
        return self.num_codes - self.num_used


@dataclass(frozen=True, kw_only=True)
class Health:
    """Figures of one assignment of semantic IDs."""

    num_items: int
    """Items of the catalogue."""
    num_ids: int
    """Distinct whole IDs."""
    icr: float
    """Independent coding rate: distinct whole IDs / items. It is 1 − `collision_rate`, and one
    number with `cur`: only the denominator differs, so a gain in both is one gain."""
    cur: float
    """Codebook utilisation rate: distinct whole IDs / number of possible IDs (the product of the
    codebook sizes, a counter's included). Not the share of codes used, and small by nature: at
    most items / possible IDs. Compare it only between codebooks of one shape."""
    collision_rate: float
    """1 − distinct IDs / items."""
    collision_share: float
    """Share of items whose ID another item holds too."""
    num_alone: int
    """Items that are alone on their ID."""
    largest_group: int
    """Items on the most crowded ID."""
    group_sizes: tuple[tuple[int, int], ...]
    """(n, how many IDs are held by exactly n items), by n."""
    mean_length: float
    """Mean number of codes of an ID."""
    num_pairs: int | None
    """Distinct co-purchased pairs in the training events; None where these are not at hand."""
    levels: tuple[LevelHealth, ...]
    """One entry a level, coarse to fine."""

    @property
    def neighbour_agreement(self) -> float | None:
        """Share of nearest neighbours, among 10 by vector, that also share the first code."""
        return self.levels[0].neighbour_agreement


def health(
    ids: SemanticIds,
    vectors: ItemVectors | None = None,
    tokenizer: Any = None,
    categories: Sequence[str] | None = None,
    *,
    train: Histories | None = None,
    train_counts_N: Ints | None = None,
    seed: int = 0,
) -> Health:
    """Every figure that the given inputs allow; the rest is None.

    `vectors` with a `tokenizer` that has `decode` give reconstruction, `vectors` alone neighbour
    agreement, `categories` (one an item, '' where unknown) purity, `train` (training events only)
    co-purchase agreement and popularity skew, `train_counts_N` alone popularity skew.
    """
    num_items, num_levels = len(ids), ids.num_levels
    if train is not None:
        if (last := int(train.items_E.max(initial=-1))) >= num_items:
            raise DataError(
                f"health: training events name item row {last} of a catalogue of {num_items}; "
                "pass the events that these IDs were fitted on"
            )
        train_counts_N = train.counts(num_items) if train_counts_N is None else train_counts_N
    for what, values in (("categories", categories), ("train_counts_N", train_counts_N)):
        if values is not None and len(values) != num_items:
            raise DataError(f"health: {num_items} items but {len(values)} entries of {what}")
    groups_NL = prefix_groups(ids)
    counts_P = [np.bincount(groups_N) for groups_N in groups_NL.T]
    chance_L = [chance_of(counts) for counts in counts_P]
    sizes, numbers = np.unique(counts_P[-1], return_counts=True)
    errors: Sequence[float | None] = ()
    near: Sequence[float] | None = None
    together: Sequence[float] | None = None
    num_pairs = None
    if vectors is not None:
        near = neighbour_agreement(ids, vectors.vectors)
        if hasattr(tokenizer, "decode") and num_items:
            depth = min(len(tokenizer.num_codes), num_levels)
            errors = [
                error_ratio(vectors.vectors, rebuilt(ids.codes[:, : level + 1], tokenizer))
                for level in range(depth)
            ]
    if train is not None:
        num_pairs, together = copurchase_agreement(groups_NL, train)
    shuffle_N = np.random.default_rng(seed).permutation(num_items)
    levels = []
    for level, num_codes in enumerate(ids.num_codes):
        codes = ids.codes[:, level]
        alive = codes >= 0
        counts_V = np.bincount(codes[alive], minlength=num_codes)
        traffic_V = None
        if train_counts_N is not None:
            traffic_V = np.bincount(
                codes[alive], weights=train_counts_N[alive], minlength=num_codes
            ).astype(np.int64)
        purity = gain = None
        if categories is not None:
            prefixes = groups_NL[:, [level]]
            purity = prefix_purity(prefixes, categories)
            gain = purity - prefix_purity(prefixes[shuffle_N], categories)
        entropy = entropy_nats(counts_V)
        levels.append(
            LevelHealth(
                num_codes=num_codes,
                num_used=int((counts_V > 0).sum()),
                num_items=int(alive.sum()),
                num_prefixes=len(counts_P[level]),
                entropy_nats=entropy,
                perplexity=float(np.exp(entropy)),
                gini=gini(counts_V),
                traffic_gini=None if traffic_V is None else gini(traffic_V),
                traffic_top_share=None if traffic_V is None else top_share(traffic_V),
                reconstruction_error_ratio=errors[level] if level < len(errors) else None,
                neighbour_agreement=None if near is None else near[level],
                neighbour_agreement_gain=None if near is None else near[level] - chance_L[level],
                prefix_purity=purity,
                prefix_purity_gain=gain,
                copurchase_agreement=None if together is None else together[level],
                copurchase_agreement_gain=(
                    None if together is None else together[level] - chance_L[level]
                ),
            )
        )
    num_ids = len(counts_P[-1])
    num_alone = int((counts_P[-1] == 1).sum())
    return Health(
        num_items=num_items,
        num_ids=num_ids,
        icr=num_ids / num_items if num_items else 1.0,
        cur=num_ids / prod(ids.num_codes),
        collision_rate=1 - num_ids / num_items if num_items else 0.0,
        collision_share=1 - num_alone / num_items if num_items else 0.0,
        num_alone=num_alone,
        largest_group=int(counts_P[-1].max(initial=0)),
        group_sizes=tuple(zip(sizes.tolist(), numbers.tolist(), strict=True)),
        mean_length=float((ids.codes >= 0).sum(axis=1).mean()) if num_items else 0.0,
        num_pairs=num_pairs,
        levels=tuple(levels),
    )


def require_alive(
    ids: SemanticIds,
    vectors: ItemVectors | None = None,
    *,
    least_use: float = 0.05,
    name: str = "the tokenizer",
) -> None:
    """DataError naming the cure where a codebook collapsed: many items, hardly a code in use.

    A level has collapsed when the perplexity of its codes is below `least_use` (a share in [0, 1])
    of its size, or when all of its items hold one code. Levels with fewer than `ITEMS_PER_CODE`
    distinct items a code (distinct vectors where `vectors` are given) are not judged: equal items
    cannot have different codes. `least_use` 0 asks for nothing.
    """
    if not 0 <= least_use <= 1:
        raise ConfigError(f"least_use must be in [0, 1], got {least_use}")
    if not least_use:
        return
    for level, num_codes in enumerate(ids.num_codes):
        held = np.flatnonzero(ids.codes[:, level] >= 0)
        counts_V = np.bincount(ids.codes[held, level], minlength=num_codes)
        num_used, perplexity = int((counts_V > 0).sum()), float(np.exp(entropy_nats(counts_V)))
        if num_codes == 1 or (num_used > 1 and perplexity >= least_use * num_codes):
            continue
        needed = ITEMS_PER_CODE * num_codes
        if len(held) < needed:
            continue
        distinct = len(held)
        if vectors is not None:
            distinct = len({row.tobytes() for row in vectors.vectors[held]})
        if distinct < needed:
            continue
        deeper = " or num_levels" if level else ""
        raise DataError(
            f"level {level} of {name} collapsed: {distinct:,} distinct items use {num_used} of "
            f"{num_codes} codes, as evenly as {perplexity:.1f} codes would "
            f"({perplexity / num_codes:.1%}; at least {least_use:.1%} is asked for); "
            f"lower num_codes{deeper}, train a learnt tokenizer for more epochs or at a lower "
            "learning rate, or take residual_kmeans; least_code_use = 0 goes on with these IDs"
        )


def prefix_groups(ids: SemanticIds) -> Ints:
    """(N, L) number, from 0, of the prefix that each item has at each depth."""
    groups_NL = np.zeros(ids.codes.shape, dtype=np.int64)
    parents_N = np.zeros(len(ids), dtype=np.int64)
    for level, num_codes in enumerate(ids.num_codes):
        keys_N = parents_N * (num_codes + 1) + ids.codes[:, level] + 1
        _, parents_N = np.unique(keys_N, return_inverse=True)
        groups_NL[:, level] = parents_N
    return groups_NL


def chance_of(counts_P: Ints) -> float:
    """Probability that two different items, drawn at random, are in one group."""
    total = int(counts_P.sum())
    if total < 2:
        return 0.0
    counts = counts_P.astype(np.float64)
    return float((counts * (counts - 1)).sum() / (total * (total - 1.0)))


def entropy_nats(counts: Ints) -> float:
    """−sum p ln p of the distribution that the counts make; 0 for no counts."""
    p = counts[counts > 0] / max(int(counts.sum()), 1)
    return float(-(p * np.log(p)).sum() + 0.0)


def top_share(counts_V: Ints) -> float:
    """Share of the total on the busiest tenth of the codes, at least one; 0 for no counts."""
    num_top = max(round(BUSIEST * len(counts_V)), 1)
    return float(np.sort(counts_V)[-num_top:].sum() / max(int(counts_V.sum()), 1))


def rebuilt(codes_NL: Ints, tokenizer: Any) -> Floats:
    """Vectors (N, D) from prefixes; shorter IDs, which end in −1, from the codes they have."""
    lengths_N = (codes_NL >= 0).sum(axis=1)
    parts = {int(n): lengths_N == n for n in np.unique(lengths_N)}
    if len(parts) == 1:
        return tokenizer.decode(codes_NL[:, : next(iter(parts))])
    decoded = {n: tokenizer.decode(codes_NL[rows, :n]) for n, rows in parts.items()}
    vectors_ND = np.empty((len(codes_NL), next(iter(decoded.values())).shape[1]), np.float32)
    for n, rows in parts.items():
        vectors_ND[rows] = decoded[n]
    return vectors_ND


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
) -> list[float] | None:
    """Share of each item's nearest neighbours by cosine that share its prefix of depth 1, 2, ….

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
    same = (ids.codes[found] == ids.codes[rows][:, None]).cumprod(axis=2)
    return same[others].mean(axis=0).tolist()


def copurchase_agreement(
    groups_NL: Ints, train: Histories, window: int = PAIR_WINDOW
) -> tuple[int, list[float] | None]:
    """Number of distinct co-purchased pairs, and the share of them, by users, that have one prefix
    at each depth; no shares where there are no pairs.
    """
    graph = cooccurrence(train, len(groups_NL), window).tocoo()
    if not graph.nnz:
        return 0, None
    left, right = graph.coords
    users = graph.data.astype(np.float64)  # both directions of a pair, which changes no share
    shares = [users[g[left] == g[right]].sum() / users.sum() for g in groups_NL.T]
    return graph.nnz // 2, [float(share) for share in shares]
