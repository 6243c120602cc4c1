"""Search data: queries, graded judgements, sessions of clicks; readers, splits, made queries."""

from sidrec.data.search.layouts import read_esci, read_search, read_sessions
from sidrec.data.search.made import made_search
from sidrec.data.search.split import query_folds
from sidrec.data.search.values import (
    Judgements,
    Queries,
    SearchData,
    Sessions,
    clean_query,
    required_query,
)

__all__ = [
    "Judgements",
    "Queries",
    "SearchData",
    "Sessions",
    "clean_query",
    "made_search",
    "query_folds",
    "read_esci",
    "read_search",
    "read_sessions",
    "required_query",
]
