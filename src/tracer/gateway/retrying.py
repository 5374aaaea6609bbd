"""How often, and after how long, an upstream is asked again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from tracer.errors import ConfigError
from tracer.serving.coins import Rng

NOT_TAKEN = frozenset({429, 502, 503, 504, 529})
"""Statuses of a request that failed on the way, or was turned away; 529 is Anthropic's word for overloaded."""
TURNED_AWAY = frozenset({429, 503, 529})
"""Those of a request that nobody has begun to answer, and so may be sent again though it is not idempotent."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_ASKING = frozenset(
    {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/responses/input_tokens", "/v1/messages"),
        *("/v1/messages/count_tokens", "/v1/decisions", "/v1/systemone", "/v1/embeddings", "/v1/moderations"),
        "/v1/rerank",
    }
)
"""Paths at which a model is asked, and nothing but its answer comes of a request."""


def asks_a_model(path: str) -> bool:
    """Whether a path, with or without a query, is one at which a model is asked."""
    return path.partition("?")[0].rstrip("/") in _ASKING


@dataclass(frozen=True, slots=True)
class Retries:
    """At most ``attempts`` requests to one upstream, with *full jitter* between them: before the k-th retry
    (k = 0, 1, ...) a time drawn uniformly from [0, min(cap_s, base_s 2^k)], which spreads clients that failed together
    (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). An upstream that asks for more time
    gets it, up to ``retry_after_cap_s``; one that asks for more still is not asked again. Raises ConfigError.
    """

    attempts: int = 3
    base_s: float = 0.25
    cap_s: float = 4.0
    retry_after_cap_s: float = 10.0
    statuses: frozenset[int] = NOT_TAKEN

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"attempts = {self.attempts!r}: must be at least 1")
        times = (("base_s", self.base_s), ("cap_s", self.cap_s), ("retry_after_cap_s", self.retry_after_cap_s))
        for key, value in times:
            if not value >= 0.0:
                raise ConfigError(f"{key} = {value!r}: must not be negative")
        odd = sorted(status for status in self.statuses if not 400 <= status <= 599)
        if odd:
            raise ConfigError(f"statuses = {odd}: only errors, 400 to 599, are asked for again")

    def again(self, method: str, path: str) -> frozenset[int]:
        """Statuses after which this request may be sent again (RFC 9110, section 9.2.2)."""
        if method in _SAFE:
            return self.statuses
        return self.statuses & TURNED_AWAY if asks_a_model(path) else frozenset()

    def wait(self, k: int, asked: float | None, rng: Rng) -> float | None:
        """Seconds before the k-th retry, where the upstream ``asked`` for some or for none; None: no more retries."""
        if k + 1 >= self.attempts or (asked is not None and asked > self.retry_after_cap_s):
            return None
        return max(asked or 0.0, rng.random() * min(self.cap_s, self.base_s * 2.0 ** min(k, 60)))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: a number, or a time measured against the server's own clock.

    ``headers`` with names in lower case. ``retry-after-ms`` is OpenAI's finer form.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value, re.ASCII):
            return float(value) * unit
    try:
        wait = parsedate_to_datetime(headers.get("retry-after", "")) - parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError):
        return None
    return max(wait.total_seconds(), 0.0)
