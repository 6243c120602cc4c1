"""`sidrec search-fit`: give a bundle a search part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sidrec.cli import options, output
from sidrec.errors import ConfigError


def command(
    bundle: options.Bundle,
    recipe: Annotated[
        Path | None, typer.Argument(help="Settings: TOML. Without it, the defaults.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--data", help="Judged queries: a folder in the layout of ESCI, WANDS, BEIR."),
    ] = None,
    sessions: Annotated[
        Path | None,
        typer.Option(
            "--sessions",
            help="Shown lists instead: a file with session_id, query, item_id, clicked, position. "
            "Clicks are answers, items passed by are none.",
        ),
    ] = None,
    write_to: Annotated[
        Path | None, typer.Option("--output", help="The new bundle.  [default: the same place]")
    ] = None,
    on_error: Annotated[
        str, typer.Option("--on-error", help="raise, or skip and count faulty rows.")
    ] = "raise",
    init: Annotated[
        bool, typer.Option("--init", help="Write all settings to the recipe; fit nothing.")
    ] = False,
) -> None:
    """Fit searchers over a bundle's catalogue, choose their fusion, save the bundle with them.

    The recommender is not touched: queries are other data than histories, and come later or change
    more often. Without --data the searchers learn from queries made of item texts.
    """
    from sidrec import artifact, config
    from sidrec.data.search import SearchData, read_search, read_sessions
    from sidrec.recommender import load
    from sidrec.search_part import SearchConfig, fit_search, load_search_config

    if init:
        if recipe is None or recipe.exists():
            raise ConfigError("--init needs the name of a recipe that does not exist yet")
        artifact.write_text(recipe, config.to_toml(SearchConfig()))
        output.line(f"wrote {recipe}")
        output.line(f"next: sidrec search-fit {bundle} {recipe}")
        return
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"--on-error must be raise or skip, got {on_error!r}")
    if folder is not None and sessions is not None:
        raise ConfigError("--data and --sessions both bring queries; give one of them")
    settings = SearchConfig() if recipe is None else load_search_config(recipe)
    place = options.bundle_path(bundle)
    recommender = load(place, device="cpu")
    queries = None
    if folder is not None:
        queries = read_search(folder, recommender.items, on_error=on_error)
    if sessions is not None:
        shown = read_sessions(sessions, recommender.items, on_error=on_error)
        judged = shown.judgements()
        queries = SearchData(sessions.stem, recommender.items, shown.queries, judged, shown.notes)
    for text in () if queries is None else queries.notes:
        output.note(text)
    with output.progress() as on_event:
        part = fit_search(
            recommender.items, settings, queries, ids=recommender.ids, on_event=on_event
        )
    place = write_to or place
    recommender.with_search(part).save(place)
    fused = part.hybrid
    if fused is not None:
        shares = ", ".join(
            f"{name} {weight:.2f}"
            for name, weight in zip(fused.members, fused.weights, strict=True)
        )
        chosen = f"chosen on {part.tuned_on} queries" if part.tuned_on else "not tuned"
        output.line(f"hybrid: {fused.rule}, {shares} ({chosen})")
    output.line(f"bundle: {place}")
    output.line(f'next: sidrec search {place} "words"')
