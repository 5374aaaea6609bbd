"""An LLM API for `benchmarks.gateway_replay`: it gives each message the label that a real LLM gave it.

``python replay_standin.py PORT FILE MEDIAN_S SPREAD SEED``: the file is JSON with ``labels`` (text to label) and ``drift``
(label to label). Answers come after a log-normal time. After ``POST /drift`` the labels are those that ``drift`` makes of
them, under the same prompt and model. ``GET /stats`` tells how many completions were given so far.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODEL = "gpt-4o-mini-2024-07-18"


def tokens(prompt: str, text: str, label: str) -> tuple[int, int]:
    """Tokens of a call, (input, output), at four characters each."""
    return 8 + len(prompt) // 4 + len(text) // 4, 1 + len(label) // 4


class Teacher:
    """What the API knows and has done."""

    def __init__(self, labels: Mapping[str, str], drift: Mapping[str, str]) -> None:
        self.labels, self.drift = labels, drift
        self.n, self.drifted = 0, False

    def complete(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a chat completion's request."""
        prompt, text = (str(message["content"]) for message in asked["messages"])
        label = self.labels[text]
        label = self.drift.get(label, label) if self.drifted else label
        self.n += 1
        n_in, n_out = tokens(prompt, text, label)
        message: dict[str, Any] = {"role": "assistant", "content": label, "refusal": None, "annotations": []}
        return {
            "id": f"chatcmpl-{self.n:08d}",
            "object": "chat.completion",
            "created": 1763900000,
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": n_in, "completion_tokens": n_out, "total_tokens": n_in + n_out},
            "service_tier": "default",
            "system_fingerprint": "fp_8bda4d3a2c",
        }


async def serve(port: int, teacher: Teacher, median_s: float, spread: float, seed: int) -> None:
    """Until the process ends."""
    rng = random.Random(seed)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                _, at, rest = head.partition(b"\r\ncontent-length:")
                body = await reader.readexactly(int(rest.partition(b"\r\n")[0]) if at else 0)
                if head.startswith(b"get /stats"):
                    told: object = {"n": teacher.n, "drifted": teacher.drifted}
                elif head.startswith(b"post /drift"):
                    teacher.drifted, told = True, {}
                else:
                    told = teacher.complete(json.loads(body))
                    await asyncio.sleep(rng.lognormvariate(math.log(median_s), spread))
                raw = json.dumps(told).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(raw)
                )
                writer.write(raw)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    known = Teacher(given["labels"], given["drift"])
    asyncio.run(serve(int(sys.argv[1]), known, float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])))
