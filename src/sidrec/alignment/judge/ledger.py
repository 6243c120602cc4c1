"""What a judge was asked and what became of it: counts, seconds, and a budget in calls."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields


@dataclass(kw_only=True)
class Ledger:
    """Counts since the judge was built. A call judges one context with all its candidates."""

    budget: int | None = None
    """Calls allowed; None allows any number."""
    calls: int = 0
    """Questions put to the back end, repeated ones included."""
    cache_hits: int = 0
    """Contexts answered from the cache, without a call."""
    retries: int = 0
    """Calls that repeated a question."""
    malformed: int = 0
    """Answers that were not what was asked for."""
    timeouts: int = 0
    failures: int = 0
    """Calls that brought no answer for another reason: server error, refused, cut off."""
    unknown_items: int = 0
    """Answers about candidates that were not asked about."""
    skipped: int = 0
    """Candidates left without a score after all retries."""
    over_budget: int = 0
    """Candidates left without a score because the budget was spent."""
    given_up: int = 0
    """Candidates left without a score because too many calls in a row had failed."""
    corrupt_lines: int = 0
    """Lines of the cache file that could not be read."""
    silent_contexts: int = 0
    """Contexts in a row, up to the last one, that brought no verdict at all."""
    seconds: float = 0.0
    """Wall seconds spent judging."""
    last_trouble: str = ""
    """What went wrong last, in words."""

    def may_call(self) -> bool:
        """Whether the budget allows one more call."""
        return self.budget is None or self.calls < self.budget

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the seconds of the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def counts(self) -> dict[str, float]:
        """Every count and the seconds by name, to log."""
        names = [f.name for f in fields(self) if f.name not in ("budget", "last_trouble")]
        return {name: float(getattr(self, name)) for name in names}
