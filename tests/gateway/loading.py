"""Many clients at once for the tests of faults, and what each of them got."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.gateway.conftest import Known
from tests.gateway.serving import CHAT, Served, asked
from tracer.traces.store import TraceStore
from tracer.types import Trace

N_CLIENTS = 32
START = ("-m", "tracer.cli")
WITHOUT_PRIVILEGES = ("-c", """
import ctypes, runpy, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()):
    raise OSError(ctypes.get_errno(), "capset")
runpy.run_module("tracer.cli", run_name="__main__", alter_sys=True)
""")  # fmt: skip
"""The same by a process that may write no more than the modes of folders say, be it root's (Linux)."""


def teachers(texts: Sequence[str]) -> dict[str, str]:
    """A label for each text that no policy gives, so that whose answer it was can be told."""
    return {text: f"teacher-{zlib.crc32(text.encode()):08x}" for text in texts}


@dataclass(frozen=True, slots=True)
class Got:
    """What a client got for a text: ``status`` 0 is a connection that broke, ``id`` that of the call."""

    text: str
    status: int
    decision: str = ""
    label: str = ""
    id: str = ""
    seconds: float = 0.0


def ask(client: httpx2.Client, url: str, text: str, headers: Mapping[str, str], *, stream: bool = False) -> Got:
    """Ask once. An answer that is neither a label nor an error in the client's format fails the test."""
    begun = time.monotonic()
    try:
        body = json.dumps(asked(text, **({"stream": True} if stream else {}))).encode()
        response = client.post(url + CHAT, content=body, headers=headers)
    except httpx2.TransportError:
        return Got(text, 0, seconds=time.monotonic() - begun)
    seconds = time.monotonic() - begun
    told = response.headers
    if response.status_code != 200:
        assert set(response.json()) == {"error"}, response.content
        assert response.json()["error"]["message"]
        return Got(text, response.status_code, told.get("x-tracer-decision", ""), seconds=seconds)
    label = streamed(response.text) if stream else response.json()["choices"][0]["message"]["content"]
    return Got(text, 200, told["x-tracer-decision"], label, told["x-tracer-call-id"], seconds)


def streamed(body: str) -> str:
    """The label in a stream; "" where it ended in an error event."""
    parts = [json.loads(line[6:]) for line in body.split("\n") if line.startswith("data: ") and line != "data: [DONE]"]
    if any("error" in part for part in parts):
        return ""
    assert body.rstrip().endswith("data: [DONE]"), body[-200:]
    return "".join(part["choices"][0]["delta"].get("content") or "" for part in parts if part["choices"])


def drive(
    url: str,
    texts: Sequence[str],
    *,
    headers_of: Callable[[int], Mapping[str, str]] = lambda _: {},
    until: Callable[[], bool] = lambda: False,
    n_clients: int = N_CLIENTS,
    timeout: float = 20.0,
    stream: bool = False,
) -> list[Got]:
    """Each text is asked once, by one of the clients, unless ``until`` says to stop."""
    got: list[Got] = []
    failed: list[BaseException] = []
    lock, left = threading.Lock(), list(enumerate(texts))[::-1]

    def work() -> None:
        with httpx2.Client(timeout=timeout, verify=False) as client:  # reading certificates takes long
            while not until():
                with lock:
                    if not left:
                        return
                    i, text = left.pop()
                try:
                    one = ask(client, url, text, headers_of(i), stream=stream)
                except BaseException as error:  # noqa: BLE001 - raised below, in the test's own thread
                    failed.append(error)
                    return
                with lock:
                    got.append(one)

    threads = [threading.Thread(target=work) for _ in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120.0)
        assert not thread.is_alive(), "a request hangs"
    if failed:
        raise failed[0]
    return got


def check_labels(got: Sequence[Got], known: Known, labels: Mapping[str, str]) -> None:
    """No wrong label: each is the policy's where it handled the text, else the teacher's."""
    for one in got:
        if one.status == 200:
            wanted = known.handled[one.text] if one.decision == "handled" else labels[one.text]
            assert one.label == wanted, one


def check_traces(traces: Sequence[Trace], got: Sequence[Got], labels: Mapping[str, str]) -> None:
    """Each answer of the teacher is recorded once, as it was given; nothing else is recorded but failed audits."""
    by_id = {trace.id: trace for trace in traces}
    assert len(by_id) == len(traces)
    answered = {one.id: one for one in got if one.status == 200 and one.decision != "handled"}
    assert set(answered) <= set(by_id), "a trace is lost"
    for id_, one in answered.items():
        assert (by_id[id_].text, by_id[id_].label) == (one.text, labels[one.text])


class Process:
    """``tracer serve`` in a process of its own."""

    def __init__(self, config: Path, environ: Mapping[str, str] | None = None, start: Sequence[str] = START) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = Path(tempfile.mkdtemp(prefix="gateway-")) / "log"
        with self.log.open("ab") as err:
            command = [sys.executable, *start, "serve", "-c", str(config), "--port", str(self.port)]
            root = Path(__file__).parents[2]
            env = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"} | dict(environ or {})
            self.process = subprocess.Popen(command, stderr=err, env=env)

    def wait_until_ready(self, seconds: float = 40.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if httpx2.get(self.url + "/health/readiness").status_code == 200:
                    return
            except httpx2.TransportError:
                time.sleep(0.05)
        raise AssertionError(self.log.read_text()[-2000:])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def terminate(self, seconds: float = 45.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def running(config: Path, environ: Mapping[str, str] | None = None, start: Sequence[str] = START) -> Iterator[Process]:
    """A gateway that is up; killed at the end where it still runs."""
    one = Process(config, environ, start)
    try:
        one.wait_until_ready()
        yield one
    finally:
        if one.process.poll() is None:
            one.kill()
        shutil.rmtree(one.log.parent)


@contextmanager
def readonly(folder: Path) -> Iterator[None]:
    """Nothing in a folder can be written to, but by who may do anything."""
    paths = [folder, *folder.rglob("*")]
    modes = [path.stat().st_mode for path in paths]
    for path in reversed(paths):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        yield
    finally:
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


def stored(home: Path) -> list[Trace]:
    """The traces that gateways recorded in a home."""
    with TraceStore.open(home) as store:
        return [trace for _, trace in store.traces() if len(trace.id) == 32 and not trace.id.startswith("northlight")]


def quiet(served: Served) -> None:
    """Wait until no request runs."""
    end = time.monotonic() + 20.0
    while served.gateway.serving.running and time.monotonic() < end:
        time.sleep(0.01)
    assert served.gateway.serving.running == 0
