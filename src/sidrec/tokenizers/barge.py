"""BARGE's dual codebooks: two independent IDs of an item, from the halves of a rotated vector.

A learnt orthogonal R, a product of Householder reflections, turns item vectors; its columns are
split into halves A and B, and each half is named by a residual quantiser of its own. Neither code
tuple refines the other: each is a full coarse-to-fine ID of half the vector, for a generator that
decodes both and merges what it finds (`generators.barge`). An ID is A's L codes, then B's.

    z~ = R z = [zA, zB],   q_c = sum of the L chosen rows of half c,   z^ = R' [qA, qB]
    loss = |z − z^|^2 + sum_c |sg(z~_c) − q_c|^2 + beta sum_c |z~_c − sg(q_c)|^2

R preserves lengths, so |z − z^|^2 = |z~ − q|^2, and straight-through its gradient is 0: what moves
zA and zB moves q as much. So R learns from the commitment term alone, codebooks from the codebook
term alone. As in `opq`, `codebooks` are as wide as the whole vector and zero outside their half:
residuals, `decode` and `collisions.reassign` work as for one residual quantiser of 2 L levels.

Source:  BARGE, arXiv:2607.21028, as its card gives it; Householder products in closed form: the
         compact WY form (Schreiber & Van Loan 1989).
Differs: vectors are centred and divided by one factor; codebooks start from residual k-means of the
         first rotation and restart dead codes (`autoencoder`); codebook sizes shrink with small
         catalogues; collisions of the whole ID are left to the policy of the run.
Cost:    a step O(D^3 + B D (D + L V)), the cube from the D reflections; encode O(N D (D + L V)).
Shapes:  N items, B batch, D width, K reflections, L levels of a half, V codes of a level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.errors import ConfigError, DataError
from sidrec.processes import choose_device
from sidrec.tokenizers.autoencoder import (
    Autoencoder,
    Objective,
    residual_quantise,
    revive,
    run_rows,
    start_codebooks,
    train,
)
from sidrec.tokenizers.opq import block_columns
from sidrec.tokenizers.quantisation import quantise, reconstruct
from sidrec.tokenizers.residual_kmeans import (
    Scale,
    codes_per_level,
    moments,
    require_items,
    require_width,
)
from sidrec.types import CatalogueContext, Floats, Ints, ItemVectors, SemanticIds

LARGEST = 512
ITEMS_PER_CODE = 16
"""Left to itself, the first level has at least so many items a code, and at most LARGEST codes."""


@dataclass(frozen=True, kw_only=True)
class BargeTokenizerConfig:
    """Settings of `BargeTokenizer`."""

    method_name: ClassVar[str] = "barge"
    weight_decay: ClassVar[float] = 0.0
    bf16: ClassVar[bool] = False

    num_codes: int | tuple[int, ...] | None = None
    """V, the size of the codebooks of each half, or one size a level. Left out: 512, 256, 128, 64
    as published, less where the catalogue has fewer than 16 items for each of the first codes."""
    num_levels: int = 4
    """L, the codes of each half; an ID has 2 L."""
    learn_rotation: bool = True
    """False keeps the random rotation that training starts from."""
    beta: float = 0.25
    """Weight of the commitment term, which turns R so that halves lie near their codes. R learns
    from nothing else and Adam divides by the size of a gradient, so its value hardly matters."""
    learning_rate: float = 3e-2
    """Peak rate of Adam, on the reflections."""
    codebook_rate: float = 1.0
    """Rate of the codebooks as a multiple of `learning_rate`."""
    epochs: int = 40
    """Passes over the items."""
    batch_size: int = 512
    """Items a step."""
    revive_every: int = 10
    """Epochs between restarts of codes that no item chose; 0 never restarts them."""
    revive_until: float = 0.8
    """Share of the training after which codes are left alone."""
    standardise: Scale = "common"
    """`column`: every input column gets mean 0 and deviation 1; `common`: all columns share one
    factor, so that strong directions stay strong; `none`: as they are."""
    device: str = "auto"
    """Where to train: `auto`, `cpu`, `cuda`, …; a fitted tokenizer encodes on the CPU."""
    seed: int = 0
    """Seed of the rotation, batches, starting codes and restarts."""

    def __post_init__(self) -> None:
        for name in ("num_levels", "epochs", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"barge.{name} must be at least 1, got {value}")
        for name in ("beta", "revive_every"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"barge.{name} must not be negative, got {value}")
        for name in ("learning_rate", "codebook_rate"):
            if (value := getattr(self, name)) <= 0:
                raise ConfigError(f"barge.{name} must be above 0, got {value}")
        if self.num_codes is not None:
            codes_per_level("barge", self.num_codes, self.num_levels)

    def id_sizes(self, num_items: int) -> tuple[int, ...]:
        """2 L codebook sizes for a catalogue of so many items."""
        if self.num_codes is not None:
            return 2 * codes_per_level("barge", self.num_codes, self.num_levels)
        first = min(LARGEST, max(4, 2 ** int(np.log2(max(num_items / ITEMS_PER_CODE, 1)))))
        return 2 * tuple(max(first >> level, 4) for level in range(self.num_levels))


class Rotation(nn.Module):
    """x -> R x for R = H_1 H_2 … H_K, reflections H = I − 2 v v' / |v|^2 of learnt v."""

    def __init__(self, reflections_KD: Tensor) -> None:
        super().__init__()
        self.reflections_KD = nn.Parameter(reflections_KD)

    def matrix(self) -> Tensor:
        """(D, D) R = I − V' T V with unit rows V; the inverse of T is 1/2 I + the part of V V'
        above its diagonal.
        """
        unit_KD = nn.functional.normalize(self.reflections_KD)
        inverse_KK = (unit_KD @ unit_KD.T).triu(1)
        half = 0.5 * torch.eye(len(unit_KD), dtype=unit_KD.dtype, device=unit_KD.device)
        turned_KD = torch.linalg.solve_triangular(inverse_KK + half, unit_KD, upper=True)
        identity = torch.eye(unit_KD.shape[1], dtype=unit_KD.dtype, device=unit_KD.device)
        return identity - unit_KD.T @ turned_KD

    def forward(self, points_ND: Tensor) -> Tensor:
        return points_ND @ self.matrix().T


class TurnedHalves(Autoencoder):
    """Rotation, and L codebooks (V_l, width of the half) for each half; the decoder is R'."""

    def __init__(self, rotation: Rotation, width: int, sizes: tuple[int, ...]) -> None:
        super().__init__(rotation, nn.Identity(), (), 0)
        self.columns = block_columns(width, 2)
        self.num_levels = len(sizes) // 2
        self.books = nn.ParameterList(
            nn.Parameter(torch.zeros(size, columns.stop - columns.start))
            for half, columns in enumerate(self.columns)
            for size in sizes[half * self.num_levels : (half + 1) * self.num_levels]
        )

    def halves(self) -> list[tuple[slice, list[nn.Parameter]]]:
        """Columns and codebooks of A and of B."""
        books, middle = list(self.books), self.num_levels
        return list(zip(self.columns, (books[:middle], books[middle:]), strict=True))


class HalvesObjective(Objective):
    """The loss of the module docstring, each half with a quantiser of its own."""

    model: TurnedHalves

    def __call__(self, rows_B: Tensor) -> Tensor:
        """The loss of a batch of item rows."""
        loss = torch.zeros((), device=self.points_ND.device)
        turned_BD = self.model.encoder(self.points_ND[rows_B])
        for columns, books in self.model.halves():
            half_BZ = turned_BD[:, columns]
            quantised = residual_quantise(half_BZ, books)
            total_BZ = torch.stack(quantised.rows).sum(0)
            for left, right, weight in (
                (half_BZ, quantised.output_BZ, 1.0),  # |z − z^|^2, measured before R'
                (half_BZ.detach(), total_BZ, 1.0),
                (half_BZ, total_BZ.detach(), self.config.beta),
            ):
                loss = loss + weight * (left - right).square().sum(dim=1).mean()
        return loss

    def revive(
        self, points_ND: Tensor, optimiser: torch.optim.Optimizer, rng: np.random.Generator
    ) -> None:
        """Restart the codes that none of these points chose, half by half."""
        latents_ND = self.model.latents(points_ND)
        for columns, books in self.model.halves():
            revive(latents_ND[:, columns], books, optimiser, rng)


@dataclass(frozen=True, eq=False)
class BargeTokenizer:
    """Fitted rotation and the codebooks of both halves."""

    config_class: ClassVar[type] = BargeTokenizerConfig
    config: BargeTokenizerConfig
    rotation: Rotation
    blocks: tuple[Floats, ...]
    """2 L arrays (V_l, width of the half), A's then B's."""
    mean_D: Floats
    deviation_D: Floats

    @classmethod
    def fit(
        cls,
        vectors: ItemVectors,
        config: BargeTokenizerConfig,
        context: CatalogueContext | None = None,
    ) -> Self:
        """Train on all items. Same vectors, config, seed and thread count give the same codes."""
        width, sizes = vectors.vectors.shape[1], config.id_sizes(len(vectors))
        if width < 2:
            raise DataError(f"barge needs vectors of at least 2 columns to halve, got {width}")
        require_items("barge", len(vectors), max(sizes))
        mean_D, deviation_D = moments(vectors.vectors, config.standardise)
        points_ND = torch.from_numpy((vectors.vectors - mean_D) / deviation_D)
        device = choose_device(config.device)
        rng = np.random.default_rng(config.seed)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(config.seed)
            rotation = Rotation(torch.randn(width, width))
            rotation.reflections_KD.requires_grad_(config.learn_rotation)
            model = TurnedHalves(rotation, width, sizes).to(device)
            points_ND = points_ND.to(device)
            latents_ND = model.latents(points_ND)
            for columns, books in model.halves():
                start_codebooks(latents_ND[:, columns], books, rng)
            objective: Any = HalvesObjective(model, points_ND, config)  # type: ignore[arg-type]
            train(objective, rng)
        return cls(config, model.cpu().eval().encoder, model.codebooks(), mean_D, deviation_D)  # type: ignore[arg-type]

    @property
    def num_codes(self) -> tuple[int, ...]:
        """2 L codebook sizes, A's then B's, each coarse to fine."""
        return tuple(len(block) for block in self.blocks)

    @cached_property
    def rotation_DD(self) -> np.ndarray:
        """R in float64."""
        exact = Rotation(self.rotation.reflections_KD.detach().double())
        return exact.matrix().detach().numpy()

    @cached_property
    def codebooks(self) -> tuple[Floats, ...]:
        """2 L arrays (V_l, D), zero outside the columns of their half."""
        books = tuple(np.zeros((len(block), len(self.mean_D)), np.float32) for block in self.blocks)
        for columns, half in zip(self.columns, self.levels_of_halves, strict=True):
            for level in half:
                books[level][:, columns] = self.blocks[level]
        return books

    @property
    def columns(self) -> list[slice]:
        """Columns of the rotated vector that A and B name."""
        return block_columns(len(self.mean_D), 2)

    @property
    def levels_of_halves(self) -> tuple[range, range]:
        """Levels of A and of B in an ID."""
        middle = len(self.blocks) // 2
        return range(middle), range(middle, 2 * middle)

    def project(self, vectors: ItemVectors) -> Floats:
        """Rotated vectors (N, D), the space of the codebooks."""
        require_width("barge", vectors, len(self.mean_D))
        return run_rows(self.rotation, (vectors.vectors - self.mean_D) / self.deviation_D)

    def encode(self, vectors: ItemVectors) -> SemanticIds:
        """Codes of A, then of B, each greedy level by level. Unseen items are welcome.

        Same codes as `quantise(self.project(vectors), self.codebooks)`.
        """
        points_ND = self.project(vectors)
        halves = [
            quantise(points_ND[:, columns], [self.blocks[level] for level in half])[0]
            for columns, half in zip(self.columns, self.levels_of_halves, strict=True)
        ]
        return SemanticIds(vectors.item_ids, np.concatenate(halves, axis=1), self.num_codes)

    def decode(self, codes_NL: Ints) -> Floats:
        """Rebuild vectors (N, D); a half without codes is taken at its mean."""
        rebuilt_ND = reconstruct(codes_NL, self.codebooks) @ self.rotation_DD.astype(np.float32)
        return rebuilt_ND * self.deviation_D + self.mean_D

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` to rebuild this tokenizer."""
        books = {f"codebook.{level}": block for level, block in enumerate(self.blocks)}
        reflections_KD = self.rotation.reflections_KD.detach().numpy()
        fixed = {"mean": self.mean_D, "deviation": self.deviation_D}
        return {**books, **fixed, "reflections": reflections_KD}

    def state(self) -> dict[str, Any]:
        """Nothing beyond config and arrays."""
        return {}

    @classmethod
    def from_arrays(
        cls,
        config: BargeTokenizerConfig,
        arrays: Mapping[str, np.ndarray],
        state: Mapping[str, Any],
    ) -> Self:
        """The tokenizer that `arrays` and `state` came from."""
        blocks = tuple(arrays[f"codebook.{level}"] for level in range(2 * config.num_levels))
        rotation = Rotation(torch.tensor(arrays["reflections"]))
        return cls(config, rotation, blocks, arrays["mean"], arrays["deviation"])
