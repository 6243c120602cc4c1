"""An autoencoder with a residual quantiser in its middle: what RQ-VAE and its descendants share.

The forward pass, the two ways a gradient can pass the quantiser, one training loop, and dead-code
revival. A descendant subclasses `Objective`: another choice of codes, further terms of the loss.

Source:  Lee et al. 2022, arXiv:2203.01941 (residual quantisation); van den Oord et al. 2017,
         arXiv:1711.00937 (straight-through, commitment); Fifty et al. 2024, arXiv:2410.06424
         (rotation trick).
Differs: codebooks start from k-means over all encoded items, not over the first batch; one rotation
         turns the latent to the sum of its rows, not one a level.
Cost:    a step O(B * (weights + L * V * Z)); revival one pass over all items.
Shapes:  N items, B batch, D input width, Z latent width, L levels, V codes of a level.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.errors import ServiceError
from sidrec.processes import choose_device
from sidrec.tokenizers.quantisation import lloyd, quantise
from sidrec.types import Floats

if TYPE_CHECKING:
    from sidrec.tokenizers.rqvae import RqVaeConfig

Gradient = Literal["straight_through", "rotation"]
Choose = Callable[[Tensor, Tensor, int], Tensor]
"""(residual_BZ, book_VZ, level) -> codes_B."""


class Autoencoder(nn.Module):
    """Encoder, L codebooks (V_l, Z), decoder."""

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, sizes: Sequence[int], latent: int
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.books = nn.ParameterList(nn.Parameter(torch.zeros(size, latent)) for size in sizes)

    def codebooks(self) -> tuple[Floats, ...]:
        """The codebooks as they are now, on the CPU."""
        return tuple(book.detach().cpu().numpy().copy() for book in self.books)

    @torch.no_grad()
    def latents(self, points_ND: Tensor) -> Floats:
        """Encoder outputs (N, Z) without dropout."""
        training = self.encoder.training
        self.encoder.eval()
        latents = torch.cat([self.encoder(points) for points in points_ND.split(8192)])
        self.encoder.train(training)
        return latents.float().cpu().numpy()


@dataclass(frozen=True)
class Quantised:
    """What the quantiser makes of a batch of latents."""

    output_BZ: Tensor
    """Sum of the chosen rows; its gradient goes to the latents."""
    codes_BL: Tensor
    rows: tuple[Tensor, ...]
    """L times (B, Z): chosen rows, with the gradient of their codebook."""
    residuals: tuple[Tensor, ...]
    """L times (B, Z): what each level had to explain, with the gradient of the latents."""

    @property
    def codebook_term(self) -> Tensor:
        """Squared distance that moves rows to residuals, summed over Z and L, averaged over B."""
        return _distance((r.detach(), e) for r, e in zip(self.residuals, self.rows, strict=True))

    @property
    def commitment_term(self) -> Tensor:
        """The same distance, moving residuals to rows."""
        return _distance((r, e.detach()) for r, e in zip(self.residuals, self.rows, strict=True))


def nearest_codes(residual_BZ: Tensor, book_VZ: Tensor, level: int = 0) -> Tensor:
    """Codes (B,) of the rows at least Euclidean distance."""
    return (residual_BZ @ book_VZ.T - 0.5 * book_VZ.square().sum(dim=1)).argmax(dim=1)


def residual_quantise(
    latents_BZ: Tensor,
    books: Iterable[Tensor],
    choose: Choose = nearest_codes,
    gradient: Gradient = "straight_through",
    depths_B: Tensor | None = None,
) -> Quantised:
    """Choose a row a level for what the levels before left over.

    With `depths_B` only the first so many levels of each item make its output; all levels choose.
    """
    residual_BZ, total_BZ = latents_BZ, torch.zeros_like(latents_BZ)
    codes, rows, residuals = [], [], []
    for level, book_VZ in enumerate(books):
        with torch.no_grad():
            codes.append(choose(residual_BZ, book_VZ, level))
        rows.append(book_VZ[codes[-1]])
        residuals.append(residual_BZ)
        row_BZ = rows[-1].detach()
        residual_BZ = residual_BZ - row_BZ
        total_BZ = total_BZ + (row_BZ if depths_B is None else row_BZ * (level < depths_B)[:, None])
    pass_gradient = rotate if gradient == "rotation" else straight_through
    return Quantised(
        output_BZ=pass_gradient(latents_BZ, total_BZ),
        codes_BL=torch.stack(codes, dim=1),
        rows=tuple(rows),
        residuals=tuple(residuals),
    )


def straight_through(latents_BZ: Tensor, quantised_BZ: Tensor) -> Tensor:
    """`quantised_BZ`, passing its gradient to `latents_BZ` as it is."""
    return latents_BZ + (quantised_BZ - latents_BZ).detach()


def rotate(latents_BZ: Tensor, quantised_BZ: Tensor) -> Tensor:
    """`quantised_BZ`, passing its gradient through the rotation and scaling that map z to it.

    R = I + 2 q z' − (q + z)(q + z)' / (1 + q·z) for unit z and q turns z to q; the Jacobian is
    |q|/|z| R. Opposite or zero vectors have no such R and pass straight through.
    """
    with torch.no_grad():
        z_length, q_length = (v.norm(dim=1, keepdim=True) for v in (latents_BZ, quantised_BZ))
        z_BZ = latents_BZ / z_length.clamp_min(1e-12)
        q_BZ = quantised_BZ / q_length.clamp_min(1e-12)
        sum_BZ, cosine = z_BZ + q_BZ, (z_BZ * q_BZ).sum(1, keepdim=True)
        usable = (cosine > -1 + 1e-4) & (z_length > 1e-8) & (q_length > 1e-8)
    turned_BZ = (
        latents_BZ
        + 2 * q_BZ * (z_BZ * latents_BZ).sum(1, keepdim=True)
        - sum_BZ * (sum_BZ * latents_BZ).sum(1, keepdim=True) / (1 + cosine).clamp_min(1e-4)
    ) * (q_length / z_length.clamp_min(1e-12))
    carrier_BZ = torch.where(usable, turned_BZ, latents_BZ)
    return carrier_BZ + (quantised_BZ - carrier_BZ).detach()


class Objective:
    """The loss of RQ-VAE: reconstruction + codebook term + beta * commitment term.

    Descendants override `reconstruction`, `choose`, `depths`, `extra` or `after_epoch`; squared
    errors are summed over columns and averaged over items.
    """

    fixed: Sequence[int] = ()
    """How many rows at the start of each codebook never restart; () means none."""

    def __init__(self, model: Autoencoder, points_ND: Tensor, config: RqVaeConfig) -> None:
        self.model, self.points_ND, self.config = model, points_ND, config

    def __call__(self, rows_B: Tensor) -> Tensor:
        """The loss of a batch of item rows."""
        points_BD = self.points_ND[rows_B]
        latents_BZ = self.model.encoder(points_BD).float()
        quantised = residual_quantise(
            latents_BZ, self.model.books, self.choose, self.config.gradient, self.depths(rows_B)
        )
        rebuilt_BD = self.model.decoder(quantised.output_BZ).float()
        return (
            self.reconstruction(rows_B, points_BD, rebuilt_BD)
            + quantised.codebook_term
            + self.config.beta * quantised.commitment_term
            + self.extra(rows_B, latents_BZ, quantised)
        )

    def reconstruction(self, rows_B: Tensor, points_BD: Tensor, rebuilt_BD: Tensor) -> Tensor:
        """What the rebuilt points lack."""
        return (points_BD - rebuilt_BD).square().sum(dim=1).mean()

    def choose(self, residual_BZ: Tensor, book_VZ: Tensor, level: int) -> Tensor:
        """Codes (B,) of one level in training."""
        return nearest_codes(residual_BZ, book_VZ, level)

    def depths(self, rows_B: Tensor) -> Tensor | None:
        """Levels (B,) that each item's output is made of; None: all."""
        return None

    def extra(self, rows_B: Tensor, latents_BZ: Tensor, quantised: Quantised) -> Tensor | float:
        """Further terms of the loss."""
        return 0.0

    def after_epoch(self, epoch: int) -> None:
        """Called after every pass over the items, before dead codes restart; epochs from 1."""

    def revive(
        self, points_ND: Tensor, optimiser: torch.optim.Optimizer, rng: np.random.Generator
    ) -> None:
        """Restart the codes that none of these points chose."""
        revive(self.model.latents(points_ND), self.model.books, optimiser, rng, self.fixed)


def fit_autoencoder(
    points_ND: Tensor,
    sizes: Sequence[int],
    config: RqVaeConfig,
    objective: Callable[[Autoencoder, Tensor, Any], Objective] = Objective,
    build: Callable[[RqVaeConfig, int], tuple[nn.Module, nn.Module]] | None = None,
) -> Autoencoder:
    """A trained model on the CPU in eval mode; global randomness is left as it was."""
    device = choose_device(config.device)
    rng = np.random.default_rng(config.seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        encoder, decoder = (build or mlps)(config, points_ND.shape[1])
        model = Autoencoder(encoder, decoder, sizes, config.latent).to(device)
        points_ND = points_ND.to(device)
        start_codebooks(model.latents(points_ND), model.books, rng)
        train(objective(model, points_ND, config), rng)
    return model.cpu().eval()


def train(objective: Objective, rng: np.random.Generator, rows_N: Tensor | None = None) -> None:
    """All epochs of `objective.config` over its items, or over `rows_N` of them."""
    model, config = objective.model, objective.config
    points_ND = objective.points_ND
    used_N = torch.arange(len(points_ND), device=points_ND.device) if rows_N is None else rows_N
    books = [book for book in model.books if book.requires_grad]
    weights = [
        w for part in (model.encoder, model.decoder) for w in part.parameters() if w.requires_grad
    ]
    groups: list[dict[str, Any]] = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.ndim == 1]},
        {"params": books, "lr": config.learning_rate * config.codebook_rate},
    ]
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=0.0)
    num_steps = config.epochs * math.ceil(len(used_N) / config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        [group["lr"] for group in optimiser.param_groups],
        num_steps,
        pct_start=0.1 if num_steps == 20 else 0.05,  # at 20 it would divide by 0.05 * 20 - 1
    )
    for epoch in range(1, config.epochs + 1):
        order_N = used_N[torch.from_numpy(rng.permutation(len(used_N))).to(used_N.device)]
        for step, rows_B in enumerate(order_N.split(config.batch_size)):
            with torch.autocast(points_ND.device.type, torch.bfloat16, enabled=config.bf16):
                loss = objective(rows_B)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            if not torch.isfinite(loss.detach()):
                name = config.method_name
                raise ServiceError(
                    f"{name}: the loss is {loss.item()} in epoch {epoch}, batch {step}; "
                    f"lower {name}.learning_rate or set {name}.standardise = 'column'"
                )
        objective.after_epoch(epoch)
        due = config.revive_every and epoch % config.revive_every == 0
        if due and books and epoch <= config.revive_until * config.epochs:
            objective.revive(points_ND[used_N], optimiser, rng)


def revive(
    latents_NZ: Floats,
    books: Iterable[nn.Parameter],
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
    fixed: Sequence[int] = (),
) -> int:
    """Restart codes no item chose at residuals of badly fitted items; the number restarted.

    Codebooks that do not learn, and the first `fixed` rows of each, stay as they are.
    """
    residuals_NZ, total = latents_NZ, 0
    for level, book in enumerate(books):
        first = fixed[level] if fixed else 0
        rows_VZ = book.detach().cpu().numpy()
        codes_NL, after_NZ = quantise(residuals_NZ, [rows_VZ])
        counts_V = np.bincount(codes_NL[:, 0], minlength=len(rows_VZ))
        errors_N = np.square(after_NZ).sum(axis=1, dtype=np.float64)
        dead = first + np.flatnonzero(counts_V[first:] == 0)[: np.count_nonzero(errors_N)]
        if dead.size and book.requires_grad:
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


def start_codebooks(
    latents_NZ: Floats, books: Iterable[nn.Parameter], rng: np.random.Generator
) -> None:
    """Fill the codebooks by residual k-means of the latents, on at most 256 items a code."""
    books = list(books)
    wanted = 256 * max(len(book) for book in books)
    if len(latents_NZ) > wanted:
        latents_NZ = latents_NZ[np.sort(rng.choice(len(latents_NZ), wanted, replace=False))]
    for book in books:
        rows_VZ = lloyd(latents_NZ, len(book), 10, rng)
        _, latents_NZ = quantise(latents_NZ, [rows_VZ])
        book.data.copy_(torch.from_numpy(rows_VZ))


def mlps(config: RqVaeConfig, width: int) -> tuple[nn.Module, nn.Module]:
    """Encoder and mirrored decoder between `width` and `config.latent`."""
    widths = (width, *config.hidden, config.latent)
    return mlp(widths, config.dropout), mlp(widths[::-1], config.dropout)


def mlp(widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear layers of these widths with ReLU (and dropout) between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])


@torch.no_grad()
def run_rows(module: nn.Module, rows: Floats) -> Floats:
    """Module outputs as float32, computed in float64 so that no row depends on its batch."""
    exact = copy.deepcopy(module).double().eval()
    blocks = [torch.from_numpy(rows[s : s + 8192]).double() for s in range(0, len(rows), 8192)]
    nothing = torch.zeros(0, rows.shape[1], dtype=torch.float64)
    return torch.cat([exact(block).float() for block in blocks or [nothing]]).numpy()


def _distance(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([(a - b).square().sum(dim=1).mean() for a, b in pairs]).sum()
