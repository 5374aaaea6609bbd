"""Who sees what on the page. Counts are for all, as in ``/health``; texts and forms for the admin.

The admin shows the token once and gets a cookie, signed with a key that lies in the gateway's home folder, so that all
workers know it and no reader of ``tracer.yaml`` can make one. Where neither keys nor a token are set, the gateway
listens on loopback alone: then whoever sits at the machine sees the texts too, and can change nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import HTTPConnection

from tracer.errors import TracerError
from tracer.gateway.auth import UncheckedError
from tracer.gateway.origins import own_name
from tracer.gateway.pages.ended import Ended
from tracer.gateway.serving import Gateway

log = logging.getLogger("tracer.gateway")

SESSION = "tracer_session"
SESSION_S = 8 * 3600
KEY_FILE = "session.key"
"""File in the gateway's home with the key of the cookies; without it all must log in again."""
_WINDOW_S = 60.0
_FAILURES = 5
"""Failed logins of one address in a minute, after which it waits; of all addresses together, ten times as many.

Behind a proxy all have one address: a right token whose check is cheap is let in all the same.
"""
_ADDRESSES = 1_000
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


@dataclass(frozen=True, slots=True)
class Visitor:
    """``texts``: may read what was asked and answered. ``admin``: may change what is in force; ``csrf`` is then the
    token that forms bring back. ``can_login``: there is a token to show."""

    texts: bool = False
    admin: bool = False
    can_login: bool = False
    csrf: str = ""


class Access:
    """Sessions and logins of a gateway. ``now`` gives seconds since the epoch."""

    def __init__(self, gateway: Gateway, clock: Callable[[], float] = time.monotonic) -> None:
        self._gateway, self._clock = gateway, clock
        self._secret: bytes | None = None
        self._ended = Ended()
        self._failures: dict[str, deque[float]] = {}
        self._all_failures: deque[float] = deque(maxlen=10 * _FAILURES)

    def misdirected(self, request: HTTPConnection) -> bool:
        """Whether a page must be refused whole: a name that is not this machine's, where nothing else guards the texts.

        A site that has its own name point here (DNS rebinding) would read what only who sits here may.
        """
        config = self._gateway.serving.config
        if config.keys or config.admin is not None:
            return False
        return not own_name(request.headers.get("host", "").encode("latin-1"))

    def visitor(self, request: HTTPConnection) -> Visitor:
        """Who looks."""
        config = self._gateway.serving.config
        if config.admin is None:
            return Visitor(texts=not config.keys and _sits_here(request))
        known = self._opened(request.cookies.get(SESSION, ""))
        if known is None:
            return Visitor(can_login=True)
        nonce, key = known
        return Visitor(texts=True, admin=True, can_login=True, csrf=_mac(key, f"form.{nonce}"))

    def same_site(self, request: HTTPConnection) -> bool:
        """Whether a form was sent from a page of this very host, as far as the browser says."""
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return False
        origin = request.headers.get("origin")
        return origin is None or origin.lower().partition("://")[2] == request.headers.get("host", "").lower()

    def wait(self, request: HTTPConnection) -> float:
        """Seconds until this address may try a token again; 0 where it may now."""
        now = self._clock()
        own = self._failures.get(_address(request))
        waits = [0.0]
        for failures, most in ((own, _FAILURES), (self._all_failures, 10 * _FAILURES)):
            if failures is not None and len(failures) >= most:
                waits.append(failures[-most] + _WINDOW_S - now)
        return max(waits)

    def cheap(self) -> bool:
        """Whether a token is checked at once, of which only long random ones are kept so: nobody tries those out."""
        admin = self._gateway.serving.config.admin
        return admin is not None and not admin.slow

    async def check(self, request: HTTPConnection, token: str) -> bool:
        """Whether this is the admin token; also False where too many tokens are being checked to check this one."""
        shown = {"authorization": f"Bearer {token}"}
        try:
            return await self._gateway.serving.gate.token("admin", shown, _address(request)) is True
        except UncheckedError:
            return False

    def failed(self, request: HTTPConnection) -> None:
        """Count a wrong token."""
        address = _address(request)
        if address not in self._failures and len(self._failures) >= _ADDRESSES:
            self._failures.clear()
        self._failures.setdefault(address, deque(maxlen=_FAILURES)).append(self._clock())
        self._all_failures.append(self._clock())

    def succeeded(self, request: HTTPConnection) -> None:
        """Take back what ``failed`` counted of this address."""
        self._failures.pop(_address(request), None)
        if self._all_failures:
            self._all_failures.pop()

    def allows(self, request: HTTPConnection, visitor: Visitor, shown: str) -> bool:
        """Whether a form may change something: an admin sent it, from a page of ours, with that session's token."""
        known = bool(visitor.csrf) and hmac.compare_digest(visitor.csrf.encode(), shown.encode())
        return visitor.admin and known and self.same_site(request)

    def begin(self) -> str:
        """The value of a new session's cookie. Reads or makes the key's file: run it in a thread."""
        key = self._key(make=True)
        assert key is not None  # noqa: S101 - the caller has checked a token
        content = f"{int(self._gateway.now()) + SESSION_S}.{secrets.token_urlsafe(18)}"
        return f"{content}.{_mac(key, content)}"

    def end(self, request: HTTPConnection) -> None:
        """Take a session back, in all workers. Writes a file: run it in a thread."""
        gateway = self._gateway
        content = request.cookies.get(SESSION, "").rpartition(".")[0]
        try:
            self._ended.add(gateway.serving.config.home, content, gateway.now())
        except (OSError, TracerError) as error:
            log.error("a session ended in one worker alone: %s", type(error).__name__)

    def _opened(self, cookie: str) -> tuple[str, bytes] | None:
        content, _, given = cookie.rpartition(".")
        until, _, nonce = content.partition(".")
        if not nonce or not until.isascii() or not until.isdigit() or len(cookie) > 200:
            return None
        key = self._key(make=False)
        if key is None or not hmac.compare_digest(given.encode(), _mac(key, content).encode()):
            return None
        if int(until) <= self._gateway.now() or self._ended.holds(self._gateway.serving.config.home, content):
            return None
        return nonce, key

    def _key(self, *, make: bool) -> bytes | None:
        admin = self._gateway.serving.config.admin
        if self._secret is None:
            self._secret = _stored(self._gateway.serving.config.home / KEY_FILE, make=make)
        return None if admin is None or self._secret is None else admin.bound(self._secret)


def secure(request: HTTPConnection) -> bool:
    """Whether the browser speaks TLS, here or with a proxy before us."""
    return request.scope["scheme"] == "https" or request.headers.get("x-forwarded-proto", "").lower() == "https"


def _stored(path: Path, *, make: bool) -> bytes | None:
    """The key in a file, 32 bytes that its owner alone may read; made by whichever worker comes first."""
    with contextlib.suppress(FileNotFoundError):
        found = path.read_bytes()
        if len(found) == 32:
            return found
    if not make:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{KEY_FILE}-{secrets.token_hex(8)}")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(32))
    try:
        with contextlib.suppress(FileExistsError):
            os.link(beside, path)
        return path.read_bytes()
    finally:
        beside.unlink()


def _mac(key: bytes, content: str) -> str:
    return hmac.new(key, content.encode(), hashlib.sha256).hexdigest()


def _address(request: HTTPConnection) -> str:
    return request.client.host if request.client is not None else ""


def _sits_here(request: HTTPConnection) -> bool:
    """Whether a browser on this machine asks, by no way around."""
    server = request.scope.get("server")
    ends = [_address(request), str(server[0]) if server else ""]
    return all(map(_is_loopback, ends)) and not any(name in request.headers for name in _FORWARDED)


def _is_loopback(address: str) -> bool:
    known = _parsed(address)
    return known is not None and known.is_loopback


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        return None
