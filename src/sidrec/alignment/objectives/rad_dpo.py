"""RAD-DPO: likelihood of all positives, and a list-wise contrast that doubts similar negatives.

    r(y)   = log π(y) / |y|                                  no reference, no margin
    m_j    = w(sim_j) (r(y_w) − r_hat(y_j))
    L      = −1/P sum over positives of log π(y) + L_list
    L_list = softplus( −beta log sum_j e^(m_j) )             list_form "published", eq. 8
           = softplus( log sum_j e^(−beta m_j) )             list_form "sdpo", the sign of S-DPO

The published form puts its gradient on the negative that is already lowest, the other on the
hardest. TLGD: r_hat is r in value, without gradient through the codes that a negative shares with
the positive. RDRW: sim_j is the cosine between the representations of the two IDs, and with Q the
quartiles of recent similarities

    w = 1  if sim < Q25;   1/2  if sim > Q75;   1/2 + 1/2 / (1 + e^(sharpness (sim − Q50)))  between

which jumps at Q25 and Q75, as published.

Source:   RAD-DPO, arXiv:2602.23964 (v2), eq. 1 to 8.
Differs:  quartiles are "updated dynamically" in the paper: here from the last 4,096 similarities,
          every 256 steps; a step is a call in training mode. w = 1 until 4,096 are known. No
          gradient through sim and w. beta is not published. |y| counts the end of a shorter ID. A
          context without negatives has the likelihood alone.
Cost:     the P positives and M negatives under the policy alone, and their representations.
Shapes:   B contexts, P positives, M negatives, L levels, D width, W similarities kept, E pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.alignment.objectives.pairs import (
    log_sum_exp_of_real,
    mean_of_real,
    pair_parts,
    per_code,
)
from sidrec.alignment.objectives.s_dpo import softmax_nats
from sidrec.alignment.objectives.settings import require_not_negative, require_positive
from sidrec.alignment.objectives.sft import sft_nats
from sidrec.alignment.values import PreferenceLogProbs
from sidrec.errors import ConfigError, DataError

ListForm = Literal["published", "sdpo"]


@dataclass(frozen=True, kw_only=True)
class RadDpoConfig:
    """Settings of `RadDpo`."""

    beta: float = 1.0
    """Strength of the contrast; not published."""
    list_form: ListForm = "published"
    """Where beta stands: outside the log-sum-exp (easiest negative first), or inside with the sign
    of S-DPO (hardest first)."""
    sft_weight: float = 1.0
    """Weight of the likelihood of positives; 1 in the paper."""
    multi_label: bool = True
    """Learn the likelihood of all positives; otherwise of the first alone."""
    tlgd: bool = True
    """No gradient through the codes that a negative shares with the positive."""
    prefix: Literal["first", "any_positive"] = "first"
    """With which positive codes must be shared to lose their gradient."""
    rdrw: bool = True
    """Weigh negatives by similarity of representation; otherwise all weigh 1."""
    sharpness: float = 12.0
    """Slope of the weight around the median similarity; 12 in the paper."""
    window: int = 4096
    """Similarities that quartiles are taken of; all weights are 1 until so many are known."""
    refresh_steps: int = 256
    """Training steps between two quartiles."""
    freeze: bool = False
    """Keep the quartiles of the first `window` similarities."""

    def __post_init__(self) -> None:
        require_positive("rad_dpo", self, "beta", "sharpness")
        require_not_negative("rad_dpo", self, "sft_weight")
        for name in ("window", "refresh_steps"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"rad_dpo.{name} must be at least 1, got {value}")


class RadDpo(nn.Module):
    """Multi-label likelihood and list-wise contrast; the memory of similarities is in buffers."""

    config_class: ClassVar[type] = RadDpoConfig
    kind: ClassVar[str] = "preference"
    recent_W: Tensor
    quartiles: Tensor
    num_seen: Tensor
    age: Tensor

    def __init__(self, config: RadDpoConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("recent_W", torch.zeros(config.window))
        self.register_buffer("quartiles", torch.zeros(3))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))

    @property
    def needs_reference(self) -> bool:
        return False

    @property
    def needs_states(self) -> bool:
        """Whether representations of whole IDs are asked for."""
        return self.config.rdrw

    def forward(self, log_probs: PreferenceLogProbs) -> tuple[Tensor, dict[str, Tensor]]:
        """At equal scores log(1 + n^−beta) a context with n negatives, or log(1 + n), plus SFT."""
        config, real_BM = self.config, log_probs.has_negative_BM
        weights_BM, parts = self._weights(log_probs)
        shared_BM = log_probs.shared_BM if config.prefix == "first" else log_probs.shared_any_BM
        margins_BM = detached_margins(log_probs, shared_BM if config.tlgd else None)
        contrast_B = list_nats(weights_BM * margins_BM, real_BM, config.beta, config.list_form)
        nats = sft_nats(log_probs, first_only=not config.multi_label).mean()
        loss = contrast_B.mean() + config.sft_weight * nats
        with torch.no_grad():
            parts["sft"] = nats.detach()
            for codes in (1, 2):
                parts[f"shared_{codes}"] = _share(shared_BM >= codes, real_BM)
            parts["similar_preferred"] = _share(margins_BM < 0, real_BM & (weights_BM == 0.5))
        return loss, parts | pair_parts(log_probs, margins_BM, contrast_B)

    def _weights(self, log_probs: PreferenceLogProbs) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, M) w of each negative by the quartiles so far, and its histogram."""
        real_BM, ones_BM = log_probs.has_negative_BM, torch.ones_like(log_probs.negative_BM)
        if not self.config.rdrw:
            return ones_BM, {}
        with torch.no_grad():
            similarities_BM = first_cosines(log_probs)
            weights_BM = ones_BM
            if self.num_seen >= self.config.window:
                found_BM = similarity_weights(
                    similarities_BM, self.quartiles, self.config.sharpness
                )
                weights_BM = torch.where(real_BM, found_BM.to(ones_BM.dtype), ones_BM)
            if self.training:
                self._remember(similarities_BM[real_BM])
            return weights_BM, {
                "weight_mean": _share(weights_BM, real_BM),
                "weight_one": _share(weights_BM == 1, real_BM),
                "weight_half": _share(weights_BM == 0.5, real_BM),
                "similarity_median": self.quartiles[1].clone(),
            }

    def _remember(self, similarities_E: Tensor) -> None:
        """Take similarities in; quartiles when the window is first full and as they age."""
        window, seen = self.config.window, int(self.num_seen)
        if seen >= window:
            self._write(similarities_E)
            self.age += 1
            if self.age >= self.config.refresh_steps and not self.config.freeze:
                self._refresh()
            return
        self._write(similarities_E[: window - seen])
        if self.num_seen >= window:
            self._refresh()
            self._write(similarities_E[window - seen :])

    def _write(self, similarities_E: Tensor) -> None:
        kept_E = similarities_E[-self.config.window :]
        start = int(self.num_seen) + len(similarities_E) - len(kept_E)
        places_E = torch.arange(start, start + len(kept_E), device=kept_E.device)
        self.recent_W[places_E % self.config.window] = kept_E.to(self.recent_W.dtype)
        self.num_seen += len(similarities_E)

    def _refresh(self) -> None:
        at = torch.tensor([0.25, 0.5, 0.75], device=self.recent_W.device)
        self.quartiles.copy_(self.recent_W.quantile(at.to(self.recent_W.dtype)))
        self.age.zero_()


def detached_margins(log_probs: PreferenceLogProbs, shared_BM: Tensor | None) -> Tensor:
    """(B, M) r(y_w) − r_hat(y_j); the first `shared_BM` codes of a negative get no gradient."""
    negative_BML = log_probs.negative_BML
    if shared_BM is not None:
        places_L = torch.arange(negative_BML.shape[-1], device=negative_BML.device)
        shared_BML = places_L < shared_BM[..., None]
        negative_BML = torch.where(shared_BML, negative_BML.detach(), negative_BML)  # eq. 5
    chosen_B1 = per_code(log_probs.positive_BP, log_probs.positive_lengths_BP)[:, :1]
    return chosen_B1 - per_code(negative_BML.sum(-1), log_probs.negative_lengths_BM)


def first_cosines(log_probs: PreferenceLogProbs) -> Tensor:
    """(B, M) cosine of each negative's representation to that of the first positive (eq. 6)."""
    positive_BPD, negative_BMD = log_probs.positive_states_BPD, log_probs.negative_states_BMD
    if positive_BPD is None or negative_BMD is None:
        raise DataError(
            "rad_dpo.rdrw needs representations of whole IDs, got none; fill positive_states_BPD "
            "and negative_states_BMD, or set rdrw = false"
        )
    return F.cosine_similarity(positive_BPD[:, :1], negative_BMD, dim=-1)


def similarity_weights(similarities: Tensor, quartiles: Tensor, sharpness: float) -> Tensor:
    """The w of each similarity, in [1/2, 1]; `quartiles` are Q25, Q50 and Q75 (eq. 7)."""
    low, middle, high = quartiles.to(similarities.dtype)
    between = 0.5 + 0.5 * torch.sigmoid(-sharpness * (similarities - middle))
    weights = torch.where(similarities < low, torch.ones_like(between), between)
    return torch.where(similarities > high, torch.full_like(between, 0.5), weights)


def list_nats(
    weighted_BM: Tensor, real_BM: Tensor, beta: float, form: ListForm = "published"
) -> Tensor:
    """(B,) nats of the list of a context from its weighted margins; 0 without negatives."""
    if form == "sdpo":
        return softmax_nats(weighted_BM, real_BM, beta)
    nats_B = -F.logsigmoid(beta * log_sum_exp_of_real(weighted_BM, real_BM))  # eq. 8
    return torch.where(real_BM.any(1), nats_B, torch.zeros_like(nats_B))


def _share(values_BM: Tensor, real_BM: Tensor) -> Tensor:
    values = values_BM if values_BM.is_floating_point() else values_BM.float()
    return mean_of_real(values.reshape(1, -1), real_BM.reshape(1, -1))[0]
