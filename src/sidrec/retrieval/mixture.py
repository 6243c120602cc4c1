"""Retrieval-augmented generation of items: a retriever proposes, the generator says how likely.

R are the retriever's best n items, p_r the softmax of its scores / T over them, and p_gen the
generator's probability of an item (its semantic ID's, divided among items that share it). With the
weight w of the retriever, over the items i of R,

    log_linear:  score(i) = (1 - w) log p_gen(i | C) + w log p_r(i | C)
    mixture:     p(i) = (1 - w) p_gen(i | C) / Z_R + w p_r(i | C)         Z_R = sum of p_gen over R
    evidence:    p(i) = (1 - w) p_gen(i | C) / Z_R + w sum_j p_r(j) p_gen(i | C + j) / Z_j

The last is p(y|C) = sum_j p(y|j, C) p(j|C) with a retrieved item j as evidence: the history C with
j after it. Every item of R gets the generator's exact probability; no beam runs unless
`num_generated` lets its items join R.

Source:   the mixture formula of retrieval-augmented generation, Lewis et al. 2020
          (arXiv:2005.11401), for items; sums of independent models as EnsRec (arXiv:2512.17820).
Differs:  for a recommendation y is an item, so the formula needs a reading: these three are ours.
          w is chosen on validation; in evidence j is taken from the best `num_evidence` of R.
Cost:     one pass of the scorer, and one of the generator over n paths a request; evidence needs
          one more pass of that for each j.
Shapes:   B requests, P items of R, N items, K returned items, J pieces of evidence, G weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from sidrec.contracts import Systems
from sidrec.decoding.beam import log_shares
from sidrec.decoding.exact import item_log_probs
from sidrec.errors import ConfigError, DataError
from sidrec.retrieval.fusion import places, union
from sidrec.retrieval.top_items import listed, top_items
from sidrec.types import PAD, Bools, Candidates, Examples, HistoryBatch, Ints

WEIGHTS = tuple(step / 20 for step in range(21))
"""What `weight` is chosen from."""
BLOCK_REQUESTS = 64
"""Requests scored at once while tuning."""


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Settings of `Mixture`."""

    retriever: str = "dense"
    """The scorer that proposes."""
    num_retrieved: int = 100
    """n, items that it proposes."""
    num_generated: int = 0
    """Items of the generator's own list that join them; 0 leaves the choice to the retriever."""
    rule: Literal["log_linear", "mixture", "evidence"] = "log_linear"
    """How the two are combined."""
    weight: float | None = None
    """w, the retriever's share: 0 ranks R by the generator, 1 by the retriever (or by what it says
    as evidence). Left out: chosen on validation."""
    temperature: float = 1.0
    """T, what the retriever's scores are divided by."""
    num_evidence: int = 8
    """Retrieved items that are put after the history in turn, for `evidence`."""

    def __post_init__(self) -> None:
        for name in ("num_retrieved", "num_evidence"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"mixture.{name} must be at least 1, got {value}")
        if self.num_generated < 0:
            raise ConfigError(f"mixture.num_generated must not be negative: {self.num_generated}")
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise ConfigError(f"mixture.weight must be in [0, 1], got {self.weight}")
        if not self.temperature > 0:
            raise ConfigError(f"mixture.temperature must be above 0, got {self.temperature}")


@dataclass(frozen=True, eq=False)
class Mixture:
    """A `contracts.Retriever` over one scorer and the generator."""

    config_class: ClassVar[type] = MixtureConfig
    systems: Systems
    config: MixtureConfig

    @classmethod
    def build(cls, systems: Systems, config: MixtureConfig) -> Self:
        """DataError where the bundle has no such scorer."""
        if config.retriever not in systems.scorers:
            raise DataError(
                f"mixture.retriever is {config.retriever!r}, but the bundle's scorers are "
                f"{list(systems.scorers)}; add a [[scorers]] section or name another"
            )
        return cls(systems, config)

    @property
    def max_length(self) -> int:
        """Longest history that either reads."""
        lengths = (self.systems.max_length(n) for n in (self.config.retriever, self._generator))
        return max(lengths)

    @property
    def _generator(self) -> str:
        return self.systems.generator.name

    @torch.inference_mode()
    def opinions(
        self,
        batch: HistoryBatch,
        exclude: Sequence[Ints] | None = None,
        keep_N: Bools | None = None,
        k: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """R (B, P), at least k items where there are so many, −1 for none, and on it log p_gen and
        log p_r (B, P), the latter a distribution over R.

        The mass of R, the sum of p_gen over it, says how much the generator would put elsewhere.
        """
        scores_BN = self.systems.scores(self.config.retriever, batch)
        num = max(self.config.num_retrieved, k)
        rows_BP = torch.from_numpy(top_items(scores_BN, num, exclude, keep_N).rows_BK)
        if self.config.num_generated:
            own = self.systems.generate(batch, self.config.num_generated, exclude, keep_N)
            rows_BP = union([rows_BP, torch.from_numpy(own.rows_BK)])
        rows_BP = rows_BP.to(scores_BN.device)
        none_BP = rows_BP == PAD
        told_BP = scores_BN.gather(1, rows_BP.clamp_min(0)) / self.config.temperature
        told_BP = told_BP.masked_fill(none_BP, -torch.inf).log_softmax(1)
        return rows_BP, self.generated(batch, rows_BP), told_BP

    def generated(self, batch: HistoryBatch, rows_BP: Tensor) -> Tensor:
        """(B, P) log-probability of items under the generator; −inf for row −1."""
        generator, index = self.systems.generator.value, self.systems.index
        none_BP = rows_BP == PAD
        if bool(none_BP.all()):
            return torch.full(rows_BP.shape, -torch.inf, device=rows_BP.device)
        filled_BP = torch.where(none_BP, rows_BP[~none_BP][0], rows_BP)
        log_probs_BP = item_log_probs(
            generator,
            batch.last(generator.max_length),
            index,
            filled_BP,
            renormalise=self.systems.renormalise,
        )
        shares_N = shares_of_ids(self.systems)
        if shares_N is not None:
            log_probs_BP = log_probs_BP + shares_N[filled_BP]
        return log_probs_BP.masked_fill(none_BP, -torch.inf)

    @torch.inference_mode()
    def scored(
        self,
        batch: HistoryBatch,
        weights: Sequence[float],
        exclude: Sequence[Ints] | None = None,
        keep_N: Bools | None = None,
        k: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """R (B, P) and its scores (G, B, P) under each weight, −inf for row −1."""
        rows_BP, generated_BP, told_BP = self.opinions(batch, exclude, keep_N, k)
        if self.config.rule != "log_linear":
            generated_BP = generated_BP.log_softmax(1).nan_to_num(nan=-torch.inf)
        if self.config.rule == "evidence":
            told_BP = self.by_evidence(batch, rows_BP, told_BP)
        combine = log_linear if self.config.rule == "log_linear" else log_mixture
        scores_GBP = torch.stack([combine(generated_BP, told_BP, w) for w in weights])
        return rows_BP, scores_GBP.masked_fill(rows_BP == PAD, -torch.inf)

    def by_evidence(self, batch: HistoryBatch, rows_BP: Tensor, told_BP: Tensor) -> Tensor:
        """(B, P) log of sum_j p_r(j) p_gen(i | C + j) / Z_j, over the best J of p_r."""
        best_BJ, places_BJ = told_BP.topk(min(self.config.num_evidence, told_BP.shape[1]), dim=1)
        weights_BJ = best_BJ.log_softmax(1)
        parts = []
        for j in range(places_BJ.shape[1]):
            rows_B = rows_BP.gather(1, places_BJ[:, j : j + 1])[:, 0]
            given_BP = self.generated(with_item(batch, rows_B), rows_BP).log_softmax(1)
            parts.append(weights_BJ[:, j : j + 1] + given_BP)
        return torch.stack(parts).logsumexp(0).nan_to_num(nan=-torch.inf)

    def tuned(
        self, examples: Examples, on_batch: Callable[[int, int], None] | None = None
    ) -> MixtureConfig:
        """The weight with the best NDCG@10; ties in score count against the target."""
        if self.config.weight is not None:
            return self.config
        gains_G = np.zeros(len(WEIGHTS))
        for start in range(0, len(examples), BLOCK_REQUESTS):
            rows = np.arange(start, min(start + BLOCK_REQUESTS, len(examples)))
            batch = HistoryBatch.from_histories(
                examples.histories, rows, max_length=self.max_length
            ).to(self.systems.device)
            rows_BP, scores_GBP = self.scored(batch, WEIGHTS)
            targets_B1 = torch.from_numpy(examples.targets[rows]).to(rows_BP.device)[:, None]
            for g, scores_BP in enumerate(scores_GBP):
                places_B = places(scores_BP, rows_BP == targets_B1)
                gains_G[g] += float((1 / (places_B[places_B < 10].double() + 2).log2()).sum())
            if on_batch is not None:
                on_batch(int(rows[-1]) + 1, len(examples))
        return replace(self.config, weight=WEIGHTS[int(gains_G.argmax())])

    def answer(
        self,
        batch: HistoryBatch,
        k: int,
        exclude: Sequence[Ints] | None = None,
        keep_N: Bools | None = None,
    ) -> Candidates:
        """The k best of R; ConfigError where the weight was never chosen."""
        if self.config.weight is None:
            raise ConfigError("mixture.weight is not chosen; set it, or tune on validation")
        rows_BP, scores_GBP = self.scored(batch, [self.config.weight], exclude, keep_N, k)
        return listed(rows_BP, scores_GBP[0], k)


def log_linear(generated_BP: Tensor, told_BP: Tensor, weight: float) -> Tensor:
    """Weighted sum of log-probabilities; a weight of 0 leaves a member out, −inf and all."""
    if weight in (0, 1):
        return told_BP if weight else generated_BP
    return (1 - weight) * generated_BP + weight * told_BP


def log_mixture(generated_BP: Tensor, told_BP: Tensor, weight: float) -> Tensor:
    """Log of the weighted sum of probabilities."""
    if weight in (0, 1):
        return told_BP if weight else generated_BP
    both = torch.stack([generated_BP + np.log1p(-weight), told_BP + np.log(weight)])
    return both.logsumexp(0)


def shares_of_ids(systems: Systems) -> Tensor | None:
    """(N,) log of what each item gets of its ID's probability; None where IDs are unique."""
    if (weights_N := systems.weights_N) is None:
        return None
    _, groups_N = np.unique(systems.ids.codes, axis=0, return_inverse=True)
    groups_N = torch.from_numpy(groups_N.reshape(-1)).to(weights_N.device)
    return log_shares(weights_N, groups_N, int(groups_N.max()) + 1)


def with_item(batch: HistoryBatch, rows_B: Tensor) -> HistoryBatch:
    """Every history with one more item at its end; row −1 adds none."""
    width = batch.items_BT.new_full((batch.num_requests, 1), PAD)
    items_BT = torch.cat([batch.items_BT, width], dim=1)
    lengths_B = batch.lengths_B + (rows_B != PAD)
    return HistoryBatch(items_BT.scatter(1, batch.lengths_B[:, None], rows_B[:, None]), lengths_B)
