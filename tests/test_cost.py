"""Prices and savings."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from tracer.cost import Price, Projection, call_usd, parse_price, price_of, project, savings
from tracer.errors import ConfigError
from tracer.stats import binomial
from tracer.types import Usage

CALL = call_usd(parse_price("3/15"), Usage(800, 15))


def test_the_example_of_the_paper() -> None:
    bill = project(CALL, 10_000, 0.832)
    assert Decimal("0.002625") == CALL
    assert bill.before_day == Decimal("26.25")
    assert bill.after_day == Decimal("4.41")
    assert bill.saved_year == Decimal("21.84") * 365


def test_audits_and_the_encoder_cost() -> None:
    bill = project(Decimal("0.01"), 1000, 0.8, audit_rate=0.05, encoder_usd=Decimal("0.0001"))
    assert bill.before_day == 10
    assert bill.after_day == Decimal("2.4") + Decimal("0.1")
    assert bill.saved_year == Decimal("7.5") * 365


def test_an_encoder_that_costs_more_than_it_saves() -> None:
    assert project(Decimal(1), 10, 0.1, encoder_usd=Decimal("0.2")) == Projection(
        Decimal(10), Decimal(11), Decimal(-365)
    )


def test_an_unknown_price_stays_unknown() -> None:
    assert project(None, 10_000, 0.832) == Projection(None, None, None)
    for model in ("no-such-model-anywhere", "", "/", "openai/no-such-model"):
        assert price_of(model) is None


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("coverage = 1.2", {"coverage": 1.2}),
        ("coverage = nan", {"coverage": float("nan")}),
        ("audit_rate = -0.1", {"audit_rate": -0.1}),
        ("calls_per_day = -1", {"calls_per_day": -1}),
        ("encoder_usd = -1", {"encoder_usd": Decimal(-1)}),
        ("call_usd = -1", {"call_usd": Decimal(-1)}),
    ],
)
def test_impossible_projections(field: str, options: dict[str, object]) -> None:
    given: dict[str, object] = {"call_usd": Decimal(1), "calls_per_day": 1, "coverage": 0.5}
    with pytest.raises(ConfigError, match=field):
        project(**(given | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["3/15", " $3 / $15.00 ", "3.0/15"])
def test_prices_as_text(text: str) -> None:
    assert parse_price(text) == Price(Decimal(3), Decimal(15), "given")


@pytest.mark.parametrize("text", ["", "3", "3/", "/15", "-3/15", "3/15/4", "nan/15", "1e9/2", "3,5/15", "three/15"])
def test_prices_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="write dollars per million input/output tokens, such as 3/15") as caught:
        parse_price(text)
    assert repr(text) in str(caught.value)


def test_negative_prices() -> None:
    with pytest.raises(ConfigError, match="output_usd_per_million = -1"):
        Price(Decimal(1), Decimal(-1), "given")


def test_known_models() -> None:
    price = price_of("gpt-4o", at=datetime(2025, 6, 1, tzinfo=UTC))
    assert price is not None
    assert (price.input_usd_per_million, price.output_usd_per_million) == (Decimal("2.5"), Decimal(10))
    assert price.source.startswith("genai-prices ")
    assert price.source.endswith(": openai/gpt-4o")
    assert price_of("openai/gpt-4o", at=datetime(2025, 6, 1, tzinfo=UTC)) == price


def test_tiered_models_have_the_price_of_short_prompts() -> None:
    price = price_of("claude-sonnet-4-5", at=datetime(2025, 12, 1, tzinfo=UTC))
    assert price is not None
    assert (price.input_usd_per_million, price.output_usd_per_million) == (Decimal(3), Decimal(15))


def test_models_without_a_token_price_are_unknown() -> None:
    assert price_of("text-embedding-3-small") is None


def test_the_price_data_are_not_imported_early() -> None:
    code = "import sys, tracer.cost; sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_example_of_the_paper_is_a_range() -> None:
    """800 and 15 tokens at $3 and $15 a million, 10,000 calls a day: $26 a day, $4.40 at coverage 0.832."""
    (found,) = savings(CALL, 10_000, {0.95: (832, 1000)})
    assert found.expected == project(CALL, 10_000, 0.832)
    assert found.expected.before_day is not None
    assert found.expected.after_day is not None
    assert round(found.expected.before_day) == 26
    assert round(found.expected.after_day, 1) == Decimal("4.4")
    low, high = binomial.agreement_interval(832, 1000)
    assert found.interval == (low, high)
    assert (found.least, found.most) == (project(CALL, 10_000, low), project(CALL, 10_000, high))
    years = [p.saved_year for p in (found.least, found.expected, found.most)]
    assert None not in years
    assert years == sorted(years, key=lambda year: year or Decimal(0))
    assert years[1] == Decimal("21.84") * 365


def test_savings_at_each_target_with_audits_and_the_encoder() -> None:
    counts = {0.99: (0, 200), 0.95: (150, 200), 0.9: (200, 200)}
    found = savings(Decimal("0.01"), 1000, counts, audit_rate=0.05, encoder_usd=Decimal("0.0001"))
    assert [saving.target for saving in found] == [0.9, 0.95, 0.99]
    assert found[1].expected == project(Decimal("0.01"), 1000, 0.75, 0.05, Decimal("0.0001"))
    # Where nothing is handled the encoder is paid for nothing; where all is, the range still has a lower end.
    assert found[2].expected.saved_year == Decimal("-0.1") * 365
    assert found[2].interval[0] == 0.0
    assert found[0].interval[1] == 1.0
    assert found[0].interval[0] < 1.0


def test_savings_of_unknown_prices_and_impossible_counts() -> None:
    (found,) = savings(None, 1000, {0.9: (1, 2)})
    assert found.least == found.expected == found.most == Projection(None, None, None)
    assert savings(CALL, 1000, {}) == ()
    for counts in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ConfigError, match=r"counts\[0.9\] = "):
            savings(CALL, 1000, {0.9: counts})
