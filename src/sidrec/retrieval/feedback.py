"""From generated IDs back to dense vectors, and from there to items that the beam did not write.

The codes of the best beams are decoded through the tokenizer's codebooks to points x(s_b) in the
space of the item vectors, and an index of all item vectors is asked for the items near each. With
p(b) the beam's probability, near(b) its nearest items and w the weight of the neighbourhood,

    p(i) = (1 - w) p_gen(i) + w sum_b p(b) softmax over i in near(b) of cos(x(s_b), x_i) / T

so the generator's distribution is smoothed over the space: items that it never writes, such as
those added after training, take part. With `form = "mean"` there is one point, the mean of the
x(s_b) weighted by p(b).

Source:   the seed survey's generative-to-dense feedback (no formula of its own; the smoothing above
          is ours); decoded IDs as TIGER's quantiser gives them (arXiv:2305.05065).
Differs:  w and T are chosen on validation; no refinement loop. An item that is in a list for both
          reasons counts once.
Cost:     the beam, and one probe of the index for each of its b IDs: exact below `EXACT_BELOW`
          items (one product of the points with all vectors), HNSW above.
Shapes:   B requests, W beams, P probed items of a beam, C candidates, N items, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from sidrec.contracts import Systems
from sidrec.decoding.rules import padded
from sidrec.errors import ConfigError, DataError
from sidrec.retrieval.fusion import places, union
from sidrec.retrieval.top_items import listed
from sidrec.types import PAD, Bools, Candidates, Examples, Floats, HistoryBatch, Ints

EXACT_BELOW = 200_000
"""Items up to which the index is exact."""
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
TEMPERATURES = (0.02, 0.05, 0.1)
"""What `weight` and `temperature` are chosen from."""
BLOCK_REQUESTS = 256


@dataclass(frozen=True, kw_only=True)
class FeedbackConfig:
    """Settings of `Feedback`."""

    num_beams: int = 20
    """W, the generator's best items whose IDs are decoded."""
    num_probes: int = 20
    """P, items near each decoded point that take part."""
    form: Literal["set", "mean"] = "set"
    """Probe around every decoded ID, or around their mean: which may lie where no item is."""
    weight: float | None = None
    """w, the neighbourhood's share in [0, 1]; left out: chosen on validation."""
    temperature: float | None = None
    """T of the cosines; left out: chosen on validation."""

    def __post_init__(self) -> None:
        for name in ("num_beams", "num_probes"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"feedback.{name} must be at least 1, got {value}")
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise ConfigError(f"feedback.weight must be in [0, 1], got {self.weight}")
        if self.temperature is not None and not self.temperature > 0:
            raise ConfigError(f"feedback.temperature must be above 0, got {self.temperature}")


@dataclass(frozen=True, eq=False)
class Feedback:
    """A `contracts.Retriever` over the generator, the codebooks and the item vectors."""

    config_class: ClassVar[type] = FeedbackConfig
    systems: Systems
    config: FeedbackConfig

    @classmethod
    def build(cls, systems: Systems, config: FeedbackConfig) -> Self:
        """DataError where the tokenizer cannot decode its codes."""
        tokenizer = systems.tokenizer
        if not hasattr(tokenizer.value, "decode"):
            raise DataError(
                f"feedback needs a tokenizer that decodes codes to vectors, {tokenizer.name} does "
                "not; residual_kmeans and the RQ-VAE family do"
            )
        return cls(systems, config)

    @property
    def max_length(self) -> int:
        """Longest history that the generator reads."""
        return self.systems.max_length(self.systems.generator.name)

    @cached_property
    def rebuilt_ND(self) -> Floats:
        """(N, D) x(s_i), the unit vector that the codes of each item stand for."""
        tokenizer, codes_NL = self.systems.tokenizer.value, self.systems.ids.codes
        return unit(tokenizer.decode(codes_NL[:, : len(tokenizer.num_codes)]))  # no counter digit

    @cached_property
    def near(self) -> Any:
        """The index of all item vectors, as unit vectors."""
        return vector_index(unit(self.systems.vectors.vectors))

    def points(self, rows_BW: Ints, probs_BW: Floats) -> tuple[Floats, Floats]:
        """(B, W', D) unit points to probe around, and the probability (B, W') of each."""
        points_BWD = self.rebuilt_ND[rows_BW.clip(min=0)]
        if self.config.form == "set":
            return points_BWD, probs_BW
        mean_B1D = unit((points_BWD * probs_BW[..., None]).sum(1, keepdims=True))
        return mean_B1D, probs_BW.sum(1, keepdims=True)

    def pooled(
        self,
        batch: HistoryBatch,
        exclude: Sequence[Ints] | None = None,
        keep_N: Bools | None = None,
        k: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Candidates (B, C), −1 for none, the generator's probability of each, and the probes:
        their rows (B, W', P), cosines, and the probability (B, W') of the beam each came from.
        """
        own = self.systems.generate(batch, max(self.config.num_beams, k), exclude, keep_N)
        rows_BW = own.rows_BK
        probs_BW = np.where(rows_BW == PAD, 0.0, np.exp(own.scores_BK.astype(np.float64)))
        points_BWD, weights_BW = self.points(
            rows_BW[:, : self.config.num_beams], probs_BW[:, : self.config.num_beams]
        )
        num_requests, num_points, width = points_BWD.shape
        probes = min(self.config.num_probes, len(self.rebuilt_ND))
        flat = np.ascontiguousarray(points_BWD.reshape(-1, width), dtype=np.float32)
        cosines, found = self.near.search(flat, probes)
        cosines_BWP = torch.from_numpy(cosines.reshape(num_requests, num_points, probes))
        found_BWP = torch.from_numpy(found.reshape(num_requests, num_points, probes))
        forbidden_BWP = forbidden(found_BWP, exclude, keep_N)
        found_BWP = found_BWP.masked_fill(forbidden_BWP, PAD)
        cosines_BWP = cosines_BWP.masked_fill(forbidden_BWP, -torch.inf)
        rows_BC = union([torch.from_numpy(rows_BW), found_BWP.flatten(1)])
        generated_BC = spread(rows_BC, torch.from_numpy(rows_BW), torch.from_numpy(probs_BW))
        return rows_BC, generated_BC, found_BWP, cosines_BWP, torch.from_numpy(weights_BW)

    def tuned(
        self, examples: Examples, on_batch: Callable[[int, int], None] | None = None
    ) -> FeedbackConfig:
        """Weight and temperature with the best NDCG@10; score ties count against the target."""
        config = self.config
        weights = WEIGHTS if config.weight is None else (config.weight,)
        temperatures = TEMPERATURES if config.temperature is None else (config.temperature,)
        gains = np.zeros((len(weights), len(temperatures)))
        for start in range(0, len(examples), BLOCK_REQUESTS):
            rows = np.arange(start, min(start + BLOCK_REQUESTS, len(examples)))
            batch = HistoryBatch.from_histories(
                examples.histories, rows, max_length=self.max_length
            ).to(self.systems.device)
            pool = self.pooled(batch)
            here_BC = pool[0] == torch.from_numpy(examples.targets[rows])[:, None]
            for t, temperature in enumerate(temperatures):
                near_BC = neighbourhood(pool, temperature)
                for w, weight in enumerate(weights):
                    scores_BC = mixed(pool, near_BC, weight)
                    places_B = places(scores_BC, here_BC)
                    ranks = places_B[places_B < 10].double() + 2
                    gains[w, t] += float((1 / ranks.log2()).sum())
            if on_batch is not None:
                on_batch(int(rows[-1]) + 1, len(examples))
        w, t = np.unravel_index(int(gains.argmax()), gains.shape)
        return replace(config, weight=weights[w], temperature=temperatures[t])

    def answer(
        self,
        batch: HistoryBatch,
        k: int,
        exclude: Sequence[Ints] | None = None,
        keep_N: Bools | None = None,
    ) -> Candidates:
        """The k best candidates by the log of p(i)."""
        weight, temperature = self.config.weight, self.config.temperature
        if weight is None or temperature is None:
            raise ConfigError(
                "feedback.weight and temperature are not chosen; set them, or tune on validation"
            )
        pool = self.pooled(batch, exclude, keep_N, k)
        return listed(pool[0], mixed(pool, neighbourhood(pool, temperature), weight), k)


Pool = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""What `Feedback.pooled` gives."""


def neighbourhood(pool: Pool, temperature: float) -> Tensor:
    """(B, C) sum over beams of p(b) times the softmax of the probed items' cosines."""
    rows_BC, _, found_BWP, cosines_BWP, weights_BW = pool
    kernel_BWP = (cosines_BWP.double() / temperature).softmax(-1).nan_to_num(nan=0.0)
    shares_BWP = kernel_BWP * weights_BW[..., None]
    return spread(rows_BC, found_BWP.flatten(1), shares_BWP.flatten(1))


def mixed(pool: Pool, near_BC: Tensor, weight: float) -> Tensor:
    """(B, C) log p(i), −inf for no item; what only a part without weight knows comes last."""
    rows_BC, generated_BC = pool[:2]
    mass_BC = (1 - weight) * generated_BC + weight * near_BC
    rest_BC = torch.finfo(torch.float64).tiny * (1 + generated_BC + near_BC)
    return mass_BC.maximum(rest_BC).log().masked_fill(rows_BC == PAD, -torch.inf)


def spread(rows_BC: Tensor, given_BM: Tensor, values_BM: Tensor) -> Tensor:
    """(B, C) for every candidate (ascending, then −1) the sum of the values that name it."""
    end = torch.iinfo(torch.int64).max
    sorted_BC = rows_BC.masked_fill(rows_BC == PAD, end)
    places_BM = torch.searchsorted(sorted_BC, given_BM.contiguous()).clamp_max(rows_BC.shape[1] - 1)
    values_BM = values_BM.double().masked_fill(given_BM == PAD, 0.0)
    return values_BM.new_zeros(rows_BC.shape).scatter_add(1, places_BM, values_BM)


def forbidden(rows_BWP: Tensor, exclude: Sequence[Ints] | None, keep_N: Bools | None) -> Tensor:
    """(B, W, P) places that hold no item, or one that the rules do not let through."""
    found_BWP = rows_BWP == PAD
    if keep_N is not None:
        found_BWP = found_BWP | ~torch.from_numpy(keep_N)[rows_BWP.clamp_min(0)]
    if exclude is not None:
        found_BWP = found_BWP | (rows_BWP[..., None] == padded(exclude)[:, None, None]).any(-1)
    return found_BWP


def vector_index(vectors_ND: Floats) -> Any:
    """A faiss index of unit vectors by inner product: exact for few items, HNSW for many."""
    import faiss

    width = vectors_ND.shape[1]
    if len(vectors_ND) < EXACT_BELOW:
        index = faiss.IndexFlatIP(width)
    else:
        index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
    index.add(np.ascontiguousarray(vectors_ND, dtype=np.float32))
    return index


def unit(vectors: Floats) -> Floats:
    """The vectors at length 1; those of length 0 stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def finds_itself(feedback: Feedback) -> float:
    """Share of items, in [0, 1], whose decoded ID lies nearest to themselves or to a sibling that
    shares the ID: how far the road from codes to vectors and back can be trusted.
    """
    _, nearest_N1 = feedback.near.search(feedback.rebuilt_ND.astype(np.float32), 1)
    codes_NL = feedback.systems.ids.codes
    return float((codes_NL[nearest_N1[:, 0]] == codes_NL).all(axis=1).mean())
