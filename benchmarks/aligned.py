"""What the alignment benchmarks share: one supervised bundle, and rows that align copies of it.

Every row starts from the same weights, sees the same contexts and rewards, and trains for the same
processor seconds. The best checkpoint is the one that validated best, the start among them; the
final one is what training ended with. Test questions decide nothing.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sidrec import config
from sidrec.align_config import OBJECTIVE, AlignConfig
from sidrec.aligning import Aligned, Alignment, run_alignment
from sidrec.alignment.values import Preferences
from sidrec.cli import output
from sidrec.decoding.beam import unconstrained_search
from sidrec.errors import DataError
from sidrec.evaluation import rank_all
from sidrec.evaluation.metrics import mrr, ndcg, recall
from sidrec.evaluation.significance import Values, bootstrap_seeds, paired_seeds
from sidrec.recommender import Recommender
from sidrec.types import Dataset, Examples, HistoryBatch, Split

Measured = Mapping[str, Values]
"""Metric -> (Q,) value of each test question."""
KS = (3, 5, 10)


@dataclass(eq=False, kw_only=True)
class Bench:
    """One supervised bundle and everything its rows share."""

    data: str
    recommender: Recommender
    dataset: Dataset
    parts: Split
    settings: AlignConfig
    preferences: Preferences | None = None
    more: Callable[[Recommender], Measured] | None = None
    """Further metrics of a recommender, one value a test question."""
    rows: dict[str, dict[str, Measured]] = field(default_factory=dict)
    """Row -> "best" and "final" -> metrics."""
    told: dict[str, Aligned] = field(default_factory=dict)
    admission: dict[str, list[float]] = field(default_factory=dict)
    """Row -> admission rate of the steps that progress showed, for objectives with a gate."""
    lent: Alignment | None = None

    def row(self, name: str, objective: str, /, *, step: Any = None, judge: Any = None,
            preferences: Preferences | None = None, **options: Any) -> Aligned:  # fmt: skip
        """Align a copy by an objective with these options; measure its best and final weights."""
        settings = replace(
            self.settings, name=name, objective=config.method(OBJECTIVE, objective, **options)
        )
        if step is not None:
            settings = replace(settings, step=replace(settings.step, **step))
        if judge is not None:
            settings = replace(settings, judge=judge)
        kept: dict[str, Any] = {"value": -1.0}

        def keep(policy: nn.Module, entry: dict[str, float]) -> None:
            weights = {n: t.detach().clone() for n, t in policy.state_dict().items()}
            kept["final"] = weights
            if entry["ndcg@10"] > kept["value"]:
                kept.update(value=entry["ndcg@10"], best=weights)
            if self.more is not None:
                entry.update({m: float(v.mean()) for m, v in self.more(self.with_(policy)).items()})

        with output.progress() as show_it:

            def show(event: Mapping[str, Any]) -> None:
                if "admission_rate" in event:
                    self.admission.setdefault(name, []).append(float(event["admission_rate"]))
                show_it(event)

            work = Alignment(
                self.recommender, settings, self.dataset, preferences or self.preferences, show,
                self.lent, self.parts,
            )  # fmt: skip
            self.lent = self.lent or work
            result = run_alignment(
                self.recommender, settings, data=self.dataset, on_event=show, evaluate=False,
                preferences=preferences or self.preferences, on_validation=keep, like=work,
                parts=self.parts,
            )  # fmt: skip
        policy = copy.deepcopy(self.recommender.generator.value)
        self.rows[name] = {}
        for which in ("best", "final"):
            policy.load_state_dict(kept[which])
            self.rows[name][which] = self.measured(policy.eval())
        self.told[name] = result
        shown = {
            f"{which}.{metric}": round(float(values.mean()), 4)
            for which, metrics in self.rows[name].items()
            for metric, values in metrics.items()
        }
        print(name, shown, result.training.stopped_because, flush=True)
        return result

    def with_(self, policy: nn.Module) -> Recommender:
        """The bundle with another policy."""
        parent = self.recommender
        generator = replace(parent.generator, value=policy)
        return replace(parent, generator=generator, index_override=parent.index)

    def measured(self, policy: nn.Module) -> Measured:
        """All metrics on the test part."""
        asked = self.with_(policy)
        examples = self.parts.test
        ranked = rank_all(
            examples,
            candidates=lambda batch, k, seen: asked.generate(batch.to(asked.device), k),
            k=max(KS),
            num_items=len(asked.items),
            max_length=int(policy.max_length),  # type: ignore[arg-type]
        )
        better_Q, tied_Q = ranked.better_Q, ranked.tied_Q
        metrics: dict[str, Values] = {}
        for k in KS:
            metrics[f"recall@{k}"] = recall(better_Q, tied_Q, k)
            metrics[f"ndcg@{k}"] = ndcg(better_Q, tied_Q, k)
        metrics["mrr"] = mrr(better_Q, tied_Q, max(KS))
        metrics["invalid_share"] = invalid_shares(asked, examples)
        return {**metrics, **(self.more(asked) if self.more else {})}


def over_seeds(
    benches: Sequence[Bench], *, baselines: Sequence[str], plain: str = "best"
) -> dict[str, dict[str, Any]]:
    """Figures of all rows over users and seeds, and of their differences from the baselines.

    `<data>.<row>.<metric>` is that of the checkpoint `plain`; the others have their name before
    the metric. Every seed asks the same test questions, and its rows start from the same weights.
    """
    figures: dict[str, dict[str, Any]] = {}
    data, rows = benches[0].data, benches[0].rows
    for name, checkpoints in rows.items():
        for which, metrics in checkpoints.items():
            for metric in metrics:
                values_SQ = np.stack([bench.rows[name][which][metric] for bench in benches])
                figure = as_figure(bootstrap_seeds(values_SQ))
                if len(benches) > 1:
                    figure["by_seed"] = [round(float(v), 5) for v in values_SQ.mean(1)]
                figures[f"{data}.{name}.{which}.{metric}"] = figure
                if which == plain:
                    figures[f"{data}.{name}.{metric}"] = figure
                for base in baselines:
                    if name == base or base not in rows:
                        continue
                    base_SQ = np.stack([bench.rows[base][which][metric] for bench in benches])
                    found, p = paired_seeds(values_SQ, base_SQ, shared=True)
                    figures[f"{data}.{name}_minus_{base}.{which}.{metric}"] = {
                        **as_figure(found), "p": round(p, 5), "unit": "difference",
                    }  # fmt: skip
    return figures


def real_data(name: str) -> Path:
    """The folder of a real data set, under SIDREC_DATA."""
    root = os.environ.get("SIDREC_DATA")
    if not root:
        raise DataError(f"{name} is read from SIDREC_DATA, which is not set; name the folder there")
    return Path(root) / name


def invalid_shares(asked: Recommender, examples: Examples, *, k: int = 10) -> Values:
    """(Q,) share of the first k IDs of a free beam that no item holds."""
    shares: list[Values] = []
    generator = asked.generator.value
    for start in range(0, len(examples), 512):
        rows = np.arange(start, min(start + 512, len(examples)), dtype=np.int64)
        batch = HistoryBatch.from_histories(
            examples.histories, rows, max_length=int(generator.max_length)
        ).to(asked.device)
        free = unconstrained_search(generator, batch, asked.index, beam_width=asked.beam_width)
        shares.append(1.0 - free.valid_BK[:, :k].double().mean(1).cpu().numpy())
    return np.concatenate(shares)


def as_figure(figure: Any) -> dict[str, Any]:
    """A figure with its interval, as benchmark files hold it."""
    plain = {"value": round(figure.value, 5)}
    if figure.low is not None:
        plain |= {"low": round(figure.low, 5), "high": round(figure.high, 5)}
    return {**plain, "unit": "ratio", "n": figure.n}
