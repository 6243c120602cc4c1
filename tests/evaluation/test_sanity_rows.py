"""The protocol check: two training-free rows on real data have known values."""

import os

import numpy as np
import pytest
import scipy.sparse
import torch

from sidrec.data import load_named, split
from sidrec.evaluation import EvaluationContext, evaluate

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not os.environ.get("SIDREC_DATA"), reason="SIDREC_DATA is not set"),
]


def popularity(cut):
    counts = torch.from_numpy(cut.train_counts_N).float()
    return lambda batch: counts.expand(batch.num_requests, -1)


def transitions(cut):
    """Training counts of last item -> next item, equal counts in the order first seen; items that
    never followed come after, by popularity."""
    flat, offsets = cut.train.items_E, cut.train.offsets
    follows = np.ones(len(flat), dtype=bool)
    follows[offsets[:-1][cut.train.lengths > 0]] = False
    pairs = flat[np.flatnonzero(follows) - 1] * cut.num_items + flat[follows]
    pairs, first, counts = np.unique(pairs, return_index=True, return_counts=True)
    values = (counts + 0.5 * (1 - first / (first.max() + 1))).astype(np.float32)
    cells = np.divmod(pairs, cut.num_items)
    counts_NN = scipy.sparse.csr_matrix((values, cells), (cut.num_items, cut.num_items))
    back_off = torch.from_numpy(cut.train_counts_N / (cut.train_counts_N.max() + 1) - 1).float()

    def scores(batch):
        last = batch.items_BT[torch.arange(batch.num_requests), batch.lengths_B - 1]
        block = torch.from_numpy(counts_NN[last.numpy()].toarray())
        return torch.where(block > 0, block, back_off)

    return scores


@pytest.mark.parametrize(
    ("name", "expected_popularity", "expected_transitions"),
    [
        ("amazon_beauty", 0.0114, 0.0624),
        pytest.param("amazon_sports", 0.0090, 0.0339, marks=pytest.mark.slow),
    ],
)
def test_training_free_rows_equal_the_known_values(name, expected_popularity, expected_transitions):
    cut = split(load_named(name, download=False))
    settings = {"context": EvaluationContext.of(cut), "max_length": 50, "resamples": 200}
    popular = evaluate("popularity", cut.test, scores=popularity(cut), **settings)
    assert popular.value("recall@10") == pytest.approx(expected_popularity, abs=0.001)
    graph = evaluate("transitions", cut.test, scores=transitions(cut), **settings)
    assert graph.value("recall@10") == pytest.approx(expected_transitions, abs=0.0005)
    assert graph.strata["cold"]["recall@10"].value < 0.001
