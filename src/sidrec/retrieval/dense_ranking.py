"""Dense ranking: what the generator found and what is known to be new, sorted by a dense head.

    G = the K best items of the beam;  C = items without training events, known to be new
    list = G united with C, ranked by cos(u, g(x_j)) / T + b [j in the history]

A generator gives an item that never occurred in training next to no probability, so it is never in
G; the dense head reads item vectors only and can compare it with the rest. G keeps the head from
ranking the whole catalogue. The generator has to carry a dense head: `generators.liger`.

Source:   LIGER, Yang et al. 2024 (arXiv:2411.18814), its inference.
Differs:  G has at least as many items as are asked for, so that k come back whenever k exist; C is
          what the bundle knows to be new (no training events), never what a test asks for.
Cost:     the beam, one more pass over the history, and B (K + |C|) D products. The more items C
          has, the harder it is for each: `num_candidates` says how many were compared.
Shapes:   B requests, K generated items, M items of C, P candidates, D width, S seen items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from sidrec.contracts import Systems
from sidrec.decoding.rules import padded
from sidrec.dense_head import places_in
from sidrec.errors import ConfigError, DataError
from sidrec.generators.liger import Liger
from sidrec.retrieval.top_items import listed
from sidrec.transformer import distinct
from sidrec.types import PAD, Bools, Candidates, Examples, HistoryBatch, Ints


@dataclass(frozen=True, kw_only=True)
class DenseRankingConfig:
    """Settings of `DenseRanking`."""

    num_generated: int = 20
    """K, items that the generator brings; with 0 it is asked only where the others are too few."""
    united_with: Literal["new", "nothing", "everything"] = "new"
    """What joins them: items without training events; nothing; or the whole catalogue, which is
    plain dense retrieval."""

    def __post_init__(self) -> None:
        if self.num_generated < 0:
            raise ConfigError(
                f"dense_ranking.num_generated must not be negative, got {self.num_generated}"
            )
        if not self.num_generated and self.united_with == "nothing":
            raise ConfigError(
                "dense_ranking has no candidates: set num_generated above 0, or united_with"
            )


@dataclass(frozen=True, eq=False)
class DenseRanking:
    """A `contracts.Retriever` over a generator with a dense head."""

    config_class: ClassVar[type] = DenseRankingConfig
    systems: Systems
    config: DenseRankingConfig

    @classmethod
    def build(cls, systems: Systems, config: DenseRankingConfig) -> Self:
        """DataError where the generator has no dense head."""
        if not isinstance(systems.generator.value, Liger):
            raise DataError(
                f"dense_ranking needs a generator with a dense head, got "
                f"{systems.generator.name!r}; set generator.name to liger"
            )
        return cls(systems, config)

    @property
    def max_length(self) -> int:
        """Longest history that the generator reads."""
        return self.systems.max_length(self.systems.generator.name)

    def tuned(
        self, examples: Examples, on_batch: Callable[[int, int], None] | None = None
    ) -> DenseRankingConfig:
        """The config as it is: nothing is left open."""
        return self.config

    @torch.inference_mode()
    def compared(
        self,
        batch: HistoryBatch,
        k: int,
        exclude: Sequence[Ints] | None = None,
        keep_N: Bools | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Candidates (B, P), distinct, −1 for none, and their logits, −inf there."""
        batch, seen_BS = batch.last(self.max_length), distinct(batch.last(self.max_length))
        model: Liger = self.systems.generator.value
        users_BD, items_ND = model.dense_states(batch), model.dense_items()
        new_M = torch.from_numpy(self.joining(keep_N)).to(users_BD.device)
        new_BM = new_M.expand(batch.num_requests, -1)
        logits_BM = model.dense.logits(users_BD, items_ND[new_M], new_M, seen_BS)
        if exclude is not None and len(new_M):
            new_BM = without(new_BM, places_in(new_M, padded(exclude).to(new_M.device)))
            logits_BM = logits_BM.masked_fill(new_BM == PAD, -torch.inf)
        some = self.config.num_generated
        alone_B1 = (new_BM != PAD).sum(1, keepdim=True) >= k
        if self.config.united_with == "everything" or (not some and bool(alone_B1.all())):
            return new_BM, logits_BM
        found = self.systems.generate(batch, max(some, k), exclude, keep_N)
        found_BK = torch.from_numpy(found.rows_BK).to(users_BD.device)
        found_BK = found_BK.masked_fill(places_in(new_M, found_BK) >= 0, PAD)  # those are in C
        if not some:
            found_BK = found_BK.masked_fill(alone_B1, PAD)
        found_BKD = items_ND[found_BK.clamp_min(0)]
        logits_BK = model.dense.logits_of(
            users_BD[:, None], found_BKD, found_BK, seen_BS[:, None]
        ).masked_fill(found_BK == PAD, -torch.inf)
        return torch.cat([found_BK, new_BM], dim=1), torch.cat([logits_BK, logits_BM], dim=1)

    def joining(self, keep_N: Bools | None) -> Ints:
        """Catalogue rows (M,) that join what the generator finds, ascending, as the rules leave."""
        if self.config.united_with == "nothing":
            return np.zeros(0, dtype=np.int64)
        joins_N = self.systems.train_counts_N == 0
        if self.config.united_with == "everything":
            joins_N = np.ones_like(joins_N)
        return np.flatnonzero(joins_N if keep_N is None else joins_N & keep_N)

    def num_candidates(
        self,
        batch: HistoryBatch,
        k: int,
        exclude: Sequence[Ints] | None = None,
        keep_N: Bools | None = None,
    ) -> Ints:
        """(B,) items that each request's list of k is chosen from."""
        rows_BP, _ = self.compared(batch, k, exclude, keep_N)
        return (rows_BP != PAD).sum(1).cpu().numpy()

    def answer(
        self,
        batch: HistoryBatch,
        k: int,
        exclude: Sequence[Ints] | None = None,
        keep_N: Bools | None = None,
    ) -> Candidates:
        """The k candidates of highest logit; ties to what the generator found, then by row."""
        rows_BP, logits_BP = self.compared(batch, k, exclude, keep_N)
        return listed(rows_BP, logits_BP, k)


def without(rows_BM: Tensor, places_BX: Tensor) -> Tensor:
    """The rows with −1 at the given places of each request; place −1 is none."""
    wider = torch.cat([rows_BM, rows_BM.new_full((len(rows_BM), 1), PAD)], dim=1)
    places_BX = places_BX.masked_fill(places_BX < 0, rows_BM.shape[1])
    return wider.scatter(1, places_BX, PAD)[:, :-1]
