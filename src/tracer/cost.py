"""Dollars, in Decimal: what a teacher call costs, and what routing saves of it.

An unknown price is None everywhere, never 0: a saving that nobody can state is not stated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from tracer.errors import ConfigError
from tracer.types import Usage

_MILLION = Decimal(1_000_000)
_AMOUNT = r"\$?\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_PAIR = re.compile(rf"\s*{_AMOUNT}\s*/\s*{_AMOUNT}\s*")


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million tokens, and where the price is from."""

    input_usd_per_million: Decimal
    output_usd_per_million: Decimal
    source: str

    def __post_init__(self) -> None:
        for name in ("input_usd_per_million", "output_usd_per_million"):
            value: Decimal = getattr(self, name)
            if not (value.is_finite() and value >= 0):
                raise ConfigError(f"{name} = {value}: must be a finite price, not negative")


@dataclass(frozen=True, slots=True)
class Projection:
    """Teacher bills without and with a router; all None where the price of a call is unknown."""

    before_day: Decimal | None
    after_day: Decimal | None
    saved_year: Decimal | None


@dataclass(frozen=True, slots=True)
class Saving:
    """What a target saves. ``n_handled`` of ``n`` traces are handled, so coverage is known within an exact interval.

    ``expected`` is the projection at ``n_handled / n``, ``least`` and ``most`` at the ends of the interval. Price and
    volume are taken as given: the range is that of coverage alone.
    """

    target: float
    n_handled: int
    n: int
    interval: tuple[float, float]
    least: Projection
    expected: Projection
    most: Projection


def price_of(model: str, *, at: datetime | None = None) -> Price | None:
    """The list price of a model, from the data that genai-prices carries; None for an unknown model.

    A provider may stand before the model (``openai/gpt-4o``). Where a price rises with the length of the
    prompt it is the price of short prompts, as classification has. ``at`` picks the price of a day, for
    models whose price changed; without it the newest counts.
    """
    # Imported here because it takes a quarter of a second, which every command would pay.
    import genai_prices

    for provider, name in _references(model):
        try:
            found = genai_prices.calc_price(
                genai_prices.Usage(input_tokens=1, output_tokens=1),
                name,
                provider_id=provider,
                genai_request_timestamp=at,
            )
        except LookupError:
            continue
        given = _base(found.model_price.input_mtok), _base(found.model_price.output_mtok)
        if given[0] is not None and given[1] is not None:
            source = f"genai-prices {genai_prices.__version__}: {found.provider.id}/{found.model.id}"
            return Price(given[0], given[1], source)
    return None


def parse_price(text: str) -> Price:
    """The price in ``3/15``: dollars per million input and output tokens. Raises ``ConfigError``."""
    match = _PAIR.fullmatch(text)
    if match is None:
        raise ConfigError(f"price = {text!r}: write dollars per million input/output tokens, such as 3/15")
    return Price(Decimal(match[1]), Decimal(match[2]), "given")


def call_usd(price: Price, usage: Usage) -> Decimal:
    """Dollars of one call."""
    spent = usage.input_tokens * price.input_usd_per_million
    return (spent + usage.output_tokens * price.output_usd_per_million) / _MILLION


def project(
    call_usd: Decimal | None,
    calls_per_day: int,
    coverage: float,
    audit_rate: float = 0.0,
    encoder_usd: Decimal = Decimal(0),
) -> Projection:
    """What routing makes of a daily bill.

    Every call goes through the router, which costs ``encoder_usd`` a call (0 where there is no paid
    encoder). Audits are drawn before routing, so the teacher is spared ``coverage * (1 - audit_rate)`` of
    the calls. A year has 365 days. Raises ``ConfigError`` for rates outside [0, 1] and negative amounts.
    """
    for name, rate in (("coverage", coverage), ("audit_rate", audit_rate)):
        if not 0.0 <= rate <= 1.0:
            raise ConfigError(f"{name} = {rate}: must lie in [0, 1]")
    for name, amount in (
        ("calls_per_day", calls_per_day),
        ("encoder_usd", encoder_usd),
        ("call_usd", call_usd),
    ):
        if amount is not None and amount < 0:
            raise ConfigError(f"{name} = {amount}: must not be negative")
    if call_usd is None:
        return Projection(None, None, None)
    spared = _decimal(coverage) * (1 - _decimal(audit_rate))
    before = call_usd * calls_per_day
    after = before * (1 - spared) + encoder_usd * calls_per_day
    return Projection(before, after, (before - after) * 365)


def savings(
    call_usd: Decimal | None,
    calls_per_day: int,
    counts: Mapping[float, tuple[int, int]],
    *,
    audit_rate: float = 0.0,
    encoder_usd: Decimal = Decimal(0),
    level: float = 0.05,
) -> tuple[Saving, ...]:
    """`project` at each target, with the range that the exact interval of its coverage leaves.

    ``counts`` maps a target to (n_handled, n), the counts of its certificate. Counts made of an estimated coverage give
    an expectation and no range: a gate may refuse, and its threshold varies too. ``encoder_usd`` is dollars a call:
    where a cascade embeds a share of the calls, give that share of the price. ``level`` is the error of each two-sided
    interval (Clopper and Pearson). Raises ConfigError for counts that cannot be.
    """
    from tracer.stats import binomial  # scipy, which the price of a call does not need

    out = []
    for target, (n_handled, n) in sorted(counts.items()):
        if not 0 <= n_handled <= n or n == 0:
            raise ConfigError(f"counts[{target:g}] = {n_handled} handled of {n}: must be counts of at least one trace")
        low, high = binomial.agreement_interval(n_handled, n, level)
        least, expected, most = (
            project(call_usd, calls_per_day, coverage, audit_rate, encoder_usd)
            for coverage in (low, n_handled / n, high)
        )
        out.append(Saving(target, n_handled, n, (low, high), least, expected, most))
    return tuple(out)


def _references(model: str) -> list[tuple[str | None, str]]:
    """(provider, model) pairs to look up, the most literal first."""
    provider, slash, rest = model.partition("/")
    literal: list[tuple[str | None, str]] = [(None, model)]
    return [*literal, (provider, rest)] if slash else literal


def _base(price: object) -> Decimal | None:
    base = getattr(price, "base", price)
    return base if isinstance(base, Decimal) else None


def _decimal(rate: float) -> Decimal:
    # Through repr, so that 0.832 is 0.832 and not the nearest binary fraction.
    return Decimal(repr(float(rate)))
