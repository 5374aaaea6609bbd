"""The example as it is deployed: serve on PostgreSQL, a loop that waits, the first fit, and a stop."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx2

from tests.deploy.test_manifests import DEPLOY, ENVIRON, ROOT
from tests.docs.recipes import clean
from tests.gateway.serving import asked
from tests.gateway.standin import Standin
from tracer.flywheel.running import METRICS
from tracer.policies.registry import PolicyRegistry
from tracer.types import Dataset

TRACER = [sys.executable, "-m", "tracer.cli"]


def start(command: list[str], environ: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen([*TRACER, *command], env=dict(environ), cwd=ROOT, stdout=out, stderr=out)


def until(true: Callable[[], bool], what: str, log: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: {log.read_text(encoding='utf-8')[-2000:]}"
        time.sleep(0.1)


def test_from_the_first_call_to_the_loop(messages: Dataset, postgres: str, tmp_path: Path) -> None:
    texts, home = messages.texts, tmp_path / "home"
    assert texts is not None
    task, logs = home / "tasks" / "desk", {name: tmp_path / name for name in ("serve", "loop")}
    with Standin(dict(zip(texts, messages.labels, strict=True))) as api:
        environ = clean() | ENVIRON | {"TRACER_HOME": str(home), "DATABASE_URL": postgres}
        environ |= {"OPENAI_BASE_URL": api.url + "/v1", "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = ["--config", str(DEPLOY / "tracer.yaml"), "--host", "127.0.0.1", "--port", str(port)]
        gateway = start(["serve", *config], environ, logs["serve"])
        command = ["flywheel", "run", "--wait", "--every", "0.2", "--home", str(task)]
        loop = start(command, environ, logs["loop"])
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20.0) as client:

                def ready() -> bool:
                    try:
                        return client.get("/health/readiness").status_code == 200
                    except httpx2.TransportError:
                        return False

                until(ready, "the gateway does not start", logs["serve"])
                assert client.post("/v1/chat/completions", json=asked("hello")).status_code == 401
                client.headers["authorization"] = "Bearer tr-key"
                for text in texts[:700]:
                    reply = client.post("/v1/chat/completions", json=asked(text))
                    assert reply.status_code == 200, reply.text
                assert reply.headers["x-tracer-reason"] == "observe"
            assert api.asked[-1].headers["authorization"] == "Bearer sk-x"
            begun = time.monotonic()
            gateway.send_signal(signal.SIGTERM)
            assert gateway.wait(40) == 0, logs["serve"].read_text(encoding="utf-8")[-2000:]
            assert time.monotonic() - begun < 20.0
            assert loop.poll() is None
            assert not (task / METRICS).exists()
            # As docs/deployment.md says, with settings that so few traces allow.
            fit = [*TRACER, "fit", "--home", str(task), "--target", "0.8", "--features", "lexical"]
            done = subprocess.run(fit, env=environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
            assert done.returncode == 0, done.stdout + done.stderr
            assert PolicyRegistry(task).active_version() == "v0001"
            until((task / METRICS).exists, "the loop does not begin", logs["loop"])
            loop.send_signal(signal.SIGTERM)
            assert loop.wait(20) == 0
        finally:
            for process in (gateway, loop):
                if process.poll() is None:
                    process.kill()
                    process.wait()
    assert not (task / "traces.sqlite").exists(), "the traces are in PostgreSQL"
    assert "sk-x" not in "".join(log.read_text(encoding="utf-8") for log in logs.values())
