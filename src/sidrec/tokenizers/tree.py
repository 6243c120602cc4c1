"""The tree of semantic IDs with a name on every node, for people to read.

A node is a prefix of codes; its name is the words that set its items apart from the items of its
sibling nodes (class-based TF-IDF). Data only: `sidrec inspect` does the printing.

Source:  Grootendorst 2022, arXiv:2203.05794, eq. 2 (c-TF-IDF).
Differs: a node is compared with its siblings, not with the whole catalogue, so that words its
         parent's name already says do not come again; a word counts once an item.
Cost:    O(words in all texts * L).
Shapes:  N items, L levels, F words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

from sidrec.errors import DataError
from sidrec.types import Ints, SemanticIds

Prefix = tuple[int, ...]
STOP_WORDS = ENGLISH_STOP_WORDS | {"brand", "categories"}


@dataclass(frozen=True, kw_only=True)
class Node:
    """All items whose ID starts with `prefix`."""

    prefix: Prefix
    words: tuple[str, ...]
    """Most telling words, best first; () where the items have no words."""
    num_items: int
    num_ids: int
    """Distinct whole IDs below; fewer than `num_items` where items collide."""


@dataclass(frozen=True, eq=False)
class IdTree:
    """Every prefix that an item holds, by prefix."""

    ids: SemanticIds
    nodes: dict[Prefix, Node]

    @cached_property
    def _children(self) -> dict[Prefix, tuple[Node, ...]]:
        below: dict[Prefix, list[Node]] = {}
        for prefix, node in self.nodes.items():
            below.setdefault(prefix[:-1], []).append(node)
        return {
            parent: tuple(sorted(nodes, key=lambda node: (-node.num_items, node.prefix)))
            for parent, nodes in below.items()
        }

    def children(self, prefix: Prefix = ()) -> tuple[Node, ...]:
        """Nodes one code longer, largest first; () below a whole ID."""
        return self._children.get(prefix, ())

    def rows(self, prefix: Prefix) -> Ints:
        """Catalogue rows (n,) of the items under a prefix."""
        return np.flatnonzero((self.ids.codes[:, : len(prefix)] == prefix).all(axis=1))

    def walk(self, prefix: Prefix = (), *, depth: int | None = None) -> Iterator[Node]:
        """Nodes below a prefix, parents before children, at most `depth` levels down."""
        if depth == 0:
            return
        for node in self.children(prefix):
            yield node
            yield from self.walk(node.prefix, depth=None if depth is None else depth - 1)


def prefix_names(
    ids: SemanticIds,
    texts: Sequence[str],
    *,
    num_words: int = 3,
    depth: int | None = None,
    stop_words: frozenset[str] = STOP_WORDS,
) -> IdTree:
    """The tree of the IDs, each node named by its most telling words, down to `depth` levels."""
    if len(texts) != len(ids):
        raise DataError(
            f"prefix_names needs one text an item: {len(ids)} items, {len(texts)} texts"
        )
    words_NF, vocabulary = _words(texts, stop_words)
    depth = ids.num_levels if depth is None else min(depth, ids.num_levels)
    _, whole_N = np.unique(ids.codes, axis=0, return_inverse=True)
    nodes: dict[Prefix, Node] = {}
    parents_N = np.zeros(len(ids), dtype=np.int64)
    for level in range(depth):
        alive = np.flatnonzero(ids.codes[:, level] >= 0)
        if not len(alive):
            break
        prefixes_PL, group_N = np.unique(ids.codes[alive, : level + 1], axis=0, return_inverse=True)
        group_N = group_N.ravel()
        parent_P = np.zeros(len(prefixes_PL), dtype=np.int64)
        parent_P[group_N] = parents_N[alive]
        names = _telling_words(words_NF[alive], group_N, parent_P, vocabulary, num_words)
        sizes_P = np.bincount(group_N)
        pairs = np.unique(np.column_stack([group_N, whole_N.ravel()[alive]]), axis=0)
        distinct_P = np.bincount(pairs[:, 0])
        for p, codes in enumerate(prefixes_PL.tolist()):
            nodes[tuple(codes)] = Node(
                prefix=tuple(codes),
                words=names[p],
                num_items=int(sizes_P[p]),
                num_ids=int(distinct_P[p]),
            )
        parents_N[alive] = group_N
    return IdTree(ids, nodes)


@dataclass(frozen=True, eq=False)
class ItemWords:
    """The words of all items, to name any groups of them."""

    words_NF: sparse.csr_matrix
    vocabulary: list[str]

    @classmethod
    def of(cls, texts: Sequence[str], *, stop_words: frozenset[str] = STOP_WORDS) -> Self:
        """From one text an item."""
        return cls(*_words(texts, stop_words))

    def names(
        self, rows_M: Ints, groups_M: Ints, *, num_words: int = 3
    ) -> dict[int, tuple[str, ...]]:
        """Group number -> the words that set its items apart from those of the other groups."""
        if not len(rows_M):
            return {}
        numbers, group_M = np.unique(groups_M, return_inverse=True)
        one_parent = np.zeros(len(numbers), dtype=np.int64)
        names = _telling_words(
            self.words_NF[rows_M], group_M.ravel(), one_parent, self.vocabulary, num_words
        )
        return dict(zip(numbers.tolist(), names, strict=True))


def _words(texts: Sequence[str], stop_words: frozenset[str]) -> tuple[sparse.csr_matrix, list[str]]:
    """Which words (N, F) each text holds, 0 or 1, without stop words and bare numbers."""
    vectorizer = CountVectorizer(
        binary=True, dtype=np.float64, token_pattern=r"(?u)\b[^\W\d_]\w+\b"
    )
    try:
        words_NF = sparse.csr_matrix(vectorizer.fit_transform(texts))
    except ValueError:  # scikit-learn: empty vocabulary; nodes then have no words
        return sparse.csr_matrix((len(texts), 0)), []
    names = vectorizer.get_feature_names_out()
    kept = [column for column, name in enumerate(names) if name not in stop_words]
    return sparse.csr_matrix(words_NF[:, kept]), [str(names[column]) for column in kept]


def _telling_words(
    words_NF: sparse.csr_matrix,
    group_N: Ints,
    parent_P: Ints,
    vocabulary: Sequence[str],
    num_words: int,
) -> list[tuple[str, ...]]:
    """Best words of each group P: share of its items with the word * ln(1 + A / f), where f is the
    number of items under the same parent that hold the word and A their mean group size.
    """
    num_groups, num_items = len(parent_P), len(group_N)
    member_PN = sparse.csr_matrix(
        (np.ones(num_items), (group_N, np.arange(num_items))), shape=(num_groups, num_items)
    )
    counts_PF = sparse.csr_matrix(member_PN @ words_NF)
    family_QP = sparse.csr_matrix(
        (np.ones(num_groups), (parent_P, np.arange(num_groups))),
        shape=(int(parent_P.max()) + 1, num_groups),
    )
    family_QF = sparse.csr_matrix(family_QP @ counts_PF)
    family_QF.sort_indices()
    sizes_P = np.bincount(group_N, minlength=num_groups)
    groups_Q = np.asarray(family_QP.sum(axis=1)).ravel()
    mean_size_Q = np.asarray(family_QP @ sizes_P).ravel() / np.maximum(groups_Q, 1)
    width = max(len(vocabulary), 1)
    row, column = np.repeat(np.arange(num_groups), np.diff(counts_PF.indptr)), counts_PF.indices
    family_keys = np.repeat(np.arange(len(groups_Q)), np.diff(family_QF.indptr)) * width
    at = np.searchsorted(family_keys + family_QF.indices, parent_P[row] * width + column)
    scores = (
        counts_PF.data / sizes_P[row] * np.log1p(mean_size_Q[parent_P[row]] / family_QF.data[at])
    )
    order = np.lexsort((column, -scores, row))
    starts = np.searchsorted(row[order], np.arange(num_groups))
    ends = np.minimum(starts + num_words, np.append(starts[1:], len(order)))
    return [
        tuple(vocabulary[int(column[entry])] for entry in order[start:end])
        for start, end in zip(starts, ends, strict=True)
    ]
