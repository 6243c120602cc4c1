"""The guard of alignment: a policy against where it started, user by user, on validation.

Where NDCG@10 has fallen and the whole 95 % interval of the paired difference lies below zero, it
says so, and alignment stops.

Cost:     one beam search a question, each time.
Shapes:   Q validation questions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from sidrec.decoding.beam import unconstrained_search
from sidrec.evaluation import rank_all
from sidrec.evaluation.metrics import ndcg
from sidrec.evaluation.protocol import Rankings
from sidrec.evaluation.significance import Figure, Values, paired
from sidrec.recommender import Recommender
from sidrec.types import Examples, HistoryBatch

OnValidation = Callable[[nn.Module, dict[str, float]], None]
"""Called with the policy and what a validation saw of it."""


class Guard:
    """Validation of a policy against where it started, user by user."""

    def __init__(
        self,
        parent: Recommender,
        examples: Examples,
        on_validation: OnValidation | None = None,
    ) -> None:
        self.parent, self.examples, self.on_validation = parent, examples, on_validation
        self.start_Q = self.ndcg(parent.generator.value)
        self.last = Figure(value=0.0, low=0.0, high=0.0, n=len(self.examples))

    def ranked(self, policy: Any) -> Rankings:
        """The validation questions, answered by the bundle's own search with this policy."""
        parent = self.parent
        generator = replace(parent.generator, value=policy)
        asked = replace(parent, generator=generator, index_override=parent.index)
        return rank_all(
            self.examples,
            candidates=lambda batch, k, seen: asked.generate(batch.to(asked.device), k),
            k=10,
            num_items=len(asked.items),
            max_length=int(policy.max_length),
        )

    def ndcg(self, policy: Any) -> Values:
        """(Q,) NDCG@10 of a policy."""
        ranked = self.ranked(policy)
        return ndcg(ranked.better_Q, ranked.tied_Q, 10)

    def difference(self, policy: Any) -> Figure:
        """NDCG@10 now minus at the start, paired over users."""
        return paired(self.ndcg(policy), self.start_Q)[0]

    def validate(self, aligner: nn.Module) -> tuple[float, dict[str, float]]:
        """Mean NDCG@10, and what was seen; remembered for `verdict`."""
        policy = aligner.policy
        assert isinstance(policy, nn.Module)
        now_Q = self.ndcg(policy)
        self.last, _ = paired(now_Q, self.start_Q)
        entry = {
            "ndcg@10": float(now_Q.mean()),
            "difference": self.last.value,
            "low": float(self.last.low or 0.0),
            "high": float(self.last.high or 0.0),
            "invalid_share": self.invalid_share(policy),
            **getattr(aligner, "told", dict)(),
        }
        if self.on_validation is not None:
            self.on_validation(policy, entry)
        return float(now_Q.mean()), entry

    def invalid_share(self, policy: Any, *, users: int = 256, k: int = 10) -> float:
        """Share of the first ten IDs of a free beam that no item holds, over some users."""
        rows = np.arange(min(users, len(self.examples)), dtype=np.int64)
        batch = HistoryBatch.from_histories(
            self.examples.histories, rows, max_length=int(policy.max_length)
        )
        index = self.parent.index
        free = unconstrained_search(policy, batch.to(index.device), index, beam_width=max(k, 20))
        return free.invalid_share(k)

    def verdict(self) -> str:
        """Why to stop; empty while there is no reason."""
        if self.last.high is not None and self.last.high < 0:
            return (
                f"guard: validation ndcg@10 {self.last.value:+.4f} "
                f"[{self.last.low:+.4f}, {self.last.high:+.4f}] against the start"
            )
        return ""
