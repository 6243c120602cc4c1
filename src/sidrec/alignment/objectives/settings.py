"""Checks that the configs of objectives share; each names the setting that cannot be."""

from __future__ import annotations

from typing import Any

from sidrec.errors import ConfigError


def require_positive(method: str, config: Any, *names: str) -> None:
    """ConfigError unless each named setting is above 0."""
    for name in names:
        if not (value := getattr(config, name)) > 0:
            raise ConfigError(f"{method}.{name} must be above 0, got {value}")


def require_not_negative(method: str, config: Any, *names: str) -> None:
    """ConfigError where a named setting is below 0 or no number."""
    for name in names:
        if not (value := getattr(config, name)) >= 0:
            raise ConfigError(f"{method}.{name} must not be negative, got {value}")


def require_share(method: str, config: Any, *names: str) -> None:
    """ConfigError unless each named setting is in [0, 1]."""
    for name in names:
        if not 0 <= (value := getattr(config, name)) <= 1:
            raise ConfigError(f"{method}.{name} must be in [0, 1], got {value}")


def require_a_term(method: str, config: Any, *names: str) -> None:
    """ConfigError where all weights are 0, so that nothing is minimised."""
    require_not_negative(method, config, *names)
    if not any(getattr(config, name) for name in names):
        raise ConfigError(f"{method}: {' and '.join(names)} are all 0; give one of them a weight")
