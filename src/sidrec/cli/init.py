"""`sidrec init`: look at your files and write a recipe for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sidrec.cli import options, output
from sidrec.errors import ConfigError


def command(
    interactions: Annotated[Path, typer.Argument(help="Events: Parquet, CSV, JSON lines, ….")],
    items: Annotated[Path | None, typer.Argument(help="Items, with titles and attributes.")] = None,
    recipe: Annotated[
        Path, typer.Option("--recipe", "-o", help="Where to write the recipe.")
    ] = Path("recipe.toml"),
    columns: Annotated[
        str, typer.Option("--map", help="Names of your columns, e.g. user=uid,item=sku,time=ts.")
    ] = "",
    on_error: Annotated[
        str, typer.Option("--on-error", help="raise, or skip and count unusable rows.")
    ] = "raise",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing recipe.")] = False,
    seed: options.Seed = None,
    json: options.Json = False,
) -> None:
    """Read and check the data, then write a commented recipe that fits them."""
    from sidrec import artifact, config
    from sidrec import recipe as recipes

    if recipe.exists() and not force:
        raise ConfigError(f"{recipe} exists; use --force to replace it, or --recipe for another")
    values: dict[str, object] = {
        "interactions": str(interactions),
        "mapping": column_mapping(columns),
        "on_error": on_error,
    }
    if items is not None:
        values["items"] = str(items)
    data = config.parse(recipes.DataConfig, values, where="data")
    dataset = recipes.read_data(data)
    settings = replace(recipes.default_config(dataset), name=recipe.stem, data=data, seed=seed or 0)
    artifact.write_text(recipe, config.to_toml(settings))
    if json:
        output.as_json({"recipe": str(recipe), "data": recipes.describe(dataset)})
        return
    output.line(recipes.describe(dataset))
    for note in dataset.notes:
        output.line(f"  {note}")
    output.line(f"item vectors: {settings.embedding.name}; tokenizer: {settings.tokenizer.name}")
    output.line(f"wrote {recipe}")
    output.line(f"next: sidrec fit {recipe}")


def column_mapping(text: str) -> dict[str, str]:
    """`user=uid,item=sku` as a mapping from role to column."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not equals or not role.strip() or not name.strip() for role, equals, name in pairs):
        raise ConfigError(f"--map must look like user=uid,item=sku,time=ts, got {text!r}")
    return {role.strip(): name.strip() for role, _, name in pairs}
