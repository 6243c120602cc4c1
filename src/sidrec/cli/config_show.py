"""`sidrec config show`: every setting of a recipe, or of the default, with its meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sidrec.cli import options, output


def command(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe; without it, the default recipe.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Print a recipe with all defaults filled in and every key explained."""
    from sidrec import config
    from sidrec import recipe as recipes

    settings = recipes.RunConfig() if recipe is None else recipes.load_config(recipe)
    if json:
        output.as_json(config.to_dict(settings))
    else:
        output.line(config.to_toml(settings).rstrip())
