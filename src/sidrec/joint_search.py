"""Models of a bundle that answer queries themselves, in the form of searchers: no second weights.

A scorer that offers `query_scores(texts, batch)` and a generator that offers `asked(texts, batch)`
are search systems of every bundle they are part of, beside those of its search part. They read a
history too: `for_history` gives the searcher of one person.

Cost:     a scorer: its own; a generator: one beam a query, and O(prefixes) steps where items that
          it did not list are to be scored.
Shapes:   B queries, N items, P items of a pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from sidrec.decoding.exact import exact_scores
from sidrec.decoding.rules import Rules
from sidrec.decoding.search import search
from sidrec.fitted import Fitted
from sidrec.retrieval.fusion import Opinion
from sidrec.retrieval.search.asking import opinion_of
from sidrec.types import Bools, Histories, HistoryBatch, Ints

if TYPE_CHECKING:
    from sidrec.recommender import Recommender


@dataclass(frozen=True, eq=False)
class ModelSearcher:
    """A model of a bundle, asked by words; see `contracts.Searcher`."""

    recommender: Recommender
    model: Any
    history: Ints | None = None
    """Catalogue rows of the person who asks, oldest first; None for anyone."""

    def for_history(self, history: Ints) -> Self:
        """The searcher of a person with this history."""
        return replace(self, history=history)

    def batch(self, num: int) -> HistoryBatch | None:
        """The history once a query, on the recommender's device; None for anyone."""
        if self.history is None or not len(self.history):
            return None
        histories = Histories.from_lists([self.history] * num)
        batch = HistoryBatch.from_histories(histories, max_length=int(self.model.max_length))
        return batch.to(self.recommender.device)


class ScorerSearcher(ModelSearcher):
    """A scorer with `query_scores`."""

    def ask(self, texts: Sequence[str], pool: int, keep_N: Bools | None = None) -> Opinion:
        """The `pool` best items that the rules leave, and the score of any item."""
        scores_BN = self.model.query_scores(texts, self.batch(len(texts)))
        return opinion_of(scores_BN.cpu(), pool, keep_N)


class GeneratorSearcher(ModelSearcher):
    """A generator with `asked`."""

    @torch.inference_mode()
    def ask(self, texts: Sequence[str], pool: int, keep_N: Bools | None = None) -> Opinion:
        """The `pool` best items that the rules leave, and the log-probability of any item."""
        owner = self.recommender
        asked = self.model.asked(texts, self.batch(len(texts))).to(owner.device)
        known_B = self.model.words.known(asked.words_BW).cpu()
        found = search(
            self.model,
            asked,
            owner.index,
            k=pool,
            beam_width=max(owner.beam_width, pool),
            rules=None if keep_N is None else Rules(keep_N=keep_N),
            renormalise=owner.renormalise,
            weights_N=owner.weights_N,
        )
        rows_BK = torch.from_numpy(found.rows_BK).masked_fill(~known_B[:, None], -1)
        listed_BK = torch.from_numpy(found.scores_BK).double()

        def scores(rows_BP: Tensor) -> Tensor:
            if torch.equal(rows_BP, rows_BK.clamp_min(0)):
                return listed_BK.masked_fill(~known_B[:, None], -torch.inf)
            all_BN = exact_scores(
                self.model, asked, owner.index, renormalise=owner.renormalise,
                weights_N=owner.weights_N,
            )  # fmt: skip
            own_BP = all_BN.cpu().gather(1, rows_BP).double()
            return own_BP.masked_fill(~known_B[:, None], -torch.inf)

        return Opinion(rows_BK, scores)


def own_searchers(recommender: Recommender) -> dict[str, Fitted]:
    """The models of a bundle that answer queries, by name."""
    found: dict[str, Fitted] = {}
    for fitted in (recommender.generator, *recommender.scorers.values()):
        searcher: ModelSearcher | None = None
        if hasattr(fitted.value, "query_scores"):
            searcher = ScorerSearcher(recommender, fitted.value)
        elif hasattr(fitted.value, "asked"):
            searcher = GeneratorSearcher(recommender, fitted.value)
        if searcher is not None:
            found[fitted.name] = replace(fitted, value=searcher)
    return dict(sorted(found.items(), key=lambda entry: entry[0] == recommender.generator.name))
