from __future__ import annotations

import pytest

from sidrec.types import HistoryBatch


@pytest.fixture(scope="session")
def systems(tiny):
    """A small fitted recommender: what retrievers are built on."""
    return tiny.run.recommender


@pytest.fixture(scope="session")
def valid(tiny):
    return tiny.run.split.valid


@pytest.fixture(scope="session")
def questions(valid):
    """The first validation histories as a batch."""
    import numpy as np

    rows = np.arange(min(24, len(valid)))
    return HistoryBatch.from_histories(valid.histories, rows, max_length=50)
