"""`sidrec inspect`: health of a bundle's semantic IDs and their tree, with names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sidrec.cli import options, output
from sidrec.errors import ConfigError

if TYPE_CHECKING:
    from sidrec.recommender import Recommender
    from sidrec.types import Histories


def command(
    bundle: options.Bundle,
    prefix: Annotated[
        str, typer.Option("--prefix", help="Show what lies under this prefix, e.g. 12 or 12-200.")
    ] = "",
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Most rows of the tree to print.")
    ] = 20,
    data: Annotated[
        bool,
        typer.Option(
            "--data", help="Also read the bundle's data, for figures that need training events."
        ),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write all figures and the whole tree as one page here."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Print the health of the IDs, colliding items, dead codes, and the tree with node names."""
    from sidrec.recommender import load

    if html is not None and html.is_dir():
        raise ConfigError(f"--html must name a file, got the folder {html}; add a file name")
    recommender = load(options.bundle_path(bundle), device="cpu")
    codes = _codes(prefix)
    train = _train(recommender) if data else None
    report = recommender.inspect(codes, limit=limit, train=train)
    if html is not None:
        recommender.inspect_page(html, train=train)
        output.note(f"wrote {html}")
    if json:
        output.as_json(report)
        return
    facts = [(name, value) for name, value in report["bundle"].items()]
    output.table("bundle", ("", ""), facts)
    output.line()
    _rows("levels: use of the codes", report["levels"])
    _rows("depths: what prefixes of so many codes say", report["depths"])
    if train is None:
        output.line("co-purchase: not measured, it needs training events; add --data")
    output.line()
    if report["collisions"]:
        output.table("COLLISIONS: items that share one ID", ("items",), _groups(report))
    else:
        output.line("collisions: none; every item has its own ID")
    output.line()
    title = f"under {prefix}" if codes else "the tree, largest branches first"
    columns = ("prefix", "items", "name", "example")
    rows = [[node[name] for name in columns] for node in report["tree"]]
    output.table(title, columns, rows)
    if codes:
        return
    output.line(f"look deeper: sidrec inspect {bundle} --prefix {report['tree'][0]['prefix']}")


def _train(recommender: Recommender) -> Histories:
    """Training events of the data that the bundle was fitted on."""
    from sidrec import config, pipeline
    from sidrec.data import split
    from sidrec.recipe import RunConfig, read_data

    settings = config.parse(RunConfig, recommender.settings)
    dataset = read_data(settings.data)
    pipeline.require_same_data(recommender, dataset)
    return split(dataset, settings.split.rule).train


def _rows(title: str, rows: list[dict[str, Any]]) -> None:
    cells = [["–" if value is None else value for value in row.values()] for row in rows]
    output.table(title, list(rows[0]), cells)
    output.line()


def _groups(report: dict[str, Any]) -> list[list[str]]:
    return [[", ".join(group)] for group in report["collisions"]]


def _codes(prefix: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in prefix.split("-")) if prefix else ()
    except ValueError as error:
        raise ConfigError(f"--prefix must look like 12 or 12-200, got {prefix!r}") from error
