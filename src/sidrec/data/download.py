"""Fetch a file once, whole and verified: temporary name, size, checksum, sync, rename.

Where an origin publishes a checksum it is checked. Where it does not, the SHA-256 of the first
download is written beside the file, and every later read is checked against it.
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from sidrec.errors import DataError

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a file comes from and what it must be."""

    url: str
    md5: str | None = None
    """As published by the origin; None where it publishes none."""
    sha256: str | None = None
    size_bytes: int | None = None

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def fetch(origin: Origin, folder: Path, *, download: bool = True, timeout: float = 60) -> Path:
    """The verified file in `folder`, downloaded if it is not there. Raises DataError.

    A damaged file is never returned and never replaced in silence: the error says to delete it.
    """
    path = folder / origin.file_name
    recorded = path.with_name(path.name + ".sha256")
    if path.exists():
        known = recorded.read_text().split()[0] if recorded.exists() else None
        _verify(origin, path, known)
        return path
    if not download:
        raise DataError(f"{path} does not exist; allow the download or put the file there")
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        _transfer(origin, part, timeout)
        digest = _verify(origin, part, None)
        if not (origin.md5 or origin.sha256):
            note = recorded.with_name(f"{recorded.name}.part-{os.getpid()}")
            note.write_text(f"{digest}  {path.name}\n")
            os.replace(note, recorded)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _transfer(origin: Origin, part: Path, timeout: float) -> None:
    if not origin.url.startswith(("https://", "http://")):
        raise DataError(f"{origin.url}: expected an http(s) address")
    request = urllib.request.Request(origin.url, headers={"User-Agent": "sidrec"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response, part.open("wb") as out:
            expected = response.headers.get("Content-Length")
            while chunk := response.read(CHUNK_BYTES):
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except (urllib.error.URLError, HTTPException, OSError) as error:
        raise DataError(f"{origin.url} could not be downloaded: {error}; try again") from error
    got = part.stat().st_size
    if expected is not None and got != int(expected):
        raise DataError(
            f"{origin.url}: the transfer broke off; expected {expected} bytes, got {got}; try again"
        )


def _verify(origin: Origin, path: Path, known_sha256: str | None) -> str:
    """SHA-256 of the file, after checking it against all that is known of it."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            sha256.update(chunk)
            md5.update(chunk)
    checks = (
        ("bytes", origin.size_bytes, path.stat().st_size),
        ("MD5", origin.md5, md5.hexdigest()),
        ("SHA-256", origin.sha256, sha256.hexdigest()),
        ("SHA-256 of the first download", known_sha256, sha256.hexdigest()),
    )
    for what, expected, got in checks:
        if expected is not None and expected != got:
            name = path.name.split(".part-")[0]
            raise DataError(
                f"{path.parent / name} is not the file of {origin.url}: expected {what} "
                f"{expected}, got {got}; delete it and download again"
            )
    return sha256.hexdigest()
