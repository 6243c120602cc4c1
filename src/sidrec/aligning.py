"""From a bundle to an aligned one: contexts, rewards, training under a guard, a new bundle.

Joins what `alignment` offers with the bundle, its data and the evaluation. The guard compares the
policy with its own starting point, user by user, on the validation questions: where NDCG@10 has
fallen and the whole interval of the paired difference lies below zero, alignment stops. The weights
that validated best are kept, those of the start among them: what comes out never validated worse.

Test questions are read once, after all choices, and for both bundles.

Cost:     rollouts dominate group objectives; see `alignment.rollouts`.
Shapes:   Q validation questions, N items.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from sidrec import artifact, config, methods
from sidrec.align_config import AlignConfig
from sidrec.alignment.aligner import TOLD, Aligner
from sidrec.alignment.contexts import ContextBatches
from sidrec.alignment.preferences import (
    exposed,
    from_histories,
    from_impressions,
    of_shop,
    split_by_user,
)
from sidrec.alignment.rewards.mixture import Mixture
from sidrec.alignment.values import AlignmentContext, Preferences
from sidrec.config import Method
from sidrec.contracts import Objective
from sidrec.data import split
from sidrec.errors import ConfigError, DataError
from sidrec.evaluation import Report, compare
from sidrec.evaluation.significance import Figure
from sidrec.fitted import Fitted
from sidrec.guard import Guard, OnValidation
from sidrec.pipeline import (
    OnEvent,
    evaluate_systems,
    progress_of,
    quiet,
    require_same_data,
    summary_of,
    weigh_hybrid,
)
from sidrec.recipe import RunConfig, read_data
from sidrec.recommender import Recommender, load
from sidrec.tokenizers.lifecycle import ids_version
from sidrec.training import TrainConfig, TrainResult, train
from sidrec.types import Dataset, Examples, Histories, Ints, Split


@dataclass(frozen=True, eq=False, kw_only=True)
class Aligned:
    """What `run_alignment` gives back."""

    recommender: Recommender
    parent: Recommender
    training: TrainResult
    validation: Figure
    """NDCG@10 on validation, after minus before, paired over users."""
    curve: list[dict[str, float]]
    """What each validation saw: epoch, ndcg@10, difference with its interval, invalid_share; and of
    the steps since the one before the means of what was silent, missing, dropped, admitted, judged.
    """
    stopped_by_guard: str
    """What the guard said; empty where it let the run end."""
    reports: Mapping[str, Report]
    """"before" and "after": the generator on the test part; empty where nothing was evaluated."""
    bundle: Path | None
    seconds: float
    counts: Mapping[str, Any]
    """Contexts used and dropped, judge calls, and the like."""

    def summary(self) -> dict[str, Any]:
        """The run as plain JSON values."""
        return {
            "bundle": None if self.bundle is None else str(self.bundle),
            "seconds": self.seconds,
            "steps_per_second": self.steps_per_second,
            "stopped_because": self.training.stopped_because,
            "guard": self.stopped_by_guard,
            "validation_difference": asdict(self.validation),
            "training_means": self.training_means,
            "curve": self.curve,
            "counts": dict(self.counts),
            "test": summary_of(self.reports),
        }

    @property
    def training_means(self) -> dict[str, float]:
        """Share of silent groups, missing rewards, dropped items and the like; validations weigh
        the same.
        """
        seen = {name: [e[name] for e in self.curve if name in e] for name in TOLD}
        return {name: float(np.mean(values)) for name, values in seen.items() if values}

    @property
    def steps_per_second(self) -> float:
        """Contexts a second of training."""
        return self.training.targets_per_second


def align(
    recommender: Recommender,
    settings: AlignConfig | None = None,
    *,
    data: Dataset | None = None,
    preferences: Preferences | None = None,
    run_dir: str | Path | None = None,
    on_event: OnEvent = quiet,
) -> Recommender:
    """A recommender whose generator is aligned; the one given stays as it is.

    `preferences` replace the contexts that `settings.contexts` would make. With `run_dir` an
    interrupted alignment is resumed to the bit.
    """
    return run_alignment(
        recommender,
        settings or AlignConfig(),
        data=data,
        preferences=preferences,
        run_dir=run_dir,
        on_event=on_event,
        evaluate=False,
    ).recommender


def run_alignment(
    recommender: Recommender,
    settings: AlignConfig,
    *,
    data: Dataset | None = None,
    preferences: Preferences | None = None,
    run_dir: str | Path | None = None,
    on_event: OnEvent = quiet,
    evaluate: bool = True,
    on_validation: OnValidation | None = None,
    like: Alignment | None = None,
    parts: Split | None = None,
) -> Aligned:
    """Align, tune the hybrid again, measure both bundles' generators on test, write the bundle.

    `on_validation(policy, entry)` is called after every validation with what it saw. `like` lends
    data, contexts and rewards of the same settings, so that several objectives share them.
    `parts` replace the split that the bundle's settings would make.
    """
    started = time.perf_counter()
    work = Alignment(recommender, settings, data, preferences, on_event, like, parts)
    folder = None if run_dir is None else Path(run_dir)
    result, guard = work.trained(folder, on_validation)
    aligned = work.rebuilt(recommender)
    reports: dict[str, Report] = {}
    if evaluate:
        for name, one in (("before", recommender), ("after", aligned)):
            found = evaluate_systems(
                one, work.dataset, work.split, settings=work.run_settings,
                systems=["generator"], on_event=on_event,
            )  # fmt: skip
            reports[name] = replace(next(iter(found.values())), name=name)
    path = None if folder is None else folder / "bundle"
    alone = int(os.environ.get("RANK", "0")) == 0  # under torchrun, process 0 writes
    if folder is not None and path is not None and alone:
        aligned.save(path)
        artifact.write_text(folder / "align.toml", config.to_toml(settings))
    because = result.stopped_because
    return Aligned(
        recommender=aligned,
        parent=recommender,
        training=result,
        validation=guard.difference(work.policy),
        curve=[
            {"epoch": epoch, **note}
            for (epoch, _), note in zip(result.metrics, result.notes, strict=alone)
        ],
        stopped_by_guard=because if because.startswith("guard") else "",
        reports=reports,
        bundle=path,
        seconds=time.perf_counter() - started,
        counts=work.counts(),
    )


@dataclass(frozen=True)
class RunIdentity:
    """What a resumed alignment must share with the run it goes on from, beside its training."""

    settings: AlignConfig
    parent: str
    """Hash of the bundle; empty for one that was never saved."""


class Alignment:
    """One alignment: everything made once, ready to be trained or analysed."""

    def __init__(
        self,
        recommender: Recommender,
        settings: AlignConfig,
        data: Dataset | None,
        preferences: Preferences | None,
        on_event: OnEvent,
        like: Alignment | None = None,
        parts: Split | None = None,
    ) -> None:
        self.parent, self.settings, self.on_event = recommender, settings, on_event
        self.run_settings = config.parse(RunConfig, recommender.settings)
        if data is None:
            data = like.dataset if like else read_data(settings.data or self.run_settings.data)
        require_same_data(recommender, data)
        self.dataset = data
        if parts is None:
            parts = like.split if like else split(data, self.run_settings.split.rule)
        self.split = parts
        self.built: dict[str, Any] = like.built if like else {}
        """Rewards by their settings."""
        self.notes: list[str] = []
        if like and preferences is None:
            same = (like.settings.contexts, like.settings.seed) == (
                settings.contexts,
                settings.seed,
            )
            if not same:
                raise ConfigError("what is lent was made for other contexts or another seed")
            preferences = like.every
        self.every = self._known(preferences if preferences is not None else self._contexts())
        self.preferences, self.learnt_from = self._parted(self.every)
        self.told(f"{len(self.preferences):,} contexts to align on")
        if not settings.rollouts.constrained:
            self.told("rollouts are open to the whole codebook: they may write IDs of no item")
        self.renormalise = settings.renormalise
        if self.renormalise is None:
            self.renormalise = recommender.renormalise and settings.rollouts.constrained
        self.policy = copy.deepcopy(recommender.generator.value)
        if not isinstance(self.policy, nn.Module):
            raise ConfigError(f"the generator {recommender.generator.name} cannot be trained")
        if getattr(self.policy, "search", None) is not None:
            raise ConfigError(
                f"{recommender.generator.name} is not searched by a beam, so what it is aligned on "
                "would not be what it answers; align causal, s2gr, tiger, liger or cobra"
            )
        self.reference: nn.Module | None = None
        if settings.reference is not None:
            other = load(settings.reference, device=str(recommender.device))
            require_same_ids(recommender, other)
            self.reference = other.generator.value
        self.aligner = self._aligner()

    def told(self, message: str) -> None:
        """Progress, kept for the report too."""
        self.notes.append(message)
        self.on_event({"stage": "align", "message": message})

    # ------------------------------------------------------------------ what it needs

    def _contexts(self) -> Preferences:
        chosen, seed = self.settings.contexts, self.settings.seed
        if chosen.source == "impressions":
            made = self._impressions()
        elif chosen.source == "exposed":
            made = exposed(
                self.split.train, self.parent.vectors, max_contexts=chosen.most, seed=seed
            )
        else:
            made = from_histories(self.split.train, max_contexts=chosen.most, seed=seed)
        if chosen.most is not None and len(made) > chosen.most:
            rows = np.random.default_rng(seed).choice(len(made), chosen.most, replace=False)
            made = made.take(np.sort(rows).astype(np.int64))
        return made

    def _impressions(self) -> Preferences:
        chosen, source = self.settings.contexts, self.settings.data or self.run_settings.data
        if chosen.impressions is None:
            if source.name != "shop":
                raise ConfigError(
                    'contexts.source = "impressions" needs contexts.impressions, a file with '
                    "columns history, candidates and clicks"
                )
            from sidrec.data.shop import simulate

            shop = simulate()
            made = of_shop(shop)
            kept = of_shop(shop, self.split.train)
        else:
            made, notes = from_impressions(
                pl.read_parquet(chosen.impressions),
                self.dataset.items,
                user_ids=self.dataset.interactions.user_ids,
            )
            for note in notes:
                self.told(note)
            kept = without_held_out(made, self.split)
        if len(kept) < len(made):
            self.told(
                f"{len(made) - len(kept):,} of {len(made):,} shown lists hold validation or test "
                "events; left out"
            )
        return kept

    def _known(self, every: Preferences) -> Preferences:
        """The contexts whose items are all of the catalogue; the others are counted."""
        num_items, bad_R = len(self.dataset.items), np.zeros(len(every), dtype=bool)
        for lists in (every.histories, every.positives, every.negatives):
            unknown_E = (lists.items_E < 0) | (lists.items_E >= num_items)
            contexts_E = np.repeat(np.arange(len(every)), lists.lengths)
            bad_R[contexts_E[unknown_E]] = True
        if bad_R.any():
            self.told(
                f"{int(bad_R.sum()):,} of {len(every):,} contexts name items outside the catalogue "
                f"of {num_items:,}; left out"
            )
            every = every.take(np.flatnonzero(~bad_R))
        if not len(every):
            raise DataError("no context is left to align on: " + "; ".join(self.notes))
        return every

    def _parted(self, every: Preferences) -> tuple[Preferences, Preferences]:
        """Contexts of the users to align on, and of those that rewards learn from."""
        chosen = [*self.settings.rewards]
        chosen += [] if self.settings.judge is None else [self.settings.judge]
        kind = methods.resolve("objectives", self.settings.objective.name).kind
        learns = kind == "group" and any(
            getattr(methods.resolve("rewards", one.name), "learns", False) for one in chosen
        )
        share = self.settings.contexts.reward_share
        if not learns or not share:
            return every, every
        kept, learnt_from = split_by_user(every, share, self.settings.seed)
        self.told(
            f"rewards learn from {len(learnt_from):,} contexts of {share:.0%} of the users; the "
            "policy is aligned on the others"
        )
        return kept, learnt_from

    def context(self, *, learns: bool) -> AlignmentContext:
        """What a reward may see: everything to align on, or what rewards learn from."""
        train, preferences = self.split.train, self.preferences
        if learns and self.learnt_from is not self.preferences:
            preferences = self.learnt_from
            users = np.unique(preferences.users_R[preferences.users_R >= 0])
            train = only(train, users) if len(users) else train
        return AlignmentContext(
            items=self.dataset.items,
            vectors=self.parent.vectors,
            ids=self.parent.ids,
            train=train,
            preferences=preferences,
            seed=self.settings.seed,
        )

    def _reward(self, chosen: Method) -> Any:
        key = json.dumps([chosen.name, config.to_dict(chosen.config)], sort_keys=True)
        if key in self.built:
            return self.built[key]
        self.on_event({"stage": f"reward {chosen.name}", "message": "building"})
        reward_class = methods.resolve("rewards", chosen.name)
        learns = bool(getattr(reward_class, "learns", False))
        built = reward_class.build(self.context(learns=learns), chosen.config)
        self.on_event({"stage": f"reward {chosen.name}", "finished": True})
        self.built[key] = built
        return built

    def _aligner(self) -> Aligner:
        settings = self.settings
        chosen = settings.objective
        objective = methods.resolve("objectives", chosen.name)(
            config.with_seed(chosen.config, settings.seed)
        )
        self.rewards: Mixture | None = None
        self.judge: Any = None
        if objective.kind == "group":
            rewards = [(one.name, self._reward(one), one.config.weight) for one in settings.rewards]
            self.rewards = Mixture(tuple(rewards)) if rewards else None
            self.judge = None if settings.judge is None else self._reward(settings.judge)
        return self.aligner_of(self.policy, objective)

    def aligner_of(self, policy: nn.Module, objective: Objective) -> Aligner:
        """A policy under an objective, with the rewards and settings of this alignment."""
        index, chosen = self.parent.index, self.settings.judge
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            return Aligner(
                policy.to(index.device),
                objective,
                index=index,
                counts_N=torch.from_numpy(self.parent.train_counts_N).to(index.device),
                config=self.settings.step,
                rollouts=self.settings.rollouts,
                rewards=self.rewards,
                judge=self.judge,
                judge_weight=1.0 if chosen is None else chosen.config.weight,
                reference=self.reference,
                renormalise=bool(self.renormalise),
            )

    # ------------------------------------------------------------------ training

    def trained(
        self,
        folder: Path | None,
        on_validation: OnValidation | None,
    ) -> tuple[TrainResult, Guard]:
        """Train the policy in place."""
        settings = self.settings
        guard = Guard(self.parent, self.validation, on_validation)
        training = config.with_seed(settings.train, settings.seed)
        self.aligner.config = RunIdentity(
            replace(settings, name="", device="auto", train=TrainConfig()),
            self.parent.content_hash or "",
        )
        batches = self._batches()
        began = time.perf_counter()
        label = f"align {settings.objective.name}"
        self.on_event(
            {
                "stage": label,
                "message": f"{len(batches.preferences):,} contexts, {batches.num_batches:,} steps "
                f"an epoch; validation ndcg@10 {guard.start_Q.mean():.4f} before",
            }
        )
        result = train(
            self.aligner,
            batches,
            training,
            validate=guard.validate,
            validate_first=True,
            guard=guard.verdict if settings.guard else None,
            run_dir=folder,
            device=str(self.parent.index.device),
            on_event=lambda event: self.on_event(
                progress_of(label, event, began)
                | {name: event.parts[name] for name in SHOWN if name in event.parts}
            ),
        )
        self.policy.eval()
        difference = guard.difference(self.policy)
        self.on_event(
            {
                "stage": label,
                "finished": True,
                "message": f"validation ndcg@10 {difference.value:+.4f} [{difference.low:+.4f}, "
                f"{difference.high:+.4f}]; {result.seconds:.0f} s; {result.stopped_because}",
            }
        )
        return result, guard

    def _batches(self) -> ContextBatches:
        batch_contexts = self.settings.train.batch_positions
        return ContextBatches(self.preferences, self.aligner.max_length, batch_contexts)

    def rebuilt(self, parent: Recommender) -> Recommender:
        """The parent with the aligned generator, its hybrid weighed again."""
        generator = Fitted(
            stage="generators",
            name=parent.generator.name,
            config=parent.generator.config,
            value=self.policy,
        )
        history = {"align": config.to_dict(self.settings), "metrics": {}}
        aligned = replace(
            parent,
            generator=generator,
            aligned_from=parent.content_hash,
            provenance={**parent.provenance, **history},
        )
        if parent.hybrid is not None:
            hybrid = weigh_hybrid(
                aligned, self.run_settings.hybrid, self.validation, on_event=self.on_event
            )
            aligned = replace(aligned, hybrid=hybrid)
        return aligned

    def plan(self) -> dict[str, Any]:
        """What the run would take: contexts, steps, parameters, memory, seconds, by three steps."""
        batches = self._batches()
        generator = torch.Generator().manual_seed(self.settings.seed)
        aligner, began = self.aligner.train(), time.perf_counter()
        windows = batches.epoch(self.settings.seed, 0)[:3]
        for rows in windows:
            batch = aligner.augment(batches.build(rows), generator).to(self.parent.device)
            aligner.loss(batch)[0].backward()
        seconds = (time.perf_counter() - began) / len(windows)
        num_steps = batches.num_batches * self.settings.train.epochs
        num_bytes = sum(p.numel() * p.element_size() for p in self.policy.parameters())
        copies = 4 + (self.aligner.reference is not None) + (self.aligner.snapshot is not None)
        limit = self.settings.train.max_seconds
        return {
            "objective": self.settings.objective.name,
            "contexts": len(self.preferences),
            "steps": num_steps,
            "parameters": sum(p.numel() for p in self.policy.parameters()),
            "memory_mib": round(copies * num_bytes / 2**20, 1),
            "seconds": round(min(num_steps * seconds, limit or np.inf), 1),
        }

    @property
    def validation(self) -> Examples:
        """The validation questions, the same ones every time."""
        valid, most = self.split.valid, self.settings.validation_users
        if len(valid) <= most:
            return valid
        rows = np.random.default_rng(0).choice(len(valid), most, replace=False)
        return valid.take(np.sort(rows).astype(np.int64))

    def counts(self) -> dict[str, Any]:
        """What was used, dropped and asked."""
        counts: dict[str, Any] = {"contexts": len(self.preferences), "notes": list(self.notes)}
        told = getattr(self.aligner.judge, "counts", None)
        if told is not None:
            counts["judge"] = told() if callable(told) else dict(told)
        return counts


SHOWN = ("reward", "kl", "invalid_share", "admission_rate", "silent_share")
"""Parts of the loss that progress shows."""


def only(train: Histories, users: Ints) -> Histories:
    """The sequences of these users; those of others are empty, so that rows keep their meaning."""
    lengths_U = np.zeros(len(train), dtype=np.int64)
    lengths_U[users] = train.lengths[users]
    keep_E = np.repeat(lengths_U > 0, train.lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths_U)]).astype(np.int64)
    return Histories(train.items_E[keep_E], offsets)


def without_held_out(preferences: Preferences, parts: Split) -> Preferences:
    """The contexts in which no user takes an item that is a validation or test target of theirs."""
    num_items = parts.num_items
    held = np.concatenate(
        [part.user_rows * num_items + part.targets for part in (parts.valid, parts.test)]
    )
    users_E = np.repeat(preferences.users_R, preferences.positives.lengths)
    taken_E = users_E * num_items + preferences.positives.items_E
    bad_E = (users_E >= 0) & np.isin(taken_E, held)
    contexts_E = np.repeat(np.arange(len(preferences)), preferences.positives.lengths)
    keep_R = np.bincount(contexts_E, weights=bad_E, minlength=len(preferences)) == 0
    return preferences.take(np.flatnonzero(keep_R))


def require_same_ids(policy: Recommender, reference: Recommender) -> None:
    """ConfigError where two bundles speak different semantic IDs: their log-probabilities do not
    compare.
    """
    if ids_version(policy.ids) != ids_version(reference.ids):
        raise ConfigError(
            f"policy and reference must have the same semantic IDs, got versions "
            f"{policy.ids_version[:12]}… and {reference.ids_version[:12]}…; align from the bundle "
            "whose IDs the policy has"
        )


def difference_on_test(aligned: Aligned, metric: str) -> Any:
    """After minus before on the test part, paired over users."""
    return compare(aligned.reports["after"], aligned.reports["before"], metric)
