"""Save and load any fitted value: arrays in safetensors, the rest in a JSON manifest. No pickle.

An artifact is a directory that holds `manifest.json`, usually `arrays.safetensors`, and any other
files. The manifest names kind, config, state, parents, versions and the SHA-256 and size of every
file; an artifact inside an artifact is pinned by the hash of its manifest, so the hash of the
outermost manifest pins every byte below it. That hash is the identity of the value.

Writing is atomic: a temporary directory beside the target, every file synced, one rename. Loading
refuses symbolic links, foreign names, oversized headers and wrong hashes before it allocates.

Cost:     one SHA-256 pass over the bytes, when saving and when loading.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidrec.errors import ArtifactError

FORMAT = 1
MANIFEST = "manifest.json"
ARRAYS = "arrays.safetensors"
MAX_MANIFEST_BYTES = 64 << 20
MAX_HEADER_BYTES = 8 << 20  # of a safetensors file: room for some 50,000 tensors
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VERSIONED = ("sidrec", "torch", "numpy", "polars", "faiss-cpu", "scikit-learn")


@dataclass(frozen=True, eq=False, kw_only=True)
class Artifact:
    """What came back from disk, every hash verified."""

    path: Path
    kind: str
    config: Any
    state: Any
    parents: Mapping[str, str]
    versions: Mapping[str, str]
    files: Mapping[str, Any]
    hash: str
    """SHA-256 of the manifest: the identity of the value and all below it."""
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)


def save(
    path: str | Path,
    *,
    kind: str,
    arrays: Mapping[str, NDArray[Any]] | None = None,
    config: Any = None,
    state: Any = None,
    parents: Mapping[str, str] | None = None,
) -> str:
    """Write one value as the directory `path`, replacing what was there; return its hash."""
    with atomic_directory(path) as temporary:
        return seal(
            temporary, kind=kind, arrays=arrays, config=config, state=state, parents=parents
        )


def seal(
    directory: Path,
    *,
    kind: str,
    arrays: Mapping[str, NDArray[Any]] | None = None,
    config: Any = None,
    state: Any = None,
    parents: Mapping[str, str] | None = None,
) -> str:
    """Write arrays and the manifest over everything already in `directory`; return its hash."""
    from safetensors.numpy import save_file

    if arrays:
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_file(contiguous, directory / ARRAYS)
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "config": config,
        "state": state,
        "parents": dict(parents or {}),
        "versions": versions(),
        "files": {p.name: _pin(p) for p in sorted(directory.iterdir()) if p.name != MANIFEST},
    }
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return file_hash(directory / MANIFEST)


def load(
    path: str | Path, *, kind: str | None = None, expected_hash: str | None = None
) -> Artifact:
    """Read the manifest and arrays of `path`. ArtifactError says what is wrong and where.

    Nested artifacts are listed in `files` and pinned there; load them with `load_nested`.
    """
    path = Path(path)
    manifest_path = path / MANIFEST
    if path.is_symlink() or manifest_path.is_symlink():
        raise ArtifactError(f"{path} is or holds a symbolic link; copy the real files there")
    if not manifest_path.is_file():
        old = path.with_name(f"{path.name}.old")
        hint = f"; an interrupted save left the former one at {old}" if old.is_dir() else ""
        raise ArtifactError(f"{path} is not a sidrec artifact: no {MANIFEST} in it{hint}")
    if manifest_path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{manifest_path} is larger than {MAX_MANIFEST_BYTES} bytes")
    content = manifest_path.read_bytes()
    own_hash = hashlib.sha256(content).hexdigest()
    if expected_hash not in (None, own_hash):
        raise ArtifactError(
            f"{manifest_path} has SHA-256 {own_hash[:12]}…, its parent expects "
            f"{str(expected_hash)[:12]}…; the bundle was changed or damaged, copy it again"
        )
    try:
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            raise ArtifactError(
                f"{path} has format {manifest['format']}, this sidrec reads {FORMAT}; "
                "load it with the version that wrote it"
            )
        artifact = Artifact(
            path=path,
            hash=own_hash,
            **{key: manifest[key] for key in _KEYS},
        )
        pins = [(str(name), dict(pin)) for name, pin in artifact.files.items()]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{manifest_path} is damaged: {error!r}") from error
    if kind is not None and artifact.kind != kind:
        raise ArtifactError(f"{path} holds a {artifact.kind}, expected a {kind}")
    for name, pin in pins:
        _check(path / name, name, pin)
    if ARRAYS in artifact.files:
        artifact.arrays.update(_arrays(path / ARRAYS))
    return artifact


_KEYS = ("kind", "config", "state", "parents", "versions", "files")


def load_nested(parent: Artifact, name: str, *, kind: str | None = None) -> Artifact:
    """The artifact `name` inside `parent`, checked against the hash the parent pins."""
    if name not in parent.files:
        raise ArtifactError(f"{parent.path} holds no {name}: have {sorted(parent.files)}")
    return load(parent.path / name, kind=kind, expected_hash=parent.files[name].get("sha256"))


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A new directory that becomes `path` in one rename, or vanishes if the block raises."""
    path = Path(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ArtifactError(f"{path} exists and is not a plain directory; choose another path")
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise ArtifactError(f"{path} holds files that sidrec did not write; choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        for child in sorted(temporary.rglob("*"), reverse=True):
            sync(child)
        sync(temporary)
        if path.exists():
            old = path.with_name(f"{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
            os.rename(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Replace one text file atomically: temporary file, sync, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush one file or directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def value_hash(*values: Any) -> str:
    """SHA-256 of plain JSON values, for caching by content."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what a fitted value depends on."""
    found = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _pin(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return {"artifact": True, "sha256": file_hash(path / MANIFEST)}
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def _check(path: Path, name: str, pin: Mapping[str, Any]) -> None:
    if not FILE_NAME.fullmatch(name):
        raise ArtifactError(
            f"{path.parent}: the manifest names a file {name!r} that is not allowed"
        )
    if path.is_symlink():
        raise ArtifactError(f"{path} is a symbolic link; copy the real file there")
    if pin.get("artifact"):
        return  # pinned by the hash of its manifest, checked by load_nested
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; copy the whole directory again")
    if path.stat().st_size != pin.get("bytes"):
        raise ArtifactError(
            f"{path} has {path.stat().st_size} bytes, its manifest says {pin.get('bytes')}; "
            "it is cut short or changed, copy it again"
        )
    if file_hash(path) != pin.get("sha256"):
        raise ArtifactError(f"{path} does not match its SHA-256; it was changed, copy it again")


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if header_bytes > min(MAX_HEADER_BYTES, path.stat().st_size - 8):
        raise ArtifactError(f"{path} claims a header of {header_bytes} bytes; it is damaged")
    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(f"{path} is not a readable safetensors file: {error}") from error
