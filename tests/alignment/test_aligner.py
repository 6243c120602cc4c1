"""One step on a real generator: which rewards are asked, whose values are old, what learns."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sidrec import config, methods
from sidrec.align_config import OBJECTIVE
from sidrec.alignment.aligner import Aligner, StepConfig, frozen
from sidrec.alignment.contexts import ContextBatch
from sidrec.alignment.rewards.mixture import Mixture
from sidrec.alignment.rollouts import RolloutConfig
from sidrec.types import HistoryBatch


class Counted(torch.nn.Module):
    """Rewards by row, counting the rollouts that were scored."""

    def __init__(self):
        super().__init__()
        self.groups = []

    def forward(self, rollouts):
        self.groups.append(rollouts.rows_BG.shape[1])
        return (rollouts.rows_BG % 7).float()


def aligner_of(tiny, objective, *, reward=None, step=None, **options):
    recommender = tiny.run.recommender
    policy = frozen(recommender.generator.value).requires_grad_(True)
    one = config.method(OBJECTIVE, objective, **options)
    return Aligner(
        policy,
        methods.resolve("objectives", one.name)(one.config),
        index=recommender.index,
        counts_N=torch.from_numpy(recommender.train_counts_N),
        config=step or StepConfig(dropout=False, fill="none", track_kl=False),
        rollouts=RolloutConfig(size=4),
        rewards=None if reward is None else Mixture((("counted", reward, 1.0),)),
    )


def contexts(rows, positives, shown):
    items_BT = torch.tensor(rows)
    lengths_B = torch.full((len(rows),), items_BT.shape[1])
    return ContextBatch(
        HistoryBatch(items_BT, lengths_B),
        torch.tensor(positives),
        torch.tensor(shown),
        torch.arange(len(rows)),
    )


@pytest.mark.parametrize(("objective", "groups"), [("grpo", [4]), ("adagrpo", [4, 1])])
def test_the_truth_is_scored_for_objectives_that_read_its_reward_alone(tiny, objective, groups):
    reward = Counted()
    aligner = aligner_of(tiny, objective, reward=reward)
    aligner.loss(contexts([[1, 2, 3]], [[4]], [[-1]]))
    assert reward.groups == groups


def test_old_values_are_those_of_the_head_that_saw_the_rollouts_written(tiny):
    step = StepConfig(dropout=False, sync_steps=2, track_kl=False)
    aligner = aligner_of(tiny, "ppo", reward=Counted(), step=step, kl_weight=0.0)
    batch = contexts([[1, 2, 3], [5, 6, 7]], [[4], [8]], [[-1], [-1]])
    first, _ = aligner.group_log_probs(aligner.rolled_out(batch, aligner.rollouts))
    torch.testing.assert_close(first.sampled_values_BGL, first.values_BGL.detach())
    with torch.no_grad():
        for parameter in aligner.value_head.parameters():
            parameter += 1.0
    moved, _ = aligner.group_log_probs(aligner.rolled_out(batch, aligner.rollouts))
    torch.testing.assert_close(moved.sampled_values_BGL, first.sampled_values_BGL)
    assert not torch.allclose(moved.values_BGL, moved.sampled_values_BGL)
    synced, _ = aligner.group_log_probs(aligner.rolled_out(batch, aligner.rollouts))
    torch.testing.assert_close(synced.sampled_values_BGL, synced.values_BGL.detach())


def pair_sharing_one_code(recommender):
    """Rows of two items whose IDs share the first code and differ in the second."""
    codes_NL = torch.from_numpy(recommender.ids.codes)
    same_NN = (codes_NL[:, None, 0] == codes_NL[None, :, 0]) & (
        codes_NL[:, None, 1] != codes_NL[None, :, 1]
    )
    first, second = same_NN.nonzero()[0].tolist()
    return first, second


@pytest.mark.parametrize("tlgd", [True, False])
def test_a_negative_moves_nothing_that_only_its_shared_prefix_reaches(tiny, tlgd):
    """The first level's decoder block predicts first codes and nothing else; with the positive's
    own gradient cut, whatever reaches it came through the negative's first code.
    """
    positive, negative = pair_sharing_one_code(tiny.run.recommender)
    aligner = aligner_of(tiny, "rad_dpo", tlgd=tlgd, rdrw=False, sft_weight=0.0)
    batch = contexts([[1, 2, 3]], [[positive]], [[negative]])
    positive_BPL = aligner.codes_of(batch.positives_BP)
    negative_BML = aligner.codes_of(batch.shown_BS)
    log_probs, _ = aligner.preference_log_probs(batch, positive_BPL, negative_BML)
    assert log_probs.shared_BM.tolist() == [[1]]
    cut = replace(log_probs, positive_BPL=log_probs.positive_BPL.detach())
    loss, _ = aligner.objective(cut)
    loss.backward()
    first, second = (
        torch.stack([p.grad.abs().sum() for p in level.parameters() if p.grad is not None]).sum()
        if any(p.grad is not None for p in level.parameters())
        else torch.zeros(())
        for level in list(aligner.policy.levels)[:2]
    )
    assert bool(first == 0) is tlgd
    assert second > 0


def test_positives_of_one_id_count_once(tiny):
    aligner = aligner_of(tiny, "rad_dpo", rdrw=False)
    once, told = aligner.preference_loss(contexts([[1, 2, 3]], [[4, -1]], [[9]]))
    twice, told_twice = aligner.preference_loss(contexts([[1, 2, 3]], [[4, 4]], [[9]]))
    torch.testing.assert_close(once, twice)
    assert told["dropped_positives"] == 0 and told_twice["dropped_positives"] == 0.5


def test_gates_see_the_policy_without_its_dropout(tiny):
    aligner = aligner_of(tiny, "adagrpo", reward=Counted(), step=StepConfig(track_kl=True))
    batch = contexts([[1, 2, 3], [5, 6, 7]], [[4], [8]], [[-1], [-1]])
    seen = []
    aligner.objective.register_forward_hook(lambda module, given, _: seen.append(given[0]))
    aligner.train()
    for _ in range(2):
        _, parts = aligner.loss(batch)
        assert abs(parts["kl"]) < 1e-6  # nothing has moved
    noisy, other = seen
    assert not torch.equal(noisy.target_BL, other.target_BL)  # the loss keeps its dropout
    assert torch.equal(noisy.still_target_B, other.still_target_B)
    aligner.eval().loss(batch)
    assert seen[2].still_BG is None
    torch.testing.assert_close(seen[2].diagnosed_nats_B.float(), noisy.diagnosed_nats_B.float())
    torch.testing.assert_close(seen[2].diagnosed_BG.float(), noisy.diagnosed_BG.float())
    assert aligner.policy.training is False


class Charging(Counted):
    """A judge with a ledger, one call a group."""

    def __init__(self, calls=0):
        super().__init__()
        self.ledger = SimpleNamespace(calls=calls)

    def forward(self, rollouts):
        self.ledger.calls += len(rollouts.rows_BG)
        return super().forward(rollouts)


def test_a_resumed_run_remembers_what_the_judge_was_paid(tiny):
    step = StepConfig(dropout=False, track_kl=False, judged_share=1.0)
    batch = contexts([[1, 2, 3], [5, 6, 7]], [[4], [8]], [[-1], [-1]])
    first, resumed = (
        aligner_of(tiny, "a2po", reward=Counted(), step=step, kl_weight=0.0) for _ in range(2)
    )
    first.judge, resumed.judge = Charging(), Charging()
    first.train().loss(batch)
    resumed.load_state_dict(first.state_dict())
    resumed.train().loss(batch)
    assert resumed.judge.ledger.calls == 4


def test_what_steps_saw_is_told_once(tiny):
    aligner = aligner_of(tiny, "rad_dpo", rdrw=False, step=StepConfig(fill="none", track_kl=False))
    aligner.train().loss(contexts([[1, 2, 3]], [[4, 4]], [[9, 9]]))
    aligner.loss(contexts([[1, 2, 3]], [[4, 5]], [[9, 8]]))
    told = aligner.told()
    assert told["dropped_positives"] == 0.25 and told["dropped_negatives"] == 0.25
    assert told["no_negatives"] == 0 and "silent_share" not in told
    assert aligner.told() == {}
