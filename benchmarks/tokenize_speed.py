"""Time tokenizers on synthetic vectors: fit, encode, peak memory, at 12k, 100k, 1M x 128.

The vectors are a seeded mixture of 5,000 Gaussians on a decaying spectrum, of unit length, as text
vectors are. Every method runs with its defaults in a process of its own, so peak memory is its own
(vectors and libraries included). The same vectors are encoded under other item ids, so that no
tokenizer can look up what it fitted. Those that train a network fit on the first 12,000 items
whatever the size (`fit_items` says so) and encode all; the sequences they learn from are random
walks over the Gaussians. `python benchmarks/tokenize_speed.py [--methods opq …] [--sizes 12k 1m …]`
writes, with <size> in 12k, 100k, 1m:

    tokenize.<method>.{fit,encode}_<size>_x_128.seconds
    tokenize.<method>.<size>_x_128.{seconds,fit_seconds,encode_seconds,error_ratio,peak_memory}

A run replaces the file of the same day; try things out with `--out`. (A file called tokenize.py
would hide the standard library's.)
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl
from figures import ROOT, write

from sidrec import methods
from sidrec.tokenizers.health import error_ratio
from sidrec.types import CatalogueContext, Floats, Histories, Ints, Items, ItemVectors, as_ids

DIM = 128
SIZES = {"12k": 12_000, "100k": 100_000, "1m": 1_000_000}
FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "residual_kmeans": ("residual_kmeans", {}),
    "balanced_kmeans": ("balanced_kmeans", {}),
    "opq": ("opq", {}),
    "pq": ("opq", {"rotate": False}),
    "residual_kmeans_progressive": ("residual_kmeans", {"progressive": True}),
    "residual_kmeans_beam5": ("residual_kmeans", {"beam": 5}),
    "sarq": ("sarq", {}),
}
"""Name -> method and settings; the first four are measured unless others are asked for."""
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, {}) for name in ("rqvae", "coba_rqvae", "plum_rqvae", "acrq", "letter", "fsq")
}
FIT_ITEMS = 12_000
"""Items that a trained tokenizer fits on."""


def mixture(num_items: int, seed: int = 0) -> tuple[Floats, Ints]:
    """Unit vectors (num_items, 128) around 5,000 centres, and the centre (num_items,) of each."""
    random = np.random.default_rng(seed)
    spectrum = (1 / np.sqrt(1 + np.arange(DIM))).astype(np.float32)
    centres = random.standard_normal((5_000, DIM), dtype=np.float32) * spectrum
    vectors = 0.5 * random.standard_normal((num_items, DIM), dtype=np.float32) * spectrum
    centre_N = random.integers(0, len(centres), num_items)
    vectors += centres[centre_N]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, centre_N


def sequences(centre_N: Ints, seed: int = 0) -> Histories:
    """As many sequences of 8 items as there are items, most of one centre each."""
    random = np.random.default_rng(seed)
    order_N = np.argsort(centre_N, kind="stable")
    start_U = random.integers(0, len(order_N), len(order_N))
    near_UE = start_U[:, None] + random.integers(0, 8, (len(order_N), 8))
    items_E = order_N[np.minimum(near_UE, len(order_N) - 1)].reshape(-1)
    return Histories(items_E, np.arange(0, len(items_E) + 1, 8))


def measure(name: str, num_items: int) -> dict[str, float]:
    """Seconds, error and GiB of one method in this process, which must be a fresh one."""
    method, settings = (FAMILY | TRAINED)[name]
    tokenizer_class = methods.resolve("tokenizers", method)
    array, centre_N = mixture(num_items)
    known = min(num_items, FIT_ITEMS) if name in TRAINED else num_items
    item_ids = as_ids(range(known))
    vectors = ItemVectors(item_ids, array[:known])
    others = ItemVectors(as_ids(range(num_items, 2 * num_items)), array)
    context = None
    if name in TRAINED or name == "sarq":
        items = Items(item_ids, pl.DataFrame({"item_id": item_ids.tolist()}))
        context = CatalogueContext(items, sequences(centre_N[:known]), vectors)
    started = time.perf_counter()
    tokenizer = tokenizer_class.fit(vectors, tokenizer_class.config_class(**settings), context)
    fitted = time.perf_counter()
    ids = tokenizer.encode(others)
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    sample = slice(0, 100_000)
    return {
        "fit": fitted - started,
        "encode": ended - fitted,
        "fit_items": known,
        "error_ratio": error_ratio(array[sample], tokenizer.decode(ids.codes[sample])),
        "collision_share": ids.collision_share(),
        "peak_memory": peak / 1024 ** (3 if sys.platform == "darwin" else 2),
    }


def figures_of(name: str, size: str, found: dict[str, float]) -> dict[str, dict[str, Any]]:
    """The figures of one measurement by their names."""

    def seconds(value: float) -> dict[str, Any]:
        return {"value": float(f"{value:.3g}"), "unit": "s"}

    stem, sized = f"tokenize.{name}", f"tokenize.{name}.{size}_x_{DIM}"
    return {
        f"{stem}.fit_{size}_x_{DIM}.seconds": seconds(found["fit"]),
        f"{stem}.encode_{size}_x_{DIM}.seconds": seconds(found["encode"]),
        f"{sized}.fit_items": {"value": int(found["fit_items"]), "unit": "items"},
        f"{sized}.fit_seconds": seconds(found["fit"]),
        f"{sized}.encode_seconds": seconds(found["encode"]),
        f"{sized}.seconds": seconds(found["fit"] + found["encode"]),
        f"{sized}.error_ratio": {"value": round(found["error_ratio"], 4), "unit": "ratio"},
        f"{sized}.peak_memory": {"value": round(found["peak_memory"], 3), "unit": "GiB"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=FAMILY | TRAINED, default=list(FAMILY)[:4])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--what", default="tokenize", help="name of the file")
    parser.add_argument("--out", type=Path, default=ROOT, help="folder for speed/tokenize_*.json")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    print(f"{faiss.omp_get_max_threads()} threads")
    for size in arguments.sizes:
        for name in arguments.methods:
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=spawn) as process:
                found = process.submit(measure, name, SIZES[size]).result()
            shown = ", ".join(f"{key} {value:.3g}" for key, value in found.items())
            print(f"{name} {size} x {DIM}: {shown}", flush=True)
            figures |= figures_of(name, size, found)
    command = " ".join(["python", *sys.argv])
    path = write(
        arguments.what, figures, seeds=[0], command=command, folder="speed", root=arguments.out
    )
    print(path.name)


if __name__ == "__main__":
    main()
