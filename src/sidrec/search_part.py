"""The search part of a bundle: fitted searchers over its catalogue, and how they are fused.

`fit_search` makes one, `Recommender.with_search` puts it beside the rest of a bundle,
`Recommender.search` asks it. A searcher is a row of `methods.py` with the `Searcher` contract.

Shapes:   B queries, N items, K returned items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np

from sidrec import config, methods
from sidrec.config import Method, Stage
from sidrec.contracts import Searcher
from sidrec.data.search.split import query_folds
from sidrec.data.search.values import SearchData
from sidrec.errors import ConfigError
from sidrec.fitted import Fitted
from sidrec.retrieval.fusion import Hybrid
from sidrec.retrieval.search.asking import best
from sidrec.retrieval.search.fusing import equal_shares, fuse_search, tune_search
from sidrec.retrieval.search.understanding.boosting import understood_search
from sidrec.retrieval.search.understanding.understanding import (
    QueryUnderstanding,
    UnderstandingConfig,
)
from sidrec.types import Bools, Candidates, Ints, Items, SemanticIds

SEARCHERS = Stage("searchers")
HYBRID = "hybrid"
UNDERSTANDING = "understanding"
TOWERS = "dual_tower"
LEAST_TO_TUNE = 20
"""Judged queries below which weights are not chosen but equal."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """A whole search part, as its TOML says it."""

    searchers: tuple[Annotated[Method, SEARCHERS], ...] = field(
        default_factory=lambda: tuple(config.method(SEARCHERS, n) for n in ("bm25", "dual_tower"))
    )
    """What answers; with more than one, their fusion answers by default."""
    pool: int = 200
    """Items that each searcher brings into a fusion."""
    valid_share: float = 0.2
    """Share of the judged queries that only choose the fusion's rule and weights."""
    history_weight: float = 0.2
    """Weight of the recommender's own order, where a history comes with the query: in [0, 1)."""
    understanding: UnderstandingConfig | None = None
    """Read queries by the catalogue first: `[understanding]`, empty for its defaults. None asks
    searchers the words as they come."""
    seed: int = 0
    """The one seed of every searcher and of the split."""

    def __post_init__(self) -> None:
        names = [chosen.name for chosen in self.searchers]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"search needs searchers with different names, got {names}")
        if not 0 < self.valid_share < 1:
            raise ConfigError(f"search.valid_share must be in (0, 1), got {self.valid_share}")
        if not 0 <= self.history_weight < 1:
            raise ConfigError(f"search.history_weight must be in [0, 1), got {self.history_weight}")


def load_search_config(path: str | Path) -> SearchConfig:
    """The settings of a TOML file; a key it does not name keeps its default."""
    return config.load(SearchConfig, path)


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchPart:
    """Searchers by name, all over the same catalogue."""

    searchers: Mapping[str, Fitted]
    hybrid: Hybrid | None
    """None with one searcher."""
    history_weight: float
    tuned_on: int = 0
    """Judged queries that chose the fusion; 0 where weights are equal."""
    understanding: QueryUnderstanding | None = None
    """Reads every query before the searchers do; None where it is off."""

    @property
    def systems(self) -> list[str]:
        """Names that `system` takes, the default first."""
        return [*([HYBRID] if self.hybrid else []), *self.searchers]

    def value(self, system: str) -> Any:
        """The searcher of that name, None for the fusion. ConfigError names those there are."""
        if system not in self.systems:
            raise ConfigError(f"no search system {system!r} in this bundle; have {self.systems}")
        return self.searchers[system].value if system in self.searchers else None

    def for_history(self, system: str, history: Ints) -> Self:
        """The same with one searcher answering a person with this history."""
        fitted = self.searchers[system]
        own = replace(fitted, value=fitted.value.for_history(history))
        return replace(self, searchers={**self.searchers, system: own})

    def find(
        self,
        texts: Sequence[str],
        k: int,
        *,
        system: str | None = None,
        keep_N: Bools | None = None,
    ) -> Candidates:
        """The k best items (B, k) for cleaned queries; −1 where fewer answer."""
        name = self.systems[0] if system is None else system
        self.value(name)  # says where there is none of that name
        values = {member: fitted.value for member, fitted in self.searchers.items()}
        hybrid = self.hybrid if name == HYBRID else None

        def ask(
            searchers: Mapping[str, Searcher], texts: Sequence[str], k: int, keep_N: Bools | None
        ) -> Candidates:
            if hybrid is not None:
                return fuse_search(searchers, hybrid, texts, k, keep_N)
            return best(searchers[name].ask(texts, k, keep_N), k)

        if self.understanding is None:
            return ask(values, texts, k, keep_N)
        return understood_search(self.understanding, values, ask, texts, k, keep_N)

    def with_items(self, items: Items, ids: SemanticIds | None = None) -> Self:
        """The same over a catalogue whose first items are the present ones; `ids` are those of the
        bundle, for searchers that write them.
        """
        grown = {
            name: replace(
                fitted,
                value=fitted.value.with_items(items, **beside(fitted.value, ids, self.searchers)),
            )
            for name, fitted in self.searchers.items()
        }
        read = self.understanding and self.understanding.with_items(items)
        return replace(self, searchers=grown, understanding=read)

    def state(self) -> dict[str, Any]:
        """JSON-able values beside the saved searchers."""
        return {
            "searchers": list(self.searchers),
            "hybrid": self.hybrid.to_dict() if self.hybrid else None,
            "history_weight": self.history_weight,
            "tuned_on": self.tuned_on,
            "understanding": self.understanding is not None,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], fitted: Callable[[str], Fitted]) -> Self:
        """The part that `state` came from; `fitted` loads a searcher by its folder's name."""
        return cls(
            searchers={name: fitted(f"searcher_{name}") for name in state["searchers"]},
            hybrid=None if state["hybrid"] is None else Hybrid(**state["hybrid"]),
            history_weight=float(state["history_weight"]),
            tuned_on=int(state["tuned_on"]),
            understanding=fitted(UNDERSTANDING).value if state.get("understanding") else None,
        )


def fit_search(
    items: Items,
    settings: SearchConfig | None = None,
    queries: SearchData | None = None,
    *,
    ids: SemanticIds | None = None,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
) -> SearchPart:
    """A search part over `items`, learnt from judged queries where there are any; `ids` are the
    bundle's semantic IDs of these items, for searchers that write them.

    A share of the queries is kept from the searchers and chooses the fusion alone; with fewer than
    `LEAST_TO_TUNE` judged queries all of them teach, and the fusion is that of equal shares.
    """
    settings = settings or SearchConfig()
    teaching, valid = queries, None
    several = len(settings.searchers) > 1
    if queries is not None:
        judged = np.flatnonzero(queries.judgements.counts_Q > 0)
        teaching = queries.take(judged)
        if several and len(judged) >= LEAST_TO_TUNE:
            folds = query_folds(
                teaching.queries, max(2, round(1 / settings.valid_share)), seed=settings.seed
            )
            valid, teaching = teaching.take(folds[0]), teaching.take(np.concatenate(folds[1:]))
    fitted: dict[str, Fitted] = {}
    for chosen in settings.searchers:
        if on_event is not None:
            on_event({"stage": chosen.name, "message": f"fit over {len(items)} items"})
        own = config.with_seed(chosen.config, settings.seed)
        method_class = methods.resolve("searchers", chosen.name)
        value = method_class.fit(items, own, teaching, **beside(method_class, ids, fitted))
        fitted[chosen.name] = Fitted(stage="searchers", name=chosen.name, config=own, value=value)
    hybrid, tuned_on = None, 0
    if several:
        hybrid = equal_shares(list(fitted), settings.pool)
        if valid is not None:
            members = {name: found.value for name, found in fitted.items()}
            hybrid = tune_search(members, valid, pool=settings.pool).hybrid
            tuned_on = len(valid.queries)
    read = None
    if settings.understanding is not None:
        if on_event is not None:
            on_event({"stage": "understanding", "message": f"fit over {len(items)} items"})
        read = QueryUnderstanding.fit(
            items, config.with_seed(settings.understanding, settings.seed)
        )
    return SearchPart(
        searchers=fitted,
        understanding=read,
        hybrid=hybrid,
        history_weight=settings.history_weight,
        tuned_on=tuned_on,
    )


def beside(searcher: Any, ids: SemanticIds | None, others: Mapping[str, Fitted]) -> dict[str, Any]:
    """The arguments `ids` and `towers`, for a searcher that takes them."""
    found: dict[str, Any] = {"ids": ids} if getattr(searcher, "takes_ids", False) else {}
    if getattr(searcher, "takes_towers", False) and TOWERS in others:
        found["towers"] = others[TOWERS].value
    return found
