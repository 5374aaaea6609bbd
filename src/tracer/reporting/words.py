"""Numbers and texts as people read them: the filters of the templates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

NOTHING = "\N{EN DASH}"


def pct(value: float | None, digits: int = 1) -> str:
    """A rate in [0, 1]; nothing below 100% is rounded up to it."""
    if value is None:
        return NOTHING
    text = f"{value:.{digits}%}"
    if text.startswith("100") and value < 1.0:
        return f">{(100 - 10.0**-digits):.{digits}f}%"
    return text


def points(value: float, unit: str = " points") -> str:
    """A change of a rate, in percentage points."""
    if round(value * 100, 1) == 0:
        return "\N{PLUS-MINUS SIGN}0.0" + unit
    return f"{value * 100:+.1f}".replace("-", "\N{MINUS SIGN}") + unit


def num(value: float | None) -> str:
    """A count."""
    return NOTHING if value is None else f"{value:,}"


def dec(value: float | None, digits: int = 4) -> str:
    """A number with few significant digits."""
    return NOTHING if value is None else f"{value:.{digits}g}"


def usd(value: object, digits: int = 2) -> str:
    """Dollars; unknown stays unknown."""
    return "unknown" if value is None else f"${Decimal(str(value)):,.{digits}f}"


def short(value: object, longest: int = 240) -> str:
    """The beginning of a text."""
    text = str(value)
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def day(value: str) -> str:
    """The day of an ISO time; what is none stays as it is."""
    try:
        then = datetime.fromisoformat(value)
    except ValueError:
        return value
    return f"{then.day} {then:%B %Y}"


def groupby_kept(items: Iterable[Mapping[str, Any]], key: str) -> list[tuple[Any, list[Mapping[str, Any]]]]:
    """Groups in the order in which their keys first come, where Jinja's own filter would sort them."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for item in items:
        groups.setdefault(item[key], []).append(item)
    return list(groups.items())


def moved_most(labels: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Labels of which rows changed hands: those beyond noise first, then the largest number of rows."""
    moved = [x for x in labels if x["n_gained"] or x["n_lost"]]
    return sorted(moved, key=lambda x: (not x["handled_beyond_noise"], -(x["n_gained"] + x["n_lost"]), x["label"]))


FILTERS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (pct, points, num, dec, usd, short, day, groupby_kept, moved_most)
}
