"""Who may call: API keys by digest, their tasks, and rates as token buckets."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tracer.errors import ConfigError
from tracer.gateway.credentials import KeyHash
from tracer.gateway.settings import GatewayConfig, Key

KEY = "x-tracer-key"
"""Header of a key where ``authorization`` holds the upstream's own."""
_SHOWN_IN = (KEY, "authorization", "x-api-key", "api-key")
_KNOWN = 1024
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller that was let in. ``withheld``: headers that held a key of the gateway, and stay here."""

    key: Key | None
    withheld: tuple[bytes, ...] = ()

    @property
    def name(self) -> str:
        """The key's name, never the key."""
        return self.key.name if self.key is not None else ""

    def may(self, task: str | None) -> bool:
        """Whether the key reaches a task; None is traffic of no task."""
        return self.key is None or self.key.tasks is None or task in self.key.tasks


class Bucket:
    """Admits ``rate`` requests a second on average, and a second's worth at once (at least one)."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._most, self._clock = rate, max(1.0, rate), clock
        self._left, self._at = self._most, clock()

    def wait(self) -> float:
        """0 where a request may pass, which takes its token; else the seconds until one may."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            return (1.0 - self._left) / self._rate
        self._left -= 1.0
        return 0.0


class Gate:
    """The keys of a config. Digests that were checked are remembered, so that scrypt is paid once a key.

    For one event loop. What is remembered is a SHA-256 of what was shown, never a key.
    """

    def __init__(self, config: GatewayConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys, self._admin = config.keys, config.admin
        rates = {key.name: key.requests_per_s for key in config.keys}
        self._buckets = {name: Bucket(rate, clock) for name, rate in rates.items() if rate is not None}
        limit = config.limits.requests_per_s
        self._all = Bucket(limit, clock) if limit is not None else None
        self._known: dict[bytes, Key | None] = {}
        self._admins: dict[bytes, bool] = {}

    def caller(self, headers: Mapping[str, str]) -> Caller | None:
        """Who calls, or None for nobody known. Without keys in the config everybody is let in."""
        if not self._keys:
            return Caller(None)
        for header in _SHOWN_IN:
            shown = _bare(headers.get(header, ""))
            if shown and (key := self._key_of(shown)) is not None:
                return Caller(key, (header.encode(),))
        return None

    def wait(self, caller: Caller) -> float:
        """0 where this request keeps to the rates; else the seconds to wait."""
        own = self._buckets.get(caller.name)
        if own is not None and (wait := own.wait()) > 0.0:
            return wait
        return self._all.wait() if self._all is not None else 0.0

    def is_admin(self, headers: Mapping[str, str]) -> bool | None:
        """Whether the admin token was shown; None where the config has none, and nobody is admin."""
        if self._admin is None:
            return None
        shown = _bare(headers.get("authorization", ""))
        if not shown:
            return False
        digest = hashlib.sha256(shown.encode("utf-8", "surrogatepass")).digest()
        if digest not in self._admins:
            _bound(self._admins)
            self._admins[digest] = _checks(self._admin, shown)
        return self._admins[digest]

    def _key_of(self, shown: str) -> Key | None:
        digest = hashlib.sha256(shown.encode("utf-8", "surrogatepass")).digest()
        if digest not in self._known:
            _bound(self._known)
            self._known[digest] = next((key for key in self._keys if _checks(key.digest, shown)), None)
        return self._known[digest]


def check_bind(config: GatewayConfig, host: str) -> None:
    """Raise ConfigError for an address that others can reach where no key is asked for."""
    if host not in _LOOPBACK and not config.keys:
        raise ConfigError(f"listen.host = {host!r}: others can reach it: set keys first, or listen on 127.0.0.1")


def _bare(value: str) -> str:
    scheme, _, rest = value.partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else value.strip()


def _bound(known: dict[bytes, Key | None] | dict[bytes, bool]) -> None:
    if len(known) >= _KNOWN:
        known.clear()


def _checks(digest: KeyHash, shown: str) -> bool:
    return digest.check(shown)
