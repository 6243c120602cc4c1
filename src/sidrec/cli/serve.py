"""`sidrec serve`: a bundle behind HTTP; `sidrec key`: a key for it."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from sidrec.cli import options, output
from sidrec.errors import ConfigError, MissingExtra, ServiceError

NEEDED = ("fastapi", "uvicorn", "httptools", "orjson", "prometheus_client", "sqlalchemy")


def command(
    bundle: options.Bundle,
    host: Annotated[
        str, typer.Option("--host", help="Address; other than loopback only with --keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.")] = 8000,
    store: Annotated[
        str, typer.Option("--store", help="SQLite file, or a database URL: events and items.")
    ] = "sidrec-serving.sqlite",
    keys: Annotated[
        Path | None, typer.Option("--keys", help="TOML with hashes of API keys; see sidrec key.")
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option("--models", help="Folder of bundles to swap to.  [default: that of BUNDLE]"),
    ] = None,
    scenarios: Annotated[
        Path | None,
        typer.Option("--scenarios", help="TOML of named defaults of recommend requests."),
    ] = None,
    timeout_ms: Annotated[
        int, typer.Option("--timeout-ms", help="After it, popular items are answered.")
    ] = 1000,
    max_queue: Annotated[
        int, typer.Option("--max-queue", help="Requests that may wait; more get 429.")
    ] = 128,
    max_wait_ms: Annotated[
        int | None,
        typer.Option(
            "--max-wait-ms", help="A request that would wait longer for the model gets 429."
        ),
    ] = None,
    retention_days: Annotated[
        float | None, typer.Option("--retention-days", help="Delete events received before.")
    ] = None,
    keep_awake: Annotated[
        bool,
        typer.Option("--keep-awake", help="Linux: cores do not halt between requests; faster."),
    ] = False,
    compiled: Annotated[
        bool,
        typer.Option("--compiled", help="Search by ONNX Runtime: same items, sooner on a CPU."),
    ] = False,
    device: options.Device = None,
) -> None:
    """Serve a bundle over HTTP: recommendations, events, items, hot swap. Needs the extra serve."""
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "serve", "sidrec serve")
    from sidrec.serving.run import serve
    from sidrec.serving.settings import ServeSettings

    settings = ServeSettings(
        bundle=options.bundle_path(bundle),
        models_dir=models,
        store=store,
        keys_file=keys,
        host=host,
        port=port,
        device=device or "auto",
        scenarios=read_scenarios(scenarios),
        timeout_ms=timeout_ms,
        max_queue=max_queue,
        max_wait_ms=max_wait_ms,
        retention_days=retention_days,
        keep_awake=keep_awake,
        compiled=compiled,
    )
    serve(settings, started=lambda url: output.note(f"serving {settings.bundle} at {url}"))


def read_scenarios(path: Path | None) -> dict[str, Any]:
    """The tables of a TOML file; {} for None."""
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not a readable TOML file of scenarios: {error}") from error


def key(
    name: Annotated[str, typer.Argument(help="What the key is for, e.g. shop-backend.")],
    role: Annotated[str, typer.Option("--role", help="publishable, secret or admin.")] = "secret",
) -> None:
    """Make an API key: print it once, and the lines for the file that --keys names."""
    from sidrec.serving.auth import ROLES, new_key

    if role not in ROLES[1:]:
        raise ConfigError(f"role must be one of {list(ROLES[1:])}, got {role!r}")
    made, digest = new_key()
    output.note(f"the key, shown this once: {made}")
    output.line(f'[keys."{name}"]\nrole = "{role}"\nsha256 = "{digest}"')


def export_events(
    store: Annotated[str, typer.Argument(help="SQLite file or database URL of a server.")],
    path: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    quarantined: Annotated[
        bool, typer.Option("--quarantined", help="Also events that were too many from one user.")
    ] = False,
) -> None:
    """Write a server's events as Parquet, for the next `sidrec fit`; it may run meanwhile."""
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "serve", "sidrec export-events")
    from sidrec.serving.databases import shown
    from sidrec.serving.events import export_parquet
    from sidrec.serving.problems import Problem
    from sidrec.serving.store import Reader

    if "://" not in store and not Path(store).is_file():
        raise ConfigError(f"there is no store {store}")
    opened = Reader(store if "://" in store else f"sqlite:///{store}")
    try:
        count = export_parquet(opened, path, quarantined=quarantined)
    except Problem as problem:
        why = getattr(problem.__cause__, "orig", None) or problem.detail
        raise ServiceError(
            f"{shown(opened.engine)} is no store that can be read: {why}"
        ) from problem
    finally:
        opened.close()
    output.line(f"wrote {count} events to {path}")
