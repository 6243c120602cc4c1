"""A cache of fitted embedders and their vectors, by the content they came from.

The key is a hash of method, config, item ids, texts, training events and any file the config
names, so a stale entry cannot be found. One safetensors file an entry, written beside its place
and renamed; its hash is checked before use, and a damaged entry is built again.

Source:  none.
Differs: nothing to differ from.
Cost:    one hash of the inputs; reading an entry costs its size.
Shapes:  none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sidrec.types import CatalogueContext, ItemVectors

log = logging.getLogger(__name__)
FORMAT = 1
VECTORS = "embedded"


def fit_embed(
    embedder_class: Any, context: CatalogueContext, config: Any, folder: str | Path | None
) -> tuple[Any, ItemVectors]:
    """`fit` and `embed` of the catalogue, read from `folder` where it holds them already.

    `folder` None computes and keeps nothing.
    """
    path = None
    if folder is not None:
        path = Path(folder) / f"{content_key(embedder_class, context, config)}.safetensors"
        if (entry := _read(path)) is not None:
            arrays, extra = entry
            vectors = arrays.pop(VECTORS)
            views = tuple((str(name), int(width)) for name, width in extra["views"])
            embedder = embedder_class.from_arrays(config, arrays, extra["state"])
            return embedder, ItemVectors(context.items.item_ids, vectors, views)
    embedder = embedder_class.fit(context, config)
    vectors = embedder.embed(context.items)
    if path is not None:
        arrays = {**embedder.arrays(), VECTORS: vectors.vectors}
        _write(path, arrays, {"state": embedder.state(), "views": vectors.views})
    return embedder, vectors


def content_key(embedder_class: Any, context: CatalogueContext, config: Any) -> str:
    """SHA-256 over everything the vectors depend on."""
    digest = hashlib.sha256()
    settings = asdict(config)
    name = f"{embedder_class.__module__}.{embedder_class.__qualname__}"
    head = {"format": FORMAT, "method": name, "config": settings}
    digest.update(json.dumps(head, sort_keys=True, default=str).encode())
    for path in _files_named(settings):
        digest.update(f"\0{path.name}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for values in (context.items.item_ids, context.items.texts()):
        digest.update(json.dumps([str(v) for v in values]).encode())
    for array in (context.train.items_E, context.train.offsets):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _files_named(settings: Any) -> Iterator[Path]:
    """Files that a config names, and the files of folders it names (a local model)."""
    for value in settings.values() if isinstance(settings, dict) else settings:
        if isinstance(value, (dict, list, tuple)):
            yield from _files_named(value)
        elif isinstance(value, str) and value and Path(value).exists():
            path = Path(value)
            found = [path] if path.is_file() else sorted(path.rglob("*"))
            yield from (file for file in found if file.is_file())


def _hash(arrays: dict[str, np.ndarray], extra: str) -> str:
    digest = hashlib.sha256(extra.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _write(path: Path, arrays: dict[str, np.ndarray], extra: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(extra)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        save_file(arrays, temporary, metadata={"extra": text, "sha256": _hash(arrays, text)})
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Arrays and state of an entry; None where there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        metadata, arrays = {}, {}
    text = metadata.get("extra", "")
    if metadata.get("sha256") != _hash(arrays, text):
        log.warning("embedding cache: %s is damaged and is built again", path.name)
        return None
    return arrays, json.loads(text)
