"""Search when the score of an item is a sum over its codes: score all of them, or walk a graph.

A parallel generator gives one table of log-probabilities a request: `table_BS` holds those of every
code of every level side by side, and one column of zeros at the end. `places_NL` says which L
columns make an item, so that

    score(b, i) = sum over l of table[b, places[i, l]]  +  bonus if i is in the history of b

`exact_search` sums this for the whole catalogue. `graph_search` starts at given items and goes to
the neighbours of the best ones so far, a fixed number of times; the number of items it scores does
not grow with the catalogue. Both return what the rules leave, ties to the lower row, with
log-probabilities over the items that the rules leave: score − log sum of e^score, as beam search
with `renormalise` does. The sum of a graph search is over its best items only, a little too small.

Source:   graph-constrained decoding: RPG (arXiv:2506.05781), section 3.3.
Differs:  starts include items that hold the best codes, not random ones alone; items that a rule
          forbids are walked through, not returned; requests with fewer than k items in reach are
          scored exactly, so that k come back when k exist.
Cost:     exact O(N L) a request, blocks of (N, 32) floats; graph O(steps W K L) a request.
Shapes:   B requests, N items, L levels, V codes, S columns, C candidates, W beam, K neighbours or
          returned items, X excluded items, T seen items, G groups of items with one ID, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from sidrec.errors import DataError
from sidrec.types import PAD, Candidates

CPU_BLOCK, GPU_BLOCK = 32, 512
"""Requests summed at once: on a CPU so few that their tables stay in its cache."""
BLOCK_CELLS = 50_000_000
"""Scores that exist at one time."""


@dataclass(frozen=True, eq=False)
class Question:
    """What a batch of requests asks, and what they may get."""

    table_BS: Tensor
    """Float32 log-probability of every code; the last column is 0."""
    seen_BT: Tensor
    """Distinct items of each history, −1 for none."""
    bonus: Tensor
    """(1,) nats on items of the history."""
    allowed_N: Tensor | None = None
    """(N,) bool: items that anyone may get; None for all."""
    excluded_BX: Tensor | None = None
    """Rows each request must not get, −1 for none."""
    sharing: Sharing | None = None
    """How items of one ID divide its probability; None: each has all of it."""

    @property
    def num_requests(self) -> int:
        return len(self.table_BS)

    def part(self, rows: slice | Tensor) -> Question:
        """The question of some requests."""
        excluded_BX = None if self.excluded_BX is None else self.excluded_BX[rows]
        return replace(
            self,
            table_BS=self.table_BS[rows],
            seen_BT=self.seen_BT[rows],
            excluded_BX=excluded_BX,
        )

    def known_exclusions(self, num_items: int) -> Tensor | None:
        """`excluded_BX` with rows outside the catalogue as −1."""
        rows_BX = self.excluded_BX
        if rows_BX is None or not rows_BX.shape[1]:
            return None
        return rows_BX.masked_fill(rows_BX >= num_items, PAD)


@dataclass(frozen=True, eq=False)
class Sharing:
    """Items that share an ID, and their weights."""

    groups_N: Tensor
    """(N,) number of the ID that each item holds."""
    weights_N: Tensor
    """(N,) above 0."""

    @cached_property
    def num_groups(self) -> int:
        """Distinct IDs."""
        return int(self.groups_N.max()) + 1 if len(self.groups_N) else 0

    def log_totals(self, question: Question) -> Tensor:
        """(B or 1, G) float32 log weight of each ID among the items a request may get.

        0 where none is left: nobody gets that ID, and −inf would make NaN of what is forbidden.
        """
        weights_N = self.weights_N.double()
        if question.allowed_N is not None:
            weights_N = weights_N * question.allowed_N
        totals_G = weights_N.new_zeros(self.num_groups).index_add_(0, self.groups_N, weights_N)
        excluded_BX = question.known_exclusions(len(weights_N))
        if excluded_BX is None:
            return log_or_zero(totals_G)[None]
        rows_BX = excluded_BX.clamp_min(0)
        lost_BX = weights_N[rows_BX] * (excluded_BX >= 0)
        totals_BG = totals_G.repeat(question.num_requests, 1)
        totals_BG.scatter_add_(1, self.groups_N[rows_BX], -lost_BX)
        return log_or_zero(totals_BG)


def log_or_zero(weights: Tensor) -> Tensor:
    """float32 logs; 0 where there is no weight."""
    return weights.log().masked_fill(weights <= 0, 0.0).float()


@dataclass(frozen=True, eq=False)
class Columns:
    """Which items hold each code: the places of a catalogue the other way round."""

    items_E: Tensor
    """(N L,) int32 items, column by column, ascending inside one."""
    starts_S: Tensor
    """(S,) int32 where each column begins."""


def columns_of(places_NL: Tensor, num_columns: int) -> Columns:
    """The items of each column. `places_NL` hold columns below `num_columns`."""
    columns_E, order_E = places_NL.flatten().sort(stable=True)
    asked_S = torch.arange(num_columns, dtype=columns_E.dtype, device=columns_E.device)
    starts_S = torch.searchsorted(columns_E, asked_S, out_int32=True)
    return Columns(order_E.div(places_NL.shape[1], rounding_mode="floor").int(), starts_S)


# Exact -------------------------------------------------------------------------------------------


def item_sums(table_BS: Tensor, places_NL: Tensor) -> Tensor:
    """(N, B) float32 `table_BS[:, places_NL].sum(2).T`, without the (B, N, L) in between.

    Columns are padded to eight on the way, since a vector instruction takes no fewer.
    """
    table_SB = F.pad(table_BS, (0, 0, 0, max(8 - len(table_BS), 0))).T.contiguous()
    return F.embedding_bag(places_NL, table_SB, mode="sum")[:, : len(table_BS)]


def block_size(device: torch.device, num_items: int) -> int:
    """Requests that `item_sums` takes at once."""
    most = CPU_BLOCK if device.type == "cpu" else GPU_BLOCK
    return min(most, max(1, BLOCK_CELLS // max(num_items, 1)))


def exact_scores(question: Question, places_NL: Tensor) -> Tensor:
    """(B, N) score of every item; rules and sharing are left to the caller."""
    step = block_size(places_NL.device, len(places_NL))
    blocks = range(0, question.num_requests, step)
    table_BS = question.table_BS
    out = [item_sums(table_BS[start : start + step], places_NL).T for start in blocks]
    scores_BN = torch.cat(out) if out else table_BS.new_zeros(0, len(places_NL))
    bonus_BT = (question.seen_BT >= 0) * question.bonus
    return scores_BN.scatter_add(1, question.seen_BT.clamp_min(0), bonus_BT)


def exact_search(question: Question, places_NL: Tensor, k: int) -> Candidates:
    """The k best items of each request, every item of the catalogue scored."""
    step = block_size(places_NL.device, len(places_NL))
    parts = [
        exact_block(question.part(slice(start, start + step)), places_NL, k)
        for start in range(0, question.num_requests, step)
    ]
    return candidates(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), k)


def exact_block(question: Question, places_NL: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(rows, scores) of one block of requests, each (B, K) with K the smaller of k and N."""
    scores_BN = exact_scores(question, places_NL)
    if (sharing := question.sharing) is not None:
        scores_BN = scores_BN + sharing.weights_N.log().float()
        scores_BN -= sharing.log_totals(question)[:, sharing.groups_N]
    if question.allowed_N is not None:
        scores_BN = scores_BN.masked_fill(~question.allowed_N, -torch.inf)
    excluded_BX = question.known_exclusions(len(places_NL))
    if excluded_BX is not None:
        lost_BX = torch.where(excluded_BX >= 0, -torch.inf, 0.0)
        scores_BN = scores_BN.scatter_add(1, excluded_BX.clamp_min(0), lost_BX)
    values_BK, rows_BK = best(scores_BN, k)
    return rows_BK, values_BK - log_sums(scores_BN)


def log_sums(scores_BC: Tensor) -> Tensor:
    """(B, 1) log sum of e^score; 0 where there is nothing to sum."""
    sums_B1 = scores_BC.logsumexp(1, keepdim=True)
    return sums_B1.masked_fill(sums_B1 == -torch.inf, 0.0)


def best(scores_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(values, places) of the k highest of each row, all where C < k; ties to the lower place.

    Which of several places at −inf come last is not said.
    """
    k = min(k, scores_BC.shape[1])
    values_BK, places_BK = scores_BC.topk(k, dim=1)
    last_B1 = values_BK[:, -1:]
    crowded_B = ((scores_BC >= last_B1).sum(1) > k) & (last_B1[:, 0] > -torch.inf)
    if crowded_B.any():  # more than k at or above the k-th: topk took any of the last
        ordered = scores_BC[crowded_B].sort(dim=1, descending=True, stable=True)
        places_BK[crowded_B] = ordered.indices[:, :k]
    places_BK = places_BK.sort(dim=1).values
    values_BK, order_BK = scores_BC.gather(1, places_BK).sort(dim=1, descending=True, stable=True)
    return values_BK, places_BK.gather(1, order_BK)


def candidates(rows_BK: Tensor, scores_BK: Tensor, k: int) -> Candidates:
    """Rows and scores as a list of k, empty places as −1. DataError at NaN."""
    if bool(scores_BK.isnan().any()):
        raise DataError("search: the generator gave NaN scores; check its weights and input")
    missing = (0, k - rows_BK.shape[1])
    rows_BK = F.pad(rows_BK.masked_fill(scores_BK == -torch.inf, PAD), missing, value=PAD)
    scores_BK = F.pad(scores_BK, missing, value=-torch.inf)
    return Candidates(rows_BK.cpu().numpy(), scores_BK.cpu().numpy())


# Graph -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ItemGraph:
    """Where a search may go from each item, and where it begins."""

    neighbours_NK: Tensor
    """(N, K) rows of the most similar other items, best first, −1 after the end."""
    starts_W: Tensor
    """Rows that every search begins with."""
    holders_SR: Tensor
    """(S, R) rows of some items that hold each code, −1 where there are none."""


def candidate_sums(table_BS: Tensor, places_NL: Tensor, rows_BC: Tensor) -> Tensor:
    """(B, C) float32 sums of given items, −inf where the row is −1."""
    num_requests, num_columns = table_BS.shape
    first_B11 = torch.arange(num_requests, device=table_BS.device)[:, None, None] * num_columns
    places_BCL = places_NL[rows_BC.clamp_min(0)] + first_B11
    sums_BC = table_BS.take(places_BCL).sum(2)
    return sums_BC.masked_fill(rows_BC < 0, -torch.inf)


def graph_search(
    question: Question,
    places_NL: Tensor,
    graph: ItemGraph,
    k: int,
    *,
    beam_width: int,
    num_steps: int,
) -> Candidates:
    """The k best items that a walk over the graph comes by; see the module."""
    step = block_size(places_NL.device, len(places_NL))
    rows, scores = [], []
    for start in range(0, question.num_requests, step):
        part = question.part(slice(start, start + step))
        rows_BK, scores_BK = graph_block(part, places_NL, graph, k, beam_width, num_steps)
        short_B = (scores_BK > -torch.inf).sum(1) < min(k, len(places_NL))
        if short_B.any():
            exact = exact_block(part.part(short_B.nonzero()[:, 0]), places_NL, k)
            rows_BK[short_B], scores_BK[short_B] = exact
        rows.append(rows_BK)
        scores.append(scores_BK)
    return candidates(torch.cat(rows), torch.cat(scores), k)


def graph_block(
    question: Question, places_NL: Tensor, graph: ItemGraph, k: int, width: int, num_steps: int
) -> tuple[Tensor, Tensor]:
    """(rows, scores) found for one block of requests, each (B, K), K the smaller of k and N."""
    num_requests, width = question.num_requests, max(width, k)
    k = min(k, len(places_NL))
    log_totals_BG = None if question.sharing is None else question.sharing.log_totals(question)
    first_BW = graph.starts_W.expand(num_requests, -1)
    tops_BL = question.table_BS[:, :-1].unflatten(1, (places_NL.shape[1], -1)).argmax(2)
    level_width = (question.table_BS.shape[1] - 1) // places_NL.shape[1]
    tops_BL = tops_BL + torch.arange(places_NL.shape[1], device=tops_BL.device) * level_width
    rows_BC = torch.cat([first_BW, graph.holders_SR[tops_BL].flatten(1)], dim=1)
    beam_BW = rows_BC.new_full((num_requests, 0), PAD)
    beam_scores_BW = question.table_BS.new_zeros(num_requests, 0)
    found_BW, found_scores_BW = beam_BW, beam_scores_BW
    for _ in range(num_steps + 1):
        rows_BC = new_rows(rows_BC, torch.cat([beam_BW, found_BW], dim=1))
        scores_BC = walked_scores(question, places_NL, rows_BC, log_totals_BG)
        before_BW = beam_BW
        beam_BW, beam_scores_BW = merged(beam_BW, beam_scores_BW, rows_BC, scores_BC, width)
        given_BC = scores_BC.masked_fill(~may_get(question, rows_BC), -torch.inf)
        found_BW, found_scores_BW = merged(found_BW, found_scores_BW, rows_BC, given_BC, width)
        if beam_BW.shape == before_BW.shape and torch.equal(beam_BW, before_BW):
            break  # no request found anything better: no later step would
        rows_BC = graph.neighbours_NK[beam_BW.clamp_min(0)].long()
        rows_BC = rows_BC.masked_fill((beam_BW < 0)[..., None], PAD).flatten(1)
    scores_BW = found_scores_BW - log_sums(found_scores_BW)
    return padded_to(found_BW[:, :k], k, PAD), padded_to(scores_BW[:, :k], k, -torch.inf)


def new_rows(rows_BC: Tensor, known_BW: Tensor) -> Tensor:
    """Rows ascending, with −1 for repeats and for those in `known_BW`; as narrow as they allow."""
    rows_BC = rows_BC.sort(dim=1).values
    again_BC = torch.zeros_like(rows_BC, dtype=torch.bool)
    again_BC[:, 1:] = rows_BC[:, 1:] == rows_BC[:, :-1]
    if known_BW.shape[1]:
        known_BW = known_BW.sort(dim=1).values
        places_BC = torch.searchsorted(known_BW, rows_BC).clamp_max(known_BW.shape[1] - 1)
        again_BC |= known_BW.gather(1, places_BC) == rows_BC
    rows_BC = rows_BC.masked_fill(again_BC, PAD).sort(dim=1, descending=True).values
    most = int((rows_BC >= 0).sum(1).max()) if len(rows_BC) else 0
    return rows_BC[:, :most].flip(1)


def walked_scores(
    question: Question, places_NL: Tensor, rows_BC: Tensor, log_totals_BG: Tensor | None
) -> Tensor:
    """(B, C) scores as `exact_search` gives them; of items that a rule forbids, without sharing."""
    scores_BC = candidate_sums(question.table_BS, places_NL, rows_BC)
    seen_BT = question.seen_BT.sort(dim=1).values
    if seen_BT.shape[1]:
        places_BC = torch.searchsorted(seen_BT, rows_BC).clamp_max(seen_BT.shape[1] - 1)
        scores_BC = scores_BC + (seen_BT.gather(1, places_BC) == rows_BC) * question.bonus
    if (sharing := question.sharing) is not None and log_totals_BG is not None:
        real_BC = rows_BC.clamp_min(0)
        totals_BC = log_totals_BG.expand(len(rows_BC), -1).gather(1, sharing.groups_N[real_BC])
        totals_BC = totals_BC.masked_fill(totals_BC == -torch.inf, 0.0)  # nobody may get that ID
        scores_BC = scores_BC + sharing.weights_N.log().float()[real_BC] - totals_BC
    return scores_BC


def may_get(question: Question, rows_BC: Tensor) -> Tensor:
    """(B, C) bool: rows that are items and that the rules leave."""
    may_BC = rows_BC >= 0
    if question.allowed_N is not None:
        may_BC = may_BC & question.allowed_N[rows_BC.clamp_min(0)]
    if question.excluded_BX is not None and question.excluded_BX.shape[1]:
        excluded_BX = question.excluded_BX.sort(dim=1).values
        places_BC = torch.searchsorted(excluded_BX, rows_BC).clamp_max(excluded_BX.shape[1] - 1)
        may_BC = may_BC & (excluded_BX.gather(1, places_BC) != rows_BC)
    return may_BC


def merged(
    rows_BW: Tensor, scores_BW: Tensor, rows_BC: Tensor, scores_BC: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """The best `width` of two lists without an item in common, ties to the lower row.

    Places at −inf hold −1.
    """
    rows = torch.cat([rows_BW, rows_BC], dim=1)
    scores = torch.cat([scores_BW, scores_BC], dim=1)
    rows, order = rows.sort(dim=1, stable=True)
    values_BW, places_BW = best(scores.gather(1, order), width)
    return rows.gather(1, places_BW).masked_fill(values_BW == -torch.inf, PAD), values_BW


def padded_to(values_BC: Tensor, k: int, value: float) -> Tensor:
    """(B, k) with `value` behind."""
    return F.pad(values_BC, (0, k - values_BC.shape[1]), value=value)
