"""Checkpoints that survive `kill -9`: a directory of tensors and JSON, whole or not there at all.

Each is written to a temporary directory beside the others, synced, and renamed to its step number,
so what bears a step number is complete and the highest number is the newest. Two are kept.
Nothing read here is executed.

Layout:  <folder>/step_000001200/{tensors.safetensors, state.json}
Cost:    one write and one SHA-256 of the tensors.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sidrec import artifact
from sidrec.errors import ArtifactError

KEEP = 2
"""Complete checkpoints left in place; older ones are removed."""


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]
) -> Path:
    """Write checkpoint `step` whole, then remove all but the newest two; its directory."""
    for left_over in folder.glob(".step_*"):
        shutil.rmtree(left_over)
    final = folder / f"step_{step:09d}"
    with artifact.atomic_directory(final) as writing:
        save_file(_own_memory(tensors), writing / "tensors.safetensors")
        digest = artifact.file_hash(writing / "tensors.safetensors")
        text = json.dumps({"tensors_sha256": digest, "state": state})
        (writing / "state.json").write_text(text, encoding="utf-8")
    for old in _complete(folder)[:-KEEP]:
        shutil.rmtree(old)
    return final


def load_newest(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Tensors (on the CPU) and state of the newest complete checkpoint; None where there is none.

    Raises ArtifactError when its files are damaged, naming the directory to remove.
    """
    complete = _complete(folder)
    if not complete:
        return None
    newest = complete[-1]
    try:
        envelope = json.loads((newest / "state.json").read_text())
        if envelope["tensors_sha256"] != artifact.file_hash(newest / "tensors.safetensors"):
            raise ValueError("the tensors do not match their SHA-256")
        return load_file(newest / "tensors.safetensors"), envelope["state"]
    except (ValueError, KeyError, OSError, SafetensorError) as error:
        raise ArtifactError(
            f"checkpoint {newest} is damaged ({error}); remove that directory and run again to "
            "resume from the one before it, or from the start"
        ) from error


def _complete(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*"))


def _own_memory(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU, contiguous, and without the shared storage of tied weights."""
    seen: set[int] = set()
    owned: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        owned[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return owned
