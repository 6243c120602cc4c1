"""Generative retrieval: a query is decoded into semantic IDs, held to the catalogue's index.

Items get IDs of their text vectors by any tokenizer, of one length or several (`sarq`), or of what
the towers of `dual_tower` make of them (the query view, as SCI says, or the item view or the mean),
or keep those of the bundle, so that one index serves recommendation and search. A `QueryDecoder`
learns the catalogue first (made queries and whole texts, each asking for its item), then judged
queries with all their answers, and is aligned, where `align` says so, on judged non-matches.
Answers come from the same exact scores, beam and rules as recommendations: none is outside the
catalogue.

    score of an item = log π(ID | query) + log share of the item among those with this ID
    share            = softmax of its item logits over them                 1 where it is alone

An item without text, and a query of which no word is known, have no answer.

Source:   DSI, arXiv:2202.06991 (index and retrieval by one model); TIGER, arXiv:2305.05065 (IDs,
          beam); SCI, arXiv:2512.13074 (IDs of the query view); RAD-DPO, arXiv:2602.23964
          (multi-positive likelihood, then alignment).
Differs:  no language model: see `generators.query_decoder`. A history is not read here; the bundle
          fuses it in (`history_weight`).
Cost:     fit: `num_steps` + `judged_steps` steps, a minute for 7,000 items on one core. Asking: all
          prefixes once up to `exact_items` items, else one beam and the paths of what is asked for.
Shapes:   B queries, N items, F width of text vectors, L levels, P items of a pool, G shared IDs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from sidrec import config as configuration
from sidrec import methods
from sidrec.alignment.values import Preferences
from sidrec.config import Method, Stage
from sidrec.data.search.values import SearchData
from sidrec.decoding.beam import beam_search, unconstrained_search
from sidrec.decoding.exact import exact_scores, item_log_probs
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.rules import Rules
from sidrec.embeddings.vectors import known_rows
from sidrec.errors import ConfigError
from sidrec.fitted import grow, nearest_items
from sidrec.generators.causal import CausalConfig
from sidrec.generators.query_decoder import QueryDecoder
from sidrec.retrieval.fusion import Opinion
from sidrec.retrieval.search.asking import opinion_of
from sidrec.retrieval.search.preferring import SearchAlignConfig, align, judged_preferences
from sidrec.retrieval.search.query_lessons import (
    KnownQueries,
    LessonBatches,
    Lessons,
    Vocabulary,
)
from sidrec.tokenizers.collisions import assign_new
from sidrec.training import train
from sidrec.training_config import TrainConfig
from sidrec.types import (
    PAD,
    Bools,
    CatalogueContext,
    Floats,
    Histories,
    Items,
    ItemVectors,
    SemanticIds,
    as_ids,
)

if TYPE_CHECKING:
    from sidrec.retrieval.search.dual_tower import DualTower
    from sidrec.retrieval.search.views import View

VIEW_OF: dict[str, View] = {"item_view": "item", "query_view": "query", "mean_view": "mean"}
TEXT = Stage("embeddings")
TOKENIZER = Stage("tokenizers")
COLLISIONS = Stage("collisions")
BLOCK_QUERIES = 32
DECODER = CausalConfig(
    width=256,
    num_layers=0,
    num_heads=4,
    input_dropout=0.1,
    depth_hidden=256,
    depth_dropout=0.1,
    item_embedding=False,
    max_length=32,
)
"""Of `causal`, what suits queries: words in a bag, items by their vectors alone."""


@dataclass(frozen=True, kw_only=True)
class GenerativeConfig:
    """Settings of `Generative`."""

    text: Annotated[Method, TEXT] = field(default_factory=lambda: configuration.method(TEXT, "lsa"))
    """The embedding of item texts and queries: `lsa`, `sentence`, …"""
    ids: Literal["own", "bundle", "item_view", "query_view", "mean_view"] = "own"
    """Which semantic IDs are written: made here of text vectors; those that recommend; or made of
    what the towers of `dual_tower`, listed before, make of items: either view, or their mean."""
    tokenizer: Annotated[Method, TOKENIZER] | None = None
    """What makes IDs here; by default three levels of residual k-means that suit the catalogue."""
    collisions: Annotated[Method, COLLISIONS] = field(
        default_factory=lambda: configuration.method(COLLISIONS, "reassign")
    )
    """What to do with items that get the same ID here; `keep` leaves sets."""
    decoder: CausalConfig = DECODER
    """Settings of the code decoder, those of the generator `causal`; `max_length` counts words and
    `num_layers` blocks of attention over them."""
    vocabulary: int = 30_000
    """Most frequent words of the catalogue that have an embedding."""
    made_per_item: int = 4
    """Queries made of each item's words."""
    made_words: int = 4
    """Longest made query, in words."""
    least_grade: int = 0
    """Judgements of at least this grade are answers, worth 2^grade − 1; 0 takes the best grade."""
    num_steps: int = 150
    """Steps on made queries and item texts."""
    judged_steps: int = 60
    """Steps after these, on judged queries beside them."""
    batch_size: int = 64
    """Queries of a step of each kind."""
    learning_rate: float = 5e-4
    """Peak of the AdamW learning rate, in each of the two."""
    align: SearchAlignConfig | None = None
    """Alignment on judged non-matches at the end; none by default."""
    beam_width: int = 100
    """Prefixes kept by a beam, or as many items as are asked for where that is more."""
    exact_items: int = 20_000
    """Catalogues of up to so many items are scored whole; larger ones are searched by beam."""
    seed: int = 0
    """Seed of IDs, made queries, starting weights and lessons."""

    def __post_init__(self) -> None:
        for name in ("vocabulary", "made_words", "batch_size", "beam_width"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"generative.{name} must be at least 1, got {value}")
        for name in ("made_per_item", "least_grade", "num_steps", "judged_steps", "exact_items"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"generative.{name} must be at least 0, got {value}")
        if not self.learning_rate > 0:
            raise ConfigError(f"generative.learning_rate must be above 0: {self.learning_rate}")
        if self.ids == "bundle" and self.tokenizer is not None:
            raise ConfigError('generative.tokenizer makes own IDs; drop it, or set ids = "own"')

    @property
    def view(self) -> View | None:
        """Which view of the towers names items; None where no tower does."""
        return VIEW_OF.get(self.ids)


@dataclass(frozen=True, eq=False)
class Generative:
    """A decoder of queries over one catalogue's IDs."""

    config_class: ClassVar[type] = GenerativeConfig
    takes_ids: ClassVar[bool] = True
    """`fit` and `with_items` take the bundle's IDs as well."""
    takes_towers: ClassVar[bool] = True
    """They take a fitted `dual_tower` too."""
    config: GenerativeConfig
    text: Any
    """The fitted embedding."""
    tokenizer: Any
    """What made own IDs; None for those of a bundle."""
    tokenizer_method: Method | None
    vectors_NF: Floats
    ids: SemanticIds
    """Row i is catalogue row i; item ids are row numbers."""
    vocabulary: Vocabulary
    decoder: QueryDecoder

    # ---------------------------------------------------------------- fitting

    @classmethod
    def fit(
        cls,
        items: Items,
        config: GenerativeConfig,
        queries: SearchData | None = None,
        ids: SemanticIds | None = None,
        towers: DualTower | None = None,
    ) -> Self:
        """Learn the catalogue, then judged queries where there are any, then to prefer."""
        nobody = Histories(np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64))
        text = methods.resolve("embeddings", config.text.name).fit(
            CatalogueContext(items, nobody),
            configuration.with_seed(config.text.config, config.seed),
        )
        found = cls.untaught(items, config, text, text.embed(items).vectors, queries, ids, towers)
        found = found.indexed(items)
        if queries is not None:
            found = found.taught(items, queries)
            if config.align is not None:
                found = found.aligned(queries, config.align)
        return found

    @classmethod
    def untaught(
        cls,
        items: Items,
        config: GenerativeConfig,
        text: Any,
        vectors_NF: Floats,
        queries: SearchData | None = None,
        ids: SemanticIds | None = None,
        towers: DualTower | None = None,
    ) -> Self:
        """IDs, and a decoder that ranks by cosines of text vectors. Answers of judged queries are
        the events that tokenizers may weigh items by.
        """
        tokenizer, chosen = None, None
        if config.ids == "bundle":
            if ids is None:
                raise ConfigError(
                    'generative.ids = "bundle" needs the IDs of a bundle: pass ids=recommender.ids '
                    'to fit_search, or set ids = "own"'
                )
            ids = numbered(ids.codes, ids.num_codes)
        else:
            chosen = config.tokenizer or default_tokenizer(len(items))
            answers = Histories.from_lists([[]])
            if queries is not None:
                judged = queries.judgements
                least = config.least_grade or judged.top_grade
                answers = Histories.from_lists([judged.items_J[judged.grades_J >= least]])
            settings = configuration.with_seed(chosen.config, config.seed)
            vectors = ItemVectors(items.item_ids, named_by(items, config, vectors_NF, towers))
            context = CatalogueContext(items, answers, vectors)
            tokenizer = methods.resolve("tokenizers", chosen.name).fit(vectors, settings, context)
            policy = methods.resolve("collisions", config.collisions.name)
            own = () if config.collisions.config is None else (config.collisions.config,)
            made, _ = policy(tokenizer.encode(vectors), tokenizer, vectors, *own)
            ids = numbered(made.codes, made.num_codes)
            chosen = replace(chosen, config=settings)
        vocabulary = Vocabulary.of(items.texts(), config.vocabulary)
        settings = configuration.with_seed(config.decoder, config.seed)
        decoder = QueryDecoder.of(ids, vectors_NF, settings, len(vocabulary.words)).eval()
        return cls(config, text, tokenizer, chosen, vectors_NF, ids, vocabulary, decoder)

    def lessons_of(self, items: Items) -> list[Lessons]:
        """Item texts, and queries made of them."""
        most = self.config.decoder.max_length
        kinds = [Lessons.items(items, self.vectors_NF, self.vocabulary, most)]
        if self.config.made_per_item:
            kinds.append(
                Lessons.made(items, self.text, self.vocabulary, config=self.config, most_words=most)
            )
        return [kind for kind in kinds if len(kind)]

    def indexed(self, items: Items) -> Self:
        """The same after `num_steps` on item texts and made queries."""
        config = self.config
        return self.trained(self.lessons_of(items), config.num_steps, config.learning_rate)

    def taught(self, items: Items, queries: SearchData) -> Self:
        """The same after `judged_steps` on judged queries, beside what `indexed` learns from."""
        known = self.known(queries.queries.texts)
        judged = Lessons.judged(known, queries.judgements, self.config.least_grade)
        if not len(judged):
            return self
        kinds = [judged, *self.lessons_of(items)]
        return self.trained(kinds, self.config.judged_steps, self.config.learning_rate)

    def aligned(
        self,
        queries: SearchData,
        settings: SearchAlignConfig,
        *,
        preferences: Preferences | None = None,
        **options: Any,
    ) -> Self:
        """The same after alignment, on `preferences` whose histories are rows of these queries
        (`preferring.session_preferences`) or else on what was judged; `options` are those of
        `preferring.align`.
        """
        if preferences is None:
            preferences = judged_preferences(
                queries.judgements, settings.least_grade, seed=self.config.seed
            )
        decoder = copy.deepcopy(self.decoder)
        align(
            decoder,
            PrefixIndex.build(self.ids),
            self.known(queries.queries.texts),
            preferences,
            settings,
            renormalise=self.config.decoder.legal_softmax,
            seed=self.config.seed,
            **options,
        )
        return replace(self, decoder=decoder)

    def trained(
        self,
        kinds: Sequence[Lessons],
        num_steps: int,
        rate: float,
        validate: Callable[[QueryDecoder], float] | None = None,
        validate_every: int = 10,
    ) -> Self:
        """The same after so many steps on lessons. With `validate`, higher is better, the best
        weights stay, those of the start among them.
        """
        if not num_steps or not kinds:
            return self
        decoder = copy.deepcopy(self.decoder)
        settings = TrainConfig(
            epochs=1,
            batch_positions=self.config.batch_size,
            learning_rate=rate,
            weight_decay=0.01,
            warmup_steps=max(1, num_steps // 20),
            patience=0,
            validate_every_epochs=validate_every / num_steps,
            seed=self.config.seed,
        )
        batches = LessonBatches(tuple(kinds), num_steps, self.config.batch_size)
        train(decoder, batches, settings, validate=validate, validate_first=True)
        return replace(self, decoder=decoder.cpu().eval())

    # ---------------------------------------------------------------- asking

    def known(self, texts: Sequence[str]) -> KnownQueries:
        """Queries as the decoder reads them."""
        return KnownQueries.of(texts, self.text, self.vocabulary, self.config.decoder.max_length)

    @cached_property
    def known_N(self) -> Bools:
        """(N,) items of which anything is known; the others are no answers."""
        return known_rows(self.vectors_NF)

    @cached_property
    def index(self) -> PrefixIndex:
        """The prefix tree of the items that can be answers."""
        index = PrefixIndex.build(self.ids)
        return index.delete(np.flatnonzero(~self.known_N)).merged()

    @cached_property
    def groups_N(self) -> Tensor | None:
        """(N,) number of each item's ID; None where every item has its own."""
        if self.ids.group_sizes_N.max(initial=1) == 1:
            return None
        _, groups_N = np.unique(self.ids.codes, axis=0, return_inverse=True)
        return torch.from_numpy(groups_N.reshape(-1))

    def ask(self, texts: Sequence[str], pool: int, keep_N: Bools | None = None) -> Opinion:
        """The `pool` best allowed items, and the log-probability of any item."""
        if not texts:
            return opinion_of(torch.zeros(0, len(self.ids)), pool, keep_N)
        queries = self.known(texts)
        if len(self.ids) <= self.config.exact_items:
            return opinion_of(self.scores(queries), pool, keep_N)
        return self.searched(queries, pool, keep_N)

    @torch.inference_mode()
    def scores(self, queries: KnownQueries) -> Tensor:
        """(B, N) log-probabilities, each prefix of the catalogue scored once."""
        scores_BN = torch.full((len(queries), len(self.ids)), -torch.inf)
        if not self.index.num_items:
            return scores_BN
        for start in range(0, len(queries), BLOCK_QUERIES):
            rows = np.arange(start, min(start + BLOCK_QUERIES, len(queries)))
            batch: Any = queries.batch(rows)
            found_BN = exact_scores(
                self.decoder, batch, self.index, renormalise=self.config.decoder.legal_softmax
            )
            scores_BN[rows] = found_BN + self._shares(batch)
        scores_BN[torch.from_numpy(~queries.known_Q)] = -torch.inf
        return scores_BN.clone()

    @torch.inference_mode()
    def searched(self, queries: KnownQueries, pool: int, keep_N: Bools | None = None) -> Opinion:
        """The opinion of a beam; others are scored along their own paths."""
        batch: Any = queries.batch()
        renormalise = self.config.decoder.legal_softmax
        pool = min(pool, len(self.ids))
        most = pool + int(self.ids.group_sizes_N.max(initial=1)) - 1
        found = beam_search(
            self.decoder, batch, self.index, k=most, beam_width=self.config.beam_width,
            rules=None if keep_N is None else Rules(keep_N=keep_N), renormalise=renormalise,
        )  # fmt: skip
        rows_BK = torch.from_numpy(found.rows_BK)
        rows_BK[torch.from_numpy(~queries.known_Q)] = PAD
        known_N = torch.from_numpy(self.known_N)
        stand_in = int(known_N.long().argmax())

        @torch.inference_mode()
        def scores(rows_BP: Tensor) -> Tensor:
            answers_BP = known_N[rows_BP] & torch.from_numpy(queries.known_Q)[:, None]
            if not bool(known_N.any()):
                return torch.full(rows_BP.shape, -torch.inf, dtype=torch.float64)
            paths_BP = rows_BP.masked_fill(~known_N[rows_BP], stand_in)
            values_BP = item_log_probs(
                self.decoder, batch, self.index, paths_BP, renormalise=renormalise
            )
            if self.groups_N is not None:
                values_BP = values_BP + self._shares(batch).gather(1, rows_BP)
            return values_BP.double().masked_fill(~answers_BP, -torch.inf).clone()

        if self.groups_N is not None:  # a group comes in the order of rows: rank, then cut
            values_BK = scores(rows_BK.clamp_min(0)).masked_fill(rows_BK == PAD, -torch.inf)
            order_BK = values_BK.argsort(dim=1, descending=True, stable=True)
            rows_BK = rows_BK.gather(1, order_BK)
        return Opinion(rows_BK[:, :pool].clone(), scores)

    def _shares(self, batch: Any) -> Tensor:
        """(B, N) log share of each item among those that hold its ID."""
        if self.groups_N is None:
            return torch.zeros(1, 1)
        logits_BN = self.decoder.item_scores(batch)
        logits_BN = logits_BN.masked_fill(~torch.from_numpy(self.known_N), -torch.inf)
        peaks_B1 = logits_BN.amax(1, keepdim=True)
        odds_BN = (logits_BN - peaks_B1).double().exp()
        sums_BG = odds_BN.new_zeros(len(odds_BN), int(self.groups_N.max()) + 1)
        sums_BG.index_add_(1, self.groups_N, odds_BN)
        return (odds_BN / sums_BG[:, self.groups_N]).clamp_min(1e-300).log().float()

    def invalid_shares(self, texts: Sequence[str], k: int = 10) -> Floats:
        """(B,) share of the first k IDs of a free beam, in [0, 1], that no item holds.

        What the decoder would invent if nothing held it to the catalogue; answers never are. With
        `node_vectors` it reads which IDs exist, so that it hardly does.
        """
        batch: Any = self.known(texts).batch()
        width = max(self.config.beam_width, k)
        free = unconstrained_search(self.decoder, batch, self.index, beam_width=width)
        return 1 - free.valid_BK[:, :k].float().mean(1).numpy()

    # ---------------------------------------------------------------- changing and saving

    def with_items(
        self, items: Items, ids: SemanticIds | None = None, towers: DualTower | None = None
    ) -> Self:
        """The same decoder over a catalogue whose first items are the present ones.

        New items get the nearest free own IDs, by the `towers` that the old ones are of, or those
        of the bundle that `ids` brings.
        """
        num_old = len(self.ids)
        new_MF = self.text.embed(items).vectors[num_old:]
        vectors_NF = np.concatenate([self.vectors_NF, new_MF])
        if self.tokenizer is None:
            if ids is None or len(ids) != len(items):
                raise ConfigError(
                    'generative.ids = "bundle": new items need the IDs that the bundle gave them; '
                    "use recommender.add_items"
                )
            codes_NL = ids.codes
        else:
            named_ND = named_by(items, self.config, vectors_NF, towers)
            new = ItemVectors(as_ids(range(num_old, len(items))), named_ND[num_old:])
            policy = self.config.collisions
            made, _ = assign_new(self.ids, self.tokenizer, new, policy.name, policy.config)
            codes_NL = np.concatenate([self.ids.codes, made.codes])
        grown = numbered(codes_NL, self.ids.num_codes)
        larger = QueryDecoder.of(grown, vectors_NF, self.decoder.config, len(self.vocabulary.words))
        grow(self.decoder, larger, num_old, nearest_items(new_MF, self.vectors_NF))
        return replace(self, vectors_NF=vectors_NF, ids=grown, decoder=larger)

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state` to rebuild this searcher."""
        weights = {k: v.detach().numpy() for k, v in self.decoder.state_dict().items()}
        groups: dict[str, Mapping[str, np.ndarray]] = {
            "text": self.text.arrays(),
            "tokenizer": {} if self.tokenizer is None else self.tokenizer.arrays(),
            "decoder": weights,
        }
        named = {
            f"{group}.{name}": a for group, found in groups.items() for name, a in found.items()
        }
        return {**named, "vectors": self.vectors_NF, "codes": self.ids.codes}

    def state(self) -> dict[str, Any]:
        """JSON-able rest: words, sizes of codebooks, the states of embedding and tokenizer."""
        chosen = self.tokenizer_method
        return {
            "words": list(self.vocabulary.words),
            "num_codes": list(self.ids.num_codes),
            "text": self.text.state(),
            "tokenizer": None
            if chosen is None
            else {
                "name": chosen.name,
                "config": configuration.to_dict(chosen.config),
                "state": self.tokenizer.state(),
            },
        }

    @classmethod
    def from_arrays(
        cls, config: GenerativeConfig, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
    ) -> Self:
        """The searcher that `arrays` and `state` came from."""

        def under(group: str) -> dict[str, np.ndarray]:
            start = f"{group}."
            return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}

        embedding = methods.resolve("embeddings", config.text.name)
        text = embedding.from_arrays(config.text.config, under("text"), state["text"])
        tokenizer, chosen, saved = None, None, state["tokenizer"]
        if saved is not None:
            found = methods.resolve("tokenizers", saved["name"])
            settings = configuration.parse(found.config_class, saved["config"], where="tokenizer")
            tokenizer = found.from_arrays(settings, under("tokenizer"), saved["state"])
            chosen = Method(stage="tokenizers", name=saved["name"], config=settings)
        ids = numbered(arrays["codes"], tuple(state["num_codes"]))
        vocabulary = Vocabulary(tuple(state["words"]))
        own = configuration.with_seed(config.decoder, config.seed)
        decoder = QueryDecoder.of(ids, arrays["vectors"], own, len(vocabulary.words))
        decoder.load_state_dict({k: torch.from_numpy(v) for k, v in under("decoder").items()})
        return cls(
            config, text, tokenizer, chosen, arrays["vectors"], ids, vocabulary, decoder.eval()
        )


def named_by(
    items: Items, config: GenerativeConfig, vectors_NF: Floats, towers: DualTower | None
) -> Floats:
    """Vectors (N, D) that IDs are made of: text vectors, or a view of the towers. ConfigError where
    there are none.
    """
    if config.view is None:
        return vectors_NF
    if towers is None:
        raise ConfigError(
            f'generative.ids = "{config.ids}" needs towers: list the searcher dual_tower before '
            'generative, or set ids = "own"'
        )
    return towers.item_vectors(items, config.view).vectors


def numbered(codes_NL: Any, num_codes: tuple[int, ...]) -> SemanticIds:
    """IDs of catalogue rows."""
    return SemanticIds(as_ids(range(len(codes_NL))), codes_NL, num_codes)


def default_tokenizer(num_items: int) -> Method:
    """Residual k-means of three levels: 256 codes, or fewer where they would hold under 16 items,
    but four IDs an item at least.
    """
    enough = math.ceil((4 * num_items) ** (1 / 3))
    num_codes = min(num_items, max(enough, min(256, num_items // 16)))
    return configuration.method(TOKENIZER, "residual_kmeans", num_codes=num_codes, num_levels=3)
