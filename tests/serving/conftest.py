"""A served tiny bundle: in this process for most tests, in a real process for durability."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from sidrec.serving.app import create_app
from sidrec.serving.auth import ROLES
from sidrec.serving.settings import ServeSettings


@pytest.fixture(scope="session")
def bundles(tiny, tmp_path_factory):
    """A models folder with `first`, `second` (another seedless twin: other beam) and a history."""
    import sidrec

    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny.run.bundle, folder / "first")
    recommender = sidrec.load(folder / "first", device="cpu")
    from dataclasses import replace

    replace(recommender, beam_width=recommender.beam_width + 5).save(folder / "second")
    ids = [str(item) for item in recommender.items.item_ids]
    return SimpleNamespace(
        folder=folder, first=folder / "first", second=folder / "second", ids=ids,
        history=list(tiny.run.example_history()), columns=recommender.items.attributes.columns,
        recommender=recommender,
    )  # fmt: skip


@pytest.fixture
def serving(bundles, tmp_path):
    """Start a client over settings: `with serving(max_queue=2) as client`."""

    @contextmanager
    def start(**changes):
        changes = {"store": str(tmp_path / "store.sqlite"), "bundle": bundles.first, **changes}
        app = create_app(ServeSettings(device="cpu", **changes))
        with TestClient(app, raise_server_exceptions=False) as client:
            client.service = app.state.service
            yield client

    return start


@pytest.fixture(scope="module")
def shared(bundles, tmp_path_factory):
    """One client for tests of a file that leave nothing behind."""
    store = str(tmp_path_factory.mktemp("shared") / "store.sqlite")
    app = create_app(ServeSettings(bundle=bundles.first, store=store, device="cpu"))
    with TestClient(app, raise_server_exceptions=False) as client:
        client.service = app.state.service
        yield client


class Process:
    """`sidrec serve` as a process of its own, for tests that kill it."""

    def __init__(self, bundle, store):
        words = ["serve", str(bundle), "--port", "0", "--store", str(store), "--device", "cpu"]
        program = "import sys; from sidrec.cli import main; main(sys.argv[1:])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        said = ""
        while not (found := re.search(r"at (http://\S+)", said)):
            line = self.process.stderr.readline()
            assert line, f"the server ended: {said}"
            said += line
        self.url = found.group(1)

    def ask(self, method, path, body=None):
        """(status, body) of one request."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=content, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def end(self, how=signal.SIGTERM):
        """Signal the process, and wait until it is gone: its exit code."""
        self.process.send_signal(how)
        code = self.process.wait(30)
        self.process.stderr.close()
        return code


@pytest.fixture
def server():
    """Start real servers; those that still run are ended."""
    started = []

    def start(bundle, store):
        started.append(Process(bundle, store))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.end(signal.SIGKILL)


@pytest.fixture(scope="session")
def keys_of():
    """A key of each role."""
    return {role: f"sidrec_{role}" for role in ROLES[1:]}


@pytest.fixture
def keys_file(keys_of, tmp_path):
    """The file that the server knows them by."""
    path = tmp_path / "keys.toml"
    path.write_text(
        "\n".join(
            f'[keys.{role}]\nrole = "{role}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"'
            for role, key in keys_of.items()
        )
    )
    return path
