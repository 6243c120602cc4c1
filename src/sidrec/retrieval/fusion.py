"""Hybrid retrieval: members pool their best items, each scores the whole pool, scores are summed.

A member proposes items and gives the log-probability of any item: a generator by beam search and
by scoring the IDs of the pool, a scorer of the whole catalogue by its log-softmax. Every item of
the pool is scored by every member, so nothing is lost for being proposed by only one.

    score(j) = sum_m w_m f(log p_m(j)),   sum_m w_m = 1

f: `log_probs` nothing; `z_scores` standardised over each request's pool; `reciprocal_rank`
1 / (60 + rank in the pool).

Source:   EnsRec (arXiv:2512.17820), plain and standardised sums of independent models;
          reciprocal rank fusion, Cormack et al. 2009.
Differs:  weights are chosen on validation; a pool instead of the catalogue; a generator may be a
          member; an item some member has never heard of gets that member's lowest score in the
          pool, and one that only members without a weight know comes after all others, so that
          new items are never lost.
Cost:     the members' own search, plus one pass of each over at most M × pool items a request.
Shapes:   B requests, Q examples, M members, P items of the pool, K returned items, N items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from sidrec.errors import ConfigError
from sidrec.retrieval.top_items import listed
from sidrec.types import PAD, Bools, Candidates, Examples, HistoryBatch, Ints

Rule = Literal["log_probs", "z_scores", "reciprocal_rank"]
Exclude = Sequence[Ints] | None
"""Items that each request must not get."""
RECIPROCAL_RANK_OFFSET = 60
END = torch.iinfo(torch.int64).max


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """Which systems are fused and how; plain values, saved with a bundle."""

    members: tuple[str, ...]
    """Names of systems, in the order of `weights`."""
    weights: tuple[float, ...]
    """One a member, at least 0, not all 0; only their ratios matter."""
    pool: int = 100
    """Items that each member brings into the pool (never fewer than are asked for)."""
    rule: Rule = "log_probs"
    """What is summed: log_probs, z_scores or reciprocal_rank."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(self.members))
        object.__setattr__(self, "weights", tuple(float(w) for w in self.weights))
        if len(self.members) != len(self.weights) or not self.members:
            raise ConfigError(
                f"hybrid: {len(self.members)} members need as many weights, got {len(self.weights)}"
            )
        if min(self.weights) < 0 or not sum(self.weights) > 0:
            raise ConfigError(f"hybrid: weights must be at least 0, not all 0: {self.weights}")
        if self.pool < 1:
            raise ConfigError(f"hybrid: pool must be at least 1, got {self.pool}")
        if self.rule not in RULES:
            raise ConfigError(f"hybrid: rule must be one of {list(RULES)}, got {self.rule!r}")

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `Hybrid(**values)` reads them back."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Opinion:
    """What one member says about a batch."""

    rows_BK: Tensor
    """(B, K) its own best items, −1 after the end."""
    log_probs: Callable[[Tensor], Tensor]
    """(B, P) catalogue rows, all real -> (B, P) natural log-probabilities, −inf where unknown."""


class Member(Protocol):
    """One system, ready to be asked."""

    def __call__(
        self, batch: HistoryBatch, pool: int, exclude: Exclude, keep_N: Bools | None
    ) -> Opinion:
        """Its best `pool` allowed items, and a way to score others."""
        ...


def generator_member(
    generated: Callable[[HistoryBatch, int, Exclude, Bools | None], Candidates],
    log_probs: Callable[[HistoryBatch, Tensor], Tensor] | None = None,
) -> Member:
    """A member from a search under rules, and the log-probability of given items (B, P).

    Without `log_probs` it knows the items it found only. Fusion then counts an item of another
    member as this one's worst: no second pass over paths, which would cost far more than the beam.
    """

    def ask(batch: HistoryBatch, pool: int, exclude: Exclude, keep_N: Bools | None) -> Opinion:
        found, device = generated(batch, pool, exclude, keep_N), batch.items_BT.device
        rows_BK = torch.from_numpy(found.rows_BK).to(device)
        if (given := log_probs) is not None:
            return Opinion(rows_BK, lambda rows_BP: given(batch, rows_BP))
        sorted_BK, order_BK = rows_BK.sort(dim=1)
        scores_BK = torch.from_numpy(found.scores_BK).to(device).double().gather(1, order_BK)

        def known(rows_BP: Tensor) -> Tensor:
            places_BP = torch.searchsorted(sorted_BK, rows_BP).clamp_max(rows_BK.shape[1] - 1)
            hit_BP = sorted_BK.gather(1, places_BP) == rows_BP
            return scores_BK.gather(1, places_BP).masked_fill(~hit_BP, -torch.inf)

        return Opinion(rows_BK, known)

    return ask


def scorer_member(scores: Callable[[HistoryBatch], Tensor]) -> Member:
    """A member from scores (B, N) of the whole catalogue; their softmax is its distribution."""

    def ask(batch: HistoryBatch, pool: int, exclude: Exclude, keep_N: Bools | None) -> Opinion:
        scores_BN = scores(batch)
        total_B1 = scores_BN.logsumexp(dim=1, keepdim=True).double()
        allowed_BN = scores_BN.clone()
        if keep_N is not None:
            dropped_N = ~torch.as_tensor(keep_N, dtype=torch.bool, device=scores_BN.device)
            allowed_BN.masked_fill_(dropped_N, -torch.inf)
        for row, items in enumerate(exclude or ()):
            allowed_BN[row, torch.as_tensor(items, device=scores_BN.device)] = -torch.inf
        best_BK, rows_BK = allowed_BN.topk(min(pool, allowed_BN.shape[1]), dim=1)
        # float64: subtracting the total in float32 would tie scores that differ
        return Opinion(
            rows_BK.masked_fill(best_BK == -torch.inf, PAD),
            lambda rows_BP: scores_BN.gather(1, rows_BP).double() - total_B1,
        )

    return ask


# Summing -----------------------------------------------------------------------------------------


def _z_scores(log_probs_BP: Tensor) -> Tensor:
    real_BP = log_probs_BP.isfinite()
    num_B1 = real_BP.sum(1, keepdim=True).clamp_min(1)
    mean_B1 = log_probs_BP.masked_fill(~real_BP, 0).sum(1, keepdim=True) / num_B1
    centred_BP = log_probs_BP - mean_B1
    deviation_B1 = (centred_BP.masked_fill(~real_BP, 0) ** 2).sum(1, keepdim=True) / num_B1
    return centred_BP / deviation_B1.sqrt().clamp_min(1e-12)


def _reciprocal_ranks(log_probs_BP: Tensor) -> Tensor:
    order_BP = log_probs_BP.argsort(dim=1, descending=True, stable=True)
    ranks_BP = order_BP.argsort(dim=1) + 1
    values_BP = 1.0 / (RECIPROCAL_RANK_OFFSET + ranks_BP.double())
    return values_BP.masked_fill(log_probs_BP == -torch.inf, -torch.inf)


RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "log_probs": lambda log_probs_BP: log_probs_BP,
    "z_scores": _z_scores,
    "reciprocal_rank": _reciprocal_ranks,
}


def fused_scores(values_MBP: Tensor, weights: Sequence[float]) -> Tensor:
    """(B, P) weighted sum of what `RULES` made of each member's log-probabilities.

    Items that only members without a weight know follow the rest, in the order of their plain sum.
    """
    total_BP = _weighted_sum(values_MBP, weights)
    lost_BP = (total_BP == -torch.inf) & (values_MBP > -torch.inf).any(dim=0)
    if not lost_BP.any():
        return total_BP
    rest_BP = _weighted_sum(values_MBP, [float(not weight) for weight in weights])
    first_B1 = rest_BP.masked_fill(~lost_BP, -torch.inf).amax(dim=1, keepdim=True)
    last_B1 = total_BP.masked_fill(total_BP == -torch.inf, torch.inf).amin(dim=1, keepdim=True)
    last_B1 = last_B1.masked_fill(last_B1 == torch.inf, 0)
    return torch.where(lost_BP, rest_BP - first_B1 + last_B1 - 1, total_BP)


def _weighted_sum(values_MBP: Tensor, weights: Sequence[float]) -> Tensor:
    """(B, P) sum over members with a weight, −inf where none of them knows the item."""
    weighted = [(w, values_MBP[m]) for m, w in enumerate(weights) if w > 0]
    known_BP = torch.stack([v > -torch.inf for _, v in weighted]).any(dim=0)
    total_BP = torch.zeros_like(values_MBP[0])
    for weight, values_BP in weighted:
        unknown_BP = values_BP == -torch.inf
        lowest_B1 = values_BP.masked_fill(unknown_BP, torch.inf).amin(dim=1, keepdim=True)
        lowest_B1 = lowest_B1.masked_fill(lowest_B1 == torch.inf, 0)
        total_BP += weight * torch.where(unknown_BP, lowest_B1, values_BP)
    return total_BP.masked_fill(~known_BP, -torch.inf)


def pooled(
    members: Sequence[Member],
    batch: HistoryBatch,
    pool: int,
    *,
    exclude: Exclude = None,
    keep_N: Bools | None = None,
) -> tuple[Tensor, Tensor]:
    """Items (B, P) that any member proposes, ascending, −1 after the end, and their
    log-probabilities (M, B, P) float64 under each member, −inf where unknown or no item.
    """
    opinions = [member(batch, pool, exclude, keep_N) for member in members]
    rows_BP = union([opinion.rows_BK for opinion in opinions])
    real_BP = rows_BP != PAD
    log_probs_MBP = torch.full((len(members), *rows_BP.shape), -torch.inf, dtype=torch.float64,
                               device=rows_BP.device)  # fmt: skip
    if real_BP.any():
        filled_BP = torch.where(real_BP, rows_BP, rows_BP[real_BP][0])
        for m, opinion in enumerate(opinions):
            log_probs_MBP[m] = opinion.log_probs(filled_BP).double()
    return rows_BP, log_probs_MBP.masked_fill(~real_BP, -torch.inf)


def fuse(
    members: Sequence[Member],
    hybrid: Hybrid,
    batch: HistoryBatch,
    k: int,
    *,
    exclude: Exclude = None,
    keep_N: Bools | None = None,
) -> Candidates:
    """The k best items of the pool, ties by lowest row; `members` in the order of `hybrid`."""
    if len(members) != len(hybrid.members):
        raise ConfigError(
            f"hybrid {list(hybrid.members)} needs {len(hybrid.members)} members, got {len(members)}"
        )
    rows_BP, log_probs_MBP = pooled(
        members, batch, max(hybrid.pool, k), exclude=exclude, keep_N=keep_N
    )
    values_MBP = torch.stack([RULES[hybrid.rule](x) for x in log_probs_MBP])
    scores_BP = fused_scores(values_MBP, hybrid.weights)
    return listed(rows_BP, scores_BP, k)


def union(lists_BK: Sequence[Tensor]) -> Tensor:
    """(B, P) distinct rows of all lists, ascending, −1 after the end."""
    rows_BP = torch.cat(list(lists_BK), dim=1)
    rows_BP = rows_BP.masked_fill(rows_BP == PAD, END).sort(dim=1).values
    rows_BP[:, 1:] = rows_BP[:, 1:].masked_fill(rows_BP[:, 1:] == rows_BP[:, :-1], END)
    rows_BP = rows_BP.sort(dim=1).values
    longest = int((rows_BP != END).sum(dim=1).max()) if len(rows_BP) else 0
    return rows_BP[:, : max(longest, 1)].masked_fill(rows_BP[:, : max(longest, 1)] == END, PAD)


# Choosing ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What the search over weights found."""

    hybrid: Hybrid
    """With the best weights."""
    metric: float
    """Its NDCG@k on the examples."""
    table: tuple[tuple[tuple[float, ...], float], ...]
    """(weights, NDCG@k) of the whole grid; its corners are the members alone."""
    oracle_recall: float
    """Share of examples, in [0, 1], with the target among any member's own first k: the most that
    fusion of these lists could reach."""


def tune_weights(
    members: Sequence[Member],
    names: Sequence[str],
    examples: Examples,
    *,
    max_length: int,
    device: torch.device | str = "cpu",
    pool: int = 100,
    rule: Rule = "log_probs",
    steps: int | None = None,
    k: int = 10,
    batch_size: int = 256,
    on_batch: Callable[[int, int], None] | None = None,
) -> Tuned:
    """The weights with the best NDCG@k on validation examples, from one pass of the members.

    The grid holds every split of 1 into multiples of 1 / `steps` (20 for two members, 10 for three,
    5 for more).
    Equal values go to the weights nearest to equal shares; score ties count against the target.
    """
    names, num = tuple(names), len(examples)
    steps = steps or {2: 20, 3: 10}.get(len(members), 5)
    grid = sorted(_shares(len(members), steps), key=lambda shares: sum(s * s for s in shares))
    gains = np.zeros(len(grid))
    oracle = 0
    order = np.argsort(np.minimum(examples.histories.lengths, max_length), kind="stable")
    with torch.inference_mode():
        for start in range(0, num, batch_size):
            rows = order[start : start + batch_size]
            batch = HistoryBatch.from_histories(examples.histories, rows, max_length=max_length)
            rows_BP, log_probs_MBP = pooled(members, batch.to(device), max(pool, k))
            targets_B1 = torch.from_numpy(examples.targets[rows]).to(rows_BP.device)[:, None]
            values_MBP = torch.stack([RULES[rule](x) for x in log_probs_MBP])
            here_BP = rows_BP == targets_B1
            for place, weights in enumerate(grid):
                places_B = places(fused_scores(values_MBP, weights), here_BP)
                in_list = places_B[places_B < k].double()
                gains[place] += float((1 / (in_list + 2).log2()).sum())
            hits_MB = torch.stack([places(x, here_BP) < k for x in log_probs_MBP])
            oracle += int(hits_MB.any(dim=0).sum())
            if on_batch is not None:
                on_batch(min(start + batch_size, num), num)
    best = int(gains.argmax())
    table = tuple((w, float(g) / max(num, 1)) for w, g in zip(grid, gains, strict=True))
    return Tuned(
        hybrid=Hybrid(members=names, weights=grid[best], pool=pool, rule=rule),
        metric=table[best][1],
        table=table,
        oracle_recall=oracle / max(num, 1),
    )


def places(scores_BP: Tensor, here_BP: Tensor) -> Tensor:
    """(B,) items ahead of the target, ties included; a large number where it is not in the pool."""
    target_B1 = scores_BP.masked_fill(~here_BP, -torch.inf).amax(dim=1, keepdim=True)
    places_B = ((scores_BP >= target_B1) & ~here_BP).sum(dim=1)
    return places_B.masked_fill(target_B1[:, 0] == -torch.inf, END)


def _shares(parts: int, steps: int, used: int = 0) -> Iterator[tuple[float, ...]]:
    """Every tuple of `parts` multiples of 1 / `steps` that sums to 1."""
    if parts == 1:
        yield ((steps - used) / steps,)
        return
    for first in range(steps - used + 1):
        for rest in _shares(parts - 1, steps, used + first):
            yield (first / steps, *rest)
