"""What goes in and comes out of API v1. Unknown fields are refused; ids are texts of 1 to 256
characters without control characters.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sidrec.serving.clock import CLOCK

MAX_K = 500
MAX_HISTORY = 10_000
MAX_BATCH = 1000
MAX_EXPLAINED = 20
MAX_TRACED = 100
MAX_LOOKED_AT = 200
SKEW = datetime.timedelta(days=1)
"""How far in the future an event may lie; clocks differ."""
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

Id = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
Word = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")]
Tree = Annotated[
    dict[str, Any],
    Field(
        description='{"field", "op", "value"}, or {"and": […]}, {"or": […]}, {"not": …}; ops eq, '
        "ne, lt, le, gt, ge, in, contains, exists. At most 64 conditions, 8 deep.",
        examples=[{"field": "price", "op": "lt", "value": 50}],
    ),
]


class In(BaseModel):
    """A body that comes in."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Out(BaseModel):
    """A body that goes out."""

    model_config = ConfigDict(protected_namespaces=())


# Asking ------------------------------------------------------------------------------------------


class Boost(In):
    """Items that meet `filter` count as `factor` times as probable."""

    filter: Tree
    factor: Annotated[float, Field(gt=0, le=1000)]


class Known(In):
    """Who asks: a user whose events are known, or a history, oldest item first."""

    user_id: Id | None = None
    history: Annotated[list[Id], Field(max_length=MAX_HISTORY)] | None = None
    timeout_ms: Annotated[int, Field(ge=1, le=60_000)] | None = None

    @model_validator(mode="after")
    def one_of_both(self) -> Self:
        if self.user_id is None and self.history is None:
            raise ValueError("give user_id or history")
        return self


class Asked(Known):
    """Who asks, and which system is to answer."""

    system: Word | None = None
    """One of the model's systems; None takes the first."""


class RecommendRequest(Asked):
    """The best next items."""

    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10
    scenario: Word | None = None
    """Named defaults that the server was started with."""
    filter: Tree | None = None
    segment: Tree | None = None
    """What is known of a person without a history, as a filter: where popular items are answered,
    those that meet it come first. It removes nothing."""
    boost: Annotated[list[Boost], Field(max_length=8)] = []
    exclude_items: Annotated[list[Id], Field(max_length=MAX_HISTORY)] = []
    exclude_viewed: bool = True
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0 ranks by score alone; towards 1 an item that resembles one above it loses its place."""
    include_fields: Annotated[list[Word], Field(max_length=32)] = []
    explain: bool = False
    """Say of each item what `/v1/explain` says; takes a key with role `secret`."""
    dry_run: bool = False
    """Say what would be asked, and ask nothing."""

    @model_validator(mode="after")
    def few_explained(self) -> Self:
        if self.explain and self.k > MAX_EXPLAINED:
            raise ValueError(f"explain takes k of at most {MAX_EXPLAINED}")
        return self


class SimilarRequest(In):
    """The items most like one."""

    item_id: Id
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10
    filter: Tree | None = None
    exclude_items: Annotated[list[Id], Field(max_length=MAX_HISTORY)] = []
    include_fields: Annotated[list[Word], Field(max_length=32)] = []
    timeout_ms: Annotated[int, Field(ge=1, le=60_000)] | None = None


class RankRequest(Asked):
    """Given items in the best order."""

    items: Annotated[list[Id], Field(min_length=1, max_length=MAX_K)]
    include_fields: Annotated[list[Word], Field(max_length=32)] = []


class ExplainRequest(Known):
    """Why an item; the model's generator says it, whatever system would list the item."""

    item_id: Id


class TraceRequest(Asked):
    """The beam of a recommendation, level by level; the fields mean what they do there."""

    k: Annotated[int, Field(ge=1, le=MAX_TRACED)] = 10
    filter: Tree | None = None
    exclude_items: Annotated[list[Id], Field(max_length=MAX_HISTORY)] = []
    exclude_viewed: bool = True
    shown: Annotated[int, Field(ge=0, le=50)] = 5
    """Prefixes that are named of those that were not taken, for each cause."""


class TreeQuery(In):
    """A prefix of semantic IDs, and which of its items are listed."""

    prefix: Annotated[str, Field(pattern=r"^([0-9]{1,9}(-[0-9]{1,9}){0,63})?$")] = ""
    """Codes with a dash between them; empty for the whole catalogue."""
    limit: Annotated[int, Field(ge=0, le=MAX_LOOKED_AT)] = 20
    offset: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0

    @property
    def codes(self) -> tuple[int, ...]:
        """The prefix as numbers."""
        return tuple(int(code) for code in self.prefix.split("-")) if self.prefix else ()


class ItemsQuery(In):
    """Items by words of their titles or by their ids; without either, the most bought."""

    query: Annotated[str, Field(max_length=200)] = ""
    ids: Annotated[list[Id], Field(max_length=MAX_LOOKED_AT)] = []
    """Exactly these items, as far as the catalogue has them; `query` is not looked at."""
    limit: Annotated[int, Field(ge=1, le=50)] = 10


class SearchRequest(In):
    """Items for a text; a user or a history moves those up that a person would like."""

    query: Annotated[str, Field(min_length=1, max_length=1000)]
    user_id: Id | None = None
    history: Annotated[list[Id], Field(max_length=MAX_HISTORY)] | None = None
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10
    filter: Tree | None = None
    include_fields: Annotated[list[Word], Field(max_length=32)] = []
    timeout_ms: Annotated[int, Field(ge=1, le=60_000)] | None = None


class Reason(Out):
    """Why an item is listed."""

    kind: Literal["like_history", "sequence", "popular", "popular_in_segment", "similar", "search"]
    text: str
    item_id: str | None = None
    """The item of the history that it shares the most codes with."""
    shared_codes: int | None = None


class RankedItem(Out):
    """One item of an answer."""

    item_id: str
    rank: int
    score: float
    semantic_id: list[int]
    source: str
    """The system that found it."""
    reason: Reason
    fields: dict[str, Any] | None = None
    explanation: dict[str, Any] | None = None


class AppliedFilter(Out):
    """A rule, and how many available items it removed."""

    kind: Literal["filter", "exclude_items", "exclude_viewed", "items", "unavailable"]
    removed: int
    filter: dict[str, Any] | None = None


class Answer(Out):
    """What every route that returns items says."""

    request_id: str
    """Send it back with the events that follow."""
    model: str
    model_version: str
    catalogue_version: int
    """Goes up with every change of items and every swap, from 0 at the start of the server."""
    items: list[RankedItem]
    applied_filters: list[AppliedFilter]
    degraded: bool
    """Whether this is less than was asked for."""
    degraded_reason: str | None = None
    skipped_items: list[str] = []
    """Items of the history or of the request that the catalogue lacks; the first 20."""
    experiment: dict[str, str] | None = None
    took_ms: float


class QuerySpan(Out):
    """A part of the corrected query that was recognised."""

    start: int
    end: int
    label: str
    """`brand`, `category`, `colour`, `price`, `size`, `quantity` or `excluded`."""
    text: str
    values: list[str]
    """What the catalogue calls it."""


class QueryFilter(Out):
    """A filter that a span asks for."""

    label: str
    filter: dict[str, Any]


class QueryCategory(Out):
    """A category that the query may mean."""

    path: list[str]
    probability: float


class Understood(Out):
    """What a query was taken to mean; what of it moves the list is a setting of the search part."""

    query: str
    corrected: str
    corrections: list[tuple[str, str]]
    """(written, corrected)."""
    segments: list[str]
    """The corrected query, cut into phrases."""
    spans: list[QuerySpan]
    expansions: list[str]
    """Words that belong to it without being in it."""
    filters: list[QueryFilter]
    categories: list[QueryCategory]
    intent: dict[str, float]
    """Shares of words that name a brand, a kind of thing, a property, something else."""
    source: str
    """`embedded`, or the language model that was asked."""


class SearchAnswer(Answer):
    """An answer to a text."""

    understood: Understood | None = None
    """None where the bundle searches the words as they come."""


class Explanation(Out):
    """Why an item: what the generator makes of its codes, and how it relates to the history."""

    request_id: str
    model: str
    model_version: str
    catalogue_version: int
    explanation: dict[str, Any]
    took_ms: float


class Plan(Out):
    """What a dry run says."""

    request_id: str
    model: str
    model_version: str
    catalogue_version: int
    dry_run: Literal[True] = True
    system: str
    history_items: int
    allowed_items: int
    applied_filters: list[AppliedFilter]
    skipped_items: list[str] = []


class TracedPrefix(Out):
    """One prefix that a beam looked at."""

    codes: list[int]
    prob: float
    """Of a survivor, as the beam ranks; of others by the model alone."""
    parent: int
    """Place of the prefix before, among the survivors of the level above."""
    fate: str
    """`lives`, `dies` at the next level, or why it was not taken: `fallen` (not among the best),
    `no_item`, or the kind of a rule."""
    num_items: int
    """Items below a survivor that the rules leave."""
    name: str
    """Words of its items' titles, or the title of its most bought one."""


class TracedLevel(Out):
    """One level: entering = kept + fallen + the sum of lost, all of them probabilities."""

    entering: float
    kept: float
    fallen: float
    lost: dict[str, float]
    survivors: list[TracedPrefix]
    others: list[TracedPrefix]


class TracedItem(RankedItem):
    """An item that the beam found."""

    title: str


class TraceAnswer(Out):
    """What a beam did."""

    request_id: str
    model: str
    model_version: str
    catalogue_version: int
    system: str
    generator: str
    beam_width: int
    renormalise: bool
    """Whether legal codes share the probability of those that are not."""
    levels: list[TracedLevel]
    items: list[TracedItem]
    """What the generator found; a hybrid asks it for more than it answers."""
    applied_filters: list[AppliedFilter]
    skipped_items: list[str] = []
    took_ms: float


class ShelvedItem(Out):
    """One item of the catalogue."""

    item_id: str
    title: str
    semantic_id: list[int]
    events: int
    """Events of the training data."""
    available: bool


class Branch(Out):
    """A code that follows a prefix."""

    code: int
    num_items: int
    num_available: int
    events: int
    name: str
    """Words that set its items apart from those of the codes beside it."""
    favourite: str
    """Title of its most bought item."""


class TreeAnswer(Out):
    """What lies under a prefix."""

    request_id: str
    model: str
    model_version: str
    catalogue_version: int
    prefix: list[int]
    num_codes: list[int]
    """Codes of each level."""
    num_items: int
    num_available: int
    events: int
    branches: list[Branch]
    items: list[ShelvedItem]


class FoundItems(Out):
    """Items of the catalogue."""

    request_id: str
    model: str
    model_version: str
    catalogue_version: int
    total: int
    """Items that there are to list; more than are listed where the limit cuts."""
    items: list[ShelvedItem]


# Telling -----------------------------------------------------------------------------------------


class Event(In):
    """Something a user did with an item."""

    event_id: Id
    """Chosen by the sender; the same id again changes nothing."""
    user_id: Id
    item_id: Id
    timestamp: datetime.datetime | None = None
    """ISO 8601, or seconds or milliseconds since 1970; None: now."""
    event_type: Word = "view"
    weight: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    session_id: Id | None = None
    request_id: Id | None = None
    """Of the answer that showed the item."""
    position: Annotated[int, Field(ge=0, le=1_000_000)] | None = None

    @field_validator("timestamp")
    @classmethod
    def in_a_sane_past(cls, time: datetime.datetime | None) -> datetime.datetime | None:
        if time is None:
            return None
        time = time.replace(tzinfo=datetime.UTC) if time.tzinfo is None else time
        now = EPOCH + datetime.timedelta(microseconds=CLOCK.now_us())
        if not EPOCH <= time <= now + SKEW:
            raise ValueError("must lie between 1970 and tomorrow")
        return time


class EventsRequest(In):
    """A batch of events: kept whole, or not at all."""

    events: Annotated[list[Event], Field(min_length=1, max_length=MAX_BATCH)]


class EventsAnswer(Out):
    """Every event of the batch is on the disk now."""

    request_id: str
    accepted: int
    duplicates: int
    """Known by their event_id already."""
    quarantined: int
    """Of the accepted: too many from one user; kept, but not used."""


class ItemUpsert(In):
    """A new item, or new attributes of a known one."""

    item_id: Id
    attributes: dict[Word, Any] = {}
    available: bool = True


class ItemsRequest(In):
    """A batch of items: taken whole, or not at all."""

    items: Annotated[list[ItemUpsert], Field(min_length=1, max_length=MAX_BATCH)]


class ItemPatch(In):
    """What changes; attributes that are not named stay."""

    attributes: dict[Word, Any] | None = None
    available: bool | None = None


class ItemState(Out):
    """One item as it is served now."""

    item_id: str
    semantic_id: list[int]
    available: bool
    attributes: dict[str, Any]


class ItemsAnswer(Out):
    """The items are on the disk and servable now."""

    request_id: str
    catalogue_version: int
    added: int
    updated: int
    items: list[ItemState]


class ItemDeleted(Out):
    """The item is in no answer from now on."""

    request_id: str
    item_id: str
    catalogue_version: int


class UserHistory(Out):
    """What recommendations for a user are made from, oldest first."""

    user_id: str
    items: list[str]


class UserExport(Out):
    """Everything that is stored of a user."""

    user_id: str
    events: list[dict[str, Any]]
    truncated: bool
    """Whether there are more: ask again with `after`, the `id` of the last one."""


class UserErased(Out):
    """The user is in no table any more."""

    user_id: str
    events: int


# Operating ---------------------------------------------------------------------------------------


class ModelState(Out):
    """A bundle in the models folder."""

    name: str
    version: str
    """First 12 characters of the bundle's hash."""
    active: bool
    previous: bool
    """Whether a roll back would bring it back."""


class ActiveModel(Out):
    """What the served bundle is and can."""

    name: str
    version: str
    num_items: int
    num_codes: list[int]
    beam_width: int
    generator: str
    has_beam: bool
    """Whether the generator is searched by a beam, so that it can be traced."""
    has_search: bool
    compiled: bool
    """Whether the generator is searched by a compiled call (`sidrec serve --compiled`)."""
    fields: list[dict[str, str]]
    """Name and kind of each attribute of the items."""


class ModelsAnswer(Out):
    """The bundles that can be activated."""

    models: list[ModelState]
    systems: list[str]
    """Of the active model."""
    active: ActiveModel


class ActivateRequest(In):
    """The bundle to serve from now on."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Variant(In):
    """One arm of an experiment."""

    name: Word
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    system: Word | None = None
    """What its users are answered by, unless a request names another."""


class ExperimentRequest(In):
    """Users fall into variants by a hash of the experiment's name and their id."""

    variants: Annotated[list[Variant], Field(min_length=2, max_length=16)]

    @model_validator(mode="after")
    def distinct_names(self) -> Self:
        if len({variant.name for variant in self.variants}) != len(self.variants):
            raise ValueError("variants must have different names")
        return self


class ExperimentState(Out):
    """The experiment that is running."""

    name: str
    variants: list[dict[str, Any]]


class ExperimentsAnswer(Out):
    """All experiments: one at most."""

    experiments: list[ExperimentState]


class Assignment(Out):
    """The variant of one user."""

    experiment: str
    variant: str


class Health(Out):
    """Whether the server is well."""

    status: str
    live: bool | None = None
    ready: bool | None = None


class ProblemBody(Out):
    """An error, as application/problem+json."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    hint: str | None = None
    errors: list[dict[str, str]] | None = None
