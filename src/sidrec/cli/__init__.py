"""The command line: `sidrec <command>`. One short file a command: parse, call, print.

Nothing heavy is imported before a command runs. A user's mistake is one line and exit code 2, with
nothing written; a run that broke is one line and exit code 1. `--debug` shows the traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from sidrec import __version__
from sidrec.cli import (
    admission,
    align,
    bench,
    config_show,
    demo,
    doctor,
    evaluate,
    fit,
    init,
    inspect,
    migrate,
    output,
    recommend,
    search,
    search_fit,
    serve,
)
from sidrec.errors import ServiceError, SidrecError

app = typer.Typer(
    name="sidrec",
    help="Generative recommendation with semantic IDs, from a table of interactions.",
    epilog="Start with: sidrec demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Look at configuration.", no_args_is_help=True)
config_app.command("show")(config_show.command)

app.command("demo")(demo.command)
app.command("init")(init.command)
app.command("fit")(fit.command)
app.command("align")(align.command)
app.command("admission")(admission.command)
app.command("evaluate")(evaluate.command)
app.command("recommend")(recommend.command)
app.command("search")(search.command)
app.command("search-fit")(search_fit.command)
app.command("inspect")(inspect.command)
app.command("serve")(serve.command)
app.command("key")(serve.key)
app.command("export-events")(serve.export_events)
app.command("migrate")(migrate.command)
app.command("doctor")(doctor.command)
app.add_typer(config_app, name="config")
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sidrec {__version__}")
        raise typer.Exit


@app.callback()
def shared(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; allowed anywhere.")
    ] = False,
) -> None:
    """Hold the options that every command shares."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; the process ends with its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        app(args=[word for word in words if word != "--debug"], prog_name="sidrec")
    except (SidrecError, OSError) as error:
        if debug:
            raise
        output.error(str(error))
        broke = isinstance(error, ServiceError) or not isinstance(error, SidrecError)
        sys.exit(1 if broke else 2)
