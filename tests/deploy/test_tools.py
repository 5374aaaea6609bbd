"""What the tools themselves say of deploy/: linters, schemas, systemd, and a build from what the image is given."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.docs.recipes import program
from tracer import __version__

pytestmark = pytest.mark.clients
ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = ("tracer.service", "tracer-flywheel@.service")


def tool(name: str) -> str:
    """A tool of the group ``clients``, beside this Python."""
    return str(Path(sys.executable).with_name(name))


def run(command: Sequence[str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


def test_hadolint() -> None:
    done = run([tool("hadolint"), str(DEPLOY / "Dockerfile")])
    assert (done.returncode, done.stdout) == (0, "")


def test_kubernetes_schemas(tmp_path: Path) -> None:
    done = run([tool("kubernetes-validate"), "--strict", str(DEPLOY / "kubernetes.yaml")])
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("passed") == 6
    wrong = tmp_path / "wrong.yaml"
    content = (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")
    wrong.write_text(content.replace("readinessProbe:", "readynessProbe:"), encoding="utf-8")
    assert run([tool("kubernetes-validate"), "--strict", str(wrong)]).returncode != 0, "the check itself can fail"


def test_compose_schema() -> None:
    from compose_spec import ComposeSpecification

    content = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    read = ComposeSpecification.model_validate(content)
    assert set(read.services) == {"gateway", "flywheel", "postgres"}
    content["services"]["gateway"]["read_only"] = ["no"]
    with pytest.raises(ValueError, match="read_only"):
        ComposeSpecification.model_validate(content)


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units with a program in place of /opt/tracer/bin/tracer, which systemd wants to see."""
    fake = tmp_path / "tracer"
    fake.write_text("#!/bin/sh\n", encoding="utf-8")
    fake.chmod(0o755)
    found = []
    for name in UNITS:
        content = (DEPLOY / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(content.replace("/opt/tracer/bin/tracer", str(fake)), encoding="utf-8")
        found.append(tmp_path / name)
    return found


def test_systemd_reads_the_units(units: list[Path]) -> None:
    done = run([program("systemd-analyze"), "verify", *map(str, units)])
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_finds_little_to_attack(units: list[Path]) -> None:
    for path in units:
        done = run([program("systemd-analyze"), "security", "--offline=true", "--threshold=20", str(path)])
        assert done.returncode == 0, done.stdout
        level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
        assert level is not None
        assert float(level[1]) < 2.0


def test_what_the_image_is_given_is_enough_to_install(tmp_path: Path) -> None:
    """The steps of the Dockerfile, without the dependencies: a venv, what COPY brings, pip from outside."""
    context, target = tmp_path / "build", tmp_path / "venv"
    context.mkdir()
    image = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (?!--from)(.*)$", image, re.M):
        *names, to = line.split()
        for name in names:
            source, place = ROOT / name, context / to / ("" if (ROOT / name).is_dir() else name)
            if source.is_dir():
                shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, place)
    assert run([sys.executable, "-m", "venv", "--without-pip", str(target)]).returncode == 0
    python = target / "bin" / "python3"
    done = run([sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "."], cwd=context)
    assert done.returncode == 0, done.stderr
    assert os.access(target / "bin" / "tracer", os.X_OK)
    shown = run([str(python), "-c", "import tracer; print(tracer.__file__)"], cwd=tmp_path)
    assert shown.stdout.startswith(str(target)), shown.stderr
    (info,) = (target / "lib").glob("python*/site-packages/tracer_router-*.dist-info")
    assert info.name == f"tracer_router-{__version__}.dist-info"
    assert not list((target / "lib").glob("python*/site-packages/pip"))
    assert list((target / "lib").glob("python*/site-packages/tracer/**/*.j2")), "the templates too"
