"""What a run is: one frozen config that a TOML recipe mirrors, and the data it names.

See `config` for how recipes are read, `pipeline` for how they are run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from sidrec import config, methods
from sidrec.config import Method, Stage
from sidrec.errors import ConfigError
from sidrec.retrieval.fusion import Rule
from sidrec.training_config import TrainConfig
from sidrec.types import Dataset

SMALL_STEPS = TrainConfig(
    epochs=8,
    batch_positions=768,
    learning_rate=2e-3,
    weight_decay=0.1,
    validate_every_epochs=2.0,
    patience=3,
)
"""Many small steps: hundreds of positions learn faster a second than thousands."""
TRAINING: dict[str, TrainConfig] = {
    "causal": SMALL_STEPS,
    "parallel": SMALL_STEPS,
    "sasrec": replace(SMALL_STEPS, epochs=12),
    "dense": replace(SMALL_STEPS, epochs=10),
    "lite": replace(SMALL_STEPS, epochs=10),
    "unicorn": replace(SMALL_STEPS, epochs=10),
    "joint": SMALL_STEPS,
    "tiger": TrainConfig(),
    "s2gr": SMALL_STEPS,
    "s2gr_tiger": TrainConfig(),
    "barge": SMALL_STEPS,
    "liger": SMALL_STEPS,
    "cobra": SMALL_STEPS,
}
"""How each trained method is trained unless the config says otherwise."""


def training_of(name: str) -> TrainConfig | None:
    """Training defaults of a method; None for one that the loop does not train."""
    if name in TRAINING:
        return TRAINING[name]
    for stage in ("generators", "scorers"):
        if name in methods.names(stage):
            return TrainConfig() if hasattr(methods.resolve(stage, name), "loss") else None
    return None


SMALL_CATALOGUE, SMALL_DIM = 8000, 64
"""Below so many items, text vectors have so many dimensions unless the config says otherwise."""
EMBEDDING = Stage("embeddings")
TOKENIZER = Stage("tokenizers")
COLLISIONS = Stage("collisions")
GENERATOR = Stage("generators", training_of)
SCORER = Stage("scorers", training_of)
RETRIEVER = Stage("retrievers")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data come from: a named public set, or files of your own."""

    name: str | None = None
    """A named set, e.g. "amazon_beauty": read from SIDREC_DATA, else downloaded; "shop" is the
    simulated shop."""
    interactions: str | None = None
    """File of events: Parquet, CSV, JSON lines, RecBole atomic, or a per-user sequence file."""
    items: str | None = None
    """File of items; without it the catalogue is what the events name, and has no text."""
    mapping: dict[str, str] = field(default_factory=dict)
    """Names of your columns by role, e.g. {user = "uid", item = "sku", time = "ts"}."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with rows that cannot be used: stop, or leave them out and count them."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How events become training, validation and test."""

    rule: Literal["leave_one_out", "global_time"] = "leave_one_out"
    """leave_one_out: a user's last event is for test, the one before for validation.
    global_time: events after two moments in time, the same for everyone."""


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How semantic IDs are searched."""

    beam_width: int = 50
    """Prefixes kept a level; wider finds more and costs more."""
    renormalise: bool = True
    """Probabilities over legal continuations only; false keeps those of the whole codebook."""
    length_penalty: float = 0.0
    """Rank IDs of different lengths by score / symbols^penalty; 0 by the log-probability of the ID,
    its end included. The hybrid always fuses log-probabilities."""
    new_item_share: float = 0.0
    """Least share of every list, of every system, for items without training events: 0.1 gives the
    10th, 20th, … place to the best of them where none came by itself. 0 leaves lists alone."""

    def __post_init__(self) -> None:
        if not 0 <= self.new_item_share <= 1:
            raise ConfigError(
                f"decoding.new_item_share must be in [0, 1], got {self.new_item_share}"
            )
        if not 0 <= self.length_penalty < math.inf:
            raise ConfigError(
                f"decoding.length_penalty must be at least 0, got {self.length_penalty}"
            )


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    """Fusion of several systems into one; their weights are chosen on validation."""

    members: tuple[str, ...] = ("generator", "sasrec", "dense", "transition_graph")
    """The generator and names of configured scorers and retrievers; [] for no hybrid. Where the
    whole section is left as it is, members whose scorer is not configured are left out."""
    pool: int = 100
    """Best items that each member brings into the pool. Scorers score all of it; what the generator
    did not find counts as its worst."""
    rule: Rule = "log_probs"
    """What is summed: log_probs, z_scores or reciprocal_rank."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What the table shows."""

    ks: tuple[int, ...] = (5, 10)
    """Cuts of the ranked lists."""
    exclude_seen: bool = False
    """Leave items of the history out of the lists, for every system alike."""
    validation_users: int = 5000
    """Training is validated on at most this many users, the same ones every time."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run depends on."""

    name: str = "run"
    """What the run is called in tables and folders."""
    seed: int = 0
    """The one seed of every stage."""
    parent: str | None = None
    """Bundle of an earlier fit whose codes this one goes on with: the tokenizer starts from its IDs
    where it can (residual_kmeans), and codes are renamed so that most items keep their prefix."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<n>."""
    data: DataConfig = DataConfig()
    """Where the data come from."""
    split: SplitConfig = SplitConfig()
    """How they are split."""
    embedding: Annotated[Method, EMBEDDING] = field(
        default_factory=lambda: config.method(EMBEDDING, "lsa")
    )
    """Items to vectors."""
    tokenizer: Annotated[Method, TOKENIZER] = field(
        default_factory=lambda: config.method(TOKENIZER, "residual_kmeans")
    )
    """Vectors to semantic IDs."""
    least_code_use: float = 0.05
    """A level whose codes are used no more evenly than this share of its codebook would be has
    collapsed, which stops the run; 0 lets it go on. Small catalogues are not judged."""
    collisions: Annotated[Method, COLLISIONS] = field(
        default_factory=lambda: config.method(COLLISIONS, "reassign")
    )
    """What to do with items that get the same ID: a name, or a section for one with settings."""
    generator: Annotated[Method, GENERATOR] = field(
        default_factory=lambda: config.method(GENERATOR, "causal")
    )
    """Histories to the next semantic ID."""
    scorers: tuple[Annotated[Method, SCORER], ...] = field(
        default_factory=lambda: tuple(
            config.method(SCORER, name)
            for name in ("popularity", "transition_graph", "sasrec", "dense")
        )
    )
    """Systems that score every item: baselines, and the other half of the hybrid."""
    retrievers: tuple[Annotated[Method, RETRIEVER], ...] = ()
    """Systems that answer from the generator and the scorers: generate, then compare."""
    hybrid: HybridConfig = HybridConfig()
    """Generator and scorer together."""
    decoding: DecodingConfig = DecodingConfig()
    """The search."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """The table."""

    def __post_init__(self) -> None:
        if not 0 <= self.least_code_use <= 1:
            raise ConfigError(f"least_code_use must be in [0, 1], got {self.least_code_use}")
        if isinstance(self.collisions, str):  # its name alone, as recipes may write it
            object.__setattr__(self, "collisions", config.method(COLLISIONS, self.collisions))
        names = [chosen.name for chosen in (*self.scorers, *self.retrievers)]
        if len(set(names)) < len(names):
            raise ConfigError(f"scorers and retrievers must be different methods, got {names}")
        if self.generator.name in names:
            raise ConfigError(
                f"the systems of a bundle need different names, got {self.generator.name!r} twice: "
                "as the generator, and among scorers and retrievers"
            )
        if self.hybrid == HybridConfig():  # untouched: those of its members that there are
            members = tuple(m for m in self.hybrid.members if m in ("generator", *names))
            members = members if len(members) > 1 else ()
            object.__setattr__(self, "hybrid", replace(self.hybrid, members=members))
        for member in self.hybrid.members:
            if member not in ("generator", *names):
                raise ConfigError(f"hybrid.members names {member!r}; have 'generator' and {names}")
        if len(self.hybrid.members) == 1 or len(set(self.hybrid.members)) < len(
            self.hybrid.members
        ):
            raise ConfigError(
                f"hybrid.members must be none or several different systems, got "
                f"{list(self.hybrid.members)}"
            )


def load_config(path: str | Path) -> RunConfig:
    """Read a recipe. Relative data paths are relative to the working directory."""
    return config.load(RunConfig, path)


def default_config(dataset: Dataset) -> RunConfig:
    """The default recipe, fitted to what the catalogue has.

    Codebooks are no larger than a small catalogue can fill and no smaller than it needs. Texts of a
    small catalogue get fewer dimensions: in many, the residuals of its few items are so far apart
    that one centroid takes most of them. Where most items have no text of their own, vectors come
    from who buys what together.
    """
    settings, num_items = RunConfig(name=dataset.name), len(dataset.items)
    size = min(256, 2 ** int(np.log2(max(num_items / 4, 1))))
    size = min(max(size, int(np.ceil((2 * num_items) ** (1 / 3)))), num_items)
    if size < 256:
        tokenizer = config.method(TOKENIZER, settings.tokenizer.name, num_codes=size)
        settings = replace(settings, tokenizer=tokenizer)
    if num_items < SMALL_CATALOGUE:
        settings = replace(settings, embedding=config.method(EMBEDDING, "lsa", dim=SMALL_DIM))
    if 2 * len(set(dataset.items.texts()) - {""}) < num_items:
        settings = replace(settings, embedding=config.method(EMBEDDING, "collaborative"))
    return settings


def read_data(data: DataConfig) -> Dataset:
    """The dataset that the data section describes."""
    from sidrec.data import load_named, read
    from sidrec.data.shop import simulate

    if (data.name is None) == (data.interactions is None):
        raise ConfigError("data needs either name (a named set) or interactions (a file)")
    if data.name == "shop":
        return simulate().dataset
    if data.name is not None:
        return load_named(data.name)
    return read(str(data.interactions), data.items, mapping=data.mapping, on_error=data.on_error)


def describe(dataset: Dataset) -> str:
    """One line: name, users, items, events, share of items with text."""
    with_text = np.mean([bool(text) for text in dataset.items.texts()])
    return (
        f"{dataset.name}: {len(dataset.interactions.user_ids):,} users, "
        f"{len(dataset.items):,} items ({with_text:.0%} with text), "
        f"{len(dataset.interactions):,} events"
    )


def demo_config(dataset: Dataset, seconds: float) -> RunConfig:
    """The default recipe with at most so many seconds of training a model."""
    settings = default_config(dataset)

    def short(chosen: Method) -> Method:
        if chosen.train is None:
            return chosen
        return replace(chosen, train=replace(chosen.train, max_seconds=seconds))

    return replace(
        settings,
        name=f"demo-{dataset.name}",
        generator=short(settings.generator),
        scorers=tuple(short(scorer) for scorer in settings.scorers),
        evaluation=replace(settings.evaluation, validation_users=2000),
    )
