"""Clients of `benchmarks.gateway_load`, in a process of their own: each keeps its connection and asks one call after
another. ``python load_client.py < SPEC`` prints what they saw as JSON.

Raw sockets and one epoll loop, for it must cost less than what it measures: about 20 microseconds of a core a call.
Each answer's status and ``x-tracer-*`` headers are read. Latencies are of single calls, from the first byte sent to the
last byte read, with no correction for what a busy server would have been asked meanwhile: the load is closed-loop.
"""

from __future__ import annotations

import gc
import json
import math
import select
import socket
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GAP = "\x00"
"""Stands in a body for a blank between words that may be doubled: see `varied`."""
_PATIENCE_S = 60.0


@dataclass(slots=True)
class Seen:
    """What was measured: milliseconds by decision, and counts."""

    latencies: dict[str, array[float]] = field(default_factory=dict)
    overheads: array[float] = field(default_factory=lambda: array("d"))
    statuses: Counter[int] = field(default_factory=Counter)

    def take(self, ms: float, status: int, decision: str, overhead: str) -> None:
        """One answer."""
        self.statuses[status] += 1
        self.latencies.setdefault(decision, array("d")).append(ms)
        if overhead:
            self.overheads.append(float(overhead))

    def facts(self) -> dict[str, Any]:
        """Counts and quantiles, in milliseconds."""
        every = sorted(ms for each in self.latencies.values() for ms in each)
        told = {
            "n": len(every),
            **quantiles(every),
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
            "decisions": {
                name: {"n": len(each), **quantiles(sorted(each))} for name, each in sorted(self.latencies.items())
            },
        }
        return told | ({"told_overhead": quantiles(sorted(self.overheads))} if self.overheads else {})


def quantiles(ordered: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile (the smallest value that at least this share does not exceed) and maximum."""
    if not ordered:
        return {}
    at = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
    return {name: round(ordered[max(0, math.ceil(q * len(ordered)) - 1)], 4) for name, q in at.items()}


def head_of(data: bytes | bytearray) -> tuple[int, int, str, str] | None:
    """(bytes of the whole answer, status, decision, overhead) of an answer whose head is there; None before.

    Raises ValueError for an answer whose length is not said.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(data[: end + 2])
    low = head.lower()
    length = _value(low, low, b"\r\ncontent-length:")
    if not length:
        raise ValueError(f"an answer without content-length: {head[:200]!r}")
    decision = _value(head, low, b"\r\nx-tracer-decision:")
    overhead = _value(head, low, b"\r\nx-tracer-overhead-ms:")
    return end + 4 + int(length), int(head[9:12]), decision, overhead


def _value(head: bytes, low: bytes, name: bytes) -> str:
    at = low.find(name)
    if at < 0:
        return ""
    at += len(name)
    return head[at : head.index(b"\r\n", at)].strip().decode("latin-1")


def varied(body: str, number: int) -> str:
    """A body whose marked blanks are doubled where ``number`` has a one: as many texts of the same words.

    Raises ValueError where the body has too few of them.
    """
    parts = body.split(GAP)
    if number >> (len(parts) - 1):
        raise ValueError(f"{len(parts) - 1} blanks cannot tell {number} texts apart")
    out = [parts[0]]
    for i, part in enumerate(parts[1:]):
        out += ["  " if number >> i & 1 else " ", part]
    return "".join(out)


def calls(bodies: Sequence[str], path: str, *, vary: bool) -> Iterator[bytes]:
    """HTTP requests without end: the bodies in turn, each time around with other blanks where they vary."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer sk-bench\r\ncontent-type: application/json\r\n"

    def built(body: str) -> bytes:
        raw = body.encode()
        return f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw

    if not vary:
        ready = [built(body) for body in bodies]
        while True:
            yield from ready
    number = 0
    while True:
        for body in bodies:
            yield built(varied(body, number))
        number += 1


@dataclass(slots=True)
class _Client:
    socket: socket.socket
    begun: float = 0.0
    data: bytearray = field(default_factory=bytearray)


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Ask for ``seconds`` after ``warm_s``, or ``requests`` in all; see `benchmarks.gateway_load.asked` for the fields."""
    bodies = json.loads(Path(spec["bodies"]).read_text(encoding="utf-8"))
    turns = calls(bodies, spec["path"], vary=spec.get("vary", False))
    for _ in range(spec.get("skip", 0)):
        next(turns)
    address, left = (spec["host"], spec["port"]), spec.get("requests") or math.inf
    poll, clients = select.epoll(), {}
    reopened, seen, warm, clock = 0, Seen(), spec["warm_s"] > 0, time.perf_counter
    served: set[int] = set()

    def opened() -> _Client:
        client = _Client(socket.create_connection(address))
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(client.socket, select.EPOLLIN)
        clients[client.socket.fileno()] = client
        return client

    def ask(client: _Client) -> None:
        call = next(turns)
        client.begun = clock()
        client.socket.sendall(call)

    begun = clock()
    start, all_served_s = begun + spec["warm_s"], 0.0
    end = math.inf if warm else start + (spec.get("seconds") or math.inf)
    cpu = time.process_time()
    for _ in range(spec["clients"]):
        ask(opened())
    now = clock()
    while now < end and left > 0:
        ready = poll.poll(30.0)
        if not ready:
            raise TimeoutError(f"no answer for 30 s from port {spec['port']}")
        for number, _ in ready:
            client = clients[number]
            data = client.socket.recv(1 << 18)
            if not data:
                reopened += 1
                poll.unregister(client.socket)
                del clients[number]
                client.socket.close()
                ask(opened())
                continue
            client.data += data
            told = head_of(client.data)
            if told is None or len(client.data) < told[0]:
                continue
            now = clock()
            seen.take((now - client.begun) * 1e3, *told[1:])
            if not all_served_s:
                served.add(number)
                all_served_s = now - begun if len(served) >= spec["clients"] else 0.0
            # A server may take long to accept all (libuv accepts one in a turn of its loop): that is not the load yet.
            if warm and now >= start and all_served_s:
                warm, start, cpu, seen = False, now, time.process_time(), Seen()
                end = now + (spec.get("seconds") or math.inf)
            elif warm and now > begun + _PATIENCE_S:
                raise TimeoutError(f"port {spec['port']} served {len(served)} of {spec['clients']} clients")
            left -= 1
            if left <= 0:
                break
            client.data.clear()
            ask(client)
    lasted, busy = clock() - start, time.process_time() - cpu
    facts = seen.facts()
    return facts | {
        "seconds": round(lasted, 3),
        "per_s": round(facts["n"] / lasted, 1),
        "client_busy": round(busy / lasted, 3),
        "reopened": reopened,
        "all_served_s": round(all_served_s, 3),
    }


if __name__ == "__main__":
    given = json.load(sys.stdin)
    gc.disable()
    json.dump(run(given), sys.stdout)
