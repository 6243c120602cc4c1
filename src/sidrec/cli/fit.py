"""`sidrec fit`: from a recipe to a bundle and its measured table."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sidrec.cli import options, output


def command(
    recipe: options.Recipe,
    run_dir: options.RunDir = None,
    seed: options.Seed = None,
    device: options.Device = None,
    resume: options.Resume = True,
    dry_run: options.DryRun = False,
    evaluate: Annotated[
        bool, typer.Option(help="Measure every system on the test part at the end.")
    ] = True,
    json: options.Json = False,
) -> None:
    """Embed, tokenize, train, choose on validation, measure once on test, write the bundle."""
    from sidrec import pipeline, plan
    from sidrec import recipe as recipes

    settings = recipes.load_config(recipe)
    changes: dict[str, Any] = {"seed": seed, "device": device}
    settings = replace(settings, **{k: v for k, v in changes.items() if v is not None})
    run_dir = run_dir or Path("runs") / settings.name
    if dry_run:
        figures = plan.plan(settings)
        if json:
            output.as_json(figures)
        else:
            rows = [(key, value) for key, value in figures.items()]
            output.table(f"plan of {recipe} (nothing was trained or written)", ("", ""), rows)
        return
    if not resume:
        shutil.rmtree(run_dir / "stages", ignore_errors=True)
        shutil.rmtree(run_dir / "training", ignore_errors=True)
    with output.progress() as on_event:
        result = pipeline.run(settings, run_dir=run_dir, on_event=on_event, evaluate=evaluate)
    show(result, json=json)


def show(result: Any, *, json: bool) -> None:
    """The table of systems, where the bundle lies, and what to type next."""
    if json:
        output.as_json(result.summary())
        return
    if result.reports:
        table = result.table()
        output.table("systems on the test part", table.header, table.rows)
        output.line(table.protocol_line)
        output.line()
    output.line(f"bundle: {result.bundle} ({output.duration(result.seconds)} in all)")
    output.line("next:")
    history = ",".join(result.example_history())
    output.line(f"  sidrec recommend {result.bundle} --history {history}")
    output.line(f"  sidrec inspect {result.bundle}")
    output.line(f"  sidrec evaluate {result.bundle} --exclude-seen")
