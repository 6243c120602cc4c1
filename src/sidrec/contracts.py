"""What each stage promises, as protocols. `sidrec.testing` holds the executable form.

A method is a module docstring, a frozen `Config`, one class, the pure functions it needs, and one
line in `methods.py`. `fit` and `build` return a usable object; an unfitted state does not exist.

Shapes: B requests, W beams, L levels, V codes of a level, N items, T history length, K items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sidrec.alignment.values import (
        AlignmentContext,
        GroupLogProbs,
        PreferenceLogProbs,
        Rollouts,
    )
    from sidrec.data.search.values import SearchData
    from sidrec.decoding.prefix_index import PrefixIndex
    from sidrec.fitted import Fitted
    from sidrec.retrieval.fusion import Opinion
    from sidrec.types import (
        Bools,
        Candidates,
        CatalogueContext,
        Examples,
        HistoryBatch,
        Ints,
        Items,
        ItemVectors,
        SemanticIds,
    )


class Embedder(Protocol):
    """Items to vectors.

    One that may have to do without something (a view that misses items, unusable pairs) offers
    `remarks`, as tokenizers do.
    """

    config_class: ClassVar[type]

    @classmethod
    def fit(cls, context: CatalogueContext, config: Any) -> Self:
        """Learn from the catalogue and, for collaborative views, from training events."""
        ...

    def embed(self, items: Items) -> ItemVectors:
        """One vector an item; items unseen in `fit` are welcome."""
        ...


class Tokenizer(Protocol):
    """Vectors to semantic IDs.

    One that may have to do without something (items without events, a missing view) offers
    `remarks`, sentences with a count that a fit shows.
    """

    config_class: ClassVar[type]

    @classmethod
    def fit(
        cls, vectors: ItemVectors, config: Any, context: CatalogueContext | None = None
    ) -> Self:
        """Learn codebooks. Same input, config and seed give the same codebooks."""
        ...

    def encode(self, vectors: ItemVectors) -> SemanticIds:
        """Assign codes; items unseen in `fit` are welcome. Collisions are left in."""
        ...


class Generator(Protocol):
    """Histories to a distribution over the next semantic ID. An `nn.Module`.

    One that is to be aligned may offer `along(batch, symbols_BKL) -> (logits_L, states)`: L float32
    (B, K, V_l) logits of each level along given IDs, differentiable, and the (B, K, L + 1, D)
    representations before each code and after the last; without it, alignment asks `step`. One that
    can score few continuations for less may offer `step_children(state, codes_BW, parents_BW,
    children)`: as `step`, but the logits (B, P) of `decoding.children.Children` alone. One that
    is not to be searched by a beam offers `search` too; see `decoding.search`. One that
    thinks before each code has `thinks` true, `thought_clusters(batch, codes_BKL)` and `clusters`;
    see `generators.thoughts`. One that answers queries has `asked(texts, batch) -> batch`, which
    the search takes, and `words`; see `joint_search`.
    """

    config_class: ClassVar[type]
    num_codes: tuple[int, ...]
    """Codes of each level; the width of the logits that `step` returns there."""
    max_length: int
    """Longest history the model reads; longer ones are cut to their last events."""

    @classmethod
    def build(cls, context: CatalogueContext, config: Any) -> Self:
        """A model ready to train, seeded by `config.seed`. Needs vectors and semantic IDs.

        Where saved weights follow, what `torch.nn.init` draws is zeros instead; see `building`.
        """
        ...

    def loss(self, batch: HistoryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats per target to minimise, and parts to report."""
        ...

    def log_probs(self, batch: HistoryBatch, codes_BKL: Tensor) -> Tensor:
        """(B, K) natural log-probability of whole IDs given each history, unconstrained softmax."""
        ...

    def start(self, batch: HistoryBatch) -> Any:
        """Encode each history once; the state is what `step` needs."""
        ...

    def step(
        self, state: Any, codes_BW: Tensor | None, parents_BW: Tensor | None
    ) -> tuple[Tensor, Any]:
        """Logits (B, W, V) of the next level for W live beams, and the next state.

        First call: codes and parents None, W = 1. Later: `codes_BW` are the codes just chosen,
        `parents_BW` the index of the beam, in the previous call, that each one extends.
        """
        ...


class Scorer(Protocol):
    """Histories to a score of every item. Trainable ones are an `nn.Module` with `loss`.

    One that also answers queries has `query_scores(texts, batch) -> (B, N)`, −inf where an item is
    no answer; one that knows what goes with an item has `similar_scores(rows_B) -> (B, N)`.
    """

    config_class: ClassVar[type]
    max_length: int

    @classmethod
    def build(cls, context: CatalogueContext, config: Any) -> Self:
        """A scorer; training-free ones are ready, trainable ones still need `training.train`."""
        ...

    def scores(self, batch: HistoryBatch) -> Tensor:
        """(B, N) float32, higher is better; any real scale."""
        ...


class Systems(Protocol):
    """What a retriever may ask of the bundle it belongs to; a `Recommender` is one."""

    items: Items
    train_counts_N: Ints
    vectors: ItemVectors
    ids: SemanticIds
    tokenizer: Fitted
    generator: Fitted
    scorers: Mapping[str, Fitted]
    beam_width: int
    renormalise: bool
    device: torch.device

    @property
    def index(self) -> PrefixIndex:
        """The prefix tree of the catalogue."""
        ...

    @property
    def weights_N(self) -> Tensor | None:
        """What divides the probability of a shared ID; None where every item has its own."""
        ...

    def generate(
        self,
        batch: HistoryBatch,
        k: int,
        exclude: Sequence[Ints] | None = None,
        keep_N: Bools | None = None,
    ) -> Candidates:
        """The k best items of the generator alone with their log-probabilities."""
        ...

    def scores(self, system: str, batch: HistoryBatch) -> Tensor:
        """(B, N) scores of a scorer; −inf for items it has never heard of."""
        ...

    def max_length(self, system: str) -> int:
        """Longest history that a system reads."""
        ...


class Retriever(Protocol):
    """A system that answers from the other systems of a bundle: generate, then compare.

    It learns no weights: what it chooses on validation are fields of its config, and the bundle
    saves that config alone.
    """

    config_class: ClassVar[type]
    max_length: int
    """Longest history that the systems it asks read."""

    @classmethod
    def build(cls, systems: Systems, config: Any) -> Self:
        """Ready to answer. DataError where the bundle lacks what it needs."""
        ...

    def tuned(self, examples: Examples, on_batch: Callable[[int, int], None] | None = None) -> Any:
        """Its config with every open choice (a field that is None) made on these questions."""
        ...

    def answer(
        self,
        batch: HistoryBatch,
        k: int,
        exclude: Sequence[Ints] | None = None,
        keep_N: Bools | None = None,
    ) -> Candidates:
        """The k best items that the rules leave, best first; −1 where fewer exist."""
        ...


class Searcher(Protocol):
    """Queries to items. Plain methods with `arrays` and `state`, as `fitted.Fitted` saves them.

    One that can write the semantic IDs of the bundle has `takes_ids` true: `fit` and `with_items`
    then take `ids` too, the IDs of all these items, or None where there is no bundle. One that can
    name items by what towers make of them has `takes_towers` true, and they take `towers`.
    """

    config_class: ClassVar[type]

    @classmethod
    def fit(cls, items: Items, config: Any, queries: SearchData | None = None) -> Self:
        """Ready to be asked about these items; learnt from judged queries where it learns."""
        ...

    def ask(self, texts: Sequence[str], pool: int, keep_N: Bools | None = None) -> Opinion:
        """The `pool` best items that the rules leave, and the score of any item; −inf where an item
        is no answer: such items are never listed, and a query of unknown words lists none.
        """
        ...

    def with_items(self, items: Items) -> Self:
        """The same searcher over a catalogue whose first items are the present ones."""
        ...


class Objective(Protocol):
    """A loss of log-probabilities; alignment minimises it.

    One with a memory (quartiles, thresholds) is an `nn.Module` that keeps it in buffers, so that
    checkpoints hold it.
    """

    config_class: ClassVar[type]
    kind: ClassVar[str]
    """"preference": called with `PreferenceLogProbs`; "group": with `GroupLogProbs`."""

    def __init__(self, config: Any) -> None: ...

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities under the frozen starting weights are asked for."""
        ...

    def __call__(
        self, log_probs: PreferenceLogProbs | GroupLogProbs
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of the contexts in nats, and scalars to log, without gradient."""
        ...


class Reward(Protocol):
    """What rollouts are worth.

    One that learns has `learns` true: alignment then lets it see other users than it scores. What
    it learns or draws depends on `context.seed` alone.
    """

    config_class: ClassVar[type]

    @classmethod
    def build(cls, context: AlignmentContext, config: Any) -> Self:
        """Ready to score; one that learns does so here, from training events alone."""
        ...

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """(B, G) float32; any value where there is no rollout. An ID without an item is worth the
        least that the reward can give.
        """
        ...
