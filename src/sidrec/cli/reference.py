"""Pages made from the code: `python -m sidrec.cli.reference [cli | papers] > docs/….md`.

The command reference is the help of every command. The paper index is the `Source` and `Differs`
of every module docstring, read without importing anything.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from sidrec.cli import app

WIDTH = 96
PACKAGE = Path(__file__).parent.parent
CLI_HEAD = """# Command line

Made by `make docs` from the commands themselves; a test fails when it is stale.

Results go to stdout, progress and notes to stderr; with `--json` stdout holds one JSON value. A
user's mistake is one line and exit code 2, with nothing written; a run that broke is one line and
exit code 1. `--debug` shows the traceback. `sidrec --install-completion` sets up the shell.
"""
PAPERS_HEAD = """# Papers

Which paper is in which file, and every known deviation. Made by `make docs` from the module
docstrings; a test fails when it is stale.
"""
SECTION = re.compile(r"^(\w+): +(.*?)(?=^\w+: |\Z)", re.MULTILINE | re.DOTALL)


def cli_page() -> str:
    """The help of every command."""
    parts = [CLI_HEAD]
    for name, text in helps(typer.main.get_command(app), "sidrec"):
        parts.append(f"## {name}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def helps(command: Any, name: str) -> Iterator[tuple[str, str]]:
    """(full name, help text) of a command and all below it."""
    context = typer.Context(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    lines = command.get_help(context).splitlines()
    yield name, "\n".join(line.rstrip() for line in lines).strip()
    for word, below in getattr(command, "commands", {}).items():
        yield from helps(below, f"{name} {word}")


def papers_page() -> str:
    """File, source and deviations of every module that follows a published work."""
    parts, folder = [PAPERS_HEAD], None
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: (path.parent, path.name)):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        said = {word: " ".join(body.split()) for word, body in SECTION.findall(text)}
        if not re.search(r"\d{4}", said.get("Source", "")):
            continue
        place = path.relative_to(PACKAGE)
        if place.parent != folder:
            folder = place.parent
            parts.append(f"## {'sidrec' if folder == Path('.') else folder}\n")
        parts.append(f"**`{place}`**: {said['Source']}")
        parts.append(f"*Differs:* {said['Differs']}\n" if "Differs" in said else "")
    return "\n".join(parts).rstrip() + "\n"


PAGES = {"cli": cli_page, "papers": papers_page}

if __name__ == "__main__":
    typer.echo(PAGES[sys.argv[1]](), nl=False)
