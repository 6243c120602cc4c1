"""What was understood of a query: plain values, as JSON or for people.

Shapes:   none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sidrec.retrieval.search.understanding.spans import Span


@dataclass(frozen=True, kw_only=True)
class ParsedQuery:
    """A query, read with the catalogue at hand."""

    query: str
    """As it was asked, cleaned."""
    corrected: str
    """With the spelling of the catalogue; the query itself where no word changed."""
    corrections: tuple[tuple[str, str], ...] = ()
    """(written, corrected) of every part that changed."""
    segments: tuple[str, ...] = ()
    """The corrected query cut into phrases."""
    spans: tuple[Span, ...] = ()
    expansions: tuple[str, ...] = ()
    """Words that belong to the query without being in it, best first."""
    filters: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """(label, tree of `sidrec.filters`) of what the spans ask for."""
    categories: tuple[tuple[tuple[str, ...], float], ...] = ()
    """(path, probability) of the likeliest categories, best first."""
    intent: Mapping[str, float] = field(default_factory=dict)
    """Shares of the query's words that name a brand, a kind of thing, a property, or something
    else; sums to 1."""
    source: str = "embedded"
    """`embedded`, or the language model that was asked."""

    def values(self, label: str) -> tuple[str, ...]:
        """Catalogue values of the spans with this label."""
        return tuple(v for span in self.spans if span.label == label for v in span.values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {
            "query": self.query,
            "corrected": self.corrected,
            "corrections": [list(pair) for pair in self.corrections],
            "segments": list(self.segments),
            "spans": [
                {"start": s.start, "end": s.end, "label": s.label, "text": s.text,
                 "values": list(s.values)}
                for s in self.spans
            ],
            "expansions": list(self.expansions),
            "filters": [{"label": label, "filter": dict(tree)} for label, tree in self.filters],
            "categories": [
                {"path": list(path), "probability": round(p, 4)} for path, p in self.categories
            ],
            "intent": {name: round(share, 4) for name, share in self.intent.items()},
            "source": self.source,
        }  # fmt: skip
