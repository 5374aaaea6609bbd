"""What a page shows of a store: sums in spans of time, verdicts without texts, and the newest few with their texts.

All of it is bounded: by numbers, by times, or by how many rows may be looked at. Nothing here reads a whole store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tracer.traces.escaping import escaped, unescaped
from tracer.traces.facts import Traffic
from tracer.traces.rows import trace_of
from tracer.traces.schema import tasks, traces, traffic
from tracer.types import Origin, Trace


@dataclass(frozen=True, slots=True)
class Calls:
    """Teacher calls that began in span number ``span`` (since the epoch): ``n`` traces, ``n_usage`` with tokens."""

    span: int
    teacher: str | None
    n: int
    n_usage: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Share:
    """Tallied requests of a policy in a span. ``served`` is None where a tally of older days does not say it."""

    span: int
    policy: str | None
    n: int
    handled: int
    novel: int
    errors: int
    audits: int
    served: int | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A trace without its text: the teacher's label, and what the policy said."""

    number: int
    time: datetime | None
    origin: Origin
    label: str
    policy: str | None
    seen_label: str | None
    handled: bool


@dataclass(frozen=True, slots=True)
class Labels:
    """A label that the teacher gave ``n`` times, first in trace ``number``."""

    label: str
    n: int
    number: int
    time: datetime | None


class Recent:
    """Reads one state of a task's rows: up to number ``through``, of a ``generation`` that rises as rows go away."""

    def __init__(self, connection: Connection, task: int, *, is_sqlite: bool) -> None:
        self._connection, self._task, self._is_sqlite = connection, task, is_sqlite
        query = sa.select(tasks.c.generation, tasks.c.through).where(tasks.c.id == task)
        self.generation, self.through = connection.execute(query).one()

    def count(self, after: int = 0) -> int:
        """Traces of the task with a number behind this one."""
        query = sa.select(sa.func.count()).select_from(traces).where(*self._numbered(after, self.through))
        return int(self._connection.execute(query).scalar_one())

    def calls(self, span_s: int, after: int, through: int) -> list[Calls]:
        """Traces with a time and ``after`` < number <= ``through``, by span and teacher."""
        span = self._span(traces.c.time, span_s)
        query = (
            sa.select(
                span,
                traces.c.teacher,
                sa.func.count(),
                sa.func.count(traces.c.input_tokens),
                sa.func.coalesce(sa.func.sum(traces.c.input_tokens), 0),
                sa.func.coalesce(sa.func.sum(traces.c.output_tokens), 0),
            )
            .where(*self._numbered(after, through), traces.c.time.is_not(None))
            .group_by(span, traces.c.teacher)
        )
        return [
            Calls(int(at), _plain(teacher), int(n), int(n_usage), int(n_in), int(n_out))
            for at, teacher, n, n_usage, n_in, n_out in self._connection.execute(query)
        ]

    def tokens(self, among: int) -> list[Calls]:
        """Traces with tokens of the last ``among`` numbers, by teacher, as of one span; who came last comes last."""
        known = (traces.c.input_tokens.is_not(None), traces.c.output_tokens.is_not(None))
        n, n_in, n_out = sa.func.count(), sa.func.sum(traces.c.input_tokens), sa.func.sum(traces.c.output_tokens)
        query = (
            sa.select(traces.c.teacher, n, n_in, n_out)
            .where(*self._numbered(self.through - among, self.through), *known)
            .group_by(traces.c.teacher)
            .order_by(sa.func.max(traces.c.number))
        )
        return [
            Calls(0, _plain(teacher), int(n), int(n), int(n_in), int(n_out))
            for teacher, n, n_in, n_out in self._connection.execute(query)
        ]

    def shares(self, span_s: int, since: float, until: float = math.inf) -> list[Share]:
        """Tallies that began at ``since`` or later and before ``until``, by span and policy."""
        span = self._span(traffic.c.started, span_s)
        counts = [sa.func.sum(sa.func.coalesce(self._fact(name), 0)) for name in _COUNTED]
        # A sum leaves out what is not there: as many as there are tallies, or the total is not known.
        served = self._fact("served")
        query = (
            sa.select(span, traffic.c.policy, sa.func.sum(traffic.c.n), *counts, sa.func.sum(served))
            .add_columns(sa.func.count(), sa.func.count(served))
            .where(traffic.c.task == self._task, traffic.c.started >= since)
            .group_by(span, traffic.c.policy)
            .order_by(span)
        )
        if until != math.inf:
            query = query.where(traffic.c.started < until)
        return [
            Share(
                int(at),
                _plain(policy),
                int(n),
                int(handled),
                int(novel),
                int(errors),
                int(audits),
                int(given) if known == n_tallies else None,
            )
            for at, policy, n, handled, novel, errors, audits, given, n_tallies, known in self._connection.execute(
                query
            )
        ]

    def tallies(self, policy: str, *, after: int, since: float, n: int) -> tuple[int, list[Traffic]]:
        """The next ``n`` tallies of a policy that began at ``since`` or later, and the number of the last one.

        ``after`` is the number of the last one known, 0 for none; it comes back where there is no more.
        """
        wanted = (traffic.c.task == self._task, traffic.c.started >= since, traffic.c.id > after)
        query = sa.select(traffic).where(*wanted, traffic.c.policy == escaped(policy)).order_by(traffic.c.id).limit(n)
        rows = self._connection.execute(query).mappings().all()
        found = [Traffic(policy, row["started"], row["seconds"], row["n"], json.loads(row["facts"])) for row in rows]
        return (int(rows[-1]["id"]) if rows else after), found

    def verdicts(self, after: int, through: int, origins: Collection[Origin]) -> list[Verdict]:
        """Traces of these origins with ``after`` < number <= ``through``, in order, without their texts."""
        columns = (traces.c.number, traces.c.time, traces.c.origin, traces.c.label, traces.c.policy)
        query = sa.select(*columns, traces.c.seen_label, traces.c.seen_handled).where(
            *self._numbered(after, through), traces.c.origin.in_(sorted(origins))
        )
        return [
            Verdict(number, _moment(time), origin, unescaped(label), _plain(policy), _plain(seen), bool(handled))
            for number, time, origin, label, policy, seen, handled in self._connection.execute(
                query.order_by(traces.c.number)
            )
        ]

    def labels(self, after: int, through: int, origins: Collection[Origin]) -> list[Labels]:
        """The teacher's labels of these traces, each with how often and where it came first."""
        query = (
            sa.select(traces.c.label, sa.func.count(), sa.func.min(traces.c.number), sa.func.min(traces.c.time))
            .where(*self._numbered(after, through), traces.c.origin.in_(sorted(origins)))
            .group_by(traces.c.label)
        )
        return [
            Labels(unescaped(label), int(n), int(number), _moment(time))
            for label, n, number, time in self._connection.execute(query)
        ]

    def newest(
        self, n: int, *, among: int, origins: Collection[Origin], handled: bool | None = None, disagreed: bool = False
    ) -> list[Trace]:
        """The newest ``n`` traces with texts of these origins, newest first, of the last ``among`` numbers.

        ``handled``: those alone that a policy would have answered, or would not. ``disagreed``: those of which a policy
        said otherwise than the teacher did.
        """
        wanted = [*self._numbered(self.through - among, self.through), traces.c.text.is_not(None)]
        wanted.append(traces.c.origin.in_(sorted(origins)))
        if handled is not None:
            wanted.append(traces.c.seen_handled.is_(handled))
        if disagreed:
            wanted.append(traces.c.seen_label != traces.c.label)
        query = sa.select(traces).where(*wanted).order_by(traces.c.number.desc()).limit(n)
        return [trace_of(dict(row)) for row in self._connection.execute(query).mappings()]

    def _numbered(self, after: int, through: int) -> list[sa.ColumnElement[bool]]:
        return [traces.c.task == self._task, traces.c.number > after, traces.c.number <= through]

    def _fact(self, name: str) -> sa.ColumnElement[int]:
        """A count among a tally's facts. A label cannot be taken for one: its quotes are escaped."""
        if self._is_sqlite:
            return sa.cast(sa.func.json_extract(traffic.c.facts, f"$.{name}"), sa.BigInteger)
        # PostgreSQL's own JSON refuses all of the facts where a label holds half a character.
        return sa.cast(sa.func.substring(traffic.c.facts, rf'"{name}": (\d+)'), sa.BigInteger)

    def _span(self, column: sa.Column[Any], span_s: int) -> sa.ColumnElement[Any]:
        # SQLite cuts where PostgreSQL rounds, and may lack floor(); times lie after the epoch.
        quotient = column / float(span_s)
        return sa.cast(quotient, sa.BigInteger) if self._is_sqlite else sa.func.floor(quotient)


_COUNTED = ("handled", "novel", "errors", "audits")


def _plain(text: str | None) -> str | None:
    return None if text is None else unescaped(text)


def _moment(time: float | None) -> datetime | None:
    return None if time is None else datetime.fromtimestamp(time, UTC)
