"""The dense head, held against plain readings of its formulas."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sidrec.dense_head import DenseHead, mean_cosine, places_in

N, V, D = 7, 5, 4


def make_head(negatives="trained", counts=(3, 1, 0, 2, 1, 0, 4), **changes):
    torch.manual_seed(0)
    settings = {
        "width": D, "hidden": 6, "dropout": 0.0, "temperature": 0.2,
        "learn_temperature": False, "negatives": negatives,
    } | changes  # fmt: skip
    head = DenseHead(3, V, N, **settings)
    head.contrast(np.array(counts))
    with torch.no_grad():
        head.repeat_bias.weight.fill_(-0.15)  # -1.5 nats
    return head


def some_inputs():
    torch.manual_seed(1)
    states_PD, vectors_ND = torch.randn(3, 3), torch.randn(N, V)
    targets_P = torch.tensor([0, 3, 4])
    seen_PS = torch.tensor([[6, -1], [0, 1], [4, -1]])
    return states_PD, vectors_ND, targets_P, seen_PS


@pytest.mark.parametrize(
    ("negatives", "rows"), [("trained", [0, 1, 3, 4, 6]), ("batch", [0, 3, 4])]
)
def test_the_loss_is_the_cross_entropy_over_the_negatives_and_the_target(negatives, rows):
    head = make_head(negatives)
    states_PD, vectors_ND, targets_P, seen_PS = some_inputs()
    loss, parts = head.loss(states_PD, vectors_ND, targets_P, seen_PS)
    users_PD, items_ND = head.users(states_PD), head.items(vectors_ND)
    cosines_PN = F.cosine_similarity(users_PD[:, None], items_ND[None], dim=-1)
    total = 0.0
    for p, target in enumerate(targets_P.tolist()):
        logits = {j: cosines_PN[p, j] / 0.2 - 1.5 * (j in seen_PS[p].tolist()) for j in rows}
        total += torch.stack(list(logits.values())).logsumexp(0) - logits[target]
    assert loss.item() == pytest.approx((total / 3).item(), rel=1e-5)
    assert parts["dense_nats"].item() == pytest.approx(loss.item())


def test_an_item_without_events_is_nobodys_negative_unless_it_is_the_target():
    head = make_head()
    states_PD, vectors_ND, targets_P, seen_PS = some_inputs()
    moved_ND = vectors_ND.clone()
    moved_ND[[2, 5]] += 3.0
    before, after = (
        head.loss(states_PD, x, targets_P, seen_PS)[0].item() for x in (vectors_ND, moved_ND)
    )
    assert after == before
    targets_P = torch.tensor([0, 2, 4])
    before, after = (
        head.loss(states_PD, x, targets_P, seen_PS)[0].item() for x in (vectors_ND, moved_ND)
    )
    assert np.isfinite(after) and after != before


def test_where_no_item_has_events_all_are_negatives():
    states_PD, vectors_ND, targets_P, seen_PS = some_inputs()
    losses = [
        make_head(counts=counts).loss(states_PD, vectors_ND, targets_P, seen_PS)[0].item()
        for counts in ((0,) * N, (1,) * N)
    ]
    assert losses[0] == losses[1]


def test_a_step_down_the_gradient_brings_state_and_target_together():
    head = make_head()
    states_PD, vectors_ND, targets_P, seen_PS = some_inputs()

    def cosines():
        return (head.users(states_PD) * head.items(vectors_ND[targets_P])).sum(-1).mean().item()

    before = cosines()
    head.loss(states_PD, vectors_ND, targets_P, seen_PS)[0].backward()
    for weight in (head.project.weight, head.direct.weight, head.up.weight, head.down.weight):
        assert weight.grad is not None and weight.grad.abs().sum() > 0
    with torch.no_grad():
        for weight in (head.project.weight, head.direct.weight, head.down.weight):
            weight -= 0.01 * weight.grad
    assert cosines() > before


def test_the_temperature_is_learnt_only_where_asked_and_never_reaches_zero():
    for learnt in (False, True):
        head = make_head(learn_temperature=learnt)
        head.loss(*some_inputs())[0].backward()
        assert (head.log_temperature.grad is not None) == learnt
    with torch.no_grad():
        head.log_temperature.fill_(-50.0)
    assert head.temperature().item() == pytest.approx(0.01)


def test_logits_are_the_same_all_at_once_and_one_by_one():
    head = make_head()
    states_BD, vectors_ND, *_ = some_inputs()
    rows_M, seen_BS = torch.tensor([0, 2, 3, 6]), torch.tensor([[6, 1], [-1, -1], [0, 3]])
    users_BD, items_ND = head.users(states_BD), head.items(vectors_ND)
    at_once_BM = head.logits(users_BD, items_ND[rows_M], rows_M, seen_BS)
    rows_BM = rows_M.expand(3, -1)
    each_BM = head.logits_of(users_BD[:, None], items_ND[rows_BM], rows_BM, seen_BS[:, None])
    torch.testing.assert_close(at_once_BM, each_BM)
    plain_BM = users_BD @ items_ND[rows_M].T / 0.2
    shift_BM = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0]]) * -1.5
    torch.testing.assert_close(at_once_BM, plain_BM + shift_BM)
    nothing = head.logits(users_BD, items_ND[:0], rows_M[:0], seen_BS)
    assert nothing.shape == (3, 0)


def test_places_are_those_in_the_list_and_minus_one_for_what_is_not_there():
    rows_M = torch.tensor([2, 5, 9])
    assert places_in(rows_M, torch.tensor([[5, -1], [9, 4], [10, 2]])).tolist() == [
        [1, -1], [2, -1], [-1, 0],
    ]  # fmt: skip
    assert places_in(rows_M[:0], torch.tensor([3, -1])).tolist() == [-1, -1]


def test_collapsed_items_have_a_mean_cosine_of_one_and_opposite_pairs_less_than_zero():
    assert mean_cosine(torch.tensor([[0.6, 0.8]]).expand(5, -1)).item() == pytest.approx(1.0)
    cross = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert mean_cosine(cross).item() == pytest.approx(-1 / 3)
    assert mean_cosine(cross[:1]).item() == pytest.approx(0.0)


def test_the_kept_table_follows_weights_vectors_and_training():
    head = make_head().eval()
    vectors_ND = torch.randn(N, V)
    first = head.table(vectors_ND)
    assert head.table(vectors_ND) is first
    vectors_ND += 1.0
    second = head.table(vectors_ND)
    assert (second - first).abs().max() > 1e-3
    with torch.no_grad():
        head.direct.weight.add_(1.0)
    assert (head.table(vectors_ND) - second).abs().max() > 1e-3
    third = head.table(vectors_ND)
    assert head.train().eval().table(vectors_ND) is not third
    torch.testing.assert_close(head.table(vectors_ND).norm(dim=1), torch.ones(N))
