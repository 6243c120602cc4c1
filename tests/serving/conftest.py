"""A served tiny bundle: in this process for most tests, in a real process for durability."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn
from starlette.testclient import TestClient

from sidrec.serving.app import create_app
from sidrec.serving.auth import ROLES
from sidrec.serving.run import configured
from sidrec.serving.settings import ServeSettings

LOOPBACK = {"127.0.0.1", "::1", "localhost", "", None}
_going_out: list[str] = []
_watching = False


def _watch(event, args):
    """Refuse, and remember, connections and name look-ups that leave this machine."""
    if not _watching:
        return
    if event in ("socket.connect", "socket.sendto"):
        host = args[1][0] if isinstance(args[1], tuple) else None  # a Unix socket has a path
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    if host not in LOOPBACK:
        _going_out.append(f"{event} {host}")
        raise OSError(f"{event} to {host} goes out")


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def outgoing():
    """What tried to leave this machine during the test: nothing may. Servers in processes of their
    own are not seen, nor is what C libraries do by themselves.
    """
    global _watching
    _going_out.clear()
    _watching = True
    yield _going_out
    _watching = False
    assert _going_out == []


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


@pytest.fixture(scope="session")
def searching(bundles, tmp_path_factory):
    """A bundle that answers texts: its `path`, `recommender` and a `query`."""
    from sidrec import config
    from sidrec.data.search import made_search
    from sidrec.search_part import SearchConfig, fit_search

    tower = {
        "name": "dual_tower", "dim": 8, "hidden": [8], "num_steps": 20, "batch_size": 16,
        "text": {"name": "lsa", "dim": 16},
    }  # fmt: skip
    items, path = bundles.recommender.items, tmp_path_factory.mktemp("models") / "searching"
    part = fit_search(items, config.parse(SearchConfig, {"searchers": [tower]}), made_search(items))
    recommender = bundles.recommender.with_search(part)
    recommender.save(path)
    query = " ".join(recommender.titles[0].split()[:3])
    return SimpleNamespace(path=path, recommender=recommender, query=query)


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


@pytest.fixture
def listening(bundles, tmp_path):
    """Serve on a real socket in this process: `with listening(max_queue=2) as server`."""

    @contextmanager
    def start(**changes):
        changes = {"store": str(tmp_path / "store.sqlite"), "bundle": bundles.first, **changes}
        settings = ServeSettings(device="cpu", **changes)
        app = create_app(settings)
        running = uvicorn.Server(configured(app, settings))
        socket_ = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=running.run, args=([socket_],), daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        host, port = socket_.getsockname()
        try:
            yield SimpleNamespace(
                url=f"http://{host}:{port}", address=(host, port), service=app.state.service
            )
        finally:
            running.should_exit = True
            thread.join(120)
            socket_.close()
            assert not thread.is_alive()

    return start


class Cluster:
    """A PostgreSQL of our own, on a Unix socket in a folder of its own, and not as root."""

    def __init__(self, programs):
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="sidrec-pg-"))
        self.as_user = []
        if os.getuid() == 0:
            pwd.getpwnam("postgres")
            shutil.chown(self.folder, "postgres")
            self.as_user = ["runuser", "-u", "postgres", "--"]
        self.run("initdb", "--auth=trust", "--username=sidrec", "--encoding=UTF8", "--no-sync")
        self.start()
        self.count = 0

    def run(self, program, *words):
        command = [*self.as_user, str(self.programs / program), "-D", str(self.folder / "data")]
        subprocess.run([*command, *words], check=True, cwd="/", stdout=subprocess.DEVNULL)

    def start(self):
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder}"
        log = str(self.folder / "log")
        self.run("pg_ctl", "start", "--wait", "--timeout=120", "--log", log, "--options", options)

    def stop(self, how="immediate"):
        """Immediate: as if it had been killed."""
        self.run("pg_ctl", "stop", "--wait", "--timeout=120", "--mode", how)

    def database(self):
        """The URL of an empty database."""
        import psycopg

        self.count += 1
        name = f"store{self.count}"
        at = f"host={self.folder} user=sidrec dbname=postgres"
        with psycopg.connect(at, autocommit=True) as connection:
            connection.execute(f"create database {name}")
        return f"postgresql://sidrec@/{name}?host={self.folder}"


@pytest.fixture(scope="session")
def cluster():
    """A real PostgreSQL server; skipped where none is installed."""
    found = [Path(p).parent for p in glob.glob("/usr/lib/postgresql/*/bin/initdb")]
    if not found and (program := shutil.which("initdb")):
        found = [Path(program).resolve().parent]
    if not found:
        pytest.skip("NOT TESTED on PostgreSQL: it is not installed (apt-get install postgresql)")
    running = Cluster(sorted(found)[-1])
    yield running
    running.stop()
    shutil.rmtree(running.folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request, tmp_path):
    """An empty store of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite'}"
    return request.getfixturevalue("cluster").database()


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
        code = self.process.wait(120)
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
