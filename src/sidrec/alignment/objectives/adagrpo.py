"""AdaGRPO: likelihood everywhere, GRPO only where two diagnostics of the rollouts admit it.

    L = 1/B sum over contexts of  −log π(y*) + group_weight · g · L_GRPO,     no KL
    g = difficult · discriminable                                             0 or 1, no gradient

Difficult: the policy is unsure of the truth y*. Discriminable: the judge that gives the rewards
puts y* above the rollouts. Of the ways to say so,

    difficulty        "rank"             y* is below rank k_pi among the rollouts and itself
                      "absent"           no rollout is y*
                      "nll_quantile"     −log π(y*) is above a quantile
                      "entropy_quantile" so is the entropy of π renormalised over the rollouts
    discriminability  "auc"              mean over C of 1[r* > r_j] + ½ 1[r* = r_j] >= theta
                      "margin"           r* − max over C of r_j > margin
                      "margin_quantile"  that difference is at least a quantile
                      "rank"             at most k_r − 1 of C have r_j > r*

with C the rollouts that are not y* itself; a context where C is empty, or r* no number, is not
discriminable. Quantiles are fixed on the first contexts of training, which see likelihood alone.
Both gates look at the policy without dropout, whose noise would admit by chance.

Source:   arXiv:2606.08480, of which the abstract is known: the shape of the loss and that there
          are two diagnostics. Both formulas are ours.
Differs:  unknown. The mean is over all contexts: as the policy improves fewer are difficult, and
          the weight of rollouts decays with the admission rate, which is reported.
Cost:     as GRPO, and the reward of y*.
Shapes:   B contexts, G rollouts of a context, L levels, W contexts of the warm-up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sidrec.alignment.objectives.advantages import Std, group_parts, scored, standardised
from sidrec.alignment.objectives.grpo import group_loss, mixed
from sidrec.alignment.objectives.settings import require_not_negative, require_share
from sidrec.alignment.values import GroupLogProbs
from sidrec.errors import ConfigError, DataError

Difficulty = Literal["rank", "absent", "nll_quantile", "entropy_quantile"]
Discriminability = Literal["auc", "margin", "margin_quantile", "rank"]
Gate = Literal["both", "difficulty", "discriminability", "random", "open", "closed"]


@dataclass(frozen=True, kw_only=True)
class AdaGrpoConfig:
    """Settings of `AdaGrpo`."""

    group_weight: float = 1.0
    """lambda, weight of the rollouts of an admitted context."""
    gate: Gate = "both"
    """What admits a context; all but "both" are controls."""
    difficulty: Difficulty = "rank"
    """When the policy counts as unsure."""
    k_pi: int = 1
    """Rank of the truth up to which a context is easy."""
    quantile: float = 0.5
    """Quantile of the warm-up above which a context is difficult."""
    warmup_contexts: int = 4096
    """Contexts that fix the threshold of a quantile; they see likelihood alone. A margin counts
    where the truth can be compared."""
    discriminability: Discriminability = "auc"
    """When the judge counts as able to tell."""
    theta: float = 0.8
    """AUC of the truth above the rollouts from which a context is discriminable."""
    margin: float = 0.0
    """Reward by which the truth must beat all rollouts."""
    margin_quantile: float = 0.5
    """Quantile of the warm-up from which the truth's lead counts as discriminable."""
    k_r: int = 1
    """Rank of the truth by reward up to which a context is discriminable."""
    random_rate: float = 0.5
    """Share of contexts that the gate "random" admits."""
    clip: float = 0.2
    """eps: how far rho may move where rollouts are reused; 0 does not clip."""
    std: Std = "population"
    """Spread that rewards are divided by."""
    seed: int = 0
    """Of the gate "random"."""

    def __post_init__(self) -> None:
        require_not_negative("adagrpo", self, "group_weight", "clip")
        require_share("adagrpo", self, "quantile", "margin_quantile", "theta", "random_rate")
        for name in ("k_pi", "k_r", "warmup_contexts"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"adagrpo.{name} must be at least 1, got {value}")


class Quantile(nn.Module):
    """The quantile of the first W values that were seen; fixed from then on."""

    values_W: Tensor
    num_seen: Tensor
    threshold: Tensor

    def __init__(self, window: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.register_buffer("values_W", torch.zeros(window))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("threshold", torch.zeros(()))

    @property
    def known(self) -> bool:
        """Whether the threshold stands."""
        return int(self.num_seen) >= len(self.values_W)

    def see(self, values_E: Tensor) -> None:
        """Take values in until there are W."""
        seen = int(self.num_seen)
        kept_E = values_E[: len(self.values_W) - seen]
        self.values_W[seen : seen + len(kept_E)] = kept_E.to(self.values_W.dtype)
        self.num_seen += len(kept_E)
        if self.known:
            self.threshold.copy_(self.values_W.quantile(self.share))


class AdaGrpo(nn.Module):
    """Likelihood and gated GRPO; thresholds and the state of chance are in buffers."""

    config_class: ClassVar[type] = AdaGrpoConfig
    kind: ClassVar[str] = "group"
    needs_target_rewards: ClassVar[bool] = True
    """The rewards of the truth are asked for: to gate, and with other gates to report."""
    needs_still: ClassVar[bool] = True
    """So are log-probabilities without dropout."""
    num_draws: Tensor

    def __init__(self, config: AdaGrpoConfig) -> None:
        super().__init__()
        self.config = config
        difficulty = config.difficulty in ("nll_quantile", "entropy_quantile")
        difficulty = difficulty and config.gate in ("both", "difficulty")
        margin = config.discriminability == "margin_quantile"
        margin = margin and config.gate in ("both", "discriminability")
        window = config.warmup_contexts
        self.unsure = Quantile(window, config.quantile) if difficulty else None
        self.lead = Quantile(window, config.margin_quantile) if margin else None
        self.register_buffer("num_draws", torch.zeros((), dtype=torch.int64))

    @property
    def needs_reference(self) -> bool:
        return False

    def forward(self, log_probs: GroupLogProbs) -> tuple[Tensor, dict[str, Tensor]]:
        """With the gate open the mixture of likelihood and GRPO, closed likelihood, to the bit."""
        config = self.config
        scored_BG = scored(log_probs.rewards_BG, log_probs.real_BG)
        advantages_BG = standardised(log_probs.rewards_BG, scored_BG, std=config.std)
        with torch.no_grad():
            admitted_B, gate_parts = self._admitted(log_probs, scored_BG)
        group_B, parts = group_loss(log_probs, advantages_BG, scored_BG, clip=config.clip)
        group_B = torch.where(admitted_B, group_B, torch.zeros_like(group_B))
        weight = config.group_weight if bool(admitted_B.any()) else 0.0
        loss = mixed(log_probs.target_nats_B, group_B, 1.0, weight)
        return loss, parts | gate_parts | group_parts(log_probs, advantages_BG, scored_BG)

    @torch.no_grad()
    def diagnosed(self, log_probs: GroupLogProbs) -> tuple[Tensor, Tensor]:
        """(B,) whether each context is difficult, and whether it is discriminable; nothing moves.

        DataError without the reward of the truth; ConfigError for a quantile that is not known yet.
        """
        if not all(quantile.known for quantile in (self.unsure, self.lead) if quantile):
            raise ConfigError(
                f"adagrpo.difficulty = {self.config.difficulty!r} and discriminability = "
                f"{self.config.discriminability!r} are known after {self.config.warmup_contexts} "
                "contexts of training; take 'rank' and 'auc' to diagnose"
            )
        if log_probs.target_rewards_B is None:
            raise DataError("a diagnosis needs the reward of the truth, got none")
        scored_BG = scored(log_probs.rewards_BG, log_probs.real_BG)
        return self._difficult(log_probs), self._discriminable(log_probs, scored_BG)

    def _admitted(
        self, log_probs: GroupLogProbs, scored_BG: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) whether GRPO acts on each context, and the rates of both diagnostics."""
        gate = self.config.gate
        difficult_B = self._difficult(log_probs)
        parts = {"difficult_rate": difficult_B.float().mean()}
        everyone_B = torch.ones_like(difficult_B)
        discriminable_B = everyone_B
        if log_probs.target_rewards_B is not None:
            discriminable_B = self._discriminable(log_probs, scored_BG)
            parts["discriminable_rate"] = discriminable_B.float().mean()
            parts["gate_correlation"] = correlation(difficult_B, discriminable_B)
        elif gate in ("both", "discriminability"):
            raise DataError(
                f"adagrpo.gate = {gate!r} needs the reward of the truth, got none; fill "
                "target_rewards_B or choose the gate 'difficulty'"
            )
        admitted_B = {
            "both": difficult_B & discriminable_B,
            "difficulty": difficult_B,
            "discriminability": discriminable_B,
            "open": everyone_B,
            "closed": ~everyone_B,
        }.get(gate)
        if admitted_B is None:
            admitted_B = self._drawn(len(everyone_B)).to(everyone_B.device)
        return admitted_B, parts | {"admission_rate": admitted_B.float().mean()}

    def _difficult(self, log_probs: GroupLogProbs) -> Tensor:
        """(B,) whether the policy is unsure of the truth; nowhere while a quantile is unknown."""
        kind = self.config.difficulty
        if kind == "rank":
            return policy_ranks(log_probs) > self.config.k_pi
        if kind == "absent":
            return ~(log_probs.hits_BG & log_probs.real_BG).any(1)
        if self.unsure is None:
            return torch.zeros_like(log_probs.target_lengths_B, dtype=torch.bool)
        values_B = log_probs.diagnosed_nats_B
        if kind == "entropy_quantile":
            values_B = entropies(log_probs)
        if not self.unsure.known:
            if self.training:
                self.unsure.see(values_B)
            return torch.zeros_like(values_B, dtype=torch.bool)
        return values_B > self.unsure.threshold

    def _discriminable(self, log_probs: GroupLogProbs, scored_BG: Tensor) -> Tensor:
        """(B,) whether the judge puts the truth above the rollouts that are not it."""
        config, target_rewards_B = self.config, log_probs.target_rewards_B
        assert target_rewards_B is not None
        others_BG = scored_BG & ~log_probs.hits_BG
        rewards_BG = log_probs.rewards_BG
        comparable_B = others_BG.any(1) & target_rewards_B.isfinite()
        if config.discriminability == "auc":
            passed_B = auc(target_rewards_B, rewards_BG, others_BG) >= config.theta
        elif config.discriminability == "margin":
            beaten_BG = target_rewards_B[:, None] - rewards_BG > config.margin
            passed_B = (beaten_BG | ~others_BG).all(1)
        elif config.discriminability == "margin_quantile":
            best_B = rewards_BG.masked_fill(~others_BG, -torch.inf).amax(1)
            passed_B = self._leads(target_rewards_B - best_B, comparable_B)
        else:
            above_BG = (rewards_BG > target_rewards_B[:, None]) & others_BG
            passed_B = above_BG.sum(1) < config.k_r
        return passed_B & comparable_B

    def _leads(self, margins_B: Tensor, comparable_B: Tensor) -> Tensor:
        """(B,) whether the truth leads by enough; nowhere while the quantile is unknown."""
        nowhere_B = torch.zeros_like(comparable_B)
        if self.lead is None:
            return nowhere_B
        if not self.lead.known:
            if self.training:
                self.lead.see(margins_B[comparable_B])
            return nowhere_B
        return margins_B >= self.lead.threshold

    def _drawn(self, num_contexts: int) -> Tensor:
        """(B,) contexts admitted by chance, the same again for the same seed and draw."""
        random = torch.Generator().manual_seed((self.config.seed << 32) + int(self.num_draws))
        if self.training:
            self.num_draws += 1
        return torch.rand(num_contexts, generator=random) < self.config.random_rate


def policy_ranks(log_probs: GroupLogProbs) -> Tensor:
    """(B,) rank of the truth by whole-ID log-probability among it and the rollouts, from 1.

    Rollouts that are the truth do not count, nor do ties.
    """
    others_BG = log_probs.real_BG & ~log_probs.hits_BG
    likelier_BG = log_probs.diagnosed_BG > -log_probs.diagnosed_nats_B[:, None]
    return 1 + (likelier_BG & others_BG).sum(1)


def entropies(log_probs: GroupLogProbs) -> Tensor:
    """(B,) nats of the policy renormalised over the rollouts; 0 where there is none."""
    real_BG = log_probs.real_BG
    if not real_BG.shape[1]:
        return torch.zeros_like(log_probs.diagnosed_nats_B)
    whole_BG = log_probs.diagnosed_BG.masked_fill(~real_BG, -1e30)
    log_shares_BG = whole_BG.log_softmax(1)
    terms_BG = -log_shares_BG.exp() * log_shares_BG
    return torch.where(real_BG, terms_BG, torch.zeros_like(terms_BG)).sum(1)


def auc(target_rewards_B: Tensor, rewards_BG: Tensor, others_BG: Tensor) -> Tensor:
    """(B,) share of the other rollouts that the truth beats by reward, ties by half; 0 without."""
    target_B1 = target_rewards_B[:, None]
    wins_BG = (target_B1 > rewards_BG).double() + 0.5 * (target_B1 == rewards_BG).double()
    return (wins_BG * others_BG).sum(1) / others_BG.sum(1).clamp_min(1)


def correlation(a_B: Tensor, b_B: Tensor) -> Tensor:
    """Of two gates over the batch, in [−1, 1]; 0 where one of them is the same for all."""
    a_B, b_B = a_B.double(), b_B.double()
    a_B, b_B = a_B - a_B.mean(), b_B - b_B.mean()
    spread = ((a_B**2).sum() * (b_B**2).sum()).sqrt()
    return torch.where(spread > 1e-12, (a_B * b_B).sum() / spread.clamp_min(1e-12), spread * 0)
