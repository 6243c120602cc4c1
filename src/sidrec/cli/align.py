"""`sidrec align`: from a bundle to one whose generator follows preferences or rewards."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sidrec.cli import options, output


def command(
    bundle: options.Bundle,
    recipe: Annotated[
        Path | None, typer.Argument(help="Settings: TOML. Without it, the defaults.")
    ] = None,
    run_dir: options.RunDir = None,
    objective: Annotated[
        str | None, typer.Option("--objective", help="Another objective, with its defaults.")
    ] = None,
    seed: options.Seed = None,
    device: options.Device = None,
    resume: options.Resume = True,
    dry_run: options.DryRun = False,
    init: Annotated[
        bool, typer.Option("--init", help="Write all settings to the recipe; train nothing.")
    ] = False,
    evaluate: Annotated[
        bool, typer.Option(help="Measure the generator on the test part, before and after.")
    ] = True,
    json: options.Json = False,
) -> None:
    """Align the generator of a bundle under a guard, and write a new bundle that names its parent.

    Validation is compared with the starting weights, user by user; a fall beyond its interval ends
    the run, and the best weights are kept, those of the start among them.
    """
    from sidrec import align_config, aligning, artifact, config
    from sidrec.errors import ConfigError
    from sidrec.recommender import load

    settings = align_config.AlignConfig()
    if recipe is not None and not init:
        settings = align_config.load_align_config(recipe)
    if objective is not None:
        settings = replace(settings, objective=config.method(align_config.OBJECTIVE, objective))
    changes: dict[str, Any] = {"seed": seed, "device": device}
    settings = replace(settings, **{k: v for k, v in changes.items() if v is not None})
    if init:
        if recipe is None or recipe.exists():
            raise ConfigError("--init needs the name of a recipe that does not exist yet")
        artifact.write_text(recipe, config.to_toml(settings))
        output.line(f"wrote {recipe}")
        output.line(f"next: sidrec align {bundle} {recipe}")
        return
    run_dir = run_dir or Path("runs") / settings.name
    if not resume:
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    recommender = load(options.bundle_path(bundle), device=settings.device)
    if dry_run:
        with output.progress() as on_event:
            plan = aligning.Alignment(recommender, settings, None, None, on_event).plan()
        if json:
            output.as_json(plan)
        else:
            title = "plan of the alignment (nothing was trained or written)"
            output.table(title, ("", ""), list(plan.items()))
        return
    with output.progress() as on_event:
        result = aligning.run_alignment(
            recommender, settings, run_dir=run_dir, on_event=on_event, evaluate=evaluate
        )
    if json:
        output.as_json(result.summary())
        return
    show(result)


def show(result: Any) -> None:
    """What validation saw, what the guard said, the test part before and after."""
    from sidrec import aligning
    from sidrec.evaluation import table
    from sidrec.pipeline import metrics_of

    rows = [
        (f"{entry['epoch']:.2f}", f"{entry['ndcg@10']:.4f}",
         f"{entry['difference']:+.4f} [{entry['low']:+.4f}, {entry['high']:+.4f}]",
         f"{entry['invalid_share']:.1%}")
        for entry in result.curve
    ]  # fmt: skip
    header = ("epoch", "ndcg@10", "against the start", "invalid, free beam")
    output.table("validation", header, rows)
    if result.stopped_by_guard:
        output.line(result.stopped_by_guard)
    for note in result.counts["notes"]:
        output.line(note)
    means = {name: value for name, value in result.training_means.items() if value}
    if means:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in means.items())
        output.line(f"means over training: {shown}")
    judge = {name: count for name, count in result.counts.get("judge", {}).items() if count}
    if judge:
        output.line("judge: " + ", ".join(f"{name} {count:g}" for name, count in judge.items()))
    if result.reports:
        metrics = metrics_of(result.reports)
        shown = table(list(result.reports.values()), metrics)
        output.table("generator on the test part", shown.header, shown.rows)
        for metric in metrics:
            found = aligning.difference_on_test(result, metric)
            output.line(f"{metric}: {found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]")
        output.line(shown.protocol_line)
    output.line(f"bundle: {result.bundle} ({output.duration(result.seconds)} in all)")
