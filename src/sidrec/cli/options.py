"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of every stage.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:<n>.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print rows, parameters, memory and time; train nothing.")
]
Resume = Annotated[
    bool,
    typer.Option("--resume/--fresh", help="Go on from an unfinished run, or forget it first."),
]
RunDir = Annotated[
    Path | None, typer.Option("--run-dir", help="Where the run lives.  [default: runs/<name>]")
]
Bundle = Annotated[Path, typer.Argument(help="A bundle, or the run directory that holds one.")]
Recipe = Annotated[Path, typer.Argument(help="A recipe: TOML, as `sidrec init` writes it.")]


def bundle_path(path: Path) -> Path:
    """The bundle itself, where a run directory was given."""
    inner = path / "bundle"
    return inner if (inner / "manifest.json").is_file() else path
