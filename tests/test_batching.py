import numpy as np
import pytest

from sidrec.batching import TrainingBatches
from sidrec.errors import DataError
from sidrec.types import PAD, Histories


def make(lengths, max_length=8, batch_positions=32):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    histories = Histories(np.arange(offsets[-1]), offsets)  # an item names its event
    return histories, TrainingBatches.cut(
        histories, max_length=max_length, batch_positions=batch_positions
    )


def pairs(batches, epoch=0):
    """(input, target) of every real position of an epoch."""
    seen = []
    for windows in batches.epoch(seed=3, epoch=epoch):
        batch = batches.build(windows)
        assert batch.targets_BT is not None
        real = batch.targets_BT != PAD
        assert (real.sum(1) == batch.lengths_B).all()
        assert (batch.items_BT[~real] == PAD).all()
        seen += list(zip(batch.items_BT[real].tolist(), batch.targets_BT[real].tolist(),
                         strict=True))  # fmt: skip
    return seen


def test_every_target_is_trained_once_after_the_item_before_it_windows_included():
    histories, batches = make([0, 1, 2, 9, 10, 8, 25, 17, 3, 40])
    firsts = set(histories.offsets.tolist())
    targets = [e for e in range(len(histories.items_E)) if e not in firsts]
    assert sorted(pairs(batches)) == [(t - 1, t) for t in targets]
    assert sorted(pairs(batches, epoch=1)) == sorted(pairs(batches))
    assert batches.num_targets == len(targets)
    assert batches.lengths_S.max() == 8


def test_the_newest_window_of_a_long_sequence_is_full():
    _, batches = make([21])  # 20 targets: 4 + 8 + 8
    assert dict(zip(batches.starts_S.tolist(), batches.lengths_S.tolist(), strict=True)) == {
        0: 4, 4: 8, 12: 8,
    }  # fmt: skip


def test_batches_are_equal_shares_with_hardly_any_padding():
    lengths = np.random.default_rng(0).geometric(0.13, size=4000) + 3
    _, batches = make(lengths, max_length=50, batch_positions=256)
    sizes = [int(batches.lengths_S[w].sum()) for w in batches.epoch(0, 0)]
    slots = [batches.build(w).items_BT.numel() for w in batches.epoch(0, 0)]
    assert abs(len(sizes) - batches.num_targets / 256) < 2
    assert max(sizes) <= 256 + 2 * 50
    assert sum(slots) / sum(sizes) < 1.03


def test_order_depends_on_seed_and_epoch_only():
    _, batches = make(np.full(40, 5))
    flat = {key: np.concatenate(batches.epoch(*key)).tolist() for key in [(0, 0), (0, 1), (1, 0)]}
    assert flat[0, 0] == np.concatenate(batches.epoch(0, 0)).tolist()
    assert flat[0, 0] != flat[0, 1] != flat[1, 0]


def test_sequences_without_a_target_are_refused_in_words():
    with pytest.raises(DataError, match="none of the 3 training sequences has two events"):
        make([1, 0, 1])
