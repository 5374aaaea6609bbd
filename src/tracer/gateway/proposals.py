"""Tasks that were discovered: what each costs and could save, as YAML to paste and as JSON that adds up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import Any, Literal

import yaml

from tracer.cost import call_usd, price_of, project
from tracer.gateway import patterns
from tracer.gateway.settings import TaskConfig
from tracer.types import Usage

COVERAGES = (0.3, 0.9)
"""Shares of the calls that a policy might handle, for the range of savings. What it does handle, a fit must say."""
HOUR_S = 3600.0
_DAY_S = 86400.0
_SHOWN_LABELS = 255
_TOLD_LABELS = 20

Evidence = Literal["enum", "repeats"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """Classification traffic under one prompt. Counts are of calls seen; no text is kept but labels and the template.

    ``labels`` are (name, calls), most frequent first. ``first`` and ``last`` are seconds since the epoch. Tokens are
    totals of the ``n_usage`` calls that told them. ``template`` is what stands before and after the variable text in
    all user messages, None where they are all text.
    """

    fingerprint: str
    name: str
    evidence: Evidence
    model: str
    n_calls: int
    labels: tuple[tuple[str, int], ...]
    declared: bool
    n_usage: int
    input_tokens: int
    output_tokens: int
    first: float
    last: float
    template: tuple[str, str] | None = None

    @property
    def calls_per_day(self) -> float | None:
        """Calls a day; None before an hour of traffic."""
        span = self.last - self.first
        return self.n_calls / span * _DAY_S if span >= HOUR_S else None

    @property
    def call_usd(self) -> Decimal | None:
        """Dollars of an average call at list prices; None where price or tokens are unknown."""
        price = price_of(self.model) if self.n_usage else None
        if price is None:
            return None
        return call_usd(price, Usage(self.input_tokens, self.output_tokens)) / self.n_usage

    def saved_year(self) -> tuple[Decimal, Decimal] | None:
        """Dollars a year that handling `COVERAGES` of the calls would save, at 2% audits; None where unknown."""
        daily = self.calls_per_day
        if daily is None:
            return None
        low, high = (project(self.call_usd, round(daily), share, 0.02).saved_year for share in COVERAGES)
        return None if low is None or high is None else (low, high)

    @property
    def regex(self) -> str | None:
        """The template as a pattern whose first group is the text."""
        if self.template is None:
            return None
        before, after = map(patterns.escaped, self.template)
        return rf"(?s)\A{before}(.*){after}\z"

    def yaml(self) -> str:
        """An entry for ``tasks:`` in ``tracer.yaml``, with what is known of its cost in comments."""
        entry: dict[str, Any] = {"match": {"fingerprints": [self.fingerprint]}}
        if self.regex is not None:
            entry["input"] = {"regex": self.regex}
        if self.declared:
            entry["label"] = {"options": [label for label, _ in self.labels]}
        entry["mode"] = "observe"
        written = yaml.safe_dump({self.name: entry}, sort_keys=False, allow_unicode=True, width=1000)
        return "".join(f"# {line}\n" for line in self._statements()) + written

    def merged(self, other: Proposal) -> Proposal:
        """The same prompt seen elsewhere, added."""
        names: Counter[str] = Counter(dict(self.labels))
        names.update(dict(other.labels))
        template = None
        if self.template is not None and other.template is not None:
            template = self.template if self.template == other.template else _common(self.template, other.template)
        larger = self if self.n_calls >= other.n_calls else other
        ranked = self.labels if self.declared else ()
        order = {label: i for i, (label, _) in enumerate(ranked)}
        labels = sorted(names.items(), key=lambda item: (order.get(item[0], 0), -item[1], item[0]))
        return replace(
            larger,
            n_calls=self.n_calls + other.n_calls,
            labels=tuple(labels[:_SHOWN_LABELS]),
            n_usage=self.n_usage + other.n_usage,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            first=min(self.first, other.first),
            last=max(self.last, other.last),
            template=template,
        )

    def since(self, earlier: Proposal) -> Proposal:
        """What came after an earlier state of the same proposal."""
        before = dict(earlier.labels)
        return replace(
            self,
            n_calls=self.n_calls - earlier.n_calls,
            labels=tuple((label, max(n - before.get(label, 0), 0)) for label, n in self.labels),
            n_usage=self.n_usage - earlier.n_usage,
            input_tokens=self.input_tokens - earlier.input_tokens,
            output_tokens=self.output_tokens - earlier.output_tokens,
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Proposal:
        """From what `as_dict` gave. Raises TypeError or ValueError for anything else."""
        labels = tuple((str(label), int(n)) for label, n in values["labels"])
        given = values["template"]
        template = None if given is None else (str(given[0]), str(given[1]))
        return cls(**{**values, "labels": labels, "template": template})

    def is_of(self, tasks: Iterable[TaskConfig]) -> bool:
        """Whether one of these tasks takes such calls by now, by their prompt or by their model."""
        return any(self.fingerprint in task.fingerprints or self.model in task.models for task in tasks)

    def _statements(self) -> list[str]:
        daily, cost, saved = self.calls_per_day, self.call_usd, self.saved_year()
        model = " ".join(self.model.split())
        out = [f"{self.n_calls:,} calls of {model}" + (f", {daily:,.0f} a day" if daily is not None else "")]
        if self.n_usage:
            mean = self.input_tokens / self.n_usage, self.output_tokens / self.n_usage
            out.append(f"{mean[0]:,.0f} tokens in and {mean[1]:,.0f} out on average")
        if self.labels:
            told = [f"{_in_a_line(label)} {n:,}" for label, n in self.labels[:_TOLD_LABELS]]
            more = len(self.labels) - len(told)
            out.append(f"labels: {', '.join(told)}" + (f", and {more:,} more" if more else ""))
        out.append("the price of a call is unknown" if cost is None else f"${cost:.6f} a call at list prices")
        if saved is not None:
            low, high = COVERAGES
            out.append(
                f"would save ${saved[0]:,.0f} to ${saved[1]:,.0f} a year if {low:.0%} to {high:.0%} of the calls were "
                "handled; a fit says how many are"
            )
        return out


def _in_a_line(text: str) -> str:
    """A text without what would end a comment."""
    return "".join(c if c.isprintable() else " " for c in text)


def common_start(a: str, b: str) -> str:
    """What two texts begin with, both."""
    n = min(len(a), len(b))
    return a[:n] if a[:n] == b[:n] else a[: next(i for i in range(n) if a[i] != b[i])]


def _common(a: tuple[str, str], b: tuple[str, str]) -> tuple[str, str] | None:
    """Templates of one fingerprint differ in blanks at most; then the shorter ends hold for both."""
    before = common_start(a[0], b[0])
    after = common_start(a[1][::-1], b[1][::-1])[::-1]
    return (before, after) if before or after else None
