"""`sidrec demo`: the whole road in five minutes on two cores, on real data where there are any."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sidrec.cli import options, output
from sidrec.errors import SidrecError

DATA_SET = "amazon_beauty"
NUM_EXAMPLES = 3
MAX_HISTORY_SHOWN = 4


def command(
    name: Annotated[
        str, typer.Option("--data", help="A named public set, or shop for the simulated one.")
    ] = DATA_SET,
    run_dir: options.RunDir = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=5, help="Training time of each model.")
    ] = 45.0,
    seed: options.Seed = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Train on a public set (simulated where none is at hand), measure, recommend, save."""
    from dataclasses import replace

    from sidrec import pipeline
    from sidrec.cli import fit
    from sidrec.recipe import DataConfig, demo_config

    dataset, note = find_data(name)
    settings = replace(
        demo_config(dataset, seconds),
        data=DataConfig(name=dataset.name),
        seed=seed or 0,
        device=device or "auto",
    )
    output.note(note)
    with output.progress() as on_event:
        result = pipeline.run(
            settings,
            run_dir=run_dir or Path("runs") / f"demo-{dataset.name}",
            data=dataset,
            on_event=on_event,
        )
    if not json:
        show_examples(result)
    fit.show(result, json=json)


def find_data(name: str) -> tuple[Any, str]:
    """The dataset and where it came from: at hand, downloaded, or else the simulated shop."""
    from sidrec.data import load_named
    from sidrec.data.shop import simulate

    if name == "shop":
        return simulate().dataset, "data: the simulated shop"
    try:
        dataset = load_named(name)
        return dataset, f"data: {name}; " + "; ".join(dataset.notes[:1])
    except SidrecError as error:
        if name != DATA_SET:
            raise
        reason = " ".join(str(error).split())
        note = f"data: the SIMULATED shop, because {name} could not be had ({reason})"
        return simulate().dataset, note


def show_examples(result: Any) -> None:
    """A few test users: what they bought, what is recommended, and what they really took next."""
    recommender, examples = result.recommender, result.split.test
    titles = recommender.titles
    output.line()
    output.line("recommendations for three test users")
    for row in range(0, len(examples), max(1, len(examples) // NUM_EXAMPLES))[:NUM_EXAMPLES]:
        history = examples.histories[row]
        found = recommender.recommend([str(recommender.items.item_ids[i]) for i in history], k=5)
        truth = int(examples.targets[row])
        hits = [str(recommender.items.item_ids[truth]) == item for item in found["item_id"]]
        output.line()
        shown = [titles[i][:70] for i in history[-MAX_HISTORY_SHOWN:]]
        earlier = len(history) - len(shown)
        output.line(f"  bought{f' (after {earlier} others)' if earlier else ''}:")
        for title in shown:
            output.line(f"    - {title}")
        output.line("  recommended:")
        for title, hit in zip(found["title"], hits, strict=True):
            output.line(f"    - {title[:70]}{'   <- bought next' if hit else ''}")
        if not any(hits):
            output.line(f"  bought next: {titles[truth][:70]}")
    output.line()
