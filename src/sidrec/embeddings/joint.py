"""Joint vectors: items near the queries that ask for them, and near what people take with them.

A bi-encoder over text: LSA of an item or of a query, then one small network for both, trained to
tell true pairs from the others of a batch. Search pairs are (query, item), recommendation pairs are
two items close together in a training sequence; `search_weight` sets how much each task counts. Any
tokenizer then makes IDs that serve search and recommendation alike.

Source:  multi-task bi-encoder of arXiv:2508.10478; InfoNCE of van den Oord et al.,
         arXiv:1807.03748, with in-batch negatives.
Differs: LSA and a small network instead of a fine-tuned sentence encoder; queries are runs of words
         of the item unless a file of them is given; the losses of both tasks are weighted in every
         step; other positives of an anchor in the batch are no negatives. The control `concatenate`
         joins our two single-task networks, where the paper joins a fine-tuned and a collaborative
         one.
Cost:    O(num_steps * batch_size * (F * H + batch_size * D)) a task, H units of a hidden layer.
Shapes:  N items, M queries, P pairs, B pairs of a batch, F width of LSA, D width of the vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional

from sidrec.embeddings.lsa import Lsa, LsaConfig
from sidrec.embeddings.queries import QueryPairs, made_queries, read_queries
from sidrec.embeddings.vectors import known_rows
from sidrec.errors import ConfigError, DataError, ServiceError
from sidrec.processes import choose_device
from sidrec.types import CatalogueContext, Floats, Histories, Ints, Items, ItemVectors, as_ids

SEARCH, RECOMMENDATION = TASKS = "search", "recommendation"
Network = dict[str, Tensor]
"""`weight.l`, `bias.l` of hidden layer l; `last`, and `skip` from input to output."""


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """Settings of `Joint`."""

    mode: Literal["multitask", "concatenate"] = "multitask"
    """`multitask`: one network for both tasks. `concatenate`: one network a task, their unit
    vectors side by side."""
    search_weight: float = 0.5
    """Weight of the search loss in [0, 1], the rest is for recommendation; `multitask` only."""
    queries: str = ""
    """File of (query, item) pairs: .parquet, .csv or .jsonl; empty makes queries from the texts."""
    query_column: str = "query"
    """Column of the query in that file."""
    item_column: str = "item_id"
    """Column of the item's id in that file."""
    queries_per_item: int = 8
    """Queries made of each item's texts where no file is given."""
    query_words: int = 4
    """Longest made query, in words."""
    window: int = 3
    """Two events of one person are a pair when at most this far apart."""
    dim: int = 256
    """D, the width of a network's vectors."""
    hidden: tuple[int, ...] = (512,)
    """Widths of the hidden layers; () is a linear map."""
    temperature: float = 0.05
    """Cosines are divided by this before the softmax."""
    num_steps: int = 2000
    """Optimiser steps, whatever the weight, so that all weights cost alike."""
    batch_size: int = 256
    """B, pairs of each task in a step."""
    learning_rate: float = 3e-3
    """Peak of the AdamW learning rate."""
    weight_decay: float = 0.01
    """AdamW decay of weight matrices."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, …"""
    seed: int = 0
    """Seed of queries, starting weights and batches."""
    lsa: LsaConfig = field(default_factory=LsaConfig)
    """Settings of the text vectors that go in."""

    def __post_init__(self) -> None:
        if not 0 <= self.search_weight <= 1:
            raise ConfigError(f"joint.search_weight must be in [0, 1], got {self.search_weight}")
        for name in ("queries_per_item", "query_words", "window", "dim", "num_steps"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"joint.{name} must be at least 1, got {value}")
        if self.batch_size < 2:
            raise ConfigError(f"joint.batch_size must be at least 2, got {self.batch_size}")
        for name in ("temperature", "learning_rate"):
            if not (value := getattr(self, name)) > 0:
                raise ConfigError(f"joint.{name} must be above 0, got {value}")
        if any(width < 1 for width in self.hidden):
            raise ConfigError(f"joint.hidden must be widths of at least 1, got {self.hidden}")


@dataclass(frozen=True, eq=False)
class Task:
    """The pairs of one task: anchors that should find their items."""

    weight: float
    anchors_MF: Floats
    """Text vectors of the anchors: queries, or the items themselves."""
    pairs_P2: Ints
    """(P, 2) rows of anchor and item."""
    same_rows: bool = False
    """Whether the anchors are the items, row by row."""


@dataclass(frozen=True, eq=False)
class Joint:
    """A fitted bi-encoder: text vectors, and one network (or one a task) behind them."""

    config_class: ClassVar[type] = JointConfig
    config: JointConfig
    text: Lsa
    networks: Mapping[str, Network]
    """`joint`, or `search` and `recommendation`."""
    num_pairs: Mapping[str, int]
    """Pairs that each task was trained on."""
    num_dropped: Mapping[str, int]
    """Pairs of each task that were left out: no known word on one side, or an unknown item."""

    @classmethod
    def fit(cls, context: CatalogueContext, config: JointConfig) -> Self:
        """Learn from texts, queries and, where recommendation counts, `context.train`."""
        text = Lsa.fit(context, config.lsa)
        items_NF = text.embed(context.items).vectors
        weights = {SEARCH: config.search_weight, RECOMMENDATION: 1 - config.search_weight}
        if config.mode == "concatenate":
            weights = {SEARCH: 1.0, RECOMMENDATION: 1.0}
        tasks: dict[str, Task] = {}
        dropped: dict[str, int] = {}
        if weights[SEARCH] > 0:
            pairs = queries_of(context.items, config)
            texts, numbers_P = np.unique(np.array(pairs.texts, dtype=str), return_inverse=True)
            pairs_P2 = np.stack([numbers_P, pairs.rows_P], axis=1)
            task = Task(weights[SEARCH], embed_texts(text, texts.tolist()), pairs_P2)
            tasks[SEARCH], lost = _with_words(task, items_NF, SEARCH)
            dropped[SEARCH] = lost + pairs.num_dropped
        if weights[RECOMMENDATION] > 0:
            pairs_P2 = co_interactions(context.train, config.window)
            task = Task(weights[RECOMMENDATION], items_NF, pairs_P2, same_rows=True)
            tasks[RECOMMENDATION], dropped[RECOMMENDATION] = _with_words(
                task, items_NF, RECOMMENDATION
            )
        if config.mode == "concatenate":
            networks = {name: train(items_NF, {name: task}, config) for name, task in tasks.items()}
        else:
            networks = {"joint": train(items_NF, tasks, config)}
        counts = {name: len(task.pairs_P2) for name, task in tasks.items()}
        return cls(config, text, networks, counts, dropped)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the fit had to do without."""
        return tuple(
            f"{n:,} pairs of {task} were left out: no known word on one side, or an unknown item"
            for task, n in self.num_dropped.items()
            if n
        )

    def embed(self, items: Items) -> ItemVectors:
        """Unit vectors (N, D) of items, two side by side for `concatenate`; zero without words."""
        vectors_ND = self._run(self.text.embed(items).vectors)
        parts = tuple((name, self.config.dim) for name in self.networks)
        return ItemVectors(items.item_ids, vectors_ND, parts if len(parts) > 1 else ())

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Vectors (M, D) of queries in the space of the items; zero where no word is known."""
        return self._run(embed_texts(self.text, texts))

    def _run(self, inputs_NF: Floats) -> Floats:
        """All networks, side by side, in float64 so that no row depends on its batch."""
        inputs = torch.from_numpy(inputs_NF).double()
        parts = [
            forward(inputs, {name: table.double() for name, table in network.items()})
            for network in self.networks.values()
        ]
        vectors_ND = torch.cat(parts, dim=1).float().numpy()
        return np.where(known_rows(inputs_NF)[:, None], vectors_ND, np.float32(0))

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` to rebuild this embedder."""
        arrays = {f"lsa.{name}": array for name, array in self.text.arrays().items()}
        for task, network in self.networks.items():
            arrays |= {f"{task}.{name}": table.numpy() for name, table in network.items()}
        return arrays

    def state(self) -> dict[str, Any]:
        """JSON-able rest: the vocabulary and the counts."""
        counts = {"num_pairs": dict(self.num_pairs), "num_dropped": dict(self.num_dropped)}
        return {"lsa": self.text.state(), "networks": list(self.networks), **counts}

    @classmethod
    def from_arrays(
        cls, config: JointConfig, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
    ) -> Self:
        """The embedder that `arrays` and `state` came from."""

        def under(prefix: str) -> dict[str, np.ndarray]:
            return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

        networks = {
            name: {key: torch.from_numpy(table) for key, table in under(f"{name}.").items()}
            for name in state["networks"]
        }
        text = Lsa.from_arrays(config.lsa, under("lsa."), state["lsa"])
        return cls(config, text, networks, dict(state["num_pairs"]), dict(state["num_dropped"]))


def queries_of(items: Items, config: JointConfig) -> QueryPairs:
    """The search pairs that a fit with this config learns from."""
    if config.queries:
        columns = {"query_column": config.query_column, "item_column": config.item_column}
        return read_queries(config.queries, items, **columns)
    return made_queries(
        items, per_item=config.queries_per_item, max_words=config.query_words, seed=config.seed
    )


def co_interactions(train: Histories, window: int) -> Ints:
    """(P, 2) different items at most `window` events apart, in both orders, as often as they do."""
    sequence_E = np.repeat(np.arange(len(train)), train.lengths)
    found = [np.zeros((0, 2), dtype=np.int64)]
    for distance in range(1, window + 1):
        first, second = train.items_E[:-distance], train.items_E[distance:]
        pair = (sequence_E[:-distance] == sequence_E[distance:]) & (first != second)
        forth = np.stack([first[pair], second[pair]], axis=1)
        found += [forth, forth[:, ::-1]]
    return np.concatenate(found)


def info_nce(
    anchors_BD: Tensor, items_BD: Tensor, excluded_BB: Tensor, temperature: float
) -> Tensor:
    """Mean nats of finding each anchor's own item among those of the batch.

    -log softmax_j(cos(anchor_i, item_j) / temperature)[i]; entries of `excluded_BB` off the
    diagonal are left out of the softmax.
    """
    logits_BB = anchors_BD @ items_BD.T / temperature
    own_BB = torch.eye(len(logits_BB), dtype=torch.bool, device=logits_BB.device)
    logits_BB = logits_BB.masked_fill(excluded_BB & ~own_BB, -math.inf)
    return functional.cross_entropy(
        logits_BB, torch.arange(len(logits_BB), device=logits_BB.device)
    )


def train(items_NF: Floats, tasks: Mapping[str, Task], config: JointConfig) -> Network:
    """A network on the CPU that minimises the weighted losses of its tasks.

    Starting weights depend on the seed alone and a task's batches on seed and task, so a network
    with a weight of 0 for one task equals one that never heard of that task.
    """
    device = choose_device(config.device)
    network = {
        name: table.to(device).requires_grad_()
        for name, table in start(items_NF.shape[1], config).items()
    }
    matrices = [table for table in network.values() if table.ndim > 1]
    biases = [table for table in network.values() if table.ndim == 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": biases}],
        lr=config.learning_rate,
        weight_decay=0.0,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _warm_cosine(config.num_steps))
    items = torch.from_numpy(items_NF).to(device)
    streams = {
        name: _batches(tasks[name], config.batch_size, np.random.default_rng([config.seed, number]))
        for number, name in enumerate(TASKS)
        if name in tasks
    }
    anchors = {name: torch.from_numpy(t.anchors_MF).to(device) for name, t in tasks.items()}
    for step in range(config.num_steps):
        losses: list[Tensor] = []
        for name, task in tasks.items():
            pairs_B2, excluded_BB = next(streams[name])
            rows_B2 = torch.from_numpy(pairs_B2).to(device)
            loss = info_nce(
                forward(anchors[name][rows_B2[:, 0]], network),
                forward(items[rows_B2[:, 1]], network),
                torch.from_numpy(excluded_BB).to(device),
                config.temperature,
            )
            losses.append(task.weight * loss)
        total = torch.stack(losses).sum()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()
        schedule.step()
        if not torch.isfinite(total.detach()):
            raise ServiceError(
                f"joint: the loss is {total.item()} in step {step}; lower joint.learning_rate"
            )
    return {name: table.detach().cpu() for name, table in network.items()}


def start(width: int, config: JointConfig) -> Network:
    """Starting weights: the vectors are the first D columns of LSA, its strongest directions."""
    random = torch.Generator().manual_seed(config.seed)
    network, before = {"skip": torch.eye(width, config.dim)}, width
    for layer, after in enumerate(config.hidden):
        matrix = torch.randn(before, after, generator=random) * math.sqrt(2 / before)
        network |= {f"weight.{layer}": matrix, f"bias.{layer}": torch.zeros(after)}
        before = after
    if config.hidden:
        network["last"] = torch.zeros(before, config.dim)
    return network


def forward(inputs_BF: Tensor, network: Network) -> Tensor:
    """Unit vectors (B, D) of text vectors."""
    inputs_BF = inputs_BF * math.sqrt(inputs_BF.shape[1])  # entries of a unit row are small
    out_BD, hidden = inputs_BF @ network["skip"], inputs_BF
    for layer in range((len(network) - 1) // 2):
        hidden = torch.relu(hidden @ network[f"weight.{layer}"] + network[f"bias.{layer}"])
    if "last" in network:
        out_BD = out_BD + hidden @ network["last"]
    return functional.normalize(out_BD, dim=1)


def _batches(
    task: Task, batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[Ints, np.ndarray]]:
    """Endless pairs (B, 2), all once a pass, and which of a batch's items are no negatives (B, B).

    Those are the item itself, other items paired with the same anchor, and the anchor as an item.
    """
    while True:
        order_P = rng.permutation(len(task.pairs_P2))
        for begin in range(0, max(len(order_P) - batch_size, 0) + 1, batch_size):
            pairs_B2 = task.pairs_P2[order_P[begin : begin + batch_size]]
            anchors_B, items_B = pairs_B2[:, 0], pairs_B2[:, 1]
            excluded_BB = items_B[:, None] == items_B
            excluded_BB |= anchors_B[:, None] == anchors_B
            if task.same_rows:
                excluded_BB |= anchors_B[:, None] == items_B
            yield pairs_B2, excluded_BB


def _with_words(task: Task, items_NF: Floats, name: str) -> tuple[Task, int]:
    """The task without pairs of which one side has no known word, and how many these are."""
    known_M, known_N = known_rows(task.anchors_MF), known_rows(items_NF)
    kept_P = known_M[task.pairs_P2[:, 0]] & known_N[task.pairs_P2[:, 1]]
    if not kept_P.any():
        cause, cure = {
            SEARCH: ("no query shares a word with the catalogue", "0"),
            RECOMMENDATION: ("no training sequence holds two different items with text", "1"),
        }[name]
        raise DataError(
            f"joint: {cause}, so there is nothing to learn {name} from; bring more, or set "
            f"joint.mode = 'multitask' and joint.search_weight = {cure}"
        )
    task = Task(task.weight, task.anchors_MF, task.pairs_P2[kept_P], task.same_rows)
    return task, int((~kept_P).sum())


def embed_texts(text: Lsa, texts: Sequence[str]) -> Floats:
    """LSA vectors (M, F) of free texts."""
    table = pl.DataFrame({"text": list(texts)}, schema={"text": pl.String})
    return text.embed(Items(as_ids(range(len(texts))), table)).vectors


def _warm_cosine(num_steps: int) -> Callable[[int], float]:
    """Share of the peak rate at a step: 5 % of the steps up, then down along a cosine."""
    warm = max(1, num_steps // 20)
    return lambda step: (
        min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * min(step / num_steps, 1.0)))
    )
