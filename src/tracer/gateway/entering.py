"""What a request has to pass before it is decided: its method, its key and rate, its body, and what its key reaches."""

from __future__ import annotations

from collections.abc import Mapping

from tracer.gateway import scoped
from tracer.gateway.auth import UncheckedError, source_of, told_unknown
from tracer.gateway.deciding import MODES
from tracer.gateway.exchanges import Exchange
from tracer.gateway.reading import Pieces, SlowBodyError, TooLargeError, read_body
from tracer.gateway.retrying import asks_a_model

__all__ = ["MODE", "RefusedError", "admit", "check_reach", "take_body"]

MODE = "x-tracer-mode"
_REASONS = {
    401: "no_key", 403: "beyond_key", 404: "no_path", 405: "no_path", 408: "slow_body", 413: "too_large", 429: "rate",
    503: "busy",
}  # fmt: skip
_OF_PROXIES = frozenset({"CONNECT", "TRACE"})


class RefusedError(Exception):
    """A request that is not answered; with the status, and headers that say more. ``reason`` is a word for what the
    gateway itself refuses, None where the request is at fault."""

    def __init__(self, status: int, message: str, more: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.more, self.reason = status, more, _REASONS.get(status)


async def admit(one: Exchange) -> None:
    """Let a request in by its head, and say who calls. Raises RefusedError."""
    gate, limits = one.serving.gate, one.serving.config.limits
    if one.scope["method"] in _OF_PROXIES:
        raise RefusedError(405, "this method is for proxies")
    if one.path.startswith("/v1/classify/"):
        raise RefusedError(404, "there is nothing here")  # a text that is meant for here goes nowhere else
    if one.serving.running > limits.concurrency:
        raise RefusedError(503, "this gateway answers as many requests as it takes", {"retry-after": "1"})
    try:
        caller = gate.caller(one.headers) or await gate.check(one.headers, source_of(one.scope))
    except UncheckedError as error:
        raise RefusedError(429, "too many unknown keys", {"retry-after": str(int(error.wait) + 1)}) from None
    if caller is None:
        raise RefusedError(401, told_unknown(one.headers))
    one.caller = caller
    if (wait := gate.wait(caller)) > 0.0:
        raise RefusedError(429, "too many requests", {"retry-after": str(max(1, round(wait + 0.5)))})
    if one.headers.get(MODE, "auto") not in MODES:
        raise RefusedError(400, f"{MODE} must be one of {', '.join(MODES)}")


async def take_body(one: Exchange, *, known: bool) -> None:
    """Read the body where it is read here, else make ready to hand it on as it comes. Raises RefusedError."""
    if known or asks_a_model(one.path):
        try:
            one.body = await read_body(one.receive, one.headers, one.serving.config.limits.body_bytes)
        except TooLargeError as error:
            one.unread = error.more
            raise RefusedError(413, "the body is larger than this gateway takes") from None
        except SlowBodyError:
            raise RefusedError(408, "the body did not come", {"connection": "close"}) from None
        one.unread = False
    elif "transfer-encoding" in one.headers or one.headers.get("content-length", "0") != "0":
        one.pieces = Pieces(one.receive)
    else:
        one.unread = False


def check_reach(one: Exchange) -> None:
    """Hold what was asked against what the key reaches. Raises RefusedError."""
    if not one.caller.may(one.task or None):
        raise RefusedError(403, "this key does not reach this task")
    if one.caller.scoped and one.call is not None and one.match is not None:
        beyond = scoped.beyond(one.call, one.match, one.serving.accepted(one.task), one.body)
        if beyond is not None:
            raise RefusedError(*beyond)
