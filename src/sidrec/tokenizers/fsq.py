"""Residual FSQ: an autoencoder whose few bounded latent numbers are written as digits.

Every latent number is squeezed into (-1, 1) and rounded to the middle of one of L_i equal cells;
the next level of the ID rounds what is left, on cells L_i times as narrow. So the levels of an ID
are the digits of the latent vector, coarse to fine. Nothing is learnt but the two MLPs: no
codebook, no codebook or commitment term, no dead codes to restart.

The grid of a level is a codebook like any other (`codebooks`, in the space of `project`): the
nearest row and the rounded number are the same thing, so collision policies work as they are.

Source:  FSQ: Mentzer et al., arXiv:2309.15505. Residual FSQ is ours.
Differs: cells are equally wide for odd and even L_i, (2 j + 1 - L_i) / L_i in the middle of cell j,
         so that what a level leaves fills the next level's grid exactly; in the paper the outermost
         codes lie at the bound and even L_i shift by half a step. Latent numbers are standardised
         before tanh (`Spread`).
         `parallel` gives every level latent numbers of its own: plain FSQ, no hierarchy.
Cost:    that of RQ-VAE without its codebooks; a step O(B * (weights + L * V * d)).
Shapes:  N items, D input width, d numbers a level, Z latent width (d, parallel: L * d), L levels,
         V = product of L_i codes of a level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.errors import ConfigError, DataError
from sidrec.processes import choose_device
from sidrec.tokenizers.autoencoder import Autoencoder, Objective, mlps, train
from sidrec.tokenizers.residual_kmeans import Scale, moments
from sidrec.tokenizers.rqvae import RqVae, RqVaeConfig
from sidrec.types import CatalogueContext, Floats, Ints, ItemVectors

SPREAD = 0.85
"""Deviation of the numbers before tanh at which normal ones become about uniform in (-1, 1)."""


class Training(RqVaeConfig):
    """Settings of the shared training loop, under the name that messages use."""

    method_name: ClassVar[str] = "fsq"


@dataclass(frozen=True, kw_only=True)
class FsqConfig:
    """Settings of `Fsq`."""

    method_name: ClassVar[str] = "fsq"

    levels: tuple[int, ...] = (3, 3, 3, 3, 3)
    """L_i, the cells of each latent number at one level of the ID; a level has as many codes as
    their product."""
    num_levels: int = 3
    """L, the length of a semantic ID."""
    parallel: bool = False
    """Every level of the ID rounds latent numbers of its own, not what the level before left."""
    hidden: tuple[int, ...] = (512,)
    """Widths between input and latent numbers; the decoder mirrors them."""
    dropout: float = 0.0
    """Share of hidden units dropped in training."""
    learning_rate: float = 3e-3
    """Peak rate of AdamW."""
    weight_decay: float = 0.1
    """Decay of AdamW, on matrices of the two MLPs."""
    epochs: int = 60
    """Passes over the items."""
    batch_size: int = 512
    """Items a step."""
    standardise: Scale = "common"
    """`column`: every input column gets mean 0 and deviation 1; `common`: all columns share one
    factor, so that strong directions stay strong; `none`: as they are."""
    bf16: bool = False
    """Run the MLPs of the training steps in bfloat16."""
    device: str = "auto"
    """Where to train: `auto`, `cpu`, `cuda`, …; a fitted tokenizer encodes on the CPU."""
    seed: int = 0
    """Seed of weights and batches."""

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2:
            raise ConfigError(
                f"fsq.levels must list at least one number, each at least 2, got {self.levels}"
            )
        if math.prod(self.levels) > 65_536:
            raise ConfigError(
                f"fsq.levels {self.levels} make {math.prod(self.levels)} codes a level; keep to "
                "65,536 and raise num_levels instead"
            )
        _ = self.training

    def sizes(self) -> tuple[int, ...]:
        """V of each level of the ID."""
        return (math.prod(self.levels),) * self.num_levels

    @property
    def training(self) -> RqVaeConfig:
        """The shared loop's settings: no commitment, nothing to restart."""
        own = {f.name for f in fields(RqVaeConfig)} & {f.name for f in fields(self)}
        width = len(self.levels) * (self.num_levels if self.parallel else 1)
        return Training(
            latent=width, beta=0.0, revive_every=0, **{name: getattr(self, name) for name in own}
        )


@dataclass(frozen=True, eq=False)
class Fsq(RqVae):
    """Fitted encoder and decoder; the codebooks are the grids that the config names."""

    config_class: ClassVar[type] = FsqConfig
    config: FsqConfig  # type: ignore[assignment]

    @classmethod
    def fit(  # type: ignore[override]
        cls, vectors: ItemVectors, config: FsqConfig, context: CatalogueContext | None = None
    ) -> Self:
        """Train on all items. Same vectors, config, seed and thread count give the same codes."""
        if len(vectors) < 2:
            raise DataError(f"fsq needs at least 2 items to fit, got {len(vectors)}; add items")
        mean_D, deviation_D = moments(vectors.vectors, config.standardise)
        device = choose_device(config.device)
        grids = codebooks(config)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(config.seed)
            points_ND = torch.from_numpy((vectors.vectors - mean_D) / deviation_D).to(device)
            encoder, decoder = cls.build(config, len(mean_D))
            model = Autoencoder(encoder, decoder, [len(g) for g in grids], grids[0].shape[1])
            model.books = nn.ParameterList(
                nn.Parameter(torch.from_numpy(grid), requires_grad=False) for grid in grids
            )
            model.to(device)
            rng = np.random.default_rng(config.seed)
            train(Objective(model, points_ND, config.training), rng)
        return cls.of(model.cpu().eval(), config, mean_D, deviation_D)  # type: ignore[arg-type]

    @classmethod
    def build(  # type: ignore[override]
        cls, config: FsqConfig, width: int
    ) -> tuple[nn.Module, nn.Module]:
        """Encoder, bounded by tanh, and decoder for points of this width."""
        encoder, decoder = mlps(config.training, width)
        return nn.Sequential(encoder, Spread(config.training.latent), nn.Tanh()), decoder


def grid(levels: tuple[int, ...]) -> Floats:
    """All (V, d) points of one level: row v holds the middles of the cells `digits(v)`."""
    sizes = np.array(levels)
    cells_Vd = digits(np.arange(math.prod(levels)), levels)
    return ((2 * cells_Vd + 1 - sizes) / sizes).astype(np.float32)


def digits(codes_N: Ints, levels: tuple[int, ...]) -> Ints:
    """Cells (N, d) of codes, the first number changing fastest."""
    return np.stack(np.unravel_index(codes_N, levels, order="F"), axis=1).astype(np.int64)


def number(cells_Nd: Ints, levels: tuple[int, ...]) -> Ints:
    """Codes (N,) of cells; the inverse of `digits`."""
    steps_d = np.cumprod((1, *levels[:-1]))
    return cells_Nd @ steps_d


def codebooks(config: FsqConfig) -> tuple[Floats, ...]:
    """L grids (V, Z), each L_i times as fine as the one before, or each on columns of its own."""
    points_Vd, d = grid(config.levels), len(config.levels)
    if not config.parallel:
        sizes = np.array(config.levels, dtype=np.float32)
        return tuple(points_Vd / sizes**level for level in range(config.num_levels))
    books = np.zeros((config.num_levels, len(points_Vd), config.num_levels * d), np.float32)
    for level, book_VZ in enumerate(books):
        book_VZ[:, level * d : (level + 1) * d] = points_Vd
    return tuple(books)


class Spread(nn.Module):
    """Every latent number with mean 0 and deviation `SPREAD`: over the batch in training, later
    by the running moments of training. Keeps tanh out of its flat ends, where codes would die.
    """

    mean_Z: Tensor
    deviation_Z: Tensor
    steps_1: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean_Z", torch.zeros(width))
        self.register_buffer("deviation_Z", torch.ones(width))
        self.register_buffer("steps_1", torch.zeros(1))

    def forward(self, numbers_BZ: Tensor) -> Tensor:
        """The numbers, standardised (B, Z)."""
        mean_Z, deviation_Z = self.mean_Z, self.deviation_Z
        if self.training and len(numbers_BZ) > 1:
            numbers_BZ = numbers_BZ.float()
            mean_Z, deviation_Z = numbers_BZ.mean(0), numbers_BZ.std(0).clamp_min(1e-6)
            with torch.no_grad():
                self.steps_1 += 1
                rate = max(0.1, 1 / self.steps_1.item())
                self.mean_Z.lerp_(mean_Z, rate)
                self.deviation_Z.lerp_(deviation_Z, rate)
        return SPREAD * (numbers_BZ - mean_Z) / deviation_Z
