"""`sidrec search`: items for a query, or the figures of a judged set of queries."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from sidrec.cli import options, output
from sidrec.errors import ConfigError

CUTS = (10, 100)
"""Where recall is cut; nDCG at the first."""
FRACTIONS = ("recall", "low", "high", "scored")


def command(
    bundle: options.Bundle,
    query: Annotated[str | None, typer.Argument(help="Words to search for.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="Items to list.")] = 10,
    history: Annotated[
        str, typer.Option("--history", help="Item ids, oldest first, separated by commas.")
    ] = "",
    system: Annotated[str, typer.Option("--system", help="hybrid, or a searcher.")] = "",
    where: Annotated[
        str | None,
        typer.Option(
            "--where", help='Filter, e.g. \'{"field": "price", "op": "lt", "value": 50}\'.'
        ),
    ] = None,
    queries: Annotated[
        Path | None, typer.Option("--queries", help="A file of queries to measure on.")
    ] = None,
    judgements: Annotated[
        Path | None, typer.Option("--judgements", help="Their graded items.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print what the query was understood to ask for.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write every judged query, worst first: .csv, .json, .html."),
    ] = None,
    probes: Annotated[
        str,
        typer.Option(
            "--probes",
            help="Cells looked into, e.g. 1,2,4,8,16: recall of the towers' cells, by view.",
        ),
    ] = "",
    worst: Annotated[int, typer.Option("--worst", help="Queries to print, worst first.")] = 10,
    on_error: Annotated[
        str, typer.Option("--on-error", help="raise, or skip and count faulty rows.")
    ] = "raise",
    json: options.Json = False,
) -> None:
    """Search a bundle that `sidrec search-fit` has given a search part.

    With --queries and --judgements: nDCG@10, recall and MRR with intervals over queries, and the
    queries it answers worst.
    """
    from sidrec.recommender import load

    measured = (queries is not None, judgements is not None)
    if (query is None) != all(measured) or any(measured) != all(measured):
        raise ConfigError("give either a query, or both --queries and --judgements")
    if query is not None and report is not None:
        raise ConfigError("--report needs --queries and --judgements")
    if query is not None and probes:
        raise ConfigError("--probes needs --queries and --judgements")
    if explain and query is None:
        raise ConfigError("--explain needs a query")
    recommender = load(options.bundle_path(bundle), device="cpu")
    if queries is not None and judgements is not None:
        asked = read_judged(recommender, queries, judgements, on_error)
        numbers = numbers_of(probes)
        measure(recommender, asked, system or None, worst, report, numbers, json)
        return
    understood = recommender.understand(query or "") if explain else None
    frame = recommender.search(
        query or "",
        [part.strip() for part in history.split(",") if part.strip()] or None,
        k=k,
        system=system or None,
        where=None if where is None else tree_of(where),
    )
    rows = frame.to_dicts()
    if json:
        output.as_json(rows if understood is None else {"understood": understood.to_dict(),
                                                        "items": rows})  # fmt: skip
        return
    if understood is not None:
        output.table("understood", ["part", "found"], said(understood))
    if not rows:
        output.line("nothing found: no word of the query is known, or the filter leaves no item")
        return
    columns = ("rank", "item_id", "title", "score", "source")
    output.table(
        rows[0]["query"], columns, [[short(row[name]) for name in columns] for row in rows]
    )


def read_judged(recommender: Any, queries: Path, judgements: Path, on_error: str) -> Any:
    """The two files over the bundle's catalogue."""
    from sidrec.data.search.layouts import read_tables

    if on_error not in ("raise", "skip"):
        raise ConfigError(f"--on-error must be raise or skip, got {on_error!r}")
    return read_tables(queries, judgements, recommender.items, on_error=on_error)


def measure(
    recommender: Any,
    asked: Any,
    system: str | None,
    worst: int,
    report: Path | None,
    probes: tuple[int, ...],
    json: bool,
) -> None:
    """Every system of the search part (or one) on judged queries."""
    from sidrec import searching
    from sidrec.evaluation.search import search_report
    from sidrec.evaluation.search_pages import write_reports

    part = searching.part_of(recommender)
    names = part.systems if system is None else [system]
    probed = probed_rows(part, names, asked, probes) if probes else []
    reports = []
    for name in names:
        found = searching.answers(part, asked.queries.texts, max(CUTS), system=name)
        reports.append(search_report(name, found, asked, ndcg_ks=CUTS[:1], recall_ks=CUTS))
    if report is not None:
        write_reports(reports, report)
        output.note(f"wrote {report.name}: every query of {len(reports)} systems, worst first")
    if json:
        summaries = [report.summary() for report in reports]
        found = {"notes": list(asked.notes), "systems": summaries}
        output.as_json(found | ({"probes": probed} if probes else {}))
        return
    for text in asked.notes:
        output.note(text)
    metrics = list(reports[0].figures)
    cells = [[report.name, *(cell(report.figures.get(m)) for m in metrics)] for report in reports]
    output.table(f"{asked.name}: {len(asked.queries)} queries", ["system", *metrics], cells)
    if probed:
        columns = list(probed[0])
        cells = [[f"{v:.4f}" if c in FRACTIONS else v for c, v in row.items()] for row in probed]
        output.table(f"recall@{max(CUTS)} of the cells of each view", columns, cells)
    first = reports[0]
    columns = ["query", *first.per_query]
    rows = [[short(row["query"]), *(blank(row[m]) for m in first.per_query)]
            for row in first.worst(metrics[0], worst)]  # fmt: skip
    output.table(f"{first.name}: worst queries first", columns, rows)


def probed_rows(part: Any, names: list[str], asked: Any, probes: tuple[int, ...]) -> list[Any]:
    """Rows of system, view, probes, recall with its interval, and the share of items scored.

    ConfigError where none of the systems has towers.
    """
    from sidrec.retrieval.search.agreement import curves_of_views
    from sidrec.retrieval.search.dual_tower import DualTower

    towers = {name: value for name in names if isinstance(value := part.value(name), DualTower)}
    if not towers:
        raise ConfigError(f"--probes needs a dual_tower, which has two views; have {names}")
    pairs_P2 = asked.judgements.pairs(asked.judgements.top_grade)
    rows: list[dict[str, Any]] = []
    for name, tower in towers.items():
        asked_QD = tower.encode(asked.queries.texts)
        found = curves_of_views(tower.index, asked_QD, pairs_P2, probes, max(CUTS))
        rows += [{"system": name, **row, "probes": int(row["probes"])} for row in found]
    return rows


def numbers_of(text: str) -> tuple[int, ...]:
    """The numbers of --probes. ConfigError where one is no number above 0."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isascii() and part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"--probes must be numbers above 0, e.g. 1,2,4,8,16; got {text!r}")
    return tuple(int(part) for part in parts)


def said(understood: Any) -> list[list[str]]:
    """What was understood, a row a part; parts that found nothing are left out."""
    spans = [
        f"{span.text}: {span.label}{f' ({span.values[0]})' if span.values else ''}"
        for span in understood.spans
    ]
    categories = [f"{' > '.join(path)} ({p:.0%})" for path, p in understood.categories[:3]]
    rows = {
        "corrected": [f"{old} -> {new}" for old, new in understood.corrections],
        "phrases": [segment for segment in understood.segments if " " in segment],
        "spans": spans,
        "categories": categories,
        "intent": [f"{name} {share:.0%}" for name, share in understood.intent.items() if share],
        "added words": list(understood.expansions),
        "filters": [
            f"{tree['field']} {tree['op']} {tree['value']}" for _, tree in understood.filters
        ],
    }
    return [[part, "; ".join(found)] for part, found in rows.items() if found]


def cell(figure: Any) -> str:
    """A figure with its interval."""
    if figure is None:
        return ""
    interval = "" if figure.low is None else f" [{figure.low:.4f}, {figure.high:.4f}]"
    return f"{figure.value:.4f}{interval}"


def blank(value: float | None) -> Any:
    """Nothing where a query has no value."""
    return "" if value is None else value


def short(value: Any) -> Any:
    """Text cut to fit a table."""
    return f"{value[:57]}…" if isinstance(value, str) and len(value) > 58 else value


def tree_of(text: str) -> Any:
    """The filter of --where. ConfigError where it is no JSON."""
    try:
        return jsonlib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--where is not JSON: {error}") from error
