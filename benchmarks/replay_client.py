"""The application of `benchmarks.gateway_replay`: the official SDK, its base URL changed, a few calls side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal

import openai

AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the application saw it. ``begun``: seconds since the epoch; ``truth``: what the teacher says of it."""

    id: str
    text: str
    truth: str
    answer: str
    decision: str
    reason: str
    policy: str
    saved: Decimal
    begun: float

    @property
    def handled(self) -> bool:
        """Whether a policy answered."""
        return self.decision == "handled"

    @property
    def agreed(self) -> bool:
        """Whether the answer is what the teacher says."""
        return self.answer == self.truth


def asked(
    url: str, model: str, prompt: str, texts: Sequence[str], truth: Sequence[str], per_s: float | None
) -> list[Call]:
    """Ask for each text in order, ``per_s`` a second at most; what came, in the order in which it was begun.

    Raises what the SDK raises: nothing may go wrong here.
    """
    lock, start = threading.Lock(), time.monotonic()
    turns = iter(range(len(texts)))
    calls: list[Call | None] = [None] * len(texts)

    def work() -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-replay", max_retries=0) as client:
            while True:
                with lock:
                    i = next(turns, None)
                if i is None:
                    return
                if per_s is not None:
                    time.sleep(max(0.0, start + i / per_s - time.monotonic()))
                calls[i] = one(client, model, prompt, texts[i], truth[i])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(work) for _ in range(AT_ONCE)]:
            done.result()
    return [call for call in calls if call is not None]


def one(client: openai.OpenAI, model: str, prompt: str, text: str, truth: str) -> Call:
    """A call and the gateway's headers."""
    begun = time.time()
    raw = client.chat.completions.with_raw_response.create(
        model=model,
        temperature=0,
        messages=[{"role": "system", "content": prompt}, {"role": "user", "content": text}],
    )
    told = raw.headers
    return Call(
        told["x-tracer-call-id"], text, truth, raw.parse().choices[0].message.content or "", told["x-tracer-decision"],
        told["x-tracer-reason"], told.get("x-tracer-policy", ""), Decimal(told.get("x-tracer-saved-usd", "0")), begun,
    )  # fmt: skip
