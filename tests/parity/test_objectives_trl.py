"""Objectives beside those of `trl`, where it is installed: the same number, the same gradient."""

import warnings
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sidrec.alignment.objectives.advantages import standardised
from sidrec.alignment.objectives.dpo import Dpo, DpoConfig
from sidrec.alignment.objectives.grpo import Grpo, GrpoConfig
from sidrec.alignment.objectives.orpo import Orpo, OrpoConfig
from sidrec.alignment.objectives.simpo import SimPo, SimPoConfig
from sidrec.testing.objectives import gradients, groups_of, leaf_codes, preferences_of

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def trainer(path, name):
    """A trainer class of trl, whose losses are called without building one."""
    pytest.importorskip("trl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(pytest.importorskip(path), name)


def pairs(contexts=6, seed=0):
    """One positive and one negative each, full length, away from their reference."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.full((contexts, 1), 3)
    example = preferences_of(leaf_codes(lengths, random), leaf_codes(lengths, random))
    return replace(
        example,
        reference_positive_BP=-4 * torch.rand(contexts, 1, generator=random).double(),
        reference_negative_BM=-4 * torch.rand(contexts, 1, generator=random).double(),
    )


def leaves(example):
    return (
        example.positive_BPL.detach().requires_grad_(),
        example.negative_BML.detach().requires_grad_(),
    )


def require_same(objective, example, theirs, mine):
    """Equal value, and equal gradients at (positive, negative)."""
    loss, found = gradients(objective, example)
    theirs.backward()
    torch.testing.assert_close(theirs.detach().double(), loss, **CLOSE)
    for leaf, name in zip(mine, ("positive_BPL", "negative_BML"), strict=True):
        torch.testing.assert_close(leaf.grad, found[name], **CLOSE)


def test_dpo_is_their_sigmoid_loss_of_log_ratios():
    cpo = trainer("trl.experimental.cpo.cpo_trainer", "CPOTrainer")
    example = pairs()
    mine = leaves(example)
    self = SimpleNamespace(
        alpha=0.0, loss_type="sigmoid", beta=0.3, label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    losses, _, _ = cpo.cpo_loss(
        self,
        mine[0].sum(-1) - example.reference_positive_BP,
        mine[1].sum(-1) - example.reference_negative_BM,
    )
    require_same(Dpo(DpoConfig(beta=0.3)), example, losses.mean(), mine)


def test_simpo_is_theirs():
    cpo = trainer("trl.experimental.cpo.cpo_trainer", "CPOTrainer")
    example = pairs(seed=1)
    mine = leaves(example)
    self = SimpleNamespace(
        alpha=0.0, loss_type="simpo", beta=2.0, simpo_gamma=0.7, label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    losses, _, _ = cpo.cpo_loss(self, mine[0].mean(-1), mine[1].mean(-1))
    require_same(SimPo(SimPoConfig(beta=2.0, gamma=0.7)), example, losses.mean(), mine)


def test_orpo_is_theirs():
    orpo = trainer("trl.experimental.orpo.orpo_trainer", "ORPOTrainer")
    example = pairs(seed=2)
    mine = leaves(example)
    self = SimpleNamespace(beta=0.4, accelerator=SimpleNamespace(device="cpu"))
    losses, *_ = orpo.odds_ratio_loss(self, mine[0].mean(-1), mine[1].mean(-1))
    theirs = -mine[0].mean() - losses.mean()
    require_same(Orpo(OrpoConfig(odds_weight=0.4)), example, theirs, mine)


def test_grpo_is_theirs_off_policy_with_kl_and_shorter_ids():
    grpo = trainer("trl.trainer.grpo_trainer", "GRPOTrainer")
    random = torch.Generator().manual_seed(3)
    lengths = torch.tensor([[3, 3, 2, 3], [3, 2, 3, 3], [2, 3, 3, 3]])
    policy = leaf_codes(lengths, random).detach()
    codes = (torch.arange(3) < lengths[..., None]).double()
    sampled, reference = (
        policy + 0.4 * torch.randn(policy.shape, generator=random).double() * codes
        for _ in range(2)
    )
    rewards = torch.rand(3, 4, generator=random).double()
    example = groups_of(
        policy, rewards, lengths_BG=lengths, sampled_BGL=sampled, reference_BGL=reference
    )
    loss, found = gradients(Grpo(GrpoConfig(kl_weight=0.2, std="sample")), example)

    mine = policy.reshape(-1, 3).clone().requires_grad_()
    accelerator = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x)
    self = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (mine, torch.zeros(12, 3), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level="token", beta=0.2, loss_type="grpo",
        epsilon_low=0.2, epsilon_high=0.2, use_vllm=False, _entropy_bonus_enabled=False,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
        model=SimpleNamespace(training=False), accelerator=accelerator,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    advantages = standardised(rewards, example.real_BG, std="sample")
    theirs = grpo._compute_loss(
        self,
        None,
        {
            "prompt_ids": torch.zeros(12, 1).long(), "prompt_mask": torch.ones(12, 1).long(),
            "completion_ids": torch.zeros(12, 3).long(), "completion_mask": codes.view(12, 3),
            "advantages": advantages.view(12), "old_per_token_logps": sampled.view(12, 3),
            "ref_per_token_logps": reference.view(12, 3),
        },
    )  # fmt: skip
    theirs.backward()
    torch.testing.assert_close(theirs.detach(), loss)
    torch.testing.assert_close(mine.grad.view(3, 4, 3), found["policy_BGL"])
