"""Time residual k-means, 3 x 256 codes, on a million 128-wide vectors: fit, encode, both.

The vectors are a seeded mixture of 5,000 Gaussians on a decaying spectrum, of unit length, as text
vectors are. `python benchmarks/residual_kmeans.py [--items 1000000]` writes the figures
`tokenize.residual_kmeans.1m_x_128.{seconds,fit_seconds,encode_seconds,error_ratio}` where `--items`
is a million. (A file called tokenize.py would hide the standard library's.)
"""

from __future__ import annotations

import argparse
import sys
import time

import faiss
import numpy as np
from figures import write

from sidrec.tokenizers.health import error_ratio
from sidrec.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from sidrec.types import Floats, ItemVectors, as_ids

DIM, MILLION = 128, 1_000_000


def mixture(num_items: int, seed: int = 0) -> Floats:
    """Unit vectors (num_items, 128) around 5,000 centres."""
    random = np.random.default_rng(seed)
    spectrum = (1 / np.sqrt(1 + np.arange(DIM))).astype(np.float32)
    centres = random.standard_normal((5_000, DIM), dtype=np.float32) * spectrum
    vectors = 0.5 * random.standard_normal((num_items, DIM), dtype=np.float32) * spectrum
    vectors += centres[random.integers(0, len(centres), num_items)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--items", type=int, default=MILLION)
    num_items = arguments.parse_args().items
    vectors = ItemVectors(as_ids(range(num_items)), mixture(num_items))
    started = time.perf_counter()
    tokenizer = ResidualKMeans.fit(vectors, ResidualKMeansConfig())
    fitted = time.perf_counter()
    ids = tokenizer.encode(vectors)
    ended = time.perf_counter()
    sample = slice(0, 100_000)
    ratio = error_ratio(vectors.vectors[sample], tokenizer.decode(ids.codes[sample]))
    seconds = {
        "seconds": ended - started,
        "fit_seconds": fitted - started,
        "encode_seconds": ended - fitted,
    }
    shown = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    print(
        f"{num_items} x {DIM}, {faiss.omp_get_max_threads()} threads: {shown}; "
        f"error ratio {ratio:.3f}, collision share {ids.collision_share():.3f}"
    )
    if num_items == MILLION:
        name = "tokenize.residual_kmeans.1m_x_128"
        figures = {f"{name}.{k}": {"value": round(v, 2), "unit": "s"} for k, v in seconds.items()}
        figures[f"{name}.error_ratio"] = {"value": round(ratio, 4), "unit": "ratio"}
        command = " ".join(["python", *sys.argv])
        write("tokenize", figures, seeds=[0], command=command, folder="speed")


if __name__ == "__main__":
    main()
