"""Who may call: API keys by digest, their tasks, and rates as token buckets."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tracer.errors import ConfigError
from tracer.gateway.checking import Bucket, SlowChecks, UncheckedError
from tracer.gateway.settings import GatewayConfig, Key

__all__ = ["KEY", "Bucket", "Caller", "Gate", "UncheckedError", "check_bind", "source_of", "told_unknown"]

KEY = "x-tracer-key"
"""Header of a key where ``authorization`` holds the upstream's own."""
_SHOWN_IN = (KEY, "authorization", "x-api-key", "api-key")
_STRANGERS = 4_096
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

    @property
    def scoped(self) -> bool:
        """Whether the key reaches some tasks alone."""
        return self.key is not None and self.key.tasks is not None

    def may(self, task: str | None) -> bool:
        """Whether the key reaches a task; None is traffic of no task."""
        return self.key is None or self.key.tasks is None or task in self.key.tasks


class Gate:
    """The keys of a config. What was shown is remembered as its SHA-256, so that scrypt is paid once a key.

    ``before``: the gate of the config before; what it knows of keys and rates of asking goes on. For one event loop.
    """

    def __init__(
        self, config: GatewayConfig, clock: Callable[[], float] = time.monotonic, before: Gate | None = None
    ) -> None:
        self._keys, self._tokens = config.keys, {"admin": config.admin, "metrics": config.metrics}
        self._slow = any(key.digest.slow for key in config.keys)
        rates = {key.name: key.requests_per_s for key in config.keys}
        self._buckets = {name: Bucket(rate, clock) for name, rate in rates.items() if rate is not None}
        limit = config.limits.requests_per_s
        self._all = Bucket(limit, clock) if limit is not None else None
        self._known: dict[bytes, Key] = {}  # as many as there are keys: nobody's guesses push one out
        self._strangers: OrderedDict[bytes, None] = OrderedDict()
        self._shown: dict[tuple[str, bytes], bool] = {}
        self._checks: SlowChecks = SlowChecks(clock=clock) if before is None else before._checks
        if before is not None:
            same = {key.digest: key for key in config.keys}
            self._known = {seen: same[key.digest] for seen, key in before._known.items() if key.digest in same}

    def caller(self, headers: Mapping[str, str]) -> Caller | None:
        """Who calls, where that is known at once: without keys in the config everybody is let in.

        None is a stranger, or something that `check` has to look at, be it beside a key that is known.
        """
        if not self._keys:
            return Caller(None)
        shown = self._digests(headers)
        for _, value, seen in shown:
            if seen in self._known or seen in self._strangers:
                continue
            if (key := _found(self._keys, value, slow=False)) is not None:
                self._known[seen] = key
            elif self._slow:
                return None
            else:
                self._is_strange(seen)
        return self._of(shown)

    async def check(self, headers: Mapping[str, str], source: str) -> Caller | None:
        """Who calls, or None for nobody known; slow digests are computed in threads. ``source``: the address that asks.

        Raises UncheckedError where too many strange keys were shown of late.
        """
        caller = self.caller(headers)
        if caller is not None or not self._slow:
            return caller
        shown = self._digests(headers)
        for _, value, seen in shown:
            if seen not in self._known and seen not in self._strangers:
                key = await self._checks.run(seen, source, partial(_found, self._keys, value, slow=True))
                if key is not None:
                    self._known[seen] = key
                else:
                    self._is_strange(seen)
        return self._of(shown)

    def _digests(self, headers: Mapping[str, str]) -> list[tuple[str, str, bytes]]:
        """What was shown: header, value and its digest."""
        values = ((header, _bare(headers[header])) for header in _SHOWN_IN if header in headers)
        return [(header, value, _digest(value)) for header, value in values if value]

    def _of(self, shown: Iterable[tuple[str, str, bytes]]) -> Caller | None:
        """The caller by the first key; every header that holds one stays here, whosever it is."""
        ours = [(header.encode(), self._known[seen]) for header, _, seen in shown if seen in self._known]
        return Caller(ours[0][1], tuple(header for header, _ in ours)) if ours else None

    def _is_strange(self, seen: bytes) -> None:
        self._strangers[seen] = None
        if len(self._strangers) > _STRANGERS:
            self._strangers.popitem(last=False)

    def wait(self, caller: Caller) -> float:
        """0 where this request keeps to the rates; else the seconds to wait."""
        own = self._buckets.get(caller.name)
        if own is not None and (wait := own.wait()) > 0.0:
            return wait
        return self._all.wait() if self._all is not None else 0.0

    def charge(self, caller: Caller, n: int) -> None:
        """Count n more than the one that `wait` let pass: a batch is as much work as its texts."""
        for bucket in (self._buckets.get(caller.name), self._all):
            if bucket is not None:
                bucket.charge(n)

    async def token(self, what: str, headers: Mapping[str, str], source: str) -> bool | None:
        """Whether the token of ``admin`` or ``metrics`` was shown; None where the config has none.

        Raises UncheckedError as `check` does.
        """
        token = self._tokens[what]
        if token is None:
            return None
        shown = _bare(headers.get("authorization", ""))
        if not shown:
            return False
        seen = (what, _digest(shown))
        if seen not in self._shown:
            check = partial(token.check, shown)
            good = await self._checks.run(what.encode() + seen[1], source, check) if token.slow else check()
            if len(self._shown) >= _STRANGERS:
                self._shown = {one: True for one, yes in self._shown.items() if yes}
            self._shown[seen] = good
        return self._shown[seen]


def told_unknown(headers: Mapping[str, str]) -> str:
    """What a stranger is told: whether a key was shown at all is half of what there is to find out."""
    if any(_bare(headers.get(header, "")) for header in _SHOWN_IN):
        return "the key that was shown is not one of this gateway"
    return "no key of this gateway was shown"


def source_of(scope: Mapping[str, Any]) -> str:
    """The address that a request comes from; empty where that is not known."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def check_bind(config: GatewayConfig, host: str) -> None:
    """Raise ConfigError for an address that others can reach where no key is asked for."""
    if host not in _LOOPBACK and not config.keys:
        raise ConfigError(f"listen.host = {host!r}: others can reach it: set keys first, or listen on 127.0.0.1")


def _bare(value: str) -> str:
    scheme, _, rest = value.partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else value.strip()


def _digest(shown: str) -> bytes:
    return hashlib.sha256(shown.encode("utf-8", "surrogatepass")).digest()


def _found(keys: Iterable[Key], shown: str, *, slow: bool) -> Key | None:
    """The key that was shown, of those with a slow digest or of the others; all are compared, whichever it is."""
    good = [key for key in keys if key.digest.slow == slow and key.digest.check(shown)]
    return good[0] if good else None
