"""`sidrec bench scaling`: train a ladder of sizes and data shares, fit the scaling laws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from sidrec.cli import options, output
from sidrec.errors import ConfigError, MissingExtra

T = TypeVar("T")


def command(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe: its data, IDs and systems are used.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Without a recipe: a named public set, shop, or chain (whose best loss is known).",
        ),
    ] = None,
    systems: Annotated[
        str, typer.Option("--systems", help="Of causal and sasrec, e.g. causal,sasrec.")
    ] = "causal",
    sizes: Annotated[
        str | None,
        typer.Option("--sizes", help="<width>x<layers>, ascending.  [default: 16x1,…,128x2]"),
    ] = None,
    shares: Annotated[
        str | None,
        typer.Option(
            "--shares",
            help="Shares of the users, at the middle size.  [default: 1/16, 1/8, 1/4, 1/2]",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Of the smaller half of sizes.")] = "0,1,2",
    large_seeds: Annotated[
        int, typer.Option("--large-seeds", help="How many of them the larger half gets.")
    ] = 1,
    share_seeds: Annotated[
        int, typer.Option("--share-seeds", help="How many of them each share gets.")
    ] = 1,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="At most.  [default: as the recipe says]")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option("--max-seconds", help="Most seconds of training a point.")
    ] = None,
    patience: Annotated[
        int, typer.Option("--patience", help="Epochs without a lower validation loss; 0: all.")
    ] = 2,
    learning_rates: Annotated[
        str | None,
        typer.Option("--learning-rates", help="One a size.  [default: as width^-1/2]"),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option("--tune", help="Multiples of the rate to try at the two smallest sizes."),
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", min=20, help="Of the points, for intervals.")
    ] = 500,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Points and report.  [default: runs/scaling-<name>]"),
    ] = None,
    device: options.Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the points; train nothing.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Train a ladder of sizes and data shares, fit loss = E + A x^-alpha, test the fit.

    Finished points are kept under --out; the same command again goes on. Choices and losses are of
    the validation part.
    """
    from dataclasses import replace

    from sidrec import ladder

    changes = {
        "sizes": None if sizes is None else listed(sizes, ladder.Rung.parse, "--sizes"),
        "shares": None if shares is None else listed(shares, fraction, "--shares"),
        "learning_rates": None
        if learning_rates is None
        else listed(learning_rates, float, "--learning-rates"),
        "tune": None if tune is None else listed(tune, float, "--tune"),
    }
    settings = ladder.LadderConfig(
        systems=listed(systems, str, "--systems"),
        seeds=listed(seeds, int, "--seeds"),
        large_seeds=large_seeds,
        share_seeds=share_seeds,
        epochs=epochs,
        max_seconds=max_seconds,
        patience=patience,
        **{name: value for name, value in changes.items() if value is not None},
    )
    run, dataset, true_floor = source(recipe, data)
    if device is not None:
        run = replace(run, device=device)
    folder = out or Path("runs") / f"scaling-{run.name}"
    if dry_run:
        places = [(s, str(r), share, seed) for s in settings.systems
                  for r, share, seed in settings.places()]  # fmt: skip
        if json:
            output.as_json(places)
        else:
            output.table(
                "points (nothing was trained)", ("system", "size", "share", "seed"), places
            )
        return
    with output.progress() as on_event:
        report = ladder.study(
            run,
            settings,
            folder=folder,
            data=dataset,
            resamples=resamples,
            true_floor=true_floor,
            on_event=on_event,
        )
    show(report, folder, json=json)


def show(report: Any, folder: Path, *, json: bool) -> None:
    """The table of points, the laws in words, and where the files lie."""
    from sidrec.evaluation.scaling_plot import draw
    from sidrec.evaluation.scaling_report import rows_of

    try:
        drawn = ", ".join(path.name for path in draw(report, folder))
    except MissingExtra as missing:
        output.note(str(missing))
        drawn = ""
    if json:
        output.as_json(report.to_dict())
        return
    header, rows = rows_of([p for system in report.systems.values() for p in system.points])
    output.table(f"scaling on {report.dataset}", header, rows)
    output.line(f"loss: {report.loss}")
    for name, system in report.systems.items():
        for part, sentences in system.words.items():
            output.line()
            output.line(f"{name}, {part}:")
            for sentence in sentences:
                output.line(f"  - {sentence}")
    output.line()
    output.line(f"wrote {folder / 'scaling.json'}{f' and {drawn}' if drawn else ''}")


def source(recipe: Path | None, data: str | None) -> tuple[Any, Any, Any]:
    """(settings, dataset, true floor or None) from a recipe or a name."""
    from sidrec import recipe as recipes

    if (recipe is None) == (data is None):
        raise ConfigError(
            "bench scaling needs either a recipe or --data with the name of a set; e.g. "
            "sidrec bench scaling recipe.toml, or sidrec bench scaling --data amazon_beauty"
        )
    if recipe is not None:
        return recipes.load_config(recipe), None, None
    if data == "chain":
        from sidrec.data.shop import chain

        world = chain()
        return recipes.default_config(world.dataset), world.dataset, world.nats
    dataset = recipes.read_data(recipes.DataConfig(name=data))
    return recipes.default_config(dataset), dataset, None


def listed(text: str, of: Callable[[str], T], option: str) -> tuple[T, ...]:
    """Values of a list with commas. ConfigError where one cannot be read."""
    try:
        return tuple(of(word.strip()) for word in text.split(",") if word.strip())
    except ConfigError:
        raise
    except ValueError as cause:
        raise ConfigError(f"{option} must be a list with commas, e.g. 1,2, got {text!r}") from cause


def fraction(word: str) -> float:
    """A number, which may be written as 1/8."""
    from fractions import Fraction

    try:
        return float(Fraction(word))
    except ZeroDivisionError as cause:
        raise ValueError(word) from cause
