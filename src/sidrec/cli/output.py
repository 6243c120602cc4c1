"""What the commands print: results on stdout, progress and errors on stderr.

On a terminal: tables and progress bars with the time left. Elsewhere: plain lines. With `--json`:
one JSON value on stdout and nothing else there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

LINE_SECONDS = 10.0
"""Least time between two plain progress lines of one stage."""


def error(message: str) -> None:
    """One line on stderr."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def note(message: str) -> None:
    """Something worth knowing, on stderr, so that stdout stays clean for pipes."""
    print(message, file=sys.stderr)


def line(message: str = "") -> None:
    """A result, on stdout."""
    print(message)


def as_json(value: Any) -> None:
    """One JSON value on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout: boxed on a terminal, aligned plain text elsewhere."""
    cells = [[_cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        grid = Table(title=title, title_justify="left")
        for index, name in enumerate(columns):
            grid.add_column(name, justify="right" if _numeric(rows, index) else "left")
        for row in cells:
            grid.add_row(*map(Text, row))
        Console().print(grid)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    right = [_numeric(rows, index) for index in range(len(columns))]
    print(title)
    for row in [list(columns), *cells]:
        padded = (
            value.rjust(width) if to_right else value.ljust(width)
            for value, width, to_right in zip(row, widths, right, strict=True)
        )
        print("  ".join(padded).rstrip())


def duration(seconds: float) -> str:
    """42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextmanager
def progress() -> Iterator[Any]:
    """A function for `on_event`: bars with the time left on a terminal, plain lines elsewhere.

    Events: {"stage", "message"} starts or describes a stage; {"stage", "done", "total", …numbers}
    moves it.
    """
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[numbers]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bars:
        yield _Bars(bars)


class _Lines:
    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.started: dict[str, float] = {}

    def __call__(self, event: Mapping[str, Any]) -> None:
        stage, now = str(event.get("stage", "")), time.monotonic()
        if "message" in event:
            note(f"{stage}: {event['message']}")
            self.last[stage] = self.started[stage] = now
            return
        started = self.started.setdefault(stage, now)
        if now - self.last.setdefault(stage, started) < LINE_SECONDS:
            return
        self.last[stage] = now
        done, total = float(event.get("done", 0)), float(event.get("total", 0))
        left = f", {duration((now - started) * (total - done) / done)} left" if done else ""
        share = f"{100 * done / total:.0f} %" if total else ""
        note(f"{stage}: {share}{left} {_numbers(event)}".rstrip())


class _Bars:
    def __init__(self, bars: Any) -> None:
        self.bars, self.tasks = bars, {}

    def __call__(self, event: Mapping[str, Any]) -> None:
        stage = str(event.get("stage", ""))
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=None, numbers="")
        changes: dict[str, Any] = {"numbers": _numbers(event)}
        if "message" in event:
            changes["description"] = f"{stage}: {event['message']}"
        if "total" in event:
            changes |= {"completed": event.get("done", 0), "total": event["total"]}
        if event.get("finished"):
            changes |= {"completed": 1, "total": 1}
        self.bars.update(self.tasks[stage], **changes)


def _numbers(event: Mapping[str, Any]) -> str:
    return " ".join(
        f"{name} {value:.4g}"
        for name, value in event.items()
        if isinstance(value, float) and name not in ("done", "total")
    )


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _numeric(rows: Sequence[Sequence[Any]], index: int) -> bool:
    return all(isinstance(row[index], (int, float)) for row in rows)
