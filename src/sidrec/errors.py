"""Every error sidrec raises on purpose: one base, five kinds, each also its stdlib kin.

A message says where, what was expected, what came, and what to do.
`except ValueError` keeps working for callers who do not know sidrec.
"""

from __future__ import annotations


class SidrecError(Exception):
    """Base of all errors that sidrec raises on purpose."""


class ConfigError(SidrecError, ValueError):
    """A configuration is not usable: unknown key, value out of range, unknown method name."""


class DataError(SidrecError, ValueError):
    """Input data are not usable: missing column, unknown item, wrong type, empty table."""


class ArtifactError(SidrecError, OSError):
    """A bundle or artifact on disk is missing, damaged, or of another format version."""


class MissingExtra(SidrecError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""

    def __init__(self, package: str, extra: str, what: str) -> None:
        super().__init__(
            f"{what} needs the package {package}, which is not installed; "
            f"run: pip install 'sidrec[{extra}]'"
        )


class ServiceError(SidrecError, RuntimeError):
    """Something that runs (training, a server, a remote model) cannot go on."""
