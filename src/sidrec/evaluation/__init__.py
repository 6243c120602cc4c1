"""Evaluation: candidates and truth to a report whose every number knows where it came from.

>>> from sidrec.evaluation import EvaluationContext, evaluate, compare, table
"""

from sidrec.evaluation.comparison import (
    Overlap,
    Table,
    average_seeds,
    compare,
    compare_all,
    overlap,
    table,
)
from sidrec.evaluation.protocol import Rankings, rank_all
from sidrec.evaluation.report import EvaluationContext, Protocol, Report, evaluate, report_of
from sidrec.evaluation.significance import Figure, PairedDifference

__all__ = [
    "EvaluationContext",
    "Figure",
    "Overlap",
    "PairedDifference",
    "Protocol",
    "Rankings",
    "Report",
    "Table",
    "average_seeds",
    "compare",
    "compare_all",
    "evaluate",
    "overlap",
    "rank_all",
    "report_of",
    "table",
]
