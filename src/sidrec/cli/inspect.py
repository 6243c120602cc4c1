"""`sidrec inspect`: health of a bundle's semantic IDs and their tree, with names."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sidrec.cli import options, output
from sidrec.errors import ConfigError


def command(
    bundle: options.Bundle,
    prefix: Annotated[
        str, typer.Option("--prefix", help="Show what lies under this prefix, e.g. 12 or 12-200.")
    ] = "",
    limit: Annotated[int, typer.Option("--limit", help="Most rows of the tree to print.")] = 20,
    json: options.Json = False,
) -> None:
    """Print the health of the IDs, colliding items, dead codes, and the tree with node names."""
    from sidrec.recommender import load

    recommender = load(options.bundle_path(bundle), device="cpu")
    codes = _codes(prefix)
    report = recommender.inspect(codes, limit=limit)
    if json:
        output.as_json(report)
        return
    facts = [(name, value) for name, value in report["bundle"].items()]
    output.table("bundle", ("", ""), facts)
    output.line()
    columns = ("level", "codes", "used", "dead", "perplexity", "error left")
    rows = [[level[name] for name in columns] for level in report["levels"]]
    output.table("levels", columns, rows)
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


def _groups(report: dict[str, Any]) -> list[list[str]]:
    return [[", ".join(group)] for group in report["collisions"]]


def _codes(prefix: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in prefix.split("-")) if prefix else ()
    except ValueError as error:
        raise ConfigError(f"--prefix must look like 12 or 12-200, got {prefix!r}") from error
