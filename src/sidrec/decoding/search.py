"""How a generator is searched: by a beam over the prefix index, or in its own way.

Beam search is right where codes are written one after another. A generator whose codes are not
(predicted at once, or by two decoders) offers

    search(batch, index, *, k, beam_width, rules=None, weights_N=None) -> Candidates

with the meaning of `beam_search`, and is asked that instead.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sidrec.contracts import Generator
from sidrec.decoding.beam import beam_search
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.decoding.rules import Rules
from sidrec.errors import ConfigError, DataError
from sidrec.types import Candidates, HistoryBatch


def search(
    generator: Generator,
    batch: HistoryBatch,
    index: PrefixIndex,
    *,
    k: int,
    beam_width: int,
    rules: Rules | None = None,
    weights_N: Tensor | None = None,
    **beam_options: Any,
) -> Candidates:
    """The k best items of each request; `beam_options` are those of `beam_search` alone.

    DataError where the index holds IDs of other codebook sizes than the generator's; ConfigError
    where a beam option is asked of a generator that searches in its own way.
    """
    writes = getattr(generator, "num_codes", index.num_codes)
    if tuple(writes) != tuple(index.num_codes):
        raise DataError(
            f"{type(generator).__name__} writes codes of {tuple(writes)} a level, the index holds "
            f"IDs of {tuple(index.num_codes)}; build the index from the IDs it was trained on"
        )
    own = getattr(generator, "search", None)
    if own is not None:
        if beam_options.get("length_penalty") or not beam_options.get("renormalise", True):
            raise ConfigError(
                f"{type(generator).__name__} searches in its own way, over the items that there "
                "are, and knows no length penalty; leave decoding.length_penalty and "
                "decoding.renormalise at 0 and true, or take another generator"
            )
        return own(batch, index, k=k, beam_width=beam_width, rules=rules, weights_N=weights_N)
    return beam_search(
        generator, batch, index, k=k, beam_width=beam_width, rules=rules, weights_N=weights_N,
        **beam_options,
    )  # fmt: skip
