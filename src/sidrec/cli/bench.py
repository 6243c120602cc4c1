"""`sidrec bench`: run the benchmark scripts of the checkout, or a study of your own data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
import typer.core

from sidrec.cli import bench_scaling, options, output
from sidrec.errors import ServiceError

SCRIPTS = "scripts"


class Bench(typer.core.TyperGroup):
    """`bench`, `bench NAME` and `bench --dry-run` mean `bench scripts …`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Put the word in where no command of the group is named."""
        named = args and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if named else [SCRIPTS, *args])


def scripts(
    name: Annotated[str, typer.Argument(help="Run only scripts whose path holds this text.")] = "",
    folder: Annotated[Path, typer.Option("--folder", help="Where the scripts lie.")] = Path(
        "benchmarks"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List them; run nothing.")] = False,
    json: options.Json = False,
) -> None:
    """Run speed and quality benchmarks of a checkout; each writes one dated JSON file.

    The default: `sidrec bench` and `sidrec bench NAME` mean this.
    """
    found = [
        path
        for path in sorted(folder.rglob("*.py"))
        if path.name != "tables.py" and "__main__" in path.read_text(encoding="utf-8")
    ]
    chosen = [path for path in found if name in str(path)]
    if json:
        output.as_json([str(path) for path in chosen])
    if not chosen:
        if not json:
            output.line(
                f"no benchmark {name!r} under {folder}; they come with "
                "the source checkout: run this there, or name the place with --folder"
            )
        return
    for path in chosen:
        output.note(f"benchmark: {path}")
        if not dry_run and subprocess.run([sys.executable, str(path)], check=False).returncode:
            raise ServiceError(f"benchmark {path} failed; run it alone to see why")


app = typer.Typer(help="Benchmark scripts of a checkout, and studies of your own data.", cls=Bench)
app.command(SCRIPTS)(scripts)
app.command("scaling")(bench_scaling.command)
