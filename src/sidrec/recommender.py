"""The bundle a user holds: recommend, similar, explain, add items, save, load.

Everything needed to answer for any history over the catalogue, and nothing about the users it was
trained on. Outside ids come in and go out; inside are catalogue rows. Asking changes nothing, so
several threads may share one recommender; `add_items` returns a new one.

Cost:     loading: one SHA-256 pass, plus the index (well under a second for 100 k items).
Shapes:   B requests, N items, M new items, D width, L levels, K returned items.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import polars as pl
import torch

from sidrec import bundle, explore, filters, methods, searching
from sidrec.building import weights_follow
from sidrec.bundle import serving_context
from sidrec.config import Method
from sidrec.contracts import Retriever
from sidrec.decoding.beam import LevelTrace
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.rules import Rules
from sidrec.decoding.search import search
from sidrec.errors import ConfigError, DataError
from sidrec.fitted import Fitted, grow, nearest_items
from sidrec.processes import choose_device
from sidrec.retrieval.fusion import Hybrid, Member, fuse, generator_member, scorer_member
from sidrec.retrieval.new_items import reserved, with_new_items
from sidrec.retrieval.search.understanding.parsed import ParsedQuery
from sidrec.retrieval.top_items import top_items
from sidrec.search_part import SearchPart
from sidrec.tokenizers.collisions import assign_new
from sidrec.tokenizers.health import Health
from sidrec.tokenizers.lifecycle import ids_version
from sidrec.tokenizers.tree import ItemWords
from sidrec.types import (
    PAD,
    Bools,
    Candidates,
    Histories,
    HistoryBatch,
    Ints,
    Items,
    ItemVectors,
    SemanticIds,
    as_ids,
)

if TYPE_CHECKING:
    from sidrec.compiled.search import CompiledSearch

log = logging.getLogger(__name__)
BLOCK_REQUESTS = 512
"""Requests answered at once."""
MERGED_ITEMS = 100_000
"""Up to here an index with new items is merged at once, for so many in 0.07 s; search is faster. A
compiled search needs it merged always."""
POPULAR = "popularity"
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False, kw_only=True)
class Recommender:
    """A fitted recommender: catalogue, semantic IDs, generator, scorers and their fusion."""

    items: Items
    train_counts_N: Ints
    """Training events of each item; 0 for items added later."""
    vectors: ItemVectors
    ids: SemanticIds
    embedding: Fitted
    tokenizer: Fitted
    collisions: Method
    generator: Fitted
    scorers: Mapping[str, Fitted]
    hybrid: Hybrid | None
    beam_width: int
    renormalise: bool
    retrievers: tuple[Method, ...] = ()
    """Systems that answer from the others, as they are configured."""
    length_penalty: float = 0.0
    """Rank the generator's IDs by score / symbols^penalty; see `decoding.beam`."""
    new_item_share: float = 0.0
    """Least share of every list for items without training events; see `retrieval.new_items`."""
    search_part: SearchPart | None = None
    """What answers queries; None until `with_search`."""
    ids_parent: str | None = None
    """Version of the IDs that these came from by `add_items`, or by a fit with a `parent`."""
    aligned_from: str | None = None
    """Hash of the bundle whose generator this one was aligned from."""
    content_hash: str | None = None
    """Hash of the bundle it was loaded from; None for one that was never saved."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The run's whole config, plain, seed included."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Data hash, split rule, and the measured metrics of each system."""
    device: torch.device = CPU
    index_override: PrefixIndex | None = None
    compiled: bool = False
    """Whether the generator is searched by one compiled call; see `with_compiled`."""

    # ---------------------------------------------------------------- asking

    @property
    def systems(self) -> list[str]:
        """Names that `system` takes, the default first."""
        fused = ["hybrid"] if self.hybrid else []
        return [*fused, self.generator.name, *self.retrieving, *self.scorers]

    @cached_property
    def retrieving(self) -> dict[str, Retriever]:
        """The retrievers, ready to be asked, by name."""
        return {
            chosen.name: methods.resolve("retrievers", chosen.name).build(self, chosen.config)
            for chosen in self.retrievers
        }

    @cached_property
    def ids_version(self) -> str:
        """Hash of the semantic IDs: item ids, codes and codebook sizes."""
        return ids_version(self.ids)

    @cached_property
    def index(self) -> PrefixIndex:
        """The prefix tree of the catalogue."""
        return self.index_override or PrefixIndex.build(self.ids, device=self.device)

    @cached_property
    def weights_N(self) -> torch.Tensor | None:
        """What divides the probability of a shared ID; None where every item has its own."""
        return popularity_weights(self.index, self.train_counts_N, self.generator.value)

    @cached_property
    def compiled_search(self) -> CompiledSearch | None:
        """The generator's compiled search; None where it is not asked for."""
        if not self.compiled:
            return None
        if not self.renormalise or self.length_penalty:
            raise ConfigError(
                "compiled search: it renormalises and knows no length penalty; leave compiled out, "
                "or set [decoding] renormalise = true and length_penalty = 0"
            )
        from sidrec.compiled.search import CompiledSearch

        return CompiledSearch(self.generator.value, self.index, self.weights_N)

    def recommend(
        self,
        history: Sequence[str] | None = None,
        *,
        histories: Sequence[Sequence[str]] | None = None,
        user_ids: Sequence[str] | None = None,
        k: int = 10,
        system: str | None = None,
        exclude: Sequence[str] = (),
        exclude_seen: bool = True,
        allow: Sequence[str] | None = None,
        where: Mapping[str, Any] | Callable[[pl.DataFrame], Any] | None = None,
        unknown: str = "error",
    ) -> pl.DataFrame:
        """The k best next items of one `history`, or of each of `histories`, oldest item first.

        Columns: user_id, rank, item_id, title, score, semantic_id, source; fewer than k rows a
        user only where the rules leave fewer items. `where` is a filter tree (see `filters`) or a
        function of the attributes frame giving one boolean an item; `allow` names the only items
        that may be returned. Items of a history that the catalogue lacks raise DataError, or are
        left out and counted in a column `skipped` with `unknown="skip"`. An empty history is
        answered by popularity, and `source` says so. Scores of different systems do not compare.
        """
        if (history is None) == (histories is None):
            raise ConfigError("recommend needs either history or histories")
        if k < 1:
            raise ConfigError(f"recommend: k must be at least 1, got {k}")
        if unknown not in ("error", "skip"):
            raise ConfigError(f"unknown must be 'error' or 'skip', got {unknown!r}")
        asked = [history] if histories is None else histories
        rows = [self._rows(request, unknown) for request in asked]  # type: ignore[arg-type]
        users = [str(i) for i in range(len(rows))] if user_ids is None else list(user_ids)
        if len(users) != len(rows):
            raise DataError(f"recommend got {len(users)} user_ids for {len(rows)} histories")
        name = self.system_named(system)
        keep_N = self._kept(exclude, allow, where)
        parts = []
        for start in range(0, len(rows), BLOCK_REQUESTS):
            block = rows[start : start + BLOCK_REQUESTS]
            seen = [np.unique(r) if exclude_seen else r[:0] for r in block]
            empty = np.array([not len(r) for r in block])
            for chosen, source in ((~empty, name), (empty, POPULAR)):
                places = np.flatnonzero(chosen)
                if not len(places):
                    continue
                found = self.candidates(
                    Histories.from_lists([block[i] for i in places]),
                    k,
                    system=source,
                    exclude=[seen[i] for i in places],
                    keep_N=keep_N,
                )
                parts.append((start + places, found, source))
        lost = [len(request) - len(r) for request, r in zip(asked, rows, strict=True)]  # type: ignore[arg-type]
        return self._frame(parts, users, lost if unknown == "skip" else None)

    def search(
        self,
        query: str | Sequence[str],
        history: Sequence[str] | None = None,
        *,
        k: int = 10,
        system: str | None = None,
        exclude: Sequence[str] = (),
        allow: Sequence[str] | None = None,
        where: Mapping[str, Any] | Callable[[pl.DataFrame], Any] | None = None,
        unknown: str = "error",
    ) -> pl.DataFrame:
        """The k best answers to one query, or to each of several.

        Columns: query, rank, item_id, title, score, semantic_id, source. Fewer than k rows where
        fewer items answer, none where no word is known. A history, oldest item first, moves the
        answers that a person would like up; `exclude`, `allow` and `where` are those of
        `recommend`. An empty or over-long query, and a bundle without a search part, raise
        DataError. Scores of different systems do not compare.
        """
        if unknown not in ("error", "skip"):
            raise ConfigError(f"unknown must be 'error' or 'skip', got {unknown!r}")
        return searching.search(
            self,
            [query] if isinstance(query, str) else query,
            history=None if history is None else self._rows(history, unknown),
            k=k,
            system=system,
            keep_N=self._kept(exclude, allow, where),
        )

    def understand(self, query: str) -> ParsedQuery:
        """What `search` takes a query to mean: spelling, spans, categories, added words, filters.

        DataError where the bundle has no search part, or one that asks words as they come.
        """
        part = searching.part_of(self)
        if part.understanding is None:
            raise DataError(
                "this bundle searches the words as they come; add [understanding] to the settings "
                "of `sidrec search-fit`"
            )
        return part.understanding.parse(query)

    def with_search(self, part: SearchPart) -> Self:
        """A recommender that also answers queries, by a part fitted over the same items."""
        return replace(self, search_part=part, content_hash=None)

    def candidates(
        self,
        histories: Histories,
        k: int,
        *,
        system: str | None = None,
        exclude: Sequence[Ints] | None = None,
        keep_N: Bools | None = None,
    ) -> Candidates:
        """The k best items (B, k) as catalogue rows; the form that evaluation and serving use.

        Every history must hold at least one item, except for `system="popularity"`.
        """
        name = self.system_named(system)
        longest = self.max_length(name)
        batch = HistoryBatch.from_histories(histories, max_length=longest).to(self.device)
        return self.answer(name, batch, k, exclude, keep_N)

    @torch.inference_mode()
    def answer(
        self,
        system: str,
        batch: HistoryBatch,
        k: int,
        exclude: Sequence[Ints] | None = None,
        keep_N: Bools | None = None,
    ) -> Candidates:
        """As `candidates`, from a batch already made and on this recommender's device."""
        listed = self.ranked(system, batch, k, exclude, keep_N)
        new_N = self.train_counts_N == 0
        wanted = new_N if keep_N is None else new_N & keep_N
        if not (num_new := reserved(k, self.new_item_share)) or not wanted.any():
            return listed
        new = self.ranked(system, batch, num_new, exclude, wanted)
        return with_new_items(listed, new, new_N, self.new_item_share)

    def ranked(
        self,
        system: str,
        batch: HistoryBatch,
        k: int,
        exclude: Sequence[Ints] | None,
        keep_N: Bools | None,
    ) -> Candidates:
        """The k best by the system alone; no share for new items."""
        if system == self.generator.name:
            return self.generate(batch, k, exclude, keep_N)
        if system == "hybrid" and self.hybrid:
            members = [self.member(name) for name in self.hybrid.members]
            return fuse(members, self.hybrid, batch, k, exclude=exclude, keep_N=keep_N)
        if system in self.retrieving:
            return self.retrieving[system].answer(batch, k, exclude, keep_N)
        return top_items(self.scores(system, batch), k, exclude, keep_N)

    def generate(
        self,
        batch: HistoryBatch,
        k: int,
        exclude: Sequence[Ints] | None = None,
        keep_N: Bools | None = None,
        *,
        length_penalty: float | None = None,
        trace: list[LevelTrace] | None = None,
    ) -> Candidates:
        """The generator alone, rules inside its search.

        Items that share an ID divide its probability in proportion to training events + 1. A beam
        tells `trace` what it did at each level; a generator that searches in its own way does not.
        """
        rules = None
        if keep_N is not None or exclude is not None:
            rules = Rules(keep_N=keep_N, exclude=exclude)
        batch = batch.last(self.generator.value.max_length)
        if self.compiled_search is not None and trace is None and not length_penalty:
            return self.compiled_search.search(batch, k=k, beam_width=self.beam_width, rules=rules)
        return search(
            self.generator.value,
            batch,
            self.index,
            k=k,
            beam_width=self.beam_width,
            rules=rules,
            renormalise=self.renormalise,
            length_penalty=self.length_penalty if length_penalty is None else length_penalty,
            weights_N=self.weights_N,
            trace=trace,
        )

    def member(self, name: str) -> Member:
        """One system in the form that fusion asks."""
        if name == self.generator.name:
            return generator_member(partial(self.generate, length_penalty=0.0))
        if name in self.retrieving:
            return generator_member(self.retrieving[name].answer)
        return scorer_member(lambda batch: self.scores(name, batch))

    @torch.inference_mode()
    def scores(self, system: str, batch: HistoryBatch) -> torch.Tensor:
        """(B, N) scores of a scorer; −inf for items it has never heard of."""
        if system == POPULAR and POPULAR not in self.scorers:
            counts = torch.from_numpy(self.train_counts_N).float().to(self.device)
            return counts.expand(batch.num_requests, -1)
        scorer = self.scorers[system].value
        scores_BN = scorer.scores(batch.last(scorer.max_length))
        missing = len(self.items) - scores_BN.shape[1]
        return torch.nn.functional.pad(scores_BN, (0, missing), value=-torch.inf)

    def max_length(self, system: str) -> int:
        """Longest history that a system reads."""
        if system == "hybrid" and self.hybrid:
            return max(self.max_length(name) for name in self.hybrid.members)
        if system == self.generator.name:
            return int(self.generator.value.max_length)
        if system in self.retrieving:
            return self.retrieving[system].max_length
        fitted = self.scorers.get(system)
        return 1 if fitted is None else int(fitted.value.max_length)

    def similar(self, item_id: str, k: int = 10, *, system: str | None = None) -> pl.DataFrame:
        """The k items with the nearest vectors: item_id, title, similarity (cosine), and how many
        leading codes they share. With `system`, a scorer that knows what goes with an item
        (`unicorn`), its k best and its score as their similarity.
        """
        return explore.similar(self, item_id, k, system)

    def explain(self, history: Sequence[str], item_id: str) -> dict[str, Any]:
        """Why this item after this history, as far as the generator can say; see `explore`."""
        return explore.explain(self, history, item_id)

    def inspect(
        self, prefix: tuple[int, ...] = (), *, limit: int = 20, train: Histories | None = None
    ) -> dict[str, Any]:
        """Health of the semantic IDs and the tree below a prefix; see `explore`."""
        return explore.inspect(self, prefix, limit, train)

    def inspect_page(self, path: str | Path, *, train: Histories | None = None) -> Health:
        """Write that health and the whole tree as one HTML page that needs nothing else."""
        return explore.inspect_page(self, path, train)

    @cached_property
    def titles(self) -> list[str]:
        """A short name of every item."""
        return self.items.titles()

    @cached_property
    def words(self) -> ItemWords:
        """The words of every item, to name groups of items by."""
        return ItemWords.of(self.items.texts())

    # ---------------------------------------------------------------- changing

    def with_compiled(self) -> Self:
        """A recommender whose generator is searched by one call of ONNX Runtime, checked against
        PyTorch on a few histories; the same items, sooner on a CPU. Needs the extra compiled.

        ConfigError says what keeps a bundle from it: a generator that is not `causal`, experts, a
        GPU, a length penalty. A trace of the search stays with PyTorch. `add_items` keeps it.
        """
        made = replace(self, compiled=True)
        assert made.compiled_search is not None
        made.compiled_search.check()
        return made

    def add_items(self, table: pl.DataFrame | Items) -> Self:
        """A new recommender that also knows these items, without retraining; this one stays.

        New items are embedded and get the nearest free semantic IDs; no existing ID moves. Learnt
        tables take for each new item the mean over its nearest old items. Scorers without vectors
        of items (popularity, transition graph) cannot recommend them until the next fit. Items
        whose vector is zero are counted in the log.
        """
        new = table if isinstance(table, Items) else items_of(table)
        vectors = self.embedding.value.embed(new)
        if unknown := int((~vectors.vectors.any(axis=1)).sum()):
            log.warning(
                "add_items: nothing is known of %d of %d new items (no word or view of the "
                "training): they get IDs that say nothing of them",
                unknown,
                len(new),
            )
        policy = self.collisions
        ids, _ = assign_new(self.ids, self.tokenizer.value, vectors, policy.name, policy.config)
        items = Items(
            np.concatenate([self.items.item_ids, new.item_ids]),
            pl.concat([self.items.attributes, new.attributes], how="diagonal_relaxed"),
        )
        all_vectors = ItemVectors(
            items.item_ids,
            np.concatenate([self.vectors.vectors, vectors.vectors]),
            self.vectors.views,
        )
        all_ids = SemanticIds(
            items.item_ids, np.concatenate([self.ids.codes, ids.codes]), self.ids.num_codes
        )
        context = serving_context(items, all_vectors, all_ids)
        nearest_MK = nearest_items(vectors.vectors, self.vectors.vectors)

        # where the first ID ends at a level, its symbol starts as in a training
        before_L, after_L = ((named.codes < 0).any(axis=0) for named in (self.ids, all_ids))
        same_symbols = bool((before_L == after_L).all())

        def grown(fitted: Fitted) -> Fitted:
            if not isinstance(fitted.value, torch.nn.Module):
                return fitted
            with weights_follow() if same_symbols else nullcontext():
                larger = type(fitted.value).build(context, fitted.config)
            grow(fitted.value, larger, len(self.items), nearest_MK)
            return replace(fitted, value=larger.to(self.device))

        new_rows = np.arange(len(self.items), len(items))
        counts = np.concatenate([self.train_counts_N, np.zeros(len(new), dtype=np.int64)])
        index = self.index.insert(new_rows, ids.codes)
        merged = self.compiled or index.num_items <= MERGED_ITEMS
        return replace(
            self,
            items=items,
            train_counts_N=counts,
            vectors=all_vectors,
            ids=all_ids,
            generator=grown(self.generator),
            scorers={name: grown(fitted) for name, fitted in self.scorers.items()},
            search_part=self.search_part and self.search_part.with_items(items, all_ids),
            ids_parent=self.ids_version,
            content_hash=None,
            index_override=index.merged() if merged else index,
        )

    def with_ids(self, ids: SemanticIds, tokenizer: Fitted) -> Self:
        """A new recommender whose trained models go on with other IDs of the same items.

        Models are built again on the new codes and take their weights as they are, so it is only
        as good as the codes still mean what they meant: rename them first (`lifecycle.migration`).
        Vectors stay those the models were trained with. `tokenizer` must be the one that gives
        these IDs, from vectors of the same embedding, or `add_items` cannot follow.
        """
        row_of = {str(item): row for row, item in enumerate(ids.item_ids)}
        if set(row_of) != set(map(str, self.items.item_ids)):
            raise DataError(
                f"with_ids needs IDs of the {len(self.items)} items of this catalogue, got "
                f"{len(ids)} others; add or drop items first"
            )
        rows_N = np.array([row_of[str(item)] for item in self.items.item_ids])
        if ids.num_codes != self.ids.num_codes:
            raise DataError(
                f"with_ids needs codebooks of the sizes {self.ids.num_codes} that the models were "
                f"trained with, got {ids.num_codes}; fit the tokenizer with these"
            )
        ids = SemanticIds(self.items.item_ids, ids.codes[rows_N], ids.num_codes)
        context = serving_context(self.items, self.vectors, ids)

        def moved(fitted: Fitted) -> Fitted:
            if not isinstance(fitted.value, torch.nn.Module):
                return fitted
            model = type(fitted.value).build(context, fitted.config)
            grow(fitted.value, model, len(self.items), np.zeros((0, 1), dtype=np.int64))
            return replace(fitted, value=model.to(self.device))

        return replace(
            self,
            ids=ids,
            tokenizer=tokenizer,
            generator=moved(self.generator),
            ids_parent=self.ids_version,
            content_hash=None,
            index_override=None,
        )

    # ---------------------------------------------------------------- disk

    def save(self, path: str | Path) -> str:
        """Write the bundle as the directory `path`, whole or not at all; return its hash."""
        return bundle.save(self, path)

    # ---------------------------------------------------------------- pieces

    def system_named(self, name: str | None) -> str:
        """The system that a caller's word means. ConfigError names those there are."""
        if name is None:
            return self.systems[0]
        name = self.generator.name if name == "generator" else name
        if name not in (*self.systems, POPULAR):
            raise ConfigError(f"no system {name!r} in this bundle; have {self.systems}")
        return name

    def _rows(self, history: Sequence[str], unknown: str) -> Ints:
        if isinstance(history, str):
            raise DataError(f"a history must be a list of item ids, got the text {history!r}")
        if unknown == "skip":
            history = [item for item in history if str(item) in self.items.row_of]
        return self.items.rows(history)

    def _kept(
        self,
        exclude: Sequence[str],
        allow: Sequence[str] | None,
        where: Mapping[str, Any] | Callable[[pl.DataFrame], Any] | None,
    ) -> Bools | None:
        """(N,) items that may be returned to anyone; None when all may."""
        if not len(exclude) and allow is None and where is None:
            return None
        num_items = len(self.items)
        keep_N = np.ones(num_items, dtype=bool)
        if allow is not None:
            keep_N[:] = False
            keep_N[self.items.rows(allow, where="allow")] = True
        keep_N[self.items.rows(exclude, where="exclude")] = False
        if isinstance(where, Mapping):
            keep_N &= filters.mask(where, self.items.attributes)
        elif where is not None:
            met = np.asarray(where(self.items.attributes))
            if met.shape != (num_items,) or met.dtype != bool:
                raise DataError(
                    f"where must give one boolean an item, ({num_items},), "
                    f"got {met.dtype} {met.shape}"
                )
            keep_N &= met
        return keep_N

    def _frame(
        self,
        parts: Sequence[tuple[Ints, Candidates, str]],
        users: Sequence[str],
        skipped: Sequence[int] | None,
    ) -> pl.DataFrame:
        rows: list[tuple[int, dict[str, Any]]] = []
        for places, found, source in parts:
            for place, items, scores in zip(
                places.tolist(), found.rows_BK.tolist(), found.scores_BK.tolist(), strict=True
            ):
                listed = [(i, s) for i, s in zip(items, scores, strict=True) if i != PAD]
                for rank, (item, score) in enumerate(listed, 1):
                    codes = [code for code in self.ids.codes[item].tolist() if code >= 0]
                    values = (users[place], rank, str(self.items.item_ids[item]))
                    values = (*values, self.titles[item], score, codes, source)
                    rows.append((place, dict(zip(SCHEMA, values, strict=True))))
        rows.sort(key=lambda row: row[0])
        frame = pl.DataFrame([row for _, row in rows], schema=SCHEMA)
        if skipped is None:
            return frame
        counts = pl.Series("skipped", [skipped[place] for place, _ in rows], dtype=pl.Int64)
        return frame.with_columns(counts)


SCHEMA: dict[str, Any] = {
    "user_id": pl.String,
    "rank": pl.Int64,
    "item_id": pl.String,
    "title": pl.String,
    "score": pl.Float64,
    "semantic_id": pl.List(pl.Int64),
    "source": pl.String,
}
"""Columns of what `recommend` returns."""


def load(path: str | Path, *, device: str = "auto", compiled: bool = False) -> Recommender:
    """The recommender that `save` wrote, every byte checked against the manifest's hashes.

    `compiled`: see `Recommender.with_compiled`.
    """
    recommender = Recommender(**bundle.parts(path, choose_device(device)))
    return recommender.with_compiled() if compiled else recommender


def popularity_weights(
    index: PrefixIndex, train_counts_N: Ints, generator: Any = None
) -> torch.Tensor | None:
    """(N,) training events + 1; None where every item has its own ID.

    A generator that searches by parts of IDs (`shares_parts`) gets them always: parts are shared.
    """
    if index.tree.one_item_a_leaf and not getattr(generator, "shares_parts", False):
        return None
    return torch.from_numpy(train_counts_N + 1.0).to(index.device)


def items_of(table: pl.DataFrame) -> Items:
    """Items of a frame with a column item_id."""
    if "item_id" not in table.columns or not table.height:
        raise DataError(
            f"new items need a column item_id and at least one row, got {table.height} rows of "
            f"{table.columns}"
        )
    return Items(as_ids(table["item_id"]), table)
