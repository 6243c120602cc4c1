"""Two towers: a query and an item each become a vector, and near means relevant.

Both towers read the same text vectors (any embedding of `methods`; nothing of it is trained here)
through a small network of their own, and both accept both kinds of input. With S the cosine:

    L_original = E max(0, margin − S(f_q(Q), f_i(I+)) + S(f_q(Q), f_i(I−)))
    L_swap     = E max(0, margin − S(f_i(Q), f_q(I+)) + S(f_i(Q), f_q(I−)))
    L          = L_original + swap_weight · L_swap

The swap uses the same pairs and the same negatives and adds no parameter: it asks the towers to
stay exchangeable, so that an index made of one tower's vectors can be probed by the other's (see
`views`). `loss = "softmax"` puts −log softmax(S / temperature) in place of the hinge, in both.
Negatives are the other items of the batch that do not answer the query, and hard ones: items judged
too low for it, or where none are judged, the nearest items of the text vectors that do not answer.

Source:   SCI, arXiv:2512.13074 (the base loss and the swapped views); InfoNCE, arXiv:1807.03748.
Differs:  SCI-style. L_swap, its weight, the margin, cosine, negatives and frozen text vectors are
          our completion: of the paper we know the abstract's part. Queries made of item texts are
          mixed in, so that the towers learn about items that nobody asked for.
Cost:     O(num_steps · batch_size · (F H + H D) · 3), twice that with a swap; under a minute for
          10,000 items on one core.
Shapes:   N items, M queries, P pairs, B pairs of a batch, G hard negatives a pair, F width of the
          text vectors, H hidden units, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec import config as configuration
from sidrec import methods
from sidrec.config import Method, Stage
from sidrec.data.search.made import made_search
from sidrec.data.search.values import Judgements, SearchData
from sidrec.embeddings.vectors import known_rows
from sidrec.errors import ConfigError, DataError, ServiceError
from sidrec.retrieval.fusion import Opinion
from sidrec.retrieval.search.views import (
    View,
    ViewIndex,
    ViewIndexConfig,
    nearest,
    routing_view,
)
from sidrec.types import (
    PAD,
    Bools,
    CatalogueContext,
    Floats,
    Histories,
    Ints,
    Items,
    ItemVectors,
    as_ids,
)

NUM_MINED = 20
"""Nearest items of a query that may serve as hard negatives."""
BLOCK_ROWS = 16_384
"""Items that pass a tower at one time."""
TEXT = Stage("embeddings")


@dataclass(frozen=True, kw_only=True)
class DualTowerConfig:
    """Settings of `DualTower`."""

    text: Annotated[Method, TEXT] = field(default_factory=lambda: configuration.method(TEXT, "lsa"))
    """The embedding that turns texts into what the towers read: `lsa`, `sentence`, …"""
    dim: int = 256
    """D, the width of the vectors."""
    hidden: tuple[int, ...] = (512,)
    """Widths of the hidden layers of each tower; () is a linear map."""
    loss: Literal["hinge", "softmax"] = "hinge"
    """The published hinge, or InfoNCE."""
    margin: float = 0.2
    """By how much a relevant item must beat a negative; `hinge` only."""
    temperature: float = 0.05
    """Cosines are divided by this; `softmax` only."""
    swap_weight: float = 0.0
    """Weight of the swapped loss; 0 trains the plain towers."""
    hard_negatives: int = 4
    """G, drawn for each pair in each step."""
    least_grade: int = 0
    """Judgements of at least this grade are pairs to learn, lower ones are hard negatives; 0 takes
    the best grade of the scale."""
    made_per_item: int = 4
    """Queries made of each item's words, to learn from beside those that people asked."""
    made_words: int = 4
    """Longest made query, in words."""
    num_steps: int = 300
    """Optimiser steps."""
    batch_size: int = 128
    """B, pairs of a step of each kind, asked and made."""
    learning_rate: float = 5e-4
    """Peak of the AdamW learning rate."""
    weight_decay: float = 0.01
    """AdamW decay of weight matrices."""
    index: ViewIndexConfig = field(default_factory=ViewIndexConfig)
    """How items are found."""
    seed: int = 0
    """Seed of made queries, starting weights and batches."""

    def __post_init__(self) -> None:
        for name in ("dim", "num_steps", "made_words"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"dual_tower.{name} must be at least 1, got {value}")
        for name in ("swap_weight", "hard_negatives", "least_grade", "made_per_item", "margin"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"dual_tower.{name} must be at least 0, got {value}")
        for name in ("temperature", "learning_rate"):
            if not (value := getattr(self, name)) > 0:
                raise ConfigError(f"dual_tower.{name} must be above 0, got {value}")
        if self.batch_size < 2 or any(width < 1 for width in self.hidden):
            raise ConfigError(
                "dual_tower.batch_size must be at least 2 and hidden widths at least 1, got "
                f"{self.batch_size} and {self.hidden}"
            )


class Tower(nn.Module):
    """Text vectors to unit vectors: a linear map plus a network that starts at zero."""

    def __init__(self, width: int, config: DualTowerConfig, random: torch.Generator) -> None:
        super().__init__()
        self.skip_FD = nn.Parameter(torch.eye(width, config.dim))
        layers: list[nn.Module] = []
        for after in config.hidden:
            layer = nn.Linear(width, after)
            with torch.no_grad():
                layer.weight.normal_(0, math.sqrt(2 / width), generator=random)
                layer.bias.zero_()
            layers += [layer, nn.ReLU()]
            width = after
        if layers:
            layers.append(nn.Linear(width, config.dim, bias=False))
            nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]
        self.network = nn.Sequential(*layers)

    def forward(self, inputs_BF: Tensor) -> Tensor:
        """Unit vectors (..., D)."""
        inputs_BF = inputs_BF * math.sqrt(inputs_BF.shape[-1])  # entries of a unit row are small
        out_BD = inputs_BF @ self.skip_FD
        if len(self.network):
            out_BD = out_BD + self.network(inputs_BF)
        return functional.normalize(out_BD, dim=-1)


class Towers(nn.Module):
    """The query tower and the item tower; both begin as the first D columns of the text vectors."""

    def __init__(self, width: int, config: DualTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.query = Tower(width, config, torch.Generator().manual_seed(config.seed))
        self.item = Tower(width, config, torch.Generator().manual_seed(config.seed + 1))

    def embed(self, tower: Literal["query", "item"], inputs_NF: Floats) -> Floats:
        """Unit vectors (N, D) of one tower, zero where nothing is known; float64 inside, so that
        no row depends on its batch.
        """
        with torch.inference_mode():
            network = Tower(inputs_NF.shape[1], self.config, torch.Generator())
            network.load_state_dict(getattr(self, tower).state_dict())
            blocks = torch.from_numpy(inputs_NF).split(BLOCK_ROWS)
            parts = [network.double()(block.double()).float() for block in blocks]
            vectors_ND = torch.cat(parts).numpy()
        return np.where(known_rows(inputs_NF)[:, None], vectors_ND, np.float32(0))


@dataclass(frozen=True, eq=False)
class Batch:
    """B pairs as text vectors, with what is no negative."""

    queries_BF: Tensor
    items_BF: Tensor
    hard_BGF: Tensor
    excluded_BB: Tensor
    """Items of the batch that answer the query too, and the own one."""
    no_hard_BG: Tensor
    """Places without a hard negative."""


def tower_loss(
    queries: Callable[[Tensor], Tensor],
    items: Callable[[Tensor], Tensor],
    batch: Batch,
    config: DualTowerConfig,
) -> Tensor:
    """Mean loss of the pairs when `queries` reads the queries and `items` the items.

    L_original is `tower_loss(f_q, f_i, …)`, L_swap is `tower_loss(f_i, f_q, …)`.
    """
    asked_BD, own_BD = queries(batch.queries_BF), items(batch.items_BF)
    own_B1 = (asked_BD * own_BD).sum(dim=1, keepdim=True)
    others_BB = asked_BD @ own_BD.T
    scores = torch.cat([others_BB, (asked_BD[:, None] * items(batch.hard_BGF)).sum(dim=2)], dim=1)
    excluded = torch.cat([batch.excluded_BB, batch.no_hard_BG], dim=1)
    if config.loss == "hinge":
        losses = (config.margin - own_B1 + scores).clamp_min(0).masked_fill(excluded, 0)
        return losses.sum() / (~excluded).sum().clamp_min(1)
    logits = torch.cat([own_B1, scores.masked_fill(excluded, -torch.inf)], dim=1)
    return -functional.log_softmax(logits / config.temperature, dim=1)[:, 0].mean()


def symmetric_loss(towers: Towers, batch: Batch, config: DualTowerConfig) -> Tensor:
    """L_original + swap_weight · L_swap."""
    loss = tower_loss(towers.query, towers.item, batch, config)
    if config.swap_weight:
        loss = loss + config.swap_weight * tower_loss(towers.item, towers.query, batch, config)
    return loss


@dataclass(frozen=True, eq=False)
class Lessons:
    """Pairs to learn: queries as text vectors, which items answer them, which must not."""

    queries_MF: Floats
    pairs_P2: Ints
    """(P, 2) query and item rows."""
    hard_MG: Ints
    """(M, G') hard negatives of each query, −1 for none."""

    @classmethod
    def of(
        cls, queries_MF: Floats, items_NF: Floats, judgements: Judgements, least_grade: int
    ) -> Self:
        """Pairs of at least this grade; pairs with an unknown side are left out."""
        least = least_grade or judgements.top_grade
        pairs_P2 = judgements.pairs(least)
        known_M, known_N = known_rows(queries_MF), known_rows(items_NF)
        pairs_P2 = pairs_P2[known_M[pairs_P2[:, 0]] & known_N[pairs_P2[:, 1]]]
        near_MK = nearest(queries_MF, items_NF, 2 * NUM_MINED)
        hard_MG = np.full((len(queries_MF), NUM_MINED), PAD, dtype=np.int64)
        for query in np.unique(pairs_P2[:, 0]).tolist():
            items, grades = judgements.of(query)
            low = items[grades < least]
            if not len(low):
                low = near_MK[query][~np.isin(near_MK[query], items)]
            hard_MG[query, : min(len(low), NUM_MINED)] = low[:NUM_MINED]
        return cls(queries_MF, pairs_P2, hard_MG)


@dataclass(frozen=True, eq=False)
class DualTower:
    """Fitted towers over a text embedding, and the index of the catalogue."""

    config_class: ClassVar[type] = DualTowerConfig
    config: DualTowerConfig
    text: Any
    """The fitted embedding."""
    towers: Towers
    index: ViewIndex

    @classmethod
    def fit(cls, items: Items, config: DualTowerConfig, queries: SearchData | None = None) -> Self:
        """Learn from made queries and, where there are any, from judged ones."""
        embedding = methods.resolve("embeddings", config.text.name)
        nobody = Histories(np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64))
        chosen = configuration.with_seed(config.text.config, config.seed)
        text = embedding.fit(CatalogueContext(items, nobody), chosen)
        items_NF = text.embed(items).vectors
        lessons: list[Lessons] = []
        if queries is not None:
            asked_MF = embed_texts(text, queries.queries.texts)
            lessons.append(Lessons.of(asked_MF, items_NF, queries.judgements, config.least_grade))
        if config.made_per_item:
            made = made_search(
                items, per_item=config.made_per_item, max_words=config.made_words, seed=config.seed
            )
            made_MF = embed_texts(text, made.queries.texts)
            lessons.append(Lessons.of(made_MF, items_NF, made.judgements, 1))
        towers = train(items_NF, lessons, config)
        views = (towers.embed("query", items_NF), towers.embed("item", items_NF))
        return cls(config, text, towers, ViewIndex.fit(*views, config.index, seed=config.seed))

    def encode(self, texts: Sequence[str]) -> Floats:
        """f_q of queries: unit vectors (B, D), zero where no word is known."""
        return self.towers.embed("query", embed_texts(self.text, texts))

    def item_vectors(self, items: Items, view: View = "item") -> ItemVectors:
        """Either view of items, or their mean, as vectors that a tokenizer can make IDs of."""
        items_NF = self.text.embed(items).vectors
        u_ND, v_ND = (self.towers.embed(tower, items_NF) for tower in ("query", "item"))
        return ItemVectors(items.item_ids, routing_view(u_ND, v_ND, view))

    def ask(self, texts: Sequence[str], pool: int, keep_N: Bools | None = None) -> Opinion:
        """The `pool` best allowed items that the index finds, and the cosine of any item."""
        asked_BD = self.encode(texts)
        rows_BK, _ = self.index.find(asked_BD, pool, keep_N=keep_N)
        known_B = known_rows(asked_BD)
        rows_BK[~known_B] = PAD
        known_N, items_ND = self.index.known_N, self.index.items_ND

        def scores(rows_BP: Tensor) -> Tensor:
            rows = rows_BP.numpy()
            cosines_BP = np.einsum("bd,bpd->bp", asked_BD, items_ND[rows], dtype=np.float64)
            answers_BP = known_N[rows] & known_B[:, None]
            return torch.from_numpy(np.where(answers_BP, cosines_BP, -np.inf))

        return Opinion(torch.from_numpy(rows_BK), scores)

    def with_items(self, items: Items) -> Self:
        """The same towers over a catalogue whose first items are the present ones."""
        items_NF = self.text.embed(items).vectors
        views = (self.towers.embed("query", items_NF), self.towers.embed("item", items_NF))
        return type(self)(self.config, self.text, self.towers, self.index.extended(*views))

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` to rebuild this searcher."""
        tables = {k: v.detach().numpy() for k, v in self.towers.state_dict().items()}
        groups = {"text": self.text.arrays(), "towers": tables, "index": self.index.arrays()}
        return {
            f"{group}.{name}": array for group, found in groups.items() for name, array in
            found.items()
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """JSON-able rest: that of the text embedding."""
        return {"text": self.text.state()}

    @classmethod
    def from_arrays(
        cls, config: DualTowerConfig, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
    ) -> Self:
        """The searcher that `arrays` and `state` came from."""

        def under(group: str) -> dict[str, np.ndarray]:
            start = f"{group}."
            return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}

        embedding = methods.resolve("embeddings", config.text.name)
        text = embedding.from_arrays(config.text.config, under("text"), state["text"])
        tables = {name: torch.from_numpy(table) for name, table in under("towers").items()}
        towers = Towers(tables["query.skip_FD"].shape[0], config)
        towers.load_state_dict(tables)
        return cls(config, text, towers, ViewIndex.from_arrays(config.index, under("index")))


def embed_texts(text: Any, texts: Sequence[str]) -> Floats:
    """Text vectors (M, F) of free texts by a fitted embedding of items."""
    table = pl.DataFrame({"text": list(texts)}, schema={"text": pl.String})
    return text.embed(Items(as_ids(range(len(texts))), table)).vectors


def train(items_NF: Floats, lessons: Sequence[Lessons], config: DualTowerConfig) -> Towers:
    """Towers that minimise `symmetric_loss`, the mean over the kinds of lessons in every step."""
    lessons = [lesson for lesson in lessons if len(lesson.pairs_P2)]
    if not lessons:
        raise DataError(
            "dual_tower: no pair of a query and an item that answers it shares a known word with "
            "the catalogue; bring judged queries, or set made_per_item above 0"
        )
    towers = Towers(items_NF.shape[1], config)
    matrices = [table for table in towers.parameters() if table.ndim > 1]
    biases = [table for table in towers.parameters() if table.ndim == 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": biases}],
        lr=config.learning_rate,
        weight_decay=0.0,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _warm_cosine(config.num_steps))
    streams = [
        batches(items_NF, lesson, config, np.random.default_rng([config.seed, number]))
        for number, lesson in enumerate(lessons)
    ]
    for step in range(config.num_steps):
        losses = [symmetric_loss(towers, next(stream), config) for stream in streams]
        total = torch.stack(losses).mean()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()
        schedule.step()
        if not torch.isfinite(total.detach()):
            raise ServiceError(
                f"dual_tower: the loss is {total.item()} in step {step}; lower learning_rate"
            )
    return towers.eval()


def batches(
    items_NF: Floats, lessons: Lessons, config: DualTowerConfig, random: np.random.Generator
) -> Iterator[Batch]:
    """Endless batches, every pair once a pass."""
    num_items, pairs_P2 = len(items_NF), lessons.pairs_P2
    answers_P = np.sort(pairs_P2[:, 0] * num_items + pairs_P2[:, 1])
    items, queries = torch.from_numpy(items_NF), torch.from_numpy(lessons.queries_MF)
    size = config.batch_size
    while True:
        order_P = random.permutation(len(pairs_P2))
        for begin in range(0, max(len(order_P) - size, 0) + 1, size):
            asked_B, own_B = pairs_P2[order_P[begin : begin + size]].T
            keys_BB = asked_B[:, None] * num_items + own_B
            drawn_BG = random.integers(
                0, np.maximum((lessons.hard_MG[asked_B] >= 0).sum(axis=1), 1)[:, None],
                size=(len(asked_B), config.hard_negatives),
            )  # fmt: skip
            hard_BG = np.take_along_axis(lessons.hard_MG[asked_B], drawn_BG, axis=1)
            yield Batch(
                queries[asked_B],
                items[own_B],
                items[np.maximum(hard_BG, 0)],
                torch.from_numpy(np.isin(keys_BB, answers_P)),
                torch.from_numpy(hard_BG < 0),
            )


def _warm_cosine(num_steps: int) -> Callable[[int], float]:
    """Share of the peak rate at a step: 5 % of the steps up, then down along a cosine."""
    warm = max(1, num_steps // 20)
    return lambda step: (
        min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * min(step / num_steps, 1.0)))
    )
