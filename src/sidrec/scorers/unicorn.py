"""UniCoRn: one scorer for recommendation, items like an item, and search.

    p(engage | context, target) = sigmoid( z · t + MLP_res([context, t, e_f ⊙ t of every field f]) )
    context fields e_f: user (state of the history), query, source item, task, and a network of all
    z = sum over f of v_f ⊙ e_f     the crosses on their straight way to the output

The task is a feature like the others and is crossed with the target like them. What a row lacks is
imputed: a recommendation row has neither query nor source, a search row has no source, and a row of
similar items asks with the words of its source's name. Absent user, query and source have learnt
vectors of their own. A target is its semantic ID by prefixes, its projected vector and, by default,
a learnt embedding; histories and sources read items in the same form. Every training target gives
a row a task, all against the same drawn items.

Source:   UniCoRn, arXiv:2408.10394 (features, imputation, binary loss); prefix embeddings as in
          arXiv:2504.02137. Layer sizes of UniCoRn are not known to us.
Differs:  no country and no outputs of other models among the features. The straight part is trained
          by a softmax over the target and the drawn items; the binary loss trains the residual
          network on the target and the best few of them, with the log-probability of the straight
          part as its starting point. Items of the history get a learnt bias a task. Search rows:
          half with the history of the target and a query that asks for it, half pairs of query and
          item without a user. Half of the rows of similar items have a user, answers have none.
Cost:     the straight part is one product, O(N D) a request, over the whole catalogue; the residual
          network re-ranks the `pool` best of it, whose first layer factorises into
          a(context) + M(context) t. A step is O(P M D) a task.
Shapes:   B requests, T history length, R rows of one task, P targets, M drawn items, N items,
          D width, H width of the residual network, F fields, K candidates of a row, S seen items,
          W words, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.errors import ConfigError, DataError
from sidrec.item_inputs import ItemInputs
from sidrec.query_words import Lessons, QuerySource, QueryWords
from sidrec.transformer import (
    CausalTransformer,
    FastDropout,
    distinct,
    last_states,
    seen_so_far,
)
from sidrec.types import PAD, CatalogueContext, HistoryBatch, Ints, Items, SemanticIds

RECOMMEND, SIMILAR, SEARCH = TASKS = ("recommend", "similar", "search")
FIELDS = ("user", "query", "source", "task", "all")
NAME_WORDS = 12
"""Words of a name that impute a query."""
REPEAT_RATE = 10.0
"""How much faster than its learning rate says the bias of seen items moves; see `RepeatBias`."""


@dataclass(frozen=True, kw_only=True)
class UnicornConfig(QuerySource):
    """Settings of `Unicorn`."""

    width: int = 128
    """D, the width of items, words and fields."""
    pair_width: int = 32
    """H, the width of the residual network over a pair of context and target."""
    pool: int = 100
    """Items of a request that the residual network re-ranks; the others follow in their order."""
    num_layers: int = 1
    """Transformer blocks over the history."""
    num_heads: int = 2
    """Attention heads."""
    hidden_multiplier: int = 2
    """Width of the transformer's feed-forward layer, as a multiple of D."""
    dropout: float = 0.3
    """Inside the blocks, on attention and both branches."""
    input_dropout: float = 0.5
    """On the item representations of the history."""
    item_embedding: bool = True
    """Add a learnt embedding per item to its codes and vector."""
    prefix_rows: int = 8192
    """Rows of the table of each level's prefixes; more prefixes than rows share rows by a hash."""
    num_negatives: int = 1024
    """M, items drawn for all rows of a step."""
    num_hard: int = 16
    """Best of them that the binary loss of the residual network compares the target with."""
    pair_weight: float = 1.0
    """Weight of that loss beside the softmax; 0 leaves the residual network out."""
    recommend_weight: float = 1.0
    """Weight of recommendation rows; 0 leaves the task out."""
    similar_weight: float = 1.0
    """Weight of rows of similar items; 0 leaves the task out."""
    search_weight: float = 1.0
    """Weight of search rows; 0 leaves the task out."""
    impute_names: bool = True
    """Rows of similar items ask with the source's name; false leaves their query absent."""
    max_length: int = 50
    """Longest history read; older events are cut."""
    seed: int = 0
    """Of the initial weights and the made queries."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ConfigError(
                f"unicorn.width must be a multiple of num_heads, got {self.width} and "
                f"{self.num_heads}"
            )
        sizes = ("pair_width", "prefix_rows", "num_negatives", "num_hard", "queries_per_item")
        sizes = (*sizes, "query_words", "pool")
        for name in sizes:
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"unicorn.{name} must be at least 1, got {value}")
        if self.pair_weight < 0:
            raise ConfigError(f"unicorn.pair_weight must not be negative, got {self.pair_weight}")
        if min(self.weights) < 0 or not any(self.weights):
            raise ConfigError(
                f"unicorn's task weights must not be negative, nor all 0, got {self.weights}"
            )

    @property
    def weights(self) -> tuple[float, float, float]:
        """Of the tasks, in the order of `TASKS`."""
        return (self.recommend_weight, self.similar_weight, self.search_weight)


class Rows(NamedTuple):
    """Training rows of all tasks, one after another."""

    tasks_R: Tensor
    users_R: Tensor
    """Place of the training target whose history the row has, −1 for an absent user."""
    sources_R: Tensor
    """Place of the training target whose last item is the source, −1 for none."""
    words_RW: Tensor
    """Words of the query, −1 for none."""
    targets_R: Tensor
    seen_RS: Tensor
    """Items that the row's context holds, −1 for none."""
    kept_R: Tensor
    """False where the row is none: it lacks its query, or its source is its target."""


class Context(NamedTuple):
    """What is known of each row before it meets a target."""

    straight_RD: Tensor
    """z"""
    bias_RH: Tensor
    maps_RHH: Tensor
    """The first layer of the residual network: bias + maps · (target, projected)."""
    repeats_R: Tensor
    """What is added to items that the context holds, in nats."""


class Unicorn(nn.Module):
    """Trainable scorer of three tasks; `training.train` fits it through `loss`."""

    config_class: ClassVar[type] = UnicornConfig
    prefixes_NL: Tensor
    names_NW: Tensor

    def __init__(self, items: Items, vectors: Any, ids: SemanticIds, config: UnicornConfig) -> None:
        super().__init__()
        self.config = config
        self.max_length = config.max_length
        width, pair, vector_width = config.width, config.pair_width, vectors.vectors.shape[1]
        self.inputs = ItemInputs(vectors.vectors)
        self.project = nn.Linear(vector_width, width, bias=False)
        nn.init.normal_(self.project.weight, std=0.05 * vector_width**-0.5)
        rows_NL, sizes = prefix_rows(ids, config.prefix_rows)
        self.register_buffer("prefixes_NL", torch.from_numpy(rows_NL), persistent=False)
        self.prefixes = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.items = nn.Embedding(len(ids), width) if config.item_embedding else None
        for table in (*self.prefixes, *([self.items] if self.items else [])):
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]
        self.words = QueryWords(items, width)
        self.register_buffer(
            "names_NW", self.words.rows(items.titles())[:, :NAME_WORDS], persistent=False
        )
        self.dropout = FastDropout(config.input_dropout)
        self.encoder = CausalTransformer(
            width=width,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            hidden=config.hidden_multiplier * width,
            dropout=config.dropout,
            max_length=config.max_length,
        )
        self.norm_query, self.norm_source = nn.LayerNorm(width), nn.LayerNorm(width)
        self.absent = nn.Parameter(torch.zeros(3, width))  # of user, query, source
        self.tasks = nn.Embedding(len(TASKS), width)
        self.mix = nn.Sequential(
            nn.Linear(4 * width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width)
        )
        num_fields = len(FIELDS)
        self.straight = nn.Parameter(torch.full((num_fields, width), width**-0.5))
        self.fields_in = nn.Parameter(torch.randn(num_fields, width, pair) * width**-0.5)
        self.target_in = nn.Linear(width, pair, bias=False)
        self.cross = nn.Parameter(torch.randn(num_fields, pair, pair) * pair**-0.5)
        self.of_context = nn.Linear(num_fields * pair, pair)
        self.of_target = nn.Linear(pair, pair, bias=False)
        self.up, self.down = nn.Linear(pair, pair), nn.Linear(pair, pair)
        self.out = nn.Linear(pair, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.repeat = nn.Parameter(torch.zeros(len(TASKS)))
        self.lessons: Lessons | None = None
        self._kept: tuple[Any, Any] = (None, None)

    @classmethod
    def build(cls, context: CatalogueContext, config: UnicornConfig) -> Self:
        """An untrained model. Where the context has events, with queries to learn from; without
        any, as a bundle is read, words wait for their saved rows.
        """
        if context.vectors is None or context.semantic_ids is None:
            raise DataError(
                "unicorn needs item vectors and semantic IDs, got a catalogue without them; embed "
                "and tokenize the items first"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = cls(context.items, context.vectors, context.semantic_ids, config)
        if len(context.train.items_E):
            with torch.no_grad():
                model.words.start_from(model.project(model.inputs.vectors_ND) * config.width**0.5)
            if config.search_weight:
                model.lessons = Lessons.of(config.pairs(context.items, config.seed), model.words)
        return model

    # ------------------------------------------------------------------ items and contexts

    def represent(self, rows: Tensor) -> Tensor:
        """(…, D) representations of items (…); any item for −1."""
        rows = rows.clamp_min(0)
        items = self.project(self.inputs.vectors_ND[rows])
        codes = self.prefixes_NL[rows]
        for level, table in enumerate(self.prefixes):
            items = items + table(codes[..., level])
        items = items if self.items is None else items + self.items(rows)
        return items * self.config.width**0.5

    def states(self, items_BTD: Tensor) -> Tensor:
        """(B, T, D) one user state a position."""
        return self.encoder(self.dropout(items_BTD))

    def context(
        self,
        tasks_R: Tensor,
        *,
        users_RD: Tensor | None = None,
        has_user_R: Tensor | None = None,
        words_RW: Tensor | None = None,
        sources_RD: Tensor | None = None,
        has_source_R: Tensor | None = None,
    ) -> Context:
        """Rows with these tasks; a field that is not given, or that a row has not, is absent, as
        is a query without a word.
        """
        query_RD, has_query_R = None, None
        if words_RW is not None:
            query_RD, has_query_R = self.norm_query(self.words(words_RW)), (words_RW >= 0).any(1)
        source_RD = None if sources_RD is None else self.norm_source(sources_RD)
        given = ((users_RD, has_user_R), (query_RD, has_query_R), (source_RD, has_source_R))
        own: list[Tensor] = []
        for (field_RD, has_R), absent_D in zip(given, self.absent, strict=True):
            if field_RD is None:
                field_RD = absent_D.expand(len(tasks_R), -1)
            elif has_R is not None:
                field_RD = torch.where(has_R[:, None], field_RD, absent_D)
            own.append(field_RD)
        own.append(self.tasks(tasks_R))
        fields_FRD = torch.stack([*own, self.mix(torch.cat(own, dim=1))])
        small_FRH = fields_FRD @ self.fields_in
        maps_RHH = torch.einsum("frh,fgh->rgh", small_FRH, self.cross) + self.of_target.weight
        bias_RH = self.of_context(small_FRH.transpose(0, 1).flatten(1))
        straight_RD = (fields_FRD * self.straight[:, None]).sum(0)
        return Context(straight_RD, bias_RH, maps_RHH, self.repeat[tasks_R] * REPEAT_RATE)

    # ------------------------------------------------------------------ pairs

    def residual(self, context: Context, targets_RKD: Tensor) -> Tensor:
        """(R, K) what the residual network adds to the straight logit of each row's own targets."""
        hidden_RKH = self.target_in(targets_RKD) @ context.maps_RHH.transpose(1, 2)
        hidden_RKH = F.relu(hidden_RKH + context.bias_RH[:, None])
        hidden_RKH = hidden_RKH + self.down(F.relu(self.up(hidden_RKH)))
        return self.out(hidden_RKH)[..., 0].float()

    # ------------------------------------------------------------------ training

    def loss(self, batch: HistoryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum over tasks of the mean nats a target; parts tell those of each task."""
        batch = batch.last(self.max_length)
        assert batch.targets_BT is not None
        real_BT = batch.targets_BT >= 0
        rows = self.training_rows(batch, real_BT)
        one_R, num_seen_R = one_of(rows.seen_RS)
        drawn_M = torch.randint(
            len(self.prefixes_NL), (self.config.num_negatives,), device=one_R.device
        )
        every = [batch.items_BT.flatten(), rows.targets_R, one_R, drawn_M]
        history, target_RD, one_RD, drawn_MD = self.represent(torch.cat(every)).split(
            [len(part) for part in every]
        )
        items_BTD = history.unflatten(0, batch.items_BT.shape)
        context = self.context(
            rows.tasks_R,
            users_RD=self.states(items_BTD)[real_BT][rows.users_R],
            has_user_R=rows.users_R >= 0,
            words_RW=rows.words_RW,
            sources_RD=items_BTD[real_BT][rows.sources_R],
            has_source_R=rows.sources_R >= 0,
        )
        # in the softmax a drawn item stands for N / M items of the catalogue, and one seen item,
        # drawn from the S of the row, for all of them: drawn items hardly ever are seen
        again_R = (rows.seen_RS == rows.targets_R[:, None]).any(1)
        target_R = dots(context.straight_RD, target_RD) + again_R * context.repeats_R
        seen_R = dots(context.straight_RD, one_RD) + context.repeats_R
        seen_R = seen_R + num_seen_R.clamp_min(1).log()
        seen_R = seen_R.masked_fill((one_R < 0) | (one_R == rows.targets_R), -torch.inf)
        scores_RM = (context.straight_RD @ drawn_MD.T).float()
        scores_RM = scores_RM.masked_fill(drawn_M == rows.targets_R[:, None], -torch.inf)
        per_item = math.log(len(self.prefixes_NL) / len(drawn_M))
        others_R = torch.logaddexp(scores_RM.logsumexp(1) + per_item, seen_R)
        total_R = torch.logaddexp(others_R, target_R)
        nats_R = total_R - target_R
        parts: dict[str, Tensor] = {}
        loss = self.mean_over_tasks("nats", nats_R, rows, parts)
        if not self.config.pair_weight:
            return loss, parts
        hard_RK, places_RK = scores_RM.detach().topk(min(self.config.num_hard, len(drawn_M)))
        pairs_RKD = torch.cat([target_RD[:, None], F.embedding(places_RK, drawn_MD)], dim=1)
        start_RK = torch.cat([target_R.detach()[:, None], hard_RK], dim=1)
        logits_RK = start_RK - total_R.detach()[:, None] + self.residual(context, pairs_RKD)
        negative_RK = F.softplus(logits_RK[:, 1:]).where(hard_RK > -torch.inf, 0)
        binary_R = F.softplus(-logits_RK[:, 0]) + negative_RK.sum(1)
        binary = self.mean_over_tasks("bce", binary_R, rows, parts)
        return loss + self.config.pair_weight * binary, parts

    def mean_over_tasks(
        self, name: str, values_R: Tensor, rows: Rows, parts: dict[str, Tensor]
    ) -> Tensor:
        """Weighted sum of each task's mean; the means go into `parts`."""
        total = values_R.new_zeros(())
        for task, weight in enumerate(self.config.weights):
            own_R = (rows.tasks_R == task) & rows.kept_R
            if weight:
                mean = (values_R * own_R).sum() / own_R.sum().clamp_min(1)
                parts[f"{TASKS[task]}_{name}"] = mean.detach()
                total = total + weight * mean
        return total

    def training_rows(self, batch: HistoryBatch, real_BT: Tensor) -> Rows:
        """One row a training target and task of some weight."""
        assert batch.targets_BT is not None
        targets_P, last_P = batch.targets_BT[real_BT], batch.items_BT[real_BT]
        seen_PS, num = seen_so_far(batch)[real_BT], len(targets_P)
        places_P = torch.arange(num, device=targets_P.device)
        nowhere_P, no_words_P1 = torch.full_like(places_P, PAD), targets_P.new_full((num, 1), PAD)
        half_P = places_P % 2 == 0
        no_seen_PS = torch.full_like(seen_PS, PAD)
        by_task: list[Rows] = []
        for task, weight in zip(TASKS, self.config.weights, strict=True):
            if not weight:
                continue
            users_P = torch.where(half_P, places_P, PAD)
            if task == RECOMMEND:
                own = (places_P, nowhere_P, no_words_P1, targets_P, seen_PS, places_P >= 0)
            elif task == SIMILAR:
                words_PW = self.names_NW[last_P] if self.config.impute_names else no_words_P1
                seen = torch.cat([last_P[:, None], no_seen_PS[:, 1:]], dim=1)
                own = (users_P, places_P, words_PW, targets_P, seen, last_P != targets_P)
            else:
                assert self.lessons is not None  # built from events where search has a weight
                others_P, words_PW = self.lessons.draw(num)
                asked_PW = self.lessons.draw_for(targets_P)
                words_PW = torch.where(half_P[:, None], asked_PW, words_PW)
                wanted_P = torch.where(half_P, targets_P, others_P)
                seen = torch.where(half_P[:, None], seen_PS, PAD)
                kept_P = (words_PW >= 0).any(1)
                own = (users_P, nowhere_P, words_PW, wanted_P, seen, kept_P)
            by_task.append(Rows(torch.full_like(places_P, TASKS.index(task)), *own))
        most = max(rows.words_RW.shape[1] for rows in by_task)
        wide = [
            rows._replace(
                words_RW=F.pad(rows.words_RW, (0, most - rows.words_RW.shape[1]), value=PAD)
            )
            for rows in by_task
        ]
        return Rows(*(torch.cat(fields) for fields in zip(*wide, strict=True)))

    # ------------------------------------------------------------------ answers

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; forgets the kept table, since fused optimisers leave no trace."""
        self._kept = (None, None)
        return super().train(mode)

    def served_table(self) -> Tensor:
        """(N, D) `represent` of all items without gradient; kept until a weight changes."""
        tables = [self.project.weight, *(t.weight for t in self.prefixes)]
        tables += [] if self.items is None else [self.items.weight]
        key = [(t.data_ptr(), t._version) for t in tables]  # type: ignore[union-attr]
        if self._kept[0] != key:
            with torch.no_grad():
                every_N = torch.arange(len(self.prefixes_NL), device=self.prefixes_NL.device)
                self._kept = key, self.represent(every_N)
        return self._kept[1]

    def user(self, batch: HistoryBatch) -> dict[str, Any]:
        """The user fields of `context`; an empty history is an absent user."""
        items_BTD = F.embedding(batch.items_BT.clamp_min(0), self.served_table())
        users_BD = last_states(self.states(items_BTD), batch.lengths_B)
        return {"users_RD": users_BD, "has_user_R": batch.lengths_B > 0}

    def all_scores(self, context: Context, seen_BS: Tensor | None) -> Tensor:
        """(B, N) logits: the `pool` best items by the straight part get what the residual network
        adds, all others the same shift, which leaves them behind; `seen_BS` get the task's bias.
        """
        table_ND = self.served_table()
        scores_BN = (context.straight_RD @ table_ND.T).float()
        if seen_BS is not None:
            bias_BS = (seen_BS >= 0) * context.repeats_R[:, None]
            scores_BN = scores_BN.scatter_add(1, seen_BS.clamp_min(0), bias_BS.float())
        if not self.config.pair_weight:
            return scores_BN
        best_BK, rows_BK = scores_BN.topk(min(self.config.pool, len(table_ND)))
        better_BK = best_BK + self.residual(context, F.embedding(rows_BK, table_ND))
        shift_B1 = better_BK.amin(1, keepdim=True) - best_BK[:, -1:]
        return (scores_BN + shift_B1).scatter(1, rows_BK, better_BK)

    @torch.inference_mode()
    def scores(self, batch: HistoryBatch, *, task: str = RECOMMEND) -> Tensor:
        """(B, N) logits of the next item. `task` is the flag of the row, for swap tests."""
        batch = batch.last(self.max_length)
        tasks_B = torch.full_like(batch.lengths_B, TASKS.index(task))
        context = self.context(tasks_B, **self.user(batch))
        return self.all_scores(context, distinct(batch))

    @torch.inference_mode()
    def similar_scores(self, rows_B: Tensor, *, task: str = SIMILAR) -> Tensor:
        """(B, N) logits of what goes with each item."""
        names_BW = self.names_NW[rows_B] if self.config.impute_names else None
        context = self.context(
            torch.full_like(rows_B, TASKS.index(task)),
            sources_RD=F.embedding(rows_B, self.served_table()),
            words_RW=names_BW,
        )
        return self.all_scores(context, rows_B[:, None])

    @torch.inference_mode()
    def query_scores(
        self, texts: Sequence[str], batch: HistoryBatch | None = None, *, task: str = SEARCH
    ) -> Tensor:
        """(B, N) logits of the answers to queries, of people with these histories where given;
        −inf throughout where no word of a query is known.
        """
        words_BW = self.words.rows(texts)
        given: dict[str, Any] = {}
        if batch is not None:
            batch = batch.last(self.max_length)
            given = self.user(batch)
        tasks_B = torch.full_like(words_BW[:, 0], TASKS.index(task))
        context = self.context(tasks_B, words_RW=words_BW, **given)
        scores_BN = self.all_scores(context, None if batch is None else distinct(batch))
        return scores_BN.masked_fill(~self.words.known(words_BW)[:, None], -torch.inf)


def prefix_rows(ids: SemanticIds, most: int) -> tuple[Ints, list[int]]:
    """(N, L) row of each prefix in the table of its level, and the L sizes of these tables.

    Exact where all possible prefixes fit, else hashed by a polynomial of the codes; a shorter ID
    keeps its end as a code. Rows of an ID depend on nothing but its codes.
    """
    keys_N = np.zeros(len(ids), dtype=np.int64)
    possible, rows, sizes = 1, [], []
    for level, num_codes in enumerate(ids.num_codes):
        codes_N = np.where(ids.codes[:, level] < 0, num_codes, ids.codes[:, level])
        keys_N = (keys_N * (num_codes + 1) + codes_N) % 2_147_483_647
        possible *= num_codes + 1
        size = min(possible, most)
        hashed_N = keys_N * 40_503 % 2_147_483_647 % size
        rows.append(keys_N if possible <= most else hashed_N)
        sizes.append(size)
    return np.stack(rows, axis=1), sizes


def dots(one_RD: Tensor, other_RD: Tensor) -> Tensor:
    """(R,) float32 products of rows."""
    return (one_RD * other_RD).sum(1).float()


def one_of(rows_PS: Tensor) -> tuple[Tensor, Tensor]:
    """One of the entries of each row that are not −1, drawn alike, and how many there are."""
    real_PS = rows_PS >= 0
    drawn_PS = torch.rand(rows_PS.shape, device=rows_PS.device).masked_fill(~real_PS, -1.0)
    return rows_PS.gather(1, drawn_PS.argmax(1, keepdim=True))[:, 0], real_PS.sum(1)
