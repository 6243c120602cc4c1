"""--keep-awake: the request to the kernel, its end, and what is said where it may not be made."""

import struct

import pytest

from sidrec.errors import ServiceError
from sidrec.serving import awake, run
from sidrec.serving.settings import ServeSettings


def test_zero_microseconds_are_asked_for_while_the_block_runs(tmp_path, monkeypatch):
    device = tmp_path / "latency"
    device.write_bytes(b"")
    monkeypatch.setattr(awake, "DEVICE", device)
    closed = []
    close = awake.os.close
    monkeypatch.setattr(awake.os, "close", lambda number: (closed.append(number), close(number)))
    with awake.cores_awake():
        assert device.read_bytes() == struct.pack("i", 0)
        assert not closed  # the kernel forgets the request once the file is closed
    assert len(closed) == 1


def test_nothing_is_opened_unless_it_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(awake, "DEVICE", tmp_path / "none")
    with awake.cores_awake(False):
        pass


def test_a_server_that_may_not_ask_says_so_and_frees_its_port(tmp_path, monkeypatch):
    monkeypatch.setattr(awake, "DEVICE", tmp_path / "none")
    settings = ServeSettings(bundle=tmp_path, port=0, keep_awake=True)
    with pytest.raises(ServiceError, match="serve without --keep-awake"):
        run.serve(settings, started=lambda url: pytest.fail("must not start"))
