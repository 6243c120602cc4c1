"""Write search reports as a file: one row a system and query, the worst queries of each first.

Shapes:   none.
"""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sidrec import artifact
from sidrec.errors import ConfigError
from sidrec.evaluation.search import SearchReport

STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2rem}table{border-collapse:collapse;margin:1rem 0}"
    "td,th{padding:.2rem .7rem;border-bottom:1px solid #ccc;text-align:right}"
    "td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}"
)


def write_reports(reports: Sequence[SearchReport], path: str | Path) -> None:
    """The reports as CSV, JSON or HTML, by the ending of the name. ConfigError for another."""
    path = Path(path)
    writers = {".csv": as_csv, ".json": as_json, ".html": as_html}
    if path.suffix.lower() not in writers:
        raise ConfigError(f"a search report ends in {', '.join(writers)}, got {path.name!r}")
    artifact.write_text(path, writers[path.suffix.lower()](reports))


def as_csv(reports: Sequence[SearchReport]) -> str:
    """Columns system, query_id, query, and the metrics."""
    page = io.StringIO()
    writer = csv.writer(page, lineterminator="\n")
    metrics = list(reports[0].per_query)
    writer.writerow(["system", "query_id", "query", *metrics])
    for report in reports:
        for row in report.worst(metrics[0]):
            cells = ["" if row[metric] is None else row[metric] for metric in metrics]
            writer.writerow([report.name, _plain(row["query_id"]), _plain(row["query"]), *cells])
    return page.getvalue()


def as_json(reports: Sequence[SearchReport]) -> str:
    """A list of summaries."""
    return json.dumps([report.summary() for report in reports], ensure_ascii=False, indent=1)


def as_html(reports: Sequence[SearchReport]) -> str:
    """One page without a script: figures, then the queries of each system."""
    parts = [
        f"<!doctype html><meta charset=utf-8><title>Search report</title><style>{STYLE}</style>"
    ]
    for report in reports:
        parts.append(f"<h1>{html.escape(report.name)} on {html.escape(report.data)}</h1>")
        figures = [
            [name, f"{f.value:.4f}", _interval(f), f.n] for name, f in report.figures.items()
        ]
        parts.append(_table(["metric", "value", "95 % interval", "queries"], figures))
        metrics = list(report.per_query)
        rows = [
            [row["query"], row["query_id"], *("" if row[m] is None else row[m] for m in metrics)]
            for row in report.worst(metrics[0])
        ]
        parts.append(_table(["query", "id", *metrics], rows))
    return "\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(tag: str, cells: Sequence[Any]) -> str:
        found = "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells)
        return f"<tr>{found}</tr>"

    return "\n".join(
        ["<table>", line("th", header), *(line("td", row) for row in rows), "</table>"]
    )


def _interval(figure: Any) -> str:
    return "" if figure.low is None else f"{figure.low:.4f} to {figure.high:.4f}"


def _plain(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
