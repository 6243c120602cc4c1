"""RQ-VAE: an autoencoder whose latent vector is written as a sum of codebook rows.

An MLP compresses an item vector, the latent is quantised level by level, and a mirrored MLP
rebuilds the vector from the chosen rows. The gradient passes the quantiser straight through.

Source:  TIGER, arXiv:2305.05065, sec. 3.1; Lee et al., arXiv:2203.01941 (residual quantisation);
         the recipe of the LIGER authors' re-run (arXiv:2411.18814): standardised input, AdamW.
Differs: codebooks start from k-means over all encoded items, not over the first batch, and learn
         `codebook_rate` times as fast as the rest, so that few epochs suffice; codes no item
         chose restart at badly fitted items every `revive_every` epochs until `revive_until` of
         training, then rest; the learning rate follows one cosine cycle.
Cost:    O(epochs * N * (weights + L * V * latent)); 12,101 items take under a minute on two cores.
Shapes:  N items, B batch, D input width, Z latent width, L levels, V codes of a level.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.errors import ConfigError, ServiceError
from sidrec.tokenizers.quantisation import lloyd, quantise, reconstruct
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
    bf16: bool = False
    """Run the MLPs of the training steps in bfloat16."""
    device: str = "auto"
    """Where to train: `auto`, `cpu`, `cuda`, …; a fitted tokenizer encodes on the CPU."""
    seed: int = 0
    """Seed of weights, batches, starting codes and restarts."""

    def __post_init__(self) -> None:
        for name in ("num_levels", "latent", "epochs", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"rqvae.{name} must be at least 1, got {value}")
        for name in ("beta", "weight_decay", "revive_every"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"rqvae.{name} must not be negative, got {value}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"rqvae.dropout must be in [0, 1), got {self.dropout}")
        for name in ("learning_rate", "codebook_rate"):
            if (value := getattr(self, name)) <= 0:
                raise ConfigError(f"rqvae.{name} must be above 0, got {value}")
        codes_per_level("rqvae", self.num_codes, self.num_levels)


@dataclass(frozen=True, eq=False)
class RqVae:
    """Fitted encoder, codebooks and decoder."""

    config_class: ClassVar[type] = RqVaeConfig
    config: RqVaeConfig
    encoder: nn.Sequential
    decoder: nn.Sequential
    codebooks: tuple[Floats, ...]
    """L arrays (V_l, Z)."""
    mean_D: Floats
    deviation_D: Floats

    @classmethod
    def fit(
        cls, vectors: ItemVectors, config: RqVaeConfig, context: CatalogueContext | None = None
    ) -> Self:
        """Train on all items. Same vectors, config, seed and thread count give the same codes."""
        sizes = codes_per_level("rqvae", config.num_codes, config.num_levels)
        require_items("rqvae", len(vectors), max(sizes))
        mean_D, deviation_D = moments(vectors.vectors, config.standardise)
        points_ND = torch.from_numpy((vectors.vectors - mean_D) / deviation_D)
        encoder, decoder, books = train(points_ND, sizes, config)
        return cls(config, encoder, decoder, books, mean_D, deviation_D)

    @property
    def num_codes(self) -> tuple[int, ...]:
        """L codebook sizes, coarse to fine."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def project(self, vectors: ItemVectors) -> Floats:
        """Latents (N, Z), the space of the codebooks."""
        require_width("rqvae", vectors, len(self.mean_D))
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
        widths = (len(arrays["mean"]), *config.hidden, config.latent)
        encoder, decoder = mlp(widths, 0.0), mlp(widths[::-1], 0.0)
        for part, module in (("encoder.", encoder), ("decoder.", decoder)):
            own = {k: v for k, v in arrays.items() if k.startswith(part)}
            module.load_state_dict({k.removeprefix(part): torch.tensor(v) for k, v in own.items()})
        books = tuple(arrays[f"codebook.{level}"] for level in range(config.num_levels))
        return cls(
            config, encoder.eval(), decoder.eval(), books, arrays["mean"], arrays["deviation"]
        )


def mlp(widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear layers of these widths with ReLU (and dropout) between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])


@torch.no_grad()
def run_rows(module: nn.Sequential, rows: Floats) -> Floats:
    """Module outputs as float32, computed in float64 so that no row depends on its batch."""
    exact = copy.deepcopy(module).double().eval()
    blocks = (torch.from_numpy(rows[s : s + 8192]).double() for s in range(0, len(rows), 8192))
    outputs = [exact(block).float() for block in blocks]
    last = [layer for layer in module if isinstance(layer, nn.Linear)][-1]
    return torch.cat([*outputs, torch.empty(0, last.out_features)]).numpy()


def straight_through(latents_BZ: Tensor, books: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Quantised latents (B, Z) with the gradient of `latents_BZ`; codebook and commitment terms.

    Both terms are squared distances summed over Z and levels, averaged over B.
    """
    residual_BZ, chosen_BZ = latents_BZ, torch.zeros_like(latents_BZ)
    codebook_term = commitment_term = latents_BZ.new_zeros(())
    for book_VZ in books:
        with torch.no_grad():  # argmin |r - e|^2 = argmax r.e - |e|^2 / 2
            codes_B = (residual_BZ @ book_VZ.T - 0.5 * book_VZ.square().sum(dim=1)).argmax(dim=1)
        rows_BZ = book_VZ[codes_B]
        codebook_term = codebook_term + (residual_BZ.detach() - rows_BZ).square().sum(1).mean()
        commitment_term = commitment_term + (residual_BZ - rows_BZ.detach()).square().sum(1).mean()
        residual_BZ = residual_BZ - rows_BZ.detach()
        chosen_BZ = chosen_BZ + rows_BZ.detach()
    return latents_BZ + (chosen_BZ - latents_BZ).detach(), codebook_term, commitment_term


def rqvae_loss(
    points_BD: Tensor, encoder: nn.Module, decoder: nn.Module, books: Sequence[Tensor], beta: float
) -> Tensor:
    """Reconstruction + codebook term + beta * commitment term, squared errors per item."""
    latents_BZ = encoder(points_BD).float()
    quantised_BZ, codebook_term, commitment_term = straight_through(latents_BZ, books)
    reconstruction = (points_BD - decoder(quantised_BZ).float()).square().sum(dim=1).mean()
    return reconstruction + codebook_term + beta * commitment_term


def train(
    points_ND: Tensor, sizes: Sequence[int], config: RqVaeConfig
) -> tuple[nn.Sequential, nn.Sequential, tuple[Floats, ...]]:
    """Encoder, decoder and codebooks after `config.epochs` passes; global randomness untouched."""
    device = torch.device(pick_device(config.device))
    rng = np.random.default_rng(config.seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        widths = (points_ND.shape[1], *config.hidden, config.latent)
        encoder = mlp(widths, config.dropout).to(device)
        decoder = mlp(widths[::-1], config.dropout).to(device)
        points_ND = points_ND.to(device)
        books = [nn.Parameter(torch.zeros(size, config.latent, device=device)) for size in sizes]
        start_codebooks(_latents(encoder, points_ND), books, rng)
        weights = [*encoder.parameters(), *decoder.parameters()]
        rate = config.learning_rate
        groups: list[dict[str, Any]] = [
            {"params": [w for w in weights if w.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [w for w in weights if w.ndim == 1]},
            {"params": books, "lr": rate * config.codebook_rate},
        ]
        optimiser = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0)
        steps_per_epoch = math.ceil(len(points_ND) / config.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            [group["lr"] for group in optimiser.param_groups],
            config.epochs * steps_per_epoch,
            pct_start=0.05,
        )
        for epoch in range(1, config.epochs + 1):
            order_N = torch.from_numpy(rng.permutation(len(points_ND))).to(device)
            for step, rows_B in enumerate(order_N.split(config.batch_size)):
                with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
                    loss = rqvae_loss(points_ND[rows_B], encoder, decoder, books, config.beta)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
                if not torch.isfinite(loss.detach()):
                    raise ServiceError(
                        f"rqvae: the loss is {loss.item()} in epoch {epoch}, batch {step}; "
                        "lower rqvae.learning_rate or set rqvae.standardise = 'column'"
                    )
            due = config.revive_every and epoch % config.revive_every == 0
            if due and epoch <= config.revive_until * config.epochs:
                revive(_latents(encoder, points_ND), books, optimiser, rng)
    fitted = tuple(book.detach().cpu().numpy() for book in books)
    return encoder.cpu().eval(), decoder.cpu().eval(), fitted


def revive(
    latents_NZ: Floats,
    books: Sequence[nn.Parameter],
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
) -> int:
    """Restart codes no item chose at residuals of badly fitted items; the number restarted."""
    residuals_NZ, total = latents_NZ, 0
    for book in books:
        rows_VZ = book.detach().cpu().numpy()
        codes_NL, after_NZ = quantise(residuals_NZ, [rows_VZ])
        counts_V = np.bincount(codes_NL[:, 0], minlength=len(rows_VZ))
        errors_N = np.square(after_NZ).sum(axis=1, dtype=np.float64)
        dead = np.flatnonzero(counts_V == 0)[: np.count_nonzero(errors_N)]
        if dead.size:
            chosen = rng.choice(
                len(errors_N), dead.size, replace=False, p=errors_N / errors_N.sum()
            )
            with torch.no_grad():
                book[dead] = torch.from_numpy(residuals_NZ[chosen]).to(book.device)
                for moment in optimiser.state.get(book, {}).values():
                    if moment.shape == book.shape:
                        moment[dead] = 0
            total += dead.size
        residuals_NZ = after_NZ
    return total


def pick_device(name: str) -> str:
    """`auto` means a GPU where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


@torch.no_grad()
def _latents(encoder: nn.Sequential, points_ND: Tensor) -> Floats:
    encoder.eval()
    latents = torch.cat([encoder(points) for points in points_ND.split(8192)]).cpu().numpy()
    encoder.train()
    return latents


def start_codebooks(
    latents_NZ: Floats, books: Sequence[nn.Parameter], rng: np.random.Generator
) -> None:
    """Fill the codebooks by residual k-means of the latents, on at most 256 items a code."""
    wanted = 256 * max(len(book) for book in books)
    if len(latents_NZ) > wanted:
        latents_NZ = latents_NZ[np.sort(rng.choice(len(latents_NZ), wanted, replace=False))]
    for book in books:
        rows_VZ = lloyd(latents_NZ, len(book), 10, rng)
        _, latents_NZ = quantise(latents_NZ, [rows_VZ])
        book.data.copy_(torch.from_numpy(rows_VZ))
