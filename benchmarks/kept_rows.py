"""Where a finished row of a benchmark is kept: by its settings, so that changed ones run anew.

A row lies in `<runs>/<name>-<hash of its settings>` with them in `settings.json`. A folder whose
recorded settings are these counts too, whatever its name: older versions wrote `<runs>/<name>`, and
a setting that came since changes the hash. Such a setting counts as recorded at its default.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sidrec import artifact, config
from sidrec.errors import ConfigError
from sidrec.recipe import RunConfig

SETTINGS = "settings.json"


def folder_of(runs: Path, name: str, settings: RunConfig) -> Path:
    """The folder of the row `name` of these settings, whether or not it is there yet."""
    own = config.to_dict(settings)
    for folder in (runs / name, *sorted(runs.glob(f"{name}-*"))):
        if recorded(folder) == own:
            return folder
    return runs / f"{name}-{artifact.value_hash(own)[:10]}"


def record(folder: Path, settings: RunConfig) -> None:
    """Make the folder and write the settings of its row."""
    folder.mkdir(parents=True, exist_ok=True)
    artifact.write_text(folder / SETTINGS, json.dumps(config.to_dict(settings), indent=1))


def recorded(folder: Path) -> dict[str, Any] | None:
    """The settings in `settings.json`, else in the manifest of the row's bundle, else None.

    None too where this version does not know one of them: then they are not its settings.
    """
    own, manifest = folder / SETTINGS, folder / "bundle" / artifact.MANIFEST
    if own.is_file():
        plain = json.loads(own.read_text())
    elif manifest.is_file():
        plain = json.loads(manifest.read_text())["config"]
    else:
        return None
    try:
        return config.to_dict(config.parse(RunConfig, plain))
    except ConfigError:
        return None
