"""Reconstruction error beside other implementations, at equal sizes: never higher.

`faiss` (a dependency) for residual and product quantisation, `vector-quantize-pytorch` where it is
installed. Synthetic vectors always, 3,000 vectors of Amazon Beauty's texts with `SIDREC_DATA`.
"""

import os
from pathlib import Path

import faiss
import numpy as np
import polars as pl
import pytest

from sidrec.embeddings.lsa import Lsa, LsaConfig
from sidrec.tokenizers.opq import Opq, OpqConfig
from sidrec.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from sidrec.types import CatalogueContext, Histories, Items, ItemVectors, as_ids

FOLDER = Path(os.environ.get("SIDREC_DATA", "")) / "amazon_beauty"
LEVELS, BITS = 3, 5
CODES = 2**BITS
LIKE_FAISS = {"beam": 5, "refinements": 5, "progressive": True}
TOLERANCE = 1.02
"""The local optima of k-means differ by about as much between seeds."""


def mixture():
    """1,200 vectors of width 24 on a decaying spectrum, as text vectors have it."""
    random = np.random.default_rng(0)
    spectrum = 1 / np.sqrt(1 + np.arange(24))
    centres = random.standard_normal((80, 24)) * spectrum
    noise = 0.4 * random.standard_normal((1200, 24)) * spectrum
    array = centres[random.integers(0, 80, 1200)] + noise
    return ItemVectors(as_ids(range(1200)), array.astype(np.float32))


def beauty():
    """Every fourth item of Beauty: LSA, 384 wide."""
    table = pl.read_parquet(FOLDER / "items.parquet")[::4]
    items = Items(as_ids(table["item_id"].to_list()), table)
    context = CatalogueContext(items, Histories.from_lists([]))
    return Lsa.fit(context, LsaConfig(dim=384)).embed(items)


real = pytest.param(
    beauty,
    marks=[
        pytest.mark.slow,
        pytest.mark.data,
        pytest.mark.skipif(not FOLDER.is_dir(), reason="SIDREC_DATA is not set"),
    ],
)


@pytest.fixture(scope="module", params=[mixture, real], ids=["mixture", "beauty"])
def vectors(request):
    return request.param()


def error(vectors, rebuilt):
    return float(np.square(vectors.vectors - rebuilt, dtype=np.float64).sum(axis=1).mean())


def our_error(vectors, tokenizer_class, config):
    tokenizer = tokenizer_class.fit(vectors, config)
    return error(vectors, tokenizer.decode(tokenizer.encode(vectors).codes))


def residual_oracle(vectors, beam, train_type):
    oracle = faiss.ResidualQuantizer(vectors.vectors.shape[1], LEVELS, BITS)
    oracle.max_beam_size, oracle.train_type = beam, train_type
    oracle.cp.min_points_per_centroid = 1  # no warning that a level has few points
    oracle.train(vectors.vectors)
    return error(vectors, oracle.decode(oracle.compute_codes(vectors.vectors)))


TRAIN = faiss.ResidualQuantizer


@pytest.mark.parametrize(
    ("options", "beam", "train_type"),
    [
        ({}, 1, TRAIN.Train_default),
        ({"progressive": True}, 1, TRAIN.Train_progressive_dim),
        (LIKE_FAISS, 5, TRAIN.Train_progressive_dim),
        (LIKE_FAISS, 5, TRAIN.Train_progressive_dim | TRAIN.Train_refine_codebook),
    ],
    ids=["greedy", "progressive", "beam", "beam and refinement"],
)
def test_residual_kmeans_is_no_worse_than_the_residual_quantizer_of_faiss(
    vectors, options, beam, train_type
):
    ours = our_error(vectors, ResidualKMeans, ResidualKMeansConfig(num_codes=CODES, **options))
    assert ours <= TOLERANCE * residual_oracle(vectors, beam, train_type)


@pytest.mark.parametrize("rotate", [False, True], ids=["PQ", "OPQ"])
def test_opq_is_no_worse_than_the_product_quantizer_of_faiss(vectors, rotate):
    array, width = vectors.vectors, vectors.vectors.shape[1]
    turn = faiss.OPQMatrix(width, LEVELS) if rotate else faiss.LinearTransform(width, width)
    if rotate:
        turn.pq = faiss.ProductQuantizer(width, LEVELS, BITS)
        turn.niter = 25
        turn.train(array)
    else:
        faiss.copy_array_to_vector(np.eye(width, dtype=np.float32).ravel(), turn.A)
        turn.is_trained, turn.is_orthonormal = True, True
    turned = turn.apply(array)
    oracle = faiss.ProductQuantizer(width, LEVELS, BITS)
    oracle.train(turned)
    theirs = error(vectors, turn.reverse_transform(oracle.decode(oracle.compute_codes(turned))))
    config = OpqConfig(num_codes=CODES, num_levels=LEVELS, rotate=rotate)
    assert our_error(vectors, Opq, config) <= TOLERANCE * theirs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_residual_kmeans_is_no_worse_than_vector_quantize_pytorch(vectors):
    theirs = pytest.importorskip("vector_quantize_pytorch")
    import torch

    array = torch.from_numpy(vectors.vectors)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        oracle = theirs.ResidualVQ(
            dim=array.shape[1],
            num_quantizers=LEVELS,
            codebook_size=CODES,
            kmeans_init=True,
            kmeans_iters=25,
            threshold_ema_dead_code=1,
        ).train()
        for _ in range(30):
            oracle(array[None])
        rebuilt = oracle.eval()(array[None])[0][0].numpy()
    # its moving averages go on fitting all levels together, as refinements do
    config = ResidualKMeansConfig(num_codes=CODES, refinements=5, progressive=True)
    assert our_error(vectors, ResidualKMeans, config) <= TOLERANCE * error(vectors, rebuilt)
