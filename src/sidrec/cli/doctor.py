"""`sidrec doctor`: is this machine, and optionally this data, fit for a run?"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from sidrec.cli import output

MIN_FREE_GIB = 2.0


def command(
    recipe: Annotated[
        Path | None, typer.Option("--data", help="Also read and summarise the data of this recipe.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check Python, torch, threads, bf16, disk and load; with --data, the data too."""
    checks = environment()
    if recipe is not None:
        checks += data(recipe)
    if json:
        output.as_json([dict(zip(("check", "ok", "found"), row, strict=True)) for row in checks])
    else:
        rows = [(name, "ok" if ok else "LOOK", found) for name, ok, found in checks]
        output.table("sidrec doctor", ("check", "", "found"), rows)
    if not all(ok for _, ok, _ in checks):
        raise typer.Exit(1)


def environment() -> list[tuple[str, bool, str]]:
    """(name, fine, what was found) of every check of the machine."""
    import torch

    from sidrec import __version__

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    threads = torch.get_num_threads()
    free_gib = shutil.disk_usage(".").free / 2**30
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    capability = torch.backends.cpu.get_cpu_capability()
    return [
        ("sidrec", True, __version__),
        ("python", sys.version_info >= (3, 11), sys.version.split()[0]),
        ("torch", True, torch.__version__),
        ("gpu", True, ", ".join(gpus) or "none; the CPU is enough for sets like Beauty"),
        ("vector instructions", capability != "DEFAULT", capability),
        ("threads", threads <= cores, f"{threads} torch threads on {cores} cores"),
        ("load", load < 0.5 * cores, _load(load, cores)),
        ("disk", free_gib >= MIN_FREE_GIB, f"{free_gib:.1f} GiB free here"),
        (
            "SIDREC_DATA",
            True,
            os.environ.get("SIDREC_DATA") or "not set; named sets are downloaded",
        ),
    ]


def data(recipe: Path) -> list[tuple[str, bool, str]]:
    """The data section of a recipe, read and summarised."""
    from sidrec import recipe as recipes

    dataset = recipes.read_data(recipes.load_config(recipe).data)
    rows: list[tuple[str, bool, str]] = [("data", True, recipes.describe(dataset))]
    return rows + [("note", True, note) for note in dataset.notes]


def _load(load: float, cores: int) -> str:
    busy = "; other processes will slow training several times" if load >= 0.5 * cores else ""
    return f"{load:.1f} on {cores} cores over the last minute{busy}"
