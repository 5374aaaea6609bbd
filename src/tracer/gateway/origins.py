"""Who may speak to a gateway without keys: programs of this machine, and no web site in one of its browsers.

A site can send requests to a loopback address (CSRF), and with a name of its own that points there it can read the
answers too (DNS rebinding). Browsers say so in ``host``, ``origin`` and ``sec-fetch-site`` (Fetch Metadata, W3C), which
no script can change. Where keys are asked for, no site has one: there the three are free.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Foreign", "foreign", "is_loopback", "own_name"]

Foreign = tuple[int, str]
"""Status and words of a refusal."""

_LOOKED_AT = frozenset({b"host", b"origin", b"sec-fetch-site"})
_HOST: Foreign = (
    421, "this gateway asks for no key, so it answers under this machine's own names alone: use http://127.0.0.1 or "
    "http://localhost with its port, or set keys in its settings",
)  # fmt: skip
_ORIGIN: Foreign = (
    403, "this gateway asks for no key, so it answers no page of another site: set keys in its settings",
)  # fmt: skip


def foreign(scope: Mapping[str, Any]) -> Foreign | None:
    """Why a request is refused where no key is asked for; None where it is not."""
    for name, value in scope["headers"]:
        if name not in _LOOKED_AT:
            continue
        if name == b"host":
            if not own_name(value):
                return _HOST
        elif name == b"origin":
            if not _own_origin(value):
                return _ORIGIN
        elif value not in (b"same-origin", b"same-site", b"none") and not _followed(scope):
            return _ORIGIN
    return None


@lru_cache(256)
def own_name(host: bytes) -> bool:
    """Whether a ``host`` (with a port or not) is a name that every machine has for itself alone."""
    if len(host) > 256:
        return False
    try:
        parts = urlsplit("//" + host.decode("ascii"))
        name, plain = parts.hostname, parts.port is None or parts.port >= 0
    except ValueError:
        return False
    if not plain or not name or parts.path or parts.query or parts.fragment or parts.username is not None:
        return False
    # localhost and the names below it never leave the machine (RFC 6761, section 6.3).
    return name == "localhost" or name.endswith(".localhost") or is_loopback(name)


def is_loopback(address: str) -> bool:
    """Whether this is an address of the loopback interface; names are none."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


@lru_cache(256)
def _own_origin(origin: bytes) -> bool:
    scheme, _, host = origin.partition(b"://")
    return scheme in (b"http", b"https") and own_name(host)


def _followed(scope: Mapping[str, Any]) -> bool:
    """Whether somebody followed a link to a page here: it changes nothing, and the other site does not see it."""
    if scope["method"] not in ("GET", "HEAD") or scope["path"].startswith(("/v1", "/admin")):
        return False
    return (b"sec-fetch-mode", b"navigate") in scope["headers"]
