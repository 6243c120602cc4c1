# ruff: noqa: D103  (the name of a check is its sentence)
"""What it means to be a scorer: run these checks on any class with `Scorer`'s contract.

`for check in SCORER_CHECKS: check(MyScorer, my_small_config)`. Training-free scorers have no
`loss`; the checks that need one pass them by.

Shapes:   B requests, N items, T history length.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from sidrec.building import weights_follow
from sidrec.testing.generators import CLOSE, fit_until
from sidrec.testing.tiny_catalogue import (
    NUM_ITEMS,
    eight_sequences,
    padded,
    request,
    tiny_batch,
    tiny_context,
)
from sidrec.types import HistoryBatch


def built(scorer_class: Any, config: Any) -> Any:
    """A scorer for the tiny catalogue, in evaluation mode."""
    scorer = scorer_class.build(tiny_context(), config)
    return scorer.eval() if isinstance(scorer, nn.Module) else scorer


def check_scores_are_finite_float32_for_every_item(scorer_class: Any, config: Any) -> None:
    scores_BN = built(scorer_class, config).scores(tiny_batch())
    assert scores_BN.shape == (5, NUM_ITEMS) and scores_BN.dtype == torch.float32
    assert scores_BN.isfinite().all()


def check_same_seed_gives_the_same_scores(scorer_class: Any, config: Any) -> None:
    found = []
    for outside_seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(outside_seed)
            scorer = built(scorer_class, config)
            found += [scorer.scores(tiny_batch()), scorer.scores(tiny_batch())]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


def check_padding_changes_nothing(scorer_class: Any, config: Any) -> None:
    scorer, batch = built(scorer_class, config), tiny_batch()
    torch.testing.assert_close(scorer.scores(padded(batch)), scorer.scores(batch), **CLOSE)


def check_a_batch_of_one_equals_a_batch_of_many(scorer_class: Any, config: Any) -> None:
    scorer, batch = built(scorer_class, config), tiny_batch()
    together = scorer.scores(batch)
    for row in range(batch.num_requests):
        torch.testing.assert_close(scorer.scores(request(batch, row))[0], together[row], **CLOSE)


def check_long_histories_keep_their_last_events(scorer_class: Any, config: Any) -> None:
    scorer = built(scorer_class, config)
    longest = scorer.max_length
    if longest > 100:  # reads everything there is
        return
    long = tiny_batch(3, length=longest + 4, max_length=longest + 4)
    for row in range(3):
        events = long.items_BT[row, : int(long.lengths_B[row])][-longest:]
        short = HistoryBatch(events[None], torch.tensor([len(events)]))
        torch.testing.assert_close(scorer.scores(long)[row], scorer.scores(short)[0], **CLOSE)


def check_an_empty_history_has_finite_scores(scorer_class: Any, config: Any) -> None:
    empty = HistoryBatch(torch.tensor([[3, 4], [-1, -1]]), torch.tensor([2, 0]))
    assert built(scorer_class, config).scores(empty).isfinite().all()


def check_scores_do_not_depend_on_targets(scorer_class: Any, config: Any) -> None:
    scorer, batch = built(scorer_class, config), eight_sequences()
    bare = HistoryBatch(batch.items_BT, batch.lengths_B)
    torch.testing.assert_close(scorer.scores(batch), scorer.scores(bare), rtol=0, atol=0)


def check_input_is_untouched(scorer_class: Any, config: Any) -> None:
    context, batch = tiny_context(), eight_sequences()
    before = deepcopy((context, batch))
    scorer = scorer_class.build(context, config)
    scorer.scores(batch)
    assert context.vectors is not None and before[0].vectors is not None
    assert (context.vectors.vectors == before[0].vectors.vectors).all()
    assert (context.train.items_E == before[0].train.items_E).all()
    assert torch.equal(batch.items_BT, before[1].items_BT)


def check_a_trainable_scorer_overfits_eight_sequences(scorer_class: Any, config: Any) -> None:
    """A few hundred steps of Adam put the last target of each of eight sequences first."""
    scorer, batch = scorer_class.build(tiny_context(), config), eight_sequences()
    assert batch.targets_BT is not None
    if hasattr(scorer, "loss"):
        last_B = batch.targets_BT[:, -1]
        assert fit_until(scorer, batch, lambda: scorer.eval().scores(batch).argmax(1), last_B)


def check_state_dict_carries_the_whole_model(scorer_class: Any, config: Any) -> None:
    model = built(scorer_class, config)
    if not isinstance(model, nn.Module) or "seed" not in {f.name for f in fields(config)}:
        return
    with weights_follow():
        other = scorer_class.build(tiny_context(), replace(config, seed=config.seed + 1)).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(
        other.scores(tiny_batch()), model.scores(tiny_batch()), rtol=0, atol=0
    )


SCORER_CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
