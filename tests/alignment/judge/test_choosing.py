import pytest
import torch

from sidrec.alignment.judge.choosing import chosen_groups, hard_groups
from sidrec.errors import ConfigError

REWARDS = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 5], [2, 3, 0]])
REAL = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)


def test_hard_groups_are_those_whose_real_rewards_differ():
    assert hard_groups(REWARDS, REAL).tolist() == [False, True, False, True]


@pytest.mark.parametrize("rule", ["uniform", "hard"])
def test_the_share_is_kept_in_the_mean_however_small_the_batch(rule):
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [
            chosen_groups(REWARDS, REAL, generator=generator, share=0.05, rule=rule)
            for _ in range(4000)
        ]
    ).float()
    assert draws.mean() == pytest.approx(0.05, abs=0.006)
    if rule == "hard":
        assert draws[:, [0, 2]].sum() == 0


def test_nothing_and_everything():
    generator = torch.Generator().manual_seed(0)
    assert not chosen_groups(REWARDS, REAL, generator=generator, share=0.0).any()
    assert chosen_groups(REWARDS, REAL, generator=generator, share=1.0).all()


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"must be in \[0, 1\], got 5"):
        chosen_groups(REWARDS, REAL, generator=torch.Generator(), share=5)
