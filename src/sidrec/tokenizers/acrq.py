"""ACRQ-style: an RQ-VAE of the head, frozen, and the rest of the catalogue learnt against it.

Stage 1 trains an RQ-VAE on the head, the items that hold most training events. Stage 2 freezes
its codebooks and its encoder and trains a copy of the encoder, the decoder and some extra
codewords a level on the torso, then on the tail:

    L = L_rec + L_vq + lam_a sum_{l <= l0} |r_{l-1} - sg(e_head)|^2 + lam_d |E(x) - sg(E_head(x))|^2
        + replay L_rec(head)

A head item is known by its id: the frozen encoder and the head's codewords name it, so its ID is
the same before and after stage 2. All other items, new ones too, take the other encoder and choose
among all codewords. Both live in one code space: the first rows of each codebook are the head's,
the last ones the extra. One decoder rebuilds all codes.

Source:  "ACRQ-style": SA2CRQ, arXiv:2602.23978, of which no equation is known to us; two stages, a
         frozen head and an anchored tail are published, every formula here is ours.
Differs: cut points, l0, both weights, the extra codewords and their start are our choice; e_head is
         the head's codeword nearest to the residual, also where an extra one was chosen; the
         decoder goes on learning in stage 2 and repeats head codes (`replay`) lest it forget them.
         Without a context all items are one group, which is plain RQ-VAE.
Cost:    at most the steps of RQ-VAE at equal `epochs`, those of stage 2 with one more encoder pass
         (drift) and one more decoder pass (replay); one more encoder and the head's codebooks.
Shapes:  N items, D input width, Z latent width, L levels, V codes of a level, B batch.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.errors import ConfigError, DataError
from sidrec.processes import choose_device
from sidrec.tokenizers.autoencoder import (
    Autoencoder,
    Objective,
    Quantised,
    fit_autoencoder,
    nearest_codes,
    run_rows,
    train,
)
from sidrec.tokenizers.health import error_ratio
from sidrec.tokenizers.quantisation import lloyd, quantise, reconstruct
from sidrec.tokenizers.residual_kmeans import codes_per_level, moments
from sidrec.tokenizers.rqvae import RqVae, RqVaeConfig
from sidrec.types import Bools, CatalogueContext, Floats, Ids, Ints, ItemVectors, SemanticIds

TRACED_ITEMS = 2048
"""The tail error of an epoch is taken over at most this many items, evenly spaced."""


@dataclass(frozen=True, kw_only=True)
class AcrqConfig(RqVaeConfig):
    """Settings of `Acrq`, over those of RQ-VAE: `epochs` passes over the head; the stages of the
    rest, torso and then torso with tail, share as many.
    """

    method_name: ClassVar[str] = "acrq"

    cuts: tuple[float, ...] = (0.8, 0.95)
    """Shares of the training events at which one group of items ends and the next begins, most
    popular first: head, torso, tail. () makes one group, which is plain RQ-VAE."""
    extra_share: float = 0.125
    """Share of each level's codes that is added in stage 2, rounded up; the others are the head's.
    """
    anchor: float = 0.25
    """lam_a, the weight that pulls residuals of the rest to the head's codewords."""
    anchored_levels: int = 1
    """l0, the number of coarse levels that `anchor` acts on."""
    drift: float = 0.02
    """lam_d, the weight that keeps the encoder of the rest near that of the head."""
    replay: float = 0.5
    """Weight of rebuilding head codes in stage 2."""
    freeze: bool = True
    """Keep the head as it is. False lets all weights learn in both stages, for comparison: there is
    one encoder then, and IDs of head items may change."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("anchor", "anchored_levels", "drift", "replay"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"acrq.{name} must not be negative, got {value}")
        if not 0 <= self.extra_share < 1:
            raise ConfigError(f"acrq.extra_share must be in [0, 1), got {self.extra_share}")
        if list(self.cuts) != sorted(set(self.cuts)) or not all(0 < cut < 1 for cut in self.cuts):
            raise ConfigError(f"acrq.cuts must rise inside (0, 1), got {list(self.cuts)}")


@dataclass(frozen=True, eq=False)
class Head:
    """What names the head items."""

    encoder: nn.Module
    codebooks: tuple[Floats, ...]
    """L arrays (V_head, Z), rows of the tokenizer's codebooks."""
    item_ids: Ids


@dataclass(frozen=True)
class AcrqReport:
    """What the fit met and did."""

    num_items: tuple[int, ...] = ()
    """Items of each group, most popular first."""
    num_cold: int = 0
    """Items of the last group that no training event names."""
    tail_errors: tuple[float, ...] = ()
    """Squared error of the last group, as a share of its variance, after each epoch."""
    seconds: tuple[float, ...] = ()
    """Processor seconds of training until then; not saved, so that equal fits save equal bytes."""


@dataclass(frozen=True, eq=False)
class Acrq(RqVae):
    """Fitted encoder, codebooks and decoder, and the frozen head."""

    config_class: ClassVar[type] = AcrqConfig
    head: Head | None = None
    """None where nothing is frozen: one group, or `freeze` off."""
    report: AcrqReport = AcrqReport()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the fit had to do without."""
        cold = self.report.num_cold
        return (f"{cold:,} items without events are in the tail group",) if cold else ()

    @classmethod
    def fit(  # type: ignore[override]
        cls, vectors: ItemVectors, config: AcrqConfig, context: CatalogueContext | None = None
    ) -> Self:
        """Train the head, then the rest. Without a context all items are one group."""
        sizes = codes_per_level("acrq", config.num_codes, config.num_levels)
        groups, num_cold = popularity_groups(vectors.item_ids, config.cuts, context)
        extras = tuple(
            min(math.ceil(config.extra_share * size), size - 1) if groups[1:] else 0
            for size in sizes
        )
        head_sizes = tuple(size - extra for size, extra in zip(sizes, extras, strict=True))
        if len(groups[0]) < max(head_sizes):
            group = f"head of cuts = {config.cuts} holds" if groups[1:] else "catalogue holds"
            raise DataError(
                f"acrq needs at least {max(head_sizes)} items for the head's codes, but the "
                f"{group} {len(groups[0])}; lower num_codes or raise the first cut"
            )
        mean_D, deviation_D = moments(vectors.vectors, config.standardise)
        points_ND = torch.from_numpy((vectors.vectors - mean_D) / deviation_D)
        trace = Trace(points_ND[groups[-1]])
        model = fit_autoencoder(
            points_ND[groups[0]], head_sizes, config, partial(Traced, trace=trace), cls.build
        )
        head = None
        if groups[1:]:
            if config.freeze:
                encoder = copy.deepcopy(model.encoder).requires_grad_(False)
                head = Head(encoder, model.codebooks(), vectors.item_ids[groups[0]])
            model = fit_rest(model, points_ND, groups, extras, config, trace)
        report = AcrqReport(
            tuple(map(len, groups)), num_cold, tuple(trace.errors), tuple(trace.seconds)
        )
        return replace(cls.of(model, config, mean_D, deviation_D), head=head, report=report)

    def in_head(self, vectors: ItemVectors) -> Bools:
        """Which items (N,) the frozen head names."""
        known = set(self.head.item_ids) if self.head else set()
        return np.array([item_id in known for item_id in vectors.item_ids], dtype=np.bool_)

    def project(self, vectors: ItemVectors) -> Floats:
        """Latents (N, Z), each by the encoder of its item."""
        latents_NZ = super().project(vectors)
        if self.head and (rows_N := self.in_head(vectors)).any():
            points_ND = (vectors.vectors[rows_N] - self.mean_D) / self.deviation_D
            latents_NZ[rows_N] = run_rows(self.head.encoder, points_ND)
        return latents_NZ

    def encode(self, vectors: ItemVectors) -> SemanticIds:
        """Assign codes greedily, head items among the head's codes."""
        latents_NZ = self.project(vectors)
        codes_NL, _ = quantise(latents_NZ, self.codebooks)
        if self.head and (rows_N := self.in_head(vectors)).any():
            own_NL, _ = quantise(latents_NZ[rows_N], self.head.codebooks)
            for level, book_VZ in enumerate(self.head.codebooks):
                names_V = places(book_VZ, self.codebooks[level])
                codes_NL[rows_N, level] = names_V[own_NL[:, level]]
        return SemanticIds(vectors.item_ids, codes_NL, self.num_codes)

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` to rebuild this tokenizer."""
        arrays = super().arrays()
        if self.head:
            weights = self.head.encoder.state_dict()
            arrays |= {f"head_encoder.{k}": v.numpy() for k, v in weights.items()}
            arrays |= {f"head_codebook.{i}": b for i, b in enumerate(self.head.codebooks)}
        return arrays

    def state(self) -> dict[str, Any]:
        """Ids of the head items, and the report without its seconds."""
        report = {name: value for name, value in asdict(self.report).items() if name != "seconds"}
        return {"head": list(self.head.item_ids) if self.head else [], **report}

    @classmethod
    def from_arrays(
        cls, config: RqVaeConfig, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
    ) -> Self:
        """The tokenizer that `arrays` and `state` came from."""
        plain = super().from_arrays(config, arrays, state)
        num_items, tail_errors = (tuple(state[name]) for name in ("num_items", "tail_errors"))
        report = AcrqReport(num_items, state["num_cold"], tail_errors)
        if not state["head"]:
            return replace(plain, report=report)
        encoder, _ = cls.build(config, len(plain.mean_D))
        weights = {k: torch.tensor(v) for k, v in arrays.items() if k.startswith("head_encoder.")}
        encoder.load_state_dict({k.removeprefix("head_encoder."): w for k, w in weights.items()})
        books = tuple(arrays[f"head_codebook.{level}"] for level in range(config.num_levels))
        head = Head(encoder.eval(), books, np.array(state["head"], dtype=object))
        return replace(plain, head=head, report=report)


def popularity_groups(
    item_ids: Ids, cuts: Sequence[float], context: CatalogueContext | None
) -> tuple[tuple[Ints, ...], int]:
    """Rows of each group that is not empty, most popular first, and the number of cold items.

    An item belongs to the group in which the events of all items before it end; ties by item id.
    Cold items are in the last group. One group without a context or cuts.
    """
    everything = np.arange(len(item_ids))
    if context is None or not cuts:
        return (everything,), 0
    events_of = dict(zip(context.items.item_ids, context.train_counts_N.tolist(), strict=True))
    counts_N = np.array([events_of.get(item_id, 0) for item_id in item_ids], dtype=np.int64)
    if not counts_N.any():
        raise DataError(
            f"acrq: none of the {len(item_ids)} items has a training event, so there is no head; "
            "bring events, or take rqvae"
        )
    order_N = np.lexsort((item_ids.astype(str), -counts_N))
    before_N = np.cumsum(counts_N[order_N]) - counts_N[order_N]
    group_N = np.searchsorted(np.asarray(cuts) * counts_N.sum(), before_N, side="right")
    group_N[counts_N[order_N] == 0] = len(cuts)
    groups = [np.sort(order_N[group_N == group]) for group in range(len(cuts) + 1)]
    return tuple(group for group in groups if len(group)), int((counts_N == 0).sum())


class Trace:
    """Error of the last group after every epoch, and processor seconds that training took."""

    def __init__(self, points_ND: Tensor) -> None:
        rows = np.linspace(0, len(points_ND) - 1, min(len(points_ND), TRACED_ITEMS))
        self.points_ND = points_ND[rows.astype(np.int64)]
        self.errors: list[float] = []
        self.seconds: list[float] = []
        self.since = time.process_time()

    @torch.no_grad()
    def __call__(self, model: Autoencoder) -> None:
        """Note the error of `model` now; the time this takes does not count."""
        spent = time.process_time() - self.since
        points_ND = self.points_ND.to(model.books[0].device)
        books = model.codebooks()
        codes_NL, _ = quantise(model.latents(points_ND), books)
        quantised_NZ = torch.from_numpy(reconstruct(codes_NL, books)).to(points_ND.device)
        training = model.training
        rebuilt_ND = model.eval().decoder(quantised_NZ).float().cpu().numpy()
        model.train(training)
        self.errors.append(round(error_ratio(self.points_ND.numpy(), rebuilt_ND), 6))
        self.seconds.append(spent + (self.seconds[-1] if self.seconds else 0.0))
        self.since = time.process_time()


class Traced(Objective):
    """RQ-VAE's objective that notes the error of the last group."""

    def __init__(
        self, model: Autoencoder, points_ND: Tensor, config: RqVaeConfig, *, trace: Trace
    ) -> None:
        super().__init__(model, points_ND, config)
        self.trace = trace

    def after_epoch(self, epoch: int) -> None:
        """One more point of the trace."""
        self.trace(self.model)


class Anchored(Traced):
    """The objective of stage 2; with both weights and `replay` 0 it is RQ-VAE's.

    `head` is the model after stage 1, `rows_H` the items that it was trained on.
    """

    config: AcrqConfig

    def __init__(
        self,
        model: Autoencoder,
        points_ND: Tensor,
        config: AcrqConfig,
        *,
        head: Autoencoder,
        rows_H: Tensor,
        trace: Trace,
    ) -> None:
        super().__init__(model, points_ND, config, trace=trace)
        self.head, self.rows_H = head, rows_H
        books = head.codebooks()
        codes_HL, _ = quantise(head.latents(points_ND[rows_H]), books)
        self.quantised_HZ = torch.from_numpy(reconstruct(codes_HL, books)).to(points_ND.device)
        if config.freeze:
            self.fixed = tuple(map(len, books))
            for book, first in zip(model.books, self.fixed, strict=True):
                book.register_hook(partial(without_first, first=first))

    def extra(self, rows_B: Tensor, latents_BZ: Tensor, quantised: Quantised) -> Tensor | float:
        """Anchor, drift and replay, each a squared distance like the other terms."""
        terms: list[tuple[float, Tensor]] = []
        if self.config.anchor:
            for residual_BZ, book in zip(
                quantised.residuals[: self.config.anchored_levels], self.head.books, strict=False
            ):
                book_VZ = book.detach()
                anchors_BZ = book_VZ[nearest_codes(residual_BZ.detach(), book_VZ)]
                terms.append((self.config.anchor, residual_BZ - anchors_BZ))
        if self.config.drift:
            with torch.no_grad():
                frozen_BZ = self.head.encoder(self.points_ND[rows_B]).float()
            terms.append((self.config.drift, latents_BZ - frozen_BZ))
        if self.config.replay:
            drawn_B = torch.randint(len(self.rows_H), rows_B.shape).to(rows_B.device)
            rebuilt_BD = self.model.decoder(self.quantised_HZ[drawn_B]).float()
            terms.append((self.config.replay, self.points_ND[self.rows_H[drawn_B]] - rebuilt_BD))
        return sum((weight * gap.square().sum(dim=1).mean() for weight, gap in terms), 0.0)


def fit_rest(
    head: Autoencoder,
    points_ND: Tensor,
    groups: Sequence[Ints],
    extras: Sequence[int],
    config: AcrqConfig,
    trace: Trace,
) -> Autoencoder:
    """Stage 2: the model that names what is not the head, on the CPU in eval mode."""
    device = choose_device(config.device)
    rng = np.random.default_rng([config.seed, 2])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        points_ND, head = points_ND.to(device), head.to(device).requires_grad_(False)
        rest = points_ND[np.concatenate(groups[1:])]
        books = with_extra_rows(head.codebooks(), head.latents(rest), extras, rng)
        model = Autoencoder(
            copy.deepcopy(head.encoder).requires_grad_(True),
            copy.deepcopy(head.decoder).requires_grad_(True),
            [len(book) for book in books],
            config.latent,
        ).to(device)
        for parameter, book in zip(model.books, books, strict=True):
            parameter.data.copy_(torch.from_numpy(book))
        rows_H = torch.from_numpy(groups[0]).to(device)
        objective = Anchored(model, points_ND, config, head=head, rows_H=rows_H, trace=trace)
        objective.config = replace(config, epochs=max(config.epochs // len(groups[1:]), 1))
        for last in range(2, len(groups) + 1):
            train(objective, rng, torch.from_numpy(np.concatenate(groups[1:last])).to(device))
    head.cpu()
    return model.cpu().eval()


def with_extra_rows(
    books: Sequence[Floats], latents_NZ: Floats, extras: Sequence[int], rng: np.random.Generator
) -> list[Floats]:
    """Codebooks with extra rows at the end, started by k-means of the worse fitted items."""
    longer: list[Floats] = []
    for book_VZ, extra in zip(books, extras, strict=True):
        if extra:
            _, after_NZ = quantise(latents_NZ, [book_VZ])
            errors_N = np.square(after_NZ).sum(axis=1)
            worst = np.argsort(-errors_N, kind="stable")[: max(len(errors_N) // 2, 1)]
            rows_EZ = lloyd(latents_NZ[np.sort(worst)], extra, 10, rng)
            book_VZ = np.concatenate([book_VZ, rows_EZ])
        longer.append(book_VZ)
        _, latents_NZ = quantise(latents_NZ, [book_VZ])
    return longer


def without_first(gradient_VZ: Tensor, first: int) -> Tensor:
    """The gradient with zeros in the first rows, so that these never move."""
    return torch.cat([torch.zeros_like(gradient_VZ[:first]), gradient_VZ[first:]])


def places(part_VZ: Floats, book_VZ: Floats) -> Ints:
    """Where each row of `part` stands in `book`, whatever its order; the first of equal rows."""
    place = {row.tobytes(): i for i, row in reversed(list(enumerate(book_VZ)))}
    return np.array([place[row.tobytes()] for row in part_VZ], dtype=np.int64)
