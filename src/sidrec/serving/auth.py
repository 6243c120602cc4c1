"""Who may ask what: API keys by their hash, and the least role that each route takes.

A key is `sidrec_` and 43 random characters; the server knows its SHA-256 only. With keys, every
route that no line of `RULES` names takes the admin role. Roles: publishable (may be in a web page:
asks, and reports events), secret (a server of yours: all data), admin (models and experiments too).

    [keys.shop-backend]
    role = "secret"
    sha256 = "…"
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import tomllib
from dataclasses import dataclass
from pathlib import Path

from sidrec.errors import ConfigError

PREFIX = "sidrec_"
ROLES = ("public", "publishable", "secret", "admin")
"""Each may do all that those before it may."""
RULES: tuple[tuple[str, str, str], ...] = (
    ("GET", "/", "public"),
    ("GET", "/page", "public"),
    ("GET", "/livez", "public"),
    ("GET", "/readyz", "public"),
    ("GET", "/v2/health/live", "public"),
    ("GET", "/v2/health/ready", "public"),
    ("POST", "/v1/recommend", "publishable"),
    ("POST", "/v1/similar", "publishable"),
    ("POST", "/v1/rank", "publishable"),
    ("POST", "/v1/search", "publishable"),
    ("POST", "/v1/events", "publishable"),
    ("POST", "/v1/explain", "secret"),
    ("POST", "/v1/trace", "secret"),
    ("GET", "/v1/tree", "secret"),
    ("GET", "/metrics", "secret"),
    ("GET", "/openapi.json", "secret"),
    ("GET", "/v1/models", "secret"),
    ("GET", "/v1/experiments", "secret"),
    ("*", "/v1/items", "secret"),
    ("*", "/v1/users", "secret"),
)
"""(method, path, least role); a path also stands for everything below it. The first that fits."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key as the server knows it."""

    name: str
    role: str
    sha256: str


def needed_role(method: str, path: str) -> str:
    """The least role for a request; admin where nothing is said."""
    for rule_method, rule_path, role in RULES:
        fits = path == rule_path or (rule_path != "/" and path.startswith(f"{rule_path}/"))
        if fits and rule_method in ("*", "GET" if method == "HEAD" else method):
            return role
    return "admin"


def role_of(keys: tuple[Key, ...], offered: str | None) -> str:
    """The role that the offered key has; public where it is none of ours.

    Every key is compared, each in constant time, so the time says nothing.
    """
    digest = hashlib.sha256((offered or "").encode("utf-8", "replace")).hexdigest()
    role = "public"
    for key in keys:
        if hmac.compare_digest(digest, key.sha256):
            role = key.role
    return role


def may(role: str, needed: str) -> bool:
    """Whether a role covers the needed one."""
    return ROLES.index(role) >= ROLES.index(needed)


def offered_key(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The key in `Authorization: Bearer …` or `X-Api-Key`."""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip().decode("latin-1")
        if name == b"x-api-key":
            return value.strip().decode("latin-1")
    return None


def foreign(headers: list[tuple[bytes, bytes]]) -> str | None:
    """What shows that a web page of another site sent this: a server without keys must refuse it.

    Any page may have a browser ask 127.0.0.1, and read the answer too once its own name leads
    there (DNS rebinding). Such a name has a dot and is no address; an `Origin` names the page.
    """
    named = dict(headers)
    host = named.get(b"host", b"").decode("latin-1").lower()
    name = "" if host.startswith("[") else host.partition(":")[0]  # in brackets: an address
    if "." in name and not name.endswith(".localhost") and not _address(name):
        return f"Host {name}"
    origin = named.get(b"origin", b"").decode("latin-1").lower()
    if origin and origin.partition("://")[2] != host:
        return f"Origin {origin}"
    return None


def _address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def new_key() -> tuple[str, str]:
    """(key, its SHA-256)."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path | None) -> tuple[Key, ...]:
    """The keys of a file; () for None. ConfigError says what is wrong with it."""
    if path is None:
        return ()
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not a readable TOML file of keys: {error}") from error
    keys, listed = [], tables.get("keys", {})
    if not isinstance(listed, dict):
        raise ConfigError(f"{path}: keys must be tables [keys.<name>]; see `sidrec key`")
    for name, table in listed.items():
        digest = str(table.get("sha256", "")).lower() if isinstance(table, dict) else ""
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ConfigError(f"{path}: keys.{name} needs sha256, 64 hex digits; see `sidrec key`")
        if table.get("role") not in ROLES[1:]:
            raise ConfigError(
                f"{path}: keys.{name} needs a role of {list(ROLES[1:])}, got {table.get('role')!r}"
            )
        keys.append(Key(name=name, role=table["role"], sha256=digest))
    if not any(key.role == "admin" for key in keys):
        raise ConfigError(f"{path} holds no key with role 'admin'; add one with `sidrec key`")
    return tuple(keys)
