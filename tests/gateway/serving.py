"""A gateway on loopback for tests: the real server in a thread, before the stand-in."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tracer.gateway.app import server
from tracer.gateway.config import parse
from tracer.gateway.serving import Gateway
from tracer.policies.serving_settings import ServingSettings
from tracer.types import Trace

SYSTEM = "Which desk should answer? Name it."
MODEL = "desk-router"
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Served:
    """A gateway that runs: its ``url`` without ``/v1``, its home folder, and what is inside."""

    url: str
    home: Path
    gateway: Gateway
    client: httpx2.Client

    @property
    def task(self) -> Path:
        """The home folder of the task ``desk``."""
        return self.home / "tasks" / "desk"

    def traces(self) -> list[Trace]:
        """The traces recorded by the gateway so far, without those that the fit stored."""
        # An answer's label is read once the answer is gone: the client may have it before.
        until = time.monotonic() + 10.0
        while self.gateway.serving.running and time.monotonic() < until:
            time.sleep(0.005)
        line = self.gateway.serving.lines["desk"]
        assert line.recorder.flush(10.0)
        return [trace for _, trace in line.store.traces() if re.fullmatch("[0-9a-f]{32}", trace.id)]

    def post(self, body: Mapping[str, Any], path: str = CHAT, **headers: str) -> httpx2.Response:
        """What a plain client gets."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(self.url + path, content=json.dumps(body).encode(), headers=named)


def asked(text: str, **more: Any) -> dict[str, Any]:
    """A chat request of the task."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, **more}


def settings(upstream: str, home: Path, task: str = "", more: str = "") -> str:
    """A config with one upstream and the task ``desk``; ``task`` and ``more`` are further lines of YAML.

    The mode is ``live`` unless said, and no client refers to an answer later."""
    task = task if "mode:" in task else task + "\nmode: live"
    task = task if "target:" in task else task + "\ntarget: 0.8"  # for which `fitted` is certified
    lines = [f"home: {home}", "upstreams:", f"  main: {{base_url: {upstream}/v1, retries: 0}}", "tasks:", "  desk:"]
    lines += [f"    match: {{models: [{MODEL}]}}"]
    lines += [] if "stateless:" in task else ["    stateless: true"]
    lines += [*(f"    {line}" for line in task.split("\n"))]
    return "\n".join([*lines, more]) + "\n"


def place(fitted: Path, home: Path, serving: ServingSettings | None = None) -> Path:
    """A copy of a fitted home as the task ``desk`` of a gateway's home."""
    folder = home / "tasks" / "desk"
    shutil.copytree(fitted, folder)
    (folder / "serving.json").unlink(missing_ok=True)
    if serving is not None:
        serving.write(folder)
    return folder


@contextmanager
def serve(
    config: str,
    home: Path,
    *,
    reader: Callable[[], str] | None = None,
    environ: Mapping[str, str] | None = None,
    start_s: float = 10.0,
    **given: Any,
) -> Iterator[Served]:
    """Run a gateway on a free port until the block ends; then it has drained. ``environ`` holds its secrets."""
    read = None if reader is None else lambda: parse(reader(), environ or {})
    gateway = Gateway(parse(config, environ or {}), reader=read, **given)
    running = server(gateway, "127.0.0.1", 0)
    thread = threading.Thread(target=lambda: asyncio.run(running.serve()), daemon=True)
    thread.start()
    for _ in range(round(100 * start_s)):
        if running.started or not thread.is_alive():
            break
        threading.Event().wait(0.01)
    assert running.started
    port = running.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx2.Client(timeout=20.0) as client:
            yield Served(f"http://127.0.0.1:{port}", home, gateway, client)
    finally:
        running.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
