"""Memory of models that are no longer served: given back at once, to the system too.

The retrievers of a recommender hold it, and it remembers them: a circle that only the collector
can free, after many requests or never, since `run` freezes what is there at the start. A look of
the collector at everything stops every thread for up to half a second. So the circle is cut when a
model is replaced, and the collector runs only where a model is still there a good while later.

What is freed must also leave the process. glibc raises the size from which a block is a mapping of
its own each time a larger one is freed, until tables of megabytes lie among small blocks and no
hole fits the next model. So the size is fixed.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import platform
import threading
import time
import weakref
from collections.abc import Sequence

from sidrec.recommender import Recommender

log = logging.getLogger("sidrec.serving")
LONGEST_SECONDS = 70.0
"""After this no request is answered from a model that was replaced."""
MMAP_THRESHOLD, MAPPED_BYTES = -3, 1 << 20
"""glibc's name of the setting, and the bytes from which a block is a mapping of its own."""


def map_large_blocks() -> bool:
    """Have large blocks mapped one by one, so that they leave with their model; false elsewhere
    than with glibc. For the whole process, so for servers only.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, MAPPED_BYTES))


class Replaced:
    """The models that were replaced and may still be in memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: list[tuple[float, weakref.ref[Recommender]]] = []

    def let_go(self, before: Sequence[Recommender], after: Sequence[Recommender]) -> None:
        """Cut the circle of each of `before` that is none of `after`.

        A request that is answered from it meanwhile makes its retrievers anew.
        """
        kept = {id(recommender) for recommender in after}
        gone = {id(recommender): recommender for recommender in before}
        for recommender in (one for place, one in gone.items() if place not in kept):
            vars(recommender).pop("retrieving", None)
            with self._lock:
                self._since.append((time.monotonic(), weakref.ref(recommender)))

    def collect(self, longest_seconds: float = LONGEST_SECONDS) -> int:
        """Run the collector where a model should have gone by itself; how many it freed."""
        now = time.monotonic()
        with self._lock:
            found = [(since, ref) for since, ref in self._since if ref() is not None]
            due = [ref for since, ref in found if now - since >= longest_seconds]
            self._since = [(since, ref) for since, ref in found if now - since < longest_seconds]
        if not due:
            return 0
        frozen = gc.get_freeze_count() > 0
        gc.unfreeze()
        gc.collect()
        if frozen:
            gc.freeze()
        left = sum(ref() is not None for ref in due)
        if left:
            log.warning("models: %d that were replaced are still in memory", left)
        return len(due) - left
