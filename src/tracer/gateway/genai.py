"""OpenTelemetry's names, all in this place: its conventions for generative AI are still in development.

The names are those of the semantic conventions of 2026 (github.com/open-telemetry/semantic-conventions-genai), and of
HTTP. None of them carries a text: not of a message, a label, a key or a header.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from tracer.gateway.settings import Upstream

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - an attribute's name
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"
METHOD: Final = "http.request.method"
STATUS: Final = "http.response.status_code"
ROUTE: Final = "http.route"
SCHEME: Final = "url.scheme"

DURATION: Final = "gen_ai.client.operation.duration"
TOKENS: Final = "gen_ai.client.token.usage"
DURATION_BUCKETS: Final = tuple(0.01 * 2.0**k for k in range(14))
TOKEN_BUCKETS: Final = tuple(float(4**k) for k in range(14))
"""The boundaries that the conventions name."""

CHAT: Final = "chat"
TRACER: Final = "tracer"
"""The provider of answers that a policy gave."""

TASK: Final = "tracer.task"
DECISION: Final = "tracer.decision"
REASON: Final = "tracer.reason"
POLICY: Final = "tracer.policy"
SCORE: Final = "tracer.score"
THRESHOLD: Final = "tracer.threshold"
SAVED_USD: Final = "tracer.saved_usd"
CALL_ID: Final = "tracer.call_id"
UPSTREAM: Final = "tracer.upstream"
ATTEMPTS: Final = "tracer.upstream.attempts"

_LONGEST = 256
_HOSTS = (
    ("api.openai.com", "openai"), ("api.anthropic.com", "anthropic"), ("openai.azure.com", "azure.ai.openai"),
    ("api.groq.com", "groq"), ("api.mistral.ai", "mistral_ai"), ("api.deepseek.com", "deepseek"),
    ("api.perplexity.ai", "perplexity"), ("api.x.ai", "x_ai"), ("api.cohere.com", "cohere"),
)  # fmt: skip


def provider(upstream: Upstream) -> str:
    """The provider by the conventions' list where the host is known, else by the format that it speaks."""
    host = urlsplit(upstream.base_url).hostname or ""
    return next((name for end, name in _HOSTS if host == end or host.endswith("." + end)), upstream.kind)


def server(upstream: Upstream) -> dict[str, Any]:
    """Address and port of an upstream."""
    parts = urlsplit(upstream.base_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {SERVER_ADDRESS: parts.hostname or "", SERVER_PORT: port}


def of_reply(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Model, id and finish reasons of an answer in any format; what is no short text is left out."""
    found: dict[str, Any] = {RESPONSE_MODEL: short(reply.get("model")), RESPONSE_ID: short(reply.get("id"))}
    reasons = [short(reason) for reason in _reasons(reply)]
    found[FINISH_REASONS] = tuple(reason for reason in reasons if reason) or None
    return {name: value for name, value in found.items() if value}


def short(value: object) -> str | None:
    """A text of at most 256 characters that UTF-8 can hold; None for anything else."""
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST:
        return None
    return value.encode("utf-8", "replace").decode()


def _reasons(reply: Mapping[str, Any]) -> list[object]:
    choices = reply.get("choices")
    if isinstance(choices, list):
        return [choice.get("finish_reason") for choice in choices[:16] if isinstance(choice, dict)]
    details = reply.get("incomplete_details")
    if isinstance(details, dict) and details.get("reason"):
        return [details["reason"]]
    return [reply.get("stop_reason") or (reply.get("status") if reply.get("object") == "response" else None)]
