"""Errors as OpenAI's API says them; the decision formats say them the same way."""

from __future__ import annotations

from tracer.gateway.codecs.bodies import encode
from tracer.gateway.codecs.sse import encoded

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, type: str | None) -> bytes:  # noqa: A002
    """An error's body; a status of 500 and more is the server's fault, any other the request's unless told."""
    kind = type or _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return encode({"error": {"message": message, "type": kind, "param": None, "code": None}})


def error_data(status: int, message: str, type: str | None) -> bytes:  # noqa: A002
    """The same as an event of a stream."""
    return encoded(error_body(status, message, type))
