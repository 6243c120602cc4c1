"""A ladder of models and of data shares, trained alike, for a scaling study.

Each system is trained at several sizes on all users, and at one size on shares of the users; each
point stops early on its validation loss and reports the least of it. Finished points are kept on
disk and not trained again; a killed run goes on from its checkpoint.

*Loss.* Nats an item on the validation questions, with the probabilities of decoding: `item_loss`.

*Size.* Width and layers vary; the hidden width of the depth decoder follows the width, all else is
as configured. What counts as N: `model_size`.

*Learning rate.* rate × (width / configured width)^−1/2, or given for each size, or tuned: multiples
of that are tried at the two smallest sizes, and a line through the two best, in log-log, gives the
others.

*Shares.* The first users of one random order, so a smaller share lies inside a larger one. A share
gets as many steps as the whole. Vectors and IDs are those of all training events.

Source:   the design of arXiv:2311.11351 and arXiv:2203.15556; see `evaluation.scaling_report`.
Differs:  several passes over the data, since these sets are small; the same dropout at all sizes.
Cost:     one training a point.
Shapes:   Q questions, N items, L levels.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidrec import __version__, artifact, config, methods
from sidrec.batching import TrainingBatches
from sidrec.config import Method
from sidrec.errors import ConfigError
from sidrec.evaluation import rank_all
from sidrec.evaluation.metrics import ndcg, recall
from sidrec.evaluation.scaling_report import Point, ScalingReport, report_of
from sidrec.evaluation.strata import by_training_count
from sidrec.item_loss import item_nats, last_events
from sidrec.model_size import (
    EMBEDDINGS,
    count_parameters,
    flop_per_target,
    peak_memory_bytes,
    table_rows,
)
from sidrec.pipeline import OnEvent, Stages, progress_of, quiet
from sidrec.recipe import GENERATOR, SCORER, RunConfig, describe
from sidrec.training import TrainConfig, train
from sidrec.types import Dataset, Examples, Histories


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One size."""

    width: int
    num_layers: int

    @classmethod
    def parse(cls, text: str) -> Rung:
        """From `64x2`, width and layers; `64` has one layer."""
        if not (found := re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip())):
            raise ConfigError(f"a size must be <width>x<layers>, e.g. 64x2, got {text!r}")
        return cls(width=int(found[1]), num_layers=int(found[2] or 1))

    def __str__(self) -> str:
        return f"{self.width}x{self.num_layers}"


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """Which points are trained, and how."""

    systems: tuple[str, ...] = ("causal",)
    """Of EMBEDDINGS. Settings come from the recipe where it has the system, else from defaults."""
    sizes: tuple[Rung, ...] = tuple(
        Rung(width=w, num_layers=n)
        for w, n in ((16, 1), (24, 1), (40, 1), (64, 1), (88, 2), (128, 2))
    )
    """Ascending; a factor of 90 in non-embedding parameters."""
    shares: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
    """Of the users, below 1; trained at the middle size. 1 / share is best a whole number: epochs
    are, and a share gets epochs / share of them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the smaller half of the sizes."""
    large_seeds: int = 1
    """How many of them the larger half gets."""
    share_seeds: int = 1
    """How many of them each share gets."""
    epochs: int | None = None
    """Passes at most; None: as the recipe says."""
    max_seconds: float | None = None
    """Seconds a point at most; the clock decides then, not the size."""
    patience: int = 2
    """Validations, one an epoch, without a lower loss before a point stops; 0 never."""
    clock: str | None = None
    """wall or processor, see `TrainConfig`; None: as the recipe says."""
    learning_rates: tuple[float, ...] | None = None
    """One a size."""
    tune: tuple[float, ...] = ()
    """Multiples of the rule's rate to try at the two smallest sizes, e.g. (0.5, 1, 2)."""

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, expected: str) -> None:
            if not ok:
                value = getattr(self, name)
                shown = list(map(str, value)) if isinstance(value, tuple) else repr(value)
                raise ConfigError(f"scaling: {name} must be {expected}, got {shown}")

        need(bool(self.systems) and set(self.systems) <= set(EMBEDDINGS), "systems",
             f"some of {list(EMBEDDINGS)}")  # fmt: skip
        widths = [(rung.num_layers * rung.width**2, rung.width) for rung in self.sizes]
        need(bool(widths) and widths == sorted(set(widths)), "sizes", "different and ascending")
        need(all(0 < share < 1 for share in self.shares), "shares", "between 0 and 1 (1 is added)")
        need(len(set(self.shares)) == len(self.shares), "shares", "different")
        need(bool(self.seeds) and len(set(self.seeds)) == len(self.seeds), "seeds", "different")
        need(self.large_seeds >= 1, "large_seeds", "at least 1")
        need(self.share_seeds >= 1, "share_seeds", "at least 1")
        need(self.epochs is None or self.epochs >= 1, "epochs", "at least 1")
        need(self.learning_rates is None or len(self.learning_rates) == len(self.sizes),
             "learning_rates", f"one for each of the {len(self.sizes)} sizes")  # fmt: skip
        need(not (self.tune and self.learning_rates), "tune", "left out where rates are given")
        two = len({rung.width for rung in self.sizes[:2]}) == 2
        need(not self.tune or two, "sizes", "of different width at first, to tune rates on")

    def seeds_of(self, place: int) -> tuple[int, ...]:
        """Seeds of the size at `place`."""
        small = place < (len(self.sizes) + 1) // 2
        return self.seeds if small else self.seeds[: self.large_seeds]

    def places(self) -> list[tuple[Rung, float, int]]:
        """(size, share, seed) of every point, sizes first."""
        sizes = [
            (rung, 1.0, seed)
            for place, rung in enumerate(self.sizes)
            for seed in self.seeds_of(place)
        ]
        shares = [
            (self.middle, share, seed)
            for share in sorted(self.shares)
            for seed in self.seeds[: self.share_seeds]
        ]
        return sizes + shares

    @property
    def middle(self) -> Rung:
        """The size that the shares are trained at."""
        return self.sizes[len(self.sizes) // 2]


def share_of(train_part: Histories, share: float) -> Histories:
    """The events of the first users of one random order."""
    order = np.random.default_rng(0).permutation(len(train_part))
    kept = order[: max(1, round(share * len(train_part)))]
    return train_part.take(np.sort(kept))


# Training ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Ladder:
    """The points of a study: `climb` trains what is missing."""

    stages: Stages
    settings: LadderConfig
    folder: Path
    on_event: OnEvent

    def climb(self) -> tuple[dict[str, list[Point]], dict[str, dict[str, float]]]:
        """(points by system, learning rates by system and size)."""
        points, rates = {}, {}
        for system in self.settings.systems:
            chosen = self.chosen(system)
            rates[system] = dict(
                zip(map(str, self.settings.sizes), self.rates(chosen), strict=True)
            )
            points[system] = [
                self.point(chosen, rung, share, seed, rates[system][str(rung)])
                for rung, share, seed in self.settings.places()
            ]
        return points, rates

    def chosen(self, system: str) -> Method:
        """The system as the recipe has it, else with its defaults."""
        recipe = self.stages.settings
        for found in (recipe.generator, *recipe.scorers):
            if found.name == system:
                return found
        stage = GENERATOR if system in methods.names("generators") else SCORER
        return config.method(stage, system)

    def rates(self, chosen: Method) -> list[float]:
        """The learning rate of each size."""
        settings, sizes = self.settings, self.settings.sizes
        if settings.learning_rates is not None:
            return list(settings.learning_rates)
        rule = [chosen.train.learning_rate * (r.width / chosen.config.width) ** -0.5 for r in sizes]
        if not settings.tune:
            return rule
        best = []
        for rung, rate in zip(sizes[:2], rule, strict=False):
            tried = [
                self.point(chosen, rung, 1.0, settings.seeds[0], rate * m) for m in settings.tune
            ]
            best.append(min(tried, key=lambda point: point.loss).learning_rate)
        slope = np.log(best[1] / best[0]) / np.log(sizes[1].width / sizes[0].width)
        line = [float(best[1] * (rung.width / sizes[1].width) ** slope) for rung in sizes]
        return [*best, *line[2:]]

    def model_config(self, chosen: Method, rung: Rung, seed: int) -> Any:
        """The configured model at another size."""
        changes: dict[str, Any] = {"width": rung.width, "num_layers": rung.num_layers}
        if hasattr(chosen.config, "depth_hidden"):
            hidden = chosen.config.depth_hidden * rung.width / chosen.config.width
            changes["depth_hidden"] = max(1, round(hidden))
        return config.with_seed(replace(chosen.config, **changes), seed)

    def train_config(self, chosen: Method, share: float, seed: int, rate: float) -> TrainConfig:
        """As configured, with as many steps and validations for a share as for the whole."""
        settings = self.settings
        changes = {
            "epochs": max(1, round((settings.epochs or chosen.train.epochs) / share)),
            "validate_every_epochs": 1 / share,
            "validate_from_epoch": 0.0,
            "patience": settings.patience,
            "learning_rate": rate,
            "seed": seed,
        }
        if settings.max_seconds is not None:
            changes["max_seconds"] = settings.max_seconds
        if settings.clock is not None:
            changes["clock"] = settings.clock
        return replace(chosen.train, **changes)

    def point(self, chosen: Method, rung: Rung, share: float, seed: int, rate: float) -> Point:
        """One point, from disk where it is finished."""
        model_config = self.model_config(chosen, rung, seed)
        training = self.train_config(chosen, share, seed, rate)
        key = artifact.value_hash(
            __version__, chosen.name, config.to_dict(model_config), config.to_dict(training), share,
            self.stages.ids_key, self.stages.settings.evaluation.validation_users,
        )  # fmt: skip
        name = f"{chosen.name}-{rung}-share{share:g}-seed{seed}-{key[:8]}"
        path = self.folder / "points" / f"{name}.json"
        if path.is_file():
            self.on_event({"stage": name, "message": "already done", "finished": True})
            return Point(**json.loads(path.read_text(encoding="utf-8")))
        point = self.trained(chosen, rung, share, model_config, training, name)
        artifact.write_text(path, json.dumps(asdict(point), indent=1) + "\n")
        shutil.rmtree(self.folder / "training" / name, ignore_errors=True)
        return point

    def trained(
        self, chosen: Method, rung: Rung, share: float, model_config: Any, training: TrainConfig,
        name: str,
    ) -> Point:  # fmt: skip
        """Train one model and measure it at its best validation loss."""
        stages, stage = self.stages, chosen.stage
        train_part = stages.split.train if share == 1.0 else share_of(stages.split.train, share)
        model = methods.resolve(stage, chosen.name).build(stages.context, model_config)
        self.on_event({"stage": name, "message": f"{len(train_part.items_E):,} events"})
        if stages.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(stages.device)
        started = time.perf_counter()
        result = train(
            model,
            train_part,
            training,
            validate=lambda m: -float(item_nats(stages, stage, m, stages.validation).mean()),
            run_dir=self.folder / "training" / name,
            device=stages.settings.device,
            on_event=lambda event: self.on_event(progress_of(name, event, started, "-nats")),
        )
        model = model.to(stages.device).eval()
        batches = TrainingBatches.cut(
            train_part, max_length=model.max_length, batch_positions=training.batch_positions
        )
        lengths_S = batches.lengths_S
        parameters, embeddings = count_parameters(chosen.name, model)
        targets = batches.num_targets
        seen_targets = targets * result.best_epoch
        context = float(np.square(lengths_S).sum() / lengths_S.sum())
        learnt = last_events(train_part, stages.settings.evaluation.validation_users)
        groups = self.measured(stage, model)
        whole = groups.pop("all")
        point = Point(
            system=chosen.name,
            width=rung.width,
            num_layers=rung.num_layers,
            share=share,
            seed=training.seed,
            learning_rate=training.learning_rate,
            parameters=parameters,
            embedding_parameters=embeddings,
            events=len(train_part.items_E),
            tokens=targets * (stages.ids.num_levels if stage == "generators" else 1),
            epochs=result.epochs_run,
            best_epoch=result.best_epoch,
            flop=flop_per_target(parameters, rung.num_layers, rung.width, context) * seen_targets,
            table_flop=6.0 * rung.width * table_rows(model) * seen_targets,
            seconds=result.seconds,
            device=str(stages.device),
            peak_memory_bytes=peak_memory_bytes(stages.device),
            stopped_because=result.stopped_because,
            train_loss=float(item_nats(stages, stage, model, learnt).mean()),
            loss=whole["loss"],
            recall=whole["recall"],
            ndcg=whole["ndcg"],
            groups=groups,
        )
        message = f"{point.loss:.4f} nats an item, ndcg@10 {point.ndcg:.4f}"
        self.on_event({"stage": name, "message": message, "finished": True})
        return point

    def measured(self, stage: str, model: Any) -> dict[str, dict[str, float]]:
        """Loss, recall@10, ndcg@10 and n on the validation questions: all, and by group."""
        stages, examples = self.stages, self.stages.validation
        nats_Q = item_nats(stages, stage, model, examples)
        if stage == "scorers":
            answers: dict[str, Any] = {"scores": lambda b: model.scores(b.to(stages.device))}
        else:
            answers = {"candidates": stages.searcher(model)}
        ranked = rank_all(
            examples,
            **answers,
            k=10,
            num_items=stages.split.num_items,
            max_length=int(model.max_length),
        )
        values = {
            "loss": nats_Q,
            "recall": recall(ranked.better_Q, ranked.tied_Q, 10),
            "ndcg": ndcg(ranked.better_Q, ranked.tied_Q, 10),
        }
        chosen = {"all": np.ones(len(examples), dtype=bool)}
        chosen |= by_training_count(examples.targets, stages.split.train_counts_N)
        return {
            group: {
                **{name: float(values_Q[chosen_Q].mean()) for name, values_Q in values.items()},
                "n": int(chosen_Q.sum()),
            }
            for group, chosen_Q in chosen.items()
            if chosen_Q.any()
        }


def study(
    settings: RunConfig,
    ladder: LadderConfig,
    *,
    folder: Path,
    data: Dataset | None = None,
    resamples: int = 500,
    true_floor: Callable[[Examples], float] | None = None,
    on_event: OnEvent = quiet,
) -> ScalingReport:
    """Train what is missing of the ladder, fit the laws, write `folder/scaling.json`.

    `true_floor` gives the least possible loss an item on the validation questions, for data from a
    known source.
    """
    stages = Stages.of(data, settings, folder, on_event)
    climbing = Ladder(stages=stages, settings=ladder, folder=folder, on_event=on_event)
    points, rates = climbing.climb()
    floor = None if true_floor is None else true_floor(stages.validation)
    decoding = stages.settings.decoding
    over = "the codes that continue some ID" if decoding.renormalise else "the whole codebook"
    report = ScalingReport(
        dataset=stages.dataset.name,
        data=describe(stages.dataset),
        split=stages.split.rule,
        loss=(
            f"nats an item on {len(stages.validation):,} validation questions: −log p(target), for "
            f"generators the product over levels of a softmax over {over}, as in decoding; for "
            "scorers the softmax over items"
        ),
        learning_rates=rates,
        systems={
            system: report_of(found, resamples=resamples, true_floor=floor)
            for system, found in points.items()
        },
        true_floor=floor,
    )
    text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False)
    artifact.write_text(folder / "scaling.json", text + "\n")
    return report
