"""Facts as HTML: every value escaped, nothing from elsewhere, nothing that runs but the page's own small script."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tracer.reporting import texts, words

HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
ASSETS = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_LONGEST = 600


def render(name: str, **facts: Any) -> str:
    """A template of ours with these facts."""
    return _environment().get_template(name).render(assets={name: asset_path(name) for name in ASSETS}, **facts)


@cache
def asset(name: str) -> bytes:
    """A file of the page. Raises KeyError for none of ours."""
    if name not in ASSETS:
        raise KeyError(name)
    return (resources.files("tracer.gateway.pages") / "templates" / name).read_bytes()


@cache
def asset_path(name: str) -> str:
    """Where a browser finds it; another content, another path."""
    return f"/assets/{hashlib.sha256(asset(name)).hexdigest()[:12]}/{name}"


def moment(at: float | datetime | None) -> str:
    """A time (UTC, or seconds since the epoch) to the minute."""
    if at is None:
        return words.NOTHING
    then = at if isinstance(at, datetime) else datetime.fromtimestamp(at, UTC)
    return f"{then.astimezone(UTC):%d %b %H:%M}"


def iso(at: float | datetime | None) -> str:
    """The same as machines read it."""
    if at is None:
        return ""
    then = at if isinstance(at, datetime) else datetime.fromtimestamp(at, UTC)
    return then.astimezone(UTC).isoformat(timespec="seconds")


def money(value: object) -> str:
    """Dollars with the digits that matter; unknown stays unknown."""
    if value is None:
        return "unknown"
    amount = abs(float(str(value)))
    digits = 2 if amount == 0.0 or amount >= 0.1 else min(8, 1 - math.floor(math.log10(amount)))
    return words.usd(value, digits)


def fit(text: object) -> str:
    """A stranger's text as far as a page shows it: no control characters, no novels."""
    return texts.shown(str(text), _LONGEST)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tracer.gateway.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= words.FILTERS | {f.__name__: f for f in (moment, iso, money, fit)}
    return environment
