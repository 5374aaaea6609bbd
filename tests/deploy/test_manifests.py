"""What deploy/ says agrees with the code, and the files with each other: ports, paths, variables, drain times."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.recipes import clean
from tracer.errors import ConfigError
from tracer.gateway import auth
from tracer.gateway.app import DRAIN_S, application
from tracer.gateway.config import load
from tracer.gateway.credentials import sha256_of
from tracer.gateway.serving import Gateway
from tracer.gateway.settings import GatewayConfig

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
WRITE_S = 10
"""Seconds that a task's recorder has to write what waits: the default of ``TaskLine.close``."""
UID = 10001
HOME = "/var/lib/tracer"
CONFIG = "/etc/tracer/tracer.yaml"
ENVIRON = {
    "OPENAI_API_KEY": "sk-x",
    "TRACER_KEY_HASH": sha256_of("tr-key"),
    "TRACER_ADMIN_HASH": sha256_of("tr-admin"),
}


def settings() -> GatewayConfig:
    return load(DEPLOY / "tracer.yaml", ENVIRON)


def text(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text("compose.yaml"))
    return found


def kubernetes() -> dict[str, dict[str, Any]]:
    """Objects by kind; one of each."""
    documents = list(yaml.safe_load_all(text("kubernetes.yaml")))
    found = {one["kind"]: one for one in documents}
    assert len(found) == len(documents)
    return found


def unit(name: str) -> dict[str, list[str]]:
    """The values of a systemd unit by key; keys may come more than once."""
    found: dict[str, list[str]] = {}
    for line in text(name).splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def named_in(content: str) -> set[str]:
    """Variables that a document takes from the environment."""
    return set(re.findall(r"\$\{([A-Z_]+)", content))


def test_the_example_config_passes_the_dry_run(tmp_path: Path) -> None:
    environ = clean() | ENVIRON | {"TRACER_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "tracer.cli", "serve", "--config", str(DEPLOY / "tracer.yaml"), "--dry-run"]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["listen"]["host"], shown["home"]) == ("0.0.0.0", str(tmp_path / "home"))  # noqa: S104
    assert "sk-x" not in done.stdout
    assert not (tmp_path / "home").exists()


def test_the_example_config_asks_for_keys() -> None:
    config = settings()
    auth.check_bind(config, config.listen.host)
    assert config.admin is not None
    assert str(config.home) == HOME
    without = {name: value for name, value in ENVIRON.items() if name != "TRACER_KEY_HASH"}
    with pytest.raises(ConfigError, match="TRACER_KEY_HASH is not set"):
        load(DEPLOY / "tracer.yaml", without)


def test_its_variables_are_those_that_the_manifests_set() -> None:
    wanted = named_in(text("tracer.yaml"))
    assert wanted == {"TRACER_HOME", "OPENAI_BASE_URL", "OPENAI_API_KEY", "TRACER_KEY_HASH", "TRACER_ADMIN_HASH"}
    gateway = compose()["services"]["gateway"]["environment"]
    assert wanted - set(gateway) == {"TRACER_HOME"}, "the image sets that"
    secret = kubernetes()["Secret"]["stringData"]
    assert wanted - set(secret) == {"TRACER_HOME", "OPENAI_BASE_URL"}
    for name in set(gateway) | set(secret) | named_in(text("compose.yaml")):
        used = name in wanted or name in ("DATABASE_URL", "TRACER_WEBHOOK", "POSTGRES_PASSWORD")
        assert used, f"{name}: nothing reads it"
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    for name in (wanted | named_in(text("compose.yaml")) | {"DATABASE_URL"}) - {"TRACER_HOME", "OPENAI_BASE_URL"}:
        assert name in page, f"docs/deployment.md does not say what {name} is"


def test_no_manifest_holds_a_secret() -> None:
    for path in DEPLOY.iterdir():
        found = re.findall(r"sha256:[0-9a-f]{8}|\bsk-\w{4}|\btr-\w{8}", path.read_text(encoding="utf-8"))
        assert not found, f"{path.name}: {found}"
    assert set(kubernetes()["Secret"]["stringData"].values()) == {"REPLACE"}
    with pytest.raises(ConfigError, match="sha256"):
        load(DEPLOY / "tracer.yaml", dict.fromkeys(ENVIRON, "REPLACE"))


def test_the_config_of_kubernetes_is_the_example() -> None:
    assert yaml.safe_load(kubernetes()["ConfigMap"]["data"]["tracer.yaml"]) == yaml.safe_load(text("tracer.yaml"))


def test_ports_are_the_gateways() -> None:
    port = settings().listen.port
    assert re.findall(r"^EXPOSE (\d+)$", text("Dockerfile"), re.M) == [str(port)]
    assert re.findall(r"http://127.0.0.1:(\d+)/", text("Dockerfile")) == [str(port)]
    assert compose()["services"]["gateway"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    pod = kubernetes()["Deployment"]["spec"]["template"]
    assert pod["spec"]["containers"][0]["ports"] == [{"name": "http", "containerPort": port}]
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(port)
    assert kubernetes()["Service"]["spec"]["ports"] == [{"name": "http", "port": port, "targetPort": "http"}]


def test_probes_ask_for_paths_that_there_are() -> None:
    paths = {getattr(route, "path", "") for route in application(Gateway(settings())).routes}
    gateway = kubernetes()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    probes = {name: gateway[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert probes["livenessProbe"] == "/health/liveliness", "an upstream that is down is no reason to restart"
    asked = set(probes.values()) | set(re.findall(r"http://127.0.0.1:\d+(/[a-z/]+)", text("Dockerfile")))
    asked.add(kubernetes()["Deployment"]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"])
    assert asked == {"/health/readiness", "/health/liveliness", "/metrics"}
    assert asked <= paths


def test_everyone_waits_longer_than_the_gateway_drains() -> None:
    needed = DRAIN_S + WRITE_S
    assert seconds(compose()["services"]["gateway"]["stop_grace_period"]) > needed
    pod = kubernetes()["Deployment"]["spec"]["template"]["spec"]
    pause = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + needed
    assert seconds(unit("tracer.service")["TimeoutStopSec"][0]) > needed


def seconds(value: str) -> int:
    return int(value.removesuffix("s"))


def test_paths_are_one_and_the_same() -> None:
    image = text("Dockerfile")
    assert re.findall(r"^VOLUME (.*)$", image, re.M) == re.findall(r"^WORKDIR (/var.*)$", image, re.M) == [HOME]
    assert re.findall(r"^CMD (.*)$", image, re.M) == [json.dumps(["serve", "--config", CONFIG])]
    assert f"TRACER_HOME={HOME}" in image
    assert f"USER {UID}:{UID}" in image
    services = compose()["services"]
    assert services["gateway"]["volumes"] == [f"home:{HOME}", f"./tracer.yaml:{CONFIG}:ro"]
    assert services["flywheel"]["volumes"] == [f"home:{HOME}"]
    pod = kubernetes()["Deployment"]["spec"]["template"]["spec"]
    for container in pod["containers"]:
        mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
        assert mounts == {"home": HOME, "config": str(Path(CONFIG).parent), "tmp": "/tmp"}  # noqa: S108
    assert {volume["name"] for volume in pod["volumes"]} == {"home", "config", "tmp"}
    assert pod["containers"][0]["args"] == ["serve", "--config", CONFIG]
    assert unit("tracer.service")["ExecStart"] == [f"/opt/tracer/bin/tracer serve --config {CONFIG} --host 127.0.0.1"]
    for name in ("tracer.service", "tracer-flywheel@.service"):
        assert unit(name)["WorkingDirectory"] == [HOME]
        assert unit(name)["StateDirectory"] == [Path(HOME).name]


def test_the_flywheel_watches_the_task_of_the_example() -> None:
    (task,) = settings().tasks
    wanted = ["flywheel", "run", "--wait", "--home", str(settings().task_home(task.name))]
    assert compose()["services"]["flywheel"]["command"] == wanted
    assert kubernetes()["Deployment"]["spec"]["template"]["spec"]["containers"][1]["args"] == wanted
    line = unit("tracer-flywheel@.service")["ExecStart"][0]
    assert line.replace("%i", task.name).split()[1:] == wanted


def test_nobody_is_root_and_nothing_is_writable_but_the_home() -> None:
    for name in ("gateway", "flywheel"):
        service = compose()["services"][name]
        assert service["read_only"]
        assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    pod = kubernetes()["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert {pod["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {UID}
    assert not pod["automountServiceAccountToken"]
    for container in pod["containers"]:
        locked = container["securityContext"]
        assert locked["readOnlyRootFilesystem"]
        assert not locked["allowPrivilegeEscalation"]
        assert locked["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
    for name in ("tracer.service", "tracer-flywheel@.service"):
        found = unit(name)
        assert (found["User"], found["NoNewPrivileges"]) == (["tracer"], ["yes"])
        assert (found["ProtectSystem"], found["CapabilityBoundingSet"]) == (["strict"], [""])


def test_selectors_find_the_pods() -> None:
    found = kubernetes()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert found["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1, "with one replica, minAvailable blocks a drain"
    names = {found[kind]["metadata"]["name"] for kind in ("ConfigMap", "Secret", "PersistentVolumeClaim")}
    assert names == {"tracer"}


def test_the_database_is_the_one_that_the_store_opens() -> None:
    services = compose()["services"]
    url = services["gateway"]["environment"]["DATABASE_URL"]
    assert services["flywheel"]["environment"]["DATABASE_URL"] == url
    postgres = services["postgres"]["environment"]
    password = re.escape(postgres["POSTGRES_PASSWORD"])
    pattern = f"postgresql://{postgres['POSTGRES_USER']}:{password}@postgres:5432/{postgres['POSTGRES_DB']}"
    assert re.fullmatch(pattern, url)
    assert "ports" not in services["postgres"]


def test_the_image_is_built_from_what_is_there() -> None:
    image, ignored = text("Dockerfile"), (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*)$", image, re.M) for name in line.split()[:-1]]
    assert copied == ["pyproject.toml", "README.md", "LICENSE", "src"]
    assert all((ROOT / name).exists() for name in copied)
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied), "nothing else reaches the builder"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.findall(r"^ARG EXTRAS=(.*)$", image, re.M)[0].split(",")
    assert {"gateway", "postgres"} <= set(extras) <= set(project["optional-dependencies"])
    bases = re.findall(r"^FROM (\S+)", image, re.M)
    assert bases == ["${PYTHON_IMAGE}"] * 2
    tag = re.findall(r"^ARG PYTHON_IMAGE=python:(\d\.\d+)-slim-\w+$", image, re.M)
    assert tag, "the base image has a tag"
    assert tag[0] >= project["requires-python"].removeprefix(">=")
    pod = kubernetes()["Deployment"]["spec"]["template"]["spec"]
    assert {container["image"] for container in pod["containers"]} == {f"tracer:{project['version']}"}


def test_units_are_read_as_ini() -> None:
    for name in ("tracer.service", "tracer-flywheel@.service"):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read_string(text(name))
        assert parser.sections()[:2] == ["Unit", "Service"]
        assert parser["Install"]["WantedBy"] == "multi-user.target"
