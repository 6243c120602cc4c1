"""`sidrec bench`: run the benchmark scripts of the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from sidrec.cli import options, output
from sidrec.errors import ServiceError


def command(
    name: Annotated[str, typer.Argument(help="Run only scripts whose path holds this text.")] = "",
    folder: Annotated[Path, typer.Option("--folder", help="Where the scripts lie.")] = Path(
        "benchmarks"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List them; run nothing.")] = False,
    json: options.Json = False,
) -> None:
    """Run speed and quality benchmarks; each writes one dated JSON file."""
    found = [
        path
        for path in sorted(folder.rglob("*.py"))
        if path.name != "tables.py" and "__main__" in path.read_text(encoding="utf-8")
    ]
    scripts = [path for path in found if name in str(path)]
    if json:
        output.as_json([str(path) for path in scripts])
    if not scripts:
        if not json:
            output.line(
                f"no benchmark {name!r} under {folder}; they come with "
                "the source checkout: run this there, or name the place with --folder"
            )
        return
    for path in scripts:
        output.note(f"benchmark: {path}")
        if not dry_run and subprocess.run([sys.executable, str(path)], check=False).returncode:
            raise ServiceError(f"benchmark {path} failed; run it alone to see why")
