"""A stand-in for an LLM API on loopback: replays labels with a latency, and misbehaves on demand.

``with Standin({"text": "label"}) as api:`` serves ``/v1/chat/completions``, ``/v1/responses`` and ``/v1/messages``
under ``api.url``, JSON or SSE. What goes wrong is said by `Standin.misbehave` (one entry a request, in order), by
``POST /control`` (a JSON list of faults), or by the request's header ``x-standin: reset`` or ``x-standin: status=503,
retry_after=2``. Raw sockets, for a server that keeps to HTTP cannot be made to break it.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from tests.gateway import shapes

Kind = Literal[
    "slow_first_byte", "slow_chunks", "cut", "malformed", "status", "hang", "reset", "gzip", "huge", "garbage", "close"
]


@dataclass(frozen=True, slots=True)
class Fault:
    """``slow_first_byte``: after ``seconds``; ``slow_chunks``: ``seconds`` between two; ``cut``: the connection ends
    halfway; ``malformed``: JSON cut short, as a whole answer; ``status``: an error, with ``retry_after`` where given;
    ``hang``: no answer; ``reset``: a TCP reset before the answer; ``gzip``: a compressed body; ``huge``: ``size`` bytes
    in chunks of 64 KiB; ``garbage``: no HTTP; ``close``: as it should be, then the connection closes unannounced."""

    kind: Kind
    seconds: float = 0.2
    status: int = 500
    retry_after: str = ""
    should_retry: str = ""
    size: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came: its path, headers (names in lower case) and body, and which connection brought it."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    connection: int


class Standin:
    """The server, in a thread. ``latency_s``: median of a log-normal with ``spread``, drawn from ``seed``.

    ``asked``: the requests so far; ``n_connections``: opened so far; ``n_closed``: closed by the client within an
    answer; ``n_sent``: bytes of huge bodies that the socket took.
    """

    def __init__(
        self,
        labels: Mapping[str, str] | None = None,
        *,
        latency_s: float = 0.0,
        spread: float = 0.5,
        seed: int = 0,
        default: str = "unknown",
        text_of: Callable[[str, Mapping[str, Any]], str] = shapes.text_of,
    ) -> None:
        self._labels, self._latency_s, self._spread, self._default = dict(labels or {}), latency_s, spread, default
        self._rng, self._text_of = random.Random(seed), text_of
        self._faults: deque[Fault | None] = deque()
        self.asked: list[Asked] = []
        self.n_connections = self.n_closed = self.n_sent = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="standin", daemon=True)
        self.port = 0

    @property
    def url(self) -> str:
        """The base URL, without ``/v1``."""
        return f"http://127.0.0.1:{self.port}"

    def misbehave(self, *faults: Fault | None) -> None:
        """What the next requests meet, one each; None is none. Then all is well again."""
        self._faults.extend(faults)

    def relabel(self, labels: Mapping[str, str]) -> None:
        """Other labels from the next request on: the teacher has drifted."""
        self._labels = dict(labels)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await self._converse(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                tasks.discard(task)
                writer.transport.abort()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        number = self.n_connections
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head[1:-2])}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            if path == "/control":
                self.misbehave(*(None if one is None else Fault(**one) for one in json.loads(body)))
                await _whole(writer, 200, b"{}")
                continue
            self.asked.append(Asked(method, path, headers, body, number))
            if method == "HEAD":
                await _whole(writer, 404, b"")
                continue
            fault = self._faults.popleft() if self._faults else _by_header(headers.get("x-standin"))
            work = asyncio.ensure_future(self._answer(writer, path, body, fault))
            left = asyncio.ensure_future(reader.read(1))  # no client pipelines: a byte or an end means it left
            try:
                await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    self.n_closed += 1
                    return
                if not work.result():
                    return
            except ConnectionError:
                self.n_closed += 1
                return
            finally:
                ended = left.done()
                work.cancel()
                left.cancel()
                await asyncio.gather(work, left, return_exceptions=True)
            if ended:
                return

    async def _answer(self, writer: asyncio.StreamWriter, path: str, body: bytes, fault: Fault | None) -> bool:
        """Whether the connection goes on."""
        kind = None if fault is None else fault.kind
        if self._latency_s:
            await asyncio.sleep(self._latency_s * self._rng.lognormvariate(0.0, self._spread))
        if fault is not None and kind == "slow_first_byte":
            await asyncio.sleep(fault.seconds)
        if kind == "hang":
            await asyncio.Event().wait()
        if kind == "reset":
            taken = writer.get_extra_info("socket")
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if kind == "garbage":
            writer.write(b"this is no HTTP\r\n\r\n")
            await writer.drain()
            return False
        if fault is not None and kind == "status":
            more = {"retry-after": fault.retry_after} if fault.retry_after else {}
            more |= {"x-should-retry": fault.should_retry} if fault.should_retry else {}
            await _whole(writer, fault.status, json.dumps(shapes.error(path, fault.status)).encode(), more)
            return True
        if fault is not None and kind == "huge":
            await self._huge(writer, fault.size)
            return True
        return await self._label(writer, path.partition("?")[0], body, fault)

    async def _label(self, writer: asyncio.StreamWriter, path: str, body: bytes, fault: Fault | None) -> bool:
        kind = None if fault is None else fault.kind
        known = path.endswith(("/chat/completions", "/responses", "/messages", "/decisions", "/systemone"))
        try:
            asked = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            asked = None
        if not known or not isinstance(asked, dict):
            status = 400 if known else 404
            await _whole(writer, status, json.dumps(shapes.error(path, status)).encode())
            return True
        try:
            label = self._labels.get(self._text_of(path, asked), self._default)
            whole = shapes.answer(path, asked, label, len(self.asked))
        except (AttributeError, LookupError, TypeError):  # what no API would take
            await _whole(writer, 400, json.dumps(shapes.error(path, 400)).encode())
            return True
        if asked.get("stream") is True:
            pause = fault.seconds if fault is not None and kind == "slow_chunks" else 0.0
            await _streamed(writer, shapes.events(path, asked, whole), pause, kind == "cut")
            return kind not in ("cut", "close")
        content, more = json.dumps(whole).encode(), {}
        if kind == "malformed":
            content = content[: len(content) // 2]
        elif kind == "gzip":
            content, more = gzip.compress(content, mtime=0), {"content-encoding": "gzip"}
        await _whole(writer, 200, content, more, cut=kind == "cut")
        return kind not in ("cut", "close")

    async def _huge(self, writer: asyncio.StreamWriter, size: int) -> None:
        writer.write(_head(200, {"content-type": "application/json", "content-length": str(size)}))
        piece = b"x" * 65_536
        for start in range(0, size, len(piece)):
            writer.write(piece[: size - start])
            await writer.drain()
            self.n_sent += min(len(piece), size - start)


def _by_header(value: str | None) -> Fault | None:
    if not value:
        return None
    known: dict[str, Any] = {"kind": "status"}
    for part in value.split(","):
        key, _, given = part.strip().partition("=")
        if not given:
            known["kind"] = key
        else:
            known[key] = {"seconds": float, "status": int, "size": int}.get(key, str)(given)
    return Fault(**known)


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    common = {"x-request-id": "req_standin", "openai-processing-ms": "5", "x-ratelimit-remaining-requests": "99"}
    lines = [f"HTTP/1.1 {status} Status", *(f"{key}: {value}" for key, value in (common | dict(headers)).items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _whole(
    writer: asyncio.StreamWriter, status: int, body: bytes, more: Mapping[str, str] | None = None, *, cut: bool = False
) -> None:
    headers = {"content-type": "application/json", "content-length": str(len(body)), **(more or {})}
    writer.write(_head(status, headers) + (body[: len(body) // 2] if cut else body))
    await writer.drain()


async def _streamed(writer: asyncio.StreamWriter, events: list[bytes], pause_s: float, cut: bool) -> None:
    writer.write(_head(200, {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"}))
    for event in events[: len(events) // 2] if cut else events:
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        await writer.drain()
        await asyncio.sleep(pause_s)
    if not cut:
        writer.write(b"0\r\n\r\n")
    await writer.drain()
