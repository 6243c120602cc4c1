"""The container files, read as text, since no engine runs here: what they name exists, and nothing
runs as root, listens beyond loopback, or moves under a floating tag.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from sidrec.serving.auth import needed_role
from sidrec.serving.metrics import Metrics
from sidrec.serving.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def instructions():
    """(word, rest) of each instruction, continued lines joined."""
    text = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and line[0] != "#"]
    return [(word, rest.strip()) for word, rest in lines]


def of(word):
    return [rest for found, rest in instructions() if found == word]


def volumes_of(service):
    return [volume.rsplit(":", 2) for volume in service.get("volumes", [])]


def is_fixed(image):
    name, _, tag = image.partition(":")
    return bool(name) and bool(re.fullmatch(r"v?\d+(\.\d+)+(-[\w-]+)?", tag))


def test_the_image_is_built_in_stages_and_runs_as_nobody_in_particular():
    froms = of("FROM")
    assert len(froms) == 2 and all(is_fixed(line.split()[0]) for line in froms)
    words = [word for word, _ in instructions()]
    last = words[len(words) - words[::-1].index("FROM") :]
    assert last.index("USER") < last.index("ENTRYPOINT")
    assert of("USER") == ["10001:10001"]
    assert "pip" not in " ".join(rest for word, rest in instructions()[words.index("USER") :])
    assert "ADD" not in words and "/livez" in of("HEALTHCHECK")[0]
    assert "PYTHONDONTWRITEBYTECODE=1" in of("ENV")[-1] and "HOME=/tmp" in of("ENV")[-1]


def test_the_image_copies_what_there_is_and_installs_what_pyproject_names():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (installed,) = re.findall(r"install '\.\[([\w,]+)\]'", " ".join(of("RUN")))
    assert set(installed.split(",")) <= set(extras) and "serve" in installed.split(",")
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in of("COPY"):
        if not line.startswith("--from"):
            for name in line.split()[:-1]:
                assert (ROOT / name).exists() and name not in ignored, name


def test_the_command_is_one_that_sidrec_takes():
    import typer.main

    from sidrec.cli import app

    words = json.loads(of("CMD")[0])
    serve = typer.main.get_command(app).commands[words[0]]
    options = {name for parameter in serve.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
    given = dict(zip(words[2::2], words[3::2], strict=True))
    keys, host = Path(given["--keys"]), given["--host"]
    ServeSettings(bundle=Path(words[1]), host=host, keys_file=keys, store=given["--store"])
    assert keys.parent == Path("/run/secrets") and keys.name in SERVICES["sidrec"]["secrets"]
    mounted = {target for _, target, *_ in volumes_of(SERVICES["sidrec"])}
    assert {"/data", "/models"} <= mounted and given["--store"].startswith("/data/")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_fixed_small_in_rights_and_on_loopback(name):
    service = SERVICES[name]
    assert is_fixed(service["image"]) and service["read_only"] is True
    assert service["user"].split(":")[0] not in ("", "0", "root")
    assert service["cap_drop"] == ["ALL"] and not service.get("cap_add")
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged") and service.get("network_mode") != "host"
    assert service["ports"] and all(port.startswith("127.0.0.1:") for port in service["ports"])
    for source, target, *mode in volumes_of(service):
        if source.startswith((".", "/", "$")):
            assert mode == ["ro"], target
        else:
            assert source in COMPOSE["volumes"]
        if source.startswith("./") and "models" not in source:
            assert (DEPLOY / source).exists()
    assert set(service["secrets"]) <= set(COMPOSE["secrets"])
    assert all("PASSWORD" not in k or k.endswith("__FILE") for k in service.get("environment", {}))


def test_secrets_and_models_are_not_committed():
    ignored = (DEPLOY / ".gitignore").read_text().split()
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].startswith("./secrets/") and "secrets/" in ignored


def test_prometheus_reads_our_metrics_with_a_key_that_it_has():
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    ((target,),) = [entry["targets"] for entry in job["static_configs"]]
    host, port = target.split(":")
    assert host in SERVICES and f":{port}" in SERVICES[host]["ports"][0]
    assert needed_role("GET", job["metrics_path"]) != "public"
    secret = Path(job["authorization"]["credentials_file"])
    assert secret.parent == Path("/run/secrets")
    assert secret.name in SERVICES["prometheus"]["secrets"]


def series():
    """Every series that /metrics may hold."""
    endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    for family in Metrics().registry.collect():
        yield from (family.name + ending for ending in endings[family.type])


def test_the_dashboard_shows_only_figures_that_there_are_and_all_of_ours():
    folder = DEPLOY / "grafana"
    board = json.loads((folder / "dashboards" / "sidrec.json").read_text())
    texts = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    named = set(re.findall(r"\b(?:sidrec|process)_\w+", " ".join(texts)))
    have = set(series())
    assert named <= have
    ours = {name for name in have if name.startswith("sidrec_")}
    stems = {re.sub("_(total|bucket|sum|count)$", "", name) for name in named}
    assert {re.sub("_(total|bucket|sum|count)$", "", name) for name in ours} <= stems
    source = yaml.safe_load((folder / "provisioning/datasources/prometheus.yaml").read_text())
    (source,) = source["datasources"]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}
    assert source["url"].split("//")[1].split(":")[0] in SERVICES
    provider = yaml.safe_load((folder / "provisioning/dashboards/sidrec.yaml").read_text())
    path = provider["providers"][0]["options"]["path"]
    assert path in {target for _, target, *_ in volumes_of(SERVICES["grafana"])}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
