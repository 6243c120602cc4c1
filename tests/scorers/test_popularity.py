import numpy as np
import polars as pl
import torch

from sidrec.scorers.popularity import Popularity, PopularityConfig
from sidrec.types import CatalogueContext, Histories, HistoryBatch, Items, as_ids


def test_scores_are_training_counts_for_everyone_and_survive_saving():
    train = Histories.from_lists([[0, 1, 1], [3, 1], [3]])
    context = CatalogueContext(Items(as_ids(range(5)), pl.DataFrame()), train)
    scorer = Popularity.build(context, PopularityConfig())
    batch = HistoryBatch.from_histories(Histories.from_lists([[2], []]), max_length=3)
    scores_BN = scorer.scores(batch)
    assert scores_BN.tolist() == [[1, 3, 0, 2, 0]] * 2 and scores_BN.dtype == torch.float32
    scores_BN[0, 0] = 99.0
    again = Popularity.from_arrays(PopularityConfig(), scorer.arrays(), scorer.state())
    assert np.array_equal(again.scores(batch)[1], [1, 3, 0, 2, 0])
