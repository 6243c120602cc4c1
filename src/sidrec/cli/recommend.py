"""`sidrec recommend`: the next items for a history, from a bundle."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from sidrec.cli import options, output
from sidrec.errors import ConfigError, DataError


def command(
    bundle: options.Bundle,
    history: Annotated[
        str | None,
        typer.Option("--history", help="Item ids, oldest first, separated by commas."),
    ] = None,
    histories: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help='JSON lines, one request each: {"user_id": …, "history": [item ids]}.',
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="Items to recommend.")] = 10,
    system: Annotated[str, typer.Option("--system", help="hybrid, generator or a scorer.")] = "",
    exclude: Annotated[
        str, typer.Option("--exclude", help="Item ids to leave out, separated by commas.")
    ] = "",
    exclude_seen: Annotated[
        bool, typer.Option("--exclude-seen/--include-seen", help="Leave out the history's items.")
    ] = True,
    where: Annotated[
        str | None,
        typer.Option(
            "--where", help='Filter, e.g. \'{"field": "price", "op": "lt", "value": 50}\'.'
        ),
    ] = None,
    unknown: Annotated[
        str, typer.Option("--unknown", help="error, or skip items the catalogue lacks.")
    ] = "error",
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Say of each item what the generator makes of its codes."),
    ] = False,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Recommend the next items for one history, or for a file of them."""
    from sidrec.recommender import load

    if (history is None) == (histories is None):
        raise ConfigError("give either --history or --input")
    tree = None if where is None else _json(where, "--where")
    if histories is None:
        requests = [{"user_id": "", "history": _ids(history or "")}]
    else:
        requests = read_requests(histories)
    recommender = load(options.bundle_path(bundle), device=device or "auto")
    frame = recommender.recommend(
        histories=[request["history"] for request in requests],
        user_ids=[str(place) for place in range(len(requests))],
        k=k,
        system=system or None,
        exclude=_ids(exclude),
        exclude_seen=exclude_seen,
        where=tree,
        unknown=unknown,
    )
    rows = frame.to_dicts()
    longest = recommender.max_length(recommender.system_named(system or None))
    for remark in remarks([len(r["history"]) for r in requests], longest, rows, k):
        output.note(remark)
    for row in rows:
        request = requests[int(row["user_id"])]
        row["user_id"] = str(request["user_id"])
        if explain:
            asked = known(recommender, request["history"], unknown)
            row["explanation"] = recommender.explain(asked, row["item_id"]) if asked else None
    if json:
        output.as_json(rows)
    elif histories is not None:
        for row in rows:
            output.line(jsonlib.dumps(row, ensure_ascii=False))
    else:
        columns = ("rank", "item_id", "title", "score", "semantic_id", "source")
        cells = [[short(row[name]) for name in columns] for row in rows]
        output.table(f"the next {k} items", columns, cells)
        for row in rows if explain else ():
            output.line()
            explanation_table(row)


def remarks(lengths: list[int], longest: int, rows: list[dict[str, Any]], k: int) -> list[str]:
    """What of the histories was not read, and why lists are shorter than asked for."""
    said, found = [], [0] * len(lengths)
    if longest > 1 and (longer := sum(length > longest for length in lengths)):
        said.append(f"{longer} histories have over {longest} items; the newest {longest} were read")
    for row in rows:
        found[int(row["user_id"])] += 1
    if empty := found.count(0):
        said.append(
            f"{empty} lists are empty: no item is left; relax --where or --exclude, or add "
            "--include-seen"
        )
    elif short_ones := sum(n < k for n in found):
        said.append(f"{short_ones} lists have fewer than {k} items: no more are left")
    return said


def known(recommender: Any, history: list[str], unknown: str) -> list[str]:
    """The items of a history that the catalogue has, where unknown ones are to be left out."""
    if unknown != "skip":
        return history
    return [item for item in history if str(item) in recommender.items.row_of]


def explanation_table(row: dict[str, Any]) -> None:
    """Level by level: what the thought before the code says, where there are any, and the code."""
    found, title = row["explanation"], f"{row['rank']}. {short(row['title'])}"
    if found is None:
        output.line(f"{title}: by popularity, for an empty history")
        return
    columns, cells = ["level"], []
    thinks = "thought" in found["levels"][0]
    columns += ["the thought before it", "probability", "holds the code"] if thinks else []
    for number, level in enumerate(found["levels"], 1):
        cell = [number]
        if thinks:
            thought = level["thought"]
            words = ", ".join(thought["words"]) or f"cluster {thought['cluster']}"
            words = words if thought["legal"] else f"({words})"
            held = "yes" if thought["holds_code"] else "no"
            cell += [words, f"{thought['probability']:.2f}", held]
        code = level["code"] if number <= len(row["semantic_id"]) else "end"
        cells.append([*cell, code, level["log_prob"]])
    output.table(
        f"{title}: log-probability {found['log_prob']:.3f}",
        [*columns, "code", "log-probability"],
        cells,
    )


def read_requests(path: Path) -> list[dict[str, Any]]:
    """Requests of a JSON-lines file. DataError names the line that is not one."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable UTF-8 file") from error
    requests = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        value = _json(line, f"{path} line {number}")
        if not isinstance(value, dict) or not isinstance(value.get("history"), list):
            raise DataError(f'{path} line {number} must be {{"history": [item ids]}}')
        history = [str(item) for item in value["history"]]
        requests.append({"user_id": value.get("user_id", number), "history": history})
    if not requests:
        raise DataError(f"{path} holds no requests; expected one JSON object a line")
    return requests


def short(value: Any) -> Any:
    """Text cut to fit a table; codes as 12-200-7."""
    if isinstance(value, list):
        return "-".join(map(str, value))
    return f"{value[:57]}…" if isinstance(value, str) and len(value) > 58 else value


def _ids(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _json(text: str, where: str) -> Any:
    try:
        return jsonlib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
