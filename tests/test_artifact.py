from __future__ import annotations

import json
import os

import numpy as np
import pytest

from sidrec import artifact
from sidrec.errors import ArtifactError

ARRAYS = {"a": np.arange(6, dtype=np.int64).reshape(2, 3), "b": np.ones(3, dtype=np.float32)}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "value"
    artifact.save(path, kind="toy", arrays=ARRAYS, config={"width": 3}, state=["x", None])
    return path


def test_what_is_saved_comes_back_equal(saved):
    loaded = artifact.load(saved, kind="toy")
    assert (loaded.config, loaded.state) == ({"width": 3}, ["x", None])
    assert loaded.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert loaded.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded.arrays[name], array)


def test_the_hash_depends_on_the_bytes_alone(tmp_path):
    hashes = [artifact.save(tmp_path / n, kind="toy", arrays=ARRAYS) for n in ("one", "two")]
    other = artifact.save(tmp_path / "three", kind="toy", arrays={"a": ARRAYS["a"] + 1})
    assert hashes[0] == hashes[1] == artifact.load(tmp_path / "one").hash != other


@pytest.mark.parametrize("name", ["arrays.safetensors", "manifest.json"])
def test_one_flipped_bit_or_a_cut_file_is_refused(saved, name):
    path, parent = saved / name, saved.parent / "parent"
    with artifact.atomic_directory(parent) as temporary:
        os.rename(saved, temporary / "inner")
        artifact.seal(temporary, kind="parent")
    path = parent / "inner" / name
    good = path.read_bytes()
    for bad in (good[:-1], good[:40] + bytes([good[40] ^ 1]) + good[41:], b""):
        path.write_bytes(bad)
        with pytest.raises(ArtifactError):
            artifact.load_nested(artifact.load(parent), "inner")
    path.write_bytes(good)
    artifact.load_nested(artifact.load(parent), "inner", kind="toy")


def test_symbolic_links_are_refused(saved, tmp_path):
    real = saved / "arrays.safetensors"
    os.rename(real, tmp_path / "elsewhere")
    real.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="symbolic link"):
        artifact.load(saved)
    (tmp_path / "link").symlink_to(saved)
    with pytest.raises(ArtifactError, match="symbolic link"):
        artifact.load(tmp_path / "link")
    with pytest.raises(ArtifactError, match="plain directory"):
        artifact.save(tmp_path / "link", kind="toy")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", ".hidden", "x" * 65])
def test_a_manifest_cannot_name_a_file_outside(saved, name):
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 0, "sha256": ""}
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="not allowed"):
        artifact.load(saved)


def test_an_oversized_header_is_refused_before_it_is_read(saved):
    path = saved / "arrays.safetensors"
    path.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"][path.name] = {"bytes": 10, "sha256": artifact.file_hash(path)}
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="claims a header"):
        artifact.load(saved)


def test_a_failed_save_leaves_the_former_value_and_no_litter(saved):
    with pytest.raises(RuntimeError), artifact.atomic_directory(saved):
        raise RuntimeError("disk full")
    assert artifact.load(saved).config == {"width": 3}
    assert [p.name for p in saved.parent.iterdir()] == ["value"]


def test_a_save_replaces_a_former_value_but_never_a_strangers_folder(saved, tmp_path):
    artifact.save(saved, kind="toy", config=2)
    assert artifact.load(saved).config == 2
    assert not (saved / "arrays.safetensors").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    with pytest.raises(ArtifactError, match="did not write"):
        artifact.save(tmp_path / "photos", kind="toy")
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_wrong_kind_missing_folder_and_foreign_format_say_so(saved, tmp_path):
    with pytest.raises(ArtifactError, match="holds a toy, expected a bundle"):
        artifact.load(saved, kind="bundle")
    with pytest.raises(ArtifactError, match="not a sidrec artifact"):
        artifact.load(tmp_path / "nothing")
    manifest = json.loads((saved / "manifest.json").read_text()) | {"format": 99}
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="format 99"):
        artifact.load(saved)
