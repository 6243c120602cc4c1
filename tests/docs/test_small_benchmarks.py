"""Benchmarks of collision policies, other quantisers and graph search count what they say."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import collisions  # noqa: E402
import graph_search  # noqa: E402
import quantisers  # noqa: E402

from sidrec.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig  # noqa: E402
from sidrec.types import Examples, Histories, ItemVectors, as_ids  # noqa: E402


@pytest.fixture(scope="module")
def vectors():
    array = np.random.default_rng(0).standard_normal((120, 6)).astype(np.float32)
    array[:10] = array[0]  # a group that shares an ID
    return ItemVectors(as_ids(range(120)), array)


@pytest.fixture(scope="module")
def fitted(vectors):
    return ResidualKMeans.fit(vectors, ResidualKMeansConfig(num_codes=8, num_levels=3))


def test_policies_are_compared_on_the_same_ids(vectors, fitted):
    found = {policy: collisions.outcome(policy, fitted, vectors) for policy in collisions.POLICIES}
    keep, shares = found["keep"], {p: of["collision_share"] for p, of in found.items()}
    assert keep["collision_share"] >= 10 / 120 and keep["largest_group"] >= 10
    assert keep["codes_moved"] == 0 and 0 < shares["sinkhorn"] < shares["keep"]  # duplicates stay
    assert shares["counter"] == shares["reassign"] == shares["capacity"] == 0
    assert found["counter"]["codes_an_item"] == 4
    assert found["counter"]["quantisation_error"] == keep["quantisation_error"]
    assert found["reassign"]["quantisation_error"] > keep["quantisation_error"]
    assert found["capacity_half"]["prefixes_moved"] > found["reassign"]["prefixes_moved"]


def test_errors_of_quantisers_are_shares_of_the_variance(vectors):
    mean_ND = np.broadcast_to(vectors.vectors.mean(axis=0), vectors.vectors.shape)
    assert quantisers.error(vectors, vectors.vectors) == 0
    assert quantisers.error(vectors, mean_ND) == pytest.approx(1)
    rebuilt_ND = quantisers.residual()(vectors, 0)
    assert 0 < quantisers.error(vectors, rebuilt_ND) < 0.5
    peer_ND = quantisers.faiss_residual(1, quantisers.TRAIN.Train_default)(vectors, 0)
    assert 0 < quantisers.error(vectors, peer_ND) < 0.5


def test_graph_search_is_paired_with_the_exact_lists():
    users = Examples(np.arange(4), Histories.from_lists([[0]] * 4), np.array([0, 1, 2, 50]))
    exact_QK = np.tile(np.arange(10), (4, 1))
    walked_QK = exact_QK.copy()
    walked_QK[1, 1] = 99  # one of ten items, and the target of that user, lost
    figures = graph_search.accuracy({"exact": exact_QK, "walk": walked_QK}, users)
    assert figures["parallel.exact.recall@10"]["value"] == 0.75
    assert figures["parallel.walk.recall@10"]["value"] == 0.5
    assert figures["parallel.walk.minus_exact.recall@10"]["value"] == -0.25
    assert figures["parallel.walk.overlap@10"]["value"] == pytest.approx(0.975)
