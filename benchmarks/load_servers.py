"""Processes that `benchmarks.gateway_load` measures, each on one core, asleep while others are measured.

The server under test has a core of its own; the clients, and the stand-in that it asks, share the other one.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
HOST = "127.0.0.1"
CHAT = "/v1/chat/completions"
LITELLM_ENV = "TRACER_BENCH_LITELLM"
COMPROMISED = ("1.82.7", "1.82.8")
"""Releases of LiteLLM that stole credentials (March 2026): never run."""
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cores:
    """Numbers of the cores of the server and of the clients; None where this machine lends only one."""

    server: int | None
    clients: int | None

    @classmethod
    def here(cls) -> Cores:
        """The first and the last that this process may use."""
        known = sorted(os.sched_getaffinity(0))
        return cls(known[0], known[-1]) if len(known) > 1 else cls(None, None)


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """What is started meanwhile runs on this core."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(slots=True, eq=False)
class Server:
    """A process that listens. ``start_s``: from its start until it answered."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    start_s: float

    @contextmanager
    def awake(self) -> Iterator[None]:
        """It runs meanwhile, and sleeps before (from the first `signal`) and after."""
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def signal(self, number: int) -> None:
        """To the process and all its children."""
        for pid in self._pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _pids(self) -> list[int]:
        """The process and its children, at any depth."""
        found, at = [self.process.pid], 0
        while at < len(found):
            with suppress(OSError):
                tasks = Path(f"/proc/{found[at]}/task").glob("*/children")
                found += [int(pid) for task in tasks for pid in task.read_text(encoding="ascii").split()]
            at += 1
        return found

    def cpu_s(self) -> float:
        """Seconds of processor time so far."""
        total = 0
        for pid in self._pids():
            with suppress(OSError):
                stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
                total += int(stat[11]) + int(stat[12])
        return total / _TICK

    def rss_mib(self) -> float:
        """Resident memory, pages shared between its processes counted once for each."""
        return sum(rss_mib(pid) for pid in self._pids())

    def get(self, path: str) -> bytes:
        """The body of a GET. Raises RuntimeError where that is not 200."""
        return _got(self.port, path)

    def post(self, body: str, path: str = CHAT) -> tuple[int, Mapping[str, str], bytes]:
        """(status, headers in lower case, body) of a POST."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        try:
            connection.request("POST", path, body.encode(), {"content-type": "application/json"})
            reply = connection.getresponse()
            return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
        finally:
            connection.close()


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started(
    name: str,
    command: Sequence[str],
    port: int,
    core: int | None,
    *,
    ready: str = "/health/readiness",
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    timeout_s: float = 120.0,
) -> Iterator[Server]:
    """A process with one thread for each numeric library, until it answers ``ready``; ended at the end.

    What it prints goes to ``log``, or nowhere. Raises RuntimeError where it ends or does not answer in time.
    """
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    begun = time.perf_counter()
    with ExitStack() as stack:
        sink = stack.enter_context(log.open("wb")) if log is not None else subprocess.DEVNULL
        with on_core(core):
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **threads, **(env or {})},
            )
        try:
            while True:
                if process.poll() is not None or time.perf_counter() - begun > timeout_s:
                    said = log.read_text(encoding="utf-8", errors="replace")[-2000:] if log is not None else ""
                    raise RuntimeError(f"{name} does not serve: {said}")
                try:
                    _got(port, ready)
                    break
                except (OSError, http.client.HTTPException, RuntimeError):
                    time.sleep(0.01)
            yield Server(name, port, process, round(time.perf_counter() - begun, 2))
        finally:
            server = Server(name, port, process, 0.0)
            server.signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _got(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        body = reply.read()
        if reply.status != 200:
            raise RuntimeError(f"GET {path}: {reply.status}")
        return body
    finally:
        connection.close()


def standin(
    name: str, label: str, core: int | None, *, median_s: float = 0.0, spread: float = 0.0, seed: int = 0
) -> AbstractContextManager[Server]:
    """The stand-in for an LLM API, with a latency or none."""
    port = free_port()
    command = [sys.executable, str(HERE / "load_standin.py"), str(port), label, str(median_s), str(spread), str(seed)]
    return started(name, command, port, core, ready="/stats")


def echo(answer: Path, core: int | None) -> AbstractContextManager[Server]:
    """Starlette on the gateway's server, and nothing else."""
    port = free_port()
    path = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, str(HERE / "load_echo.py"), str(port), str(answer)]
    return started("echo", command, port, core, ready="/health", env=path)


def gateway(name: str, config: Path, core: int | None, log: Path | None = None) -> AbstractContextManager[Server]:
    """``tracer serve`` on a config."""
    port = free_port()
    command = [sys.executable, "-m", "tracer.cli", "serve", "--config", str(config), "--port", str(port)]
    path = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return started(name, command, port, core, env=path, log=log)


def gateway_config(home: Path, upstreams: Mapping[str, int], tasks: Mapping[str, tuple[str, float]], level: str) -> str:
    """``tracer.yaml``: upstreams by their ports; tasks, whose aliases are their names, by upstream and audit rate."""
    lines = [f"home: {home}", f"log_level: {level}", "upstreams:"]
    lines += [f"  {name}: {{base_url: 'http://{HOST}:{port}/v1', retries: 0}}" for name, port in upstreams.items()]
    lines += ["tasks:"]
    for name, (upstream, rate) in tasks.items():
        lines += [
            f"  {name}:",
            f"    match: {{models: [{name}]}}",
            "    teacher: gpt-4o-mini",
            "    mode: live",
            f"    upstream: {upstream}",
            f"    audit_rate: {rate}",
        ]
    return "\n".join(lines) + "\n"


def litellm(python: Path, model: str, upstream: int, folder: Path, core: int | None) -> AbstractContextManager[Server]:
    """LiteLLM's proxy of another environment, one worker, no database, before the same stand-in.

    Raises RuntimeError for a release that must not run.
    """
    known = litellm_versions(python).get("litellm")
    if known is None or known in COMPROMISED:
        raise RuntimeError(f"litellm {known} in {python.parent}: is missing, or a release that must not run")
    config = folder / "litellm.yaml"
    config.write_text(
        f"""model_list:
  - model_name: {model}
    litellm_params: {{model: openai/gpt-4o-mini, api_base: "http://{HOST}:{upstream}/v1", api_key: sk-bench}}
litellm_settings: {{num_retries: 0}}
general_settings: {{dangerously_permit_weak_or_unset_master_key: true}}
""",
        encoding="utf-8",
    )
    port = free_port()
    command = [
        str(python.with_name("litellm")), "--config", str(config), "--host", HOST, "--port", str(port),
        "--num_workers", "1",
    ]  # fmt: skip
    # As its own advice for production has it: no debug lines. No key is asked for, as by ours on loopback, and nothing
    # is fetched from the network.
    env = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHONPATH": "",
    }
    log = folder / "litellm.log"
    return started("LiteLLM", command, port, core, ready="/health/liveliness", env=env, log=log)


def litellm_versions(python: Path) -> dict[str, str]:
    """Of LiteLLM and of what it is served by, from the names of folders: a bad release may run with any Python there."""
    found = {}
    for name in ("litellm", "uvicorn", "uvloop", "httptools", "fastapi", "aiohttp"):
        for folder in python.parent.parent.glob(f"lib/python*/site-packages/{name}-*.dist-info"):
            found[name] = folder.name.removesuffix(".dist-info").removeprefix(f"{name}-")
    return found
