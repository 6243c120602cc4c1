# ruff: noqa: D103  (the name of a check is its sentence)
"""What it means to be a generator: run these checks on any class with `Generator`'s contract.

`for check in GENERATOR_CHECKS: check(MyGenerator, my_small_config)`. Dropout must be off in the
config or by `eval()`; models are built for `tiny_catalogue.tiny_context()`.

Shapes:   B requests, W beams, K IDs, L levels, V codes of a level, T history length.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sidrec.building import weights_follow
from sidrec.decoding.beam import beam_search
from sidrec.decoding.exact import exact_scores
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.rules import Rules
from sidrec.testing.tiny_catalogue import (
    NUM_CODES,
    NUM_ITEMS,
    eight_sequences,
    padded,
    request,
    tiny_batch,
    tiny_context,
)
from sidrec.types import HistoryBatch

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
MAX_STEPS = 300


def built(generator_class: Any, config: Any) -> Any:
    """A model for the tiny catalogue whose logits differ clearly between histories."""
    model = generator_class.build(tiny_context(), config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def tiny_index() -> PrefixIndex:
    """The prefix index of the tiny catalogue."""
    ids = tiny_context().semantic_ids
    assert ids is not None
    return PrefixIndex.build(ids)


@torch.no_grad()
def stepped_logits(model: Any, batch: HistoryBatch, codes_BKL: Tensor) -> list[Tensor]:
    """L x (B, K, V) logits along K paths, each followed as a beam of its own."""
    num_requests, num_paths, num_levels = codes_BKL.shape
    logits, state = model.step(model.start(batch), None, None)
    kept = [logits.expand(-1, num_paths, -1)]
    parents_BK = torch.zeros(num_requests, num_paths, dtype=torch.int64)
    for level in range(num_levels - 1):
        logits, state = model.step(state, codes_BKL[..., level], parents_BK)
        parents_BK = torch.arange(num_paths).expand(num_requests, -1)
        kept.append(logits)
    return kept


def random_codes(num_requests: int, num_paths: int, seed: int = 3) -> Tensor:
    """(B, K, L) code tuples, most of which no item holds."""
    random = torch.Generator().manual_seed(seed)
    levels = [torch.randint(v, (num_requests, num_paths), generator=random) for v in NUM_CODES]
    return torch.stack(levels, dim=-1)


@torch.no_grad()
def all_log_probs(model: Any, batch: HistoryBatch) -> Tensor:
    """(B, 7) log-probabilities of seven fixed code tuples: a fingerprint of a model."""
    codes_BKL = random_codes(1, 7).expand(batch.num_requests, -1, -1)
    return model.log_probs(batch, codes_BKL)


def check_same_seed_builds_the_same_model(generator_class: Any, config: Any) -> None:
    models = []
    for outside_seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(outside_seed)
            models.append(generator_class.build(tiny_context(), config).eval())
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict(), rtol=0, atol=0)
    other = generator_class.build(tiny_context(), replace(config, seed=config.seed + 1)).eval()
    assert not torch.equal(
        all_log_probs(models[0], tiny_batch()), all_log_probs(other, tiny_batch())
    )


def check_num_codes_are_the_widths_of_the_logits(generator_class: Any, config: Any) -> None:
    model = built(generator_class, config)
    assert tuple(model.num_codes) == NUM_CODES
    widths = [x.shape for x in stepped_logits(model, tiny_batch(), random_codes(5, 4))]
    assert widths == [(5, 4, v) for v in NUM_CODES]


def check_steps_multiply_to_whole_ids(generator_class: Any, config: Any) -> None:
    model, batch, codes_BKL = built(generator_class, config), tiny_batch(), random_codes(5, 9)
    parts = [
        logits.log_softmax(-1).gather(2, codes_BKL[..., level, None])[..., 0]
        for level, logits in enumerate(stepped_logits(model, batch, codes_BKL))
    ]
    with torch.no_grad():
        torch.testing.assert_close(model.log_probs(batch, codes_BKL), sum(parts), **CLOSE)


def check_padding_changes_nothing(generator_class: Any, config: Any) -> None:
    model, batch = built(generator_class, config), tiny_batch()
    torch.testing.assert_close(
        all_log_probs(model, padded(batch)), all_log_probs(model, batch), **CLOSE
    )


def check_a_batch_of_one_equals_a_batch_of_many(generator_class: Any, config: Any) -> None:
    model, batch = built(generator_class, config), tiny_batch()
    together, codes_BKL = all_log_probs(model, batch), random_codes(5, 4)
    steps = stepped_logits(model, batch, codes_BKL)
    for row in range(batch.num_requests):
        alone = request(batch, row)
        torch.testing.assert_close(all_log_probs(model, alone)[0], together[row], **CLOSE)
        for many, one in zip(
            steps, stepped_logits(model, alone, codes_BKL[row : row + 1]), strict=True
        ):
            torch.testing.assert_close(one[0], many[row], **CLOSE)


def check_long_histories_keep_their_last_events(generator_class: Any, config: Any) -> None:
    model = built(generator_class, config)
    longest = model.max_length
    long = tiny_batch(3, length=longest + 4, max_length=longest + 4)
    items_BT = long.items_BT.clone()
    cut = [row[: int(n)][-longest:] for row, n in zip(items_BT, long.lengths_B, strict=True)]
    for row, events in enumerate(cut):
        short = HistoryBatch(events[None], torch.tensor([len(events)]))
        torch.testing.assert_close(
            all_log_probs(model, request(long, row)), all_log_probs(model, short), **CLOSE
        )
    torch.testing.assert_close(
        stepped_logits(model, long, random_codes(3, 1))[-1][0],
        stepped_logits(model, request(long, 0), random_codes(3, 1)[:1])[-1][0],
        **CLOSE,
    )


def check_an_empty_history_has_finite_logits(generator_class: Any, config: Any) -> None:
    model = built(generator_class, config)
    empty = HistoryBatch(torch.tensor([[3, 4], [-1, -1]]), torch.tensor([2, 0]))
    assert all(x.isfinite().all() for x in stepped_logits(model, empty, random_codes(2, 3)))


def check_probabilities_of_the_catalogue_sum_to_one(generator_class: Any, config: Any) -> None:
    model, index = built(generator_class, config), tiny_index()
    one_each = torch.arange(NUM_ITEMS - 1)  # the last item shares its ID with the one before
    for renormalise in (True, False):
        scores_BN = exact_scores(model, tiny_batch(), index, renormalise=renormalise, block=7)
        total_B = scores_BN[:, one_each].double().exp().sum(1)
        if renormalise:
            torch.testing.assert_close(total_B, torch.ones_like(total_B), **CLOSE)
        else:
            assert (total_B < 1).all()


def check_a_full_beam_ranks_as_exact_scoring(generator_class: Any, config: Any) -> None:
    model, index, batch = built(generator_class, config), tiny_index(), tiny_batch()
    for renormalise in (True, False):
        exact_BN = exact_scores(model, batch, index, renormalise=renormalise)
        found = beam_search(
            model, batch, index, k=NUM_ITEMS, beam_width=NUM_ITEMS, renormalise=renormalise
        )
        scores_BK = torch.from_numpy(found.scores_BK)
        torch.testing.assert_close(scores_BK, exact_BN.sort(1, descending=True).values, **CLOSE)
        own_BK = exact_BN.gather(1, torch.from_numpy(found.rows_BK))
        torch.testing.assert_close(scores_BK, own_BK, **CLOSE)


@torch.no_grad()
def check_beams_follow_their_parents(generator_class: Any, config: Any) -> None:
    """Random parents, some twice and some never; and a state can be stepped more than once."""
    model, batch, random = built(generator_class, config), tiny_batch(), torch.Generator()
    random.manual_seed(4)
    _, state = model.step(model.start(batch), None, None)
    paths, parents, states, num_beams = torch.zeros(5, 1, 0, dtype=torch.int64), None, [], 1
    for level, num_next in enumerate((4, 6)):
        parents = torch.randint(num_beams, (5, num_next), generator=random)
        codes = torch.randint(NUM_CODES[level], (5, num_next), generator=random)
        own = paths.gather(1, parents[..., None].expand(-1, -1, level))
        paths = torch.cat([own, codes[..., None]], dim=2)
        logits, next_state = model.step(state, codes, parents)
        expected = stepped_logits(
            model, batch, torch.cat([paths, paths[..., :1]], dim=2)
        )[level + 1]  # fmt: skip
        torch.testing.assert_close(logits, expected, **CLOSE)
        states.append((state, codes, parents, logits))
        state, num_beams = next_state, num_next
    for state, codes, parents, logits in states:
        torch.testing.assert_close(model.step(state, codes, parents)[0], logits, **CLOSE)


def check_input_is_untouched(generator_class: Any, config: Any) -> None:
    context, batch = tiny_context(), eight_sequences()
    before = deepcopy((context, batch))
    model = generator_class.build(context, config)
    loss, _ = model.loss(batch)
    loss.backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    stepped_logits(model.eval(), batch, random_codes(8, 2))
    assert context.vectors is not None and before[0].vectors is not None
    assert context.semantic_ids is not None and before[0].semantic_ids is not None
    assert (context.vectors.vectors == before[0].vectors.vectors).all()
    assert (context.semantic_ids.codes == before[0].semantic_ids.codes).all()
    assert (context.train.items_E == before[0].train.items_E).all()
    assert torch.equal(batch.items_BT, before[1].items_BT)
    assert batch.targets_BT is not None and before[1].targets_BT is not None
    assert torch.equal(batch.targets_BT, before[1].targets_BT)


def check_scores_do_not_depend_on_targets(generator_class: Any, config: Any) -> None:
    model, batch = built(generator_class, config), eight_sequences()
    bare = HistoryBatch(batch.items_BT, batch.lengths_B)
    assert torch.equal(all_log_probs(model, batch), all_log_probs(model, bare))


def check_overfits_eight_sequences(generator_class: Any, config: Any) -> None:
    """A few hundred steps of Adam put the last target of each of eight sequences first."""
    batch, index = eight_sequences(), tiny_index()
    assert batch.targets_BT is not None
    model = generator_class.build(tiny_context(), config).train()
    assert fit_until(model, batch, lambda: top_rows(model, batch, index), batch.targets_BT[:, -1])


def top_rows(model: Any, batch: HistoryBatch, index: PrefixIndex) -> Tensor:
    """(B,) the best item of each request."""
    return torch.from_numpy(
        beam_search(model.eval(), batch, index, k=1, beam_width=4).rows_BK[:, 0]
    )


def fit_until(model: Any, batch: HistoryBatch, answer: Any, targets_B: Tensor) -> bool:
    """Train on one batch until `answer()` equals the targets; False when it never does."""
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(MAX_STEPS):
        optimiser.zero_grad()
        loss, parts = model.train().loss(batch)
        assert loss.isfinite() and all(torch.as_tensor(part).isfinite() for part in parts.values())
        loss.backward()
        optimiser.step()
        if step % 25 == 24 and torch.equal(answer(), targets_B):
            return True
    return False


def check_state_dict_carries_the_whole_model(generator_class: Any, config: Any) -> None:
    model = built(generator_class, config)
    with weights_follow():
        other = generator_class.build(tiny_context(), replace(config, seed=config.seed + 1)).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(
        all_log_probs(other, tiny_batch()), all_log_probs(model, tiny_batch()), rtol=0, atol=0
    )


def check_logits_along_ids_are_those_of_steps(generator_class: Any, config: Any) -> None:
    model, batch = built(generator_class, config), tiny_batch()
    if not hasattr(model, "along"):
        return
    codes_BKL = tiny_index().codes(torch.arange(3)).expand(batch.num_requests, -1, -1)
    logits_L, states_BKLD = model.along(batch, codes_BKL)
    for logits_BKV, expected in zip(logits_L, stepped_logits(model, batch, codes_BKL), strict=True):
        torch.testing.assert_close(logits_BKV.detach(), expected, **CLOSE)
    assert states_BKLD.shape[:3] == (batch.num_requests, 3, codes_BKL.shape[2] + 1)
    assert not torch.allclose(states_BKLD[:, 0, -1], states_BKLD[:, 1, -1])


def check_logits_along_ids_learn_as_log_probs_do(generator_class: Any, config: Any) -> None:
    model, batch = built(generator_class, config), tiny_batch()
    if not hasattr(model, "along"):
        return
    codes_BKL = tiny_index().codes(torch.arange(3)).expand(batch.num_requests, -1, -1)
    model.log_probs(batch, codes_BKL).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for level, logits_BKV in enumerate(model.along(batch, codes_BKL)[0]):
        x_BKV = logits_BKV.log_softmax(-1)
        x_BKV.gather(-1, codes_BKL[..., level, None]).sum().backward(retain_graph=True)
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], **CLOSE)


def check_children_alone_are_found_as_among_all_codes(generator_class: Any, config: Any) -> None:
    """Search through `step_children` gives the lists of search through `step`, rules included."""
    model, batch = built(generator_class, config), tiny_batch()
    if not hasattr(model, "step_children"):
        return
    plain: Any = SimpleNamespace(start=model.start, step=model.step)
    keep_N = torch.arange(NUM_ITEMS) % 3 > 0
    exclude = [row[row >= 0][:3].tolist() for row in batch.items_BT]
    for rules in (None, Rules(exclude=exclude), Rules(keep_N=keep_N, exclude=exclude)):
        for width in (1, 4, NUM_ITEMS):
            found, expected = (
                beam_search(
                    way,
                    batch,
                    tiny_index(),
                    k=width,
                    beam_width=width,
                    rules=rules,
                )
                for way in (model, plain)
            )
            assert (found.rows_BK == expected.rows_BK).all()
            scores, other = map(torch.from_numpy, (found.scores_BK, expected.scores_BK))
            torch.testing.assert_close(scores, other, rtol=1e-5, atol=1e-5)


GENERATOR_CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
