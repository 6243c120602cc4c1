"""BARGE: one history encoder, a decoder for each half of a dual ID, two beams merged as items.

An ID is A's codes, then B's (`tokenizers.barge`). Both depth decoders of `causal` read the history
alone, B nothing of A's codes, so log p(ID) = log p(A) + log p(B). `search` does not write whole
IDs: each decoder has a beam over the tree of its own half-IDs, and the two lists meet as items,

    s_c(v) = log p(half-ID of v) + log (weight of v / weights of all items with that half-ID)
    score(v) = log( e^(s_A(v)) + e^(s_B(v)) )

so an item comes back when either half finds it. Both s are log-probabilities of items, so the score
less log 2 is that of their equal mixture; equal halves give s + log 2 and the order of s. The beam
asked for is divided between the two, half each: a search costs what one beam of that width does.

Source:  BARGE, arXiv:2607.21028, as its card gives it.
Differs: encoder, node vectors and item softmax are those of `causal`, each half with a tree of its
         own; the item an item beam did not reach counts as that beam's worst (`absent`, ours: the
         paper does not say); items of one half-ID divide its probability by popularity, or evenly;
         no path reranker.
Cost:    that of `causal` with as many levels. A search is two beams of half the width, and
         O(B P log P) to merge; the trees of half-IDs are built once a catalogue snapshot, O(N L).
         `absent = "exact"` scores at most P more IDs a half and request.
Shapes:  B requests, K returned items, P items of a list, Q items of both, W beams, L levels,
         X excluded items, M leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sidrec.decoding.beam import beam_search
from sidrec.decoding.children import Children
from sidrec.decoding.exact import item_log_probs
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.rules import Rules
from sidrec.errors import ConfigError, DataError
from sidrec.generators.causal import Causal, CausalConfig, State
from sidrec.types import PAD, Candidates, Floats, HistoryBatch, SemanticIds

Merge = Literal["logsumexp", "max", "sum", "reciprocal_rank"]
RECIPROCAL_RANK_OFFSET = 60


@dataclass(frozen=True, kw_only=True)
class BargeConfig(CausalConfig):
    """Settings of `Barge`."""

    first_levels: int | None = None
    """Levels of half A; left out: half of them, rounded down (a counter joins B)."""
    merge: Merge = "logsumexp"
    """How the scores of both halves become one: logsumexp; max; sum of the log-probabilities;
    reciprocal_rank, 1 / (60 + rank), 0 for an item that a list lacks."""
    absent: Literal["floor", "exact"] = "floor"
    """Score of an item in the half whose beam missed it: the lowest of that list, or its own."""
    channels: Literal["both", "a", "b"] = "both"
    """Search with both decoders, or with one at the full width, to compare."""
    pool: int = 100
    """Most items that each half brings into the merge (never fewer than are asked for)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("first_levels", "pool"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"barge.{name} must be at least 1, got {value}")


@dataclass(frozen=True, eq=False)
class Half:
    """One decoder as beam search sees it: a generator of half-IDs whose history is encoded."""

    generator: Barge
    state: State
    index: PrefixIndex
    """Tree of the half-IDs of the items that may come back."""

    def start(self, batch: HistoryBatch) -> State:
        """The histories that were encoded."""
        return self.state

    def step(
        self, state: State, codes_BW: Tensor | None, parents_BW: Tensor | None
    ) -> tuple[Tensor, State]:
        """See `contracts.Generator.step`."""
        return self.generator.step(state, codes_BW, parents_BW)

    def step_children(
        self, state: State, codes_BW: Tensor | None, parents_BW: Tensor | None, children: Children
    ) -> tuple[Tensor, State]:
        """See `contracts.Generator`."""
        return self.generator.step_children(state, codes_BW, parents_BW, children)


@dataclass(frozen=True, eq=False)
class Listed:
    """What one half found: its best items and their scores, best first."""

    rows_BP: Tensor
    """−1 after the end."""
    scores_BP: Tensor
    """−inf after the end."""

    def scores_of(self, rows_BQ: Tensor) -> Tensor:
        """(B, Q) scores of these items, −inf where the list lacks them."""
        return self._looked_up(rows_BQ, self.scores_BP)

    def reciprocal_ranks_of(self, rows_BQ: Tensor) -> Tensor:
        """(B, Q) 1 / (60 + rank), 0 where the list lacks them."""
        ranks_P = torch.arange(1, self.rows_BP.shape[1] + 1, device=self.rows_BP.device)
        inverse_BP = (1 / (RECIPROCAL_RANK_OFFSET + ranks_P)).expand_as(self.scores_BP)
        return self._looked_up(rows_BQ, inverse_BP).clamp_min(0)

    def floor_B1(self) -> Tensor:
        """The lowest score in the list of each request."""
        return self.scores_BP.masked_fill(self.rows_BP == PAD, inf).amin(1, keepdim=True)

    def _looked_up(self, rows_BQ: Tensor, values_BP: Tensor) -> Tensor:
        sorted_BP, order_BP = self.rows_BP.sort(dim=1)
        places_BQ = torch.searchsorted(sorted_BP, rows_BQ).clamp_max(sorted_BP.shape[1] - 1)
        found_BQ = (sorted_BP.gather(1, places_BQ) == rows_BQ) & (rows_BQ != PAD)
        values_BQ = values_BP.gather(1, order_BP).gather(1, places_BQ)
        return values_BQ.masked_fill(~found_BQ, -inf)


class Barge(Causal):
    """Two decoders on one encoder; `training.train` fits both through `loss`."""

    config_class: ClassVar[type] = BargeConfig
    shares_parts: ClassVar[bool] = True
    """Items share half-IDs even where IDs are unique, so a search needs their weights."""
    config: BargeConfig

    def __init__(self, ids: SemanticIds, vectors_ND: Floats, config: BargeConfig) -> None:
        if (ids.codes < 0).any():
            raise DataError(
                "barge needs IDs of one length, got some that end early (code −1), so that halves "
                "cannot be told apart; use the tokenizer 'barge'"
            )
        super().__init__(ids, vectors_ND, config)

    @classmethod
    def part_starts(cls, config: Any, num_levels: int) -> tuple[int, ...]:
        """First levels of A and of B."""
        first = num_levels // 2 if config.first_levels is None else config.first_levels
        if not 0 < first < num_levels:
            raise DataError(
                f"barge needs IDs of two parts, got IDs of {num_levels} levels of which "
                f"{first} make part A; use the tokenizer 'barge', or change barge.first_levels"
            )
        return 0, first

    # ------------------------------------------------------------------ search

    @torch.inference_mode()
    def search(
        self,
        batch: HistoryBatch,
        index: PrefixIndex,
        *,
        k: int,
        beam_width: int,
        rules: Rules | None = None,
        weights_N: Tensor | None = None,
    ) -> Candidates:
        """The k best items of each request by the merged score, best first; as `beam_search`.

        Each decoder gets half of `beam_width`, widened to k. Ties go to the lower row.
        """
        if k < 1:
            raise ConfigError(f"barge: k must be at least 1, got {k}")
        halves = self.halves(batch, index, rules)
        lists = self.lists(
            batch, halves, k=k, beam_width=beam_width, rules=rules, weights_N=weights_N
        )
        if len(lists) == 1:
            return best_items(lists[0].rows_BP, lists[0].scores_BP, k)
        rows_BQ = union_of(*(listed.rows_BP for listed in lists))
        if self.config.merge == "reciprocal_rank":
            merged_BQ = sum(listed.reciprocal_ranks_of(rows_BQ) for listed in lists)
            return best_items(rows_BQ, torch.as_tensor(merged_BQ), k)
        pair = []
        for half, listed in zip(halves, lists, strict=True):
            scores_BQ = listed.scores_of(rows_BQ)
            if self.config.absent == "exact":
                own_BQ = exact_scores_of(half, batch, rows_BQ, rules, weights_N)
            else:
                own_BQ = listed.floor_B1().expand_as(scores_BQ)
            pair.append(torch.where(scores_BQ == -inf, own_BQ, scores_BQ))
        return best_items(rows_BQ, merged_scores(pair[0], pair[1], self.config.merge), k)

    def halves(
        self, batch: HistoryBatch, index: PrefixIndex, rules: Rules | None = None
    ) -> list[Half]:
        """The decoders that `channels` names, the histories encoded once for both."""
        if len(self.num_codes) != index.num_levels:
            raise DataError(
                f"barge writes IDs of {len(self.num_codes)} levels, the index holds IDs of "
                f"{index.num_levels}; build both from the same semantic IDs"
            )
        state, ends = self.start(batch), (*self.starts[1:], len(self.num_codes))
        halves = []
        for name, start, end in zip("ab", self.starts, ends, strict=True):
            if self.config.channels in (name, "both"):
                part = index.part(start, end)
                part = part if rules is None else rules.restrict(part)
                # B reads none of A's codes: any stand in for them
                symbols = state.nodes_BW.new_zeros(batch.num_requests, 1, start)
                own = state._replace(symbols_BWl=symbols if start else None)
                halves.append(Half(self, own, part))
        return halves

    def lists(
        self,
        batch: HistoryBatch,
        halves: list[Half],
        *,
        k: int,
        beam_width: int,
        rules: Rules | None = None,
        weights_N: Tensor | None = None,
    ) -> list[Listed]:
        """The best items of each half, at most `pool`, or k where that is more."""
        if weights_N is None:
            weights_N = torch.ones(halves[0].index.num_rows)
        exclude = None if rules is None else Rules(exclude=rules.exclude)  # the rest is done
        lists = []
        for half in halves:
            found = beam_search(
                half,  # type: ignore[arg-type]
                batch,
                half.index,
                k=max(k, self.config.pool),
                beam_width=max(beam_width // len(halves), k),
                rules=exclude,
                weights_N=weights_N,
                widen=False,
            )
            longest = max(int((found.rows_BK != PAD).sum(1).max(initial=0)), 1)
            rows_BP, scores_BP = (
                torch.from_numpy(a[:, :longest]).to(half.index.device)
                for a in (found.rows_BK, found.scores_BK)
            )
            lists.append(Listed(rows_BP, scores_BP))
        return lists


def merged_scores(a: Tensor, b: Tensor, merge: Merge) -> Tensor:
    """One score from those of two halves, elementwise; ranks are merged elsewhere."""
    if merge == "max":
        return torch.maximum(a, b)
    return a + b if merge == "sum" else torch.logaddexp(a, b)


def union_of(rows_BP: Tensor, other_BP: Tensor) -> Tensor:
    """(B, Q) rows of either list in ascending order, −1 in place of repeats and padding."""
    rows_BQ = torch.cat([rows_BP, other_BP], dim=1).sort(dim=1).values
    rows_BQ[:, 1:].masked_fill_(rows_BQ[:, 1:] == rows_BQ[:, :-1], PAD)
    return rows_BQ


def best_items(rows_BQ: Tensor, scores_BQ: Tensor, k: int) -> Candidates:
    """The k rows of highest score, ties to the earlier one; −1 with −inf after the end."""
    scores_BQ = scores_BQ.masked_fill(rows_BQ == PAD, -inf)
    scores_BK, order_BK = scores_BQ.sort(dim=1, descending=True, stable=True)
    rows_BK = rows_BQ.gather(1, order_BK)[:, :k]
    missing = (0, k - rows_BK.shape[1])
    if missing[1] > 0:
        rows_BK = torch.nn.functional.pad(rows_BK, missing, value=PAD)
        scores_BK = torch.nn.functional.pad(scores_BK, missing, value=-inf)
    return Candidates(rows_BK.cpu().numpy(), scores_BK[:, :k].cpu().numpy())


def exact_scores_of(
    half: Half,
    batch: HistoryBatch,
    rows_BQ: Tensor,
    rules: Rules | None = None,
    weights_N: Tensor | None = None,
) -> Tensor:
    """(B, Q) scores of given items in one half as a beam as wide as the catalogue would give them.

    −1 among the rows gives the score of no item in particular.
    """
    index, device = half.index, rows_BQ.device
    if not index.num_items:
        return torch.full(rows_BQ.shape, -inf, device=device)
    excluded_BX = None if rules is None else rules.excluded_rows(len(rows_BQ), device)
    rows_BQ = torch.where(rows_BQ == PAD, index.tree.items()[0][0], rows_BQ)
    log_probs_BQ = item_log_probs(half, batch, index, rows_BQ, excluded_BX=excluded_BX)  # type: ignore[arg-type]
    given_N = torch.ones(index.num_rows) if weights_N is None else weights_N
    shares_N = given_N.to(device, torch.float64)
    leaves_BQ = index.paths(rows_BQ)[-1]
    leaves_M, places_BQ = leaves_BQ.unique(return_inverse=True)
    owners, rows = index.tree.items_below(leaves_M)
    sums_M = shares_N.new_zeros(len(leaves_M)).index_add_(0, owners, shares_N[rows])
    sums_BQ = sums_M[places_BQ]
    if excluded_BX is not None:
        gone_BX = index.paths(excluded_BX)[-1]
        lost_BX = shares_N[excluded_BX.clamp_min(0)].masked_fill(gone_BX == index.sinks[-1], 0.0)
        sums_BQ = sums_BQ - ((leaves_BQ[..., None] == gone_BX[:, None]) * lost_BX[:, None]).sum(-1)
    return log_probs_BQ + (shares_N[rows_BQ] / sums_BQ.clamp_min(1e-300)).log().float()
