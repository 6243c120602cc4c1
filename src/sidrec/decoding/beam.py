"""Beam search over the catalogue's prefix tree: the k most probable items of each request.

The history is encoded once; then, level by level, the generator's logits of all live prefixes
are confined to legal continuations and the best `beam_width` prefixes of each request survive.
Levels where prefixes have few children look at those children only, others at a bit mask; a
generator with `step_children` is asked for the logits of children only (`decoding.children`).
With `renormalise` (the default) each step is a softmax over legal continuations, so the
probabilities of all items sum to 1. Without it, the softmax runs over all V codes and illegal ones
are dropped afterwards (STATIC's rule): a score is then the model's own joint probability.
A prefix A of probability .6 whose only child has .1, against B of .4 whose child has .9: without,
A .06 < B .36; with, A .6 > B .4. Never mix the two, in training or in fusion.

Where IDs end early, the end is a symbol with a probability like any other, so a score is that of
the whole ID. `length_penalty` ranks by score / symbols^penalty instead (no log-probability any
more: for comparison). Items that share an ID all have its score or, with `weights_N`, divide its
probability in proportion to their weights, so that the items, not the IDs, sum to 1.

Source:   constrained beam search of TIGER (arXiv:2305.05065) and STATIC (arXiv:2602.22647).
          The length penalty without its constant: Wu et al. 2016 (arXiv:1609.08144), eq. 14.
Differs:  rules inside the search; ties go to the better prefix, then the lower code, then the
          lower row; fewer than k items come back only when fewer exist.
Cost:     a step O(W V) a request, or O(W children); nothing grows with the catalogue.
Shapes:   B requests, W beams, V codes of a level, C looked-at children, K items, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import inf

import torch
from torch import Tensor
from torch.nn.functional import pad

from sidrec.contracts import Generator
from sidrec.decoding.children import Children, log_softmax
from sidrec.decoding.prefix_index import DEAD, ILLEGAL, PrefixIndex
from sidrec.decoding.rules import Exhausted, Rules, exhausted
from sidrec.errors import ConfigError, DataError
from sidrec.types import PAD, Candidates, HistoryBatch


@dataclass(frozen=True, eq=False)
class LevelTrace:
    """The beam after one level, for explanations; `decoding.trace` reads it."""

    logits_BWV: Tensor
    """What the generator said of the beams that entered the level."""
    parents_BW: Tensor
    codes_BW: Tensor
    nodes_BW: Tensor
    scores_BW: Tensor
    live_BW: Tensor
    """Beams that still lead to an item."""


@dataclass(frozen=True, eq=False)
class FreeCodes:
    """What a generator writes when nothing holds it to the catalogue; to measure, not to serve."""

    codes_BKL: Tensor
    scores_BK: Tensor
    valid_BK: Tensor
    """Whether some item holds the code tuple."""

    def invalid_share(self, k: int) -> float:
        """Share of the first k code tuples, in [0, 1], that no item holds."""
        return 1.0 - float(self.valid_BK[:, :k].float().mean())


@torch.inference_mode()
def beam_search(
    generator: Generator,
    batch: HistoryBatch,
    index: PrefixIndex,
    *,
    k: int,
    beam_width: int,
    rules: Rules | None = None,
    renormalise: bool = True,
    constrained: bool = True,
    length_penalty: float = 0.0,
    weights_N: Tensor | None = None,
    widen: bool = True,
    trace: list[LevelTrace] | None = None,
) -> Candidates:
    """The k best items of each request with their log-probabilities, best first.

    A beam narrower than k is widened to k, so k items come back whenever k exist, unless `widen`
    is false; shorter rows end in −1 with score −inf. `constrained=False` searches freely and drops
    what is no item: use it only to see what that loses. `trace` receives one entry a level.
    `weights_N` are above 0, one a catalogue row; an ID's probability goes to those of its items
    that the rules leave.
    """
    if k < 1:
        raise ConfigError(f"beam_search: k must be at least 1, got {k}")
    if weights_N is not None and len(weights_N) < index.num_rows:
        raise DataError(
            f"beam_search: weights_N must cover the {index.num_rows} catalogue rows of the index, "
            f"got {len(weights_N)}; give one value a row"
        )
    width = max(beam_width, k if widen else 1)
    if not constrained:
        index, excluded_BX = under(rules, index, batch.num_requests)
        free = unconstrained_search(generator, batch, index, beam_width=width)
        scores_BW = free.scores_BK.masked_fill(~free.valid_BK, ILLEGAL)
        scores_BW, order_BW = scores_BW.sort(dim=1, descending=True, stable=True)
        nodes_BW = follow(index, free.codes_BKL)[-1].gather(1, order_BW)
        return expand(index, nodes_BW, scores_BW, k, excluded_BX, weights_N)
    found = search_ids(
        generator, batch, index, beam_width=width, rules=rules, renormalise=renormalise,
        length_penalty=length_penalty, trace=trace,
    )  # fmt: skip
    return expand(
        found.index, found.leaves_BW, found.scores_BW, k, found.excluded_BX, weights_N,
        found.norms_BW,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class FoundIds:
    """The best whole IDs of each request, and what says which of their items it may get."""

    index: PrefixIndex
    """As the rules leave it."""
    leaves_BW: Tensor
    """Leaf of each ID, best first; the sink where a beam died."""
    scores_BW: Tensor
    """Log-probability of each ID; far below DEAD where a beam died."""
    excluded_BX: Tensor | None
    norms_BW: Tensor | None = None
    """What scores are divided by to rank, with a length penalty."""

    @property
    def alive_BW(self) -> Tensor:
        return self.scores_BW > DEAD

    def items(self) -> tuple[Tensor, Tensor]:
        """(place in B * W, row) of every item that its request may get, by place, then row."""
        return allowed_items(self.index, self.leaves_BW, self.alive_BW, self.excluded_BX)


def under(
    rules: Rules | None, index: PrefixIndex, num_requests: int
) -> tuple[PrefixIndex, Tensor | None]:
    """The index that the rules leave, and the rows (B, X) that each request must not get."""
    if rules is None:
        return index, None
    index = rules.restrict(index)
    return index, rules.excluded_rows(num_requests, index.device)


@torch.inference_mode()
def search_ids(
    generator: Generator,
    batch: HistoryBatch,
    index: PrefixIndex,
    *,
    beam_width: int,
    rules: Rules | None = None,
    renormalise: bool = True,
    length_penalty: float = 0.0,
    trace: list[LevelTrace] | None = None,
) -> FoundIds:
    """The `beam_width` best IDs of each request that hold an item it may get; see `beam_search`."""
    if not 0 <= length_penalty < inf:
        raise ConfigError(f"beam_search: length_penalty must be at least 0, got {length_penalty}")
    num_requests = batch.num_requests
    index, excluded_BX = under(rules, index, num_requests)
    listing = renormalise and index.tree.overlay is None and trace is None  # a trace reads them all
    step_children = getattr(generator, "step_children", None) if listing else None
    closed: list[Exhausted | None] = [None] * index.num_levels
    gone_LBX: Tensor | None = None
    scores_BW = torch.zeros(num_requests, 1, device=index.device)
    if excluded_BX is not None and step_children is not None:
        paths_LBX: Tensor = index.paths(excluded_BX).sort(dim=2).values
        gone_LBX = paths_LBX
        if excluded_BX.shape[1] >= index.num_items:
            known_B = (paths_LBX[-1] != index.sinks[-1]).sum(1)
            scores_BW.masked_fill_((known_B == index.num_items)[:, None], ILLEGAL)
    elif excluded_BX is not None:
        closed, remaining_B = exhausted(index, excluded_BX)
        scores_BW.masked_fill_(remaining_B[:, None] == 0, ILLEGAL)
    elif not index.num_items:
        scores_BW.fill_(ILLEGAL)
    state = generator.start(batch)
    nodes_BW, codes_BW, parents_BW = index.root(num_requests), None, None
    written_BW, norms_BW = torch.zeros_like(scores_BW), None
    for level in range(index.num_levels):
        ended_BW = ended(index, level, codes_BW)
        if length_penalty:  # symbols of each beam, the one to be chosen included
            written_BW = written_BW if parents_BW is None else written_BW.gather(1, parents_BW)
            written_BW = written_BW + (1 if ended_BW is None else (~ended_BW).float())
            norms_BW = written_BW**length_penalty
        if step_children is not None:
            gone_BX = None if gone_LBX is None else gone_LBX[level]
            children = Children.of(index, level, nodes_BW, gone_BX)
            logits_BP, state = step_children(state, codes_BW, parents_BW, children)
            scores_BW, parents_BW, codes_BW, nodes_BW = extend_listed(
                children, logits_BP, scores_BW, beam_width, index.sinks[level + 1], norms_BW
            )
        else:
            logits_BWV, state = generator.step(state, codes_BW, parents_BW)
            scores_BW, parents_BW, codes_BW, nodes_BW = extend(
                index, level, nodes_BW, logits_BWV, scores_BW, beam_width,
                renormalise=renormalise, closed=closed[level], ended_BW=ended_BW,
                norms_BW=norms_BW,
            )  # fmt: skip
            if trace is not None:
                trace.append(
                    LevelTrace(
                        logits_BWV, parents_BW, codes_BW, nodes_BW, scores_BW, scores_BW > DEAD
                    )
                )
    if norms_BW is not None and parents_BW is not None:
        norms_BW = norms_BW.gather(1, parents_BW)
    return FoundIds(index, nodes_BW, scores_BW, excluded_BX, norms_BW)


def extend(
    index: PrefixIndex,
    level: int,
    nodes_BW: Tensor,
    logits_BWV: Tensor,
    scores_BW: Tensor,
    beam_width: int,
    *,
    renormalise: bool = True,
    closed: Exhausted | None = None,
    ended_BW: Tensor | None = None,
    norms_BW: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One level: (scores, parents, codes, nodes), each (B, beam_width or fewer), best first.

    With `norms_BW` the best are those of highest score / norm of their beam.
    """
    if not index.compact[level]:
        x_BWC = legal_log_probs(
            index, level, nodes_BW, logits_BWV,
            renormalise=renormalise, closed=closed, ended_BW=ended_BW,
        )  # fmt: skip
        scores, places = top(*summed(x_BWC, scores_BW, norms_BW), beam_width)
        parents = places.div(x_BWC.shape[2], rounding_mode="floor")
        codes = torch.sub(places, parents, alpha=x_BWC.shape[2])
        keys = torch.add(codes, nodes_BW.gather(1, parents), alpha=index.tree.strides[level])
        nodes = index.tree.lookup(level, keys, known=True)
    else:
        x_BWV = full_log_probs(index, level, logits_BWV, renormalise, ended_BW)
        first, level_keys = index.tree.base.first[level], index.tree.base.keys[level]
        starts_BW1 = first.take(nodes_BW).unsqueeze(2)
        nodes_BWC = starts_BW1 + arange(index.tree.base.branching[level], index.device)
        symbols_BWC = level_keys.index_select(0, nodes_BWC.view(-1)).view_as(nodes_BWC)
        symbols_BWC -= (nodes_BW * index.tree.strides[level]).unsqueeze(2)
        outside_BWC = symbols_BWC >= index.widths[level]  # the next prefix's children, or padding
        symbols_BWC.clamp_(max=index.widths[level] - 1)
        x_BWC = x_BWV.gather(2, symbols_BWC).masked_fill_(outside_BWC, ILLEGAL)
        if closed is not None:
            close(x_BWC, closed, nodes_BW, starts_BW1[..., 0])
        x_BWC = x_BWC.log_softmax(2) if renormalise else x_BWC
        scores, places = top(*summed(x_BWC, scores_BW, norms_BW), beam_width)
        parents = places.div(x_BWC.shape[2], rounding_mode="floor")
        codes = symbols_BWC.flatten(1).gather(1, places)
        nodes = nodes_BWC.flatten(1).gather(1, places)
    return scores, parents, codes, nodes.masked_fill_(scores < DEAD, index.sinks[level + 1])


def extend_listed(
    children: Children,
    logits_BP: Tensor,
    scores_BW: Tensor,
    beam_width: int,
    sink: int,
    norms_BW: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `extend` with `renormalise`, from the logits (B, P) of the beams' children alone."""
    owners_BP, symbols_BP, nodes_BP, real_BP = children
    x_BP = logits_BP.float().masked_fill(~real_BP, ILLEGAL)
    x_BP = log_softmax(x_BP, owners_BP, scores_BW.shape[1])
    norms_BP = None if norms_BW is None else norms_BW.gather(1, owners_BP)
    scores, places = top(x_BP.add_(scores_BW.gather(1, owners_BP)), norms_BP, beam_width)
    nodes = nodes_BP.gather(1, places).masked_fill_(scores < DEAD, sink)
    return scores, owners_BP.gather(1, places), symbols_BP.gather(1, places), nodes


def legal_log_probs(
    index: PrefixIndex,
    level: int,
    nodes_BW: Tensor,
    logits_BWV: Tensor,
    *,
    renormalise: bool,
    closed: Exhausted | None = None,
    ended_BW: Tensor | None = None,
) -> Tensor:
    """(B, W, V) float32 log-probability of each continuation; far below DEAD where illegal."""
    x_BWV = full_log_probs(index, level, logits_BWV, renormalise, ended_BW)
    x_BWV = index.bias(level, nodes_BW).add_(x_BWV)  # the bias is ours to overwrite
    if closed is not None:
        close(x_BWV, closed, nodes_BW, None)
    return x_BWV.log_softmax(2) if renormalise else x_BWV


def full_log_probs(
    index: PrefixIndex, level: int, logits_BWV: Tensor, renormalise: bool, ended_BW: Tensor | None
) -> Tensor:
    """Float32 logits, or without renormalisation log-probabilities over all V symbols."""
    if logits_BWV.shape[2] != index.widths[level]:
        raise DataError(
            f"decoding: level {level} of the index has {index.widths[level]} symbols, but the "
            f"generator gives {logits_BWV.shape[2]} logits; build both from the same semantic IDs"
        )
    x_BWV = logits_BWV.float()
    if renormalise:
        return x_BWV
    x_BWV = x_BWV.log_softmax(2)
    if ended_BW is not None:  # after its end an ID has one continuation, and it is free
        end = index.num_codes[level]
        x_BWV[..., end] = x_BWV[..., end].masked_fill(ended_BW, 0.0)
    return x_BWV


def ended(index: PrefixIndex, level: int, codes_BW: Tensor | None) -> Tensor | None:
    """(B, W) bool: prefixes whose ID has ended before `level`; None where none can have."""
    if codes_BW is None or index.first_end is None or level <= index.first_end:
        return None
    return codes_BW == index.num_codes[level - 1]


def close(x_BWC: Tensor, closed: Exhausted, nodes_BW: Tensor, starts_BW: Tensor | None) -> None:
    """Make the closed continuations illegal, in place, for beams that hold their parents.

    `starts_BW`: the node of place 0 where places are children; None where places are symbols.
    """
    parents_EW = nodes_BW.index_select(0, closed.requests_E)
    which, beam = (parents_EW == closed.parents_E.unsqueeze(1)).nonzero(as_tuple=True)
    if len(which):
        request = closed.requests_E[which]
        if starts_BW is None:
            place = closed.symbols_E[which]
        else:
            place = closed.nodes_E[which] - starts_BW[request, beam]
        x_BWC[request, beam, place] = ILLEGAL


def summed(
    x_BWC: Tensor, scores_BW: Tensor, norms_BW: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Sums of score and continuation (B, W * C), in place of `x_BWC`, and the norms of each."""
    sums_BM = x_BWC.add_(scores_BW.unsqueeze(2)).flatten(1)
    if norms_BW is None:
        return sums_BM, None
    return sums_BM, norms_BW.unsqueeze(2).expand_as(x_BWC).flatten(1)


def top(sums_BM: Tensor, norms_BM: Tensor | None, beam_width: int) -> tuple[Tensor, Tensor]:
    """The best sums, or those of highest sum / norm, and their places; ties to the lower.

    As doubles, scores (at most 0) have 29 spare bits; the place goes there, so no two are equal.
    """
    ranked_BM = sums_BM if norms_BM is None else sums_BM / norms_BM
    total_BM = ranked_BM.double()
    count = total_BM.shape[1]
    total_BM.view(torch.int64).add_(arange(count, total_BM.device))
    best, places = total_BM.topk(min(beam_width, count), dim=1)
    return best.float() if norms_BM is None else sums_BM.gather(1, places), places


@lru_cache(maxsize=64)
def arange(count: int, device: torch.device) -> Tensor:
    """The numbers 0 … count − 1, made once."""
    return torch.arange(count, device=device)


def expand(
    index: PrefixIndex,
    leaves_BW: Tensor,
    scores_BW: Tensor,
    k: int,
    excluded_BX: Tensor | None,
    weights_N: Tensor | None = None,
    norms_BW: Tensor | None = None,
) -> Candidates:
    """Items of the surviving leaves, best leaf first, lower catalogue row first within one.

    With `weights_N` items come in the order of their own scores; leaves tie to the better.
    """
    tree, first_leaves_BK = index.tree, leaves_BW[:, :k]
    if bool(scores_BW[:, 0].isnan().any()):  # NaN counts as the largest, so it would come first
        raise DataError("beam_search: the generator gave NaN logits; check its weights and input")
    alive_BW = scores_BW > DEAD
    if tree.base.rows_E.numel() and (
        tree.one_item_a_leaf
        or (tree.pristine and not bool((index.live[-1].take(first_leaves_BK) > 1).any()))
    ):
        starts_BK = tree.base.entry_first[-1].take(first_leaves_BK)  # the sink's is one too far
        rows_BK = tree.base.rows_E.take(starts_BK.clamp_(max=len(tree.base.rows_E) - 1))
        dead_BK = ~alive_BW[:, :k]
        rows_BK.masked_fill_(dead_BK, PAD)
        out_BK = scores_BW[:, :k] if norms_BW is None else scores_BW[:, :k] / norms_BW[:, :k]
        out_BK = out_BK.masked_fill(dead_BK, -inf)
        missing = (0, k - rows_BK.shape[1])
        if missing[1]:
            rows_BK, out_BK = pad(rows_BK, missing, value=PAD), pad(out_BK, missing, value=-inf)
        return Candidates(rows_BK.cpu().numpy(), out_BK.cpu().numpy())
    num_requests, width = leaves_BW.shape
    rows_BK = torch.full((num_requests, k), PAD, device=index.device)
    out_BK = torch.full((num_requests, k), -inf, device=index.device)
    beams, rows = allowed_items(index, leaves_BW, alive_BW, excluded_BX)
    scores = scores_BW.flatten()[beams]
    if weights_N is not None:
        scores = scores + log_shares(weights_N.to(index.device)[rows], beams, leaves_BW.numel())
    scores = scores if norms_BW is None else scores / norms_BW.flatten()[beams]
    requests = beams.div(width, rounding_mode="floor")
    if weights_N is not None:
        order = scores.argsort(descending=True, stable=True)
        order = order[requests[order].argsort(stable=True)]
        rows, scores, requests = rows[order], scores[order], requests[order]
    places = torch.arange(len(rows), device=index.device)
    places -= torch.searchsorted(requests, requests)
    first = places < k
    at = requests[first], places[first]
    rows_BK[at] = rows[first]
    out_BK[at] = scores[first]
    return Candidates(rows_BK.cpu().numpy(), out_BK.cpu().numpy())


def allowed_items(
    index: PrefixIndex, leaves_BW: Tensor, alive_BW: Tensor, excluded_BX: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(place in B * W, row) of the live items below each leaf, without those its request must not
    get; by place, then row.
    """
    num_requests, width = leaves_BW.shape
    beams_M = alive_BW.flatten().nonzero()[:, 0]
    owners, rows = index.tree.items_below(leaves_BW.flatten()[beams_M])
    beams = beams_M[owners]
    if excluded_BX is None:
        return beams, rows
    offsets = torch.arange(num_requests, device=index.device)[:, None] * index.num_rows
    known_BX = (excluded_BX >= 0) & (excluded_BX < index.num_rows)
    forbidden = (excluded_BX + offsets)[known_BX]
    requests = beams.div(width, rounding_mode="floor")
    allowed = ~torch.isin(rows + requests * index.num_rows, forbidden)
    return beams[allowed], rows[allowed]


def log_shares(weights_M: Tensor, groups_M: Tensor, num_groups: int) -> Tensor:
    """(M,) float32 log of each weight's share in the sum of its group."""
    weights_M = weights_M.double()  # an item alone has a share of exactly 1
    sums_G = weights_M.new_zeros(num_groups).index_add_(0, groups_M, weights_M)
    return (weights_M / sums_G[groups_M]).log().float()


@torch.inference_mode()
def unconstrained_search(
    generator: Generator, batch: HistoryBatch, index: PrefixIndex, *, beam_width: int
) -> FreeCodes:
    """The code tuples a free beam writes, best first, and whether any item holds them."""
    state = generator.start(batch)
    codes_BW, parents_BW, written = None, None, None
    scores_BW = torch.zeros(batch.num_requests, 1, device=index.device)
    for level in range(index.num_levels):
        logits_BWV, state = generator.step(state, codes_BW, parents_BW)
        x_BWV = full_log_probs(index, level, logits_BWV, False, ended(index, level, codes_BW))
        scores_BW, places = top(*summed(x_BWV, scores_BW), beam_width)
        parents_BW = places.div(x_BWV.shape[2], rounding_mode="floor")
        codes_BW = torch.sub(places, parents_BW, alpha=x_BWV.shape[2])
        written = codes_BW.unsqueeze(2) if written is None else torch.cat(
            [written.gather(1, parents_BW.unsqueeze(2).expand(-1, -1, level)),
             codes_BW.unsqueeze(2)], dim=2,
        )  # fmt: skip
    assert written is not None
    return FreeCodes(written, scores_BW, follow(index, written)[-1] != index.sinks[-1])


def follow(index: PrefixIndex, codes_BKL: Tensor) -> list[Tensor]:
    """L x (B, K) nodes along code tuples; sinks once a tuple leaves the tree."""
    nodes_BK, path = torch.zeros_like(codes_BKL[..., 0]), []
    for level in range(index.num_levels):
        nodes_BK = index.child(level, nodes_BK, codes_BKL[..., level])
        path.append(nodes_BK)
    return path
