"""A circuit breaker: an upstream that fails is left alone for a while, then tried by one request."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tracer.errors import ConfigError

log = logging.getLogger("tracer.gateway")

State = Literal["closed", "open", "half_open"]

_SLICES = 10
"""Slices of the window: what is older than the window goes a slice at a time, so that memory is bounded."""


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a breaker opens: after ``failures`` in a row, or where of at least ``least`` results within ``window_s``
    seconds a share of ``share`` failed. It stays open for ``open_s`` seconds. Raises ConfigError."""

    failures: int = 5
    share: float = 0.5
    least: int = 20
    window_s: float = 30.0
    open_s: float = 15.0

    def __post_init__(self) -> None:
        if self.failures < 1 or self.least < 1:
            raise ConfigError(f"failures {self.failures} and least {self.least} must be at least 1")
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(f"share = {self.share!r}: must be in (0, 1]")
        if not (self.window_s > 0.0 and self.open_s > 0.0):
            raise ConfigError(f"window_s {self.window_s} and open_s {self.open_s} must be positive")


class Permit:
    """Leave to ask once. Report how it went; a permit that is given up proves nothing, and frees a trial's place."""

    __slots__ = ("_breaker", "_round", "_settled")

    def __init__(self, breaker: Breaker, round_: int) -> None:
        self._breaker, self._round, self._settled = breaker, round_, False

    def succeeded(self) -> None:
        """The upstream answered, be it that it refused this request."""
        self._report(True)

    def failed(self) -> None:
        """It did not answer, or with a fault of its own; also after ``succeeded``, where the answer was cut."""
        self._report(False)

    def given_up(self) -> None:
        """Nobody knows: the client left. Nothing where there was a result."""
        self._report(None)

    def _report(self, good: bool | None) -> None:
        if good is None and self._settled:
            return
        self._settled = True
        self._breaker._note(self._round, good)


class Breaker:
    """``closed``: all pass. ``open``: none. ``half_open``, after ``open_s``: one at a time, whose result decides.

    Results of requests that began before the state last changed say nothing about it now, and are left out.
    ``clock`` gives seconds that never go back. Changes are logged under ``name``. For one event loop, or one thread.
    """

    def __init__(self, settings: BreakerSettings, clock: Callable[[], float], name: str = "") -> None:
        self._settings, self._clock, self._name = settings, clock, name
        self._slices: deque[list[int]] = deque()  # [number of the slice, results, failures]
        self._in_a_row = 0
        self._opened: float | None = None
        self._trial = False
        self._round = 0

    @property
    def state(self) -> State:
        """The state now."""
        if self._opened is None:
            return "closed"
        return "half_open" if self._clock() >= self._opened + self._settings.open_s else "open"

    @property
    def retry_after(self) -> float:
        """Seconds until a request may be tried; 0 where one may now."""
        if self._opened is None:
            return 0.0
        return max(0.0, self._opened + self._settings.open_s - self._clock())

    def admit(self) -> Permit | None:
        """Leave to ask, or None."""
        state = self.state
        if state == "open" or (state == "half_open" and self._trial):
            return None
        if state == "half_open":
            self._trial = True
        return Permit(self, self._round)

    def _note(self, round_: int, good: bool | None) -> None:
        if round_ != self._round:
            return
        if self._opened is not None:
            self._trial = False
            if good:
                log.warning("upstream %s answers again", self._name)
            elif good is not None:
                log.warning("upstream %s: left alone for %g s more", self._name, self._settings.open_s)
            if good is not None:
                self._turn(None if good else self._clock())
        elif good is not None:
            self._count(good)

    def _count(self, good: bool) -> None:
        set_, now = self._settings, int(self._clock() * _SLICES / self._settings.window_s)
        while self._slices and self._slices[0][0] <= now - _SLICES:
            self._slices.popleft()
        if not self._slices or self._slices[-1][0] != now:
            self._slices.append([now, 0, 0])
        self._slices[-1][1] += 1
        self._slices[-1][2] += not good
        self._in_a_row = 0 if good else self._in_a_row + 1
        if good:
            return
        n, n_failed = (sum(one[i] for one in self._slices) for i in (1, 2))
        if self._in_a_row >= set_.failures or (n >= set_.least and n_failed >= set_.share * n):
            log.warning("upstream %s: left alone for %g s after %d failures", self._name, set_.open_s, n_failed)
            self._turn(self._clock())

    def _turn(self, opened: float | None) -> None:
        self._opened, self._trial, self._in_a_row = opened, False, 0
        self._slices.clear()
        self._round += 1
