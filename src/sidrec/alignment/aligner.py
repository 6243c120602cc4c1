"""One step of alignment: contexts in, the objective's loss out; `training.train` does the rest.

A preference objective sees the log-probabilities of each context's positives and negatives; a
group objective those of the policy's own rollouts with their rewards, and of the truth. Rollouts
are made without dropout. They come from the policy as it is (`sync_steps` = 1: ratios are 1 in
value, nothing is ever clipped), or from a snapshot that follows every so many steps, so that ratios
mean something.

The semantic judge is asked about whole groups, a share of them drawn anew each step.

Cost:     a preference step is one pass over B (P + M) IDs; a group step adds the rollouts. A
          reference, and a snapshot, each add the memory of the policy and one pass.
Shapes:   B contexts, P positives, M negatives, S shown, G rollouts, L levels, N items, D width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sidrec.alignment.contexts import ContextBatch
from sidrec.alignment.judge.choosing import chosen_groups
from sidrec.alignment.log_probs import id_lengths, packed_log_probs
from sidrec.alignment.rewards.mixture import Mixture
from sidrec.alignment.rollouts import RolloutConfig, roll_out
from sidrec.alignment.values import GroupLogProbs, PreferenceLogProbs, Rollouts
from sidrec.contracts import Objective, Reward
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.errors import ConfigError
from sidrec.types import HistoryBatch

TOLD = (
    "silent_share", "missing_rewards", "dropped_negatives", "dropped_positives", "no_negatives",
    "hit_share", "admission_rate", "difficult_rate", "discriminable_rate", "judged_share",
    "sign_agreement", "mean_lambda",
)  # fmt: skip
"""Parts of the loss that a report keeps: what was silent, missing, dropped, admitted, judged."""
Parts = dict[str, Tensor]
Fill = Literal["none", "uniform", "popularity", "beam"]


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What one step does beside its objective."""

    num_negatives: int = 3
    """M, negatives of a context: of those shown and left first, drawn anew each step."""
    fill: Fill = "uniform"
    """Where the rest of them comes from: the catalogue uniformly, by training events, or the
    policy's own best IDs that are no positive (beam); none leaves them out."""
    judged_share: float = 0.05
    """Share of groups that the semantic judge is asked about."""
    judged_choice: Literal["uniform", "hard"] = "uniform"
    """Which: any, or those first whose other reward is not constant."""
    sync_steps: int = 1
    """Steps between snapshots of the policy that rollouts come from; 1: the policy itself."""
    dropout: bool = True
    """Keep the policy's dropout in the loss (never in rollouts, reference or gates). With it, a
    contrast with a reference is not 0 at the start."""
    own_loss_weight: float = 0.0
    """Weight of the generator's own training loss on the same histories."""
    track_kl: bool = True
    """Log how far the policy is from where it started, at the cost of a reference. With dropout its
    noise counts as distance, except for adagrpo, which looks at the policy without it anyway."""

    def __post_init__(self) -> None:
        if self.num_negatives < 0:
            raise ConfigError(f"num_negatives must not be negative, got {self.num_negatives}")
        if self.fill not in ("none", "uniform", "popularity", "beam"):
            raise ConfigError(f"fill must be none, uniform, popularity or beam, got {self.fill!r}")
        if self.judged_choice not in ("uniform", "hard"):
            raise ConfigError(f"judged_choice must be uniform or hard, got {self.judged_choice!r}")
        if not 0 <= self.judged_share <= 1:
            raise ConfigError(f"judged_share must be in [0, 1], got {self.judged_share}")
        if self.sync_steps < 1:
            raise ConfigError(f"sync_steps must be at least 1, got {self.sync_steps}")
        if self.sync_steps > 1 and self.dropout:
            raise ConfigError(
                "rollouts of a snapshot are compared with the policy code by code, which dropout "
                "would blur; set dropout = false with sync_steps above 1"
            )
        if self.own_loss_weight < 0:
            raise ConfigError(f"own_loss_weight must not be negative, got {self.own_loss_weight}")


class Aligner(nn.Module):
    """A policy under alignment. Its state holds the policy, the objective's memory, the value head
    and the snapshot, so that a run resumes to the bit.
    """

    codes_NL: Tensor
    counts_N: Tensor
    steps: Tensor
    told_sums: Tensor
    told_steps: Tensor
    judge_calls: Tensor
    """What the judge's budget has paid, so that a resumed run does not pay it again."""

    def __init__(
        self,
        policy: nn.Module,
        objective: Objective,
        *,
        index: PrefixIndex,
        counts_N: Tensor,
        config: StepConfig,
        rollouts: RolloutConfig,
        rewards: Mixture | None = None,
        judge: Reward | None = None,
        judge_weight: float = 1.0,
        reference: nn.Module | None = None,
        renormalise: bool = True,
    ) -> None:
        super().__init__()
        if config.sync_steps > 1 and objective.kind != "group":
            raise ConfigError("sync_steps is for objectives that roll out; leave it at 1 here")
        if objective.kind == "group" and rewards is None:
            raise ConfigError(
                f"{type(objective).__name__} learns from rewards, got none; add a [[rewards]] "
                'section, e.g. name = "rank_aware"'
            )
        self.policy, self.index, self.settings = policy, index, config
        self.config: Any = config
        """What a resumed run is compared by; `aligning` puts all its settings here."""
        self.rollouts, self.rewards = rollouts, rewards
        self.judge, self.judge_weight = judge, judge_weight
        self.renormalise = renormalise
        self.objective = objective
        self.max_length = int(policy.max_length)  # type: ignore[arg-type]
        rows_N = torch.arange(len(counts_N), device=index.device)
        symbols_NL = index.codes(rows_N)
        ends_L = torch.tensor(index.num_codes, device=index.device)
        codes_NL = torch.where(symbols_NL >= ends_L, -1, symbols_NL)
        self.register_buffer("codes_NL", codes_NL, persistent=False)
        self.register_buffer("counts_N", counts_N, persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("told_sums", torch.zeros(len(TOLD), dtype=torch.float64))
        self.register_buffer("told_steps", torch.zeros(len(TOLD), dtype=torch.float64))
        self.register_buffer("judge_calls", torch.zeros((), dtype=torch.long))
        needs_reference = objective.needs_reference or config.track_kl
        reference = frozen(reference or policy) if needs_reference else None
        self._reference = (reference,)  # a tuple hides it from the state of the module
        self.snapshot = frozen(policy) if config.sync_steps > 1 else None
        self.value_head: nn.Module | None = None
        self.value_snapshot: nn.Module | None = None
        if getattr(objective, "needs_values", False):
            width = self._state_width()
            self.value_head = nn.Sequential(
                nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
            ).to(index.device)
            if self.snapshot is not None:
                self.value_snapshot = frozen(self.value_head)

    @property
    def reference(self) -> nn.Module | None:
        """The frozen weights that alignment started from, or those of another bundle."""
        return self._reference[0]

    def no_weight_decay(self, name: str) -> bool:
        """As the policy has it."""
        own = getattr(self.policy, "no_weight_decay", lambda name: False)
        return own(name.removeprefix("policy."))

    # ------------------------------------------------------------------ a step

    def augment(self, batch: ContextBatch, generator: torch.Generator) -> ContextBatch:
        """The batch with M drawn negatives in place of all that were shown."""
        most, fill = self.settings.num_negatives, self.settings.fill
        if self.objective.kind != "preference" or not most:
            return batch
        keys_BS = torch.rand(batch.shown_BS.shape, generator=generator)
        keys_BS = keys_BS.masked_fill(batch.shown_BS < 0, -1.0)
        order_BS = keys_BS.argsort(dim=1, descending=True)[:, :most]
        shown_BM = batch.shown_BS.gather(1, order_BS)
        shown_BM = nn.functional.pad(shown_BM, (0, most - shown_BM.shape[1]), value=-1)
        if fill in ("uniform", "popularity"):
            counts_N = self.counts_N.cpu().float()
            weights_N = counts_N if fill == "popularity" else torch.ones_like(counts_N)
            drawn_M = weights_N.multinomial(
                shown_BM.numel(), replacement=True, generator=generator
            ).view_as(shown_BM)
            shown_BM = torch.where(shown_BM < 0, drawn_M, shown_BM)
        return replace(batch, shown_BS=shown_BM)

    def loss(self, batch: ContextBatch) -> tuple[Tensor, Parts]:
        """The objective's mean loss of these contexts, and what to log."""
        self.policy.train(self.training and self.settings.dropout)
        if self.objective.kind == "preference":
            loss, parts = self.preference_loss(batch)
        else:
            loss, parts = self.group_loss(batch)
        if self.settings.own_loss_weight:
            own, _ = self.policy.loss(batch.with_targets())  # type: ignore[operator]
            parts["own_loss"] = own.detach()
            loss = loss + self.settings.own_loss_weight * own
        if self.training:
            for place, name in enumerate(TOLD):
                if name in parts:
                    self.told_sums[place] += parts[name].detach()
                    self.told_steps[place] += 1
        return loss, parts

    def told(self) -> dict[str, float]:
        """Means over the training steps since this was last asked, of what was seen in them."""
        seen = zip(TOLD, self.told_sums.tolist(), self.told_steps.tolist(), strict=True)
        means = {name: total / steps for name, total, steps in seen if steps}
        self.told_sums.zero_()
        self.told_steps.zero_()
        return means

    # ------------------------------------------------------------------ preferences

    def preference_loss(self, batch: ContextBatch) -> tuple[Tensor, Parts]:
        """Positives against negatives."""
        negatives_BM = batch.shown_BS
        if self.settings.fill == "beam":
            negatives_BM = self.filled_from_beam(batch)
        positive_BPL, same = without_repeats(self.codes_of(batch.positives_BP))
        negative_BML, dropped = without_repeats(self.codes_of(negatives_BM), positive_BPL)
        log_probs, kl = self.preference_log_probs(batch, positive_BPL, negative_BML)
        loss, parts = self.objective(log_probs)
        parts = {**parts, "dropped_negatives": dropped, "dropped_positives": same}
        if kl is not None:
            parts["kl"] = kl
        return loss, parts

    def preference_log_probs(
        self, batch: ContextBatch, positive_BPL: Tensor, negative_BML: Tensor
    ) -> tuple[PreferenceLogProbs, Tensor | None]:
        """Everything in one packed pass, and one of the reference; and the KL of the positives."""
        num_positives = positive_BPL.shape[1]
        codes_BKL = torch.cat([positive_BPL, negative_BML], dim=1)
        packed = self.packed(self.policy, batch, codes_BKL)
        lengths_BK = id_lengths(codes_BKL, self.index.widths, self.index.num_codes)
        reference_BK, kl = None, None
        if self.reference is not None:
            with torch.no_grad():
                reference_BK = self.packed(self.reference, batch, codes_BKL).token_BKL.sum(-1)
            moved = packed.token_BKL.detach().sum(-1) - reference_BK
            real_BP = lengths_BK[:, :num_positives] > 0
            kl = (moved[:, :num_positives] * real_BP).sum() / real_BP.sum().clamp_min(1)
        shared_BMP = shared_codes(negative_BML, positive_BPL)
        states = packed.states_BKLD
        log_probs = PreferenceLogProbs(
            positive_BPL=packed.token_BKL[:, :num_positives],
            negative_BML=packed.token_BKL[:, num_positives:],
            positive_lengths_BP=lengths_BK[:, :num_positives],
            negative_lengths_BM=lengths_BK[:, num_positives:],
            shared_BM=shared_BMP[..., 0],
            shared_any_BM=shared_BMP.amax(-1),
            reference_positive_BP=None if reference_BK is None else reference_BK[:, :num_positives],
            reference_negative_BM=None if reference_BK is None else reference_BK[:, num_positives:],
            positive_states_BPD=None if states is None else states[:, :num_positives, -1],
            negative_states_BMD=None if states is None else states[:, num_positives:, -1],
        )
        return log_probs, kl

    @torch.no_grad()
    def filled_from_beam(self, batch: ContextBatch) -> Tensor:
        """(B, M) what was shown, and where that is too little the policy's best IDs."""
        most = self.settings.num_negatives
        num_wanted = most + batch.positives_BP.shape[1]
        found = self.rolled_out(batch, replace(self.rollouts, size=max(num_wanted, 2), how="beam"))
        taken_BG1P = found.codes_BGL[:, :, None] == self.codes_of(batch.positives_BP)[:, None]
        good_BG = found.valid_BG & ~taken_BG1P.all(-1).any(-1)
        candidates_BX = torch.cat([batch.shown_BS, found.rows_BG.masked_fill(~good_BG, -1)], dim=1)
        order_BX = (candidates_BX < 0).long().argsort(dim=1, stable=True)
        return candidates_BX.gather(1, order_BX)[:, :most]

    # ------------------------------------------------------------------ rollouts

    def group_loss(self, batch: ContextBatch) -> tuple[Tensor, Parts]:
        """The policy's own IDs against each other."""
        rollouts = self.rolled_out(batch, self.rollouts)
        log_probs, parts = self.group_log_probs(rollouts)
        loss, told = self.objective(log_probs)
        return loss, parts | told

    def group_log_probs(self, rollouts: Rollouts) -> tuple[GroupLogProbs, Parts]:
        """Rewards of the rollouts; log-probabilities of them and the truth in one packed pass.

        Rewards of the truth only for an objective that reads them: a judge may charge for each.
        """
        batch, size = rollouts.batch, rollouts.codes_BGL.shape[1]
        rewards_BG, parts = self.scored(rollouts)
        target_rewards_B = None
        if getattr(self.objective, "needs_target_rewards", False):
            target_rewards_B = self.scored(rollouts.of_targets())[0][:, 0]
        semantic_BG, judged_BG = self.judged(rollouts, rewards_BG)
        codes_BKL = torch.cat([rollouts.codes_BGL, rollouts.target_codes_BL[:, None]], dim=1)
        packed = self.packed(self.policy, batch, codes_BKL)
        policy_BGL = packed.token_BKL[:, :size]
        still_BKL = None
        if self.policy.training and getattr(self.objective, "needs_still", False):
            still_BKL = self.still(batch, codes_BKL)
        reference_BGL, values_BGL, sampled_values_BGL = None, None, None
        if self.reference is not None:
            with torch.no_grad():
                reference_BGL = self.packed(self.reference, batch, rollouts.codes_BGL).token_BKL
            now_BGL = policy_BGL.detach() if still_BKL is None else still_BKL[:, :size]
            moved = reference_BGL - now_BGL
            kl_BGL = torch.expm1(moved) - moved  # k3, see GRPO
            parts["kl"] = kl_BGL.sum() / rollouts.real_BG.sum().clamp_min(1)
        if self.value_head is not None:
            assert packed.states_BKLD is not None
            states_BGLD = packed.states_BKLD[:, :size, :-1].detach().float()
            values_BGL = self.value_head(states_BGLD)[..., 0]
            sampled_values_BGL = self.sampled_values(rollouts, values_BGL)
        on_policy = self.snapshot is None
        log_probs = GroupLogProbs(
            policy_BGL=policy_BGL,
            sampled_BGL=policy_BGL.detach() if on_policy else rollouts.log_probs_BGL,
            lengths_BG=rollouts.lengths_BG,
            rewards_BG=rewards_BG,
            target_BL=packed.token_BKL[:, size],
            target_lengths_B=id_lengths(
                rollouts.target_codes_BL[:, None], self.index.widths, self.index.num_codes
            )[:, 0],
            hits_BG=rollouts.hits_BG,
            valid_BG=rollouts.valid_BG,
            target_rewards_B=target_rewards_B,
            semantic_BG=semantic_BG,
            judged_BG=judged_BG,
            reference_BGL=reference_BGL if self.objective.needs_reference else None,
            values_BGL=values_BGL,
            sampled_values_BGL=sampled_values_BGL,
            still_BG=None if still_BKL is None else still_BKL[:, :size].sum(-1),
            still_target_B=None if still_BKL is None else still_BKL[:, size].sum(-1),
        )
        num_real = rollouts.real_BG.sum().clamp_min(1)
        parts["hit_share"] = rollouts.hits_BG.any(-1).float().mean()
        parts["invalid_share"] = (rollouts.real_BG & ~rollouts.valid_BG).sum() / num_real
        return log_probs, parts

    @torch.no_grad()
    def still(self, batch: HistoryBatch, codes_BKL: Tensor) -> Tensor:
        """(B, K, L) log-probabilities of codes under the policy without its dropout."""
        self.policy.eval()
        try:
            return self.packed(self.policy, batch, codes_BKL).token_BKL
        finally:
            self.policy.train()

    @torch.no_grad()
    def sampled_values(self, rollouts: Rollouts, values_BGL: Tensor) -> Tensor:
        """(B, G, L) what the value head said when the rollouts were written."""
        if self.snapshot is None or self.value_snapshot is None:
            return values_BGL.detach()
        packed = self.packed(self.snapshot, rollouts.batch, rollouts.codes_BGL)
        assert packed.states_BKLD is not None
        return self.value_snapshot(packed.states_BKLD[:, :, :-1].float())[..., 0]

    def rolled_out(self, batch: ContextBatch, config: RolloutConfig) -> Rollouts:
        """The rollouts of these contexts, by the policy or by its snapshot."""
        if self.snapshot is not None:
            if int(self.steps) % self.settings.sync_steps == 0:
                self.snapshot.load_state_dict(self.policy.state_dict())
                if self.value_head is not None and self.value_snapshot is not None:
                    self.value_snapshot.load_state_dict(self.value_head.state_dict())
            self.steps += self.training
        writer = self.policy if self.snapshot is None else self.snapshot
        training, _ = writer.training, writer.eval()
        try:
            return roll_out(
                writer,
                batch.histories,
                self.index,
                config,
                targets_B=batch.targets_B,
                users_B=batch.users_B,
                renormalise=self.renormalise,
                with_log_probs=self.snapshot is not None,
            )
        finally:
            writer.train(training)

    @torch.no_grad()
    def scored(self, rollouts: Rollouts) -> tuple[Tensor, Parts]:
        """(B, G) rewards, and the means and spreads of their components."""
        assert self.rewards is not None
        total_BG, components = self.rewards(rollouts)
        told = self.rewards.summary(rollouts, total_BG, components)
        return total_BG, {**told, "reward": told["total_mean"]}

    @torch.no_grad()
    def judged(self, rollouts: Rollouts, rewards_BG: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(B, G) rewards of the semantic judge, 0 where it was not asked or did not answer."""
        if self.judge is None:
            return None, None
        asked_B = chosen_groups(
            rewards_BG,
            rollouts.real_BG,
            generator=torch.default_generator,
            share=self.settings.judged_share,
            rule=self.settings.judged_choice,
        )
        semantic_BG = torch.zeros_like(rewards_BG)
        judged_BG = torch.zeros_like(rollouts.real_BG)
        rows = asked_B.nonzero()[:, 0]
        if len(rows):
            ledger = getattr(self.judge, "ledger", None)
            if ledger is not None:
                ledger.calls = max(ledger.calls, int(self.judge_calls))
            answers = self.judge_weight * self.judge(rollouts.take(rows))
            if ledger is not None:
                self.judge_calls.fill_(ledger.calls)
            told = answers.isfinite() & rollouts.real_BG[rows]
            semantic_BG[rows] = torch.where(told, answers, 0.0)
            judged_BG[rows] = told
        return semantic_BG, judged_BG

    # ------------------------------------------------------------------ small parts

    def packed(self, model: nn.Module, batch: Any, codes_BKL: Tensor) -> Any:
        """Log-probabilities of IDs under a model; `batch` is of contexts or of histories."""
        histories = batch.histories if isinstance(batch, ContextBatch) else batch
        return packed_log_probs(
            model, histories, codes_BKL, self.index, renormalise=self.renormalise
        )

    def codes_of(self, rows_BK: Tensor) -> Tensor:
        """(B, K, L) codes of items; all −1 where there is no item."""
        codes_BKL = self.codes_NL[rows_BK.clamp_min(0)]
        return codes_BKL.masked_fill((rows_BK < 0)[..., None], -1)

    def _state_width(self) -> int:
        one = torch.zeros(1, 1, dtype=torch.long, device=self.index.device)
        batch = HistoryBatch(one, torch.ones(1, dtype=torch.long, device=self.index.device))
        with torch.no_grad():
            states = self.packed(self.policy, batch, self.codes_NL[:1, None]).states_BKLD
        if states is None:
            raise ConfigError(
                f"{type(self.objective).__name__} estimates values from the generator's states, "
                f"which {type(self.policy).__name__} does not offer (`along`); take grpo"
            )
        return int(states.shape[-1])


def frozen(model: nn.Module) -> nn.Module:
    """A copy that answers and never learns."""
    copied = copy.deepcopy(model).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    return copied


def shared_codes(negative_BML: Tensor, positive_BPL: Tensor) -> Tensor:
    """(B, M, P) leading codes that two IDs share; 0 where one of them is none."""
    same_BMPL = (negative_BML[:, :, None] == positive_BPL[:, None]) & (
        negative_BML[:, :, None] >= 0
    )
    return same_BMPL.long().cumprod(-1).sum(-1)


def without_repeats(codes_BML: Tensor, others_BPL: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes (B, M, L) with −1 for an ID that came before in its row or is among the others, and the
    share of IDs that this dropped. IDs are compared, not items.
    """
    real_BM = codes_BML[..., 0] >= 0
    same_BMM = (codes_BML[:, :, None] == codes_BML[:, None]).all(-1)
    bad_BM = same_BMM.tril(-1).any(-1)
    if others_BPL is not None:
        bad_BM = bad_BM | (codes_BML[:, :, None] == others_BPL[:, None]).all(-1).any(-1)
    bad_BM = bad_BM & real_BM
    dropped = bad_BM.sum() / real_BM.sum().clamp_min(1)
    return codes_BML.masked_fill(bad_BM[..., None], -1), dropped
