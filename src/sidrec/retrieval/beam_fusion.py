"""Beam fusion: the beam writes IDs, a predicted vector picks items below each, both scores join.

The beam gives M IDs with log-probabilities phi_k. For each, the model predicts a vector v_k, and
A_k are the N items that carry the ID and lie nearest to it. An item a of A_k scores

    softmax over k (tau phi_k)  *  softmax over A_k (psi cos(v_k, v_a))

tau leans on the IDs, psi on the vectors. The softmax over A_k divides an ID among its nearest
items, so an item that is alone below its ID keeps all of it: small buckets gain. The generator has
to predict vectors given IDs: `generators.cobra`.

Source:   COBRA, Yang et al. 2025 (arXiv:2503.02453): coarse-to-fine generation and BeamFusion.
Differs:  tau and psi are chosen on validation unless set (the paper's are .9 and 16); the search
          inside an ID is exact; where M times N items are too few for a list, what follows comes
          from more IDs and all their items. Items of the history take the bias of the dense head
          with the cosine.
Cost:     the beam, one more pass over the history, one place of the encoder a beam, and one product
          for every item below the M IDs.
Shapes:   B requests, M IDs, A items kept of an ID, E items below all of them, D width, K items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sidrec.contracts import Systems
from sidrec.decoding.beam import search_ids
from sidrec.decoding.rules import Rules
from sidrec.errors import ConfigError, DataError
from sidrec.generators.cobra import Cobra
from sidrec.retrieval.fusion import places
from sidrec.retrieval.top_items import listed, top_items
from sidrec.transformer import distinct
from sidrec.types import PAD, Bools, Candidates, Examples, HistoryBatch, Ints

TAUS = (0.1, 0.2, 0.4, 0.6, 0.9, 1.3, 2.0)
PSIS = (2.0, 4.0, 8.0, 16.0, 32.0)
"""What `tau` and `psi` are chosen from."""
BLOCK_REQUESTS = 256
BLOCK_ITEMS = 262_144
"""Items compared at once."""


@dataclass(frozen=True, kw_only=True)
class BeamFusionConfig:
    """Settings of `BeamFusion`."""

    num_ids: int = 50
    """M, IDs of the beam that are looked into."""
    num_per_id: int = 20
    """N, items kept of each."""
    tau: float | None = None
    """How much the log-probability of an ID counts; left out: chosen on validation."""
    psi: float | None = None
    """How much the cosine counts; left out: chosen on validation."""
    fusion: bool = True
    """Multiply both shares; without, IDs follow each other in the order of the beam and the
    nearest items of each come first."""
    within_ids: bool = True
    """Compare only the items below each ID; without, the whole catalogue with the vector predicted
    for the best ID. That is the model without IDs where `cobra.conditioned` is off too."""

    def __post_init__(self) -> None:
        for name in ("num_ids", "num_per_id"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"beam_fusion.{name} must be at least 1, got {value}")
        for name in ("tau", "psi"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"beam_fusion.{name} must be above 0, got {value}")

    @property
    def fuses(self) -> bool:
        """Whether tau and psi are read at all."""
        return self.fusion and self.within_ids


class Compared(NamedTuple):
    """The items below each ID of the beam, nearest first."""

    rows_BMA: Tensor
    """Catalogue rows, −1 for none."""
    phi_BM: Tensor
    """Log-probability of each ID, −inf for none."""
    cosines_BMA: Tensor
    """With the vector predicted for the ID, −inf for none; plus T b for items of the history."""


@dataclass(frozen=True, eq=False)
class BeamFusion:
    """A `contracts.Retriever` over a generator that predicts a vector given an ID."""

    config_class: ClassVar[type] = BeamFusionConfig
    systems: Systems
    config: BeamFusionConfig

    @classmethod
    def build(cls, systems: Systems, config: BeamFusionConfig) -> Self:
        """DataError where the generator predicts no vectors."""
        if not isinstance(systems.generator.value, Cobra):
            raise DataError(
                f"beam_fusion needs a generator that predicts a vector given an ID, got "
                f"{systems.generator.name!r}; set generator.name to cobra"
            )
        return cls(systems, config)

    @property
    def max_length(self) -> int:
        """Longest history that the generator reads."""
        return self.systems.max_length(self.systems.generator.name)

    @torch.inference_mode()
    def compared(
        self, batch: HistoryBatch, num_ids: int, num_per_id: int, rules: Rules | None = None
    ) -> Compared:
        """The best IDs of each request, and the nearest items below each."""
        systems, model = self.systems, self.model
        found = search_ids(
            model,
            batch,
            systems.index,
            beam_width=max(systems.beam_width, num_ids),
            rules=rules,
            renormalise=systems.renormalise,
        )
        leaves_BM, phi_BM = found.leaves_BW[:, :num_ids], found.scores_BW[:, :num_ids]
        found = replace(found, leaves_BW=leaves_BM, scores_BW=phi_BM)
        phi_BM = phi_BM.masked_fill(~found.alive_BW, -torch.inf)
        beams_E, rows_E = found.items()
        shape = phi_BM.shape
        if not len(rows_E):
            none = rows_E.new_full((*shape, 1), PAD)
            return Compared(none, phi_BM, torch.full(none.shape, -torch.inf, device=none.device))
        first_M = torch.searchsorted(beams_E, torch.arange(phi_BM.numel(), device=beams_E.device))
        carrier_BM = rows_E[first_M.clamp_max(len(rows_E) - 1)].view(shape)
        users_BMD = model.dense_states(batch, model.symbols_NL[carrier_BM])
        cosines_E = self.cosines(batch, users_BMD, beams_E, rows_E)
        order = cosines_E.argsort(descending=True, stable=True)
        order = order[beams_E[order].argsort(stable=True)]
        beams_E, rows_E, cosines_E = beams_E[order], rows_E[order], cosines_E[order]
        places_E = torch.arange(len(rows_E), device=rows_E.device)
        places_E = places_E - torch.searchsorted(beams_E, beams_E)
        near = places_E < num_per_id
        num_kept = int(places_E[near].max()) + 1
        rows_MA = rows_E.new_full((phi_BM.numel(), num_kept), PAD)
        cosines_MA = cosines_E.new_full(rows_MA.shape, -torch.inf)
        at = beams_E[near], places_E[near]
        rows_MA[at], cosines_MA[at] = rows_E[near], cosines_E[near]
        return Compared(rows_MA.view(*shape, -1), phi_BM, cosines_MA.view(*shape, -1))

    def cosines(
        self, batch: HistoryBatch, users_BMD: Tensor, beams_E: Tensor, rows_E: Tensor
    ) -> Tensor:
        """(E,) float32 cosine of each item with the vector predicted for its ID."""
        model, seen_BS = self.model, distinct(batch)
        users_MD, items_ND = users_BMD.flatten(0, 1), model.dense_items()
        parts = []
        for start in range(0, len(rows_E), BLOCK_ITEMS):
            part = slice(start, start + BLOCK_ITEMS)
            beams, rows = beams_E[part], rows_E[part]
            requests = beams.div(users_BMD.shape[1], rounding_mode="floor")
            logits = model.dense.logits_of(users_MD[beams], items_ND[rows], rows, seen_BS[requests])
            parts.append(logits * model.dense.temperature())
        return torch.cat(parts)

    @property
    def model(self) -> Cobra:
        """The generator."""
        return self.systems.generator.value

    @torch.inference_mode()
    def everywhere(self, batch: HistoryBatch, rules: Rules | None = None) -> Tensor:
        """(B, N) logits of the whole catalogue, given the best ID that the rules leave."""
        model, index = self.model, self.systems.index
        best = search_ids(
            model,
            batch,
            index,
            beam_width=self.systems.beam_width,
            rules=rules,
            renormalise=self.systems.renormalise,
        )
        best = replace(best, leaves_BW=best.leaves_BW[:, :1], scores_BW=best.scores_BW[:, :1])
        requests_E, rows_E = best.items()
        each_B = torch.arange(batch.num_requests, device=rows_E.device)
        # where nothing is left there is no answer either: any ID will do
        rows_E = torch.cat([rows_E, rows_E.new_zeros(1)])
        carrier_B = rows_E[torch.searchsorted(requests_E, each_B)]
        users_BD = model.dense_states(batch, model.symbols_NL[carrier_B][:, None])[:, 0]
        items_ND = model.dense_items()
        rows_N = torch.arange(len(items_ND), device=items_ND.device)
        return model.dense.logits(users_BD, items_ND, rows_N, distinct(batch))

    def tuned(
        self, examples: Examples, on_batch: Callable[[int, int], None] | None = None
    ) -> BeamFusionConfig:
        """The config with the tau and psi of best NDCG@10; score ties count against the target."""
        config = self.config
        taus = TAUS if config.tau is None else (config.tau,)
        psis = PSIS if config.psi is None else (config.psi,)
        if not config.fuses or len(taus) == len(psis) == 1:
            return config
        gains = np.zeros((len(taus), len(psis)))
        order = np.argsort(examples.histories.lengths, kind="stable")
        for start in range(0, len(order), BLOCK_REQUESTS):
            rows = order[start : start + BLOCK_REQUESTS]
            batch = HistoryBatch.from_histories(
                examples.histories, rows, max_length=self.max_length
            ).to(self.systems.device)
            found = self.compared(batch, config.num_ids, config.num_per_id)
            targets_B = torch.from_numpy(examples.targets[rows]).to(found.rows_BMA.device)
            here_BP = found.rows_BMA.flatten(1) == targets_B[:, None]
            for t, tau in enumerate(taus):
                for p, psi in enumerate(psis):
                    places_B = places(fused(found, tau, psi).flatten(1), here_BP)
                    gains[t, p] += float((1 / (places_B[places_B < 10].double() + 2).log2()).sum())
            if on_batch is not None:
                on_batch(start + len(rows), len(order))
        t, p = np.unravel_index(int(gains.argmax()), gains.shape)
        return replace(config, tau=taus[t], psi=psis[p])

    def answer(
        self,
        batch: HistoryBatch,
        k: int,
        exclude: Sequence[Ints] | None = None,
        keep_N: Bools | None = None,
    ) -> Candidates:
        """The k items of highest fused score, as its natural logarithm."""
        config, batch = self.config, batch.last(self.max_length)
        if config.fuses and (config.tau is None or config.psi is None):
            raise ConfigError(
                "beam_fusion.tau and psi are not chosen; set them, or tune on validation"
            )
        if not config.within_ids:
            rules = rules_of(keep_N, exclude)
            return top_items(self.everywhere(batch, rules), k, exclude, keep_N)
        found = self.ranked(batch, k, config.num_ids, config.num_per_id, exclude, keep_N)
        short = np.flatnonzero((found.rows_BK == PAD).any(axis=1))
        if not len(short):
            return found
        part = HistoryBatch(batch.items_BT[short], batch.lengths_B[short])
        left = None if exclude is None else [exclude[row] for row in short.tolist()]
        every = len(self.systems.items)
        more = self.ranked(part, k, max(config.num_ids, k), every, left, keep_N)
        return filled(found, short, more)

    def ranked(
        self,
        batch: HistoryBatch,
        k: int,
        num_ids: int,
        num_per_id: int,
        exclude: Sequence[Ints] | None,
        keep_N: Bools | None,
    ) -> Candidates:
        """The k best of so many IDs and so many items of each."""
        found = self.compared(batch, num_ids, num_per_id, rules_of(keep_N, exclude))
        if self.config.fusion:
            assert self.config.tau is not None and self.config.psi is not None
            scores_BMA = fused(found, self.config.tau, self.config.psi)
        else:
            scores_BMA = one_after_another(found)
        return listed(found.rows_BMA.flatten(1), scores_BMA.flatten(1), k)


def rules_of(keep_N: Bools | None, exclude: Sequence[Ints] | None) -> Rules | None:
    """What a search takes; None where there is no rule."""
    if keep_N is None and exclude is None:
        return None
    return Rules(keep_N=keep_N, exclude=exclude)


def fused(found: Compared, tau: float, psi: float) -> Tensor:
    """(B, M, A) natural log of BeamFusion, −inf for no item."""
    ids_BM = (tau * found.phi_BM).log_softmax(1)
    inside_BMA = (psi * found.cosines_BMA).log_softmax(2)
    return (ids_BM[..., None] + inside_BMA).masked_fill(found.rows_BMA == PAD, -torch.inf)


def one_after_another(found: Compared) -> Tensor:
    """(B, M, A) scores that rank by ID first, then by cosine: −rank of the ID + sigmoid(cosine)."""
    num_ids = found.phi_BM.shape[1]
    ranks_M = torch.arange(num_ids, device=found.phi_BM.device)
    scores_BMA = found.cosines_BMA.sigmoid() - ranks_M[:, None]
    return scores_BMA.masked_fill(found.rows_BMA == PAD, -torch.inf)


def filled(found: Candidates, short: Ints, more: Candidates) -> Candidates:
    """The lists with those of `short` gone on by what `more` has beside; each below the last."""
    rows_BK, scores_BK = found.rows_BK.copy(), found.scores_BK.copy()
    own_SK, k = rows_BK[short], rows_BK.shape[1]
    known_SK = (more.rows_BK[:, :, None] == own_SK[:, None]).any(2) | (more.rows_BK == PAD)
    rows_SP = np.concatenate([own_SK, np.where(known_SK, PAD, more.rows_BK)], axis=1)
    order_SP = np.argsort(rows_SP == PAD, axis=1, kind="stable")[:, :k]
    num_S1 = (own_SK != PAD).sum(1, keepdims=True)
    rows_BK[short] = np.take_along_axis(rows_SP, order_SP, axis=1)
    last_S1 = np.where(num_S1 > 0, np.take_along_axis(
        scores_BK[short], np.maximum(num_S1 - 1, 0), axis=1), 0)  # fmt: skip
    places_SK = np.arange(k) - num_S1
    below_SK = np.where(places_SK < 0, scores_BK[short], last_S1 - 1 - places_SK)
    below_SK = np.where(rows_BK[short] == PAD, -np.inf, below_SK)
    scores_BK[short] = below_SK.astype(np.float32)
    return Candidates(rows_BK, scores_BK)


def distinct_ids(rows_BK: Ints, codes_NL: Ints) -> Ints:
    """(B,) different IDs in each list, the paper's measure of diversity; −1 is no item."""
    _, ids_N = np.unique(codes_NL, axis=0, return_inverse=True)
    ids_BK = np.sort(np.where(rows_BK == PAD, -1, ids_N.reshape(-1)[rows_BK]), axis=1)
    fresh_BK = np.diff(ids_BK, axis=1, prepend=-1) > 0
    return fresh_BK.sum(axis=1)
