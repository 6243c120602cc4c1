"""`sidrec migrate`: what a re-fit did to the semantic IDs, and the map from old to new."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sidrec.cli import options, output


def command(
    old: Annotated[Path, typer.Argument(help="The earlier bundle, or its run directory.")],
    new: Annotated[Path, typer.Argument(help="The re-fitted bundle, or its run directory.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for item_map.parquet and churn.json."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Print how many items keep each prefix of their ID, and write the map from old IDs to new."""
    from sidrec.bundle import load_ids
    from sidrec.tokenizers.lifecycle import migration

    found = migration(*(load_ids(options.bundle_path(path)) for path in (old, new)))
    report = found.report
    if out is not None:
        found.write(out)
    if json:
        output.as_json(report.to_dict())
        return
    facts = [
        ("old IDs", report.old_version[:12]),
        ("new IDs", report.new_version[:12]),
        ("items in both", report.num_common),
        ("items added", report.num_added),
        ("items removed", report.num_removed),
        ("items whose ID moved", report.num_moved),
        ("… after the relabelling", report.num_moved_relabelled),
    ]
    output.table("semantic IDs", ("", ""), facts)
    output.line()
    shares = enumerate(zip(report.kept, report.kept_relabelled, strict=True), 1)
    rows = [[depth, *pair] for depth, pair in shares]
    output.table("share of items that keep a prefix", ("codes", "as written", "relabelled"), rows)
    if out is not None:
        output.line()
        output.line(f"wrote item_map.parquet and churn.json to {out}")
