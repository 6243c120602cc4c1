"""`sidrec evaluate`: measure a bundle again, under the rules you choose."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from sidrec.cli import options, output


def command(
    bundle: options.Bundle,
    part: Annotated[str, typer.Option("--part", help="test or valid.")] = "test",
    exclude_seen: Annotated[
        bool | None,
        typer.Option("--exclude-seen/--include-seen", help="Default: as the recipe says."),
    ] = None,
    system: Annotated[
        list[str] | None, typer.Option("--system", help="One system; may be repeated.")
    ] = None,
    stratum: Annotated[
        str | None, typer.Option("--stratum", help="Also a table of one group, e.g. tail.")
    ] = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Rank every item for every question of the bundle's data; print the table of systems."""
    from sidrec import config, pipeline
    from sidrec.data import split
    from sidrec.evaluation import table
    from sidrec.recipe import RunConfig, read_data
    from sidrec.recommender import load

    recommender = load(options.bundle_path(bundle), device=device or "auto")
    settings = config.parse(RunConfig, recommender.settings)
    if exclude_seen is not None:
        rules = replace(settings.evaluation, exclude_seen=exclude_seen)
        settings = replace(settings, evaluation=rules)
    dataset = read_data(settings.data)
    pipeline.require_same_data(recommender, dataset)
    with output.progress() as on_event:
        reports = pipeline.evaluate_systems(
            recommender,
            dataset,
            split(dataset, settings.split.rule),
            settings=settings,
            part=part,
            systems=system,
            on_event=on_event,
        )
    if json:
        output.as_json(pipeline.summary_of(reports))
        return
    metrics = pipeline.metrics_of(reports)
    for group in [None, stratum] if stratum else [None]:
        shown = table(list(reports.values()), metrics, stratum=group)
        output.table(group or "systems", shown.header, shown.rows)
        output.line(shown.protocol_line)
