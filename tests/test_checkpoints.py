import os
import shutil
from pathlib import Path

import pytest
import torch

from sidrec import checkpoints
from sidrec.checkpoints import load_newest, save_checkpoint
from sidrec.errors import ArtifactError


class Killed(BaseException):
    """Stands for the process dying: nothing may tidy up after it."""


def value(step):
    return {"w": torch.full((3,), float(step))}


def test_what_was_saved_comes_back_and_two_are_kept(tmp_path):
    for step in (5, 50, 1000):
        save_checkpoint(tmp_path, step, value(step), {"loss": 0.1 + step})
    tensors, state = load_newest(tmp_path) or ({}, {})
    assert torch.equal(tensors["w"], value(1000)["w"])
    assert state == {"loss": 1000.1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000000050", "step_000001000"]


def test_no_folder_is_no_checkpoint(tmp_path):
    assert load_newest(tmp_path / "absent") is None


@pytest.mark.parametrize("call", range(12))
def test_death_before_any_call_to_the_disk_leaves_the_newest_complete_one(
    tmp_path, monkeypatch, call
):
    save_checkpoint(tmp_path, 1, value(1), {"step": 1})
    save_checkpoint(tmp_path, 2, value(2), {"step": 2})
    calls = 0

    def dying(real):
        def wrapper(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > call:
                raise Killed
            return real(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", dying(checkpoints.save_file))
        patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
        for name in ("fsync", "rename"):
            patch.setattr(os, name, dying(getattr(os, name)))
        patch.setattr(Path, "mkdir", dying(Path.mkdir))
        patch.setattr(Path, "write_text", dying(Path.write_text))
        died = False
        try:
            save_checkpoint(tmp_path, 3, value(3), {"step": 3})
        except Killed:
            died = True
    tensors, state = load_newest(tmp_path) or ({}, {})
    assert state["step"] in (2, 3) and (died or state["step"] == 3)
    assert torch.equal(tensors["w"], value(state["step"])["w"])
    save_checkpoint(tmp_path, 4, value(4), {"step": 4})  # what was left over is in nobody's way
    assert not list(tmp_path.glob(".step*")) and len(list(tmp_path.iterdir())) == 2


def test_files_are_synced_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    events = []
    real_open, real_rename, names = os.open, os.rename, {}

    def opened(path, *args, **kwargs):
        descriptor = real_open(path, *args, **kwargs)
        names[descriptor] = Path(path).name
        return descriptor

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", lambda d: events.append(names[d]))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), real_rename(a, b))[1])
    save_checkpoint(tmp_path, 7, value(7), {})
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    assert sorted(before[:2]) == ["state.json", "tensors.safetensors"]
    assert before[2].startswith(".step_000000007") and after == [tmp_path.name]


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_removing_it_uncovers_the_one_before(tmp_path, file):
    save_checkpoint(tmp_path, 1, value(1), {"step": 1})
    newest = save_checkpoint(tmp_path, 2, value(2), {"step": 2})
    damaged = bytearray((newest / file).read_bytes())
    damaged[-2] ^= 0xFF
    (newest / file).write_bytes(bytes(damaged))
    with pytest.raises(ArtifactError, match="step_000000002 is damaged"):
        load_newest(tmp_path)
    shutil.rmtree(newest)
    found = load_newest(tmp_path)
    assert found is not None and found[1] == {"step": 1}


def test_tied_and_sliced_tensors_are_saved_whole(tmp_path):
    table = torch.arange(12.0).view(3, 4)
    save_checkpoint(tmp_path, 1, {"a": table, "b": table, "c": table.T, "d": table[1:]}, {})
    tensors, _ = load_newest(tmp_path) or ({}, {})
    for name, expected in {"a": table, "b": table, "c": table.T, "d": table[1:]}.items():
        assert torch.equal(tensors[name], expected)
