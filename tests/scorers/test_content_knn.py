from __future__ import annotations

import numpy as np
import pytest
import torch

from sidrec.errors import ConfigError
from sidrec.scorers.content_knn import ContentKnn, ContentKnnConfig
from sidrec.testing.tiny_catalogue import tiny_batch, tiny_context


def test_scores_are_the_weighted_cosines_to_the_history():
    context, batch = tiny_context(), tiny_batch()
    assert context.vectors is not None
    config = ContentKnnConfig(decay=0.5, temperature=0.1, max_length=3)
    scores_BN = ContentKnn.build(context, config).scores(batch).numpy()
    centred = context.vectors.vectors - context.vectors.vectors.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    for row in range(batch.num_requests):
        history = batch.items_BT[row, : int(batch.lengths_B[row])].numpy()[-3:]
        weights = 0.5 ** np.arange(len(history))[::-1]
        expected = (weights / weights.sum()) @ (unit[history] @ unit.T)
        expected[np.unique(history)] -= 2
        np.testing.assert_allclose(scores_BN[row], expected / 0.1, rtol=1e-4, atol=1e-4)


def test_items_of_the_history_come_last_unless_the_penalty_is_off():
    context, batch = tiny_context(), tiny_batch()
    seen = set(batch.items_BT[0, : int(batch.lengths_B[0])].tolist())
    scores_N = ContentKnn.build(context, ContentKnnConfig()).scores(batch)[0]
    assert set(scores_N.argsort()[: len(seen)].tolist()) == seen
    config = ContentKnnConfig(repeat_penalty=0, max_length=1)
    open_BN = ContentKnn.build(context, config).scores(batch)
    last_B = batch.items_BT.gather(1, batch.lengths_B[:, None] - 1)[:, 0]
    assert torch.equal(open_BN.argmax(1), last_B)


@pytest.mark.parametrize("values", [{"decay": 0}, {"temperature": 0}, {"max_length": 0}])
def test_settings_that_mean_nothing_are_refused(values):
    with pytest.raises(ConfigError, match="content_knn"):
        ContentKnnConfig(**values)
