"""Kept values follow the weights they were made of, and can be trained with after serving."""

import torch

from sidrec.kept import Kept


def test_a_kept_value_is_made_once_and_anew_when_a_weight_changes():
    weight, kept, calls = torch.nn.Parameter(torch.ones(2)), Kept(), []

    def made():
        calls.append(1)
        return 2 * weight

    assert kept.of([weight], made) is kept.of([weight], made) and len(calls) == 1
    with torch.no_grad():
        weight.add_(1)
    assert kept.of([weight], made).tolist() == [4, 4]
    weight.data = torch.zeros(2)  # another tensor in its place
    assert kept.of([weight], made).tolist() == [0, 0]
    kept.forget()
    kept.of([weight], made)
    assert len(calls) == 4


def test_what_was_kept_while_serving_enters_a_later_backward_pass():
    weight, kept = torch.nn.Parameter(torch.ones(2)), Kept()
    with torch.inference_mode():
        table = kept.of([weight], lambda: 2 * weight)
    assert not table.requires_grad
    (weight * kept.of([weight], lambda: 2 * weight)).sum().backward()
    assert weight.grad.tolist() == [2, 2]
