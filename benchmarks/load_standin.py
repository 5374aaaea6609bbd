"""An LLM API that costs next to nothing, for `benchmarks.gateway_load`: one fixed answer to each POST.

``python load_standin.py PORT LABEL [MEDIAN_S SPREAD SEED]``: at once, or after a log-normal time with this median and
this standard deviation of the logarithm. ``GET /stats`` tells requests and connections so far.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys


def answer(label: str) -> bytes:
    """A chat completion as OpenAI's API sends it, with head."""
    body = json.dumps(
        {
            "id": "chatcmpl-DAkz1XJ7ZqTqz4m5t2T0K9yGvYlWf",
            "object": "chat.completion",
            "created": 1763900000,
            "model": "gpt-4o-mini-2024-07-18",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": label, "refusal": None, "annotations": []},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 512, "completion_tokens": 6, "total_tokens": 518},
            "service_tier": "default",
            "system_fingerprint": "fp_8bda4d3a2c",
        }
    ).encode()
    return _whole(body)


def _whole(body: bytes) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


class Api(asyncio.Protocol):
    """One connection."""

    n_requests = n_connections = 0

    def __init__(self, told: bytes, rng: random.Random, median_s: float, spread: float) -> None:
        self._told, self._rng, self._median, self._spread = told, rng, median_s, spread
        self._data = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        Api.n_connections += 1
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._data[: end + 2]).lower()
            at = head.find(b"\r\ncontent-length:")
            length = int(head[at + 17 : head.index(b"\r\n", at + 2)]) if at >= 0 else 0
            if len(self._data) < end + 4 + length:
                return
            del self._data[: end + 4 + length]
            if head.startswith(b"get /stats"):
                facts = {"requests": Api.n_requests, "connections": Api.n_connections}
                self._write(_whole(json.dumps(facts).encode()))
            elif self._median:
                Api.n_requests += 1
                delay = self._rng.lognormvariate(math.log(self._median), self._spread)
                asyncio.get_running_loop().call_later(delay, self._write, self._told)
            else:
                Api.n_requests += 1
                self._write(self._told)

    def _write(self, told: bytes) -> None:
        if self._transport is not None:
            self._transport.write(told)


async def serve(port: int, label: str, median_s: float, spread: float, seed: int) -> None:
    """Until the process ends."""
    told, rng = answer(label), random.Random(seed)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Api(told, rng, median_s, spread), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    median, sigma, number = [*sys.argv[3:], "0", "0", "0"][:3]
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2], float(median), float(sigma), int(number)))
