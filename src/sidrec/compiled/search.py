"""Beam search of `causal` in one call of ONNX Runtime: the items of `beam_search`, sooner.

Small batches spend most of an eager search between operations, and take and give the interpreter
lock at every one. Here a batch is one call that holds no lock. The graph is written from the
generator (`causal_graph`), never read from disk: nothing is cached, and no compiler is needed.
Tables of the catalogue are inputs, so items, deletions and filters need no new graph; new weights
are noticed and give one.

Differs:  sums are rounded in another order; see `causal_graph`.
Cost:     writing a graph and opening it: well under a second; a search is timed in
          benchmarks/compiled.py.
Shapes:   B requests, X excluded items, W beams, L levels, N items, K returned items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from sidrec.decoding.beam import beam_search, expand
from sidrec.decoding.prefix_index import DEAD, ILLEGAL, PrefixIndex
from sidrec.decoding.rules import Rules, padded
from sidrec.errors import ConfigError, MissingExtra, ServiceError
from sidrec.generators.causal import Causal
from sidrec.types import PAD, Bools, Candidates, Floats, Histories, HistoryBatch, Ints

CHECKED_HISTORIES, CHECKED_LENGTH, CHECKED_ITEMS, CHECKED_BEAM = 8, 5, 10, 64
TOLERANCE = 1e-3
"""Nats by which a compiled score may differ from an eager one before it is refused."""
NEEDED = ("onnx", "onnxruntime")
RESULTS = ["scores_BW", "leaves_BW", "rows_BW"]
_open: WeakValueDictionary[bytes, Any] = WeakValueDictionary()
"""Graphs that some search has open, by their SHA-256."""


class Bound(NamedTuple):
    """A graph that is open, and the catalogue that it is asked with."""

    session: Any
    tables: Mapping[str, Any]
    versions: list[int]
    """Of the weights that both were made from."""


class CompiledSearch:
    """The search of one generator over one index, its rules included; threads may share it."""

    def __init__(self, generator: Any, index: PrefixIndex, weights_N: Tensor | None = None) -> None:
        """ConfigError or MissingExtra, with what to do, where there is no compiled search."""
        require_compilable(generator, index)
        self.generator: Causal = generator
        self.index, self.weights_N = index, weights_N
        self._read = [*generator.parameters(), generator.inputs.vectors_ND]
        self._bound = self._bind()
        self._live: WeakKeyDictionary[PrefixIndex, Mapping[str, Any]] = WeakKeyDictionary()

    def search(
        self, batch: HistoryBatch, *, k: int, beam_width: int, rules: Rules | None = None
    ) -> Candidates:
        """The k best items of each request, as `beam_search` with `renormalise` finds them."""
        if k < 1:
            raise ConfigError(f"compiled search: k must be at least 1, got {k}")
        bound, index = self._bound, self.index
        if bound.versions != versions(self._read):
            bound = self._bound = self._bind()
        if rules is not None:
            index = rules.restrict(index)
        excluded_BX = self._excluded(rules, batch.num_requests)
        asked = {
            "items_BT": batch.items_BT.numpy(),
            "lengths_B": batch.lengths_B.numpy(),
            "excluded_BX": excluded_BX,
            "scores_B1": first_scores(index, excluded_BX),
            "width": np.array([max(beam_width, k)]),
        }
        inputs = {**bound.tables, **self._live_tables(index), **asked}
        scores_BW, leaves_BW, rows_BW = bound.session.run(RESULTS, inputs)
        if index.tree.one_item_a_leaf and not np.isnan(scores_BW[:, 0]).any():
            return first_items(rows_BW, scores_BW, k)
        rows_BX = torch.from_numpy(excluded_BX) if excluded_BX.shape[1] else None
        leaves_BW, scores_BW = torch.from_numpy(leaves_BW), torch.from_numpy(scores_BW)
        return expand(index, leaves_BW, scores_BW, k, rows_BX, self.weights_N)

    def check(self) -> None:
        """ServiceError where this machine's ONNX Runtime answers otherwise than PyTorch does."""
        rows_BT = np.random.default_rng(0).integers(
            self.index.num_rows, size=(CHECKED_HISTORIES, CHECKED_LENGTH)
        )
        batch = HistoryBatch.from_histories(
            Histories.from_lists(list(rows_BT)), max_length=self.generator.max_length
        )
        rules = Rules(exclude=list(rows_BT))
        asked: Any = {"k": CHECKED_ITEMS, "beam_width": CHECKED_BEAM, "rules": rules}
        found = self.search(batch, **asked)
        wanted = beam_search(self.generator, batch, self.index, weights_N=self.weights_N, **asked)
        if not np.allclose(found.scores_BK, wanted.scores_BK, rtol=0, atol=TOLERANCE):
            raise ServiceError(
                "compiled search: its scores are not those of PyTorch here; serve without it, and "
                "report this with the versions of onnxruntime and torch"
            )

    def _bind(self) -> Bound:
        tables = catalogue(self.generator, self.index)
        return Bound(session_of(self.generator), tables, versions(self._read))

    def _excluded(self, rules: Rules | None, num_requests: int) -> Ints:
        """(B, X) excluded rows, −1 for those that the index has no place for."""
        if rules is None or rules.exclude is None:
            return np.full((num_requests, 0), PAD)
        rows_BX = padded(rules.exclude).numpy()
        if rows_BX.ndim != 2 or len(rows_BX) != num_requests:
            rules.excluded_rows(num_requests, self.index.device)  # says what is wrong
        return np.where(rows_BX < self.index.num_rows, rows_BX, PAD)

    def _live_tables(self, index: PrefixIndex) -> Mapping[str, Any]:
        """What a filter changes: the live items below each node, and the rows that count."""
        found = self._live.get(index)
        if found is None:
            live = {f"live{level}": n.float().numpy() for level, n in enumerate(index.live)}
            found = self._live[index] = {**live, "counted_N": counted_rows(index)}
        return found


def versions(weights: Sequence[Tensor]) -> list[int]:
    """What changes whenever PyTorch writes one of the tensors."""
    return [weight._version for weight in weights]


def first_items(rows_BW: Ints, scores_BW: Floats, k: int) -> Candidates:
    """`decoding.beam.expand` where each leaf has one item."""
    found_BK = np.full((len(rows_BW), k), PAD)
    scores_BK = np.full((len(rows_BW), k), -np.inf, dtype=np.float32)
    filled = slice(min(k, rows_BW.shape[1]))
    alive_BK = scores_BW[:, filled] > DEAD
    np.copyto(found_BK[:, filled], rows_BW[:, filled], where=alive_BK)
    np.copyto(scores_BK[:, filled], scores_BW[:, filled], where=alive_BK)
    return Candidates(found_BK, scores_BK)


def require_compilable(generator: Any, index: PrefixIndex) -> None:
    """ConfigError or MissingExtra where no graph can be written for this generator and index."""
    name = type(generator).__name__.lower()
    if type(generator) is not Causal:
        raise ConfigError(f"compiled search: only causal has one, got {name}; leave compiled out")
    if generator.config.num_experts > 1:
        raise ConfigError(
            "compiled search: experts are not written as a graph; leave compiled out, or fit with "
            "num_experts = 1"
        )
    if index.device.type != "cpu":
        raise ConfigError(
            f"compiled search: it runs on the CPU, the model is on {index.device}; leave compiled "
            "out, or load with device cpu"
        )
    for package in NEEDED:
        try:
            __import__(package)
        except ImportError as cause:
            raise MissingExtra(package, "compiled", "the compiled search") from cause
    nodes_LN, tree = index.tree.base.nodes_of_row, generator.tree
    same = index.tree.overlay is None and len(tree) == index.num_levels
    same = same and tuple(generator.widths) == tuple(index.widths)
    if not same or not all(
        torch.equal(nodes_LN[level, :-1], tree.of("nodes", level)) for level in range(len(tree))
    ):
        raise ConfigError(
            "compiled search: the index holds other items than the generator was built with, or "
            "keeps new ones apart; leave compiled out, or build the index from the generator's IDs"
        )


def session_of(generator: Causal) -> Any:
    """The generator's graph, open. One thread: the others of a server have work of their own.

    Equal graphs share what is open: new items leave the graph as it is.
    """
    from sidrec.compiled.causal_graph import search_graph

    graph = search_graph(generator)
    key = hashlib.sha256(graph).digest()
    session = _open.get(key)
    if session is None:
        session = _open[key] = opened(graph)
    return session


def opened(graph: bytes) -> Any:
    """A graph in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # no two batches have the same shapes
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def catalogue(generator: Causal, index: PrefixIndex) -> dict[str, Any]:
    """The inputs of the graph that stay as long as weights and items do."""
    tables, base = generator.served_tables(), index.tree.base
    leaves = base.rows_E.take(base.entry_first[-1][:-1])  # each leaf's first item
    found: dict[str, Tensor] = {
        "inputs_ND": tables.inputs_ND,
        "targets_ND": tables.items_ND,
        "row_of_leaf": pad(leaves, (0, 1), value=PAD),
    }
    for level, num_nodes in enumerate(base.num_nodes):
        symbols = base.keys[level][:num_nodes] % index.tree.strides[level]
        found[f"symbols{level}"] = pad(symbols, (0, 1))
        found[f"nodes{level}"] = base.nodes_of_row[level]
        if level:
            found[f"first{level}"] = base.first[level]
            found[f"num_children{level}"] = base.num_children[level]
        if tables.nodes_L:
            found[f"counts{level}"] = generator.tree.counts(level)
            found[f"means{level}"] = tables.nodes_L[level]
    return {name: table.detach().contiguous().numpy() for name, table in found.items()}


def counted_rows(index: PrefixIndex) -> Bools:
    """(rows + 1,) whether a catalogue row is a live item of the index; the last is false."""
    entries = index.tree.base.entry_of_row
    counted = entries >= 0
    if index.tree.alive_E is not None and len(index.tree.alive_E):
        counted &= index.tree.alive_E.take(entries.clamp_min(0))
    return counted.numpy()


def first_scores(index: PrefixIndex, excluded_BX: Ints) -> Floats:
    """(B, 1) what the root begins with: 0, or ILLEGAL where the rules leave nothing."""
    scores_B1 = np.zeros((len(excluded_BX), 1), dtype=np.float32)
    if not index.num_items:
        scores_B1[:] = ILLEGAL
    elif excluded_BX.shape[1] >= index.num_items:
        counted = counted_rows(index)
        gone_B = [counted[np.unique(rows)].sum() for rows in excluded_BX]
        scores_B1[np.array(gone_B) == index.num_items] = ILLEGAL
    return scores_B1
