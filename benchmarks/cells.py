"""Cells and rows of the benchmark tables: numbers, intervals, sources, Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Figures = Mapping[str, Mapping[str, Any]]
MISSING = "not measured"
COLUMNS = (
    ("R@5", "recall@5"),
    ("N@5", "ndcg@5"),
    ("R@10", "recall@10"),
    ("N@10", "ndcg@10"),
    ("R@10, seen filtered", "seen_filtered.recall@10"),
)


def accuracy_cell(figure: Mapping[str, Any] | None, best: float | None) -> str:
    """`.0851 [.0815, .0888]`, bold where it is the best."""
    if figure is None:
        return MISSING
    text = ratio(figure["value"])
    text = f"**{text}**" if figure["value"] == best else text
    if "low" in figure and "high" in figure:
        text += f" [{ratio(figure['low'])}, {ratio(figure['high'])}]"
    return text


def ratio(value: float) -> str:
    """Four decimals without the leading zero."""
    return f"{value:.4f}".replace("0.", ".", 1)


def quantity(figure: Mapping[str, Any] | None) -> str:
    """Value with three significant digits, interval where there is one, and unit."""
    if figure is None:
        return MISSING
    unit = {"x": "×", "ratio": ""}.get(figure["unit"], f" {figure['unit']}")
    text = number(figure["value"])
    if "low" in figure and "high" in figure:
        text += f" [{number(figure['low'])}, {number(figure['high'])}]"
    return text + unit


def number(value: float) -> str:
    """Three significant digits, thousands with commas, never an exponent."""
    if value and abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 or not value else f"{value:.6f}"


def sources(used: list[Mapping[str, Any]]) -> str:
    """The files and machines the figures come from, in one line."""
    if not used:
        return ""
    origins = sorted({(f["file"], f["date"], f["hardware"]) for f in used})
    parts = [f"`{file}` ({date}, {machine})" for file, date, machine in origins]
    return "From " + "; ".join(parts) + ".\n"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def signed(figure: Mapping[str, Any]) -> str:
    """A difference with its sign and interval."""
    low, value, high = (
        f"{figure[key]:+.4f}".replace("0.", ".", 1) for key in ("low", "value", "high")
    )
    return f"{value} [{low}, {high}]"
