"""Charts over time as inline SVG: numbers, class names and words of ours. No text of a request is drawn here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import svg
from markupsafe import Markup, escape

from tracer.gateway.pages.ledgers import Span
from tracer.gateway.pages.standing import Agreement

_WIDTH, _HEIGHT = 640, 230
_RIGHT, _TOP, _BOTTOM = 12, 18, 28
_LETTER = 11.5
"""Width of a letter of the labels where they are largest, on a phone."""
_DAY_S = 86_400.0
_STEPS = (60, 300, 900, *(3600 * hours for hours in (1, 3, 6, 12, 24, 48, 120, 240, 720)))


class _Frame:
    """Times by values, and where they lie on the paper. ``ticks`` are values and their names."""

    def __init__(self, start: float, end: float, ticks: Sequence[tuple[float, str]]) -> None:
        self.start, self.end, self.ticks = start, max(end, start + 1.0), ticks
        self.low, self.high = ticks[0][0], ticks[-1][0]
        self.left = 14.0 + _LETTER * max(len(name) for _, name in ticks)

    def x(self, time: float) -> float:
        return round(self.left + (time - self.start) / (self.end - self.start) * (_WIDTH - self.left - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def coverage_chart(
    name: str, spans: Sequence[Span], certified: float | None, marks: Sequence[tuple[float, str]] = ()
) -> Markup:
    """Share handled in each span, over bars of how many requests there were; ``marks``: when which version came."""
    ticks = [(share, f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    frame = _Frame(spans[0].start, spans[-1].start + spans[-1].seconds, ticks)
    most = max((span.n for span in spans), default=0)
    parts: list[svg.Element] = []
    for span in spans:
        if span.n:
            height = (0.22 * (_HEIGHT - _TOP - _BOTTOM)) * span.n / most
            words = f"{_when(span)}: {span.n:,} requests, {_pct(span.coverage)} handled"
            parts.append(_bar("volume", frame, span, frame.y(0.0) - height, height, words))
    parts += _axes(frame)
    parts += _marked(frame, marks)
    if certified is not None:
        parts.append(_rule("certified", frame, certified))
    for run in _runs(spans):
        corners = [(frame.x(s.start + s.seconds / 2), frame.y(s.coverage or 0.0)) for s in run]
        if len(corners) > 1:
            parts.append(svg.Polyline(points=_points(corners), class_=["curve"]))
        parts += [svg.Circle(cx=x, cy=y, r=2.4, class_=["dot"]) for x, y in corners]
    told = [span for span in spans if span.n]
    described = (
        f"From {_pct(told[0].coverage)} to {_pct(told[-1].coverage)} of the requests in the spans shown; "
        f"{sum(s.n for s in told):,} requests."
        if told
        else "No request was decided in this time."
    )
    if certified is not None:
        described += f" {certified:.1%} were handled when it was certified."
    return _drawing(f"coverage-{name}", "Share of requests handled, over time", described, parts)


def agreement_chart(name: str, found: Agreement) -> Markup:
    """Agreement of the handled audits so far, with the band that holds at all times at once, and the target."""
    points = found.points
    # The band is wide at first: a floor that the line can be read against, not all of it.
    lowest = min([found.target, *(p.agreement for p in points[len(points) // 4 :])])
    step = 0.05 if lowest > 0.83 else 0.1 if lowest > 0.48 else 0.2
    n = min(round(1.0 / step), math.ceil((1.08 - lowest) / step))
    frame = _Frame(points[0].time, points[-1].time, [(1 - i * step, f"{1 - i * step:.0%}") for i in range(n, -1, -1)])
    parts = _axes(frame)
    upper = [(frame.x(p.time), frame.y(p.high)) for p in points]
    lower = [(frame.x(p.time), frame.y(p.low)) for p in reversed(points)]
    parts.append(svg.Polygon(points=_points([*upper, *lower]), class_=["band"]))
    parts.append(_rule("target", frame, found.target))
    middle = [(frame.x(p.time), frame.y(p.agreement)) for p in points]
    parts.append(svg.Polyline(points=_points(middle), class_=["curve"]))
    last = points[-1]
    parts.append(svg.Circle(cx=frame.x(last.time), cy=frame.y(last.agreement), r=4, class_=["dot"]))
    # On the side that the line leaves free.
    beside = 20 if last.agreement >= found.target else -8
    words = f"target {100 * found.target:.4g}%"
    parts.append(_text("target-name", _WIDTH - _RIGHT - 4, frame.y(found.target) + beside, words, "end"))
    described = (
        f"{found.n_agreed:,} of {found.n_handled:,} handled audits agree, {_pct(found.agreement)}; with "
        f"{1 - found.level:.0%} confidence between {found.low:.1%} and {found.high:.1%}; "
        f"the target is {found.target:.1%}."
    )
    return _drawing(f"agreement-{name}", "Live agreement with the teacher, over time", described, parts)


def money_chart(name: str, spans: Sequence[Span]) -> Markup | None:
    """What was spent and what was saved in each span, one upon the other; None where no span knows it."""
    known = [span for span in spans if span.spent is not None and span.saved is not None and (span.spent or span.saved)]
    if not known:
        return None
    most = max(float((s.spent or 0) + (s.saved or 0)) for s in known)
    step = _round_up(most) / 4
    digits = next((d for d in range(9) if math.isclose(round(step, d), step, rel_tol=1e-6)), 9)
    ticks = [(step * i, f"${step * i:,.{digits}f}") for i in range(5)]
    frame = _Frame(spans[0].start, spans[-1].start + spans[-1].seconds, ticks)
    parts = _axes(frame)
    for span in known:
        spent, saved = float(span.spent or 0), float(span.saved or 0)
        words = f"{_when(span)}: spent {_dollars(spent, most)}, saved {_dollars(saved, most)}"
        parts.append(_bar("spent", frame, span, frame.y(spent), frame.y(0.0) - frame.y(spent), words))
        parts.append(_bar("saved", frame, span, frame.y(spent + saved), frame.y(spent) - frame.y(spent + saved), words))
    total = [sum(float(getattr(s, what) or 0) for s in known) for what in ("spent", "saved")]
    described = (
        f"Spent {_dollars(total[0], total[0])} on the teacher, saved {_dollars(total[1], total[1])}, in all spans."
    )
    return _drawing(f"money-{name}", "Dollars spent and saved, over time", described, parts)


def spark(name: str, spans: Sequence[Span]) -> Markup:
    """Coverage as a line without axes."""
    width, height = 240.0, 40.0
    step = width / max(len(spans) - 1, 1)
    parts: list[svg.Element] = []
    for run in _runs(spans):
        first = spans.index(run[0])
        corners = [
            (round((first + i) * step, 1), round(height - 2 - (s.coverage or 0.0) * (height - 4), 1))
            for i, s in enumerate(run)
        ]
        if len(corners) > 1:
            area = [(corners[0][0], height), *corners, (corners[-1][0], height)]
            parts.append(svg.Polygon(points=_points(area), class_=["area"]))
            parts.append(svg.Polyline(points=_points(corners), class_=["curve"]))
        else:
            parts.append(svg.Circle(cx=corners[0][0], cy=corners[0][1], r=2, class_=["dot"]))
    told = [span.coverage for span in spans if span.coverage is not None]
    described = f"from {_pct(told[0])} to {_pct(told[-1])}" if told else "no requests"
    return _drawing(f"spark-{name}", "Coverage over the last seven days", described, parts, (width, height), "spark")


def gauge(name: str, found: Agreement) -> Markup:
    """The interval of the live agreement on a short scale, the target marked on it."""
    width, height = 240.0, 30.0
    low = max(0.0, min(found.target - 0.15, found.agreement or 1.0, max(found.low, found.target - 0.3)))

    def x(value: float) -> float:
        return round(4 + (max(value, low) - low) / (1.0 - low) * (width - 8), 1)

    parts: list[svg.Element] = [
        svg.Rect(x=4, y=13, width=width - 8, height=4, rx=2, class_=["rail"]),
        svg.Rect(x=x(found.low), y=9, width=max(x(found.high) - x(found.low), 1), height=12, rx=3, class_=["band"]),
    ]
    if found.agreement is not None:
        parts.append(svg.Circle(cx=x(found.agreement), cy=15, r=4.5, class_=["dot"]))
    parts.append(svg.Line(x1=x(found.target), y1=3, x2=x(found.target), y2=27, class_=["target"]))
    described = (
        f"{_pct(found.agreement)} of handled audits agree, between {found.low:.1%} and {found.high:.1%}; "
        f"the target is {found.target:.1%}."
    )
    return _drawing(f"gauge-{name}", "Live agreement", described, parts, (width, height), "gauge")


def _axes(frame: _Frame) -> list[svg.Element]:
    parts: list[svg.Element] = []
    for value, words in frame.ticks:
        y = frame.y(value)
        parts.append(svg.Line(x1=frame.left, y1=y, x2=_WIDTH - _RIGHT, y2=y, class_=["grid"]))
        parts.append(_text("tick", frame.left - 7, y + 4, words, "end"))
    for at, words in _times(frame.start, frame.end):
        x = frame.x(at)
        if frame.left + 12 <= x <= _WIDTH - _RIGHT - 12:
            parts.append(_text("tick", x, _HEIGHT - 7, words, "middle"))
    return parts


def _marked(frame: _Frame, marks: Sequence[tuple[float, str]]) -> list[svg.Element]:
    """Upright lines where another version came into force; of names that would run into each other, the last."""
    parts: list[svg.Element] = []
    free = math.inf
    for at, words in sorted(marks, reverse=True):
        if frame.start <= at <= frame.end:
            x = frame.x(at)
            parts.append(svg.Line(x1=x, y1=_TOP - 6, x2=x, y2=frame.y(frame.low), class_=["mark-line"]))
            if x + _LETTER * len(words) < min(free, _WIDTH):
                parts.append(_text("mark-name", x + 4, _TOP - 4, words, "start"))
                free = x
    return parts


def _times(start: float, end: float) -> list[tuple[float, str]]:
    """Six round times or so, in UTC."""
    wanted = (end - start) / 6
    step = next((s for s in _STEPS if s >= wanted), _STEPS[-1])
    form = "%d %b" if step >= _DAY_S else "%H:%M"
    first = math.ceil(start / step) * step
    n = int((end - first) // step) + 1
    return [(first + i * step, f"{datetime.fromtimestamp(first + i * step, UTC):{form}}") for i in range(max(n, 0))]


def _runs(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans that follow each other with requests in each."""
    runs: list[list[Span]] = []
    open_run = False
    for span in spans:
        if not span.n:
            open_run = False
            continue
        if not open_run:
            runs.append([])
            open_run = True
        runs[-1].append(span)
    return runs


def _bar(kind: str, frame: _Frame, span: Span, y: float, height: float, words: str) -> svg.Element:
    x, end = frame.x(span.start), frame.x(span.start + span.seconds)
    gap = min(2.0, (end - x) * 0.15)
    return svg.Rect(
        x=round(x + gap / 2, 1), y=round(y, 1), width=round(max(end - x - gap, 0.5), 1),
        height=round(max(height, 0.0), 1), class_=[kind], elements=[svg.Title(text=escape(words))],
    )  # fmt: skip


def _rule(kind: str, frame: _Frame, value: float) -> svg.Line:
    return svg.Line(x1=frame.left, y1=frame.y(value), x2=_WIDTH - _RIGHT, y2=frame.y(value), class_=[kind])


def _text(kind: str, x: float, y: float, words: str, anchor: Any) -> svg.Text:
    return svg.Text(x=x, y=y, text=escape(words), class_=[kind], text_anchor=anchor)


def _points(pairs: Sequence[tuple[float, float]]) -> list[svg.Point]:
    return [svg.Point(x, y) for x, y in pairs]


def _drawing(
    name: str, title: str, described: str, parts: Sequence[svg.Element],
    size: tuple[float, float] = (_WIDTH, _HEIGHT), kind: str = "chart",
) -> Markup:  # fmt: skip
    head: list[svg.Element] = [
        svg.Title(id=f"{name}-title", text=escape(title)),
        svg.Desc(id=f"{name}-desc", text=escape(described)),
    ]
    drawing = svg.SVG(
        viewBox=svg.ViewBoxSpec(0, 0, *size),
        class_=[kind],
        xmlns=None,
        extra={"role": "img", "aria-labelledby": f"{name}-title {name}-desc"},
        elements=[*head, *parts],
    )
    return Markup(str(drawing))  # noqa: S704 - built from numbers, class names and escaped words


def _when(span: Span) -> str:
    form = "%d %b" if span.seconds >= _DAY_S else "%d %b %H:%M"
    return f"{datetime.fromtimestamp(span.start, UTC):{form}}"


def _pct(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.1%}"


def _round_up(value: float) -> float:
    """The next round number: 1, 2, 4 or 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next((m * power for m in (1, 2, 4, 8) if m * power >= value), 10 * power)


def _dollars(value: float, scale: float) -> str:
    digits = max(0, min(6, 2 - math.floor(math.log10(scale)))) if scale > 0 else 2
    return f"${value:,.{max(digits, 2) if scale < 10 else 0 if scale >= 100 else 1}f}"
