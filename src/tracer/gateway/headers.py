"""What of the headers goes on, both ways: all but those of one connection, and the credentials where they change."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Literal

Headers = tuple[tuple[bytes, bytes], ...]
Auth = Literal["bearer", "x-api-key", "api-key", "client", "none"]
"""How an upstream takes its key: ``authorization: Bearer``, Anthropic's ``x-api-key``, or Azure's ``api-key``. Without
a key: ``client``, the client's own credentials pass; or ``none``."""

_ONE_CONNECTION = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te"}
    | {b"trailer", b"trailers", b"transfer-encoding", b"upgrade"}
)
"""Hop-by-hop, RFC 9110, section 7.6.1; with those that ``connection`` names."""
_MADE_ANEW = frozenset({b"host", b"content-length", b"expect"})
CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"cookie"})
OURS = b"x-tracer-"
"""How the names of the gateway's own headers start; they stay here."""

_NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_VALUE = re.compile(rb"(?:[^\x00\s]+(?:[ \t]+[^\x00\s]+)*)?")


def well_formed(name: bytes, value: bytes) -> bool:
    """Whether HTTP can carry it (RFC 9110, section 5.5, and as h11 reads it)."""
    return _NAME.fullmatch(name) is not None and _VALUE.fullmatch(value) is not None


def to_upstream(
    headers: Iterable[tuple[bytes, bytes]],
    *,
    auth: Auth,
    key: str | None,
    readable: bool,
    withheld: Collection[bytes] = (),
) -> list[tuple[bytes, bytes]]:
    """The headers of a request that goes on. ``withheld``: further names, in lower case, that stay here, such as the
    header in which the client showed a key of the gateway's own.

    ``readable``: the answer will be read here, so it is asked for without compression, which suits every client;
    else the client's ``accept-encoding`` passes.
    """
    gone = _MADE_ANEW | frozenset(withheld) | (CREDENTIALS if auth != "client" else frozenset())
    out = [(name, value) for name, value in _passing(headers) if name not in gone and not name.startswith(OURS)]
    if readable:
        out = [(name, value) for name, value in out if name != b"accept-encoding"]
    if readable or all(name != b"accept-encoding" for name, _ in out):
        out.append((b"accept-encoding", b"identity"))
    if key is not None and auth == "bearer":
        out.append((b"authorization", b"Bearer " + key.encode("ascii")))
    elif key is not None and auth in ("x-api-key", "api-key"):
        out.append((auth.encode(), key.encode("ascii")))
    return out


def to_client(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers of an answer that goes back, names in lower case. The body goes back byte by byte, so its length
    and encoding still hold. Names that only this gateway may send are left out: a client trusts them."""
    return tuple((name, value) for name, value in _passing(headers) if not name.startswith(OURS))


def _passing(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    low = [(name.lower(), value) for name, value in headers]
    named = {part.strip().lower() for name, value in low if name == b"connection" for part in value.split(b",")}
    return [(name, value) for name, value in low if name not in _ONE_CONNECTION and name not in named]
