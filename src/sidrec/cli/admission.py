"""`sidrec admission`: before AdaGRPO, which contexts gain by rewards and which lose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sidrec.cli import options, output


def command(
    bundle: options.Bundle,
    recipe: Annotated[
        Path | None, typer.Argument(help="Settings of the alignment. Without it, the defaults.")
    ] = None,
    most: Annotated[int, typer.Option("--most", help="Contexts that a cell trains on.")] = 2048,
    seed: options.Seed = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Sort training contexts by difficulty and discriminability; train GRPO on each cell alone.

    Nothing is written. The cell to admit is the one that gains; if it is not the difficult and
    discriminable one, AdaGRPO's gates do not fit this policy and reward.
    """
    from sidrec import admission, align_config
    from sidrec.recommender import load

    settings = align_config.AlignConfig()
    if recipe is not None:
        settings = align_config.load_align_config(recipe)
    if seed is not None:
        settings = replace(settings, seed=seed)
    recommender = load(options.bundle_path(bundle), device=device or settings.device)
    with output.progress() as on_event:
        cells = admission.analyse(recommender, settings, most=most, on_event=on_event)
    if json:
        output.as_json([cell.summary() for cell in cells])
        return
    rows = []
    for cell in cells:
        shown = [f"{cell.share:.1%}", cell.num_contexts]
        if cell.recall is None or cell.ndcg is None:
            rows.append((cell.name, *shown, "empty", "", "", "", ""))
            continue
        changes = [
            f"{figure.value:+.4f} [{figure.low:+.4f}, {figure.high:+.4f}]"
            for figure in (cell.recall, cell.ndcg)
        ]
        last = (
            f"{cell.invalid_share:+.1%}",
            f"{cell.gradient_norm:.3g}",
            f"{cell.silent_share:.0%}",
        )
        rows.append((cell.name, *shown, *changes, *last))
    header = ("cell", "share", "contexts", "recall@10", "ndcg@10", "invalid", "gradient", "silent")
    output.table("GRPO alone on each cell; change on validation", header, rows)
