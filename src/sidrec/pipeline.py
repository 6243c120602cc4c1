"""The whole road: data and a config in, a fitted `Recommender` and its measured table out.

The only file that joins every stage. Each stage is cached in the run directory under a hash of its
config and of everything it depends on, so running again resumes: finished stages are loaded, an
interrupted training goes on from its newest checkpoint, a changed setting redoes what it affects.

Every choice (early stop, weight of the hybrid) is made on the validation part; the test part is
read once, by `evaluate_systems`. Under `torchrun`, process 0 alone writes stages and the bundle.

Cost:     training dominates; see `plan`.
Shapes:   B requests, K returned items.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sidrec import __version__, artifact, config, methods
from sidrec.bundle import load_ids
from sidrec.config import Method
from sidrec.data import split
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.search import search
from sidrec.embeddings.cache import content_key, fit_embed
from sidrec.errors import ConfigError, DataError
from sidrec.evaluation import EvaluationContext, Report, evaluate, rank_all, table
from sidrec.evaluation.comparison import Table
from sidrec.evaluation.metrics import ndcg
from sidrec.fitted import Fitted
from sidrec.processes import choose_device
from sidrec.recipe import HybridConfig, RunConfig, default_config, describe, read_data
from sidrec.recommender import Recommender, popularity_weights
from sidrec.retrieval.fusion import Hybrid, tune_weights
from sidrec.tokenizers.health import require_alive
from sidrec.tokenizers.lifecycle import churn, ids_version, migration
from sidrec.tokenizers.remarks import id_remarks, vector_remarks
from sidrec.training import TrainEvent, train
from sidrec.types import (
    Candidates,
    CatalogueContext,
    Dataset,
    Examples,
    ItemVectors,
    SemanticIds,
    Split,
)

OnEvent = Callable[[Mapping[str, Any]], None]
"""Progress: {"stage", "message"} begins a stage, {"stage", "done", "total", …numbers} moves it,
{"stage", "finished": True} ends it."""
VALIDATION_BEAM = 20
"""Beam of the validation during training; the final beam is `decoding.beam_width`."""


def quiet(event: Mapping[str, Any]) -> None:
    """Report progress to no one."""


def fit(
    data: Dataset | None = None,
    settings: RunConfig | None = None,
    *,
    run_dir: str | Path | None = None,
    on_event: OnEvent = quiet,
) -> Recommender:
    """A fitted recommender: embed, tokenize, train, choose on validation.

    Without `settings` the default recipe for `data`; without `data` what `settings.data` names.
    With `run_dir` finished stages are kept there, and running again resumes.
    """
    return Stages.of(data, settings, run_dir, on_event).recommender


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """What `run` gives back."""

    recommender: Recommender
    dataset: Dataset
    split: Split
    reports: Mapping[str, Report]
    """System -> report on the test part; empty where nothing was evaluated."""
    bundle: Path
    seconds: float

    def table(self) -> Table:
        """Systems side by side, with the protocol line."""
        return table(list(self.reports.values()), metrics_of(self.reports))

    def example_history(self) -> list[str]:
        """The last three items of a test user, to try the bundle with."""
        history = self.split.test.histories[0][-3:]
        return [str(self.dataset.items.item_ids[row]) for row in history]

    def summary(self) -> dict[str, Any]:
        """The run as plain JSON values."""
        return {
            "bundle": str(self.bundle),
            "data": describe(self.dataset),
            "seconds": self.seconds,
            "protocol": next((r.protocol.line() for r in self.reports.values()), None),
            "systems": summary_of(self.reports),
        }


def run(
    settings: RunConfig,
    *,
    run_dir: str | Path,
    data: Dataset | None = None,
    on_event: OnEvent = quiet,
    evaluate: bool = True,
) -> Run:
    """Fit, measure every system on the test part, write `run_dir/bundle` and the reports."""
    started, run_dir = time.perf_counter(), Path(run_dir)
    work = Stages.of(data, settings, run_dir, on_event)
    recommender = work.recommender
    reports: dict[str, Report] = {}
    if evaluate:
        reports = evaluate_systems(
            recommender, work.dataset, work.split, settings=settings, on_event=on_event
        )
        measured = {**recommender.provenance, "metrics": summary_of(reports)}
        recommender = replace(recommender, provenance=measured)
    if work.writes:
        recommender.save(run_dir / "bundle")
        for name, report in reports.items():
            artifact.write_text(run_dir / "reports" / f"{name}.json", report.to_json() + "\n")
        artifact.write_text(run_dir / "recipe.toml", config.to_toml(settings))
    result = Run(
        recommender=recommender,
        dataset=work.dataset,
        split=work.split,
        reports=reports,
        bundle=run_dir / "bundle",
        seconds=time.perf_counter() - started,
    )
    if work.writes:
        text = json.dumps(result.summary(), indent=1, ensure_ascii=False)
        artifact.write_text(run_dir / "summary.json", text + "\n")
    return result


def evaluate_systems(
    recommender: Recommender,
    dataset: Dataset,
    parts: Split,
    *,
    settings: RunConfig,
    part: str = "test",
    systems: Sequence[str] | None = None,
    on_event: OnEvent = quiet,
) -> dict[str, Report]:
    """One report a system (all by default, baselines first), under one protocol."""
    context = EvaluationContext.of(
        parts,
        part=part,
        data_hash=dataset.content_hash,
        vectors=recommender.vectors,
        semantic_ids=recommender.ids,
    )
    examples = parts.test if part == "test" else parts.valid
    shared = bool((recommender.ids.group_sizes_N > 1).any())
    reports: dict[str, Report] = {}
    for name in map(recommender.system_named, systems or recommender.systems[::-1]):
        stage = f"evaluate {name}"
        on_event({"stage": stage, "message": f"{len(examples):,} examples"})
        reports[name] = evaluate(
            name,
            examples,
            context=context,
            **_answers(recommender, name, max(settings.evaluation.ks)),
            ks=settings.evaluation.ks,
            max_length=recommender.max_length(name),
            filter_seen=settings.evaluation.exclude_seen,
            shared_codes=shared and name == recommender.generator.name,
            seed=settings.seed,
            on_batch=lambda done, total, stage=stage: on_event(
                {"stage": stage, "done": done, "total": total}
            ),
        )
        on_event({"stage": stage, "finished": True})
    return reports


def require_same_data(recommender: Recommender, dataset: Dataset) -> None:
    """DataError when these are not the data that the recommender was fitted on."""
    expected = recommender.provenance.get("data_hash")
    if expected != dataset.content_hash:
        raise DataError(
            f"{dataset.name} has content hash {dataset.content_hash[:12]}…, the bundle was fitted "
            f"on {str(expected)[:12]}…; its test part could hold events the bundle has seen; "
            "fit again"
        )


def metrics_of(reports: Mapping[str, Report]) -> list[str]:
    """Recall and NDCG at every cut of the reports."""
    figures = next(iter(reports.values())).figures
    cuts = sorted({int(m.split("@")[1]) for m in figures if m.startswith("recall@")})
    return [f"{metric}@{cut}" for cut in cuts for metric in ("recall", "ndcg")]


def summary_of(reports: Mapping[str, Report]) -> dict[str, Any]:
    """System -> metric -> value and interval."""
    return {
        name: {metric: asdict(report.figures[metric]) for metric in metrics_of(reports)}
        for name, report in reports.items()
    }


def _answers(recommender: Recommender, name: str, k: int) -> dict[str, Any]:
    """How `evaluate` asks one system: all scores where it has them, else ranked lists."""
    if name in recommender.scorers and not recommender.new_item_share:
        return {"scores": lambda b: recommender.scores(name, b.to(recommender.device))}
    fused = recommender.hybrid if name == "hybrid" else None
    beam = max(recommender.beam_width, k, fused.pool if fused else 0)
    return {
        "candidates": lambda b, k, seen: recommender.answer(
            name, b.to(recommender.device), k, exclude=seen
        ),
        "beam": None if name in recommender.scorers else beam,
    }


class Stages:
    """One fit; each stage is made once, when first asked for, and cached by content."""

    def __init__(
        self, dataset: Dataset, settings: RunConfig, run_dir: Path | None, on_event: OnEvent
    ) -> None:
        self.dataset, self.settings, self.on_event = dataset, settings, on_event
        self.writes = int(os.environ.get("RANK", "0")) == 0  # set by torchrun
        self.run_dir = run_dir
        self.device = choose_device(settings.device)
        for message in (*dataset.notes, describe(dataset)):
            on_event({"stage": "data", "message": message})
        self.split = split(dataset, settings.split.rule)
        on_event({"stage": "split", "message": self.split.rule})

    @classmethod
    def of(
        cls,
        data: Dataset | None,
        settings: RunConfig | None,
        run_dir: str | Path | None,
        on_event: OnEvent,
    ) -> Stages:
        if data is None and settings is None:
            raise ConfigError("fit needs data, or settings whose data section names them")
        data = data if data is not None else read_data(settings.data)  # type: ignore[union-attr]
        settings = settings or default_config(data)
        return cls(data, settings, None if run_dir is None else Path(run_dir), on_event)

    # Stages, in order

    @cached_property
    def embedded(self) -> tuple[Fitted, ItemVectors, str]:
        """Embedder, vectors, and the key over texts, training events and any file it reads."""
        chosen = self.settings.embedding
        settings = config.with_seed(chosen.config, self.settings.seed)
        method_class = methods.resolve("embeddings", chosen.name)
        context = CatalogueContext(self.dataset.items, self.split.train)
        folder = None if self.run_dir is None else self.run_dir / "stages" / "vectors"
        label = f"embeddings {chosen.name}"
        key = content_key(method_class, context, settings)
        known = folder is not None and (folder / f"{key}.safetensors").is_file()
        self.on_event({"stage": label, "message": "already done" if known else "fitting"})
        embedder, vectors = fit_embed(method_class, context, settings, folder)
        self.on_event({"stage": label, "finished": True})
        for remark in (*getattr(embedder, "remarks", ()), *vector_remarks(vectors)):
            self.on_event({"stage": label, "message": remark})
        fitted = Fitted(stage="embeddings", name=chosen.name, config=settings, value=embedder)
        return fitted, vectors, key

    @property
    def vectors(self) -> ItemVectors:
        return self.embedded[1]

    @cached_property
    def parent(self) -> SemanticIds | None:
        """IDs of the bundle that this fit goes on from."""
        return None if self.settings.parent is None else load_ids(self.settings.parent)

    @cached_property
    def tokenizer(self) -> tuple[Fitted, str]:
        parent = self.parent
        context = CatalogueContext(
            self.dataset.items, self.split.train, self.vectors, earlier_ids=parent
        )
        chosen = self.settings.tokenizer
        settings = config.with_seed(chosen.config, self.settings.seed)
        key = self.key(chosen, settings, self.embedded[2])
        if parent is not None:
            key = artifact.value_hash(key, ids_version(parent))

        def make() -> Fitted:
            value = methods.resolve("tokenizers", chosen.name).fit(self.vectors, settings, context)
            if parent is not None:
                value = migration(parent, value.encode(self.vectors)).apply_to(value)
            return Fitted(stage="tokenizers", name=chosen.name, config=settings, value=value)

        fitted = self.cached("tokenizers", chosen.name, key, make, context)
        for remark in getattr(fitted.value, "remarks", ()):
            self.on_event({"stage": f"tokenizers {chosen.name}", "message": remark})
        return fitted, key

    @cached_property
    def ids(self) -> SemanticIds:
        tokenizer, chosen = self.tokenizer[0].value, self.settings.collisions
        policy = methods.resolve("collisions", chosen.name)
        own = () if chosen.config is None else (chosen.config,)
        encoded = tokenizer.encode(self.vectors)
        least, name = self.settings.least_code_use, self.tokenizer[0].name
        require_alive(encoded, self.vectors, least_use=least, name=name)
        ids, report = policy(encoded, tokenizer, self.vectors, *own)
        self.on_event(
            {
                "stage": "semantic IDs",
                "message": f"{len(ids):,} items; {report.share_before:.1%} collided before "
                f"{chosen.name}, {report.share_after:.1%} after",
            }
        )
        for remark in id_remarks(ids):
            self.on_event({"stage": "semantic IDs", "message": remark})
        if self.parent is not None:
            kept = " ".join(f"{share:.1%}" for share in churn(self.parent, ids).kept)
            message = f"items that keep their first 1, 2, … codes of the parent: {kept}"
            self.on_event({"stage": "semantic IDs", "message": message})
        return ids

    @cached_property
    def context(self) -> CatalogueContext:
        """What models are built from."""
        return CatalogueContext(self.dataset.items, self.split.train, self.vectors, self.ids)

    @cached_property
    def ids_key(self) -> str:
        """Key of all that models see: the data, the split, the vectors, and the IDs as they are,
        so that a tokenizer whose code changed cannot leave a model with other IDs behind.
        """
        return artifact.value_hash(
            self.dataset.content_hash, self.split.rule, self.tokenizer[1], ids_version(self.ids)
        )

    @cached_property
    def recommender(self) -> Recommender:
        settings = self.settings
        fitted = Recommender(
            items=self.dataset.items,
            train_counts_N=self.split.train_counts_N,
            vectors=self.vectors,
            ids=self.ids,
            embedding=self.embedded[0],
            tokenizer=self.tokenizer[0],
            collisions=settings.collisions,
            generator=self.model(settings.generator),
            scorers={scorer.name: self.model(scorer) for scorer in settings.scorers},
            hybrid=None,
            beam_width=settings.decoding.beam_width,
            renormalise=settings.decoding.renormalise,
            length_penalty=settings.decoding.length_penalty,
            new_item_share=settings.decoding.new_item_share,
            ids_parent=None if self.parent is None else ids_version(self.parent),
            settings=config.to_dict(settings),
            provenance={
                "data": self.dataset.name,
                "data_hash": self.dataset.content_hash,
                "split": self.split.rule,
                "seed": settings.seed,
            },
            device=self.device,
        )
        fitted = replace(fitted, retrievers=self.retrievers(fitted))
        return replace(fitted, hybrid=self.tuned(fitted)) if settings.hybrid.members else fitted

    def retrievers(self, fitted: Recommender) -> tuple[Method, ...]:
        """The configured retrievers with their choices made on the validation questions."""
        tuned = []
        for chosen in self.settings.retrievers:
            stage = f"tune {chosen.name}"
            self.on_event({"stage": stage, "message": f"{len(self.validation):,} questions"})
            retriever = methods.resolve("retrievers", chosen.name).build(fitted, chosen.config)
            found = retriever.tuned(
                self.validation,
                lambda done, total, stage=stage: self.on_event(
                    {"stage": stage, "done": done, "total": total}
                ),
            )
            tuned.append(replace(chosen, config=found))
            shown = ", ".join(
                f"{name} {value}"
                for name, value in config.to_dict(found).items()
                if getattr(chosen.config, name) != value
            )
            self.on_event({"stage": stage, "finished": True, "message": shown or "as configured"})
        return tuple(tuned)

    def tuned(self, fitted: Recommender) -> Hybrid:
        """The fusion with its weights chosen on the validation questions."""
        return weigh_hybrid(fitted, self.settings.hybrid, self.validation, on_event=self.on_event)

    # Making one stage

    def model(self, chosen: Method) -> Fitted:
        """A generator or scorer, trained where it is trained."""
        settings = config.with_seed(chosen.config, self.settings.seed)
        training = config.with_seed(chosen.train, self.settings.seed)
        key = self.key(replace(chosen, train=training), settings, self.ids_key)

        def make() -> Fitted:
            model = methods.resolve(chosen.stage, chosen.name).build(self.context, settings)
            if training is not None:
                folder = None
                if self.run_dir is not None:
                    folder = self.run_dir / "training" / f"{chosen.name}-{key[:12]}"
                label, started = f"train {chosen.name}", time.perf_counter()
                result = train(
                    model,
                    self.split.train,
                    training,
                    validate=lambda m: self.ndcg(chosen.stage, m),
                    run_dir=folder,
                    device=self.settings.device,
                    on_event=lambda event: self.on_event(progress_of(label, event, started)),
                )
                self.on_event(
                    {
                        "stage": label,
                        "finished": True,
                        "message": f"validation ndcg@10 {result.best_metric or 0:.4f} at epoch "
                        f"{result.best_epoch:.1f}; {result.seconds:.0f} s, "
                        f"{result.targets_per_second:,.0f} targets/s; {result.stopped_because}",
                    }
                )
            if isinstance(model, nn.Module):
                model = model.to(self.device).eval()
            return Fitted(stage=chosen.stage, name=chosen.name, config=settings, value=model)

        return self.cached(chosen.stage, chosen.name, key, make, self.context)

    def key(self, chosen: Method, settings: Any, parent: str) -> str:
        plain = None if settings is None else config.to_dict(settings)
        training = None if chosen.train is None else config.to_dict(chosen.train)
        return artifact.value_hash(__version__, chosen.stage, chosen.name, plain, training, parent)

    def cached(
        self, stage: str, name: str, key: str, make: Callable[[], Fitted], context: CatalogueContext
    ) -> Fitted:
        """The stage from the run directory where it is complete there, else made and kept."""
        label = f"{stage} {name}"
        if self.run_dir is None:
            self.on_event({"stage": label, "message": "fitting"})
            return make()
        path = self.run_dir / "stages" / f"{stage}-{name}-{key[:12]}"
        if (path / artifact.MANIFEST).is_file():
            self.on_event({"stage": label, "message": "already done", "finished": True})
            fitted = Fitted.load(artifact.load(path), context)
            if isinstance(fitted.value, nn.Module):
                fitted.value.to(self.device)
            return fitted
        self.on_event({"stage": label, "message": "fitting"})
        fitted = make()
        if self.writes:
            fitted.save(path)
        self.on_event({"stage": label, "finished": True})
        return fitted

    # Choices on validation

    @cached_property
    def validation(self) -> Examples:
        """The validation questions that choices are made on, the same ones every time."""
        valid, most = self.split.valid, self.settings.evaluation.validation_users
        if len(valid) <= most:
            return valid
        rows = np.random.default_rng(0).choice(len(valid), most, replace=False)
        return valid.take(np.sort(rows).astype(np.int64))

    def ndcg(self, stage: str, model: Any) -> float:
        """NDCG@10 of a model in training."""
        if stage == "scorers":
            answers: dict[str, Any] = {"scores": lambda b: model.scores(b.to(self.device))}
        else:
            answers = {"candidates": self.searcher(model)}
        ranked = rank_all(
            self.validation,
            **answers,
            k=10,
            num_items=self.split.num_items,
            max_length=int(model.max_length),
        )
        return float(ndcg(ranked.better_Q, ranked.tied_Q, 10).mean())

    def searcher(self, generator: Any) -> Callable[..., Candidates]:
        """The search of a generator in training, narrow enough to run every epoch."""
        index, width = self.index, min(self.settings.decoding.beam_width, VALIDATION_BEAM)
        decoding = self.settings.decoding
        weights_N = popularity_weights(index, self.split.train_counts_N, generator)
        return lambda batch, k, seen: search(
            generator,
            batch.to(self.device),
            index,
            k=k,
            beam_width=width,
            renormalise=decoding.renormalise,
            length_penalty=decoding.length_penalty,
            weights_N=weights_N,
        )

    @cached_property
    def index(self) -> PrefixIndex:
        return PrefixIndex.build(self.ids, device=self.device)


def weigh_hybrid(
    fitted: Recommender, settings: HybridConfig, validation: Examples, *, on_event: OnEvent = quiet
) -> Hybrid:
    """The fusion of these members with its weights chosen on the validation questions."""
    names = [fitted.generator.name if n == "generator" else n for n in settings.members]
    stage = "weigh the hybrid"
    on_event({"stage": stage, "message": " + ".join(names)})
    tuned = tune_weights(
        [fitted.member(name) for name in names],
        names,
        validation,
        max_length=max(fitted.max_length(name) for name in names),
        device=fitted.device,
        pool=settings.pool,
        rule=settings.rule,
        on_batch=lambda done, total: on_event({"stage": stage, "done": done, "total": total}),
    )
    shares = " + ".join(
        f"{weight:.2f} {name}" for weight, name in zip(tuned.hybrid.weights, names, strict=True)
    )
    on_event(
        {
            "stage": stage,
            "finished": True,
            "message": f"{shares}: validation ndcg@10 {tuned.metric:.4f}",
        }
    )
    return tuned.hybrid


def progress_of(
    stage: str, event: TrainEvent, started: float, metric: str = "ndcg@10"
) -> dict[str, Any]:
    """A training event in the form of `OnEvent`, in seconds done and seconds in all."""
    done = time.perf_counter() - started
    values: dict[str, Any] = {"stage": stage, "done": done, "total": done + event.eta_seconds}
    values |= {"epoch": float(event.epoch), "loss": float(event.loss)}
    return values if event.metric is None else values | {metric: float(event.metric)}
