"""Which category a query asks for: naive Bayes over the words of titles, calibrated.

    ln p(c | q) = [ ω ln p(c) + Σ_{w in q} ln((1 − λ) p(w | c) + λ p(w)) ] / T + constant

ω and T are those with the lowest log-loss on queries made of the words of a tenth of the items,
whose own words were not counted. Items without a category get the one their title speaks for.

Source:   multinomial naive Bayes with Jelinek-Mercer smoothing (Zhai and Lafferty 2004);
          temperature scaling, Guo et al., arXiv:1706.04599.
Differs:  the prior's weight is learnt too, for people do not search as the catalogue is stocked.
Cost:     fit: one pass over the titles; a query: the categories that hold its words.
Shapes:   N items, C categories, S stems, Z pairs of stem and category.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sidrec.embeddings.queries import made_queries
from sidrec.retrieval.search.understanding.attributes import Attributes
from sidrec.retrieval.search.understanding.lexicon import Lexicon, stems_of
from sidrec.types import Bools, Floats, Ints, Items

SMOOTHING = 0.3
"""λ, the weight of the whole catalogue's words."""
HELD_OUT = 10
MAX_MADE = 2000
PRIOR_WEIGHTS = (0.0, 0.25, 0.5, 1.0)
TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)


@dataclass(frozen=True, eq=False)
class CategoryModel:
    """Gains of stems for categories, sparse."""

    log_prior_C: NDArray[np.float64]
    gains_Z: Floats
    """ln(1 + (1 − λ) p(w | c) / (λ p(w))), what a word adds to a category over the others."""
    categories_Z: Ints
    offsets: Ints
    """(S + 1,) stem s has the gains `offsets[s]:offsets[s + 1]`."""
    prior_weight: float = 1.0
    temperature: float = 1.0

    @classmethod
    def count(
        cls, lexicon: Lexicon, categories_N: Ints, num_categories: int, kept_N: Bools
    ) -> Self:
        """Uncalibrated gains from the titles of the kept items with a category."""
        items_E = np.repeat(np.arange(lexicon.num_items), np.diff(lexicon.offsets))
        used_E = (kept_N & (categories_N >= 0))[items_E]
        stems_E = lexicon.titles_E[used_E]
        num, num_stems = num_categories, len(lexicon.stems)
        categories_E = categories_N[items_E[used_E]]
        keys, counts_Z = np.unique(stems_E * num + categories_E, return_counts=True)
        stems_Z, categories_Z = keys // num, keys % num
        of_category_C = np.maximum(np.bincount(categories_E, minlength=num), 1)
        of_stem_S = np.bincount(stems_E, minlength=num_stems) / max(len(stems_E), 1)
        share_Z = counts_Z / of_category_C[categories_Z]
        gains_Z = np.log1p((1 - SMOOTHING) * share_Z / (SMOOTHING * of_stem_S[stems_Z]))
        offsets = np.searchsorted(stems_Z, np.arange(num_stems + 1)).astype(np.int64)
        sizes_C = np.bincount(categories_N[kept_N & (categories_N >= 0)], minlength=num)
        log_prior_C = np.log((sizes_C + 1) / (sizes_C.sum() + num))
        return cls(log_prior_C, gains_Z.astype(np.float32), categories_Z, offsets)

    @classmethod
    def fit(cls, items: Items, lexicon: Lexicon, attributes: Attributes, seed: int) -> Self:
        """Counts of all titles, with the prior's weight and the temperature of held-out ones."""
        categories_N, num = attributes.categories_N, len(attributes.paths)
        whole = cls.count(lexicon, categories_N, num, np.ones(len(items), dtype=np.bool_))
        held_N = np.random.default_rng(seed).random(len(items)) < 1 / HELD_OUT
        held = np.flatnonzero(held_N & (categories_N >= 0))[:MAX_MADE]
        if num < 2 or len(held) < HELD_OUT:
            return whole
        part = cls.count(lexicon, categories_N, num, ~held_N)
        of_held = Items(items.item_ids[held], items.attributes[held])
        made = made_queries(of_held, per_item=1, max_words=4, seed=seed)
        gains_QC = np.stack([part.gains(numbers(text, lexicon)) for text in made.texts])
        truth_Q = categories_N[held][made.rows_P]
        losses = {
            (weight, temperature): _log_loss(
                (gains_QC + weight * part.log_prior_C) / temperature, truth_Q
            )
            for weight in PRIOR_WEIGHTS
            for temperature in TEMPERATURES
        }
        weight, temperature = min(losses, key=lambda pair: losses[pair])
        return cls(whole.log_prior_C, whole.gains_Z, whole.categories_Z, whole.offsets, weight,
                   temperature)  # fmt: skip

    def gains(self, stems: Sequence[int]) -> NDArray[np.float64]:
        """(C,) sum of the gains of stems, by their numbers."""
        total_C = np.zeros(len(self.log_prior_C))
        for stem in stems:
            part = slice(self.offsets[stem], self.offsets[stem + 1])
            total_C[self.categories_Z[part]] += self.gains_Z[part]
        return total_C

    def probs(self, stems: Sequence[int]) -> NDArray[np.float64]:
        """(C,) p(c | q); the prior's where no stem is known."""
        logits_C = (self.gains(stems) + self.prior_weight * self.log_prior_C) / self.temperature
        shares_C = np.exp(logits_C - logits_C.max()) if len(logits_C) else logits_C
        return shares_C / shares_C.sum() if len(shares_C) else shares_C

    def imputed(self, lexicon: Lexicon, categories_N: Ints) -> Ints:
        """(N,) categories, those of items without one guessed from their titles; −1 where the
        title says nothing.
        """
        filled_N = categories_N.copy()
        for item in np.flatnonzero(categories_N < 0).tolist():
            gains_C = self.gains(lexicon.title(item).tolist())
            if len(gains_C) and gains_C.max() > 0:
                filled_N[item] = int(gains_C.argmax())
        return filled_N

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be saved beside `state`."""
        return {
            "log_prior": self.log_prior_C,
            "gains": self.gains_Z,
            "categories": self.categories_Z,
            "offsets": self.offsets,
        }

    def state(self) -> dict[str, Any]:
        """JSON-able rest: what was calibrated."""
        return {"prior_weight": self.prior_weight, "temperature": self.temperature}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> Self:
        """The model that `arrays` and `state` came from."""
        return cls(
            arrays["log_prior"],
            arrays["gains"],
            arrays["categories"],
            arrays["offsets"],
            float(state["prior_weight"]),
            float(state["temperature"]),
        )


def numbers(text: str, lexicon: Lexicon) -> list[int]:
    """Numbers of the known stems of a text, in order."""
    return [lexicon.number_of[stem] for stem in stems_of(text) if stem in lexicon.number_of]


def _log_loss(logits_QC: NDArray[np.float64], truth_Q: Ints) -> float:
    top_Q1 = logits_QC.max(axis=1, keepdims=True)
    totals_Q = np.log(np.exp(logits_QC - top_Q1).sum(axis=1)) + top_Q1[:, 0]
    return float((totals_Q - logits_QC[np.arange(len(truth_Q)), truth_Q]).mean())
