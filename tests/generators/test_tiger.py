"""TIGER: cached decoding, training targets and padding against slow, plain readings."""

import dataclasses
import itertools

import numpy as np
import polars as pl
import pytest
import torch

from sidrec import methods
from sidrec.decoding.exact import item_log_probs
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.errors import ConfigError, DataError
from sidrec.generators.tiger import (
    Tiger,
    TigerConfig,
    buckets_by_length,
    sample_per_row,
)
from sidrec.t5 import distance_buckets
from sidrec.testing.tiny_catalogue import small_config, tiny_batch, tiny_context
from sidrec.types import (
    CatalogueContext,
    Histories,
    HistoryBatch,
    Items,
    ItemVectors,
    SemanticIds,
    as_ids,
)

NUM_ITEMS, NUM_CODES = 30, (4, 5, 6)
SMALL = TigerConfig(
    width=16,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_heads=2,
    head_width=8,
    feed_forward=32,
    max_length=4,
    seed=3,
)


def context(codes=None):
    ids = as_ids(range(NUM_ITEMS))
    if codes is None:
        every = np.array(list(itertools.product(*map(range, NUM_CODES))))
        codes = every[np.random.default_rng(0).permutation(len(every))[:NUM_ITEMS]]
    return CatalogueContext(
        Items(ids, pl.DataFrame({"title": [str(i) for i in ids]})),
        Histories.from_lists([[0, 1]]),
        semantic_ids=SemanticIds(ids, codes.astype(np.int64), NUM_CODES),
    )


def model(config=SMALL, codes=None):
    return Tiger.build(context(codes), config).eval()


def batch(*sequences):
    return HistoryBatch.from_histories(Histories.from_lists(sequences), max_length=50)


def training_batch(*sequences):
    inputs = batch(*(s[:-1] for s in sequences))
    targets = torch.full_like(inputs.items_BT, -1)
    for row, sequence in enumerate(sequences):
        targets[row, : len(sequence) - 1] = torch.tensor(sequence[1:])
    return dataclasses.replace(inputs, targets_BT=targets)


HISTORIES = batch([3, 7, 1, 9, 20, 4], [5], [8, 2])


def all_codes():
    return torch.tensor(list(itertools.product(*map(range, NUM_CODES))))


def random_beams(tiger, histories, widths, seed=0):
    """Prefixes (B, W, L) and their log-probabilities (B, W) of beams that grow at random."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.arange(histories.num_requests)[:, None]
    logits, state = tiger.step(tiger.start(histories), None, None)
    total, prefixes = torch.zeros(len(rows), 1), torch.zeros(len(rows), 1, 0, dtype=torch.long)
    for level, width in enumerate(widths):
        shape = (len(rows), width)
        parents = torch.randint(logits.shape[1], shape, generator=random)
        codes = torch.randint(NUM_CODES[level], shape, generator=random)
        total = total[rows, parents] + logits.log_softmax(-1)[rows, parents, codes]
        prefixes = torch.cat([prefixes[rows, parents], codes[..., None]], -1)
        if level + 1 < len(widths):
            logits, state = tiger.step(state, codes, parents)
    return prefixes, total


@torch.inference_mode()
def test_cached_steps_with_random_parents_equal_the_teacher_forced_pass():
    tiger = model()
    codes_BKL, log_probs_BK = random_beams(tiger, HISTORIES, (5, 7, 6))
    torch.testing.assert_close(log_probs_BK, tiger.log_probs(HISTORIES, codes_BKL))


@torch.inference_mode()
def test_a_state_can_be_extended_twice():
    tiger = model()
    _, state = tiger.step(tiger.start(HISTORIES), None, None)
    codes, parents = torch.tensor([[0, 3], [1, 2], [2, 2]]), torch.zeros(3, 2, dtype=torch.long)
    first, _ = tiger.step(state, codes, parents)
    tiger.step(state, codes.flip(1), parents)
    again, _ = tiger.step(state, codes, parents)
    torch.testing.assert_close(first, again, rtol=0, atol=0)


@torch.inference_mode()
def test_probabilities_of_all_code_tuples_sum_to_one():
    codes = all_codes()
    log_probs = model().log_probs(HISTORIES, codes.expand(3, -1, -1))
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(3))


@torch.inference_mode()
def test_other_rows_and_padding_change_nothing():
    tiger, codes = model(), all_codes()[::7]
    together = tiger.log_probs(HISTORIES, codes.expand(3, -1, -1))
    for row, history in enumerate([[3, 7, 1, 9, 20, 4], [5], [8, 2]]):
        alone = tiger.log_probs(batch(history), codes[None])
        torch.testing.assert_close(together[row : row + 1], alone)


def test_fused_and_plain_attention_agree():
    tiger, codes = model(), all_codes()[::7].expand(3, -1, -1)
    plain = tiger.log_probs(HISTORIES, codes)
    with torch.inference_mode():
        torch.testing.assert_close(plain.detach(), tiger.log_probs(HISTORIES, codes))


@torch.inference_mode()
def test_only_the_last_max_length_items_are_read():
    tiger, codes = model(), all_codes()[None, ::7]
    long = tiger.log_probs(batch([3, 7, 1, 9, 20, 4]), codes)
    torch.testing.assert_close(long, tiger.log_probs(batch([1, 9, 20, 4]), codes))
    assert not torch.allclose(long, tiger.log_probs(batch([9, 20, 4]), codes))


@torch.inference_mode()
def test_an_empty_history_is_a_usable_one():
    tiger, codes = model(), all_codes()[::7]
    log_probs = tiger.log_probs(batch([], [4, 4]), codes.expand(2, -1, -1))
    assert log_probs.isfinite().all()
    torch.testing.assert_close(log_probs[:1], tiger.log_probs(batch([]), codes[None]))


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_is_the_mean_over_every_prefix_read_alone(tied):
    tiger = model(dataclasses.replace(SMALL, tied=tied))
    sequences = [[3, 7, 1, 9, 20, 4, 3], [5, 6], [8, 2, 11]]
    loss, parts = tiger.loss(training_batch(*sequences))
    alone = [
        -tiger.log_probs(batch(s[:end]), tiger.codes_NL[s[end]][None, None]).item()
        for s in sequences
        for end in range(1, len(s))
    ]
    assert loss.item() == pytest.approx(np.mean(alone), rel=1e-5)
    assert sum(parts.values()).item() == pytest.approx(loss.item(), rel=1e-6)


def test_every_weight_is_trained():
    tiger = model(dataclasses.replace(SMALL, tied=False))
    tiger.loss(training_batch([3, 7, 1, 9, 20, 4, 3], [5, 6], [8, 2, 11]))[0].backward()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in tiger.parameters())


def test_sampled_targets_are_at_most_so_many_a_sequence_and_all_come_up():
    rows = torch.tensor([0] * 5 + [2] * 1 + [3] * 3)
    torch.manual_seed(0)
    seen = torch.zeros(len(rows))
    for _ in range(60):
        chosen = sample_per_row(rows, 4, 2)
        assert rows[chosen].bincount(minlength=4).tolist() == [2, 0, 1, 2]
        assert (chosen.diff() > 0).all()
        seen[chosen] += 1
    assert (seen[:5] > 10).all() and seen[5] == 60 and (seen[6:] > 20).all()


def test_sampling_applies_in_training_only():
    config = dataclasses.replace(SMALL, dropout=0.0, targets_per_sequence=1)
    sequences = training_batch([3, 7, 1, 9, 20, 4, 3], [5, 6])
    tiger, everything = model(config), model().loss(sequences)[0]
    torch.testing.assert_close(tiger.loss(sequences)[0], everything)
    torch.manual_seed(0)
    drawn = {round(tiger.train().loss(sequences)[0].item(), 5) for _ in range(30)}
    assert 1 < len(drawn) <= 6


@torch.inference_mode()
def test_a_shorter_id_ends_with_a_symbol_of_its_own_and_its_missing_codes_are_unseen():
    codes = context().semantic_ids.codes.copy()
    codes[9, 1:] = -1
    tiger, history = model(codes=codes), batch([3, 7])
    assert tiger.widths == (4, 6, 7)
    whole = tiger.log_probs(history, tiger.codes_NL[None, 9:10])
    logits, state = tiger.step(tiger.start(history), None, None)
    first = logits.log_softmax(-1)[0, :, codes[9, 0]]
    logits, _ = tiger.step(state, torch.tensor([[codes[9, 0]]]), torch.tensor([[0]]))
    torch.testing.assert_close(whole[0], first + logits.log_softmax(-1)[0, :, NUM_CODES[1]])
    short = torch.cat([all_codes(), torch.tensor([[a, -1, -1] for a in range(4)])])
    short = torch.cat([short, torch.tensor([[a, b, -1] for a in range(4) for b in range(5)])])
    torch.testing.assert_close(tiger.log_probs(history, short[None]).exp().sum(), torch.tensor(1.0))

    def seen():
        return [keys[:, :, :4] for keys, _ in tiger.start(batch([3, 9, 9])).memory]

    before = seen()
    tiger.embedding.weight[0] += 1  # the padding token
    torch.testing.assert_close(before, seen())


def test_distance_buckets_are_those_of_t5():
    both = distance_buckets(torch.tensor([0, -1, 1, -7, -8, 8, -127, 500]), True)
    assert both.tolist() == [0, 1, 17, 7, 8, 24, 15, 31]
    past = distance_buckets(torch.tensor([3, 0, -1, -15, -16, -1000]), False)
    assert past.tolist() == [0, 0, 1, 15, 16, 31]


def test_length_groups_hold_every_row_once_and_little_padding():
    lengths = torch.randint(0, 20, (200,), generator=torch.manual_seed(1))
    groups = buckets_by_length(lengths)
    assert torch.cat(groups).sort().values.tolist() == list(range(200))
    for group in groups:
        assert (lengths[group].max() + 1) / (lengths[group].min() + 1) < 1.27


def test_building_is_seeded_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    first, drawn = model(), torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == drawn
    for a, b in zip(first.parameters(), model().parameters(), strict=True):
        assert torch.equal(a, b)
    other = model(dataclasses.replace(SMALL, seed=4))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


def test_code_embeddings_can_start_as_a_linear_map_of_their_items_vectors():
    known, config = context(), dataclasses.replace(SMALL, start_from_vectors=True)
    centres = np.random.default_rng(0).standard_normal((NUM_CODES[0], 6)).astype(np.float32)
    centres[3] = centres[0] + centres[1] - centres[2]  # a parallelogram stays one
    vectors = ItemVectors(known.items.item_ids, centres[known.semantic_ids.codes[:, 0]])
    tiger = Tiger.build(dataclasses.replace(known, vectors=vectors), config)
    rows = tiger.embedding.weight[1 : 1 + NUM_CODES[0]].detach()
    torch.testing.assert_close(rows[3], rows[0] + rows[1] - rows[2], atol=1e-5, rtol=1e-5)
    assert rows.std().item() == pytest.approx(1, abs=1e-4)
    with pytest.raises(DataError, match="embed first"):
        Tiger.build(known, config)


def test_bad_settings_and_missing_inputs_say_what_to_do():
    with pytest.raises(ConfigError, match=r"tiger\.num_heads must be at least 1, got 0"):
        TigerConfig(num_heads=0)
    with pytest.raises(ConfigError, match=r"tiger\.dropout"):
        TigerConfig(dropout=1.0)
    with pytest.raises(ConfigError, match="leave it out to use all"):
        TigerConfig(targets_per_sequence=0)
    with pytest.raises(DataError, match="run a tokenizer first"):
        Tiger.build(dataclasses.replace(context(), semantic_ids=None), SMALL)
    with pytest.raises(DataError, match="without targets"):
        model().loss(HISTORIES)


@pytest.mark.parametrize("name", ["tiger", "s2gr_tiger"])
def test_given_items_are_scored_outside_inference_mode_too(name):
    chosen = methods.resolve("generators", name)
    made = tiny_context()
    model = chosen.build(made, small_config(chosen.config_class)).eval()
    index = PrefixIndex.build(made.semantic_ids)
    rows_BK = torch.tensor([[0, 5], [7, 23]])
    found = item_log_probs(model, tiny_batch(2), index, rows_BK)
    with torch.inference_mode():
        expected = item_log_probs(model, tiny_batch(2), index, rows_BK)
    torch.testing.assert_close(found, expected)
