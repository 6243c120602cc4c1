"""Rollouts: distinct and valid from a beam, true to the policy from a draw, honest when free."""

import pytest
import torch

from sidrec import methods
from sidrec.alignment.log_probs import packed_log_probs
from sidrec.alignment.rollouts import RolloutConfig, roll_out
from sidrec.decoding.beam import beam_search
from sidrec.decoding.exact import exact_scores
from sidrec.errors import ConfigError
from sidrec.testing.generators import built, tiny_index
from sidrec.testing.tiny_catalogue import small_config, tiny_batch, tiny_context


@pytest.fixture(scope="module")
def policy():
    method_class = methods.resolve("generators", "causal")
    return built(method_class, small_config(method_class.config_class))


def rolled(policy, *, renormalise=True, **settings):
    batch = tiny_batch()
    return roll_out(
        policy, batch, tiny_index(), RolloutConfig(**settings),
        targets_B=torch.arange(5), users_B=torch.full((5,), -1), renormalise=renormalise,
    )  # fmt: skip


def test_a_beam_is_the_best_ids_distinct_and_valid(policy):
    found = rolled(policy, size=6)
    assert found.valid_BG.all()
    for ids in found.codes_BGL.tolist():
        assert len({tuple(codes) for codes in ids}) == 6
    best = beam_search(policy, tiny_batch(), tiny_index(), k=1, beam_width=6).rows_BK[:, 0]
    codes = tiny_context().semantic_ids.codes
    assert found.codes_BGL[:, 0].tolist() == codes[best].tolist()
    totals = found.log_probs_BGL.sum(-1)
    assert (totals[:, :-1] >= totals[:, 1:] - 1e-5).all()


def test_a_beam_wider_than_the_catalogue_ends_in_no_rollouts(policy):
    found = rolled(policy, size=40)
    num_ids = len({tuple(c) for c in tiny_context().semantic_ids.codes.tolist()})
    assert found.real_BG.sum(-1).tolist() == [num_ids] * 5
    assert (found.rows_BG[~found.real_BG] == -1).all()
    assert (found.log_probs_BGL[~found.real_BG] == 0).all()


def test_stored_log_probs_are_those_of_the_policy(policy):
    for how in ("beam", "sample"):
        found = rolled(policy, size=5, how=how)
        again = packed_log_probs(
            policy, tiny_batch(), found.codes_BGL, tiny_index(), renormalise=True
        ).token_BKL
        torch.testing.assert_close(found.log_probs_BGL, again)


def test_draws_follow_the_policy(policy):
    torch.manual_seed(0)
    found = rolled(policy, size=4000, how="sample")
    codes = torch.from_numpy(tiny_context().semantic_ids.codes)
    probs_BN = exact_scores(policy, tiny_batch(), tiny_index()).exp()
    for row in (0, 5, 11):
        drawn_B = (found.codes_BGL == codes[row]).all(-1).float().mean(-1)
        torch.testing.assert_close(drawn_B, probs_BN[:, row], rtol=0, atol=0.035)


def test_a_low_temperature_draws_the_likeliest(policy):
    torch.manual_seed(0)
    sharp = rolled(policy, size=50, how="sample", temperature=0.05)
    plain = rolled(policy, size=50, how="sample")
    assert sharp.log_probs_BGL.sum(-1).mean() > plain.log_probs_BGL.sum(-1).mean()


def test_hits_compare_ids_not_items(policy):
    batch, index = tiny_batch(), tiny_index()
    found = roll_out(
        policy, batch, index, RolloutConfig(size=30), targets_B=torch.full((5,), 23),
        users_B=torch.full((5,), -1), renormalise=True,
    )  # fmt: skip
    assert found.hits_BG.sum(-1).tolist() == [1] * 5  # items 22 and 23 share an ID
    assert (found.rows_BG[found.hits_BG] == 22).all()
    assert (found.of_targets().hits_BG).all()


@pytest.mark.parametrize("how", ["beam", "sample"])
def test_free_rollouts_say_what_no_item_holds(policy, how):
    torch.manual_seed(0)
    size = 24 if how == "beam" else 400
    found = rolled(policy, size=size, how=how, constrained=False, renormalise=False)
    held = {tuple(codes) for codes in tiny_context().semantic_ids.codes.tolist()}
    for ids, rows in zip(found.codes_BGL.tolist(), found.rows_BG.tolist(), strict=True):
        for codes, row in zip(ids, rows, strict=True):
            assert (tuple(codes) in held) == (row >= 0)
    assert (found.rows_BG < 0).any()
    assert found.real_BG.all()


def test_free_rollouts_have_no_probability_over_legal_codes(policy):
    with pytest.raises(ConfigError, match="renormalise = false"):
        rolled(policy, size=4, constrained=False)


def test_a_group_of_one_is_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        RolloutConfig(size=1)
