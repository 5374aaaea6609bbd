"""The gateway's memory over a million handled calls, no text twice, while audits are recorded in SQLite.

python -m benchmarks.gateway_memory --data FOLDER [--requests N] [--quick]

Of each message there are many spellings: between its words stand one or two blanks. That is another text to everything
that keeps texts, and the same one to the features.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import load_servers as servers
from benchmarks.common import arguments, footer, table, write_result
from benchmarks.gateway_load import clients_seen
from benchmarks.load_client import GAP
from benchmarks.load_servers import Cores, Server
from benchmarks.load_tables import CLIENTS
from benchmarks.load_tasks import (
    AUDIT_RATE,
    DATA,
    SEED,
    TARGET,
    body,
    fitted,
    instructions,
    placed,
    shuffled,
    texts_of,
    versions,
)
from tracer.traces.store import TraceStore

REQUESTS, EVERY = 1_000_000, 50_000
SETTLED = 0.1
"""Share of the calls after which memory must grow no more: allocators and caches have filled by then."""
FLAT_MIB = 8.0
"""Growth after that which still counts as flat."""
_GAPS = 10


def main() -> None:
    """Fit, serve, ask a million times, look on."""
    given = arguments(__doc__ or "", _add)
    n, every = (10_000, 500) if given.quick else (given.requests, given.requests * EVERY // REQUESTS)
    cores = Cores.here()
    train, test, digest = texts_of(given.data, 2000 if given.quick else None)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        known = fitted(train, test, folder / "lexical", "lexical")
        placed(known, folder / "home", ("desk",))
        fast = stack.enter_context(servers.standin("upstream", test.labels[0], cores.clients))
        config = folder / "tracer.yaml"
        tasks = {"desk": ("main", AUDIT_RATE)}
        config.write_text(servers.gateway_config(folder / "home", {"main": fast.port}, tasks, "info"), encoding="utf-8")
        gateway = stack.enter_context(servers.gateway("gateway", config, cores.server))
        prompt = instructions(test.space.names)
        texts = [text for text in shuffled(known.handled, 0) if text.count(" ") >= _GAPS]
        bodies = folder / "bodies.json"
        bodies.write_text(
            json.dumps([spelt(body("desk", prompt, text)) for text in map(marked, texts)]), encoding="utf-8"
        )
        home = folder / "home" / "tasks" / "desk"
        before = recorded(home)
        spec = {
            "host": servers.HOST, "port": gateway.port, "path": servers.CHAT, "bodies": str(bodies), "vary": True,
            "clients": max(CLIENTS), "warm_s": 0.0, "requests": round(n / (1 - AUDIT_RATE)),
        }  # fmt: skip
        samples, found = watched(gateway, spec, cores.clients, every)
        told = settled(gateway, found["decisions"].get("audit", {"n": 0})["n"])
        content = {
            "digest": digest,
            "data": DATA,
            "target": TARGET,
            "audit_rate": AUDIT_RATE,
            "seed": SEED,
            "versions": versions(),
            "n_texts": len(texts),
            "clients": found,
            "samples": samples,
            "recorded": recorded(home) - before,
            "dropped": told["tracer_traces_dropped"],
            "store_mib": round(sum(p.stat().st_size for p in home.glob("*.sqlite*")) / 2**20, 1),
        }
    if set(found["statuses"]) != {"200"} or not set(found["decisions"]) <= {"handled", "audit"} or found["reopened"]:
        raise RuntimeError(f"answers: {found}")
    write_result("gateway_memory", content, quick=given.quick)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=REQUESTS, help="handled calls")


def marked(text: str) -> str:
    """A text whose first blanks, as many as are needed, are marked."""
    return text.replace(" ", GAP, _GAPS)


def spelt(asked: str) -> str:
    """A JSON body in which the marks stand as they are, not escaped."""
    return asked.replace(json.dumps(GAP)[1:-1], GAP)


def watched(
    gateway: Server, spec: dict[str, Any], core: int | None, every: int
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """The gateway's memory at the start, after each ``every`` handled calls, and at the end; and what clients saw."""
    samples: list[dict[str, float]] = []
    begun = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(clients_seen, spec, core)
        while True:
            over = running.done()
            handled = metrics(gateway)["handled"]
            if over or handled >= len(samples) * every:
                mib = round(gateway.rss_mib(), 2)
                samples.append({"handled": handled, "rss_mib": mib, "s": round(time.perf_counter() - begun, 1)})
                print(samples[-1], flush=True)
            if over:
                return samples, running.result()
            time.sleep(0.25)


def settled(gateway: Server, audits: int, patience_s: float = 30.0) -> dict[str, float]:
    """What the gateway tells once the traces of all audits are written or dropped. Raises RuntimeError else."""
    until = time.monotonic() + patience_s
    while True:
        told = metrics(gateway)
        if told["tracer_traces_written"] + told["tracer_traces_dropped"] >= audits:
            return told
        if time.monotonic() > until:
            raise RuntimeError(f"{audits} audits, but: {told}")
        time.sleep(0.1)


def metrics(gateway: Server) -> dict[str, float]:
    """Figures of ``/metrics`` summed over tasks, and ``handled``: the handled requests."""
    return summed(gateway.get("/metrics").decode())


def summed(exposition: str) -> dict[str, float]:
    """The sum over labels of each sample of an exposition, and of the handled requests."""
    out: dict[str, float] = {"handled": 0.0, "tracer_traces_written": 0.0, "tracer_traces_dropped": 0.0}
    for name, labels, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", exposition, re.MULTILINE):
        out[name] = out.get(name, 0.0) + float(value)
        if name == "tracer_requests_total" and 'decision="handled"' in labels:
            out["handled"] += float(value)
    return out


def recorded(home: Path) -> int:
    """Traces in a task's store."""
    with TraceStore.open(home) as store:
        return store.count()


def growth(samples: Sequence[dict[str, float]]) -> tuple[float, float]:
    """(MiB that memory grew beyond what it was once settled, MiB in a straight line over as many calls again)."""
    last = samples[-1]["handled"]
    late = [sample for sample in samples if sample["handled"] >= SETTLED * last]
    rss = [sample["rss_mib"] for sample in late]
    calls = [sample["handled"] for sample in late]
    slope = float(np.polyfit(calls, rss, 1)[0]) if len(late) > 1 else 0.0
    return max(rss) - rss[0], slope * last


def render(result: dict[str, Any]) -> str:
    """Memory by calls, and whether it is flat."""
    samples, seen = result["samples"], result["clients"]
    most, line = growth(samples)
    step = max(1, len(samples) // 8)
    shown = [*samples[:-1:step], samples[-1]]
    rows = table(
        ("handled calls", *(f"{sample['handled']:,.0f}" for sample in shown)),
        [("resident memory, MiB", *(f"{sample['rss_mib']:.1f}" for sample in shown))],
    )
    audits = seen["decisions"].get("audit", {"n": 0})["n"]
    verdict = "flat" if most <= FLAT_MIB else "not flat"
    return f"""## The gateway's memory

One process, {max(CLIENTS)} clients, {samples[-1]["handled"]:,.0f} calls handled by the policy on text and {audits:,} audits ({result["audit_rate"]:.0%}), answered by the
stand-in and written to SQLite ({result["recorded"]:,} traces, {result["dropped"]:.0f} dropped; {result["store_mib"]} MiB on disk at the end). No text comes twice.

{rows}

After the first tenth it grew by {most:.1f} MiB at most: {verdict} (bound: {FLAT_MIB:.0f} MiB); a straight line through the samples rises
{line:.1f} MiB over as many calls again. {seen["per_s"]:,.0f} calls a second while that was measured.

{footer(result)}
"""


if __name__ == "__main__":
    main()
