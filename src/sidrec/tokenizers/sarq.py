"""SARQ-style: long IDs for items on busy paths, short ones for items on rare paths.

A residual quantiser gives every item a path of L codes; the ID is the beginning of it that a
budget asks for. With n(c) the events of the items below a prefix c, and s the smoothing,

    p(c_l | c_<l) = (n(c_<=l) + s) / (n(c_<l) + s * children of c_<l)
    surprisal:  h_l = - sum over m <= l of log2 p(c_m | c_<m);   length = first l with h_l >= tau
    entropy:    H_l = entropy in bits of p(. | c_<=l);           length = first l with H_l <= tau

and L where there is none. Busy branches add few bits a level, so head items go on longer. `tau`
follows from `mean_length` where it is not given.

An item without events takes the smoothed path as it is. An item unseen in `fit` ends where its path
does, at the latest at the first prefix that no fitted item has: there it is alone.

Source:   SA2CRQ, arXiv:2602.23978: path entropy, budget tau, interaction weights. No equation of it
          is known to us: every formula here is our reading, hence "SARQ-style" in all reports.
Differs:  residual k-means unless `quantiser` says otherwise; lengths are set after quantisation;
          tau by the wanted mean length; without a context every item counts once, as in the control
          `weighted = false` (`num_events` is then None). An infinite tau counts as 1e300.
Cost:     the quantiser's, and one sort of N keys a level; a node costs 17 bytes.
Shapes:   N items, L levels, V codes of a level, M nodes of a level, P parents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from sidrec import config as configuration
from sidrec import methods
from sidrec.errors import ConfigError, DataError
from sidrec.tokenizers.variable_length import lengths_of, truncated
from sidrec.types import Bools, CatalogueContext, Floats, Ints, ItemVectors, SemanticIds

Doubles = NDArray[np.float64]
DEFAULT_SHARE = 0.75
"""Mean length, as a share of L, where neither `tau` nor `mean_length` is given."""
ENDLESS = 1e300
"""Stands for an infinite tau, which JSON cannot hold."""
IMPOSSIBLE = 1e290
"""Bits of a path that nobody took, without smoothing."""
SHARED = ("num_codes", "num_levels", "seed")
"""Settings that the quantiser takes from here."""


@dataclass(frozen=True, kw_only=True)
class SarqConfig:
    """Settings of `Sarq`."""

    num_codes: int | tuple[int, ...] = 256
    """V, the size of every level's codebook, or one size a level."""
    num_levels: int = 4
    """L, the most codes of an ID."""
    rule: Literal["surprisal", "entropy"] = "surprisal"
    """What is compared with tau: bits of the path so far, or of the branching below it."""
    tau: float | None = None
    """Bits. surprisal: 0 gives one code to every item, infinity gives all L. entropy: the other way
    round."""
    mean_length: float | None = None
    """Choose tau such that items have this many codes on average, as nearly as it can; where tau is
    not given either, 0.75 L."""
    weighted: bool = True
    """Weigh items by their training events; false counts every item once, for comparison."""
    smoothing: float = 1.0
    """s, added to the count of every child that a prefix has."""
    quantiser: str = "residual_kmeans"
    """The tokenizer that gives the paths."""
    quantiser_settings: dict[str, Any] = field(default_factory=dict)
    """Further settings of the quantiser, e.g. {num_iters = 50}."""
    seed: int = 0
    """Seed of the quantiser."""

    def __post_init__(self) -> None:
        if self.tau is not None and self.mean_length is not None:
            raise ConfigError("sarq takes tau or mean_length, got both; drop one")
        if self.tau is not None:
            if math.isnan(self.tau):
                raise ConfigError("sarq.tau must be a number of bits, got nan")
            object.__setattr__(self, "tau", float(min(max(self.tau, -ENDLESS), ENDLESS)))
        if self.mean_length is not None and not 1 <= self.mean_length <= self.num_levels:
            raise ConfigError(
                f"sarq.mean_length must be in [1, num_levels = {self.num_levels}], "
                f"got {self.mean_length}"
            )
        if not 0 <= self.smoothing < math.inf:
            raise ConfigError(f"sarq.smoothing must be at least 0, got {self.smoothing}")
        if self.quantiser == "sarq":
            raise ConfigError("sarq.quantiser must be another tokenizer than sarq")
        twice = sorted(set(SHARED) & set(self.quantiser_settings))
        if twice:
            raise ConfigError(f"sarq.quantiser_settings: set {', '.join(twice)} in sarq itself")

    def of_quantiser(self) -> tuple[Any, Any]:
        """Class and config of the quantiser."""
        chosen = methods.resolve("tokenizers", self.quantiser)
        known = {f.name for f in fields(chosen.config_class)}
        shared = {name: getattr(self, name) for name in SHARED if name in known}
        values = shared | self.quantiser_settings
        where = "sarq.quantiser_settings"
        return chosen, configuration.parse(chosen.config_class, values, where=where)


@dataclass(frozen=True, eq=False)
class Nodes:
    """The prefixes of one length that items of `fit` have; a node is the position of its key."""

    keys_M: Ints
    """Ascending `parent * V + code`."""
    bits_M: Doubles
    """h, the surprisal of each prefix."""
    ends_M: Bools
    """Whether an ID ends here, if it did not end before."""

    def find(self, parents_N: Ints, codes_N: Ints, num_codes: int) -> tuple[Ints, Bools]:
        """Node of each item, and whether there is one."""
        keys_N = parents_N * num_codes + codes_N
        places_N = np.searchsorted(self.keys_M, keys_N).clip(max=len(self.keys_M) - 1)
        return places_N, self.keys_M[places_N] == keys_N


@dataclass(frozen=True, eq=False)
class Sarq:
    """A fitted quantiser, and where on its paths IDs end."""

    config_class: ClassVar[type] = SarqConfig
    config: SarqConfig
    quantiser: Any
    nodes: tuple[Nodes, ...]
    """L of them, coarse to fine."""
    tau: float
    """The budget in use, bits."""
    num_events: int | None
    """Training events that weighed the items; None where every item counted once."""

    @classmethod
    def fit(
        cls, vectors: ItemVectors, config: SarqConfig, context: CatalogueContext | None = None
    ) -> Self:
        """Fit the quantiser, count events along its paths, choose where IDs end."""
        chosen, settings = config.of_quantiser()
        quantiser = chosen.fit(vectors, settings, context)
        paths_NL = quantiser.encode(vectors).codes
        if (paths_NL < 0).any():
            raise DataError(f"sarq needs paths of one length, {config.quantiser} ends some early")
        weights_N, num_events = np.ones(len(vectors)), None
        if config.weighted and context is not None:
            weights_N = event_counts(vectors, context)
            num_events = int(weights_N.sum())
        sizes = tuple(quantiser.num_codes)
        keys, numbers_NL, bits = path_bits(paths_NL, sizes, weights_N, config.smoothing)
        below = branching_bits(numbers_NL, weights_N, config.smoothing)
        sign = 1.0 if config.rule == "surprisal" else -1.0
        stops = bits[:-1] if config.rule == "surprisal" else [-bits_M for bits_M in below]
        stops_NL = np.column_stack(
            [stop_M[numbers_NL[:, level]] for level, stop_M in enumerate(stops)]
            or [np.zeros((len(vectors), 0))]
        )
        tau = config.tau
        if tau is None:
            wanted = config.mean_length or max(1.0, DEFAULT_SHARE * len(sizes))
            tau = sign * threshold_for(np.maximum.accumulate(stops_NL, axis=1), wanted)
        ends = [stop_M >= sign * tau for stop_M in stops] + [np.ones(len(bits[-1]), dtype=bool)]
        nodes = tuple(Nodes(*level) for level in zip(keys, bits, ends, strict=True))
        return cls(config, quantiser, nodes, float(tau), num_events)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the fit had to do without."""
        if self.config.weighted and not self.num_events:
            return ("no training event names an item: lengths follow the vectors alone",)
        return ()

    @property
    def num_codes(self) -> tuple[int, ...]:
        """L codebook sizes, coarse to fine."""
        return tuple(self.quantiser.num_codes)

    @property
    def codebooks(self) -> tuple[Floats, ...]:
        """Those of the quantiser."""
        return self.quantiser.codebooks

    def project(self, vectors: ItemVectors) -> Floats:
        """Points (N, D) in the space of the codebooks."""
        return self.quantiser.project(vectors)

    def full_paths(self, vectors: ItemVectors) -> Ints:
        """Codes (N, L) of the quantiser, which IDs are the beginnings of."""
        return self.quantiser.encode(vectors).codes

    def encode(self, vectors: ItemVectors) -> SemanticIds:
        """The beginning of each item's path that the budget asks for. Unseen items are welcome."""
        paths_NL = self.full_paths(vectors)
        _, lengths_N = self._walk(paths_NL)
        return SemanticIds(vectors.item_ids, truncated(paths_NL, lengths_N), self.num_codes)

    def bits(self, ids: SemanticIds) -> Doubles:
        """Surprisal (N,) of each whole ID, up to the last prefix that an item of `fit` has."""
        bits_N, _ = self._walk(ids.codes)
        return bits_N

    def decode(self, codes_NL: Ints) -> Floats:
        """Vectors (N, D) from the codes there are; fewer columns give coarser vectors."""
        lengths_N = lengths_of(codes_NL)
        if not (lengths_N < codes_NL.shape[1]).any():
            return self.quantiser.decode(codes_NL)
        parts = {int(n): np.flatnonzero(lengths_N == n) for n in np.unique(lengths_N)}
        decoded = [self.quantiser.decode(codes_NL[rows, :n]) for n, rows in parts.items()]
        vectors_ND = np.empty((len(codes_NL), decoded[0].shape[1]), dtype=np.float32)
        for rows, part_ND in zip(parts.values(), decoded, strict=True):
            vectors_ND[rows] = part_ND
        return vectors_ND

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` to rebuild this tokenizer."""
        arrays = {f"quantiser.{k}": array for k, array in self.quantiser.arrays().items()}
        for level, nodes in enumerate(self.nodes):
            arrays[f"keys.{level}"] = nodes.keys_M
            arrays[f"bits.{level}"] = nodes.bits_M
            arrays[f"ends.{level}"] = nodes.ends_M
        return arrays

    def state(self) -> dict[str, Any]:
        """The budget in use, and what the quantiser needs."""
        state = self.quantiser.state()
        return {"tau": self.tau, "num_events": self.num_events, "quantiser": state}

    @classmethod
    def from_arrays(
        cls, config: SarqConfig, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
    ) -> Self:
        """The tokenizer that `arrays` and `state` came from."""
        chosen, settings = config.of_quantiser()
        own = {
            name.removeprefix("quantiser."): array
            for name, array in arrays.items()
            if name.startswith("quantiser.")
        }
        quantiser = chosen.from_arrays(settings, own, state["quantiser"])
        nodes = tuple(
            Nodes(*(arrays[f"{name}.{level}"] for name in ("keys", "bits", "ends")))
            for level in range(len(quantiser.num_codes))
        )
        return cls(config, quantiser, nodes, float(state["tau"]), state["num_events"])

    def _walk(self, codes_NL: Ints) -> tuple[Doubles, Ints]:
        """Bits (N,) of the longest known prefix of each row, and the length (N,) of its ID."""
        at_N, bits_N = np.zeros(len(codes_NL), dtype=np.int64), np.zeros(len(codes_NL))
        known_N, lengths_N = np.ones(len(codes_NL), dtype=bool), lengths_of(codes_NL)
        going_N = known_N.copy()
        for level, (nodes, size) in enumerate(zip(self.nodes, self.num_codes, strict=True)):
            codes_N = codes_NL[:, level]
            places_N, found_N = nodes.find(at_N, np.maximum(codes_N, 0), size)
            known_N &= found_N & (codes_N >= 0)
            at_N, bits_N = places_N, np.where(known_N, nodes.bits_M[places_N], bits_N)
            ends_N = going_N & (~known_N | nodes.ends_M[places_N])
            lengths_N[ends_N] = np.minimum(lengths_N[ends_N], level + 1)
            going_N &= ~ends_N
        return bits_N, lengths_N


def event_counts(vectors: ItemVectors, context: CatalogueContext) -> Doubles:
    """Training events (N,) of each item that has a vector; 0 for items without."""
    counts_N = context.train_counts_N
    row_of = context.items.row_of
    rows = [row_of.get(str(item), -1) for item in vectors.item_ids]
    return np.append(counts_N, 0)[rows].astype(np.float64)


def path_bits(
    paths_NL: Ints, sizes: tuple[int, ...], weights_N: Doubles, smoothing: float
) -> tuple[list[Ints], Ints, list[Doubles]]:
    """Keys (M,) of the nodes of each level, node (N, L) of each item there, and bits h (M,)."""
    keys, bits, numbers = [], [], []
    parents_N, above_P = np.zeros(len(paths_NL), dtype=np.int64), weights_N.sum(keepdims=True)
    bits_P: Doubles = np.zeros(1)
    for level, size in enumerate(sizes):
        keys_M, nodes_N = np.unique(parents_N * size + paths_NL[:, level], return_inverse=True)
        nodes_N, parents_M = nodes_N.reshape(-1), keys_M // size
        here_M = sums(nodes_N, weights_N)
        p_M = shares(here_M, parents_M, above_P, smoothing)
        with np.errstate(divide="ignore"):
            step_M = np.minimum(-np.log2(p_M), IMPOSSIBLE)
        bits_P = np.minimum(bits_P[parents_M] + step_M, IMPOSSIBLE) + 0.0
        keys.append(keys_M)
        bits.append(bits_P)
        numbers.append(nodes_N)
        parents_N, above_P = nodes_N, here_M
    return keys, np.column_stack(numbers), bits


def sums(groups: Ints, weights: Doubles) -> Doubles:
    """Sum of the weights of each group, from group 0."""
    return np.bincount(groups, weights=weights).astype(np.float64)


def shares(here_M: Doubles, parents_M: Ints, above_P: Doubles, smoothing: float) -> Doubles:
    """Probability (M,) of each node given its parent; even where nothing was counted."""
    children_M = np.bincount(parents_M)[parents_M]
    total_M = above_P[parents_M] + smoothing * children_M
    even_M = total_M <= 0
    return np.where(even_M, 1 / children_M, (here_M + smoothing) / np.where(even_M, 1, total_M))


def branching_bits(numbers_NL: Ints, weights_N: Doubles, smoothing: float) -> list[Doubles]:
    """Entropy (M,) in bits of the children of each node, for every level but the last."""
    entropies = []
    for level in range(numbers_NL.shape[1] - 1):
        parents_N, nodes_N = numbers_NL[:, level], numbers_NL[:, level + 1]
        parents_M = np.zeros(int(nodes_N.max()) + 1, dtype=np.int64)
        parents_M[nodes_N] = parents_N
        here_M = sums(nodes_N, weights_N)
        p_M = shares(here_M, parents_M, sums(parents_N, weights_N), smoothing)
        terms_M = -p_M * np.log2(np.where(p_M > 0, p_M, 1))
        entropies.append(sums(parents_M, terms_M) + 0.0)
    return entropies


def threshold_for(stops_NL: Doubles, mean_length: float) -> float:
    """The t for which 1 + (how many of an item's rising `stops` lie below t) has nearly this mean.

    The mean only takes the values that items with equal stops allow; of the two next to the wanted
    one the nearer is taken, the shorter in a tie.
    """
    values, counts = np.unique(stops_NL, return_counts=True)
    if not len(values):
        return 0.0
    means = 1 + np.concatenate([[0], np.cumsum(counts)]) / len(stops_NL)
    best = int(np.abs(means - mean_length).argmin())
    if best == len(values):
        return ENDLESS
    return float(values[best])
