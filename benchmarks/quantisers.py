"""Reconstruction error beside other quantisers at equal sizes: ours over theirs, lower is better.

    python benchmarks/quantisers.py --data amazon_beauty --seeds 0 1 2 3

Every fourth item's default vectors; 3 codebooks of 32. `faiss` (a dependency) with its residual and
product quantisers, `vector-quantize-pytorch` where it is installed. Both sides get the same seed.
Figures: `quantiser.<peer>.<setting>.error_ratio`, the mean over seeds, `by_seed`, and
`quantiser.<peer>.<setting>.{ours,theirs}`: squared errors over the variance of the vectors.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import torch
from figures import write

from sidrec import config, methods
from sidrec.data import load_named, split
from sidrec.recipe import default_config
from sidrec.tokenizers.opq import Opq, OpqConfig
from sidrec.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from sidrec.types import CatalogueContext, Floats, ItemVectors

LEVELS, BITS = 3, 5
CODES = 2**BITS
TRAIN = faiss.ResidualQuantizer
Rebuild = Callable[[ItemVectors, int], Floats]
"""Vectors and a seed in, the vectors as their codes give them back (N, D) out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="amazon_beauty")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    asked = parser.parse_args()
    vectors = sample(asked.data)
    figures: dict[str, dict[str, Any]] = {}
    for name, (ours, theirs) in pairs().items():
        errors_S2 = np.array(
            [[error(vectors, side(vectors, seed)) for side in (ours, theirs)]
             for seed in asked.seeds]
        )  # fmt: skip
        ratios_S = errors_S2[:, 0] / errors_S2[:, 1]
        measured = zip(("error_ratio", "ours", "theirs"), (ratios_S, *errors_S2.T), strict=True)
        for figure, values_S in measured:
            figures[f"quantiser.{name}.{figure}"] = {
                "value": round(float(values_S.mean()), 5),
                "unit": "ratio",
                "by_seed": [round(float(value), 5) for value in values_S],
            }
        print(f"{name:40} {ratios_S.mean():.4f} {np.round(ratios_S, 4)}", flush=True)
    path = write(
        f"quantisers_{asked.data}",
        figures,
        seeds=asked.seeds,
        command=" ".join(["python", *sys.argv]),
        notes=f"{len(vectors):,} vectors of width {vectors.vectors.shape[1]}, "
        f"{LEVELS} codebooks of {CODES}",
    )
    print(f"wrote {path.name}")


def sample(data: str) -> ItemVectors:
    """Default vectors of every fourth item."""
    dataset = load_named(data)
    chosen = default_config(dataset).embedding
    context = CatalogueContext(dataset.items, split(dataset, "leave_one_out").train)
    fitted = methods.resolve("embeddings", chosen.name).fit(
        context, config.with_seed(chosen.config, 0)
    )
    whole = fitted.embed(dataset.items)
    return ItemVectors(whole.item_ids[::4], np.ascontiguousarray(whole.vectors[::4]))


def error(vectors: ItemVectors, rebuilt_ND: Floats) -> float:
    """Squared error over the variance of the vectors."""
    points_ND = vectors.vectors.astype(np.float64)
    variance = np.square(points_ND - points_ND.mean(axis=0)).sum()
    return float(np.square(points_ND - rebuilt_ND).sum() / variance)


def pairs() -> dict[str, tuple[Rebuild, Rebuild]]:
    """`<peer>.<setting>` -> ours, theirs."""
    fine = {"beam": 5, "refinements": 5, "progressive": True}
    progressive, refined = TRAIN.Train_progressive_dim, TRAIN.Train_refine_codebook
    found: dict[str, tuple[Rebuild, Rebuild]] = {
        "faiss.residual_greedy": (residual(), faiss_residual(1, TRAIN.Train_default)),
        "faiss.residual_progressive": (
            residual(progressive=True),
            faiss_residual(1, progressive),
        ),
        "faiss.residual_beam": (residual(**fine), faiss_residual(5, progressive)),
        "faiss.residual_beam_refined": (
            residual(**fine),
            faiss_residual(5, progressive | refined),
        ),
        "faiss.product": (product(False), faiss_product(False)),
        "faiss.product_rotated": (product(True), faiss_product(True)),
    }
    if importlib.util.find_spec("vector_quantize_pytorch"):
        greedy, refining = residual(), residual(refinements=5, progressive=True)
        found["vector_quantize_pytorch.kmeans_start"] = (greedy, vq_pytorch(0))
        # its moving averages go on fitting all levels together, as refinements do
        found["vector_quantize_pytorch.30_passes"] = (refining, vq_pytorch(30))
    return found


def residual(**options: Any) -> Rebuild:
    def rebuild(vectors: ItemVectors, seed: int) -> Floats:
        chosen = ResidualKMeansConfig(num_codes=CODES, num_levels=LEVELS, seed=seed, **options)
        tokenizer = ResidualKMeans.fit(vectors, chosen)
        return tokenizer.decode(tokenizer.encode(vectors).codes)

    return rebuild


def product(rotate: bool) -> Rebuild:
    def rebuild(vectors: ItemVectors, seed: int) -> Floats:
        chosen = OpqConfig(num_codes=CODES, num_levels=LEVELS, rotate=rotate, seed=seed)
        tokenizer = Opq.fit(vectors, chosen)
        return tokenizer.decode(tokenizer.encode(vectors).codes)

    return rebuild


def faiss_residual(beam: int, train_type: int) -> Rebuild:
    def rebuild(vectors: ItemVectors, seed: int) -> Floats:
        peer = faiss.ResidualQuantizer(vectors.vectors.shape[1], LEVELS, BITS)
        peer.max_beam_size, peer.train_type = beam, train_type
        peer.cp.seed, peer.cp.min_points_per_centroid = seed, 1
        peer.train(vectors.vectors)
        return peer.decode(peer.compute_codes(vectors.vectors))

    return rebuild


def faiss_product(rotate: bool) -> Rebuild:
    def rebuild(vectors: ItemVectors, seed: int) -> Floats:
        array, width = vectors.vectors, vectors.vectors.shape[1]
        turn = faiss.OPQMatrix(width, LEVELS) if rotate else faiss.LinearTransform(width, width)
        if rotate:
            turn.pq, turn.niter = faiss.ProductQuantizer(width, LEVELS, BITS), 25
            turn.train(array)
        else:
            faiss.copy_array_to_vector(np.eye(width, dtype=np.float32).ravel(), turn.A)
            turn.is_trained, turn.is_orthonormal = True, True
        turned_ND = turn.apply(array)
        peer = faiss.ProductQuantizer(width, LEVELS, BITS)
        peer.cp.seed = seed
        peer.train(turned_ND)
        return turn.reverse_transform(peer.decode(peer.compute_codes(turned_ND)))

    return rebuild


def vq_pytorch(passes: int) -> Rebuild:
    """`passes` of moving averages over all vectors after k-means has started the codebooks."""

    def rebuild(vectors: ItemVectors, seed: int) -> Floats:
        import vector_quantize_pytorch as peer

        array_1ND = torch.from_numpy(vectors.vectors)[None]
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            model = peer.ResidualVQ(
                dim=array_1ND.shape[2],
                num_quantizers=LEVELS,
                codebook_size=CODES,
                kmeans_init=True,
                kmeans_iters=25,
                threshold_ema_dead_code=1,
            ).train()
            for _ in range(passes + 1):  # the first one runs the k-means
                model(array_1ND)
            return model.eval()(array_1ND)[0][0].numpy()

    return rebuild


if __name__ == "__main__":
    main()
