"""What one beam did, level by level: which prefixes lived, which died, and of what.

Read off the levels that `beam_search(trace=…)` records, so the list explained is the list that was
found; an untraced search pays nothing. The mass that enters a level, M = sum over beams b of
p(b), where p(b) is the probability that ranked b, splits without rest:

    M = kept + fallen + sum over rules of lost + no_item,   each a sum over b of p(b) q(v | b)

q is the model's own softmax over all V codes of the level. A code is lost to the first rule that
leaves no item behind it, and no item was ever behind those of `no_item`. With `renormalise` the
survivors share what is lost, so the next level is entered by more than `kept`.

Source:   our choice.
Cost:     a level O(W V) for each rule; rules that keep items cost O(N) once, then nothing.
Shapes:   W beams, V codes of a level, N items, X excluded items, L levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import torch
from torch import Tensor

from sidrec.decoding.beam import LevelTrace, close, ended, full_log_probs, legal_log_probs
from sidrec.decoding.prefix_index import DEAD, PrefixIndex
from sidrec.decoding.rules import Exhausted, Rules, exhausted
from sidrec.types import Bools, Ints

FALLEN, NO_ITEM = "fallen", "no_item"


@dataclass(frozen=True, eq=False, kw_only=True)
class Cause:
    """One of the rules of a search, by the name that a reader knows."""

    name: str
    keep_N: Bools | None = None
    """(N,) items that it keeps; None keeps all."""
    exclude: Ints | None = None
    """(X,) catalogue rows that it drops."""


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """One prefix that a beam looked at."""

    codes: tuple[int, ...]
    """Without what follows the end of a shorter ID."""
    prob: float
    """Of a survivor, as the beam ranks; of others p(b) q(v | b)."""
    parent: int
    """Place of the prefix before, among the survivors of the level above."""
    fate: str
    """`lives` (on the next level, or to the end), `dies` there, or why it was not taken."""
    num_items: int = 0
    """Items below it that the rules leave."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of one search; all masses are probabilities in [0, 1]."""

    entering: float
    kept: float
    fallen: float
    """Of legal codes that were not among the best."""
    lost: Mapping[str, float]
    """Of codes without an allowed item, by rule, and `no_item`."""
    survivors: tuple[Prefix, ...]
    """Best first, as the beam holds them."""
    others: tuple[Prefix, ...]
    """The best that were not taken, a few of each cause."""


@torch.inference_mode()
def read(
    levels: Sequence[LevelTrace],
    index: PrefixIndex,
    causes: Sequence[Cause] = (),
    *,
    renormalise: bool = True,
    shown: int = 5,
) -> list[Level]:
    """What the search of one request did at each level, `shown` other prefixes a cause.

    `index` and `causes` together are the index and the rules of the search, and `renormalise` is
    its own; the order of the causes decides which of them a code is lost to.
    """
    stages = staged(index, causes)
    probs_W = torch.ones(1, dtype=torch.float64, device=index.device)
    nodes_BW, codes_BW = index.root(1), None
    paths: list[tuple[int, ...]] = [()]
    found: list[Level] = []
    for level, traced in enumerate(levels):
        ended_BW = ended(index, level, codes_BW)
        own_WV = probs_W[:, None] * own_probs(index, level, traced.logits_BWV, ended_BW)[0]
        legal_WV = stages[0].legal(level, nodes_BW)
        groups = {NO_ITEM: own_WV.masked_fill(legal_WV, 0)}
        for cause, stage in zip(causes, stages[1:], strict=True):
            still_WV = stage.legal(level, nodes_BW)
            groups[cause.name] = own_WV.masked_fill(~legal_WV | still_WV, 0)
            legal_WV = still_WV
        lost = {name: float(group_WV.sum()) for name, group_WV in groups.items()}
        live_W = traced.live_BW[0]  # the dead come last, so places are those of the whole beam
        parents_W, symbols_W = traced.parents_BW[0][live_W], traced.codes_BW[0][live_W]
        kept = float(own_WV[parents_W, symbols_W].sum())
        ranked_WV = legal_log_probs(
            stages[-1].index, level, nodes_BW, traced.logits_BWV,
            renormalise=renormalise, closed=stages[-1].closed[level], ended_BW=ended_BW,
        )[0]  # fmt: skip
        ranked_WV = ranked_WV.double().exp() * probs_W[:, None] * legal_WV
        ranked_WV[parents_W, symbols_W] = 0
        groups[FALLEN] = ranked_WV
        probs = traced.scores_BW[0][live_W].double().exp()
        sizes_W = stages[-1].sizes(level, traced.nodes_BW[0][live_W])
        taken = zip(
            parents_W.tolist(), symbols_W.tolist(), probs.tolist(), sizes_W.tolist(), strict=True
        )
        end = index.num_codes[level]
        survivors = [
            Prefix(
                codes=longer(paths[parent], symbol, end),
                prob=prob,
                parent=parent,
                fate="lives",
                num_items=size,
            )
            for parent, symbol, prob, size in taken
        ]
        others = [
            Prefix(codes=longer(paths[parent], symbol, end), prob=prob, parent=parent, fate=name)
            for name, group_WV in groups.items()
            for parent, symbol, prob in largest(group_WV, shown)
        ]
        found.append(
            Level(
                entering=float(probs_W.sum()),
                kept=kept,
                fallen=max(float((own_WV * legal_WV).sum()) - kept, 0.0),
                lost=lost,
                survivors=tuple(survivors),
                others=tuple(others),
            )
        )
        probs_W = traced.scores_BW[0].masked_fill(~traced.live_BW[0], -inf).double().exp()
        nodes_BW, codes_BW = traced.nodes_BW, traced.codes_BW
        paths = [p.codes for p in survivors] + [()] * int((~live_W).sum())
    return [with_fates(a, b) for a, b in itertools.pairwise(found)] + found[-1:]


def longer(prefix: tuple[int, ...], symbol: int, end: int) -> tuple[int, ...]:
    """The prefix and one more code; itself where the symbol is the end of an ID."""
    return prefix if symbol >= end else (*prefix, symbol)


def with_fates(level: Level, after: Level) -> Level:
    """The level, its survivors without a child among those of the level after it marked."""
    parents = {prefix.parent for prefix in after.survivors}
    survivors = tuple(
        prefix if place in parents else replace(prefix, fate="dies")
        for place, prefix in enumerate(level.survivors)
    )
    return replace(level, survivors=survivors)


@dataclass(frozen=True, eq=False)
class Stage:
    """What is legal once some of the rules hold."""

    index: PrefixIndex
    closed: Sequence[Exhausted | None]
    gone_LX: Tensor | None
    """Nodes of the excluded items."""

    def legal(self, level: int, nodes_BW: Tensor) -> Tensor:
        """(W, V) bool: codes that lead to an item."""
        bias_BWV = self.index.bias(level, nodes_BW)
        if (closed := self.closed[level]) is not None:
            close(bias_BWV, closed, nodes_BW, None)
        return bias_BWV[0] > DEAD

    def sizes(self, level: int, nodes_W: Tensor) -> Tensor:
        """(W,) items below each node."""
        sizes_W = self.index.live[level].take(nodes_W).long()
        if self.gone_LX is not None:
            sizes_W -= (self.gone_LX[level][None] == nodes_W[:, None]).sum(1)
        return sizes_W


def staged(index: PrefixIndex, causes: Sequence[Cause]) -> list[Stage]:
    """The index before any rule, and after each of them in turn."""
    closed: Sequence[Exhausted | None] = [None] * index.num_levels
    stages, keep_N, rows, gone_LX = [Stage(index, closed, None)], None, [], None
    for cause in causes:
        if cause.keep_N is not None:
            keep_N = cause.keep_N if keep_N is None else keep_N & cause.keep_N
        if cause.exclude is not None:
            rows.append(np.asarray(cause.exclude, dtype=np.int64))
        rules = Rules(keep_N=keep_N, exclude=[np.concatenate(rows)] if rows else None)
        restricted = rules.restrict(index)
        rows_BX = rules.excluded_rows(1, index.device)
        if rows_BX is not None:
            closed, _ = exhausted(restricted, rows_BX)
            gone_LX = restricted.paths(rows_BX)[:, 0]
        stages.append(Stage(restricted, closed, gone_LX))
    return stages


def own_probs(
    index: PrefixIndex, level: int, logits_BWV: Tensor, ended_BW: Tensor | None
) -> Tensor:
    """(B, W, V) float64 the model's own probabilities; an ended ID goes on with its end alone."""
    probs_BWV = full_log_probs(index, level, logits_BWV, False, ended_BW).double().exp()
    if ended_BW is not None:
        end = index.num_codes[level]
        probs_BWV[..., :end] = probs_BWV[..., :end].masked_fill(ended_BW.unsqueeze(2), 0)
    return probs_BWV


def largest(probs_WV: Tensor, count: int) -> list[tuple[int, int, float]]:
    """(beam, code, probability) of the largest entries above 0, best first."""
    count = min(count, probs_WV.numel())
    best, places = probs_WV.flatten().topk(count)
    width = probs_WV.shape[1]
    return [
        (place // width, place % width, prob)
        for place, prob in zip(places.tolist(), best.tolist(), strict=True)
        if prob > 0
    ]
