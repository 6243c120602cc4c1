# ruff: noqa: D103  (the name of a check is its sentence)
"""What it means to be an objective: run these checks on any class with `Objective`'s contract.

`for check in OBJECTIVE_CHECKS: check(MyObjective, my_config)`. Values are built by hand, with
log-probabilities themselves as leaves, in float64.

Shapes:   B contexts, P positives, M negatives, G rollouts, L = 3 levels, D = 4 width of a state.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sidrec.alignment.values import GroupLogProbs, PreferenceLogProbs

Example = PreferenceLogProbs | GroupLogProbs
LEAVES = ("positive_BPL", "negative_BML", "policy_BGL", "target_BL", "values_BGL")
"""Fields that have a gradient."""
CANDIDATES = {
    "preference": (
        *("negative_BML", "negative_lengths_BM", "shared_BM", "shared_any_BM"),
        *("reference_negative_BM", "negative_states_BMD"),
    ),
    "group": (
        *("policy_BGL", "sampled_BGL", "lengths_BG", "rewards_BG", "hits_BG", "valid_BG"),
        *("semantic_BG", "judged_BG", "reference_BGL", "values_BGL", "sampled_values_BGL"),
    ),
}
"""Fields with one entry a negative, or a rollout."""


def leaf_codes(lengths: Tensor, random: torch.Generator) -> Tensor:
    """(..., L) log-probabilities of codes, 0 after the end, as a leaf with gradient."""
    values = -0.1 - 2 * torch.rand(*lengths.shape, 3, generator=random, dtype=torch.float64)
    return (values * (torch.arange(3) < lengths[..., None])).requires_grad_()


def preferences_of(
    positive_BPL: Tensor, negative_BML: Tensor, **changes: Any
) -> PreferenceLogProbs:
    """Full-length IDs that share no code, with themselves as the reference."""
    lengths_BP = torch.full(positive_BPL.shape[:2], positive_BPL.shape[2])
    lengths_BM = torch.full(negative_BML.shape[:2], negative_BML.shape[2])
    values: dict[str, Any] = {
        "positive_lengths_BP": lengths_BP,
        "negative_lengths_BM": lengths_BM,
        "shared_BM": torch.zeros_like(lengths_BM),
        "shared_any_BM": torch.zeros_like(lengths_BM),
        "reference_positive_BP": positive_BPL.detach().sum(-1),
        "reference_negative_BM": negative_BML.detach().sum(-1),
    }
    return PreferenceLogProbs(positive_BPL, negative_BML, **(values | changes))


def groups_of(policy_BGL: Tensor, rewards_BG: Tensor, **changes: Any) -> GroupLogProbs:
    """Full-length rollouts, none of them the truth, used once; the truth has log-prob −1 a code."""
    B, G, L = policy_BGL.shape
    values: dict[str, Any] = {
        "sampled_BGL": policy_BGL.detach(),
        "lengths_BG": torch.full((B, G), L),
        "target_BL": -torch.ones(B, L, dtype=policy_BGL.dtype),
        "target_lengths_B": torch.full((B,), L),
        "hits_BG": torch.zeros(B, G, dtype=torch.bool),
        "valid_BG": torch.ones(B, G, dtype=torch.bool),
    }
    return GroupLogProbs(policy_BGL=policy_BGL, rewards_BG=rewards_BG, **(values | changes))


def tiny_preferences(
    *, negatives: bool = True, contexts: int = 4, seed: int = 0
) -> PreferenceLogProbs:
    """Four contexts of one or two positives and none to three negatives, lengths 2 and 3."""
    random = torch.Generator().manual_seed(seed)
    positive_lengths = torch.tensor([[3, 3], [3, 0], [2, 3], [3, 0]])[:contexts]
    negative_lengths = torch.tensor([[3, 3, 3], [3, 2, 0], [3, 3, 3], [0, 0, 0]])[:contexts]
    if not negatives:
        negative_lengths = negative_lengths * 0
    shared = torch.tensor([[1, 0, 2], [0, 1, 0], [0, 0, 1], [0, 0, 0]])[:contexts]
    B, P = positive_lengths.shape
    M = negative_lengths.shape[1]
    positive, negative = leaf_codes(positive_lengths, random), leaf_codes(negative_lengths, random)
    return PreferenceLogProbs(
        positive_BPL=positive,
        negative_BML=negative,
        positive_lengths_BP=positive_lengths,
        negative_lengths_BM=negative_lengths,
        shared_BM=shared,
        shared_any_BM=shared,
        reference_positive_BP=positive.detach().sum(-1),
        reference_negative_BM=negative.detach().sum(-1),
        positive_states_BPD=torch.randn(B, P, 4, generator=random, dtype=torch.float64),
        negative_states_BMD=torch.randn(B, M, 4, generator=random, dtype=torch.float64),
    )


def tiny_groups(*, contexts: int = 4, seed: int = 0) -> GroupLogProbs:
    """Four contexts of four rollouts, the last two contexts with fewer; the first rollout is best.

    The truth is no rollout, unlikely, and worth most, so that no gate stays shut for lack of it.
    """
    random = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([[3, 3, 3, 3], [3, 2, 3, 2], [3, 3, 2, 0], [3, 3, 0, 0]])[:contexts]
    rewards = torch.tensor(
        [[0.9, 0.3, 0.1, 0.0], [0.8, 0.1, 0.1, 0.2], [1.0, 0.5, 0.2, 7.0], [0.4, 0.2, 7.0, 7.0]]
    )[:contexts].double()
    policy = leaf_codes(lengths, random)
    target_lengths = torch.full((len(lengths),), 3)
    target = (leaf_codes(target_lengths, random).detach() - 5).requires_grad_()
    values = torch.zeros_like(policy).requires_grad_()
    return GroupLogProbs(
        policy_BGL=policy,
        sampled_BGL=policy.detach(),
        lengths_BG=lengths,
        rewards_BG=rewards,
        target_BL=target,
        target_lengths_B=target_lengths,
        hits_BG=torch.zeros_like(lengths, dtype=torch.bool),
        valid_BG=lengths > 0,
        target_rewards_B=torch.full((len(lengths),), 1.5, dtype=torch.float64),
        semantic_BG=rewards.flip(1),
        judged_BG=lengths > 0,
        reference_BGL=policy.detach(),
        values_BGL=values,
        sampled_values_BGL=values.detach(),
    )


def tiny_example(objective_class: Any) -> Any:
    """What an objective of that kind is called with."""
    return tiny_preferences() if objective_class.kind == "preference" else tiny_groups()


def gradients(objective: Any, example: Example) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and its gradient for every leaf of the example, 0 where none arrives."""
    leaves = {name: getattr(example, name) for name in LEAVES if hasattr(example, name)}
    fresh = {
        name: leaf.detach().clone().requires_grad_()
        for name, leaf in leaves.items()
        if leaf is not None
    }
    loss, _ = objective(replace(example, **fresh))
    loss.backward()
    return loss.detach(), {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in fresh.items()
    }


def require_finite(objective_class: Any, config: Any, example: Example) -> None:
    """The loss is a finite scalar with finite gradients."""
    loss, found = gradients(objective_class(config), example)
    assert loss.shape == () and loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in found.values())


def check_the_loss_is_a_finite_scalar_and_parts_carry_no_gradient(
    objective_class: Any, config: Any
) -> None:
    loss, parts = objective_class(config)(tiny_example(objective_class))
    assert loss.shape == () and loss.isfinite() and loss.requires_grad
    for name, part in parts.items():
        assert part.shape == () and part.isfinite() and not part.requires_grad, name


def check_the_best_is_made_likelier(objective_class: Any, config: Any) -> None:
    """Descent raises the first positive, or the best-rewarded rollout, of every context."""
    _, found = gradients(objective_class(config), tiny_example(objective_class))
    if objective_class.kind == "preference":
        best_BL = found["positive_BPL"][:, 0]
        some_B = tiny_preferences().has_negative_BM.any(1)
        assert (best_BL[some_B].sum(-1) < 0).all()
    else:
        assert (found["policy_BGL"][:, 0].sum(-1) < 0).all()


def check_the_order_of_candidates_changes_nothing(objective_class: Any, config: Any) -> None:
    example = tiny_example(objective_class)
    loss, found = gradients(objective_class(config), example)
    names = CANDIDATES[objective_class.kind]
    order = torch.tensor([2, 0, 1] if objective_class.kind == "preference" else [2, 0, 3, 1])
    shuffled = replace(example, **{name: getattr(example, name)[:, order] for name in names})
    other_loss, other = gradients(objective_class(config), shuffled)
    torch.testing.assert_close(other_loss, loss)
    for name, gradient in found.items():
        expected = gradient[:, order] if name in names else gradient
        torch.testing.assert_close(other[name], expected)


def check_the_order_of_contexts_changes_nothing(objective_class: Any, config: Any) -> None:
    example = tiny_example(objective_class)
    order = torch.tensor([3, 1, 0, 2])
    shuffled = replace(
        example,
        **{
            name: value[order]
            for name, value in vars(example).items()
            if isinstance(value, Tensor)
        },
    )  # fmt: skip
    loss, found = gradients(objective_class(config), example)
    other_loss, other = gradients(objective_class(config), shuffled)
    torch.testing.assert_close(other_loss, loss)
    for name, gradient in found.items():
        torch.testing.assert_close(other[name], gradient[order])


def check_a_context_with_nothing_to_compare_is_survived(objective_class: Any, config: Any) -> None:
    if objective_class.kind == "preference":
        example = tiny_preferences(negatives=False)
        require_finite(objective_class, config, example)
        _, found = gradients(objective_class(config), example)
        assert not found["negative_BML"].any()
        require_finite(objective_class, config, _narrowed(example))
        return
    example = tiny_groups()
    for lengths in (torch.zeros(4, 4), torch.tensor([[3, 0, 0, 0], [0, 0, 0, 0]] * 2)):
        mask = torch.arange(3) < lengths[..., None]
        policy = (example.policy_BGL.detach() * mask).requires_grad_()
        bare = replace(
            example, lengths_BG=lengths.long(), policy_BGL=policy, sampled_BGL=policy.detach()
        )
        require_finite(objective_class, config, bare)


def check_constant_and_missing_rewards_are_survived(objective_class: Any, config: Any) -> None:
    if objective_class.kind == "preference":
        return
    example = tiny_groups()
    for value in (0.0, 0.3, -1e6, torch.nan, torch.inf):
        rewards = torch.full_like(example.rewards_BG, value)
        require_finite(objective_class, config, replace(example, rewards_BG=rewards))
        rewards = example.rewards_BG.clone()
        rewards[0, 1] = rewards[1, 3] = value
        require_finite(objective_class, config, replace(example, rewards_BG=rewards))


def check_extreme_log_probs_are_survived(objective_class: Any, config: Any) -> None:
    """In float32, IDs that are, or were, all but certain and all but impossible."""
    example = tiny_example(objective_class)
    changes = {}
    for name, value in vars(example).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            changes[name] = value.detach().float()
    for scale in (1e-9, 300.0):
        leaves = {name: changes[name] * scale for name in LEAVES if name in changes}
        require_finite(objective_class, config, replace(example, **(changes | leaves)))
        past = {
            name: changes[name] * scale
            for name in changes
            if name.startswith(("sampled_BGL", "reference_"))
        }  # fmt: skip
        require_finite(objective_class, config, replace(example, **(changes | past)))


def check_the_reference_and_the_past_get_no_gradient(objective_class: Any, config: Any) -> None:
    example = tiny_example(objective_class)
    names = [n for n in vars(example) if n.startswith(("reference_", "sampled_", "semantic_"))]
    names += [n for n in ("rewards_BG", "target_rewards_B") if hasattr(example, n)]
    names += [n for n in vars(example) if "_states_" in n]
    fixed = {name: (getattr(example, name) - 0.1).requires_grad_() for name in names}
    loss, _ = objective_class(config)(replace(example, **fixed))
    loss.backward()
    for name, value in fixed.items():
        assert value.grad is None or not value.grad.any(), name


def check_needs_reference_says_whether_it_is_read(objective_class: Any, config: Any) -> None:
    example, objective = tiny_example(objective_class), objective_class(config)
    names = [name for name in vars(example) if name.startswith("reference_")]
    bare = replace(example, **dict.fromkeys(names))
    if not objective.needs_reference:
        loss, _ = objective(example)
        torch.testing.assert_close(objective(bare)[0], loss, rtol=0, atol=0)
        return
    try:
        objective(bare)
    except ValueError as error:
        assert "reference" in str(error)
    else:
        raise AssertionError("a missing reference must be an error")


def _narrowed(example: PreferenceLogProbs) -> PreferenceLogProbs:
    """Without a column for negatives."""
    assert example.reference_negative_BM is not None and example.negative_states_BMD is not None
    return replace(
        example,
        negative_BML=example.negative_BML.detach()[:, :0],
        negative_lengths_BM=example.negative_lengths_BM[:, :0],
        shared_BM=example.shared_BM[:, :0],
        shared_any_BM=example.shared_any_BM[:, :0],
        reference_negative_BM=example.reference_negative_BM[:, :0],
        negative_states_BMD=example.negative_states_BMD[:, :0],
    )


OBJECTIVE_CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
