"""Table of docs/benchmarks.md about the compiled search, from the figures of compiled.py."""

from __future__ import annotations

from cells import Figures, markdown, quantity, sources

BEAMS, BATCHES, RULES = (20, 50), (1, 8), ("unseen", "filtered")


def compiled_table(figures: Figures) -> str:
    """Times of a batch by PyTorch and compiled, then how many lists are the same."""
    used = []

    def cell(name: str) -> str:
        figure = figures.get(f"compiled.{name}")
        used.extend([figure] if figure else [])
        return quantity(figure)

    times = [
        [
            f"{beam}, {batch}",
            cell(f"eager.beam{beam}.batch{batch}.cpu.p50"),
            cell(f"compiled.beam{beam}.batch{batch}.cpu.p50"),
            cell(f"times_faster.beam{beam}.batch{batch}.cpu"),
            cell(f"times_faster.beam{beam}.batch{batch}.wall"),
        ]
        for beam in BEAMS
        for batch in BATCHES
    ]
    lists = [
        [
            f"{beam}, {rule}",
            *(count(figures, f"compiled.lists.{rule}.beam{beam}.{kind}")
              for kind in ("same", "reordered", "other")),
            cell(f"lists.{rule}.beam{beam}.score_difference").removesuffix(", largest"),
            cell(f"lists.{rule}.beam{beam}.tie_gap").removesuffix(", largest"),
        ]
        for beam in BEAMS
        for rule in RULES
    ]  # fmt: skip
    first = [
        "beam, batch",
        "PyTorch, processor",
        "compiled, processor",
        "times less",
        "on the wall",
    ]
    second = ["beam, rule", "same", "reordered", "other", "scores apart", "ties apart"]
    start = f"\nOpening the compiled search took {cell('start')}.\n\n"
    return markdown(first, times) + start + markdown(second, lists) + "\n" + sources(used)


def count(figures: Figures, name: str) -> str:
    """How many lists of how many."""
    figure = figures.get(name)
    return "not measured" if figure is None else f"{figure['count']:,} of {figure['n']:,}"
