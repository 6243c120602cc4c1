"""A judge for tests: aspects from shared words alone. It is never reported as the paper's judge.

    profile  2 · mean cos − 1 … to the nearest level; cos of TF-IDF word vectors to the history
    future   cos to the last event
    novelty  0 for an item of the history, else 1 − the best cos, at least ½

Source:  none.
Differs: nothing to differ from.
Cost:    O(B G T) sparse products.
Shapes:  B contexts, G candidates, A aspects, T history length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from sidrec.alignment.judge.aspects import ASPECTS, WITHOUT_CONTEXT, Evidence
from sidrec.errors import DataError
from sidrec.types import Floats, Histories, Ints, Items

MAX_HISTORY = 50


@dataclass(frozen=True, eq=False)
class SimilarityJudge:
    """Deterministic and without training."""

    words_NF: sparse.csr_matrix
    """Unit rows."""
    aspects: tuple[str, ...] = WITHOUT_CONTEXT

    @classmethod
    def of(cls, items: Items) -> Self:
        """Word vectors of the texts of the catalogue."""
        try:
            words_NF = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform(items.texts())
        except ValueError as cause:  # scikit-learn: empty vocabulary
            raise DataError(
                "judge: the similarity back end needs item texts with words, got none; "
                "add a title column, or set judge.backend = 'embedded'"
            ) from cause
        return cls(sparse.csr_matrix(words_NF, dtype=np.float32))

    def evidence(
        self, histories: Histories, rows_BG: Ints, *, with_texts: bool = False
    ) -> Evidence:
        """Scores in levels, and reasons where asked for; NaN where a row is −1."""
        scores_BGA = np.full((*rows_BG.shape, len(self.aspects)), np.nan, dtype=np.float32)
        texts: list[tuple[tuple[str, ...], ...]] = []
        for b, rows_G in enumerate(rows_BG):
            items_T = histories[b][-MAX_HISTORY:]
            sims_GT = np.asarray((self.words_NF[rows_G] @ self.words_NF[items_T].T).todense())
            reasons: list[tuple[str, ...]] = []
            for g, row in enumerate(rows_G):
                sims_T = sims_GT[g] if len(items_T) else np.zeros(1, dtype=np.float32)
                reasons.append(self._reasons(sims_T) if row >= 0 else ("",) * len(self.aspects))
                if row >= 0:
                    scores_BGA[b, g] = self._scores(sims_T, row in items_T)
            texts.append(tuple(reasons))
        return Evidence(self.aspects, scores_BGA, tuple(texts) if with_texts else ())

    def _scores(self, sims_T: Floats, repeated: bool) -> list[float]:
        novelty = 0.0 if repeated else max(0.5, 1 - float(sims_T.max()))
        raw = (2 * float(sims_T.mean()) - 1, float(sims_T[-1]), novelty)
        pairs = zip(self.aspects, raw, strict=True)
        return [nearest_level(name, value) for name, value in pairs]

    def _reasons(self, sims_T: Floats) -> tuple[str, ...]:
        best = float(sims_T.max())
        return (
            f"Mean word overlap with the history {float(sims_T.mean()):.2f}.",
            f"Word overlap with the last event {float(sims_T[-1]):.2f}.",
            f"Largest word overlap with the history {best:.2f}.",
        )


def nearest_level(aspect: str, value: float) -> float:
    """The level of the aspect nearest to the value; ties go to the lower."""
    return min(ASPECTS[aspect].levels, key=lambda level: abs(level - value))
