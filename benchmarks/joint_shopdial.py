"""The joint scorer on MG-ShopDial: 57 products, 64 dialogues that mix search and recommendation.

    taskset -c 0 python benchmarks/joint_shopdial.py --write

Five folds over dialogues. A request is a product that the assistant brings up for the first time:
found by what the shopper said (`search`), by the products named before it (`recommend`, where there
are any), or by both. Models learn from the other folds' dialogues and from queries made of product
texts; joint and separate ones have the same parameters and epochs. Intervals are over dialogues. So
few of them, with words that often say nothing ("yes, please"), support no claim of a difference
under about .15, and none about shops.
Figures: `joint.shopdial.{search,recommend,both}.{joint,separate,bm25,random}.ndcg@10`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from figures import write

from sidrec import methods
from sidrec.data.search.shopdial import ShopRequest, read_shopdial
from sidrec.embeddings.lsa import Lsa, LsaConfig
from sidrec.embeddings.queries import made_queries
from sidrec.evaluation.joint import iceg
from sidrec.evaluation.metrics import ndcg
from sidrec.evaluation.significance import bootstrap, paired
from sidrec.retrieval.search.bm25 import Bm25, Bm25Config
from sidrec.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from sidrec.training import train
from sidrec.training_config import TrainConfig
from sidrec.types import CatalogueContext, Histories, HistoryBatch, Items

K, FOLDS = 10, 5
SIZES: dict[str, Any] = {"width": 32, "pair_width": 16, "num_negatives": 64, "num_hard": 8}
TRAINING = TrainConfig(
    epochs=30, batch_positions=32, learning_rate=3e-3, weight_decay=0.1, warmup_steps=10,
    patience=0, precision="fp32",
)  # fmt: skip
SYSTEMS: dict[str, dict[str, float]] = {
    "joint": {},
    "recommend": {"similar_weight": 0.0, "search_weight": 0.0},
    "search": {"similar_weight": 0.0, "recommend_weight": 0.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--write", action="store_true", help="write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = read_shopdial(Path(os.environ["SIDREC_DATA"]) / "mg_shopdial")
    print(*found.notes, sep="\n")
    names = sorted({request.dialogue for request in found.requests})
    order = np.random.default_rng(0).permutation(len(names))
    fold_of = {names[d]: place % FOLDS for place, d in enumerate(order.tolist())}
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for fold in range(FOLDS):
        asked = [r for r in found.requests if fold_of[r.dialogue] == fold]
        learnt = [r for r in found.requests if fold_of[r.dialogue] != fold]
        bm25 = Bm25.fit(found.items, Bm25Config())
        for request in asked:
            rows = torch.arange(len(found.items))[None]
            scores_N = bm25.ask([request.query or "-"], 1).log_probs(rows)[0]
            add(values, "search.bm25", request, scores_N)
            add(values, "search.random", request, torch.zeros(len(found.items)))
        for seed in arguments.seeds:
            for system in SYSTEMS:
                model = trained(found.items, learnt, system, seed)
                answer(values, system, model, asked)
        print(f"fold {fold}: {len(asked)} requests", flush=True)
    columns = {
        key: {dialogue: float(np.mean(kept)) for dialogue, kept in by_dialogue.items()}
        for key, by_dialogue in values.items()
    }
    figures = figures_of(columns)
    for key, figure in sorted(figures.items()):
        print(f"{key}: {figure['value']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]")
    if arguments.write:
        path = write(
            "joint_shopdial",
            figures,
            seeds=arguments.seeds,
            command=" ".join(["python", *sys.argv]),
            notes="; ".join(found.notes) + f"; {FOLDS} folds over dialogues, intervals over them",
        )
        print(f"wrote {path.name}")


def trained(items: Items, learnt: list[ShopRequest], system: str, seed: int) -> Any:
    """The scorer of these dialogues, of all tasks or of one."""
    sequences: dict[str, list[int]] = defaultdict(list)
    for request in learnt:
        sequences[request.dialogue].append(request.target)
    train_part = Histories.from_lists(list(sequences.values()))
    context = CatalogueContext(items, train_part)
    vectors = Lsa.fit(context, LsaConfig(dim=32)).embed(items)
    ids = ResidualKMeans.fit(vectors, ResidualKMeansConfig(num_codes=8, seed=seed)).encode(vectors)
    context = CatalogueContext(items, train_part, vectors, ids)
    made = made_queries(items, per_item=8, max_words=4, seed=seed)
    pairs = [
        *zip(made.texts, made.rows_P.tolist(), strict=True),
        *((r.query, r.target) for r in learnt if r.query),
    ]
    table = pl.DataFrame(
        {"query": [q for q, _ in pairs], "item_id": [str(items.item_ids[i]) for _, i in pairs]}
    )
    scorer = methods.resolve("scorers", "unicorn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.parquet"
        table.write_parquet(path)
        config = scorer.config_class(**SIZES, **SYSTEMS[system], queries=str(path), seed=seed)
        model = scorer.build(context, config)
    train(model, train_part, TRAINING, validate=None, device="cpu")
    return model.eval()


def answer(values: Any, system: str, model: Any, asked: list[ShopRequest]) -> None:
    """The scores of a system for every request that it can read."""
    for request in asked:
        history = None
        if len(request.history):
            rows = torch.from_numpy(request.history)[None]
            history = HistoryBatch(rows, torch.tensor([rows.shape[1]]))
        name = "joint" if system == "joint" else "separate"
        if system != "recommend":
            add(values, f"search.{name}", request, model.query_scores([request.query])[0])
        if system != "search" and history is not None:
            add(values, f"recommend.{name}", request, model.scores(history)[0])
        if system == "joint":
            scores_N = model.query_scores([request.query], history)[0]
            add(values, "both.joint", request, scores_N)


def add(values: Any, key: str, request: ShopRequest, scores_N: torch.Tensor) -> None:
    """nDCG@10 of the request's product; where no word is known, all items tie."""
    scores_N = torch.zeros_like(scores_N) if torch.isinf(scores_N).all() else scores_N
    own = scores_N[request.target]
    better, tied = int((scores_N > own).sum()), int((scores_N == own).sum()) - 1
    value = ndcg(np.array([better]), np.array([tied]), K)[0]
    values[f"joint.shopdial.{key}.ndcg@{K}"][request.dialogue].append(float(value))


def figures_of(columns: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Means over dialogues, differences of joint and separate models, and the gain over both."""
    figures = {
        key: rounded(bootstrap(np.array(list(kept.values()))[:, None])[0])
        for key, kept in columns.items()
    }
    ones, others, weights = [], [], []
    for task in ("search", "recommend"):
        one, other = (
            np.array(list(columns[f"joint.shopdial.{task}.{side}.ndcg@{K}"].values()))
            for side in ("joint", "separate")
        )
        figure, p = paired(one, other)
        name = f"joint.shopdial.{task}.joint_minus_separate.ndcg@{K}"
        figures[name] = rounded(figure) | {"p": p}
        ones.append(one)
        others.append(other)
        weights.append(np.full(len(one), 1 / len(one)))
    gain = iceg(*(np.concatenate(part) for part in (ones, others, weights)))
    figures["joint.shopdial.iceg"] = rounded(gain)
    return figures


def rounded(figure: Any) -> dict[str, Any]:
    kept = {k: v if k == "n" else round(v, 5) for k, v in asdict(figure).items()}
    return {**kept, "unit": "ratio"}


if __name__ == "__main__":
    main()
