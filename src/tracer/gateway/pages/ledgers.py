"""What a task's requests were and cost, by the hour of the last 30 days.

Teacher calls are counted from the traces, each read once; what policies did, from the tallies. A call costs the mean
tokens of its teacher's traces at list price. What is unknown is None, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import TypeVar

from tracer.cost import Price, call_usd, price_of
from tracer.serving.tallies import Tally
from tracer.traces.recent import Calls, Recent, Share
from tracer.types import Usage

HOUR_S = 3600
DAYS = 30
_DAY_S = 24 * HOUR_S
_WINDOW = 50_000
"""Numbers that a look reads at most of what was there before it: the newest first, older ones look by look."""
_SETTLED_S = 2 * _DAY_S
_AGAIN_S = 600.0
"""Tallies are written within minutes: older ones than two days are read again only now and then."""

_Number = TypeVar("_Number", int, Decimal)
CallUsd = Callable[[str], Decimal | None]


@dataclass(frozen=True, slots=True)
class Span:
    """Requests that began in the ``seconds`` from ``start`` (since the epoch).

    ``n`` reached a router, of which its policies would handle ``handled`` and answered ``served``; ``calls`` went to
    the teacher, as far as is recorded or follows. Dollars are None where tokens or prices are unknown.
    """

    start: float
    seconds: float
    n: int = 0
    handled: int = 0
    novel: int = 0
    errors: int = 0
    audits: int = 0
    served: int | None = 0
    calls: int = 0
    spent: Decimal | None = Decimal(0)
    saved: Decimal | None = Decimal(0)
    policies: tuple[str, ...] = ()

    @property
    def requests(self) -> int:
        """All of the task's, as far as is known."""
        return max(self.n, self.calls + (self.served or 0))

    @property
    def coverage(self) -> float | None:
        """Share that the policies handle, be it that an audit or a shadow asked the teacher; None without requests."""
        return self.handled / self.n if self.n else None


class Ledger:
    """Hourly sums that go on from look to look. ``known`` gives the cost of a call that no trace tells, or None."""

    def __init__(self, teacher: str | None, known: CallUsd) -> None:
        self._teacher, self._known = teacher, known
        self._calls: dict[tuple[int, str | None], list[int]] = {}
        self._settled: list[Share] = []
        self._fresh: list[Share] = []
        self._settled_at = -_AGAIN_S
        self._border = 0.0
        self._generation: int | None = None
        self._begin = self._through = self._n = 0

    def refresh(self, recent: Recent, now: float, unsaved: Iterable[Tally]) -> None:
        """Read what is new. ``unsaved`` tallies of this process count as well."""
        self._refresh_calls(recent, now)
        oldest = now - DAYS * _DAY_S
        if abs(now - self._settled_at) >= _AGAIN_S:
            self._border = (now - _SETTLED_S) // HOUR_S * HOUR_S
            self._settled = recent.shares(HOUR_S, oldest, self._border)
            self._settled_at = now
        self._fresh = [*recent.shares(HOUR_S, self._border), *map(_share, unsaved)]

    def _refresh_calls(self, recent: Recent, now: float) -> None:
        oldest = int(now - DAYS * _DAY_S) // HOUR_S
        if self._generation != recent.generation:
            self._calls.clear()
            self._through = self._begin = recent.through
            self._generation, self._n = recent.generation, recent.count()
        self._n += recent.count(self._through)
        for row in recent.calls(HOUR_S, self._through, recent.through):
            self._add(row)
        self._through = recent.through
        if self._begin > 0:
            earlier = recent.calls(HOUR_S, max(0, self._begin - _WINDOW), self._begin)
            for row in earlier:
                self._add(row)
            over = bool(earlier) and all(row.span < oldest for row in earlier)
            self._begin = 0 if over else max(0, self._begin - _WINDOW)
        for key in [key for key in self._calls if key[0] < oldest]:
            del self._calls[key]

    @property
    def partial(self) -> bool:
        """Whether older traces of these days are still to be read."""
        return self._begin > 0

    @property
    def n_traces(self) -> int:
        """Traces of the task."""
        return self._n

    def _add(self, row: Calls) -> None:
        sums = self._calls.setdefault((row.span, row.teacher), [0, 0, 0, 0])
        for i, more in enumerate((row.n, row.n_usage, row.input_tokens, row.output_tokens)):
            sums[i] += more

    @property
    def teacher(self) -> str | None:
        """The teacher that the task names, else the one that was asked most."""
        counts: dict[str, int] = {}
        for (_, name), (n, *_) in self._calls.items():
            if name is not None:
                counts[name] = counts.get(name, 0) + n
        return self._teacher or max(counts, key=lambda name: counts[name], default=None)

    def call_usd(self) -> Mapping[str | None, Decimal | None]:
        """Dollars of an average call of each teacher."""
        totals: dict[str | None, list[int]] = {}
        for (_, name), sums in self._calls.items():
            so_far = totals.setdefault(name, [0, 0, 0])
            for i, more in enumerate(sums[1:]):
                so_far[i] += more
        main = self.teacher
        if main is not None:
            totals.setdefault(main, [0, 0, 0])
        return {name: self._mean(name, *sums) for name, sums in totals.items()}

    def _mean(self, teacher: str | None, n: int, n_in: int, n_out: int) -> Decimal | None:
        if teacher is None:
            return None
        price = _price(teacher)
        if price is None or not n:
            return self._known(teacher)
        return call_usd(price, Usage(n_in, n_out)) / n

    def spans(self, now: float, hours: int, n: int) -> tuple[Span, ...]:
        """The last ``n`` spans of ``hours`` hours, oldest first; the last one holds ``now``."""
        seconds = hours * HOUR_S
        last = int(now // seconds)
        first = last - n + 1
        prices, main = self.call_usd(), self.teacher
        shares: dict[int, list[Share]] = {}
        calls: dict[int, list[tuple[str | None, int]]] = {}
        for share in (*self._settled, *self._fresh):
            shares.setdefault(share.span // hours, []).append(share)
        for (hour, name), (count, *_) in self._calls.items():
            calls.setdefault(hour // hours, []).append((name, count))
        return tuple(
            _span(at * seconds, seconds, shares.get(at, []), calls.get(at, []), prices, main)
            for at in range(first, last + 1)
        )


def total(spans: Iterable[Span]) -> Span:
    """Several spans as one; what is unknown of one is unknown of all."""
    some = tuple(spans)
    return Span(
        some[0].start if some else 0.0,
        sum(span.seconds for span in some),
        sum(span.n for span in some),
        sum(span.handled for span in some),
        sum(span.novel for span in some),
        sum(span.errors for span in some),
        sum(span.audits for span in some),
        _sum([span.served for span in some], 0),
        sum(span.calls for span in some),
        _sum([span.spent for span in some], Decimal(0)),
        _sum([span.saved for span in some], Decimal(0)),
        tuple(sorted({policy for span in some for policy in span.policies})),
    )


def _span(
    start: float, seconds: float, shares: list[Share], calls: list[tuple[str | None, int]],
    prices: Mapping[str | None, Decimal | None], main: str | None,
) -> Span:  # fmt: skip
    n, served = sum(share.n for share in shares), _sum([share.served for share in shares], 0)
    recorded = sum(count for _, count in calls)
    untold = 0 if served is None else max(0, n - served - recorded)
    bills = [_times(prices.get(name), count) for name, count in (*calls, (main, untold))]
    return Span(
        start, seconds, n,
        sum(share.handled for share in shares),
        sum(share.novel for share in shares),
        sum(share.errors for share in shares),
        sum(share.audits for share in shares),
        served,
        recorded + untold,
        _sum(bills, Decimal(0)),
        None if served is None else _times(prices.get(main), served),
        tuple(sorted({share.policy for share in shares if share.policy})),
    )  # fmt: skip


def _times(each: Decimal | None, n: int) -> Decimal | None:
    if not n:
        return Decimal(0)
    return None if each is None else each * n


def _sum(values: list[_Number | None], start: _Number) -> _Number | None:
    out = start
    for value in values:
        if value is None:
            return None
        out += value
    return out


def _share(tally: Tally) -> Share:
    def told(name: str) -> int:
        value = tally.facts.get(name, 0)
        return value if isinstance(value, int) else 0

    span = int(tally.started.timestamp()) // HOUR_S
    counts = (told("handled"), told("novel"), told("errors"), told("audits"), told("served"))
    return Share(span, tally.policy, tally.n, *counts)


@lru_cache(maxsize=256)
def _price(teacher: str) -> Price | None:
    return price_of(teacher)
