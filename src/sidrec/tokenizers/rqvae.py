"""RQ-VAE: an autoencoder whose latent vector is written as a sum of codebook rows.

An MLP compresses an item vector, the latent is quantised level by level, and a mirrored MLP
rebuilds the vector from the chosen rows. The forward pass and the training loop are those of
`autoencoder`; other tokenizers of this family subclass `RqVae` and its config.

Source:  TIGER, arXiv:2305.05065, sec. 3.1; Lee et al., arXiv:2203.01941 (residual quantisation);
         the recipe of the LIGER authors' re-run (arXiv:2411.18814): standardised input, AdamW.
Differs: codebooks start from k-means over all encoded items, not over the first batch, and learn
         `codebook_rate` times as fast as the rest, so that few epochs suffice; codes no item
         chose restart at badly fitted items every `revive_every` epochs until `revive_until` of
         training, then rest; the learning rate follows one cosine cycle.
Cost:    O(epochs * N * (weights + L * V * latent)); 12,101 items take under a minute on two cores.
Shapes:  N items, D input width, Z latent width, L levels, V codes of a level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from sidrec.errors import ConfigError
from sidrec.tokenizers.autoencoder import (
    Autoencoder,
    Gradient,
    Objective,
    fit_autoencoder,
    mlps,
    run_rows,
)
from sidrec.tokenizers.quantisation import quantise, reconstruct
from sidrec.tokenizers.residual_kmeans import (
    Scale,
    codes_per_level,
    moments,
    require_items,
    require_width,
)
from sidrec.types import CatalogueContext, Floats, Ints, ItemVectors, SemanticIds


@dataclass(frozen=True, kw_only=True)
class RqVaeConfig:
    """Settings of `RqVae`; the defaults fit small catalogues in under a minute on a CPU.

    The recipe of the re-runs: hidden (512, 256), dropout 0.1, learning rate 1e-3, codebook rate 1,
    8,000 epochs of batches of 2,048, columns standardised.
    """

    method_name: ClassVar[str] = "rqvae"
    """How messages name the method."""

    num_codes: int | tuple[int, ...] = 256
    """V, the size of every level's codebook, or one size a level."""
    num_levels: int = 3
    """L, the length of a semantic ID."""
    hidden: tuple[int, ...] = (512,)
    """Widths between input and latent; the decoder mirrors them."""
    latent: int = 128
    """Z, the width of the codebooks."""
    beta: float = 0.25
    """Weight of the commitment term, which pulls latents to their codes."""
    dropout: float = 0.0
    """Share of hidden units dropped in training."""
    learning_rate: float = 3e-3
    """Peak rate of AdamW."""
    codebook_rate: float = 10.0
    """Rate of the codebooks as a multiple of `learning_rate`."""
    weight_decay: float = 0.1
    """Decay of AdamW, on matrices of the two MLPs only."""
    epochs: int = 60
    """Passes over the items."""
    batch_size: int = 512
    """Items a step."""
    revive_every: int = 10
    """Epochs between restarts of codes that no item chose; 0 never restarts them."""
    revive_until: float = 0.8
    """Share of the training after which codes are left alone."""
    standardise: Scale = "common"
    """`column`: every input column gets mean 0 and deviation 1; `common`: all columns share one
    factor, so that strong directions stay strong; `none`: unit vectors tend to collapse."""
    gradient: Gradient = "straight_through"
    """How a gradient passes the quantiser: `straight_through`, or `rotation` (the rotation trick).
    """
    bf16: bool = False
    """Run the MLPs of the training steps in bfloat16."""
    device: str = "auto"
    """Where to train: `auto`, `cpu`, `cuda`, …; a fitted tokenizer encodes on the CPU."""
    seed: int = 0
    """Seed of weights, batches, starting codes and restarts."""

    def __post_init__(self) -> None:
        for name in ("num_levels", "latent", "epochs", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{self.method_name}.{name} must be at least 1, got {value}")
        if min(self.hidden, default=1) < 1:
            raise ConfigError(
                f"{self.method_name}.hidden must be widths of at least 1, got {self.hidden}"
            )
        for name in ("beta", "weight_decay", "revive_every"):
            if not (value := getattr(self, name)) >= 0:
                raise ConfigError(f"{self.method_name}.{name} must not be negative, got {value}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"{self.method_name}.dropout must be in [0, 1), got {self.dropout}")
        for name in ("learning_rate", "codebook_rate"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ConfigError(
                    f"{self.method_name}.{name} must be a number above 0, got {value}"
                )
        codes_per_level(self.method_name, self.num_codes, self.num_levels)


@dataclass(frozen=True, eq=False)
class RqVae:
    """Fitted encoder, codebooks and decoder."""

    config_class: ClassVar[type] = RqVaeConfig
    config: RqVaeConfig
    encoder: nn.Module
    decoder: nn.Module
    codebooks: tuple[Floats, ...]
    """L arrays (V_l, Z)."""
    mean_D: Floats
    deviation_D: Floats

    @classmethod
    def fit(
        cls, vectors: ItemVectors, config: RqVaeConfig, context: CatalogueContext | None = None
    ) -> Self:
        """Train on all items. Same vectors, config, seed and thread count give the same codes."""
        sizes = codes_per_level(config.method_name, config.num_codes, config.num_levels)
        require_items(config.method_name, len(vectors), max(sizes))
        mean_D, deviation_D = moments(vectors.vectors, config.standardise)
        points_ND = torch.from_numpy((vectors.vectors - mean_D) / deviation_D)
        model = fit_autoencoder(points_ND, sizes, config, Objective, cls.build)
        return cls.of(model, config, mean_D, deviation_D)

    @classmethod
    def of(
        cls, model: Autoencoder, config: RqVaeConfig, mean_D: Floats, deviation_D: Floats
    ) -> Self:
        """The tokenizer that a trained model is."""
        books = model.codebooks()
        return cls(config, model.encoder, model.decoder, books, mean_D, deviation_D)

    @classmethod
    def build(cls, config: RqVaeConfig, width: int) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder for points of this width."""
        return mlps(config, width)

    @property
    def num_codes(self) -> tuple[int, ...]:
        """L codebook sizes, coarse to fine."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def project(self, vectors: ItemVectors) -> Floats:
        """Latents (N, Z), the space of the codebooks."""
        require_width(self.config.method_name, vectors, len(self.mean_D))
        return run_rows(self.encoder, (vectors.vectors - self.mean_D) / self.deviation_D)

    def encode(self, vectors: ItemVectors) -> SemanticIds:
        """Assign codes greedily, level by level. Items unseen in `fit` are welcome."""
        codes_NL, _ = quantise(self.project(vectors), self.codebooks)
        return SemanticIds(vectors.item_ids, codes_NL, self.num_codes)

    def decode(self, codes_NL: Ints) -> Floats:
        """Rebuild vectors (N, D); the first few columns of the codes give a coarser vector."""
        rebuilt_ND = run_rows(self.decoder, reconstruct(codes_NL, self.codebooks))
        return rebuilt_ND * self.deviation_D + self.mean_D

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` to rebuild this tokenizer."""
        arrays = {f"codebook.{level}": book for level, book in enumerate(self.codebooks)}
        for part, module in (("encoder", self.encoder), ("decoder", self.decoder)):
            arrays |= {f"{part}.{k}": v.numpy() for k, v in module.state_dict().items()}
        return {**arrays, "mean": self.mean_D, "deviation": self.deviation_D}

    def state(self) -> dict[str, Any]:
        """Nothing beyond config and arrays."""
        return {}

    @classmethod
    def from_arrays(
        cls, config: RqVaeConfig, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
    ) -> Self:
        """The tokenizer that `arrays` and `state` came from."""
        encoder, decoder = cls.build(config, len(arrays["mean"]))
        for part, module in (("encoder.", encoder), ("decoder.", decoder)):
            own = {k: v for k, v in arrays.items() if k.startswith(part)}
            module.load_state_dict({k.removeprefix(part): torch.tensor(v) for k, v in own.items()})
        books = tuple(arrays[f"codebook.{level}"] for level in range(config.num_levels))
        return cls(
            config, encoder.eval(), decoder.eval(), books, arrays["mean"], arrays["deviation"]
        )
